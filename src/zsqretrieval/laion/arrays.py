"""Arrays in ``.npy`` and ``.npz`` files, read by rows: headers are checked, and nothing is unpickled."""

from __future__ import annotations

import contextlib
import io
import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.errors import IntegrityError, InvalidInputError
from zsqretrieval.laion.storage import File, damage_named, is_local

_LONGEST_HEADER = 2**14  # bytes; NumPy itself refuses more than 10,000 characters
_PIECE = 2**20  # bytes read of a member at once
_MOST_AT_ONCE = 2**26  # bytes that zipfile may ask for, such as a table of contents


@dataclass(frozen=True, slots=True, eq=False)
class StoredArray:
    """An array [n, ...] in a file, of which slices of rows are read.

    ``array[10:20]`` of a local file is mapped into memory and unmapped when the slice is freed; of a store,
    the bytes of these rows are fetched.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    _start: int  # of the first row
    _read: Callable[[int, int], Any]  # bytes from, and their number

    def __len__(self) -> int:
        """Number of rows."""
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """The rows of a slice without step; an IntegrityError if the file has become shorter."""
        first, last, step = rows.indices(len(self))
        if step != 1:
            raise InvalidInputError(f"rows of {self.name} are read one after another, not in steps of {step}")
        shape = (max(0, last - first), *self.shape[1:])
        width = self.dtype.itemsize * math.prod(self.shape[1:])
        size = shape[0] * width
        if not size:
            return np.empty(shape, self.dtype)
        with damage_named(self.name):
            content = self._read(self._start + first * width, size)
            return np.frombuffer(content, self.dtype).reshape(shape)


def open_array(file: File) -> StoredArray:
    """Open a ``.npy`` file by its header.

    Raises:
        IntegrityError: the header is damaged, or claims more than the file has; names the file.
        InvalidInputError: the array has objects, which would be unpickled, or is stored column by column.
    """
    read = _reader(file)
    with damage_named(file):
        head = bytes(read(0, min(file.size, _LONGEST_HEADER)))
    return _described(str(file), head, file.size, read)


def open_rows(file: File, dtype: np.dtype[Any]) -> StoredArray:
    """Open a file of nothing but rows of one type; an IntegrityError if its size is none of whole rows."""
    if file.size % dtype.itemsize:
        raise IntegrityError(f"{file} has {file.size} bytes, which are no whole rows of {dtype}")
    return StoredArray(str(file), (file.size // dtype.itemsize,), dtype, 0, _reader(file))


def _reader(file: File) -> Callable[[int, int], Any]:
    if is_local(file.system):
        return lambda start, size: np.memmap(file.path, np.uint8, "r", start, (size,))

    def read(start: int, size: int) -> Any:
        content = file.system.cat_file(file.path, start=start, end=start + size)
        if len(content) != size:
            raise ValueError("cut short")
        return content

    return read


def _described(name: str, head: bytes, size: int, read: Callable[[int, int], Any]) -> StoredArray:
    """The array of a file of ``size`` bytes that begins with ``head``."""
    with damage_named(name):
        start = io.BytesIO(head)
        version = np.lib.format.read_magic(start)
        if version not in _READERS:
            raise ValueError(f"its format has version {version}")
        shape, by_columns, dtype = _READERS[version](start)
        if any(isinstance(n, bool) or n < 0 for n in shape) or not shape:
            raise ValueError(f"the shape {shape} is none of rows")
        claimed = start.tell() + math.prod(shape) * dtype.itemsize
        if not dtype.hasobject and claimed > size:
            raise ValueError(f"it has {size} bytes, but the header claims {claimed}")
    if dtype.hasobject:
        raise InvalidInputError(f"{name} holds Python objects, which are never unpickled; save numbers")
    if by_columns and len(shape) > 1:
        raise InvalidInputError(f"{name} is stored by columns; save numpy.ascontiguousarray of it")
    return StoredArray(name, shape, dtype, start.tell(), read)


_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


# --- npz --------------------------------------------------------------------------------------------------


def open_arrays(file: File) -> dict[str, StoredArray]:
    """Open the arrays of a ``.npz`` file by name; of a compressed one, each slice is unpacked from the front.

    Memory is bounded by the slices that are read, whatever the file claims to grow to.

    Raises:
        IntegrityError: the file or a header in it is damaged, two members have one name, or one is encrypted
            or compressed in a way that NumPy does not write.
        InvalidInputError: an array has objects, or is stored by columns.
    """
    found: dict[str, StoredArray] = {}
    with damage_named(file), _opened(file) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name in found:
                raise ValueError(f"two members are called {member.filename}")
            if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{member.filename} is encrypted or compressed in an unknown way")
            read = _reader_of(file, member.filename)
            head = bytes(read(0, min(member.file_size, _LONGEST_HEADER)))
            found[name] = _described(f"{file}#{member.filename}", head, member.file_size, read)
    return found


@contextlib.contextmanager
def _opened(file: File) -> Iterator[zipfile.ZipFile]:
    with file.open() as opened, zipfile.ZipFile(_Limited(opened)) as archive:
        yield archive


def _reader_of(file: File, member: str) -> Callable[[int, int], bytearray]:
    def read(start: int, size: int) -> bytearray:
        content = bytearray()
        with _opened(file) as archive, archive.open(member) as stream:
            stream.seek(start)
            while piece := stream.read(min(size - len(content), _PIECE)):
                content += piece
        if len(content) != size:
            raise ValueError("cut short")
        return content

    return read


class _Limited:
    """A file of which a hostile archive cannot have gigabytes read at once."""

    def __init__(self, file: Any) -> None:
        self.seek, self.tell, self.close, self._read = file.seek, file.tell, file.close, file.read

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if size > _MOST_AT_ONCE:
            raise ValueError(f"it claims a part of {size} bytes")
        content: bytes = self._read(_MOST_AT_ONCE if size < 0 else size)
        return content
