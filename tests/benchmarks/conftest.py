"""What the docs show of a benchmark's output, and eight images with captions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image as PILImage

from tars import pack
from zsqretrieval.testing.pictures import encoded

DOCS = Path(__file__).parents[2] / "docs"
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "purple", "orange")


@pytest.fixture(scope="session")
def shown() -> Callable[[str, str], str]:
    """The output of a benchmark, by its name, that a page of the docs shows."""

    def find(page: str, name: str) -> str:
        text = (DOCS / page).read_text(encoding="utf-8")
        marks = rf"<!-- output of: python -m benchmarks.{name} -->\n(.*?)<!-- end of output -->"
        (found,) = re.findall(marks, text, re.DOTALL)
        return str(found).strip()

    return find


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of plain images with five captions each, as train and as dev."""
    folder = tmp_path_factory.mktemp("colours")
    members = {}
    for number, colour in enumerate(COLOURS):
        places = ("wall", "table", "floor", "bed", "car")
        captions = [f"A {colour} square on a {place}." for place in places]
        members[f"{number:04}.jpg"] = encoded(PILImage.new("RGB", (64, 48), colour), "JPEG")
        members[f"{number:04}.json"] = json.dumps({"captions": captions}).encode()
    for split in ("train", "dev"):
        pack(folder / f"{split}-00000.tar", members)
    return folder
