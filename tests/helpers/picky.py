"""Toy parts that cannot take some images or texts, as real models cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from zsqretrieval.data.images import decode
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator, ToyStatesGenerator
from zsqretrieval.types import Context, Image, ImageState


def strip(name: str = "strip.png") -> PILImage.Image:
    """A picture that is longer than 200 : 1."""
    picture = PILImage.new("RGB", (1093, 5), "red")
    picture.filename = name  # type: ignore[attr-defined]
    return picture


def is_strip(image: Image) -> bool:
    width, height = decode(image).size
    return max(width, height) > 200 * min(width, height)


def ratio(image: Image) -> None:
    """Fails as the image processor of Qwen2-VL does, naming no image."""
    if is_strip(image):
        raise ValueError("absolute aspect ratio must be smaller than 200, got 218.6")


class Picky(ToyGenerator):
    """Cannot take strips, nor texts with the mark of an image."""

    fingerprint = "picky"

    def __init__(self, look: Callable[[Image], None] = ratio, max_tokens: int = 256) -> None:
        super().__init__(max_tokens)
        self.look, self.calls = look, 0

    def log_likelihood(self, contexts: Any, continuations: Any, **settings: Any) -> Any:
        self.calls += 1
        return super().log_likelihood(contexts, continuations, **settings)

    def _read(self, context: Context, name: str) -> Any:
        for segment in context:
            if isinstance(segment, Image):
                self.look(segment)
            elif isinstance(segment, str) and "<image_pad>" in segment:
                raise ValueError("the prompt has 2 marks for 1 image")
        return super()._read(context, name)


class PickyStates(ToyStatesGenerator):
    """Gives NaN as the state of strips."""

    fingerprint = "picky-states"

    def image_states(self, images: Sequence[Image], *, batch_size: int = 16) -> NDArray[np.float32]:
        states = super().image_states(images)
        states[[is_strip(image) for image in images]] = np.nan
        return states

    def _recall(self, state: ImageState) -> NDArray[np.float64]:
        return np.asarray(state.values, np.float64)


class PickyEncoder(ToyEncoder):
    """Gives NaN for strips and for texts with the word "unknown", or raises."""

    fingerprint = "picky-encoder"

    def __init__(self, *, raises: type[Exception] | None = None) -> None:
        self.raises, self.calls = raises, 0

    def encode_image(self, images: Sequence[Image], *, batch_size: int = 32) -> NDArray[np.float32]:
        self.calls += 1
        rows = super().encode_image(images)
        strips = [is_strip(image) for image in images]
        if self.raises and any(strips):
            raise self.raises("height and width must be > 0")
        rows[strips] = np.nan
        return rows

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        rows = super().encode_text(texts)
        unknown = ["unknown" in text for text in texts]
        if self.raises and any(unknown):
            raise self.raises("no such word")
        rows[unknown] = np.nan
        return rows
