"""What the tests of the training scripts share: the scripts as modules, and eight images with captions."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image as PILImage

EXAMPLES = Path(__file__).parents[2] / "examples"
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "purple", "orange")


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up, and one script imports from the other
    spec.loader.exec_module(module)
    return module


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
    for split in ("train", "dev"):
        with tarfile.open(folder / f"{split}-00000.tar", "w") as tar:
            for number, colour in enumerate(COLOURS):
                picture = io.BytesIO()
                PILImage.new("RGB", (64, 48), colour).save(picture, "JPEG")
                captions = [
                    f"A {colour} square on a {place}." for place in ("wall", "table", "floor", "bed", "car")
                ]
                for suffix, content in (
                    ("jpg", picture.getvalue()),
                    ("json", json.dumps({"captions": captions}).encode()),
                ):
                    member = tarfile.TarInfo(f"{number:04}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder
