"""Calibration of scores, by hand and by simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.calibration import Predictions, first_place, reliability_rows, yes_no
from zsqretrieval.evaluation.datasets import Task
from zsqretrieval.evaluation.results import table_of
from zsqretrieval.evaluation.run import Run
from zsqretrieval.search.scoring import YesNo


def bins_of(found: Predictions, **options: Any) -> tuple[Any, list[dict[str, Any]]]:
    """The row of the calibration error, and a dictionary of every bin."""
    error, *rows = table_of(reliability_rows("toy", found, **options)).to_dict("records")
    assert error["measure"] == "calibration error" and len(rows) % 2 == 0
    bins = [
        {
            "size": two["queries"],
            "predicted": one["value"],
            "observed": two["value"],
            **{name: two[name] for name in ("low", "high", "depth")},
        }
        for one, two in zip(rows[::2], rows[1::2], strict=True)
    ]
    assert [one["measure"] for one in rows] == ["predicted", "observed"] * len(bins)
    assert [one["depth"] for one in bins] == list(range(len(bins)))
    return error, bins


def reliability(
    said: NDArray[np.float64], true: NDArray[np.bool_], clusters: NDArray[np.int64], **options: Any
) -> tuple[Any, list[dict[str, Any]]]:
    return bins_of(Predictions(said, true, clusters), **options)


def looking(queries: int, items: int = 3) -> Task:
    """Query n looks for item n modulo the number of items."""
    names = tuple(f"q{n}" for n in range(queries))
    qrels = {name: {f"i{n % items}": 1} for n, name in enumerate(names)}
    found = tuple(f"i{n}" for n in range(items))
    return Task("toy", names, found, qrels, np.arange(queries), ("caption",) * queries)


def scored(scores: list[list[float]], candidates: list[list[int]] | None = None) -> Run:
    rows = np.array(scores, np.float64)
    found = np.tile(np.arange(3), (len(rows), 1)) if candidates is None else np.array(candidates)
    return Run("toy", looking(len(rows)), found, rows)


def test_bins_and_error_by_hand() -> None:
    said = np.repeat([0.2, 0.9], 10)
    true = np.array([True] * 4 + [False] * 6 + [True] * 8 + [False] * 2)
    error, bins = reliability(said, true, np.arange(20), bins=2)
    assert [(one["size"], one["predicted"], one["observed"]) for one in bins] == [
        (10, pytest.approx(0.2), 0.4),
        (10, pytest.approx(0.9), 0.8),
    ]
    assert error["value"] == pytest.approx((0.2 + 0.1) / 2)
    assert all(one["low"] < one["observed"] < one["high"] for one in bins)


def test_few_observations_make_few_bins() -> None:
    for count, expected in ((9, 1), (40, 4)):
        _, bins = reliability(np.linspace(0, 1, count), np.ones(count, bool), np.arange(count))
        assert len(bins) == expected
    error, bins = reliability(np.full(500, 0.5), np.ones(500, bool), np.arange(500))
    assert len(bins) == 1 and error["value"] == 0.5


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_calibrated_probabilities_have_a_small_error(seed: int) -> None:
    random = np.random.default_rng(seed)
    said = random.random(4000)
    honest, bins = reliability(said, random.random(4000) < said, np.arange(4000), resamples=50)
    boastful, _ = reliability(said**0.25, random.random(4000) < said, np.arange(4000), resamples=50)
    assert honest["value"] < 0.06 < boastful["value"]
    assert len(bins) == 10 and {one["size"] for one in bins} == {400}


def test_observations_of_one_cluster_widen_the_interval() -> None:
    random = np.random.default_rng(0)
    true = np.repeat(random.random(40) < 0.5, 25)
    said = np.full(1000, 0.5)
    (_, (few,)), (_, (many,)) = (
        reliability(said, true, clusters) for clusters in (np.repeat(np.arange(40), 25), np.arange(1000))
    )
    assert few["high"] - few["low"] > 3 * (many["high"] - many["low"])


def test_yes_no_counts_every_candidate() -> None:
    odds = [[2.0, -1.0, 0.0], [800.0, -800.0, 0.5]]
    error, (one,) = bins_of(yes_no(scored(odds, [[0, 1, 2], [1, 0, -1]])))
    assert error["queries"] == one["size"] == 5
    said = [YesNo.probability(one) for one in (2.0, -1.0, 0.0, 800.0, -800.0)]
    assert one["predicted"] == pytest.approx(np.mean(said)) and one["observed"] == pytest.approx(2 / 5)


def test_first_place_is_softmax_and_wrong_when_it_ties() -> None:
    said, true, _ = first_place(scored([[0.02, 0.01, 0.0]] * 3), scale=100.0)
    assert said == pytest.approx([np.exp(2) / (np.exp(2) + np.exp(1) + 1)] * 3) and true.sum() == 1
    _, true, _ = first_place(scored([[1.0, 1.0, 0.0]]))
    assert not true.any(), "of equal scores the wrong one comes first"
    said, true, _ = first_place(scored([[-700.0, np.nan, np.nan]], [[0, -1, -1]]))
    assert said.tolist() == [1.0] and true.all()


def test_values_outside_0_to_1_are_refused() -> None:
    for said in (np.array([1.1]), np.array([np.nan]), np.empty(0)):
        with pytest.raises(InvalidInputError):
            reliability(said, np.ones(len(said), bool), np.arange(len(said)))
