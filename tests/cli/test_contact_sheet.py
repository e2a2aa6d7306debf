"""The page: a pure function of rankings and thumbnails."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage

from zsqretrieval.errors import ImageError
from zsqretrieval.search.display import Row, contact_sheet, thumbnail, thumbnails
from zsqretrieval.search.ranking import Ranking
from zsqretrieval.types import Explanation, Hit


def hit(id: str, score: float = 0.5, source: str = "", caption: str | None = None, **scores: float) -> Hit:
    return Hit(1, id, source or id, score, scores or {"first_stage": score}, caption)


class Reader(HTMLParser):
    """Tags that were opened, texts, and the attributes of images."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


hostile = st.one_of(
    st.sampled_from(
        [
            "<script>alert(1)</script>",
            '"><img src=x onerror=alert(1)>',
            "</title>",
            "{title}",
            "&amp;",
            "' x='",
        ]
    ),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20),
)


@given(hostile, hostile, hostile, hostile)
def test_markup_in_names_is_escaped(name: str, question: str, caption: str, title: str) -> None:
    def page(*texts: str) -> Reader:
        name, question, caption, title = texts
        why = Explanation(caption, (name, f" {caption}"), np.zeros(2, np.float32), np.full(2, -1, np.float32))
        one = replace(
            hit(name, source=f"/album/{name}", caption=caption), matched_question=name, explanation=why
        )
        row = Row(Ranking(question, (one, hit("other"))), expected="none of them")
        pictures = {one.id: b"jpeg"}
        return Reader(contact_sheet([row], pictures, title=title, summary=name, credits=name))

    told, plain = page(name, question, caption, title), page("a", "b", "c", "d")
    assert told.tags == plain.tags
    assert {key for key, _ in told.attributes} == {key for key, _ in plain.attributes}
    assert {name, question, title} <= set(told.texts)
    assert ("alt", caption) in told.attributes and ("title", f"/album/{name}") in told.attributes


def test_expected_image_is_marked() -> None:
    ranking = Ranking("where?", (hit("first", 0.8), hit("second", 0.4)))
    first = contact_sheet([Row(ranking, "first")], {}, title="t")
    assert 'class="card expected" title="first"' in first and "ranked first" in first
    second = contact_sheet([Row(ranking, "second")], {}, title="t")
    assert 'class="card expected" title="second"' in second and "rank 2" in second
    absent = contact_sheet([Row(ranking, "third")], {}, title="t")
    assert "card expected" not in absent and "third is not among the first 2" in absent
    beyond = contact_sheet([Row(ranking, "second", first=1, former=5)], {}, title="t")
    assert "rank 2, 5 by the first stage" in beyond and '<span class="place">2</span>' in beyond
    assert "second" not in contact_sheet([Row(ranking, first=1)], {}, title="t")
    unknown = contact_sheet([Row(ranking)], {}, title="t")
    assert "card expected" not in unknown and "found" not in unknown


@pytest.mark.parametrize(
    ("probability", "answerable", "expected", "said"),
    [
        (0.4, False, None, "nothing fits, as expected"),
        (0.6, False, None, "nothing should fit"),
        (None, False, None, "nothing should fit"),
        (0.4, True, None, "probably nothing fits"),
        (0.4, True, "x", "ranked first; judged improbable"),
        (0.6, True, "x", ">ranked first<"),
    ],
)
def test_improbable_hits_are_called_so(
    probability: float | None, answerable: bool, expected: str | None, said: str
) -> None:
    ranking = Ranking("where?", (replace(hit("x"), probability=probability),))
    assert said in contact_sheet([Row(ranking, expected, answerable)], {}, title="t")


def test_bars_share_one_scale() -> None:
    rows = [
        Row(Ranking("a", (hit("x", 0.8), hit("y", 0.2)))),
        Row(Ranking("b", (hit("z", 0.4), hit("w", -1)))),
    ]
    page = contact_sheet(rows, {}, title="t")
    assert re.findall(r"width:([\d.]+)%\"", page) == ["100.0", "25.0", "50.0", "0.0"]
    nothing = contact_sheet([Row(Ranking("a", (hit("x", -0.5),)))], {}, title="t")
    assert re.findall(r"width:([\d.]+)%\"", nothing) == ["0.0"]
    assert "no results" in contact_sheet([Row(Ranking("a", ()))], {}, title="t")


def lines(page: str) -> list[tuple[str, str, str]]:
    """Stage, width of its bar and number of every score, with a star on the one that ranks."""
    found = re.findall(r'<p class="score( ranks)?">(?:<span class="stage">(.*?)</span>)?(.*?)</p>', page)
    bars = [
        re.fullmatch(
            r'<span class="bar">(?:<i style="width:(.*?)%"></i>)?</span><span class="number">(.*)</span>', bar
        )
        for *_, bar in found
    ]
    return [
        (stage + "*" * bool(ranks), bar[1] or "", bar[2])
        for (ranks, stage, _), bar in zip(found, bars, strict=True)
        if bar
    ]


def test_all_stages_are_shown_and_the_ranking_one_is_highlighted() -> None:
    ranking = Ranking(
        "a",
        (
            hit("x", 1.25, first_stage=0.2, likelihood=-10.0, yes_no=0.0, fused=1.25),
            hit(
                "y",
                0.5,
                first_stage=0.4,
                likelihood=-10.0 - math.log(4),
                yes_no=-math.log(3),
                fused=0.5,
            ),
        ),
    )
    page = contact_sheet([Row(ranking)], {}, title="t")
    assert lines(page) == [
        ("first stage", "50.0", "0.200"),
        ("likelihood", "100.0", "-10.00"),  # the best of the row
        ("yes or no", "50.0", "0.00"),  # even odds
        ("fused*", "", "1.250"),
        ("first stage", "100.0", "0.400"),
        ("likelihood", "25.0", "-11.39"),  # a quarter of its probability
        ("yes or no", "25.0", "-1.10"),  # one to three
        ("fused*", "", "0.500"),
    ]
    assert all(
        word in page for word in ("cosine similarity", "log P(question | image)", "log-odds", "Fused:")
    )
    alone = contact_sheet(
        [Row(Ranking("a", (hit("x", -3.0, first_stage=0.2, likelihood=-3.0),)))], {}, title="t"
    )
    assert [stage for stage, _, _ in lines(alone)] == ["first stage", "likelihood*"]
    assert "Fused:" not in alone and "log-odds" not in alone


def test_single_stage_has_no_name_and_missing_score_no_bar() -> None:
    assert lines(contact_sheet([Row(Ranking("a", (hit("x", 0.5),)))], {}, title="t")) == [
        ("", "100.0", "0.500")
    ]
    own = contact_sheet([Row(Ranking("a", (hit("x", 7.0, first_stage=0.5, taste=7.0),)))], {}, title="t")
    assert lines(own)[1] == ("taste*", "", "7.00")


def test_page_policy_forbids_scripts_and_network() -> None:
    page = contact_sheet([Row(Ranking("a", (hit("x"),)), asked_with=b"jpeg")], {"x": b"jpeg"}, title="t")
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert not re.search(r"https?:|url\(|<script|<link", page)
    assert page.count('src="data:image/jpeg;base64,') == 2
    assert page.count('alt="') == 2


def test_thumbnails_fit_and_keep_their_shape() -> None:
    wide = PILImage.open(io.BytesIO(thumbnail(PILImage.new("RGB", (1000, 500), "red"), side=100)))
    assert (wide.size, wide.format) == ((100, 50), "JPEG")
    small = PILImage.open(io.BytesIO(thumbnail(PILImage.new("RGB", (30, 20)), side=100)))
    assert small.size == (30, 20)


def test_missing_image_has_no_thumbnail(tmp_path: Path) -> None:
    there, torn = tmp_path / "the#re.png", tmp_path / "torn.tar"
    PILImage.new("RGB", (8, 8)).save(there)
    torn.write_bytes(b"no tar")
    hits = [
        hit(str(i), source=source)
        for i, source in enumerate(
            [
                str(there),
                str(there),
                str(tmp_path / "gone.png"),
                "<bytes>",
                f"{torn}#a.png",
                f"{tmp_path}/no.tar#a.png",
            ]
        )
    ]
    assert set(thumbnails(hits)) == {"0", "1"}
    with pytest.raises(ImageError):
        thumbnail(tmp_path / "gone.png")


def test_hit_shows_matched_question_and_explanation() -> None:
    gains = np.array([0.0, -0.75, 2.0, 0.25], np.float32)
    why = Explanation("on a <bed>", ("where", " is", " the", " cat"), gains, np.zeros(4, np.float32))
    scores = {"first_stage": 0.5, "image_similarity": 0.5, "question_similarity": 0.75}
    found = replace(hit("x", **scores), matched_question="what is the cat doing?", explanation=why)
    page = contact_sheet([Row(Ranking("where is the cat", (found,)))], {}, title="t")
    assert '<p class="matched" dir="auto">what is the cat doing?</p>' in page
    assert '<p class="answer" dir="auto">on a &lt;bed&gt;</p>' in page
    said = 'where <b class="against">is<sup>-0.8</sup></b> <b class="for">the<sup>+2.0</sup></b> cat'
    assert f'<p class="words" dir="auto">{said}</p>' in page
    assert lines(page) == [
        ("first stage*", "100.0", "0.500"),
        ("image similarity", "", "0.500"),  # as high by chance, but it does not rank
        ("question similarity", "", "0.750"),
    ]
    assert "Similarities of image and question" in page and "nats" in page
    silent = replace(found, matched_question=None, explanation=replace(why, answer=""))
    page = contact_sheet([Row(Ranking("a", (silent,)))], {}, title="t")
    assert 'class="matched"' not in page and 'class="answer"' not in page and 'class="words"' in page
    assert "nats" not in contact_sheet([Row(Ranking("a", (hit("x"),)))], {}, title="t")


def test_dialog_page_shows_probabilities() -> None:
    half = hit("x", -math.log(2), first_stage=0.3, dialog=-math.log(2))
    page = contact_sheet([Row(Ranking("a", (half,)))], {}, title="t")
    assert lines(page) == [("first stage", "100.0", "0.300"), ("dialog*", "50.0", "-0.69")]
    assert "log P(image | answers)" in page
