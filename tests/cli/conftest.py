"""A `zsq` whose preset ``toy`` needs no weights, in this process and in others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image as PILImage
from typer.testing import CliRunner

from running import Ran, Zsq
from zsqretrieval.cli import app
from zsqretrieval.presets import PRESETS, Preset

TOYS = """
import numpy as np
from PIL import Image as PILImage
from zsqretrieval.data.images import decode
from zsqretrieval.testing import ToyEncoder, ToyGenerator
from zsqretrieval.types import Image, ImageState

class Toy(ToyEncoder):
    config = {}
    @classmethod
    def from_config(cls, config):
        return cls()

class Reader(ToyGenerator):
    config = {}
    @classmethod
    def from_config(cls, config):
        return cls()

class Seer(Reader):
    "Sees the mean colour of an image, once."
    state_shape, state_dtype = (3,), np.dtype(np.uint8)
    def image_states(self, images, *, batch_size=16):
        return np.array([np.asarray(decode(image)).mean((0, 1)) for image in images]).astype(np.uint8)
    def log_likelihood(self, contexts, continuations, **_):
        shown = [[self._shown(part) for part in context] for context in contexts]
        return super().log_likelihood(shown, continuations)
    def _shown(self, part):
        if not isinstance(part, ImageState):
            return part
        return Image(PILImage.new("RGB", (1, 1), tuple(map(int, part.values))), part.source)
"""

START = """
import sys
from zsqretrieval.presets import PRESETS, Preset
PRESETS["toy"] = Preset("toy", index="exact")
PRESETS["reading"] = Preset("toy", index="exact", generator="reader")
from zsqretrieval.cli import main
sys.argv[0] = "zsq"
main()
"""


@pytest.fixture
def toys(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with an installed package that offers toys as plugins, and presets of them.

    ``toy`` has no generator; that of ``reading`` reads images, that of ``seeing`` makes states of them.
    """
    folder = tmp_path_factory.mktemp("site")
    info = folder / "cli_toys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cli-toys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[zsqretrieval.encoders]\ntoy = cli_toys:Toy\n"
        "[zsqretrieval.generators]\nreader = cli_toys:Reader\nseer = cli_toys:Seer\n"
    )
    (folder / "cli_toys.py").write_text(TOYS)
    monkeypatch.syspath_prepend(folder)
    for name, generator in (("toy", None), ("reading", "reader"), ("seeing", "seer")):
        preset = Preset("toy", index="exact", generator=generator)
        monkeypatch.setitem(PRESETS, name, preset)  # type: ignore[arg-type]
    yield folder
    sys.modules.pop("cli_toys", None)


@pytest.fixture
def zsq(toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Zsq:
    """Run a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, **env: str) -> Ran:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def process(toys: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start a command in a process of its own."""

    def start(*arguments: object, **env: str) -> subprocess.Popen[str]:
        path = os.pathsep.join(filter(None, [str(toys), os.environ.get("PYTHONPATH")]))
        return subprocess.Popen(
            [sys.executable, "-c", START, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            encoding=env.get("PYTHONIOENCODING"),
            env={**os.environ, "PYTHONPATH": path, **env},
        )

    return start


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """A folder of plain images named after their colours, and one that is broken."""
    folder = tmp_path / "colours"
    folder.mkdir()
    for name in ("red", "green", "blue", "yellow"):
        PILImage.new("RGB", (40, 30), name).save(folder / f"{name}.png")
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    return folder
