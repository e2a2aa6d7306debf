"""A data set on a plane: images at angles 0, 10, 20, 30, and texts that name their image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zsqretrieval._util.cache import Cache
from zsqretrieval.evaluation.datasets import Dataset, Query
from zsqretrieval.evaluation.scores import Bench
from zsqretrieval.evaluation.settings import Settings
from zsqretrieval.types import Context, Image, LogLikelihood


def pictured() -> Dataset:
    """Four images and six captions; the text of a caption names its image."""
    about = [0, 0, 1, 2, 3, 3]
    queries = tuple(Query(f"q{n}", f"image {i}", "caption", "") for n, i in enumerate(about))
    qrels = {f"q{n}": {f"i{i}": 1} for n, i in enumerate(about)}
    images = tuple(Image(f"i{n}".encode(), f"i{n}", f"i{n}") for n in range(4))
    return Dataset("plane", images, queries, qrels)


def number(text: str) -> int:
    return int(text.split()[1].rstrip("?"))


@dataclass
class Plane:
    """Vectors at the angle of the image; texts ``bit`` degrees further."""

    bit: float = 2.0
    dim, fingerprint = 2, "plane"

    def encode_image(self, images: Sequence[Image], *, batch_size: int = 32) -> np.ndarray:
        return self._at([10.0 * int(str(image.id)[1:]) for image in images])

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
        return self._at([10.0 * number(text) + self.bit for text in texts])

    def _at(self, degrees: list[float]) -> np.ndarray:
        angle = np.deg2rad(degrees)
        return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)


class Asker:
    """Scores minus the difference of the numbers; asks image n of "image n?", but image 1 of image 3."""

    fingerprint = "asker"

    def __init__(self) -> None:
        self.pairs = self.asked = 0

    def log_likelihood(
        self, contexts: Sequence[Context], continuations: Sequence[str], **_: Any
    ) -> list[LogLikelihood]:
        self.pairs += len(contexts)
        found = []
        for context, text in zip(contexts, continuations, strict=True):
            image = next(part for part in context if isinstance(part, Image))
            shown = int(image.id[1:]) if image.id else 9  # null images have no id
            found.append(LogLikelihood((text,), np.array([-abs(shown - number(text))], np.float32)))
        return found

    def generate(self, contexts: Sequence[Context], *, n: int = 1, **_: Any) -> list[list[str]]:
        self.asked += len(contexts)
        numbers = [int(str(context[0].id)[1:]) for context in contexts if isinstance(context[0], Image)]
        return [[f"image {3 if one == 1 else one}?"] * n for one in numbers]


def bench_of(
    dataset: Dataset,
    encoder: Any,
    generator: Any,
    cache: Cache | None = None,
    step: Any = None,
    **settings: Any,
) -> Bench:
    """A bench in memory unless a cache is given."""
    return Bench(
        encoder, generator, dataset, Settings(**settings), cache or Cache(), step or (lambda *_: None)
    )
