"""Filters outside SQLite: as a condition of Milvus, and on one record.

Milvus knows no types of JSON values: it may compare a truth value with a number, and a value of another type
makes ``not`` false as well. So the condition that it gets never leaves out an image that the filter selects,
but may let others through; :func:`selects` decides, as the catalog does (:mod:`zsqretrieval.album.fields`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, cast

from zsqretrieval.album.catalog import Record
from zsqretrieval.album.filters import METADATA, Filter, Value

_PLAIN = re.compile(r"[^\x00-\x1f\x7f\"\\]*")  # needs no escapes
_KEY = re.compile(r"[^\x00-\x1f\x7f\"\\/~]+")  # as part of a path
_EXACT = 2**53  # largest integer that every program compares exactly
_NUMBERS = ("width", "height", "bytes")
_NEVER = "key < 0"


def selects(filter: Filter, record: Record) -> bool:
    """Whether a filter selects an image."""
    if filter.op == "not":
        return not selects(filter.parts[0], record)
    if filter.op in ("and", "or"):
        return (all if filter.op == "and" else any)(selects(part, record) for part in filter.parts)
    value: Any = getattr(record, filter.path[0])
    for key in filter.path[1:]:
        value = value.get(key) if isinstance(value, dict) else None
    if filter.op == "in":
        return any(_equal(value, one) for one in filter.values)
    (given,) = cast(Sequence[Any], filter.values)
    if filter.op == "contains":
        if isinstance(value, str):
            return isinstance(given, str) and given in value
        return isinstance(value, list) and any(_equal(one, given) for one in value)
    if not (isinstance(value, str) if isinstance(given, str) else _is_number(value)):
        return False
    value, given = _number(value), _number(given)
    return bool(
        value < given if filter.op == "<" else value <= given if filter.op == "<="
        else value > given if filter.op == ">" else value >= given
    )  # fmt: skip


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> Any:
    """A number as SQLite reads it from JSON: integers of more than 64 bits become float64."""
    if _is_number(value) and isinstance(value, int) and not -(2**63) <= value < 2**63:
        try:
            return float(value)
        except OverflowError:
            return float("inf") if value > 0 else float("-inf")
    return value


def _equal(value: Any, given: Value) -> bool:
    if _is_number(given):
        return _is_number(value) and bool(_number(value) == _number(given))
    return type(value) is type(given) and bool(value == given)


def condition(filter: Filter) -> str:
    """A condition of Milvus that holds for every image that a filter selects; empty if none can be stated."""
    return _condition(filter, True) or ""


def _condition(filter: Filter, positive: bool) -> str | None:
    """What holds wherever the filter is true, or else wherever it is not; None if that cannot be stated."""
    if filter.op == "not":
        return _condition(filter.parts[0], not positive)
    if filter.op not in ("and", "or"):
        return _positive(filter) if positive else _negative(filter)
    stated = [_condition(part, positive) for part in filter.parts]
    if (filter.op == "and") == positive:
        return _joined("and", [one for one in stated if one is not None]) if any(stated) else None
    return None if None in stated else _joined("or", cast(list[str], stated))


def _joined(op: str, parts: Sequence[str]) -> str:
    return f"({f' {op} '.join(parts)})" if len(parts) > 1 else parts[0]


def _positive(filter: Filter) -> str | None:
    place = _place(filter.path)
    if place is None:
        return None
    if filter.op == "in":
        stated = [_equals(filter.path, place, one) for one in filter.values]
        return None if None in stated else _joined("or", cast(list[str], stated) or [_NEVER])
    (given,) = filter.values
    text = _literal(given)
    if filter.path[0] != METADATA and isinstance(given, str) == (filter.path[0] in _NUMBERS):
        return _NEVER  # another type
    if text is None:
        return None
    if filter.op != "contains":
        if place not in _NUMBERS or not isinstance(given, float):
            return f"{place} {filter.op} {text}"
        if given.is_integer():  # servers compare integers with integers
            return f"{place} {filter.op} {int(given)}"
        return f"{place} <= {math.floor(given)}" if "<" in filter.op else f"{place} >= {math.ceil(given)}"
    parts = [f'{place} like "%{given}%"'] if isinstance(given, str) else []
    if filter.path[0] == METADATA:
        parts.append(f"json_contains_any({place}, [{text}])")
    return _joined("or", parts or [_NEVER])


def _equals(path: tuple[str, ...], place: str, value: Value) -> str | None:
    if path[0] == METADATA:
        text = _literal(value)
        return f"not exists {place}" if value is None else text and f"{place} == {text}"
    if value is None:
        return f"{place} is null" if place == "caption" else _NEVER
    if place in _NUMBERS and isinstance(value, float) and abs(value) <= _EXACT and value.is_integer():
        value = int(value)  # servers compare integers with integers
    if type(value) is not (int if place in _NUMBERS else str):
        return _NEVER
    text = _literal(value)
    return text and f"{place} == {text}"


def _negative(filter: Filter) -> str | None:
    """Where a comparison is false: in metadata, only if it asks for equality with what has one type."""
    place, values = _place(filter.path), filter.values
    if filter.path[0] != METADATA:
        stated = _positive(filter)
        if stated is None or (filter.op == "contains" and re.search(r"[%_]", str(values[0]))):
            return None
        nullable = place == "caption" and stated != _NEVER
        return f"(caption is null or not ({stated}))" if nullable else f"not ({stated})"
    if place is None or filter.op != "in" or any(one in (0, 1) for one in values):  # 1 may be True there
        return None
    stated_ones = [_equals(filter.path, place, one) for one in values]
    if None in stated_ones or not stated_ones:
        return None
    return _joined(
        "and",
        [
            f"exists {place}" if value is None else f"(not exists {place} or not ({stated}))"
            for value, stated in zip(values, stated_ones, strict=True)
        ],
    )


def _place(path: tuple[str, ...]) -> str | None:
    if path[0] != METADATA:
        return path[0]
    if not all(_KEY.fullmatch(key) for key in path[1:]):
        return None
    return METADATA + "".join(f'["{key}"]' for key in path[1:])


def _literal(value: Value) -> str | None:
    """A value in a condition; None if programs may read it differently."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"' if _PLAIN.fullmatch(value) else None
    if value is None or abs(value) > _EXACT or (isinstance(value, float) and "e" in repr(value)):
        return None
    return repr(value)


def field_condition(path: tuple[str, ...]) -> str | None:
    """A condition that holds for images with a field of metadata; None if none can be stated."""
    place = _place(path) if path[0] == METADATA else None
    return None if place is None else f"exists {place}"
