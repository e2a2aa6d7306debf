"""Batches of an iterable, and the item for which a batch fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final, TypeVar, cast

from zsqretrieval.errors import MismatchError, PartError

T = TypeVar("T")
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


def each(
    call: Callable[[list[int]], Iterable[T]], count: int, blame: Callable[[int, Exception], E]
) -> list[T | E]:
    """Call on n items at once; only if that fails, halve the batch until the items that fail are alone.

    Args:
        call: returns a result for each of some positions, or raises.
        count: number of items, n.
        blame: called with an item that fails alone and its error. Returns what takes the place of its result,
            or raises the error again if the item is not to blame: then the error of all items is raised.

    Returns:
        n results, in order. An error of :data:`NO_ITEM` is raised at once.
    """
    found: dict[int, T | E] = {}
    failures: list[Exception] = []

    def settle(some: list[int]) -> None:
        try:
            found.update(zip(some, call(some), strict=True))
        except NO_ITEM:
            raise
        except Exception as error:
            failures.append(error)
            if len(some) == 1:
                try:
                    found[some[0]] = blame(some[0], error)
                except Exception as raised:
                    if raised is error:
                        raise failures[0] from None
                    raise
                return
            half = len(some) // 2
            settle(some[:half])
            settle(some[half:])

    if count:
        settle(list(range(count)))
    return [found[n] for n in range(count)]


def sound(results: Iterable[T | E], kind: type[E]) -> list[T]:
    """The results of :func:`each`; raises the first that is an error of this kind."""
    kept: list[T] = []
    for one in results:
        if isinstance(one, kind):
            raise one
        kept.append(cast(T, one))
    return kept
