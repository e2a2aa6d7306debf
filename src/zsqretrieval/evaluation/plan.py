"""What a study measures, and how: systems by name, forms of queries, and all the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from zsqretrieval._util.checks import check_counts
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets import CAPTION, Dataset
from zsqretrieval.evaluation.measures import MEASURES, check_measures
from zsqretrieval.evaluation.query_forms import QUESTION_RULES, question_form, with_questions
from zsqretrieval.evaluation.runs import Direction
from zsqretrieval.search.expansion import EXPANSION
from zsqretrieval.search.fusion import Fusion, WeightedSum

__all__ = [
    "ABLATIONS",
    "BASELINE",
    "DIRECTIONS",
    "NORMALIZED",
    "SYSTEMS",
    "Plan",
    "choose_directions",
    "choose_systems",
    "with_forms",
    "with_weight",
]

BASELINE = "clip"
"""Name of the first stage, whatever its encoder; everything is compared with it."""

SYSTEMS = (BASELINE, "likelihood", "yes_no", "fused", "expand")
"""What is measured unless asked otherwise."""

NORMALIZED = ("normalized", "normalized_fused")
"""With a query bank: what else can be measured, where texts look for images."""

ABLATIONS: Mapping[str, str] = {
    "no_image": "the likelihood of the text given null images only: the language model's own belief",
    "shuffled": "the likelihood given another image of the gallery in the place of each",
    "wording": "both rules with other prompts",
    "mean": "fused with the likelihood per token in place of the sum",
    "prior": "fused without taking the prior of the texts away, where images look for texts",
    "pixels": "likelihoods from pixels against those from stored states",
}
"""What takes a part away, by name."""

DIRECTIONS: tuple[Direction, ...] = ("text to image", "image to text")
"""Who looks for whom."""

_COUNTS = (
    *("candidates", "questions", "bank", "top_k", "ablation_queries", "tuning_queries"),
    *("batch_size", "resamples", "permutations"),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how.

    Attributes:
        systems: of :data:`SYSTEMS`, :data:`NORMALIZED` and :data:`ABLATIONS`.
        directions: of :data:`DIRECTIONS`.
        queries: queries of each form and direction; all when None.
        candidates: how many are read.
        curve_candidates: how many texts that look for images have read for the curves, where that is more;
            ``candidates`` when None.
        depths: how many are read for the curves; those above are left out.
        fusion: joins first stage and likelihood.
        fusion_from: where the fusion comes from, for the record.
        alpha: how much of the prior is taken away where images look for texts.
        expansion: joins similarities to images and to questions.
        questions: of each image, at most.
        bank: texts of each image for the query bank, at most.
        top_k: a question is kept when it finds its image among so many.
        measures: names that :mod:`~zsqretrieval.evaluation.measures` knows.
        ablation_queries: queries of each form and direction on which ablations are measured.
        tuning_queries: the same of the tuning split.
        batch_size: pairs the generator computes together.
        resamples: draws of the bootstrap.
        permutations: exchanges of the permutation test.
        seed: of every draw.

    Raises:
        InvalidInputError: no such system, direction or measure, or a number out of range.
        MissingDependencyError: ir-measures is not installed.
    """

    systems: tuple[str, ...] = SYSTEMS
    directions: tuple[Direction, ...] = DIRECTIONS
    queries: int | None = None
    candidates: int = 50
    curve_candidates: int | None = None
    depths: tuple[int, ...] = (0, 5, 10, 20, 50, 100)
    fusion: Fusion = field(default_factory=WeightedSum)
    fusion_from: str = "given"
    alpha: float = 0.8
    expansion: Fusion = EXPANSION
    questions: int = 3
    bank: int = 4
    top_k: int = 10
    measures: tuple[str, ...] = MEASURES
    ablation_queries: int = 300
    tuning_queries: int = 300
    batch_size: int = 64
    resamples: int = 2000
    permutations: int = 9999
    seed: int = 0

    def __post_init__(self) -> None:
        choose_systems(self.systems)
        if not self.directions or set(self.directions) - set(DIRECTIONS):
            raise InvalidInputError(f"directions must be some of {DIRECTIONS}, not {self.directions}")
        check_counts(or_none=True, queries=self.queries, curve_candidates=self.curve_candidates)
        check_counts(**{name: getattr(self, name) for name in _COUNTS})
        check_counts(0, seed=self.seed)
        for depth in self.depths:
            check_counts(0, depths=depth)
        if not 0 <= self.alpha <= 1:
            raise InvalidInputError(f"alpha must lie between 0 and 1, not {self.alpha}")
        check_measures(self.measures)

    def deepest(self, direction: Direction) -> int:
        """How many candidates are read for the curves."""
        further = self.curve_candidates if direction == "text to image" else None
        return max(self.candidates, further or 0)

    def curve(self, direction: Direction, items: int) -> list[int]:
        """The depths of the curves, where there are so many items."""
        deepest = min(self.deepest(direction), items)
        read = min(self.candidates, deepest)
        return sorted({depth for depth in self.depths if depth < deepest} | {read, deepest})

    def wants(self, *systems: str) -> bool:
        """Whether any of these is asked for."""
        return bool({*systems} & {*self.systems})


def choose_systems(names: Iterable[str]) -> tuple[str, ...]:
    """Systems by the names that people write: ``yesno`` is ``yes_no``, ``all`` everything.

    Returns:
        The names in the order of :data:`SYSTEMS`, :data:`NORMALIZED` and :data:`ABLATIONS`, each once, the
        baseline among them.

    Raises:
        InvalidInputError: there is no such system; names those there are.
    """
    known = (*SYSTEMS, *NORMALIZED, *ABLATIONS)
    asked = {name.strip().replace("-", "_").replace("yesno", "yes_no") for name in names} - {""}
    if strange := sorted(asked - {*known, "all"}):
        raise InvalidInputError(f"there is no system {strange[0]!r}; choose from {', '.join(known)}, or all")
    return known if "all" in asked else tuple(name for name in known if name in asked | {BASELINE})


def choose_directions(names: Iterable[str]) -> tuple[Direction, ...]:
    """Directions by the names that people write, with blanks or hyphens; each once.

    Raises:
        InvalidInputError: there is no such direction.
    """
    asked = {name.strip().replace("-", " ") for name in names}
    if strange := sorted(asked - set(DIRECTIONS)):
        raise InvalidInputError(f"there is no direction {strange[0]!r}; choose from {', '.join(DIRECTIONS)}")
    return tuple(direction for direction in DIRECTIONS if direction in asked)


def with_weight(fusion: Fusion, weight: float) -> WeightedSum:
    """The fusion with another weight; the plain one where it has none.

    Raises:
        InvalidInputError: as :class:`~zsqretrieval.search.fusion.WeightedSum`.
    """
    return replace(fusion, weight=weight) if isinstance(fusion, WeightedSum) else WeightedSum(weight)


def with_forms(dataset: Dataset, forms: Sequence[str] | None = None) -> Dataset:
    """The data set with queries of the forms asked for, questions made of captions where they are.

    Args:
        dataset: as it was read.
        forms: such as ``caption`` and ``question/which``. When None those that the data set has, and
            ``question/which`` of captions.

    Raises:
        InvalidInputError: the data set has no such form; names those that can be had.
    """
    rules = {question_form(rule): rule for rule in QUESTION_RULES}
    possible = (*dataset.forms, *(rules if CAPTION in dataset.forms else ()))
    if forms is None:
        forms = (*dataset.forms, *([question_form("which")] if CAPTION in dataset.forms else ()))
    if strange := [form for form in forms if form not in possible]:
        raise InvalidInputError(
            f"{dataset.name} has no queries of the form {strange[0]!r}; it has {', '.join(possible)}"
        )
    if made := [rules[form] for form in forms if form in rules and form not in dataset.forms]:
        dataset = with_questions(dataset, made)
    return dataset.of_form(*forms)
