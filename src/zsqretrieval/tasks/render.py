"""Texts drawn as pictures, to test whether a generator can read without OCR."""

from __future__ import annotations

import bisect
import os
from pathlib import Path
from typing import TypeAlias

from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.tasks.writing import check_texts
from zsqretrieval.types import Image

_Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

_LARGEST, _SMALLEST = 1 / 6, 1 / 40  # height of the letters, in shares of the picture's side
_MARGIN = 1 / 16
_MISSING = "\uffff"  # in no font, so its picture is the one for missing characters


def render_text(text: str, *, side: int = 448, font: str | os.PathLike[str] | None = None) -> Image:
    """Draw a text as Rendered SST-2 does: black on white, centred, in the largest letters that fit.

    Lines are broken between words. The picture has ``side`` x ``side`` pixels, at least 64; ``font`` is a
    TrueType or OpenType file, or None for Pillow's own font, which has ASCII.

    Raises:
        InvalidInputError: the text is empty, has a character that the font lacks, or does not fit in the
            smallest letters; the side is below 64; or the font cannot be read.
    """
    (words,) = check_texts([text], "texts")
    if side < 64:
        raise InvalidInputError(f"side must be at least 64 pixels, not {side}")
    _check_characters(words, _font(font, 32))
    canvas = PILImage.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(canvas)
    room = side * (1 - 2 * _MARGIN)

    def drawn(height: int) -> tuple[str, _Font, tuple[float, float, float, float]]:
        letters = _font(font, height)
        broken = _broken(words, letters, room)
        return broken, letters, draw.multiline_textbbox((0, 0), broken, letters, align="center")

    def too_large(height: int) -> bool:
        _, _, (left, top, right, bottom) = drawn(height)
        return right - left > room or bottom - top > room

    heights = range(max(6, round(side * _SMALLEST)), round(side * _LARGEST) + 1)
    fitting = bisect.bisect_left(heights, True, key=too_large)
    if not fitting:
        raise InvalidInputError(
            f"a text of {len(words)} characters does not fit into {side} x {side} pixels in legible letters; "
            "shorten it, or give a larger side"
        )
    broken, letters, (left, top, right, bottom) = drawn(heights[fitting - 1])
    corner = (side - right - left) / 2, (side - bottom - top) / 2
    draw.multiline_text(corner, broken, "black", letters, align="center")
    start = words if len(words) <= 40 else f"{words[:37]}..."
    return Image(canvas, source=f"text {start!r}")


def _font(font: str | os.PathLike[str] | None, height: int) -> _Font:
    if font is None:
        return ImageFont.load_default(height)
    try:
        return ImageFont.truetype(Path(font), height)
    except OSError as error:
        raise InvalidInputError(f"{font} is not a readable font ({error})") from error


def _check_characters(text: str, font: _Font) -> None:
    missing = bytes(font.getmask(_MISSING))
    for character in sorted(set(text) - set(" \n")):
        if not character.isprintable() or bytes(font.getmask(character)) == missing:
            raise InvalidInputError(
                f"the font has no {character!r}, which is in the text {text[:40]!r}; give a font file with "
                "this character as font=, or replace it"
            )


def _broken(text: str, font: _Font, room: float) -> str:
    """The text with lines no wider than the room, unless a single word is wider."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > room:
                lines.append(line)
                line = word
            else:
                line = longer
        lines.append(line)
    return "\n".join(lines)
