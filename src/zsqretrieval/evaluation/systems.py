"""The systems of an evaluation, as a list: each makes a run from the cached scores of a :class:`Part`.

A system is one entry of :data:`SYSTEMS`, a few lines long. The first stage is not in the list: it is always
measured, has the name of its encoder, and every system is compared with it. An ablation differs from the
system that it is compared with in one thing: same candidates, same generator, same texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets import DIRECTIONS, Direction
from zsqretrieval.evaluation.run import (
    Run,
    fused_run,
    prior_corrected,
    rerank_depth,
    shallow,
    with_scores,
)
from zsqretrieval.evaluation.scores import Part
from zsqretrieval.generators.prompts import PROMPTS, Prompt
from zsqretrieval.search.fusion import Fusion
from zsqretrieval.search.scoring import Likelihood, Scoring, YesNo

FIRST_STAGE = "first_stage"
"""What the first stage is called on the command line."""

LIKELIHOOD, YES_NO = Likelihood(), YesNo()

_T2I: tuple[Direction, ...] = ("text to image",)
_I2T: tuple[Direction, ...] = ("image to text",)


@dataclass(frozen=True, slots=True)
class Choice:
    """The parameters that an evaluation measures with.

    ``sweep`` holds what was tried: ``direction``, ``system``, ``parameter``, ``value``, and the means over
    the forms of ``R@1``, ``R@5`` and ``R@10``.
    """

    fusion: Fusion  # of the systems that are not in ``fusions``
    expansion: Fusion  # combines similarities to images and to questions
    alpha: float  # share of a text's prior that is subtracted, image to text
    origin: str  # ``given``, a preset, or the split they were tuned on
    fusions: Mapping[tuple[str, Direction], Fusion] = field(default_factory=dict)  # tuned ones
    sweep: tuple[Mapping[str, Any], ...] = ()

    def fusion_of(self, system: str, direction: Direction) -> Fusion:
        """The fusion of a system."""
        return self.fusions.get((system, direction), self.fusion)

    def to_json(self, systems: Iterable[str]) -> dict[str, Any]:
        """All parameters; fusions of these systems as Python writes them."""
        fusions = {
            name: {way: repr(self.fusion_of(name, way)) for way in SYSTEMS[name].directions}
            for name in systems
            if SYSTEMS[name].tunes == "fusion"
        }
        return {
            "fusion": fusions,
            "expansion": repr(self.expansion),
            "alpha": self.alpha,
            "origin": self.origin,
            "sweep": [dict(one) for one in self.sweep],
        }


_Make = Callable[[Part, Choice, int], Run]


@dataclass(frozen=True, slots=True)
class System:
    """A system to measure.

    ``make`` makes the run from a part, the parameters and the number of candidates. A re-ranking system
    returns scores of the first candidates; the others stay below them. ``needs`` lists what is computed for
    it: ``likelihood``, ``yes_no``, ``prior``, ``questions``, ``bank``, ``extra`` (pairs of its own).
    """

    about: str  # one line for reports
    make: _Make
    needs: tuple[str, ...] = ()
    directions: tuple[Direction, ...] = DIRECTIONS
    reranks: bool = True  # scores candidates of the first stage, so a curve by depth can be drawn
    tunes: Literal["fusion", "expansion", "alpha"] | None = None  # the parameter tuned with this system
    base: str | None = None  # for an ablation, the system it is compared with
    option: str | None = None  # name on the command line if it differs; several systems may share one

    def run(self, name: str, part: Part, choice: Choice, depth: int) -> Run:
        """The run over all candidates of the first stage, of which ``depth`` are re-ranked."""
        run = self.make(part, choice, depth)
        if self.reranks:
            run = rerank_depth(part.first, run, depth)
        return replace(run, name=name)


def _scored_by(scoring: Scoring) -> _Make:
    return lambda part, choice, depth: part.scored(scoring, depth)


def corrected(part: Part, choice: Choice, depth: int) -> Run:
    """Likelihoods to be fused: minus the prior of the text, image to text, where it changes the order."""
    run = part.scored(LIKELIHOOD, depth)
    return prior_corrected(run, part.priors, choice.alpha) if part.direction == "image to text" else run


def _per_token(part: Part, choice: Choice, depth: int) -> Run:
    return part.per_token(corrected(part, choice, depth))


def _fused(
    system: str, scores: _Make = corrected, first: Callable[[Part], Run] = lambda part: part.first
) -> _Make:
    """Fuse a first stage and scores of its candidates with the fusion of a system."""
    return lambda part, choice, depth: fused_run(
        shallow(first(part), depth),
        scores(part, choice, depth),
        choice.fusion_of(system, part.direction),
    )


def _fused_expanded(part: Part, choice: Choice, depth: int) -> Run:
    expanded = part.expanded(choice.expansion)
    read = shallow(expanded, depth)
    scored = part.score(read, LIKELIHOOD, "scoring expanded candidates")
    fused = fused_run(read, scored, choice.fusion_of("fused+expanded", part.direction))
    return rerank_depth(expanded, fused, depth)


def _no_image(part: Part, choice: Choice, depth: int) -> Run:
    run = shallow(part.first, depth)
    scores = part.priors[part.pairs(run)[0]]
    return with_scores(run, np.where(run.candidates >= 0, scores, np.nan))


WORDINGS: Mapping[str, Scoring] = {
    "likelihood: captioning": Likelihood(PROMPTS["captioning"]),
    "likelihood: ask": Likelihood(PROMPTS["ask"]),
    "likelihood: upr": Likelihood(Prompt("<image>Please write a question based on this picture.")),
    "yes_no: question": YesNo(Prompt('<image>Question: does this picture show "{question}"? Answer:')),
    "yes_no: vqascore": YesNo(
        Prompt('<image>Does this figure show "{question}"? Please answer yes or no. Answer:')
    ),
}
"""Other prompts of the two rules. ``upr`` is the prompt of arXiv 2204.07496 with "passage" replaced;
``vqascore`` that of arXiv 2404.01291."""


SYSTEMS: Mapping[str, System] = {
    "likelihood": System("log P(text | image)", _scored_by(LIKELIHOOD), ("likelihood",)),
    "likelihood - prior": System(
        "the likelihood minus a share of the text's prior", corrected, ("likelihood", "prior"), _I2T,
        tunes="alpha", option="likelihood",
    ),
    "yes_no": System("log-odds of yes", _scored_by(YES_NO), ("yes_no",)),
    "fused": System("first stage and likelihood", _fused("fused"), ("likelihood", "prior"), tunes="fusion"),
    "expanded": System(
        "first stage over images and their generated questions",
        lambda part, choice, depth: part.expanded(choice.expansion),
        ("questions",), _T2I, reranks=False, tunes="expansion",
    ),
    "fused+expanded": System(
        "likelihood of the candidates of the expanded first stage, fused", _fused_expanded,
        ("questions", "likelihood", "extra"), _T2I, reranks=False, tunes="fusion",
    ),
    "normalized": System(
        "first stage minus each image's similarity to a bank of generated queries",
        lambda part, choice, depth: part.normalized, ("bank",), _T2I, reranks=False,
    ),
    "normalized+fused": System(
        "normalised first stage and likelihood",
        _fused("normalized+fused", first=lambda part: part.normalized), ("bank", "likelihood"), _T2I,
        tunes="fusion",
    ),
    "no_image": System(
        "the likelihood given null images only: the language model alone", _no_image, ("prior",),
        base="likelihood",
    ),
    "shuffled": System(
        "the likelihood given another image of the gallery in place of each",
        lambda part, choice, depth: part.shuffled(LIKELIHOOD, depth), ("extra",), base="likelihood",
    ),
    **{
        name: System("another prompt", _scored_by(rule), ("extra",), base=rule.name, option="wording")
        for name, rule in WORDINGS.items()
    },
    "fused: mean": System(
        "the likelihood per token in place of the sum",
        _fused("fused: mean", _per_token), ("prior",), tunes="fusion", base="fused", option="mean",
    ),
    "fused: no prior": System(
        "without subtracting the prior of the texts", _fused("fused", _scored_by(LIKELIHOOD)), (), _I2T,
        base="fused", option="prior",
    ),
}  # fmt: skip
"""All systems by name, the ablations last."""

CHECKS: Mapping[str, str] = {"pixels": "likelihoods from pixels against those from cached image features"}
"""Checks that are asked for like a system."""


def options() -> tuple[str, ...]:
    """The names that :func:`choose_systems` takes, in the order of the list."""
    named = (system.option or name for name, system in SYSTEMS.items())
    return (FIRST_STAGE, *dict.fromkeys(named), *CHECKS)


def choose_systems(names: Iterable[str]) -> tuple[str, ...]:
    """Parse names of systems as people write them: ``yes-no`` is ``yes_no``, ``all`` everything.

    Returns:
        Names of :data:`SYSTEMS` and :data:`CHECKS` in their order, without the first stage.

    Raises:
        InvalidInputError: a name is unknown; lists the names.
    """
    asked = {name.strip().replace("-", "_") for name in names} - {""}
    if strange := sorted(asked - {*options(), "all"}):
        raise InvalidInputError(
            f"there is no system {strange[0]!r}; choose from {', '.join(options())}, or all"
        )
    known = {name: system.option or name for name, system in SYSTEMS.items()} | {one: one for one in CHECKS}
    return tuple(name for name, option in known.items() if option in asked or "all" in asked)
