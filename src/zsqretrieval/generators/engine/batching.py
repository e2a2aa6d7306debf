"""Batches by token budget, halved when memory runs out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence

import torch

from zsqretrieval._util.checks import check_counts
from zsqretrieval.types import Progress


def plan_batches(
    lengths: Sequence[int],
    *,
    batch_size: int,
    token_budget: int,
    groups: Sequence[Hashable] | None = None,
) -> list[list[int]]:
    """Group positions in ``lengths`` by similar length, so that batches have little padding.

    Items are sorted by length, longest first, so that a lack of memory shows in the first batch.

    Args:
        lengths: tokens of each item.
        batch_size: most items in a batch.
        token_budget: most tokens in a batch, padding included; a longer item gets a batch of its own.
        groups: group of each item. Items of one group are in one batch, or in consecutive ones.
    """
    check_counts(batch_size=batch_size, token_budget=token_budget)
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
    name: str,
    batches: Iterable[list[int]],
    step: Callable[[list[int]], None],
    progress: Progress | None = None,
) -> None:
    """Run ``step`` on every batch; halve and retry a batch that does not fit into memory.

    ``step`` is called again for the parts of a batch that failed; no later batch is larger than these.
    ``progress`` is called after each batch with ``name`` and the number of items done.

    Raises:
        MemoryError, RuntimeError: a single item does not fit (as torch reports it).
    """
    waiting = deque(batches)
    total, done = sum(map(len, waiting)), 0
    largest = max(map(len, waiting), default=1)
    while waiting:
        batch = waiting.popleft()
        if len(batch) > largest:
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
                progress(name, done, total)
        else:  # outside the handler, because the traceback keeps the failed batch's tensors alive
            largest = (len(batch) + 1) // 2
            waiting.appendleft(batch)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of memory: OutOfMemoryError on an accelerator, a RuntimeError on the host."""
    message = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in message for words in ("out of memory", "not enough memory", "can't allocate memory")
    )
