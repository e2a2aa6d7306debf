"""What models have made, kept in files, so that an interrupted bench goes on where it was."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, MutableMapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, final

from typing_extensions import Self

from zsqretrieval.encoders.cached import CachedEncoder
from zsqretrieval.errors import IntegrityError
from zsqretrieval.protocols import Encoder

__all__ = ["Remembered", "kept_vectors"]


@contextmanager
def kept_vectors(encoder: Encoder, work: Path | None) -> Iterator[CachedEncoder]:
    """The encoder, computing nothing twice; the file is closed at the end, whatever happens in between.

    Args:
        encoder: the encoder that computes.
        work: folder that keeps the vectors, made when missing; None to remember in memory only.

    Raises:
        IntegrityError: what the folder holds is no such file, or damaged.
    """
    if work is not None:
        Path(work).mkdir(parents=True, exist_ok=True)
    with closing(CachedEncoder(encoder, None if work is None else Path(work) / "vectors.sqlite")) as keeping:
        yield keeping


@final
class Remembered(MutableMapping[tuple[str, ...], Any]):
    """A mapping from names to JSON values that :meth:`keep` writes to an SQLite file.

    Args:
        path: the file, made when missing; one file may serve many settings.
        setting: whatever the values depend on besides their names.

    Raises:
        IntegrityError: ``path`` is no such file, or damaged.
    """

    def __init__(self, path: Path, setting: str) -> None:
        self._path = path
        self._setting = hashlib.sha256(setting.encode(errors="surrogatepass")).hexdigest()
        self._new: dict[tuple[str, ...], Any] = {}
        with self._refusal():
            self._store = sqlite3.connect(path, timeout=60)
            try:
                self._known = self._read()
            except BaseException:
                self._store.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def _read(self) -> dict[tuple[str, ...], Any]:
        self._store.execute(
            "CREATE TABLE IF NOT EXISTS said (setting TEXT, name TEXT, value TEXT, "
            "PRIMARY KEY (setting, name)) WITHOUT ROWID"
        )
        rows = self._store.execute("SELECT name, value FROM said WHERE setting = ?", (self._setting,))
        return {tuple(json.loads(name)): json.loads(value) for name, value in rows}

    def keep(self) -> None:
        """Write down what is new; on disk once this returns.

        Raises:
            IntegrityError: the file cannot be written.
        """
        rows = [(self._setting, json.dumps(name), json.dumps(value)) for name, value in self._new.items()]
        with self._refusal(), self._store:
            self._store.executemany("INSERT OR REPLACE INTO said VALUES (?, ?, ?)", rows)
        self._new = {}

    def __getitem__(self, name: tuple[str, ...]) -> Any:
        return self._known[name]

    def __setitem__(self, name: tuple[str, ...], value: Any) -> None:
        self._known[name] = self._new[name] = value

    def __delitem__(self, name: tuple[str, ...]) -> None:
        raise TypeError("what was said is not taken back")

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    @contextmanager
    def _refusal(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            raise IntegrityError(
                f"{self._path} cannot be used to keep answers: {error}; delete it, it will refill"
            ) from error
