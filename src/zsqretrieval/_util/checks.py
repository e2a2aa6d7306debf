"""Refuses settings that make no sense, before they become a TypeError from somewhere deep."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real

from zsqretrieval.errors import InvalidInputError

__all__ = [
    "check_amounts",
    "check_counts",
    "check_numbers",
    "check_sequence",
    "check_settings",
    "check_text",
    "check_verbalisers",
]


def check_settings(part: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Compare the names of settings with those a part has.

    Raises:
        InvalidInputError: one is unknown; names it and those there are.
    """
    if unknown := sorted(set(given) - set(known)):
        raise InvalidInputError(f"{part} has no setting {unknown[0]!r}; it has {', '.join(known)}")


def check_counts(least: int = 1, *, or_none: bool = False, **counts: int | None) -> None:
    """Look at numbers of things.

    Args:
        least: how few make sense.
        or_none: whether None makes sense as well.
        counts: by name.

    Raises:
        InvalidInputError: one is no whole number, or below that; names it.
    """
    for name, count in counts.items():
        if count is None and or_none:
            continue
        if isinstance(count, bool) or not isinstance(count, Integral):
            raise InvalidInputError(f"{name} must be a whole number, not {count!r}")
        if count < least:
            raise InvalidInputError(f"{name} must be at least {least}, not {count}")


def check_amounts(**amounts: float) -> None:
    """Look at numbers that say how much.

    Raises:
        InvalidInputError: one is no finite number, or below 0; names it.
    """
    for name, amount in amounts.items():
        if not isinstance(amount, Real) or not (math.isfinite(amount) and amount >= 0):
            raise InvalidInputError(f"{name} must be a finite number of at least 0, not {amount!r}")


def check_numbers(**numbers: float) -> None:
    """Look at numbers of either sign.

    Raises:
        InvalidInputError: one is no finite number; names it.
    """
    for name, number in numbers.items():
        if not isinstance(number, Real) or not math.isfinite(number):
            raise InvalidInputError(f"{name} must be a finite number, not {number!r}")


def check_sequence(values: object, name: str) -> None:
    """Look at what should be several.

    Raises:
        InvalidInputError: it is a text, or no sequence.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise InvalidInputError(f"{name} must be a list, not {type(values).__name__}")


def check_text(text: object, what: str) -> None:
    """Look at what somebody says.

    Raises:
        InvalidInputError: it is no text, says nothing, or is not Unicode.
    """
    if not isinstance(text, str) or not text.strip():
        raise InvalidInputError(f"{what} must be a text that says something, not {text!r}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidInputError(f"{what} is not Unicode text: {text!r}; decode it with the right encoding")


def check_verbalisers(*, yes: Iterable[str], no: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Look at the words that mean yes, and those that mean no.

    Returns:
        Both, as tuples.

    Raises:
        InvalidInputError: one side is no sequence of texts, or is empty; or a word says nothing, or is given
            twice.
    """
    for name, words in (("yes", yes), ("no", no)):
        if isinstance(words, str) or not isinstance(words, Iterable):
            raise InvalidInputError(f"{name} must be a sequence of texts, not {words!r}")
    sides = tuple(yes), tuple(no)
    both = sides[0] + sides[1]
    given = f"yes={sides[0]!r}, no={sides[1]!r}"
    if not all(sides) or not all(isinstance(word, str) and word.strip() for word in both):
        raise InvalidInputError(f"verbalisers must be texts that say something: {given}")
    if len(set(both)) < len(both):
        raise InvalidInputError(f"a verbaliser is given twice: {given}")
    return sides
