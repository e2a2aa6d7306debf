"""Run files and qrels in the formats of TREC, so that anybody's trec_eval can check a number.

A run file has a line ``query Q0 item rank score system`` for every candidate, qrels ``query 0 item grade``.
Blanks part the columns, so a blank within an id is written as ``%20``, and ``%`` as ``%25``. Files whose name
ends in ``.gz`` are compressed.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets import Qrels, Task
from zsqretrieval.evaluation.measures import is_falling
from zsqretrieval.evaluation.runs import Direction, Run
from zsqretrieval.evaluation.writing import write_whole

__all__ = ["read_qrels", "read_run", "write_qrels", "write_run"]


def write_run(run: Run, path: Path) -> None:
    """Write a run file; a crash leaves the former file, or none.

    Args:
        run: best first, and without ties in single precision, as
            :func:`~zsqretrieval.evaluation.measures.break_ties` makes it: in trec_eval the names of images
            would decide ties.
        path: the file.

    Raises:
        InvalidInputError: the run has ties, or is not sorted; names a query. Or it has no name.
        OSError: the disk refuses.
    """
    falling = is_falling(run)
    if not falling.all():
        query = run.queries[int(np.argmin(falling))]
        raise InvalidInputError(
            f"run {run.name!r}, query {query!r}: scores tie or do not fall; pass the run through break_ties"
        )
    if not run.name:
        raise InvalidInputError("the run has no name, which is the last column of its file")
    system = _written(run.name)
    write_whole(
        path,
        (
            f"{_written(query)} Q0 {_written(run.items[candidate])} {rank} {score!r} {system}\n"
            for query, candidates, scores in zip(
                run.queries, run.candidates, run.scores.tolist(), strict=True
            )
            for rank, (candidate, score) in enumerate(zip(candidates.tolist(), scores, strict=True), 1)
            if candidate >= 0
        ),
    )


def read_run(path: Path, task: Task, direction: Direction = "text to image") -> Run:
    """Read a run file, by whatever system.

    Args:
        path: the file. Its scores rank; its column of ranks is not looked at, as trec_eval has it.
        task: whose queries and items it has to be about.
        direction: of the task.

    Returns:
        A run of all queries of the task; one that the file does not have was answered by nothing.

    Raises:
        InvalidInputError: the file cannot be read, a line is malformed, a score is no finite number, an id is
            unknown or stands there twice. Names the line and the query.
    """
    path = Path(path)
    known = {item: n for n, item in enumerate(task.items)}
    answers: dict[str, dict[int, float]] = {query: {} for query in task.queries}
    name = ""
    for place, columns in _rows(path, 6, "query Q0 item rank score system"):
        query, item = unquote(columns[0]), unquote(columns[2])
        if query not in answers:
            raise InvalidInputError(f"{place}: the query {query!r} is not in {task.name}")
        if item not in known:
            raise InvalidInputError(f"{place}: query {query!r}: the item {item!r} is not in {task.name}")
        if known[item] in answers[query]:
            raise InvalidInputError(f"{place}: query {query!r}: the item {item!r} stands there twice")
        answers[query][known[item]] = _score(columns[4], f"{place}: query {query!r}: item {item!r}")
        own = unquote(columns[5])
        if name and own != name:
            raise InvalidInputError(f"{place}: is of the system {own!r}, the lines before of {name!r}")
        name = own
    k = max(map(len, answers.values()))
    candidates = np.full((len(answers), k), -1, np.int64)
    scores = np.full((len(answers), k), np.nan)
    for row, found in enumerate(answers.values()):
        candidates[row, : len(found)] = list(found)
        scores[row, : len(found)] = list(found.values())
    return Run(name or path.stem, task.queries, task.items, candidates, scores, direction)


def _score(text: str, place: str) -> float:
    try:
        score = float(text)
    except ValueError:
        raise InvalidInputError(f"{place}: the score {text!r} is no number") from None
    if not math.isfinite(score):
        raise InvalidInputError(f"{place}: the score is {text}; the scorer that wrote it is broken")
    return score


def write_qrels(qrels: Qrels, path: Path) -> None:
    """Write qrels; a crash leaves the former file, or none.

    Raises:
        OSError: the disk refuses.
    """
    write_whole(
        path,
        (
            f"{_written(query)} 0 {_written(item)} {grade}\n"
            for query, answers in qrels.items()
            for item, grade in answers.items()
        ),
    )


def read_qrels(path: Path, task: Task | None = None) -> dict[str, dict[str, int]]:
    """Read qrels: query id -> item id -> grade.

    Args:
        path: the file.
        task: when given, no other queries and items than its own may be named.

    Raises:
        InvalidInputError: the file cannot be read, a line is malformed, a pair stands there twice, or an id
            is unknown. Names the line.
    """
    queries, items = (set(task.queries), set(task.items)) if task else (None, None)
    qrels: dict[str, dict[str, int]] = {}
    for place, columns in _rows(Path(path), 4, "query 0 item grade"):
        query, item = unquote(columns[0]), unquote(columns[2])
        if queries is not None and query not in queries:
            raise InvalidInputError(f"{place}: the query {query!r} is not there")
        if items is not None and item not in items:
            raise InvalidInputError(f"{place}: query {query!r}: the item {item!r} is not there")
        answers = qrels.setdefault(query, {})
        if item in answers:
            raise InvalidInputError(f"{place}: query {query!r}: the item {item!r} stands there twice")
        if not re.fullmatch(r"[+-]?\d+", columns[3]):
            raise InvalidInputError(f"{place}: query {query!r}: the grade {columns[3]!r} is no whole number")
        answers[item] = int(columns[3])
    return qrels


def _rows(path: Path, count: int, columns: str) -> Iterator[tuple[str, list[str]]]:
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as file
        ):
            for number, line in enumerate(file, 1):
                row = line.split()
                if row and len(row) != count:
                    raise InvalidInputError(
                        f"{path.name}:{number}: has {len(row)} columns, not the {count} of {columns!r}"
                    )
                if row:
                    yield f"{path.name}:{number}", row
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path}: no UTF-8 text: {error.reason}") from error
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error  # those of gzip have no number
        raise InvalidInputError(f"{path}: cannot be read: {why}") from error


def _written(id: str) -> str:
    return re.sub(r"[%\s]", lambda blank: quote(blank[0]), id)
