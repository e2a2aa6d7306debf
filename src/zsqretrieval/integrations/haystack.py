"""Haystack: components that search an album and that re-rank image documents by likelihood.

Both are made of JSON values, load their models in ``warm_up``, and can be saved with a pipeline. Loading one
needs ``Pipeline.load(..., allowed_modules=["zsqretrieval.*"])``.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict

from zsqretrieval._util.checks import check_counts
from zsqretrieval.data.documents import DocumentImage
from zsqretrieval.generators.lazy import LazyGenerator
from zsqretrieval.integrations.documents import DocumentRanker, hit_metadata
from zsqretrieval.retriever import Retriever
from zsqretrieval.types import Hit


@component
class ZsqRetriever:
    """Find the images of an album on disk.

    A document has the id, caption and score of a hit, and in ``meta`` the metadata of the image together with
    ``source``, ``file_path`` (the same), ``digest``, ``caption``, ``score`` and ``scores``.

    Args:
        album: directory of the album.
        top_k: documents, >= 1; fewer when the album is smaller.
        preset: makes the album if there is none; None if it must exist.
        search: other arguments of :meth:`Retriever.search <zsqretrieval.retriever.Retriever.search>` as JSON
            values, such as ``{"rerank": None}``.
        trust_parts: as for :meth:`Retriever.open <zsqretrieval.retriever.Retriever.open>`.

    Raises:
        InvalidInputError: ``top_k`` < 1; or when it runs, as ``Retriever.search``.
        AlbumError: from :meth:`warm_up`, as ``Retriever.open``.
    """

    def __init__(
        self,
        album: str,
        top_k: int = 10,
        *,
        preset: str | None = None,
        search: dict[str, Any] | None = None,
        trust_parts: bool = False,
    ) -> None:
        check_counts(top_k=top_k)
        self.album, self.top_k, self.preset = album, top_k, preset
        self.search, self.trust_parts = search or {}, trust_parts
        self._retriever: Retriever | None = None

    def warm_up(self) -> None:
        """Open the album, and load its generator if searches re-rank."""
        retriever = self._opened()
        if self.search.get("rerank", "auto") is not None:
            _ = retriever.generator

    def _opened(self) -> Retriever:
        if self._retriever is None:
            self._retriever = Retriever.open(self.album, self.preset, trust_parts=self.trust_parts)
        return self._retriever

    def close(self) -> None:
        """Close the album; the next run opens it again."""
        if self._retriever is not None:
            self._retriever.close()
            self._retriever = None

    def to_dict(self) -> dict[str, Any]:
        """Describe the component as JSON."""
        return default_to_dict(
            self,
            album=self.album,
            top_k=self.top_k,
            preset=self.preset,
            search=self.search,
            trust_parts=self.trust_parts,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ZsqRetriever:
        """Make the component from :meth:`to_dict`."""
        return default_from_dict(cls, data)

    @component.output_types(documents=list[Document])
    def run(self, query: str, top_k: int | None = None) -> dict[str, list[Document]]:
        """Search the album; ``top_k`` takes the place of the component's own."""
        ranking = self._opened().search(query, self.top_k if top_k is None else top_k, **self.search)
        return {"documents": [_document(hit) for hit in ranking]}

    @component.output_types(documents=list[Document])
    async def run_async(self, query: str, top_k: int | None = None) -> dict[str, list[Document]]:
        """As :meth:`run`, in a thread."""
        retriever = await asyncio.to_thread(self._opened)
        ranking = await retriever.asearch(query, self.top_k if top_k is None else top_k, **self.search)
        return {"documents": [_document(hit) for hit in ranking]}


def _document(hit: Hit) -> Document:
    meta = {**hit_metadata(hit), "file_path": hit.source}
    return Document(id=hit.id, content=hit.caption, meta=meta, score=hit.score)


@component
class ZsqRanker:
    """Re-rank image documents by log P(question | image).

    The image of a document is its ``blob``, else in a field of its ``meta``
    (:data:`~zsqretrieval.data.documents.FIELDS`). Documents without an image that can be scored come
    last with the score None, and ``unavailable`` is their number. Of documents with the same id one remains.

    Args:
        generator: plugin name of the generator.
        top_k: documents to return, >= 1; all when None.
        generator_config: settings of the generator.
        scoring: ``"likelihood"`` or ``"yes_no"``.
        batch_size: images scored together, >= 1; does not change the result.
        fetch: whether ``http`` and ``https`` URLs are downloaded.

    Raises:
        InvalidInputError: a number is < 1, or there is no such scoring rule; when it runs, there is no such
            generator, or the question is empty.
    """

    def __init__(
        self,
        generator: str = "mini",
        top_k: int | None = None,
        *,
        generator_config: dict[str, Any] | None = None,
        scoring: str = "likelihood",
        batch_size: int = 16,
        fetch: bool = False,
    ) -> None:
        check_counts(or_none=True, top_k=top_k)
        self.generator, self.top_k, self.generator_config = generator, top_k, generator_config or {}
        self.scoring, self.batch_size, self.fetch = scoring, batch_size, fetch
        self._ranker = DocumentRanker(
            LazyGenerator(generator, generator_config),
            scoring,
            batch_size=batch_size,
            fetch=fetch,
        )

    def warm_up(self) -> None:
        """Load the generator."""
        self._ranker.generator.get()

    def to_dict(self) -> dict[str, Any]:
        """Describe the component as JSON."""
        return default_to_dict(
            self,
            generator=self.generator,
            top_k=self.top_k,
            generator_config=self.generator_config,
            scoring=self.scoring,
            batch_size=self.batch_size,
            fetch=self.fetch,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ZsqRanker:
        """Make the component from :meth:`to_dict`."""
        return default_from_dict(cls, data)

    @component.output_types(documents=list[Document], unavailable=int)
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        """Order documents for a question, best first; ``top_k`` takes the place of the component's own."""
        check_counts(or_none=True, top_k=top_k)
        unique = list({one.id: one for one in documents}.values())
        ranked = self._ranker.rank(query, [_image(one) for one in unique])
        best = [replace(unique[n], score=score) for n, score in ranked]
        unavailable = sum(one.score is None for one in best)
        return {"documents": best[: self.top_k if top_k is None else top_k], "unavailable": unavailable}

    @component.output_types(documents=list[Document], unavailable=int)
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, Any]:
        """As :meth:`run`, in a thread."""
        return await asyncio.to_thread(self.run, query, documents, top_k)


def _image(document: Document) -> DocumentImage:
    return document.meta if document.blob is None else document.blob.data
