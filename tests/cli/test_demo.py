"""`zsq demo` and the album it comes with."""

from __future__ import annotations

import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from running import Zsq
from zsqretrieval.data import samples as demo
from zsqretrieval.data.images import decode
from zsqretrieval.errors import MissingDependencyError


def test_every_photograph_is_in_the_wheels() -> None:
    album = demo.photographs()
    assert [image.id for image in album] == [one.id for one in demo.PHOTOGRAPHS]
    assert len(album) >= 16
    for image in album:
        assert min(decode(image).size) > 100, image.id
        assert image.metadata["credit"]


def test_each_question_names_one_photograph() -> None:
    ids = [one.id for one in demo.PHOTOGRAPHS]
    expected = [question.expected for question in demo.QUESTIONS]
    assert len(set(ids)) == len(ids) and len(set(expected)) == len(expected)
    assert set(expected) <= set(ids)


def test_photographs_are_found_without_importing_their_packages() -> None:
    before = set(sys.modules)
    demo.photographs()
    assert not {"skimage", "sklearn"} & (set(sys.modules) - before)


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, zsq: Zsq) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError):
        demo.photographs()
    ran = zsq("demo", "--preset", "toy")
    assert ran.code == 1 and ran.stderr.count("\n") == 1
    assert 'pip install "zsqretrieval[demo]"' in ran.stderr and ran.stdout == ""
    assert not Path("zsq-demo.html").exists()


def test_a_photograph_that_a_later_version_dropped_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, zsq: Zsq
) -> None:
    real = {image.id: Path(image.source) for image in demo.photographs()}

    def found(package: str) -> ModuleSpec:
        spec = ModuleSpec(package, None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path / package)]
        return spec

    for one in demo.PHOTOGRAPHS:
        if one.id in ("rocket", "cat", "flower"):
            path = tmp_path / one.package / one.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(real[one.id].read_bytes())
    monkeypatch.setattr(demo, "find_spec", found)
    assert [image.id for image in demo.photographs()] == ["cat", "flower", "rocket"]
    facts = zsq("demo", "--preset", "toy", "--json").json
    assert {one["expected"] for one in facts["questions"]} == {"cat", "flower", "rocket"}

    real_flower = tmp_path / "sklearn/datasets/images/flower.jpg"
    real_flower.unlink()
    with pytest.raises(MissingDependencyError, match="scikit-learn"):
        demo.photographs()


def test_json_option_prints_only_json(zsq: Zsq) -> None:
    ran = zsq("demo", "--preset", "toy", "-k", 2, "--json")
    facts = ran.json
    assert ran.code == 0
    assert set(facts) == {
        *("questions", "expected", "found_first", "found_first_by_first_stage", "found", "images"),
        *("encoder", "index", "generator", "skipped", "seconds", "html"),
    }
    assert facts["generator"] is None and facts["found_first_by_first_stage"] == facts["found_first"]
    assert set(facts["seconds"]["search"]) == {"encode", "first_stage"}
    assert facts["images"] == len(demo.PHOTOGRAPHS) and facts["expected"] == len(demo.QUESTIONS)
    assert facts["encoder"] == "toy-encoder-1" and facts["index"] == "compressed" and facts["skipped"] == []
    for one in facts["questions"]:
        assert set(one) == {"question", "expected", "rank", "first_stage_rank", "hits", "timings"}
        ids = [hit["id"] for hit in one["hits"]]
        assert len(ids) == 2
        assert one["rank"] == (ids.index(one["expected"]) + 1 if one["expected"] in ids else None)
    ranks = [one["rank"] for one in facts["questions"]]
    assert facts["found_first"] == ranks.count(1)
    assert facts["found"] == sum(rank is not None for rank in ranks)
    assert Path(facts["html"]) == Path("zsq-demo.html").absolute()


def test_page_has_all_questions_and_is_under_its_size_limit(zsq: Zsq) -> None:
    facts = zsq("demo", "--preset", "toy", "--json").json
    ran = zsq("demo", "--preset", "toy", "--out", "page.html")
    assert ran.code == 0 and str(Path("page.html").absolute()) in ran.stdout
    page = Path("page.html").read_text(encoding="utf-8")
    assert len(page) < 1_500_000
    assert page.count("<img ") == 3 * len(demo.QUESTIONS)
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page) and "<script" not in page
    for question in demo.QUESTIONS:
        assert question.text in page and question.text in ran.stdout
    shown = {hit["id"] for one in facts["questions"] for hit in one["hits"]}
    for photograph in demo.PHOTOGRAPHS:
        assert (f"{photograph.id}: {photograph.credit}" in page) == (photograph.id in shown)


def test_count_of_first_ranks_matches_the_rankings(zsq: Zsq) -> None:
    """The toy encoder sees colours only; table, sentence and page have to say so."""
    facts = zsq("demo", "--preset", "toy", "--json").json
    said = zsq("demo", "--preset", "toy").stdout
    assert facts["found_first"] < facts["expected"]
    assert f"ranks first for {facts['found_first']} of {facts['expected']}" in said
    assert said.count(" yes") == facts["found_first"]
    assert len(re.findall(r"no: \w+ (?:is|has)", said)) == facts["expected"] - facts["found_first"]
    page = Path("zsq-demo.html").read_text(encoding="utf-8")
    assert page.count(">ranked first<") == facts["found_first"]
    assert page.count('class="card expected"') == facts["found"]


@pytest.mark.parametrize(
    ("preset", "generator"), [("reading", "toy-generator-1"), ("seeing", "toy-states-generator-1")]
)
def test_a_generator_re_ranks(zsq: Zsq, preset: str, generator: str) -> None:
    facts = zsq("demo", "--preset", preset, "--json").json
    assert facts["generator"] == generator
    assert set(facts["seconds"]["search"]) == {"encode", "first_stage", "likelihood"}
    for one in facts["questions"]:
        assert all(set(hit["scores"]) == {"first_stage", "likelihood", "fused"} for hit in one["hits"])
        assert [hit["score"] for hit in one["hits"]] == sorted(
            (hit["scores"]["fused"] for hit in one["hits"]), reverse=True
        )
    alone = zsq("demo", "--preset", "toy", "-k", 18, "--json").json
    assert [one["first_stage_rank"] for one in facts["questions"]] == [
        one["rank"] for one in alone["questions"]
    ], "what the first stage alone would have said"
    assert facts["found_first_by_first_stage"] == alone["found_first"]
    changed = sum(one["rank"] != one["first_stage_rank"] for one in facts["questions"])
    said = zsq("demo", "--preset", preset).stdout
    assert changed and said.count("(first stage: rank ") == changed
    assert all(word in said for word in ("first stage", "likelihood", "fused", "for re-ranking"))
    assert f"by the first stage alone for {alone['found_first']}" in said and "no generator" not in said
    assert Path("zsq-demo.html").read_text(encoding="utf-8").count('class="score ranks"') == 3 * 16


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
