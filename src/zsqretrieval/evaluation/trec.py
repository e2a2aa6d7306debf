"""Run files and qrels in the formats of TREC, so that any trec_eval can check the numbers.

A run file has a line ``query Q0 item rank score system`` for every candidate, qrels ``query 0 item grade``.
A blank within an id is written as ``%20``, and ``%`` as ``%25``. Files ending in ``.gz`` are compressed.

    runs/{direction}/{form}/qrels.txt
    runs/{direction}/{form}/{system}.run
    runs/{direction}/{form}/ablations/{system}.run     on the queries of the ablations
    runs/agreement/{ratings}.tsv                       scores of the pairs that people rated, in their order
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np

from zsqretrieval._util.files import write_whole
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets import Qrels, Task
from zsqretrieval.evaluation.datasets.dataset import lines
from zsqretrieval.evaluation.metrics import break_ties
from zsqretrieval.evaluation.run import Run


def run_path(direction: str, form: str, system: str, *, ablation: bool = False) -> str:
    """Path of a run file from the folder of the report, with slashes."""
    folder = "/ablations" if ablation else ""
    return f"runs/{_file_name(direction)}/{_file_name(form)}{folder}/{_file_name(system)}.run"


def ratings_path(ratings: str) -> str:
    """Path of the scores of rated pairs."""
    return f"runs/agreement/{_file_name(ratings)}.tsv"


def write_run(run: Run, path: Path, *, depth: int | None = None) -> None:
    """Write a run file atomically: the first ``depth`` candidates of every query, all when None.

    Ties are broken by :func:`~zsqretrieval.evaluation.metrics.break_ties`; trec_eval would break them by id.

    Raises:
        InvalidInputError: the run has no name, or a score is too large; names a query.
        OSError: the file cannot be written.
    """
    if not run.name:
        raise InvalidInputError("the run has no name; it is the last column of the file")
    ranked, system = break_ties(run), _escaped(run.name)
    lists = zip(run.task.queries, ranked.candidates.tolist(), ranked.scores.tolist(), strict=True)
    write_whole(
        path,
        (
            f"{_escaped(query)} Q0 {_escaped(run.task.items[candidate])} {rank} {score!r} {system}\n"
            for query, candidates, scores in lists
            for rank, (candidate, score) in enumerate(zip(candidates, scores, strict=True), 1)
            if candidate >= 0 and (depth is None or rank <= depth)
        ),
    )


def read_run(path: Path, task: Task) -> Run:
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
    for place, line in lines(path):
        columns = [unquote(column) for column in line.split()]
        if len(columns) != 6:
            raise InvalidInputError(
                f"{place}: has {len(columns)} columns, not the 6 of 'query Q0 item rank score system'"
            )
        query, _, item, _, number, own = columns
        if query not in answers:
            raise InvalidInputError(f"{place}: the query {query!r} is not in {task.name}")
        asked = f"{place}: query {query!r}"
        if item not in position:
            raise InvalidInputError(f"{asked}: the item {item!r} is not in {task.name}")
        if position[item] in answers[query]:
            raise InvalidInputError(f"{asked}: the item {item!r} is repeated")
        try:
            score = float(number)
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise InvalidInputError(f"{asked}: item {item!r}: the score {number!r} is not a finite number")
        answers[query][position[item]] = score
        if name and own != name:
            raise InvalidInputError(f"{place}: the system is {own!r}, in the lines before {name!r}")
        name = own
    k = max(map(len, answers.values()))
    candidates = np.full((len(answers), k), -1, np.int64)
    scores = np.full((len(answers), k), np.nan)
    for row, found in enumerate(answers.values()):
        candidates[row, : len(found)] = list(found)
        scores[row, : len(found)] = list(found.values())
    return Run(name or path.stem, task, candidates, scores)


def write_qrels(qrels: Qrels, path: Path) -> None:
    """Write qrels atomically."""
    lines = (
        f"{_escaped(query)} 0 {_escaped(item)} {grade}\n"
        for query, answers in qrels.items()
        for item, grade in answers.items()
    )
    write_whole(path, lines)


def _escaped(id: str) -> str:
    return re.sub(r"[%\s]", lambda blank: quote(blank[0]), id)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-")
