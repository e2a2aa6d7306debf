"""Opening the files of a data set, so that whatever is wrong is said with its place."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.types import Image

_T = TypeVar("_T")


def found(path: Path, what: str, origin: str) -> Path:
    """The path, if there is something.

    Args:
        path: a file or folder.
        what: what it should hold.
        origin: who hands it out, for whoever does not have it.
    """
    path = Path(path)
    if not path.exists():
        raise InvalidInputError(f"{path} is missing: {what}. Nothing is downloaded; get it from {origin}")
    return path


def read_text(path: Path) -> str:
    """The content of a UTF-8 file, a byte order mark left out."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path}: no UTF-8 text at byte {error.start}; convert the file") from error
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read: {error.strerror}") from error


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, each after its place, ``file:number``."""
    # Not splitlines, which also cuts at characters that captions contain, such as U+0085 and U+2028.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield f"{path.name}:{number}", line.rstrip("\r")


def json_value(text: str, place: str) -> Any:
    """A JSON document, or an error that names the place."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidInputError(f"{place}: broken JSON: {error}") from error


def field(record: Any, name: str, kind: type[_T], place: str) -> _T:
    """A field of a JSON object, of the type it must have."""
    if not isinstance(record, Mapping):
        raise InvalidInputError(f"{place}: not an object but {type(record).__name__}")
    if name not in record:
        raise InvalidInputError(f"{place}: has no {name!r}, only {', '.join(map(str, record)) or 'nothing'}")
    value = record[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InvalidInputError(f"{place}: {name!r} is {value!r}, which is no {kind.__name__}")
    return value


def table(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file with a header, each after its place; the columns named must be there."""
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        header = [name.strip() for name in rows.fieldnames or ()]
        if missing := [name for name in columns if name not in header]:
            raise InvalidInputError(
                f"{path.name}:1: has no column {missing[0]!r}, only {', '.join(header) or 'nothing'}"
            )
        rows.fieldnames = header
        for row in rows:
            place = f"{path.name}:{rows.line_num}"
            if short := [name for name in columns if row[name] is None]:
                raise InvalidInputError(f"{place}: the row ends before the column {short[0]!r}")
            yield place, row
    except csv.Error as error:
        raise InvalidInputError(f"{path.name}:{rows.reader.line_num}: broken CSV: {error}") from error


def image_file(path: Path, id: str, place: str, origin: str) -> Image:
    """The record of an image that a file names; it has to be there."""
    if not path.is_file():
        raise InvalidInputError(
            f"{place}: names the image {path}, which is missing. Nothing is downloaded; get the images from "
            f"{origin}"
        )
    return Image(content=path.absolute(), source=str(path.absolute()), id=id)
