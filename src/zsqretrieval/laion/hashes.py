"""Lists of rows by 128-bit hashes, in sorted files that are mapped into memory.

An allow list has the rows of a reference set, a removal list those that must go. A list holds no URL and no
digest, only 16 bytes of BLAKE2b of each. That a given row is on a list by chance has the probability n /
2^128: 1.6e-29 for 5.5 billion entries.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b, md5, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from zsqretrieval._util.files import open_snapshot, read_lines, write_snapshot
from zsqretrieval._util.untrusted import has_holes
from zsqretrieval.errors import IntegrityError, InvalidInputError
from zsqretrieval.laion.metadata import read_metadata, text_of
from zsqretrieval.laion.storage import Location

if TYPE_CHECKING:
    import pyarrow as pa

Hashes: TypeAlias = NDArray[np.uint64]
"""[n, 2]: high and low half of n hashes."""

NAMES = ("url", "md5", "sha256", "hash", "uid")
"""Canonical columns that name a row."""

LOOKED_UP = (*NAMES, "image_path")
"""Columns that are compared with a list; ``image_path`` may be a URL in folders of embeddings."""

FORMS = {
    "md5": "hex32",
    "uid": "hex32",
    "sha256": "hex64",
    "hash": "number",
    "url": "text",
    "image_path": "text",
}
"""The form of the names of each column, as in :attr:`HashList.forms`."""

_PATTERNS = {"hex32": "[0-9a-f]{32}", "hex64": "[0-9a-f]{64}", "number": "-?[0-9]{1,19}"}
_KIND = "hash-list"
_BUCKETS = 256  # sorted one after another: 344 MB each for 5.5 billion entries


@dataclass(frozen=True, slots=True, eq=False)
class HashList:
    """A sorted list of hashes.

    Attributes:
        high: uint64 [n], rising; mapped into memory.
        low: uint64 [n].
        forms: forms of the names on the list: ``hex32`` (MD5 of bytes or of a URL, uid of DataComp),
            ``hex64`` (SHA-256 of bytes or of a URL), ``number`` (LAION's ``hash``), ``text`` (URL).
    """

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    forms: frozenset[str]

    def __len__(self) -> int:
        return len(self.high)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a list.

        Raises:
            IntegrityError: there is none, or it is damaged.
            MismatchError: the folder holds something else.
        """
        if sparse := [file.name for file in path.glob("*.bin") if has_holes(file)]:
            raise IntegrityError(f"{path / sparse[0]} claims bytes that are not on the disk; fetch it again")
        with open_snapshot(path, _KIND) as found:
            high, low = (_mapped(found.file(part)) for part in ("high.bin", "low.bin"))
            forms = found.facts.get("forms")
        if len(high) != len(low) or not isinstance(forms, list):
            raise IntegrityError(f"{path} is no list of hashes; fetch it again")
        return cls(high, low, frozenset(map(str, forms)))

    @classmethod
    def write(cls, path: Path, batches: Iterable[Hashes], forms: Iterable[str]) -> Self:
        """Sort hashes into a list on disk, each once, in the memory of one bucket; replaces a former list."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            buckets = [Path(folder, f"{n:02x}") for n in range(_BUCKETS)]
            for batch in batches:
                _spill(batch, buckets)
            present = [bucket for bucket in buckets if bucket.exists()]
            for bucket in present:
                _sorted(np.fromfile(bucket, np.uint64).reshape(-1, 2)).tofile(bucket)

            def half(column: int) -> Callable[[Path], None]:
                def write(file: Path) -> None:
                    with file.open("wb") as out:
                        for bucket in present:
                            part = np.fromfile(bucket, np.uint64).reshape(-1, 2)[:, column]
                            out.write(part.astype("<u8").tobytes())

                return write

            facts = {"forms": sorted(set(forms))}
            write_snapshot(path, _KIND, facts, {"high.bin": half(0), "low.bin": half(1)})
        return cls.open(path)

    @classmethod
    def of_metadata(cls, path: Path, source: Location, by: str = "url") -> Self:
        """Write an allow list of one column of metadata, such as the URLs of Re-LAION.

        Args:
            path: folder of the list.
            source: file, folder, pattern or URL, as for :func:`~zsqretrieval.laion.metadata.read_metadata`.
            by: one of :data:`NAMES`.

        Raises:
            InvalidInputError: ``by`` is another column, or no file has it; a former list stays.
        """
        if by not in NAMES:
            raise InvalidInputError(f"an allow list is by {', '.join(NAMES)}, not by {by!r}")

        def batches() -> Iterator[Hashes]:
            found = False
            for one in read_metadata(source, columns=[by]):
                if by in one.batch.schema.names:
                    found = True
                    yield hashes_of(one.batch.column(by))
            if not found:
                raise InvalidInputError(f"{source} has no column {by!r}; choose another")

        return cls.write(path, batches(), [FORMS[by]])

    def hashes(self) -> Hashes:
        """All hashes, in memory."""
        return np.stack([self.high, self.low], axis=1)

    def contains(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Which of m hashes are on the list, bool [m]."""
        found = np.zeros(len(hashes), np.bool_)
        order = np.argsort(hashes[:, 0])  # so that neighbouring searches read neighbouring pages
        at = np.searchsorted(self.high, hashes[order, 0])
        while True:  # once, unless entries share the high half
            inside = at < len(self.high)
            at, order = at[inside], order[inside]
            same = self.high[at] == hashes[order, 0]
            at, order = at[same], order[same]
            if not len(at):
                return found
            found[order] |= self.low[at] == hashes[order, 1]
            at = at + 1

    def lists(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """Which rows of a canonical batch are on the list by any of their names, bool [n].

        Of a ``url`` and a ``URL``, both count.
        """
        found = np.zeros(batch.num_rows, np.bool_)
        for spelt in (one for one in batch.schema.names if one.lower() in LOOKED_UP):
            column, name = batch.column(spelt), spelt.lower()
            if FORMS[name] in self.forms:
                found |= self.contains(hashes_of(column))
            for form, digest in (("hex32", md5), ("hex64", sha256)) if FORMS[name] == "text" else ():
                if form in self.forms:
                    found |= self.contains(hashes_of(column, digest))
        return found


def _mapped(file: Path) -> NDArray[np.uint64]:
    count = file.stat().st_size // 8
    return np.memmap(file, "<u8", mode="r", shape=(count,)) if count else np.empty(0, np.uint64)


def _spill(hashes: Hashes, buckets: Sequence[Path]) -> None:
    """Append hashes to the files of their first byte; those of NULL are left out."""
    hashes = hashes[hashes.any(axis=1)]
    hashes = hashes[np.argsort(hashes[:, 0])]
    ends = np.searchsorted(hashes[:, 0] >> np.uint64(56), np.arange(_BUCKETS), side="right")
    begin = 0
    for bucket, end in zip(buckets, ends.tolist(), strict=True):
        if begin < end:
            with bucket.open("ab") as file:
                file.write(np.ascontiguousarray(hashes[begin:end]).tobytes())
        begin = end


def _sorted(hashes: Hashes) -> Hashes:
    hashes = hashes[np.lexsort((hashes[:, 1], hashes[:, 0]))]
    new = np.ones(len(hashes), np.bool_)
    new[1:] = (hashes[1:] != hashes[:-1]).any(axis=1)
    return hashes[new]


# --- names and their hashes -------------------------------------------------------------------------------


def hashes_of(column: Any, digest: Any = None) -> Hashes:
    """The hashes of the cells of an Arrow column of texts or integers; zero for NULL and what is neither.

    With ``digest``, such as ``hashlib.md5``, the hashes of the hexadecimal digests of the texts.
    """
    import pyarrow as pa

    texts = text_of(column).cast(pa.binary()).to_pylist()
    if digest is not None:
        texts = [None if one is None else digest(one).hexdigest().encode() for one in texts]
    elif column.type != pa.int64():
        texts = [one if one is None else _normal(one) for one in texts]
    return _hashes(texts)


def hash_texts(texts: Iterable[str]) -> Hashes:
    """The hashes of names."""
    return _hashes([_normal(text.encode(errors="surrogatepass")) for text in texts])


def form_of(text: str) -> str:
    """The form of a name, as in :attr:`HashList.forms`."""
    return next((form for form, like in _PATTERNS.items() if re.fullmatch(like, text.lower())), "text")


def _normal(text: bytes) -> bytes:
    """A name as it is hashed: digests in lower case, URLs as they are."""
    return text.lower() if len(text) in (32, 64) and text.isalnum() else text


def _hashes(texts: Sequence[bytes | None]) -> Hashes:
    made = b"".join([bytes(16) if one is None else blake2b(one, digest_size=16).digest() for one in texts])
    return np.frombuffer(made, ">u8").astype(np.uint64).reshape(-1, 2)


def read_names(file: Path) -> list[str]:
    """Read the names of a removal list.

    ``.npy``: int64, LAION's ``hash``; or pairs u8,u8, uids of DataComp. ``.parquet``: all columns of
    :data:`NAMES`. Anything else: UTF-8 text, one name a line: a URL; MD5 or SHA-256 in hexadecimal, of bytes
    or of a URL; a uid; LAION's ``hash`` as a number. Empty lines and lines that begin with ``#`` are left
    out.

    Raises:
        InvalidInputError: there is no such file, it is none of these, or has no names; says no name.
    """
    if file.suffix == ".parquet":
        names = _names_in_parquet(file)
    elif file.suffix == ".npy":
        names = _names_in_array(file)
    else:
        names = [line.strip() for _, line in read_lines(file) if not line.startswith("#")]
        for number, name in enumerate(names, start=1):
            if form_of(name) == "text" and "://" not in name:
                raise InvalidInputError(
                    f"{file}: entry {number} is no URL, MD5, SHA-256, uid or number; write one a line"
                )
    if not names:
        raise InvalidInputError(f"{file} names no row; write one hash or URL a line")
    return names


def _names_in_parquet(file: Path) -> list[str]:
    return [
        str(cell)
        for one in read_metadata(file, columns=NAMES)
        for name in NAMES
        if name in one.batch.schema.names
        for cell in one.batch.column(name).to_pylist()
        if cell is not None
    ]


def _names_in_array(file: Path) -> list[str]:
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InvalidInputError(f"{file} cannot be read: it is no array of numbers") from error
    if array.dtype == np.dtype("u8,u8") and array.ndim == 1:
        return [f"{high:016x}{low:016x}" for high, low in array.tolist()]
    if array.dtype != np.int64 or array.ndim != 1:
        raise InvalidInputError(f"{file} holds {array.dtype}, not int64 hashes or uids (u8,u8)")
    return [str(one) for one in array.tolist()]
