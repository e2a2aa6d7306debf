from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.intervals import ClusterBootstrap


def same(mean: np.ndarray) -> np.ndarray:
    return mean


def test_queries_of_one_image_count_as_one_observation() -> None:
    """Ten copies of every query tell nothing new: the interval must not shrink."""
    random = np.random.default_rng(1)
    hits = random.integers(0, 2, 60).astype(float)
    alone = ClusterBootstrap(np.arange(60)).interval(same, hits)
    copied = ClusterBootstrap(np.repeat(np.arange(60), 10)).interval(same, np.repeat(hits, 10))
    assert copied == pytest.approx(alone)
    naive = ClusterBootstrap(np.arange(600)).interval(same, np.repeat(hits, 10))
    assert naive[1] - naive[0] < 0.5 * (copied[1] - copied[0])


def test_it_covers_what_theory_says() -> None:
    """Of independent queries the interval is that of the normal approximation, mean +- 1.96 sd / sqrt(n)."""
    hits = (np.arange(400) % 4 == 0).astype(float)
    low, high = ClusterBootstrap(np.arange(400)).interval(same, hits)
    wide = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert low == pytest.approx(0.25 - wide, abs=0.006) and high == pytest.approx(0.25 + wide, abs=0.006)


def test_a_difference_is_taken_within_each_draw() -> None:
    """Two systems that always differ by 0.25 differ by exactly that in every draw, however they vary."""
    hits = np.random.default_rng(2).random(50)
    bootstrap = ClusterBootstrap(np.arange(50) // 3)
    low, high = bootstrap.interval(lambda a, b: a - b, hits + 0.25, hits)
    assert low == pytest.approx(0.25) and high == pytest.approx(0.25)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 2**16))
def test_draws_agree_with_drawing(clusters: list[int], seed: int) -> None:
    """Against the plain way: gather the queries of the images drawn, then average."""
    values = np.random.default_rng(seed).random(len(clusters))
    groups = [values[np.array(clusters) == c] for c in np.unique(clusters)]
    drawn = np.random.default_rng(0).integers(len(groups), size=(20, len(groups)))
    plain = [np.concatenate([groups[i] for i in one]).mean() for one in drawn]
    assert ClusterBootstrap(np.array(clusters), resamples=20).mean(values) == pytest.approx(plain)


def test_no_queries_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="no queries"):
        ClusterBootstrap(np.empty(0, np.int64))


def test_no_draws_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="resamples must be at least 1, not 0"):
        ClusterBootstrap(np.arange(3), resamples=0)
