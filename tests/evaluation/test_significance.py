"""Hand-computed p-values, and simulations in which the truth is known."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from zsqretrieval.errors import InvalidInputError, MismatchError, MissingDependencyError
from zsqretrieval.evaluation.comparison import Result, compare
from zsqretrieval.evaluation.datasets import Task
from zsqretrieval.evaluation.intervals import ClusterBootstrap
from zsqretrieval.evaluation.runs import Run
from zsqretrieval.evaluation.significance import holm, paired_permutation_test

PER_IMAGE = 5


def correlated(random: np.random.Generator, images: int, gain: float = 0.0) -> NDArray[np.float64]:
    """Hits of five captions per image that share much of their luck; float [images * 5], mean near 0.5."""
    easy = np.repeat(random.normal(size=images), PER_IMAGE)
    return (easy + 0.5 * random.normal(size=len(easy)) + gain > 0).astype(float)


def test_by_hand() -> None:
    ours, theirs = np.array([1.0, 1, 1, 1]), np.zeros(4)
    # All 16 ways to exchange; only the way it is and its mirror image differ by 4 in all.
    assert paired_permutation_test(ours, theirs, np.arange(4)) == 2 / 16
    # As two images they have 4 ways, and as one image nothing can be said.
    assert paired_permutation_test(ours, theirs, np.array([7, 7, 9, 9])) == 2 / 4
    assert paired_permutation_test(ours, theirs, np.zeros(4, np.int64)) == 1
    assert paired_permutation_test(ours, ours, np.arange(4)) == 1
    # Where the systems agree an exchange changes nothing.
    agree = np.concatenate([ours, np.ones(50)]), np.concatenate([theirs, np.ones(50)])
    assert paired_permutation_test(*agree, np.arange(54)) == 2 / 16


def test_a_clear_difference_is_seen_and_repeatable() -> None:
    random = np.random.default_rng(0)
    theirs = correlated(random, 200)
    ours = np.maximum(theirs, random.random(1000) < 0.2)
    clusters = np.repeat(np.arange(200), PER_IMAGE)
    p = paired_permutation_test(ours, theirs, clusters, permutations=999)
    assert p == pytest.approx(2 / 1000)  # two-sided, both tails have at least one
    assert p == paired_permutation_test(ours, theirs, clusters, permutations=999)
    assert p == paired_permutation_test(theirs, ours, clusters, permutations=999)


def test_no_difference_gives_false_alarms_at_the_rate_promised() -> None:
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
            p = paired_permutation_test(ours, theirs, units, permutations=199, seed=seed)
            alarms[name] += p <= 0.05
    assert 4 <= alarms["clusters"] <= 26, alarms  # 15 give or take three standard deviations
    assert alarms["captions"] > 20, alarms


def test_intervals_hold_the_truth_as_often_as_promised() -> None:
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


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({}) == {} and holm({"a": 0.04}) == {"a": 0.04}
    with pytest.raises(InvalidInputError, match="p-value of 'b' is nan"):
        holm({"a": 0.5, "b": float("nan")})
    with pytest.raises(InvalidInputError, match="p-value of '' is 2"):
        holm({"": 2.0})


@given(st.dictionaries(st.text(max_size=2), st.floats(0, 1), max_size=6))
def test_holm_keeps_the_order_and_only_grows(p_values: dict[str, float]) -> None:
    adjusted = holm(p_values)
    assert list(adjusted) == list(p_values)
    for a, p in p_values.items():
        assert p <= adjusted[a] <= min(1, p * len(p_values)) or adjusted[a] == max(
            adjusted[b] for b in p_values if p_values[b] <= p
        )
        assert all(adjusted[b] <= adjusted[a] for b, q in p_values.items() if q <= p)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="q at least 1"):
        paired_permutation_test(np.ones(3), np.ones(2), np.arange(3))
    with pytest.raises(InvalidInputError, match="q at least 1"):
        paired_permutation_test(np.ones(0), np.ones(0), np.arange(0))
    with pytest.raises(InvalidInputError, match="not finite"):
        paired_permutation_test(np.array([np.nan]), np.ones(1), np.arange(1))
    with pytest.raises(InvalidInputError, match="permutations must be at least 1"):
        paired_permutation_test(np.ones(3), np.zeros(3), np.arange(3), permutations=0)


def test_without_scipy_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'zsqretrieval\[evaluation\]'"):
        paired_permutation_test(np.ones(3), np.zeros(3), np.arange(3))


# --- all of it over runs ----------------------------------------------------------------------------------


def task_and_runs() -> tuple[Task, list[Run]]:
    """40 images with two captions and a question each; ``good`` finds every caption's image, ``bad`` half."""
    images = tuple(f"i{n}" for n in range(40))
    queries = tuple(f"{image}#{n}" for image in images for n in range(3))
    forms = ("caption", "caption", "question") * 40
    owner = np.repeat(np.arange(40), 3)
    task = Task("toy", queries, images, {q: {q.split("#")[0]: 1} for q in queries}, owner, forms)
    candidates = np.stack([owner, (owner + 1) % 40], 1)
    right = np.stack([np.ones(120), np.zeros(120)], 1)
    wrong = np.where((owner % 2 == 0)[:, None], right, right[:, ::-1])
    runs = [Run("bad", queries, images, candidates, wrong), Run("good", queries, images, candidates, right)]
    return task, [*runs, Run("same", queries, images, candidates, wrong * 3)]


def test_systems_are_compared_per_form() -> None:
    task, runs = task_and_runs()
    results = compare(task, runs, baseline="bad", measures=["R@1", "MRR"], permutations=499)
    assert [(one.form, one.measure, one.system) for one in results] == [
        (form, name, run.name) for form in ("caption", "question") for name in ("R@1", "MRR") for run in runs
    ]
    by_key = {(one.form, one.measure, one.system): one for one in results}
    good = by_key["caption", "R@1", "good"]
    assert (good.queries, good.clusters, good.mean, good.interval) == (80, 40, 1.0, (1.0, 1.0))
    assert good.against is not None and good.against.difference == 0.5
    assert good.against.p == 2 / 500 and good.against.p_holm == 2 * good.against.p
    low, high = good.against.interval
    assert low == pytest.approx(0.5 - 1.96 * 0.5 / np.sqrt(40), abs=0.03) and high > 0.6
    bad, same = by_key["question", "MRR", "bad"], by_key["question", "MRR", "same"]
    assert bad.against is None and bad.mean == same.mean == 0.75
    assert same.against is not None and (same.against.difference, same.against.p) == (0, 1)
    assert isinstance(good, Result) and good.to_json()["against"]["baseline"] == "bad"
    assert compare(task, runs, baseline="bad", measures=["R@1", "MRR"], permutations=499) == results


def test_runs_must_belong_together() -> None:
    task, runs = task_and_runs()
    with pytest.raises(InvalidInputError, match="two runs have one name"):
        compare(task, [runs[0], runs[0]], baseline="bad")
    with pytest.raises(InvalidInputError, match="no run is named 'clip'"):
        compare(task, runs, baseline="clip")
    other = Run("other", task.queries[::-1], task.items, runs[0].candidates, runs[0].scores)
    with pytest.raises(MismatchError, match="run 'other' has other queries"):
        compare(task, [*runs, other], baseline="bad")
