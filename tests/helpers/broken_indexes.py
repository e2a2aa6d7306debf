"""Indexes with one common bug each, and the checks that must find it."""

from __future__ import annotations

import contextlib
import json
import time

import numpy as np

from caught_by import caught_by, spoiled
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.testing import ToyIndex
from zsqretrieval.testing.index_refusals import refusals
from zsqretrieval.types import Neighbors


class SpoiledAnswers(ToyIndex):
    """Applies ``spoil`` of a subclass to all answers."""

    def search(self, vectors, k):
        found = super().search(vectors, k)
        return Neighbors(*self.spoil(found.keys, found.scores))


def worst_first(keys, scores):
    n = int((keys[0] >= 0).sum()) if len(keys) else 0
    keys[:, :n], scores[:, :n] = keys[:, :n][:, ::-1].copy(), scores[:, :n][:, ::-1].copy()
    return keys, scores


def as_many_as_there_are(keys, scores):
    real = keys.max(axis=0, initial=-1) >= 0
    return keys[:, real], scores[:, real]


def keys_through_float64(keys, scores):
    with np.errstate(invalid="ignore"):
        return keys.astype(np.float64).astype(np.int64), scores


TYPES, PADDING = "answers_have_contract_types", ("too_large_k_is_padded", "empty_index_answers_padding")
SPOILED = spoiled(
    SpoiledAnswers,
    PlatformTypes=(lambda keys, scores: (keys.astype(np.uint64), scores.astype(np.float64)), TYPES),
    FlatAnswers=(lambda keys, scores: (keys.squeeze(), scores.squeeze()), TYPES),
    Distances=(lambda keys, scores: (keys, 1 - scores), "own_vector_is_nearest", "scores_are_cosines"),
    ScoresMappedToZeroOne=(lambda keys, scores: (keys, (1 + scores) / 2), "scores_are_cosines"),
    WorstFirst=(worst_first, "own_vector_is_nearest", "scores_fall"),
    AsManyAsThereAre=(as_many_as_there_are, *PADDING),
    PaddedWithKeyZero=(lambda keys, scores: (np.maximum(keys, 0), np.nan_to_num(scores)), *PADDING),
    StacksAnEmptyList=(
        lambda keys, scores: (np.array(list(keys), np.int64), np.array(list(scores), np.float32)),
        "no_queries_give_no_rows",
    ),
    KeysThroughFloat64=(keys_through_float64, "large_keys_are_exact"),
    Keys32=(lambda keys, scores: (keys.astype(np.int32).astype(np.int64), scores), "large_keys_are_exact"),
)


# -- searching


@caught_by("new_index_is_empty")
class ForgetsItsFingerprint(ToyIndex):
    def __init__(self, dim, fingerprint=""):
        super().__init__(dim)


@caught_by("scores_are_cosines", "length_of_vectors_does_not_matter")
class InnerProducts(ToyIndex):
    def _checked(self, vectors):
        super()._checked(vectors)
        return vectors


@caught_by("length_of_vectors_does_not_matter")
class NormsInFloat32(ToyIndex):
    """Squares of long vectors overflow, those of short ones vanish."""

    def _checked(self, vectors):
        super()._checked(vectors)
        with np.errstate(all="ignore"):
            return np.nan_to_num(vectors / np.sqrt((vectors * vectors).sum(axis=1, keepdims=True)))


@caught_by("queries_do_not_affect_each_other")
class CentredQueries(ToyIndex):
    def search(self, vectors, k):
        self._checked(vectors)
        return (
            super().search(vectors - 0.5 * vectors.mean(axis=0), k)
            if len(vectors)
            else Neighbors(np.empty((0, k), np.int64), np.empty((0, k), np.float32))
        )


@caught_by("inputs_are_not_changed")
class NormalisesInPlace(ToyIndex):
    def _checked(self, vectors):
        units = super()._checked(vectors)
        if vectors.flags.writeable:
            vectors[:] = units
        return units


@caught_by("inputs_are_not_changed")
class SortsKeysInPlace(ToyIndex):
    def remove(self, keys):
        super().remove(keys)
        keys[:] = -1


@caught_by("index_keeps_its_own_copy")
class KeepsReferences(ToyIndex):
    def add(self, keys, vectors):
        super().add(keys, vectors)
        self._rows = (keys, vectors) if len(self) == len(keys) else self._rows


@caught_by("index_keeps_its_own_copy", "queries_do_not_affect_each_other")
class OneAnswerBuffer(SpoiledAnswers):
    def __init__(self, dim, fingerprint=""):
        super().__init__(dim, fingerprint)
        self.buffers = {}

    def spoil(self, keys, scores):
        kept_keys, kept_scores = self.buffers.setdefault(scores.shape, (keys, scores))
        kept_keys[:], kept_scores[:] = keys, scores
        return kept_keys, kept_scores


@caught_by("memory_layout_does_not_matter")
class ReadsRawMemory(ToyIndex):
    """What C code does that is handed a pointer without its strides."""

    def _checked(self, vectors):
        return super()._checked(
            vectors.ravel(order="K").reshape(vectors.shape) if vectors.ndim == 2 else vectors
        )


@caught_by("memory_layout_does_not_matter")
class WritesToItsInput(ToyIndex):
    def add(self, keys, vectors):
        vectors *= 1
        super().add(keys, vectors)


# -- refusing


@caught_by(*(check.name for check in refusals))
class SwallowsErrors(ToyIndex):
    """Ignores whatever is wrong: nothing changes, but nobody is told."""

    def add(self, keys, vectors):
        with contextlib.suppress(ValueError):
            super().add(keys, vectors)

    def remove(self, keys):
        with contextlib.suppress(ValueError):
            super().remove(keys)

    def search(self, vectors, k):
        try:
            return super().search(vectors, k)
        except ValueError:
            return Neighbors(
                np.full((len(vectors), max(k, 1)), -1), np.full((len(vectors), max(k, 1)), np.nan)
            )


@caught_by(
    *tuple(
        f"add_refuses_{offence}"
        for offence in ("nan", "infinity", "zero_vector", "present_key", "repeated_key")
    )
)
class AddsUpToTheBadRow(ToyIndex):
    """Refuses the batch, but has stored the rows before the bad one."""

    def add(self, keys, vectors):
        if vectors.ndim != 2 or len(keys) != len(vectors):
            raise InvalidInputError("shapes")
        for i in range(len(keys)):
            super().add(keys[i : i + 1], vectors[i : i + 1])


@caught_by("remove_refuses_unknown_key", "remove_refuses_repeated_key")
class RemovesUpToTheBadKey(ToyIndex):
    def remove(self, keys):
        for i in range(len(keys)):
            super().remove(keys[i : i + 1])


@caught_by("add_refuses_nan", "add_refuses_zero_vector")
class ReservesKeysBeforeChecking(ToyIndex):
    """A refused batch leaves its keys behind as taken, though no search and no len can tell."""

    def __init__(self, dim, fingerprint=""):
        super().__init__(dim, fingerprint)
        self.taken = set()

    def add(self, keys, vectors):
        if taken := self.taken & set(keys.ravel().tolist()):
            raise InvalidInputError(f"{taken} are taken")
        self.taken |= set(keys.ravel().tolist())
        super().add(keys, vectors)

    def remove(self, keys):
        super().remove(keys)
        self.taken -= set(keys.tolist())


@caught_by("add_refuses_nan", "search_refuses_one_dimensional_vectors")
class RefusesWithAnotherError(ToyIndex):
    def _checked(self, vectors):
        try:
            return super()._checked(vectors)
        except ValueError as error:
            raise RuntimeError(str(error)) from error


# -- growing and shrinking


@caught_by("adding_and_removing_nothing_is_allowed")
class NeedsAtLeastOneRow(ToyIndex):
    def add(self, keys, vectors):
        if not len(keys):
            raise InvalidInputError("nothing to add")
        super().add(keys, vectors)


@caught_by("grows_to_thousands")
class FixedCapacity(ToyIndex):
    def add(self, keys, vectors):
        if len(self) + len(keys) > 1000:
            raise InvalidInputError("the index is full")
        super().add(keys, vectors)


@caught_by("grows_to_thousands")
class OverwritesTheOldest(ToyIndex):
    def add(self, keys, vectors):
        super().add(keys, vectors)
        self._rows = self._rows[0][-2000:], self._rows[1][-2000:]


@caught_by("removed_keys_never_return", "everything_can_be_removed")
class IgnoresRemovals(ToyIndex):
    def __init__(self, dim, fingerprint=""):
        super().__init__(dim, fingerprint)
        self.gone = 0

    def __len__(self):
        return super().__len__() - self.gone

    def remove(self, keys):
        self.gone += len(keys)


@caught_by("removed_key_can_return_with_another_vector", "random_operations_agree_with_a_model")
class RemovedKeysStayTaken(ToyIndex):
    def __init__(self, dim, fingerprint=""):
        super().__init__(dim, fingerprint)
        self.gone = set()

    def remove(self, keys):
        super().remove(keys)
        self.gone |= set(keys.tolist())

    def add(self, keys, vectors):
        if self.gone & set(keys.ravel().tolist()):
            raise InvalidInputError("a key was removed before")
        super().add(keys, vectors)


@caught_by("removed_key_can_return_with_another_vector", "random_operations_agree_with_a_model")
class RemovedVectorsComeBack(ToyIndex):
    """A key that returns stands for its old vector again."""

    def __init__(self, dim, fingerprint=""):
        super().__init__(dim, fingerprint)
        self.first = {}

    def add(self, keys, vectors):
        known = np.array(vectors)
        if (
            vectors.ndim == 2
            and vectors.shape[1] == self.dim
            and len(keys) == len(vectors)
            and keys.ndim == 1
        ):
            for i, key in enumerate(keys.tolist()):
                if np.any(vectors[i]) and np.all(np.isfinite(vectors[i])):
                    known[i] = self.first.setdefault(key, vectors[i].copy())
        super().add(keys, known)


@caught_by("everything_can_be_removed")
class CannotBeEmptied(ToyIndex):
    def remove(self, keys):
        if len(keys) == len(self):
            raise InvalidInputError("the last vector cannot be removed")
        super().remove(keys)


# -- keeping


@caught_by("save_and_load_keep_every_answer")
class SavesAtFloat16(ToyIndex):
    def save(self, path):
        keys, vectors = self._rows
        self._rows = keys, vectors.astype(np.float16).astype(np.float32)
        super().save(path)


@caught_by("save_and_load_keep_every_answer", "random_operations_agree_with_a_model")
class SavesAtInt8(ToyIndex):
    def save(self, path):
        keys, vectors = self._rows
        self._rows = keys, np.round(vectors * 127).astype(np.float32) / 127
        super().save(path)
        self._rows = keys, vectors


@caught_by("empty_index_can_be_saved")
class CannotSaveNothing(ToyIndex):
    def save(self, path):
        if not len(self):
            raise InvalidInputError("nothing to save")
        super().save(path)


@caught_by("loaded_index_goes_on_working")
class FrozenOnceLoaded(ToyIndex):
    frozen = False

    @classmethod
    def load(cls, path, *, dim=None, fingerprint=None):
        index = super().load(path, dim=dim, fingerprint=fingerprint)
        index.frozen = True
        return index

    def add(self, keys, vectors):
        if self.frozen:
            raise InvalidInputError("a loaded index is read-only")
        super().add(keys, vectors)


@caught_by("save_replaces_an_earlier_save")
class KeepsTheEarlierSave(ToyIndex):
    def save(self, path):
        if not path.exists():
            super().save(path)


@caught_by("load_refuses_missing_directory", "load_refuses_missing_file")
class LoadsNothingFromNowhere(ToyIndex):
    @classmethod
    def load(cls, path, *, dim=None, fingerprint=None):
        if not (path / "index.npz").exists():
            return cls(dim or 16, fingerprint or "")
        return super().load(path, dim=dim, fingerprint=fingerprint)


@caught_by(
    "load_refuses_missing_file",
    "load_refuses_truncated_file",
    "load_refuses_flipped_bit",
    "load_refuses_other_dim",
    "load_refuses_other_fingerprint",
)
class TrustsItsFiles(ToyIndex):
    """Writes plain arrays and reads them back without a checksum."""

    def save(self, path):
        path.mkdir(exist_ok=True)
        keys, vectors = self._rows
        (path / "keys").write_bytes(keys.tobytes())
        (path / "vectors").write_bytes(vectors.tobytes())
        (path / "about.json").write_text(json.dumps([self.dim, self.fingerprint]))

    @classmethod
    def load(cls, path, *, dim=None, fingerprint=None):
        index = cls(*json.loads((path / "about.json").read_text()))
        vectors = np.fromfile(path / "vectors", np.float32)
        vectors = vectors[: len(vectors) // index.dim * index.dim].reshape(-1, index.dim)
        keys = np.fromfile(path / "keys", np.int64)
        n = min(len(keys), len(vectors))
        index._rows = keys[:n], vectors[:n]
        return index


# -- quality and concurrency


@caught_by("recall_is_high", "recall_stays_high_after_removals", "identical_vectors_do_no_harm")
class LooksAtHalf(ToyIndex):
    """Probes half of its cells."""

    def search(self, vectors, k):
        everything = self._rows
        self._rows = everything[0][::2], everything[1][::2]
        try:
            return super().search(vectors, k)
        finally:
            self._rows = everything


@caught_by("removed_keys_never_return", "recall_stays_high_after_removals")
class RemovedVectorsTakePlaces(ToyIndex):
    """Searches among removed vectors too, and drops them from the answer afterwards."""

    def __init__(self, dim, fingerprint=""):
        super().__init__(dim, fingerprint)
        self.gone = np.empty(0, np.int64)

    def __len__(self):
        return super().__len__() - len(self.gone)

    def remove(self, keys):
        self.gone = np.append(self.gone, keys)

    def search(self, vectors, k):
        found = super().search(vectors, k)
        gone = np.isin(found.keys, self.gone)
        order = np.argsort(gone, axis=1, kind="stable")
        keys, scores = np.where(gone, -1, found.keys), np.where(gone, np.float32(np.nan), found.scores)
        return Neighbors(np.take_along_axis(keys, order, 1), np.take_along_axis(scores, order, 1))


@caught_by("identical_vectors_do_no_harm")
class DropsDuplicates(ToyIndex):
    """Stores a vector once, under its first key only."""

    def add(self, keys, vectors):
        super().add(keys, vectors)
        present, stored = self._rows
        first = np.sort(np.unique(stored, axis=0, return_index=True)[1])
        self._rows = present[first], stored[first]


@caught_by("identical_vectors_do_no_harm")
class DuplicatesCrowdOthersOut(ToyIndex):
    """Each answer loses three of its places to copies, as neighbour lists full of one vector do."""

    def search(self, vectors, k):
        found = super().search(vectors, k)
        stored = self._rows[1]
        copies = len(stored) - len(np.unique(stored, axis=0))
        if k == 10 and copies > 100:
            for i, row in enumerate(found.keys):
                lost = super().search(vectors[i : i + 1], 13)
                row[:], found.scores[i] = lost.keys[0, 3:], lost.scores[0, 3:]
        return found


@caught_by("searching_while_adding_is_safe")
class RebuildsInPlace(ToyIndex):
    """Empties its arrays while it makes room."""

    def add(self, keys, vectors):
        before = self._rows
        self._rows = np.empty(0, np.int64), np.empty((0, self.dim), np.float32)
        try:
            time.sleep(0.002)
        finally:
            self._rows = before
        super().add(keys, vectors)


@caught_by("searching_while_adding_is_safe")
class KeysBeforeVectors(ToyIndex):
    """New keys can be seen before their vectors: for a moment they answer with somebody else's."""

    def add(self, keys, vectors):
        super().add(keys, vectors)
        present, stored = self._rows
        self._rows = present, np.roll(stored, 1, axis=0)
        time.sleep(0.002)
        self._rows = present, stored


@caught_by("threads_agree")
class StateBetweenSteps(SpoiledAnswers):
    def spoil(self, keys, scores):
        self.last = keys, scores
        time.sleep(0.005)
        return self.last
