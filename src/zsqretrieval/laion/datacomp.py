"""Files of DataComp: metadata with CLIP features, and subsets of a pool by uid.

pool/
{stem}.parquet    uid, url, text, original_width, original_height, clip_b32_similarity_score, ...
{stem}.npz        b32_img, b32_txt, l14_img, l14_txt: float16 [n, dim]; row i belongs to row i of the table
subset.npy        dtype u8,u8: the two halves of each uid (32 hex digits), sorted
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.files import atomic_write
from zsqretrieval.data.images import in_threads
from zsqretrieval.errors import AlbumError, IntegrityError, InvalidInputError
from zsqretrieval.laion.arrays import open_array, open_arrays, open_rows
from zsqretrieval.laion.embeddings import Embeddings, Shard, paired
from zsqretrieval.laion.storage import File, Location, damage_named, list_files, parquet_module

UIDS = np.dtype("u8,u8")
"""One uid: its first and its last 16 hex digits, as unsigned integers."""

Feature: TypeAlias = Literal["b32_img", "b32_txt", "l14_img", "l14_txt"]

_ROWS = 2**20  # uids compared at once


def open_features(pool: Location, feature: Feature) -> Embeddings:
    """Open the features of a pool, on a disk or in a store, with the tables that describe them.

    Raises:
        InvalidInputError: there is no ``.npz``, or one has no such feature or no table beside it.
        IntegrityError: a file is damaged, or has other numbers of features and rows; names it.
        MissingDependencyError: there is no pyarrow, or no package for the URL.
    """
    tables = {file.path: file for file in list_files(pool, ".parquet")}

    def opened(file: File) -> Shard:
        stem = file.path.removesuffix(".npz")
        table = tables.get(f"{stem}.parquet")
        if table is None:
            raise InvalidInputError(
                f"{file} has no table {stem}.parquet beside it; fetch the metadata as well"
            )
        arrays = open_arrays(file)
        if feature not in arrays:
            raise InvalidInputError(f"{file} has no {feature}, only {', '.join(arrays)}")
        return paired(arrays[feature], file, table, str(file))

    return Embeddings(tuple(in_threads(opened, list_files(pool, ".npz"))), None)


def write_features(path: Path, table: Any, features: Mapping[str, NDArray[np.floating[Any]]]) -> None:
    """Write a ``.parquet`` and the ``.npz`` beside it, each replaced as a whole.

    Args:
        path: of the table; the features get the same name with ``.npz``.
        table: pyarrow.Table of n rows.
        features: float [n, dim] by name; stored as float16, as DataComp does.

    Raises:
        InvalidInputError: a feature has another number of rows.
        AlbumError: the disk refuses.
        MissingDependencyError: there is no pyarrow.
    """
    for name, array in features.items():
        if array.ndim != 2 or len(array) != table.num_rows:
            raise InvalidInputError(
                f"{name} has the shape {list(array.shape)}, the table {table.num_rows} rows"
            )
    try:
        with atomic_write(path.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
            np.savez(file, **{name: array.astype(np.float16) for name, array in features.items()})  # type: ignore[arg-type]
        with atomic_write(path) as temporary:
            parquet_module().write_table(table, temporary)
    except OSError as error:
        raise AlbumError(f"{path} cannot be written: {error.strerror or error}") from error


# --- subsets ----------------------------------------------------------------------------------------------


def uids_of(column: Any) -> NDArray[np.void]:
    """The n uids of a column or list of texts of 32 hex digits, as :data:`UIDS` [n].

    Zeros in front may be missing, as in some tables of DataComp.

    Raises:
        InvalidInputError: a cell is NULL or no uid; names its number.
        MissingDependencyError: there is no pyarrow.
    """
    parquet_module()
    import pyarrow as pa
    from pyarrow import compute as pc

    texts = (column if isinstance(column, pa.Array) else pa.array(column, pa.string())).cast(pa.string())
    sound = pc.match_substring_regex(texts, "^[0-9a-fA-F]{1,32}$").fill_null(False)
    wrong = pc.index(sound, False).as_py()
    if wrong >= 0:
        raise InvalidInputError(f"row {wrong}: {texts[wrong].as_py()!r:.50} is no uid of 32 hex digits")
    whole = pa.ListArray.from_arrays([0, len(texts)], pc.ascii_lpad(texts, 32, "0"))
    digits = pc.binary_join(whole, "")[0].as_py()
    return np.frombuffer(bytes.fromhex(digits), ">u8").astype(np.uint64).view(UIDS)


def texts_of(uids: NDArray[np.void]) -> list[str]:
    """The uids as texts of 32 hex digits."""
    digits = np.ascontiguousarray(uids).view(np.uint64).astype(">u8").tobytes().hex()
    return [digits[n : n + 32] for n in range(0, len(digits), 32)]


def write_subset(path: Path, uids: NDArray[np.void]) -> None:
    """Write a subset file, replaced as a whole: sorted; a uid that is given twice stays twice.

    Args:
        path: the ``.npy`` file.
        uids: :data:`UIDS` [n], in any order.

    Raises:
        InvalidInputError: the array has another dtype or shape.
        AlbumError: the disk refuses.
    """
    if uids.dtype != UIDS or uids.ndim != 1:
        raise InvalidInputError(f"uids must be {UIDS} [n], not {uids.dtype} {list(uids.shape)}; use uids_of")
    try:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.save(file, uids[np.lexsort((uids["f1"], uids["f0"]))], allow_pickle=False)
    except OSError as error:
        raise AlbumError(f"{path} cannot be written: {error.strerror or error}") from error


@final
class Subset:
    """A subset file: ``.npy``, or the same array without a header, as DataComp's resharder takes both.

    A local file is mapped into memory; of a store, all is fetched (16 bytes per uid).

    Attributes:
        uids: :data:`UIDS` [n], sorted.

    Raises:
        InvalidInputError: it does not exist, or holds something else.
        IntegrityError: it is damaged, or not sorted; names the row.
    """

    def __init__(self, location: Location) -> None:
        (file,) = list_files(location, "")
        with damage_named(file), file.open() as opened:
            named = opened.read(6) == b"\x93NUMPY"
        array = open_array(file) if named else open_rows(file, UIDS)
        if array.dtype != UIDS or len(array.shape) != 1:
            raise InvalidInputError(f"{file} holds {array.dtype} {list(array.shape)}, not {UIDS} [n]")
        for first in range(0, len(array), _ROWS):
            some = array[first : first + _ROWS + 1]
            falls = _before(some[1:], some[:-1])
            if falls.any():
                raise IntegrityError(
                    f"{file}: row {first + int(falls.argmax()) + 1} is not sorted; sort the uids"
                )
        self.uids = array[:]

    def __len__(self) -> int:
        """Number of uids, with those that are there twice."""
        return len(self.uids)

    def contains(self, uids: NDArray[np.void]) -> NDArray[np.bool_]:
        """Which of the uids [m] are in the subset, as bool [m]; by binary search of all at once."""
        below = np.zeros(len(uids), np.int64)  # number of uids of the subset before each
        for step in (1 << n for n in reversed(range(len(self).bit_length()))):
            further = below + step
            inside = further <= len(self)
            reached = self.uids[np.where(inside, further, 1) - 1]
            below = np.where(inside & _before(reached, uids), further, below)
        if not len(self):
            return np.zeros(len(uids), np.bool_)
        reached = self.uids[np.minimum(below, len(self) - 1)]
        return np.asarray((below < len(self)) & (reached == uids))


def _before(left: NDArray[np.void], right: NDArray[np.void]) -> NDArray[np.bool_]:
    """Whether each uid comes before the other one; NumPy compares such pairs one by one."""
    equal = left["f0"] == right["f0"]
    return np.asarray((left["f0"] < right["f0"]) | (equal & (left["f1"] < right["f1"])))
