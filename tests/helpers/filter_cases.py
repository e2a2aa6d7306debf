"""Random filters and records, and a plain evaluator of filters."""

from __future__ import annotations

import operator
from typing import Any

from hypothesis import strategies as st

from zsqretrieval import Field, Filter

TEXTS = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4
) | st.sampled_from(["1", "true", "null", "a", "A", "[1]", "{}", "%", "_", "a%"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
    | st.sampled_from([1.0, 0.5, 2**53, 2**53 + 1.0, 2.0**63])
    | TEXTS
)
KEYS = st.sampled_from(["a", "b", 'q"', "é.", "and", "metadata", "width"])
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
RECORDS = st.dictionaries(KEYS, JSON, max_size=4)
PATHS = st.lists(KEYS, min_size=1, max_size=2).map(lambda keys: Field(".".join(f"`{key}`" for key in keys)))


ORDERED = ["__lt__", "__le__", "__gt__", "__ge__"]


def conditions(field: Field) -> st.SearchStrategy[Filter]:
    ordered = SCALARS.filter(lambda one: one is not None and not isinstance(one, bool))
    return (
        st.builds(field.isin, st.lists(SCALARS, max_size=3))
        | st.builds(field.contains, SCALARS)
        | st.just(field.exists())
        | st.builds(lambda op, one: getattr(field, op)(one), st.sampled_from(ORDERED), ordered)
        | st.builds(lambda op, one: getattr(field, op)(one), st.sampled_from(["__eq__", "__ne__"]), SCALARS)
    )


FILTERS = st.recursive(
    PATHS.flatmap(conditions),
    lambda inner: (
        st.builds(operator.and_, inner, inner)
        | st.builds(operator.or_, inner, inner)
        | inner.map(operator.invert)
    ),
    max_leaves=5,
)


def number(value: Any) -> Any:
    """An integer beyond 64 bits counts as a float."""
    return float(value) if type(value) is int and not -(2**63) <= value < 2**63 else value


def kind(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    return "number" if isinstance(value, int | float) else type(value).__name__


def equal(one: Any, other: Any) -> bool:
    return kind(one) == kind(other) and number(one) == number(other)


def admits(filter: Filter, record: dict[str, Any]) -> bool:
    if filter.op == "not":
        return not admits(filter.parts[0], record)
    if filter.op in ("and", "or"):
        return {"and": all, "or": any}[filter.op](admits(part, record) for part in filter.parts)
    value: Any = record
    for key in filter.path:
        value = value.get(key) if isinstance(value, dict) else None
    given = filter.values
    if filter.op == "in":
        return any(equal(value, one) for one in given)
    if filter.op == "contains" and isinstance(value, list):
        return any(equal(one, given[0]) for one in value)
    if kind(value) != kind(given[0]):
        return False
    if filter.op == "contains":
        return isinstance(value, str) and given[0] in value
    compare = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}[filter.op]
    return bool(compare(number(value), number(given[0])))
