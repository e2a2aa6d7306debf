"""Filters in Python and as text, and their meaning in SQL, compared with a plain evaluator."""

from __future__ import annotations

import math
import operator
import pickle
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from filter_cases import FILTERS, RECORDS, admits
from refusing import refused
from zsqretrieval import Field, Filter
from zsqretrieval.album.catalog import Catalog
from zsqretrieval.album.expressions import selects
from zsqretrieval.album.filters import field_name
from zsqretrieval.data.loader import NewImage
from zsqretrieval.errors import IntegrityError

DIM = 2


def image(number: int, metadata: dict[str, Any], **changes: Any) -> NewImage:
    fields = {"id": f"{number}.jpg", "source": "/p", "width": 640, "height": 480, "bytes": 1000 + number}
    fields |= {"digest": f"{number:064x}", "vector": np.ones(DIM, np.float32), "metadata": metadata}
    return NewImage(**(fields | changes))


def admitted(filter: Filter, *rows: dict[str, Any]) -> list[int]:
    """Positions of the rows that a filter admits, in a catalog of their own."""
    with Catalog.create(None, dim=DIM) as catalog:
        catalog.add([image(n, row) for n, row in enumerate(rows)])
        keys = catalog.fields.matching(filter)
        assert keys.dtype == np.int64 and (np.diff(keys) > 0).all()
        return (keys - 1).tolist()


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    with Catalog.create(None, dim=DIM) as made:
        made.add([image(1, {"year": 2009}, caption="a dog"), image(2, {"year": 2015, "a": {"b": 1}})])
        yield made


# --- the meaning of a condition ---------------------------------------------------------------------------

ROWS = [
    {"x": 3},
    {"x": 3.0},
    {"x": "3"},
    {"x": True},
    {"x": None},
    {},
    {"x": [3, "a"]},
    {"x": {"y": 1}},
    {"x": -1},
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 3", [0, 1]),
        ("x == '3'", [2]),
        ("x = true", [3]),
        ("x = null", [4, 5]),
        ("x exists", [0, 1, 2, 3, 6, 7, 8]),
        ("x != 3", [2, 3, 4, 5, 6, 7, 8]),
        ("x < 4", [0, 1, 8]),
        ("x >= 3", [0, 1]),
        ("x > ''", [2]),
        ("not x < 4", [2, 3, 4, 5, 6, 7]),
        ("x in [3, '3', false, null]", [0, 1, 2, 4, 5]),
        ("x not in [3, '3']", [3, 4, 5, 6, 7, 8]),
        ("x in []", []),
        ("x contains 3", [6]),
        ("x contains '3'", [2]),
        ("x contains 'a'", [6]),
        ("x contains null", []),
        ("x.y = 1", [7]),
        ("x.y != 1", [0, 1, 2, 3, 4, 5, 6, 8]),
        ("x.y = 1 or x = 3 and not x = true", [0, 1, 7]),
        ("(x.y = 1 or x = 3) and not x exists", []),
    ],
)
def test_condition_admits_values_of_its_type(text: str, expected: list[int]) -> None:
    assert admitted(Filter.parse(text), *ROWS) == expected


def test_built_in_fields_and_metadata_of_the_same_name() -> None:
    with Catalog.create(None, dim=DIM) as catalog:
        wide = image(
            1, {"width": "broad", "metadata": {"width": 7}}, width=900, caption="Ein Hund, 50% _ oder *"
        )
        catalog.add([wide, image(2, {})])
        for text, keys in [
            ("width > 640", [1]),
            ("metadata.width = 'broad'", [1]),
            ("metadata.metadata.width = 7", [1]),
            ("id = '2.jpg'", [2]),
            ("id in ['1.jpg', '2.jpg', 3]", [1, 2]),
            ("id > 3", []),
            ("bytes <= 1001.5", [1]),
            ("caption contains 'Hund'", [1]),
            ("caption contains 'hund'", []),
            ("caption contains '%' and caption contains '_' and caption contains '*'", [1]),
            ("source contains '%'", []),
            ("caption exists", [1]),
            ("caption = null", [2]),
            ("not caption < 'x'", [2]),
        ]:
            assert catalog.fields.matching(Filter.parse(text)).tolist() == keys, text


def test_dates_compare_with_iso_text() -> None:
    rows = [{"taken": "2019-12-31T23:59:59"}, {"taken": "2020-01-01T00:00:00+02:00"}, {"taken": "2021-05-06"}]
    assert admitted(Field("taken") >= date(2020, 1, 1), *rows) == [1, 2]
    assert admitted(Field("taken") == datetime(2019, 12, 31, 23, 59, 59), *rows) == [0]
    assert admitted(Field("taken").isin([date(2021, 5, 6)]), *rows) == [2]
    aware = datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=2)))
    assert admitted(Field("taken") == aware, *rows) == [1]


@pytest.mark.parametrize(
    "key",
    [
        'a"b',
        "a.b",
        "a'b",
        "a`b",
        "ä",
        "😀",
        " ",
        "a\\b",
        "a\nb",
        "1",
        "$",
        "[0]",
        "and",
        "x') OR 1=1 --",
        '"',
        "%_*",
        "id ",
    ],
)
def test_odd_keys_are_fields(key: str) -> None:
    path = f"`{key.replace('`', '``')}`"
    rows = [{key: 1}, {key: 2}, {key + "x": 1}, {"o": {key: {"p": 1}}}]
    for name, expected in [(path, [0]), (f"o.{path}.p", [3])]:
        found = Field(name) == 1
        assert admitted(found, *rows) == expected
        assert Filter.parse(str(found)) == found
    with Catalog.create(None, dim=DIM) as catalog:
        catalog.add([image(n, row) for n, row in enumerate(rows)])
        names = catalog.fields.names()[6:]
        assert sorted(len(catalog.fields.matching(Field(name).exists())) for name in names) == [1, 1, 2]


@pytest.mark.parametrize("number", [2**63 - 1, 2**63, -(2**64), 10**400, 2**53 + 1, 1e308, 5e-324, 0.1, -0.0])
def test_large_and_small_numbers_are_found(number: float) -> None:
    rows = [{"x": number}, {"x": 7}]
    found = Field("x") == number
    assert admitted(found, *rows) == [0]
    assert Filter.parse(str(found)) == found
    assert admitted((Field("x") <= number) & (Field("x") >= number), *rows) == [0]


def test_fields_are_named_once_with_built_in_ones_first() -> None:
    with Catalog.create(None, dim=DIM) as catalog:
        catalog.add(
            [
                image(1, {"b": {"c": 1, "d": {}}, "a.": [{"no": 1}], "": 1, "width": 1}),
                image(2, {"b": {"c": 2}}),
            ]
        )
        names = catalog.fields.names()
        nested: Any = {}
        for _ in range(60):
            nested = {"x": nested}
        catalog.add([image(3, nested)])
        deepest = catalog.fields.names()[-1]
        assert len(catalog.fields.matching(Field(deepest).exists())) == 1 and deepest.count(".") == 49
    assert names == ["id", "source", "width", "height", "bytes", "caption", "`a.`", "b.c", "metadata.width"]


def test_unknown_field_is_refused_with_the_fields_there_are(catalog: Catalog) -> None:
    for filter in (Field("yaer") > 2000, ~(Field("yaer") > 2000) | (Field("year") > 1), Field("year.x") == 1):
        refused(
            r"has the field \S+; the fields are id, .*caption, a.b, year$", catalog.fields.matching, filter
        )
    assert len(catalog.fields.matching(Field("a").exists())) == 1
    catalog.add([image(n, {f"k{n}": 1}) for n in range(3, 60)])
    refused("and 25 more", catalog.fields.matching, Field("yaer") == 1)
    catalog.remove([*range(1, 60)])
    assert not len(catalog.fields.matching(Field("yaer") == 1))


def test_filter_sees_changes_of_the_catalog(catalog: Catalog) -> None:
    late = Field("year") > 2010
    assert catalog.fields.matching(late).tolist() == [2]
    assert catalog.add([image(3, {"year": 2020})]).tolist() == [3]
    assert catalog.fields.matching(late).tolist() == [2, 3]
    catalog.remove([2])
    assert catalog.fields.matching(late).tolist() == [3]


def test_indexed_fields_follow_every_change(tmp_path: Path) -> None:
    with Catalog.create(tmp_path / "catalog.sqlite", dim=DIM) as catalog:
        catalog.add([image(1, {"year": 2009}), image(2, {"tags": ["a"]})])
        catalog.fields.index(["year", "tags", '`new "`', "width", "year"])
        assert catalog.fields.indexed() == ["year", "tags", '`new "`', "width"]
        catalog.add([image(3, {"year": 2015, 'new "': "x"})])
        catalog.rename([replace(catalog.records([2])[0], metadata={"year": 2020})])
        catalog.remove([1])
        catalog.verify()
    with Catalog.open(tmp_path / "catalog.sqlite") as catalog:
        for text, keys in {"year > 2000": [2, 3], "not tags exists": [2, 3], "`new \"` = 'x'": [3]}.items():
            assert catalog.fields.matching(Filter.parse(text)).tolist() == keys
        catalog._database.rows("UPDATE field_values SET value = 1 WHERE image = 3 AND field = 0")
        with pytest.raises(IntegrityError, match="field year are damaged"):
            catalog.verify()
        catalog.fields.index(["year"])
        catalog.verify()
        catalog.fields.index([])
        assert catalog._database.value("SELECT count(*) FROM field_values") == 0
        catalog._database.rows("INSERT INTO indexed_fields VALUES (1, 'a..b', 0)")
        with pytest.raises(IntegrityError, match="damaged"):
            catalog.fields.indexed()


def test_indexed_field_is_found_without_reading_metadata(catalog: Catalog) -> None:
    catalog.fields.index(["year"])
    plan = catalog._database.rows(
        "EXPLAIN QUERY PLAN SELECT image FROM field_values WHERE field = 0 AND kind = 'text'"
    )
    assert "COVERING INDEX field_values_sorted (field=? AND kind=?)" in plan[0][3]
    catalog.fields.matching(Field("year") > 1)
    catalog._database.rows("UPDATE images SET metadata = '{'")
    assert catalog.fields.matching((Field("year") > 2010) | (Field("year") == "x")).tolist() == [2]


def test_damaged_metadata_is_an_integrity_error(catalog: Catalog) -> None:
    catalog._database.rows("UPDATE images SET metadata = '{' WHERE key = 2")
    for call in (lambda: catalog.fields.matching(Field("year") > 1), catalog.fields.names):
        with pytest.raises(IntegrityError):
            call()


# --- filters in Python --------------------------------------------------------------------------------------


def test_filters_have_no_truth_value() -> None:
    year = Field("year")
    for wrong in (
        lambda: year > 1 and year < 2,
        lambda: 2000 < year < 2010,
        lambda: not (year > 1),
        lambda: year in [2009, 2010],
        lambda: bool(year),
    ):
        refused("combine filters with &", wrong)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("finite", lambda: Field("x") == math.nan),
        ("finite", lambda: Field("x") < math.inf),
        ("too many digits", lambda: Field("x") == 10**5000),
        ("has no order", lambda: Field("x") < True),
        ("has no order", lambda: Field("x") >= None),
        ("compared with", lambda: Field("x") == Field("y")),
        ("compared with", lambda: Field("x").isin([[1]])),
        ("isin needs a list", lambda: Field("x").isin("abc")),
        ("isin needs a list", lambda: Field("x").isin(3)),
        ("not Unicode", lambda: Field("x") == "\ud800"),
        ("non-empty", lambda: Field("")),
        ("non-empty", lambda: Field(3)),  # type: ignore[arg-type]
        ("not the name", lambda: Field("a..b")),
        ("not the name", lambda: Field("a.")),
        ("not the name", lambda: Field("``")),
        ("not the name", lambda: Field("a`b")),
        ("not Unicode", lambda: Field("\ud800")),
        ("at most 50 keys", lambda: Field(".".join("a" * 51))),
        ("no filter to combine", lambda: (Field("x") > 1) & True),  # type: ignore[operator]
        ("no filter to combine", lambda: (Field("x") > 1) | Field("y")),  # type: ignore[operator]
        ("at most 250 conditions", lambda: reduce(operator.or_, [Field("x") == n for n in range(251)])),
    ],
)
def test_mistakes_are_refused(message: str, call: Any) -> None:
    refused(message, call)


def test_largest_filters_compile() -> None:
    wide = reduce(operator.and_, [Field("x").isin([n, "a", None, True]) for n in range(250)])
    deep = Field('`"`.x').contains("a")
    for n in range(5):
        deep = ~(deep & (Field("x") != n))
    assert deep.depth == 12
    assert Filter.parse(str(deep)) == deep
    assert admitted(wide, {"x": None}, {"x": 3}) == [0]
    rows = [{"x": 5, '"': {"x": ["a"]}}, {"x": 1}, {"x": 4}]
    assert admitted(deep, *rows) == [n for n, row in enumerate(rows) if admits(deep, {"metadata": row})]
    for key in ("x", '"'):
        nested: Any = 1
        for _ in range(50):
            nested = {key: nested}
        assert admitted(Field(".".join([f"`{key}`"] * 50)) == 1, nested) == [0]
    assert admitted(Field("id").isin(map(str, range(100_000))), {}) == []


def test_filters_are_values() -> None:
    one = (Field("year") > 2010) & ~Field("tags").contains("a'b")
    assert str(one) == "year > 2010 and not tags contains 'a''b'"
    assert eval(repr(one)) == pickle.loads(pickle.dumps(one)) == one
    assert one != (Field("year") > 2010)
    assert (Field("x") == 1) != (Field("x") == True)  # noqa: E712
    assert len({one, Filter.parse(str(one)), ~~one}) == 1
    assert repr(Field("metadata.`a b`.c")) == "Field('`a b`.c')"
    assert (Field("x") == np.float32(0.5)) == (Field("x") == 0.5)


# --- text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "equal"),
    [
        ('year>2010 AND camera = "X\'100"', (Field("year") > 2010) & (Field("camera") == "X'100")),
        ("exif . iso <= 1.5e3", Field("exif.iso") <= 1500.0),
        ("a = 1 or b = 2 and c = 3", (Field("a") == 1) | (Field("b") == 2) & (Field("c") == 3)),
        ("not not a exists", Field("a").exists()),
        ("NOT a = 'it''s'", Field("a") != "it's"),
        ("`a b`.`c``d` contains null", Field("`a b`.`c``d`").contains(None)),
        ("größe = -1", Field("größe") == -1),
        ("notes = 'x' and android contains 'in'", (Field("notes") == "x") & Field("android").contains("in")),
        ("a = 'C:\\x\n'", Field("a") == "C:\\x\n"),
    ],
)
def test_text_is_the_filter(text: str, equal: Filter) -> None:
    assert Filter.parse(text) == equal


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("year >> 2", "in column 7, not '> 2'; write it like: year > 2010"),
        ("year > ", "needs a number, .* in column 8, where it ends"),
        ("year > 2 and", "needs a field in column 13, where it ends"),
        ("(a = 1", "closing bracket or the end in column 7, where it ends"),
        ("a = 1)", "in column 6, not '\\)'"),
        ("camera = X100", "a text in quotes in column 10, not 'X100'"),
        ("year 2", "needs =, !=, .* in column 6"),
        ("a = 'x", "in column 5"),
        ("a = 1; DROP TABLE images", "in column 6"),
        ("__import__('os')", "in column 11"),
        ("", "non-empty"),
        ("a > true", "has no order"),
        ("a = 1e999", "finite"),
        ("a = " + "9" * 5000, "too many digits"),
        ("(" * 30_000, "in column 30001"),
        ("(" * 100_001, "at most 100000 characters"),
        (" or ".join(["a = 1"] * 251), "at most 250"),
        ("(a = 1 or " + "not (b = 2 and " * 60 + "c = 3" + ")" * 61, "nested at most 12"),
    ],
)
def test_errors_of_text_say_what_and_where(text: str, message: str) -> None:
    refused(message, Filter.parse, text)


@given(st.text(st.sampled_from("ab01.`'\"()[],=!<>  andorticsxe\n\0é"), max_size=40))
def test_any_text_is_a_filter_or_refused(text: str) -> None:
    try:
        found = Filter.parse(text)
    except ValueError:
        return
    assert Filter.parse(str(found)) == found


# --- SQL and a plain evaluator ------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(RECORDS, min_size=1, max_size=8), FILTERS)
@example([{'q"': {"é.": [1, "a"]}}], Field('`q"`.`é.`').contains("a"))
def test_sql_admits_what_a_plain_evaluator_admits(records: list[dict[str, Any]], filter: Filter) -> None:
    images = [
        {"id": f"{n}.jpg", "source": "/p", "width": 640, "height": 480, "bytes": 1000 + n, "metadata": record}
        for n, record in enumerate(records)
    ]
    with Catalog.create(None, dim=DIM) as catalog:
        catalog.add([image(n, record) for n, record in enumerate(records)])
        catalog.fields._known |= filter.fields()  # also those that no record has
        found = catalog.fields.matching(filter) - 1
        rest = catalog.fields.matching(~filter) - 1
        catalog.fields.index(map(field_name, filter.fields()))
        assert (catalog.fields.matching(filter) - 1).tolist() == found.tolist()
        catalog.verify()
        assert [one.key - 1 for one in catalog.iter_records() if selects(filter, one)] == found.tolist()
    expected = [n for n, record in enumerate(images) if admits(filter, record)]
    assert found.tolist() == expected
    assert sorted([*found, *rest]) == [*range(len(records))]
    assert Filter.parse(str(filter)) == filter


# --- survey -------------------------------------------------------------------------------------------------


def test_survey_has_short_values_of_the_commonest_fields(catalog: Catalog) -> None:
    rare = {f"rare {n}": n for n in range(300)}
    rows: list[dict[str, Any]] = [
        {"text": "x" * 101, "label": "cat"},
        {"text": "y" * 100, "label": "cat"},
        rare,
    ]
    catalog.add([image(number, row) for number, row in enumerate(rows, 3)])
    found = {field.name: field.values for field in catalog.fields.survey()}
    assert found["label"] == ("cat",) and found["text"] == ("y" * 100,)
    assert len(found) == 200 and {"width", "height", "bytes"} <= found.keys()
