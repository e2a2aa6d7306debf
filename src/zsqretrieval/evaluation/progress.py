"""How long work tells how far it is, and encoding that tells it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Progress", "encode_in_parts", "untold"]

Progress: TypeAlias = Callable[[str, int, int], object]
"""Called with what is being done, how much of it is done, and of how much; may raise to stop."""

_PART = 100  # images or texts between two reports


def untold(what: str, done: int, total: int) -> None:
    """Progress that nobody asked for."""


def encode_in_parts(
    encode: Callable[[Sequence[Any]], NDArray[np.float32]],
    items: Sequence[Any],
    what: str,
    told: Progress = untold,
) -> NDArray[np.float32]:
    """Encode many images or texts.

    Args:
        encode: an encoder's ``encode_image`` or ``encode_text``.
        items: n images or texts.
        what: what ``told`` is to call the work.
        told: told after each part.

    Returns:
        float32 [n, dim], in the order given.
    """
    rows = []
    for start in range(0, len(items), _PART):
        rows.append(encode(items[start : start + _PART]))
        told(what, min(start + _PART, len(items)), len(items))
    return np.concatenate(rows) if rows else encode(items)
