"""A gallery of numbered images, and a generator with all probabilities in a table."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.protocols import Generator
from zsqretrieval.types import Context, Hit, Image, ImageState, LogLikelihood

Table = Mapping[str, Mapping[str, Sequence[float]]]  # question -> answer -> P(answer | question, image)


@dataclass
class ClosedGenerator:
    """Answers by its table, with P = 0.5 for other questions; asks and describes as given."""

    table: Table
    asks: Sequence[Sequence[str]] = ()  # per image, likeliest first
    captions: Sequence[str] = ()
    fingerprint: str = "closed"
    longest: int = 80  # characters of a continuation
    pairs: list[tuple[int, str, str]] = field(default_factory=list)
    wrote: list[tuple[int, str]] = field(default_factory=list)
    calls: int = 0  # of log_likelihood

    def log_likelihood(
        self, contexts: Sequence[Context], continuations: Sequence[str], **settings: Any
    ) -> list[LogLikelihood]:
        self.calls += 1
        found = [self._score(*pair) for pair in zip(contexts, continuations, strict=True)]
        if progress := settings.get("progress"):
            progress("scoring", len(found), len(found))
        return found

    def _score(self, context: Context, text: str) -> LogLikelihood:
        image, prompt = context
        assert isinstance(image, Image) and isinstance(prompt, str)
        if len(text) > self.longest:
            raise InvalidInputError(f"pair 0 has {len(text)} characters; this model reads {self.longest}")
        number = int(image.source)
        self.pairs.append((number, prompt, text))
        question, _, said = prompt.removeprefix("Question: ").partition(" Answer:")
        answers = self.table.get(question if prompt != "Question:" else "told")
        p = 0.5 if answers is None else answers[f"{said}{text}".strip()][number]
        return LogLikelihood((text,), np.array([math.log(p) if p else -np.inf], np.float32))

    def generate(self, contexts: Sequence[Context], *, n: int = 1, **settings: Any) -> list[list[str]]:
        return [((self._continue(*context) or [""]) * n)[:n] for context in contexts]

    def _continue(self, image: Any, prompt: str) -> list[str]:
        number = int(image.source)
        self.wrote.append((number, prompt))
        if prompt == "A question about this picture:":
            return list(self.asks[number]) if self.asks else list(self.table)
        if prompt == "An image of":
            return [self.captions[number] if self.captions else ""]
        answers = self.table[prompt.removeprefix("Question: ").removesuffix(" Answer:")]
        return [max(answers, key=lambda answer: answers[answer][number])]


@dataclass
class World:
    """Images 0, 1, ... with given cosine similarities to texts; 0 for a text not listed."""

    n: int
    generator: Any
    cosines: Mapping[str, Sequence[float]] = field(default_factory=dict)
    reads: int = 10_000  # characters; the encoder truncates the rest
    removed: set[int] = field(default_factory=set)
    blind: set[int] = field(default_factory=set)
    stored: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    encoded: list[str] = field(default_factory=list)

    def first_stage(self, text: str, k: int) -> list[Hit]:
        cosine = self._cosine(text)
        order = [int(i) for i in np.argsort(-cosine, kind="stable") if i not in self.removed]
        return [
            Hit(i, f"image-{i}", str(i), float(cosine[i]), {"first_stage": float(cosine[i])})
            for i in order[:k]
        ]

    def similarities(self, texts: Sequence[str], hits: Sequence[Hit]) -> NDArray[np.float64]:
        return np.array([[self._cosine(text)[hit.key] for hit in hits] for text in texts])

    def _cosine(self, text: str) -> NDArray[np.float64]:
        self.encoded.append(text[: self.reads])
        return np.array(self.cosines.get(text[: self.reads], [0.0] * self.n), np.float64)

    def encoded_alike(self, texts: Sequence[str]) -> bool:
        return len({text[: self.reads] for text in texts}) == 1

    def present(self, hits: Sequence[Hit]) -> NDArray[np.bool_]:
        return np.array([hit.key not in self.removed and hit.key < self.n for hit in hits])

    def stored_questions(self, hits: Sequence[Hit]) -> list[tuple[str, ...]]:
        return [self.stored.get(hit.key, ()) for hit in hits]

    @contextlib.contextmanager
    def showing(
        self, hits: Sequence[Hit]
    ) -> Iterator[tuple[Generator, list[Image | ImageState | ImageError]]]:
        gone = {str(n): ImageError(str(n), "is gone") for n in self.blind | self.removed}
        yield self.generator, [gone.get(hit.source) or Image(b"", hit.source) for hit in hits]
