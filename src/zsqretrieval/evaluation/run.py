"""Runs: the candidates and scores of one system for every query, and arithmetic on them.

first stage  --scores of the same candidates--> Run --fused_run--> Run
Run          --rerank_depth--> all candidates, those re-ranked first
Run          --shallow, some_rows--> fewer candidates, fewer queries
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.errors import InvalidInputError, MismatchError
from zsqretrieval.evaluation.datasets import Task
from zsqretrieval.search.fusion import Fusion, fuse

UNSCORED = -1e30
"""Score of a candidate that the generator cannot take: it stays below those that were scored."""

_LOWEST = UNSCORED / 1e5  # of any other score; fusions and priors may change the number

_ROWS = 256  # queries whose similarities are in memory together


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """The candidates of one system for all q queries of a task. Rows need no order: the scores rank.

    Raises:
        InvalidInputError: shapes differ, a position is out of range or twice in a row, or a score is not
            finite. Names the query and the item.
    """

    name: str
    task: Task
    candidates: NDArray[np.int64]  # [q, k], positions in the items of the task, none twice in a row; -1: none
    scores: NDArray[np.float64]  # [q, k], higher is better; nan for no candidate

    def __post_init__(self) -> None:
        shape, items = self.candidates.shape, self.task.items
        if len(shape) != 2 or self.scores.shape != shape or shape[0] != len(self.task.queries):
            raise InvalidInputError(
                f"run {self.name!r}: {len(self.task.queries)} queries, candidates {shape} and scores "
                f"{self.scores.shape}; both must be [queries, k]"
            )
        if not np.issubdtype(self.candidates.dtype, np.integer):
            raise InvalidInputError(f"run {self.name!r}: candidates are {self.candidates.dtype}, not int64")
        ordered = np.sort(self.candidates, axis=1)
        outside = (self.candidates < -1) | (self.candidates >= len(items))
        twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
        broken = ~np.isfinite(self.scores) & (self.candidates >= 0)
        if outside.any():
            row, column = np.argwhere(outside)[0]
            self._refuse(row, f"no candidate {self.candidates[row, column]} among {len(items)} items")
        if twice.any():
            row, column = np.argwhere(twice)[0]
            self._refuse(row, f"the item {items[ordered[row, column]]!r} is a candidate twice")
        if broken.any():
            row, column = np.argwhere(broken)[0]
            item, score = items[self.candidates[row, column]], self.scores[row, column]
            self._refuse(row, f"the score of {item!r} is {score}, one of {broken.sum()} that are not finite")

    def _refuse(self, row: int, why: str) -> None:
        raise InvalidInputError(f"run {self.name!r}, query {self.task.queries[row]!r}: {why}")


def with_scores(run: Run, scores: NDArray[np.float64]) -> Run:
    """The run with other scores [q, k]; candidates whose score is nan are :data:`UNSCORED`."""
    lacking = np.isnan(scores) & (run.candidates >= 0)
    return replace(run, scores=np.where(lacking, UNSCORED, scores))


def was_scored(run: Run) -> NDArray[np.bool_]:
    """Which candidates have a score, bool [q, k]."""
    return (run.candidates >= 0) & (np.nan_to_num(run.scores, nan=UNSCORED) > _LOWEST)


def relevant(run: Run) -> NDArray[np.bool_]:
    """Whether each candidate is relevant, bool [q, k]; False for no candidate."""
    rows = zip(run.candidates, run.task.relevant, strict=True)
    return np.reshape([np.isin(some, right) for some, right in rows], run.candidates.shape).astype(bool)


def exact_search(
    queries: NDArray[np.float32],
    items: NDArray[np.float32],
    task: Task,
    *,
    k: int,
    name: str,
) -> Run:
    """Compare every query, float32 [q, D], with every item, float32 [n, D], and keep the k best.

    Vectors are in the order of the task. Equal similarities are ordered against the system: the relevant
    item comes last.

    Returns:
        Cosine similarities, best first.
    """
    places = task.relevant
    found = np.empty((len(queries), min(k, len(items))), np.int64)
    scores = np.empty(found.shape)
    for start in range(0, len(queries), _ROWS):
        similarity = queries[start : start + _ROWS] @ items.T  # [rows, n]
        right = np.zeros(similarity.shape, bool)
        for row, own in enumerate(places[start : start + _ROWS]):
            right[row, own] = True
        best = np.lexsort((right, -similarity), axis=-1)[:, : found.shape[1]]
        found[start : start + _ROWS] = best
        scores[start : start + _ROWS] = np.take_along_axis(similarity, best, 1)
    return Run(name, task, found, scores)


def fused_run(first: Run, scored: Run, fusion: Fusion) -> Run:
    """Fuse the scores of a first stage and of another run over the same candidates, query by query.

    Raises:
        MismatchError: the candidates differ.
        InvalidInputError: as :func:`zsqretrieval.search.fusion.fuse`.
    """
    _same_candidates(first, scored)
    scores = np.where(first.candidates >= 0, UNSCORED, np.nan)
    for row, there in enumerate(was_scored(scored)):
        columns = np.flatnonzero(there)
        columns = columns[np.argsort(-first.scores[row, columns], kind="stable")]  # fusions expect best first
        scores[row, columns] = fuse(fusion, first.scores[row, columns], scored.scores[row, columns])
    return replace(first, name="fused", scores=scores)


def rerank_depth(first: Run, scored: Run, depth: int) -> Run:
    """The ranking if only the first ``depth`` candidates had been re-ranked.

    Args:
        first: the first stage, best first.
        scored: scores of its candidates, or of the first few of them.
        depth: candidates re-ranked; 0 is the first stage itself.

    Returns:
        A run with the name of ``scored``: re-ranked candidates in the order of ``scored``, below them the
        others, also those without a score, in the order of ``first``. Its scores are whole numbers; scores
        that were equal stay equal.

    Raises:
        MismatchError: the candidates differ.
        InvalidInputError: ``depth`` < 0, or more than were scored although there are more.
    """
    width = scored.candidates.shape[1]
    if not depth >= 0 or width < min(depth, first.candidates.shape[1]):
        raise InvalidInputError(f"run {scored.name!r} has {width} scored candidates, not {depth}")
    _same_candidates(shallow(first, width), scored)
    levels = np.full(first.scores.shape, np.nan)
    able = np.ones(first.candidates.shape, np.bool_)
    able[:, :width] = was_scored(scored)
    for row, there in enumerate(first.candidates >= 0):
        columns = np.flatnonzero(there)
        read = columns[:depth][able[row, columns[:depth]]]
        left = np.setdiff1d(columns, read)
        levels[row, read] = np.unique(scored.scores[row, read], return_inverse=True)[1]  # from 0
        behind = np.unique(first.scores[row, left], return_inverse=True)[1]
        levels[row, left] = behind - len(columns)  # below 0
    return replace(scored, candidates=first.candidates, scores=levels)


def prior_corrected(run: Run, log_priors: NDArray[np.float64], alpha: float) -> Run:
    """Subtract ``alpha`` times the prior of each text, float64 [n], from the scores of an image-to-text run.

    Text to image, one text is scored for many images, and its prior changes no order.
    """
    corrected = with_scores(run, run.scores - alpha * log_priors[run.candidates])
    return replace(corrected, name=f"{run.name} - prior")


def shallow(run: Run, depth: int) -> Run:
    """The run with the first ``depth`` candidates of every query."""
    return replace(run, candidates=run.candidates[:, :depth], scores=run.scores[:, :depth])


def some_rows(run: Run, rows: NDArray[np.int64]) -> Run:
    """The run of some of its queries; int64 [r], their positions."""
    return replace(run, task=run.task.some(rows), candidates=run.candidates[rows], scores=run.scores[rows])


def _same_candidates(first: Run, scored: Run) -> None:
    if first.task is not scored.task or not np.array_equal(first.candidates, scored.candidates):
        raise MismatchError(
            f"the runs {first.name!r} and {scored.name!r} differ in task or candidates; "
            "only scores of the same candidates can be combined"
        )
