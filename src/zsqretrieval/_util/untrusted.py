"""Reading data that somebody else made: JSON with limits, and folders without links and devices."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from zsqretrieval._util.checks import is_unicode

_DEEPEST = 100  # levels of nested JSON; Python's own limit depends on the caller


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; a ValueError if it is none, is nested too deep, or has a number that is not finite."""
    if isinstance(text, bytes):
        text = text.decode()
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if text.count("[") + text.count("{") > _DEEPEST:
        check_depth(value)
    return value


_TOO_DEEP = f"it is nested more than {_DEEPEST} levels deep"


def check_depth(value: Any) -> None:
    """Raise a ValueError if a JSON value is nested more than 100 levels deep."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [one for above in level for one in _children(above) if isinstance(one, (dict, list, tuple))]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def mended_json(value: Any) -> tuple[Any, tuple[str, ...]]:
    """A copy of JSON values that any JSON file can hold, and what was replaced, in words.

    Characters that are not Unicode become U+FFFD. Numbers that are not finite or have more than 4,300 digits,
    and what is nested more than 100 levels deep, become None. Other types stay as they are.
    """
    notes: dict[str, None] = {}
    return _mended(value, 0, notes), tuple(notes)


def _mended(value: Any, depth: int, notes: dict[str, None]) -> Any:
    if value is None or (type(value) is str and value.isascii()):
        return value  # most values
    if isinstance(value, str):
        if not is_unicode(value):
            notes["text that is not Unicode, now U+FFFD"] = None
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    elif isinstance(value, float):
        if not math.isfinite(value):
            notes["a number that is not finite, now null"] = None
            return None
    elif isinstance(value, int):
        if value.bit_length() > _LONGEST:
            notes["a number of thousands of digits, now null"] = None
            return None
    elif isinstance(value, (dict, list, tuple)):
        if depth == _DEEPEST:
            notes[f"parts nested more than {_DEEPEST} levels deep, now null"] = None
            return None
        if isinstance(value, dict):
            return {
                k if isinstance(k, tuple) else _mended(k, depth, notes): _mended(v, depth + 1, notes)
                for k, v in value.items()
            }
        return [_mended(one, depth + 1, notes) for one in value]
    return value


_LONGEST = 14_281  # bits of 4,299 digits; Python refuses to write and read more than 4,300


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, (list, tuple)) else ()


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text} is out of range")
    return number


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)


def check_regular(path: Path) -> None:
    """Raise a ValueError unless a path is a regular file and no link; an OSError if it cannot be examined."""
    mode = path.lstat().st_mode
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is {_kind(mode)}, not a file")


def check_tree(folder: Path) -> None:
    """Raise a ValueError, which names the entry, unless a folder has only regular files and such folders."""
    mode = folder.lstat().st_mode
    if not stat.S_ISDIR(mode):
        raise ValueError(f"{folder} is {_kind(mode)}, not a folder")
    waiting = [os.fspath(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):
                    mode = entry.stat(follow_symlinks=False).st_mode
                    raise ValueError(f"{entry.path} is {_kind(mode)}, not a file")


def deletes_another_file(journal: Path) -> bool:
    """Whether SQLite would delete a file that a rollback journal names, as those of several databases do."""
    if not journal.exists():
        return False
    with journal.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - len(_JOURNAL_MAGIC)))
        return file.read() == _JOURNAL_MAGIC


_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")  # at the end only behind such a name


def has_holes(path: Path) -> bool:
    """Whether most of a large file is not on the disk: a few bytes can claim many gigabytes."""
    status = path.stat()
    blocks: int | None = getattr(status, "st_blocks", None)  # of 512 bytes; not on Windows
    return blocks is not None and status.st_size > 64 * 2**20 and 1024 * blocks < status.st_size


def _kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "a link"
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a file" if stat.S_ISREG(mode) else "a pipe or a device"
