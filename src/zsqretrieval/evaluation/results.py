"""The results of an evaluation: one long table with one number a row, and a dictionary of facts.

Columns of the table, always in this order:

==============  ============================================================================================
``group``       kind of number, see below
``system``      name of the system; the first stage has its encoder's name
``form``        form of the queries; the name of the ratings for agreement; the kind of cost for cost
``direction``   ``text to image`` or ``image to text``
``depth``       candidates re-ranked, int or NA; the number of the bin for reliability
``measure``     name of the measure
``value``       the number; recalls, shares and correlations are fractions, the display multiplies
``low, high``   its 95 % confidence interval
``baseline``    name of the system it is compared with, or NA
``gain``        mean difference to the baseline; ``gain_low``, ``gain_high`` its paired 95 % interval
``p``           of the paired permutation test, Holm-corrected over the systems of one form and measure
``queries``     number of queries, calls or observations
``unit``        unit of the value before display: ``%`` (a fraction), ``ms``, ``nats``, ``bytes`` or empty
``run``         path of the run file from the report's folder, or NA
==============  ============================================================================================

Groups:

- ``systems``: every measure of every system, per form and direction. ``depth`` is the number of candidates.
- ``ablations``: the same on a sample of the queries; ``baseline`` is the complete system, which has rows of
  its own. System ``chance``: R@1 of a random order of the candidates.
- ``curve``: measures by ``depth``. ``ceiling``: first-stage recall at that depth (measure ``ceiling``).
- ``reliability``: measures ``predicted`` and ``observed`` of each bin, ``calibration error``, and ``tied``,
  the share of candidates whose score is not unique.
- ``agreement``: ``tau-b`` or ``tau-c`` with human ratings.
- ``cost``: ``form`` is ``stage``, ``system``, ``image``, ``storage`` or ``memory``; measures ``time`` (ms,
  median over the calls, one query at a time), ``flops``, ``size`` (bytes).
- ``dialogs``, ``scaling``: as :mod:`~zsqretrieval.evaluation.dialogs` and
  :mod:`~zsqretrieval.evaluation.scaling` return them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from zsqretrieval.errors import InvalidInputError, MismatchError
from zsqretrieval.evaluation.datasets import Dataset
from zsqretrieval.evaluation.metrics import MEASURES, measure
from zsqretrieval.evaluation.run import Run
from zsqretrieval.evaluation.stats import ClusterBootstrap, holm, permutation_test

COLUMNS: Mapping[str, str] = {
    "group": "string", "system": "string", "form": "string", "direction": "string", "depth": "Int64",
    "measure": "string", "value": "float64", "low": "float64", "high": "float64", "baseline": "string",
    "gain": "float64", "gain_low": "float64", "gain_high": "float64", "p": "float64", "queries": "Int64",
    "unit": "string", "run": "string",
}  # fmt: skip
"""Columns of the table and their pandas types; missing values are NA, or nan in the float columns."""


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """All results of an evaluation.

    Attributes:
        table: one number a row, with the columns :data:`COLUMNS`.
        facts: everything that is not a number of a system, as JSON can hold it: ``dataset`` (name, images,
            forms with their number of queries, notes), ``settings``, ``fingerprints``, ``choice`` (the
            parameters, their ``origin`` and the ``sweep``), ``examples`` (a list of ``direction``, ``form``,
            ``outcome``: won or lost, ``query``, ``text``, ``system``, ``before`` and ``after``: rank of the
            first relevant image from 1 or None, ``relevant``, ``first_before``, ``first_after``: image ids),
            ``probabilities`` (by direction, then system: the meaning of ``predicted``), ``ablations`` (by
            name, what they take away), ``checks``, ``first_stage`` (its name), and from the writer:
            ``command``, ``environment``, ``files``.
        runs: by path of the file, without the folder: the runs of all systems and ablations.
        ratings: by path of the file: scores of the pairs that people rated, one column a system.
        dataset: the data set that was measured. Runs, ratings and dataset are empty after
            :meth:`from_json`.
    """

    table: pd.DataFrame
    facts: dict[str, Any]
    runs: Mapping[str, Run] = field(default_factory=dict)
    ratings: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    dataset: Dataset | None = None

    def select(self, group: str, **equal: Any) -> pd.DataFrame:
        """Rows of a group whose columns have these values."""
        found = self.table[self.table["group"] == group]
        for column, value in equal.items():
            found = found[found[column] == value]
        return cast(pd.DataFrame, found)

    def plus(self, rows: Iterable[Mapping[str, Any]], **facts: Any) -> Results:
        """The results with further rows and facts."""
        more = [self.table, table_of(rows)]
        table = pd.concat([one for one in more if len(one)], ignore_index=True)
        return replace(self, table=table, facts={**self.facts, **facts})

    def to_json(self) -> str:
        """``{"facts": ..., "table": [row, ...]}``, valid JSON; NA and nan are null."""
        rows = json.loads(self.table.to_json(orient="records", double_precision=15))
        return json.dumps({"facts": self.facts, "table": rows}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """Read what :meth:`to_json` wrote.

        Raises:
            InvalidInputError: the text is not such a document.
        """
        try:
            document = json.loads(text)
            return cls(table_of(document["table"]), document["facts"])
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(f"not the results of an evaluation: {error!r}") from error


def row(group: str, system: str, measure: str, value: float, **others: Any) -> dict[str, Any]:
    """One row of the table; columns that are not given are NA."""
    return {"group": group, "system": system, "measure": measure, "value": float(value), "unit": "%"} | others


def table_of(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The table of some rows, with all columns and their types.

    Raises:
        TypeError: a row has an unknown column.
    """
    rows = list(rows)
    if unknown := {name for one in rows for name in one} - {*COLUMNS}:
        raise TypeError(f"the table has no column {min(unknown)!r}")
    frame = pd.DataFrame.from_records([dict(one) for one in rows], columns=list(COLUMNS))
    return cast(pd.DataFrame, frame.astype(dict(COLUMNS)))


def compare(
    runs: Sequence[Run],
    *,
    baseline: str,
    group: str = "systems",
    measures: Sequence[str] = MEASURES,
    resamples: int = 2000,
    permutations: int = 9999,
    seed: int = 0,
    **columns: Any,
) -> list[dict[str, Any]]:
    """Measure runs and compare them with a baseline.

    Queries of different forms are never averaged: which form is easier says nothing about systems.

    Args:
        runs: of one task, with different names.
        baseline: name of the run that the others are compared with.
        group: of the rows.
        measures: names from :mod:`~zsqretrieval.evaluation.metrics`.
        resamples: draws of the bootstrap.
        permutations: of the permutation test.
        seed: of both.
        columns: further columns of every row, such as ``depth``.

    Returns:
        A row for every form, measure and run, in this order; those of the baseline have no gain.

    Raises:
        InvalidInputError: two runs have the same name, or none has the baseline's.
        MismatchError: a run is of another task than the first.
    """
    names = [run.name for run in runs]
    if len(set(names)) != len(names) or baseline not in names:
        raise InvalidInputError(f"runs need different names, one of them {baseline!r}, not {names}")
    task = runs[0].task
    for run in runs:
        if run.task is not task:
            raise MismatchError(f"run {run.name!r} is of another task than {runs[0].name!r}, {task.name}")
    measured = {run.name: measure(run, measures) for run in runs}
    of_form = np.array(task.forms)
    rows: list[dict[str, Any]] = []
    for form in dict.fromkeys(task.forms):
        asked = of_form == form
        bootstrap = ClusterBootstrap(task.clusters[asked], resamples=resamples, seed=seed)
        for name in measures:
            rows += paired_rows(
                group, name, {system: measured[system][name][asked] for system in names}, bootstrap,
                baseline=baseline, permutations=permutations,
                form=form, direction=task.direction, **columns,
            )  # fmt: skip
    return rows


def paired_rows(
    group: str,
    measure: str,
    values: Mapping[str, NDArray[np.float64]],
    bootstrap: ClusterBootstrap,
    *,
    baseline: str | None = None,
    permutations: int = 9999,
    **columns: Any,
) -> list[dict[str, Any]]:
    """Rows of one measure, one for each system; ``values`` [q] of the same queries by system.

    Systems are compared with the ``baseline`` if it is given, with the seed of the bootstrap.
    """
    drawn = {"permutations": permutations, "seed": bootstrap.seed}
    base = None if baseline is None else values[baseline]
    p_values: dict[str, float] = {}
    if base is not None:
        others = {one: own for one, own in values.items() if one != baseline}
        p_values = holm(
            {one: permutation_test(own, base, bootstrap.clusters, **drawn) for one, own in others.items()}
        )
    rows = []
    for system, own in values.items():
        low, high = bootstrap.mean_interval(own)
        one = row(group, system, measure, own.mean(), low=low, high=high, queries=len(own), **columns)
        if base is not None and system != baseline:
            gain_low, gain_high = bootstrap.interval(lambda a, b: a - b, own, base)
            one |= {"baseline": baseline, "gain": float((own - base).mean()), "gain_low": gain_low,
                    "gain_high": gain_high, "p": p_values[system]}  # fmt: skip
        rows.append(one)
    return rows
