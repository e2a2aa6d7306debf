"""How often a task was solved, with an interval and the probability that guessing does as well.

Two formulas in the standard library's means, as scipy comes with an extra only; tests compare with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from zsqretrieval.errors import InvalidInputError

__all__ = ["Accuracy"]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Some of a number of independent items were solved.

    Attributes:
        correct: how many were.
        total: how many there were.
        chance: the share that guessing solves, in (0, 1).

    Raises:
        InvalidInputError: there were no items, more solved than given, or chance is no such share.
    """

    correct: int
    total: int
    chance: float

    def __post_init__(self) -> None:
        if self.total < 1 or not 0 <= self.correct <= self.total or not 0 < self.chance < 1:
            raise InvalidInputError(
                f"{self.correct} correct of {self.total} with chance {self.chance} is no accuracy; there "
                "must be items, no more solved than given, a chance between 0 and 1"
            )

    @property
    def share(self) -> float:
        """The accuracy, in [0, 1]."""
        return self.correct / self.total

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The Wilson score interval of the accuracy (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927).

        Args:
            level: how often such an interval holds the true accuracy, in (0, 1).

        Returns:
            Its lower and upper end, in [0, 1].

        Raises:
            InvalidInputError: the level lies outside.
        """
        if not 0 < level < 1:
            raise InvalidInputError(f"level must lie between 0 and 1, not {level}")
        z = NormalDist().inv_cdf((1 + level) / 2)
        n, p = self.total, self.share
        middle = p + z * z / (2 * n)
        half = z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
        scale = 1 + z * z / n
        return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)

    @property
    def p_value(self) -> float:
        """The probability that guessing solves as many or more: the upper tail of the binomial, exact."""
        n, c = self.total, self.chance
        tail = math.fsum(
            math.exp(
                math.lgamma(n + 1)
                - math.lgamma(k + 1)
                - math.lgamma(n - k + 1)
                + k * math.log(c)
                + (n - k) * math.log1p(-c)
            )
            for k in range(self.correct, n + 1)
        )
        return min(1.0, tail)

    def __str__(self) -> str:
        low, high = self.interval()
        return (
            f"{self.correct} of {self.total} = {100 * self.share:.1f} % (95 %: {100 * low:.1f} to "
            f"{100 * high:.1f}), chance {100 * self.chance:.1f} %, p = {self.p_value:.2g}"
        )
