"""The example scripts as modules."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@cache
def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
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
def train_mini_encoder() -> ModuleType:
    return _script("train_mini_encoder")


@pytest.fixture(scope="session")
def train_mini_generator(train_mini_encoder: ModuleType) -> ModuleType:
    return _script("train_mini_generator")


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType], Path]:
    """Run a training script twice, and give the file that it writes, each time the same."""

    def run(module: ModuleType) -> Path:
        files = [tmp_path / "first.safetensors", tmp_path / "second.safetensors"]
        for out in files:
            monkeypatch.setattr(sys, "argv", ["train", "--work", str(out.with_suffix("")), "--out", str(out)])
            module.main()
        assert files[0].read_bytes() == files[1].read_bytes()
        return files[0]

    return run
