"""An encoder that knows colours and nothing else: "red", "a dark blue picture", "black and white".

Images and texts become distributions of mass over a palette of named shades, and the vector is the square
root of the distribution: its length is 1 whatever is in it, and the cosine of two of them is the
Bhattacharyya coefficient of the distributions (A. Bhattacharyya, 1943), 1 for the same colours, 0 for none
in common.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Resampling

from zsqretrieval.data.images import decode
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.types import Image

__all__ = ["ColorEncoder"]

HUES = {
    "red": (215, 25, 30), "orange": (250, 140, 20), "yellow": (250, 225, 40), "green": (40, 150, 50),
    "blue": (30, 80, 210), "purple": (125, 45, 160), "pink": (250, 130, 180), "brown": (125, 70, 15),
    "grey": (128, 128, 128),
}  # fmt: skip
"""The basic colour terms of English (Berlin and Kay, 1969) but black and white, as sRGB."""

SHADES: dict[str, tuple[int, ...]] = {"black": (0, 0, 0), "white": (255, 255, 255)}
for _hue, _rgb in HUES.items():
    SHADES[f"dark {_hue}"] = tuple(c // 2 for c in _rgb)
    SHADES[_hue] = _rgb
    SHADES[f"light {_hue}"] = tuple((c + 255) // 2 for c in _rgb)

SYNONYMS = {
    "gray": "grey", "violet": "purple", "navy": "dark blue", "beige": "light brown", "crimson": "dark red",
    "maroon": "dark red", "golden": "yellow", "olive": "dark yellow", "turquoise": "light blue",
    "deep": "dark", "pale": "light",
}  # fmt: skip

UNKNOWN = 16
"""Entries for the words that name no colour. Images have nothing there."""


class ColorEncoder:
    """Sees how much of every shade an image has; reads the colours that a text names.

    A text is the picture that has its colours in equal parts: "dark blue" is one shade, "blue" three, "dark"
    every dark one. All other words take their share of the mass to entries where images are zero. They lower
    a score without changing an order, so the score says how much of the question was understood.

    Args:
        side: images are shrunk to ``side`` by ``side`` pixels.
        spread: how far apart shades still count as alike; a distance in OKLab, where black is 1 from white.

    Raises:
        InvalidInputError: ``side`` or ``spread`` is not positive.
    """

    dim = len(SHADES) + UNKNOWN
    # Values that an album may give without being trusted: they name no file and take little memory.
    safe_settings: ClassVar[Mapping[str, Any]] = {"side": range(1, 1025), "spread": (int, float)}

    def __init__(self, side: int = 48, spread: float = 0.025) -> None:
        if side < 1 or not spread > 0:
            raise InvalidInputError(f"side={side}, spread={spread}; both have to be positive")
        self.config: Mapping[str, Any] = {"side": side, "spread": spread}
        # Whatever changes a vector has to change the fingerprint; the 1 counts changes of the code below.
        facts = json.dumps([1, self.config, SHADES, SYNONYMS, UNKNOWN], sort_keys=True)
        self.fingerprint = f"colors-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"
        self._shades = _oklab(np.array(list(SHADES.values()), np.float64))  # [S, 3]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ColorEncoder:
        """Make the encoder again from its :attr:`config`; an album does."""
        return cls(**config)

    def encode_image(self, images: Sequence[Image], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Encode images to float32 [n, dim]; see :meth:`zsqretrieval.protocols.Encoder.encode_image`."""
        mass = np.zeros((len(images), self.dim))
        side = self.config["side"]
        for row, image in zip(mass, images, strict=True):
            small = decode(image, size_hint=side).resize((side, side), Resampling.BOX)
            row[: len(SHADES)] = self._spread(np.asarray(small, np.float64).reshape(-1, 3))
        return np.sqrt(mass).astype(np.float32)

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Encode texts to float32 [n, dim]; see :meth:`zsqretrieval.protocols.Encoder.encode_text`."""
        if isinstance(texts, str):
            raise InvalidInputError(f"texts is one string, {texts!r}; pass a list of strings")
        mass = np.zeros((len(texts), self.dim))
        for row, text in zip(mass, texts, strict=True):
            phrases = _phrases(text) or [""]  # a text without words: one that is not understood
            for phrase in phrases:
                if named := [rgb for shade, rgb in SHADES.items() if _names(phrase, shade)]:
                    row[: len(SHADES)] += self._spread(np.array(named, np.float64)) / len(phrases)
                else:  # crc32, because hash() differs from process to process
                    row[len(SHADES) + zlib.crc32(phrase.encode()) % UNKNOWN] += 1 / len(phrases)
        return np.sqrt(mass).astype(np.float32)

    def _spread(self, rgb: NDArray[np.float64]) -> NDArray[np.float64]:
        """The share of each shade in some pixels, [n, 3] -> [S], sum 1; near shades share a pixel."""
        squares = ((_oklab(rgb)[:, None] - self._shades) ** 2).sum(-1)  # [n, S]
        squares -= squares.min(1, keepdims=True)  # no pixel may be so far from all that it vanishes
        near = np.exp(-squares / (2 * self.config["spread"] ** 2))
        shares: NDArray[np.float64] = (near / near.sum(1, keepdims=True)).mean(0)
        return shares


def _phrases(text: str) -> list[str]:
    """The words of a text, with "dark" and "light" joined to the colour that follows."""
    words = " ".join(SYNONYMS.get(word, word) for word in re.findall(r"\w+", text.lower()))
    return re.findall(rf"(?:dark|light) (?:{'|'.join(HUES)})\b|\w+", words)


def _names(phrase: str, shade: str) -> bool:
    """Whether a phrase means a shade: "dark blue" only itself, "blue" and "dark" also "dark blue"."""
    if phrase in ("dark", "light"):
        return shade.startswith(phrase) or shade == {"dark": "black", "light": "white"}[phrase]
    return phrase == shade or (phrase in HUES and shade.endswith(phrase))


def _oklab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """SRGB in [0, 255] to OKLab, [n, 3]: equal distances look equally different (B. Ottosson, 2020)."""
    s = rgb / 255
    linear = np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4)
    lms = linear @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    lab: NDArray[np.float64] = np.cbrt(lms) @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )
    return lab
