"""What every data set is, whatever its files look like: a gallery, queries, and which images answer them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.types import Image

__all__ = ["ALT_TEXT", "CAPTION", "HUMAN_QUESTION", "Dataset", "Qrels", "Query", "Task"]

Qrels = Mapping[str, Mapping[str, int]]
"""Query id -> item id -> grade, as TREC has it; 0 is judged and not relevant, absent is not judged."""

CAPTION = "caption"
"""Form of a query that is a sentence about an image, as somebody wrote it."""

HUMAN_QUESTION = "human question"
"""Form of a query that a person asked."""

ALT_TEXT = "alt text"
"""Form of a query that is the text a web page had in place of the image."""


@dataclass(frozen=True, slots=True)
class Query:
    """One text that looks for images.

    Attributes:
        id: its name in run files and qrels.
        text: what is asked.
        form: what kind of text it is, for instance :data:`CAPTION`; results are reported per form.
        source: where it was read, as error messages should name it.
    """

    id: str
    text: str
    form: str
    source: str


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One direction of a data set, by ids alone: all that measuring needs.

    Attributes:
        name: of the data set, and the direction.
        queries: q ids.
        items: n ids of what is ranked.
        qrels: of exactly these queries.
        clusters: int64 [q]; queries of one cluster are not independent of one another.
        forms: the form of each query, q of them.
    """

    name: str
    queries: tuple[str, ...]
    items: tuple[str, ...]
    qrels: Qrels
    clusters: NDArray[np.int64]
    forms: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Images, texts that look for them, and who belongs to whom.

    Attributes:
        name: as reports should call it, for instance ``flickr8k test``.
        gallery: the images searched, each with an id of its own.
        queries: the texts.
        qrels: query id -> image id -> grade; every query has an image of grade 1 or more.
        notes: what a reader of the numbers should know about how the data were read.

    Raises:
        InvalidInputError: the gallery is empty, an image or a query has no id, there are no queries, an id
            stands there twice, a query is blank or has no relevant image, or the qrels name what is not
            there. Names the place in the file where that is known.
    """

    name: str
    gallery: tuple[Image, ...]
    queries: tuple[Query, ...]
    qrels: Qrels
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.gallery:
            raise InvalidInputError(f"{self.name}: the gallery is empty, so nothing can be found in it")
        if not self.queries:
            raise InvalidInputError(f"{self.name}: there are no queries, so there is nothing to measure")
        seen: dict[str, str] = {}
        for image in self.gallery:
            if not image.id:
                raise InvalidInputError(f"{self.name}: {image.source} has no id; qrels cannot name it")
            _once(seen, "image", image.id, image.source)
        places: dict[str, str] = {}
        for query in self.queries:
            if not query.id:
                raise InvalidInputError(f"{query.source}: a query has no id; qrels cannot name it")
            _once(places, "query", query.id, query.source)
            if not query.text.strip():
                raise InvalidInputError(f"{query.source}: the text of query {query.id!r} is blank")
            self._check_answers(query, seen)
        for id in self.qrels:
            if id not in places:
                raise InvalidInputError(f"{self.name}: the qrels name the query {id!r}, which is not there")

    def _check_answers(self, query: Query, images: Mapping[str, str]) -> None:
        answers = self.qrels.get(query.id, {})
        for id in answers:
            if id not in images:
                raise InvalidInputError(
                    f"{query.source}: query {query.id!r} is to find the image {id!r}, which is not in the "
                    f"gallery of {self.name} ({len(images)} images); are these images of another split?"
                )
        if not any(grade > 0 for grade in answers.values()):
            raise InvalidInputError(
                f"{query.source}: query {query.id!r} has no relevant image; leave it out, or judge one"
            )

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms of the queries, each once, in order of appearance."""
        return tuple(dict.fromkeys(query.form for query in self.queries))

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
        """The same gallery with fewer queries of each form, always the same ones.

        Args:
            count: how many queries of each form; all where there are fewer. Every cluster asks once before
                any asks twice, and which clusters ask is the same for all forms, as far as they have them.
            seed: of the draw.

        Raises:
            InvalidInputError: ``count`` < 1.
        """
        if count < 1:
            raise InvalidInputError(f"count must be at least 1, not {count}")
        clusters = self.text_to_image().clusters
        random = np.random.default_rng(seed)
        place = random.permutation(int(clusters.max()) + 1)
        turns: dict[tuple[str, int], int] = {}
        queues: dict[str, list[tuple[int, int, int]]] = {}  # by form: turn in the cluster, its place, query
        for n in random.permutation(len(self.queries)).tolist():
            form = self.queries[n].form
            turn = turns.get((form, clusters[n]), 0)
            turns[form, clusters[n]] = turn + 1
            queues.setdefault(form, []).append((turn, int(place[clusters[n]]), n))
        chosen = sorted(n for queue in queues.values() for _, _, n in sorted(queue)[:count])
        return self._with(self.queries[n] for n in chosen)

    def _with(self, queries: Iterable[Query]) -> Dataset:
        kept = tuple(queries)
        return replace(self, queries=kept, qrels={query.id: self.qrels[query.id] for query in kept})

    def text_to_image(self) -> Task:
        """Texts look for images. Queries with the same relevant images are one cluster."""
        numbers: dict[frozenset[str], int] = {}
        clusters: list[int] = []
        for query in self.queries:
            answers = frozenset(id for id, grade in self.qrels[query.id].items() if grade > 0)
            clusters.append(numbers.setdefault(answers, len(numbers)))
        return Task(
            f"{self.name}, text to image",
            tuple(query.id for query in self.queries),
            tuple(str(image.id) for image in self.gallery),
            self.qrels,
            np.array(clusters, np.int64),
            tuple(query.form for query in self.queries),
        )

    def image_to_text(self) -> Task:
        """Images look for their texts, all of one form; an image that no text belongs to does not ask.

        Raises:
            InvalidInputError: the texts have several forms, so an image would find one text in many guises.
        """
        if len(self.forms) > 1:
            raise InvalidInputError(
                f"{self.name} has texts of the forms {', '.join(self.forms)}; an image looks among texts of "
                "one form: choose it by of_form"
            )
        texts: dict[str, dict[str, int]] = {}
        for query in self.queries:
            for image, grade in self.qrels[query.id].items():
                if grade > 0:
                    texts.setdefault(image, {})[query.id] = grade
        asking = tuple(str(image.id) for image in self.gallery if image.id in texts)
        return Task(
            f"{self.name}, image to text",
            asking,
            tuple(query.id for query in self.queries),
            {image: texts[image] for image in asking},
            np.arange(len(asking), dtype=np.int64),
            self.forms * len(asking),
        )


def _once(seen: dict[str, str], what: str, id: str, source: str) -> None:
    if id in seen:
        raise InvalidInputError(f"{source}: the {what} {id!r} stands there twice, first at {seen[id]}")
    seen[id] = source
