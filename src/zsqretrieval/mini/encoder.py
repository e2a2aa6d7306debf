"""The embedded default encoder: small, offline, trained on captioned photographs; runs on any machine.

The shipped weights, the training data, the measured recall and the limits are in ``docs/mini-encoder.md``. It
is not CLIP: use :class:`~zsqretrieval.encoders.clip.CLIPEncoder` when you have CLIP's weights.

Shapes: B images or texts, T tokens, D = 512 dimensions of one head, S = 384 sentence dimensions, C = 1000
classes. Each tower has a trunk, two tops, a trained head on each top, and a part without training.

    pixels [B, 3, 260, 260] --trunk--> [B, 208, 9, 9] --tuned top--> [B, 1280, 9, 9] --head--> [B, D]
                                           `--ImageNet's own top--> [B, 1280, 9, 9] --head--> [B, D]
                                                  `--classifier--> P(class) [B, C] --names--> [B, S]
    ids [B, T] --trunk--> [B, T, 384] --tuned layers--> [B, T, 384] --head--> [B, D]
                              `--MiniLM's own layers--> [B, T, 384] --head--> [B, D]
                                                            `--mean token--> [B, S]

Contrastive learning on captioned photographs aligns the heads of both towers. The last part is the knowledge
of the base models: an image is the mean of the names of its likeliest ImageNet classes in MiniLM's space
(ConSE, Norouzi et al., arXiv 1312.5650), a text is its MiniLM sentence vector.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize
from typing_extensions import Self

from zsqretrieval._util.checks import check_counts, check_shares, check_strings
from zsqretrieval._util.torch import FromPretrained, resolve_device
from zsqretrieval.errors import WeightsError
from zsqretrieval.mini.bert import Bert, Layer
from zsqretrieval.mini.efficientnet import EfficientNetLite2, likely_names, pictures, scale_pixels
from zsqretrieval.mini.weights import BaseWeights, read_base_weights, read_trained, without_values
from zsqretrieval.types import Image

HEAD_DIM = 512

_SHIPPED = Path(__file__).with_name("encoder.safetensors")
_VERSION = "1"  # changes with preprocessing, tokenisation, or the way the parts are joined
_MAX_TOKENS = 128
_TUNED_LAYERS = 3
_DROPOUT = 0.1  # of MiniLM's layers, in training
_PADDED = -1e4  # far below any attention score, and finite in half precision
_KNOWLEDGE = ("class_names", "image_mean", "text_mean")


# --- the two towers ---------------------------------------------------------------------------------------


class AttentionPool(nn.Module):
    """Pools a set of tokens into one vector: attention with learned queries, and the mean, then an MLP.

    Since the queries are parameters, query times key is one linear map per head (``score``).
    """

    def __init__(self, width: int, dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        heads, attended, hidden = 8, 512, 1024
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, heads)
        self.value = nn.Parameter(torch.empty(heads, width, attended // heads))
        nn.init.normal_(self.value, std=width**-0.5)
        self.skip = nn.Linear(attended + width, dim)
        self.fc1 = nn.Linear(attended + width, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Pool ``tokens`` [B, T, width] where ``mask`` [B, T] is 1 into [B, dim]."""
        tokens = self.norm(tokens)
        mean = _mean_token(tokens, mask)  # [B, width]
        score = self.score(tokens).masked_fill(mask[..., None] == 0, _PADDED)  # [B, T, heads]
        attention = score.softmax(1).to(tokens.dtype).transpose(1, 2)  # [B, heads, T]
        attended = torch.einsum("bhc,hcd->bhd", attention @ tokens, self.value).flatten(1)  # [B, 512]
        x = self.dropout(torch.cat([attended, mean.to(attended.dtype)], dim=-1))
        pooled: Tensor = self.skip(x) + self.fc2(self.dropout(gelu(self.fc1(x))))
        return pooled


class ImageTower(EfficientNetLite2):
    """EfficientNet-Lite2 with a second, tuned copy of its top, and a head on each."""

    def __init__(self, base: BaseWeights, *, dropout: float = 0.0) -> None:
        super().__init__(base.efficientnet)
        self.tuned_head = AttentionPool(1280, HEAD_DIM, dropout=dropout)
        self.own_head = _head_beside(1280, dropout)

    def by_own_head(self, own: Tensor) -> Tensor:
        """Output of :meth:`own` to [B, D], not of unit length."""
        return _pooled_grid(self.own_head, own)

    def by_tuned_head(self, grid: Tensor) -> Tensor:
        """Output of :meth:`trunk` to [B, D], not of unit length."""
        return _pooled_grid(self.tuned_head, self.tuned_top(grid))


class TextTower(nn.Module):
    """all-MiniLM-L6-v2 with a second, tuned copy of its upper layers, and a head on each."""

    def __init__(self, base: BaseWeights, *, dropout: float = 0.0) -> None:
        super().__init__()
        with without_values():
            bert = Bert(_DROPOUT)
        bert.load_state_dict(base.minilm, assign=True)
        layers: Any = bert.eval().encoder["layer"]
        self.embeddings = bert.embeddings
        self.lower_layers: Sequence[Layer] = layers[:-_TUNED_LAYERS]
        self.own_layers: Sequence[Layer] = layers[-_TUNED_LAYERS:]
        self.tuned_layers: Any = copy.deepcopy(self.own_layers)
        self.tuned_head = AttentionPool(384, HEAD_DIM, dropout=dropout)
        self.own_head = _head_beside(384, dropout)

    def trunk(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Word-piece ids and mask [B, T] to lower hidden states [B, T, 384]."""
        words = self.embeddings.word_embeddings(ids)
        hidden = self.embeddings(words, torch.arange(ids.shape[1], device=ids.device))
        return _through(self.lower_layers, hidden, mask)

    def own(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Lower hidden states to MiniLM's last ones, [B, T, 384]."""
        return _through(self.own_layers, hidden, mask)

    def by_own_head(self, own: Tensor, mask: Tensor) -> Tensor:
        """Output of :meth:`own` to [B, D], not of unit length."""
        pooled: Tensor = self.own_head(own, mask)
        return pooled

    def by_tuned_head(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Lower hidden states to [B, D], not of unit length."""
        pooled: Tensor = self.tuned_head(_through(self.tuned_layers, hidden, mask), mask)
        return pooled

    def sentence(self, own: Tensor, mask: Tensor) -> Tensor:
        """Output of :meth:`own` to MiniLM's unit sentence vectors [B, S], the mean token."""
        return normalize(_mean_token(own, mask), dim=-1)


def join(heads: Sequence[Tensor], knowledge: Tensor, share: float) -> Tensor:
    """One unit vector [B, 2 D + S] whose dot product is a weighted sum of the parts' cosines.

    ``knowledge``, unit vectors [B, S], has the weight ``share``; the heads [B, D] share the rest equally.
    """
    weight = ((1 - share) / len(heads)) ** 0.5
    parts = [normalize(head.float(), dim=-1) * weight for head in heads]
    return torch.cat([*parts, knowledge * share**0.5], dim=-1)


def _mean_token(tokens: Tensor, mask: Tensor) -> Tensor:
    return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def _head_beside(width: int, dropout: float) -> AttentionPool:
    """A head outside the global random stream, so that no other initial weight depends on it."""
    with torch.random.fork_rng(devices=[]):
        return AttentionPool(width, HEAD_DIM, dropout=dropout)


def _pooled_grid(head: nn.Module, features: Tensor) -> Tensor:
    tokens = features.flatten(2).transpose(1, 2)  # [B, 81, 1280]
    pooled: Tensor = head(tokens, tokens.new_ones(tokens.shape[:2]))
    return pooled


def _through(layers: Sequence[Layer], hidden: Tensor, mask: Tensor) -> Tensor:
    allowed = None if mask.all() else mask[:, None, None, :] != 0
    for layer in layers:
        hidden = layer(hidden, allowed)
    return hidden


# --- the encoder ------------------------------------------------------------------------------------------


@final
class MiniEncoder(FromPretrained):
    """Encodes images and texts as unit float32 vectors of 1408 dimensions; made by :meth:`from_pretrained`.

    Image: the whole picture, resized to 260 x 260 whatever its shape. Text: the first 128 word pieces. Both
    methods may be called from several threads.
    """

    _settings = ("weights", "knowledge_share")
    safe_settings: ClassVar[Mapping[str, Any]] = {"weights": (None,), "knowledge_share": (None, int, float)}

    def __init__(
        self,
        image_tower: ImageTower,
        text_tower: TextTower,
        tokenizer: Tokenizer,
        knowledge: Mapping[str, Tensor],
        *,
        share: float,
        device: torch.device,
        config: Mapping[str, Any],
        fingerprint: str,
    ) -> None:
        self._image_tower = image_tower
        self._text_tower = text_tower
        self._tokenizer = tokenizer
        self._knowledge = knowledge
        self._share = share
        self._device = device
        self._config = dict(config)
        self._fingerprint = fingerprint

    @classmethod
    def from_pretrained(
        cls,
        weights: str | os.PathLike[str] | None = None,
        *,
        knowledge_share: float | None = None,
        device: str | None = None,
    ) -> Self:
        """Load the encoder. Its base weights (116 MB) come with the extra ``zsqretrieval[mini]``.

        Args:
            weights: trained part written by ``examples/train_mini_encoder.py``; None for the shipped one.
            knowledge_share: weight of the ImageNet class names, from 0 to 1; None for the weight chosen in
                training. Raise it for single objects, cut out or close by; lower it for scenes with people.
                Vectors of different weights cannot be compared.
            device: a torch device; None for that of ``ZSQ_DEVICE``, else the best available.

        Raises:
            InvalidInputError: ``knowledge_share`` is not between 0 and 1, or there is no such device.
            MissingDependencyError: the extra ``mini`` is not installed.
            WeightsError: base weights are altered, or ``weights`` is not a trained part of this encoder.
        """
        if knowledge_share is not None:
            check_shares(knowledge_share=knowledge_share)
        target = resolve_device(device)
        path = _SHIPPED if weights is None else Path(weights).absolute()
        trained, digest = read_trained(path, "encoder")
        missing = [name for name in (*_KNOWLEDGE, "share") if name not in trained]
        if missing:
            raise WeightsError(
                f"{path} is not a trained part of the mini encoder: it lacks {', '.join(missing)}"
            )
        base = read_base_weights()
        with without_values():  # the heads are in ``trained``
            image_tower, text_tower = ImageTower(base), TextTower(base)
        for tower, name, tuned in ((image_tower, "image", "tuned_top"), (text_tower, "text", "tuned_layers")):
            for part in (tuned, "tuned_head", "own_head"):
                _load_part(getattr(tower, part), trained, f"{name}.{part}.", path)
            tower.eval().requires_grad_(False).to(target)
        image_tower.fold()
        base.tokenizer.enable_truncation(_MAX_TOKENS)
        share = float(trained["share"] if knowledge_share is None else knowledge_share)
        config: dict[str, Any] = {} if weights is None else {"weights": str(path)}
        if knowledge_share is not None:
            config["knowledge_share"] = share
        return cls(
            image_tower,
            text_tower,
            base.tokenizer,
            {name: trained[name].float().to(target) for name in _KNOWLEDGE},
            share=share,
            device=target,
            config=config,
            fingerprint=f"mini-{_VERSION}-{digest[:16]}-{share:g}",
        )

    @property
    def dim(self) -> int:
        """Length of every vector: 512 dimensions for each of two trained heads and 384 of knowledge."""
        return 2 * HEAD_DIM + 384

    @property
    def fingerprint(self) -> str:
        """Version, digest of the trained part, knowledge share. The base weights are fixed in the source."""
        return self._fingerprint

    def encode_image(self, images: Sequence[Image], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Encode images; see :meth:`zsqretrieval.protocols.Encoder.encode_image`.

        Raises:
            ImageError: an image cannot be decoded; names it.
            InvalidInputError: ``batch_size`` < 1.
        """
        rows = np.empty((len(images), self.dim), dtype=np.float32)
        for batch in _batches(len(images), batch_size):
            rows[batch] = self._encode_pictures(pictures(images[batch]))
        return rows

    @torch.inference_mode()
    def _encode_pictures(self, pixels: Tensor) -> NDArray[np.float32]:
        """uint8 [B, 260, 260, 3] to vectors float32 [B, dim]."""
        tower, known = self._image_tower, self._knowledge
        grid = tower.trunk(scale_pixels(pixels.to(self._device)))
        own = tower.own(grid)
        names = likely_names(tower.class_probabilities(own), known["class_names"])
        knowledge = normalize(names - known["image_mean"], dim=-1)
        heads = (tower.by_tuned_head(grid), tower.by_own_head(own))
        vectors: NDArray[np.float32] = join(heads, knowledge, self._share).cpu().numpy()
        return vectors

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Encode texts; see :meth:`zsqretrieval.protocols.Encoder.encode_text`.

        Raises:
            InvalidInputError: ``texts`` is a string or contains something else, or ``batch_size`` < 1.
        """
        check_strings(texts)
        rows = np.empty((len(texts), self.dim), dtype=np.float32)
        tower, known = self._text_tower, self._knowledge
        for batch in _batches(len(texts), batch_size):
            ids, mask = (tensor.to(self._device) for tensor in self._tokenize(texts[batch]))
            with torch.inference_mode():
                hidden = tower.trunk(ids, mask)
                own = tower.own(hidden, mask)
                knowledge = normalize(tower.sentence(own, mask) - known["text_mean"], dim=-1)
                heads = (tower.by_tuned_head(hidden, mask), tower.by_own_head(own, mask))
                rows[batch] = join(heads, knowledge, self._share).cpu().numpy()
        return rows

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """Which texts have more than 128 word pieces."""
        return [bool(one.overflowing) for one in self._tokenizer.encode_batch(list(texts))]

    def _tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Word-piece ids, int64 [B, T], and float mask [B, T]."""
        encoded = [torch.tensor(one.ids) for one in self._tokenizer.encode_batch(list(texts))]
        ids = nn.utils.rnn.pad_sequence(encoded, batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones(len(one)) for one in encoded], batch_first=True)
        return ids, mask


def _batches(n: int, size: int) -> Iterator[slice]:
    check_counts(batch_size=size)
    return (slice(start, start + size) for start in range(0, n, size))


def _load_part(module: nn.Module, trained: Mapping[str, Tensor], prefix: str, path: Path) -> None:
    part = {
        name[len(prefix) :]: value.float() if value.is_floating_point() else value
        for name, value in trained.items()
        if name.startswith(prefix)
    }
    try:
        module.load_state_dict(part, assign=True)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit the mini encoder: {error}") from error
