"""Pairs spread over models by their tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zsqretrieval.generators.ray import spread

items = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 50)), max_size=40)


@given(items, st.integers(1, 5))
def test_each_item_is_in_one_share_of_at_most_its_part_and_one_item(
    items: list[tuple[int, int]], shares: int
) -> None:
    groups, costs = [group for group, _ in items], [cost for _, cost in items]
    found = spread(groups, costs, shares)
    assert sorted(i for some in found for i in some) == list(range(len(items)))
    for some in found:
        assert sum(costs[i] for i in some) <= sum(costs) / shares + max(costs, default=0)
    split = sum(len({groups[i] for i in some}) for some in found) - len(set(groups))
    assert split <= shares - 1


def test_items_of_a_group_stay_together_in_their_order() -> None:
    assert spread(["a", "b", "a", "b"], [1, 1, 1, 1], 2) == [[0, 2], [1, 3]]
    assert spread(["a"] * 3, [0, 0, 0], 2) == [[0, 1, 2], []]
