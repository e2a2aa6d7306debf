"""A toy generator with a seeing part that can run ahead: what it sees in an image is its mean colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.data.images import decode
from zsqretrieval.errors import MismatchError
from zsqretrieval.testing.toys import ToyGenerator
from zsqretrieval.types import Context, Image, ImageState


class Seeing(ToyGenerator):
    """Makes and reads image states; a plugin, and counts how often it looks and how often it is made."""

    state_shape = (3,)
    state_dtype = np.dtype(np.float32)
    made = 0

    def __init__(self, glasses: int = 1) -> None:
        super().__init__()
        Seeing.made += 1
        self.glasses = glasses
        self.fingerprint = f"seeing-{glasses}"
        self.looked_at: list[str] = []
        self.batches: list[int] = []

    @property
    def config(self) -> dict[str, int]:
        return {"glasses": self.glasses}

    @classmethod
    def from_config(cls, config: Mapping[str, int]) -> Seeing:
        return cls(**config)

    def image_states(self, images: Sequence[Image], *, batch_size: int = 16) -> NDArray[Any]:
        self.batches.append(len(images))
        return np.stack([self._look(image) for image in images]) if images else np.empty((0, 3), np.float32)

    def _look(self, image: Image) -> NDArray[np.float32]:
        self.looked_at.append(image.source)
        return np.asarray(decode(image), np.float32).mean(axis=(0, 1)) / (255 * self.glasses)

    def _read(self, context: Context, name: str) -> list[NDArray[np.float64]]:
        segments: list[NDArray[np.float64]] = []
        for segment in context:
            if isinstance(segment, str):
                segments += super()._read([segment], name)
                continue
            if isinstance(segment, ImageState) and segment.fingerprint != self.fingerprint:
                raise MismatchError(f"{segment.source}: a state of {segment.fingerprint!r}")
            added = np.zeros(len(self.vocabulary))
            red = self.vocabulary.index("red")
            added[red : red + 3] = 4 * (
                segment.values if isinstance(segment, ImageState) else self._look(segment)
            )
            segments.append(added)
        return segments
