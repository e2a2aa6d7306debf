"""A `zsq` whose preset ``toy`` needs no weights, in this process and in others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from plain import write_plain
from running import Ran, Zsq
from toy_plugins import START, install, presets
from zsqretrieval.cli import app
from zsqretrieval.presets import PRESETS


@pytest.fixture
def toys(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with an installed package that offers toys as plugins, and presets of them."""
    folder = tmp_path_factory.mktemp("site")
    monkeypatch.syspath_prepend(install(folder))
    for name, preset in presets().items():
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
    folder = write_plain(tmp_path / "colours", ("red", "green", "blue", "yellow"), (40, 30))
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    return folder


@pytest.fixture
def album(zsq: Zsq, colours: Path, request: pytest.FixtureRequest) -> Path:
    """An album of these images, of the preset that the module names in ``PRESET``."""
    preset = getattr(request.module, "PRESET", "toy")
    assert zsq("index", colours, "--out", "album", "--preset", preset).code == 0
    return Path("album")
