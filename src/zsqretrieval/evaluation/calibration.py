"""Can a score be believed? How often what it says is so, in bins of how sure it is.

Two readings of scores as probabilities:

- of a candidate by itself: P(yes) of :class:`~zsqretrieval.search.scoring.YesNo`, against whether it is relevant;
- of the first place: softmax over the candidates of a query, against whether the first one is relevant.

Bins hold equally many observations each (Nguyen and O'Connor, EMNLP 2015), so none is empty; the expected
calibration error is the mean of the bins' distances (Naeini et al., AAAI 2015), and errs upward where there
are few observations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets import Task
from zsqretrieval.evaluation.intervals import ClusterBootstrap
from zsqretrieval.evaluation.runs import Run

__all__ = [
    "Bin",
    "Reliability",
    "first_place_reliability",
    "relevant",
    "reliability",
    "yes_no_reliability",
]


_FEWEST = 10  # observations of a bin


@dataclass(frozen=True, slots=True)
class Bin:
    """Observations of similar probability.

    Attributes:
        observations: how many.
        said: mean probability.
        true: share of them that are so.
        interval: of that share, over clusters; None where a draw had no observation of the bin.
    """

    observations: int
    said: float
    true: float
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Reliability:
    """How well the probabilities of a system hold.

    Attributes:
        system: name of the run.
        of: what the probability is of.
        observations: how many.
        bins: by rising probability.
        error: expected calibration error, in [0, 1].
        interval: of the error.
    """

    system: str
    of: str
    observations: int
    bins: tuple[Bin, ...]
    error: float
    interval: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        return asdict(self)


def yes_no_reliability(
    run: Run, task: Task, *, bins: int = 10, resamples: int = 2000, seed: int = 0
) -> Reliability:
    """Whether a candidate is relevant as often as yes is likely.

    Args:
        run: of log-odds of yes.
        task: what it answers.
        bins: how many, at most.
        resamples: draws of the bootstrap.
        seed: of the draws.
    """
    there = run.candidates >= 0
    odds = run.scores[there]
    said = 0.5 + 0.5 * np.tanh(odds / 2)  # the logistic function, without overflow
    true = relevant(run, task.qrels)[there]
    clusters = np.broadcast_to(task.clusters[:, None], there.shape)[there]
    of = "P(yes) of every candidate"
    return reliability(run.name, of, said, true, clusters, bins=bins, resamples=resamples, seed=seed)


def first_place_reliability(
    run: Run, task: Task, *, scale: float = 1.0, bins: int = 10, resamples: int = 2000, seed: int = 0
) -> Reliability:
    """Whether the first candidate is relevant as often as the softmax over the candidates says.

    Args:
        run: its scores are logits. Of equal scores the irrelevant one comes first.
        task: what it answers.
        scale: what scores are multiplied with first, such as the 100 of CLIP's cosines.
        bins: how many, at most.
        resamples: draws of the bootstrap.
        seed: of the draws.
    """
    logits = np.where(run.candidates >= 0, scale * run.scores, -np.inf)
    best = logits.max(axis=1)
    said = 1 / np.exp(logits - best[:, None]).sum(axis=1)
    true = (relevant(run, task.qrels) | (logits < best[:, None])).all(axis=1)
    of = "softmax of the first candidate" + (f", scores times {scale:g}" if scale != 1 else "")
    return reliability(run.name, of, said, true, task.clusters, bins=bins, resamples=resamples, seed=seed)


def reliability(
    system: str,
    of: str,
    said: NDArray[np.float64],
    true: NDArray[np.bool_],
    clusters: NDArray[np.int64],
    *,
    bins: int = 10,
    resamples: int = 2000,
    seed: int = 0,
) -> Reliability:
    """Compare probabilities with what came true.

    Args:
        system: who says so.
        of: what the probability is of.
        said: float64 [n], in [0, 1].
        true: bool [n].
        clusters: int64 [n], which observations are not independent of one another.
        bins: how many; fewer where there are not ten observations for each, or probabilities are equal.
        resamples: draws of the bootstrap.
        seed: of the draws.

    Raises:
        InvalidInputError: there is no observation, ``bins`` < 1, or a probability is none.
    """
    if bins < 1 or not len(said) or not ((said >= 0) & (said <= 1)).all():
        raise InvalidInputError(f"{bins} bins of {len(said)} observations, not all of them probabilities")
    bins = max(min(bins, len(said) // _FEWEST), 1)
    edges = np.unique(np.quantile(said, np.linspace(0, 1, bins + 1)[1:-1]))
    _, of_bin = np.unique(np.searchsorted(edges, said, side="left"), return_inverse=True)
    bootstrap = ClusterBootstrap(clusters, resamples=resamples, seed=seed)
    found = []
    members = [of_bin == n for n in range(of_bin.max() + 1)]
    for mine in members:
        with np.errstate(invalid="ignore"):
            interval = bootstrap.interval(lambda hits, size: hits / size, 1.0 * (mine & true), 1.0 * mine)
        found.append(
            Bin(
                int(mine.sum()),
                float(said[mine].mean()),
                float(true[mine].mean()),
                interval if math.isfinite(sum(interval)) else None,
            )
        )
    # |mean said - mean true| of each bin, weighted by its size, is a sum of means over all observations.
    gaps = [np.where(mine, said - true, 0.0) for mine in members]
    interval = bootstrap.interval(lambda *means: np.abs(means).sum(axis=0), *gaps)
    error = float(sum(abs(gap.mean()) for gap in gaps))
    return Reliability(system, of, len(said), tuple(found), error, interval)


def relevant(run: Run, qrels: Mapping[str, Mapping[str, int]]) -> NDArray[np.bool_]:
    """Whether each candidate is relevant, bool [q, k]; False where there is none."""
    place = {item: n for n, item in enumerate(run.items)}
    found = np.zeros(run.candidates.shape, bool)
    for row, query in enumerate(run.queries):
        right = [place[item] for item, grade in qrels[query].items() if grade > 0]
        found[row] = np.isin(run.candidates[row], right)
    return found
