"""The example scripts as modules, what the docs show of them, and eight images with captions."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image as PILImage

from tars import pack
from zsqretrieval.testing.pictures import encoded

ROOT = Path(__file__).parents[2]
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "purple", "orange")


@cache
def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up, and one script imports from the other
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """The module of a script by its name."""
    return _script


@pytest.fixture(scope="session")
def shown() -> Callable[[str, str], str]:
    """The output of a script, by its name, that a page of the docs shows."""

    def find(page: str, name: str) -> str:
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        marks = rf"<!-- output of: python examples/{name}.py -->\n(.*?)<!-- end of output -->"
        (found,) = re.findall(marks, text, re.DOTALL)
        return str(found).strip()

    return find


@pytest.fixture(scope="session")
def train_mini_encoder() -> ModuleType:
    return _script("train_mini_encoder")


@pytest.fixture(scope="session")
def train_mini_generator(train_mini_encoder: ModuleType) -> ModuleType:
    return _script("train_mini_generator")


@pytest.fixture(scope="session")
def compare_smollm2(train_mini_generator: ModuleType) -> ModuleType:
    return _script("compare_smollm2")


@pytest.fixture(scope="session")
def compare_query_banks() -> ModuleType:
    return _script("compare_query_banks")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
