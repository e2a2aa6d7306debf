"""Settings of a server, and its limits."""

from __future__ import annotations

from dataclasses import dataclass

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names of this machine that only it can reach."""

MOST_RESULTS = 2_000
"""Last place of a ranking that a page may show."""

MOST_CANDIDATES = 200
"""Most candidates that a request may have re-ranked."""

MOST_TEXT = 2_000
"""Longest text of a request in characters."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What an owner decides about a server.

    Attributes:
        title: heading of the page.
        token: secret that every request must bring; None asks for none.
        names: host names that requests may use; addresses are always allowed.
        rerank: whether the generator may be used at all.
        waiting: requests that wait in each queue, before others get 429.
        together: requests that are computed together at most.
        upload_bytes: size limit of an uploaded image.
        upload_pixels: the same in pixels.
        upload_rate: uploads per minute of one client.
        body_bytes: size limit of any other request.
        download_images: most images of one download.
        download_bytes: size limit of one download.
        kept: uploads, dialogs and rankings that are kept, each.
        kept_seconds: how long after their last use.
        grace: seconds that requests in flight have when the server ends.
    """

    title: str = "Images"
    token: str | None = None
    names: frozenset[str] = LOOPBACK
    rerank: bool = True
    waiting: int = 64
    together: int = 16
    upload_bytes: int = 20 * 2**20
    upload_pixels: int = 50_000_000
    upload_rate: int = 60
    body_bytes: int = 2**20
    download_images: int = 500
    download_bytes: int = 2 * 2**30
    kept: int = 256
    kept_seconds: float = 1800.0
    grace: float = 30.0
