"""Options that several commands have, and how hits are told."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zsqretrieval.cli.console import hit_facts
from zsqretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    from zsqretrieval.search.display import Stage
    from zsqretrieval.types import Hit

__all__ = [
    "AsJson",
    "BenchData",
    "BenchPreset",
    "Candidates",
    "EncoderWeights",
    "Expansions",
    "Fusions",
    "GeneratorWeights",
    "HowExpanded",
    "HowFused",
    "HowScored",
    "Reread",
    "Scale",
    "Scorings",
    "States",
    "Temper",
    "Weight",
    "command_line",
    "expansion_settings",
    "hit_told",
    "human_seconds",
    "read_lines",
    "score_cells",
    "score_columns",
    "search_settings",
    "told_explanation",
    "told_interval",
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


class Expansions(str, Enum):
    """How similarities to images and to their questions are joined."""

    WEIGHTED_SUM = "weighted-sum"
    MAXIMUM = "maximum"
    RECIPROCAL_RANK = "reciprocal-rank"


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
HowExpanded = Annotated[
    Expansions | None,
    typer.Option(help="How images and questions are joined; implies --expand.", show_default="weighted-sum"),
]
Scale = Annotated[
    float | None,
    typer.Option(
        min=0, help="Factor from cosine similarity to log-probability.", show_default="the library's"
    ),
]
Temper = Annotated[
    float | None,
    typer.Option(min=0, help="Exponent of the likelihood of an answer.", show_default="the library's"),
]
Reread = Annotated[float, typer.Option(min=0, help="How much of what the encoder makes of an answer counts.")]
EncoderWeights = Annotated[
    Path | None,
    typer.Option(help="Weights of the encoder in a local folder or file, in place of the preset's."),
]
GeneratorWeights = Annotated[
    Path | None,
    typer.Option(help="Weights of the generator in a local folder or file, in place of the preset's."),
]
BenchData = Annotated[
    Path, typer.Option(help="Folder of WebDataset shards named by split: test-000.tar, ...")
]
BenchPreset = Annotated[
    str, typer.Option(help="Whose encoder and generator: mini, clip-kosmos2 or clip-l14-kosmos2.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]


def command_line(ctx: typer.Context) -> str:
    """The command as it was given, with everything that was left to defaults said as well."""
    parameters = {parameter.name or "": parameter for parameter in ctx.command.params}
    words = ["zsq", *ctx.command_path.split()[1:]]  # whatever the program was started as
    words += [str(ctx.params[name]) for name, one in parameters.items() if one.param_type_name == "argument"]
    for name, one in parameters.items():
        value = ctx.params.get(name)
        if one.param_type_name != "option" or value is None or name == "as_json":
            continue
        if isinstance(value, bool):
            words.append((one.opts if value else one.secondary_opts)[0])
        else:
            words += [one.opts[0], str(value)]
    return shlex.join(words)


def search_settings(
    candidates: int, scoring: Scorings | None, fusion: Fusions | None, weight: float | None
) -> dict[str, Any]:
    """The options as arguments of :meth:`zsqretrieval.retriever.Retriever.search`."""
    from zsqretrieval.search.fusion import ReciprocalRank, RerankOnly, WeightedSum
    from zsqretrieval.search.scoring import Likelihood, YesNo

    if weight is not None and fusion not in (None, Fusions.WEIGHTED_SUM):
        raise typer.BadParameter(f"--weight belongs to the weighted sum; {fusion.value} has none")
    if scoring is Scorings.NONE and not (fusion is None and weight is None):
        raise typer.BadParameter("--scoring none leaves nothing to join; leave --fusion and --weight out")
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


def expansion_settings(expand: bool, expansion: Expansions | None) -> dict[str, Any]:
    """The same for the first stage."""
    from zsqretrieval.search.expansion import EXPANSION
    from zsqretrieval.search.fusion import Maximum, ReciprocalRank

    rules = {
        None: EXPANSION,
        Expansions.WEIGHTED_SUM: EXPANSION,
        Expansions.MAXIMUM: Maximum(),
        Expansions.RECIPROCAL_RANK: ReciprocalRank(),
    }
    return {"expand": expand or expansion is not None, "expansion": rules[expansion]}


def read_lines(path: Path) -> list[str]:
    """The lines of a file of texts, without empty ones.

    Raises:
        InvalidInputError: it cannot be read, is not UTF-8, or says nothing.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidInputError(f"{path} cannot be read: {reason}") from error
    if not (texts := [line.strip() for line in lines if line.strip()]):
        raise InvalidInputError(f"{path} holds no texts; give one a line")
    return texts


def hit_told(place: int, hit: Hit) -> dict[str, Any]:
    """A hit as JSON, with the question that matched and the explanation; null where there is none."""
    from zsqretrieval.search.explain import words

    one = hit.explanation
    explanation = one and {
        "answer": one.answer,
        "words": [{"text": word.text, "gain": word.gain} for word in words(one)],
        "tokens": list(one.tokens),
        "with_image": one.with_image.tolist(),
        "without_image": one.without_image.tolist(),
    }
    facts = hit_facts(place, hit)
    return facts | {"matched_question": hit.matched_question, "explanation": explanation}


def told_explanation(hit: Hit) -> list[str]:
    """The explanation of a hit in lines: its answer, and the question with what the image says to each word.

    A word has its gain in nats behind it where that is :data:`~zsqretrieval.search.explain.SAYS` or more, either
    way.
    """
    from zsqretrieval.search.explain import SAYS, words

    if hit.explanation is None:
        return ["cannot be shown to the generator"]
    marked = [
        f"{word.text} [{word.gain:+.1f}]" if abs(word.gain) >= SAYS else word.text
        for word in words(hit.explanation)
    ]
    answer = hit.explanation.answer
    return [f"answers: {answer}" if answer else "gives no answer", f"explains: {' '.join(marked)}"]


def score_columns(hits: Iterable[Hit]) -> dict[str, str]:
    """Which stages scored some hits, and their names in words; ``"score"`` when there is one only."""
    fullest_first = sorted(hits, key=lambda hit: -len(hit.scores))
    names = list(dict.fromkeys(name for hit in fullest_first for name in hit.scores))
    return {name: _stage(name).label if len(names) > 1 else "score" for name in names}


def score_cells(hit: Hit, stages: Iterable[str]) -> list[str]:
    """The scores of a hit as texts; empty where a stage did not score it."""
    return [f"{hit.scores[name]:.{_stage(name).digits}f}" if name in hit.scores else "" for name in stages]


def told_timings(timings: Mapping[str, float]) -> str:
    """Seconds per stage as a sentence."""
    said = [f"{_stage(name).label} {human_seconds(seconds)}" for name, seconds in timings.items()]
    return f"Took: {', '.join(said)}."


def _stage(name: str) -> Stage:
    from zsqretrieval.search.display import STAGES, Stage

    return STAGES.get(name) or Stage(name.replace("_", " "), digits=3)


def told_interval(interval: Iterable[float], form: str = ".1f") -> str:
    """An interval for people: ``25.8 to 29.8``; each end in a form that :func:`format` knows."""
    low, high = interval
    return f"{low:{form}} to {high:{form}}"


def human_seconds(seconds: float) -> str:
    """Seconds for people: ``12 ms``, ``3.4 s``."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{1000 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"
