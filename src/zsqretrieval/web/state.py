"""What all routes of a server share, and how they reach it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from zsqretrieval.album.catalog import Record
from zsqretrieval.album.filters import Filter
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.retriever import Retriever
from zsqretrieval.search.expansion import hit_of
from zsqretrieval.search.fusion import FIRST_STAGE
from zsqretrieval.types import Hit
from zsqretrieval.web.failures import Refused
from zsqretrieval.web.kept import Kept
from zsqretrieval.web.lanes import Lane
from zsqretrieval.web.metrics import Metrics
from zsqretrieval.web.schemas import Image
from zsqretrieval.web.settings import Settings
from zsqretrieval.web.thumbnails import Thumbnails

T = TypeVar("T")


@dataclass(eq=False)
class State:
    """An album that is served.

    Attributes:
        retriever: the album.
        settings: what its owner decided.
        metrics: what is counted.
        first: lane of encoder and index.
        second: lane of the generator.
        pictures: lane of decoding.
        thumbnails: cache of thumbnails.
        rates: uploads of each client.
        uploads: uploaded images.
        dialogs: open dialogs.
        rankings: finished rankings, for their next pages.
    """

    retriever: Retriever
    settings: Settings
    metrics: Metrics
    first: Lane
    second: Lane
    pictures: Lane
    thumbnails: Thumbnails
    rates: Any
    uploads: Kept[Any]
    dialogs: Kept[Any]
    rankings: Kept[Any]
    remembered: dict[str, tuple[float, Any]] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """The path of the album, which no answer may contain."""
        return str(self.retriever.path or "")

    @property
    def has_generator(self) -> bool:
        """Whether the generator may be used."""
        return self.settings.rerank and self.retriever.has_generator

    def remember(self, name: str, make: Callable[[], T], seconds: float) -> T:
        """A value that may be some seconds old."""
        made, value = self.remembered.get(name, (-seconds, None))
        if time.monotonic() - made >= seconds:
            value = make()
            self.remembered[name] = time.monotonic(), value
        found: T = value
        return found

    def record(self, id: str) -> Record:
        """The record of an image; 404 without one."""
        found = self.retriever.find(id)
        if found is None:
            raise Refused(404, f"the album has no image {id[:200]!r}")
        return found

    def hit(self, id: str) -> Hit:
        """The image as a hit, for searches for others like it; 404 without one."""
        return hit_of(self.record(id), {FIRST_STAGE: 1.0})

    def need_generator(self) -> None:
        """Refuse a request that needs the generator if there is none."""
        if not self.has_generator:
            raise Refused(400, "this album is served without a generator, which this needs")


def _state(request: Request) -> State:
    found: State = request.app.state.served
    return found


Served = Annotated[State, Depends(_state)]
"""The argument of a route that gets the state."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Wait for work; give it up when the client has gone."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Refused(503, "the client has gone")
        return task.result()
    finally:
        task.cancel()
        watch.cancel()


def parsed(where: str | None) -> Filter | None:
    """A filter of a request; sources are paths of the server and cannot be asked for."""
    if not (where and where.strip()):
        return None
    found = Filter.parse(where)
    if ("source",) in found.fields():
        raise InvalidInputError("the field source cannot be used here; filter by id")
    return found


def facts(one: Record) -> dict[str, Any]:
    """The members of an :class:`~zsqretrieval.web.schemas.Image`."""
    taken, credit = one.metadata.get("taken"), one.metadata.get("credit")
    name = one.id if one.source.startswith("<") else re.split(r"[/\\#]", one.source)[-1] or one.id
    return {
        "id": one.id,
        "name": name,
        "width": one.width,
        "height": one.height,
        "taken": taken if isinstance(taken, str) else None,
        "caption": one.caption,
        "alt": one.caption or f"image {name}",
        "credit": credit if isinstance(credit, str) else None,
    }


def image(record: Record) -> Image:
    """An image of the API."""
    return Image(**facts(record))
