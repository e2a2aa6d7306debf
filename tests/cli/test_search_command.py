"""``zsq search`` with a generator that scores the candidates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from running import Zsq
from zsqretrieval.presets import PRESETS, Calibration, Preset
from zsqretrieval.search.fusion import ReciprocalRank, WeightedSum

PRESET = "reading"
QUESTION = "What is the colour of the red thing?"


def hits(zsq: Zsq, album: Path, *options: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = zsq("search", album, QUESTION, *options, "--json").json["hits"]
    return found


def test_scores_of_every_stage_are_shown(zsq: Zsq, album: Path) -> None:
    found = zsq("search", album, QUESTION, "--json").json
    assert set(found["timings"]) == {"encode", "first_stage", "likelihood"}
    assert found["hits"][0]["id"] == "red.png"
    for hit in found["hits"]:
        assert set(hit["scores"]) == {"first_stage", "likelihood", "fused"}
        assert hit["score"] == hit["scores"]["fused"] and hit["scores"]["likelihood"] < 0
    ran = zsq("search", album, QUESTION, "--html", "page.html")
    head, _, first, *_ = [line for line in ran.stdout.splitlines() if line.strip()]
    assert head.split() == ["first", "stage", "likelihood", "fused", "image"]
    best = found["hits"][0]["scores"]
    shown = [f"{best['first_stage']:.3f}", f"{best['likelihood']:.2f}", f"{best['fused']:.3f}"]
    assert first.split() == ["1", *shown, "red.png"]
    assert "Took: encode " in ran.stdout and "likelihood " in ran.stdout
    page = Path("page.html").read_text(encoding="utf-8")
    assert all(number in page for number in shown) and "log P(question | image)" in page


def test_rerank_chooses_the_scoring_rule(zsq: Zsq, album: Path) -> None:
    assert set(hits(zsq, album, "--rerank", "likelihood")[0]["scores"]) == {
        *("first_stage", "likelihood", "fused"),
    }
    assert set(hits(zsq, album, "--rerank", "yes_no")[0]["scores"]) == {"first_stage", "yes_no", "fused"}
    assert set(hits(zsq, album, "--rerank", "none")[0]["scores"]) == {"first_stage"}
    said = zsq("search", album, QUESTION, "--rerank", "none").stdout
    assert said.split()[:2] == ["score", "image"]


def test_fusion_and_weight_choose_how_scores_combine(zsq: Zsq, album: Path) -> None:
    for options in (["--weight", "2"], ["--fusion", "rerank-only"]):
        refused = zsq("search", album, QUESTION, "--rerank", "none", *options)
        assert refused.code == 2 and "nothing to combine" in refused.stderr
    alone = [hit["id"] for hit in hits(zsq, album, "--rerank", "none")]
    assert [hit["id"] for hit in hits(zsq, album, "--weight", 0)] == alone
    read = hits(zsq, album, "--fusion", "rerank-only")
    assert [hit["score"] for hit in read] == [hit["scores"]["likelihood"] for hit in read]
    assert hits(zsq, album, "--weight", 1) == hits(zsq, album) != hits(zsq, album, "--weight", 3)
    by_read = [hit["id"] for hit in read]
    for hit in hits(zsq, album, "--fusion", "reciprocal-rank"):
        ranks = alone.index(hit["id"]) + 1, by_read.index(hit["id"]) + 1
        assert hit["score"] == pytest.approx(1 / (60 + ranks[0]) + 1 / (60 + ranks[1]))


def test_fusion_defaults_to_that_of_the_preset_then_the_album(
    zsq: Zsq, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, fusion in (("heavy", WeightedSum(3)), ("ranks", ReciprocalRank(5))):
        preset = Preset("toy", index="exact", generator="reader", calibration=Calibration(fusion))
        monkeypatch.setitem(PRESETS, name, preset)  # type: ignore[arg-type]
    by_ranks = pytest.approx(1 / (5 + 1) + 1 / (5 + 2))  # first in one stage, second in the other
    zsq("index", colours, "--out", "album", "--preset", "heavy")
    monkeypatch.setitem(PRESETS, "heavy", PRESETS["reading"])  # type: ignore[arg-type]
    album = Path("album")
    assert hits(zsq, album) == hits(zsq, album, "--weight", 3) != hits(zsq, album, "--weight", 1)
    assert hits(zsq, album, "--fusion", "weighted-sum") == hits(zsq, album, "--weight", 1)
    assert hits(zsq, album, "--preset", "ranks")[0]["score"] == by_ranks
    assert hits(zsq, album) == hits(zsq, album, "--weight", 3), "that was for one search"
    rows = [line.split() for line in zsq("info", album).stdout.splitlines()]
    assert ["weighted", "sum,", "weight=3,"] in [row[1:4] for row in rows if row[:1] == ["fusion"]]
    zsq("index", colours, "--out", "album", "--preset", "ranks")
    assert hits(zsq, album)[0]["score"] == by_ranks, "now it is the album's"
    told = zsq("info", album, "--json").json["calibration"]["fusion"]
    assert told == {"plugin": "reciprocal_rank", "config": {"constant": 5}}
    demo = ("demo", "--images", colours, "-q", QUESTION, "--preset", "ranks", "--json")
    (asked,) = zsq(*demo).json["questions"]
    assert asked["hits"][0]["score"] == by_ranks


def test_preset_without_a_generator_is_refused(zsq: Zsq, album: Path) -> None:
    refused = zsq("search", album, QUESTION, "--preset", "toy")
    assert refused.code == 1 and "'toy' has no generator" in refused.stderr


def test_only_candidates_are_scored(zsq: Zsq, album: Path) -> None:
    """The encoder counts colours, the generator reads from left to right: they disagree."""
    command = ("search", album, "red blue blue", "-k", 1, "--json")
    assert zsq(*command, "--rerank", "none").json["hits"][0]["id"] == "blue.png"
    command = (*command, "--fusion", "rerank-only")
    assert zsq(*command).json["hits"][0]["id"] == "red.png"
    assert zsq(*command, "--candidates", 1).json["hits"][0]["id"] == "blue.png"


def test_album_without_a_generator_ranks_by_the_first_stage(zsq: Zsq, colours: Path) -> None:
    zsq("index", colours, "--out", "plain", "--preset", "toy")
    assert set(hits(zsq, Path("plain"))[0]["scores"]) == {"first_stage"}
    refused = zsq("search", "plain", QUESTION, "--rerank", "likelihood")
    assert refused.code == 1 and "needs a generator" in refused.stderr
    assert "likelihood" in hits(zsq, Path("plain"), "--preset", "reading")[0]["scores"]
    assert set(hits(zsq, Path("plain"))[0]["scores"]) == {"first_stage"}, "that was for one search"
    assert zsq("index", colours, "--out", "plain", "--preset", "reading").code == 0
    assert "likelihood" in hits(zsq, Path("plain"))[0]["scores"], "now it is the album's"


def test_cached_features_replace_missing_images(zsq: Zsq, colours: Path) -> None:
    zsq("index", colours, "--out", "seen", "--preset", "seeing", "--states", "disk")
    assert list(Path("seen").glob("states-*"))
    before = hits(zsq, Path("seen"))
    shutil.rmtree(colours)
    assert hits(zsq, Path("seen")) == before


def test_features_can_be_cached_later(zsq: Zsq, colours: Path) -> None:
    zsq("index", colours, "--out", "seen", "--preset", "seeing")
    assert not list(Path("seen").glob("states-*"))
    before = hits(zsq, Path("seen"))
    assert zsq("index", colours, "--out", "seen", "--states", "disk", "--json").json["known"] == 4
    shutil.rmtree(colours)
    assert hits(zsq, Path("seen")) == before


def test_info_shows_generator_and_cached_features(zsq: Zsq, album: Path, colours: Path, toys: Path) -> None:
    zsq("index", colours, "--out", "seen", "--preset", "seeing", "--states", "disk")
    zsq("index", colours, "--out", "plain", "--preset", "toy")
    (toys / "cli_toys.py").write_text("raise SystemExit('a model was imported')")
    facts = zsq("info", "seen", "--json").json
    assert facts["generator"] == {"plugin": "seer", "config": {}, "states": "disk"}
    (states,) = facts["states"]
    assert (states["dtype"], states["images"]) == ("float32", 4)
    assert states["bytes_on_disk"] == facts["bytes_on_disk"]["states"] > 0
    rows = [line.split() for line in zsq("info", "seen").stdout.splitlines()]
    assert ["generator", "seer,", "features", "kept", "on", "adding"] in rows
    (told,) = [row for row in rows if row[:2] == ["image", "features"]]
    assert told[2:7] == ["4", "of", "4", "images,", "float32,"] and states["fingerprint"] in " ".join(told)
    assert "image features" not in zsq("info", album).stdout and "reader" in zsq("info", album).stdout
    assert zsq("info", "plain", "--json").json["generator"] is None
    assert ["generator", "none"] in [line.split() for line in zsq("info", "plain").stdout.splitlines()]


@pytest.mark.filterwarnings("default:1 of 4 candidates")
def test_candidates_that_cannot_be_opened_rank_last(zsq: Zsq, album: Path, colours: Path) -> None:
    (colours / "red.png").unlink()
    ran = zsq("search", album, QUESTION, "--json")
    *_, last = json.loads(ran.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["hits"]
    assert (last["id"], last["score"], set(last["scores"])) == ("red.png", None, {"first_stage"})
    assert "red.png" in ran.stderr
    said = zsq("search", album, QUESTION, "--html", "page.html")
    (row,) = [line.split() for line in said.stdout.splitlines() if "red.png" in line]
    assert row == ["4", f"{last['scores']['first_stage']:.3f}", "red.png"]
    assert "inf" not in Path("page.html").read_text(encoding="utf-8")


# --- sums of terms, filters, pages, and nothing found


def ids(zsq: Zsq, album: Path, *options: object) -> list[str]:
    return [hit["id"] for hit in zsq("search", album, *options, "--json").json["hits"]]


def test_image_and_subtracted_text_join_the_question(zsq: Zsq, album: Path, colours: Path) -> None:
    both = zsq("search", album, "red", "--image", colours / "blue.png", "--subtract", "green", "--json").json
    assert both["query"] == f"red + {colours.absolute() / 'blue.png'} - 0.5 * green"
    assert both["hits"][0]["scores"]["likelihood"] < 0
    plain, less = (
        ids(zsq, album, "yellow"),
        ids(zsq, album, "yellow", "--subtract", "red", "--rerank", "none"),
    )
    assert less.index("red.png") >= plain.index("red.png")


def test_pages_follow_one_another(zsq: Zsq, album: Path) -> None:
    whole = ids(zsq, album, QUESTION, "-k", 4)
    assert ids(zsq, album, QUESTION, "-k", 2, "--offset", 2) == whole[2:]
    assert "Nothing found." in zsq("search", album, QUESTION, "--offset", 4).stdout


def test_filter_selects_and_a_wrong_one_is_a_usage_error(zsq: Zsq, album: Path) -> None:
    assert ids(zsq, album, QUESTION, "--where", "id in ['blue.png', 'green.png']") in (
        ["blue.png", "green.png"],
        ["green.png", "blue.png"],
    )
    nothing = zsq("search", album, QUESTION, "--where", "width > 9999")
    assert nothing.code == 0 and "Nothing found with --where 'width > 9999'." in nothing.stdout
    wrong = zsq("search", album, QUESTION, "--where", "width >")
    assert wrong.code == 2 and "in column" in wrong.stderr
    unknown = zsq("search", album, QUESTION, "--where", "year > 2000")
    assert unknown.code == 1 and "has the field year" in unknown.stderr


def test_probability_needs_constants_of_the_encoder(zsq: Zsq, album: Path) -> None:
    refused = zsq("search", album, QUESTION, "--min-probability", 0.5)
    assert refused.code == 1 and "relevance_scale is 0" in refused.stderr


def test_near_duplicates_are_counted(zsq: Zsq, album: Path) -> None:
    unlike = zsq("search", album, QUESTION, "-k", 4, "--collapse", 0.001, "--json").json["hits"]
    assert 1 < len(unlike) < 4 and len(unlike) + sum(one["duplicates"] for one in unlike) == 4
    assert all(one["probability"] is None for one in unlike)
    assert zsq("search", album, QUESTION, "--thumbnails", "--diversity", 0.5).code == 0
