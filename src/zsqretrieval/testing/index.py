"""Checks of every index; the contract is :class:`zsqretrieval.protocols.Index`.

Every check makes its own indexes with a factory ``make_index(dim, fingerprint="")``. Checks of saving are in
``index_storage``, of refusals in ``index_refusals``; ``index_model`` has the exact answers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from zsqretrieval.protocols import Index
from zsqretrieval.testing.checks import Check, expect, lister, run_checks
from zsqretrieval.testing.index_model import (
    DIM,
    TOLERANCE,
    IndexFactory,
    Keys,
    Operation,
    Vectors,
    expect_same_answers,
    expect_true_answers,
    expect_true_scores,
    expect_well_formed,
    filled,
    keys_from,
    play,
    random_vectors,
    recall,
    saved_and_loaded,
    vectors_of,
)
from zsqretrieval.testing.index_refusals import refusals
from zsqretrieval.testing.index_storage import storage_checks
from zsqretrieval.types import Neighbors

_listed: list[Check[IndexFactory]] = []
_check = lister(_listed, lambda make_index: make_index)


def check_index(make_index: IndexFactory) -> None:
    """Run every index check on what ``make_index(dim, fingerprint="")`` makes.

    Raises:
        ContractError: names each failed check, with what was expected and what was got.
    """
    run_checks(index_checks, make_index)


# -- searching ---------------------------------------------------------------------------------------


@_check
def new_index_is_empty(make_index: IndexFactory) -> None:
    """A new index has the dim and the fingerprint it was made with, and length 0."""
    index = make_index(DIM, fingerprint="encoder 1")
    expect(isinstance(index, Index), "the members of the Index protocol", type(index).__name__)
    facts = (index.dim, index.fingerprint, len(index))
    expect(facts == (DIM, "encoder 1", 0), f"dim, fingerprint, len {(DIM, 'encoder 1', 0)}", facts)
    expect(make_index(DIM).fingerprint == "", "an empty fingerprint by default", make_index(DIM).fingerprint)


@_check
def answers_have_contract_types(make_index: IndexFactory) -> None:
    """``search`` returns Neighbors: int64 keys and float32 scores of shape [q, k]."""
    index, _, vectors = filled(make_index, 20)
    for queries, k in ((3, 1), (3, 5), (1, 20), (3, 50), (0, 5)):
        expect_well_formed(index.search(vectors[:queries], k), queries, k, stored=20)


@_check
def own_vector_is_nearest(make_index: IndexFactory) -> None:
    """Searching for a stored vector finds its key first, with a score of 1 to 1e-4."""
    index, keys, vectors = filled(make_index, 100)
    found = index.search(vectors, 5)
    expect(np.array_equal(found.keys[:, 0], keys), "every vector's own key first", found.keys[:, 0])
    gap = np.abs(found.scores[:, 0] - 1).max()
    expect(gap <= TOLERANCE, "scores of 1 to 1e-4 for own vectors", f"a difference of {gap:.3g}")


@_check
def scores_fall(make_index: IndexFactory) -> None:
    """Answers come best first: scores never rise along a row."""
    index, _, _ = filled(make_index, 100)
    scores = index.search(vectors_of(10, seed=1), 20).scores
    expect(np.all(np.diff(scores, axis=1) <= 0), "scores that never rise along a row", scores[0])


@_check
def scores_are_cosines(make_index: IndexFactory) -> None:
    """A score is the cosine similarity of query and stored vector to 1e-4, negative ones too."""
    index, keys, vectors = filled(make_index, 60)
    queries = vectors_of(10, seed=1)
    expect_true_answers(index.search(queries, 60), queries, keys, vectors)


@_check
def length_of_vectors_does_not_matter(make_index: IndexFactory) -> None:
    """Stored vectors and queries of any length count as unit vectors, even very long and short ones."""
    keys, vectors, queries = keys_from(60), vectors_of(60), vectors_of(10, seed=1)
    lengths = np.logspace(-30, 30, 60, dtype=np.float32)[:, None]
    index = make_index(DIM)
    index.add(keys, vectors * lengths)
    expect_true_answers(index.search(queries * lengths[::6], 60), queries, keys, vectors)


@_check
def too_large_k_is_padded(make_index: IndexFactory) -> None:
    """With k > len, all keys come first and the rest is padded with -1 and nan."""
    index, keys, _ = filled(make_index, 7)
    found = index.search(vectors_of(3, seed=1), 12)
    expect_well_formed(found, 3, 12, stored=7)
    for row in found.keys:
        expect(set(row[:7]) == set(keys), f"all of {keys} before the padding", row)


@_check
def empty_index_answers_padding(make_index: IndexFactory) -> None:
    """An index without vectors answers every query with -1 and nan only."""
    expect_well_formed(make_index(DIM).search(vectors_of(2), 3), 2, 3, stored=0)


@_check
def no_queries_give_no_rows(make_index: IndexFactory) -> None:
    """Searching [0, dim] gives [0, k], from an empty index too."""
    expect_well_formed(make_index(DIM).search(vectors_of(0), 4), 0, 4, stored=0)
    index, _, _ = filled(make_index, 5)
    expect_well_formed(index.search(vectors_of(0), 4), 0, 4, stored=5)


@_check
def queries_do_not_affect_each_other(make_index: IndexFactory) -> None:
    """Queries asked one by one, together, and in another order get the same answers."""
    index, _, _ = filled(make_index, 200)
    queries = vectors_of(12, seed=1)
    together = index.search(queries, 10)
    turned_round = index.search(queries[::-1], 10)
    for i, query in enumerate(queries):
        alone = index.search(query[None], 10)
        one = Neighbors(together.keys[i][None], together.scores[i][None])
        other = Neighbors(turned_round.keys[::-1][i][None], turned_round.scores[::-1][i][None])
        expect_same_answers(alone, one, "a query asked alone and among others")
        expect_same_answers(alone, other, "a query asked alone and in a reversed batch")


@_check
def inputs_are_not_changed(make_index: IndexFactory) -> None:
    """``add``, ``search`` and ``remove`` leave the caller's arrays as they were."""
    index = make_index(DIM)
    keys, vectors, queries = keys_from(20), 3 * vectors_of(20), 3 * vectors_of(5, seed=1)
    gone = keys[:4].copy()
    copies = [array.copy() for array in (keys, vectors, queries, gone)]
    index.add(keys, vectors)
    index.search(queries, 3)
    index.remove(gone)
    names = ("keys", "vectors", "queries", "removed keys")
    for name, array, copy in zip(names, (keys, vectors, queries, gone), copies, strict=True):
        expect(np.array_equal(array, copy), f"the caller's {name} unchanged", "other values")


@_check
def index_keeps_its_own_copy(make_index: IndexFactory) -> None:
    """The caller may overwrite arrays given to ``add`` and returned by ``search``."""
    index = make_index(DIM)
    keys, vectors, queries = keys_from(20), vectors_of(20), vectors_of(5, seed=1)
    # unit vectors need no scaling, so an index may forget to copy them
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    given_keys, given_vectors = keys.copy(), vectors.copy()
    index.add(given_keys, given_vectors)
    found = index.search(queries, 20)
    index.search(-queries, 20)
    expect_true_answers(found, queries, keys, vectors)  # still
    given_keys[:], given_vectors[:] = 99, 0.5
    if found.keys.flags.writeable and found.scores.flags.writeable:
        found.keys[:], found.scores[:] = 99, 0.5
    expect_true_answers(index.search(queries, 20), queries, keys, vectors)


@_check
def memory_layout_does_not_matter(make_index: IndexFactory) -> None:
    """Strided, Fortran-ordered and read-only arrays give the same answers."""
    keys, vectors, queries = keys_from(30), vectors_of(30), vectors_of(5, seed=1)
    wide = np.zeros((60, 2 * DIM), np.float32)
    wide[::2, ::2] = vectors
    frozen_keys, frozen_vectors = keys.copy(), vectors.copy()
    frozen_keys.flags.writeable = frozen_vectors.flags.writeable = False
    layouts = (
        (np.repeat(keys, 2)[::2], wide[::2, ::2], np.repeat(queries, 2, axis=0)[::2]),
        (keys, np.asfortranarray(vectors), np.asfortranarray(queries)),
        (frozen_keys, frozen_vectors, queries),
    )
    for given_keys, given_vectors, given_queries in layouts:
        index = make_index(DIM)
        index.add(given_keys, given_vectors)
        expect_true_answers(index.search(given_queries, 30), queries, keys, vectors)


@_check
def large_keys_are_exact(make_index: IndexFactory) -> None:
    """Keys up to 2**63 - 1 come back exactly, also after save and load; 0 is a key like any other."""
    keys = np.array([0, 2**31, 2**53 + 1, 2**62, 2**62 + 1, 2**63 - 1], np.int64)
    vectors = vectors_of(len(keys))
    index = make_index(DIM)
    index.add(keys, vectors)
    for answering in (index, saved_and_loaded(index)):
        found = answering.search(vectors, 1).keys[:, 0]
        expect(np.array_equal(found, keys), f"the keys {keys}", found)


# -- growing and shrinking ---------------------------------------------------------------------------


@_check
def adding_and_removing_nothing_is_allowed(make_index: IndexFactory) -> None:
    """Empty batches are neither an error nor a change, on an empty index too."""
    for index in (make_index(DIM), filled(make_index, 5)[0]):
        size = len(index)
        index.add(keys_from(0), vectors_of(0))
        index.remove(keys_from(0))
        expect(len(index) == size, f"len {size}", len(index))


@_check
def grows_to_thousands(make_index: IndexFactory) -> None:
    """Batches of all sizes add up to thousands of vectors, each found by itself."""
    keys, vectors = keys_from(3000), vectors_of(3000)
    index = make_index(DIM)
    for batch in np.split(np.arange(3000), [1, 2, 10, 500, 1500, 2999]):
        index.add(keys[batch], vectors[batch])
        expect(len(index) == batch[-1] + 1, f"len {batch[-1] + 1}", len(index))
    found = index.search(vectors[::10], 1).keys[:, 0]
    hits = np.mean(found == keys[::10])
    expect(hits >= 0.99, "at least 99 % of own vectors found first", f"{hits:.1%}")


@_check
def removed_keys_never_return(make_index: IndexFactory) -> None:
    """After ``remove``, len is smaller, and searches find all other keys but never the removed ones."""
    index, keys, vectors = filled(make_index, 60)
    index.remove(keys[::2])
    expect(len(index) == 30, "len 30 after removing 30 of 60", len(index))
    for k in (5, 60):
        expect_true_answers(index.search(vectors, k), vectors, keys[1::2], vectors[1::2])


@_check
def removed_key_can_return_with_another_vector(make_index: IndexFactory) -> None:
    """A removed key can be added again with a new vector, which replaces the old one."""
    index, keys, vectors = filled(make_index, 30)
    index.remove(keys[:10])
    changed = np.concatenate([vectors_of(10, seed=5), vectors[10:]])
    index.add(keys[:10], changed[:10])
    expect_true_answers(index.search(vectors, 30), vectors, keys, changed)


@_check
def everything_can_be_removed(make_index: IndexFactory) -> None:
    """An index emptied by ``remove`` answers like a new one, and can be filled again."""
    index, keys, vectors = filled(make_index, 30)
    index.remove(keys)
    expect(len(index) == 0, "len 0", len(index))
    expect_well_formed(index.search(vectors[:2], 3), 2, 3, stored=0)
    index.add(keys[::-1], vectors)
    expect_true_answers(index.search(vectors, 30), vectors, keys[::-1], vectors)


@_check
def random_operations_agree_with_a_model(make_index: IndexFactory) -> None:
    """Long random mixtures of add, remove, search and save/load agree with a dictionary of vectors."""
    for seed in range(5):
        play(make_index(DIM), _random_operations(np.random.default_rng(seed), 60))


# -- quality and concurrency -------------------------------------------------------------------------


@_check
def recall_is_high(make_index: IndexFactory) -> None:
    """Recall@10 on clustered vectors is at least 0.95 against brute force."""
    vectors, queries = _clustered(2000), _clustered(100, seed=1)
    index = make_index(vectors.shape[1])
    index.add(keys_from(2000), vectors)
    _expect_recall(index, keys_from(2000), vectors, queries)


@_check
def recall_stays_high_after_removals(make_index: IndexFactory) -> None:
    """Recall@10 is still at least 0.95 after two thirds of the vectors were removed."""
    vectors, queries, keys = _clustered(1500), _clustered(100, seed=1), keys_from(1500)
    index = make_index(vectors.shape[1])
    index.add(keys, vectors)
    kept = keys % 3 == 0
    index.remove(keys[~kept])
    _expect_recall(index, keys[kept], vectors[kept], queries)


@_check
def identical_vectors_do_no_harm(make_index: IndexFactory) -> None:
    """With 40 % identical vectors the others keep their recall, and all the identical keys can be found."""
    vectors, queries, keys = _clustered(1000), _clustered(60, seed=1), keys_from(1000)
    same = np.random.default_rng(2).permutation(1000) < 400
    vectors[same] = vectors[same][0]
    index = make_index(vectors.shape[1])
    index.add(keys, vectors)
    found = index.search(vectors[same][:1], 400)
    missing = set(keys[same]) - set(found.keys[0])
    expect(not missing, "all 400 keys of one vector among its 400 nearest", f"{len(missing)} missing")
    _expect_recall(index, keys, vectors, vectors[~same])
    _expect_recall(index, keys, vectors, queries)


@_check
def searching_while_adding_is_safe(make_index: IndexFactory) -> None:
    """Searches during adds in another thread find all earlier vectors, and only stored ones."""
    keys, vectors = keys_from(1500), vectors_of(1500)
    index = make_index(DIM)
    index.add(keys[:100], vectors[:100])
    errors: list[Exception] = []
    done = threading.Event()

    def grow() -> None:
        try:
            for start in range(100, 1500, 50):
                index.add(keys[start : start + 50], vectors[start : start + 50])
        except Exception as error:
            errors.append(error)
        finally:
            done.set()

    adding = threading.Thread(target=grow)
    adding.start()
    try:
        last_round = False
        while not last_round:
            last_round = done.is_set()  # search once more after the last add
            found = index.search(vectors[:100:10], 5)
            expect(
                np.array_equal(found.keys[:, 0], keys[:100:10]),
                "the vectors added before, first, during adds",
                found.keys[:, 0],
            )
            expect_true_scores(found, vectors[:100:10], keys, vectors)
    finally:
        adding.join()
    if errors:
        raise errors[0]
    expect(len(index) == 1500, "len 1500 after all adds", len(index))


@_check
def threads_agree(make_index: IndexFactory) -> None:
    """Concurrent searches give the answers that searches one after another give."""
    index, _, _ = filled(make_index, 500)
    jobs = [vectors_of(5, seed=seed) for seed in range(1, 25)]
    serial = [index.search(job, 10) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        concurrent = list(pool.map(lambda job: index.search(job, 10), jobs))
    for one, other in zip(serial, concurrent, strict=True):
        expect_same_answers(one, other, "serial and concurrent searches")


index_checks = (*_listed, *storage_checks, *refusals)
"""Every index check; each takes ``make_index(dim, fingerprint="")``."""


def _clustered(n: int, seed: int = 0) -> Vectors:
    """Float32 [n, 32] around 40 centres, the same for every seed."""
    rng = np.random.default_rng(seed)
    centres = random_vectors(40, 32, seed=1000)
    return centres[rng.integers(0, 40, n)] + 0.4 * rng.standard_normal((n, 32), np.float32)


def _expect_recall(index: Index, keys: Keys, vectors: Vectors, queries: Vectors) -> None:
    found = index.search(queries, 10)
    expect_true_scores(found, queries, keys, vectors)
    reached = recall(found, queries, keys, vectors)
    expect(reached >= 0.95, f"recall@10 of at least 0.95 for {len(queries)} queries", f"{reached:.3f}")


def _random_operations(rng: np.random.Generator, n: int) -> Iterator[Operation]:
    """Operations on few keys and vectors, which make repeats, refusals and re-additions common."""
    for _ in range(n):
        keys = tuple(int(key) for key in rng.integers(0, 40, rng.integers(1, 5)))
        seed, k = int(rng.integers(8)), int(rng.integers(1, 50))
        if rng.random() < 0.1:
            yield Operation("reload")
        elif rng.random() < 0.3:
            yield Operation("search", seed=seed, k=k)
        elif rng.random() < 0.5:
            yield Operation("add", keys, seed)
        else:
            yield Operation("remove", keys[:1])
    yield Operation("search", seed=1, k=50)
