"""The images of an album as a dialog needs them, although images may be removed during the dialog."""

# ruff: noqa: D102  (the methods are documented in Gallery)

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.album.candidates import Viewer
from zsqretrieval.album.catalog import Catalog, Record
from zsqretrieval.album.filters import Filter
from zsqretrieval.encoders.checked import encode_texts
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.protocols import Encoder, Generator
from zsqretrieval.search.dense import FirstStage
from zsqretrieval.search.query import Query
from zsqretrieval.tasks.english import question_in
from zsqretrieval.types import Hit, Image, ImageState, Progress


@final
class AlbumGallery:
    """The :class:`~zsqretrieval.dialog.oracle.Gallery` of an album; a replaced file is another image.

    ``where`` selects the images that become candidates; ``progress`` counts the images whose features are
    computed.
    """

    def __init__(
        self,
        encoder: Encoder,
        catalog: Catalog,
        first_stage: FirstStage,
        viewer: Viewer,
        progress: Progress | None = None,
        where: Filter | None = None,
    ) -> None:
        self._encoder, self._catalog, self._first_stage, self._viewer = encoder, catalog, first_stage, viewer
        self._progress, self._where = progress, where

    def first_stage(self, text: str, k: int) -> tuple[Hit, ...]:
        return self._first_stage.search([Query(text)], k, where=self._where)[0].hits

    def similarities(self, texts: Sequence[str], hits: Sequence[Hit]) -> NDArray[np.float64]:
        encoded = encode_texts(self._encoder, texts)
        cosine = np.full((len(texts), len(hits)), np.nan)
        while True:
            here = self.present(hits)
            keys = [hit.key for hit, is_here in zip(hits, here, strict=True) if is_here]
            try:
                vectors = self._catalog.log.get(keys)
            except InvalidInputError:  # an image was removed between the two steps: look again
                continue
            cosine[:, here] = encoded @ vectors.T
            return cosine

    def encoded_alike(self, texts: Sequence[str]) -> bool:
        return encoded_alike(self._encoder, texts)

    def present(self, hits: Sequence[Hit]) -> NDArray[np.bool_]:
        return np.array([record is not None for record in self._records(hits)], np.bool_)

    def _records(self, hits: Sequence[Hit]) -> list[Record | None]:
        """The record of each hit; None where it was removed, or where this is another album."""
        with self._catalog.reading():
            known = self._catalog.known_keys([hit.key for hit in hits])
            found = {(one.key, one.id, one.source): one for one in self._catalog.records(sorted(known))}
        return [found.get((hit.key, hit.id, hit.source)) for hit in hits]

    def stored_questions(self, hits: Sequence[Hit]) -> list[tuple[str, ...]]:
        # without captions and key words
        stored: dict[int, list[str]] = {hit.key: [] for hit in hits}
        for one in self._catalog.questions.of(list(stored)):
            if one.judgement.kept and question_in(one.text):  # a dropped one may not fit the image
                stored[one.image].append(one.text)
        return [tuple(stored[hit.key]) for hit in hits]

    @contextlib.contextmanager
    def showing(
        self, hits: Sequence[Hit]
    ) -> Iterator[tuple[Generator, list[Image | ImageState | ImageError]]]:
        here = [record for record in self._records(hits) if record is not None]
        with (
            self._catalog.kept.files() as files,
            self._viewer.showing(here, files, self._progress) as (generator, shown),
        ):
            by_key = {record.key: one for record, one in zip(here, shown, strict=True)}
            removed = "was removed from the album"
            yield generator, [by_key.get(hit.key, ImageError(hit.source, removed)) for hit in hits]


def encoded_alike(encoder: Encoder, texts: Sequence[str]) -> bool:
    """Whether an encoder makes the same vector of all texts, as it does of texts that it truncates."""
    vectors = encode_texts(encoder, texts)
    return bool(np.allclose(vectors, vectors[:1], rtol=0, atol=1e-5))
