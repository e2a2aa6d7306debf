"""Rankings as sequences, arrays, tables, pages and pictures."""

from __future__ import annotations

import io
import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage
from rich.console import Console

from zsqretrieval import Hit, Ranking, Retriever
from zsqretrieval.errors import InvalidInputError, MissingDependencyError
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator
from zsqretrieval.types import Explanation

ENCODER = ToyEncoder()


def hit(key: int, score: float | None, **metadata: Any) -> Hit:
    return Hit(key, f"i{key}", f"/i{key}.png", score, {"first_stage": 0.5}, metadata=metadata)


RANKING = Ranking(
    "where?",
    (
        hit(1, 0.9, year=2003, camera="X"),
        hit(2, 0.8, year=1999),
        hit(3, 0.7, camera="X"),
        hit(4, None, year=2003),
    ),
    {"encode": 0.1},
    truncated=True,
    unscored=1,
)


def test_slice_is_a_ranking_and_an_item_a_hit() -> None:
    assert RANKING[1].id == "i2" and RANKING[-1].id == "i4"
    part = RANKING[1:3]
    assert isinstance(part, Ranking) and part.ids == ["i2", "i3"]
    assert (part.query, part.truncated, part.unscored) == ("where?", True, 1)
    assert [one.id for one in RANKING] == RANKING.ids
    np.testing.assert_equal(RANKING.scores, [0.9, 0.8, 0.7, np.nan])
    assert RANKING.scores.dtype == np.float64 and Ranking("q", ()).scores.shape == (0,)


@pytest.mark.parametrize(
    ("name", "reverse", "order"),
    [
        ("year", False, ["i2", "i1", "i4", "i3"]),
        ("year", True, ["i1", "i4", "i2", "i3"]),
        ("camera", False, ["i1", "i3", "i2", "i4"]),
        ("id", True, ["i4", "i3", "i2", "i1"]),
        ("score", False, ["i3", "i2", "i1", "i4"]),
    ],
)
def test_hits_are_sorted_by_a_field_and_those_without_it_come_last(
    name: str, reverse: bool, order: list[str]
) -> None:
    assert RANKING.sort_by(name, reverse=reverse).ids == order


def test_numbers_come_before_texts_when_sorted() -> None:
    mixed = Ranking("q", tuple(hit(n, 0.1, size=one) for n, one in enumerate(["b", 2, [1], "a", 1.5, True])))
    assert mixed.sort_by("size").ids == ["i5", "i4", "i1", "i2", "i3", "i0"]


def test_own_properties_come_before_metadata_of_the_same_name() -> None:
    both = Ranking("q", (hit(1, 0.1, id=7), hit(2, 0.2, id="a"), hit(3, 0.3)))
    assert both.sort_by("id").ids == ["i1", "i2", "i3"]
    assert both.sort_by("metadata.id", reverse=True).ids == ["i2", "i1", "i3"]
    assert list(both.group_by("metadata.id")) == [7, "a", None]


def test_hits_are_grouped_by_a_field_in_the_order_of_the_best() -> None:
    groups = RANKING.group_by("year")
    assert {year: group.ids for year, group in groups.items()} == {
        2003: ["i1", "i4"],
        1999: ["i2"],
        None: ["i3"],
    }
    assert list(groups) == [2003, 1999, None]
    lists = Ranking("q", (hit(1, 1, tags=["a"]), hit(2, 1, tags=["a"])))
    assert [group.ids for group in lists.group_by("tags").values()] == [["i1", "i2"]]


def test_field_that_no_hit_has_is_refused_with_those_there_are() -> None:
    for method in (RANKING.sort_by, RANKING.group_by):
        with pytest.raises(InvalidInputError, match=r"no hit has a field 'yaer'; there are camera, .*year"):
            method("yaer")
    assert Ranking("q", ()).sort_by("year").ids == []


def test_dicts_are_valid_json_whatever_the_numbers_are() -> None:
    numbers = np.array([-1.5, -np.inf], np.float32)
    odd = Hit(
        1, "i", "s", float("nan"), {"x": float("inf")},
        metadata={"year": 1, "at": [float("nan")]},
        explanation=Explanation("yes", ("a", " b"), numbers, np.zeros(2, np.float32)),
    )  # fmt: skip
    (one,) = json.loads(json.dumps(Ranking("q", (odd,)).to_dicts(), allow_nan=False))
    assert (
        one["score"] is None and one["scores"] == {"x": None} and one["metadata"] == {"year": 1, "at": [None]}
    )
    assert one["explanation"]["with_image"] == [-1.5, None] and one["explanation"]["answer"] == "yes"
    assert [one["rank"] for one in RANKING.to_dicts()] == [1, 2, 3, 4]


def test_table_has_a_column_for_every_score_and_field() -> None:
    table = RANKING.to_pandas()
    assert table["id"].tolist() == RANKING.ids
    assert table["metadata.camera"].tolist()[0] == "X" and table["scores.first_stage"].tolist() == [0.5] * 4
    assert np.isnan(table["score"].tolist()[3])
    assert list(Ranking("q", ()).to_pandas().columns) == ["rank", "id", "source", "score"]


@pytest.mark.parametrize(("package", "call"), [("pandas", "to_pandas"), ("matplotlib.figure", "plot")])
def test_missing_package_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch, package: str, call: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=f"pip install {package.split('.')[0]}"):
        getattr(RANKING, call)()


@pytest.fixture
def ranking(tmp_path: Path) -> Ranking:
    """Two files, one of which is gone, and one image that only the album has; odd names."""
    for name in ("<b>red$x$.png", "green.png"):
        PILImage.new("RGB", (60, 40), name.strip("<b>").split("$")[0].split(".")[0]).save(tmp_path / name)
    retriever = Retriever(ENCODER, ExactIndex(ENCODER.dim), ToyGenerator())
    retriever.add(tmp_path)
    retriever.add(PILImage.new("RGB", (30, 70), "blue"))
    (tmp_path / "green.png").unlink()
    return retriever.search("a <i>red</i> $thing\x1b[31m", rerank=None)


def test_ranking_can_be_pickled_without_its_album(ranking: Ranking) -> None:
    again = pickle.loads(pickle.dumps(ranking))
    assert again == ranking and again.kept is None and again.ids == ranking.ids


def test_text_of_a_ranking_controls_no_terminal() -> None:
    odd = Ranking("q\n", (replace(hit(1, 0.5), id="a\x1b[31m\nb"),))
    assert str(odd) == "'q\\n': 1 hits\n   1    0.500 a\\x1b[31m\\nb"
    assert repr(odd) == "Ranking('q\\n', 1 hits: a\\x1b[31m\\nb 0.500)"


def test_notebook_shows_thumbnails_and_escapes_names(ranking: Ranking) -> None:
    page = ranking._repr_html_()
    assert page.count("data:image/jpeg;base64,") == 2 and page.count("no picture") == 1
    assert "&lt;b&gt;red" in page and "<b>" not in page and "<i>" not in page and "<script" not in page


def test_plot_draws_every_hit(ranking: Ranking) -> None:
    figure = ranking.plot(columns=2)
    assert sum(len(axes.images) for axes in figure.axes) == 2
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 4 and any("red" in title for title in titles)
    buffer = io.BytesIO()
    figure.savefig(buffer)  # names are no formulas
    assert Ranking("q", ()).plot() is not None
    with pytest.raises(InvalidInputError, match="columns must be at least 1"):
        ranking.plot(0)


@pytest.mark.parametrize(("colours", "pictures"), [("truecolor", True), ("256", False)])
def test_terminal_shows_thumbnails_if_it_has_24_bit_colours(
    ranking: Ranking, colours: Any, pictures: bool
) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system=colours, width=100)
    console.print(ranking)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("▀" in shown) is pictures
    assert "\x1b[31m" not in shown.replace("\x1b[31m▀", "") and r"\x1b[31m" in shown
    assert "green.png" in shown


def test_text_lists_rank_score_and_id() -> None:
    assert str(RANKING).splitlines() == [
        "'where?': 4 hits",
        "   1    0.900 i1",
        "   2    0.800 i2",
        "   3    0.700 i3",
        "   4          i4",
    ]
    assert repr(RANKING) == "Ranking('where?', 4 hits: i1 0.900, i2 0.800, i3 0.700, ...)"
