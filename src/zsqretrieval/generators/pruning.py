"""The k contexts after which a continuation is likeliest, found without scoring every context to the end.

No token's log-probability is positive, so the sum over the tokens scored so far bounds the sum over all. The
search goes best first: what may still become the best is scored one block of tokens further, and as soon as k
contexts are finished, those whose bound lies below the k-th sum are dropped.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappush, heappushpop

import numpy as np
import torch
from numpy.typing import NDArray

from zsqretrieval.generators.batching import Progress, run_batches
from zsqretrieval.generators.likelihood import (
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
    """One distinct context: what was scored of the continuation after it, and how to go on."""

    context: Tokens
    log_probs: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    past: Past | None = None

    @property
    def bound(self) -> float:
        """No less than the sum over all tokens, and equal to it once all are scored."""
        return float(self.log_probs.sum(dtype=np.float64))

    @property
    def held(self) -> int:
        """Bytes of keys and values."""
        return 0 if self.past is None else self.past.values.nbytes


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
    waiting = deque(_Candidate(context) for context in times)
    begun: list[_Candidate] = []
    finished: dict[Tokens, _Candidate] = {}
    best_sums: list[float] = []  # of the k best contexts that are finished: a heap, the k-th best on top
    slack = _ROUNDING.get(model.dtype, _ROUNDING_16_BIT)
    tokens_scored = 0
    with torch.inference_mode():
        while waiting or begun:
            if waiting and sum(candidate.held for candidate in begun) < _PASTS_BYTES:
                batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
                states_needed = [
                    candidate.context for candidate in batch for _ in range(times[candidate.context])
                ]
            else:
                batch, begun = begun[:batch_size], begun[batch_size:]
                states_needed = []
            before = sum(len(candidate.log_probs) for candidate in batch)
            _score_block(model, batch, continuation, block, states, prefixes)
            tokens_scored += sum(len(candidate.log_probs) for candidate in batch) - before
            states.release(states_needed)
            for candidate in batch:
                if len(candidate.log_probs) < len(continuation):
                    begun.append(candidate)
                    continue
                finished[candidate.context] = candidate
                for _ in range(times[candidate.context]):
                    push = heappush if len(best_sums) < k else heappushpop
                    push(best_sums, candidate.bound)
            floor = best_sums[0] - slack if len(best_sums) == k else -np.inf
            begun = [candidate for candidate in begun if candidate.bound >= floor]
            begun.sort(key=lambda candidate: -candidate.bound)
            if progress is not None:
                progress(len(times) - len(waiting) - len(begun), len(times))
    ranking = sorted(
        (i for i, context in enumerate(contexts) if context in finished),
        key=lambda i: -finished[contexts[i]].bound,
    )
    return [(i, finished[contexts[i]].log_probs) for i in ranking[:k]], tokens_scored


def _score_block(
    model: LanguageModel,
    candidates: Sequence[_Candidate],
    continuation: Tokens,
    block: int,
    states: States,
    prefixes: Prefixes,
) -> None:
    """Score the next ``block`` tokens after each candidate: all new, or all begun."""

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
            row.past = onward[i] if goes_on[i] else None

    run_batches([list(range(len(candidates)))], step)
