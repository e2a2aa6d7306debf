"""Images of documents, as other programs describe them: paths, URLs, data URIs, base64, bytes, mappings."""

from __future__ import annotations

import base64
import binascii
import time
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from zsqretrieval._util.http import AnswerTooLargeError, exchange, import_httpx, open_client
from zsqretrieval.data.images import MAX_BYTES, ImageLike, as_image, check_bytes
from zsqretrieval.data.sources import Reopener, is_member
from zsqretrieval.errors import ImageError
from zsqretrieval.types import Image

DocumentImage: TypeAlias = ImageLike | bytearray | Mapping[str, Any] | None
"""The image of a document: a path, ``path#member`` of a tar, a data URI, a URL, encoded bytes, a PIL image, a
record, or a mapping that has one of these in a field of :data:`FIELDS`. A ``str`` is base64 only in the field
of that name, or behind the head of a data URI."""

FIELDS = ("image", "bytes", "base64", "image_path", "file_path", "path", "image_url", "source")
"""Fields of a mapping, such as the metadata of a document, in which its image is; the first one wins. An
``image_url`` may be ``{"url": ...}``."""

Fetch: TypeAlias = bool | Callable[[str], bool]
"""Whether URLs are downloaded. A function decides for each URL, and for each that it redirects to."""

_HOPS = 5  # redirects
_TIMEOUT = 20.0  # seconds for each step of a download
_TOTAL_TIMEOUT = 60.0  # seconds for a download
_MOST_BYTES = 64 * 2**20  # of a download


def as_document_image(value: DocumentImage, *, fetch: Fetch = False) -> Image:
    """Describe the image of a document. Only URLs and tars are opened.

    Args:
        value: the image.
        fetch: whether ``http`` and ``https`` URLs are downloaded, up to 64 MiB each. URLs of strangers may
            lead into your own network.

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
            return Image(_fetched(value, fetch if callable(fetch) else lambda _: bool(fetch)), value)
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


def _fetched(url: str, allows: Callable[[str], bool]) -> bytes:
    httpx = import_httpx("fetching images")
    deadline, target = time.monotonic() + _TOTAL_TIMEOUT, url
    with open_client("fetching images", {"Accept-Encoding": "identity"}) as client:
        for _ in range(_HOPS + 1):
            if not allows(target):
                raise ImageError(target[:200], "is a URL, and downloading is off; allow it with fetch=True")
            try:
                answer = exchange(
                    client, "GET", target, timeout=_TIMEOUT, deadline=deadline, limit=_MOST_BYTES
                )
            except (httpx.TransportError, httpx.InvalidURL, AnswerTooLargeError, TimeoutError) as error:
                why = f"{type(error).__name__}: {error}".rstrip(": ")
                raise ImageError(url[:200], f"cannot be fetched: {why[:200]}") from error
            if answer.status == 200:
                return answer.body
            if not (300 <= answer.status < 400 and "location" in answer.headers):
                raise ImageError(url[:200], f"cannot be fetched: HTTP status {answer.status}")
            target = urllib.parse.urljoin(target, answer.headers["location"])
            if not target.lower().startswith(("http://", "https://")):
                raise ImageError(url[:200], f"cannot be fetched: it redirects to {target[:100]!r}")
    raise ImageError(url[:200], f"cannot be fetched: more than {_HOPS} redirects")
