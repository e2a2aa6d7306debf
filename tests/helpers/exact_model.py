"""A language model in whole numbers: without rounding, no result may depend on the batch."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

V, D = 8, 6
_rng = np.random.default_rng(0)
EMBEDDING = _rng.integers(-3, 4, (V, D)).astype(np.float32)
HEAD = (_rng.integers(-3, 4, (V, D)) / 8).astype(np.float32)
STATES = _rng.integers(-9, 10, (12, D)).astype(np.float32)  # rows 0 ... 11 of the image states
IMAGES = [tuple(range(-1 - 3 * i, -4 - 3 * i, -1)) for i in range(4)]  # three rows each

tokens = st.integers(0, V - 1)
segments = st.one_of(st.sampled_from(IMAGES), st.lists(tokens, min_size=1, max_size=4).map(tuple))
contexts = st.lists(segments, max_size=3).map(lambda parts: (0, *(token for part in parts for token in part)))
continuations = st.lists(tokens, min_size=1, max_size=6).map(tuple)


class ExactModel:
    """A hidden state is the sum of (1 + position mod 3) * embedding / 2^(age mod 4) up to its position.

    The cache holds the embeddings as keys and the positions as values.

    Attributes:
        read: number of positions computed, padding included.
        scored: number of positions that went through the vocabulary matrix.
        largest: most rows in a batch.
        part: tokens in one part of the logits.
    """

    max_tokens, part = 64, 3
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self) -> None:
        self.read = self.scored = self.largest = 0

    def embed(self, ids):
        return torch.from_numpy(EMBEDDING)[ids]

    def forward(self, inputs_embeds, attention_mask, position_ids, cache):
        B, T, _ = inputs_embeds.shape
        self.read += B * T
        self.largest = max(self.largest, B)
        assert int(position_ids.max()) < self.max_tokens
        keys, values = inputs_embeds[:, None], position_ids[:, None, :, None].float().expand(B, 1, T, D)
        if cache is not None:
            keys, values = cache.update(keys, values, 0)
        embeds, positions = keys[:, 0], values[:, 0, :, 0]  # [B, P + T, D], [B, P + T]
        age = position_ids[:, :, None] - positions[:, None]  # [B, T, P + T]
        weights = (age >= 0) * (1 + positions[:, None] % 3) / 2 ** (age % 4)
        if attention_mask is not None:
            assert attention_mask.shape == positions.shape
            weights = weights * attention_mask[:, None]
        return weights @ embeds

    def logits(self, hidden):
        assert hidden.ndim == 2 and hidden.is_contiguous()
        self.scored += len(hidden)
        return (hidden @ torch.from_numpy(HEAD).T).split(self.part, dim=1)


class Small(ExactModel):
    """Has memory for ``room`` rows."""

    room = 2

    def forward(self, inputs_embeds, *rest):
        if len(inputs_embeds) > self.room:
            raise torch.OutOfMemoryError("no room")
        return super().forward(inputs_embeds, *rest)


class ExactStates:
    """Rows of STATES; records the rows requested and the contexts released."""

    def __init__(self) -> None:
        self.asked, self.released = [], []

    def __call__(self, rows):
        self.asked += rows.tolist()
        return torch.from_numpy(STATES)[rows]

    def name(self, tokens):
        return tokens

    def release(self, contexts):
        self.released += contexts


def log_probs(context, continuation):
    """Expected log-probabilities, computed one token at a time: float64 [len(continuation)]."""
    row = [*context, *continuation]
    embeds = np.array([EMBEDDING[token] if token >= 0 else STATES[-1 - token] for token in row], np.float64)
    found = []
    for t in range(len(context), len(row)):
        positions = np.arange(t)
        weights = (1 + positions % 3) / 2 ** ((t - 1 - positions) % 4)
        logits = HEAD.astype(np.float64) @ (weights @ embeds[:t])
        found.append(logits[row[t]] - np.log(np.exp(logits - logits.max()).sum()) - logits.max())
    return np.array(found)
