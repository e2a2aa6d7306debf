"""Approximate search by cosine similarity: short codes in memory choose, full vectors on the disk decide.

Vectors are reduced to their principal components and stored with 8 bits each in inverted lists
(:mod:`~zsqretrieval.indexes.lists`). The candidates that the codes find are compared anew by their full
vectors (:mod:`~zsqretrieval.indexes.rows`), so the scores are cosines to about 1e-5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.checks import check_shares
from zsqretrieval._util.files import Snapshot, array_part, read_array
from zsqretrieval.errors import IntegrityError, InvalidInputError
from zsqretrieval.indexes.base import VectorIndex, top_rows
from zsqretrieval.indexes.checks import check_integer, cores, unit_rows
from zsqretrieval.indexes.keys import DIGEST, KeyTable, KeyView
from zsqretrieval.indexes.lists import POINTS, Lists, principal_components
from zsqretrieval.indexes.rows import RowStore
from zsqretrieval.indexes.tuning import Measured, Tuning, fastest, measure, timed
from zsqretrieval.types import Neighbors

_TRAINED_ROWS = 2048  # among fewer rows, exact search is as fast
_TAIL = 1024  # new rows that are compared exactly, before they are put into the lists
_EXACT_ROWS = 4096  # that a filter selects
_CHUNK = 8192  # rows per hold of the lock
_MOST_LISTS, _MOST_REFINED, _MOST_THREADS = 2**20, 1024, 256
_SHARE_OF_STRANGE = 0.05  # rows whose codes keep less than usual; with more, the lists are trained again
_QUERIES = 1024  # per hold of the lock
_TOGETHER = 128  # that one thread answers in one go
_SAMPLE = 32_768  # rows from which the components are computed
_REDUCED = 96  # components; more if they lose neighbours
_TUNED = 100_000  # rows of the sample that the number of components is chosen with
_CHECKED, _ENOUGH = 200, 0.99  # vectors whose neighbours the components have to keep, and their share


@final
class CompressedIndex(VectorIndex):
    """Finds nearly the nearest vectors; builds several times as fast as a graph, in a tenth of the memory.

    A search takes the best ``refine * k`` rows by codes from the ``probe`` best lists, and the best k of
    these by their vectors. It returns at least ``min(k, len(self))`` keys: where the lists hold fewer, all
    vectors are compared. The lists are trained when there are 2,048 vectors, and again whenever there are
    twice as many as the last time; searches use the old ones meanwhile. Identical vectors are stored once.
    Removed vectors remain, excluded, until they outnumber the others.

    In memory, a vector takes about ``reduced`` + 70 bytes; a loaded index maps the ``2 * dim`` bytes of its
    full precision from the file, one that was just built keeps them, too. The file is verified block by block
    when it is read, so a search may raise a DamagedIndexError.

    Args:
        dim: length of the vectors.
        reduced: components of a code, at most ``dim``; None for 96, or more where these lose neighbours.
        lists: number of lists; None for about four times the root of the number of vectors.
        probe: lists that a query is compared with; None for twice the root of the number of lists.
        refine: candidates per result. :meth:`tune` chooses both for a recall.
        fingerprint: fingerprint of their encoder; empty when unknown.
        threads: threads for adding and for batches of queries; None for every core.

    Raises:
        InvalidInputError: a setting is out of range.
    """

    _kind = "compressed"
    _unread = ("vectors.bin",)
    _settings = ("dim", "fingerprint", "reduced", "lists", "probe", "refine", "threads")
    safe_settings: ClassVar[Mapping[str, Any]] = {
        "dim": range(2**31),
        "fingerprint": str,
        "reduced": (None, range(2**31)),
        "lists": (None, range(1, _MOST_LISTS + 1)),
        "probe": (None, range(1, _MOST_LISTS + 1)),
        "refine": range(1, _MOST_REFINED + 1),
        "threads": (None, range(1, _MOST_THREADS + 1)),
    }

    def __init__(
        self,
        dim: int,
        *,
        reduced: int | None = None,
        lists: int | None = None,
        probe: int | None = None,
        refine: int = 6,
        fingerprint: str = "",
        threads: int | None = None,
    ) -> None:
        super().__init__(dim, fingerprint)
        self._reduced = None if reduced is None else check_integer("reduced", reduced, most=self._dim)
        self._lists = None if lists is None else check_integer("lists", lists, most=_MOST_LISTS)
        self._probe = None if probe is None else check_integer("probe", probe, most=_MOST_LISTS)
        self._refine = check_integer("refine", refine, most=_MOST_REFINED)
        self._threads = None if threads is None else check_integer("threads", threads, most=_MOST_THREADS)
        self._store = RowStore(self._dim)
        self._codes: Lists | None = None  # of the first rows; the rest is compared exactly
        self._alive_bits: NDArray[np.uint8] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        raise InvalidInputError(
            "a CompressedIndex cannot be pickled or copied; save it to a directory and load it from there"
        )

    @property
    def probe(self) -> int:
        """Lists per query; may be set at any time."""
        return self._probe or math.ceil(2 * math.sqrt(len(self._codes) if self._codes else 1))

    @probe.setter
    def probe(self, probe: int) -> None:
        self._probe = check_integer("probe", probe, most=_MOST_LISTS)

    @property
    def refine(self) -> int:
        """Candidates per result; may be set at any time."""
        return self._refine

    @refine.setter
    def refine(self, refine: int) -> None:
        self._refine = check_integer("refine", refine, most=_MOST_REFINED)

    @property
    def width(self) -> int:
        """Components of a code; ``dim`` while there are none."""
        return self._codes.rotation.shape[1] if self._codes else self._dim

    @property
    def list_count(self) -> int:
        """Number of lists; 0 while the vectors are so few that all are compared."""
        return len(self._codes) if self._codes else 0

    def tune(self, queries: NDArray[np.float32], recall: float = 0.95, *, k: int = 10) -> Tuning:
        """Choose ``reduced``, ``probe`` and ``refine`` by measuring on a sample of vectors and the queries.

        Components of 64 to ``dim`` are tried with at most 100,000 of the vectors; the lists are trained again
        if another number is faster. Additions and removals wait; searches go on. Tune again when
        the index has grown several times: ``probe`` stays as it is.

        Args:
            queries: float32 [q, dim], at least one; a few hundred that people would ask. Texts need more
                lists than images.
            recall: share of the true k nearest that is to be found, in (0, 1].
            k: results per query.

        Raises:
            InvalidInputError: an argument is out of range, or the queries are as for :meth:`search`.
        """
        rows = unit_rows(queries, self._dim)
        if not len(rows):
            raise InvalidInputError("there are no queries to measure with; give one or more")
        check_shares(above_zero=True, recall=recall)
        k = min(check_integer("k", k), max(len(self), 1))
        with self._writing:
            with self._lock.shared():
                view = self._table.view
                truth, seconds = timed(lambda: self._find_exactly(rows, k, view).keys)
            if self._codes is None:
                return Tuning(None, (), seconds, reached=True)
            width = self._best_width(rows, recall, k)
            if width != self.width:
                self._train(width)
                self._reduced = width
            everything, best = self._measured(rows, truth, recall)
            self._probe, self._refine = best.probe, best.refine
        return Tuning(best, fastest(everything), seconds, reached=best.recall >= recall)

    def _measured(
        self, queries: NDArray[np.float32], truth: NDArray[np.int64], recall: float
    ) -> tuple[list[Measured], Measured]:
        def search(probe: int, refine: int) -> NDArray[np.int64]:
            with self._lock.shared():
                return self._find_block(queries, truth.shape[1], self._table.view, (probe, refine)).keys

        return measure(search, self.width, self.list_count, truth, recall)

    def _best_width(self, queries: NDArray[np.float32], recall: float, k: int) -> int:
        """Number of components that reaches a recall in the least time, on a sample of the vectors."""
        alive = self._table.view.rows
        if len(alive) < _TRAINED_ROWS:
            return self.width  # a sample of so few would be compared exactly
        sample = np.sort(np.random.default_rng(0).permutation(alive)[:_TUNED])
        vectors = self._store.vectors(sample)
        best: dict[int, Measured] = {}
        truth = None
        for width in sorted({min(width, self._dim) for width in (64, 96, 128, self._dim)}):
            if width == self._dim and any(one.recall >= recall for one in best.values()):
                break  # all components cost more than some that are enough
            index = CompressedIndex(self._dim, reduced=width, threads=self._threads)
            index.add(np.arange(len(sample)), vectors)
            if truth is None:
                view = index._table.view
                truth = index._find_exactly(queries, k, view).keys
            best[width] = index._measured(queries, truth, recall)[1]
        enough = {width: one.seconds for width, one in best.items() if one.recall >= recall}
        return min(enough, key=enough.__getitem__) if enough else self._dim

    # --- adding and removing

    def _insert(
        self, keys: NDArray[np.int64], rows: NDArray[np.float32], digests: NDArray[np.bytes_]
    ) -> None:
        first_row = self._table.size
        try:
            for start in range(0, len(rows), _CHUNK):
                chunk = slice(start, start + _CHUNK)
                with self._lock.exclusive():
                    self._store.reserve(len(rows[chunk]))
                    plan = self._table.plan(keys[chunk], digests[chunk])
                    self._table.commit(plan)
                    self._store.append(rows[chunk][plan.fresh])
                    self._alive_bits = None
            self._encode()
        except BaseException:
            with self._lock.exclusive():
                self._release(keys[self._table.stored(keys)])
                self._table.forget_vectors(first_row)
                self._store.size = self._table.size  # there is room; an interrupt may have lost the last rows
            raise

    def _encode(self) -> None:
        """Put the tail into the lists, or train lists for all rows if these have doubled."""
        if self._table.alive < _TRAINED_ROWS:
            return
        if self._codes is None or self._store.size >= 2 * self._codes.trained:
            self._train()
        elif self._store.size - self._codes.size > _TAIL:
            try:
                for _, vectors in self._store.blocks(np.arange(self._codes.size, self._store.size)):
                    with self._lock.exclusive():
                        self._codes.add(vectors)
            except BaseException:  # the lists may hold a part of the piece
                self._codes = None
                raise
            if self._codes.strange > _SHARE_OF_STRANGE * self._store.size:
                self._train()

    def _train(self, reduced: int | None = None) -> None:
        """Train lists for all rows, with so many components; None for as many as wanted or needed."""
        codes = self._trained_lists(self._table, self._store, reduced or self._reduced)
        with self._lock.exclusive():
            self._codes = codes

    def _trained_lists(self, table: KeyTable, store: RowStore, reduced: int | None) -> Lists:
        """Lists of all rows of a store."""
        alive = table.view.rows
        count = self._lists or 2 ** round(math.log2(4 * math.sqrt(len(alive))))
        count = min(count, len(alive))
        rows = np.random.default_rng(0).permutation(alive)[: max(_SAMPLE, POINTS * count)]
        rotation = self._rotation(store.vectors(np.sort(rows[:_SAMPLE])), reduced)
        points = np.concatenate([vectors @ rotation for _, vectors in store.blocks(np.sort(rows))])
        lists = Lists.train(rotation, points, count, threads=self._cores)
        kept = [lists.add(vectors) for _, vectors in store.blocks(np.arange(store.size))]
        lists.settle(np.concatenate(kept)[alive])
        return lists

    def _rotation(self, sample: NDArray[np.float32], reduced: int | None) -> NDArray[np.float32]:
        """Principal components of vectors [n, dim], as many as wanted, or as these need."""
        directions = principal_components(sample, min(reduced or _REDUCED, self._dim))
        if reduced is not None or not _loses_neighbors(sample, directions):
            return directions
        directions = principal_components(sample, self._dim)
        width = 2 * _REDUCED
        while width < self._dim and _loses_neighbors(sample, directions[:, :width]):
            width *= 2
        return np.ascontiguousarray(directions[:, :width])

    def _release(self, keys: NDArray[np.int64]) -> None:
        self._table.release(keys)
        self._alive_bits = None

    def _compact(self) -> None:
        table, kept = self._table.compacted()
        store = self._store.keep(kept)
        codes = self._trained_lists(table, store, self._reduced) if store.size >= _TRAINED_ROWS else None
        with self._lock.exclusive():
            self._table, self._store, self._codes, self._alive_bits = table, store, codes, None

    # --- searching

    def _find(self, queries: NDArray[np.float32], k: int, keys: NDArray[np.int64] | None) -> Neighbors:
        found = []
        for start in range(0, max(len(queries), 1), _QUERIES):
            with self._lock.shared():
                view = self._table.view if keys is None else self._table.among(keys)
                block = queries[start : start + _QUERIES]
                effort = self.probe, self._refine
                found.append(self._find_block(block, k, view, effort, filtered=keys is not None))
        return _joined(found)

    def _find_block(
        self,
        queries: NDArray[np.float32],
        k: int,
        view: KeyView,
        effort: tuple[int, int],
        *,
        filtered: bool = False,
    ) -> Neighbors:
        """Search with ``effort``: lists per query, and candidates per result."""
        probe, refine = effort
        codes, wanted = self._codes, refine * k
        if not view.key_count:
            nothing = np.empty((len(queries), 0))
            return view.neighbors(nothing.astype(np.int64), nothing.astype(np.float32), k)
        few = 2 * wanted >= view.row_count or (filtered and view.row_count <= _EXACT_ROWS)
        if codes is None or few:
            return self._find_exactly(queries, k, view)
        # A filter that selects one row in ten needs ten times as many lists for as many candidates.
        share = view.row_count / self._table.size
        lists = math.ceil(max(probe, 2 * wanted * len(codes) / codes.size) / share)
        allowed = self._bits(view, filtered=filtered)

        def search(part: slice) -> Neighbors:
            rows = codes.search(queries[part], wanted, lists, allowed)
            return self._refined(queries[part], k, view, rows)

        parts = [slice(start, start + _TOGETHER) for start in range(0, max(len(queries), 1), _TOGETHER)]
        if len(parts) == 1 or self._cores == 1:
            return _joined([search(part) for part in parts])
        with ThreadPoolExecutor(self._cores) as pool:
            return _joined(list(pool.map(search, parts)))

    def _refined(
        self, queries: NDArray[np.float32], k: int, view: KeyView, rows: NDArray[np.int64]
    ) -> Neighbors:
        """The best of candidate rows [q, m] and of the rows that are in no list, by full vectors."""
        scores = self._store.scores(queries, rows)
        coded = self._codes.size if self._codes else 0
        if coded < self._table.size:
            tail = coded + np.flatnonzero(view.first[coded:] >= 0)
            newest = top_rows(queries, self._store.blocks(tail), min(k, len(tail)), view.first)
            rows, scores = np.hstack([rows, newest[0]]), np.hstack([scores, newest[1]])
        neighbors = view.neighbors(rows, scores, k)
        if (missing := neighbors.keys[:, min(k, view.key_count) - 1] < 0).any():
            exact = self._find_exactly(queries[missing], k, view)
            neighbors.keys[missing], neighbors.scores[missing] = exact.keys, exact.scores
        return neighbors

    def _find_exactly(self, queries: NDArray[np.float32], k: int, view: KeyView) -> Neighbors:
        rows = view.rows
        best = top_rows(queries, self._store.blocks(rows), min(k, len(rows)), view.first)
        return view.neighbors(*best, k)

    def _bits(self, view: KeyView, *, filtered: bool) -> NDArray[np.uint8] | None:
        """A bit for each row that may be found; None for all."""
        if view.row_count == self._table.size:
            return None
        if self._alive_bits is not None and not filtered:
            return self._alive_bits
        bits = np.packbits(view.first >= 0, bitorder="little")
        if not filtered:
            self._alive_bits = bits
        return bits

    # --- on disk

    def _facts(self) -> dict[str, Any]:
        return self._codes.facts() if self._codes else {}

    def _parts(self) -> dict[str, Callable[[Path], object]]:
        digests, rows = self._table.digests()
        return {
            "digests.npy": array_part(digests),
            "rows.npy": array_part(rows),
            "vectors.bin": self._store.write,
            "blocks.npy": array_part(self._store.digests()),
            **(self._codes.parts() if self._codes else {}),
        }

    def _restore(self, snapshot: Snapshot, pairs: NDArray[np.int64]) -> None:
        digests, rows = read_array(snapshot.file("digests.npy")), read_array(snapshot.file("rows.npy"))
        store = RowStore.map(snapshot.file("vectors.bin"), self._dim, read_array(snapshot.file("blocks.npy")))
        if not (
            digests.dtype == DIGEST
            and rows.dtype == np.int64
            and digests.shape == rows.shape == np.unique(rows).shape
            and (not len(rows) or 0 <= rows.min() <= rows.max() < store.size)
            and len(np.unique(digests)) == len(digests)
        ):
            raise IntegrityError(
                f"{snapshot.path}: digests and vectors do not fit together; rebuild the index from its source"
            )
        self._table = KeyTable.from_pairs(pairs, digests, rows, store.size)
        self._store = store
        if "codes.npy" in snapshot.files:
            self._codes = Lists.restore(snapshot, self._dim, threads=self._cores)
            if self._codes.size > store.size:
                raise IntegrityError(
                    f"{snapshot.path}: the lists name vectors that are not stored; rebuild the index from "
                    "its source"
                )

    @property
    def _cores(self) -> int:
        return self._threads or cores()


def _joined(found: Sequence[Neighbors]) -> Neighbors:
    if len(found) == 1:
        return found[0]
    return Neighbors(
        np.concatenate([one.keys for one in found]), np.concatenate([one.scores for one in found])
    )


def _loses_neighbors(sample: NDArray[np.float32], directions: NDArray[np.float32]) -> bool:
    """Whether candidates by components would miss many true neighbours among vectors of a sample."""
    rows = np.arange(len(sample))
    itself = rows[:_CHECKED, None]

    def nearest(vectors: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        return top_rows(vectors[:_CHECKED], [(rows, vectors)], min(count, len(rows)), rows)[0]

    truth, close = nearest(sample, 11), nearest(sample @ directions, 61)
    found = (truth[:, :, None] == close[:, None, :]).any(axis=2)
    return bool(found[truth != itself].mean() < _ENOUGH)
