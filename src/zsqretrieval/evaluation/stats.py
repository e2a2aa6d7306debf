"""Confidence intervals and significance tests for means over queries whose images repeat.

Queries of one image are not independent of one another. The intervals and the test therefore draw or exchange
whole images (clusters), each with all of its queries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.stats import permutation_test as exchange

from zsqretrieval._util.checks import check_counts
from zsqretrieval.errors import InvalidInputError

_AT_ONCE = 2**22  # signs drawn together: 32 MB


class ClusterBootstrap:
    """Percentile bootstrap over clusters (Davison and Hinkley, Bootstrap Methods, 1997, section 3.8).

    The draws are made once, so all statistics of one instance are paired: a difference of two systems is
    taken within each draw.

    Args:
        clusters: int [q], the cluster of each query.
        resamples: number of draws.
        seed: one seed gives the same draws for the same number of clusters.

    Raises:
        InvalidInputError: there are no queries, or ``resamples`` < 1.
    """

    def __init__(self, clusters: NDArray[np.int64], *, resamples: int = 2000, seed: int = 0) -> None:
        check_counts(resamples=resamples)
        if not len(clusters):
            raise InvalidInputError("there are no queries to measure; give at least one")
        self.clusters, self.seed = clusters, seed
        _, self._cluster = np.unique(clusters, return_inverse=True)
        self._sizes = np.bincount(self._cluster)
        count = len(self._sizes)
        drawn = np.random.default_rng(seed).integers(count, size=(resamples, count))
        # Times each cluster is drawn, float64 [resamples, clusters]; a mean is then two matrix products.
        self._times = np.stack([np.bincount(one, minlength=count) for one in drawn]).astype(np.float64)

    def query_weights(self) -> NDArray[np.float64]:
        """Times each query counts, float64 [1 + resamples, q]: all ones for the data, then the draws."""
        drawn = self._times[:, self._cluster]
        return np.concatenate([np.ones((1, drawn.shape[1])), drawn])

    def mean(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean of ``values`` [q] in every draw, float64 [resamples]."""
        sums = np.bincount(self._cluster, weights=values, minlength=len(self._sizes))
        means: NDArray[np.float64] = (self._times @ sums) / (self._times @ self._sizes)
        return means

    def interval(
        self, statistic: Callable[..., NDArray[np.float64]], *values: NDArray[np.float64]
    ) -> tuple[float, float]:
        """Interval of a statistic of means.

        Args:
            statistic: computes the statistic of every draw from the means of ``values``, for instance
                ``lambda a, b: a - b``.
            values: [q] each.

        Returns:
            Lower and upper end; nan if the statistic is nan in a draw (a ratio over zero).
        """
        low, high = np.percentile(statistic(*(self.mean(one) for one in values)), (2.5, 97.5))
        return float(low), float(high)

    def mean_interval(self, values: NDArray[np.float64]) -> tuple[float, float]:
        """Interval of the mean of ``values`` [q]."""
        return self.interval(lambda mean: mean, values)


def permutation_test(
    ours: NDArray[np.float64],
    theirs: NDArray[np.float64],
    clusters: NDArray[np.int64],
    *,
    permutations: int = 9999,
    seed: int = 0,
) -> float:
    """Paired two-sided permutation test of the difference of means.

    Under the null hypothesis the two systems can be exchanged for any cluster, with all of its queries.
    ``scipy.stats.permutation_test`` draws the exchanges, or tries all of them if there are fewer than
    ``permutations``.

    Args:
        ours: [q], one measure of every query for one system.
        theirs: [q], for the other.
        clusters: int [q], the cluster of each query.
        permutations: maximum number of exchanges; the smallest p is 2 / (permutations + 1).
        seed: of the draws.

    Returns:
        p in (0, 1]; 1 if the systems differ in fewer than two clusters.
    """
    _, cluster = np.unique(clusters, return_inverse=True)
    # A difference of means over queries is a difference of sums over clusters.
    sums = np.stack([np.bincount(cluster, weights=values) for values in (ours, theirs)])  # [2, clusters]
    differing = sums[:, ~np.isclose(sums[0], sums[1], rtol=0, atol=1e-12)]
    count = differing.shape[1]
    if count < 2:  # exchanging a single cluster only changes the sign
        return 1.0

    result = exchange(
        tuple(differing),
        lambda x, y, axis: (x - y).sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=permutations,
        batch=max(_AT_ONCE // count, 1),
        alternative="two-sided",
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Correct the p-values of one family of tests (S. Holm, Scandinavian Journal of Statistics 6, 1979).

    Calling corrected values below 5 % significant makes one false call or more in at most 5 % of such
    families, however the tests depend on one another. Corrected values are at least the raw ones, at most 1.
    """
    corrected: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min((len(p_values) - place) * p_values[name], 1.0))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}
