"""Runs of several systems over one task, compared: per form, per measure, with how sure the numbers are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from zsqretrieval.errors import InvalidInputError, MismatchError
from zsqretrieval.evaluation.datasets import Task
from zsqretrieval.evaluation.intervals import ClusterBootstrap
from zsqretrieval.evaluation.measures import MEASURES, measure
from zsqretrieval.evaluation.runs import Run
from zsqretrieval.evaluation.significance import holm, paired_permutation_test

__all__ = ["Against", "Result", "compare"]


@dataclass(frozen=True, slots=True)
class Against:
    """How a system differs from the baseline in one measure.

    Attributes:
        baseline: its name.
        difference: of the means, the system's minus the baseline's.
        interval: of the difference, paired.
        p: of the paired permutation test, two-sided.
        p_holm: corrected for the number of systems compared with the baseline in this form and measure.
    """

    baseline: str
    difference: float
    interval: tuple[float, float]
    p: float
    p_holm: float


@dataclass(frozen=True, slots=True)
class Result:
    """One system, one form of queries, one measure.

    Attributes:
        system: name of the run.
        form: of the queries.
        measure: its name.
        queries: how many there are of this form.
        clusters: how many images they come from; the sample size that the interval and the p-value go by.
        mean: over the queries, in [0, 1].
        interval: of the mean; 95 % unless asked otherwise, percentile bootstrap over clusters.
        against: how it differs from the baseline; None for the baseline itself.
    """

    system: str
    form: str
    measure: str
    queries: int
    clusters: int
    mean: float
    interval: tuple[float, float]
    against: Against | None

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        return asdict(self)


def compare(
    task: Task,
    runs: Sequence[Run],
    *,
    baseline: str,
    measures: Sequence[str] = MEASURES,
    resamples: int = 2000,
    permutations: int = 9999,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Result, ...]:
    """Compare runs with a baseline.

    Queries of different forms are never averaged together: which form is easier says nothing about systems.

    Args:
        task: what the runs answer.
        runs: of different names.
        baseline: the name of the run that the others are compared with.
        measures: names that :mod:`~zsqretrieval.evaluation.measures` knows.
        resamples: draws of the bootstrap.
        permutations: exchanges of the permutation test.
        level: of the intervals.
        seed: of both.

    Returns:
        A result for every form, measure and run, in this order.

    Raises:
        InvalidInputError: two runs have one name, or none has the baseline's.
        MismatchError: a run is of another task; names the query or item.
    """
    names = [run.name for run in runs]
    if len(set(names)) != len(names):
        raise InvalidInputError(f"two runs have one name: {', '.join(names)}; every run needs its own")
    if baseline not in names:
        raise InvalidInputError(f"no run is named {baseline!r}, the baseline; there are {', '.join(names)}")
    for run in runs:
        if run.queries != task.queries or run.items != task.items:
            raise MismatchError(f"run {run.name!r} has other queries or items than {task.name}")
    measured = {run.name: measure(run, task.qrels, measures) for run in runs}
    of_form = np.array(task.forms)
    results: list[Result] = []
    for form in dict.fromkeys(task.forms):
        asked = of_form == form
        clusters = task.clusters[asked]
        bootstrap = ClusterBootstrap(clusters, resamples=resamples, level=level, seed=seed)
        for name in measures:
            values = {system: measured[system][name][asked] for system in names}
            p_values = {
                system: paired_permutation_test(
                    values[system], values[baseline], clusters, permutations=permutations, seed=seed
                )
                for system in names
                if system != baseline
            }
            corrected = holm(p_values)
            for system in names:
                own, base = values[system], values[baseline]
                against = None
                if system != baseline:
                    against = Against(
                        baseline,
                        float((own - base).mean()),
                        bootstrap.interval(lambda a, b: a - b, own, base),
                        p_values[system],
                        corrected[system],
                    )
                results.append(
                    Result(
                        system,
                        form,
                        name,
                        len(own),
                        len(np.unique(clusters)),
                        float(own.mean()),
                        bootstrap.interval(lambda mean: mean, own),
                        against,
                    )
                )
    return tuple(results)
