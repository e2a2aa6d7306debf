"""Fusion: combine first-stage scores with re-ranking scores.

A fusion is a pure function of two arrays of scores: :class:`RerankOnly`, :class:`WeightedSum`,
:class:`Maximum` or :class:`ReciprocalRank`. ``docs/rerank.md`` says when which matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zsqretrieval._util.checks import check_amounts, check_numbers
from zsqretrieval.errors import InvalidInputError

FIRST_STAGE = "first_stage"
"""Name of the first-stage score in :attr:`Hit.scores <zsqretrieval.types.Hit.scores>`."""

NORMALIZED = "normalized"
"""Name of the first-stage score after query-bank normalisation."""

FUSED = "fused"
"""Name of the score that a fusion gives."""


@runtime_checkable
class Fusion(Protocol):
    """Combines the scores of two stages; any object with this method."""

    def fuse(self, first_stage: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Combine the scores of n candidates.

        Args:
            first_stage: float64 [n], cosine similarities, normalised where a query bank is used; best
                first.
            scores: float64 [n], re-ranking scores of the same candidates.

        Returns:
            float64 [n] in the same order, higher is better. Ties keep the order of the first stage.
        """
        ...


@dataclass(frozen=True, slots=True)
class RerankOnly:
    """Rank by the re-ranking score alone; the first stage only selects the candidates."""

    def fuse(self, first_stage: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return ``scores`` unchanged."""
        return np.array(scores, np.float64)


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """First-stage score plus ``weight`` times the re-ranking score.

    Attributes:
        weight: 0 ranks by the first stage alone.
        scale: ``"standardized"`` first brings both to mean 0 and standard deviation 1 over the candidates of
            the query (0 where all are equal), so that a weight carries over between models, questions of
            different lengths, and sum and mean. ``"raw"`` adds the numbers as they are: the weight then has
            the unit cosine per nat and must be tuned for a pair of models.
        first_stage_scale: factor of the first stage when the scale is raw, such as CLIP's 100.

    Raises:
        InvalidInputError: a weight is negative or not finite, or the scale is unknown.
    """

    safe_settings: ClassVar[Mapping[str, Any]] = {
        "weight": (int, float),
        "scale": ("standardized", "raw"),
        "first_stage_scale": (int, float),
    }

    weight: float = 1.0
    scale: Literal["standardized", "raw"] = "standardized"
    first_stage_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.scale not in ("standardized", "raw"):
            raise InvalidInputError(f"scale must be 'standardized' or 'raw', not {self.scale!r}")
        check_amounts(weight=self.weight, first_stage_scale=self.first_stage_scale)
        if self.scale == "standardized" and self.first_stage_scale != 1:
            raise InvalidInputError(
                "first_stage_scale has no effect with scale='standardized'; use scale='raw'"
            )

    def fuse(self, first_stage: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Add the scores."""
        if self.scale == "standardized":
            return standardized(first_stage) + self.weight * standardized(scores)
        return self.first_stage_scale * np.asarray(first_stage, np.float64) + self.weight * np.asarray(scores)


@dataclass(frozen=True, slots=True)
class Maximum:
    """Maximum of both scores: a candidate with a high score in either stage comes first.

    Attributes:
        shift: added to the re-ranking score before the comparison.
        scale: as for :class:`WeightedSum`; with ``"raw"``, ``shift`` is in nats and must be tuned.

    Raises:
        InvalidInputError: the shift is not finite, or the scale is unknown.
    """

    safe_settings: ClassVar[Mapping[str, Any]] = {
        "shift": (int, float),
        "scale": ("standardized", "raw"),
    }

    shift: float = 0.0
    scale: Literal["standardized", "raw"] = "standardized"

    def __post_init__(self) -> None:
        if self.scale not in ("standardized", "raw"):
            raise InvalidInputError(f"scale must be 'standardized' or 'raw', not {self.scale!r}")
        check_numbers(shift=self.shift)

    def fuse(self, first_stage: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Take the maximum."""
        if self.scale == "standardized":
            first_stage, scores = standardized(first_stage), standardized(scores)
        return np.maximum(first_stage, np.asarray(scores, np.float64) + self.shift)


@dataclass(frozen=True, slots=True)
class ReciprocalRank:
    """Sum of 1 / (constant + rank) over both rankings (Cormack et al., SIGIR 2009); ranks begin at 1.

    It uses ranks only, so it needs neither scales nor a weight.

    Attributes:
        constant: larger values flatten the difference between the first ranks.

    Raises:
        InvalidInputError: the constant is negative or not finite.
    """

    safe_settings: ClassVar[Mapping[str, Any]] = {"constant": (int, float)}

    constant: float = 60.0

    def __post_init__(self) -> None:
        check_amounts(constant=self.constant)

    def fuse(self, first_stage: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Add the reciprocal ranks; at most ``2 / (constant + 1)``."""
        return 1 / (self.constant + _ranks(first_stage)) + 1 / (self.constant + _ranks(scores))


def fuse(
    fusion: Fusion, first_stage: NDArray[np.float64], scores: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Apply a fusion: float64 [n]; an InvalidInputError if it returns anything but finite numbers."""
    if not len(scores):
        return np.empty(0)
    fused = finite_numbers(answer := fusion.fuse(first_stage, scores), len(scores))
    if fused is None:
        raise InvalidInputError(
            f"the fusion {fusion!r} gave {str(answer)[:200]} for {len(scores)} candidates; "
            "it must give one finite number per candidate"
        )
    return fused


def finite_numbers(values: object, count: int) -> NDArray[np.float64] | None:
    """N finite numbers as float64 [n]; None if they are anything else."""
    try:
        numbers = np.asarray(values)
    except (ValueError, TypeError, RuntimeError):  # ragged rows; tensors of bfloat16, or with a gradient
        return None
    if numbers.dtype.kind not in "fiu" or numbers.shape != (count,) or not np.isfinite(numbers).all():
        return None
    return numbers.astype(np.float64)


def best_first(fused: ArrayLike) -> NDArray[np.intp]:
    """Sort positions by score, highest first; ties keep their order. int [n]."""
    return np.argsort(-np.asarray(fused, np.float64), kind="stable")


def logistic(values: ArrayLike) -> NDArray[np.float64]:
    """Probabilities of log-odds, float64 of the same shape; without overflow."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(values, np.float64)))


def standardized(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale scores to mean 0 and standard deviation 1; all 0 where they are equal. float64 [n]."""
    exact = np.asarray(values, np.float64)
    spread = np.ptp(exact) if exact.size else 0.0
    if spread == 0:
        return np.zeros_like(exact)
    unit = (exact - exact.min()) / spread  # first, so that squares of tiny deviations do not vanish
    deviations: NDArray[np.float64] = (unit - unit.mean()) / unit.std()
    return deviations


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 + np.argsort(best_first(values)).astype(np.float64)
