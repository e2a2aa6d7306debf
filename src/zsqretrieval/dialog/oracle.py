"""Questions, captions, answers and likelihoods that a generator gives for the images of a gallery, cached.

hits --Gallery.showing--> generator, images --Interview--> questions, captions, answers    texts per image
                                                      --> log P(text | image)    float64 [n, texts], nats
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar, final, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from zsqretrieval._util.batches import batched, tell
from zsqretrieval._util.checks import check_verbalisers, first_of
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.generators.checked import distinct, read_each, write_each
from zsqretrieval.generators.prompts import PROMPTS, Prompt, check_prompt
from zsqretrieval.protocols import Generator
from zsqretrieval.tasks.english import first_line, is_polar, tidy, tidy_question
from zsqretrieval.types import Context, Hit, Image, ImageState, Progress

POLAR_ANSWERS = ("yes", "no")
"""The answers to a yes/no question."""

Memory: TypeAlias = MutableMapping[tuple[str, ...], Any]
"""A cache of the generator's output, by request and image: numbers, texts and lists of texts."""

_DRAWS, _TEMPERATURE = 4, 0.7  # questions sampled for each image, beside the likeliest one
_MAX_NEW_TOKENS = 20  # of a question, a caption or an answer

T = TypeVar("T")
_Name: TypeAlias = "tuple[str, ...]"


@runtime_checkable
class Gallery(Protocol):
    """The images of a dialog; :mod:`zsqretrieval.dialog.gallery` has those of an album."""

    def first_stage(self, text: str, k: int) -> Sequence[Hit]:
        """The k images nearest to a text, best first; ``score`` is the cosine similarity."""
        ...

    def similarities(self, texts: Sequence[str], hits: Sequence[Hit]) -> NDArray[np.float64]:
        """Cosine similarities of texts and images: float64 [t, n]; nan for a removed image."""
        ...

    def encoded_alike(self, texts: Sequence[str]) -> bool:
        """Whether all texts have the same vector, as texts have that the encoder truncates to one length."""
        ...

    def present(self, hits: Sequence[Hit]) -> NDArray[np.bool_]:
        """Which images are still in the gallery: bool [n]."""
        ...

    def stored_questions(self, hits: Sequence[Hit]) -> list[tuple[str, ...]]:
        """The retained questions of each image."""
        ...

    def showing(
        self, hits: Sequence[Hit]
    ) -> AbstractContextManager[tuple[Generator, list[Image | ImageState | ImageError]]]:
        """The generator, and for each image its cached features, the image, or the reason for neither."""
        ...


@dataclass(frozen=True, slots=True)
class Wording:
    """The prompts and verbalisers of a dialog.

    Attributes:
        ask: continued by a question about the image.
        describe: continued by a caption.
        answer: continued by the answer to ``question``.
        tell: continued by a description of the target image.
        yes: continuations of ``answer`` that mean yes, with their leading space; their probabilities add up,
            each sequence of tokens once.
        no: the same for no.

    Raises:
        InvalidInputError: a prompt does not take one image (``answer``: and a ``question``), or a verbaliser
            is missing, repeated or empty.
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


class _Request(NamedTuple):
    """A context for any image, and the text after it whose likelihood is wanted."""

    prompt: Prompt
    question: str | None = None
    said: str = ""  # the part of the answer that the context already contains
    text: str = ""

    def context(self, image: Image | ImageState) -> Context:
        fields = {} if self.question is None else {"question": self.question}
        parts = self.prompt.context(image, **fields)
        return [*parts[:-1], f"{parts[-1]}{self.said}"] if self.said else parts


@final
class Interview:
    """Puts requests about images to a generator and caches the results.

    An image without cached features whose file is missing, or that the generator cannot take, has no text
    (``None``) and no likelihood (nan); a RuntimeWarning names it once. Every method raises
    ``InvalidInputError`` where the generator cannot write or a text is too long for it.
    Arguments as for :class:`~zsqretrieval.dialog.dialog.Dialog`.
    """

    def __init__(
        self,
        gallery: Gallery,
        *,
        wording: Wording = Wording(),
        memory: Memory | None = None,
        seed: int = 0,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> None:
        self.gallery, self.wording = gallery, wording
        self._memory: Memory = {} if memory is None else memory
        self._seed, self._batch_size, self._progress = seed, batch_size, progress
        self._named: set[int] = set()  # keys of the images that a warning has named

    # --- texts --------------------------------------------------------------------------------------------

    def questions(self, hits: Sequence[Hit]) -> list[tuple[str, ...]]:
        """Questions about each image: the likeliest one first, then the sampled ones."""

        def ask(
            generator: Generator, contexts: list[Context], _: object
        ) -> list[tuple[str, ...] | InvalidInputError]:
            found: list[tuple[str, ...] | InvalidInputError] = []
            for context, one in zip(contexts, self._write(generator, contexts), strict=True):
                if isinstance(one, InvalidInputError):
                    found.append(one)
                else:  # one call per image, so that its draws do not depend on the other images
                    (more,) = self._write(
                        generator, [context], n=_DRAWS, temperature=_TEMPERATURE, seed=self._seed
                    )
                    texts = one if isinstance(more, InvalidInputError) else [*one, *more]
                    found.append(tuple(dict.fromkeys(filter(None, map(tidy_question, texts)))))
                tell(self._progress, "writing questions", len(found), len(contexts))
            return found

        name = ("questions", *map(str, (_DRAWS, _TEMPERATURE, self._seed, _MAX_NEW_TOKENS)))
        (found,) = self._cached({name: _Request(self.wording.ask)}, hits, ask)
        return [tuple(some or ()) for some in found]

    def captions(self, hits: Sequence[Hit]) -> list[str | None]:
        """A caption of each image by greedy decoding."""
        name = ("caption", str(_MAX_NEW_TOKENS))
        (found,) = self._cached({name: _Request(self.wording.describe)}, hits, self._first_lines)
        return found

    def answers(self, questions: Iterable[str], hits: Sequence[Hit]) -> list[list[str | None]]:
        """For each question the answer of each image by greedy decoding; may be empty."""
        requests: dict[_Name, _Request] = {
            ("answer", str(_MAX_NEW_TOKENS), question): _Request(self.wording.answer, question)
            for question in questions
        }
        return self._cached(requests, hits, self._first_lines, written=True)

    def _first_lines(
        self, generator: Generator, contexts: list[Context], _: object
    ) -> list[str | InvalidInputError]:
        lines: list[str | InvalidInputError] = []
        for some in batched(contexts, self._batch_size):
            lines += [
                one if isinstance(one, InvalidInputError) else tidy(first_line(one[0]))
                for one in self._write(generator, some)
            ]
            tell(self._progress, "writing answers", len(lines), len(contexts))
        return lines

    def _write(
        self, generator: Generator, contexts: list[Context], **sampling: Any
    ) -> list[list[str] | InvalidInputError]:
        return write_each(
            generator, contexts, max_new_tokens=_MAX_NEW_TOKENS, batch_size=self._batch_size, **sampling
        )

    # --- likelihoods --------------------------------------------------------------------------------------

    def log_answers(
        self, asked: Sequence[tuple[str, Sequence[str]]], hits: Sequence[Hit]
    ) -> list[NDArray[np.float64]]:
        """Log P(answer | question, image) for several questions, in one call of the generator.

        The answers ``"yes"`` and ``"no"`` of a yes/no question stand for the verbalisers of the wording.

        Returns:
            For each question with a answers float64 [n, a] in nats, each <= 0, not normalised over the
            answers; nan for an image that cannot be shown, and for a question or answer that the generator
            has written but cannot read.
        """

        def spellings(question: str, answer: str) -> list[_Request]:
            texts: tuple[str, ...] = (f" {answer.strip()}",)
            if is_polar(question) and answer in POLAR_ANSWERS:
                texts = self.wording.yes if answer == "yes" else self.wording.no
            return [_Request(self.wording.answer, question, text=text) for text in texts]

        requests = [[spellings(question, answer) for answer in answers] for question, answers in asked]
        wanted = [one for some in requests for texts in some for one in texts]
        found = self._log_likelihoods(wanted, hits, written=True)
        with np.errstate(invalid="ignore"):  # nan stays nan
            return [
                np.stack(
                    [np.logaddexp.reduce([found[one] for one in self._distinct(texts)]) for texts in some],
                    axis=1,
                )
                for some in requests
            ]

    def _distinct(self, requests: Sequence[_Request]) -> list[_Request]:
        """The requests whose probabilities add up."""
        tokens = [self._memory.get(("tokens", one.text), (one.text,)) for one in requests]
        return [requests[i] for i in distinct(tokens)]

    def log_verdicts(self, question: str, hits: Sequence[Hit]) -> NDArray[np.float64]:
        """Log P(yes) and log P(no), normalised over the two: float64 [n, 2]; nan as :meth:`log_answers`."""
        (found,) = self.log_answers([(question, POLAR_ANSWERS)], hits)
        verdicts: NDArray[np.float64] = log_softmax(found, axis=-1)
        return verdicts

    def log_text(
        self, text: str, hits: Sequence[Hit], *, question: str | None = None, said: str = ""
    ) -> NDArray[np.float64]:
        """Log P(text | image), or with a question log P(text | question, said, image).

        ``text`` has its leading space; ``said`` is the beginning of the answer, in front of the text.

        Returns:
            float64 [n] in nats, each <= 0; nan for an image that cannot be shown.
        """
        prompt = self.wording.tell if question is None else self.wording.answer
        request = _Request(prompt, question, said, text)
        return self._log_likelihoods([request], hits)[request]

    def _log_likelihoods(
        self, requests: Iterable[_Request], hits: Sequence[Hit], *, written: bool = False
    ) -> dict[_Request, NDArray[np.float64]]:
        """float64 [n] for each request; ``written`` as for :meth:`_cached`."""

        def score(
            generator: Generator, contexts: list[Context], texts: list[str]
        ) -> list[float | InvalidInputError]:
            found = read_each(
                generator, contexts, texts, batch_size=self._batch_size, progress=self._progress
            )
            for text, one in zip(texts, found, strict=True):
                if not isinstance(one, InvalidInputError):
                    self._memory["tokens", text] = one.tokens
            return [one if isinstance(one, InvalidInputError) else one.sum for one in found]

        names: dict[_Name, _Request] = {
            ("log_likelihood", one.prompt.template, one.question or "", one.said, one.text): one
            for one in requests
        }
        found = np.array(  # [requests, n]; None becomes nan
            self._cached(names, hits, score, written=written), np.float64
        )
        return dict(zip(names.values(), found, strict=True))

    # --- cache --------------------------------------------------------------------------------------------

    def _cached(
        self,
        requests: Mapping[_Name, _Request],
        hits: Sequence[Hit],
        compute: Callable[[Generator, list[Context], list[str]], Sequence[T | InvalidInputError]],
        *,
        written: bool = False,
    ) -> list[list[T | None]]:
        """Results [requests][n]; computed in one call where the cache lacks them; None: cannot be shown.

        A text that the generator cannot take is an InvalidInputError, or None if the generator has
        ``written`` it.
        """

        def key(name: _Name, hit: Hit) -> _Name:
            return (*name, str(hit.key))

        missing = [(name, hit) for hit in hits for name in requests if key(name, hit) not in self._memory]
        if missing:
            waiting = {hit.key: hit for _, hit in missing}
            with self.gallery.showing(list(waiting.values())) as (generator, shown):
                images = dict(zip(waiting, shown, strict=True))
                able = [
                    (name, hit, image)
                    for name, hit in missing
                    if not isinstance(image := images[hit.key], ImageError)
                ]
                contexts = [requests[name].context(image) for name, _, image in able]
                values = compute(generator, contexts, [requests[name].text for name, *_ in able])
                unseen = {at: one for at, one in images.items() if isinstance(one, ImageError)}
                for (name, hit, _), value in zip(able, values, strict=True):
                    if isinstance(value, ImageError):
                        unseen.setdefault(hit.key, value)
                    elif not isinstance(value, InvalidInputError):
                        self._memory[key(name, hit)] = value
                    elif not written:
                        raise value
                self._warn(unseen)
        return [[self._memory.get(key(name, hit)) for hit in hits] for name in requests]

    def _warn(self, unseen: Mapping[int, ImageError]) -> None:
        """Name the images that cannot be shown and were not named before."""
        if new := [one for at, one in unseen.items() if at not in self._named]:
            self._named.update(unseen)
            warnings.warn(
                f"{len(new)} of the candidates cannot be shown to the generator and keep their probability: "
                f"{first_of(new)}. If images may move, keep copies in the album: add them with copy=True "
                "(--copy)",
                RuntimeWarning,
                stacklevel=5,
            )
