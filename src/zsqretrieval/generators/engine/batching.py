"""Deciding what is computed together: batches by token budget, halved when memory runs out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeAlias

from zsqretrieval.errors import InvalidInputError

__all__ = ["Progress", "plan_batches", "run_batches"]

Progress: TypeAlias = Callable[[int, int], object]
"""Called between batches with the number of items done and of all; may raise to stop the work."""


def plan_batches(
    lengths: Sequence[int],
    *,
    batch_size: int,
    token_budget: int,
    groups: Sequence[Hashable] | None = None,
) -> list[list[int]]:
    """Group items so that little is padded and no batch is too big.

    Items are sorted by length, longest first: should memory not suffice, that shows at once.

    Args:
        lengths: tokens of each item.
        batch_size: most items in a batch, >= 1.
        token_budget: most tokens in a batch, padding included; an item longer than that goes alone.
        groups: which group each item belongs to; items of one group stay next to each other, in one batch
            or in batches that follow one another. None when that does not matter.

    Returns:
        Batches of positions in ``lengths``; every position once.

    Raises:
        InvalidInputError: ``batch_size`` or ``token_budget`` < 1.
    """
    if batch_size < 1:
        raise InvalidInputError(f"batch_size must be at least 1, not {batch_size}")
    if token_budget < 1:
        raise InvalidInputError(f"token_budget must be at least 1, not {token_budget}")
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if groups is not None:
        rank: dict[Hashable, int] = {}  # groups by their longest item
        for i in order:
            rank.setdefault(groups[i], len(rank))
        order.sort(key=lambda i: rank[groups[i]])
    batches: list[list[int]] = []
    longest = 0
    for position in order:
        longest = max(longest, lengths[position])
        if batches and len(batches[-1]) < batch_size and (len(batches[-1]) + 1) * longest <= token_budget:
            batches[-1].append(position)
        else:
            batches.append([position])
            longest = lengths[position]
    return batches


def run_batches(
    batches: Iterable[list[int]], step: Callable[[list[int]], None], progress: Progress | None = None
) -> int:
    """Run ``step`` on every batch; a batch that does not fit into memory is halved and tried again.

    Args:
        batches: positions, as :func:`plan_batches` groups them.
        step: computes one batch and keeps the result itself; called again for parts of a batch that failed.
        progress: told how far it is, between batches.

    Returns:
        The largest size of a batch that is known to fit, or not known not to.

    Raises:
        MemoryError, RuntimeError: a single item does not fit (as torch reports it).
    """
    waiting = deque(batches)
    total, done = sum(map(len, waiting)), 0
    largest = max(map(len, waiting), default=1)
    while waiting:
        batch = waiting.popleft()
        if len(batch) > largest:  # one of this size has failed
            waiting.extendleft([batch[largest:], batch[:largest]])
            continue
        try:
            step(batch)
        except (MemoryError, RuntimeError) as error:
            if len(batch) == 1 or not _out_of_memory(error):
                raise
            fits = False
        else:
            fits = True
        if fits:
            done += len(batch)
            if progress is not None:
                progress(done, total)
        else:  # not in the handler, whose traceback keeps the failed batch's tensors alive
            largest = (len(batch) + 1) // 2
            waiting.appendleft(batch)
            _release_memory()
    return largest


def _out_of_memory(error: BaseException) -> bool:
    """Torch has a class of its own for an accelerator's memory, and plain RuntimeErrors for the host's."""
    import torch

    words = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "out of memory" in words or "not enough memory" in words or "can't allocate memory" in words
    )


def _release_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
