"""Bars of tqdm: totals, several steps, and that they close."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest

from zsqretrieval.data.sources import count_images
from zsqretrieval.retriever import Retriever

tqdm = pytest.importorskip("tqdm.auto").tqdm

from zsqretrieval.integrations.progress import tqdm_progress  # noqa: E402


def shown(*calls: tuple[str, int, int | None], **settings: Any) -> list[str]:
    """The states of the bars, as they are printed."""
    screen = io.StringIO()
    progress = tqdm_progress(
        file=screen, mininterval=0, miniters=1, bar_format="{desc} {n_fmt}/{total_fmt}", **settings
    )
    for call in calls:
        progress(*call)
    del progress
    assert not tqdm._instances
    return re.findall(r"\w+ [0-9]+/[0-9?]+", screen.getvalue())


def test_every_step_has_a_bar_with_its_total_and_closes() -> None:
    states = shown(("reading", 2, 4), ("scoring", 1, 3), ("reading", 4, 4), ("scoring", 3, 3))
    assert {"reading 2/4", "scoring 1/3", "reading 4/4", "scoring 3/3"} <= set(states)


@pytest.mark.parametrize("leave", [True, False])
def test_step_that_begins_again_or_has_no_total_is_shown(leave: bool) -> None:
    states = shown(("a", 5, None), ("a", 2, 9), ("b", 3, 3), ("b", 1, 3), leave=leave)
    assert {"a 5/?", "a 2/9", "b 3/3", "b 1/3"} <= set(states)
    assert shown(("a", 1, 2), ("a", 2, 2), disable=True) == []


def test_add_and_search_fill_their_bars(retriever_of_colours: Retriever, folder: Path) -> None:
    screen = io.StringIO()
    retriever_of_colours.add(folder, progress=tqdm_progress(file=screen, mininterval=0, leave=True))
    retriever_of_colours.search("red", progress=tqdm_progress(file=screen, mininterval=0, leave=True))
    assert "adding images: 100%" in screen.getvalue() and "scoring: 100%" in screen.getvalue()
    assert not tqdm._instances


@pytest.mark.parametrize(
    ("source", "count"),
    [
        (".", 3),
        ("*.png", 3),
        (["red.png", Path("green.png"), b"bytes", {"image": None}], 4),
        ([".", ["red.png"]], 4),
        ({"image": "red.png"}, 1),
        (b"bytes", 1),
        ("missing", 1),
        ("some.tar", None),
        ([".", "some.tar"], None),
        (iter(["red.png"]), None),
        (range(3), 3),
        ([], 0),
        ("*.jpg", None),
    ],
)
def test_sources_are_counted_if_that_is_cheap(
    source: Any, count: int | None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    Path("some.tar").write_bytes(b"") if "tar" in str(source) else None
    assert count_images(source) == count
