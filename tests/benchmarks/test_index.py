"""The geometry of the synthetic vectors, and the results of the index benchmark."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from benchmarks.index import bench_index, bench_search, main
from benchmarks.synthetic import CliplikeVectors, cliplike
from refusing import refused
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.types import Neighbors


@pytest.fixture(scope="module")
def data() -> CliplikeVectors:
    return cliplike(3000, 200, seed=3)


def test_vectors_are_unit_float32_rows_and_repeatable(data: CliplikeVectors) -> None:
    again, other = cliplike(3000, 200, seed=3), cliplike(3000, 200, seed=4)
    for name, count in (("gallery", 3000), ("text_queries", 200), ("image_queries", 200)):
        rows = getattr(data, name)
        assert (rows.shape, rows.dtype) == ((count, 512), np.float32)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
        np.testing.assert_array_equal(rows, getattr(again, name))
        assert not np.array_equal(rows, getattr(other, name))


def test_texts_lie_across_the_modality_gap(data: CliplikeVectors) -> None:
    image_image = np.median(data.image_queries @ data.gallery.T)
    text_image = np.median(data.text_queries @ data.gallery.T)
    assert 0.3 < image_image < 0.45
    assert 0.08 < text_image < 0.2
    assert np.sort(data.text_queries @ data.gallery.T)[:, -1].mean() < 0.55
    assert np.sort(data.image_queries @ data.gallery.T)[:, -1].mean() > 0.65


def test_gallery_has_near_duplicates_and_few_meaningful_directions(data: CliplikeVectors) -> None:
    similar = data.gallery @ data.gallery.T
    np.fill_diagonal(similar, 0)
    twins = (similar.max(axis=1) > 0.998).sum()
    assert 50 <= twins <= 70
    variance = np.linalg.svd(data.gallery - data.gallery.mean(0), compute_uv=False) ** 2
    assert np.cumsum(variance)[60] > 0.7 * variance.sum()


@pytest.mark.parametrize("bad", [{"n": 0}, {"n": 5, "queries": 0}, {"n": 5, "dim": 50, "rank": 49}])
def test_impossible_sizes_raise(bad: dict[str, int]) -> None:
    refused("rank at most dim - 2", cliplike, **bad)


def test_exact_index_has_recall_one(data: CliplikeVectors) -> None:
    bench = bench_index(ExactIndex(512), data, rounds=1)
    assert (bench.index, bench.count, bench.dim) == ("ExactIndex", 3000, 512)
    assert bench.text.recall_at_10 == bench.image.recall_at_10 == 1
    assert 2048 < bench.bytes_per_vector < 2100
    for search in (bench.text, bench.image):
        assert min(search.batch_qps, search.single_qps, search.exact_batch_qps, search.exact_single_qps) > 0
    assert bench.build_seconds > 0


class HalfIndex(ExactIndex):
    """Finds every second true neighbour only."""

    def search(self, vectors: Any, k: int) -> Neighbors:
        found = super().search(vectors, 2 * k)
        return Neighbors(found.keys[:, ::2], found.scores[:, ::2])


def test_index_that_finds_half_of_the_neighbours_has_recall_one_half(data: CliplikeVectors) -> None:
    assert bench_index(HalfIndex(512), data, rounds=1).text.recall_at_10 == pytest.approx(0.5)


def test_unsuitable_indexes_and_galleries_raise(data: CliplikeVectors) -> None:
    full = ExactIndex(512)
    full.add(np.arange(10), data.gallery[:10])
    small = CliplikeVectors(data.gallery[:9], data.text_queries, data.image_queries)
    refused("holds 10 vectors", bench_index, full, data)
    refused("not 9", bench_index, ExactIndex(512), small)
    refused("same keys", bench_search, full, ExactIndex(512), data.text_queries)
    refused("0 rounds", bench_search, full, full, data.text_queries, rounds=0)


def test_command_prints_json_or_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--vectors", "200", "--dim", "16"]
    main([*options, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["index", "count", "dim", "build_seconds", "bytes_per_vector", "text", "image"]
    rates = ["batch_qps", "single_qps", "exact_batch_qps", "exact_single_qps"]
    assert list(found["text"]) == list(found["image"]) == ["recall_at_10", *rates]
    main([*options, "--index", "exact"])
    said = capsys.readouterr().out
    assert "ExactIndex: 200 synthetic vectors of dim 16" in said and "recall@10" in said and "1.000" in said
