"""What a generator asks and answers about the images of a gallery; nothing is computed twice.

    hits --showing--> generator and image states --questions, captions--> texts by image
                                                 --answers--> the likeliest answer of each image to a question
                                                 --log_answers, log_text--> log P(text | image), one per image

A :class:`Gallery` is what a dialog needs of an album; :mod:`zsqretrieval.dialog.gallery` makes
one of it.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar, final, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.checks import check_verbalisers
from zsqretrieval.dialog.posterior import log_normalized
from zsqretrieval.errors import ImageError
from zsqretrieval.generators.checked import read_texts, write_texts
from zsqretrieval.generators.prompts import PROMPTS, Prompt, check_prompt
from zsqretrieval.protocols import Generator
from zsqretrieval.tasks.english import first_line, is_polar, tidy, tidy_question
from zsqretrieval.types import Context, Hit, Image, ImageState

__all__ = ["POLAR_ANSWERS", "Gallery", "Interview", "Memory", "Wording"]

POLAR_ANSWERS = ("yes", "no")
"""The closed set of answers to a question of yes or no."""

Memory: TypeAlias = MutableMapping[tuple[str, ...], Any]
"""What a generator has said, by what it was asked about which image: numbers, texts and lists of texts."""

T = TypeVar("T")
_Shown: TypeAlias = "Image | ImageState"


@runtime_checkable
class Gallery(Protocol):
    """Images that a dialog is about."""

    def first_stage(self, text: str, k: int) -> Sequence[Hit]:
        """The k images that best fit a text, best first; ``score`` is the cosine similarity."""
        ...

    def similarities(self, texts: Sequence[str], hits: Sequence[Hit]) -> NDArray[np.float64]:
        """Cosine similarity of texts and images: float64 [t, n]; nan for an image that is gone."""
        ...

    def encoded_alike(self, texts: Sequence[str]) -> bool:
        """Whether the encoder makes the same of all texts, as it does of those that it cuts to one length."""
        ...

    def present(self, hits: Sequence[Hit]) -> NDArray[np.bool_]:
        """Which images are still there: bool [n]."""
        ...

    def stored_questions(self, hits: Sequence[Hit]) -> list[tuple[str, ...]]:
        """The questions that are kept with each image, if any."""
        ...

    def showing(
        self, hits: Sequence[Hit]
    ) -> AbstractContextManager[tuple[Generator, list[Image | ImageState | ImageError]]]:
        """The generator, and what it can be shown of each image: its state, itself, or why neither.

        Raises:
            InvalidInputError: there is no generator.
        """
        ...


@dataclass(frozen=True, slots=True)
class Wording:
    """What the generator is told.

    Attributes:
        ask: continued by a question about the image.
        describe: continued by a caption.
        answer: continued by the answer to ``question``.
        tell: continued by what somebody says of the image they mean.
        yes: continuations of ``answer`` that mean yes, leading space included; their probabilities add up.
        no: the same for no.

    Raises:
        InvalidInputError: a prompt takes other places than one image, and ``answer`` a ``question``; or a
            verbaliser is missing, repeated or empty.
    """

    ask: Prompt = PROMPTS["ask"]
    describe: Prompt = PROMPTS["captioning"]
    answer: Prompt = PROMPTS["vqa"]
    tell: Prompt = PROMPTS["question"]
    yes: tuple[str, ...] = (" yes",)
    no: tuple[str, ...] = (" no",)

    def __post_init__(self) -> None:
        for name in ("ask", "describe", "answer", "tell"):
            fields = ("question",) if name == "answer" else ()
            check_prompt(getattr(self, name), *fields, what=f"the prompt to {name}")
        yes, no = check_verbalisers(yes=self.yes, no=self.no)
        object.__setattr__(self, "yes", yes)
        object.__setattr__(self, "no", no)


@final
class Interview:
    """Asks a generator about images, and remembers.

    An image that cannot be shown, because it has no state and its file is gone, has no text (``None``) and
    no probability (nan); a RuntimeWarning names it once.

    Args:
        gallery: shows the images.
        wording: what the generator is told.
        memory: where its answers are kept; they belong to one gallery, generator and wording.
        draws: questions drawn for each image.
        temperature: of these draws.
        max_new_tokens: most tokens of a question, a caption or an answer.
        seed: of these draws.
        batch_size: images shown together.
    """

    def __init__(
        self,
        gallery: Gallery,
        *,
        wording: Wording = Wording(),
        memory: Memory | None = None,
        draws: int = 4,
        temperature: float = 0.7,
        max_new_tokens: int = 20,
        seed: int = 0,
        batch_size: int = 64,
    ) -> None:
        self._gallery = gallery
        self.wording = wording
        self._memory: Memory = {} if memory is None else memory
        self._draws = draws
        self._temperature = temperature
        self._max_new_tokens = max_new_tokens
        self._seed = seed
        self._batch_size = batch_size
        self._unseen: set[int] = set()

    # --- texts --------------------------------------------------------------------------------------------

    def questions(self, hits: Sequence[Hit]) -> list[tuple[str, ...]]:
        """What the generator asks about each image: the likeliest question first, then what it draws.

        Each image draws with the same seed, by itself, so that its questions do not depend on the others.

        Raises:
            InvalidInputError: the generator cannot write.
        """

        def ask(generator: Generator, shown: Sequence[_Shown], _: Sequence[int]) -> list[tuple[str, ...]]:
            contexts = [self.wording.ask.context(one) for one in shown]
            likeliest = self._written(generator, contexts)
            drawn = [
                self._written(
                    generator, [context], n=self._draws, temperature=self._temperature, seed=self._seed
                )[0]
                for context in contexts
            ]
            return [
                tuple(dict.fromkeys(filter(None, map(tidy_question, [*one, *more]))))
                for one, more in zip(likeliest, drawn, strict=True)
            ]

        drawing = (self._draws, self._temperature, self._seed, self._max_new_tokens)
        name = ("questions", *map(str, drawing))
        found = self._remembered([(name, hit) for hit in hits], ask)
        return [tuple(some or ()) for some in found]

    def captions(self, hits: Sequence[Hit]) -> list[str | None]:
        """What the generator says each image shows, likeliest words first.

        Raises:
            InvalidInputError: the generator cannot write.
        """

        def describe(generator: Generator, shown: Sequence[_Shown], _: Sequence[int]) -> list[str]:
            contexts = [self.wording.describe.context(one) for one in shown]
            return [tidy(first_line(text)) for (text,) in self._written(generator, contexts)]

        name = ("caption", str(self._max_new_tokens))
        return self._remembered([(name, hit) for hit in hits], describe)

    def answers(self, question: str, hits: Sequence[Hit]) -> list[str | None]:
        """What the generator answers to a question about each image, likeliest words first; may be empty.

        Raises:
            InvalidInputError: the generator cannot write, or the question is too long for it.
        """

        def answer(generator: Generator, shown: Sequence[_Shown], _: Sequence[int]) -> list[str]:
            contexts = [self.wording.answer.context(one, question=question) for one in shown]
            return [tidy(first_line(text)) for (text,) in self._written(generator, contexts)]

        name = ("answer", str(self._max_new_tokens), question)
        return self._remembered([(name, hit) for hit in hits], answer)

    def _written(self, generator: Generator, contexts: Sequence[Context], **settings: Any) -> list[list[str]]:
        return write_texts(
            generator, contexts, max_new_tokens=self._max_new_tokens, batch_size=self._batch_size, **settings
        )

    # --- probabilities ------------------------------------------------------------------------------------

    def log_answers(self, question: str, answers: Sequence[str], hits: Sequence[Hit]) -> NDArray[np.float64]:
        """Score answers: log P(answer | question, image) for each image and answer.

        Args:
            question: the question. When it is one of yes or no, its answers ``"yes"`` and ``"no"`` are said
                by the verbalisers of the wording.
            answers: a texts.
            hits: n images.

        Returns:
            float64 [n, a] in nats, each <= 0, not normalised over the answers; nan where an image cannot be
            shown.

        Raises:
            InvalidInputError: a question and answer are too long for the generator.
            ZsqError: the generator's numbers are broken; names the image.
        """
        verbalised = [self._verbalised(question, answer) for answer in answers]
        continuations = list(dict.fromkeys(text for texts in verbalised for text in texts))
        found = self._log_likelihoods(self.wording.answer, question, "", continuations, hits)
        columns = [[continuations.index(text) for text in texts] for texts in verbalised]
        with np.errstate(invalid="ignore"):  # nan stays nan
            return np.stack([np.logaddexp.reduce(found[:, some], axis=1) for some in columns], axis=1)

    def log_verdicts(self, question: str, hits: Sequence[Hit]) -> NDArray[np.float64]:
        """Score yes and no: log P(yes) and log P(no) to a question of yes or no, normalised over the two.

        Returns:
            float64 [n, 2]; nan where an image cannot be shown.

        Raises:
            InvalidInputError, ZsqError: as :meth:`log_answers`.
        """
        return log_normalized(self.log_answers(question, POLAR_ANSWERS, hits))

    def log_text(
        self, text: str, hits: Sequence[Hit], *, question: str | None = None, said: str = ""
    ) -> NDArray[np.float64]:
        """Score a text: log P(text | image), or given also a question and the beginning of its answer.

        Args:
            text: what is said; its leading space belongs to it.
            hits: n images.
            question: what it answers; None for what is said unasked.
            said: what the answer began with.

        Returns:
            float64 [n] in nats, each <= 0; nan where an image cannot be shown.

        Raises:
            InvalidInputError, ZsqError: as :meth:`log_answers`.
        """
        prompt = self.wording.tell if question is None else self.wording.answer
        return self._log_likelihoods(prompt, question, said, [text], hits)[:, 0]

    def _verbalised(self, question: str, answer: str) -> tuple[str, ...]:
        if is_polar(question) and answer in POLAR_ANSWERS:
            return self.wording.yes if answer == "yes" else self.wording.no
        return (f" {answer.strip()}",)

    def _log_likelihoods(
        self, prompt: Prompt, question: str | None, said: str, texts: Sequence[str], hits: Sequence[Hit]
    ) -> NDArray[np.float64]:
        """float64 [n, t]."""
        fields = {} if question is None else {"question": question}

        def score(generator: Generator, shown: Sequence[_Shown], which: Sequence[int]) -> list[float]:
            contexts = []
            for one in shown:
                context = prompt.context(one, **fields)
                contexts.append([*context[:-1], f"{context[-1]}{said}"] if said else context)
            continuations = [texts[i % len(texts)] for i in which]
            read = read_texts(generator, contexts, continuations, batch_size=self._batch_size)
            return [one.sum for one in read]

        name = ("log_likelihood", prompt.template, question or "", said)
        found = self._remembered([((*name, text), hit) for hit in hits for text in texts], score)
        sums = [math.nan if one is None else one for one in found]
        return np.array(sums, np.float64).reshape(len(hits), len(texts))

    # --- memory -------------------------------------------------------------------------------------------

    def _remembered(
        self,
        asked: Sequence[tuple[tuple[str, ...], Hit]],
        compute: Callable[[Generator, Sequence[_Shown], Sequence[int]], Sequence[T]],
    ) -> list[T | None]:
        """What was asked about each image, computed where it is not known; None where it cannot be shown.

        Args:
            asked: the name of what is asked, and the image.
            compute: does it, from the generator, what it is shown, and positions in ``asked``.
        """
        names = [(*name, str(hit.key)) for name, hit in asked]
        missing = [i for i, name in enumerate(names) if name not in self._memory]
        for batch in _batches(missing, [asked[i][1].key for i in missing], self._batch_size):
            hits = {asked[i][1].key: asked[i][1] for i in batch}
            with self._shown(list(hits.values())) as (generator, shown):
                which = [i for i in batch if asked[i][1].key in shown]
                if which:
                    values = compute(generator, [shown[asked[i][1].key] for i in which], which)
                    self._memory.update(zip([names[i] for i in which], values, strict=True))
        return [self._memory.get(name) for name in names]

    @contextlib.contextmanager
    def _shown(self, hits: Sequence[Hit]) -> Iterator[tuple[Generator, dict[int, _Shown]]]:
        with self._gallery.showing(hits) as (generator, shown):
            seen, unseen = {}, []
            for hit, one in zip(hits, shown, strict=True):
                if not isinstance(one, ImageError):
                    seen[hit.key] = one
                elif hit.key not in self._unseen:
                    self._unseen.add(hit.key)
                    unseen.append(one)
            if unseen:
                named = "; ".join(map(str, unseen[:3])) + ("; ..." if len(unseen) > 3 else "")
                warnings.warn(
                    f"{len(unseen)} of the candidates cannot be shown to the generator, and keep the "
                    f"probability they have: {named}. Keep image states (states='disk') of images that are "
                    "not files, or do not stay",
                    RuntimeWarning,
                    stacklevel=6,
                )
            yield generator, seen


def _batches(positions: Sequence[int], keys: Sequence[int], size: int) -> Iterator[list[int]]:
    """Positions, at most ``size`` distinct keys at a time."""
    batch: list[int] = []
    inside: set[int] = set()
    for position, key in zip(positions, keys, strict=True):
        if key not in inside and len(inside) == size:
            yield batch
            batch, inside = [], set()
        batch.append(position)
        inside.add(key)
    if batch:
        yield batch
