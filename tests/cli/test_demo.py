"""`zsq demo` and the album it comes with."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from PIL import Image as PILImage

from running import Zsq
from zsqretrieval.cli.demo import _summary as summary
from zsqretrieval.data import samples as demo
from zsqretrieval.presets import PRESETS

IDS = {image.id for image in demo.photographs()}
ASKED = (*demo.QUESTIONS, *demo.UNANSWERABLE)


def test_every_photograph_is_small_and_has_author_licence_and_origin() -> None:
    with (demo.FOLDER / "photographs.csv").open(encoding="utf-8", newline="") as table:
        rows = {row["id"]: row for row in csv.DictReader(table)}
    terms = (demo.FOLDER / "LICENSES.md").read_text(encoding="utf-8")
    files = {path.stem: path for path in demo.FOLDER.glob("*.jpg")}
    assert files.keys() == rows.keys() == IDS and len(IDS) >= 40
    for name, path in files.items():
        with PILImage.open(path) as picture:
            assert 256 <= max(picture.size) <= 512 and picture.format == "JPEG", name
            assert set(picture.getexif()) <= {0x8769}, f"{name}: metadata beside the time of exposure"
        assert all(rows[name].values()), name
        assert f"| {rows[name]['licence']} |" in terms, name
    assert sum(path.stat().st_size for path in demo.FOLDER.iterdir()) < 4_000_000


def test_each_question_names_one_photograph_or_none_fits() -> None:
    expected = [question.expected for question in demo.QUESTIONS]
    assert len(set(expected)) == len(expected) and set(expected) <= IDS
    assert len({question.text for question in ASKED}) == len(ASKED)
    assert all(one.expected is None and not one.answerable for one in demo.UNANSWERABLE)


def test_json_option_prints_only_json(zsq: Zsq) -> None:
    ran = zsq("demo", "--preset", "toy", "-k", 2, "--json")
    facts = ran.json
    assert ran.code == 0
    assert set(facts) == {
        *("questions", "expected", "found_first", "found_first_by_first_stage", "found", "images"),
        *("moved_up", "moved_down", "judges", "unanswerable", "nothing_found_rightly"),
        *("nothing_found_wrongly", "encoder", "index", "generator", "skipped", "seconds", "html"),
    }
    assert facts["generator"] is None and facts["found_first_by_first_stage"] == facts["found_first"]
    assert set(facts["seconds"]["search"]) == {"encode", "first_stage"}
    assert facts["images"] == len(IDS) and facts["expected"] == len(demo.QUESTIONS)
    assert facts["unanswerable"] == len(demo.UNANSWERABLE) and not facts["judges"]
    assert facts["encoder"] == "toy-encoder-1" and facts["index"] == "compressed" and facts["skipped"] == []
    for one in facts["questions"]:
        assert set(one) == {
            *("question", "expected", "answerable", "rank", "first_stage_rank", "nothing_found"),
            *("hits", "timings"),
        }
        ids = [hit["id"] for hit in one["hits"]]
        assert len(ids) == 2 and one["nothing_found"] is False
        assert (one["expected"] in ids) == (one["rank"] in (1, 2))
        assert (one["rank"] is None) == (one["expected"] is None)
    ranks = [one["rank"] for one in facts["questions"]]
    assert facts["found_first"] == ranks.count(1)
    assert facts["found"] == ranks.count(1) + ranks.count(2)
    assert Path(facts["html"]) == Path("zsq-demo.html").absolute()


def test_page_has_all_questions_and_is_under_its_size_limit(zsq: Zsq) -> None:
    facts = zsq("demo", "--preset", "toy", "--json").json
    ran = zsq("demo", "--preset", "toy", "--out", "page.html")
    assert ran.code == 0 and str(Path("page.html").absolute()) in ran.stdout
    page = Path("page.html").read_text(encoding="utf-8")
    assert len(page) < 3_000_000
    missed = sum((one["rank"] or 0) > 3 for one in facts["questions"])
    assert page.count("<img ") == 3 * len(ASKED) + missed, "a missed photograph is shown, too"
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page) and "<script" not in page
    for question in ASKED:
        assert question.text in page and question.text in ran.stdout
    shown = {hit["id"] for one in facts["questions"] for hit in one["hits"]}
    shown |= {one.expected for one in demo.QUESTIONS}
    for image in demo.photographs():
        credit = f"{image.id}: {image.metadata['credit']}"
        assert (credit in unescape(page)) == (image.id in shown)


def test_count_of_first_ranks_matches_the_rankings(zsq: Zsq) -> None:
    """The toy encoder sees colours only; table, sentence and page have to say so."""
    facts = zsq("demo", "--preset", "toy", "--json").json
    said = zsq("demo", "--preset", "toy").stdout
    assert facts["found_first"] < facts["expected"]
    assert f"ranks first for {facts['found_first']} of {facts['expected']}" in said
    assert said.count(" yes") == facts["found_first"]
    assert len(re.findall(r"no: \w+ has rank", said)) == facts["expected"] - facts["found_first"]
    page = Path("zsq-demo.html").read_text(encoding="utf-8")
    assert page.count(">ranked first") == facts["found_first"]
    assert page.count('class="card expected"') == facts["expected"]
    assert "nothing fits" not in said, "the toy encoder has no probabilities"


@pytest.mark.parametrize(
    ("up", "down", "said"),
    [
        (0, 0, "Re-ranking moved no expected image."),
        (4, 3, "Re-ranking moved it up for 4 questions and down for 3, which may be chance."),
        (9, 1, "Re-ranking moved it up for 9 questions and down for 1: it helps here."),
        (1, 9, "Re-ranking moved it up for 1 questions and down for 9: it hurts here."),
    ],
)
def test_the_closing_line_says_whether_re_ranking_helps_or_hurts(up: int, down: int, said: str) -> None:
    facts = {
        "questions": [{}] * 24, "images": 55, "expected": 20, "generator": "toy", "judges": True,
        "found_first": 12, "found_first_by_first_stage": 11, "moved_up": up, "moved_down": down,
        "unanswerable": 4, "nothing_found_rightly": 3, "nothing_found_wrongly": 8,
        "seconds": {"add": 1.0, "search": {"encode": 0.1, "first_stage": 0.1, "likelihood": 0.2}},
    }  # fmt: skip
    assert summary(facts) == (
        "24 questions to 55 images. The expected image ranks first for 12 of 20, by the first stage alone "
        f"for 11. {said} All hits are judged improbable for 3 of 4 questions that no image answers, and "
        "wrongly for 8 of the 20 others. "
        "Indexed in 1.0 s, answered in 400 ms a question, 200 ms of it for re-ranking."
    )


def test_probabilities_say_which_questions_nothing_answers(zsq: Zsq, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = PRESETS["toy"]
    judging = replace(preset.calibration, relevance_scale=1.0, relevance_margin=10.0)  # all improbable
    monkeypatch.setitem(PRESETS, "toy", replace(preset, calibration=judging))  # type: ignore[arg-type]
    facts = zsq("demo", "--preset", "toy", "--json").json
    assert facts["judges"] and all(one["nothing_found"] for one in facts["questions"])
    assert facts["nothing_found_rightly"] == len(demo.UNANSWERABLE)
    assert facts["nothing_found_wrongly"] == len(demo.QUESTIONS)
    said = zsq("demo", "--preset", "toy").stdout
    assert said.count("yes: nothing fits") == len(demo.UNANSWERABLE)
    page = Path("zsq-demo.html").read_text(encoding="utf-8")
    assert page.count("nothing fits, as expected") == len(demo.UNANSWERABLE)
    assert page.count("; judged improbable") == len(demo.QUESTIONS)


@pytest.mark.parametrize(
    ("preset", "generator"), [("reading", "toy-generator-1"), ("seeing", "toy-states-generator-1")]
)
def test_a_generator_re_ranks(zsq: Zsq, preset: str, generator: str) -> None:
    few = ("--candidates", 12)  # the toys read every candidate for every question
    facts = zsq("demo", "--preset", preset, *few, "--json").json
    assert facts["generator"] == generator
    assert set(facts["seconds"]["search"]) == {"encode", "first_stage", "likelihood"}
    for one in facts["questions"]:
        assert all(set(hit["scores"]) == {"first_stage", "likelihood", "fused"} for hit in one["hits"])
        assert [hit["score"] for hit in one["hits"]] == sorted(
            (hit["scores"]["fused"] for hit in one["hits"]), reverse=True
        )
    alone = zsq("demo", "--preset", "toy", "--json").json
    assert [one["first_stage_rank"] for one in facts["questions"]] == [
        one["rank"] if (one["rank"] or 13) <= 12 else None for one in alone["questions"]
    ], "what the first stage alone would have said"
    assert facts["found_first_by_first_stage"] == alone["found_first"]
    changed = facts["moved_up"] + facts["moved_down"]
    assert changed == sum(one["rank"] != one["first_stage_rank"] for one in facts["questions"])
    said = zsq("demo", "--preset", preset, *few).stdout
    assert changed and said.count("(first stage: rank ") == changed
    assert all(word in said for word in ("first stage", "likelihood", "fused", "for re-ranking"))
    assert f"by the first stage alone for {alone['found_first']}" in said and "no generator" not in said
    missed = sum((one["rank"] or 0) > 3 for one in facts["questions"])
    page = Path("zsq-demo.html").read_text(encoding="utf-8")
    assert page.count('class="score ranks"') == 3 * len(ASKED) + missed
    assert page.count(" by the first stage<") == changed


def test_without_a_generator_the_page_names_the_first_stage_alone(zsq: Zsq) -> None:
    said = zsq("demo", "--preset", "toy").stdout
    assert "The preset toy has no generator" in said and "likelihood" not in said
    unread = zsq("demo", "--preset", "seeing", "--rerank", "none")
    assert "no generator" not in unread.stdout and "likelihood" not in unread.stdout
    assert zsq("demo", "--preset", "seeing", "--rerank", "none", "--json").json["generator"] is None


def test_own_images_and_questions_replace_the_built_in_ones(zsq: Zsq, colours: Path) -> None:
    own = ("--images", colours, "--preset", "toy", "--index", "exact")
    facts = zsq("demo", *own, "-q", "what is red?", "--question", "what is blue?", "--json").json
    assert [one["hits"][0]["id"] for one in facts["questions"]] == ["red.png", "blue.png"]
    assert facts["expected"] == 0 and facts["images"] == 4 and len(facts["skipped"]) == 1
    said = zsq("demo", *own)
    assert "torn.png" in said.stderr and "expected" not in said.stdout
    assert all(question.text in said.stdout for question in demo.GENERIC_QUESTIONS)


def test_folder_without_images_is_a_one_line_error(zsq: Zsq, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ran = zsq("demo", "--images", "empty", "--preset", "toy")
    assert ran.code == 0 and "No images were found in empty" in ran.stdout
    assert zsq("demo", "--images", "empty", "--preset", "toy", "--json").json["html"] is None
    assert not Path("zsq-demo.html").exists()
    assert zsq("demo", "--images", "nowhere", "--preset", "toy").code == 1
