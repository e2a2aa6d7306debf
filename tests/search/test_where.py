"""Searching among the images that a filter selects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from zsqretrieval import Field, Filter, HNSWIndex, Retriever
from zsqretrieval.album.fields import FieldTable
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.indexes.compressed import CompressedIndex
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator, ToyIndex

ENCODER = ToyEncoder()
COUNT = 40
INDEXES = {
    "exact": lambda: ExactIndex(ENCODER.dim, fingerprint=ENCODER.fingerprint),
    "compressed": lambda: CompressedIndex(ENCODER.dim, fingerprint=ENCODER.fingerprint),
    "hnsw": lambda: HNSWIndex(ENCODER.dim, fingerprint=ENCODER.fingerprint),
    "plain": lambda: ToyIndex(ENCODER.dim, ENCODER.fingerprint),  # cannot filter
}


def made(index: str = "exact", generator: Any = None) -> Retriever:
    retriever = Retriever(ENCODER, INDEXES[index](), generator)
    colours = np.random.default_rng(5).integers(0, 256, (COUNT, 3))
    retriever.add(
        {"image": PILImage.new("RGB", (6, 4), tuple(map(int, colour))), "year": 1980 + n}
        for n, colour in enumerate(colours)
    )
    return retriever


ALBUMS = {name: made(name) for name in INDEXES}


@pytest.mark.parametrize("index", INDEXES)
@given(first=st.integers(1978, 2022), k=st.integers(1, 50), offset=st.integers(0, 10))
@settings(max_examples=25, deadline=None)
def test_search_gives_the_best_of_the_selected_images(index: str, first: int, k: int, offset: int) -> None:
    retriever = ALBUMS[index]
    whole = [hit.id for hit in retriever.search("red", COUNT) if hit.metadata["year"] >= first]
    found = retriever.search("red", k, offset=offset, where=Field("year") >= first)
    assert found.ids == whole[offset : offset + k]


def test_filter_holds_for_batches_expansion_reranking_and_near_duplicates() -> None:
    retriever = made(generator=ToyGenerator())
    late = Field("year") > 2009
    retriever.questions.generate(n=2, style="search")
    for options in ({}, {"rerank": None}, {"collapse": 0.999}, {"expand": True}, {"diversity": 0.5}):
        for ranking in retriever.search(["red", "blue"], 8, where=late, **options):  # type: ignore[call-overload]
            years = [hit.metadata["year"] for hit in ranking]
            assert len(years) == 8 and min(years) > 2009, options


def test_parsed_filter_selects_like_fields() -> None:
    retriever = ALBUMS["exact"]
    parsed = Filter.parse("year > 2009 and not year in [2011, 2013]")
    same = (Field("year") > 2009) & ~Field("year").isin([2011, 2013])
    assert retriever.search("red", 40, where=parsed).ids == retriever.search("red", 40, where=same).ids
    assert len(retriever.search("red", 40, where=parsed)) == 8


def test_no_selected_image_gives_no_hits_and_an_unknown_field_is_named() -> None:
    retriever = ALBUMS["exact"]
    assert len(retriever.search("red", where=Field("year") > 3000)) == 0
    with pytest.raises(InvalidInputError, match=r"yaer.*year"):
        retriever.search("red", where=Field("yaer") > 2000)


def test_removed_images_are_not_found_again() -> None:
    retriever = made("hnsw")
    retriever.remove([one.id for one in retriever.records() if one.metadata["year"] >= 2010])
    found = retriever.search("red", 20, where=Field("year") > 2005)
    assert sorted(hit.metadata["year"] for hit in found) == [2006, 2007, 2008, 2009]


@pytest.mark.parametrize("expand", [False, True])
def test_image_that_is_removed_after_it_was_selected_is_left_out(
    monkeypatch: pytest.MonkeyPatch, expand: bool
) -> None:
    retriever = made(generator=ToyGenerator())
    retriever.questions.generate(n=1, style="search")
    late = Field("year") > 2009
    (best,) = retriever.search("red", 1, where=late, rerank=None)
    matching = FieldTable.matching

    def matched(table: FieldTable, where: Filter) -> Any:
        keys = matching(table, where)
        retriever.remove(best.id)
        return keys

    monkeypatch.setattr(FieldTable, "matching", matched)
    found = retriever.search("red", 20, where=late, rerank=None, expand=expand)
    assert len(found) == 9 and best.id not in found.ids
