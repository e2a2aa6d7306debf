"""`zsq sync`, `merge`, `reencode`, `add-embeddings`, `tune` and `export`."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import numpy as np

from index_data import vectors
from plain import write_plain
from running import Zsq
from zsqretrieval import Retriever
from zsqretrieval.presets import PRESETS


def test_sync_says_before_and_after_what_it_changes(zsq: Zsq, album: Path, colours: Path) -> None:
    (colours / "red.png").unlink()
    (colours / "blue.png").rename(colours / "azure.png")
    dry = zsq("sync", album, colours, "--dry-run")
    assert "removed: red.png" in dry.stdout and "moved: azure.png" in dry.stdout
    assert "would be: 1 moved, 2 known, 1 skipped, 1 removed in" in dry.stdout
    assert zsq("info", album, "--json").json["images"] == 4
    done = zsq("sync", album, colours, "--json").json
    assert (done["moved"], done["removed"], done["images"]) == (["azure.png"], ["red.png"], 3)
    assert done["dry_run"] is False and len(done["skipped"]) == 1
    assert zsq("info", album, "--json").json["index"]["up_to_date"] is True
    gone = zsq("sync", album, "nowhere")
    assert gone.code == 1 and "Is its disk mounted?" in gone.stderr


def test_merge_takes_another_album_over(zsq: Zsq, album: Path, tmp_path: Path) -> None:
    more = write_plain(tmp_path / "more", ("black", "white"))
    assert zsq("index", more, "--out", "other", "--preset", "toy").code == 0
    assert "2 added in" in zsq("merge", album, "other").stdout
    assert zsq("merge", album, "other", "--json").json["known"] == 2
    assert zsq("index", more, "--out", "twin", "--preset", "twin").code == 0
    refused = zsq("merge", album, "twin")
    assert refused.code == 1 and "'twin'" in refused.stderr and "'toy-encoder-1'" in refused.stderr


def test_reencode_makes_another_encoder_the_album_s(zsq: Zsq, album: Path) -> None:
    assert zsq("reencode", album, "--preset", "twin", "--json").json["images"] == 4
    facts = zsq("info", album, "--json").json
    assert facts["encoder"]["plugin"] == "twin" and facts["index"]["up_to_date"]
    assert zsq("search", album, "red", "--json").json["hits"][0]["id"] == "red.png"
    again = zsq("reencode", album, "--preset", "twin")
    assert again.code == 1 and "is the album's encoder already" in again.stderr


def test_lost_image_stops_reencode_unless_it_is_dropped(zsq: Zsq, album: Path, colours: Path) -> None:
    (colours / "red.png").unlink()
    refused = zsq("reencode", album, "--preset", "twin")
    assert refused.code == 1 and "red.png" in refused.stderr and "--drop" in refused.stderr
    dropped = zsq("reencode", album, "--preset", "twin", "--drop")
    assert "3 images, 1 dropped in" in dropped.stdout and "dropped" in dropped.stdout


def test_exported_folder_makes_an_album_of_the_same_encoder(zsq: Zsq, album: Path) -> None:
    assert "4 vectors in emb" in zsq("export", album, "--out", "emb", "--float32").stdout
    assert np.load("emb/img_emb/img_emb_0000.npy").dtype == np.float32
    assert zsq("export", album, "--out", "half", "--json").json["rows"] == 4
    assert zsq("export", album, "--out", "half").code == 1
    added = zsq("add-embeddings", "copy", "emb", "--preset", "toy", "--json").json
    assert sorted(added["added"]) == ["blue.png", "green.png", "red.png", "yellow.png"]
    assert "4 known in" in zsq("add-embeddings", album, "half").stdout
    fsspec.filesystem("memory").put("half", "/half-emb", recursive=True)
    assert "4 known in" in zsq("add-embeddings", album, "memory://half-emb").stdout
    other = zsq("add-embeddings", "third", "emb", "--preset", "twin")
    assert other.code == 1 and "'twin'" in other.stderr
    assert zsq("add-embeddings", album, "nowhere").code == 1


def test_collection_of_milvus_is_no_directory(zsq: Zsq, tmp_path: Path) -> None:
    for command in (["search", "milvus:a.db", "x"], ["index", ".", "--out", "milvus://host:1/a"]):
        done = zsq(*command, COLUMNS="500")
        assert done.code == 2 and "open a collection of Milvus in Python" in done.stderr
    assert not list(tmp_path.iterdir())


def test_wrong_folder_makes_no_album(zsq: Zsq, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("nowhere", "empty"):
        ran = zsq("add-embeddings", "new", folder, "--preset", "toy")
        assert ran.code == 1 and folder in ran.stderr
        assert not (tmp_path / "new").exists()


def test_tune_shows_the_curve_and_saves_the_choice(zsq: Zsq, album: Path, tmp_path: Path) -> None:
    with Retriever.open("large", PRESETS["toy"].variant(index="compressed")) as large:
        large.add_embeddings(vectors(3000, large.encoder.dim), ids=[f"{n}.jpg" for n in range(3000)])
        large.save()
    questions = tmp_path / "questions.txt"
    questions.write_text("red\nblue\ngreen\n")
    shown = zsq("tune", "large", "--recall", "0.9", "-k", "5", "--questions", questions)
    assert shown.code == 0 and "chosen: recall" in shown.stdout and "components" in shown.stdout
    facts = zsq("tune", "large", "--recall", "0.9", "--questions", questions, "--json").json
    assert facts["chosen"]["recall"] >= 0.9 and facts["curve"]
    saved = json.loads(next(Path("large").glob("index-*/manifest.json")).read_text())["facts"]
    assert saved["probe"] == facts["chosen"]["probe"]
    refused = zsq("tune", "large")
    assert refused.code == 1 and "give texts" in refused.stderr
