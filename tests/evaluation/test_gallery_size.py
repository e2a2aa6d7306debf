"""Recall at any size of gallery: the closed form against every sub-gallery there is."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.gallery_size import (
    contest,
    hard_distractors,
    list_suffices,
    recall_in_sample,
    recall_reranked,
)
from zsqretrieval.evaluation.runs import Run
from zsqretrieval.search.fusion import RerankOnly, WeightedSum


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@settings(deadline=None)
@given(data=st.data())
def test_the_closed_form_is_the_average_over_all_galleries(data):
    pool = data.draw(st.integers(1, 8))
    beaten_by = data.draw(st.integers(0, pool))
    distractors = data.draw(st.integers(0, pool))
    ahead = data.draw(st.integers(0, 2))
    ks = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    galleries = list(combinations(range(pool), distractors))  # the first `beaten_by` beat the answer
    for k, found in zip(
        ks,
        recall_in_sample(np.array([beaten_by]), pool, distractors, ks, ahead=np.array([ahead], np.int64)),
        strict=True,
    ):
        by_hand = np.mean([ahead + sum(i < beaten_by for i in some) < k for some in galleries])
        assert found[0] == pytest.approx(by_hand, abs=1e-9)


def test_recall_falls_with_the_gallery_and_is_what_was_counted_at_its_end():
    beaten_by = np.array([0, 1, 3, 40, 100])
    curve = [recall_in_sample(beaten_by, 100, n, [1, 10]) for n in range(101)]
    assert (np.diff(curve, axis=0) <= 1e-12).all()
    assert curve[0].tolist() == [[1.0] * 5] * 2, "alone in the gallery"
    np.testing.assert_allclose(curve[-1], [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0]], atol=1e-9)


@pytest.mark.parametrize(
    ("beaten_by", "distractors", "k"), [([5], 4, 1), ([-1], 4, 1), ([1], 5, 1), ([1], -1, 1), ([1], 2, 0)]
)
def test_numbers_out_of_range_are_refused(beaten_by, distractors, k):
    with pytest.raises(InvalidInputError, match=r"out of range|beaten by"):
        recall_in_sample(np.array(beaten_by), 4, distractors, [k])


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), members=st.integers(2, 12))
def test_a_contest_counts_what_a_loop_counts(seed, members):
    random = np.random.default_rng(seed)
    gallery = unit(random.integers(-2, 3, (12, 3)) + 0.25)  # ties among few directions
    asking = unit(random.standard_normal((7, 3)))
    answers = random.integers(12, size=7)
    competing = random.permutation(12)[:members]
    best = int(random.integers(1, members))
    found = contest(asking, gallery, answers, competing, best)
    assert found.pool == members - 1
    for row, answer in enumerate(answers):
        others = [n for n in competing if n != answer][: members - 1]
        scores = np.array([asking[row] @ gallery[n] for n in others])
        own = asking[row] @ gallery[answer]
        sure = np.abs(scores - own) > 1e-5
        assert (scores > own + 1e-5).sum() <= found.beaten_by[row] <= (scores >= own - 1e-5).sum()
        if sure.all():
            assert found.beaten_by[row] == (scores > own).sum()
        np.testing.assert_allclose(found.best[row], np.sort(scores)[::-1][:best], atol=1e-5)


def test_a_tie_counts_against_the_answer():
    same = np.tile(np.array([[1, 0]], np.float32), (4, 1))
    found = contest(same[:1], same, np.array([2]), np.arange(4), 1)
    assert found.beaten_by.tolist() == [3]


def test_a_contest_of_too_few_is_refused():
    one = np.ones((1, 1), np.float32)
    with pytest.raises(InvalidInputError, match="needs more images"):
        contest(one, one, np.array([0]), np.array([0]), 1)


def two_stages(seed, queries=12, images=30, listed=30):
    random = np.random.default_rng(seed)
    first = random.standard_normal((queries, images))
    second = random.standard_normal((queries, images)) + first
    answers = random.integers(images, size=queries)
    order = np.argsort(-first, axis=1)[:, :listed]
    names = tuple(map(str, range(queries))), tuple(map(str, range(images)))
    runs = [
        Run(name, *names, order, np.take_along_axis(scores, order, 1))
        for name, scores in (("first", first), ("second", second))
    ]
    return first, second, answers, *runs


def test_reranking_the_whole_gallery_is_what_a_loop_finds():
    first, second, answers, run, scored = two_stages(0)
    found = recall_reranked(
        run, scored, answers, WeightedSum(0.7, "raw"), distractors=29, depth=10, ks=[1, 3]
    )
    for row, answer in enumerate(answers):
        read = np.argsort(-first[row])[:10]
        fused = sorted(read, key=lambda n: -(first[row, n] + 0.7 * second[row, n]))
        rank = fused.index(answer) if answer in fused else 99
        assert found[:, row].tolist() == [rank < 1, rank < 3]


def test_reranking_smaller_galleries_approaches_the_average_over_all():
    """Read as deep as the gallery goes, a re-ranking is a count again, whose average is known exactly."""
    _, second, answers, run, scored = two_stages(1)
    beaten_by = (second > second[np.arange(12), answers][:, None]).sum(1)
    exact = recall_in_sample(beaten_by, 29, 9, [1, 3])
    found = recall_reranked(run, scored, answers, RerankOnly(), distractors=9, depth=10, ks=[1, 3], draws=800)
    np.testing.assert_allclose(found, exact, atol=0.08)
    np.testing.assert_allclose(found.mean(1), exact.mean(1), atol=0.02)


def test_what_ties_after_reranking_counts_against_the_answer():
    _, _, answers, run, scored = two_stages(2)
    flat = Run("flat", run.queries, run.items, run.candidates, np.zeros_like(scored.scores))
    found = recall_reranked(run, flat, answers, RerankOnly(), distractors=29, depth=30, ks=[1, 29, 30])
    assert found[:2].max() == 0 and found[2].min() == 1


def test_a_list_too_short_for_the_gallery_is_refused():
    assert list_suffices(30, 29, 5, 6) is False, "six images besides the answer are not there"
    assert list_suffices(30, 29, 29, 10) and not list_suffices(10, 29, 15, 10)
    assert list_suffices(20, 1000, 500, 3) and not list_suffices(20, 1000, 500, 10)
    _, _, answers, run, scored = two_stages(3, listed=10)
    with pytest.raises(InvalidInputError, match="score more candidates"):
        recall_reranked(run, scored, answers, RerankOnly(), distractors=12, depth=10, ks=[1])
    with pytest.raises(InvalidInputError, match="out of range"):
        recall_reranked(run, scored, answers, RerankOnly(), distractors=30, depth=1, ks=[1])


def test_hard_distractors_are_between_neighbours_and_mostly_harder_than_they():
    random = np.random.default_rng(0)
    gallery, asking = unit(random.standard_normal((200, 16)) + 1), unit(random.standard_normal((9, 16)) + 1)
    near = np.argsort(-(asking @ gallery.T), axis=1)[:, :5]
    made = hard_distractors(gallery, near, 3000, seed=1)
    assert made.shape == (3000, 16) and made.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-5)
    nearest = (asking @ made.T).max(0)  # to whichever query
    assert np.mean(nearest >= np.quantile((asking @ gallery.T).max(0), 0.9)) > 0.5
    again = hard_distractors(gallery, near, 3000, seed=1)
    assert np.array_equal(made, again) and not np.array_equal(made, hard_distractors(gallery, near, 3000))
    with pytest.raises(InvalidInputError, match="two neighbours"):
        hard_distractors(gallery, near[:, :1], 5)
