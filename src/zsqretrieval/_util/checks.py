"""Argument checks. Each raises an InvalidInputError that names what is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real

from zsqretrieval.errors import InvalidInputError


def check_settings(part: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Check the names of settings; the error lists the known ones."""
    if unknown := sorted(set(given) - set(known)):
        raise InvalidInputError(f"{part} has no setting {unknown[0]!r}; it has {', '.join(known)}")


def check_counts(
    least: int = 1, *, most: float = math.inf, or_none: bool = False, **counts: int | None
) -> None:
    """Check that values are whole numbers from ``least`` to ``most``, or None if ``or_none``."""
    for name, count in counts.items():
        if count is None and or_none:
            continue
        if isinstance(count, bool) or not isinstance(count, Integral):
            raise InvalidInputError(f"{name} must be a whole number, not {shown(count)}")
        if count < least:
            raise InvalidInputError(f"{name} must be at least {least}, not {shown(count)}")
        if count > most:
            raise InvalidInputError(f"{name} must be at most {most}, not {shown(count)}")


def check_amounts(**amounts: float) -> None:
    """Check that values are finite numbers >= 0."""
    for name, amount in amounts.items():
        if not (_is_finite(amount) and amount >= 0):
            raise InvalidInputError(f"{name} must be a finite number of at least 0, not {shown(amount)}")


def check_numbers(**numbers: float) -> None:
    """Check that values are finite numbers."""
    for name, number in numbers.items():
        if not _is_finite(number):
            raise InvalidInputError(f"{name} must be a finite number, not {shown(number)}")


def check_shares(*, above_zero: bool = False, **shares: float) -> None:
    """Check that values are numbers from 0 to 1, without 0 if ``above_zero``."""
    check_numbers(**shares)
    for name, share in shares.items():
        if not 0 <= share <= 1 or (above_zero and not share):
            least = "above 0" if above_zero else "at least 0"
            raise InvalidInputError(f"{name} must be {least} and at most 1, not {shown(share)}")


def _is_finite(number: object) -> bool:
    try:
        return isinstance(number, Real) and not isinstance(number, bool) and math.isfinite(number)
    except OverflowError:  # an integer that no float can hold
        return False


def shown(value: object) -> str:
    """A value as an error message shows it: Python refuses to write integers of many digits."""
    try:
        return repr(value)
    except ValueError:
        return "a number with too many digits to show"


def first_of(values: Sequence[object]) -> str:
    """The first three values as text, and how many there are beside: ``a; b; c; and 5 more``."""
    more = f"; and {len(values) - 3} more" if len(values) > 3 else ""
    return "; ".join(map(str, values[:3])) + more


def printable(text: str) -> str:
    r"""Replace control characters by ``\xNN``, so that a file name cannot control the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def check_sequence(values: object, name: str) -> None:
    """Check that a value is a sequence, but not a text."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise InvalidInputError(f"{name} must be a list, not {type(values).__name__}")


def check_strings(texts: Iterable[object]) -> None:
    """Check that an encoder's texts are strings, which may be empty, and not one string."""
    if isinstance(texts, str):
        raise InvalidInputError(f"texts must be a sequence of strings, not one string; try [{texts!r}]")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidInputError(
                f"texts must be a sequence of strings; texts[{i}] must be a string, not {type(text).__name__}"
            )


def check_text(text: object, what: str) -> None:
    """Check that a value is a non-empty string of valid Unicode."""
    if not isinstance(text, str) or not text.strip():
        raise InvalidInputError(f"{what} must be a non-empty string, not {text!r}")
    if not is_unicode(text):
        raise InvalidInputError(f"{what} is not Unicode text: {text!r}; decode it with the right encoding")


def is_unicode(text: str) -> bool:
    """Whether a string has no surrogates, which no file can hold."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def check_verbalisers(*, yes: Iterable[str], no: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Check the words that mean yes and no: non-empty, none twice. Returns both sides as tuples."""
    for name, words in (("yes", yes), ("no", no)):
        if isinstance(words, str) or not isinstance(words, Iterable):
            raise InvalidInputError(f"{name} must be a sequence of texts, not {words!r}")
    sides = tuple(yes), tuple(no)
    both = sides[0] + sides[1]
    given = f"yes={sides[0]!r}, no={sides[1]!r}"
    if not all(sides) or not all(isinstance(word, str) and word.strip() for word in both):
        raise InvalidInputError(f"verbalisers must be non-empty strings: {given}")
    if len(set(both)) < len(both):
        raise InvalidInputError(f"a verbaliser is given twice: {given}")
    return sides
