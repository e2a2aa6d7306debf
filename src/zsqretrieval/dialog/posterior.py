"""What is believed of candidates, in log space: pure functions over arrays.

n candidates, of which one is meant. log P(image) is float64 [n], natural logarithms, -inf where there is no
belief left; a question has a closed set of answers, and log P(answer | image) is float64 [n, a].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["entropy", "information_gain", "log_normalized"]


def log_normalized(log_weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-softmax over the last axis.

    Args:
        log_weights: [..., n], each finite or -inf, at least one of a row finite.

    Returns:
        float64 [..., n], whose exponentials add up to 1.
    """
    exact = np.asarray(log_weights, np.float64)
    shifted = exact - exact.max(-1, keepdims=True)
    normalized: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normalized


def entropy(log_p: NDArray[np.float64]) -> float:
    """How open it still is which of the candidates is meant: -sum p log p (Shannon, 1948).

    Args:
        log_p: [n], normalised.

    Returns:
        Nats, from 0 for one certain candidate to log n for n equally likely ones; 0 for none.
    """
    p = np.exp(log_p)
    return float(-(p[p > 0] * log_p[p > 0]).sum()) + 0.0


def information_gain(log_p: NDArray[np.float64], log_answers: NDArray[np.float64]) -> float:
    """How many nats the answer to a question is expected to take off the entropy.

    The mutual information of answer and image, H(answer) - H(answer | image), which is
    sum_i P(i) sum_a P(a | i) log (P(a | i) / P(a)): Lindley's measure of an experiment (Annals of
    Mathematical Statistics, 1956), and the best next question of a game of twenty.

    Args:
        log_p: log P(image) [n], normalised.
        log_answers: log P(answer | image) [n, a], each row normalised.

    Returns:
        Nats, at least 0, at most the entropy of the images and at most log a.
    """
    joint = log_p[:, None] + log_answers  # [n, a]
    marginal = np.logaddexp.reduce(joint, axis=0)  # [a]
    possible = np.isfinite(joint)
    ratio = np.subtract(log_answers, marginal, out=np.zeros_like(joint), where=possible)
    return max(float((np.exp(joint) * ratio)[possible].sum()), 0.0)
