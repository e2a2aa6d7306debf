"""Intervals and tests: by hand, and in simulations with a known truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.stats import ClusterBootstrap, holm, permutation_test

PER_IMAGE = 5


def correlated(random: np.random.Generator, images: int, gain: float = 0.0) -> NDArray[np.float64]:
    """Hits of five captions per image that share much of their luck; float [images * 5], mean near 0.5."""
    easy = np.repeat(random.normal(size=images), PER_IMAGE)
    return (easy + 0.5 * random.normal(size=len(easy)) + gain > 0).astype(float)


def test_exchanges_are_counted_by_cluster() -> None:
    ours, theirs = np.array([1.0, 1, 1, 1]), np.zeros(4)
    # All 16 ways to exchange; only the way it is and its mirror image differ by 4 in all.
    assert permutation_test(ours, theirs, np.arange(4)) == 2 / 16
    # As two images they have 4 ways, and as one image nothing can be said.
    assert permutation_test(ours, theirs, np.array([7, 7, 9, 9])) == 2 / 4
    assert permutation_test(ours, theirs, np.zeros(4, np.int64)) == 1
    assert permutation_test(ours, ours, np.arange(4)) == 1
    # Where the systems agree an exchange changes nothing.
    agree = np.concatenate([ours, np.ones(50)]), np.concatenate([theirs, np.ones(50)])
    assert permutation_test(*agree, np.arange(54)) == 2 / 16


def test_a_clear_difference_is_significant_and_repeatable() -> None:
    random = np.random.default_rng(0)
    theirs = correlated(random, 200)
    ours = np.maximum(theirs, random.random(1000) < 0.2)
    clusters = np.repeat(np.arange(200), PER_IMAGE)
    p = permutation_test(ours, theirs, clusters, permutations=999)
    assert p == pytest.approx(2 / 1000)  # two-sided, both tails have at least one
    assert p == permutation_test(ours, theirs, clusters, permutations=999)
    assert p == permutation_test(theirs, ours, clusters, permutations=999)


def test_equal_systems_give_false_alarms_at_the_nominal_rate() -> None:
    """Two systems of equal worth, 300 times over: p <= 0.05 in about 15. Were captions taken for independent,
    it would be far more; a hundred times over are enough to see it."""
    random = np.random.default_rng(11)
    images = 30
    clusters = np.repeat(np.arange(images), PER_IMAGE)
    alarms = {"clusters": 0, "captions": 0}
    for seed in range(300):
        ours, theirs = correlated(random, images), correlated(random, images)
        for name, units in (("clusters", clusters), ("captions", np.arange(len(ours)))):
            if name == "captions" and seed >= 100:
                continue
            p = permutation_test(ours, theirs, units, permutations=199, seed=seed)
            alarms[name] += p <= 0.05
    assert 4 <= alarms["clusters"] <= 26, alarms  # 15 give or take three standard deviations
    assert alarms["captions"] > 20, alarms


def test_intervals_cover_the_truth_at_the_nominal_rate() -> None:
    """Mean and paired difference, 400 times over, of which the true values are 0.5 and known."""
    random = np.random.default_rng(12)
    images = 60
    clusters = np.repeat(np.arange(images), PER_IMAGE)
    big = np.random.default_rng(1)
    gain = correlated(big, 200_000, 0.4).mean() - 0.5
    held = np.zeros(2)
    for seed in range(400):
        theirs, ours = correlated(random, images), correlated(random, images, 0.4)
        bootstrap = ClusterBootstrap(clusters, resamples=300, seed=seed)
        for n, (truth, (low, high)) in enumerate(
            [
                (0.5, bootstrap.interval(lambda mean: mean, theirs)),
                (gain, bootstrap.interval(lambda a, b: a - b, ours, theirs)),
            ]
        ):
            held[n] += low <= truth <= high
    assert held / 400 == pytest.approx(0.95, abs=0.035), held / 400


def test_holm_correction_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({}) == {} and holm({"a": 0.04}) == {"a": 0.04}


@given(st.dictionaries(st.text(max_size=2), st.floats(0, 1), max_size=6))
def test_holm_keeps_the_order_and_never_lowers_p(p_values: dict[str, float]) -> None:
    adjusted = holm(p_values)
    assert list(adjusted) == list(p_values)
    for a, p in p_values.items():
        assert p <= adjusted[a] <= min(1, p * len(p_values)) or adjusted[a] == max(
            adjusted[b] for b in p_values if p_values[b] <= p
        )
        assert all(adjusted[b] <= adjusted[a] for b, q in p_values.items() if q <= p)


def test_queries_of_one_image_count_as_one_observation() -> None:
    """Ten copies of every query tell nothing new: the interval must not shrink."""
    random = np.random.default_rng(1)
    hits = random.integers(0, 2, 60).astype(float)
    alone = ClusterBootstrap(np.arange(60)).mean_interval(hits)
    copied = ClusterBootstrap(np.repeat(np.arange(60), 10)).mean_interval(np.repeat(hits, 10))
    assert copied == pytest.approx(alone)
    naive = ClusterBootstrap(np.arange(600)).mean_interval(np.repeat(hits, 10))
    assert naive[1] - naive[0] < 0.5 * (copied[1] - copied[0])


def test_independent_queries_give_the_normal_interval() -> None:
    """Of independent queries the interval is that of the normal approximation, mean +- 1.96 sd / sqrt(n)."""
    hits = (np.arange(400) % 4 == 0).astype(float)
    low, high = ClusterBootstrap(np.arange(400)).mean_interval(hits)
    wide = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert low == pytest.approx(0.25 - wide, abs=0.006) and high == pytest.approx(0.25 + wide, abs=0.006)


def test_differences_are_paired_within_each_draw() -> None:
    """Two systems that always differ by 0.25 differ by exactly that in every draw, however they vary."""
    hits = np.random.default_rng(2).random(50)
    bootstrap = ClusterBootstrap(np.arange(50) // 3)
    low, high = bootstrap.interval(lambda a, b: a - b, hits + 0.25, hits)
    assert low == pytest.approx(0.25) and high == pytest.approx(0.25)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 2**16))
def test_means_of_draws_agree_with_gathering_the_queries(clusters: list[int], seed: int) -> None:
    """Against the plain way: gather the queries of the images drawn, then average."""
    values = np.random.default_rng(seed).random(len(clusters))
    groups = [values[np.array(clusters) == c] for c in np.unique(clusters)]
    drawn = np.random.default_rng(0).integers(len(groups), size=(20, len(groups)))
    plain = [np.concatenate([groups[i] for i in one]).mean() for one in drawn]
    assert ClusterBootstrap(np.array(clusters), resamples=20).mean(values) == pytest.approx(plain)


def test_no_queries_or_no_draws_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="no queries"):
        ClusterBootstrap(np.empty(0, np.int64))
    with pytest.raises(InvalidInputError, match="resamples must be at least 1, not 0"):
        ClusterBootstrap(np.arange(3), resamples=0)
