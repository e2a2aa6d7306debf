"""Both indexes against a dictionary, over random sequences of operations; long ones with --slow."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from index_data import vectors
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.indexes.compressed import CompressedIndex
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.indexes.hnsw import HNSWIndex

DIM = 6
POOL = vectors(24, DIM, rank=6)  # few vectors, so that identical ones are frequent
QUERIES = vectors(4, DIM, seed=1, rank=6)

keys_and_vectors = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, len(POOL) - 1)), max_size=12, unique_by=lambda pair: pair[0]
)


class IndexMachine(RuleBasedStateMachine):
    kind: ClassVar[Any]
    tolerance: ClassVar[float]

    def __init__(self) -> None:
        super().__init__()
        self.index = self.kind(DIM)
        self.model: dict[int, np.ndarray] = {}

    @rule(pairs=keys_and_vectors, scale=st.sampled_from([1, 4]))
    def add(self, pairs: list[tuple[int, int]], scale: int) -> None:
        keys = np.array([key for key, _ in pairs], np.int64)
        rows = POOL[[which for _, which in pairs]] if pairs else np.empty((0, DIM), np.float32)
        if self.model.keys() & set(keys.tolist()):
            try:
                self.index.add(keys, rows)
            except InvalidInputError:
                return
            raise AssertionError("a key was stored twice")
        self.index.add(keys, rows * np.float32(scale))
        self.model.update(zip(keys.tolist(), rows, strict=True))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        keys = data.draw(st.lists(st.sampled_from(sorted(self.model)), unique=True))
        self.index.remove(np.array(keys, np.int64))
        for key in keys:
            del self.model[key]

    @rule(stranger=st.integers(61, 70))
    def remove_stranger(self, stranger: int) -> None:
        try:
            self.index.remove(np.array([*self.model, stranger]))
        except InvalidInputError:
            return
        raise AssertionError("an unknown key was removed")

    @rule()
    def save_and_load(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            self.index.save(Path(directory))
            self.index = self.kind.load(Path(directory), dim=DIM)

    @rule(k=st.integers(1, 70))
    def search(self, k: int) -> None:
        self.agree(self.index.search(QUERIES, k), self.model, k)

    @rule(k=st.integers(1, 8), allowed=st.lists(st.integers(-2, 70)))
    def search_among(self, k: int, allowed: list[int]) -> None:
        part = {key: row for key, row in self.model.items() if key in allowed}
        self.agree(self.index.search_among(QUERIES, k, np.array(allowed, np.int64)), part, k)

    @invariant()
    def count_is_honest(self) -> None:
        assert len(self.index) == len(self.model)

    def agree(self, found: Any, model: dict[int, np.ndarray], k: int) -> None:
        keys = np.array(sorted(model), np.int64)
        m = min(k, len(keys))
        assert found.keys.shape == found.scores.shape == (len(QUERIES), k)
        assert (found.keys[:, m:] == -1).all()
        assert np.isnan(found.scores[:, m:]).all()
        if not m:
            return
        cosines = QUERIES.astype(float) @ np.array([model[key] for key in keys.tolist()]).astype(float).T
        best = -np.sort(-cosines, axis=1)[:, :m]
        np.testing.assert_allclose(found.scores[:, :m], best, atol=self.tolerance)
        for row, scores in zip(found.keys[:, :m], cosines, strict=True):
            assert len(set(row.tolist())) == m
            own = scores[np.searchsorted(keys, row)]
            assert set(row.tolist()) <= model.keys()
            np.testing.assert_allclose(own, -np.sort(-scores)[:m], atol=self.tolerance)


@pytest.mark.parametrize("examples", [10, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("index", [ExactIndex, CompressedIndex, HNSWIndex])
def test_index_agrees_with_a_dictionary(index: Any, examples: int) -> None:
    machine = type(
        "Machine", (IndexMachine,), {"kind": index, "tolerance": 5e-5 if index is CompressedIndex else 1e-5}
    )
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=20))
