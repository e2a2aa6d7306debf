"""Vector indexes that can be measured, the library's and others, behind one class."""

# ruff: noqa: D102 (what Engine's methods do is said there)

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsqretrieval import plugins

K = 10
M, EF_CONSTRUCTION = 16, 200  # of every graph
_GRAPH = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_LISTS = (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# Settings of the library's indexes that trade speed for recall. The values of the last rise in each sweep.
_SWEEPS: Mapping[str, tuple[dict[str, tuple[int, ...]], ...]] = {
    "hnsw": ({"ef": _GRAPH},),
    "compressed": tuple({"refine": (refine,), "probe": _LISTS} for refine in (2, 3, 4, 6, 8)),
}
Setting = dict[str, int]


class Engine(ABC):
    """An index of unit vectors [n, dim] under the keys 0 to n - 1, searched by inner product in one thread.

    ``sweeps`` are lists of settings by rising recall; an exact index has one empty setting.
    """

    sweeps: list[list[Setting]]
    packages: tuple[str, ...] = ()  # that must be importable

    @abstractmethod
    def build(self, vectors: NDArray[np.float32]) -> None:
        """Fill the empty index."""

    @abstractmethod
    def set(self, setting: Setting) -> None:
        """Change the settings of the search."""

    @abstractmethod
    def search(self, queries: NDArray[np.float32]) -> NDArray[Any]:
        """Keys [q, 10] of the nearest, best first."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the index into an empty folder."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote, into memory or mapped as the engine does."""


class Library(Engine):
    """An index plugin of the library."""

    def __init__(self, plugin: str, dim: int, threads: int = 1) -> None:
        self._class: Any = plugins.load("index", plugin)
        given = {"threads": threads} if plugin in _SWEEPS else {}
        self._index = self._class(dim, **given)
        self.sweeps = [
            [dict(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())]
            for sweep in _SWEEPS.get(plugin, ({},))
        ]

    def build(self, vectors: NDArray[np.float32]) -> None:
        self._index.add(np.arange(len(vectors)), vectors)

    def set(self, setting: Setting) -> None:
        for name, value in setting.items():
            setattr(self._index, name, value)

    def search(self, queries: NDArray[np.float32]) -> NDArray[Any]:
        keys: NDArray[Any] = self._index.search(queries, K).keys
        return keys

    def save(self, folder: Path) -> None:
        self._index.save(folder)

    def load(self, folder: Path) -> None:
        self._index = self._class.load(folder)


class Hnswlib(Engine):
    """hnswlib as it comes, float32."""

    packages = ("hnswlib",)

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self.sweeps = [[{"ef": ef} for ef in _GRAPH]]

    def build(self, vectors: NDArray[np.float32]) -> None:
        self._new().init_index(len(vectors), M=M, ef_construction=EF_CONSTRUCTION)
        self._index.add_items(vectors, num_threads=1)

    def set(self, setting: Setting) -> None:
        self._index.set_ef(setting["ef"])

    def search(self, queries: NDArray[np.float32]) -> NDArray[Any]:
        keys: NDArray[Any] = self._index.knn_query(queries, k=K, num_threads=1)[0]
        return keys

    def save(self, folder: Path) -> None:
        self._index.save_index(str(folder / "index"))

    def load(self, folder: Path) -> None:
        self._new().load_index(str(folder / "index"))

    def _new(self) -> Any:
        self._index: Any = importlib.import_module("hnswlib").Index(space="ip", dim=self._dim)
        return self._index


class Faiss(Engine):
    """An index of faiss's factory; ``{lists}`` stands for a power of two near four roots of the count."""

    packages = ("faiss",)

    def __init__(self, dim: int, *, recipe: str) -> None:
        self._faiss: Any = importlib.import_module("faiss")
        self._faiss.omp_set_num_threads(1)
        self._dim, self._recipe = dim, recipe
        self._parameter = "nprobe" if "IVF" in recipe else "efSearch"
        values = () if recipe == "Flat" else _LISTS if "IVF" in recipe else _GRAPH
        self.sweeps = [[{self._parameter: value} for value in values] or [{}]]

    def build(self, vectors: NDArray[np.float32]) -> None:
        lists = max(1, min(2 ** round(math.log2(4 * math.sqrt(len(vectors)))), len(vectors) // 39))
        recipe = self._recipe.format(lists=lists)
        self._index = self._faiss.index_factory(self._dim, recipe, self._faiss.METRIC_INNER_PRODUCT)
        if "HNSW" in recipe:
            self._index.hnsw.efConstruction = EF_CONSTRUCTION
        self._index.train(vectors)
        self._index.add(vectors)

    def set(self, setting: Setting) -> None:
        for name, value in setting.items():
            self._faiss.ParameterSpace().set_index_parameter(self._index, name, value)

    def search(self, queries: NDArray[np.float32]) -> NDArray[Any]:
        keys: NDArray[Any] = self._index.search(queries, K)[1]
        return keys

    def save(self, folder: Path) -> None:
        self._faiss.write_index(self._index, str(folder / "index"))

    def load(self, folder: Path) -> None:
        self._index = self._faiss.read_index(str(folder / "index"))


class Usearch(Engine):
    """usearch with vectors of one type."""

    packages = ("usearch",)

    def __init__(self, dim: int, *, dtype: str) -> None:
        self._index: Any = importlib.import_module("usearch.index").Index(
            ndim=dim, metric="ip", dtype=dtype, connectivity=M, expansion_add=EF_CONSTRUCTION
        )
        self.sweeps = [[{"expansion_search": ef} for ef in _GRAPH]]

    def build(self, vectors: NDArray[np.float32]) -> None:
        self._index.add(np.arange(len(vectors)), vectors, threads=1)

    def set(self, setting: Setting) -> None:
        self._index.expansion_search = setting["expansion_search"]

    def search(self, queries: NDArray[np.float32]) -> NDArray[Any]:
        keys: NDArray[Any] = self._index.search(queries, K, threads=1).keys
        return keys.reshape(len(queries), -1)

    def save(self, folder: Path) -> None:
        self._index.save(str(folder / "index"))

    def load(self, folder: Path) -> None:
        self._index.load(str(folder / "index"))


class Scann(Engine):
    """ScaNN with its recommended recipe: a tree, 4-bit codes, and 100 candidates compared exactly."""

    packages = ("scann",)
    _REORDER = 100

    def __init__(self, dim: int) -> None:
        self._scann: Any = importlib.import_module("scann").scann_ops_pybind
        self.sweeps = [[{"leaves_to_search": leaves} for leaves in _LISTS]]

    def build(self, vectors: NDArray[np.float32]) -> None:
        leaves = max(1, 2 * math.isqrt(len(vectors)))
        self._index = (
            self._scann.builder(vectors, K, "dot_product")
            .set_n_training_threads(1)
            .tree(
                num_leaves=leaves,
                num_leaves_to_search=leaves,
                training_sample_size=min(len(vectors), 250_000),
            )
            .score_ah(2, anisotropic_quantization_threshold=0.2)
            .reorder(self._REORDER)
            .build()
        )

    def set(self, setting: Setting) -> None:
        self._leaves = setting["leaves_to_search"]

    def search(self, queries: NDArray[np.float32]) -> NDArray[Any]:
        how = {"leaves_to_search": self._leaves, "pre_reorder_num_neighbors": self._REORDER}
        if len(queries) == 1:
            return np.asarray(self._index.search(queries[0], K, **how)[0])[None]
        return np.asarray(self._index.search_batched(queries, K, **how)[0])

    def save(self, folder: Path) -> None:
        self._index.serialize(str(folder))

    def load(self, folder: Path) -> None:
        self._index = self._scann.load_searcher(str(folder))


class Voyager(Engine):
    """voyager, float32."""

    packages = ("voyager",)

    def __init__(self, dim: int) -> None:
        self._voyager: Any = importlib.import_module("voyager")
        self._dim = dim
        self.sweeps = [[{"ef": ef} for ef in _GRAPH]]

    def build(self, vectors: NDArray[np.float32]) -> None:
        space = self._voyager.Space.InnerProduct
        self._index = self._voyager.Index(space, self._dim, M=M, ef_construction=EF_CONSTRUCTION)
        self._index.add_items(vectors, num_threads=1)

    def set(self, setting: Setting) -> None:
        self._ef = setting["ef"]

    def search(self, queries: NDArray[np.float32]) -> NDArray[Any]:
        keys: NDArray[Any] = self._index.query(queries, K, num_threads=1, query_ef=self._ef)[0]
        return keys

    def save(self, folder: Path) -> None:
        self._index.save(str(folder / "index"))

    def load(self, folder: Path) -> None:
        self._index = self._voyager.Index.load(str(folder / "index"))


PEERS: Mapping[str, tuple[Any, Mapping[str, Any]]] = {  # class and arguments
    "hnswlib": (Hnswlib, {}),
    "faiss-hnsw": (Faiss, {"recipe": f"HNSW{M}"}),
    "faiss-hnsw-fp16": (Faiss, {"recipe": f"HNSW{M}_SQfp16"}),
    "faiss-hnsw-sq8": (Faiss, {"recipe": f"HNSW{M}_SQ8"}),
    "faiss-ivf": (Faiss, {"recipe": "IVF{lists},Flat"}),
    "faiss-ivf-sq8": (Faiss, {"recipe": "IVF{lists},SQ8"}),
    "faiss-flat": (Faiss, {"recipe": "Flat"}),
    "usearch": (Usearch, {"dtype": "f32"}),
    "usearch-f16": (Usearch, {"dtype": "f16"}),
    "usearch-i8": (Usearch, {"dtype": "i8"}),
    "scann": (Scann, {}),
    "voyager": (Voyager, {}),
}


def make(name: str, dim: int, **library: Any) -> Engine:
    """An empty engine: a peer's, or that of an index plugin of the library."""
    if name in PEERS:
        kind, given = PEERS[name]
        peer: Engine = kind(dim, **given)
        return peer
    return Library(name, dim, **library)


def available() -> tuple[list[str], list[str]]:
    """Names that can be measured here, the library's own first; and those whose package is not installed."""
    ours = [name for name in ("compressed", "hnsw", "exact") if name in plugins.available("index")]
    missing = [
        name for name, (kind, _) in PEERS.items() if not all(map(importlib.util.find_spec, kind.packages))
    ]
    return [*ours, *(name for name in PEERS if name not in missing)], missing
