"""A data set: gallery, queries and relevant images; and file helpers whose errors name the line."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.checks import check_counts, is_unicode
from zsqretrieval._util.files import read_lines, read_text
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.types import Image

_T = TypeVar("_T")

Qrels = Mapping[str, Mapping[str, int]]
"""Query id -> item id -> grade, as in TREC: 0 is judged and not relevant, a missing item is not judged."""

Direction: TypeAlias = Literal["text to image", "image to text"]

DIRECTIONS: tuple[Direction, ...] = ("text to image", "image to text")
"""Retrieval directions."""

# Forms of queries.
CAPTION = "caption"  # a person's sentence about an image
HUMAN_QUESTION = "human question"  # asked by a person
ALT_TEXT = "alt text"  # the alternative text of an image on a web page
EXPERT_QUERY = "expert query"  # INQUIRE's phrases of naturalists: "a male mandarin duck in breeding plumage"


@dataclass(frozen=True, slots=True)
class Query:
    """A text query."""

    id: str
    text: str
    form: str  # kind of text, for instance CAPTION; results are reported per form
    source: str  # file and line for error messages


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One direction of a data set, by ids: all that measuring needs."""

    name: str
    queries: tuple[str, ...]  # q ids
    items: tuple[str, ...]  # n ids of the ranked items
    qrels: Qrels  # of exactly these queries
    clusters: NDArray[np.int64]  # [q]; queries of one cluster are not independent
    forms: tuple[str, ...]  # of each query
    direction: Direction = "text to image"

    @property
    def relevant(self) -> list[list[int]]:
        """Positions of the relevant items of every query."""
        place = {item: n for n, item in enumerate(self.items)}
        answers = (self.qrels[query] for query in self.queries)
        return [[place[item] for item, grade in own.items() if grade > 0] for own in answers]

    def some(self, rows: NDArray[np.int64]) -> Task:
        """The task with some of its queries and all items; int64 [r], their positions."""
        queries = tuple(self.queries[row] for row in rows)
        return replace(
            self,
            queries=queries,
            qrels={query: self.qrels[query] for query in queries},
            clusters=self.clusters[rows],
            forms=tuple(self.forms[row] for row in rows),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Images, text queries, and the relevant images of each query.

    Every image has an id, and every query an image of grade 1 or more.

    Raises:
        InvalidInputError: the gallery is empty, there are no queries, an id is missing or repeated, a query
            is blank or has no relevant image, or the qrels name an unknown id. Names the line if known.
    """

    name: str
    gallery: tuple[Image, ...]
    queries: tuple[Query, ...]
    qrels: Qrels
    notes: tuple[str, ...] = ()  # caveats of the data for reports

    def __post_init__(self) -> None:
        if not self.gallery:
            raise InvalidInputError(f"{self.name}: the gallery is empty")
        if not self.queries:
            raise InvalidInputError(f"{self.name}: there are no queries")
        _check_ids("image", self.gallery)
        _check_ids("query", self.queries)
        images, queries = self.places, {query.id for query in self.queries}
        for query in self.queries:
            if not query.text.strip():
                raise InvalidInputError(f"{query.source}: the text of query {query.id!r} is blank")
            if not is_unicode(query.text):
                raise InvalidInputError(
                    f"{query.source}: the text of query {query.id!r} is not Unicode: {query.text!r}"
                )
            answers = self.qrels.get(query.id, {})
            if strange := [id for id in answers if id not in images]:
                raise InvalidInputError(
                    f"{query.source}: the image {strange[0]!r} of query {query.id!r} is not in the gallery "
                    f"of {self.name} ({len(images)} images); are these images of another split?"
                )
            if not any(grade > 0 for grade in answers.values()):
                raise InvalidInputError(
                    f"{query.source}: query {query.id!r} has no relevant image; leave it out, or judge one"
                )
        if strange := [id for id in self.qrels if id not in queries]:
            raise InvalidInputError(f"{self.name}: the qrels name the unknown query {strange[0]!r}")

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms of the queries in order of appearance."""
        return tuple(dict.fromkeys(query.form for query in self.queries))

    @property
    def places(self) -> dict[str, int]:
        """Position of every image in the gallery by its id."""
        return {str(image.id): n for n, image in enumerate(self.gallery)}

    def positions(self, ids: Iterable[str]) -> NDArray[np.int64]:
        """Positions of images in the gallery, int64 [n]."""
        places = self.places
        return np.array([places[id] for id in ids], np.int64)

    def of_form(self, *forms: str) -> Dataset:
        """The same gallery with the queries of some forms only.

        Raises:
            InvalidInputError: no query has one of the forms.
        """
        if strange := set(forms) - set(self.forms):
            raise InvalidInputError(
                f"{self.name} has no queries of the form {min(strange)!r}; it has {', '.join(self.forms)}"
            )
        return self._with(query for query in self.queries if query.form in forms)

    def sample(self, count: int, *, seed: int = 0) -> Dataset:
        """The same gallery with at most ``count`` queries of each form.

        Every cluster gives one query before any gives two, and all forms sample the same clusters as far as
        they have them.

        Raises:
            InvalidInputError: ``count`` < 1.
        """
        check_counts(count=count)
        clusters = self.text_to_image().clusters.tolist()
        random = np.random.default_rng(seed)
        place = random.permutation(max(clusters) + 1).tolist()
        turns: Counter[tuple[str, int]] = Counter()
        queues = defaultdict[str, list[tuple[int, int, int]]](list)  # turn in the cluster, its place, query
        for n in random.permutation(len(self.queries)).tolist():
            form, cluster = self.queries[n].form, clusters[n]
            queues[form].append((turns[form, cluster], place[cluster], n))
            turns[form, cluster] += 1
        chosen = sorted(n for queue in queues.values() for _, _, n in sorted(queue)[:count])
        return self._with(self.queries[n] for n in chosen)

    def _with(self, queries: Iterable[Query]) -> Dataset:
        kept = tuple(queries)
        return replace(self, queries=kept, qrels={query.id: self.qrels[query.id] for query in kept})

    def task(self, direction: Direction) -> Task:
        """The task of one direction; errors as of :meth:`image_to_text`."""
        return self.text_to_image() if direction == "text to image" else self.image_to_text()

    def text_to_image(self) -> Task:
        """Text-to-image task. Queries with the same relevant images are one cluster."""
        numbers: dict[frozenset[str], int] = {}
        clusters: list[int] = []
        for query in self.queries:
            answers = frozenset(id for id, grade in self.qrels[query.id].items() if grade > 0)
            clusters.append(numbers.setdefault(answers, len(numbers)))
        return Task(
            f"{self.name}, text to image",
            tuple(query.id for query in self.queries),
            tuple(self.places),
            self.qrels,
            np.array(clusters, np.int64),
            tuple(query.form for query in self.queries),
        )

    def image_to_text(self) -> Task:
        """Image-to-text task; images without a text are no queries.

        Raises:
            InvalidInputError: the texts have several forms, so variants of one text would compete.
        """
        if len(self.forms) > 1:
            raise InvalidInputError(
                f"{self.name} has texts of the forms {', '.join(self.forms)}; image to text needs one form: "
                "choose it by of_form"
            )
        texts = defaultdict[str, dict[str, int]](dict)  # image -> query -> grade
        for query in self.queries:
            for image, grade in self.qrels[query.id].items():
                if grade > 0:
                    texts[image][query.id] = grade
        asking = tuple(image for image in self.places if image in texts)
        return Task(
            f"{self.name}, image to text",
            asking,
            tuple(query.id for query in self.queries),
            {image: texts[image] for image in asking},
            np.arange(len(asking), dtype=np.int64),
            self.forms * len(asking),
            "image to text",
        )


def _check_ids(what: str, records: Sequence[Image | Query]) -> None:
    seen: dict[str, str] = {}  # id -> source
    for one in records:
        if not one.id:
            raise InvalidInputError(f"{one.source}: the {what} has no id; qrels cannot name it")
        if not is_unicode(one.id):
            raise InvalidInputError(f"{one.source}: the id of the {what} is not Unicode: {one.id!r}")
        if one.id in seen:
            raise InvalidInputError(
                f"{one.source}: the {what} {one.id!r} is repeated, first at {seen[one.id]}"
            )
        seen[one.id] = one.source


# --- reading files ---------------------------------------------------------------------------------------


def found(path: Path, what: str, origin: str) -> Path:
    """Return the path, or raise an error that names its content and publisher."""
    if not path.exists():
        raise InvalidInputError(f"{path} is missing: {what}. Nothing is downloaded; get it from {origin}")
    return path


def read_json(path: Path, what: str, origin: str) -> Any:
    """The value of a JSON file."""
    return json_value(read_text(found(path, what, origin)), path.name)


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """Non-blank lines, each after its place, ``file:number``."""
    return ((f"{path.name}:{number}", line) for number, line in read_lines(path))


def json_value(text: str, place: str) -> Any:
    """Parse JSON, whose objects must not give a name twice with different values; errors name the place."""

    def joined(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        whole = dict(pairs)
        if len(whole) < len(pairs):
            for name, value in pairs:
                if whole[name] != value:
                    raise ValueError(f"{name!r} is given twice, with different values")
        return whole

    try:
        return json.loads(text, object_pairs_hook=joined)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{place}: broken JSON: {error}") from error


class Once:
    """Refuses to be told two values of one thing; the error names both places.

    Args:
        what: the value, as a word: "relevance".
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._known: dict[Any, tuple[Any, str]] = {}

    def is_new(self, key: Hashable, value: object, place: str) -> bool:
        """Whether a thing has no value yet; False for the same value, InvalidInputError for another."""
        known, where = self._known.setdefault(key, (value, place))
        if known != value:
            raise InvalidInputError(
                f"{place}: the {self._what} of {key!r} is {value!r:.80}, but {known!r:.80} at {where}"
            )
        return where == place


def field(record: Any, name: str, kind: type[_T], place: str) -> _T:
    """A field of a JSON object, of the required type."""
    if not isinstance(record, Mapping):
        raise InvalidInputError(f"{place}: not an object but {type(record).__name__}")
    if name not in record:
        raise InvalidInputError(f"{place}: has no {name!r}, only {', '.join(map(str, record)) or 'nothing'}")
    value = record[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InvalidInputError(f"{place}: {name!r} is {value!r}, not {kind.__name__}")
    return value


def table(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a CSV file with a header, each after its place; ``columns`` are required."""
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        header = [name.strip() for name in rows.fieldnames or ()]
        if repeated := [name for name, count in Counter(header).items() if count > 1]:
            raise InvalidInputError(f"{path.name}:1: has two columns {repeated[0]!r}")
        if missing := [name for name in columns if name not in header]:
            raise InvalidInputError(
                f"{path.name}:1: has no column {missing[0]!r}, only {', '.join(header) or 'nothing'}"
            )
        rows.fieldnames = header
        for row in rows:
            place = f"{path.name}:{rows.line_num}"
            if short := [name for name in columns if row[name] is None]:
                raise InvalidInputError(f"{place}: the row ends before the column {short[0]!r}")
            yield place, row
    except csv.Error as error:
        raise InvalidInputError(f"{path.name}:{rows.reader.line_num}: broken CSV: {error}") from error


def image_file(path: Path, id: str, place: str, origin: str) -> Image:
    """The record of an image file, which must exist."""
    if not path.is_file():
        raise InvalidInputError(
            f"{place}: the image {path} is missing. Nothing is downloaded; get the images from {origin}"
        )
    return Image(content=path.absolute(), source=str(path.absolute()), id=id)
