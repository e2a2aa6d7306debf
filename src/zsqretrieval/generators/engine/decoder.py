"""A language model of transformers for the engine."""

# ruff: noqa: D102  (the methods are documented in LanguageModel)

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from zsqretrieval.generators.engine.likelihood import logits_in_parts, logits_of


class Decoder:
    """A decoder of transformers as a :class:`~zsqretrieval.generators.engine.likelihood.LanguageModel`.

    Args:
        layers: embeddings [B, T, D] to the last hidden states.
        embed_tokens: the token embedding.
        head: a linear layer, D to V.
        max_tokens: context length.
        first_position: number of the first position.
    """

    def __init__(
        self,
        layers: Any,
        embed_tokens: Any,
        head: Any,
        *,
        max_tokens: int,
        first_position: int = 0,
    ) -> None:
        self._layers = layers
        self._embed_tokens = embed_tokens
        self._head = head
        self._first_position = first_position
        self.max_tokens = max_tokens

    @property
    def device(self) -> torch.device:
        device: torch.device = self._head.weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._head.weight.dtype
        return dtype

    def embed(self, ids: Tensor) -> Tensor:
        embeds: Tensor = self._embed_tokens(ids)
        return embeds

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor,
        cache: DynamicCache | None,
    ) -> Tensor:
        hidden: Tensor = self._layers(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids + self._first_position,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return hidden

    def logits(self, hidden: Tensor) -> Iterator[Tensor]:
        return logits_in_parts(hidden, self._head)

    def logits_of(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        return logits_of(hidden, self._head, tokens)
