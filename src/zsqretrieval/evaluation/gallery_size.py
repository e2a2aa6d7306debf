"""How often the right image is found in galleries of any size, from one gallery that was measured.

A query has one answer and M other images, its *distractors*; b of them score at least as high as the answer.
In a gallery of the answer and n of the distractors, drawn at random without replacement, the number ahead of
the answer is hypergeometric, so its chance to be among the first k needs no drawing::

    P(found) = P(H <= k - 1),   H ~ Hypergeometric(M, b, n)

That is the average over all such galleries, exactly, and an unbiased estimate of what other distractors of
the same kind would do. A re-ranked list is no such count, because which candidates are read depends on the
others: there, galleries are drawn (:func:`recall_reranked`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.errors import InvalidInputError, MissingDependencyError
from zsqretrieval.evaluation.runs import Run
from zsqretrieval.search.fusion import Fusion, fuse

__all__ = ["Contest", "contest", "hard_distractors", "list_suffices", "recall_in_sample", "recall_reranked"]

_ROWS = 256  # queries whose similarities are in memory together
_SHORT = 0.01  # how often a drawn list may be shorter than what is read of it


@dataclass(frozen=True, slots=True, eq=False)
class Contest:
    """How every answer does against the same pool of distractors.

    Attributes:
        pool: M, how many distractors every query has.
        own: float32 [q], similarity of the answer.
        beaten_by: int64 [q], how many distractors are as similar as the answer, or more.
        best: float32 [q, m], similarities of the m best distractors, best first.
    """

    pool: int
    own: NDArray[np.float32]
    beaten_by: NDArray[np.int64]
    best: NDArray[np.float32]


def contest(
    asking: NDArray[np.float32],
    gallery: NDArray[np.float32],
    answers: NDArray[np.int64],
    members: NDArray[np.int64],
    best: int,
) -> Contest:
    """Let every answer compete with the same part of a gallery.

    Args:
        asking: float32 [q, dim], unit rows: the queries.
        gallery: float32 [n, dim], unit rows: the images.
        answers: int64 [q], position of each query's image.
        members: int64 [M + 1], positions of those that compete, none twice. A query whose answer is among
            them has the M others as distractors, any other query all but the last: M everywhere.
        best: m, how many of the best similarities are kept; at most M.

    Raises:
        InvalidInputError: fewer than two members, or ``best`` is not between 1 and M.
    """
    pool = len(members) - 1
    if pool < 1 or not 1 <= best <= pool:
        raise InvalidInputError(
            f"{len(members)} images compete and the {best} best are kept; needs more images"
        )
    column = np.full(len(gallery), pool)  # an answer that does not compete: the last of the others stays out
    column[members] = np.arange(len(members))
    own = np.einsum("qd,qd->q", asking, gallery[answers])
    beaten_by = np.empty(len(asking), np.int64)
    kept = np.empty((len(asking), best), np.float32)
    others = gallery[members]
    for start in range(0, len(asking), _ROWS):
        rows = slice(start, start + _ROWS)
        similarity = asking[rows] @ others.T  # [rows, M + 1]
        answer = column[answers[rows]]
        here = members[answer] == answers[rows]
        # Taken from the same product as the others, so that equal vectors are exactly equal.
        own[rows] = np.where(here, similarity[np.arange(len(answer)), answer], own[rows])
        similarity[np.arange(len(answer)), answer] = -np.inf
        beaten_by[rows] = (similarity >= own[rows, None]).sum(1)
        kept[rows] = -np.sort(np.partition(-similarity, best - 1, axis=1)[:, :best], axis=1)
    return Contest(pool, own, beaten_by, kept)


def recall_in_sample(
    beaten_by: NDArray[np.int64],
    pool: int,
    distractors: int,
    ks: Sequence[int],
    *,
    ahead: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """The chance of an answer to be among the first k of a gallery with some of the distractors, exactly.

    Args:
        beaten_by: int64 [q], how many distractors of the pool beat the answer, ties included.
        pool: M, how many there are.
        distractors: n, how many of them the gallery has; 0 to M.
        ks: depths, each >= 1.
        ahead: int64 [q], how many others beat the answer in every gallery; none when left out.

    Returns:
        float64 [len(ks), q], in [0, 1].

    Raises:
        InvalidInputError: a number is out of range.
        MissingDependencyError: scipy is not installed.
    """
    if not 0 <= distractors <= pool or min(ks, default=0) < 1:
        raise InvalidInputError(f"{distractors} distractors of {pool}, depths {list(ks)}: out of range")
    hypergeometric = _hypergeometric()
    counts, which = np.unique(beaten_by, return_inverse=True)
    if len(counts) and not 0 <= counts[0] <= counts[-1] <= pool:
        raise InvalidInputError(f"answers are beaten by {counts[0]} to {counts[-1]} of {pool} distractors")
    exactly = hypergeometric.pmf(np.arange(max(ks))[:, None], pool, counts, distractors)  # [k, counts]
    at_most = np.minimum(np.cumsum(exactly, axis=0), 1.0)
    left = np.array(ks)[:, None] - 1 - (np.zeros_like(beaten_by) if ahead is None else ahead)  # [len(ks), q]
    return np.where(left >= 0, at_most[np.maximum(left, 0), which], 0.0)


def list_suffices(listed: int, pool: int, distractors: int, depth: int) -> bool:
    """Whether the best of a whole gallery hold the best of a part of it, but for one draw in a hundred.

    Args:
        listed: how many of the best are known.
        pool: M, distractors in the whole gallery.
        distractors: n, of those in the part.
        depth: how many of the best of the part are wanted.
    """
    return bool(_hypergeometric().cdf(depth - 1, pool, min(listed, pool), distractors) <= _SHORT)


def recall_reranked(
    first: Run,
    scored: Run,
    answers: NDArray[np.int64],
    fusion: Fusion,
    *,
    distractors: int,
    depth: int,
    ks: Sequence[int],
    draws: int = 20,
    seed: int = 0,
) -> NDArray[np.float64]:
    """How often an answer is among the first k after re-ranking, over galleries drawn at random.

    In a drawn gallery the first stage finds the first ``depth`` of its list that are there; those are read,
    and the fusion of their scores ranks them. What is not read was not found. A gallery of one draw is the
    same for all queries.

    Args:
        first: the first stage over the whole gallery, best first; long enough by :func:`list_suffices`.
        scored: what a generator made of the same candidates.
        answers: int64 [q], position of each query's image in ``first.items``, in every gallery.
        fusion: joins both.
        distractors: n, how many of the other items a drawn gallery has.
        depth: K, how many candidates are read, >= 1.
        ks: depths of the recall.
        draws: galleries.
        seed: of them.

    Returns:
        float64 [len(ks), q], shares of the draws. A tie counts against the answer.

    Raises:
        InvalidInputError: the list is too short, or a number is out of range.
    """
    pool, listed = len(first.items) - 1, first.candidates.shape[1]
    if not 0 <= distractors <= pool or depth < 1 or draws < 1:
        raise InvalidInputError(
            f"{distractors} distractors of {pool}, {depth} read, {draws} draws: out of range"
        )
    if depth <= distractors and not list_suffices(listed, pool, distractors, depth):
        raise InvalidInputError(
            f"the {listed} best of {pool + 1} images are too few to know the {depth} best of "
            f"{distractors + 1}: score more candidates, or read fewer"
        )
    random = np.random.default_rng(seed)
    is_answer = first.candidates == answers[:, None]
    found = np.zeros((len(ks), len(answers)))
    for _ in range(1 if distractors == pool else draws):
        place = random.permutation(pool + 1)
        turn = place[first.candidates]  # [q, listed]; the answer does not take a turn from the others
        there = is_answer | (turn - (turn > place[answers][:, None]) < distractors)
        read = there & (np.cumsum(there, axis=1) <= depth)
        for row in np.flatnonzero((read & is_answer).any(axis=1)):
            taken = read[row]
            fused = fuse(fusion, first.scores[row, taken], scored.scores[row, taken])
            rank = (fused >= fused[is_answer[row, taken]]).sum() - 1
            found[:, row] += rank < np.array(ks)
    return found / (1 if distractors == pool else draws)


def hard_distractors(
    gallery: NDArray[np.float32], near: NDArray[np.int64], count: int, *, seed: int = 0
) -> NDArray[np.float32]:
    """Make up vectors that crowd around the queries. They are synthetic: no image has them.

    Each lies between two of the real images nearest to one query. The middle of two unit vectors is closer to
    whatever both are close to, so most are closer to the query than the images they were made of. A gallery
    in which every distractor is like that does not exist; it shows how bad it may get.

    Args:
        gallery: float32 [n, dim], unit rows.
        near: int64 [q, h], of every query the positions of its h nearest distractors, h >= 2.
        count: how many are made.
        seed: of the draw.

    Returns:
        float32 [count, dim], unit rows.

    Raises:
        InvalidInputError: h < 2 or ``count`` < 1.
    """
    if near.ndim != 2 or near.shape[1] < 2 or count < 1:
        raise InvalidInputError(
            f"{count} vectors between neighbours {near.shape}: needs two neighbours or more"
        )
    random = np.random.default_rng(seed)
    query = random.integers(len(near), size=count)
    one = random.integers(near.shape[1], size=count)
    other = (one + random.integers(1, near.shape[1], size=count)) % near.shape[1]
    along = random.random((count, 1), dtype=np.float32)
    made = along * gallery[near[query, one]] + (1 - along) * gallery[near[query, other]]
    length = np.linalg.norm(made, axis=1, keepdims=True)
    unit: NDArray[np.float32] = made / np.maximum(length, np.finfo(np.float32).tiny)
    return unit


def _hypergeometric() -> Any:
    try:
        from scipy.stats import hypergeom
    except ImportError as error:
        raise MissingDependencyError(
            "scipy", "sizes of galleries", "pip install 'zsqretrieval[evaluation]'"
        ) from error
    return hypergeom
