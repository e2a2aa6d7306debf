"""A synthetic slice of LAION from ingest to removal, in an album and in Milvus: times and memory.

python -m benchmarks.laion_slice --rows 1000000 --captions captions.txt --json

Vectors are synthetic (:mod:`benchmarks.synthetic`), captions those of a file, if given. Every step runs
in a process of its own, whose largest memory is reported with it.
"""

from __future__ import annotations

import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from benchmarks.output import command_line, run, write_results
from benchmarks.synthetic import cliplike
from zsqretrieval.album.filters import Field
from zsqretrieval.retriever import Retriever
from zsqretrieval.types import Image

_DIM = 512
_SHARD = 100_000
_QUERIES = 200
_K = 10
_UNSAFE, _UNKNOWN, _MARKED = 0.03, 0.05, 0.06  # shares of LAION's rows, about
_WIDE = Field("width") >= 1000  # a tenth of the rows


@dataclass(frozen=True, slots=True)
class Step:
    """One step, with what it found."""

    name: str
    seconds: float
    memory: float  # largest resident size of its process, bytes
    found: dict[str, float] = field(default_factory=dict)


class SliceEncoder:
    """Encodes ``"query n"`` as the n-th text-like query of the slice; images are never encoded."""

    dim = _DIM
    fingerprint = "synthetic slice"

    def __init__(self, queries: NDArray[np.float32]) -> None:
        self._queries = queries

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Vectors float32 [n, dim]."""
        return self._queries[[int(text.split()[1]) for text in texts]]

    def encode_image(self, images: Sequence[Image], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Refuse: a slice has no images."""
        raise NotImplementedError


def write_slice(folder: Path, rows: int, captions: Sequence[str]) -> dict[str, float]:
    """Write embeddings and metadata as clip-retrieval does, with LAION's columns, and the queries."""
    data = cliplike(rows, _QUERIES, dim=_DIM)
    np.save(folder / "queries.npy", data.text_queries)
    random = np.random.default_rng(0)
    for name in ("img_emb", "metadata"):
        (folder / "slice" / name).mkdir(parents=True)
    for shard, start in enumerate(range(0, rows, _SHARD)):
        vectors = data.gallery[start : start + _SHARD]
        n = len(vectors)
        numbers = range(start, start + n)
        kind = random.random(n)
        punsafe = np.where(kind < _UNSAFE, 0.9, 0.01).astype(np.float32)
        table = pa.table(
            {
                "url": [f"https://images.example.com/{i:012}.jpg" for i in numbers],
                "caption": [captions[i % len(captions)] for i in numbers],
                "width": np.where(random.random(n) < 0.1, 1024, 512).astype(np.int32),
                "height": np.full(n, 512, np.int32),
                "similarity": random.uniform(0.28, 0.4, n),
                "punsafe": pa.array(punsafe, mask=(kind >= _UNSAFE) & (kind < _UNSAFE + _UNKNOWN)),
                "pwatermark": np.where(random.random(n) < _MARKED, 0.95, 0.1).astype(np.float32),
                "NSFW": ["UNLIKELY"] * n,
                "hash": random.integers(-(2**63), 2**63, n),
            }
        )
        np.save(folder / "slice" / "img_emb" / f"img_emb_{shard:04}.npy", vectors.astype(np.float16))
        parquet.write_table(table, folder / "slice" / "metadata" / f"metadata_{shard:04}.parquet")
    return {"rows": rows}


def opened(folder: Path, place: str) -> Retriever:
    """The album or collection of a folder."""
    encoder = SliceEncoder(np.load(folder / "queries.npy"))
    return Retriever.open(str(folder / place) if place == "album" else place, encoder=encoder)


def make(folder: Path, place: str) -> dict[str, float]:
    """Make an empty album."""
    Retriever(SliceEncoder(np.load(folder / "queries.npy")), path=folder / place).close()
    return {}


def ingest(folder: Path, place: str) -> dict[str, float]:
    """Add the slice through the rules of safety; an album that was opened indexes later."""
    with opened(folder, place) as retriever:
        begin = time.perf_counter()
        report = retriever.add_embeddings(folder / "slice")
        seconds = time.perf_counter() - begin
        rows = len(retriever)
    denied = sum(report.denied.values())
    return {"rows": rows, "denied": denied, "rows_per_second": (rows + denied) / seconds}


def index(folder: Path, place: str) -> dict[str, float]:
    """Build the index of all vectors, and save it."""
    with opened(folder, place) as retriever:
        begin = time.perf_counter()
        built = len(retriever.index)
        seconds = time.perf_counter() - begin
        retriever.save()
    return {"vectors": built, "build_seconds": seconds}


def search(folder: Path, place: str) -> dict[str, float]:
    """Search with and without a filter, and compare with exact search over the rows that are allowed."""
    begin = time.perf_counter()
    retriever = opened(folder, place)
    found = {"open_seconds": time.perf_counter() - begin}
    begin = time.perf_counter()
    retriever.search("query 0", _K)
    found["first_answer_seconds"] = time.perf_counter() - begin
    queries = [f"query {n}" for n in range(_QUERIES)]
    with retriever:
        for name, where, some in (("plain", None, queries), ("filtered", _WIDE, queries[:20])):
            times, hits = [], []
            for query in some:
                begin = time.perf_counter()
                hits.append([hit.id for hit in retriever.search(query, _K, where=where)])
                times.append(time.perf_counter() - begin)
            found[f"{name}_ms"] = 1000 * float(np.median(times))
            right = exact(folder, len(some), where is not None)
            shares = [len({*one} & {*best}) / _K for one, best in zip(hits, right, strict=True)]
            found[f"{name}_recall"] = float(np.mean(shares))
    return found


def exact(folder: Path, queries: int, wide: bool) -> list[list[str]]:
    """The URLs of the nearest allowed rows of each query, by comparing all."""
    asked = np.load(folder / "queries.npy")[:queries]
    scores = np.full((queries, 0), 0, np.float32)
    names = np.array([], object)
    gone = {*(folder / "removed.txt").read_text().split()} if (folder / "removed.txt").exists() else set()
    for file in sorted((folder / "slice" / "img_emb").iterdir()):
        number = file.stem.removeprefix("img_emb_")
        table = parquet.read_table(folder / "slice" / "metadata" / f"metadata_{number}.parquet").to_pandas()
        allowed = (table["punsafe"] <= 0.45) & (table["pwatermark"] <= 0.8)
        allowed &= (table["width"] >= 1000) | (not wide)
        allowed &= ~table["url"].isin(gone)
        here = asked @ np.load(file)[allowed.to_numpy()].astype(np.float32).T
        scores = np.concatenate([scores, here], axis=1)
        names = np.concatenate([names, table["url"][allowed].to_numpy()])
        best = np.argsort(-scores, axis=1)[:, :_K]
        kept = np.unique(best)
        scores, names = scores[:, kept], names[kept]
    return [[str(name) for name in names[row]] for row in np.argsort(-scores, axis=1)[:, :_K]]


def remove(folder: Path, place: str) -> dict[str, float]:
    """Remove what the queries find, and search again."""
    with opened(folder, place) as retriever:
        names = [hit.id for n in range(100) for hit in retriever.search(f"query {n}", _K)]
        begin = time.perf_counter()
        report = retriever.remove_listed(names)
        seconds = time.perf_counter() - begin
        (folder / "removed.txt").write_text("\n".join(names))
        left = {hit.id for n in range(100) for hit in retriever.search(f"query {n}", _K)}
    return {
        "removed": report.removed,
        "found_again": len(left & set(names)),
        "remove_seconds": seconds,
    }


def _child(step: Callable[..., dict[str, float]], arguments: Sequence[Any], results: Any) -> None:
    found = step(*arguments)
    results.put((found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0))


def apart(name: str, step: Callable[..., dict[str, float]], *arguments: Any) -> Step:
    """Run a step in a process of its own.

    Linux counts the memory of the process that starts another as that of the other, so all steps run apart.
    """
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    begin = time.perf_counter()
    process = context.Process(target=_child, args=(step, arguments, results))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the step {name!r} failed")
    found, memory = results.get()
    return Step(name, time.perf_counter() - begin, memory, found)


def bench_slice(
    folder: Path, rows: int, captions: Sequence[str], *, milvus: str | None, album: bool = True
) -> list[Step]:
    """All steps, in an empty folder; ``milvus`` is the type of index of a collection."""
    steps = [apart("write", write_slice, folder, rows, captions)]
    if album:
        steps += [
            apart(name, step, folder, "album")
            for name, step in (
                ("make", make), ("ingest", ingest), ("index", index), ("search", search), ("remove", remove),
                ("search again", search),
            )
        ]  # fmt: skip
    if milvus:
        (folder / "removed.txt").unlink(missing_ok=True)
        place = f"milvus:{folder / 'slice.db'}?index={milvus}"
        steps += [
            apart(f"milvus {name}", step, folder, place)
            for name, step in (("ingest", ingest), ("search", search), ("remove", remove))
        ]
    return steps


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = command_line(
        "laion_slice",
        "Take a synthetic slice of LAION from ingest to removal.",
        rows=(100_000, "Rows of the slice."),
    )
    parser.add_argument("--captions", type=Path, help="text file with a caption a line")
    parser.add_argument(
        "--milvus", nargs="?", const="HNSW", metavar="INDEX",
        help="also in a collection of Milvus Lite [its index: HNSW]",
    )  # fmt: skip
    parser.add_argument("--no-album", action="store_true", help="only in Milvus")
    parser.add_argument("--work", type=Path, help="folder for the slice, emptied before [default: temporary]")
    given = parser.parse_args(arguments)
    captions = ["a photograph"]
    if given.captions is not None:
        captions = given.captions.read_text(encoding="utf-8").splitlines()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.work or Path(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        steps = bench_slice(folder, given.rows, captions, milvus=given.milvus, album=not given.no_album)
    write_results(
        {"rows": given.rows, "steps": [asdict(one) for one in steps]},
        ("step", "seconds", "memory, GB", "found"),
        [
            (
                one.name, f"{one.seconds:.1f}", f"{one.memory / 1e9:.2f}",
                ", ".join(f"{name} {value:.4g}" for name, value in one.found.items()),
            )
            for one in steps
        ],
        [f"{given.rows:,} synthetic rows of dim {_DIM}"],
        as_json=given.json,
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
