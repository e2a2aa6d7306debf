"""Parameters chosen on one split, to be measured on another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets import Dataset, Task
from zsqretrieval.evaluation.expand_bench import GRID
from zsqretrieval.evaluation.findings import Choice
from zsqretrieval.evaluation.leaks import refuse_shared_images
from zsqretrieval.evaluation.measures import measure
from zsqretrieval.evaluation.plan import Plan
from zsqretrieval.evaluation.rerank_bench import WEIGHTS
from zsqretrieval.evaluation.runs import Run, fused_run, shallow
from zsqretrieval.evaluation.workbench import Scores, Workbench, labelled
from zsqretrieval.search.fusion import Fusion, WeightedSum

__all__ = ["ALPHAS", "check_tuning", "tuned"]

ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""What is tried when the share of the prior that is taken away is tuned."""

_RECALLS = ("R@1", "R@5", "R@10")
_T = TypeVar("_T")


def check_tuning(plan: Plan, dataset: Dataset, tune_on: Dataset) -> None:
    """Refuse to tune what has no weight, or on what is measured.

    Raises:
        InvalidInputError: one of both.
        ImageError: an image cannot be read.
    """
    if not isinstance(plan.fusion, WeightedSum):
        raise InvalidInputError(f"only a WeightedSum has a weight to tune, not {plan.fusion!r}")
    refuse_shared_images(dataset, tune_on)


def tuned(bench: Workbench, choice: Choice) -> Choice:
    """Choose the parameters that do best on the data set of a workbench.

    The best is the best mean over the forms of R@1, then of R@5, then of R@10, and of equal ones the first,
    which has the smallest weight. The share of the prior is chosen for the likelihood alone, before the
    weight of the fusion.

    Args:
        bench: on the split to tune on.
        choice: what stays where there is nothing to tune.
    """
    plan, sweep = bench.plan, list[dict[str, Any]]()
    fusion, fusion_of_mean = dict(choice.fusion), dict(choice.fusion_of_mean)
    alpha, expansion = choice.alpha, choice.expansion
    assert isinstance(plan.fusion, WeightedSum)
    weighted = [replace(plan.fusion, weight=float(weight)) for weight in WEIGHTS]
    told = bench.told
    for direction in plan.directions:
        found = []
        for form in bench.dataset.forms:
            bench.told = labelled(told, f"{direction}, {form}")
            found.append(bench.scores(direction, form, plan.tuning_queries))
        bench.told = told

        def best(parameter: str, values: Sequence[_T], answer: Callable[[Scores, _T], Run]) -> _T:
            recalls = []
            for value in values:
                rows = [_recalls(answer(scores, value), scores.task) for scores in found]  # noqa: B023
                recalls.append([round(float(mean), 12) for mean in np.mean(rows, axis=0)])
                facts = {"direction": direction, "parameter": parameter, "value": str(value)}  # noqa: B023
                sweep.append(facts | dict(zip(_RECALLS, recalls[-1], strict=True)))
            return values[max(range(len(values)), key=lambda n: (recalls[n], -n))]

        def join(scores: Scores, fusion: Fusion, *, mean: bool = False) -> Run:
            believed = scores.believed(alpha)  # noqa: B023
            if mean:
                believed = bench.per_token(scores.dataset, believed)
            return fused_run(shallow(scores.first, plan.candidates), believed, fusion)

        if found[0].likelihood is not None:
            if direction == "image to text":
                alpha = best("alpha", ALPHAS, Scores.believed)
            fusion[direction] = best("fusion", weighted, join)
            if plan.wants("mean"):
                fusion_of_mean[direction] = best("fusion of mean", weighted, partial(join, mean=True))
        if plan.wants("expand") and direction == "text to image":
            expansion = best(
                "expansion",
                GRID["weighted_sum"],
                lambda scores, one: bench.expanded(one).run(scores.dataset, scores.first),
            )
    origin = f"tuned for R@1 on {bench.dataset.name}"
    return Choice(fusion, fusion_of_mean, alpha, expansion, origin, tuple(sweep))


def _recalls(run: Run, task: Task) -> list[float]:
    return [float(one.mean()) for one in measure(run, task.qrels, _RECALLS).values()]
