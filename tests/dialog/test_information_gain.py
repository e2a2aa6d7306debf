"""Entropy and information gain against their definitions, summed over every image and answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax

from zsqretrieval.dialog.policies import entropy, information_gain

weights = st.floats(-30, 30) | st.just(-np.inf)


@st.composite
def beliefs(draw: st.DrawFn, n: int | None = None) -> np.ndarray:
    size = n or draw(st.integers(1, 6))
    some = draw(arrays(np.float64, size, elements=weights))
    some[draw(st.integers(0, size - 1))] = 0.0  # at least one is possible
    found: np.ndarray = log_softmax(some)
    return found


@st.composite
def questions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    log_p = draw(beliefs())
    a = draw(st.integers(1, 5))
    return log_p, np.stack([draw(beliefs(a)) for _ in log_p])


def by_definition(log_p: np.ndarray, log_answers: np.ndarray) -> float:
    """H(image) - sum_a P(a) H(image | a), by enumeration."""
    p, likely = np.exp(log_p), np.exp(log_answers)
    left = 0.0
    for a in range(likely.shape[1]):
        joint = [p[i] * likely[i, a] for i in range(len(p))]
        total = sum(joint)
        left -= sum(one * math.log(one / total) for one in joint if one > 0)
    return -sum(one * math.log(one) for one in p if one > 0) - left


@given(beliefs())
def test_entropy_lies_between_0_and_log_n(log_p: np.ndarray) -> None:
    assert 0 <= entropy(log_p) <= math.log(len(log_p)) + 1e-12
    assert entropy(log_softmax(np.zeros(len(log_p)))) == pytest.approx(math.log(len(log_p)))


def test_entropy_of_certainty_is_0() -> None:
    assert entropy(np.array([0.0, -np.inf])) == 0
    assert str(entropy(np.array([0.0]))) == "0.0"
    assert entropy(np.array([])) == 0


@given(questions())
def test_gain_is_the_mutual_information(case: tuple[np.ndarray, np.ndarray]) -> None:
    log_p, log_answers = case
    assert information_gain(log_p, log_answers) == pytest.approx(by_definition(log_p, log_answers), abs=1e-9)


@given(questions())
def test_gain_is_bounded_by_both_entropies(case: tuple[np.ndarray, np.ndarray]) -> None:
    log_p, log_answers = case
    gain = information_gain(log_p, log_answers)
    of_answers = entropy(np.logaddexp.reduce(log_p[:, None] + log_answers, axis=0))
    assert 0 <= gain <= min(entropy(log_p), of_answers) + 1e-9
