"""The two towers of the mini encoder, and how they are put together from downloaded and trained weights.

Shapes: B images or texts, T tokens, D = 512 dimensions of one head, S = 384 sentence dimensions, C = 1000
classes. Each tower has a trunk, two tops, a trained head on each top, and a part that needs no training.

    pixels [B, 3, 260, 260] --trunk--> [B, 208, 9, 9] --tuned top--> [B, 1280, 9, 9] --head--> [B, D]
                                           `--ImageNet's own top--> [B, 1280, 9, 9] --head--> [B, D]
                                                  `--classifier--> P(class) [B, C] --names--> [B, S]
    ids [B, T] --trunk--> [B, T, 384] --tuned layers--> [B, T, 384] --head--> [B, D]
                              `--MiniLM's own layers--> [B, T, 384] --head--> [B, D]
                                                            `--mean token--> [B, S]

The heads of both towers are aligned by contrastive learning on captioned photographs. The last part is
knowledge the base models bring along: an image is the mean of the names of its likeliest ImageNet classes in
MiniLM's space (ConSE, Norouzi et al., arXiv 1312.5650), a text is its MiniLM sentence vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize
from transformers import BertConfig, BertModel

from zsqretrieval.mini.efficientnet import EfficientNetLite2, another_top

__all__ = ["AttentionPool", "ImageTower", "TextTower", "fresh_head", "join"]

HEAD_DIM = 512
TUNED_LAYERS = 3

_PADDED = -1e4  # far below any attention score, and finite in half precision


class AttentionPool(nn.Module):
    """Pools a set of tokens into one vector: attention with learned queries, and the mean, then an MLP.

    Since the queries are parameters, query times key is one linear map per head (``score``).
    """

    def __init__(
        self, width: int, dim: int, *, heads: int = 8, hidden: int = 1024, dropout: float = 0.0
    ) -> None:
        super().__init__()
        attended = 512
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, heads)
        self.value = nn.Parameter(torch.randn(heads, width, attended // heads) * width**-0.5)
        self.skip = nn.Linear(attended + width, dim)
        self.fc1 = nn.Linear(attended + width, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Pool ``tokens`` [B, T, width] where ``mask`` [B, T] is 1 into [B, dim]."""
        tokens = self.norm(tokens)
        mean = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)  # [B, width]
        score = self.score(tokens).masked_fill(mask[..., None] == 0, _PADDED)  # [B, T, heads]
        attention = score.softmax(1).to(tokens.dtype).transpose(1, 2)  # [B, heads, T]
        attended = torch.einsum("bhc,hcd->bhd", attention @ tokens, self.value).flatten(1)  # [B, 512]
        x = self.dropout(torch.cat([attended, mean.to(attended.dtype)], dim=-1))
        pooled: Tensor = self.skip(x) + self.fc2(self.dropout(gelu(self.fc1(x))))
        return pooled


class ImageTower(EfficientNetLite2):
    """EfficientNet-Lite2 with a second, tuned copy of its top, and a head on each."""

    def __init__(self, base: Mapping[str, Tensor], *, dropout: float = 0.0) -> None:
        super().__init__(base)
        self.tuned_top = another_top(base)
        self.tuned_head = AttentionPool(1280, HEAD_DIM, dropout=dropout)
        self.own_head = fresh_head(1280, dropout)

    def by_own_head(self, own: Tensor) -> Tensor:
        """What :meth:`own` gives to [B, D], not of unit length."""
        return _pooled_grid(self.own_head, own)

    def by_tuned_head(self, grid: Tensor) -> Tensor:
        """[B, 208, 9, 9] to [B, D], not of unit length."""
        return _pooled_grid(self.tuned_head, self.tuned_top(grid))


class TextTower(nn.Module):
    """all-MiniLM-L6-v2 with a second, tuned copy of its upper layers, and a head on each."""

    def __init__(self, config: Path, base: Mapping[str, Tensor], *, dropout: float = 0.0) -> None:
        super().__init__()
        bert, copy = _minilm(config, base), _minilm(config, base)
        self.embeddings = bert.embeddings
        self.lower_layers = bert.encoder.layer[:-TUNED_LAYERS]
        self.own_layers = bert.encoder.layer[-TUNED_LAYERS:]
        self.tuned_layers = copy.encoder.layer[-TUNED_LAYERS:]
        self.tuned_head = AttentionPool(384, HEAD_DIM, dropout=dropout)
        self.own_head = fresh_head(384, dropout)

    def trunk(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Word-piece ids and mask [B, T] to lower hidden states [B, T, 384]."""
        return _through(self.lower_layers, self.embeddings(ids), mask)

    def own(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Lower hidden states to MiniLM's own last ones, [B, T, 384]."""
        return _through(self.own_layers, hidden, mask)

    def by_own_head(self, own: Tensor, mask: Tensor) -> Tensor:
        """What :meth:`own` gives to [B, D], not of unit length."""
        pooled: Tensor = self.own_head(own, mask)
        return pooled

    def by_tuned_head(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Lower hidden states [B, T, 384] and mask [B, T] to [B, D], not of unit length."""
        pooled: Tensor = self.tuned_head(_through(self.tuned_layers, hidden, mask), mask)
        return pooled

    def sentence(self, own: Tensor, mask: Tensor) -> Tensor:
        """What :meth:`own` gives to unit sentence vectors [B, S]: the mean token, as MiniLM was trained."""
        return normalize((own * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)


def fresh_head(width: int, dropout: float) -> AttentionPool:
    """A head whose weights are not drawn from the global random stream, so no other weight depends on it."""
    with torch.random.fork_rng(devices=[]):
        return AttentionPool(width, HEAD_DIM, dropout=dropout)


def join(heads: Sequence[Tensor], knowledge: Tensor, share: float) -> Tensor:
    """One unit vector [B, 2 D + S] whose dot product is a weighted sum of the parts' cosines.

    Args:
        heads: each [B, D], of any length; they share ``1 - share`` equally.
        knowledge: unit vectors [B, S].
        share: weight of the knowledge part, between 0 and 1.
    """
    weight = ((1 - share) / len(heads)) ** 0.5
    parts = [normalize(head.float(), dim=-1) * weight for head in heads]
    return torch.cat([*parts, knowledge * share**0.5], dim=-1)


def _pooled_grid(head: nn.Module, features: Tensor) -> Tensor:
    tokens = features.flatten(2).transpose(1, 2)  # [B, 81, 1280]
    pooled: Tensor = head(tokens, tokens.new_ones(tokens.shape[:2]))
    return pooled


def _through(layers: Any, hidden: Tensor, mask: Tensor) -> Tensor:
    bias = ((1 - mask[:, None, None, :]) * _PADDED).to(hidden.dtype)
    for layer in layers:
        hidden = layer(hidden, attention_mask=bias)
    return hidden


def _minilm(config: Path, base: Mapping[str, Tensor]) -> Any:
    bert: Any = BertModel(BertConfig.from_json_file(config), add_pooling_layer=False)
    unused = ("pooler.", "embeddings.position_ids")
    bert.load_state_dict({name: value for name, value in base.items() if not name.startswith(unused)})
    bert.train(False)
    return bert
