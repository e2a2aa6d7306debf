"""Adaptive depth: when enough candidates of a question have been re-ranked.

The candidates are scored in the order of the first stage. The likelihood of a candidate is taken to be

    level + slope * first-stage score + noise

where the level and the size of the noise belong to the question and are learned from the candidates that were
scored. Of a candidate that was not, this gives the chance that its fused score would be among the k best; the
sum of these chances bounds the chance that the first k results are not those of scoring all candidates.
:func:`fit` estimates the constants of a pair of models from questions whose candidates were all scored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zsqretrieval._util.checks import check_amounts
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.search.fusion import WeightedSum

ROUND = 16
"""Candidates of a question that are scored between two decisions."""


@dataclass(frozen=True, slots=True)
class Depth:
    """The spread of likelihoods among the candidates of a question, for a pair of encoder and generator.

    Attributes:
        slope: nats per unit of the first-stage score.
        deviation: of the noise, in nats, > 0.
        freedom: how alike the questions are: so many candidates of a question's own weigh as much as
            ``deviation`` in the size of its noise; > 0.

    Raises:
        InvalidInputError: a number is out of range.
    """

    slope: float
    deviation: float
    freedom: float

    def __post_init__(self) -> None:
        check_amounts(slope=self.slope, deviation=self.deviation, freedom=self.freedom)
        if not (self.deviation and self.freedom):
            raise InvalidInputError("the deviation and freedom of likelihoods must be above 0")

    def missing(
        self, fusion: WeightedSum, first_stage: NDArray[np.float64], scores: NDArray[np.float64], k: int
    ) -> float:
        """The expected number of candidates without a score among the k best.

        Args:
            fusion: with the raw scale and a weight above 0.
            first_stage: float64 [n], of all candidates.
            scores: float64 [m <= n], likelihoods of the first m in nats; nan for images without one.
            k: >= 1.

        Returns:
            From 0 to n - m; infinite while fewer than k candidates, or fewer than two, have a score.
        """
        done = np.flatnonzero(~np.isnan(scores))
        count = len(done)
        if len(scores) == len(first_stage):
            return 0.0
        if count < max(k, 2):
            return np.inf
        fused = fusion.fuse(first_stage[done], scores[done])
        least = np.partition(fused, -k)[-k]
        levels = scores[done] - self.slope * first_stage[done]
        degrees = self.freedom + count - 1
        squares = self.freedom * self.deviation**2 + np.square(levels - levels.mean()).sum()
        error = np.sqrt(squares / degrees * (1 + 1 / count))  # of the next level, from the mean of those read
        left = first_stage[len(scores) :]
        needed = (least - fusion.first_stage_scale * left) / fusion.weight - self.slope * left
        from scipy.special import stdtr  # only a search with a bound waits for it

        return float(stdtr(degrees, (levels.mean() - needed) / error).sum())


def fit(first_stage: ArrayLike, scores: ArrayLike) -> Depth:
    """Estimate the constants from q questions with n scored candidates each.

    Args:
        first_stage: float [q, n], n > 2.
        scores: likelihoods in nats, float [q, n].

    Returns:
        The slope within questions, and the deviation and freedom of greatest likelihood.

    Raises:
        InvalidInputError: the shapes differ, a number is not finite, or the likelihoods do not vary.
    """
    from scipy.stats import f as variance_ratio

    x, y = np.asarray(first_stage, np.float64), np.asarray(scores, np.float64)
    if x.shape != y.shape or x.ndim != 2 or x.shape[1] < 3 or not np.isfinite(x + y).all():
        raise InvalidInputError(
            "both must be finite numbers [questions, candidates], of 3 candidates or more"
        )
    x, y = (one - one.mean(axis=1, keepdims=True) for one in (x, y))
    slope = max(float((x * y).sum() / max(np.square(x).sum(), 1e-30)), 0.0)
    variances = np.square(y - slope * x).sum(axis=1) / (x.shape[1] - 1)
    if not variances.all():
        raise InvalidInputError("the likelihoods of a question are all equal; check the data")

    scale = variances.mean()
    _, freedom, _, scale = variance_ratio.fit(variances, 1, 10, f0=x.shape[1] - 1, floc=0, scale=scale)
    return Depth(slope, float(np.sqrt(scale)), float(np.clip(freedom, 0.1, 1e4)))
