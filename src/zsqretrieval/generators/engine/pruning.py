"""The k contexts after which a continuation is likeliest, found without scoring every context to the end.

No token's log-probability is positive, so the sum over the tokens scored so far bounds the sum over all. The
search goes best first: what may still become the best is scored one block of tokens further, and as soon as k
contexts are finished, those whose bound lies below the k-th sum are dropped.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heappushpop

import numpy as np
import torch
from numpy.typing import NDArray

from zsqretrieval.generators.engine.batching import Progress, plan_batches, run_batches
from zsqretrieval.generators.engine.likelihood import (
    TOKEN_BUDGET,
    LanguageModel,
    Past,
    Prefixes,
    States,
    Tokens,
    log_probs_of,
    read,
    up_to_last_image,
)

__all__ = ["best_first"]

# Nats by which a bound must lie below the k-th sum: ten times what rounding may do to a sum.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3}
_ROUNDING_16_BIT = 0.2

_PASTS_BYTES = 2**31  # of keys and values of unfinished contexts, beyond which no new ones are begun


@dataclass(slots=True, eq=False)
class _Candidate:
    """One distinct context: what was scored of the continuation after it, and how to go on.

    Attributes:
        context: what it is.
        number: its place among the distinct ones.
        log_probs: of the tokens scored so far.
        bound: their sum: no less than the sum over all tokens, and equal to it once all are scored.
        past: keys and values of all that was read.
    """

    context: Tokens
    number: int
    log_probs: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    bound: float = 0.0
    past: Past | None = None

    @property
    def held(self) -> int:
        """Bytes of keys and values."""
        return 0 if self.past is None else self.past.values.nbytes

    def __lt__(self, other: _Candidate) -> bool:
        """Whether it is to be looked at before another: the likelier one first."""
        return (-self.bound, self.number) < (-other.bound, other.number)


def best_first(
    model: LanguageModel,
    contexts: Sequence[Tokens],
    continuation: Tokens,
    k: int,
    states: States,
    *,
    prefixes: Prefixes,
    block: int,
    batch_size: int,
    progress: Progress | None = None,
) -> tuple[list[tuple[int, NDArray[np.float32]]], int]:
    """Find the k best of n contexts.

    A context is dropped only when its bound lies below the k-th best sum by more than rounding can do, and is
    scored to the end otherwise; so the contexts found, and their order, are those of scoring all in full,
    but for sums that differ by no more than rounding. Equal contexts are scored once, and keep their order.

    Args:
        model: the model.
        contexts: n contexts, each not empty.
        continuation: T >= 1 tokens.
        k: how many to find, >= 1.
        states: the image states the contexts refer to.
        prefixes: what was read in earlier calls.
        block: tokens scored between comparisons, >= 1.
        batch_size: most contexts computed together, >= 1.
        progress: told how many distinct contexts are finished or dropped; may raise to stop.

    Returns:
        At most k pairs of a place in ``contexts`` and its float32 [T] log-probabilities, best first, equal
        sums in the order given; and how many tokens were scored, over distinct contexts.
    """
    times = Counter(contexts)
    new = [_Candidate(context, number) for number, context in enumerate(times)]
    lengths = [len(candidate.context) + min(block, len(continuation)) for candidate in new]
    planned = plan_batches(lengths, batch_size=batch_size, token_budget=TOKEN_BUDGET)
    waiting = deque([new[i] for i in batch] for batch in planned)
    begun: list[_Candidate] = []  # a heap, the likeliest on top
    held = 0  # bytes, by those that are begun
    finished: dict[Tokens, _Candidate] = {}
    best_sums: list[float] = []  # of the k best contexts that are finished: a heap, the k-th best on top
    floor = -np.inf
    slack = _ROUNDING.get(model.dtype, _ROUNDING_16_BIT)
    largest = batch_size  # as far as memory is known to go
    unread, tokens_scored = len(new), 0
    with torch.inference_mode():
        while waiting or begun:
            fresh = bool(waiting) and held < _PASTS_BYTES
            batch = waiting.popleft() if fresh else _likeliest(begun, largest, block)
            held -= sum(candidate.held for candidate in batch)
            before = sum(len(candidate.log_probs) for candidate in batch)
            largest = _score_block(model, batch, continuation, block, states, prefixes, largest)
            tokens_scored += sum(len(candidate.log_probs) for candidate in batch) - before
            if fresh:
                unread -= len(batch)
                states.release(one.context for one in batch for _ in range(times[one.context]))
            for candidate in batch:
                if len(candidate.log_probs) == len(continuation):
                    finished[candidate.context] = candidate
                    for _ in range(times[candidate.context]):
                        push = heappush if len(best_sums) < k else heappushpop
                        push(best_sums, candidate.bound)
            if len(best_sums) == k and best_sums[0] - slack > floor:
                floor = best_sums[0] - slack
                begun = [candidate for candidate in begun if candidate.bound >= floor]
                heapify(begun)
                held = sum(candidate.held for candidate in begun)
            for candidate in batch:
                if len(candidate.log_probs) < len(continuation) and candidate.bound >= floor:
                    heappush(begun, candidate)
                    held += candidate.held
            if progress is not None:
                progress(len(new) - unread - len(begun), len(new))
    ranking = sorted(
        (i for i, context in enumerate(contexts) if context in finished),
        key=lambda i: -finished[contexts[i]].bound,
    )
    return [(i, finished[contexts[i]].log_probs) for i in ranking[:k]], tokens_scored


def _likeliest(begun: list[_Candidate], most: int, block: int) -> list[_Candidate]:
    """Take the likeliest candidates off the heap, as many as may be computed together."""
    batch = [heappop(begun)]
    longest = _length(batch[0], block)
    while begun and len(batch) < most:
        longest = max(longest, _length(begun[0], block))
        if (len(batch) + 1) * longest > TOKEN_BUDGET:
            break
        batch.append(heappop(begun))
    return batch


def _length(candidate: _Candidate, block: int) -> int:
    return len(candidate.context) + len(candidate.log_probs) + block


def _score_block(
    model: LanguageModel,
    candidates: Sequence[_Candidate],
    continuation: Tokens,
    block: int,
    states: States,
    prefixes: Prefixes,
    largest: int,
) -> int:
    """Score the next ``block`` tokens after each candidate: all new, or all begun.

    Returns:
        How many go together from now on: ``largest``, or fewer where memory did not suffice.
    """

    def step(batch: list[int]) -> None:
        rows = [candidates[i] for i in batch]
        done = [len(row.log_probs) for row in rows]
        targets = [continuation[t : t + block] for t in done]
        pasts = [row.past for row in rows if row.past is not None]
        if pasts:
            feeds = [
                continuation[t - 1 : t - 1 + len(target)] for t, target in zip(done, targets, strict=True)
            ]
        else:
            heads = [up_to_last_image(row.context) for row in rows]
            if prefixes.capacity and all(heads):
                fetched = prefixes.fetch(model, list(dict.fromkeys(heads)), states)
                pasts = [fetched[head] for head in heads]
            else:
                heads = [()] * len(rows)
            feeds = [
                (*row.context, *target[:-1])[len(head) :]
                for row, target, head in zip(rows, targets, heads, strict=True)
            ]
        goes_on = [t + block < len(continuation) for t in done]
        reading = read(model, feeds, states, pasts=pasts, remember=any(goes_on))
        scored = log_probs_of(model, reading, list(enumerate(targets)))
        onward = reading.pasts() if any(goes_on) else [None] * len(rows)
        for i, row in enumerate(rows):
            row.log_probs = np.concatenate([row.log_probs, scored[i]])
            row.bound = float(row.log_probs.sum(dtype=np.float64))
            row.past = onward[i] if goes_on[i] else None

    everyone = list(range(len(candidates)))
    parts = [everyone[start : start + largest] for start in range(0, len(everyone), largest)]
    fits = run_batches(parts, step)
    return fits if fits < len(parts[0]) else largest
