"""HNSWIndex: recall, settings, dependency, and searches during an addition."""

from __future__ import annotations

import sys
import threading
import time

import numpy as np
import pytest

from benchmarks.synthetic import cliplike
from index_data import vectors
from zsqretrieval.errors import InvalidInputError, MissingDependencyError
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.indexes.hnsw import HNSWIndex
from zsqretrieval.indexes.tuning import recall_of
from zsqretrieval.protocols import Configurable, FilteredIndex


def test_recall_at_the_defaults_on_text_like_queries() -> None:
    data = cliplike(3000, 100, dim=128, seed=1)
    index, truth = HNSWIndex(128), ExactIndex(128)
    for each in (index, truth):
        each.add(np.arange(3000), data.gallery)
    for queries in (data.text_queries, data.image_queries):
        assert recall_of(index.search(queries, 10).keys, truth.search(queries, 10).keys) >= 0.97


def test_config_rebuilds_the_index() -> None:
    index = HNSWIndex(8, M=5, ef_construction=50, ef=33, fingerprint="f", seed=3, threads=2)
    assert isinstance(index, FilteredIndex) and isinstance(index, Configurable)
    assert HNSWIndex.from_config(index.config).config == index.config
    with pytest.raises(InvalidInputError, match="exactly"):
        HNSWIndex.from_config({"dim": 8})


@pytest.mark.parametrize(
    "settings",
    [
        {"ef": 0},
        {"ef": 2**40},
        {"ef_construction": 0},
        {"threads": 0},
        {"seed": -1},
        {"seed": 0.5},
        {"ef": "9"},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError, match=f"{next(iter(settings))} must be an integer"):
        HNSWIndex(8, **settings)  # type: ignore[arg-type]


def test_ef_changes_the_recall_and_is_checked() -> None:
    index = HNSWIndex(16, M=2, threads=1)
    index.add(np.arange(2500), vectors(2500, 16))
    queries = vectors(100, 16, seed=1)
    truth = ExactIndex(16)
    truth.add(np.arange(2500), vectors(2500, 16))
    wanted = truth.search(queries, 5).keys
    recall = {}
    for ef in (10, 400):
        index.ef = ef
        recall[ef] = (index.search(queries, 5).keys == wanted).mean()
    assert recall[400] > recall[10]
    with pytest.raises(InvalidInputError, match="ef must be"):
        index.ef = 0
    assert index.ef == 400


def test_error_without_hnswlib_names_the_alternatives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hnswlib", None)
    with pytest.raises(MissingDependencyError) as caught:
        HNSWIndex(8)
    for part in ("pip install hnswlib", "HNSWLIB_NO_NATIVE=1", "ExactIndex", "compiler"):
        assert part in str(caught.value)


def test_searches_run_between_the_pieces_of_a_long_addition() -> None:
    index = HNSWIndex(64, ef_construction=400, threads=1)
    index.add(np.arange(100), vectors(100, 64))
    rows = vectors(3000, 64, seed=2, rank=40)
    adding = threading.Thread(target=lambda: index.add(np.arange(1000, 4000), rows))
    began = time.perf_counter()
    adding.start()
    sizes = set()
    while adding.is_alive():
        index.search(rows[:1], 1)
        sizes.add(len(index))
    took = time.perf_counter() - began
    assert len(sizes) >= 5, f"only {len(sizes)} searches came between in {took:.1f} s"
    assert len(index) == 3100
