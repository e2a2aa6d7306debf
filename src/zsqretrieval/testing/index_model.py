"""Exact answers to compare an index with: a dictionary of vectors and a matrix product."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.protocols import Index
from zsqretrieval.testing.checks import expect, expect_refusal
from zsqretrieval.types import Neighbors

Keys: TypeAlias = NDArray[np.int64]
Vectors: TypeAlias = NDArray[np.float32]

DIM = 16
"""Length of the vectors in most checks."""

TOLERANCE = 1e-4
"""Largest error of a cosine score."""


class IndexFactory(Protocol):
    """Makes an empty index."""

    def __call__(self, dim: int, fingerprint: str = "") -> Index:
        """Make an empty index for vectors of length ``dim`` made by the encoder ``fingerprint``."""
        ...


def random_vectors(n: int, dim: int, seed: int = 0) -> Vectors:
    """Float32 [n, dim] of independent normal entries; a longer draw starts with the shorter one's rows."""
    return np.random.default_rng(seed).standard_normal((n, dim), np.float32)


def keys_from(n: int, first: int = 0) -> Keys:
    """``n`` consecutive keys."""
    return np.arange(first, first + n, dtype=np.int64)


def vectors_of(n: int, seed: int = 0) -> Vectors:
    """Random vectors, float32 [n, DIM]."""
    return random_vectors(n, DIM, seed)


def filled(make_index: IndexFactory, n: int, fingerprint: str = "") -> tuple[Index, Keys, Vectors]:
    """An index of ``n`` random vectors under the keys 0 to n - 1, its keys and its vectors."""
    index, keys, vectors = make_index(DIM, fingerprint=fingerprint), keys_from(n), vectors_of(n)
    index.add(keys, vectors)
    return index, keys, vectors


def cosines(queries: Vectors, vectors: Vectors) -> NDArray[np.float64]:
    """Cosine similarity of every query and every vector, float64 [q, n]."""
    q, v = queries.astype(np.float64), vectors.astype(np.float64)
    unit_q = q / np.linalg.norm(q, axis=1, keepdims=True)
    unit_v = v / np.linalg.norm(v, axis=1, keepdims=True)
    return np.asarray(unit_q @ unit_v.T)


def expect_well_formed(found: Neighbors, q: int, k: int, stored: int) -> None:
    """Check types, shapes, and that min(k, stored) neighbours come before the padding."""
    for name, array, dtype in (("keys", found.keys, np.int64), ("scores", found.scores, np.float32)):
        expect(isinstance(array, np.ndarray), f"{name} as a numpy array", type(array).__name__)
        expect(array.dtype == dtype, f"{name} of dtype {np.dtype(dtype)}", array.dtype)
        expect(array.shape == (q, k), f"{name} of shape {(q, k)}", array.shape)
    n = min(k, stored)
    real, padding = found.keys[:, :n], found.keys[:, n:]
    expect(np.all(real >= 0), f"{n} neighbours per query before any padding", real)
    expect(np.all(np.isfinite(found.scores[:, :n])), "a finite score per neighbour", found.scores[:, :n])
    expect(np.all(padding == -1), "keys padded with -1", padding)
    expect(np.all(np.isnan(found.scores[:, n:])), "scores padded with nan", found.scores[:, n:])


def expect_true_scores(found: Neighbors, queries: Vectors, keys: Keys, vectors: Vectors) -> None:
    """Check that answers are ``keys``, unique in a row, with true and falling cosines."""
    column = {int(key): j for j, key in enumerate(keys)}
    truth = cosines(queries, vectors)
    for i, (row, scores) in enumerate(zip(found.keys, found.scores, strict=True)):
        answers = [int(key) for key in row if key != -1]
        unknown = set(answers) - column.keys()
        expect(not unknown, "only keys that are stored", f"{sorted(unknown)} for query {i}")
        expect(len(set(answers)) == len(answers), "no key twice in a row", f"{answers} for query {i}")
        true_scores = truth[i, [column[key] for key in answers]]
        gap = np.abs(scores[: len(answers)] - true_scores).max(initial=0)
        expect(gap <= TOLERANCE, "cosine scores to 1e-4", f"an error of {gap:.3g} for query {i}")
        expect(np.all(np.diff(scores[: len(answers)]) <= 0), "falling scores", f"{scores} for query {i}")


def expect_true_answers(found: Neighbors, queries: Vectors, keys: Keys, vectors: Vectors) -> None:
    """Check that the scores are true and the best possible; only for few vectors."""
    k = found.keys.shape[1]
    expect_well_formed(found, len(queries), k, stored=len(keys))
    expect_true_scores(found, queries, keys, vectors)
    best = -np.sort(-cosines(queries, vectors), axis=1)[:, :k]
    gap = np.abs(found.scores[:, : best.shape[1]] - best).max(initial=0)
    expect(gap <= TOLERANCE, f"the {best.shape[1]} best of {len(keys)} scores", f"scores {gap:.3g} off")


def expect_same_answers(one: Neighbors, other: Neighbors, what: str) -> None:
    """Check that keys are equal, and scores up to rounding."""
    same_keys = np.array_equal(one.keys, other.keys)
    expect(same_keys, f"equal keys for {what}", f"{one.keys} and {other.keys}")
    same_scores = np.allclose(one.scores, other.scores, rtol=0, atol=1e-5, equal_nan=True)
    expect(same_scores, f"equal scores for {what}", f"{one.scores} and {other.scores}")


def recall(found: Neighbors, queries: Vectors, keys: Keys, vectors: Vectors) -> float:
    """Recall@k against brute force; a key as near as the true k-th neighbour counts as found."""
    q, k = found.keys.shape
    column = {int(key): j for j, key in enumerate(keys)}
    truth = cosines(queries, vectors)
    threshold = -np.sort(-truth, axis=1)[:, k - 1] - 1e-6
    hits = sum(
        truth[i, column[key]] >= threshold[i]
        for i in range(q)
        for key in {int(key) for key in found.keys[i]} & column.keys()
    )
    return float(hits / (q * k))


def saved_and_loaded(index: Index) -> Any:
    """The index after saving and loading it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        index.save(path)
        return type(index).load(path)


@dataclass(frozen=True)
class Operation:
    """One operation on an index; the index must refuse it if it is invalid in its current state."""

    kind: Literal["add", "remove", "search", "reload"]
    keys: tuple[int, ...] = ()  # to add or remove
    seed: int = 0  # of the vectors to add, or the queries; equal seeds make equal vectors
    k: int = 1


def play(index: Index, operations: Iterable[Operation]) -> None:
    """Perform ``operations`` on an empty index and on a dictionary of vectors, and compare after each one."""
    model: dict[int, Vectors] = {}
    for operation in operations:
        keys = np.array(operation.keys, np.int64)
        repeated = len(set(operation.keys)) < len(keys)
        if operation.kind == "add":
            vectors = random_vectors(len(keys), index.dim, operation.seed)
            if repeated or model.keys() & set(operation.keys):
                expect_refusal(lambda: index.add(keys, vectors), f"adding {keys} to {list(model)}")  # noqa: B023
            else:
                index.add(keys, vectors)
                model.update(zip(operation.keys, vectors, strict=True))
        elif operation.kind == "remove":
            if repeated or set(operation.keys) - model.keys():
                expect_refusal(lambda: index.remove(keys), f"removing {keys} from {list(model)}")  # noqa: B023
            else:
                index.remove(keys)
                for key in operation.keys:
                    del model[key]
        elif operation.kind == "search":
            queries = random_vectors(3, index.dim, operation.seed)
            stored = np.stack([*model.values()]) if model else np.empty((0, index.dim), np.float32)
            found = index.search(queries, operation.k)
            expect_true_answers(found, queries, np.array([*model], np.int64), stored)
        else:
            index = saved_and_loaded(index)
        expect(len(index) == len(model), f"len {len(model)} after {operation}", len(index))
