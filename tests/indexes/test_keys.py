"""The key table against a dictionary, failed changes, and what a removal compares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsqretrieval.indexes.keys import DIGEST, KeyTable

STEPS = st.lists(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 4)), max_size=6), max_size=12)


def add(table: KeyTable, keys: list[int], vectors: list[int]) -> list[int]:
    plan = table.plan(np.array(keys, np.int64), np.array([b"%016d" % one for one in vectors], DIGEST))
    table.commit(plan)
    return plan.fresh.tolist()


@given(STEPS)
def test_table_agrees_with_a_dictionary(steps: list[list[tuple[int, int]]]) -> None:
    table, vector_of, row_of = KeyTable(), dict[int, int](), dict[int, int]()
    for step in steps:
        named = dict(step)
        gone = [key for key in named if key in vector_of]
        table.release(np.array(gone, np.int64))
        for key in gone:
            del vector_of[key]
        keys = [key for key in named if key not in gone]
        size = table.size
        for place, position in enumerate(add(table, keys, [named[key] for key in keys])):
            row_of[named[keys[position]]] = size + place
        vector_of |= {key: named[key] for key in keys}
        rows: dict[int, list[int]] = {}
        for key in sorted(vector_of):
            rows.setdefault(row_of[vector_of[key]], []).append(key)
        view = table.view
        assert view.first.tolist() == [rows.get(row, [-1])[0] for row in range(table.size)]
        assert {row: keys.tolist() for row, keys in view.shared.items()} == {
            row: keys for row, keys in rows.items() if len(keys) > 1
        }
        assert (view.row_count, view.key_count, len(table)) == (len(rows), len(vector_of), len(vector_of))


def test_failed_plan_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    table = KeyTable()
    add(table, [1, 2, 3], [1, 1, 2])

    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("zsqretrieval.indexes.keys._merged", fail)
        with pytest.raises(MemoryError):
            add(table, [4, 5], [1, 3])
    assert table.pairs().tolist() == [[1, 0], [2, 0], [3, 1]]
    assert (table.size, table.alive) == (2, 2) and add(table, [4, 5], [1, 3]) == [1]


def test_removing_keys_of_shared_rows_compares_each_row_with_its_own_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table, n = KeyTable(), 2000
    add(table, list(range(n)), list(range(n)))
    add(table, list(range(n, 2 * n)), list(range(n)))
    compared, setdiff1d = [], np.setdiff1d

    def counted(one: Any, other: Any, **settings: Any) -> Any:
        compared.append(len(one) * len(other))
        return setdiff1d(one, other, **settings)

    monkeypatch.setattr(np, "setdiff1d", counted)
    assert not len(table.release(np.arange(n)))
    assert sum(compared) == 2 * n  # with all removed keys it would be 2 * n * n
