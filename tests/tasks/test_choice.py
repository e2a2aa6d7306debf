from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tables import TableGenerator, picture
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.tasks import Choice, choose, count_correct
from zsqretrieval.tasks.choice import TIE

CAT, DOG = picture("cat.png"), picture("dog.png")
TABLE = {
    ("cat.png", " cat"): [0.6],
    ("cat.png", " big dog"): [0.25, 0.8],
    ("dog.png", " cat"): [0.1],
    ("dog.png", " big dog"): [0.09, 0.5],
}


def test_scores_posterior_and_margin_by_hand() -> None:
    of_cat, of_dog = choose(TableGenerator(TABLE), [[CAT, "It is a"], [DOG, "It is a"]], ["cat", " big dog "])
    assert of_cat.options == ("cat", "big dog")
    assert of_cat.scores == pytest.approx(np.log([0.6, 0.2]), abs=1e-6)
    assert of_cat.posterior == pytest.approx([0.75, 0.25])
    assert (of_cat.best, of_cat.margin) == ("cat", pytest.approx(np.log(3)))
    assert of_dog.posterior == pytest.approx([0.1 / 0.145, 0.045 / 0.145]) and of_dog.best == "cat"


def test_mean_favours_long_options() -> None:
    (of_dog,) = choose(TableGenerator(TABLE), [[DOG]], ["cat", "big dog"], aggregate="mean")
    assert of_dog.scores == pytest.approx([np.log(0.1), np.log(0.045) / 2], abs=1e-6)
    assert of_dog.best == "big dog"  # sqrt(0.045) = 0.21 > 0.1


@given(st.lists(st.floats(-500, -0.01), min_size=2, max_size=8))
def test_posterior_margin_and_best_agree(scores: list[float]) -> None:
    choice = Choice(tuple("abcdefgh"[: len(scores)]), np.array(scores))
    assert choice.posterior.sum() == pytest.approx(1) and choice.margin >= 0
    odds = choice.posterior[np.argmax(scores)] / np.sort(choice.posterior)[-2] if choice.margin < 600 else 1
    assert np.log(odds) == pytest.approx(choice.margin, abs=1e-6) or choice.margin > 600
    assert (choice.best is None) == (choice.margin <= TIE)
    assert choice.best in (None, choice.options[int(np.argmax(scores))])


def test_tie_has_no_best_option_and_counts_as_wrong() -> None:
    tie = Choice(("a", "b"), np.array([-1.0, -1.0]))
    assert (tie.best, tie.margin) == (None, 0.0)
    sure = Choice(("a", "b"), np.array([-1.0, -2.0]))
    found = count_correct([tie, sure, sure, sure], ["a", "a", "b", "a"])
    assert (found.correct, found.total, found.chance) == (2, 4, 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "0 options given; give at least 2"),
        (["a"], "1 options given; give at least 2"),
        (["a", "b", " a"], "the option 'a' is given twice"),
        ("ab", "options must be a sequence of texts, not 'ab'"),
        (["a", None], "options must be non-empty strings; number 1 is None"),
        (["a", " "], "options must be non-empty strings; number 1 is ' '"),
    ],
)
def test_bad_options_are_named(options: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        choose(TableGenerator(TABLE), [[CAT]], options)


def test_bad_counts_and_aggregates_are_named() -> None:
    one, other = Choice(("a", "b"), np.array([-1.0, -2.0])), Choice(("a", "c"), np.array([-1.0, -2.0]))
    for choices, answers, message in (
        ([], [], "no choices"),
        ([one], ["a", "b"], "1 choices for 2 answers"),
        ([one, other], ["a", "a"], "choice 1 is among"),
        ([one], ["c"], "answer 0 is 'c', which is not one of"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            count_correct(choices, answers)
    with pytest.raises(InvalidInputError, match="aggregate must be 'sum' or 'mean', not 'max'"):
        choose(TableGenerator(TABLE), [[CAT]], ["cat", "big dog"], aggregate="max")  # type: ignore[arg-type]
