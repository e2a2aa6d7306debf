"""Settings of a server, and its limits."""

from __future__ import annotations

from dataclasses import dataclass

from zsqretrieval.errors import InvalidInputError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names of this machine that only it can reach."""

MOST_RESULTS = 2_000
"""Last place of a ranking that can be asked for."""

AT_ONCE = 200
"""Most images of a page of results, and candidates that a request may have re-ranked."""

MOST_TEXT = 2_000
"""Longest text of a request in characters."""

_SHORTEST = 16


@dataclass(frozen=True, slots=True)
class Settings:
    """What the owner of a server decides.

    Attributes:
        title: heading of the page.
        token: secret that every request must bring; None asks for none.
        names: host names that requests may use, in lower case; addresses are always allowed.
        rerank: whether the generator may be used.
        waiting: requests that may wait for each of encoder and generator.
        encoded_together: requests that the encoder computes together at most.
        reranked_together: requests that the generator computes together at most.
        connections: requests that are answered at the same time.
        large: the same for requests that bring images.
        body_seconds: how long a request may take to arrive, and a second more for each 100 kB that came.
        upload_bytes: size limit of an image from a client.
        upload_pixels: the same in pixels, and for all images of a request.
        upload_rate: images per minute of one client.
        download_images: most images of one download.
        download_bytes: size limit of one download.
        kept: uploads, dialogs and rankings that are kept, each.
        kept_seconds: how long after their last use.
        grace: seconds that requests in flight have when the server ends; those left then get 503.

    Raises:
        InvalidInputError: the token is easily guessed.
    """

    title: str = "Images"
    token: str | None = None
    names: frozenset[str] = LOOPBACK
    rerank: bool = True
    waiting: int = 64
    encoded_together: int = 64
    reranked_together: int = 8
    connections: int = 512
    large: int = 8
    body_seconds: float = 30.0
    upload_bytes: int = 20 * 2**20
    upload_pixels: int = 50_000_000
    upload_rate: int = 120
    download_images: int = 500
    download_bytes: int = 2 * 2**30
    kept: int = 256
    kept_seconds: float = 1800.0
    grace: float = 30.0

    def __post_init__(self) -> None:
        if self.token is not None and (len(self.token) < _SHORTEST or not self.token.isascii()):
            raise InvalidInputError(f"a token needs at least {_SHORTEST} ASCII characters")
