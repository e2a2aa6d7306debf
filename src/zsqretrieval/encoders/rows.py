"""Unit vectors in batches, from a model of torch, and images decoded ahead of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.batches import batched
from zsqretrieval._util.checks import check_counts
from zsqretrieval.data.images import DECODERS
from zsqretrieval.types import Image

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
R = TypeVar("R")


def encode_batches(
    forward: Callable[[list[T]], torch.Tensor], items: Iterable[T], *, batch_size: int, dim: int
) -> NDArray[np.float32]:
    """Run a model on batches of n items, each to [b, dim], and scale the rows to unit length: [n, dim]."""
    import torch

    check_counts(batch_size=batch_size)
    rows = [np.empty((0, dim), np.float32)]
    with torch.inference_mode():
        for batch in batched(items, batch_size):
            features = forward(batch).float()
            rows.append(torch.nn.functional.normalize(features, dim=-1).cpu().numpy())
    return np.concatenate(rows)


def encode_pictures(
    prepare: Callable[[Image], T],
    forward: Callable[[list[T]], torch.Tensor],
    images: Sequence[Image],
    *,
    batch_size: int,
    dim: int,
) -> NDArray[np.float32]:
    """:func:`encode_batches` of what ``prepare`` makes of each image, in threads, two batches ahead."""
    with ThreadPoolExecutor(DECODERS, thread_name_prefix="decode") as pool:
        inputs = _map_ahead(pool, prepare, images, ahead=2 * batch_size)
        return encode_batches(forward, inputs, batch_size=batch_size, dim=dim)


def _map_ahead(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], *, ahead: int
) -> Iterator[R]:
    """``map`` in order, with up to ``ahead`` results computed in advance."""
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            if len(pending) >= ahead:
                yield pending.popleft().result()
            pending.append(pool.submit(function, item))
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
