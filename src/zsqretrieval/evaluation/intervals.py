"""How sure a mean over queries is, when the queries of one image are not independent of one another.

The percentile bootstrap over clusters (A. C. Davison, D. V. Hinkley: Bootstrap Methods and their Application,
1997, section 3.8): whole images are drawn with replacement, each with all of its queries. One
:class:`ClusterBootstrap` draws once, so whatever is measured with it is paired: a difference of two systems
is taken within each draw.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.checks import check_counts
from zsqretrieval.errors import InvalidInputError

__all__ = ["ClusterBootstrap", "rounded"]


class ClusterBootstrap:
    """Draws of images, for intervals around means over their queries.

    Args:
        clusters: int [q], which image each query belongs to.
        resamples: number of draws.
        level: share of the draws inside an interval.
        seed: makes the draws repeatable. With one seed and number of images they are the same, however many
            queries each image has.

    Raises:
        InvalidInputError: there are no queries, or no draws.
    """

    def __init__(
        self, clusters: NDArray[np.int64], *, resamples: int = 2000, level: float = 0.95, seed: int = 0
    ) -> None:
        check_counts(resamples=resamples)
        if not len(clusters):
            raise InvalidInputError("there are no queries to measure; ask for at least one")
        _, self._cluster = np.unique(clusters, return_inverse=True)
        self._sizes = np.bincount(self._cluster)
        count = len(self._sizes)
        drawn = np.random.default_rng(seed).integers(count, size=(resamples, count))
        # How often each image is in each draw, float64 [resamples, images]: a mean is then two products.
        self._times = np.stack([np.bincount(one, minlength=count) for one in drawn]).astype(np.float64)
        self._tails = 50 * (1 - level), 50 * (1 + level)

    def mean(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean over queries in every draw.

        Args:
            values: [q], one per query.

        Returns:
            float64 [resamples].
        """
        sums = np.bincount(self._cluster, weights=values, minlength=len(self._sizes))
        means: NDArray[np.float64] = (self._times @ sums) / (self._times @ self._sizes)
        return means

    def interval(
        self, statistic: Callable[..., NDArray[np.float64]], *values: NDArray[np.float64]
    ) -> tuple[float, float]:
        """The interval of a statistic of means.

        Args:
            statistic: from means, one array of draws for each of ``values``, to the statistic in each draw;
                for instance ``lambda a, b: a - b``.
            values: [q] each; one per query and system.

        Returns:
            The lower and the upper end; nan where the statistic is nan in a draw (a ratio over zero).
        """
        drawn = statistic(*(self.mean(one) for one in values))
        low, high = np.percentile(drawn, self._tails)
        return float(low), float(high)


def rounded(interval: tuple[float, float], digits: int = 2) -> list[float]:
    """Both ends of an interval, rounded for a record."""
    return [round(end, digits) for end in interval]
