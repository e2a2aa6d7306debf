"""The records of what a study found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.evaluation.calibration import Reliability
from zsqretrieval.evaluation.comparison import Result
from zsqretrieval.evaluation.cost import Cost
from zsqretrieval.evaluation.datasets import Dataset, Task
from zsqretrieval.evaluation.human import Correlation
from zsqretrieval.evaluation.plan import Plan
from zsqretrieval.evaluation.runs import Direction, Run
from zsqretrieval.search.fusion import Fusion

__all__ = ["Agreement", "Choice", "Example", "Part", "Point", "Study"]


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a curve of quality against depth.

    Attributes:
        system: whose.
        depth: candidates read.
        measure: its name.
        mean: over the queries.
        interval: of the mean.
    """

    system: str
    depth: int
    measure: str
    mean: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Example:
    """A query that one system answers better than the baseline, or worse.

    Attributes:
        query: its id.
        text: what was asked.
        system: which was compared with the baseline.
        before: rank of the first relevant image by the baseline, from 1; None when it is not ranked.
        after: the same by the system.
        relevant: ids of the right images.
        first_before: ids of the images that the baseline puts first.
        first_after: the same of the system.
    """

    query: str
    text: str
    system: str
    before: int | None
    after: int | None
    relevant: tuple[str, ...]
    first_before: tuple[str, ...]
    first_after: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One direction and form.

    Attributes:
        direction: who looks for whom.
        form: of the texts.
        task: what was answered.
        runs: of all systems, the baseline first; those that read candidates rank the others behind them, in
            the order of the first stage.
        results: per measure and system.
        curve: quality by depth, from the same scores.
        ceiling: recall of the first stage by depth: no recall at as many places or fewer exceeds it.
        reliability: of the scores.
        ties: by system that reads candidates, the share of them that has exactly the score of another one of
            the same query.
        ablations: per base system, its own results on the sample first, then those of what was taken away.
        ablation_runs: of what was taken away.
        ablation_queries: how many these are.
        chance: R@1 of putting the candidates in any order, of the queries of the ablations.
        won: examples that the last re-ranking system improves most.
        lost: examples that it spoils most.
    """

    direction: Direction
    form: str
    task: Task
    runs: tuple[Run, ...]
    results: tuple[Result, ...]
    curve: tuple[Point, ...]
    ceiling: tuple[Point, ...]
    reliability: tuple[Reliability, ...]
    ties: Mapping[str, float]
    ablations: Mapping[str, tuple[Result, ...]]
    ablation_runs: tuple[Run, ...]
    ablation_queries: int
    chance: float
    won: tuple[Example, ...]
    lost: tuple[Example, ...]

    def to_json(self) -> dict[str, Any]:
        """All but the runs, as JSON takes it."""
        return {
            "direction": self.direction,
            "form": self.form,
            "queries": len(self.task.queries),
            "items": len(self.task.items),
            "results": [one.to_json() for one in self.results],
            "curve": [asdict(one) for one in self.curve],
            "ceiling": [asdict(one) for one in self.ceiling],
            "reliability": [one.to_json() for one in self.reliability],
            "ties": dict(self.ties),
            "ablations": {
                base: [one.to_json() for one in results] for base, results in self.ablations.items()
            },
            "ablation_queries": self.ablation_queries,
            "chance_R@1": self.chance,
            "won": [asdict(one) for one in self.won],
            "lost": [asdict(one) for one in self.lost],
        }


@dataclass(frozen=True, slots=True)
class Choice:
    """The parameters everything is measured with, and where they come from.

    Attributes:
        fusion: by direction, with the sum of log-likelihoods.
        fusion_of_mean: by direction, with their mean per token.
        alpha: how much of the prior is taken away.
        expansion: joins similarities to images and to questions.
        origin: ``given``, a preset, or the split they were tuned on.
        sweep: what was tried: ``direction``, ``parameter``, ``value``, and the mean over the forms of
            ``R@1``, ``R@5`` and ``R@10``.
    """

    fusion: Mapping[Direction, Fusion]
    fusion_of_mean: Mapping[Direction, Fusion]
    alpha: float
    expansion: Fusion
    origin: str
    sweep: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All of it; fusions as they are written."""
        return {
            "fusion": {way: repr(fusion) for way, fusion in self.fusion.items()},
            "fusion_of_mean": {way: repr(fusion) for way, fusion in self.fusion_of_mean.items()},
            "alpha": self.alpha,
            "expansion": repr(self.expansion),
            "origin": self.origin,
            "sweep": [dict(one) for one in self.sweep],
        }


@dataclass(frozen=True, slots=True, eq=False)
class Agreement:
    """How the systems agree with one set of human ratings.

    Attributes:
        ratings: their name.
        images: ids of the n images that captions were rated beside, in the order of the ratings.
        scores: by system, float64 [n].
        taus: by system; one that says the same of every pair has none.
    """

    ratings: str
    images: tuple[str, ...]
    scores: Mapping[str, NDArray[np.float64]]
    taus: Mapping[str, Correlation]


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """All that was found.

    Attributes:
        dataset: what was measured, with the forms asked for.
        plan: how.
        parts: by direction, then form.
        choice: the parameters.
        agreement: with human ratings; empty where there are none.
        cost: of searching; None when it was not measured.
        checks: ``pixels``: what storing image states changes; ``questions`` and ``query bank``: how many were
            ``generated`` and ``kept``.
        fingerprints: of encoder and generator.
    """

    dataset: Dataset
    plan: Plan
    parts: tuple[Part, ...]
    choice: Choice
    agreement: tuple[Agreement, ...]
    cost: Cost | None
    checks: Mapping[str, Any]
    fingerprints: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """All but the runs, as JSON takes it."""
        return {
            "dataset": {
                "name": self.dataset.name,
                "images": len(self.dataset.gallery),
                "forms": {part.form: len(part.task.queries) for part in reversed(self.parts)},
                "notes": list(self.dataset.notes),
            },
            "plan": {**asdict(self.plan), "fusion": repr(self.plan.fusion),
                     "expansion": repr(self.plan.expansion)},
            "fingerprints": dict(self.fingerprints),
            "choice": self.choice.to_json(),
            "parts": [part.to_json() for part in self.parts],
            "agreement": {one.ratings: {system: asdict(tau) for system, tau in one.taus.items()}
                          for one in self.agreement},
            "cost": self.cost.to_json() if self.cost is not None else None,
            "checks": dict(self.checks),
        }  # fmt: skip
