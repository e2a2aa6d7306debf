"""Options that say how a generator reads the candidates, and what the library makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from zsqretrieval.types import Hit

__all__ = [
    "Candidates",
    "EncoderWeights",
    "Fusions",
    "GeneratorWeights",
    "HowFused",
    "HowScored",
    "Scorings",
    "States",
    "Weight",
    "human_seconds",
    "score_cells",
    "score_columns",
    "search_settings",
    "told_timings",
]


class Scorings(str, Enum):
    """What the generator is asked about each candidate."""

    LIKELIHOOD = "likelihood"
    YES_NO = "yes-no"
    NONE = "none"


class Fusions(str, Enum):
    """How its answer joins the first stage."""

    WEIGHTED_SUM = "weighted-sum"
    RECIPROCAL_RANK = "reciprocal-rank"
    RERANK_ONLY = "rerank-only"


class States(str, Enum):
    """Where what the generator sees in an image is kept; in memory it would end with the command."""

    DISK = "disk"
    NONE = "none"


Candidates = Annotated[int, typer.Option(min=1, help="Images of the first stage that the generator reads.")]
HowScored = Annotated[
    Scorings | None,
    typer.Option(help="What the generator is asked.", show_default="likelihood, if there is a generator"),
]
HowFused = Annotated[
    Fusions | None,
    typer.Option(help="How its scores join the first stage's.", show_default="the preset's or the album's"),
]
Weight = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Join them by a weighted sum with this weight of the generator.",
        show_default="1 in --fusion weighted-sum",
    ),
]
EncoderWeights = Annotated[
    Path | None,
    typer.Option(help="Weights of the encoder in a local folder or file, in place of the preset's."),
]
GeneratorWeights = Annotated[
    Path | None,
    typer.Option(help="Weights of the generator in a local folder or file, in place of the preset's."),
]


def search_settings(
    candidates: int, scoring: Scorings | None, fusion: Fusions | None, weight: float | None
) -> dict[str, Any]:
    """The options as arguments of :meth:`zsqretrieval.retriever.Retriever.search`."""
    from zsqretrieval.rerank import Likelihood, ReciprocalRank, RerankOnly, WeightedSum, YesNo

    if weight is not None and fusion not in (None, Fusions.WEIGHTED_SUM):
        raise typer.BadParameter(f"--weight belongs to the weighted sum; {fusion.value} has none")
    rules = {
        None: "auto",
        Scorings.LIKELIHOOD: Likelihood(),
        Scorings.YES_NO: YesNo(),
        Scorings.NONE: None,
    }
    fusions = {
        None: "auto" if weight is None else WeightedSum(weight),
        Fusions.WEIGHTED_SUM: WeightedSum() if weight is None else WeightedSum(weight),
        Fusions.RECIPROCAL_RANK: ReciprocalRank(),
        Fusions.RERANK_ONLY: RerankOnly(),
    }
    return {"candidates": candidates, "scoring": rules[scoring], "fusion": fusions[fusion]}


def score_columns(hits: Iterable[Hit]) -> dict[str, str]:
    """Which stages scored some hits, and their names in words; ``"score"`` when there is one only."""
    from zsqretrieval.contact_sheet import STAGES, Stage

    names = list(dict.fromkeys(name for hit in hits for name in hit.scores))
    return {name: STAGES.get(name, Stage(name)).label if len(names) > 1 else "score" for name in names}


def score_cells(hit: Hit, stages: Iterable[str]) -> list[str]:
    """The scores of a hit as texts; empty where a stage did not score it."""
    from zsqretrieval.contact_sheet import STAGES, Stage

    return [
        f"{hit.scores[name]:.{STAGES.get(name, Stage(name)).digits}f}" if name in hit.scores else ""
        for name in stages
    ]


def told_timings(timings: Mapping[str, float]) -> str:
    """Seconds per stage as a sentence."""
    from zsqretrieval.contact_sheet import STAGES, Stage

    said = [
        f"{STAGES.get(name, Stage(name)).label} {human_seconds(seconds)}" for name, seconds in timings.items()
    ]
    return f"Took: {', '.join(said)}."


def human_seconds(seconds: float) -> str:
    """Seconds for people: ``12 ms``, ``3.4 s``."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{1000 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"
