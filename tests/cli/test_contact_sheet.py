"""The page: a pure function of rankings and thumbnails."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage

from zsqretrieval.contact_sheet import Row, contact_sheet, thumbnail, thumbnails
from zsqretrieval.errors import ImageError
from zsqretrieval.types import Hit, Ranking


def hit(id: str, score: float = 0.5, source: str = "", caption: str | None = None) -> Hit:
    return Hit(1, id, source or id, score, {"first_stage": score}, caption)


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
def test_whatever_a_name_holds_stays_text(name: str, question: str, caption: str, title: str) -> None:
    def page(*texts: str) -> Reader:
        name, question, caption, title = texts
        one = hit(name, source=f"/album/{name}", caption=caption)
        row = Row(Ranking(question, (one, hit("other"))), expected="none of them")
        pictures = {one.source: b"jpeg"}
        return Reader(contact_sheet([row], pictures, title=title, summary=name, credits=name))

    told, plain = page(name, question, caption, title), page("a", "b", "c", "d")
    assert told.tags == plain.tags
    assert {key for key, _ in told.attributes} == {key for key, _ in plain.attributes}
    assert {name, question, title} <= set(told.texts)
    assert ("alt", caption) in told.attributes and ("title", f"/album/{name}") in told.attributes


def test_the_expected_image_is_marked_where_it_stands() -> None:
    ranking = Ranking("where?", (hit("first", 0.8), hit("second", 0.4)))
    first = contact_sheet([Row(ranking, "first")], {}, title="t")
    assert 'class="card expected" title="first"' in first and "found first" in first
    second = contact_sheet([Row(ranking, "second")], {}, title="t")
    assert 'class="card expected" title="second"' in second and "found in place 2" in second
    absent = contact_sheet([Row(ranking, "third")], {}, title="t")
    assert "card expected" not in absent and "third is not among the first 2" in absent
    unknown = contact_sheet([Row(ranking)], {}, title="t")
    assert "card expected" not in unknown and "found" not in unknown


def test_bars_share_one_scale() -> None:
    rows = [
        Row(Ranking("a", (hit("x", 0.8), hit("y", 0.2)))),
        Row(Ranking("b", (hit("z", 0.4), hit("w", -1)))),
    ]
    page = contact_sheet(rows, {}, title="t")
    assert re.findall(r"width:([\d.]+)%\"", page) == ["100.0", "25.0", "50.0", "0.0"]
    nothing = contact_sheet([Row(Ranking("a", (hit("x", -0.5),)))], {}, title="t")
    assert re.findall(r"width:([\d.]+)%\"", nothing) == ["0.0"]
    assert "nothing found" in contact_sheet([Row(Ranking("a", ()))], {}, title="t")


def test_the_page_forbids_itself_scripts_and_the_network() -> None:
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


def test_images_that_are_gone_have_no_thumbnail(tmp_path: Path) -> None:
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
    assert set(thumbnails(hits)) == {str(there)}
    with pytest.raises(ImageError):
        thumbnail(tmp_path / "gone.png")
