"""A toy generator with image states that counts the images it computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.data.images import decode
from zsqretrieval.testing.toys import ToyStatesGenerator
from zsqretrieval.types import Context, Image, ImageState


class Seeing(ToyStatesGenerator):
    """A plugin whose states are mean colours over ``glasses``; counts its images, batches and instances."""

    made = 0
    safe_settings = {"glasses": int}  # noqa: RUF012

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
        return np.array([self._look(image) for image in images], np.float32).reshape(-1, 3)

    def _look(self, image: Image) -> NDArray[np.float32]:
        self.looked_at.append(image.source)
        return np.asarray(decode(image), np.float32).mean(axis=(0, 1)) / (255 * self.glasses)

    def _read(self, context: Context, name: str) -> list[NDArray[np.float64]]:
        seen = [
            ImageState(self._look(one), self.fingerprint, one.source) if isinstance(one, Image) else one
            for one in context
        ]
        return super()._read(seen, name)
