"""Re-rankers behind a server that speaks ``/v1/rerank``: vLLM, SGLang, Infinity, Cohere-like."""

from __future__ import annotations

import base64
import email.utils
import io
import json
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from zsqretrieval._util.batches import batched
from zsqretrieval._util.checks import check_amounts, check_counts, check_sequence, check_text
from zsqretrieval._util.http import Answer, AnswerTooLargeError, exchange, import_httpx, open_client
from zsqretrieval._util.untrusted import parse_json
from zsqretrieval.data.images import decode, in_threads
from zsqretrieval.errors import ImageError, InvalidInputError, PartError, ZsqError
from zsqretrieval.types import Image

_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_LONGEST_PAUSE = 60.0  # seconds, unless the server asks for more
_MOST_BYTES = 16 * 2**20  # of an answer, and twice the request: some servers send the documents back
_SIDE = 64  # pixels of the squares of the self-check
_HINTS = {401: "give the right api_key", 403: "give the right api_key", 404: "check the url and the model"}
_REDIRECT = "redirects are not followed: give the right url"
_KEY = re.compile(r"[!-~]+")

_SHAPES: Mapping[str, Callable[[str], Any]] = {
    "content": lambda uri: {"content": [{"type": "image_url", "image_url": {"url": uri}}]},
    "image": lambda uri: {"image": uri},
    "url": lambda uri: uri,
}


class HTTPReranker:
    """Scores of a server: ``POST {url}/v1/rerank`` with images as data URIs.

    Before the first answer the server has to rank a red square above a blue one for "a red square": a server
    that was started without its model's chat template gives plausible scores that mean nothing. A request
    that fails by its connection, by too many requests (429) or by an error of the server (5xx) is repeated
    after a pause that doubles, with jitter, or as long as the server asks (``Retry-After``). A request that
    is too large (413) is halved. Redirects are not followed. Neither messages nor logs contain the key.

    Args:
        url: of the server, such as ``"http://localhost:8000"``; or of the method itself, ending in
            ``/rerank``. Without user, password and query.
        model: name of the model as the server knows it.
        api_key: sent as a bearer token.
        documents: how the server wants an image: ``"content"`` for ``{"content": [{"type": "image_url",
            ...}]}`` (vLLM >= 0.14, SGLang), ``"image"`` for ``{"image": URI}`` (Jina), ``"url"`` for the
            URI alone (Infinity).
        batch_size: images per request.
        max_side: longer side in pixels to which larger images are shrunk. Images are sent upright, as JPEG
            of quality 95.
        timeout: seconds to connect, to send, and to wait for more of an answer.
        total_timeout: seconds for a whole call of :meth:`score`, with its repetitions.
        retries: how often a request is repeated.
        backoff: first pause in seconds.
        self_check: whether to compare the two squares first.

    Raises:
        InvalidInputError: an argument is wrong.
        MissingDependencyError: httpx2 is not installed.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        documents: Literal["content", "image", "url"] = "content",
        batch_size: int = 16,
        max_side: int = 1280,
        timeout: float = 60.0,
        total_timeout: float = 600.0,
        retries: int = 4,
        backoff: float = 0.5,
        self_check: bool = True,
    ) -> None:
        check_text(model, "the model")
        check_counts(batch_size=batch_size, max_side=max_side)
        check_counts(0, retries=retries)
        check_amounts(timeout=timeout, total_timeout=total_timeout, backoff=backoff)
        if not isinstance(documents, str) or documents not in _SHAPES:
            raise InvalidInputError(f"documents must be one of {', '.join(_SHAPES)}, not {documents!r}")
        self._url = _checked_url(url)
        self._headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if api_key is not None:
            if not isinstance(api_key, str) or not _KEY.fullmatch(api_key):
                raise InvalidInputError("api_key must be printable ASCII characters without white space")
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._key = api_key
        import_httpx("HTTPReranker")
        self._model = model
        self._shape = documents
        self._batch_size, self._max_side = batch_size, max_side
        self._timeout, self._total_timeout = timeout, total_timeout
        self._retries, self._backoff = retries, backoff
        self._checked = not self_check

    def __repr__(self) -> str:
        return f"HTTPReranker({self._url!r}, {self._model!r})"

    @property
    def name(self) -> str:
        """Name of the score in :attr:`Hit.scores <zsqretrieval.types.Hit.scores>`."""
        return self._model

    def score(self, question: str, images: Sequence[Image]) -> NDArray[np.float64]:
        """Score n images: float64 [n], the server's relevance scores, in the order given.

        Raises:
            InvalidInputError: the question is empty.
            ImageError: an image cannot be decoded, or the server refuses it as too large; names it.
            PartError: the answer is not one finite score per image, or the self-check fails.
            ZsqError: the server cannot be reached, refuses the request, or takes too long.
        """
        check_text(question, "the question")
        check_sequence(images, "images")
        if not images:
            return np.empty(0)
        deadline = time.monotonic() + self._total_timeout
        with open_client("HTTPReranker", self._headers) as client:
            if not self._checked:
                self._check(client, deadline)
                self._checked = True
            scores: list[float] = []
            for batch in batched(images, self._batch_size):
                scores += self._ask(client, deadline, question, batch, in_threads(self._document, batch))
        return np.array(scores, np.float64)

    def _check(self, client: Any, deadline: float) -> None:
        """Compare two squares whose order is obvious."""
        squares = [
            Image(PILImage.new("RGB", (_SIDE, _SIDE), colour), f"a {colour} square")
            for colour in ("blue", "red")
        ]
        documents = list(map(self._document, squares))
        blue, red = self._ask(client, deadline, "a red square", squares, documents)
        if red <= blue:
            raise self._broken(
                f"scores a blue square {blue:.4g} and a red one {red:.4g} for the question 'a red square'; "
                "it was probably started without its model's chat template (vllm serve --chat-template ...) "
                "or the overrides of its model card. self_check=False leaves this check out"
            )

    def _ask(
        self, client: Any, deadline: float, question: str, images: Sequence[Image], documents: Sequence[Any]
    ) -> list[float]:
        content = json.dumps(
            {
                "model": self._model,
                "query": question,
                "documents": documents,
                "top_n": len(documents),
                "return_documents": False,
            }
        ).encode()
        answer = self._post(client, deadline, content)
        if answer.status == 413:
            if len(documents) == 1:
                raise ImageError(
                    images[0].source,
                    f"{self._where} refuses {len(content)} bytes as too large (413); lower max_side",
                )
            half = len(documents) // 2
            first, second = slice(half), slice(half, None)
            return [
                *self._ask(client, deadline, question, images[first], documents[first]),
                *self._ask(client, deadline, question, images[second], documents[second]),
            ]
        return self._scores(answer, len(documents))

    def _post(self, client: Any, deadline: float, content: bytes) -> Answer:
        """Send a request until there is an answer other than "later"."""
        httpx = import_httpx("HTTPReranker")
        for attempt in range(self._retries + 1):
            asked = 0.0
            try:
                answer = exchange(
                    client, "POST", self._url, content=content, headers={"Content-Type": "application/json"},
                    timeout=self._timeout, deadline=deadline, limit=_MOST_BYTES + 2 * len(content),
                )  # fmt: skip
            except AnswerTooLargeError as error:
                raise self._broken(f"gave an answer that is not read: {error}") from None
            except (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL) as error:
                raise ZsqError(f"{self._where} cannot be asked: {self._said(error)}") from None
            except httpx.TransportError as error:
                problem = f"{type(error).__name__} {self._said(error)}".strip()
            except TimeoutError:
                raise self._late("no answer yet") from None
            else:
                if answer.status not in _RETRIED:
                    return answer
                problem = f"HTTP status {answer.status} {self._said(answer.body)}".strip()
                asked = _retry_after(answer)
            if attempt == self._retries:
                break
            pause = min(self._backoff * 2**attempt, _LONGEST_PAUSE) * random.uniform(0.5, 1.0)
            pause = max(pause, asked)
            if time.monotonic() + pause >= deadline:
                raise self._late(problem)
            time.sleep(pause)
        raise ZsqError(
            f"{self._where} cannot be used after {self._retries + 1} attempts: {problem}; check that it "
            "runs, or raise retries"
        )

    def _scores(self, answer: Answer, count: int) -> list[float]:
        """The scores of an answer by the positions of the documents."""
        if answer.status != 200:
            redirect = 300 <= answer.status < 400
            hint = _HINTS.get(answer.status, _REDIRECT if redirect else "check the model and documents=")
            raise ZsqError(
                f"{self._where} refuses the request with HTTP status {answer.status}: "
                f"{self._said(answer.body)}; {hint}"
            )
        try:
            results = parse_json(answer.body)["results"]
            found = {_position(one, count): _number(one["relevance_score"]) for one in results}
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise self._broken(
                f"gave no list of results with index and relevance_score ({self._said(reason)}): "
                f"{self._said(answer.body)}"
            ) from None
        if len(results) != count or len(found) != count:
            raise self._broken(f"gave {len(results)} results for {len(found)} of {count} images")
        return [found[position] for position in range(count)]

    def _document(self, image: Image) -> Any:
        """An image as the server wants it."""
        picture = decode(image)
        picture.thumbnail((self._max_side, self._max_side))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=95, subsampling=0)
        encoded = base64.b64encode(buffer.getvalue()).decode()
        return _SHAPES[self._shape](f"data:image/jpeg;base64,{encoded}")

    @property
    def _where(self) -> str:
        return f"the re-ranking server {self._url}"

    def _said(self, words: object) -> str:
        """The beginning of what a server or an error says, on one line and without the key."""
        text = words.decode(errors="replace") if isinstance(words, bytes) else str(words)
        text = text.replace(self._key, "[key]") if self._key else text
        return " ".join("".join(c if c.isprintable() else " " for c in text[:1000]).split())[:200]

    def _broken(self, what: str) -> PartError:
        return PartError(f"{self._where} {what}")

    def _late(self, problem: str) -> ZsqError:
        return ZsqError(
            f"{self._where} gave no scores within {self._total_timeout:g} seconds ({problem}); raise "
            "total_timeout, or score fewer images"
        )


def _checked_url(url: object) -> str:
    """The address of the method."""
    if isinstance(url, str) and url.isascii() and url.isprintable():
        try:
            parts = urlsplit(url)
            parts.port  # noqa: B018  # a ValueError if it is none
        except ValueError:
            parts = urlsplit("")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise InvalidInputError("the url must have no user, password or query; give a key as api_key")
        if parts.scheme in ("http", "https") and parts.hostname:
            path = parts.path.rstrip("/")
            if not path.endswith("/rerank"):
                path = f"{path}/rerank" if path.endswith("/v1") else f"{path}/v1/rerank"
            return f"{parts.scheme}://{parts.netloc}{path}"
    raise InvalidInputError(f"the url must be that of a server, such as 'http://localhost:8000', not {url!r}")


def _position(result: Any, count: int) -> int:
    index = result["index"]
    if type(index) is not int or not 0 <= index < count:
        raise ValueError(f"index {index!r} of {count} documents")
    return index


def _number(score: Any) -> float:
    if type(score) not in (int, float):
        raise ValueError(f"relevance_score {score!r}")
    return float(score)


def _retry_after(answer: Answer) -> float:
    """Seconds that a server asks to wait; 0 if it does not say."""
    value = answer.headers.get("retry-after", "")
    try:
        if value.isdecimal():
            return float(value)
        return (email.utils.parsedate_to_datetime(value) - datetime.now(timezone.utc)).total_seconds()
    except (ValueError, TypeError, OverflowError):  # TypeError: a date without a time zone
        return 0.0
