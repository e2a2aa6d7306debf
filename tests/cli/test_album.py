"""`zsq index`, `search`, `info` and `remove`, from a folder of images to answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer
from PIL import Image as PILImage

from running import Zsq
from tars import pack
from zsqretrieval.album.filters import Field
from zsqretrieval.cli.options import parse_where
from zsqretrieval.presets import PRESETS, Preset
from zsqretrieval.testing.pictures import encoded


def test_index_reports_all_images(zsq: Zsq, colours: Path) -> None:
    first = zsq("index", colours, "--out", "album", "--preset", "toy", "--json")
    assert first.code == 0
    assert first.json["added"] == ["blue.png", "green.png", "red.png", "yellow.png"]
    assert [Path(one["source"]).name for one in first.json["skipped"]] == ["torn.png"]
    assert first.json["images"] == 4 and first.json["known"] == 0 and first.json["replaced"] == []
    assert first.json["album"] == str(Path("album").absolute())

    PILImage.new("RGB", (40, 30), "black").save(colours / "red.png")
    PILImage.new("RGB", (40, 30), "white").save(colours / "white.png")
    again = zsq("index", colours, "--out", "album", "--preset", "toy", "--json").json
    assert (again["added"], again["replaced"], again["known"]) == (["white.png"], ["red.png"], 3)


def test_index_prints_counts_and_the_next_command(zsq: Zsq, colours: Path) -> None:
    ran = zsq("index", colours, "--out", "album", "--preset", "toy")
    assert "4 added, 1 skipped in" in ran.stdout and "4 images in album." in ran.stdout
    assert "torn.png" in ran.stdout and "zsq search album" in ran.stdout
    assert "\x1b" not in ran.stdout + ran.stderr


def test_at_most_ten_skipped_images_are_named(zsq: Zsq, colours: Path) -> None:
    for i in range(12):
        (colours / f"broken-{i:02}.png").write_bytes(b"no image")
    said = zsq("index", colours, "--out", "album", "--preset", "toy").stdout
    assert said.count("\nskipped ") == 10 and "... and 3 more" in said
    (colours / "broken-00.png").write_bytes(b"still none")
    assert len(zsq("index", colours, "--out", "album", "--json").json["skipped"]) == 13


def test_size_limit_skips_larger_images_and_replaced_parts_are_named(zsq: Zsq, tmp_path: Path) -> None:
    for side in (10, 11):
        PILImage.new("RGB", (side, side)).save(tmp_path / f"{side}.png")
    (tmp_path / "10.txt").write_bytes(b"caf\xe9")
    first = zsq("index", tmp_path, "--out", "album", "--preset", "toy", "--max-pixels", 100)
    assert "1 added, 1 skipped, 1 mended in" in first.stdout
    assert "11.png: too large: 11 x 11 is 121 pixels, the limit is 100; " in first.stdout
    assert "mended " in first.stdout and "10.png: caption: bytes that are not UTF-8" in first.stdout
    assert zsq("index", tmp_path, "--out", "album", "--json").json["added"] == ["11.png"]


def test_album_keeps_its_parts_and_refuses_others(
    zsq: Zsq, album: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert zsq("index", colours, "--out", album).code == 0, "nothing has to be said twice"
    assert zsq("index", colours, "--out", album, "--index", "exact").code == 0
    other = zsq("index", colours, "--out", album, "--index", "hnsw")
    assert other.code == 1 and "'exact', not 'hnsw'" in other.stderr
    clip = zsq("index", colours, "--out", album, "--preset", "clip")
    assert clip.code == 1 and "encoder toy" in clip.stderr and "open it without a preset" in clip.stderr
    monkeypatch.setitem(PRESETS, "tuned", Preset("toy", {"size": 2}))  # type: ignore[arg-type]
    assert zsq("index", colours, "--out", album, "--preset", "tuned").code == 1
    assert "no preset 'nosuch'" in zsq("index", colours, "--out", album, "--preset", "nosuch").stderr


def test_missing_source_makes_no_album(zsq: Zsq, tmp_path: Path) -> None:
    for source in ("nowhere", "no-*.jpg"):
        ran = zsq("index", source, "--out", "album", "--preset", "toy")
        assert ran.code == 1 and ran.stderr.startswith("zsq: error: ") and source in ran.stderr
    assert not (tmp_path / "album").exists()


def test_folder_without_images_is_reported(zsq: Zsq, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ran = zsq("index", "empty", "--out", "album", "--preset", "toy")
    assert ran.code == 0 and "No images were found in empty" in ran.stdout and ".jpg" in ran.stdout
    searched = zsq("search", "album", "anything")
    assert searched.code == 0 and "holds no images yet" in searched.stdout
    assert zsq("search", "album", "anything", "--json").json["hits"] == []
    assert "It is empty" in zsq("info", "album").stdout


def test_search_ranks_by_similarity(zsq: Zsq, album: Path) -> None:
    hits = zsq("search", album, "something red", "-k", 2, "--json").json["hits"]
    assert [hit["rank"] for hit in hits] == [1, 2]
    assert hits[0]["id"] == "red.png" and hits[0]["score"] > hits[1]["score"]
    assert set(hits[0]) == {
        *("rank", "id", "source", "score", "scores", "caption", "metadata"),
        *("matched_question", "explanation", "probability", "duplicates"),
    }
    assert hits[0]["scores"]["first_stage"] == hits[0]["score"]
    rows = [line.split() for line in zsq("search", album, "something blue").stdout.splitlines()]
    assert ["1", "blue.png"] in [row[::2] for row in rows if len(row) == 3]


def test_search_by_image(zsq: Zsq, album: Path, colours: Path) -> None:
    found = zsq("search", album, "--image", colours / "green.png", "--html", "page.html", "--json").json
    assert found["hits"][0]["id"] == "green.png" and found["hits"][0]["score"] == pytest.approx(1, abs=1e-5)
    page = Path("page.html").read_text(encoding="utf-8")
    assert found["html"] == str(Path("page.html").absolute())
    assert page.count("<img ") == 5, "four hits and the image asked with"


def test_page_shows_no_replaced_or_missing_image(zsq: Zsq, album: Path, colours: Path) -> None:
    (colours / "red.png").replace(colours / "blue.png")
    zsq("search", album, "red", "--html", "page.html")
    page = Path("page.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 2 and page.count("no picture") == 2, "red is gone, blue is another"


def test_page_path_is_checked_before_the_search(zsq: Zsq, album: Path) -> None:
    Path("file").touch()
    for where, message in ((".", "is a folder; name a file"), ("file/page.html", "is not a folder")):
        for command in (("search", album, "red", "--html"), ("demo", "--preset", "toy", "--out")):
            ran = zsq(*command, where)
            assert ran.code == 1 and message in ran.stderr and not ran.stdout
    assert zsq("search", album, "red", "--html", "new/folder/page.html").code == 0
    assert Path("new/folder/page.html").is_file()


def test_page_shows_images_of_tars(zsq: Zsq, tmp_path: Path) -> None:
    red, blue = (encoded(PILImage.new("RGB", (20, 20), colour)) for colour in ("red", "blue"))
    pack(tmp_path / "shard#1.tar", {"./one.png": red, "two#2.png": blue})
    assert "2 added" in zsq("index", "shard#1.tar", "--out", "album", "--preset", "toy").stdout
    assert "shard#1/one" in zsq("search", "album", "red", "--html", "page.html").stdout
    page = Path("page.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 2 and "no picture" not in page


def test_info_loads_no_model(zsq: Zsq, album: Path, toys: Path) -> None:
    (toys / "cli_toys.py").write_text("raise SystemExit('the encoder was imported')")
    facts = zsq("info", album, "--json").json
    assert facts["images"] == 4
    assert facts["encoder"] == {
        "plugin": "toy",
        "config": {},
        "dim": 16,
        "fingerprint": "toy-encoder-1",
    }
    assert facts["index"]["plugin"] == "exact"
    assert facts["index"]["saved"] and facts["index"]["up_to_date"]
    sizes = facts["bytes_on_disk"]
    assert sizes["catalog"] > 0 and sizes["index"] > 0 and sizes["states"] == 0
    said = zsq("info", album).stdout
    assert "toy-encoder-1" in said and "exact, up to date" in said


def test_remove_takes_all_ids_or_none(zsq: Zsq, album: Path) -> None:
    refused = zsq("remove", album, "red.png", "purple.png")
    assert refused.code == 1 and "'purple.png'" in refused.stderr
    assert zsq("remove", album, "red.png", "--json").json == {
        "album": str(album.absolute()),
        "removed": 1,
        "images": 3,
    }
    assert "red.png" not in zsq("search", album, "red").stdout
    assert zsq("info", album, "--json").json["index"]["up_to_date"]


def test_names_cannot_control_terminal_or_markup(zsq: Zsq, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    names = ["[bold]x.png", "esc\x1b[31m.png", "line\nbreak.png", ":cat:.png", "naïve 猫.png"]
    for shade, name in enumerate(names):
        PILImage.new("RGB", (4, 4), (60 * shade, 0, 0)).save(folder / name)
    zsq("index", folder, "--out", "album", "--preset", "toy")
    said = zsq("search", "album", "red").stdout
    shown = ["[bold]x.png", r"esc\x1b[31m.png", r"line\nbreak.png", ":cat:.png", "naïve 猫.png"]
    assert all(name in said for name in shown) and "\x1b" not in said
    found = zsq("search", "album", "red", "--json")
    assert found.stdout.isascii()
    assert {hit["id"] for hit in json.loads(found.stdout)["hits"]} == set(names)


def test_captions_written_later_are_counted_as_updates(zsq: Zsq, colours: Path) -> None:
    zsq("index", colours, "-o", "a", "--preset", "toy")
    photo = min(colours.iterdir())
    photo.with_suffix(".txt").write_text("a wall")
    assert zsq("index", colours, "-o", "a").stdout.startswith("1 updated, 3 known, 1 skipped in")
    photo.with_suffix(".txt").write_text("a gate")
    facts = zsq("index", colours, "-o", "a", "--json").json
    assert (facts["updated"], facts["known"]) == ([photo.name], 3)


def test_copies_make_an_album_that_travels(zsq: Zsq, colours: Path) -> None:
    zsq("index", colours, "-o", "a", "--preset", "reading", "--copy")
    sizes = zsq("info", "a", "--json").json["bytes_on_disk"]
    assert sizes["images"] == sum(
        photo.stat().st_size for photo in colours.iterdir() if photo.name != "torn.png"
    )
    assert "images on disk" in zsq("info", "a").stdout
    shutil.rmtree(colours)
    Path("a").rename("b")
    found = zsq("search", "b", "red", "--json", "--html", "page.html")
    assert found.stderr == "" and all("fused" in hit["scores"] for hit in found.json["hits"])
    assert Path("page.html").read_text().count("data:image/jpeg") == 4
    zsq("remove", "b", *(hit["id"] for hit in found.json["hits"]))
    assert zsq("info", "b", "--json").json["bytes_on_disk"]["images"] == 0 and not list(
        Path("b/images").iterdir()
    )


def test_exif_becomes_fields_that_info_lists_and_index_fields_sorts(zsq: Zsq, tmp_path: Path) -> None:
    exif = PILImage.Exif()
    exif[0x0110] = "X100"
    PILImage.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    assert zsq("index", tmp_path, "--out", "bare", "--preset", "toy", "--no-exif").code == 0
    assert zsq("index", tmp_path, "--out", "album", "--preset", "toy").code == 0
    built_in = ["id", "source", "width", "height", "bytes", "caption"]
    assert zsq("info", "bare", "--json").json["fields"] == built_in
    assert zsq("index-fields", "album", "camera", "width").stdout == "album: camera, width indexed.\n"
    facts = zsq("info", "album", "--json").json
    assert (facts["fields"], facts["indexed_fields"]) == ([*built_in, "camera"], ["camera", "width"])
    said = zsq("info", "album").stdout
    assert "bytes, caption, camera" in said and "indexed fields" in said
    wrong = zsq("index-fields", "album", "a..b")
    assert wrong.code == 1 and "'a..b' is not the name of a field" in wrong.stderr
    assert zsq("info", "album", "--json").json["indexed_fields"] == ["camera", "width"]
    assert "no fields indexed" in zsq("index-fields", "album").stdout


def test_where_is_a_filter_or_wrong_usage() -> None:
    assert parse_where("year > 2010 and camera = 'X100'") == (Field("year") > 2010) & (
        Field("camera") == "X100"
    )
    with pytest.raises(typer.BadParameter, match="in column 7, not '> 2'") as caught:
        parse_where("year >> 2")
    assert caught.value.exit_code == 2
