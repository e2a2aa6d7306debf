"""``zsq questions``, and searches with the stored questions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from running import Zsq
from zsqretrieval.cli.search import explanation_lines
from zsqretrieval.types import Explanation, Hit

PRESET = "reading"


def test_repeated_command_asks_no_image_twice(zsq: Zsq, album: Path) -> None:
    first = zsq("questions", album, "-n", 2, "--answers", "--top-k", 0, "--temperature", 1.5, "--json").json
    assert (first["asked"], first["known"], first["skipped"]) == (4, 0, [])
    assert first["questions"] == first["kept"] > 0
    (style,) = first["styles"]
    assert style == {
        "style": "questions", "images": 4, "questions": first["questions"],
        "kept": first["kept"], "answered": first["questions"],
    }  # fmt: skip
    said = zsq("questions", album, "-n", 2, "--answers", "--temperature", 1.5)
    assert "0 images asked, 4 asked before: 0 new questions" in said.stdout
    assert f"zsq search {album}" in said.stdout and "--expand" in said.stdout
    captions = zsq("questions", album, "--style", "captions", "--json").json
    assert [one["style"] for one in captions["styles"]] == ["captions", "questions"]


def test_info_counts_questions(zsq: Zsq, album: Path) -> None:
    made = zsq("questions", album, "--top-k", 0, "--json").json
    assert zsq("info", album, "--json").json["questions"] == made["styles"]
    rows = [line.split() for line in zsq("info", album).stdout.splitlines()]
    count = str(made["questions"])
    assert ["questions:", "questions", count, "for", "4", "images,", count, "kept,", "0", "answered"] in rows


def test_questions_are_listed_filtered_and_removed(zsq: Zsq, album: Path) -> None:
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
    assert "are kept" not in zsq("questions", album, "--remove", "--style", "captions").stdout
    assert zsq("questions", album, "--remove", "--json").json["removed"] == len(listed)
    assert zsq("questions", album, "--list", "--json").json == {
        "album": str(album.absolute()), "styles": [], "questions": [],
    }  # fmt: skip


def test_expanded_search_names_the_matched_questions(zsq: Zsq, album: Path) -> None:
    refused = zsq("search", album, "red", "--expand")
    assert refused.code == 1 and "no stored questions to search" in refused.stderr
    zsq("questions", album, "--temperature", 1.5, "--top-k", 0)
    plain = zsq("search", album, "the red thing?", "--json").json["hits"]
    assert all(hit["matched_question"] is None and hit["explanation"] is None for hit in plain)
    hits = zsq("search", album, "the red thing?", "--expand", "--json").json["hits"]
    assert len(hits) == 4 and {"image_similarity", "question_similarity"} <= set(hits[0]["scores"])
    assert all(hit["matched_question"].endswith("?") for hit in hits)
    table = zsq("search", album, "the red thing?", "--expand").stdout
    assert "matched question" in table and hits[0]["matched_question"] in table


def test_search_normalizes_by_stored_questions_or_a_file(zsq: Zsq, album: Path, tmp_path: Path) -> None:
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
    for content, message in ((b"\n", "holds no text"), (b"\xff", "not UTF-8"), (None, "cannot be read")):
        bank.unlink() if content is None else bank.write_bytes(content)
        refused = zsq("search", album, "red", "--bank", bank)
        assert refused.code == 1 and message in refused.stderr and "bank.txt" in refused.stderr


def test_hits_are_explained_in_json_and_text(zsq: Zsq, album: Path, colours: Path) -> None:
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
    assert f"answers: {red['answer']}" in said and "image cannot be opened" in said and "\x1b" not in said
    assert "explains: is the red thing green ?" in said, "a toy is never surprised by half a nat"


def test_words_of_large_gain_are_marked() -> None:
    gain = np.array([0.1, 2.25, 0.75, -0.75, 0.125], np.float32)
    tokens = (" the", " snow", "board", " red\x1b", "?")
    explanation = Explanation("on a hill\x1b", tokens, gain - 4, np.full(5, -4, np.float32))
    hit = Hit(1, "a", "a", 0.5, {}, explanation=explanation)
    marked = "explains: the snowboard [+3.0] red\x1b? [-0.6]"
    assert explanation_lines(hit) == ["answers: on a hill\x1b", marked]
    mute = replace(explanation, answer="")
    assert explanation_lines(replace(hit, explanation=mute)) == ["gives no answer", marked]


def test_album_without_a_generator_needs_a_preset_to_ask(zsq: Zsq, colours: Path) -> None:
    zsq("index", colours, "--out", "album", "--preset", "toy")
    ran = zsq("questions", "album")
    assert ran.code == 1 and "needs a generator" in ran.stderr
    assert zsq("questions", "album", "--preset", "reading", "--json").json["asked"] == 4
