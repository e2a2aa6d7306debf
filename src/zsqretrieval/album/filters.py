"""Filters: conditions on the fields of images, made in Python or parsed from text.

    (Field("year") > 2010) & ~Field("camera").contains("X100")
    Filter.parse("year > 2010 and not camera contains 'X100'")

``str(filter)`` is the text, and parsing it gives an equal filter. ``docs/filters.md`` says what a condition
means for missing fields and other types; :mod:`zsqretrieval.album.fields` turns filters into SQL.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from functools import lru_cache, reduce
from operator import and_, or_
from typing import Any, Literal, NoReturn, TypeAlias, final

import numpy as np

from zsqretrieval._util.checks import check_numbers, check_text, is_unicode, shown
from zsqretrieval.errors import InvalidInputError

Value: TypeAlias = str | int | float | bool | None

_MOST_CONDITIONS = 250  # SQLite takes expressions of at most 1,000 levels
_DEEPEST = 12  # levels of parentheses; SQLite's parser takes about 20
_LONGEST = 100_000  # characters of a filter as text
_MOST_DIGITS = 4_000  # Python refuses to write and read integers of more than 4,300 digits

_WORDS = frozenset({"and", "or", "not", "in", "contains", "exists", "true", "false", "null"})


def _no_truth(self: object) -> NoReturn:
    raise InvalidInputError(
        "a filter is neither true nor false: combine filters with &, | and ~, such as "
        '(Field("year") > 2000) & (Field("year") < 2010), not with and, or, not, in or chained comparisons'
    )


@final
@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Filter:
    """A condition on images, made from a :class:`Field` or by :meth:`parse`; ``&``, ``|``, ``~`` combine it.

    Attributes:
        op: "and", "or" and "not" combine ``parts``; the others compare the field at ``path`` with ``values``.
        path: the field's keys from the outermost object inwards, as of :class:`Field`.
        values: one value, or any number with "in".
        parts: filters.
    """

    op: Literal["and", "or", "not", "in", "<", "<=", ">", ">=", "contains"]
    path: tuple[str, ...] = ()
    values: tuple[Value, ...] = ()
    parts: tuple[Filter, ...] = ()

    def __post_init__(self) -> None:
        if self.size > _MOST_CONDITIONS or self.depth > _DEEPEST:
            raise InvalidInputError(
                f"a filter has at most {_MOST_CONDITIONS} conditions, nested at most {_DEEPEST} deep; "
                "use isin for many values of one field"
            )

    @property
    def size(self) -> int:
        """Number of conditions."""
        return sum(part.size for part in self.parts) or 1

    @property
    def depth(self) -> int:
        """Levels of nesting."""
        return 1 + max((part.depth for part in self.parts), default=0)

    @staticmethod
    def parse(text: str) -> Filter:
        """Parse a filter such as ``year > 2010 and (camera contains 'X100' or not tags contains "beach")``.

        The grammar is in ``docs/filters.md``.

        Raises:
            InvalidInputError: the text is no filter; says what is wrong in which column.
        """
        check_text(text, "a filter")
        if len(text) > _LONGEST:
            raise InvalidInputError(f"a filter has at most {_LONGEST} characters, not {len(text)}")
        return _parse(text)

    def fields(self) -> set[tuple[str, ...]]:
        """The paths of all fields that it names."""
        return {self.path} if self.path else {path for part in self.parts for path in part.fields()}

    def __and__(self, other: Filter) -> Filter:
        return _joined("and", self, other)

    def __or__(self, other: Filter) -> Filter:
        return _joined("or", self, other)

    def __invert__(self) -> Filter:
        return self.parts[0] if self.op == "not" else Filter("not", parts=(self,))

    __bool__ = _no_truth

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other) if isinstance(other, Filter) else NotImplemented

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        if self.op in ("and", "or"):
            return f" {self.op} ".join(part._enclosed() for part in self.parts)
        if self.op == "not":
            part = self.parts[0]
            if part.op == "in" and len(part.values) == 1:
                return part._compared("!=")
            return f"not {part._enclosed()}"
        if self.op == "in" and len(self.values) != 1:
            return f"{field_name(self.path)} in [{', '.join(map(_literal, self.values))}]"
        return self._compared("=" if self.op == "in" else self.op)

    def _compared(self, op: str) -> str:
        return f"{field_name(self.path)} {op} {_literal(self.values[0])}"

    def _enclosed(self) -> str:
        return f"({self})" if self.op in ("and", "or") else str(self)

    def __repr__(self) -> str:
        return f"Filter.parse({str(self)!r})"


def _joined(op: Literal["and", "or"], *given: object) -> Filter:
    parts: list[Filter] = []
    for one in given:
        if not isinstance(one, Filter):
            raise InvalidInputError(
                f"{shown(one)} is no filter to combine; each side needs its own comparison, in parentheses"
            )
        parts += one.parts if one.op == op else [one]
    return Filter(op, parts=tuple(parts))


@final
class Field:
    """A field of images, whose comparisons make a :class:`Filter`.

    Args:
        name: a built-in (``id``, ``source``, ``width``, ``height``, ``bytes``, ``caption``), or a key of the
            metadata; dots lead into nested objects. Backquotes enclose a key with a dot, and a backquote in
            them is doubled. ``metadata.width`` is the metadata's own.

    Values are texts, finite numbers, True, False, None, and dates, which compare as ISO 8601 text. A
    comparison with another type is false. None means missing or null.

    Raises:
        InvalidInputError: the name is empty or malformed, or a value is of another type.
    """

    __slots__ = ("path",)
    __hash__ = None  # type: ignore[assignment]  # as it has no equality
    __bool__ = _no_truth

    def __init__(self, name: str) -> None:
        check_text(name, "the name of a field")
        steps = _STEPS.fullmatch(name)
        if steps is None:
            raise InvalidInputError(
                f"{name!r} is not the name of a field: keys are joined by dots, and odd ones stand in "
                "backquotes, such as exif.`shutter.speed`"
            )
        keys = (found[0] for found in _STEP.finditer(name))
        self.path = _path(key[1:-1].replace("``", "`") if key[0] == "`" else key for key in keys)

    def __repr__(self) -> str:
        return f"Field({field_name(self.path)!r})"

    def __eq__(self, value: object) -> Filter:  # type: ignore[override]
        return self.isin([value])

    def __ne__(self, value: object) -> Filter:  # type: ignore[override]
        return ~self.isin([value])

    def __lt__(self, value: object) -> Filter:
        return self._ordered("<", value)

    def __le__(self, value: object) -> Filter:
        return self._ordered("<=", value)

    def __gt__(self, value: object) -> Filter:
        return self._ordered(">", value)

    def __ge__(self, value: object) -> Filter:
        return self._ordered(">=", value)

    def isin(self, values: Iterable[Any]) -> Filter:
        """The field equals one of some values."""
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            raise InvalidInputError(f"isin needs a list of values, not {shown(values)}")
        return Filter("in", self.path, tuple(map(_value, values)))

    def contains(self, value: Any) -> Filter:
        """The field is a text with this text in it, case-sensitive, or a list with this value in it."""
        return Filter("contains", self.path, (_value(value),))

    def exists(self) -> Filter:
        """The field is there and not null."""
        return self != None  # noqa: E711  # a condition, not a comparison

    def _ordered(self, op: Literal["<", "<=", ">", ">="], given: object) -> Filter:
        value = _value(given)
        if value is None or isinstance(value, bool):
            raise InvalidInputError(f"{value} has no order; compare with a number, a text or a date")
        return Filter(op, self.path, (value,))


_STEP = re.compile(r"`(?:[^`]|``)+`|[^.`]+")
_STEPS = re.compile(rf"(?:{_STEP.pattern})(?:\.(?:{_STEP.pattern}))*")
_PLAIN = re.compile(r"[^\W\d]\w*")


BUILT_IN = ("id", "source", "width", "height", "bytes", "caption")
"""Fields that every image has, though its caption may be missing."""

METADATA = "metadata"
"""First key in the path of every other field."""

MOST_KEYS = 50
"""Keys in the name of a field; SQLite joins at most 64 tables."""


def _path(keys: Iterable[str]) -> tuple[str, ...]:
    """The path of the keys in a name."""
    path = tuple(keys)
    if len(path) > MOST_KEYS:
        raise InvalidInputError(f"the name of a field has at most {MOST_KEYS} keys, not {len(path)}")
    return path if (path[0] == METADATA and len(path) > 1) or path in _COLUMNS else (METADATA, *path)


_COLUMNS = frozenset((name,) for name in BUILT_IN)


def field_name(path: tuple[str, ...]) -> str:
    """The name of a field, for :class:`Field` and for filters as text."""
    short = path[1:] if path[0] == METADATA and _path(path[1:]) == path else path
    return ".".join(
        key if _PLAIN.fullmatch(key) and key.lower() not in _WORDS else f"`{key.replace('`', '``')}`"
        for key in short
    )


def _value(given: Any) -> Value:
    """A value that JSON can hold."""
    value: object = given.item() if isinstance(given, np.generic) else given
    if isinstance(value, date):  # also a datetime
        return value.isoformat()
    if isinstance(value, str) and not is_unicode(value):
        raise InvalidInputError(f"{value!r} is not Unicode text; decode it with the right encoding")
    if isinstance(value, int) and value.bit_length() > 3 * _MOST_DIGITS:
        raise InvalidInputError("a number in a filter has too many digits")
    if isinstance(value, float):
        check_numbers(**{"a number in a filter": value})
    if not (value is None or isinstance(value, str | int | float)):
        raise InvalidInputError(
            f"a field is compared with a text, a number, True, False, None or a date, not {shown(given)}"
        )
    return value


def _literal(value: Value) -> str:
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else json.dumps(value)


# --- parsing ------------------------------------------------------------------------------------------------

_GRAMMAR = r"""
start: both (_OR both)*
both: _inverse (_AND _inverse)*
_inverse: inverse | "(" start ")" | _condition
inverse: _NOT _inverse
_condition: compared | listed | unlisted | exists
compared: field (COMPARE | CONTAINS) _value
listed: field _IN _list
unlisted: field _NOT _IN _list
exists: field _EXISTS
field: (KEY | QUOTED) ("." (KEY | QUOTED))*
_list: "[" (_value ("," _value)*)? "]"
_value: text | number | true | false | null
text: TEXT
number: NUMBER
true: _TRUE
false: _FALSE
null: _NULL
_AND.2: /and\b/i
_OR.2: /or\b/i
_NOT.2: /not\b/i
_IN.2: /in\b/i
CONTAINS.2: /contains\b/i
_EXISTS.2: /exists\b/i
_TRUE.2: /true\b/i
_FALSE.2: /false\b/i
_NULL.2: /null\b/i
COMPARE: /==?|!=|<=?|>=?/
KEY: /[^\W\d]\w*/
QUOTED: /`([^`]|``)+`/
TEXT: /'([^']|'')*'|"([^"]|"")*"/
NUMBER: /[+-]?[0-9]+(\.[0-9]*)?(e[+-]?[0-9]+)?/i
%ignore /\s+/
"""

_WANTED = {  # by a token that may follow
    "NUMBER": "a number, true, false, null, or a text in quotes",
    "KEY": "a field",
    "COMPARE": "=, !=, <, <=, >, >=, in, contains or exists",
    "_AND": "and, or, a closing bracket or the end",
}


class _Reader:
    """The meaning of each rule of the grammar, from that of its parts."""

    def start(self, parts: list[Filter]) -> Filter:
        return reduce(or_, parts)

    def both(self, parts: list[Filter]) -> Filter:
        return reduce(and_, parts)

    def inverse(self, parts: list[Filter]) -> Filter:
        return ~parts[0]

    def compared(self, parts: list[Any]) -> Filter:
        field, op, value = parts
        return _COMPARISONS[op.lower()](field, value)

    def listed(self, parts: list[Any]) -> Filter:
        return Field.isin(parts[0], parts[1:])

    def unlisted(self, parts: list[Any]) -> Filter:
        return ~self.listed(parts)

    def exists(self, parts: list[Field]) -> Filter:
        return parts[0].exists()

    def field(self, keys: list[str]) -> Field:
        return Field(".".join(keys))

    def text(self, parts: list[str]) -> str:
        quote = parts[0][0]
        return parts[0][1:-1].replace(2 * quote, quote)

    def number(self, parts: list[str]) -> int | float:
        if len(parts[0]) > _MOST_DIGITS:
            raise InvalidInputError("a number in a filter has too many digits")
        return int(parts[0]) if parts[0].lstrip("+-").isdigit() else float(parts[0])

    def true(self, _: object) -> bool:
        return True

    def false(self, _: object) -> bool:
        return False

    def null(self, _: object) -> None:
        return None


_COMPARISONS: dict[str, Callable[[Field, Value], Filter]] = {
    "=": Field.__eq__,
    "==": Field.__eq__,
    "!=": Field.__ne__,
    "<": Field.__lt__,
    "<=": Field.__le__,
    ">": Field.__gt__,
    ">=": Field.__ge__,
    "contains": Field.contains,
}


@lru_cache(maxsize=1)
def _parser() -> Any:
    from lark import Lark

    return Lark(_GRAMMAR, parser="lalr", transformer=_Reader())


def _parse(text: str) -> Filter:
    from lark import UnexpectedCharacters, UnexpectedToken

    try:
        found: Filter = _parser().parse(text)
    except (UnexpectedCharacters, UnexpectedToken) as failed:
        error: Any = failed  # of untyped attributes
        lexed = isinstance(failed, UnexpectedCharacters)
        at = len(text) if not lexed and error.token.type == "$END" else error.pos_in_stream
        may_follow = error.allowed if lexed else error.expected
        wanted = next(words for token, words in _WANTED.items() if token in may_follow or token == "_AND")
        there = f"not {text[at : at + 20]!r}" if at < len(text) else "where it ends"
        raise InvalidInputError(
            f"the filter {text[:200]!r} needs {wanted} in column {at + 1}, {there}; "
            "write it like: year > 2010 and camera contains 'X100'"
        ) from None
    return found
