"""``zsq laion embed``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plain import png
from running import Zsq
from tars import pack
from zsqretrieval.laion.embeddings import open_embeddings
from zsqretrieval.testing.toys import COLOURS, ToyEncoder


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    folder = tmp_path / "tars"
    folder.mkdir()
    for n, colour in enumerate(COLOURS):
        pack(folder / f"{n}.tar", {"a.png": png(colour)})
    return folder


def test_workers_share_a_folder(zsq: Zsq, tars: Path) -> None:
    for worker in (0, 1):
        ran = zsq("laion", "embed", tars, "out", "--preset", "toy", "--worker", worker, "--of", 2)
        assert (ran.code, ran.stdout.split(" in ")[0]) == (0, "3 shards with 3 images")
    assert "shard 5 (5.tar): 1 images; per second: read" in ran.stderr
    found = open_embeddings(Path("out"))
    assert (found.encoder, len(found)) == (ToyEncoder.fingerprint, 6)
    again = zsq("laion", "embed", tars, "out", "--preset", "toy", "--shards", "1-3", "--json")
    assert again.json.items() >= {"done": 0, "known": 3, "images": 0, "failed": []}.items()


@pytest.mark.parametrize(
    ("task", "options", "made"),
    [
        ("questions", ("--preset", "reading"), "questions/questions_0000.parquet"),
        ("states", ("--preset", "toy", "--generator", "seer"), "states-*/states_0000.safetensors"),
        ("embed", ("--preset", "toy", "--encoder", "twin"), "img_emb/img_emb_0000.npy"),
    ],
)
def test_tasks_use_their_part(zsq: Zsq, tars: Path, task: str, options: tuple[str, ...], made: str) -> None:
    assert zsq("laion", "embed", tars, "out", "--task", task, *options, "--shards", 0).code == 0
    assert len(list(Path("out").glob(made))) == 1
    assert json.loads(Path(f"out/stats/{task}_0000.json").read_text())["images"] == 1


def test_failed_shards_are_named(zsq: Zsq, tars: Path) -> None:
    (tars / "2.tar").write_bytes(b"no tar")
    ran = zsq("laion", "embed", tars, "out", "--preset", "toy", "--attempts", 1)
    assert (ran.code, ran.stdout.split(" in ")[0]) == (1, "5 shards with 5 images")
    assert "failed 2.tar: " in ran.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--task", "questions", "--preset", "toy"), "has no generator"),
        (("--preset", "toy", "--encoder-config", "[]"), "must be a JSON object"),
        (("--preset", "toy", "--shards", "6"), "no shard 6"),
    ],
)
def test_wrong_options_are_refused(zsq: Zsq, tars: Path, options: tuple[str, ...], message: str) -> None:
    ran = zsq("laion", "embed", tars, "out", *options)
    assert (ran.code, message in ran.stderr) == (1, True)
