"""Refuses settings that a part does not have, before they become a TypeError from somewhere deep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zsqretrieval.errors import InvalidInputError

__all__ = ["check_settings"]


def check_settings(part: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Compare the names of settings with those a part has.

    Raises:
        InvalidInputError: one is unknown; names it and those there are.
    """
    if unknown := sorted(set(given) - set(known)):
        raise InvalidInputError(f"{part} has no setting {unknown[0]!r}; it has {', '.join(known)}")
