"""Arithmetic on runs, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from zsqretrieval.errors import InvalidInputError, MismatchError
from zsqretrieval.evaluation.datasets import Task
from zsqretrieval.evaluation.run import (
    Run,
    fused_run,
    prior_corrected,
    rerank_depth,
    shallow,
    some_rows,
)
from zsqretrieval.search.fusion import ReciprocalRank, RerankOnly, WeightedSum

TASK = Task(
    "toy",
    ("q0", "q3"),
    ("i0", "i1", "i2", "i3"),
    {"q0": {"i0": 1}, "q3": {"i3": 1}},
    np.array([4, 7]),
    ("a", "b"),
)


def run_by_hand() -> Run:
    candidates = np.array([[0, 1, 2, 3]] * 2)
    return Run("clip", TASK, candidates, np.array([[4.0, 3, 2, 1]] * 2))


def test_scores_are_fused_query_by_query() -> None:
    first = run_by_hand()
    scored = replace(first, name="yes_no", scores=np.array([[1.0, 2, 3, 4], [8, 0, 0, 0]]))
    fused = fused_run(first, scored, WeightedSum(0.5, scale="raw"))
    assert fused.name == "fused" and fused.scores.tolist() == [[4.5, 4, 3.5, 3], [8, 3, 2, 1]]


def test_only_the_first_candidates_are_reranked() -> None:
    first = run_by_hand()
    scored = replace(first, name="likelihood", scores=np.array([[-9.0, -5, -1, -1], [-1, -1, -2, -3]]))

    def order(depth: int) -> list[list[int]]:
        run = rerank_depth(first, scored, depth)
        assert run.name == "likelihood"
        return np.argsort(-run.scores, axis=1, kind="stable").tolist()

    assert order(0) == [[0, 1, 2, 3]] * 2
    assert order(2) == [[1, 0, 2, 3], [0, 1, 2, 3]]
    assert order(3) == [[2, 1, 0, 3], [0, 1, 2, 3]]
    assert order(4) == order(99) == [[2, 3, 1, 0], [0, 1, 2, 3]]
    tied = rerank_depth(first, scored, 4).scores
    assert tied[0, 2] == tied[0, 3] and tied[1, 0] == tied[1, 1]  # ties stay ties, to be broken when measured
    with pytest.raises(InvalidInputError, match="has 4 scored candidates, not -1"):
        rerank_depth(first, scored, -1)


def test_candidates_that_are_not_scored_stay_below() -> None:
    first = run_by_hand()
    scored = replace(first, name="yes_no", scores=np.array([[1.0, 2, 3, 4], [8, 0, 9, 0]]))
    narrow = shallow(scored, 2)
    assert narrow.candidates.tolist() == [[0, 1]] * 2 and shallow(first, 9).scores.shape == (2, 4)
    run = rerank_depth(first, narrow, 2)
    assert np.array_equal(run.candidates, first.candidates)
    assert np.array_equal(run.scores, rerank_depth(first, scored, 2).scores)
    assert np.array_equal(rerank_depth(first, shallow(scored, 0), 0).scores, [[-1, -2, -3, -4]] * 2)
    with pytest.raises(InvalidInputError, match="'yes_no' has 2 scored candidates, not 3"):
        rerank_depth(first, narrow, 3)
    with pytest.raises(MismatchError, match="differ"):
        rerank_depth(first, replace(narrow, candidates=narrow.candidates[:, ::-1]), 2)


def test_fusions_get_the_first_stage_best_first() -> None:
    first = replace(run_by_hand(), scores=np.array([[1.0, 3, 2, 2]] * 2))
    scored = replace(first, name="yes_no", scores=np.array([[0.0, 0, 0, 9]] * 2))

    class Checking:
        def fuse(self, first_stage: np.ndarray, scores: np.ndarray) -> np.ndarray:
            assert first_stage.tolist() == [3, 2, 2, 1] and scores.tolist() == [0, 0, 9, 0]
            return first_stage + scores

    assert fused_run(first, scored, Checking()).scores[0].tolist() == [1, 3, 2, 11]
    assert fused_run(first, scored, ReciprocalRank()).scores.argmax(axis=1).tolist() == [1, 1]


def test_missing_candidates_stay_missing() -> None:
    first = replace(
        run_by_hand(),
        candidates=np.array([[0, 1, -1, -1], [3, 2, 1, -1]]),
        scores=np.array([[2.0, 1, np.nan, np.nan], [3, 2, 1, np.nan]]),
    )
    np.testing.assert_array_equal(fused_run(first, first, RerankOnly()).scores, first.scores)
    assert np.isnan(rerank_depth(first, first, 2).scores).tolist() == (first.candidates < 0).tolist()
    corrected = prior_corrected(first, np.arange(4.0), 0.5)
    assert corrected.name == "clip - prior" and corrected.scores[1, :3].tolist() == [1.5, 1.0, 0.5]
    assert np.isnan(corrected.scores[0, 2:]).all()


def test_runs_of_other_candidates_are_not_fused() -> None:
    with pytest.raises(MismatchError, match="'clip' and 'other' differ"):
        fused_run(run_by_hand(), replace(run_by_hand(), name="other", task=replace(TASK)), RerankOnly())


def test_some_queries_keep_their_answers() -> None:
    few = some_rows(run_by_hand(), np.array([1]))
    asked = few.task
    assert asked.queries == ("q3",) and asked.items == TASK.items and asked.relevant == [[3]]
    assert asked.qrels == {"q3": {"i3": 1}} and asked.clusters.tolist() == [7] and asked.forms == ("b",)
    assert few.candidates.shape == few.scores.shape == (1, 4)
