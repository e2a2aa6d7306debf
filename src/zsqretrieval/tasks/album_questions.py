"""Questions stored for the images of an album, filtered by a round trip through the first stage.

    images --generate_questions--> questions --encoder--> vectors --search--> rank of own image --> kept?

A generator also writes questions that the image does not answer or that fit every image. Both harm an index,
so a question is kept only if searching for it finds its own image among the first ``top_k``: the consistency
filter of doc2query-- (Gospodinov et al., arXiv 2301.03266) and PreMIR (arXiv 2508.17079).
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.batches import batched, tell
from zsqretrieval._util.checks import check_counts, first_of
from zsqretrieval.album.candidates import Viewer, need_generator
from zsqretrieval.album.catalog import Catalog
from zsqretrieval.album.questions import Judgement, NewQuestion, Recipe, StoredQuestion, StyleFacts
from zsqretrieval.data.loader import Skipped
from zsqretrieval.encoders.checked import encode_each_text
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.generators.checked import check_sampling
from zsqretrieval.generators.prompts import PROMPTS
from zsqretrieval.protocols import Encoder
from zsqretrieval.tasks.english import normalized
from zsqretrieval.tasks.questions import STYLES, Question, Style, check_style, generate_questions
from zsqretrieval.types import Progress

Search: TypeAlias = Callable[[NDArray[np.float32], int], NDArray[np.int64]]
"""The first stage: keys int64 [q, k] of the images nearest to vectors float32 [q, dim], best first."""

_New: TypeAlias = list[NewQuestion]  # in the class, `list` is a method

_CHUNK = 512  # records looked up at once


@dataclass(frozen=True, slots=True)
class QuestionsReport:
    """Counts of :meth:`AlbumQuestions.generate`; every image counts once.

    Attributes:
        asked: images that questions were written for.
        known: images that had been asked with the same settings before.
        skipped: images that cannot be opened or that the generator cannot take, with the reason.
        questions: new questions.
        kept: new questions that passed the round trip.
        seconds: time taken.
    """

    asked: int
    known: int
    skipped: tuple[Skipped, ...]
    questions: int
    kept: int
    seconds: float


@dataclass(frozen=True, slots=True)
class FilterReport:
    """Counts of :meth:`AlbumQuestions.filter`: all questions, those kept now, and the time taken."""

    questions: int
    kept: int
    seconds: float


@final
class AlbumQuestions:
    """The stored questions of an album; a retriever has it as ``retriever.questions``.

    ``search`` is the first stage, for the round trip; without a generator ``viewer`` is None.
    """

    def __init__(self, catalog: Catalog, encoder: Encoder, search: Search, viewer: Viewer | None) -> None:
        self._catalog, self._encoder, self._search, self._viewer = catalog, encoder, search, viewer

    def generate(
        self,
        n: int = 3,
        *,
        style: str | Style = "questions",
        answers: bool = False,
        top_k: int | None = 10,
        temperature: float = 0.7,
        seed: int = 0,
        max_new_tokens: int = 24,
        batch_size: int = 16,
        progress: Progress | None = None,
    ) -> QuestionsReport:
        """Write questions about every image, and keep those that lead back to it.

        Each batch is on disk before the next begins. Images that were asked with the same settings by the
        same generator are not asked again, so an interrupted call, or one after more images were added, can
        be repeated. After the album has grown, :meth:`filter` judges all questions again.

        Args:
            n: questions per image at most, >= 1.
            style: a name in :data:`zsqretrieval.tasks.questions.STYLES`, or a style of your own.
            answers: also store the generator's answer to each question.
            top_k: lowest rank of the own image, >= 1, in a search for the question; None keeps every
                question. Has no effect on images asked before.
            temperature: sampling temperature.
            seed: sampling seed. A draw is named by the seed and the image's position in its batch, so the
                same images in the same batches get the same questions.
            max_new_tokens: length limit of a question and of an answer, in tokens.
            batch_size: images per batch; another size draws other questions.
            progress: called after every batch with the number of images; may raise to stop.

        Raises:
            InvalidInputError: there is no generator, or it writes no text; unknown style, or answers to a
                style without questions; ``n``, ``top_k`` or ``batch_size`` < 1. Earlier batches stay.
            AlbumError: the disk is full or the album is locked; earlier batches stay.
        """
        begin = time.perf_counter()
        viewer = need_generator(self._viewer, "writing questions")
        style = check_style(style, answers=answers)
        check_sampling(n, max_new_tokens, temperature, seed)
        check_counts(batch_size=batch_size)
        batch_size, top_k = min(index(batch_size), _CHUNK), _depth(top_k)
        sampling: dict[str, Any] = {  # plain numbers, since NumPy's are accepted but not JSON
            "n": index(n),
            "temperature": float(temperature),
            "seed": index(seed),
            "max_new_tokens": index(max_new_tokens),
        }
        recipe = Recipe(
            style=style.name,
            prompts=tuple(prompt.template for prompt in style.prompts),
            answer_prompt=PROMPTS["vqa"].template if answers else None,
            generator=viewer.generator.get().fingerprint,
            encoder=self._encoder.fingerprint,
            **sampling,
        )
        asked = known = questions = kept = 0
        skipped: list[Skipped] = []
        with self._catalog.kept.files() as files:
            for chunk in batched(self._catalog.iter_records(), _CHUNK):
                before = self._catalog.questions.asked(recipe, [record.key for record in chunk])
                known += len(before)
                waiting = [record for record in chunk if record.key not in before]
                for batch in batched(waiting, batch_size):
                    with viewer.showing(batch, files) as (generator, shown):
                        images = {
                            record.key: one
                            for record, one in zip(batch, shown, strict=True)
                            if not isinstance(one, ImageError)
                        }
                        faults: dict[int, ImageError] = {}
                        found = generate_questions(
                            generator, list(images.values()), style=style, answers=answers,
                            batch_size=batch_size, faults=faults, **sampling,
                        )  # fmt: skip
                    results = enumerate(zip(images, found, strict=True))
                    written = {key: one for n, (key, one) in results if n not in faults}
                    new, passed = self._catalog.questions.write(recipe, self._judged(written, top_k))
                    questions, kept, asked = questions + new, kept + passed, asked + len(written)
                    wrong = [*(one for one in shown if isinstance(one, ImageError)), *faults.values()]
                    skipped += [Skipped(one.source, one.reason) for one in wrong]
                    tell(progress, "writing questions", asked + known + len(skipped), len(self._catalog))
                tell(progress, "writing questions", asked + known + len(skipped), len(self._catalog))
        return QuestionsReport(asked, known, tuple(skipped), questions, kept, time.perf_counter() - begin)

    def _judged(self, written: dict[int, tuple[Question, ...]], top_k: int | None) -> dict[int, _New]:
        """Questions by image key with their vectors and the result of the round trip."""
        flat = [(image, one) for image, some in written.items() for one in some]
        texts, images = [one.text for _, one in flat], [image for image, _ in flat]
        vectors, judgements = self._round_trip(texts, images, top_k)
        made: dict[int, _New] = {image: [] for image in written}
        for (image, one), vector, judgement in zip(flat, vectors, judgements, strict=True):
            made[image].append(
                NewQuestion(
                    text=one.text,
                    form=normalized(one.text),
                    answer=one.answer,
                    prompt=one.prompt,
                    log_likelihood=one.log_likelihood,
                    tokens=one.tokens,
                    judgement=judgement,
                    vector=vector,
                )
            )
        return made

    def _round_trip(
        self, texts: Sequence[str], images: Sequence[int], top_k: int | None
    ) -> tuple[NDArray[np.float32], Sequence[Judgement]]:
        """Encode questions and search for them: vectors float32 [q, dim], and whether each is kept.

        A question that the encoder cannot take is not kept, which a RuntimeWarning says.
        """
        found = encode_each_text(self._encoder, texts)
        faults = [one for one in found if isinstance(one, InvalidInputError)]
        able: list[int] = []
        vectors = np.zeros((len(texts), self._encoder.dim), np.float32)
        for n, one in enumerate(found):
            if not isinstance(one, InvalidInputError):
                able.append(n)
                vectors[n] = one
        if faults:
            named = first_of(faults)
            warnings.warn(f"{len(faults)} questions are not kept: {named}", RuntimeWarning, stacklevel=4)
        gallery = len(self._catalog)
        judgements = [Judgement(None, top_k, gallery, kept=False)] * len(texts)
        ranks = [0] * len(able)
        if top_k is not None and able:
            own = np.array([images[n] for n in able], np.int64)
            ranks = own_ranks(self._search(vectors[able], top_k), own).tolist()
        for n, rank in zip(able, ranks, strict=True):
            judgements[n] = Judgement(rank or None, top_k, gallery, kept=top_k is None or bool(rank))
        return vectors, judgements

    def filter(
        self, top_k: int | None = 10, *, batch_size: int = 64, progress: Progress | None = None
    ) -> FilterReport:
        """Repeat the round trip for every question in the album as it is now. Needs no generator.

        Questions that were not kept are judged as well, and may be kept now.

        Args:
            top_k: as for :meth:`generate`.
            batch_size: questions searched together, >= 1.
            progress: called after every batch with the number of questions; may raise to stop.

        Raises:
            InvalidInputError: ``top_k`` or ``batch_size`` < 1.
            AlbumError: as :meth:`generate`.
        """
        begin = time.perf_counter()
        check_counts(batch_size=batch_size)
        top_k = _depth(top_k)
        total = sum(facts.questions for facts in self.styles())
        done = kept = 0
        for batch in self._catalog.questions.batches(min(index(batch_size), _CHUNK)):
            keys, texts = [one.key for one in batch], [one.text for one in batch]
            vectors, judgements = self._round_trip(texts, [one.image for one in batch], top_k)
            self._catalog.questions.judge(
                dict(zip(keys, judgements, strict=True)), dict(zip(keys, vectors, strict=True))
            )
            kept += sum(one.kept for one in judgements)
            done += len(batch)
            tell(progress, "filtering questions", done, total)
        return FilterReport(done, kept, time.perf_counter() - begin)

    def list(self, id: str | None = None) -> Iterator[StoredQuestion]:
        """Iterate over all questions, oldest first, or over those of one image, likeliest first.

        Raises:
            InvalidInputError: no image has that id.
        """
        if id is None:
            return (one for batch in self._catalog.questions.batches() for one in batch)
        record = self._catalog.find(id)
        if record is None:
            raise InvalidInputError(
                f"no image of this album has the id {id!r}; Retriever.records() lists the images"
            )
        return iter(self._catalog.questions.of([record.key]))

    def styles(self) -> Sequence[StyleFacts]:
        """Count the questions and images of each style."""
        return self._catalog.questions.styles()

    def remove(self, style: str | None = None) -> int:
        """Remove all questions, or those of one style; returns how many. The images can then be asked again.

        An image that loses a question may also be asked again in the other styles, since a text that two
        styles have in common is stored once.

        Raises:
            InvalidInputError: unknown style.
        """
        known = sorted({*STYLES, *(facts.style for facts in self.styles())})
        if style is not None and style not in known:
            raise InvalidInputError(f"there is no style {style!r}; choose from {', '.join(known)}")
        return self._catalog.questions.remove(style)


def own_ranks(found: NDArray[np.int64], own: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rank of each question's own image: int64 [q], from 1; 0 where it is not found.

    ``found`` has image keys int64 [q, k], best first, and ``own`` the keys int64 [q] of the own images.
    """
    hits = found == own[:, None]
    return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0).astype(np.int64)


def _depth(top_k: int | None) -> int | None:
    check_counts(or_none=True, top_k=top_k)
    return None if top_k is None else min(index(top_k), sys.maxsize)
