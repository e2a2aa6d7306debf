"""CLIP models (Radford et al., 2021, arXiv 2103.00020), through open_clip."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from zsqretrieval._util.checks import check_strings
from zsqretrieval._util.letters import as_letters
from zsqretrieval._util.optional import import_optional
from zsqretrieval._util.torch import (
    FromPretrained,
    add_tensors,
    ensure_torchvision,
    no_remote_code,
    resolve_device,
)
from zsqretrieval.data.images import decode, trimmed
from zsqretrieval.encoders.rows import encode_batches, encode_pictures
from zsqretrieval.errors import InvalidInputError, MismatchError, WeightsError
from zsqretrieval.types import Image

if TYPE_CHECKING:
    import torch
    from PIL import Image as PILImage

_LOCAL_DIR, _HUB = "local-dir:", "hf-hub:"
_DEFAULT_NAME, _DEFAULT_TAG = "ViT-B-32", "laion2b_s34b_b79k"
_RANDOM = "random"
_PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

T = TypeVar("T")
R = TypeVar("R")


class CLIPEncoder(FromPretrained):
    """An :class:`~zsqretrieval.protocols.Encoder` over any model of open_clip.

    Make one with :meth:`from_pretrained`. With ``precision="fp32"`` the batch size changes a vector by less
    than 1e-5; in half precision some GPUs round differently in batches of different sizes, by more.

    Args:
        model: an open_clip model, on its device.
        preprocess: the model's validation transform: PIL RGB image to float tensor [3, H, W].
        tokenize: a tokenizer of open_clip: list of n strings to int64 tensor [n, context length].
        architecture: ``model_cfg`` of the model's ``open_clip_config.json``.
        config: the arguments of :meth:`from_pretrained` that rebuild this encoder.
    """

    _settings = ("name", "pretrained", "precision", "cache_dir", "force_quick_gelu", "seed")
    safe_settings: ClassVar[Mapping[str, Any]] = {
        "precision": tuple(_PRECISIONS),
        "cache_dir": (None,),
        "force_quick_gelu": (False, True),
        "seed": range(2**63),
    }

    def __init__(
        self,
        model: torch.nn.Module,
        preprocess: Callable[[PILImage.Image], torch.Tensor],
        tokenize: Any,
        *,
        architecture: Mapping[str, Any],
        config: Mapping[str, Any],
    ) -> None:
        self._model: Any = model.eval()
        self._preprocess = preprocess
        self._tokenize = tokenize
        self._architecture = dict(architecture)
        self._config = dict(config)

    @classmethod
    def from_pretrained(
        cls,
        name: str = _DEFAULT_NAME,
        pretrained: str | Path | None = None,
        *,
        device: str | None = None,
        precision: str = "fp32",
        cache_dir: str | Path | None = None,
        force_quick_gelu: bool = False,
        seed: int = 0,
    ) -> Self:
        """Load a model with its weights, preprocessing and tokenizer.

        Args:
            name: an architecture of open_clip (``"ViT-B-32"``); or ``"local-dir:PATH"``, a folder with
                ``open_clip_config.json`` and weights; or ``"hf-hub:ORG/NAME"``.
            pretrained: weights of an architecture: a tag of open_clip, downloaded when not cached, or the
                path of a checkpoint. ``"laion2b_s34b_b79k"`` if neither ``name`` nor ``pretrained`` is given.
                A folder or hub repository has its own weights; its own code is never run. ``"random"`` is for
                tests.
            device: ``"cuda"``, ``"mps"``, ``"cpu"``, ...; None takes that of ``ZSQ_DEVICE``, else the first
                available of these three.
            precision: of the computation, ``"fp32"``, ``"bf16"`` or ``"fp16"``; vectors are always float32.
            cache_dir: folder for downloads; None for open_clip's default.
            force_quick_gelu: build the architecture with QuickGELU, which OpenAI's and some other weights
                need. It is checked for a tag. A checkpoint file does not contain the activation, so a wrong
                one loads without an error.
            seed: of random weights.

        Raises:
            InvalidInputError: an unknown architecture, tag, precision or device; names the known ones.
            MismatchError: the tag's weights were trained with another activation than the architecture's.
            WeightsError: weights are missing, damaged, of another model, or cannot be downloaded.
            MissingDependencyError: open_clip cannot be imported.
        """
        ensure_torchvision()
        open_clip = import_optional("open_clip", "CLIPEncoder", "pip install open_clip_torch torchvision")
        if precision not in _PRECISIONS:
            raise InvalidInputError(f"precision must be one of {', '.join(_PRECISIONS)}, not {precision!r}")
        target = resolve_device(device)
        name, weights = _resolve(open_clip, name, pretrained)
        cache = None if cache_dir is None else str(Path(cache_dir).expanduser().absolute())
        if not name.startswith((_LOCAL_DIR, _HUB)):
            _check_activation(open_clip, name, weights, force_quick_gelu)
        try:
            with no_remote_code():
                model, preprocess = _build(
                    open_clip, name, weights, seed,
                    device=target, precision=precision, force_quick_gelu=force_quick_gelu, cache_dir=cache,
                )  # fmt: skip
                tokenize = _letters(open_clip.get_tokenizer(name, cache_dir=cache))
            architecture = _architecture(open_clip, name, cache)
        except WeightsError:
            raise
        except Exception as error:  # open_clip, huggingface_hub, safetensors and torch raise various types
            raise WeightsError(_explain(name, weights, error)) from error
        if force_quick_gelu:
            architecture = {**architecture, "quick_gelu": True}
        config = {
            "name": name,
            "pretrained": weights,
            "precision": precision,
            "cache_dir": cache,
            "force_quick_gelu": force_quick_gelu,
            "seed": seed,
        }
        return cls(model, preprocess, tokenize, architecture=architecture, config=config)

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return int(self._architecture["embed_dim"])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over weights, architecture, preprocessing, tokenizer and precision; not the device.

        Computed on first use: about half a second for ViT-B-32.
        """
        digest = hashlib.sha256()
        settings = {
            "architecture": self._architecture,
            "preprocess": self._model.visual.preprocess_cfg,
            "precision": self._config["precision"],
        }
        digest.update(json.dumps(settings, sort_keys=True).encode())
        probe = self._tokenize(["A probe: 2 dogs' café, №7; 猫!"])
        add_tensors(digest, {**self._model.state_dict(), "tokenizer": probe})
        return digest.hexdigest()

    def encode_image(self, images: Sequence[Image], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Encode images; see :meth:`zsqretrieval.protocols.Encoder.encode_image`.

        Threads decode up to two batches ahead of the model.

        Raises:
            ImageError: an image cannot be decoded; names it.
            InvalidInputError: ``batch_size`` < 1.
        """
        return encode_pictures(
            self._pixels, lambda batch: self._model.encode_image(self._stack(batch)),
            images, batch_size=batch_size, dim=self.dim,
        )  # fmt: skip

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Encode texts; see :meth:`zsqretrieval.protocols.Encoder.encode_text`.

        A text longer than the model's context (77 tokens for CLIP) is cut before its end token; see
        :meth:`truncated`.

        Raises:
            InvalidInputError: ``texts`` is one string, contains something other than strings, or
                ``batch_size`` is below 1.
        """
        check_strings(texts)
        return encode_batches(
            lambda batch: self._model.encode_text(self._tokenize(batch).to(self._device)),
            texts, batch_size=batch_size, dim=self.dim,
        )  # fmt: skip

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """Which texts are longer than the model's context."""
        return [_length(self._tokenize, text) > self._tokenize.context_length for text in texts]

    def _pixels(self, image: Image) -> torch.Tensor:
        """float32 [3, H, W]."""
        picture = decode(image)
        if self._model.visual.preprocess_cfg["resize_mode"] == "shortest":
            picture = trimmed(picture)
        return self._preprocess(picture)

    def _stack(self, pixels: list[torch.Tensor]) -> torch.Tensor:
        """[b, 3, H, W] in the model's precision; the model does not cast its input."""
        import torch

        return torch.stack(pixels).to(self._device, getattr(torch, _PRECISIONS[self._config["precision"]]))

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self._model.parameters()).device
        return device


def _resolve(open_clip: Any, name: str, pretrained: str | Path | None) -> tuple[str, str | None]:
    """The name, and the tag or absolute path of the weights; None for a folder or repository."""
    if name.startswith((_LOCAL_DIR, _HUB)):
        if pretrained not in (None, _RANDOM):
            raise InvalidInputError(f"{name} has its own weights; leave out pretrained={str(pretrained)!r}")
        if name.startswith(_LOCAL_DIR):
            folder = Path(name.removeprefix(_LOCAL_DIR)).expanduser().absolute()
            if not (folder / "open_clip_config.json").is_file():
                raise WeightsError(
                    f"{folder} has no open_clip_config.json: it is not a model folder of open_clip"
                )
            name = f"{_LOCAL_DIR}{folder}"
        return name, _RANDOM if pretrained else None
    if name not in open_clip.list_models():
        raise InvalidInputError(f"open_clip has no model {name!r}{_suggest(name, open_clip.list_models())}")
    if pretrained is None and name == _DEFAULT_NAME:
        return name, _DEFAULT_TAG
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise InvalidInputError(f"{name} needs pretrained=: a checkpoint's path or one of {', '.join(tags)}")
    if pretrained == _RANDOM or open_clip.is_pretrained_cfg(name, str(pretrained)):
        return name, str(pretrained)
    path = Path(pretrained).expanduser().absolute()
    if path.is_file():
        return name, str(path)
    if isinstance(pretrained, Path) or set(pretrained) & set("./\\"):
        raise WeightsError(f"there is no checkpoint file {path}")
    raise InvalidInputError(
        f"{name} has no weights {pretrained!r}, as a tag or file{_suggest(pretrained, tags)}"
    )


def _suggest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known)
    return f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(known) or 'none'}"


def _check_activation(open_clip: Any, name: str, weights: str | None, force_quick_gelu: bool) -> None:
    """Refuse weights that were trained with another activation, before any download."""
    tag = open_clip.get_pretrained_cfg(name, weights)
    if not tag:
        return
    trained = tag.get("quick_gelu", False)
    built = open_clip.get_model_config(name).get("quick_gelu", False)
    if trained and not (built or force_quick_gelu):
        raise MismatchError(
            f"the weights {weights!r} were trained with QuickGELU and {name} is built with GELU, so every "
            f"vector would be wrong; use {name + '-quickgelu'!r} or force_quick_gelu=True"
        )
    if force_quick_gelu and not (built or trained):
        raise MismatchError(
            f"the weights {weights!r} of {name} were trained with GELU: leave out force_quick_gelu=True"
        )


def _build(
    open_clip: Any, name: str, weights: str | None, seed: int, **options: Any
) -> tuple[torch.nn.Module, Callable[[PILImage.Image], torch.Tensor]]:
    """The model and its validation transform."""
    import torch

    if weights != _RANDOM:
        model, preprocess = open_clip.create_model_from_pretrained(name, weights, **options)
        return model, preprocess
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model, _, preprocess = open_clip.create_model_and_transforms(
            name, load_weights=False, pretrained_text=False, **options
        )
    return model, preprocess


def _explain(name: str, weights: str | None, error: Exception) -> str:
    what = f"cannot load CLIP {name}" + (f" with weights {weights}" if weights else "")
    what += f": {type(error).__name__}: {str(error)[:500]}"
    if name.startswith(_LOCAL_DIR) or (weights and Path(weights).is_file()):
        return f"{what}. The files are incomplete, damaged, or of another model: copy or export them again"
    return (
        f"{what}. Offline, load it on a machine with network and copy its cache here (cache_dir), or name "
        "local weights: pretrained='/path/to/checkpoint' or name='local-dir:/path/to/folder'"
    )


def _architecture(open_clip: Any, name: str, cache_dir: str | None) -> dict[str, Any]:
    if not name.startswith(_HUB):
        return dict(open_clip.get_model_config(name))
    from open_clip.pretrained import download_pretrained_from_hf

    path = download_pretrained_from_hf(name.removeprefix(_HUB), "open_clip_config.json", cache_dir=cache_dir)
    return dict(json.loads(Path(path).read_text(encoding="utf-8"))["model_cfg"])


def _letters(tokenize: Any) -> Any:
    """A copy of a tokenizer of open_clip to which no text contains a special token."""
    from open_clip import tokenizer as of_open_clip

    plain = copy.copy(tokenize)
    if hasattr(tokenize, "tokenizer"):
        plain.tokenizer = as_letters(tokenize.tokenizer)
    else:  # SimpleTokenizer looks for special tokens first, and has them in its cache of words
        special = [tokenize.decoder[id] for id in tokenize.all_special_ids]
        words = tokenize.pat.pattern.removeprefix("|".join([*special, ""]))
        plain.pat = of_open_clip.re.compile(words, tokenize.pat.flags)
        plain.cache = {}
    return plain


def _length(tokenize: Any, text: str) -> int:
    """Tokens of a text without a cut, with those that begin and end it."""
    if not hasattr(tokenize, "tokenizer"):
        return len(tokenize.encode(text)) + 2
    own = 3 if tokenize.tokenizer_mode == "clips" else 0  # its beginning, end and class token
    encoded = tokenize.tokenizer(tokenize.clean_fn(text), add_special_tokens=not own, verbose=False)
    return len(encoded.input_ids) + own
