"""Run files and qrels in the formats of TREC, so that any trec_eval can check the numbers.

A run file has a line ``query Q0 item rank score system`` for every candidate, qrels ``query 0 item grade``.
A blank within an id is written as ``%20``, and ``%`` as ``%25``. Files ending in ``.gz`` are compressed.

    runs/{direction}/{form}/qrels.txt
    runs/{direction}/{form}/{system}.run
    runs/{direction}/{form}/ablations/{system}.run     on the queries of the ablations
    runs/agreement/{ratings}.tsv                       scores of the pairs that people rated, in their order
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

from zsqretrieval._util.files import write_whole
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets import Qrels, Task
from zsqretrieval.evaluation.metrics import is_falling
from zsqretrieval.evaluation.run import Direction, Run


def run_path(direction: str, form: str, system: str, *, ablation: bool = False) -> str:
    """Path of a run file from the folder of the report, with slashes."""
    folder = "/ablations" if ablation else ""
    return f"runs/{_file_name(direction)}/{_file_name(form)}{folder}/{_file_name(system)}.run"


def qrels_path(direction: str, form: str) -> str:
    """Path of the qrels of a direction and form."""
    return f"runs/{_file_name(direction)}/{_file_name(form)}/qrels.txt"


def ratings_path(ratings: str) -> str:
    """Path of the scores of rated pairs."""
    return f"runs/agreement/{_file_name(ratings)}.tsv"


def write_run(run: Run, path: Path) -> None:
    """Write a run file atomically.

    The run must be best first and without ties in single precision, as
    :func:`~zsqretrieval.evaluation.metrics.break_ties` returns it; trec_eval would break ties by id.

    Raises:
        InvalidInputError: the run has ties, is not sorted, or has no name; names a query.
        OSError: the file cannot be written.
    """
    falling = is_falling(run)
    if not falling.all():
        query = run.queries[int(np.argmin(falling))]
        raise InvalidInputError(
            f"run {run.name!r}, query {query!r}: scores tie or do not fall; pass the run through break_ties"
        )
    if not run.name:
        raise InvalidInputError("the run has no name; it is the last column of the file")
    system = _escaped(run.name)
    lists = zip(run.queries, run.candidates.tolist(), run.scores.tolist(), strict=True)
    write_whole(
        path,
        (
            f"{_escaped(query)} Q0 {_escaped(run.items[candidate])} {rank} {score!r} {system}\n"
            for query, candidates, scores in lists
            for rank, (candidate, score) in enumerate(zip(candidates, scores, strict=True), 1)
            if candidate >= 0
        ),
    )


def read_run(path: Path, task: Task, direction: Direction = "text to image") -> Run:
    """Read a run file of any system: a run of all queries of the task.

    The scores rank; the column of ranks is ignored, as in trec_eval. A query that the file lacks has no
    candidates.

    Raises:
        InvalidInputError: the file cannot be read, a line is malformed, a score is not finite, or an id is
            unknown or repeated. Names the line and the query.
    """
    position = {item: n for n, item in enumerate(task.items)}
    answers: dict[str, dict[int, float]] = {query: {} for query in task.queries}
    name = ""
    for place, query, item, columns in _rows(path, "query Q0 item rank score system", task):
        try:
            score = float(columns[4])
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise InvalidInputError(
                f"{place}: query {query!r}: item {item!r}: the score {columns[4]!r} is not a finite number"
            )
        answers[query][position[item]] = score
        own = unquote(columns[5])
        if name and own != name:
            raise InvalidInputError(f"{place}: the system is {own!r}, in the lines before {name!r}")
        name = own
    k = max(map(len, answers.values()))
    candidates = np.full((len(answers), k), -1, np.int64)
    scores = np.full((len(answers), k), np.nan)
    for row, found in enumerate(answers.values()):
        candidates[row, : len(found)] = list(found)
        scores[row, : len(found)] = list(found.values())
    return Run(name or path.stem, task.queries, task.items, candidates, scores, direction)


def write_qrels(qrels: Qrels, path: Path) -> None:
    """Write qrels atomically."""
    lines = (
        f"{_escaped(query)} 0 {_escaped(item)} {grade}\n"
        for query, answers in qrels.items()
        for item, grade in answers.items()
    )
    write_whole(path, lines)


def read_qrels(path: Path, task: Task | None = None) -> dict[str, dict[str, int]]:
    """Read qrels: query id -> item id -> grade; with a task, only its queries and items may be named.

    Raises:
        InvalidInputError: the file cannot be read, a line is malformed, a pair is repeated, or an id is
            unknown. Names the line.
    """
    qrels: dict[str, dict[str, int]] = {}
    for place, query, item, columns in _rows(path, "query 0 item grade", task):
        if not re.fullmatch(r"[+-]?\d+", columns[3]):
            raise InvalidInputError(f"{place}: query {query!r}: the grade {columns[3]!r} is not an integer")
        qrels.setdefault(query, {})[item] = int(columns[3])
    return qrels


def _rows(path: Path, format: str, task: Task | None) -> Iterator[tuple[str, str, str, list[str]]]:
    """Place, query, item and all columns of every line."""
    queries, items = (set(task.queries), set(task.items)) if task else (set(), set())
    pairs: set[tuple[str, str]] = set()
    count = len(format.split())
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                place, row = f"{path.name}:{number}", line.split()
                if not row:
                    continue
                if len(row) != count:
                    raise InvalidInputError(f"{place}: has {len(row)} columns, not the {count} of {format!r}")
                query, item = unquote(row[0]), unquote(row[2])
                if task and query not in queries:
                    raise InvalidInputError(f"{place}: the query {query!r} is not in {task.name}")
                if task and item not in items:
                    raise InvalidInputError(
                        f"{place}: query {query!r}: the item {item!r} is not in {task.name}"
                    )
                if (query, item) in pairs:
                    raise InvalidInputError(f"{place}: query {query!r}: the item {item!r} is repeated")
                pairs.add((query, item))
                yield place, query, item, row
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path}: not UTF-8: {error.reason}") from error
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error  # errors of gzip have no strerror
        raise InvalidInputError(f"{path}: cannot be read: {why}") from error


def _escaped(id: str) -> str:
    return re.sub(r"[%\s]", lambda blank: quote(blank[0]), id)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-")
