"""Wrong usage, weights of one's own, and the output that all commands share."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from running import Zsq
from small_sets import write_colours
from zsqretrieval.album import candidates
from zsqretrieval.cli import console
from zsqretrieval.cli.console import human_seconds, human_size
from zsqretrieval.cli.options import preset_with
from zsqretrieval.testing.pictures import paintings


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("search album", ""),
        ("search album red -k 0", ""),
        ("search album red --candidates 0", ""),
        ("search album red --rerank tasting", ""),
        ("search album red --fusion rerank-only --weight 2", ""),
        ("search album red --generator-weights folder", ""),
        ("search album --image red.png --rerank yes_no", ""),
        ("search album --image red.png --fusion rerank-only", ""),
        ("search album --image red.png --weight 2", ""),
        ("search album --image red.png --candidates 100", ""),
        ("search album --image red.png --preset reading", ""),
        ("search album --image red.png --preset reading --generator-weights folder", ""),
        ("search album --image red.png --expand", ""),
        ("search album --image red.png --normalize", ""),
        ("search album --image red.png --bank bank.txt", ""),
        ("search album --image red.png --explain", ""),
        ("questions album --list --remove", "give one"),
        ("questions album --filter --image red.png", "give one"),
        ("questions album --generator-weights x", "needs the --preset"),
        ("questions album -n 0", "1"),
        ("index folder --out album --states memory", ""),
        ("index --out album", ""),
        ("index folder", ""),
        ("index folder --out album --batch-size 0", ""),
        ("remove album", ""),
        ("evaluate", ""),
        ("demo -k none", ""),
        ("sing", ""),
    ],
)
def test_wrong_usage_exits_with_2(zsq: Zsq, command: str, message: str) -> None:
    ran = zsq(*command.split())
    assert ran.code == 2 and "Usage: " in ran.stderr and message in ran.stderr and ran.stdout == ""


@pytest.mark.parametrize("command", ["search", "info", "remove"])
def test_missing_album_names_the_command_that_makes_one(zsq: Zsq, command: str) -> None:
    ran = zsq(command, "nowhere", *(["x"] if command != "info" else []))
    assert ran.code == 1 and "zsq index" in ran.stderr


def test_an_unknown_preset_is_an_error(zsq: Zsq) -> None:
    ran = zsq("demo", "--preset", "maxi")
    assert ran.code == 1 and "there is no preset 'maxi'" in ran.stderr


@pytest.mark.parametrize(
    ("size", "said"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (115_532_876, "116 MB"), (2.5e9, "2.5 GB")],
)
def test_sizes_have_units(size: float, said: str) -> None:
    assert human_size(size) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.0123, "12 ms"), (0.00123, "1.2 ms"), (0.9996, "1000 ms"), (12.34, "12.3 s")]
)
def test_seconds_have_units(seconds: float, said: str) -> None:
    assert human_seconds(seconds) == said


def test_without_a_terminal_progress_is_one_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.progress_bars(whole=True) as report:
        for moment, step, done in (
            (30.0, "scoring", 10),  # too soon
            (90.0, "scoring", 30),
            (100.0, "scoring", 35),  # too soon again
            (210.0, "writing", 50),
            (270.0, "writing", 75),
        ):
            now = moment
            report(step, done, 100)
    assert capsys.readouterr().err.splitlines() == [
        "zsq: 30 %, about 4 minutes left: scoring",
        "zsq: 50 %, about 4 minutes left: writing",
        "zsq: 75 %, about 2 minutes left: writing",
    ]


def test_control_characters_are_escaped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console.show(("a\x1bhead", "[bold]number"), [("a\x1bcell", "1\n2")], numbers=("[bold]number",))
    console.say("said\x1b[2J\nin one line")
    head, _, cell, said = (line for line in capsys.readouterr().out.splitlines() if line.strip())
    assert (head.split(), cell.split()) == ([r"a\x1bhead", "[bold]number"], [r"a\x1bcell", r"1\n2"])
    assert said == r"said\x1b[2J\nin one line"
    terminal = Console(file=io.StringIO(), force_terminal=True, width=200, color_system=None)
    monkeypatch.setattr(console, "_console", lambda stderr: terminal)
    with console.progress_bars() as report:
        report("[bold]folder\x1b[2J test", 1, 2)
        shown = terminal.file.getvalue()  # type: ignore[attr-defined]
    shown += terminal.file.getvalue()  # type: ignore[attr-defined]
    assert r"[bold]folder\x1b[2J test" in shown and "\x1b[2J" not in shown


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_of_folders_cannot_control_the_terminal(zsq: Zsq, tmp_path: Path) -> None:
    data = write_colours(tmp_path / "plain\x1b[2J")
    ran = zsq("evaluate", f"shards:{data}", "--preset", "toy", "--report", "out\x1b[2J", "--no-cost")
    assert ran.code == 0, ran.stderr
    assert r"out\x1b[2J" in ran.stderr and "\x1b" not in ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("preset", "part", "folder", "config"),
    [
        ("clip", "encoder", True, {"name": "local-dir:PATH", "pretrained": None}),
        ("clip", "encoder", False, {"name": "ViT-B-32", "pretrained": "PATH"}),
        ("mini", "encoder", False, {"weights": "PATH"}),
        ("mini", "generator", False, {"weights": "PATH"}),
        ("clip-kosmos2", "generator", True, {"name": "PATH"}),
    ],
)
def test_local_weights_become_settings_of_the_part(
    tmp_path: Path, preset: str, part: str, folder: bool, config: dict[str, Any]
) -> None:
    path = tmp_path / "weights"
    path.mkdir() if folder else path.touch()
    weights: dict[str, Any] = {f"{part}_weights": path}
    made = getattr(preset_with(preset, **weights), f"{part}_config")
    assert made == {name: value and value.replace("PATH", str(path)) for name, value in config.items()}


@pytest.mark.parametrize("part", ["encoder", "generator"])
@pytest.mark.parametrize(
    "command",
    [("demo",), ("index", "folder", "--out", "album"), ("evaluate", "data", "--report", "out")],
)
def test_local_weights_are_refused_when_missing_or_unknown_to_the_part(
    zsq: Zsq, tmp_path: Path, command: tuple[str, ...], part: str
) -> None:
    for folder in ("folder", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "weights").touch()
    for path, message in (
        ("nowhere", "nowhere: no such file or folder of weights"),
        ("weights", f"takes no --{part}-weights"),
    ):
        ran = zsq(*command, "--preset", "reading", f"--{part}-weights", path)
        assert ran.code == 1 and message in ran.stderr
    assert not (tmp_path / "album").exists()


@pytest.mark.parametrize("command", ["index colours --out album", "demo --images colours"])
def test_device_of_the_command_comes_before_the_variable(command: str, zsq: Zsq, colours: Path) -> None:
    given = zsq(*command.split(), "--device", "abacus", ZSQ_DEVICE="sundial")
    assert given.code == 1 and "device 'abacus' cannot be used here" in given.stderr
    assert "device 'sundial' cannot be used" in zsq(*command.split(), ZSQ_DEVICE="sundial").stderr
    assert "ZSQ_DEVICE" not in os.environ


@pytest.mark.parametrize("command", ["search a red", "chat a red", "questions a", "remove a red"])
def test_every_command_with_models_takes_a_device(command: str, zsq: Zsq) -> None:
    ran = zsq(*command.split(), "--device", "cpu")
    assert ran.code == 1 and "is not an album" in ran.stderr


def test_hints_of_the_library_are_printed_once(zsq: Zsq, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "_hints", [])
    Path("many").mkdir()
    for n, one in enumerate(paintings(33)):
        Path(f"many/{n}.png").write_bytes(one.content)  # type: ignore[arg-type]
    zsq("index", "many", "--out", "album", "--preset", "seeing")
    told = zsq("search", "album", "red").stderr
    assert told.startswith("zsq: hint: the generator sees 33 of 33 images") and told.count("\n") == 1
    assert zsq("search", "album", "green").stderr == ""
    assert "features kept when a search needs them" in zsq("info", "album").stdout
