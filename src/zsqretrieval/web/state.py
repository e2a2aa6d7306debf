"""What all routes of a server share, and what most of them do."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import Depends, Request

from zsqretrieval.album.catalog import Record
from zsqretrieval.album.filters import Filter
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.retriever import Retriever
from zsqretrieval.search.expansion import hit_of
from zsqretrieval.search.fusion import FIRST_STAGE
from zsqretrieval.search.ranking import Ranking
from zsqretrieval.types import Hit
from zsqretrieval.web.failures import Refused
from zsqretrieval.web.kept import Kept
from zsqretrieval.web.lanes import Lane
from zsqretrieval.web.metrics import Metrics
from zsqretrieval.web.settings import Settings
from zsqretrieval.web.thumbnails import Thumbnails

if TYPE_CHECKING:
    from zsqretrieval.web.dialogs import KeptDialog
    from zsqretrieval.web.uploads import Rates, Upload

T = TypeVar("T")

_BEFORE_NAME = re.compile(r"[/\\]|\.tar(?:\.\w+)?#")  # in a source


@dataclass(eq=False)
class State:
    """An album that is served.

    Attributes:
        retriever: the album.
        settings: what its owner decided.
        generator: fingerprint of the generator; None if there is none, or it must not be used.
        metrics: what is counted.
        encoder_lane: lane of encoder and index.
        generator_lane: lane of the generator.
        pictures: lane of decoding.
        thumbnails: cache of thumbnails.
        rates: images of each client.
        uploads: uploaded images.
        dialogs: open dialogs.
        rankings: final rankings, for their next pages.
    """

    retriever: Retriever
    settings: Settings
    generator: str | None
    metrics: Metrics
    encoder_lane: Lane
    generator_lane: Lane
    pictures: Lane
    thumbnails: Thumbnails
    rates: Rates
    uploads: Kept[Upload]
    dialogs: Kept[KeptDialog]
    rankings: Kept[Ranking]
    _remembered: dict[str, tuple[float, Any]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def lanes(self) -> tuple[Lane, Lane, Lane]:
        """All lanes."""
        return self.encoder_lane, self.generator_lane, self.pictures

    @property
    def album_path(self) -> str:
        """The path of the album, which no answer may contain."""
        return str(self.retriever.path or "")

    def remember(self, name: str, make: Callable[[], T], seconds: float) -> T:
        """A value, made again by one thread while others get the old one when it is some seconds old."""
        with self._lock:
            due, value = self._remembered.get(name, (0.0, None))
            if due and time.monotonic() < due:
                found: T = value
                return found
            if due:
                self._remembered[name] = time.monotonic() + seconds, value
        made = make()
        self._remembered[name] = time.monotonic() + seconds, made
        return made

    def record(self, id: str) -> Record:
        """The record of an image; 404 without one."""
        found = self.retriever.find(id)
        if found is None:
            raise unknown(id)
        return found

    def hit(self, id: str) -> Hit:
        """The image as a hit; 404 without one."""
        return hit_of(self.record(id), {FIRST_STAGE: 1.0})

    def upload(self, id: str) -> Upload:
        """An uploaded image; 404 without one."""
        found = self.uploads.get(id)
        if found is None:
            raise Refused(404, "this upload is not kept any more; upload the image again")
        return found

    def need_generator(self) -> None:
        """Refuse a request that needs the generator if there is none."""
        if self.generator is None:
            raise Refused(400, "this album is served without a generator, which this needs")


def _state(request: Request) -> State:
    found: State = request.app.state.served
    return found


Served = Annotated[State, Depends(_state)]
"""The argument of a route that gets the state."""


def unknown(id: str) -> Refused:
    """The error for an id that no image has."""
    return Refused(404, f"the album has no image {id[:200]!r}")


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Wait for work; give it up when the client has gone."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Refused(499, "the client has gone")
        return task.result()
    finally:
        task.cancel()
        watch.cancel()


def parsed(where: str | None) -> Filter | None:
    """A filter of a request; sources are paths of the server, and stay unknown."""
    if where is None:
        return None
    found = Filter.parse(where)
    if ("source",) in found.fields():
        raise InvalidInputError("the field source cannot be used here; use id or caption")
    return found


def facts(record: Record) -> dict[str, Any]:
    """The members of an :class:`~zsqretrieval.web.schemas.Image`."""
    source, metadata = record.source, record.metadata
    name = record.id if source.startswith("<") else _BEFORE_NAME.split(source)[-1] or record.id
    return {
        "id": record.id,
        "name": name,
        "width": record.width,
        "height": record.height,
        "taken": metadata["taken"] if isinstance(metadata.get("taken"), str) else None,
        "caption": record.caption,
        "alt": record.caption or f"image {name}",
        "credit": metadata["credit"] if isinstance(metadata.get("credit"), str) else None,
    }
