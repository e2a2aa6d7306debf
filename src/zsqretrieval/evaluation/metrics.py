"""Measures of a run, by query: ir-measures over trec_eval.

Some names mean what papers on image retrieval mean by them, which differs from TREC:

==============  ==================  =========================================================================
here            ir-measures         definition
==============  ==================  =========================================================================
``R@k``         ``Success@k``       1 if anything relevant is among the first k, else 0: the recall of CLIP
                                    papers and CLIP_benchmark. For an image with five captions, any of them
                                    counts.
``Recall@k``    ``R@k``             the share of the relevant items among the first k. The same as ``R@k``
                                    if one item is relevant.
``MRR``         ``RR``              1 / rank of the first relevant item, 0 if no candidate is relevant.
``nDCG@k``      ``nDCG@k``          gains are the grades.
``mAP@k``       ``AP@k``            average precision, divided by the number of relevant items.
``APmin@k``     --                  the same divided by min(k, relevant items), as in INQUIRE. The same as
                                    ``mAP@k`` unless more than k items are relevant.
==============  ==================  =========================================================================

ir-measures parses any other measure of trec_eval: ``P@5``, ``Rprec``, ``AP(rel=2)``, ...

Tie rule, the only one of the evaluation: of equal scores, the item of the lower grade comes first. trec_eval
would compare in single precision and break ties by document id. A constant score therefore gets the lowest
recall that any tie-breaking could give.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.optional import import_optional
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.run import Run, was_scored

MEASURES = ("R@1", "R@5", "R@10", "R@100", "MRR", "nDCG@10", "mAP@50")
"""Default measures."""

MISSING = np.iinfo(np.int64).max
"""Rank of a query without a relevant candidate."""

_OURS = {"R": "Success", "Recall": "R", "mAP": "AP", "APmin": "AP"}
_LARGEST = 1e37  # the end of single precision, in which trec_eval compares


def first_ranks(scores: NDArray[Any], right: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Rank of the first relevant candidate of each query, from 0, by the tie rule above.

    ``R@k`` is the share of ranks below k.

    Args:
        scores: [q, k], higher is better; nan for no candidate.
        right: bool [q, k], the relevant candidates.

    Returns:
        int64 [q]; :data:`MISSING` if no candidate is relevant.
    """
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    ranks = ((scores >= best) & ~right).sum(axis=1)
    return np.where(right.any(axis=1), ranks, MISSING).astype(np.int64)


def check_measures(measures: Sequence[str]) -> None:
    """Check names of measures.

    Raises:
        InvalidInputError: a name is unknown, not a measure of trec_eval, or has a cutoff below 1.
        MissingDependencyError: ir-measures is not installed.
    """
    for name in measures:
        _parse(name)


def measure(run: Run, measures: Sequence[str] = MEASURES) -> dict[str, NDArray[np.float64]]:
    """Measure every query of a run.

    Args:
        run: q queries; candidates in any order.
        measures: names, as in the table above.

    Returns:
        By name, float64 [q] in the order of the queries, in [0, 1]. A query without candidates gets 0.

    Raises:
        InvalidInputError: as :func:`check_measures`.
        MissingDependencyError: ir-measures is not installed.
    """
    parsed = {name: _parse(name) for name in measures}
    queries, items = run.task.queries, run.task.items
    judged = {query: dict(run.task.qrels[query]) for query in queries}
    falling = break_ties(run)
    ranked: dict[str, dict[str, float]] = {}
    for query, candidates, scores in zip(queries, falling.candidates, falling.scores, strict=True):
        there = candidates >= 0
        ranked[query] = {
            items[position]: float(score)
            for position, score in zip(candidates[there], scores[there], strict=True)
        }
    row = {query: n for n, query in enumerate(queries)}
    values = {measured: np.zeros(len(row)) for measured in parsed.values()}
    for one in _ir_measures().pytrec_eval.evaluator(set(values), judged).iter_calc(ranked):
        values[one.measure][row[one.query_id]] = one.value
    relevant_items = np.array([sum(grade > 0 for grade in one.values()) for one in judged.values()], float)
    return {name: values[measured] * _rescaling(name, relevant_items) for name, measured in parsed.items()}


def break_ties(run: Run) -> Run:
    """Sort every row best first by the tie rule, with scores that fall strictly even in single precision.

    A score changes by no more than is needed to separate it from its neighbour, so trec_eval measures the
    same from the file.

    An item without a grade counts as grade 0; of equal grades, the first in the row stays first.

    Raises:
        InvalidInputError: a score is too large for single precision; names the query.
    """
    grades = np.zeros(run.candidates.shape)
    position = {item: n for n, item in enumerate(run.task.items)}
    grade_of = np.zeros(len(position))
    for row, query in enumerate(run.task.queries):
        judged = {position[item]: grade for item, grade in run.task.qrels[query].items()}
        grade_of[list(judged)] = list(judged.values())
        grades[row] = np.where(run.candidates[row] >= 0, grade_of[run.candidates[row]], 0)
        grade_of[list(judged)] = 0
    there = run.candidates >= 0
    beyond = np.where(there, np.abs(run.scores), 0) > _LARGEST
    if beyond.any():
        query = run.task.queries[int(np.argwhere(beyond)[0][0])]
        raise InvalidInputError(
            f"run {run.name!r}, query {query!r}: a score is beyond {_LARGEST}, the range of single "
            "precision; scale the scores"
        )
    order = np.lexsort((grades, np.where(there, -run.scores, np.inf)), axis=-1)
    candidates = np.take_along_axis(run.candidates, order, 1)
    scores = np.take_along_axis(run.scores, order, 1).astype(np.float32)
    for column in range(1, scores.shape[1]):
        below = np.nextafter(scores[:, column - 1], np.float32(-np.inf))
        scores[:, column] = np.minimum(scores[:, column], below)
    return replace(run, candidates=candidates, scores=scores.astype(np.float64))


def tied_share(run: Run) -> float:
    """Share of the candidates whose score another candidate of the same query has as well."""
    tied, able = 0, was_scored(run)
    for scores, there in zip(run.scores, able, strict=True):
        _, counts = np.unique(scores[there], return_counts=True)
        tied += int(counts[counts > 1].sum())
    return tied / max(int(able.sum()), 1)


def _parse(name: str) -> Any:
    ir_measures = _ir_measures()
    ours = re.fullmatch(r"(R|Recall|mAP|APmin)@(\d+)", name)
    theirs = f"{_OURS[ours[1]]}@{ours[2]}" if ours else {"MRR": "RR"}.get(name, name)
    try:
        parsed = ir_measures.parse_measure(theirs)
        parsed.validate_params()
    except (ValueError, NameError, SyntaxError) as error:
        raise InvalidInputError(f"measure {name!r} is unknown: {error}") from error
    except AssertionError as error:
        raise InvalidInputError(f"measure {name!r} has no valid cutoff; try R@10") from error
    for what, number in parsed.params.items():
        if what in ("cutoff", "rel") and not 1 <= number < 2**31:  # trec_eval exits on a cutoff of 0
            raise InvalidInputError(f"measure {name!r}: {what} must be from 1 to {2**31 - 1}, not {number}")
    if not ir_measures.pytrec_eval.supports(parsed):
        raise InvalidInputError(f"measure {name!r} is not one of trec_eval's")
    return parsed


def _rescaling(name: str, relevant_items: NDArray[np.float64]) -> NDArray[np.float64]:
    """Factor from average precision over all relevant items to INQUIRE's; ones for other measures."""
    own = re.fullmatch(r"APmin@(\d+)", name)
    if own is None:
        return np.ones(len(relevant_items))
    return np.maximum(relevant_items, 1) / np.clip(relevant_items, 1, int(own[1]))


def _ir_measures() -> Any:
    return import_optional("ir_measures", "measuring a run", "pip install 'zsqretrieval[evaluation]'")
