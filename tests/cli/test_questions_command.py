"""``zsq questions``, and searching and explaining with what it made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from zsqretrieval.cli.reading import told_explanation

from running import Zsq
from zsqretrieval.types import Explanation, Hit


@pytest.fixture
def album(zsq: Zsq, colours: Path) -> Path:
    assert zsq("index", colours, "--out", "album", "--preset", "reading").code == 0
    return Path("album")


def test_images_are_asked_once(zsq: Zsq, album: Path) -> None:
    first = zsq("questions", album, "-n", 2, "--answers", "--top-k", 0, "--temperature", 1.5, "--json").json
    assert (first["asked"], first["known"], first["skipped"]) == (4, 0, [])
    assert first["questions"] == first["kept"] > 0
    (style,) = first["styles"]
    assert style == {
        "style": "questions", "images": 4, "questions": first["questions"],
        "kept": first["kept"], "answered": first["questions"],
    }  # fmt: skip
    said = zsq("questions", album, "-n", 2, "--answers", "--temperature", 1.5)
    assert "0 images asked, 4 had been asked before: 0 new questions" in said.stdout
    assert f"zsq search {album}" in said.stdout and "--expand" in said.stdout
    captions = zsq("questions", album, "--style", "captions", "--json").json
    assert [one["style"] for one in captions["styles"]] == ["captions", "questions"]


def test_info_tells_what_was_asked(zsq: Zsq, album: Path) -> None:
    made = zsq("questions", album, "--top-k", 0, "--json").json
    assert zsq("info", album, "--json").json["questions"] == made["styles"]
    rows = [line.split() for line in zsq("info", album).stdout.splitlines()]
    count = str(made["questions"])
    assert ["questions", count, "of", "4", "images,", count, "kept,", "0", "answered"] in rows


def test_questions_are_listed_judged_again_and_forgotten(zsq: Zsq, album: Path) -> None:
    assert "No questions yet" in zsq("questions", album, "--list").stdout
    made = zsq("questions", album, "--temperature", 1.5, "--top-k", 1, "--json").json
    listed = zsq("questions", album, "--list", "--json").json["questions"]
    assert len(listed) == made["questions"] and sum(one["kept"] for one in listed) == made["kept"]
    for one in listed:
        assert one["text"].endswith("?") and one["gallery"] == 4 and one["top_k"] == 1
        assert one["rank"] == (1 if one["kept"] else None) and one["log_likelihood"] < 0
        assert one["recipe"]["style"] == "questions" and one["recipe"]["temperature"] == 1.5
    table = zsq("questions", album, "--image", "red.png").stdout
    of_red = [one["text"] for one in listed if one["id"] == "red.png"]
    assert of_red and all(text in table for text in of_red) and "blue.png" not in table
    assert zsq("questions", album, "--list", "--style", "search", "--json").json["questions"] == []
    again = zsq("questions", album, "--filter", "--top-k", 0, "--json").json
    assert again["kept"] == again["questions"] == len(listed)
    assert (
        f"{len(listed)} of {len(listed)} questions are kept"
        in zsq("questions", album, "--filter", "--top-k", 4).stdout
    )
    assert "are kept" not in zsq("questions", album, "--forget", "--style", "captions").stdout
    assert zsq("questions", album, "--forget", "--json").json["forgotten"] == len(listed)
    assert zsq("questions", album, "--list", "--json").json == {
        "album": str(album.absolute()), "styles": [], "questions": [],
    }  # fmt: skip


def test_hits_tell_what_matched(zsq: Zsq, album: Path) -> None:
    refused = zsq("search", album, "red", "--expand")
    assert refused.code == 1 and "keeps no questions to search" in refused.stderr
    zsq("questions", album, "--temperature", 1.5, "--top-k", 0)
    plain = zsq("search", album, "the red thing?", "--json").json["hits"]
    assert all(hit["matched_question"] is None and hit["explanation"] is None for hit in plain)
    for options in (["--expand"], ["--expansion", "maximum"], ["--expansion", "reciprocal-rank"]):
        hits = zsq("search", album, "the red thing?", *options, "--json").json["hits"]
        assert len(hits) == 4 and {"image_similarity", "question_similarity"} <= set(hits[0]["scores"])
        assert all(hit["matched_question"].endswith("?") for hit in hits)
    table = zsq("search", album, "the red thing?", "--expand", "--expansion", "weighted-sum").stdout
    weighted = zsq("search", album, "the red thing?", "--expand", "--json").json["hits"]
    assert "matched question" in table and weighted[0]["matched_question"] in table


def test_a_search_takes_away_what_any_question_gets(zsq: Zsq, album: Path, tmp_path: Path) -> None:
    refused = zsq("search", album, "red", "--normalize")
    assert refused.code == 1 and "zsq questions ALBUM --style search" in refused.stderr
    zsq("questions", album, "--style", "search", "--top-k", 0)
    plain = zsq("search", album, "the red thing?", "--json").json["hits"]
    found = zsq("search", album, "the red thing?", "--normalize", "--json").json
    assert set(found["hits"][0]["scores"]) == {"first_stage", "normalized", "likelihood", "fused"}
    assert {hit["id"] for hit in found["hits"]} == {hit["id"] for hit in plain}
    assert "normalized" in found["timings"]
    bank = tmp_path / "bank.txt"
    bank.write_text("a red thing\n\nsomething red\n", encoding="utf-8")
    said = zsq("search", album, "the red thing?", "--bank", bank, "--rerank", "none").stdout
    assert "normalized" in said and "likelihood" not in said
    for content, message in ((b"\n", "holds no texts"), (b"\xff", "not UTF-8"), (None, "cannot be read")):
        bank.unlink() if content is None else bank.write_bytes(content)
        refused = zsq("search", album, "red", "--bank", bank)
        assert refused.code == 1 and message in refused.stderr and "bank.txt" in refused.stderr


def test_hits_are_explained_in_plain_text(zsq: Zsq, album: Path, colours: Path) -> None:
    (colours / "blue.png").unlink()
    found = zsq("search", album, "is the red thing green?", "--explain", "--rerank", "none", "--json").json
    assert set(found["timings"]) == {"encode", "first_stage", "explain"}
    by_id = {hit["id"]: hit["explanation"] for hit in found["hits"]}
    assert by_id["blue.png"] is None
    red = by_id["red.png"]
    assert [word["text"] for word in red["words"]] == ["is", "the", "red", "thing", "green", "?"]
    gains = [a - b for a, b in zip(red["with_image"], red["without_image"], strict=True)]
    assert [word["gain"] for word in red["words"]] == pytest.approx(gains)
    said = zsq("search", album, "is the red thing green?", "--explain", "--rerank", "none").stdout
    assert f"answers: {red['answer']}" in said and "cannot be shown" in said and "\x1b" not in said
    assert "explains: is the red thing green ?" in said, "a toy is never surprised by half a nat"


def test_words_are_marked_where_the_image_says_something() -> None:
    gain = np.array([0.1, 2.25, 0.75, -0.75, 0.125], np.float32)
    tokens = (" the", " snow", "board", " red\x1b", "?")
    explanation = Explanation("on a hill\x1b", tokens, gain - 4, np.full(5, -4, np.float32))
    hit = Hit(1, "a", "a", 0.5, {}, explanation=explanation)
    marked = "explains: the snowboard [+3.0] red\x1b? [-0.6]"
    assert told_explanation(hit) == ["answers: on a hill\x1b", marked]
    mute = replace(explanation, answer="")
    assert told_explanation(replace(hit, explanation=mute)) == ["gives no answer", marked]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--list", "--forget"], "give one"),
        (["--filter", "--image", "red.png"], "give one"),
        (["--generator-weights", "x"], "of which --preset"),
        (["-n", "0"], "1"),
    ],
)
def test_wrong_usage_is_refused(zsq: Zsq, album: Path, options: list[str], message: str) -> None:
    ran = zsq("questions", album, *options)
    assert ran.code == 2 and message in ran.stderr


def test_what_needs_words_needs_words(zsq: Zsq, album: Path, colours: Path) -> None:
    for option in ("--expand", "--explain", "--normalize"):
        ran = zsq("search", album, "--image", colours / "red.png", option)
        assert ran.code == 2 and "--image has none" in ran.stderr


def test_an_album_without_a_generator_cannot_ask(zsq: Zsq, colours: Path) -> None:
    zsq("index", colours, "--out", "album", "--preset", "toy")
    ran = zsq("questions", "album")
    assert ran.code == 1 and "writing questions needs a generator, and there is none" in ran.stderr
    assert zsq("questions", "album", "--preset", "reading", "--json").json["asked"] == 4
