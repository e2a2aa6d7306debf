"""From a data set to runs, with an encoder and generators small enough to know every score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from zsqretrieval.evaluation.measures import measure
from zsqretrieval.evaluation.runs import (
    Direction,
    GeneratorSystem,
    Run,
    System,
    first_stage,
    fused_run,
    prior_corrected,
    rerank_depth,
    shallow,
    some_queries,
    some_rows,
    task_of,
)

from zsqretrieval.errors import InvalidInputError, MismatchError
from zsqretrieval.evaluation.datasets import Dataset, Query
from zsqretrieval.search.fusion import RerankOnly, WeightedSum
from zsqretrieval.search.scoring import Likelihood, YesNo
from zsqretrieval.types import Context, Image, LogLikelihood

WAYS: tuple[Direction, Direction] = ("text to image", "image to text")


def data() -> Dataset:
    """Four images and six captions; a caption's text says which image it is about."""
    about = [0, 0, 1, 2, 3, 3]
    queries = tuple(Query(f"q{n}", f"image {i}", "caption", "") for n, i in enumerate(about))
    qrels = {f"q{n}": {f"i{i}": 1} for n, i in enumerate(about)}
    return Dataset("toy", tuple(Image(b"", f"i{n}", f"i{n}") for n in range(4)), queries, qrels)


@dataclass
class Plane:
    """Images at angles 0, 10, 20, ...; a text at the angle of its image and a bit."""

    bit: float = 2.0
    dim, fingerprint = 2, "plane"

    def encode_image(self, images: Sequence[Image], *, batch_size: int = 32) -> np.ndarray:
        return self._at([10.0 * int(str(image.id)[1:]) for image in images])

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
        return self._at([10.0 * int(text.split()[1]) + self.bit for text in texts])

    def _at(self, degrees: list[float]) -> np.ndarray:
        angle = np.deg2rad(degrees)
        return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)


class Speller:
    """Says of a text and an image: minus the difference of their numbers."""

    fingerprint = "speller"

    def __init__(self) -> None:
        self.asked = 0

    def log_likelihood(
        self, contexts: Sequence[Context], continuations: Sequence[str], *, batch_size: int = 16
    ) -> list[LogLikelihood]:
        self.asked += len(contexts)
        found = []
        for context, text in zip(contexts, continuations, strict=True):
            image = next(part for part in context if isinstance(part, Image))
            difference = abs(int(str(image.id)[1:]) - int(text.split()[1]))
            found.append(LogLikelihood((text,), np.array([-difference], np.float32)))
        return found


def run_by_hand() -> Run:
    candidates = np.array([[0, 1, 2, 3]] * 2)
    return Run("clip", ("q0", "q3"), ("i0", "i1", "i2", "i3"), candidates, np.array([[4.0, 3, 2, 1]] * 2))


def test_the_first_stage_finds_the_nearest_both_ways() -> None:
    there = first_stage(Plane(), data(), candidates=2)
    assert there.candidates[:, 0].tolist() == [0, 0, 1, 2, 3, 3]
    assert there.candidates[0].tolist() == [0, 1]
    assert there.scores[0] == pytest.approx(np.cos(np.deg2rad([2, 8])))
    back = first_stage(Plane(), data(), candidates=100, direction="image to text")
    assert back.queries == ("i0", "i1", "i2", "i3") and back.candidates.shape == (4, 6)
    assert set(back.candidates[0, :2]) == {0, 1} and set(back.candidates[3, :2]) == {4, 5}
    for way, run in zip(WAYS, (there, back), strict=True):
        assert measure(run, task_of(data(), way).qrels, ["R@1"])["R@1"].all()


def test_equal_items_at_the_edge_do_not_flatter() -> None:
    class Blind(Plane):
        def _at(self, degrees: list[float]) -> np.ndarray:
            return super()._at([0.0] * len(degrees))

    run = first_stage(Blind(), data(), candidates=3)
    assert measure(run, data().qrels, ["R@100"])["R@100"].tolist() == [0] * 6


def test_images_that_nobody_speaks_of_do_not_ask() -> None:
    few = replace(data(), queries=data().queries[4:], qrels={q: data().qrels[q] for q in ("q4", "q5")})
    run = first_stage(Plane(), few, direction="image to text")
    assert run.queries == ("i3",) and run.items == ("q4", "q5")
    assert run.scores[0] == pytest.approx(np.cos(np.deg2rad([2, 2])))


@pytest.mark.parametrize("way", WAYS)
def test_a_generator_scores_what_the_first_stage_found(way: Direction, tmp_path: Path) -> None:
    first = first_stage(Plane(), data(), candidates=3, direction=way)
    speller = Speller()
    system = GeneratorSystem(speller, Likelihood(), work=tmp_path)
    assert isinstance(system, System) and system.name == "likelihood"
    told: list[int] = []
    run = system.run(data(), first, progress=lambda what, done, total: told.append(total))
    assert (
        run.name == "likelihood" and run.direction == way and np.array_equal(run.candidates, first.candidates)
    )
    number = {f"q{n}": int(query.text.split()[1]) for n, query in enumerate(data().queries)}
    number |= {f"i{n}": n for n in range(4)}
    for row, query in enumerate(run.queries):
        expected = [-abs(number[query] - number[run.items[item]]) for item in run.candidates[row]]
        assert run.scores[row].tolist() == expected
    assert told[-1] == run.candidates.size == speller.asked
    assert np.array_equal(system.run(data(), first).scores, run.scores)
    assert speller.asked == run.candidates.size  # the second run found everything in the folder


def test_padding_is_not_scored() -> None:
    first = run_by_hand()
    first = replace(
        first,
        candidates=np.array([[0, 1, -1, -1], [3, 2, 1, -1]]),
        scores=np.array([[2.0, 1, np.nan, np.nan], [3, 2, 1, np.nan]]),
    )
    speller = Speller()
    run = GeneratorSystem(speller, Likelihood()).run(data(), first)
    assert speller.asked == 5
    assert np.isnan(run.scores).tolist() == (first.candidates < 0).tolist()
    fused = fused_run(first, run, RerankOnly())
    np.testing.assert_array_equal(fused.scores, run.scores)


def test_a_run_of_other_data_is_refused() -> None:
    strange = replace(run_by_hand(), queries=("q0", "q99"))
    with pytest.raises(MismatchError, match="run 'clip' names 'q99', which toy does not know"):
        GeneratorSystem(Speller(), Likelihood()).run(data(), strange)
    with pytest.raises(MismatchError, match="run 'clip' names '', which toy does not know"):
        GeneratorSystem(Speller(), Likelihood()).run(data(), replace(strange, queries=("q0", "")))
    with pytest.raises(MismatchError, match="'clip' and 'other' differ"):
        fused_run(run_by_hand(), replace(strange, name="other"), RerankOnly())


def test_fusion_joins_query_by_query() -> None:
    first = run_by_hand()
    scored = replace(first, name="yes_no", scores=np.array([[1.0, 2, 3, 4], [8, 0, 0, 0]]))
    fused = fused_run(first, scored, WeightedSum(0.5, scale="raw"))
    assert fused.name == "fused" and fused.scores.tolist() == [[4.5, 4, 3.5, 3], [8, 3, 2, 1]]


def test_depth_reads_the_first_candidates_only() -> None:
    first = run_by_hand()
    scored = replace(first, name="likelihood", scores=np.array([[-9.0, -5, -1, -1], [-1, -1, -2, -3]]))

    def order(depth: int) -> list[list[int]]:
        run = rerank_depth(first, scored, depth)
        assert run.name == f"likelihood@{depth}"
        return np.argsort(-run.scores, axis=1, kind="stable").tolist()

    assert order(0) == [[0, 1, 2, 3]] * 2
    assert order(2) == [[1, 0, 2, 3], [0, 1, 2, 3]]
    assert order(3) == [[2, 1, 0, 3], [0, 1, 2, 3]]
    assert order(4) == order(99) == [[2, 3, 1, 0], [0, 1, 2, 3]]
    tied = rerank_depth(first, scored, 4).scores
    assert tied[0, 2] == tied[0, 3] and tied[1, 0] == tied[1, 1]  # ties stay ties, to be broken when measured
    with pytest.raises(InvalidInputError, match="depth must be at least 0"):
        rerank_depth(first, scored, -1)


def test_what_was_not_scored_stands_behind() -> None:
    first = run_by_hand()
    scored = replace(first, name="yes_no", scores=np.array([[1.0, 2, 3, 4], [8, 0, 9, 0]]))
    narrow = shallow(scored, 2)
    assert narrow.candidates.tolist() == [[0, 1]] * 2 and shallow(first, 9).scores.shape == (2, 4)
    run = rerank_depth(first, narrow, 2)
    assert np.array_equal(run.candidates, first.candidates)
    assert np.array_equal(run.scores, rerank_depth(first, scored, 2).scores)
    assert np.array_equal(rerank_depth(first, shallow(scored, 0), 0).scores, [[-1, -2, -3, -4]] * 2)
    with pytest.raises(InvalidInputError, match="'yes_no' read 2 candidates, so nothing is known of 3"):
        rerank_depth(first, narrow, 3)
    with pytest.raises(MismatchError, match="differ"):
        rerank_depth(first, replace(narrow, candidates=narrow.candidates[:, ::-1]), 2)
    with pytest.raises(InvalidInputError, match="depth must be at least 0"):
        shallow(first, -1)


def test_some_queries_keep_their_answers() -> None:
    first, task = first_stage(Plane(), data(), candidates=2), task_of(data(), "text to image")
    rows = np.array([1, 4])
    few, asked = some_rows(first, rows), some_queries(task, rows)
    assert few.queries == asked.queries == ("q1", "q4") and few.items == asked.items == task.items
    assert np.array_equal(few.candidates, first.candidates[[1, 4]])
    assert asked.clusters.tolist() == task.clusters[[1, 4]].tolist()
    assert measure(few, asked.qrels, ["R@1"])["R@1"].tolist() == [1, 1]


def test_the_prior_of_a_text_is_taken_away() -> None:
    run = replace(first_stage(Plane(), data(), candidates=2, direction="image to text"), name="likelihood")
    priors = np.arange(6.0)
    corrected = prior_corrected(run, priors, alpha=0.5)
    assert corrected.name == "likelihood - prior"
    assert corrected.scores == pytest.approx(run.scores - 0.5 * run.candidates)
    padded = replace(
        run,
        candidates=np.where([True, False], run.candidates, -1),
        scores=np.where([True, False], run.scores, np.nan),
    )
    assert np.isnan(prior_corrected(padded, priors).scores[:, 1]).all()
    with pytest.raises(InvalidInputError, match=r"priors are \(2,\), not one for each of 6 texts"):
        prior_corrected(run, priors[:2])
    with pytest.raises(InvalidInputError, match="cannot change their order"):
        prior_corrected(run_by_hand(), priors)


def test_arguments_are_checked() -> None:
    with pytest.raises(InvalidInputError, match="candidates must be at least 1"):
        first_stage(Plane(), data(), candidates=0)
    assert GeneratorSystem(Speller(), YesNo()).name == "yes_no"
