"""Work in another process."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

METHODS = ("fork", "forkserver", "spawn")


@contextmanager
def started(
    method: str, function: Callable[..., Any], *args: Any, seconds: float = 120
) -> Iterator[Callable[[], Any]]:
    """A process that calls a function; gives a call that waits for its answer, or raises what it raised."""
    context: Any = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, args))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, from Python 3.12 on
        process.start()

    def answer() -> Any:
        assert receiver.poll(seconds), f"it hangs when started by {method}"
        found = receiver.recv()
        if isinstance(found, BaseException):
            raise found
        return found

    try:
        yield answer
    finally:
        process.kill()
        process.join()


def elsewhere(method: str, function: Callable[..., Any], *args: Any) -> Any:
    """The answer of a function in another process."""
    with started(method, function, *args) as answer:
        return answer()


def _send(sender: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        sender.send(function(*args))
    except BaseException as error:
        sender.send(error)


def scores(retrievers: list[Any], question: str) -> list[dict[str, float]]:
    """The scores of all images in each album, by id."""
    return [{hit.id: hit.score for hit in one.search(question)} for one in retrievers]


def adding(retriever: Any, image: Any, when: Any = None) -> list[str]:
    """Add an image, once an event is set; the ids of the album then."""
    if when is not None:
        when.wait()
    retriever.add(image)
    return [record.id for record in retriever.records()]
