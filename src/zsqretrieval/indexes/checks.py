"""Argument checks of the indexes, before any state changes or native code runs; checks of their answers."""

from __future__ import annotations

import operator
import os
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zsqretrieval._util.checks import shown
from zsqretrieval.errors import InvalidInputError, PartError
from zsqretrieval.protocols import FilteredIndex, Index
from zsqretrieval.types import Neighbors

_UNIT_TOLERANCE = 1e-6
_BLOCK_ROWS = 4096
_SCORE_TOLERANCE = 1e-3  # of a cosine, and of the order of equal ones


def unit_rows(vectors: ArrayLike, dim: int) -> NDArray[np.float32]:
    """Vectors as contiguous float32 [n, dim] rows of unit length.

    Rows of unit length (to 1e-6) keep every bit, so a stored vector that is added again is recognised. Any
    floating dtype is accepted and becomes float32.

    Raises:
        InvalidInputError: not [n, dim], not floating, or a row that is zero, nan or infinite; names the row.
    """
    given = as_array(vectors, "vectors")
    if given.ndim != 2 or given.shape[1] != dim:
        hint = "; for one vector pass vector[None, :]" if given.ndim == 1 else ""
        raise InvalidInputError(f"vectors have shape {list(given.shape)}, this index needs [n, {dim}]{hint}")
    if given.dtype.kind != "f":
        raise InvalidInputError(f"vectors have dtype {given.dtype}, this index needs float32")
    if given.dtype == np.float32:
        rows = np.ascontiguousarray(given)
    else:
        with np.errstate(over="ignore"):  # a float64 out of range becomes inf, and is refused below
            rows = np.ascontiguousarray(given, dtype=np.float32)
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS]
        lengths = np.sqrt(np.einsum("ij,ij->i", block, block, dtype=np.float64))
        if (np.abs(lengths - 1) <= _UNIT_TOLERANCE).all():
            continue
        bad = ~np.isfinite(lengths) | (lengths == 0)
        if bad.any():
            position = int(np.argmax(bad))
            fault = "is zero" if lengths[position] == 0 else "has a value that is not finite"
            raise InvalidInputError(
                f"vector {start + position} of {len(rows)} {fault}; drop it, or check its encoder or file"
            )
        off = np.flatnonzero(np.abs(lengths - 1) > _UNIT_TOLERANCE)
        if off.size:
            if np.may_share_memory(rows, given):
                rows = rows.copy()  # never write into the caller's array
                block = rows[start : start + _BLOCK_ROWS]
            block[off] = block[off] / lengths[off, None]
    return rows


def check_keys(keys: ArrayLike) -> NDArray[np.int64]:
    """Keys to add or to remove as int64 [n]: each at least 0, no repeats."""
    checked = check_key_dtype(keys)
    if checked.size and checked.min() < 0:
        raise InvalidInputError(f"key {checked.min()} is negative; keys are integers >= 0")
    values, counts = np.unique(checked, return_counts=True)
    if values.size < checked.size:
        raise InvalidInputError(f"key {values[counts > 1][0]} is given more than once in one call")
    return checked


def check_key_dtype(keys: ArrayLike) -> NDArray[np.int64]:
    """Integers as int64 [n]."""
    given = as_array(keys, "keys")
    if given.ndim != 1:
        raise InvalidInputError(f"keys have shape {list(given.shape)}, they must be one row of integers [n]")
    if given.size == 0:
        return np.empty(0, np.int64)
    if given.dtype.kind not in "iu":
        raise InvalidInputError(f"keys have dtype {given.dtype}, they must be integers (int64)")
    if given.dtype.kind == "u" and given.max() > np.iinfo(np.int64).max:
        raise InvalidInputError(f"key {given.max()} does not fit into int64")
    return given.astype(np.int64)


def check_integer(name: str, value: Any, *, least: int = 1, most: int = 2**31 - 1) -> int:
    """An integer setting within bounds; the default upper bound is that of C's int."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not least <= number <= most:
        raise InvalidInputError(f"{name} must be an integer from {least} to {most}, not {shown(value)}")
    return number


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def as_array(values: ArrayLike, name: str) -> NDArray[Any]:
    """An array of anything; an InvalidInputError for ragged rows, and tensors that NumPy cannot read."""
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InvalidInputError(f"{name} cannot be read as an array: {error}") from error


def nearest(
    index: Index, vectors: NDArray[np.float32], k: int, among: NDArray[np.int64] | None = None
) -> Neighbors:
    """Search an index, which may be a plugin, and check its answer: as :meth:`Index.search`.

    An index answers with k columns however few vectors it has, so k is cut to their number. With ``among``,
    keys int64 [m], it must be a FilteredIndex, and this is as :meth:`FilteredIndex.search_among`.

    Raises:
        PartError: wrong shapes or dtypes, scores that are not finite, not cosines or not best first, a
            negative or repeated key or one that is not in ``among``, or padding in front of a key.
    """
    if among is None:
        k = min(k, max(len(index), 1))
        found = index.search(vectors, k)
    else:
        assert isinstance(index, FilteredIndex)
        found = index.search_among(vectors, k, among)
    wrong = _wrong(found, len(vectors), k)
    if wrong is None and among is not None and not np.isin(found.keys, np.append(among, -1)).all():
        wrong = "a key that is not among those given"
    if wrong:
        raise PartError(
            f"the index {type(index).__name__} gave {wrong}; it breaks its contract, which "
            "zsqretrieval.testing.check_index checks"
        )
    return found


def _wrong(found: object, q: int, k: int) -> str | None:
    """What is wrong with the answer of an index to q queries."""
    if not isinstance(found, Neighbors):
        return f"{type(found).__name__}, not Neighbors"
    for name, values, dtype in (("keys", found.keys, np.int64), ("scores", found.scores, np.float32)):
        if not isinstance(values, np.ndarray) or values.dtype != dtype:
            kind = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
            return f"{name} of {kind}, not {np.dtype(dtype)}"
        if values.shape != (q, k):
            return f"{name} of shape {list(values.shape)}, not {[q, k]}"
    there = found.keys >= 0
    if (found.keys < -1).any() or (there[:, 1:] > there[:, :-1]).any():
        return "a negative key, or -1 in front of a key"
    if not np.isfinite(scores := found.scores[there]).all() or (np.abs(scores) > 1 + _SCORE_TOLERANCE).any():
        return f"the score {scores[np.argmax(~(np.abs(scores) <= 1))]}, not a cosine"
    with np.errstate(invalid="ignore"):  # nan behind the last key
        if (found.scores[:, 1:] > found.scores[:, :-1] + _SCORE_TOLERANCE).any():
            return "scores that are not best first"
    ordered = np.sort(found.keys, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        return "a key twice for one query"
    return None
