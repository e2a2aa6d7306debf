"""Settings of an evaluation: systems, queries, candidates, samples, and defaults that fit a data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from zsqretrieval._util.checks import check_amounts, check_counts, check_shares
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets import CAPTION, DIRECTIONS, Dataset, Direction
from zsqretrieval.evaluation.metrics import MEASURES, check_measures
from zsqretrieval.evaluation.query_forms import QUESTION_RULES, question_form, with_questions
from zsqretrieval.search.fusion import Fusion, WeightedSum

_COUNTS = (
    *("candidates", "questions", "bank", "top_k", "ablation_queries", "tuning_queries"),
    *("batch_size", "resamples", "permutations", "timed_queries"),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """What an evaluation measures.

    Raises:
        InvalidInputError: a direction or measure is unknown, or a number is out of range.
        MissingDependencyError: ir-measures is not installed.
    """

    # names from SYSTEMS, without the first stage, which is always measured
    systems: tuple[str, ...] = ("likelihood", "likelihood - prior", "yes_no", "fused", "expanded")
    directions: tuple[Direction, ...] = DIRECTIONS
    queries: int | None = None  # of each form and direction; all when None
    candidates: int = 50  # re-ranked for each query
    curve_candidates: int | None = None  # text to image, scored for the curve of quality by depth, if more
    depths: tuple[int, ...] = (0, 5, 10, 20, 50, 100)  # of the curve
    fusion: Fusion = field(default_factory=WeightedSum)  # combines first-stage scores and likelihoods
    # combines similarities to images and to their questions
    expansion: Fusion = field(default_factory=lambda: WeightedSum(0.05))
    alpha: float = 0.8  # share of a text's prior that is subtracted, image to text
    origin: str = "given"  # where fusion, expansion and alpha come from
    questions: int = 3  # of an image for the expansion, at most
    style: str = "questions"  # of these questions
    temperature: float = 0.7  # of their sampling
    bank: int = 4  # texts of an image for the query bank, at most
    bank_scale: float = 20.0  # inverse temperature of the query bank
    bank_strength: float = 0.5  # share of the hubness that the query bank subtracts
    top_k: int = 10  # a question is kept if a search with it finds its image among the first top_k
    measures: tuple[str, ...] = MEASURES  # names as in the module metrics
    ablation_queries: int = 300  # of each form and direction
    tuning_queries: int = 300  # of each form and direction of the split that parameters are tuned on
    timed_queries: int = 10  # timed one at a time
    batch_size: int = 64  # pairs the generator computes together
    resamples: int = 2000  # draws of the bootstrap
    permutations: int = 9999  # of the permutation test
    seed: int = 0  # of every draw

    def __post_init__(self) -> None:
        if not self.directions or set(self.directions) - set(DIRECTIONS):
            raise InvalidInputError(f"directions must be some of {DIRECTIONS}, not {self.directions}")
        check_counts(or_none=True, queries=self.queries, curve_candidates=self.curve_candidates)
        check_counts(**{name: getattr(self, name) for name in _COUNTS})
        check_counts(0, seed=self.seed)
        for depth in self.depths:
            check_counts(0, depths=depth)
        check_shares(alpha=self.alpha)
        check_amounts(temperature=self.temperature)
        check_measures(self.measures)

    def deepest(self, direction: Direction) -> int:
        """Candidates scored for the curve."""
        further = self.curve_candidates if direction == "text to image" else None
        return max(self.candidates, further or 0)

    def curve(self, direction: Direction, items: int) -> list[int]:
        """Depths of the curve for so many items."""
        deepest = min(self.deepest(direction), items)
        reranked = min(self.candidates, deepest)
        return sorted({depth for depth in self.depths if depth < deepest} | {reranked, deepest})

    def fitting(self, dataset: Dataset, *, candidates: bool = True) -> Settings:
        """Samples that fit the size of a data set.

        ``queries`` becomes 1,000, or 100 for less than 200 images, if it is None and there are more. Less
        than 200 images get fewer timed queries and, with ``candidates``, at most half of the images as
        candidates, but at least ten.
        """
        small = len(dataset.gallery) < 200
        limit = 100 if small else 1000
        most = max(sum(query.form == form for query in dataset.queries) for form in dataset.forms)
        queries = limit if self.queries is None and most > limit else self.queries
        if not small:
            return replace(self, queries=queries)
        fewer = max(min(self.candidates, len(dataset.gallery) // 2), 10) if candidates else self.candidates
        return replace(self, queries=queries, candidates=fewer, timed_queries=min(self.timed_queries, 5))


def choose_directions(names: Iterable[str]) -> tuple[Direction, ...]:
    """Parse directions as people write them, with blanks or hyphens; InvalidInputError if one is unknown."""
    asked = {name.strip().replace("-", " ") for name in names}
    if strange := sorted(asked - set(DIRECTIONS)):
        raise InvalidInputError(f"there is no direction {strange[0]!r}; choose from {', '.join(DIRECTIONS)}")
    return tuple(direction for direction in DIRECTIONS if direction in asked)


def with_weight(fusion: Fusion, weight: float) -> WeightedSum:
    """The fusion with another weight; a plain weighted sum if the fusion has none."""
    return replace(fusion, weight=weight) if isinstance(fusion, WeightedSum) else WeightedSum(weight)


def with_forms(dataset: Dataset, forms: Sequence[str] | None = None) -> Dataset:
    """Return the data set with queries of these forms; questions are made from captions as needed.

    Args:
        dataset: as it was read.
        forms: such as ``caption``. None: those of the data set, and ``question/which`` if it has captions.

    Raises:
        InvalidInputError: a form is unknown; lists those the data set can have.
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
