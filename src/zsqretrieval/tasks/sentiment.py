"""Reading without OCR: is the opinion in a picture of text a good one?

Kosmos-1 was tested so on Rendered SST-2, film reviews drawn as images (arXiv 2302.14045, section 4.3):
67.1 % of two classes, 72.9 % with a chain of thought. :func:`render_text` draws such images of any text.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.prompts import PROMPTS, Prompt
from zsqretrieval.protocols import Generator
from zsqretrieval.tasks.choice import Choice, choose
from zsqretrieval.tasks.writing import Pictures, listed, pictures
from zsqretrieval.types import Image

__all__ = ["LABELS", "QUESTION", "classify_sentiment", "render_text"]

QUESTION = "what is the sentiment of the opinion?"
"""Kosmos-1's question."""

LABELS = ("positive", "negative")
"""Its answers."""

_Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

_LARGEST, _SMALLEST = 1 / 6, 1 / 40  # height of the letters, in shares of the picture's side
_MARGIN = 1 / 16
_NO_CHARACTER = "\uffff"  # no font draws it, so it looks as whatever a font lacks looks


def classify_sentiment(
    generator: Generator,
    images: Pictures,
    *,
    question: str = QUESTION,
    labels: Sequence[str] = LABELS,
    prompt: Prompt = PROMPTS["vqa"],
    batch_size: int = 16,
) -> list[Choice]:
    """Tell the sentiment of texts that are pictures.

    Args:
        generator: reads.
        images: one image or n of them.
        question: what is asked about each.
        labels: the answers, two or more.
        prompt: takes one image and the text ``question``.
        batch_size: pairs of image and label that are computed together.

    Returns:
        n choices among the labels. With a chain of thought:
        :func:`zsqretrieval.tasks.chain_of_thought.choose_step_by_step` with the same question and labels.

    Raises:
        InvalidInputError: there are no images, too few labels, one given twice, a text that is none or
            empty, or the prompt takes anything else.
        ImageError: an image cannot be decoded; names it.
    """
    (asked,) = listed([question], "questions")
    contexts = [prompt.context(image, question=asked) for image in pictures(images)]
    return choose(generator, contexts, labels, batch_size=batch_size)


def render_text(text: str, *, side: int = 448, font: str | os.PathLike[str] | None = None) -> Image:
    """Draw a text as a picture: black on white, centred, in the largest letters that fit.

    Args:
        text: what to draw; lines are broken between words.
        side: width and height in pixels; Rendered SST-2 has 448.
        font: a TrueType or OpenType file; None takes the font that Pillow brings along, which knows ASCII.

    Returns:
        The picture; its source quotes the beginning of the text.

    Raises:
        InvalidInputError: the text is none or empty, has a character that the font lacks, or does not fit
            in the smallest letters; the side is below 64; or the font cannot be read.
    """
    (words,) = listed([text], "texts")
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
            f"a text of {len(words)} characters does not fit into {side} x {side} pixels in letters that can "
            "be read; shorten it, or give a larger side"
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
        raise InvalidInputError(f"{font} is not a font that can be read ({error})") from error


def _check_characters(text: str, font: _Font) -> None:
    lacking = bytes(font.getmask(_NO_CHARACTER))
    for character in sorted(set(text) - set(" \n")):
        if not character.isprintable() or bytes(font.getmask(character)) == lacking:
            raise InvalidInputError(
                f"the font has no {character!r}, which is in the text {text[:40]!r}; give font= a file that "
                "has it, or write it otherwise"
            )


def _broken(text: str, font: _Font, room: float) -> str:
    """The text with lines no wider than the room, unless a single word is."""
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
