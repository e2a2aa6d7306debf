"""Is one system better than another, or only luckier in its queries?

Both tests take whole clusters: the captions of one image are not independent of one another, so an image
counts as one observation, with all of its queries. They are paired: both systems answered the same queries.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.checks import check_counts
from zsqretrieval.errors import InvalidInputError, MissingDependencyError

__all__ = ["holm", "paired_permutation_test"]

_AT_ONCE = 2**22  # signs drawn together: 32 MB


def paired_permutation_test(
    ours: NDArray[np.float64],
    theirs: NDArray[np.float64],
    clusters: NDArray[np.int64],
    *,
    permutations: int = 9999,
    seed: int = 0,
) -> float:
    """How often chance alone makes two systems differ as much as these do in the mean.

    If it did not matter which system gave which answer, the answers of both could be exchanged for any image,
    with all of its queries. That is done at random (scipy.stats.permutation_test over samples; all exchanges
    when there are fewer than ``permutations``), and the difference of means is compared, two-sided.

    Args:
        ours: [q], a measure of every query by one system.
        theirs: [q], by the other.
        clusters: int [q], which image each query belongs to.
        permutations: how many exchanges are tried; the smallest p is 2 / (permutations + 1).
        seed: makes them repeatable.

    Returns:
        p in (0, 1]; 1 when the systems do not differ in any cluster.

    Raises:
        InvalidInputError: shapes differ, there are no queries, a value is not finite, or permutations < 1.
        MissingDependencyError: scipy is not installed.
    """
    check_counts(permutations=permutations)
    if not ours.shape == theirs.shape == clusters.shape or ours.ndim != 1 or not len(ours):
        raise InvalidInputError(
            f"values {ours.shape} and {theirs.shape}, clusters {clusters.shape}: all must be [q], q at least "
            "1"
        )
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise InvalidInputError("a value is not finite; measures of a run always are")
    try:
        from scipy.stats import permutation_test
    except ImportError as error:
        raise MissingDependencyError(
            "scipy", "a permutation test", "pip install 'zsqretrieval[evaluation]'"
        ) from error
    _, cluster = np.unique(clusters, return_inverse=True)
    # What is exchanged is exchanged by cluster, so the difference of means is one of sums over clusters.
    sums = np.stack([np.bincount(cluster, weights=values) for values in (ours, theirs)])
    differing = sums[
        :, ~np.isclose(sums[0], sums[1], rtol=0, atol=1e-12)
    ]  # the others do not change anything
    count = differing.shape[1]
    if count < 2:  # the two exchanges of a single image differ in sign alone
        return 1.0

    def difference(x: NDArray[np.float64], y: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        total: NDArray[np.float64] = (x - y).sum(axis=axis)
        return total

    result = permutation_test(
        tuple(differing),
        difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=permutations,
        batch=max(_AT_ONCE // count, 1),
        alternative="two-sided",
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Correct p-values for how many tests there were (S. Holm, Scandinavian Journal of Statistics 6, 1979).

    Calling significant what stays below 5 % makes a false call, or more, in at most 5 % of such families,
    however the tests depend on one another.

    Args:
        p_values: of one family of tests, by name.

    Returns:
        The adjusted values, by the same names; at least the raw ones and at most 1.

    Raises:
        InvalidInputError: a value is not in [0, 1].
    """
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise InvalidInputError(f"the p-value of {name!r} is {p}, not between 0 and 1")
    adjusted: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min((len(p_values) - place) * p_values[name], 1.0))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}
