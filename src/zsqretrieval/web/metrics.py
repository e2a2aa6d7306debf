"""What Prometheus may scrape of a server."""

from __future__ import annotations

from typing import final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


@final
class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made = {"registry": self.registry, "namespace": "zsq"}
        self.requests = Counter("requests", "Answered requests.", ["route", "status"], **made)
        self.seconds = Histogram("request_seconds", "Time to answer.", ["route"], **made)
        self.open = Gauge("open_requests", "Requests that are being answered.", **made)
        self.waiting = Gauge("waiting", "Requests that wait for a computation.", ["lane"], **made)
        self.refused = Counter("refused", "Requests refused by a full queue.", ["lane"], **made)
        self.together = Histogram(
            "together", "Requests computed together.", ["lane"], buckets=(1, 2, 4, 8, 16, 32), **made
        )
        self.computing = Histogram("computing_seconds", "Time of a computation.", ["lane"], **made)
        self.images = Gauge("images", "Images of the album.", **made)
