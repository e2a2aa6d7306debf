"""Cached vectors, scores and questions of one data set; everything that models compute for an evaluation.

    Bench   one data set: gallery vectors [N, D], image features, questions, scores of text-image pairs
    Part    one direction and form of it: first stage [q, K], scores of its candidates

All results go to one :class:`~zsqretrieval._util.cache.Cache`, pair by pair, so an interrupted evaluation
continues, and another choice of systems or candidates computes only what is missing.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, ClassVar, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from zsqretrieval import plugins
from zsqretrieval._util.cache import Cache, cache_key
from zsqretrieval.data.images import digest
from zsqretrieval.encoders.cached import CachedEncoder
from zsqretrieval.encoders.checked import Row, encode_each, encode_each_text, encode_texts
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.evaluation.datasets import Dataset, Direction, Task
from zsqretrieval.evaluation.metrics import first_ranks
from zsqretrieval.evaluation.run import Run, exact_search, shallow, some_rows, with_scores
from zsqretrieval.evaluation.settings import Settings
from zsqretrieval.evaluation.usable import Usable, usable_part
from zsqretrieval.generators.checked import read_images
from zsqretrieval.protocols import Encoder, Generator, ImageStates
from zsqretrieval.search.expansion import best_questions, join
from zsqretrieval.search.fusion import Fusion, best_first
from zsqretrieval.search.priors import null_images
from zsqretrieval.search.query_bank import QueryBank
from zsqretrieval.search.scoring import Likelihood, Pair, Scoring, score_pairs
from zsqretrieval.tasks.questions import check_style, generate_questions
from zsqretrieval.types import Image, ImageState, LogLikelihood

T = TypeVar("T")

Step = Callable[[str, float, int], object]
"""Called with the name of a step, the items done, and the total."""

_BLOCK = 2000  # pairs scored between two writes to the cache
_TOGETHER = 100  # images or texts encoded, seen or asked between two writes
_DEEP = 100  # candidates of the first stage at least: R@100
_EITHER = 100  # images that each half of an expanded search finds


def encoder_name(encoder: Encoder) -> str:
    """Name of an encoder for people: its plugin, and the model of its config, such as ``clip ViT-B-32``."""
    name = plugins.name_of("encoder", encoder) or type(encoder).__name__
    model = getattr(encoder, "config", {}).get("name")
    return f"{name} {model}" if isinstance(model, str) else name


def sample_rows(count: int, some: int, seed: int) -> NDArray[np.int64]:
    """Positions of ``some`` of ``count`` items, rising; all if there are no more."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:some]).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Questions:
    """Questions of a gallery that a search leads back to their image."""

    texts: tuple[str, ...]
    owners: NDArray[np.int64]  # [m], position of the image of each
    vectors: NDArray[np.float32]  # [m, D]
    generated: int  # number of questions before the filter


@dataclass(frozen=True, slots=True)
class _Length:
    """A scoring rule whose score is the length of the text in tokens."""

    likelihood: Likelihood = field(default_factory=Likelihood)
    name: ClassVar[str] = "tokens"

    def pairs(self, question: str, image: Image | ImageState) -> list[Pair]:
        return self.likelihood.pairs(question, image)

    def score(self, likelihoods: Sequence[LogLikelihood]) -> float:
        return float(len(likelihoods[0]))


@final
class Bench:
    """The vectors, scores and questions of one data set, with all forms to be measured.

    The generator can be None if no system needs it.

    Attributes:
        given: the data set as it was read, with images that may not be usable.
        unscored: why the generator cannot score a text for an image, by text and source of the image.
    """

    def __init__(
        self,
        encoder: Encoder,
        generator: Generator | None,
        dataset: Dataset,
        settings: Settings,
        cache: Cache,
        step: Step,
    ) -> None:
        self.encoder, self._generator = CachedEncoder(encoder, cache), generator
        self.given, self.settings, self.cache, self.step = dataset, settings, cache, step
        self.unscored: dict[tuple[str, str], InvalidInputError] = {}
        self.name = encoder_name(encoder)
        self._features: dict[int, Image | ImageState | ImageError] = {}
        self._questions: dict[tuple[str, int], Questions] = {}

    @property
    def generator(self) -> Generator:
        """The generator; InvalidInputError if there is none."""
        if self._generator is None:
            raise InvalidInputError("a system needs a generator; name one, or measure the first stage alone")
        return self._generator

    # --- vectors ---

    @cached_property
    def usable(self) -> Usable:
        """The images that can be encoded, their vectors, and what is left out."""
        return usable_part(
            self.given,
            lambda images: self._encode(partial(encode_each, self.encoder), images, "encoding images"),
            self.encode_each_text,
        )

    @property
    def dataset(self) -> Dataset:
        """The usable part of the data set."""
        return self.usable.dataset

    @property
    def gallery(self) -> NDArray[np.float32]:
        """Vectors of the images, float32 [N, D]."""
        return self.usable.vectors

    @property
    def digests(self) -> list[str]:
        """Digests of the images."""
        return self.usable.digests

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts, float32 [n, D]."""
        rows = self._encode(partial(encode_texts, self.encoder), texts, "encoding texts")
        return np.stack(rows) if rows else np.empty((0, self.encoder.dim), np.float32)

    def encode_each_text(self, texts: Sequence[str]) -> list[Row | InvalidInputError]:
        """Vectors float32 [D] of texts; an error in the place of one that the encoder cannot take."""
        return self._encode(partial(encode_each_text, self.encoder), texts, "encoding texts")

    def _encode(self, encode: Callable[[Any], Iterable[T]], items: Sequence[Any], step: str) -> list[T]:
        rows: list[T] = []
        for start in range(0, len(items), _TOGETHER):
            rows.extend(encode(items[start : start + _TOGETHER]))
            self.step(step, min(start + _TOGETHER, len(items)), len(items))
        return rows

    # --- scores of pairs ---

    def shown(self, places: Iterable[int]) -> list[Image | ImageState | ImageError]:
        """The images at these positions as the generator takes them: cached features if it makes some.

        An error stands in the place of an image for which it can make none.
        """
        wanted = list(places)
        missing = [place for place in dict.fromkeys(wanted) if place not in self._features]
        gallery, generator = self.dataset.gallery, self.generator
        if not isinstance(generator, ImageStates):
            return [gallery[place] for place in wanted]
        for start in range(0, len(missing), _TOGETHER):
            some = missing[start : start + _TOGETHER]
            self._features |= zip(some, read_images(generator, [gallery[n] for n in some]), strict=True)
            self.step("image features", len(self._features), len(gallery))
        return [self._features[place] for place in wanted]

    def pair_scores(
        self, scoring: Scoring, texts: Sequence[str], places: Sequence[int], step: str
    ) -> NDArray[np.float64]:
        """Scores of n texts, each for the image at a position of the gallery; float64 [n].

        nan where the generator cannot take the text or the image; ``unscored`` has the reason.
        """
        digests = [self.digests[place] for place in places]
        return self._scores(scoring, texts, digests, lambda some: self.shown(places[n] for n in some), step)

    def _scores(
        self,
        scoring: Scoring,
        texts: Sequence[str],
        digests: Sequence[str],
        show: Callable[[Sequence[int]], Sequence[Image | ImageState | ImageError]],
        step: str,
        *,
        nulls: bool = False,
    ) -> NDArray[np.float64]:
        rule = f"{self.generator.fingerprint} {scoring!r}"
        keys = [cache_key("score", rule, *pair) for pair in zip(texts, digests, strict=True)]
        known = self.cache.get_many(keys)
        missing = list({key: n for n, key in enumerate(keys) if key not in known}.values())
        missing.sort(key=lambda n: digests[n])  # texts of one image share its prefix
        done = len(keys) - len(missing)

        def tell(_: str, scored: int, total: int | None) -> None:
            self.step(step, done + len(some) * scored / (total or math.inf), len(keys))

        for start in range(0, len(missing), _BLOCK):
            some = missing[start : start + _BLOCK]
            images, faults = show(some), dict[int, InvalidInputError]()
            scores = score_pairs(
                self.generator, scoring, [texts[n] for n in some], images,
                batch_size=self.settings.batch_size, progress=tell, faults=faults,
            )  # fmt: skip
            if not nulls:  # the same texts fail with images
                self.unscored |= {(texts[some[i]], images[i].source): fault for i, fault in faults.items()}
            made = {
                keys[n]: struct.pack("<d", one)
                for n, one in zip(some, scores.tolist(), strict=True)
                if not math.isnan(one)
            }
            self.cache.put_many(made)
            known |= made
            done += len(some)
        self.step(step, len(keys), len(keys))
        unknown = struct.pack("<d", math.nan)
        return np.array([struct.unpack("<d", known.get(key, unknown))[0] for key in keys], np.float64)

    def log_priors(self, texts: Sequence[str], step: str = "prior") -> NDArray[np.float64]:
        """Log P(text) of n texts, averaged over null images; float64 [n], in nats."""
        given = self._null_scores(Likelihood(), texts, null_images(), step)
        with np.errstate(invalid="ignore"):  # nan for a text that the generator cannot take
            priors: NDArray[np.float64] = np.logaddexp.reduce(given, axis=0) - math.log(len(given))
        return priors

    def token_counts(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Lengths of n texts in tokens; float64 [n]."""
        (counts,) = self._null_scores(_Length(), texts, null_images(1), "token counts")
        return np.asarray(counts, np.float64)

    def _null_scores(
        self, scoring: Scoring, texts: Sequence[str], nothing: Sequence[Image], step: str
    ) -> NDArray[np.float64]:
        """Scores of texts for null images, float64 [null images, n]."""
        pairs = [(image, text) for image in nothing for text in texts]
        scores = self._scores(
            scoring,
            [text for _, text in pairs],
            [name for name in map(digest, nothing) for _ in texts],
            lambda some: [pairs[n][0] for n in some],
            step,
            nulls=True,
        )
        return np.reshape(scores, (len(nothing), len(texts)))

    # --- questions ---

    def questions(self, style: str, n: int) -> Questions:
        """Generate up to n questions for every image and keep those whose search finds the image.

        Raises:
            InvalidInputError: the generator writes no texts, or no such style.
        """
        if (style, n) not in self._questions:
            self._questions[style, n] = self._round_trip(self._generate(style, n))
        return self._questions[style, n]

    def _generate(self, style: str, n: int) -> list[list[str]]:
        one, settings = check_style(style), self.settings
        recipe = repr([self.generator.fingerprint, one, n, settings.temperature, settings.seed])
        count, step = len(self.dataset.gallery), f"asking images: {style}"
        written: list[list[str]] = []
        for start in range(0, count, _TOGETHER):
            places = range(start, min(start + _TOGETHER, count))
            # The sampled texts of an image depend on the images sampled with it, so they are cached together.
            key = cache_key("questions", recipe, *(self.digests[place] for place in places))
            value = self.cache.get_many([key]).get(key)
            if value is None:
                shown = self.shown(places)
                able = [image for image in shown if not isinstance(image, ImageError)]
                asked = iter(
                    generate_questions(
                        self.generator, able, n,
                        style=one, temperature=settings.temperature, seed=settings.seed, faults={},
                    )
                )  # fmt: skip
                texts = [
                    [] if isinstance(image, ImageError) else [one.text for one in next(asked)]
                    for image in shown
                ]
                value = json.dumps(texts).encode()
                self.cache.put_many({key: value})
            written += json.loads(value)
            self.step(step, len(written), count)
        return written

    def _round_trip(self, written: Sequence[Sequence[str]]) -> Questions:
        texts = [text for some in written for text in some]
        owners = np.repeat(np.arange(len(written)), [len(some) for some in written]).astype(np.int64)
        found = self.encode_each_text(texts)
        able = np.zeros(len(texts), bool)
        vectors = np.zeros((len(texts), self.encoder.dim), np.float32)
        for n, one in enumerate(found):
            if not isinstance(one, InvalidInputError):
                able[n], vectors[n] = True, one
        kept = np.zeros(len(texts), bool)
        for start in range(0, len(texts), _TOGETHER):
            own = slice(start, start + _TOGETHER)
            right = np.arange(len(written)) == owners[own, None]  # [some, N]
            kept[own] = first_ranks(vectors[own] @ self.gallery.T, right) < self.settings.top_k
        chosen = np.flatnonzero(kept & able)
        return Questions(tuple(texts[n] for n in chosen), owners[chosen], vectors[chosen], len(texts))

    def query_bank(self) -> QueryBank:
        """The query bank of the gallery's questions; InvalidInputError if no question was kept."""
        settings = self.settings
        written = self.questions("search", settings.bank)
        if not written.texts:
            raise InvalidInputError(
                f"no search with the {written.generated} generated texts finds its image, so there is no "
                "query bank; measure without the systems that need one"
            )
        return QueryBank(
            written.vectors, self.encoder.fingerprint, settings.bank_scale, settings.bank_strength
        )

    def expanded_search(
        self, vector: NDArray[np.float32], expansion: Fusion, last: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Search images and questions with one query, float32 [D], as an album does.

        Returns:
            Positions int64 [k] and scores float64 [k], best first. Of equal images those in ``last``, bool
            [N], come last.
        """
        asked = self.questions(self.settings.style, self.settings.questions)
        image = (self.gallery @ vector).astype(np.float64)
        own = (asked.vectors @ vector).astype(np.float64)
        question, _ = best_questions(np.arange(len(image)), asked.owners, own)
        behind = np.zeros(len(image), bool) if last is None else last
        by_question = np.lexsort((behind, -np.where(np.isnan(question), -np.inf, question)))[:_EITHER]
        by_image = np.lexsort((behind, -image))[:_EITHER]
        pool = np.union1d(by_image, by_question[~np.isnan(question[by_question])])
        pool = pool[np.lexsort((behind[pool], -image[pool]))]
        joined = join(expansion, image[pool], question[pool])
        order = best_first(joined)
        return pool[order].astype(np.int64), joined[order]

    # --- parts ---

    def part(self, direction: Direction, form: str, queries: int | None) -> Part:
        """Run the first stage in one direction with texts of one form, and a sample of queries if not None.

        Image to text, the sampled images search all texts.
        """
        # Samples are drawn form by form, so another form changes nothing about this one.
        data, settings = self.dataset.of_form(form), self.settings
        if direction == "text to image" and queries is not None:
            data = data.sample(queries, seed=settings.seed)
        task = data.task(direction)
        texts = self.encode_texts([query.text for query in data.queries])
        asking, searched = texts, self.gallery
        if direction == "image to text":
            asking, searched = self.gallery[data.positions(task.queries)], texts
            if queries is not None:
                rows = sample_rows(len(task.queries), queries, settings.seed)
                asking, task = asking[rows], task.some(rows)
        deepest = settings.deepest(direction)
        first = exact_search(asking, searched, task, k=max(deepest, _DEEP), name=self.name)
        return Part(self, data, form, first, deepest)


@dataclass(frozen=True, eq=False)
class Part:
    """One direction and form."""

    bench: Bench
    data: Dataset  # with the texts of this form
    form: str
    first: Run  # the first stage, best first
    deepest: int  # number of its candidates that are scored
    label: str = ""  # of the steps of a sampled part
    _scored: dict[str, Run] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        """Of the first stage."""
        return self.first.task

    @property
    def direction(self) -> Direction:
        """Of the retrieval."""
        return self.task.direction

    def step(self, what: str) -> str:
        """Name of a step for progress."""
        return f"{self.direction}, {self.form}: {self.label}{what}"

    def sample(self, count: int, depth: int) -> Part:
        """The part with fewer queries, of which fewer candidates are scored."""
        rows = sample_rows(len(self.task.queries), count, self.bench.settings.seed)
        return Part(self.bench, self.data, self.form, some_rows(self.first, rows), depth, "ablations: ")

    def scored(self, scoring: Scoring, depth: int) -> Run:
        """Scores of the first ``depth`` candidates of the first stage by a rule."""
        if repr(scoring) not in self._scored:
            run = self.score(shallow(self.first, self.deepest), scoring, f"scoring by {scoring.name}")
            self._scored[repr(scoring)] = run
        return shallow(self._scored[repr(scoring)], depth)

    @cached_property
    def texts(self) -> list[str]:
        """Texts of the queries, text to image, or of the items, image to text."""
        texts = {query.id: query.text for query in self.data.queries}
        by_text = self.direction == "text to image"
        return [texts[id] for id in (self.task.queries if by_text else self.task.items)]

    def pairs(self, run: Run) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The text, a position in ``texts``, and the image in the gallery of each candidate; int64 [q, k]."""
        given = np.arange(len(run.candidates))
        if self.direction == "image to text":
            given = self.data.positions(self.task.queries)
        queries = np.broadcast_to(given[:, None], run.candidates.shape)
        return (queries, run.candidates) if self.direction == "text to image" else (run.candidates, queries)

    def score(self, run: Run, scoring: Scoring, what: str, instead: NDArray[np.int64] | None = None) -> Run:
        """Scores of the candidates of any run with this part's queries and items.

        ``instead``, int64 [N], are the images shown in place of those of the gallery.
        """
        there = run.candidates >= 0
        texts, images = (one[there] for one in self.pairs(run))
        images = images if instead is None else instead[images]
        scores = np.full(run.candidates.shape, np.nan)
        scores[there] = self.bench.pair_scores(
            scoring, [self.texts[n] for n in texts], images.tolist(), self.step(what)
        )
        return replace(with_scores(run, scores), name=scoring.name)

    @cached_property
    def priors(self) -> NDArray[np.float64]:
        """Log priors of the texts."""
        return self.bench.log_priors(self.texts, self.step("prior"))

    def per_token(self, run: Run) -> Run:
        """Scores divided by the length of their text in tokens."""
        return with_scores(run, run.scores / self.bench.token_counts(self.texts)[self.pairs(run)[0]])

    def expanded(self, expansion: Fusion) -> Run:
        """Search images and their questions; the candidates are its own."""
        count = len(self.task.items)
        found = np.full((len(self.texts), min(2 * _EITHER, count)), -1, np.int64)
        scores = np.full(found.shape, np.nan)
        vectors = self.bench.encode_texts(self.texts)
        for row, (vector, places) in enumerate(zip(vectors, self.task.relevant, strict=True)):
            right = np.zeros(count, bool)
            right[places] = True
            items, joined = self.bench.expanded_search(vector, expansion, right)
            found[row, : len(items)], scores[row, : len(items)] = items, joined
        return replace(self.first, name="expanded", candidates=found, scores=scores)

    @cached_property
    def normalized(self) -> Run:
        """The first stage minus the hubness that the query bank finds in each image."""
        taken = self.bench.query_bank().taken(self.bench.gallery)[self.first.candidates]
        return replace(self.first, name="normalized", scores=self.first.scores - taken)

    def shuffled(self, scoring: Scoring, depth: int) -> Run:
        """Scores of the candidates if the generator sees another image of the gallery in place of each."""
        count = len(self.data.gallery)
        if count < 2:
            raise InvalidInputError(f"{self.data.name} has a single image; no other can replace it")
        circle = np.random.default_rng(self.bench.settings.seed).permutation(count)
        other = np.empty(count, np.int64)  # no image stands for itself
        other[circle] = np.roll(circle, 1)
        return self.score(shallow(self.first, depth), scoring, "shuffled", other)
