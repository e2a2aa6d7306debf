"""BERT (Devlin et al., arXiv 1810.04805) as MiniLM uses it: the encoder's text tower, and a decoder.

Written out, because importing transformers takes longer than answering a question. Parameters have the names
of transformers, so that files of weights fit. B texts, T tokens after P in the cache, D = 384.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

WIDTH = 384
LAYERS = 6
MAX_TOKENS = 512
VOCABULARY = 30522
_HEADS = 12
_EPSILON = 1e-12


class Cache(Protocol):
    """Keys and values of earlier positions, such as ``DynamicCache`` of transformers."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Append those of a layer, [B, heads, T, D / heads], and return all of them."""
        ...

    def get_seq_length(self) -> int:
        """P, the positions in the cache."""
        ...


class Embeddings(nn.Module):
    """Embeddings of words and positions; the token type is always the first."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.position_embeddings = nn.Embedding(MAX_TOKENS, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=_EPSILON)
        self.dropout = nn.Dropout(dropout)

    def forward(self, words: Tensor, positions: Tensor) -> Tensor:
        """Word embeddings [B, T, D] and positions int64 [B, T] or [T] to [B, T, D]."""
        x = words + self.token_type_embeddings.weight[0] + self.position_embeddings(positions)
        embedded: Tensor = self.dropout(self.LayerNorm(x))
        return embedded


class _Added(nn.Module):
    """A linear layer whose output is added to the residual and normalised."""

    def __init__(self, inside: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(inside, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=_EPSILON)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        added: Tensor = self.LayerNorm(self.dropout(self.dense(x)) + residual)
        return added


class Layer(nn.Module):
    """Self-attention and an MLP."""

    def __init__(self, index: int, dropout: float) -> None:
        super().__init__()
        projections = {name: nn.Linear(WIDTH, WIDTH) for name in ("query", "key", "value")}
        self.attention = nn.ModuleDict({"self": nn.ModuleDict(projections), "output": _Added(WIDTH, dropout)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, 4 * WIDTH)})
        self.output = _Added(4 * WIDTH, dropout)
        self._index, self._dropout = index, dropout

    def forward(self, hidden: Tensor, mask: Tensor | None, cache: Cache | None = None) -> Tensor:
        """[B, T, D] to [B, T, D]; ``mask``, [B, 1, 1 or T, P + T], is True where a position may be read."""
        own: Any = self.attention["self"]
        query, key, value = (
            own[name](hidden).unflatten(-1, (_HEADS, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )  # [B, heads, T, D / heads]
        if cache is not None:
            key, value = cache.update(key, value, self._index)
        dropout = self._dropout if self.training else 0.0
        attended = scaled_dot_product_attention(query, key, value, mask, dropout)
        hidden = self.attention["output"](attended.transpose(1, 2).flatten(2), hidden)
        added: Tensor = self.output(gelu(self.intermediate["dense"](hidden)), hidden)
        return added


class Bert(nn.Module):
    """Embeddings and layers."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embeddings = Embeddings(dropout)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer(n, dropout) for n in range(LAYERS))})

    def causal(
        self,
        words: Tensor,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Read as a decoder: word embeddings [B, T, D] to the last hidden states [B, T, D].

        Args:
            words: embeddings of the tokens, or image states.
            mask: [B, P + T], 0 at padding; None when there is none.
            positions: int64 [B, T]; P, P + 1, ... when None.
            cache: holds P positions; those of the T are appended.
        """
        T, P = words.shape[1], 0 if cache is None else cache.get_seq_length()
        steps = torch.arange(P, P + T, device=words.device)
        seen = torch.arange(P + T, device=words.device) <= steps[:, None]  # [T, P + T]
        allowed = seen[None, None] if mask is None else seen & (mask[:, None, None] != 0)
        hidden: Tensor = self.embeddings(words, steps if positions is None else positions)
        layers: Any = self.encoder["layer"]
        for layer in layers:
            hidden = layer(hidden, allowed, cache)
        return hidden


class Head(nn.Module):
    """The layers between the last hidden states and the words, and the bias of each word."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = nn.ModuleDict(
            {"dense": nn.Linear(WIDTH, WIDTH), "LayerNorm": nn.LayerNorm(WIDTH, eps=_EPSILON)}
        )
        self.bias = nn.Parameter(torch.zeros(VOCABULARY))

    def forward(self, hidden: Tensor) -> Tensor:
        """Last hidden states [N, D] to [N, D], whose products with the word embeddings are logits."""
        features: Tensor = self.transform["LayerNorm"](gelu(self.transform["dense"](hidden)))
        return features
