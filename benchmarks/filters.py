"""Time and recall of filtered searches: the filter in SQL, then the nearest among the images it admits.

python -m benchmarks.filters --images 100000 --json
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.output import command_line, run, write_results
from benchmarks.synthetic import CliplikeVectors, cliplike
from zsqretrieval.album.catalog import Catalog
from zsqretrieval.album.filters import Field, Filter
from zsqretrieval.data.loader import NewImage
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.indexes.hnsw import HNSWIndex
from zsqretrieval.protocols import Index
from zsqretrieval.search.among import nearest_among

_K = 10
_SHARES = (0.01, 0.1, 0.5)
_SCATTERED, _ALIKE = "scattered", "alike"  # the admitted images: drawn at random, or alike among themselves
_BATCH = 2000
_ROUNDS = 9  # of a filter
_SINGLES = 100  # queries that are timed


@dataclass(frozen=True, slots=True)
class FilterBench:
    """Results of one filter; times are medians, of one filter or one query."""

    images: str  # "scattered" or "alike"
    share: float  # of the images that the filter admits
    matching_ms: float  # the filter, reading all metadata
    indexed_ms: float  # with the field indexed
    hnsw_ms: float  # the nearest ten with HNSWIndex
    exact_ms: float  # with ExactIndex
    text_recall_at_10: float  # of HNSWIndex, with text-like queries
    image_recall_at_10: float  # with image-like queries


def fill(catalog: Catalog, data: CliplikeVectors) -> None:
    """Add a gallery with metadata like that of photographs, and a number in 0..1 for each kind of share."""
    count = len(data.gallery)
    random = np.random.default_rng(0)
    ranks = {
        _SCATTERED: random.permutation(count),
        _ALIKE: np.argsort(np.argsort(-data.gallery @ data.image_queries[0])),
    }
    for start in range(0, count, _BATCH):
        catalog.add(
            [
                NewImage(
                    id=f"{n}.jpg",
                    source=f"/photos/2019/{n}.jpg",
                    bytes=3_000_000 + n,
                    digest=f"{n:064x}",
                    caption=f"photograph number {n}",
                    metadata={
                        "taken": f"20{n % 20:02}-07-14T12:{n % 60:02}:10",
                        "camera": ("FUJIFILM X100", "Canon EOS 5D", "NIKON D90")[n % 3],
                        "latitude": 47.0 + n % 100 / 100,
                        "longitude": 8.0,
                        "tags": ["holiday", "beach"] if n % 2 else ["dog"],
                        **{name: int(rank[n]) / count for name, rank in ranks.items()},
                    },
                    width=4000,
                    height=3000,
                    vector=data.gallery[n],
                )
                for n in range(start, min(start + _BATCH, count))
            ]
        )


def bench_filters(
    data: CliplikeVectors, folder: Path, *, rounds: int = _ROUNDS, singles: int = _SINGLES
) -> list[FilterBench]:
    """Measure filters that admit 1, 10 and 50 % of a gallery, in an album's catalog in an empty folder.

    Raises:
        InvalidInputError: the gallery has fewer than 1,000 vectors.
    """
    if len(data.gallery) < 100 * _K:
        raise InvalidInputError(f"1 % must be {_K} images: give 1,000, not {len(data.gallery)}")
    dim = data.gallery.shape[1]
    hnsw, exact = HNSWIndex(dim), ExactIndex(dim)
    keys = np.arange(1, len(data.gallery) + 1)
    for index in (hnsw, exact):
        index.add(keys, data.gallery)
    results = []
    with Catalog.create(folder / "catalog.sqlite", dim=dim) as catalog:
        fill(catalog, data)
        wanted = [(kind, share) for kind in (_SCATTERED, _ALIKE) for share in _SHARES]
        filters = [Field(kind) < share for kind, share in wanted]
        unindexed = [_milliseconds(_matching(catalog, filter), rounds) for filter in filters]
        catalog.fields.index([_SCATTERED, _ALIKE])
        for (kind, share), filter, slow in zip(wanted, filters, unindexed, strict=True):
            admitted = catalog.fields.matching(filter)

            def search(
                index: Index, queries: NDArray[np.float32], among: NDArray[np.int64]
            ) -> NDArray[np.int64]:
                return nearest_among(index, queries, _K, among, catalog.log.get).keys

            def median(index: Index, among: NDArray[np.int64]) -> float:
                queries = (query[None] for query in data.text_queries[: singles + 1])
                return _milliseconds(lambda: search(index, next(queries), among), singles)

            def recall(queries: NDArray[np.float32], among: NDArray[np.int64]) -> float:
                found, best = search(hnsw, queries, among), exact.search_among(queries, _K, among).keys
                return float((found[:, :, None] == best[:, None]).any(axis=2).mean())

            results.append(
                FilterBench(
                    images=kind,
                    share=share,
                    matching_ms=slow,
                    indexed_ms=_milliseconds(_matching(catalog, filter), rounds),
                    hnsw_ms=median(hnsw, admitted),
                    exact_ms=median(exact, admitted),
                    text_recall_at_10=recall(data.text_queries, admitted),
                    image_recall_at_10=recall(data.image_queries, admitted),
                )
            )
    return results


def _matching(catalog: Catalog, filter: Filter) -> Callable[[], object]:
    return lambda: catalog.fields.matching(filter)


def _milliseconds(call: Callable[[], object], times: int) -> float:
    """Median duration of a call, after one that is not counted."""
    call()
    durations = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        durations.append(time.perf_counter() - begin)
    return 1000 * float(np.median(durations))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = command_line(
        "filters",
        "Measure filtered searches on synthetic CLIP-like vectors.",
        images=(20_000, "Images in the album, at least 1,000."),
        dim=(512, "Length of a vector, at least 8."),
    )
    given = parser.parse_args(arguments)
    data = cliplike(given.images, dim=given.dim, rank=min(96, given.dim - 2))
    with tempfile.TemporaryDirectory() as folder:
        found = bench_filters(data, Path(folder))
    write_results(
        {"images": given.images, "dim": given.dim, "filters": [asdict(one) for one in found]},
        (
            "admits",
            "images",
            "filter, ms",
            "indexed",
            "nearest: HNSW, ms",
            "exact",
            "recall@10: texts",
            "images",
        ),
        [
            (
                f"{one.share:.0%}",
                one.images,
                *(f"{ms:.1f}" for ms in (one.matching_ms, one.indexed_ms, one.hnsw_ms, one.exact_ms)),
                f"{one.text_recall_at_10:.3f}",
                f"{one.image_recall_at_10:.3f}",
            )
            for one in found
        ],
        [f"{given.images} images with synthetic vectors of dim {given.dim}"],
        as_json=given.json,
    )


if __name__ == "__main__":
    run(main)
