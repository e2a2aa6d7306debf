"""Re-ranking: order the candidates of the first stage by their fused scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.search.fusion import FUSED, Fusion, best_first, fuse
from zsqretrieval.types import Hit

__all__ = ["rerank"]


def rerank(hits: Sequence[Hit], name: str, scores: NDArray[np.float64], fusion: Fusion) -> tuple[Hit, ...]:
    """Put the hits of the first stage in a new order.

    Args:
        hits: n hits by the score of the first stage, best first.
        name: of the scoring rule.
        scores: float64 [n], its scores; nan for a hit that it could not judge.
        fusion: joins both.

    Returns:
        The hits, best first, with the scores of every stage. Those that could not be judged come last, with
        the score -inf; if that is all of them, the hits are as they were.

    Raises:
        InvalidInputError: as :func:`fuse`.
    """
    judged = np.flatnonzero(~np.isnan(scores))
    if not len(judged):
        return tuple(hits)
    first_stage = np.array([hit.score for hit in hits])
    fused = np.full(len(hits), -np.inf)
    fused[judged] = fuse(fusion, first_stage[judged], scores[judged])
    ranked = [replace(hit, score=float(score)) for hit, score in zip(hits, fused, strict=True)]
    for n in judged:
        stages = {**ranked[n].scores, name: float(scores[n]), FUSED: float(fused[n])}
        ranked[n] = replace(ranked[n], scores=stages)
    return tuple(ranked[n] for n in best_first(fused))
