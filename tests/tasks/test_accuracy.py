from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.tasks import Accuracy

COUNTS = st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(COUNTS, st.floats(0.01, 0.99), st.floats(0.5, 0.999))
def test_p_value_is_the_binomial_tail_and_the_interval_contains_the_share(
    counts: tuple[int, int], chance: float, level: float
) -> None:
    correct, total = counts
    one = Accuracy(correct, total, chance)
    tail = sum(
        math.comb(total, k) * chance**k * (1 - chance) ** (total - k) for k in range(correct, total + 1)
    )
    assert one.p_value == pytest.approx(tail, rel=1e-9, abs=1e-300)
    low, high = one.interval(level)
    assert 0 <= low <= one.share + 1e-12 and one.share - 1e-12 <= high <= 1
    mirrored = Accuracy(total - correct, total, chance).interval(level)
    assert mirrored == pytest.approx((1 - high, 1 - low))


def test_share_interval_and_p_value_by_hand() -> None:
    coins = Accuracy(3, 4, 0.5)  # 3 or 4 heads: (4 + 1) / 16
    assert (coins.share, coins.p_value) == (0.75, pytest.approx(5 / 16))
    z2 = 1.959963984540054**2
    middle, half = (0.75 + z2 / 8) / (1 + z2 / 4), (z2 * (0.1875 / 4 + z2 / 64)) ** 0.5 / (1 + z2 / 4)
    assert coins.interval() == pytest.approx((middle - half, middle + half))


def test_kosmos_1_is_not_distinguishable_from_chance_on_50_items() -> None:
    """22 % and 26 % are 11 and 13 of 50."""
    weaker, stronger = Accuracy(11, 50, 1 / 6), Accuracy(13, 50, 1 / 6)
    assert (round(weaker.p_value, 2), round(stronger.p_value, 3)) == (0.2, 0.063)
    assert weaker.interval() == pytest.approx((0.128, 0.352), abs=5e-4)
    assert stronger.interval() == pytest.approx((0.159, 0.396), abs=5e-4)
    assert all(one.interval()[0] < 1 / 6 < one.interval()[1] for one in (weaker, stronger))
    assert Accuracy(14, 50, 1 / 6).p_value < 0.05 < stronger.p_value  # 14 would be significant


def test_str_has_count_share_interval_chance_and_p_value() -> None:
    assert str(Accuracy(11, 50, 1 / 6)) == ("11 of 50 = 22.0 % (95 %: 12.8 to 35.2), chance 16.7 %, p = 0.2")


@pytest.mark.parametrize(
    ("correct", "total", "chance"), [(0, 0, 0.5), (2, 1, 0.5), (-1, 1, 0.5), (1, 1, 0), (1, 1, 1)]
)
def test_impossible_counts_and_levels_are_refused(correct: int, total: int, chance: float) -> None:
    with pytest.raises(InvalidInputError, match=f"{correct} correct of {total} with chance {chance}"):
        Accuracy(correct, total, chance)
    with pytest.raises(InvalidInputError, match="level must lie between"):
        Accuracy(1, 2, 0.5).interval(1)
