"""An album of three coloured images, with a toy encoder and a toy generator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image as PILImage

from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator

COLOURS = ("red", "green", "blue")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "colours"
    folder.mkdir()
    for colour in COLOURS:
        PILImage.new("RGB", (8, 6), colour).save(folder / f"{colour}.png")
    (folder / "red.txt").write_text("a red wall")
    return folder


@pytest.fixture
def retriever_of_colours(folder: Path) -> Iterator[Retriever]:
    encoder = ToyEncoder()
    index = ExactIndex(encoder.dim, fingerprint=encoder.fingerprint)
    with Retriever(encoder, index, ToyGenerator()) as retriever:
        retriever.add(folder)
        yield retriever
