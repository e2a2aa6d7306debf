"""What a system answers, as arrays: candidates and scores; and what it takes to be a system.

The flow of a measurement, each arrow a function of arrays::

    Dataset --first_stage--> Run "clip"                    exact cosine, the K best of every query
            --GeneratorSystem.run--> Run "likelihood"      the same candidates, other scores
            --fused_run--> Run "fused"
            --rerank_depth--> Run at a smaller K           for curves of quality against cost
    Run --shallow, some_rows--> Run                        fewer candidates, fewer queries

    Run --zsqretrieval.evaluation.measures--> numbers per query --comparison--> means, intervals, p-values
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.errors import InvalidInputError, MismatchError
from zsqretrieval.evaluation.datasets import Dataset, Task
from zsqretrieval.evaluation.progress import Progress, encode_in_parts, untold
from zsqretrieval.evaluation.score_matrix import Seen, score_matrix
from zsqretrieval.protocols import Encoder, Generator
from zsqretrieval.search.fusion import Fusion, fuse
from zsqretrieval.search.scoring import Scoring
from zsqretrieval.types import Image, ImageState

__all__ = [
    "Direction",
    "GeneratorSystem",
    "Run",
    "System",
    "first_stage",
    "fused_run",
    "prior_corrected",
    "rerank_depth",
    "shallow",
    "some_queries",
    "some_rows",
    "task_of",
]

Direction: TypeAlias = Literal["text to image", "image to text"]

_ROWS = 256  # queries whose similarities are in memory together


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """The answers of one system to all queries of a task.

    Attributes:
        name: of the system.
        queries: q ids.
        items: n ids of what is ranked.
        candidates: int64 [q, k], positions in ``items``, none twice in a row; -1 where there is no more.
        scores: float64 [q, k], higher is better; finite, and nan where the candidate is -1. Their order in a
            row is free: what ranks is the score.
        direction: whether texts look for images, or images for texts.

    Raises:
        InvalidInputError: shapes differ, a position is out of range or stands in a row twice, or a score is
            not a finite number. Names the query and the item.
    """

    name: str
    queries: tuple[str, ...]
    items: tuple[str, ...]
    candidates: NDArray[np.int64]
    scores: NDArray[np.float64]
    direction: Direction = "text to image"

    def __post_init__(self) -> None:
        shape = self.candidates.shape
        if len(shape) != 2 or self.scores.shape != shape or shape[0] != len(self.queries):
            raise InvalidInputError(
                f"run {self.name!r}: {len(self.queries)} queries, candidates {shape} and scores "
                f"{self.scores.shape}; both must be [queries, k]"
            )
        if not np.issubdtype(self.candidates.dtype, np.integer):
            raise InvalidInputError(f"run {self.name!r}: candidates are {self.candidates.dtype}, not int64")
        outside = (self.candidates < -1) | (self.candidates >= len(self.items))
        if outside.any():
            row, column = np.argwhere(outside)[0]
            raise InvalidInputError(
                f"run {self.name!r}, query {self.queries[row]!r}: there is no candidate "
                f"{self.candidates[row, column]} among {len(self.items)} items"
            )
        ordered = np.sort(self.candidates, axis=1)
        twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
        if twice.any():
            row, column = np.argwhere(twice)[0]
            raise InvalidInputError(
                f"run {self.name!r}, query {self.queries[row]!r}: the item "
                f"{self.items[ordered[row, column]]!r} stands there twice"
            )
        broken = ~np.isfinite(self.scores) & (self.candidates >= 0)
        if broken.any():
            row, column = np.argwhere(broken)[0]
            raise InvalidInputError(
                f"run {self.name!r}, query {self.queries[row]!r}: the score of "
                f"{self.items[self.candidates[row, column]]!r} is {self.scores[row, column]}, one of "
                f"{broken.sum()} that are no finite numbers; the scorer is broken"
            )


@runtime_checkable
class System(Protocol):
    """Something that answers the queries of a data set; anything with these members is one."""

    @property
    def name(self) -> str:
        """What reports and run files call it."""
        ...

    def run(self, dataset: Dataset, first: Run, *, progress: Progress | None = None) -> Run:
        """Answer.

        Args:
            dataset: images and texts.
            first: what the first stage answers, best first; gives the queries, the items and the direction.
                A system that re-ranks scores its candidates, one that searches by itself may have others.
            progress: told how far it is; may raise to stop.

        Returns:
            A run of the same queries, items and direction.
        """
        ...


def task_of(dataset: Dataset, direction: Direction) -> Task:
    """The task of a data set in one direction.

    Raises:
        InvalidInputError: as :meth:`~zsqretrieval.evaluation.datasets.Dataset.image_to_text`.
    """
    return dataset.text_to_image() if direction == "text to image" else dataset.image_to_text()


def first_stage(
    encoder: Encoder,
    dataset: Dataset,
    *,
    candidates: int = 100,
    direction: Direction = "text to image",
    name: str = "clip",
    progress: Progress | None = None,
) -> Run:
    """Compare every query with every item, without an index, and keep the best.

    Args:
        encoder: makes the vectors.
        dataset: images and texts.
        candidates: how many are kept, >= 1; all when there are fewer. Of equally similar ones at the edge
            those that are not relevant are kept, so that no tie flatters.
        direction: who looks for whom.
        name: of the run.
        progress: told how far it is; may raise to stop.

    Returns:
        Cosine similarities, best first.

    Raises:
        InvalidInputError: ``candidates`` < 1, or texts of several forms where images look for texts.
        ImageError: an image cannot be decoded; names it.
    """
    if candidates < 1:
        raise InvalidInputError(f"candidates must be at least 1, not {candidates}")
    task = task_of(dataset, direction)
    told = progress or untold
    images = encode_in_parts(encoder.encode_image, dataset.gallery, "encoding images", told)
    texts = encode_in_parts(encoder.encode_text, [q.text for q in dataset.queries], "encoding texts", told)
    place = {str(image.id): n for n, image in enumerate(dataset.gallery)}
    asking, searched = (
        (texts, images)
        if direction == "text to image"
        else (images[[place[query] for query in task.queries]], texts)
    )
    position = {item: n for n, item in enumerate(task.items)}
    found = np.empty((len(task.queries), min(candidates, len(task.items))), np.int64)
    scores = np.empty(found.shape)
    for start in range(0, len(asking), _ROWS):
        similarity = asking[start : start + _ROWS] @ searched.T
        relevant = np.zeros(similarity.shape, bool)
        for row, query in enumerate(task.queries[start : start + _ROWS]):
            relevant[row, [position[item] for item, grade in task.qrels[query].items() if grade > 0]] = True
        best = np.lexsort((relevant, -similarity), axis=-1)[:, : found.shape[1]]
        found[start : start + _ROWS] = best
        scores[start : start + _ROWS] = np.take_along_axis(similarity, best, 1)
    return Run(name, task.queries, task.items, found, scores, direction)


@dataclass(frozen=True, slots=True, eq=False)
class GeneratorSystem:
    """A generator that scores the first stage's candidates by one rule; a :class:`System`.

    Attributes:
        generator: reads the candidates.
        scoring: what is asked of it.
        shown: what it is given in place of the gallery, as
            :class:`~zsqretrieval.evaluation.score_matrix.Seen` makes it; made when None. Systems of
            one generator may share it.
        batch_size: pairs computed together.
        work: folder that keeps scores, to go on where an interrupted run was; made when missing.
    """

    generator: Generator
    scoring: Scoring
    shown: Sequence[Image | ImageState] | None = None
    batch_size: int = 64
    work: Path | None = None

    @property
    def name(self) -> str:
        """The name of the rule."""
        return self.scoring.name

    def run(self, dataset: Dataset, first: Run, *, progress: Progress | None = None) -> Run:
        """Score the candidates of ``first``; what is not a candidate there is none here.

        Raises:
            ZsqError: the generator gave a number that is none; names the text and the image.
            MismatchError: ``first`` is of another data set.
        """
        there = first.candidates >= 0
        asking = np.nonzero(there)[0]
        texts = {query.id: query.text for query in dataset.queries}
        places = {str(image.id): n for n, image in enumerate(dataset.gallery)}
        queries = [first.queries[row] for row in asking]
        items = [first.items[position] for position in first.candidates[there]]
        by_text = first.direction == "text to image"
        named, shown_to = (queries, items) if by_text else (items, queries)
        if strange := sorted({*named} - texts.keys()) + sorted({*shown_to} - places.keys()):
            raise MismatchError(
                f"run {first.name!r} names {strange[0]!r}, which {dataset.name} does not know"
            )
        shown = self.shown
        if shown is None:
            shown = Seen(
                self.generator,
                dataset.gallery,
                batch_size=self.batch_size,
                progress=progress or untold,
            )
        scores = np.full(first.candidates.shape, np.nan)
        scores[there] = score_matrix(
            self.generator,
            self.scoring,
            [texts[id] for id in named],
            dataset.gallery,
            np.array([places[id] for id in shown_to], np.int64)[:, None],  # [pairs, 1]
            shown=shown,
            batch_size=self.batch_size,
            work=self.work,
            progress=progress,
        )[:, 0]
        return replace(first, name=self.name, scores=scores)


def fused_run(first: Run, scored: Run, fusion: Fusion, name: str = "fused") -> Run:
    """Join the scores of two runs over the same candidates, query by query.

    Args:
        first: the first stage, best first.
        scored: what another system made of its candidates.
        fusion: joins them.
        name: of the run made.

    Raises:
        MismatchError: the candidates differ.
        InvalidInputError: as :func:`zsqretrieval.search.fusion.fuse`.
    """
    _same_candidates(first, scored)
    scores = np.full(first.scores.shape, np.nan)
    for row, there in enumerate(first.candidates >= 0):
        scores[row, there] = fuse(fusion, first.scores[row, there], scored.scores[row, there])
    return replace(first, name=name, scores=scores)


def rerank_depth(first: Run, scored: Run, depth: int) -> Run:
    """What had come out, had only the first few candidates been read.

    Args:
        first: the first stage, best first.
        scored: what another system made of its candidates, or of the first few of them
            (:func:`shallow`).
        depth: how many candidates are read; 0 is the first stage itself.

    Returns:
        A run named ``{scored.name}@{depth}``: those read stand in the order of ``scored``, the others after
        them in the order of ``first``. Its scores are levels, whole numbers; what tied within one of the two
        still ties.

    Raises:
        MismatchError: the candidates differ.
        InvalidInputError: ``depth`` < 0, or more than were scored while there are more.
    """
    if depth < 0:
        raise InvalidInputError(f"depth must be at least 0, not {depth}")
    width = scored.candidates.shape[1]
    if width < min(depth, first.candidates.shape[1]):
        raise InvalidInputError(
            f"run {scored.name!r} read {width} candidates, so nothing is known of {depth}"
        )
    _same_candidates(shallow(first, width), scored)
    levels = np.full(first.scores.shape, np.nan)
    for row, there in enumerate(first.candidates >= 0):
        columns = np.flatnonzero(there)
        read, left = columns[:depth], columns[depth:]
        levels[row, read] = np.unique(scored.scores[row, read], return_inverse=True)[1]  # from 0
        behind = np.unique(first.scores[row, left], return_inverse=True)[1]
        levels[row, left] = behind - len(columns)  # below 0
    return replace(scored, name=f"{scored.name}@{depth}", candidates=first.candidates, scores=levels)


def shallow(run: Run, depth: int) -> Run:
    """The run with the first few candidates of every query, all where there are fewer.

    Raises:
        InvalidInputError: ``depth`` < 0.
    """
    if depth < 0:
        raise InvalidInputError(f"depth must be at least 0, not {depth}")
    return replace(run, candidates=run.candidates[:, :depth], scores=run.scores[:, :depth])


def some_rows(run: Run, rows: NDArray[np.int64]) -> Run:
    """The run of some of its queries; int64 [r], their places."""
    queries = tuple(run.queries[row] for row in rows)
    return replace(run, queries=queries, candidates=run.candidates[rows], scores=run.scores[rows])


def some_queries(task: Task, rows: NDArray[np.int64]) -> Task:
    """The task with some of its queries and all of its items; int64 [r], their places."""
    queries = tuple(task.queries[row] for row in rows)
    return replace(
        task,
        queries=queries,
        qrels={query: task.qrels[query] for query in queries},
        clusters=task.clusters[rows],
        forms=tuple(task.forms[row] for row in rows),
    )


def prior_corrected(run: Run, log_priors: NDArray[np.float64], alpha: float = 0.8) -> Run:
    """Take away how likely a text is of any image, where images look for texts.

    Args:
        run: log-likelihoods of texts, image to text. The other way round one text is scored for many images,
            and its prior changes nothing.
        log_priors: float64 [n], of ``run.items``, as :func:`zsqretrieval.search.priors.log_prior` estimates them.
        alpha: how much is taken away.

    Returns:
        A run named ``{run.name} - prior``: score minus ``alpha`` times the prior.

    Raises:
        InvalidInputError: texts look for images, or there is not one prior for each text.
    """
    if run.direction != "image to text":
        raise InvalidInputError(
            f"run {run.name!r}: texts look for images, where the prior of a text cannot change their order"
        )
    if log_priors.shape != (len(run.items),):
        raise InvalidInputError(f"priors are {log_priors.shape}, not one for each of {len(run.items)} texts")
    return replace(run, name=f"{run.name} - prior", scores=run.scores - alpha * log_priors[run.candidates])


def _same_candidates(first: Run, scored: Run) -> None:
    same = (first.queries, first.items, first.direction) == (scored.queries, scored.items, scored.direction)
    if not (same and np.array_equal(first.candidates, scored.candidates)):
        raise MismatchError(
            f"the runs {first.name!r} and {scored.name!r} differ in queries, items or candidates; they can "
            "only be joined where one scored what the other found"
        )
