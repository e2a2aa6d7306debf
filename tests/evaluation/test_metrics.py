"""Measures against hand-computed cases, ties against every way of breaking them, files against trec_eval."""

from __future__ import annotations

import gzip
import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsqretrieval.errors import InvalidInputError, MissingDependencyError
from zsqretrieval.evaluation.datasets import Task
from zsqretrieval.evaluation.metrics import (
    MEASURES,
    MISSING,
    break_ties,
    check_measures,
    first_ranks,
    measure,
    tied_share,
)
from zsqretrieval.evaluation.run import Run
from zsqretrieval.evaluation.settings import Settings
from zsqretrieval.evaluation.trec import read_run, write_qrels, write_run

ITEMS = ("a", "b", "c", "d", "e", "f")
NAN = float("nan")


def task_of(queries: Sequence[str], items: tuple[str, ...] = ITEMS, qrels: Any = None) -> Task:
    judged = {query: {} for query in queries} if qrels is None else qrels
    named = "toy", tuple(queries), items, judged, np.arange(len(queries)), ("caption",) * len(queries)
    return Task(*named)


def judged(run: Run, qrels: dict[str, dict[str, int]]) -> Run:
    return replace(run, task=replace(run.task, qrels={**run.task.qrels, **qrels}))


def run_of(*rows: dict[str, float], items: tuple[str, ...] = ITEMS, name: str = "toy") -> Run:
    k = max(map(len, rows))
    candidates = np.full((len(rows), k), -1)
    scores = np.full((len(rows), k), np.nan)
    for n, row in enumerate(rows):
        candidates[n, : len(row)] = [items.index(item) for item in row]
        scores[n, : len(row)] = list(row.values())
    return Run(name, task_of([f"q{n}" for n in range(len(rows))], items), candidates, scores)


def test_measures_by_hand() -> None:
    # q0 finds its image second of three; q1 first; q2 not at all; q3 answers nothing.
    run = run_of({"a": 3, "b": 2, "c": 1}, {"d": -1, "c": -2.5}, {"a": 9, "b": 8}, {})
    qrels = {"q0": {"b": 1}, "q1": {"d": 1}, "q2": {"f": 1}, "q3": {"a": 1}}
    found = measure(judged(run, qrels), ["R@1", "R@2", "Recall@2", "MRR", "nDCG@10", "mAP@50", "Success@2"])
    assert found["R@1"].tolist() == [0, 1, 0, 0]
    assert found["R@2"].tolist() == found["Recall@2"].tolist() == found["Success@2"].tolist() == [1, 1, 0, 0]
    assert found["MRR"].tolist() == found["mAP@50"].tolist() == [0.5, 1, 0, 0]
    assert found["nDCG@10"] == pytest.approx([1 / np.log2(3), 1, 0, 0])


def test_several_relevant_items_by_hand() -> None:
    # Relevant: a (grade 2), c, f (not a candidate); found at ranks 2 and 4.
    run = run_of({"b": 5, "c": 4, "d": 3, "a": 2, "e": 1})
    qrels = {"q0": {"a": 2, "c": 1, "f": 1, "b": 0}}
    ideal = 2 + 1 / np.log2(3) + 1 / np.log2(4)
    hand = {
        "R@1": 0, "R@2": 1, "Recall@2": 1 / 3, "Recall@5": 2 / 3, "MRR": 1 / 2,
        "mAP@5": (1 / 2 + 2 / 4) / 3, "mAP@2": (1 / 2) / 3, "APmin@2": (1 / 2) / 2,
        "nDCG@10": (1 / np.log2(3) + 2 / np.log2(5)) / ideal,
    }  # fmt: skip
    found = measure(judged(run, qrels), list(hand))
    assert {name: values[0] for name, values in found.items()} == pytest.approx(hand)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_recall_is_that_of_clip_benchmark_both_ways(images: int, captions: int, k: int, seed: int) -> None:
    """As its zero-shot retrieval does: recall of every query by topk, then whether it is above 0."""
    texts = images * captions
    similarity = np.random.default_rng(seed).permutation(texts * images).reshape(texts, images).astype(float)
    positive = np.arange(texts)[:, None] // captions == np.arange(images)
    for scores, pairs in ((similarity, positive), (similarity.T, positive.T)):
        queries, items = (tuple(map(str, range(n))) for n in scores.shape)
        qrels = {queries[q]: {items[i]: 1 for i in np.flatnonzero(pairs[q])} for q in range(len(queries))}
        candidates = np.broadcast_to(np.arange(len(items)), scores.shape)
        top = np.argsort(-scores, axis=1)[:, :k]
        recall = np.take_along_axis(pairs, top, 1).sum(1) / pairs.sum(1)
        found = measure(
            Run("toy", task_of(queries, items, qrels), candidates, scores), [f"R@{k}", f"Recall@{k}"]
        )
        assert found[f"Recall@{k}"] == pytest.approx(recall)
        assert found[f"R@{k}"].tolist() == (recall > 0).tolist()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=5),
    st.lists(st.integers(0, 2), min_size=6, max_size=6).filter(any),
)
def test_no_tie_breaking_gives_a_lower_measure(levels: list[int], grades: list[int]) -> None:
    run = run_of(dict(zip(ITEMS, levels, strict=False)))
    qrels = {"q0": dict(zip(ITEMS, grades, strict=True))}
    names = ["R@1", "R@3", "Recall@3", "MRR", "nDCG@10", "nDCG@2", "mAP@50", "mAP@2", "APmin@2"]
    found = measure(judged(run, qrels), names)
    least = dict.fromkeys(names, 1.0)
    for order in itertools.permutations(range(len(levels))):
        broken = {ITEMS[i]: levels[i] + order[i] / 100 for i in range(len(levels))}
        one = measure(judged(run_of(broken), qrels), names)
        least = {name: min(least[name], one[name][0]) for name in names}
    assert {name: values[0] for name, values in found.items()} == pytest.approx(least)


def test_constant_scores_have_no_recall_at_1() -> None:
    run = run_of(dict.fromkeys("fedcba", 0.5))
    for relevant in ITEMS:  # in trec_eval the name would decide
        found = measure(judged(run, {"q0": {relevant: 1}}), ["R@1", "R@5", "MRR"])
        assert [values[0] for values in found.values()] == pytest.approx([0, 0, 1 / 6])


def test_scores_equal_in_single_precision_keep_their_order() -> None:
    run = run_of({"a": 1.0, "b": 1.0 + 1e-12})
    assert measure(judged(run, {"q0": {"b": 1}}), ["R@1"])["R@1"] == [1]
    assert measure(judged(run, {"q0": {"a": 1}}), ["R@1"])["R@1"] == [0]


scores = st.floats(-1e30, 1e30, width=64) | st.sampled_from([0.0, -0.0, 1.0, 1e-300, -17.25])


@given(st.lists(st.lists(scores, max_size=6), min_size=1, max_size=4), st.data())
def test_broken_ties_keep_the_order_and_fall(rows: list[list[float]], data: st.DataObject) -> None:
    run = run_of(*(dict(zip(ITEMS, row, strict=False)) for row in rows))
    qrels = {query: {data.draw(st.sampled_from(ITEMS)): 1} for query in run.task.queries}
    broken = break_ties(judged(run, qrels))
    for n, row in enumerate(rows):
        own = broken.scores[n, : len(row)]
        assert (np.diff(own.astype(np.float32)) < 0).all()
        assert np.isnan(broken.scores[n, len(row) :]).all() and (broken.candidates[n, len(row) :] == -1).all()
        original = np.array(row)[broken.candidates[n, : len(row)]]
        assert (np.diff(original) <= 0).all()
        assert own == pytest.approx(original, rel=1e-5, abs=1e-30)


@settings(deadline=None)
@given(st.lists(st.lists(scores, max_size=6), min_size=1, max_size=4), st.data())
def test_written_runs_measure_the_same_when_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[float]], data: st.DataObject
) -> None:
    items = ("a b", "100%", "tab\tbed", "ünï", "e", "f")
    run = run_of(*(dict(zip(items, row, strict=False)) for row in rows), items=items, name="my system")
    qrels = {query: {data.draw(st.sampled_from(items)): 1} for query in run.task.queries}
    folder = tmp_path_factory.mktemp("trec")
    run = judged(run, qrels)
    write_run(run, folder / "runs" / "toy.run")
    back = read_run(folder / "runs" / "toy.run", run.task)
    assert back.name == ("my system" if any(rows) else "toy")
    measures = ["R@1", "MRR", "nDCG@10"]
    ours, theirs = measure(run, measures), measure(back, measures)
    for name in measures:
        assert ours[name].tolist() == theirs[name].tolist()


def test_trec_eval_measures_the_same_from_the_file(tmp_path: Path) -> None:
    import ir_measures

    random = np.random.default_rng(3)
    items = tuple(f"image {n}" for n in range(40))
    candidates = random.permuted(np.tile(np.arange(40), (30, 1)), axis=1)
    task = task_of([f"q{n}" for n in range(30)], items)
    run = Run("t", task, candidates, random.integers(0, 9, (30, 40)) / 8)
    qrels = {
        q: {items[i]: int(random.integers(1, 3)) for i in random.permutation(40)[:4]} for q in task.queries
    }
    write_run(judged(run, qrels), tmp_path / "t.run")
    write_qrels(qrels, tmp_path / "qrels")
    theirs = ir_measures.calc_aggregate(
        [ir_measures.parse_measure(name) for name in ("Success@5", "RR", "nDCG@10", "AP@50")],
        list(ir_measures.read_trec_qrels(str(tmp_path / "qrels"))),
        list(ir_measures.read_trec_run(str(tmp_path / "t.run"))),
    )
    ours = measure(judged(run, qrels), ["R@5", "MRR", "nDCG@10", "mAP@50"])
    assert [values.mean() for values in ours.values()] == pytest.approx(
        [theirs[ir_measures.parse_measure(name)] for name in ("Success@5", "RR", "nDCG@10", "AP@50")]
    )


def test_all_measures_are_known() -> None:
    found = measure(judged(run_of({"a": 1.0}), {"q0": {"a": 1}}))
    assert {name: values.tolist() for name, values in found.items()} == {name: [1.0] for name in MEASURES}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonsense", "'nonsense' is unknown"),
        ("R@0", "'R@0': cutoff must be from 1 to"),
        ("APmin@0", "'APmin@0': cutoff must be from 1 to"),
        ("nDCG@0", "'nDCG@0': cutoff must be from 1 to"),
        ("nDCG(cutoff=0)", r"'nDCG\(cutoff=0\)': cutoff must be from 1 to"),
        (f"R@{2**63}", "cutoff must be from 1 to"),
        ("P(rel=0)@3", r"'P\(rel=0\)@3': rel must be from 1 to"),
        ("R", "'R' has no valid cutoff"),
        ("P(cutoff=1.5)", "no valid cutoff"),
        ("Judged@10", "'Judged@10' is not one of trec_eval's"),
        ("nDCG(dcg='exp-log2')@10", "is not one of trec_eval's"),
    ],
)
def test_unknown_measures_are_refused(name: str, message: str) -> None:
    """Not after it: trec_eval ends the process over a cutoff of 0."""
    with pytest.raises(InvalidInputError, match=message):
        check_measures(["MRR", name])
    with pytest.raises(InvalidInputError, match=message):
        measure(judged(run_of({"a": 1.0}), {"q0": {"a": 1}}), [name])
    with pytest.raises(InvalidInputError, match=message):
        Settings(measures=("R@1", name))


def test_missing_ir_measures_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'zsqretrieval\[evaluation\]'"):
        measure(judged(run_of({"a": 1.0}), {"q0": {"a": 1}}))


def test_malformed_files_name_the_line_and_the_query(tmp_path: Path) -> None:
    task = task_of(["q0", "q1"])
    file = tmp_path / "broken.run"
    good = "q0 Q0 a 1 0.5 toy\n"
    for line, message in [
        ("q1 Q0 b 1 nan toy", "broken.run:2: query 'q1': item 'b': the score 'nan' is not a finite"),
        ("q1 Q0 b 1 -inf toy", "broken.run:2: query 'q1': item 'b': the score '-inf' is not"),
        ("q1 Q0 b 1 high toy", "broken.run:2: query 'q1': item 'b': the score 'high' is not a finite number"),
        ("q1 Q0 z 1 0.5 toy", "broken.run:2: query 'q1': the item 'z' is not in toy"),
        ("q9 Q0 a 1 0.5 toy", "broken.run:2: the query 'q9' is not in toy"),
        ("q0 Q0 a 2 0.4 toy", "broken.run:2: query 'q0': the item 'a' is repeated"),
        ("q1 Q0 b 1 0.5", "broken.run:2: has 5 columns, not the 6"),
        ("q1 Q0 b 1 0.5 other", "broken.run:2: the system is 'other', in the lines before 'toy'"),
    ]:
        file.write_text(good + line + "\n")
        with pytest.raises(InvalidInputError, match=message.replace(".", r"\.")):
            read_run(file, task)
    with pytest.raises(InvalidInputError, match="nowhere: cannot be read: No such file"):
        read_run(tmp_path / "nowhere", task)
    with pytest.raises(InvalidInputError, match="the run has no name"):
        write_run(run_of({"a": 1}, name=""), tmp_path / "x.run")


def test_written_ids_have_no_blanks_and_depth_cuts_after_ties_are_broken(tmp_path: Path) -> None:
    run = run_of({"a b": 1.0, "100%": 1.0, "c": 1.0}, {"c": 2.0}, items=("a b", "100%", "c"), name="my run")
    qrels = {"q0": {"a b": 2, "100%": 1}, "q1": {"c": 1}}
    write_run(judged(run, qrels), tmp_path / "x.run.gz", depth=2)
    lines = [
        line.split() for line in gzip.decompress((tmp_path / "x.run.gz").read_bytes()).decode().split("\n")
    ]
    assert [line[:4] for line in lines[:3]] == [
        ["q0", "Q0", "c", "1"], ["q0", "Q0", "100%25", "2"], ["q1", "Q0", "c", "1"],
    ]  # fmt: skip
    assert lines[3:] == [[]] and {line[5] for line in lines[:3]} == {"my%20run"}
    write_qrels(qrels, tmp_path / "qrels.txt")
    assert (tmp_path / "qrels.txt").read_text() == "q0 0 a%20b 2\nq0 0 100%25 1\nq1 0 c 1\n"


def test_a_failed_write_keeps_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.run"
    write_run(run_of({"a": 2.0}), file)
    before = file.read_text()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_run(run_of({"b": 2.0}), file)
    assert file.read_text() == before and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("candidates", "values", "message"),
    [
        ([[0, 1]], [[1, NAN]], "run 'toy', query 'q0': the score of 'b' is nan, one of 1 that are not"),
        ([[0, 1]], [[-np.inf, np.inf]], "run 'toy', query 'q0': the score of 'a' is -inf, one of 2"),
        ([[0, 6]], [[1, 2]], "query 'q0': no candidate 6 among 6 items"),
        ([[2, 2]], [[1, 2]], "query 'q0': the item 'c' is a candidate twice"),
        ([[0, 1]], [[1]], "both must be"),
        ([[0], [1]], [[1], [2]], "1 queries, candidates"),
        ([[0.0]], [[1]], "candidates are float64"),
    ],
)
def test_invalid_runs_are_refused(candidates: list[object], values: list[object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Run("toy", task_of(["q0"]), np.array(candidates), np.array(values, float))


def test_missing_candidates_are_sorted_last() -> None:
    run = Run("toy", task_of(["q0"]), np.array([[-1, 3, -1]]), np.array([[NAN, 1.0, NAN]]))
    assert break_ties(run).candidates.tolist() == [[3, -1, -1]]
    with pytest.raises(InvalidInputError, match="query 'q0': a score is beyond"):
        break_ties(run_of({"a": 1e38}))


# --- ranks ------------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_first_ranks_agree_with_the_measured_recall(queries: int, items: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(0, 4, (queries, items)).astype(np.float64)  # many ties
    right = random.random(scores.shape) < 0.3
    ranks = first_ranks(scores, right)
    for row, rank in enumerate(ranks):
        better = [(scores[row] >= scores[row, n])[~right[row]].sum() for n in np.flatnonzero(right[row])]
        assert rank == min(better, default=MISSING)
    names = tuple(f"i{n}" for n in range(items))
    candidates = np.tile(np.arange(items), (queries, 1))
    asked = [f"q{n}" for n in range(queries)]
    qrels = {q: {names[n]: int(right[row, n]) for n in range(items)} for row, q in enumerate(asked)}
    run = Run("toy", task_of(asked, names, qrels), candidates, scores)
    for k in (1, 2, 5):
        assert (measure(run, [f"R@{k}"])[f"R@{k}"] == (ranks < k)).all()


def test_missing_candidates_have_no_rank_and_tied_ones_are_counted() -> None:
    scores = np.array([[0.5, NAN, 0.5], [1.0, 0.5, 0.0]])
    assert first_ranks(scores, np.array([[False, False, True], [False] * 3])).tolist() == [1, MISSING]
    run = Run("toy", task_of(["q0", "q1"]), np.array([[0, -1, 1], [0, 1, 2]]), scores)
    assert tied_share(run) == 2 / 5
