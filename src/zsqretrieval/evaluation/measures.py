"""Measures of a run, query by query, by ir-measures over trec_eval.

The names say what the papers on image retrieval mean by them, where those and TREC differ:

==============  ==================  =========================================================================
here            ir-measures         is
==============  ==================  =========================================================================
``R@k``         ``Success@k``       1 when anything relevant is among the first k, else 0. This is what CLIP
                                    papers and CLIP_benchmark call recall: it takes the recall of every query
                                    and asks whether it is above 0. For an image with five captions, any one
                                    of them counts.
``Recall@k``    ``R@k``             the share of what is relevant that is among the first k. The same as
                                    ``R@k`` where one item is relevant.
``MRR``         ``RR``              1 / rank of the first relevant item, 0 where no candidate is.
``nDCG@k``      ``nDCG@k``          gains are the grades.
``mAP@k``       ``AP@k``            average precision, divided by the number of relevant items.
``APmin@k``     --                  the same divided by min(k, relevant items), as INQUIRE has it. The same as
                                    ``mAP@k`` unless more than k items are relevant.
==============  ==================  =========================================================================

Any other name of a measure that trec_eval has is read by ir-measures: ``P@5``, ``Rprec``, ``AP(rel=2)``, ...

Ties. trec_eval breaks ties by document id and compares in single precision, so equal scores are ranked by
how images happen to be called. Here they are ranked against the system: of equal scores, the item of the
lower grade comes first (:func:`break_ties`). A scorer that says the same of everything gets what it
deserves, and no tie-breaking could give less.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.errors import InvalidInputError, MismatchError, MissingDependencyError
from zsqretrieval.evaluation.datasets import Qrels
from zsqretrieval.evaluation.runs import Run

__all__ = ["MEASURES", "break_ties", "check_measures", "is_falling", "measure"]

MEASURES = ("R@1", "R@5", "R@10", "R@100", "MRR", "nDCG@10", "mAP@50")
"""What is measured unless asked otherwise."""

_OURS = {"R": "Success", "Recall": "R", "mAP": "AP", "APmin": "AP"}
_LARGEST = 1e37  # beyond it single precision, in which trec_eval compares, runs out


def check_measures(measures: Sequence[str]) -> None:
    """Refuse names that :func:`measure` would refuse, before anything is computed.

    Args:
        measures: names, as in the table above.

    Raises:
        InvalidInputError: a measure is not known, is none of trec_eval, or cuts at less than 1.
        MissingDependencyError: ir-measures is not installed.
    """
    for name in measures:
        _parse(name)


def measure(run: Run, qrels: Qrels, measures: Sequence[str] = MEASURES) -> dict[str, NDArray[np.float64]]:
    """Measure every query of a run.

    Args:
        run: q queries; their candidates in any order, ties broken against the system. What is not a candidate
            was not found.
        qrels: of the run's queries, all of them and no others.
        measures: names, as in the table above.

    Returns:
        By name, float64 [q] in the order of ``run.queries``, in [0, 1]. A query without candidates has 0.

    Raises:
        MismatchError: the run leaves a query out, or has one that nobody judged; names it.
        InvalidInputError: as :func:`check_measures`.
        MissingDependencyError: ir-measures is not installed.
    """
    if strange := sorted(set(run.queries) - set(qrels)):
        raise MismatchError(f"run {run.name!r} answers the query {strange[0]!r}, which the qrels do not have")
    if lost := sorted(set(qrels) - set(run.queries)):
        raise MismatchError(
            f"run {run.name!r} does not answer the query {lost[0]!r}; leaving queries out would flatter it"
        )
    parsed = {name: _parse(name) for name in measures}
    judged = {query: dict(qrels[query]) for query in run.queries}
    falling = break_ties(run, qrels)
    ranked: dict[str, dict[str, float]] = {}
    for query, candidates, scores in zip(run.queries, falling.candidates, falling.scores, strict=True):
        there = candidates >= 0
        ranked[query] = {
            run.items[position]: float(score)
            for position, score in zip(candidates[there], scores[there], strict=True)
        }
    evaluator = _ir_measures().pytrec_eval.evaluator(set(parsed.values()), judged)
    found = list(evaluator.iter_calc(ranked))
    row = {query: n for n, query in enumerate(run.queries)}
    values = {measured: np.zeros(len(row)) for measured in parsed.values()}
    for one in found:
        values[one.measure][row[one.query_id]] = one.value
    return {
        name: values[measured] * _divisor(name, judged.values(), len(row))
        for name, measured in parsed.items()
    }


def break_ties(run: Run, qrels: Qrels) -> Run:
    """The same run, best first, with scores that fall strictly even in single precision.

    Of equal scores the item of the lower grade comes first, one that was not judged counting as grade 0; of
    equal grades as well, the first in the run. A score changes by no more than it takes to tell it from its
    neighbour, so that trec_eval measures of the file what is measured here.

    Args:
        run: in any order.
        qrels: says what is relevant; queries that it lacks are ranked as they stand.

    Returns:
        The run; scores are exact in single precision, and stay nan where there is no candidate.

    Raises:
        InvalidInputError: a score is too large for single precision; names the query.
    """
    grades = np.zeros(run.candidates.shape)
    position = {item: n for n, item in enumerate(run.items)}
    grade_of = np.zeros(len(run.items))
    for row, query in enumerate(run.queries):
        judged = {position[item]: grade for item, grade in qrels.get(query, {}).items() if item in position}
        places = list(judged)
        grade_of[places] = list(judged.values())
        grades[row] = np.where(run.candidates[row] >= 0, grade_of[run.candidates[row]], 0)
        grade_of[places] = 0
    there = run.candidates >= 0
    beyond = np.where(there, np.abs(run.scores), 0) > _LARGEST
    if beyond.any():
        row = int(np.argwhere(beyond)[0][0])
        raise InvalidInputError(
            f"run {run.name!r}, query {run.queries[row]!r}: a score beyond {_LARGEST} cannot be told from "
            "others in single precision; scale the scores"
        )
    order = np.lexsort((grades, np.where(there, -run.scores, np.inf)), axis=-1)
    candidates = np.take_along_axis(run.candidates, order, 1)
    scores = np.take_along_axis(run.scores, order, 1).astype(np.float32)
    for column in range(1, scores.shape[1]):
        below = np.nextafter(scores[:, column - 1], np.float32(-np.inf))
        scores[:, column] = np.minimum(scores[:, column], below)
    return replace(run, candidates=candidates, scores=scores.astype(np.float64))


def is_falling(run: Run) -> NDArray[np.bool_]:
    """Of which queries the scores stand best first and differ in single precision; bool [q]."""
    scores = run.scores.astype(np.float32)
    there = run.candidates >= 0
    falls = scores[:, 1:] < scores[:, :-1]
    # Two neighbours are a candidate and a worse one, or something and nothing; never nothing and something.
    fine = ~there[:, 1:] | (there[:, :-1] & falls)
    return np.asarray(fine.all(axis=1))


def _parse(name: str) -> Any:
    ir_measures = _ir_measures()
    ours = re.fullmatch(r"(R|Recall|mAP|APmin)@(\d+)", name)
    theirs = f"{_OURS[ours[1]]}@{ours[2]}" if ours else {"MRR": "RR"}.get(name, name)
    try:
        measure = ir_measures.parse_measure(theirs)
        measure.validate_params()
    except (ValueError, NameError, SyntaxError) as error:
        raise InvalidInputError(f"measure {name!r} is not known: {error}") from error
    except AssertionError as error:
        raise InvalidInputError(f"measure {name!r} lacks a cutoff, or has a wrong one; try R@10") from error
    for what, number in measure.params.items():
        if what in ("cutoff", "rel") and not 1 <= number < 2**31:  # a cutoff of 0 would end the process
            raise InvalidInputError(f"measure {name!r}: {what} must be from 1 to {2**31 - 1}, not {number}")
    if not ir_measures.pytrec_eval.supports(measure):
        raise InvalidInputError(f"measure {name!r} is none of trec_eval's, by which runs are measured")
    return measure


def _divisor(name: str, judged: Any, count: int) -> NDArray[np.float64]:
    """What turns average precision over all relevant items into that of INQUIRE; ones for other measures."""
    own = re.fullmatch(r"APmin@(\d+)", name)
    if own is None:
        return np.ones(count)
    relevant = np.array([sum(grade > 0 for grade in answers.values()) for answers in judged], np.float64)
    return np.maximum(relevant, 1) / np.clip(relevant, 1, int(own[1]))


def _ir_measures() -> Any:
    try:
        import ir_measures
    except ImportError as error:
        raise MissingDependencyError(
            "ir_measures", "measuring a run", "pip install 'zsqretrieval[evaluation]'"
        ) from error
    return ir_measures
