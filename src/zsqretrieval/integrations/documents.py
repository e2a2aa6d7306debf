"""Documents of other frameworks: their images, their order for a question, and hits as metadata."""

from __future__ import annotations

import base64
import binascii
import urllib.parse
import urllib.request
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any, TypeAlias, final

import numpy as np

from zsqretrieval import __version__
from zsqretrieval._util.checks import check_counts, check_text
from zsqretrieval.data.images import DECODERS, MAX_BYTES, ImageLike, as_image, check_bytes, dimensions
from zsqretrieval.data.sources import Reopener, is_member
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.generators.lazy import LazyGenerator
from zsqretrieval.protocols import Generator
from zsqretrieval.search.fusion import best_first
from zsqretrieval.search.rerank import Rerank, RerankLike
from zsqretrieval.search.scoring import Scoring, score_pairs
from zsqretrieval.types import Hit, Image

DocumentImage: TypeAlias = ImageLike | bytearray | Mapping[str, Any] | None
"""The image of a document: a path, ``path#member`` of a tar, a data URI, a URL, encoded bytes, a PIL image, a
record, or a mapping that has one of these in a field of :data:`FIELDS`. A ``str`` is base64 only in the field
of that name, or behind the head of a data URI."""

FIELDS = ("image", "bytes", "base64", "image_path", "file_path", "path", "image_url", "source")
"""Fields of a mapping, such as the metadata of a document, in which its image is; the first one wins. An
``image_url`` may be ``{"url": ...}``."""

_FETCHED = 64 * 2**20  # most bytes of an image behind a URL
_TIMEOUT = 30.0  # seconds


def as_document_image(value: DocumentImage, *, fetch: bool = False) -> Image:
    """Describe the image of a document. Only URLs and tars are opened.

    Args:
        value: the image.
        fetch: whether ``http`` and ``https`` URLs are downloaded, up to 64 MiB each.

    Raises:
        ImageError: there is no image; a data URI or base64 is damaged; a URL is not allowed or not available;
            or a tar is damaged.
        InvalidInputError: ``value`` is of another type.
    """
    if isinstance(value, Mapping):
        name = next((name for name in FIELDS if value.get(name) is not None), None)
        value = None if name is None else value[name]
        if name == "base64" and isinstance(value, str | bytes):
            return of_base64(value)
        if isinstance(value, Mapping):
            value = value.get("url") if name == "image_url" else value
            return as_document_image(value, fetch=fetch)
    if value is None:
        raise ImageError("<document>", "it has no image")
    if isinstance(value, str):
        scheme = value[:8].lower()
        if scheme.startswith("data:"):
            return _of_data_uri(value)
        if scheme.startswith(("http://", "https://")):
            if not fetch:
                raise ImageError(value, "is a URL, and downloading is off; allow it with fetch=True")
            return Image(_download(value), value)
        if is_member(value):
            with Reopener() as files:
                return files.open(value)
    return as_image(bytes(value) if isinstance(value, bytearray) else value)


def of_base64(text: str | bytes, source: str = "<base64>") -> Image:
    """An image from base64, which may have line breaks; an ImageError if it is damaged."""
    encoded = b"".join((text.encode() if isinstance(text, str) else text).split())
    check_bytes(source, len(encoded) * 3 // 4, MAX_BYTES)
    try:
        return Image(base64.b64decode(encoded, validate=True), source)
    except binascii.Error as error:
        raise ImageError(source, f"is not base64: {error}") from error


def _of_data_uri(uri: str) -> Image:
    head, comma, data = uri.partition(",")
    if not comma:
        raise ImageError(f"{uri[:40]}", "is no data URI: it has no comma")
    source = f"<{head}>"
    if head.lower().endswith(";base64"):
        return of_base64(urllib.parse.unquote(data), source)
    check_bytes(source, len(data), MAX_BYTES)
    return Image(urllib.parse.unquote_to_bytes(data), source)


def _download(url: str) -> bytes:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": f"zsqretrieval/{__version__}"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            content: bytes = answer.read(_FETCHED + 1)
    except (OSError, ValueError, HTTPException) as error:  # ValueError: no host, no port
        raise ImageError(url, f"cannot be downloaded: {error}") from error
    check_bytes(url, len(content), _FETCHED)
    return content


@final
class DocumentRanker:
    """Orders images of documents by a generator's scores for a question.

    Args:
        generator: the language model; a :class:`~zsqretrieval.generators.lazy.LazyGenerator` is loaded on
            first use.
        scoring: ``"likelihood"``, ``"yes_no"``, or a rule such as ``Likelihood(...)``.
        batch_size: images scored together, >= 1; does not change the result.
        fetch: as for :func:`as_document_image`.

    Raises:
        InvalidInputError: a part is not of its kind, or ``batch_size`` < 1.
    """

    def __init__(
        self,
        generator: Generator | LazyGenerator,
        scoring: RerankLike = "likelihood",
        *,
        batch_size: int = 16,
        fetch: bool = False,
    ) -> None:
        self.generator = generator if isinstance(generator, LazyGenerator) else LazyGenerator.of(generator)
        check_counts(batch_size=batch_size)
        how = Rerank.of(scoring, generator=True)
        if how is None or not isinstance(how.scoring, Scoring):
            raise InvalidInputError(f"scoring must be a rule for the generator, not {scoring!r}")
        self._scoring, self._batch_size, self._fetch = how.scoring, batch_size, fetch

    def rank(self, question: str, images: Sequence[DocumentImage]) -> list[tuple[int, float | None]]:
        """Order n images for a question.

        Returns:
            Position and score of each image, best first. Images that cannot be opened, or that the generator
            cannot take, come last in the order given, with the score None; a RuntimeWarning counts them.

        Raises:
            InvalidInputError: the question is empty, or too long for the generator.
        """
        check_text(question, "the question")
        if not images:
            return []
        faults: dict[int, InvalidInputError] = {}
        with ThreadPoolExecutor(DECODERS) as pool:
            opened = list(pool.map(self._opened, images))
        with self.generator.using() as model:
            scores = score_pairs(
                model,
                self._scoring,
                [question] * len(opened),
                opened,
                batch_size=self._batch_size,
                faults=faults,
            )
        for fault in faults.values():
            if not isinstance(fault, ImageError):  # the question is at fault
                raise fault
        if faults:
            warnings.warn(
                f"{len(faults)} of {len(images)} documents have no image that can be scored and rank last, "
                f"the first: {faults[min(faults)]}",
                RuntimeWarning,
                stacklevel=3,
            )
        order = best_first(np.where(np.isnan(scores), -np.inf, scores)).tolist()
        return [(n, None if n in faults else float(scores[n])) for n in order]

    def _opened(self, value: DocumentImage) -> Image | ImageError:
        """The image if its header can be read, else the reason."""
        try:
            image = as_document_image(value, fetch=self._fetch)
            dimensions(image)
        except InvalidInputError as error:
            return error if isinstance(error, ImageError) else ImageError("<document>", str(error))
        return image


HIT_FIELDS = ("id", "source", "digest", "caption", "score", "scores")
"""Fields of a hit in the metadata of its document."""


def hit_metadata(hit: Hit) -> dict[str, Any]:
    """A hit as JSON values: the metadata of its image and the :data:`HIT_FIELDS`, which take precedence."""
    return {**hit.metadata, **{name: getattr(hit, name) for name in HIT_FIELDS}, "scores": dict(hit.scores)}
