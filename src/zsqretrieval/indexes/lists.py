"""Inverted lists of short codes: the first, coarse part of a compressed search.

A vector is reduced to its principal components, put into the list of the best of some centroids, and stored
there with 8 bits a component. A query is compared with the codes in the lists of its own best centroids. The
lists are faiss's (``IndexIVFScalarQuantizer``); they are saved as plain arrays, whose structure is checked,
because faiss trusts its own files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import faiss
import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from zsqretrieval._util.files import Snapshot, array_part, read_array
from zsqretrieval.errors import IntegrityError
from zsqretrieval.indexes import openmp

_ITERATIONS = 10  # of k-means
POINTS = 40
"""Rows per list that the training reads."""
_USUAL, _RARE = 0.98, 0.01  # see Lists.settle
_TINY = np.float32(1e-30)
_LARGEST = 1e6  # of a rotation: about 1,000 is usual
_HIGHEST = 127  # of a code; faiss reads them three times as fast as scaled ones


class Lists:
    """Codes of the rows 0 to ``size - 1``, in inverted lists. Takes checked arrays, has no lock.

    Args:
        rotation: float32 [dim, reduced]; reduces vectors and queries, and scales them so that the components
            of nearly all vectors lie between -128 and 127.
        centroids: float32 [lists, reduced].
        threads: threads for adding.

    Attributes:
        trained: rows when :meth:`settle` was called; 0 before.
        usual: the share of a vector's squared length that its code kept for nearly all of these.
        strange: later rows whose codes keep less.
    """

    def __init__(self, rotation: NDArray[np.float32], centroids: NDArray[np.float32], threads: int) -> None:
        self.trained, self.usual, self.strange = 0, 0.0, 0
        self.rotation = rotation
        self.centroids = centroids
        self._threads = threads
        self._coarse = faiss.IndexFlatIP(rotation.shape[1])
        self._coarse.add(centroids)
        quantizer = faiss.ScalarQuantizer.QT_8bit_direct_signed
        self._native = faiss.IndexIVFScalarQuantizer(
            self._coarse, rotation.shape[1], len(centroids), quantizer, faiss.METRIC_INNER_PRODUCT, False
        )
        self._native.is_trained = True
        self._reduce, self._compare = _product(rotation.T), _product(centroids)
        self._settings = faiss.SearchParametersIVF(nprobe=1)

    @classmethod
    def train(
        cls, rotation: NDArray[np.float32], points: NDArray[np.float32], lists: int, *, threads: int
    ) -> Self:
        """Empty lists that fit a sample of vectors, given as ``points = vectors @ rotation``.

        ``rotation`` may have any scale; there are at least as many points as lists.
        """
        scale = np.float32(_HIGHEST / np.abs(points).max())
        points = points * scale
        clustering = faiss.Clustering(points.shape[1], lists)
        clustering.niter = _ITERATIONS
        clustering.min_points_per_centroid, clustering.max_points_per_centroid = 1, POINTS
        with openmp.threads(threads):
            clustering.train(points, faiss.IndexFlatIP(points.shape[1]))
        centroids = faiss.vector_to_array(clustering.centroids).reshape(lists, -1)
        return cls(rotation * scale, centroids, threads)

    @property
    def size(self) -> int:
        """Number of rows."""
        return int(self._native.ntotal)

    def __len__(self) -> int:
        """Number of lists."""
        return len(self.centroids)

    def add(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Store unit vectors [n, dim] as the rows ``size``, ``size + 1``, ...

        Returns the share of each vector's squared length that its code keeps, float32 [n].
        """
        reduced = vectors @ self.rotation
        with openmp.threads(self._threads):
            best = np.ascontiguousarray(self._coarse.search(reduced, 1)[1])  # of unrounded components
            np.clip(np.rint(reduced, out=reduced), -128, _HIGHEST, out=reduced)
            self._native.add_core(len(reduced), faiss.swig_ptr(reduced), None, faiss.swig_ptr(best))
        kept: NDArray[np.float32] = (
            np.einsum("ij,ij->i", reduced, reduced) / np.square(self.rotation[:, 0]).sum()
        )
        self.strange += int((kept < self.usual).sum())
        return kept

    def settle(self, kept: NDArray[np.float32]) -> None:
        """Take the rows so far, whose codes keep these shares, as the measure of later ones."""
        self.trained, self.usual = self.size, _USUAL * float(np.quantile(kept, _RARE))

    def search(
        self, queries: NDArray[np.float32], m: int, probe: int, allowed: NDArray[np.uint8] | None
    ) -> NDArray[np.int64]:
        """About the m best rows of each query, int64 [q, m]; -1 where the lists hold fewer.

        Works in the calling thread alone: the caller spreads a batch over threads, with all that follows.

        Args:
            queries: unit vectors [q, dim], a few hundred at most.
            m: rows per query.
            probe: lists per query; more than there are mean all.
            allowed: a bit for every row that may be found, in little order; None for all.
        """
        q, probe = len(queries), min(probe, len(self))
        settings = self._settings
        if allowed is not None or settings.nprobe != probe:
            selector = None if allowed is None else faiss.IDSelectorBitmap(allowed)
            settings = faiss.SearchParametersIVF(nprobe=probe, sel=selector)
            if allowed is None:
                self._settings = settings  # making them takes as long as a third of a small search
        scores, rows = np.empty((q, m), np.float32), np.empty((q, m), np.int64)
        with openmp.threads(1):
            reduced = self._reduce.apply(queries)
            # faiss compares integers: it rounds the components of a query, too.
            reduced *= _HIGHEST / np.maximum(np.abs(reduced).max(axis=1, keepdims=True), _TINY)
            lists = self._best(reduced, probe)
            unused = np.empty(lists.shape, np.float32)  # products with the centroids
            taken, centroids, products, best, found = map(
                faiss.swig_ptr, (reduced, lists, unused, scores, rows)
            )
            self._native.search_preassigned_c(
                q, taken, m, centroids, products, best, found, False, settings, None
            )
        return rows

    def _best(self, reduced: NDArray[np.float32], probe: int) -> NDArray[np.int64]:
        """The lists of the best centroids for reduced queries, about the best first, int64 [q, probe]."""
        if probe == len(self):
            return np.tile(np.arange(probe), (len(reduced), 1))
        # NumPy selects in a third of the time of faiss, which sorts. The best tend to be last: they are read
        # first, since every later row that is better replaces another.
        ascending = np.argpartition(self._compare.apply(reduced), -probe, axis=1)
        return np.ascontiguousarray(ascending[:, : -probe - 1 : -1])

    # --- on disk

    def facts(self) -> dict[str, int | float]:
        """Numbers for the manifest of a snapshot."""
        return {"trained": self.trained, "usual": self.usual, "strange": self.strange}

    def parts(self) -> dict[str, Callable[[Path], object]]:
        """Files of a snapshot."""
        sizes, rows, codes = self._arrays()
        return {
            "rotation.npy": array_part(self.rotation),
            "centroids.npy": array_part(self.centroids),
            "lists.npy": array_part(sizes),
            "members.npy": array_part(rows),
            "codes.npy": array_part(codes),
        }

    def _arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
        """Sizes of the lists [lists], and the rows [size] and codes [size, reduced] of all, list by list."""
        inverted, width = self._native.invlists, self.rotation.shape[1]
        sizes = np.array([inverted.list_size(i) for i in range(len(self))], np.int64)
        rows, codes = np.empty(self.size, np.int64), np.empty((self.size, width), np.uint8)
        end = np.cumsum(sizes)
        for number in np.flatnonzero(sizes).tolist():
            size, stop = int(sizes[number]), int(end[number])
            part = slice(stop - size, stop)
            rows[part] = faiss.rev_swig_ptr(inverted.get_ids(number), size)
            codes[part] = faiss.rev_swig_ptr(inverted.get_codes(number), size * width).reshape(size, width)
        return sizes, rows, codes

    @classmethod
    def restore(cls, snapshot: Snapshot, dim: int, *, threads: int) -> Self:
        """Lists of :meth:`facts` and of the files of :meth:`parts`.

        Raises:
            IntegrityError: they do not fit together.
        """
        trained, usual, strange = (
            cast(Any, snapshot.facts.get(name)) for name in ("trained", "usual", "strange")
        )
        rotation, centroids, sizes, rows, codes = (
            read_array(snapshot.file(f"{part}.npy"))
            for part in ("rotation", "centroids", "lists", "members", "codes")
        )
        n, reduced = rows.size, rotation.size // dim
        fits = (
            rotation.ndim == 2
            and rotation.dtype == centroids.dtype == np.float32
            and sizes.dtype == rows.dtype == np.int64
            and codes.dtype == np.uint8
            and rotation.shape == (dim, reduced)
            and 0 < reduced <= dim
            and centroids.shape == (sizes.size, reduced)
            and sizes.ndim == rows.ndim == 1
            and codes.shape == (n, reduced)
            and sizes.size
            and 0 <= sizes.min() <= sizes.max() <= n
            and sizes.sum() == n
            and np.array_equal(np.sort(rows), np.arange(n))
            and (np.abs(rotation) < _LARGEST).all()
            and np.isfinite(centroids).all()
            and all(type(one) is int and 0 <= one <= n for one in (trained, strange))
            and type(usual) is float
        )
        if not fits:
            raise IntegrityError(
                f"{snapshot.path}: the lists do not fit together; rebuild the index from its source"
            )
        lists = cls(rotation, centroids, threads)
        rows, codes = np.ascontiguousarray(rows), np.ascontiguousarray(codes)
        starts = np.cumsum(sizes) - sizes
        for number in np.flatnonzero(sizes).tolist():
            part = slice(int(starts[number]), int(starts[number] + sizes[number]))
            lists._native.invlists.add_entries(
                number, int(sizes[number]), faiss.swig_ptr(rows[part]), faiss.swig_ptr(codes[part])
            )
        lists._native.ntotal = n
        lists.trained, lists.usual, lists.strange = trained, usual, strange
        return lists


def _product(matrix: NDArray[np.float32]) -> Any:
    """The product of vectors with a matrix [rows, columns], in as many threads as OpenMP may use.

    NumPy's own would take all cores, also inside a thread of a batch.
    """
    product = faiss.LinearTransform(matrix.shape[1], matrix.shape[0], False)
    faiss.copy_array_to_vector(np.ascontiguousarray(matrix).ravel(), product.A)
    product.is_trained = True
    return product


def principal_components(sample: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Orthonormal directions [dim, count] of vectors [n, dim], by descending share of their squared length.

    The mean is not subtracted: inner products are to be kept, not differences.
    """
    from scipy import linalg

    # Half of a symmetric product, and few of its directions, take a third of the time of all.
    moments = linalg.blas.ssyrk(1, sample.T)
    dim = len(moments)
    _, directions = linalg.eigh(  # by ascending length
        moments, lower=False, overwrite_a=True, check_finite=False, subset_by_index=(dim - count, dim - 1)
    )
    return np.ascontiguousarray(directions[:, ::-1], np.float32)
