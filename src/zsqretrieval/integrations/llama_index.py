"""LlamaIndex: retrievers over an album, and a postprocessor that re-ranks image nodes by likelihood."""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.image_retriever import BaseImageRetriever
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, ImageNode, Node, NodeWithScore, QueryBundle

from zsqretrieval._util.checks import check_counts
from zsqretrieval.data.documents import DocumentImage, as_document_image
from zsqretrieval.data.images import ImageLike
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.integrations.documents import HIT_FIELDS, DocumentRanker, hit_metadata
from zsqretrieval.retriever import Retriever
from zsqretrieval.types import Hit


class ZsqRetriever(BaseRetriever, BaseImageRetriever):
    """Find the images of an album, for a question or for an image.

    A node is an ``ImageNode`` with the id and the source of a hit, its caption as the text, and the metadata
    of the image together with ``source``, ``digest``, ``caption``, ``score`` and ``scores``. ``retrieve`` and
    ``text_to_image_retrieve`` take a question, ``image_to_image_retrieve`` the path of an image.

    Args:
        retriever: searches the album.
        similarity_top_k: nodes, >= 1; fewer when the album is smaller.
        fetch: whether ``http`` and ``https`` URLs of query images are downloaded.
        **search: other arguments of :meth:`Retriever.search <zsqretrieval.retriever.Retriever.search>`, such
            as ``rerank=None``; an image is searched with the first stage alone.

    Raises:
        InvalidInputError: as ``Retriever.search``; or a query image is missing.
    """

    def __init__(
        self, retriever: Retriever, *, similarity_top_k: int = 10, fetch: bool = False, **search: Any
    ) -> None:
        check_counts(similarity_top_k=similarity_top_k)
        super().__init__()
        self._retriever, self._k, self._fetch, self._settings = retriever, similarity_top_k, fetch, search

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._search(query_bundle.query_str, self._settings)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        ranking = await self._retriever.asearch(query_bundle.query_str, self._k, **self._settings)
        return [_node(hit) for hit in ranking]

    def _text_to_image_retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._retrieve(query_bundle)

    async def _atext_to_image_retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await self._aretrieve(query_bundle)

    def _image_to_image_retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        image = as_document_image(query_bundle.image_path, fetch=self._fetch)
        return self._search(image, {**self._settings, "rerank": None})

    async def _aimage_to_image_retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._image_to_image_retrieve, query_bundle)

    def _search(self, query: ImageLike, settings: dict[str, Any]) -> list[NodeWithScore]:
        return [_node(hit) for hit in self._retriever.search(query, self._k, **settings)]


def _node(hit: Hit) -> NodeWithScore:
    node = ImageNode(
        id_=hit.id,
        text=hit.caption or "",
        image_path=hit.source,
        metadata=hit_metadata(hit),
        excluded_embed_metadata_keys=list(HIT_FIELDS),
        excluded_llm_metadata_keys=list(HIT_FIELDS),
    )
    return NodeWithScore(node=node, score=hit.score)


class ZsqRerank(BaseNodePostprocessor):
    """Re-rank image nodes by log P(question | image).

    The image of a node is its ``image`` (base64), ``image_path``, ``image_url`` or ``image_resource``, else
    in a field of its metadata (:data:`~zsqretrieval.data.documents.FIELDS`). Nodes without an image
    that can be scored come last with the score None; a RuntimeWarning counts them.

    Attributes:
        generator: scores the images.
        scoring: ``"likelihood"``, ``"yes_no"``, or a rule such as ``Likelihood(...)``.
        top_n: nodes to return, >= 1; all when None.
        batch_size: images scored together, >= 1; does not change the result.
        fetch: whether ``http`` and ``https`` URLs are downloaded.

    Raises:
        ValidationError: a part is not of its kind, or a number is < 1; a ValueError of pydantic.
        InvalidInputError: when it runs, there is no question, or it is too long for the generator.
    """

    generator: Any = Field(exclude=True)
    scoring: Any = Field(default="likelihood", exclude=True)
    top_n: int | None = None
    batch_size: int = 16
    fetch: bool = False
    _ranker: DocumentRanker = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Check the settings."""
        super().model_post_init(context)
        check_counts(or_none=True, top_n=self.top_n)
        self._ranker = DocumentRanker(
            self.generator, self.scoring, batch_size=self.batch_size, fetch=self.fetch
        )

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in serialized components."""
        return "ZsqRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise InvalidInputError("re-ranking needs a question; give query_bundle or query_str")
        ranked = self._ranker.rank(query_bundle.query_str, [_image(one.node) for one in nodes])
        return [NodeWithScore(node=nodes[n].node, score=score) for n, score in ranked[: self.top_n]]


def _image(node: BaseNode) -> DocumentImage:
    own: dict[str, Any] = {}
    if isinstance(node, ImageNode):
        own = {"base64": node.image, "path": node.image_path, "image_url": node.image_url}
    elif isinstance(node, Node) and (resource := node.image_resource) is not None:
        url = resource.url and str(resource.url)
        own = {"base64": resource.data, "path": resource.path, "image_url": url}
    return own if any(own.values()) else node.metadata
