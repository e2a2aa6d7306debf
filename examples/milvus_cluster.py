"""Put vectors into a collection of Milvus, search it, and print what it takes.

    python examples/milvus_cluster.py
    python examples/milvus_cluster.py --uri http://localhost:19530 --index DISKANN --shards 2 --rows 1000000

Without ``--uri`` Milvus runs in this process (milvus-lite), in a temporary folder. Vectors are synthetic and
CLIP-like (``benchmarks/synthetic.py``), the queries those of texts. The table has the speed of every step;
the recall against an exact search, and memory, come behind it. With the defaults it takes a minute.
"""

# ruff: noqa: D102, D103, T201

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zsqretrieval import Field, Retriever
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.indexes.milvus import Milvus
from zsqretrieval.search.ranking import Ranking
from zsqretrieval.types import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.synthetic import cliplike

SUBSETS = ("laion2B_en", "laion2B_multi", "laion1B_nolang")


class Elsewhere:
    """The encoder that made the vectors, which is not here: only vectors can be searched for."""

    fingerprint = "synthetic"

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def encode_image(self, images: Sequence[Image], *, batch_size: int = 32) -> NDArray[np.float32]:
        raise NotImplementedError("search for a vector")

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        raise NotImplementedError("search for a vector")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--uri", help="address of a server; embedded without one")
    parser.add_argument("--collection", default="example", help="must not exist")
    parser.add_argument("--index", default="HNSW")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16"])
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=200)
    given = parser.parse_args()

    data = cliplike(given.rows, given.queries, dim=given.dim)
    truth = ExactIndex(given.dim)
    truth.add(np.arange(given.rows), data.gallery)
    wanted = truth.search(data.text_queries, 10).keys
    metadata = [{"number": n, "subset": SUBSETS[n % 3]} for n in range(given.rows)]
    ids = [str(n) for n in range(given.rows)]
    queries = list(data.text_queries)

    with tempfile.TemporaryDirectory() as folder:
        place = Milvus(
            given.uri or str(Path(folder) / "milvus.db"), given.collection,
            index=given.index, dtype=given.dtype, shards=given.shards, replicas=given.replicas,
            partition_field="subset",
        )  # fmt: skip
        print("| step | per second | per second of processor time here |\n|---|---|---|")
        with Retriever.open(place, encoder=Elsewhere(given.dim)) as retriever:
            with timed("add", given.rows, "rows"):
                retriever.add_embeddings(data.gallery, ids=ids, metadata=metadata)
            with timed("build the index", given.rows, "rows"):
                retriever.save()
            retriever.search(queries[0], 10, rerank=None)
            with timed("search one by one", len(queries), "queries"):
                found = [retriever.search(query, 10, rerank=None) for query in queries]
            with timed("search in one batch", len(queries), "queries"):
                retriever.search(queries, 10, rerank=None)
            few, keys = Field("number") < given.rows // 100, np.arange(given.rows // 100)
            with timed("search 1 % by where", 50, "queries"):
                selected = retriever.search(queries[:50], 10, where=few, rerank=None)
            with timed("remove", given.rows // 10, "rows"):
                retriever.remove(ids[: given.rows // 10])
            assert len(retriever) == given.rows - given.rows // 10
        with (
            timed("open again", 1, "times"),
            Retriever.open(place, encoder=Elsewhere(given.dim)) as retriever,
        ):
            again = retriever.search(queries, 10, rerank=None)
        assert not {hit.id for ranking in again for hit in ranking} & set(ids[: given.rows // 10])
    exact = truth.search_among(data.text_queries[:50], 10, keys).keys
    print(f"\nrecall@10 {recall(found, wanted):.3f}, with the filter {recall(selected, exact):.3f}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"peak memory {peak:.0f} MB, of which {data.gallery.nbytes / 2**20:.0f} MB twice for the vectors here"
    )


@contextmanager
def timed(step: str, count: int, what: str) -> Iterator[None]:
    wall, processor = time.perf_counter(), time.process_time()
    yield
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    print(f"| {step} | {count / wall:.3g} {what} | {count / processor:.3g} |", flush=True)


def recall(rankings: Sequence[Ranking], wanted: NDArray[np.int64]) -> float:
    pairs = zip(rankings, wanted.tolist(), strict=True)
    return float(
        np.mean([len({int(id) for id in one.ids} & {*keys}) / len({*keys} - {-1}) for one, keys in pairs])
    )


if __name__ == "__main__":
    main()
