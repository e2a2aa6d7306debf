"""Pictures of one colour."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from zsqretrieval.testing.pictures import encoded
from zsqretrieval.types import Image


def plain(colour: Any = 0, size: tuple[int, int] = (8, 8)) -> PILImage.Image:
    """Grey if the colour is a number."""
    return PILImage.new("L" if isinstance(colour, int) else "RGB", size, colour)


def png(colour: Any = 0, size: tuple[int, int] = (5, 4)) -> bytes:
    return encoded(plain(colour, size))


def picture(name: str) -> Image:
    return Image(plain(name), name, name)


def write_plain(folder: Path, names: Iterable[str], size: tuple[int, int] = (8, 8)) -> Path:
    """A new folder of files named after their colours."""
    folder.mkdir()
    for name in names:
        plain(name, size).save(folder / f"{name}.png")
    return folder
