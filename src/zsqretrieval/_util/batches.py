"""Batches of an iterable, and the item for which a batch fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final, TypeVar, cast

from zsqretrieval.errors import MismatchError, PartError
from zsqretrieval.types import Progress

T = TypeVar("T")
R = TypeVar("R")
E = TypeVar("E", bound=Exception)

NO_ITEM: Final = (
    *(TypeError, AttributeError, NameError, AssertionError, ImportError, NotImplementedError, MemoryError),
    *(MismatchError, PartError),
)
"""Errors of a batch that no single item causes: mistakes in a part, missing packages, too little memory."""


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items, in order; the last may be shorter."""
    following = iter(items)
    while batch := list(islice(following, size)):
        yield batch


def tell(progress: Progress | None, step: str, done: int, total: int | None) -> None:
    """Call ``progress`` if there is one; a total that others have outgrown meanwhile is at least ``done``."""
    if progress is not None:
        progress(step, done, total if total is None else max(done, total))


def each(
    call: Callable[[list[T]], Iterable[R]], items: Iterable[T], blame: Callable[[T, Exception], E | None]
) -> list[R | E]:
    """Call on n items at once; only if that fails, halve the batch until the items that fail are alone.

    Args:
        call: returns a result for each of some items, or raises.
        items: n items.
        blame: called with an item that fails alone and its error. Returns what takes the place of its result,
            or None if the item is not to blame: then the error of all items is raised.

    Returns:
        n results, in order. An error of :data:`NO_ITEM` is raised at once.
    """
    found: list[R | E] = []
    waiting = [list(items)]
    first: Exception | None = None
    while waiting:
        some = waiting.pop()
        if not some:
            continue
        try:
            found += [one for _, one in zip(some, call(some), strict=True)]
        except NO_ITEM:
            raise
        except Exception as error:
            first = first or error
            if len(some) > 1:
                half = len(some) // 2
                waiting += [some[half:], some[:half]]
            elif (fault := blame(some[0], error)) is not None:
                found.append(fault)
            else:
                raise first from None
    return found


def fails(call: Callable[..., object], *given: object) -> bool:
    """Whether a call raises any exception."""
    try:
        call(*given)
    except Exception:
        return True
    return False


def sound(results: Iterable[R | E], kind: type[E]) -> list[R]:
    """The results of :func:`each`; raises the first that is an error of this kind."""
    kept: list[R] = []
    for one in results:
        if isinstance(one, kind):
            raise one
        kept.append(cast(R, one))
    return kept
