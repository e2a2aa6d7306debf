"""Accuracy of a task with its confidence interval and p-value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zsqretrieval.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The number of correct answers among independent items, and the accuracy of guessing, in (0, 1).

    Raises:
        InvalidInputError: there are no items, more correct ones than items, or chance is out of range.
    """

    correct: int
    total: int
    chance: float

    def __post_init__(self) -> None:
        if self.total < 1 or not 0 <= self.correct <= self.total or not 0 < self.chance < 1:
            raise InvalidInputError(
                f"{self.correct} correct of {self.total} with chance {self.chance} is no accuracy; give one "
                "item or more, at most as many correct ones, and a chance between 0 and 1"
            )

    @property
    def share(self) -> float:
        """The accuracy, in [0, 1]."""
        return self.correct / self.total

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The Wilson score interval of the accuracy at a confidence level in (0, 1)."""
        if not 0 < level < 1:
            raise InvalidInputError(f"level must lie between 0 and 1, not {level}")
        low, high = self._test().proportion_ci(level, method="wilson")
        return float(low), float(high)

    @property
    def p_value(self) -> float:
        """The probability that guessing is as accurate or more: the exact upper tail of the binomial."""
        return float(self._test(alternative="greater").pvalue)

    def _test(self, **settings: str) -> Any:
        from scipy.stats import binomtest  # slow to import

        return binomtest(self.correct, self.total, self.chance, **settings)

    def __str__(self) -> str:
        low, high = self.interval()
        return (
            f"{self.correct} of {self.total} = {100 * self.share:.1f} % (95 %: {100 * low:.1f} to "
            f"{100 * high:.1f}), chance {100 * self.chance:.1f} %, p = {self.p_value:.2g}"
        )
