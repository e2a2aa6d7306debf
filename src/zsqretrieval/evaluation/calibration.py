"""Calibration: how often the scores of a system, taken as probabilities, are right."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.results import row
from zsqretrieval.evaluation.run import Run, relevant
from zsqretrieval.evaluation.stats import ClusterBootstrap
from zsqretrieval.search.fusion import logistic

_FEWEST = 10  # observations of a bin


class Predictions(NamedTuple):
    """Probabilities and outcomes of n observations."""

    predicted: NDArray[np.float64]  # [n], in [0, 1]
    true: NDArray[np.bool_]  # [n]
    clusters: NDArray[np.int64]  # [n], of the bootstrap


def yes_no(run: Run) -> Predictions:
    """P(yes) of every candidate, and whether it is relevant; scores are log-odds."""
    there = run.candidates >= 0
    predicted = logistic(run.scores[there])
    clusters = np.broadcast_to(run.task.clusters[:, None], there.shape)[there]
    return Predictions(predicted, relevant(run)[there], clusters)


def first_place(run: Run, *, scale: float = 1.0) -> Predictions:
    """The softmax probability of the first candidate of every query, and whether it is relevant.

    The scores times ``scale``, such as CLIP's 100 for cosines, are logits. Of equal scores an irrelevant
    candidate comes first.
    """
    logits = np.where(run.candidates >= 0, scale * run.scores, -np.inf)
    best = logits.max(axis=1)
    predicted = 1 / np.exp(logits - best[:, None]).sum(axis=1)
    true = (relevant(run) | (logits < best[:, None])).all(axis=1)
    return Predictions(predicted, true, run.task.clusters)


def reliability_rows(
    system: str,
    found: Predictions,
    *,
    bins: int = 10,
    resamples: int = 2000,
    seed: int = 0,
    **columns: Any,
) -> list[dict[str, Any]]:
    """Compare predicted probabilities with outcomes, in bins of equally many observations.

    Equal-mass bins (Nguyen and O'Connor, EMNLP 2015) are never empty; the expected calibration error is the
    weighted mean of the bins' gaps (Naeini et al., AAAI 2015), and is biased upward with few observations.

    Args:
        system: name for the rows.
        found: probabilities and outcomes.
        bins: at most; fewer if there are not ten observations for each, or probabilities are equal.
        resamples: draws of the bootstrap.
        seed: of the draws.
        columns: further columns of every row.

    Returns:
        Rows of the group ``reliability``: the ``calibration error`` with its interval; and of every bin, by
        rising probability, the mean probability ``predicted`` and the share ``observed``, whose interval is
        nan if a draw has no observation of the bin.

    Raises:
        InvalidInputError: there are no observations, ``bins`` < 1, or a value is not a probability.
    """
    predicted, true, clusters = found
    if bins < 1 or not len(predicted) or not ((predicted >= 0) & (predicted <= 1)).all():
        raise InvalidInputError(f"{bins} bins of {len(predicted)} observations, not all of them in [0, 1]")
    bins = max(min(bins, len(predicted) // _FEWEST), 1)
    edges = np.unique(np.quantile(predicted, np.linspace(0, 1, bins + 1)[1:-1]))
    _, of_bin = np.unique(np.searchsorted(edges, predicted, side="left"), return_inverse=True)
    members = [of_bin == n for n in range(of_bin.max() + 1)]
    bootstrap = ClusterBootstrap(clusters, resamples=resamples, seed=seed)

    def one(measure: str, value: float, low: float = np.nan, high: float = np.nan, **more: Any) -> Any:
        return row("reliability", system, measure, value, low=low, high=high, **columns, **more)

    # The gap of a bin, weighted by its size, is a mean over all observations; the error is the sum of these.
    gaps = [np.where(mine, predicted - true, 0.0) for mine in members]
    ends = bootstrap.interval(lambda *means: np.abs(means).sum(axis=0), *gaps)
    error = sum(abs(gap.mean()) for gap in gaps)
    rows = [one("calibration error", error, *ends, queries=len(predicted))]
    for n, mine in enumerate(members):
        with np.errstate(invalid="ignore"):
            ends = bootstrap.interval(lambda hits, size: hits / size, 1.0 * (mine & true), 1.0 * mine)
        of_this = {"depth": n, "queries": int(mine.sum())}
        rows.append(one("predicted", predicted[mine].mean(), **of_this))
        rows.append(one("observed", true[mine].mean(), *ends, **of_this))
    return rows
