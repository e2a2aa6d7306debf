"""Usage errors and benches."""

from __future__ import annotations

import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image as PILImage
from rich.console import Console
from zsqretrieval.cli.reading import human_seconds

from running import Zsq
from zsqretrieval.cli import console, opening
from zsqretrieval.cli.console import human_size
from zsqretrieval.presets import PRESETS, Preset
from zsqretrieval.search.fusion import RerankOnly, WeightedSum
from zsqretrieval.search.query_bank import STRENGTH


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "album"],
        ["search", "album", "a question", "--image", "and-an-image.png"],
        ["search", "album", "red", "-k", "0"],
        ["search", "album", "red", "--candidates", "0"],
        ["search", "album", "red", "--rerank", "tasting"],
        ["search", "album", "red", "--fusion", "rerank-only", "--weight", "2"],
        ["search", "album", "red", "--generator-weights", "folder"],
        ["search", "album", "--image", "red.png", "--rerank", "yes_no"],
        ["search", "album", "--image", "red.png", "--fusion", "rerank-only"],
        ["search", "album", "--image", "red.png", "--weight", "2"],
        ["search", "album", "--image", "red.png", "--candidates", "100"],
        ["search", "album", "--image", "red.png", "--preset", "reading"],
        ["search", "album", "--image", "red.png", "--preset", "reading", "--generator-weights", "folder"],
        ["search", "album", "--image", "red.png", "--expand"],
        ["search", "album", "--image", "red.png", "--expansion", "maximum"],
        ["search", "album", "--image", "red.png", "--explain"],
        ["index", "folder", "--out", "album", "--states", "memory"],
        ["bench", "rerank"],
        ["index", "--out", "album"],
        ["index", "folder"],
        ["index", "folder", "--out", "album", "--batch-size", "0"],
        ["remove", "album"],
        ["bench", "encoder"],
        ["demo", "-k", "none"],
        ["sing"],
    ],
)
def test_wrong_usage_is_2(zsq: Zsq, arguments: list[str]) -> None:
    ran = zsq(*arguments)
    assert ran.code == 2 and "Usage: " in ran.stderr and ran.stdout == ""


@pytest.mark.parametrize("command", ["search", "info", "remove"])
def test_what_is_no_album_says_what_to_do(zsq: Zsq, command: str) -> None:
    ran = zsq(command, "nowhere", *(["x"] if command != "info" else []))
    assert ran.code == 1 and "zsq index" in ran.stderr


def test_an_unknown_preset_is_an_error(zsq: Zsq) -> None:
    ran = zsq("demo", "--preset", "maxi")
    assert ran.code == 1 and "there is no preset 'maxi'" in ran.stderr


@pytest.mark.parametrize(
    ("size", "said"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (115_532_876, "116 MB"), (2.5e9, "2.5 GB")],
)
def test_sizes_for_people(size: float, said: str) -> None:
    assert human_size(size) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.0123, "12 ms"), (0.00123, "1.2 ms"), (0.9996, "1000 ms"), (12.34, "12.3 s")]
)
def test_seconds_for_people(seconds: float, said: str) -> None:
    assert human_seconds(seconds) == said


def test_a_long_work_says_once_a_minute_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.stage_bars(lines=True) as report:
        for moment, stage, done, total in (
            (30.0, "reading", 10, 100),  # too soon
            (90.0, "reading", 30, 100),
            (100.0, "reading", 35, 100),  # too soon again
            (150.0, "reading", 100, 100),  # nothing left to say
            (210.0, "writing", 1, 10),  # the clock of a stage starts where the last one ended
            (270.0, "writing", 2, 10),
        ):
            now = moment
            report(stage, done, total)
    assert capsys.readouterr().err.splitlines() == [
        "zsq: reading: 30 of 100, about 4 minutes left",
        "zsq: writing: 1 of 10, about 9 minutes left",
        "zsq: writing: 2 of 10, about 8 minutes left",
    ]


def test_bench_index(zsq: Zsq) -> None:
    facts = zsq("bench", "index", "--n", 200, "--dim", 16, "--index", "exact", "--json").json
    assert (facts["count"], facts["dim"], facts["index"]) == (200, 16, "ExactIndex")
    assert facts["text"]["recall_at_10"] == facts["image"]["recall_at_10"] == 1.0
    said = zsq("bench", "index", "--n", 200, "--dim", 16).stdout
    assert "HNSWIndex: 200 synthetic vectors of dim 16" in said and "recall@10" in said


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two splits of four plain images, each with two captions that name its colour."""
    folder = tmp_path / "plain"
    folder.mkdir()
    for split in ("dev", "test"):
        with tarfile.open(folder / f"{split}-000.tar", "w") as tar:
            for colour in ("red", "green", "blue", "yellow"):
                png = io.BytesIO()
                PILImage.new("RGB", (8, 8), colour).save(png, "PNG")
                captions = json.dumps({"captions": [f"something {colour}", f"a {colour} field"]}).encode()
                for name, content in ((f"{colour}.png", png.getvalue()), (f"{colour}.json", captions)):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def test_bench_encoder(zsq: Zsq, shards: Path) -> None:
    facts = zsq("bench", "encoder", "--data", shards, "--preset", "toy", "--json").json
    assert set(facts) == {"plain_test"}
    result = facts["plain_test"]
    assert (result["images"], result["captions"]) == (4, 8)
    for way in ("t2i", "i2t"):
        assert {"R@1", "R@5", "R@10", "R@1_ci", "R@5_ci", "R@10_ci"} <= set(result[way])
        assert result[way]["R@1"] == 100.0
    both = zsq("bench", "encoder", "--data", shards, "--preset", "toy", "--split", "dev", "--split", "test")
    assert "plain_dev: 4 images, 8 captions" in both.stdout and "plain_test" in both.stdout
    none = zsq("bench", "encoder", "--data", shards, "--preset", "toy", "--split", "train")
    assert none.code == 1 and "train-" in none.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no such names")
@pytest.mark.parametrize(
    "bench",
    [
        ("encoder",),
        ("rerank", "--no-yes-no", "--candidates", 2),
        ("dialog", "--dialogs", 1, "--rounds", 1),
        ("expand", "--questions", 1),
    ],
)
def test_names_of_folders_cannot_steer_the_terminal(
    zsq: Zsq, shards: Path, bench: tuple[object, ...]
) -> None:
    steering = shards.rename(shards.parent / "plain\x1b[2J")
    ran = zsq("bench", *bench, "--data", steering, "--preset", "reading")
    assert ran.code == 0, ran.stderr
    assert r"plain\x1b[2J" in ran.stdout and "\x1b" not in ran.stdout + ran.stderr


def test_whatever_is_printed_is_printable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = console.PlainTable("a\x1bhead", "[bold]number", numbers=("[bold]number",))
    table.add_row("a\x1bcell", "1\n2")
    console.show(table)
    console.say("said\x1b[2J\nin one line")
    head, _, cell, said = (line for line in capsys.readouterr().out.splitlines() if line.strip())
    assert (head.split(), cell.split()) == ([r"a\x1bhead", "[bold]number"], [r"a\x1bcell", r"1\n2"])
    assert said == r"said\x1b[2J\nin one line"
    terminal = Console(file=io.StringIO(), force_terminal=True, width=200, color_system=None)
    monkeypatch.setattr(console, "_console", lambda stderr: terminal)
    with console.stage_bars() as report:
        report("[bold]folder\x1b[2J test", 1, 2)
        shown = terminal.file.getvalue()  # type: ignore[attr-defined]
    shown += terminal.file.getvalue()  # type: ignore[attr-defined]
    assert r"[bold]folder\x1b[2J test" in shown and "\x1b[2J" not in shown


def test_bench_rerank(zsq: Zsq, shards: Path) -> None:
    command = ("bench", "rerank", "--data", shards, "--preset", "seeing", "--candidates", 2)
    found = zsq(*command, "--work", "work", "--json").json
    assert set(found) == {
        *("first_stage", "likelihood", "yes_no", "fused", "differences", "ratios", "setting"),
    }
    for stage in ("first_stage", "likelihood", "yes_no", "fused"):
        assert {"R@1", "R@5", "R@10", "R@1_ci", "R@5_ci", "R@10_ci", "seconds_per_query"} <= set(found[stage])
    assert found["first_stage"]["R@1"] == found["first_stage"]["ceiling"] == 100.0
    setting = found["setting"]
    assert (setting["preset"], setting["queries"], setting["weight"]) == ("seeing", 8, 1.0)
    assert setting["generator"] == "toy-generator-1" and setting["weight_from"] == "of the preset seeing"
    again = zsq(*command, "--work", "work", "--no-yes-no", "--weight", 0, "--json").json
    assert again["likelihood"]["R@1"] == found["likelihood"]["R@1"] and "yes_no" not in again
    assert again["fused"]["R@1"] == again["first_stage"]["R@1"]
    said = zsq(*command, "--work", "work").stdout
    assert "8 captions look for their images among 4; the best 2 are read" in said
    assert all(word in said for word in ("likelihood", "yes no", "fused", "R@1 over first stage"))


def test_bench_rerank_with_a_bank(zsq: Zsq, shards: Path) -> None:
    command = ("bench", "rerank", "--data", shards, "--preset", "reading", "--no-yes-no")
    found = zsq(*command, "--bank", 2, "--bank-scale", 5, "--json").json
    assert {"normalized", "normalized_fused"} <= set(found)
    assert found["setting"]["bank"]["scale"] == 5 and found["setting"]["bank"]["strength"] == STRENGTH
    said = zsq(*command, "--bank", 2).stdout
    assert "normalized fused" in said and "texts about these images, scale 20" in said
    refused = zsq(*command, "--bank-strength", 1)
    assert refused.code == 1 and "give --bank as well" in refused.stderr


def test_bench_rerank_fuses_as_the_preset_does(
    zsq: Zsq, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("bench", "rerank", "--data", shards, "--preset", "ours", "--no-yes-no")
    raw = WeightedSum(0.5, scale="raw", first_stage_scale=100.0)
    for fusion, weight, told, heavier in (
        (raw, 0.5, "Fused with weight 0.5, of the preset ours.", replace(raw, weight=2.0)),
        (RerankOnly(), None, "Fused by RerankOnly(), of the preset ours.", WeightedSum(2.0)),
    ):
        preset = Preset("toy", generator="reader", fusion=fusion)
        monkeypatch.setitem(PRESETS, "ours", preset)  # type: ignore[arg-type]
        setting = zsq(*command, "--json").json["setting"]
        assert (setting["fusion"], setting["weight"]) == (repr(fusion), weight)
        assert told in zsq(*command).stdout
        given = zsq(*command, "--weight", 2, "--json").json["setting"]
        assert (given["fusion"], given["weight_from"]) == (repr(heavier), "given")


def test_bench_rerank_tunes_on_dev_only(zsq: Zsq, shards: Path) -> None:
    command = ("bench", "rerank", "--data", shards, "--preset", "reading", "--no-yes-no")
    on_test = zsq(*command, "--tune")
    assert on_test.code == 1 and "tune on dev" in on_test.stderr
    found = zsq(*command, "--split", "dev", "--tune", "--queries", 4, "--json").json
    assert found["setting"]["weight"] in [row["weight"] for row in found["sweep"]]
    assert found["setting"]["weight_from"] == "tuned for R@1 on dev" and found["setting"]["queries"] == 4
    assert "weight" in zsq(*command, "--split", "dev", "--tune").stdout
    assert zsq(*command, "--split", "dev", "--tune", "--weight", 1).code == 1
    without = zsq("bench", "rerank", "--data", shards, "--preset", "toy")
    assert without.code == 1 and "'toy' has no generator" in without.stderr


def test_weights_of_ones_own(zsq: Zsq, shards: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.touch()
    local = f"local-dir:{tmp_path}"
    assert opening.encoder_config("clip", tmp_path) == {"name": local, "pretrained": None}
    assert opening.encoder_config("clip", file) == {"pretrained": str(file)}
    assert opening.encoder_config("mini", file) == {"weights": str(file)}
    assert opening.generator_config("clip-kosmos2", tmp_path) == {"name": str(tmp_path)}
    for bench, options in (
        ("encoder", ["--encoder-weights"]),
        ("rerank", ["--encoder-weights", "--generator-weights"]),
        ("dialog", ["--encoder-weights", "--generator-weights"]),
        ("expand", ["--encoder-weights", "--generator-weights"]),
        ("gallery", ["--encoder-weights", "--generator-weights"]),
    ):
        command = ("bench", bench, "--data", shards, "--preset", "reading")
        for option in options:
            missing = zsq(*command, option, "nowhere")
            assert missing.code == 1 and "nowhere: no such folder or file of weights" in missing.stderr
            refused = zsq(*command, option, file)
            assert refused.code == 1 and "takes no weights of your own" in refused.stderr
    assert "has no generator" in zsq("demo", "--preset", "toy", "--generator-weights", file).stderr
