"""Systems beyond one scoring rule: what expands the gallery, and what takes a part away to see what it did.

Each answers what :class:`~zsqretrieval.evaluation.runs.System` asks for. The ablations are built so that they
differ from the system they belong to in nothing else: the same candidates, the same generator, the same
texts.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.data.images import digest
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets import Dataset
from zsqretrieval.evaluation.progress import Progress, encode_in_parts
from zsqretrieval.evaluation.remembered import Remembered
from zsqretrieval.evaluation.runs import Run, System
from zsqretrieval.evaluation.score_matrix import Seen, score_matrix
from zsqretrieval.generators.prompts import PROMPTS, Prompt
from zsqretrieval.protocols import Encoder, Generator
from zsqretrieval.search.expansion import EXPANSION, best_questions, join
from zsqretrieval.search.fusion import Fusion, best_first
from zsqretrieval.search.priors import null_images
from zsqretrieval.search.query_bank import SCALE, STRENGTH, QueryBank
from zsqretrieval.search.scoring import Likelihood, Pair, Scoring, YesNo
from zsqretrieval.tasks.questions import Style, check_style, generate_questions
from zsqretrieval.types import Image, ImageState, LogLikelihood

__all__ = [
    "WORDINGS",
    "ExpandSystem",
    "GalleryQuestions",
    "NoImage",
    "NormalizedSystem",
    "Shuffled",
    "ask_gallery",
    "bank_of",
    "log_priors",
    "token_counts",
]

WORDINGS: Mapping[str, Scoring] = MappingProxyType(
    {
        "likelihood: captioning": Likelihood(PROMPTS["captioning"]),
        "likelihood: ask": Likelihood(PROMPTS["ask"]),
        "likelihood: upr": Likelihood(Prompt("<image>Please write a question based on this picture.")),
        "yes_no: question": YesNo(Prompt('<image>Question: does this picture show "{question}"? Answer:')),
        "yes_no: vqascore": YesNo(
            Prompt('<image>Does this figure show "{question}"? Please answer yes or no. Answer:')
        ),
    }
)
"""Other wordings of the two rules, by the name of the rule and a word for the wording. ``upr`` is the prompt
of arXiv 2204.07496 with "passage" replaced; ``vqascore`` that of arXiv 2404.01291."""

_ASKED = 100  # images whose questions are written and kept together


# --- question expansion -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class GalleryQuestions:
    """What the images of a gallery were asked, and kept.

    Attributes:
        texts: m questions.
        owners: int64 [m], position of each one's image in the gallery.
        vectors: float32 [m, D].
        generated: how many were written; those that do not lead back to their image were dropped.
    """

    texts: tuple[str, ...]
    owners: NDArray[np.int64]
    vectors: NDArray[np.float32]
    generated: int


def ask_gallery(
    encoder: Encoder,
    generator: Generator,
    images: Sequence[Image],
    *,
    shown: Sequence[Image | ImageState] | None = None,
    n: int = 3,
    style: str | Style = "questions",
    top_k: int = 10,
    temperature: float = 0.7,
    seed: int = 0,
    batch_size: int = 16,
    work: Path | None = None,
    progress: Progress | None = None,
) -> GalleryQuestions:
    """Ask every image, and keep the questions that find it again.

    Args:
        encoder: makes the vectors, and is the judge.
        generator: writes.
        images: the gallery.
        shown: what the generator is given in place of the images.
        n: questions of an image, at most.
        style: what is written.
        top_k: a question is kept when its own image is among so many.
        temperature: of the sampling.
        seed: of the sampling.
        batch_size: contexts computed together.
        work: folder that keeps what was written, to go on where an interrupted run was; made when missing.
        progress: told how far it is.

    Raises:
        InvalidInputError: ``n`` or ``top_k`` < 1, no such style, or a generator that writes nothing.
        ImageError: an image cannot be decoded; names it.
    """
    style = check_style(style)
    if n < 1 or top_k < 1:
        raise InvalidInputError(f"n={n}, top_k={top_k}; both must be at least 1")
    shown = images if shown is None else shown
    written: list[Sequence[str]] = []
    with ExitStack() as stack:
        known: Any = {}
        if work is not None:
            Path(work).mkdir(parents=True, exist_ok=True)
            recipe = repr([generator.fingerprint, style, n, temperature, seed])
            known = stack.enter_context(Remembered(Path(work) / "questions.sqlite", recipe))
        for start in range(0, len(images), _ASKED):
            part = slice(start, start + _ASKED)
            # What is drawn for an image depends on those drawn with it, so they are known together.
            name = (hashlib.sha256(repr([digest(image) for image in images[part]]).encode()).hexdigest(),)
            if name not in known:
                made = generate_questions(
                    generator, shown[part], n, style=style, temperature=temperature, seed=seed,
                    batch_size=batch_size,
                )  # fmt: skip
                known[name] = [[one.text for one in some] for some in made]
                if isinstance(known, Remembered):
                    known.keep()
            written += known[name]
            if progress is not None:
                progress("asking images", len(written), len(images))
    texts = [text for some in written for text in some]
    owners = np.repeat(np.arange(len(images)), [len(some) for some in written]).astype(np.int64)
    gallery = encode_in_parts(encoder.encode_image, images, "encoding images")
    vectors = encode_in_parts(encoder.encode_text, texts, "encoding texts")
    kept = np.zeros(len(texts), bool)
    for n_text, (vector, owner) in enumerate(zip(vectors, owners, strict=True)):
        similarity = gallery @ vector
        kept[n_text] = (similarity >= similarity[owner]).sum() <= top_k  # a tie counts against it
    chosen = np.flatnonzero(kept)
    return GalleryQuestions(tuple(texts[i] for i in chosen), owners[chosen], vectors[chosen], len(texts))


@dataclass(frozen=True, slots=True, eq=False)
class ExpandSystem:
    """A first stage that compares the query with the questions of the images as well.

    The images nearest to the query and those whose questions are nearest are compared in both ways, and
    :func:`zsqretrieval.search.expansion.join` makes one score of both, as a search of an album does.

    Attributes:
        encoder: makes the vectors.
        questions: of the gallery.
        expansion: joins both similarities.
        candidates: how many images either way finds.
    """

    encoder: Encoder
    questions: GalleryQuestions
    expansion: Fusion = EXPANSION
    candidates: int = 100
    name: ClassVar[str] = "expand"

    def run(self, dataset: Dataset, first: Run, *, progress: Progress | None = None) -> Run:
        """Search; the candidates are its own.

        Raises:
            InvalidInputError: images look for texts, which were asked nothing.
        """
        if first.direction != "text to image":
            raise InvalidInputError("question expansion is of images that are searched; here they search")
        gallery = encode_in_parts(self.encoder.encode_image, dataset.gallery, "encoding images")
        texts = {query.id: query.text for query in dataset.queries}
        asking = encode_in_parts(
            self.encoder.encode_text, [texts[id] for id in first.queries], "encoding texts"
        )
        place = {item: n for n, item in enumerate(first.items)}
        width = min(2 * self.candidates, len(gallery))
        found = np.full((len(asking), width), -1, np.int64)
        scores = np.full(found.shape, np.nan)
        for row, (query, vector) in enumerate(zip(first.queries, asking, strict=True)):
            relevant = np.zeros(len(gallery), bool)
            relevant[[place[item] for item, grade in dataset.qrels[query].items() if grade > 0]] = True
            items, joined = self.search(gallery, vector, last=relevant)
            found[row, : len(items)], scores[row, : len(items)] = items, joined
            if progress is not None and (row + 1) % 100 == 0:
                progress("searching questions", row + 1, len(asking))
        return replace(first, name=self.name, candidates=found, scores=scores)

    def search(
        self,
        gallery: NDArray[np.float32],
        vector: NDArray[np.float32],
        *,
        last: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Answer one query.

        Args:
            gallery: float32 [n, D], the images.
            vector: float32 [D], the query.
            last: bool [n]; of equally similar images these come last.

        Returns:
            Positions int64 [k] in the gallery and joined scores float64 [k], best first.
        """
        image = (gallery @ vector).astype(np.float64)
        own = (self.questions.vectors @ vector).astype(np.float64)
        question, _ = best_questions(np.arange(len(gallery)), self.questions.owners, own)
        behind = np.zeros(len(gallery), bool) if last is None else last
        asked = np.lexsort((behind, -np.where(np.isnan(question), -np.inf, question)))[: self.candidates]
        near = np.lexsort((behind, -image))[: self.candidates]
        pool = np.union1d(near, asked[~np.isnan(question[asked])])
        pool = pool[np.lexsort((behind[pool], -image[pool]))]
        joined = join(self.expansion, image[pool], question[pool])
        order = best_first(joined)
        return pool[order].astype(np.int64), joined[order]


# --- query bank -------------------------------------------------------------------------------------------


def bank_of(
    written: GalleryQuestions, fingerprint: str, *, scale: float = SCALE, strength: float = STRENGTH
) -> QueryBank:
    """The query bank of what the images of a gallery were asked.

    Args:
        written: the questions.
        fingerprint: of the encoder that made their vectors.
        scale: of the bank.
        strength: of the bank.

    Raises:
        InvalidInputError: no question was kept, or a number is out of range.
    """
    if not written.texts:
        raise InvalidInputError(
            f"none of {written.generated} texts that the generator wrote leads back to its image, so there "
            "is no query bank; measure without"
        )
    return QueryBank(written.vectors, fingerprint, scale, strength)


@dataclass(frozen=True, slots=True, eq=False)
class NormalizedSystem:
    """The first stage without what an image gets from any question, as a search with a bank has it.

    Attributes:
        encoder: makes the vectors.
        bank: of questions.
    """

    encoder: Encoder
    bank: QueryBank
    name: ClassVar[str] = "normalized"

    def run(self, dataset: Dataset, first: Run, *, progress: Progress | None = None) -> Run:
        """Take it away from the scores of the candidates.

        Raises:
            InvalidInputError: images look for texts.
        """
        if first.direction != "text to image":
            raise InvalidInputError("a query bank is of images that are searched; here they search")
        gallery = encode_in_parts(self.encoder.encode_image, dataset.gallery, "encoding images")
        taken = self.bank.taken(gallery)[first.candidates]
        scores = np.where(first.candidates >= 0, first.scores - taken, np.nan)
        return replace(first, name=self.name, scores=scores)


# --- what texts are like by themselves --------------------------------------------------------------------


def log_priors(
    generator: Generator,
    likelihood: Likelihood,
    texts: Sequence[str],
    *,
    images: Sequence[Image] = (),
    batch_size: int = 64,
    work: Path | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """How likely texts are of no image in particular: :func:`zsqretrieval.search.priors.log_prior`, resumable.

    Args:
        generator: reads the null images.
        likelihood: the rule, whose aggregate has to be the sum.
        texts: n texts.
        images: pictures of nothing; :func:`~zsqretrieval.search.priors.null_images` when empty.
        batch_size: pairs computed together.
        work: folder that keeps scores.
        progress: told how far it is.

    Returns:
        float64 [n], in nats.

    Raises:
        InvalidInputError: the aggregate is the mean.
        ZsqError: as :func:`~zsqretrieval.evaluation.score_matrix.score_matrix`.
    """
    if likelihood.aggregate != "sum":
        raise InvalidInputError("probabilities are averaged over null images, so the aggregate must be 'sum'")
    nothing = images or null_images()
    every = np.tile(np.arange(len(nothing), dtype=np.int64), (len(texts), 1))
    given = score_matrix(
        generator, likelihood, texts, nothing, every,
        shown=Seen(generator, nothing), batch_size=batch_size, work=work, progress=progress,
    )  # fmt: skip
    priors: NDArray[np.float64] = np.logaddexp.reduce(given, axis=1) - math.log(len(nothing))
    return priors


@dataclass(frozen=True, slots=True)
class _Length:
    """A rule whose score is the length of the text in tokens."""

    likelihood: Likelihood = field(default_factory=Likelihood)
    name: ClassVar[str] = "tokens"

    def pairs(self, question: str, image: Image | ImageState) -> list[Pair]:
        return self.likelihood.pairs(question, image)

    def score(self, likelihoods: Sequence[LogLikelihood]) -> float:
        return float(len(likelihoods[0]))


def token_counts(
    generator: Generator,
    likelihood: Likelihood,
    texts: Sequence[str],
    *,
    batch_size: int = 64,
    work: Path | None = None,
) -> NDArray[np.float64]:
    """The length of texts in tokens, which is what parts ``"sum"`` from ``"mean"``.

    Args:
        generator: tokenises.
        likelihood: the rule.
        texts: n texts.
        batch_size: pairs computed together.
        work: folder that keeps them.

    Returns:
        float64 [n], whole numbers >= 1.
    """
    (grey,) = null_images(1)
    only = np.zeros((len(texts), 1), np.int64)
    return score_matrix(
        generator, _Length(likelihood), texts, [grey], only, batch_size=batch_size, work=work
    )[:, 0]


# --- ablations --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class NoImage:
    """The likelihood of a text without the image: what the language model alone believes.

    Where texts look for images, all images get the same score: it cannot rank. Where images look for texts,
    every image gets the same ranking, that of the likeliest texts.

    Attributes:
        priors: log P(text) by the id of the text, as :func:`log_priors` gives it.
    """

    priors: Mapping[str, float]
    name: ClassVar[str] = "no_image"

    def run(self, dataset: Dataset, first: Run, *, progress: Progress | None = None) -> Run:
        """Give every candidate the prior of the text."""
        if first.direction == "text to image":
            column = np.array([self.priors[query] for query in first.queries])[:, None]
            scores = np.broadcast_to(column, first.scores.shape)
        else:
            scores = np.array([self.priors[item] for item in first.items])[first.candidates]
        return replace(first, name=self.name, scores=np.where(first.candidates >= 0, scores, np.nan))


@dataclass(frozen=True, slots=True, eq=False)
class Shuffled:
    """A system that is shown another image of the gallery in the place of each: what is left needs no image.

    Attributes:
        inner: the system, which scores what ``first`` names.
        seed: of which image stands for which; none for itself.
    """

    inner: System
    seed: int = 0
    name: ClassVar[str] = "shuffled"

    def run(self, dataset: Dataset, first: Run, *, progress: Progress | None = None) -> Run:
        """Let the inner system score the other images, and report it of the candidates.

        Raises:
            InvalidInputError: the gallery has a single image.
        """
        ids = [str(image.id) for image in dataset.gallery]
        if len(ids) < 2:
            raise InvalidInputError(f"{dataset.name} has a single image, which cannot stand for another")
        circle = np.random.default_rng(self.seed).permutation(len(ids))
        other = {ids[one]: ids[next_one] for one, next_one in zip(circle, np.roll(circle, 1), strict=True)}
        if first.direction == "text to image":
            place = {item: n for n, item in enumerate(first.items)}
            stands_for = np.array([place[other[item]] for item in first.items])
            swapped = np.where(first.candidates >= 0, stands_for[first.candidates], -1)
            asked = replace(first, candidates=swapped)
        else:
            asked = replace(first, queries=tuple(other[query] for query in first.queries))
        return replace(first, name=self.name, scores=self.inner.run(dataset, asked, progress=progress).scores)
