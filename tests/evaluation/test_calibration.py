"""Probabilities against what came true: by hand, and where the truth is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.calibration import (
    first_place_reliability,
    reliability,
    yes_no_reliability,
)
from zsqretrieval.evaluation.datasets import Task
from zsqretrieval.evaluation.runs import Run
from zsqretrieval.search.scoring import YesNo


def task(queries: int, items: int = 3) -> Task:
    """Query n looks for item n modulo the number of items."""
    names = tuple(f"q{n}" for n in range(queries))
    return Task(
        "toy",
        names,
        tuple(f"i{n}" for n in range(items)),
        {name: {f"i{n % items}": 1} for n, name in enumerate(names)},
        np.arange(queries),
        ("caption",) * queries,
    )


def run(scores: list[list[float]], candidates: list[list[int]] | None = None) -> Run:
    rows = np.array(scores, np.float64)
    found = np.tile(np.arange(3), (len(rows), 1)) if candidates is None else np.array(candidates)
    return Run("toy", task(len(rows)).queries, ("i0", "i1", "i2"), found, rows)


def test_bins_and_error_by_hand() -> None:
    said = np.repeat([0.2, 0.9], 10)
    true = np.array([True] * 4 + [False] * 6 + [True] * 8 + [False] * 2)
    found = reliability("toy", "truth", said, true, np.arange(20), bins=2)
    assert [(one.observations, one.said, one.true) for one in found.bins] == [
        (10, pytest.approx(0.2), 0.4),
        (10, pytest.approx(0.9), 0.8),
    ]
    assert found.error == pytest.approx((0.2 + 0.1) / 2)
    for one in found.bins:
        assert one.interval is not None and one.interval[0] < one.true < one.interval[1]
    json.dumps(found.to_json(), allow_nan=False)


def test_few_observations_make_few_bins() -> None:
    assert len(reliability("", "", np.linspace(0, 1, 9), np.ones(9, bool), np.arange(9)).bins) == 1
    assert len(reliability("", "", np.linspace(0, 1, 40), np.ones(40, bool), np.arange(40)).bins) == 4
    same = reliability("", "", np.full(500, 0.5), np.ones(500, bool), np.arange(500))
    assert len(same.bins) == 1 and same.error == 0.5


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_what_is_calibrated_has_little_error(seed: int) -> None:
    random = np.random.default_rng(seed)
    said = random.random(4000)
    honest = reliability("", "", said, random.random(4000) < said, np.arange(4000), resamples=50)
    boastful = reliability("", "", said**0.25, random.random(4000) < said, np.arange(4000), resamples=50)
    assert honest.error < 0.06 < boastful.error
    assert len(honest.bins) == 10 and {one.observations for one in honest.bins} == {400}


def test_observations_of_one_image_do_not_count_as_many() -> None:
    random = np.random.default_rng(0)
    true = np.repeat(random.random(40) < 0.5, 25)
    said = np.full(1000, 0.5)
    width = [
        np.ptp(reliability("", "", said, true, clusters).bins[0].interval or (0, 0))
        for clusters in (np.repeat(np.arange(40), 25), np.arange(1000))
    ]
    assert width[0] > 3 * width[1]


def test_yes_is_read_of_every_candidate() -> None:
    odds = [[2.0, -1.0, 0.0], [800.0, -800.0, 0.5]]
    found = yes_no_reliability(run(odds, [[0, 1, 2], [1, 0, -1]]), task(2))
    assert found.observations == 5
    said = [YesNo.probability(one) for one in (2.0, -1.0, 0.0, 800.0, -800.0)]
    (one,) = found.bins
    assert one.said == pytest.approx(np.mean(said)) and one.true == pytest.approx(2 / 5)


def test_the_first_place_is_sure_by_softmax_and_right_unless_it_ties() -> None:
    found = first_place_reliability(run([[0.02, 0.01, 0.0]] * 3), task(3), scale=100.0)
    (one,) = found.bins
    assert one.said == pytest.approx(np.exp(2) / (np.exp(2) + np.exp(1) + 1)) and one.true == 1 / 3
    assert "times 100" in found.of
    tied = first_place_reliability(run([[1.0, 1.0, 0.0]]), task(1))
    assert tied.bins[0].true == 0, "of equal scores the wrong one comes first"
    alone = first_place_reliability(run([[-700.0, np.nan, np.nan]], [[0, -1, -1]]), task(1))
    assert (alone.bins[0].said, alone.bins[0].true) == (1.0, 1.0)


def test_what_is_no_probability_is_refused() -> None:
    for said in (np.array([1.1]), np.array([np.nan]), np.empty(0)):
        with pytest.raises(InvalidInputError):
            reliability("", "", said, np.ones(len(said), bool), np.arange(len(said)))
