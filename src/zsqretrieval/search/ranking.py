"""Rankings: the result of a search, as a sequence, arrays, tables and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, overload

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from zsqretrieval._util.checks import printable
from zsqretrieval._util.optional import import_optional
from zsqretrieval.album.kept import KeptImages
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.search.explain import words
from zsqretrieval.types import Hit

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure
    from rich.console import Console, ConsoleOptions, RenderResult

_OWN = ("id", "source", "score", "caption", "probability", "duplicates", "matched_question")

RELEVANT = 0.5
"""Probability from which a hit counts as relevant."""


@dataclass(frozen=True, repr=False)
class Ranking(Sequence[Hit]):
    """Hits for one query, best first: a sequence of :class:`~zsqretrieval.types.Hit`. A slice is a ranking.

    In a notebook it shows itself with thumbnails, and in a terminal by ``rich.print(ranking)``.

    Attributes:
        query: the query in words: the question, or the source of the query image.
        hits: the hits, best first.
        timings: seconds by stage.
        truncated: whether the encoder cut the question, so that the first stage knows only its beginning.
        unscored: number of candidates that the second stage had to score and could not.
        kept: the bytes that the album keeps, for thumbnails; no part of the record.
    """

    query: str
    hits: tuple[Hit, ...]
    timings: Mapping[str, float] = field(default_factory=dict)
    truncated: bool = False
    unscored: int = 0
    kept: ClassVar[KeptImages | None] = None

    def of_album(self, kept: KeptImages | None) -> Self:
        """The same ranking, with the bytes that its album keeps."""
        made = replace(self)
        object.__setattr__(made, "kept", kept)
        return made

    def _with(self, hits: Iterable[Hit]) -> Self:
        return replace(self, hits=tuple(hits)).of_album(self.kept)

    def __reduce__(self) -> tuple[Any, ...]:  # an open album cannot be pickled
        return Ranking, (self.query, self.hits, dict(self.timings), self.truncated, self.unscored)

    def __len__(self) -> int:
        return len(self.hits)

    @overload
    def __getitem__(self, position: int) -> Hit: ...

    @overload
    def __getitem__(self, position: slice) -> Ranking: ...

    def __getitem__(self, position: int | slice) -> Hit | Ranking:
        if isinstance(position, slice):
            return self._with(self.hits[position])
        return self.hits[position]

    @property
    def ids(self) -> list[str]:
        """Ids of the hits, best first."""
        return [hit.id for hit in self.hits]

    @property
    def scores(self) -> NDArray[np.float64]:
        """Scores of the hits, float64 [n]; nan for a hit without one."""
        return np.array([math.nan if hit.score is None else hit.score for hit in self.hits], np.float64)

    @property
    def nothing_found(self) -> bool:
        """Whether no hit is relevant: there is none, or all have a probability below one half."""
        return all(hit.probability is not None and hit.probability < RELEVANT for hit in self.hits)

    # --- order --------------------------------------------------------------------------------------------

    def sort_by(self, name: str, *, reverse: bool = False) -> Ranking:
        """Sort by ``id``, ``source``, ``score``, ``caption``, ``probability``, or else a metadata field.

        ``metadata.score`` is the metadata's own.
        Numbers come before texts, and hits without the field last. Hits with equal values keep their order.

        Raises:
            InvalidInputError: no hit has the field; names those there are.
        """
        values = self._values(name)
        having = [n for n, value in enumerate(values) if value is not None]
        having.sort(key=lambda n: _sortable(values[n]), reverse=reverse)
        lacking = [n for n, value in enumerate(values) if value is None]
        return self._with(self.hits[n] for n in [*having, *lacking])

    def group_by(self, name: str) -> dict[Any, Ranking]:
        """Group by a field (see :meth:`sort_by`): rankings by its value, that of the best hit first.

        A list or an object counts as its text. Hits without the field have the value None.
        """
        groups: dict[Any, list[Hit]] = {}
        for hit, value in zip(self.hits, self._values(name), strict=True):
            groups.setdefault(str(value) if isinstance(value, list | dict) else value, []).append(hit)
        return {value: self._with(hits) for value, hits in groups.items()}

    def _values(self, name: str) -> list[Any]:
        found = [_value(hit, name) for hit in self.hits]
        if self.hits and name not in _OWN and all(value is None for value in found):
            fields = sorted({*_OWN, *(key for hit in self.hits for key in hit.metadata)})
            raise InvalidInputError(f"no hit has a field {name!r}; there are {', '.join(fields)}")
        return found

    # --- tables and pictures ------------------------------------------------------------------------------

    def to_dicts(self) -> list[dict[str, Any]]:
        """The hits as JSON values; null in place of numbers that are not finite."""
        found: list[dict[str, Any]] = [_json(_hit_dict(rank, hit)) for rank, hit in enumerate(self.hits, 1)]
        return found

    def to_pandas(self) -> pandas.DataFrame:
        """The hits as a table: one column per property, score (``scores.*``) and field (``metadata.*``).

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        package = import_optional("pandas", "Ranking.to_pandas()", "pip install pandas")
        rows = self.to_dicts()
        for row in rows:
            del row["explanation"]
            for name in ("scores", "metadata"):
                row |= {f"{name}.{key}": value for key, value in row.pop(name).items()}
        columns = None if rows else ["rank", "id", "source", "score"]
        table: pandas.DataFrame = package.DataFrame(rows, columns=columns)
        return table

    def _repr_html_(self) -> str:
        from zsqretrieval.search import display

        return display.notebook(self)

    def plot(self, columns: int = 5) -> Figure:
        """Draw the hits with their scores.

        Raises:
            MissingDependencyError: matplotlib is not installed.
        """
        from zsqretrieval.search import display

        return display.figure(self, columns)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from zsqretrieval.search import display

        return display.rich_lines(self, console)

    def __str__(self) -> str:
        lines = [
            f"{rank:>4} {score_text(hit):>8} {printable(hit.id)}" for rank, hit in enumerate(self.hits, 1)
        ]
        return "\n".join([f"{self.query!r}: {len(self)} hits", *lines])

    def __repr__(self) -> str:
        first = ", ".join(f"{printable(hit.id)} {score_text(hit)}".strip() for hit in self.hits[:3])
        return f"Ranking({self.query!r}, {len(self)} hits: {first}{', ...' if len(self) > 3 else ''})"


def score_text(hit: Hit) -> str:
    """The score for people; empty without one."""
    return "" if hit.score is None else f"{hit.score:.3f}"


def _value(hit: Hit, name: str) -> Any:
    if name in _OWN:
        return getattr(hit, name)
    return hit.metadata.get(name, hit.metadata.get(name.removeprefix("metadata.")))


def _sortable(value: Any) -> tuple[int, Any]:
    if isinstance(value, int | float):
        return 0, value
    return 1, str(value)


def _hit_dict(rank: int, hit: Hit) -> dict[str, Any]:
    one = hit.explanation
    return {
        "rank": rank,
        "id": hit.id,
        "source": hit.source,
        "score": hit.score,
        "scores": dict(hit.scores),
        "probability": hit.probability,
        "duplicates": hit.duplicates,
        "caption": hit.caption,
        "metadata": dict(hit.metadata),
        "matched_question": hit.matched_question,
        "explanation": one
        and {
            "answer": one.answer,
            "words": [{"text": word.text, "gain": word.gain} for word in words(one)],
            "tokens": list(one.tokens),
            "with_image": one.with_image.tolist(),
            "without_image": one.without_image.tolist(),
        },
    }


def _json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_json(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
