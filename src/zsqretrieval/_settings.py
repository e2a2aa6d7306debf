"""Refuses settings that make no sense, before they become a TypeError from somewhere deep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral

from zsqretrieval.errors import InvalidInputError

__all__ = ["check_counts", "check_settings"]


def check_settings(part: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Compare the names of settings with those a part has.

    Raises:
        InvalidInputError: one is unknown; names it and those there are.
    """
    if unknown := sorted(set(given) - set(known)):
        raise InvalidInputError(f"{part} has no setting {unknown[0]!r}; it has {', '.join(known)}")


def check_counts(least: int = 1, **counts: int | None) -> None:
    """Look at numbers of things.

    Args:
        least: how few make sense.
        counts: by name; None is one that was not given.

    Raises:
        InvalidInputError: one is no whole number, or below that; names it.
    """
    for name, count in counts.items():
        if count is None:
            continue
        if not isinstance(count, Integral):
            raise InvalidInputError(f"{name} must be a whole number, not {count!r}")
        if count < least:
            raise InvalidInputError(f"{name} must be at least {least}, not {count}")
