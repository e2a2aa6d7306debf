"""Comparing golden numbers, and their files; nothing here knows the library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Numbers: TypeAlias = "dict[str, NDArray[Any] | list[str]]"
"""Arrays and lists of texts, by ``part.what``."""


# How far numbers in float32 may lie apart. Other batch sizes and numbers of threads gave 2e-5 nats.
COSINE = 1e-5
NATS = 5e-4  # the sum over a text's tokens, and one token against another
DRIFT = 1e-4  # of nats, on average: rounding goes both ways
FUSED = 100 * COSINE + 1.5 * NATS  # by the preset's fusion
PROBABILITY = 5e-4  # after a dialog's answers
VECTOR = 1e-4
RECALL = 0.005
QUESTIONS = 5  # that may differ, since they are drawn


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    part: str
    compared: str
    difference: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether they are close enough; nan is not."""
        return self.difference <= self.tolerance


def compare(old: Numbers, now: Numbers) -> list[Row]:
    """All that the file holds against what was measured now."""
    if old.keys() != now.keys():
        return [Row("file", f"only one has {', '.join(sorted(old.keys() ^ now.keys()))}", np.inf, 0)]
    rows = []
    for what, texts in old.items():
        if isinstance(texts, list):
            if what == "questions.pictures":
                continue
            differ = sum(a != b for a, b in zip_longest(texts, now[what]))
            if what == "questions.texts":  # with their pictures: one that is new or lost moves all others
                was, current = (
                    set(zip(some["questions.pictures"], some[what], strict=True)) for some in (old, now)
                )
                differ = max(len(was - current), len(current - was))
            allowed = QUESTIONS if what == "questions.texts" else 0
            rows.append(Row(what, f"{len(texts)} texts, different", differ, allowed))
    ranked = {
        ("search.candidates", "search.cosines"): COSINE,
        ("search.candidates", "search.likelihoods"): NATS,
        ("search.candidates", "search.yes_no"): NATS,
        ("search.order", "search.fused"): FUSED,
        ("bank.candidates", "bank.normalized"): COSINE,
        ("bank.order", "bank.fused"): FUSED,
        ("dialog.order", "dialog.probabilities"): PROBABILITY,
    }
    for (ids, scores), tolerance in ranked.items():
        if ids not in old:
            continue
        apart, drift, disorder = rankings_apart(old[ids], old[scores], now[ids], now[scores])
        rows.append(Row(scores, f"{len(old[ids])} rankings, scores by id", apart, tolerance))
        if scores == "search.likelihoods":
            rows.append(Row(scores, "the same, on average", drift, DRIFT))
        if scores not in ("search.likelihoods", "search.yes_no"):  # which nothing is sorted by
            # two scores that each move by the tolerance can pass each other from twice that
            rows.append(Row(ids, "old scores in new order, largest rise", disorder, 2 * tolerance))
    plain = {
        "captions.likelihoods": NATS,
        "questions.likelihoods": NATS,
        "questions.vectors": VECTOR,
        "recall.exact": RECALL,
        "recall.graph": RECALL,
    }
    for what, tolerance in plain.items():
        if what in old:
            was, current = np.asarray(old[what], np.float64), np.asarray(now[what], np.float64)
            apart = float(np.abs(was - current).max()) if was.shape == current.shape else np.inf
            rows.append(Row(what, f"{was.size} numbers", apart, tolerance))
    return rows


def rankings_apart(
    old_ids: Any, old_scores: Any, new_ids: Any, new_scores: Any
) -> tuple[float, float, float]:
    """Compare rankings [r, n]: ids, and their scores.

    Returns:
        The largest difference of one id's scores; by how much they differ on average; and how far the new
        order is from sorting the old scores: the most that one of them lies above any that stands before it.
        An id that only one side has counts as if it stood last on the other one.
    """
    if np.shape(old_ids) != np.shape(new_ids):
        return np.inf, np.inf, np.inf
    differences, rises = [0.0], [0.0]
    for was_ids, was_scores, ids, scores in zip(old_ids, old_scores, new_ids, new_scores, strict=True):
        was = dict(zip(was_ids.tolist(), was_scores.tolist(), strict=True))
        current = dict(zip(ids.tolist(), scores.tolist(), strict=True))
        differences += [current[id] - was[id] for id in was if id in current]
        order = [*current, *(id for id in was if id not in current)]
        read = np.array([was.get(id, min(was.values())) for id in order])
        rises += (read - np.minimum.accumulate(read)).tolist()
    return float(np.abs(differences).max()), float(abs(np.mean(differences))), float(np.max(rises))


HEADER = f"{'part':24} {'compared':40} {'difference':>10} {'tolerance':>10}"


def failures(rows: Sequence[Row]) -> list[str]:
    """The table, line by line; those that are not close enough only."""
    return [line(row) for row in rows if not row.ok]


def line(row: Row) -> str:
    """One line of the table."""
    numbers = f"{row.difference:>10.2g} {row.tolerance:>10.2g}"
    return f"{row.part:24} {row.compared:40} {numbers}  {'ok' if row.ok else 'FAILED'}"


# --- the files -------------------------------------------------------------------------------------------


def save(path: Path, numbers: Numbers) -> None:
    """Write numbers; to one .json, or without a suffix to .npz and .json."""
    texts: dict[str, Any] = {what: some for what, some in numbers.items() if isinstance(some, list)}
    arrays = {what: some for what, some in numbers.items() if not isinstance(some, list)}
    if path.suffix:
        readable = {what: some.tolist() for what, some in arrays.items()}
        texts |= {what: _rounded(some) for what, some in readable.items()}
    else:
        np.savez_compressed(path.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]
    lines = ",\n".join(f"{json.dumps(what)}: {json.dumps(some)}" for what, some in texts.items())
    path.with_suffix(".json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def load(path: Path) -> Numbers:
    """Read what :func:`save` wrote."""
    read = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    numbers: Numbers = {
        what: some if isinstance(some[0], str) else np.array(some) for what, some in read.items()
    }
    if not path.suffix:
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
            numbers |= dict(arrays)
    return numbers


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value
