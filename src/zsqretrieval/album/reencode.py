"""Encoding an album anew with another encoder, while it is searched with the old one.

    images, questions --new encoder--> states-*/ by digest --new index--> one transaction: vectors, settings

Vectors are stored by the digest of their image, or of their text, until all are there. So an interrupted call
continues where it stopped, and images may be added and removed in the meantime. The last transaction replaces
all vectors and the name of the encoder. Whoever else has the album open then gets an AlbumError.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.batches import batched
from zsqretrieval._util.checks import first_of
from zsqretrieval.album.candidates import open_image, parts_by_size
from zsqretrieval.album.catalog import Catalog, Record
from zsqretrieval.album.changes import Position
from zsqretrieval.album.features import StateKind, StateStore
from zsqretrieval.album.ingest import counted
from zsqretrieval.album.sync import IndexSync
from zsqretrieval.data.loader import Skipped
from zsqretrieval.data.sources import VECTOR
from zsqretrieval.encoders.checked import encode_each, encode_texts
from zsqretrieval.errors import AlbumError, ImageError, InvalidInputError
from zsqretrieval.protocols import Encoder, Index
from zsqretrieval.types import Image, Progress

_CHUNK = 512  # images whose vectors are written together


@dataclass(frozen=True, slots=True, repr=False)
class ReencodeReport:
    """Result of :meth:`Retriever.reencode <zsqretrieval.retriever.Retriever.reencode>`."""

    images: int
    questions: int  # retained ones, with a new vector
    dropped: tuple[Skipped, ...]  # images that could not be encoded, and were removed
    seconds: float

    __repr__ = counted


@final
class Reencoding:
    """Makes the new vectors of an album and the new index; ``index`` is empty."""

    def __init__(
        self,
        catalog: Catalog,
        encoder: Encoder,
        index: Index,
        album: Path | None,
        batch_size: int,
        progress: Progress | None,
    ) -> None:
        self._catalog, self._encoder, self._index = catalog, encoder, index
        self._batch_size, self._progress = batch_size, progress
        kind = StateKind(f"vectors of {encoder.fingerprint}", (encoder.dim,), np.dtype(np.float32))
        self._store = StateStore(kind, album)
        self._faults: dict[str, Skipped] = {}  # by digest
        self._indexed: set[int] = set()  # keys

    def run(
        self, old: IndexSync, settings: Mapping[str, Any], *, drop: bool
    ) -> tuple[Catalog, IndexSync, ReencodeReport]:
        """Encode everything, then switch; ``settings`` name the new encoder.

        Raises:
            InvalidInputError: images cannot be opened or encoded, unless ``drop`` removes them; or a question
                cannot be encoded. Nothing has changed.
        """
        begin = time.perf_counter()
        self._catalog.check_place()
        if not drop:  # before hours of work
            records = self._catalog.iter_records()
            self._refuse(
                Skipped(one.source, "has no image") for one in records if one.digest.endswith(VECTOR)
            )
        self._encode_all()
        if not drop:
            self._refuse(self._lost().values())
        self._fill_index()
        with old.retiring() as hand_over:
            catalog, position, questions, dropped = self._switch(settings, drop)
            hand_over(catalog.log)
        catalog.sweep_kept(list(dropped))
        self._store.drop()
        report = ReencodeReport(
            len(self._indexed), questions, tuple(dropped.values()), time.perf_counter() - begin
        )
        return catalog, IndexSync(catalog, catalog.log, self._index, position), report

    def _refuse(self, faults: Iterable[Skipped]) -> None:
        if some := list(faults):
            named = first_of([f"{one.source}: {one.reason}" for one in some])
            raise InvalidInputError(
                f"{len(some)} images cannot be encoded anew, so the album keeps its encoder: {named}. "
                "Bring them back and call again, which continues; or remove them by drop=True (--drop)"
            )

    # --- vectors ------------------------------------------------------------------------------------------

    def _encode_all(self) -> None:
        done = 0
        for records in batched(self._catalog.iter_records(), _CHUNK):
            self._encode(records)
            done += len(records)
            if self._progress is not None:
                self._progress("encoding images", done, max(done, len(self._catalog)))
        for texts in self._catalog.questions.vector_texts():
            self._encode_texts(list(texts.values()))

    def _encode(self, records: Sequence[Record]) -> None:
        """Store the vectors of images that have none yet."""
        missing = set(self._store.missing(one.digest for one in records)) - self._faults.keys()
        waiting = [one for one in records if one.digest in missing]
        with self._catalog.kept.files() as files:
            for part in parts_by_size(waiting):
                opened = [open_image(files, one) for one in waiting[part]]
                images = [one for one in opened if isinstance(one, Image)]
                encoded = iter(encode_each(self._encoder, images, batch_size=self._batch_size))
                vectors: dict[str, NDArray[np.float32]] = {}
                for record, image in zip(waiting[part], opened, strict=True):
                    made = next(encoded) if isinstance(image, Image) else image
                    if isinstance(made, ImageError):
                        self._faults[record.digest] = Skipped(made.source, made.reason)
                    else:
                        vectors[record.digest] = made
                self._put(vectors)

    def _encode_texts(self, texts: Sequence[str]) -> None:
        by_digest = {_text_digest(text): text for text in texts}
        if missing := self._store.missing(by_digest):
            vectors = encode_texts(self._encoder, [by_digest[one] for one in missing])
            self._put(dict(zip(missing, vectors, strict=True)))

    def _put(self, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        try:
            with self._store.held():
                self._store.put(vectors)
        except OSError as error:
            raise AlbumError(f"the new vectors cannot be written: {error.strerror or error}") from error

    def _vectors(self, records: Sequence[Record]) -> list[NDArray[np.float32]]:
        """The new vectors of images that are no faults; damaged ones are made again."""
        digests = [one.digest for one in records]
        found = self._store.get(digests)
        if len(found) < len(digests):
            self._encode(records)
            found = self._store.get(digests)
        return [found[digest] for digest in digests]

    # --- index and switch ---------------------------------------------------------------------------------

    def _fill_index(self) -> None:
        """Add the images that the index does not have yet."""
        for records in batched(self._catalog.iter_records(), 4096):
            self._encode(records)  # those added since
            self._add([one for one in records if one.digest not in self._faults])
            if self._progress is not None:
                self._progress("indexing", len(self._indexed), max(len(self._indexed), len(self._catalog)))

    def _add(self, records: Sequence[Record]) -> list[NDArray[np.float32]]:
        """Add those that are not in the index yet; returns the vectors of all."""
        vectors = self._vectors(records)
        new = [n for n, one in enumerate(records) if one.key not in self._indexed]
        if new:
            keys = [records[n].key for n in new]
            self._index.add(np.array(keys, np.int64), np.stack([vectors[n] for n in new]))
            self._indexed.update(keys)
        return vectors

    def _switch(
        self, settings: Mapping[str, Any], drop: bool
    ) -> tuple[Catalog, Position, int, dict[str, Skipped]]:
        """Replace all vectors; in one transaction, during which others wait."""
        logs = self._catalog.log, self._catalog.questions.log
        try:
            with self._catalog.transaction():
                for records in batched(self._catalog.iter_records(), _CHUNK):
                    self._encode(records)  # those added since
                lost = self._lost()
                if not drop:
                    self._refuse(lost.values())
                self._catalog.remove(list(self._catalog.known_digests(lost).values()))
                changed = self._catalog.with_encoder(self._encoder.dim, settings)
                self._replace_images(changed)
                questions = self._replace_questions(changed)
                for log in logs:  # in this process; others cannot read before the transaction ends
                    log.retired = True
                return changed, changed.log.position, questions, lost
        except BaseException:
            for log in logs:
                log.retired = False
            raise

    def _lost(self) -> dict[str, Skipped]:
        """The images of the album that cannot be encoded, tried again: some were removed and added again."""
        records = self._catalog.by_digest(self._faults)
        self._faults = {}
        self._encode(list(records.values()))
        return self._faults

    def _replace_images(self, catalog: Catalog) -> None:
        present: set[int] = set()
        for records in batched(catalog.iter_records(), 4096):
            keys = [one.key for one in records]
            catalog.log.replace(keys, self._add(records))
            present.update(keys)
        if gone := self._indexed - present:
            self._index.remove(np.array(sorted(gone), np.int64))
            self._indexed = present

    def _replace_questions(self, catalog: Catalog) -> int:
        """Returns the number of vectors."""
        count = 0
        for texts in catalog.questions.vector_texts():
            self._encode_texts(list(texts.values()))
            digests = list(map(_text_digest, texts.values()))
            found = self._store.get(digests)
            catalog.questions.log.replace(list(texts), [found[digest] for digest in digests])
            count += len(texts)
        catalog.questions.set_encoder(self._encoder.fingerprint)
        return count


def _text_digest(text: str) -> str:
    return f"text-{hashlib.sha256(text.encode()).hexdigest()}"
