"""The measurement of :mod:`benchmarks.index`: builds, curves, memory and threads of several engines."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.curves import BATCH, SINGLE, Point, measure, rates_at_levels, ratios
from benchmarks.engines import PEERS, Engine, K, make
from benchmarks.memory import loaded_memory
from benchmarks.timing import timed
from zsqretrieval._util.files import write_whole
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.types import Progress

BASELINE = "hnswlib"
_PRODUCT_ROWS = 100_000  # of the comparison of exact search with the matrix product alone
_SCALING_ROUNDS = 10  # batches for each build: one takes a twentieth of a second
_SCALING_ROWS = 50_000  # built with one thread and with several
_BLOCK = 4096
_PACKAGES = ("numpy", "faiss-cpu", "hnswlib", "usearch", "scann", "voyager")


def bench_index(
    gallery: NDArray[np.float32],
    queries: NDArray[np.float32],
    names: Sequence[str],
    *,
    index: str,
    rounds: int = 5,
    threads: int = 2,
    cache: Path | None = None,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Build, measure and compare engines on the same vectors, as JSON; ``docs/indexes.md`` explains the keys.

    Args:
        gallery: float32 [n, dim], unit rows, at least 10.
        queries: float32 [q, dim], unit rows.
        names: engines, see :func:`benchmarks.engines.available`.
        index: the engine whose ratios to the others are reported.
        rounds: timings of each setting.
        threads: compared with one thread, for the library's indexes; 1 for no comparison.
        cache: a folder where the built peers are kept for the next run.
        progress: called with the steps so far.

    Raises:
        InvalidInputError: too few vectors or rounds, or ``index`` is not among the names.
    """
    if len(gallery) < K:
        raise InvalidInputError(f"recall@{K} needs {K} vectors in the gallery, not {len(gallery)}")
    if index not in names:
        raise InvalidInputError(f"the index {index!r} is not among the systems {', '.join(names)}")
    faiss.omp_set_num_threads(1)
    wanted = faiss.knn(queries, gallery, K, metric=faiss.METRIC_INNER_PRODUCT)[1]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    with tempfile.TemporaryDirectory() as folder:
        place = Path(cache or folder)
        engines, systems = _build(names, gallery, place, progress)
        curves = measure(engines, queries, wanted, rounds=rounds, progress=progress)
        np.save(Path(folder) / "queries.npy", queries)
        for name, points in curves.items():
            shown = next((point for point in points if point.recall >= 0.95), points[-1])
            systems[name] |= {
                "curve": [point.facts() for point in points],
                "memory": _memory(name, engines[name], gallery, place, Path(folder), shown),
            }
    rates = {
        way: {name: rates_at_levels(points, way) for name, points in curves.items()}
        for way in (BATCH, SINGLE)
    }
    for name, system in systems.items():
        system["qps"] = {
            way: {level: float(np.median(each)) for level, each in rates[way][name].items()} for way in rates
        }
    return {
        "index": index,
        "count": len(gallery),
        "dim": gallery.shape[1],
        "queries": len(queries),
        "rounds": rounds,
        "machine": {
            "processor": _processor(), "cores": os.cpu_count(), "load_before": load,
            "measured": date.today().isoformat(),
            "packages": {name: _version(name) for name in _PACKAGES},
        },
        **_ratios(index, systems, rates),
        "exact": _exact_share(gallery, queries, rounds),
        "scaling": {
            name: _scaling(name, gallery, queries, rounds, threads)
            for name in names
            if threads > 1 and name in ("compressed", "hnsw")
        },
        "systems": systems,
    }  # fmt: skip


def _build(
    names: Sequence[str], gallery: NDArray[np.float32], place: Path, progress: Progress
) -> tuple[dict[str, Engine], dict[str, dict[str, Any]]]:
    """Filled engines and their CPU seconds; peers come from the folder if they are there."""
    digest = hashlib.sha256(np.ascontiguousarray(gallery).data).hexdigest()[:16]
    engines, systems = {}, {}
    for done, name in enumerate(names):
        progress("building", done, len(names))
        engine, folder = make(name, gallery.shape[1]), place / name
        facts = folder / "build.json"
        built = json.loads(facts.read_text()) if facts.exists() and name in PEERS else {}
        if built.get("digest") == digest:
            engine.load(folder / "index")
        else:
            built = {"digest": digest, "cpu_s": timed(lambda engine=engine: engine.build(gallery))[1]}  # type: ignore[misc]
            shutil.rmtree(folder, ignore_errors=True)
            (folder / "index").mkdir(parents=True)
            engine.save(folder / "index")
            write_whole(facts, [json.dumps(built)])
        engines[name], systems[name] = engine, {"build_cpu_s": built["cpu_s"]}
    return engines, systems


def _memory(
    name: str, engine: Engine, gallery: NDArray[np.float32], place: Path, folder: Path, point: Point
) -> dict[str, float] | None:
    saved = place / name / "index"
    found = loaded_memory(name, gallery.shape[1], saved, folder / "queries.npy", point.setting)
    disk = sum(file.stat().st_size for file in saved.rglob("*") if file.is_file())
    per = {f"{kind}_bytes_per_vector": size / len(gallery) for kind, size in (found or {}).items()}
    return {**per, "disk_bytes_per_vector": disk / len(gallery)}


def _ratios(
    index: str, systems: Mapping[str, Mapping[str, Any]], rates: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Of the index to the baseline and to the fastest peer at each recall, None without one of the two."""
    peers = [name for name in systems if name in PEERS and name != index]
    found: dict[str, Any] = {}
    for way, suffix in ((BATCH, ""), (SINGLE, "_one_by_one")):
        for title, others in (("hnswlib", [BASELINE] if BASELINE in peers else []), ("best_peer", peers)):
            each = ratios(rates[way], index, others)
            found[f"qps_ratio_to_{title}{suffix}"] = {level: one["ratio"] for level, one in each.items()}
            found[f"qps_spread_to_{title}{suffix}"] = {level: one["spread"] for level, one in each.items()}
            if title == "best_peer":
                found[f"best_peer{suffix}"] = {level: one["peer"] for level, one in each.items()}
    ours, base = systems[index], systems.get(BASELINE)
    found["build_ratio_to_hnswlib"] = ours["build_cpu_s"] / base["build_cpu_s"] if base else None
    for key, kinds in (("", ["anonymous"]), ("_with_mapped_files", ["anonymous", "file"])):
        names = [f"{kind}_bytes_per_vector" for kind in kinds]
        measured = base is not None and names[0] in ours["memory"]
        found[f"memory_ratio_to_hnswlib{key}"] = (
            sum(ours["memory"][name] for name in names) / sum(base["memory"][name] for name in names)
            if base is not None and measured
            else None
        )
    return found


def _exact_share(gallery: NDArray[np.float32], queries: NDArray[np.float32], rounds: int) -> dict[str, float]:
    """Exact search of one batch beside the matrix product alone, medians of rounds in turns."""
    rows = gallery[:_PRODUCT_ROWS]
    exact = ExactIndex(rows.shape[1])
    exact.add(np.arange(len(rows)), rows)

    def product() -> None:
        for start in range(0, len(rows), _BLOCK):
            np.matmul(queries, rows[start : start + _BLOCK].T)

    calls: list[Callable[[], Any]] = [product, lambda: exact.search(queries, K)]
    times = np.array([[timed(call)[1] for call in calls] for _ in range(rounds)])
    product_s, search_s = np.median(times, axis=0).tolist()
    return {
        "count": len(rows), "product_cpu_s": product_s, "search_cpu_s": search_s,
        "share_of_product": float(np.median(times[:, 0] / times[:, 1])),
    }  # fmt: skip


def _scaling(
    name: str, gallery: NDArray[np.float32], queries: NDArray[np.float32], rounds: int, threads: int
) -> dict[str, float]:
    """Wall seconds of a build and of a batch with one thread and with several."""
    rows = gallery[:_SCALING_ROWS]
    engines: dict[int, Engine] = {}
    builds, times = np.empty((rounds, 2)), np.empty((_SCALING_ROUNDS * rounds, 2))
    for number in range(len(builds)):
        for place, count in enumerate((1, threads)):
            faiss.omp_set_num_threads(count)
            engine = engines[count] = make(name, rows.shape[1], threads=count)
            builds[number, place] = timed(lambda engine=engine: engine.build(rows))[0]  # type: ignore[misc]
    for number in range(len(times)):
        for place, (count, engine) in enumerate(engines.items()):
            faiss.omp_set_num_threads(count)
            times[number, place] = timed(lambda engine=engine: engine.search(queries))[0]  # type: ignore[misc]
    faiss.omp_set_num_threads(1)
    return {
        "threads": threads, "count": len(rows),
        "build_s": float(np.median(builds[:, 0])),
        "build_speedup": float(np.median(builds[:, 0] / builds[:, 1])),
        "batch_s": float(np.median(times[:, 0])),
        "batch_speedup": float(np.median(times[:, 0] / times[:, 1])),
    }  # fmt: skip


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
