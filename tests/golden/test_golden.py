"""The numbers of a few photographs, as they were when they were committed."""

from __future__ import annotations

import numpy as np

from comparing import compare, failures, load, rankings_apart
from golden import SMALL, measure_small


def test_measured_numbers_equal_the_committed_ones() -> None:
    old = load(SMALL)
    assert failures(compare(old, measure_small(old))) == []


def test_changed_number_is_a_failure() -> None:
    old, now = load(SMALL), load(SMALL)
    assert failures(compare(old, now)) == []
    for what, some in now.items():
        for change in (1, np.nan):
            changed = some[:-1] if isinstance(some, list) else some * 1.0
            if not isinstance(changed, list):
                changed[(0,) * changed.ndim] += change
            assert failures(compare(old, {**now, what: changed})), (what, change)


def test_swapped_neighbours_differ_by_their_scores() -> None:
    def apart(ids: list[int], scores: list[float]) -> tuple[float, float]:
        found = rankings_apart(*map(np.array, ([[4, 7, 9]], [[3.0, 2.0, 1.5]], [ids], [scores])))
        return found[0], found[2]

    assert apart([4, 7, 9], [3.0, 2.0, 1.5]) == (0, 0)
    assert apart([4, 9, 7], [3.0, 1.75, 1.75]) == (0.25, 0.5)
    assert apart([4, 7, 8], [3.0, 2.0, 1.6]) == (0, 0)  # another last one
    assert apart([8, 4, 7], [3.5, 3.0, 2.0]) == (0, 1.5)  # a stranger before those that were known
    assert apart([4, 9, 8], [3.0, 1.5, 1.4]) == (0, 0.5)  # one is lost that stood before the last
