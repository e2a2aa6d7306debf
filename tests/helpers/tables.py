"""A generator with its probabilities in a table, for results computed by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image as PILImage

from zsqretrieval.types import Context, Image, LogLikelihood


def picture(source: str) -> Image:
    return Image(PILImage.new("RGB", (4, 4)), source)


class TableGenerator:
    """A generator whose likelihoods depend on the last image of the context and the continuation.

    Args:
        table: ``(source, continuation)`` -> the probabilities of the continuation's tokens.
        write: the text that it writes after a context.
    """

    fingerprint = "table"

    def __init__(
        self,
        table: Mapping[tuple[str, str], Sequence[float]] | None = None,
        write: Callable[[Context], str] = lambda _: "",
    ) -> None:
        self._table = table or {}
        self._write = write
        self.contexts: list[list[str]] = []  # images as "<source>"
        self.limits: list[tuple[int, float]] = []

    def log_likelihood(
        self, contexts: Sequence[Context], continuations: Sequence[str], **_: Any
    ) -> list[LogLikelihood]:
        self.contexts += map(_readable, contexts)
        pairs = zip(contexts, continuations, strict=True)
        found = [(text, self._table[_last(context), text]) for context, text in pairs]
        return [
            LogLikelihood((text, *"x" * (len(tokens) - 1)), np.log(tokens).astype(np.float32))
            for text, tokens in found
        ]

    def generate(
        self,
        contexts: Sequence[Context],
        *,
        n: int = 1,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        **_: Any,
    ) -> list[list[str]]:
        self.contexts += map(_readable, contexts)
        self.limits.append((max_new_tokens, temperature))
        return [[self._write(context)] * n for context in contexts]


def _readable(context: Context) -> list[str]:
    return [one if isinstance(one, str) else f"<{one.source}>" for one in context]


def _last(context: Context) -> str:
    return [segment.source for segment in context if not isinstance(segment, str)][-1]
