"""Invalid calls that an index must refuse with a ValueError and without any change: one check per call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from zsqretrieval.testing.checks import Check, expect, expect_refusal
from zsqretrieval.testing.index_model import (
    DIM,
    IndexFactory,
    Keys,
    Vectors,
    expect_same_answers,
    expect_true_answers,
    random_vectors,
)

STORED_KEYS = np.arange(12, dtype=np.int64)
STORED_VECTORS = random_vectors(12, DIM)
NEW_KEYS = np.arange(100, 104, dtype=np.int64)
NEW_VECTORS = random_vectors(4, DIM, seed=2)


def _last_row(value: float, columns: slice) -> Callable[[Vectors], Vectors]:
    """Change the last row only, so that an index may wrongly keep the valid rows before it."""

    def spoil(vectors: Vectors) -> Vectors:
        spoiled = np.array(vectors)
        spoiled[-1, columns] = value
        return spoiled

    return spoil


BAD_VECTORS: dict[str, Callable[[Vectors], Any]] = {
    "wide vectors": lambda vectors: np.concatenate([vectors, vectors[:, :1]], axis=1),
    "narrow vectors": lambda vectors: vectors[:, :-1],
    "one-dimensional vectors": lambda vectors: vectors[0],
    "nan": _last_row(np.nan, slice(3, 4)),
    "infinity": _last_row(-np.inf, slice(3, 4)),
    "a zero vector": _last_row(0, slice(None)),
}
BAD_NEW_KEYS: dict[str, Callable[[Keys], Any]] = {
    "a present key": lambda keys: np.append(keys[:-1], STORED_KEYS[1]),
    "a repeated key": lambda keys: np.append(keys[:-1], keys[0]),
    "a negative key": lambda keys: np.append(keys[:-1], -1),
    "float keys": lambda keys: keys.astype(np.float64),
    "two-dimensional keys": lambda keys: keys[:, None],
    "too few keys": lambda keys: keys[:-1],
}
BAD_OLD_KEYS: dict[str, Callable[[Keys], Any]] = {
    "an unknown key": lambda keys: np.append(keys[:-1], 2**40),
    "a repeated key": lambda keys: np.append(keys[:-1], keys[0]),
    "float keys": lambda keys: keys.astype(np.float64),
}
BAD_K = {"a k of zero": 0, "a negative k": -1}


def _refusal(method: str, offence: str, *arguments: object) -> Check[IndexFactory]:
    """A check that the call on a filled index raises ValueError and changes nothing."""

    def verify(make_index: IndexFactory) -> None:
        index = make_index(DIM)
        index.add(STORED_KEYS, STORED_VECTORS)
        queries = random_vectors(4, DIM, seed=1)
        before = index.search(queries, 20)
        expect_refusal(partial(getattr(index, method), *arguments), f"{offence} in {method}")
        expect(len(index) == 12, "len 12 after the refusal", len(index))
        expect_same_answers(before, index.search(queries, 20), "a search before and after the refusal")
        # the valid rows of the refused batch can still be added
        index.add(NEW_KEYS, NEW_VECTORS)
        index.remove(STORED_KEYS[:6])
        keys = np.concatenate([STORED_KEYS[6:], NEW_KEYS])
        vectors = np.concatenate([STORED_VECTORS[6:], NEW_VECTORS])
        expect_true_answers(index.search(queries, 10), queries, keys, vectors)

    words = offence.removeprefix("a ").removeprefix("an ").replace("-", "_").replace(" ", "_")
    name = f"{method}_refuses_{words}"
    return Check(name, f"``{method}`` refuses {offence}, and nothing changes.", verify)


def _refusals() -> Iterator[Check[IndexFactory]]:
    for offence, spoil in BAD_VECTORS.items():
        yield _refusal("add", offence, NEW_KEYS, spoil(NEW_VECTORS))
        yield _refusal("search", offence, spoil(NEW_VECTORS), 3)
    for offence, spoil_keys in BAD_NEW_KEYS.items():
        yield _refusal("add", offence, spoil_keys(NEW_KEYS), NEW_VECTORS)
    for offence, spoil_keys in BAD_OLD_KEYS.items():
        yield _refusal("remove", offence, spoil_keys(STORED_KEYS[:4]))
    for offence, k in BAD_K.items():
        yield _refusal("search", offence, NEW_VECTORS, k)


refusals = tuple(_refusals())
"""One check per invalid call; each takes ``make_index``."""
