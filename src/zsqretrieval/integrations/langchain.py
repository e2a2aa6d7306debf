"""LangChain: a retriever over an album, and a document compressor that re-ranks images by likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
    Callbacks,
)
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field, PrivateAttr

from zsqretrieval._util.checks import check_counts
from zsqretrieval.integrations.documents import DocumentRanker, hit_metadata
from zsqretrieval.retriever import Retriever
from zsqretrieval.types import Hit


class ZsqRetriever(BaseRetriever):
    """Find the images of an album.

    A document has the caption of an image as its content, which is empty without one, and the metadata of the
    image together with ``id``, ``source``, ``digest``, ``caption``, ``score`` and ``scores`` of the
    :class:`~zsqretrieval.types.Hit`.

    Attributes:
        retriever: searches the album.
        k: documents, >= 1; fewer when the album is smaller. ``invoke(question, k=3)`` takes its place.
        search_kwargs: other arguments of :meth:`Retriever.search <zsqretrieval.retriever.Retriever.search>`,
            such as ``{"rerank": None}``; ``invoke(question, rerank=None)`` changes them for one question.

    Raises:
        InvalidInputError: as ``Retriever.search``.
    """

    retriever: Retriever
    k: int = 10
    search_kwargs: dict[str, Any] = Field(default_factory=dict)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **settings: Any
    ) -> list[Document]:
        ranking = self.retriever.search(query, **self._options(settings))
        return [_document(hit) for hit in ranking]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **settings: Any
    ) -> list[Document]:
        ranking = await self.retriever.asearch(query, **self._options(settings))
        return [_document(hit) for hit in ranking]

    def _options(self, settings: dict[str, Any]) -> dict[str, Any]:
        return {"k": self.k, **self.search_kwargs, **settings}


def _document(hit: Hit) -> Document:
    return Document(hit.caption or "", metadata=hit_metadata(hit), id=hit.id)


class ZsqCompressor(BaseDocumentCompressor):
    """Re-rank documents that are images, such as those of a vector store, by log P(question | image).

    The image of a document is in a field of its metadata
    (:data:`~zsqretrieval.data.documents.FIELDS`). Documents are copied, with their score under
    ``relevance_score`` in the metadata. Those without an image that can be scored come last with None; a
    RuntimeWarning counts them.

    Attributes:
        generator: scores the images.
        scoring: ``"likelihood"``, ``"yes_no"``, or a rule such as ``Likelihood(...)``.
        top_n: documents to return, >= 1; all when None.
        batch_size: images scored together, >= 1; does not change the result.
        fetch: whether ``http`` and ``https`` URLs are downloaded.

    Raises:
        ValidationError: a part is not of its kind, or a number is < 1; a ValueError of pydantic.
        InvalidInputError: when it runs, the question is empty, or too long for the generator.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    generator: Any
    scoring: Any = "likelihood"
    top_n: int | None = None
    batch_size: int = 16
    fetch: bool = False
    _ranker: DocumentRanker = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Check the settings."""
        check_counts(or_none=True, top_n=self.top_n)
        self._ranker = DocumentRanker(
            self.generator, self.scoring, batch_size=self.batch_size, fetch=self.fetch
        )

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Order n documents for a question, best first, and return the first ``top_n``."""
        ranked = self._ranker.rank(query, [one.metadata for one in documents])
        return [
            documents[n].model_copy(update={"metadata": {**documents[n].metadata, "relevance_score": score}})
            for n, score in ranked[: self.top_n]
        ]
