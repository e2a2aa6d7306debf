"""The geometry of the synthetic vectors, and the results of the index benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.comparison import bench_index
from benchmarks.curves import BATCH, SINGLE, front, measure, rate_at, ratios
from benchmarks.engines import Engine, K, Library, available, make
from benchmarks.guard import RegressionError, check_against, worse
from benchmarks.guard import main as guard
from benchmarks.index import main, vectors_of
from benchmarks.synthetic import CliplikeVectors, cliplike
from refusing import refused
from zsqretrieval.indexes.tuning import recall_of


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


def filled(name: str, rows: NDArray[np.float32]) -> Engine:
    engine = make(name, rows.shape[1])
    engine.build(rows)
    return engine


@pytest.mark.parametrize("name", available()[0])
def test_engine_finds_the_nearest_also_after_loading(
    name: str, data: CliplikeVectors, tmp_path: Path
) -> None:
    rows = data.gallery[:1000]
    queries = data.image_queries
    wanted = np.argsort(-queries @ rows.T)[:, :K]
    engine, again = filled(name, rows), make(name, 512)
    engine.save(tmp_path)
    again.load(tmp_path)
    for each in (engine, again):
        each.set(each.sweeps[-1][-1])
        assert recall_of(each.search(queries), wanted) > (0.85 if name == "usearch-i8" else 0.95)
        assert each.search(queries[:1]).shape == (1, K)


class Half(Library):
    """Finds every second true neighbour only."""

    def search(self, queries: NDArray[np.float32]) -> NDArray[Any]:
        return np.delete(super().search(queries), slice(1, None, 2), axis=1)


def test_engine_that_finds_half_of_the_neighbours_has_recall_one_half(data: CliplikeVectors) -> None:
    engine = Half("exact", 512)
    engine.build(data.gallery)
    wanted = np.argsort(-data.text_queries @ data.gallery.T)[:, :K]
    curve = measure({"half": engine}, data.text_queries, wanted, rounds=2)["half"]
    assert [point.recall for point in curve] == [0.5]
    assert curve[0].rates[BATCH].shape == (2,) and (curve[0].rates[SINGLE] > 0).all()
    refused("0 rounds", measure, {"half": engine}, data.text_queries, wanted, rounds=0)


def test_rate_at_a_recall_is_interpolated_along_the_front() -> None:
    recalls, rates = [0.85, 0.90, 0.92, 0.96, 0.99], [9e3, 8e3, 1e3, 2e3, 1e2]
    assert front(recalls, rates) == [(0.85, 9e3), (0.90, 8e3), (0.96, 2e3), (0.99, 1e2)]
    assert rate_at(0.93, recalls, rates) == pytest.approx(4e3)  # half way from 8,000 to 2,000
    assert rate_at(0.80, recalls, rates) == pytest.approx(9e3)
    assert rate_at(0.995, recalls, rates) is None


def test_ratio_is_that_to_the_fastest_that_reaches_the_recall() -> None:
    def at(*rates: float | None) -> dict[str, NDArray[np.float64]]:
        levels = zip(("0.90", "0.95", "0.98"), rates, strict=True)
        return {level: np.array([rate, 2 * rate]) for level, rate in levels if rate is not None}

    found = ratios({"own": at(80, 60, None), "a": at(40, 10, 1), "b": at(20, 30, None)}, "own", ["a", "b"])
    assert [one["ratio"] for one in found.values()] == [2, 2, None]
    assert [one["peer"] for one in found.values()] == ["a", "b", "a"]


def test_command_prints_json_with_every_ratio(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plot, cache = tmp_path / "pareto.svg", tmp_path / "cache"
    names = "hnsw,exact,hnswlib"
    options = ["--vectors", "500", "--dim", "16", "--rounds", "1", "--index", "hnsw", "--cache", str(cache)]
    main([*options, "--systems", names, "--json", "--plot", str(plot)])
    facts = json.loads(capsys.readouterr().out)
    for ratio in ("qps_ratio_to_hnswlib", "qps_ratio_to_best_peer"):
        assert list(facts[ratio]) == ["0.90", "0.95", "0.98"] and facts[ratio]["0.90"] > 0
    assert min(facts["build_ratio_to_hnswlib"], facts["memory_ratio_to_hnswlib"]) > 0
    assert (facts["index"], facts["data"], facts["count"], facts["dim"]) == ("hnsw", "synthetic", 500, 16)
    assert list(facts["systems"]) == names.split(",")
    assert facts["systems"]["exact"]["curve"][0]["recall"] == 1
    assert facts["scaling"]["hnsw"]["batch_speedup"] > 0 and facts["exact"]["share_of_product"] > 0
    assert "<svg" in plot.read_text()
    built = json.loads((cache / "hnswlib" / "build.json").read_text())
    assert facts["systems"]["hnswlib"]["build_cpu_s"] == built["cpu_s"]
    (file := tmp_path / "facts.json").write_text(json.dumps({**facts, "build_ratio_to_hnswlib": 1e-3}))
    with pytest.raises(RegressionError, match=r"build_ratio_to_hnswlib was 0\.001 and is"):
        main([*options, "--threads", "1", "--systems", "hnsw,hnswlib", "--compare", str(file)])
    said = capsys.readouterr().out
    assert "hnsw to hnswlib in batch" in said and "memory, bytes/vector" in said
    assert json.loads((cache / "hnswlib" / "build.json").read_text()) == built  # of the first run


def test_vectors_of_files_are_scaled_and_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((20, 4), 2, np.float16))
    np.save(tmp_path / "b.npy", np.eye(4))
    gallery, queries, said = vectors_of(str(tmp_path / "a.npy"), str(tmp_path / "b.npy"), 512)
    assert (gallery == 0.5).all() and queries.shape == (4, 4) and said == "a.npy, b.npy"


def test_unsuitable_input_is_refused(data: CliplikeVectors, tmp_path: Path) -> None:
    (text := tmp_path / "text.npy").write_text("words")
    refused("needs 10 vectors", bench_index, data.gallery[:9], data.text_queries, ["exact"], index="exact")
    refused("'hnsw' is not among", bench_index, data.gallery, data.text_queries, ["exact"], index="hnsw")
    refused("text or image, not 'sound'", vectors_of, "100", "sound", 512)
    refused("cannot be read as a .npy file", vectors_of, str(text), "text", 512)


@pytest.mark.parametrize(
    ("name", "before", "after", "fails"),
    [
        ("qps_ratio_to_hnswlib/0.90", 4.0, 3.3, False),
        ("qps_ratio_to_hnswlib/0.90", 4.0, 3.1, True),
        ("build_ratio_to_hnswlib", 0.1, 0.119, False),
        ("build_ratio_to_hnswlib", 0.1, 0.13, True),
        ("scaling/hnsw/build_speedup", 1.9, 1.0, True),
        ("qps_ratio_to_hnswlib/0.90", 4.0, None, True),
        ("batch_s", 1.0, 9.0, False),
    ],
)
def test_guard_fails_on_a_worse_ratio(name: str, before: float, after: float | None, fails: bool) -> None:
    def facts(value: float | None) -> dict[str, Any]:
        *tables, key = name.split("/")
        found: dict[str, Any] = {key: value}
        for table in reversed(tables):
            found = {table: found}
        return found

    assert bool(worse(facts(after), facts(before))) == fails


def test_guard_refuses_another_measurement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (old := tmp_path / "old.json").write_text('{"count": 100, "memory_ratio": 1}')
    (new := tmp_path / "new.json").write_text('{"count": 10, "memory_ratio": 1}')
    refused("measured count 100, the new run 10", guard, [str(new), str(old)])
    new.write_text("[]")
    refused("is not a JSON object", guard, [str(new), str(old)])
    new.write_text("{}")
    refused("has no ratios", check_against, {}, new)
    guard([str(old), str(old)])
    assert "no ratio is worse" in capsys.readouterr().out
