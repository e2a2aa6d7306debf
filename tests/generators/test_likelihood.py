"""The scoring engine: every route gives the model's log-probabilities, with the least computation."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exact_model import HEAD, IMAGES, D, ExactModel, ExactStates, Small, V, contexts, continuations, log_probs
from zsqretrieval.errors import WeightsError
from zsqretrieval.generators.engine import decoder, likelihood
from zsqretrieval.generators.engine.likelihood import (
    Past,
    Prefixes,
    logits_of,
    read,
    score_pairs,
    up_to_last_image,
)

pairs = st.lists(st.tuples(contexts, continuations), min_size=1, max_size=12)


def score(some, *, model=None, states=None, capacity=0, prefixes=None, **settings):
    return score_pairs(
        model or ExactModel(),
        [context for context, _ in some],
        [continuation for _, continuation in some],
        states or ExactStates(),
        prefixes=prefixes or Prefixes(capacity),
        **{"batch_size": 16, **settings},
    )


def expect_right(found, some):
    for one, pair in zip(found, some, strict=True):
        assert one.dtype == np.float32 and (one <= 0).all()
        np.testing.assert_allclose(one, log_probs(*pair), atol=2e-5)


@given(pairs, st.integers(1, 9), st.integers(1, 80), st.sampled_from([0, 500, 10**9]))
def test_any_pairs_in_any_batches_get_exact_log_probabilities(some, batch_size, token_budget, capacity):
    expect_right(score(some, batch_size=batch_size, token_budget=token_budget, capacity=capacity), some)


@given(pairs, pairs, st.sampled_from([200, 2_000, 10**9]))
def test_prefixes_kept_between_calls_change_nothing(first, second, capacity):
    prefixes = Prefixes(capacity)
    for some in (first, second, first):
        expect_right(score(some, prefixes=prefixes), some)


def test_no_pairs_give_no_scores():
    assert score([]) == []


def test_only_predicting_positions_are_scored_and_the_last_token_is_not_read():
    model = ExactModel()
    score([((0, 1, 2), (3, 4, 5)), ((5, 1), (2, 2, 2, 2))], model=model, batch_size=1)
    assert model.scored == 3 + 4
    assert model.read == (3 + 2) + (2 + 3)


def test_a_context_with_many_continuations_is_read_once():
    model, states = ExactModel(), ExactStates()
    context = (0, *IMAGES[0], 1, 2, 3)
    some = [(context, (1, i % V, i // V, 2)) for i in range(20)]
    expect_right(score(some, model=model, states=states), some)
    assert model.read == 7 - 1 + 20 * 4  # the context's last token is read with each continuation
    assert sorted(states.asked) == [0, 1, 2]
    assert states.released == [context] * 20


def test_texts_that_differ_only_in_their_last_token_are_read_once():
    model, states = ExactModel(), ExactStates()
    context, other = (0, *IMAGES[0], 1, 2), (0, *IMAGES[1], 3)
    some = [(context, (3,)), (other, (1, 2)), (context, (4,)), (other, (1, 3)), (context, (3,))]
    expect_right(score(some, model=model, states=states), some)
    assert model.read == len(context) + len(other) + 1
    assert sorted(states.released) == sorted([context] * 3 + [other] * 2)


def test_contexts_with_a_common_prefix_share_it():
    model = ExactModel()
    some = [((0, *IMAGES[0], 1, 2, 3, i), (4, 5)) for i in range(3)]
    expect_right(score(some, model=model), some)
    assert model.read == 7 + 3 * (1 + 1)


def test_equal_pairs_are_scored_once():
    model = ExactModel()
    some = [((0, 1), (2, 3))] * 5
    expect_right(score(some, model=model), some)
    assert model.scored == 2


def test_second_question_about_the_same_images_reads_only_the_text():
    model, states, prefixes = ExactModel(), ExactStates(), Prefixes(10**9)
    first = [((0, *image, 1), (2, 3)) for image in IMAGES]
    second = [((0, *image, 4, 5), (6, 7, 1)) for image in IMAGES]
    score(first, model=model, states=states, prefixes=prefixes)
    model.read, states.asked = 0, []
    expect_right(score(second, model=model, states=states, prefixes=prefixes), second)
    assert (model.read, states.asked) == (4 * (2 + 2), [])


def test_without_capacity_nothing_is_kept_between_calls():
    model, prefixes = ExactModel(), Prefixes(0)
    some = [((0, *IMAGES[0], 1), (2,)), ((0, *IMAGES[0], 1), (3,))]
    counts = []
    for _ in range(2):
        model.read = 0
        score(some, model=model, prefixes=prefixes)
        counts.append(model.read)
    assert counts[0] == counts[1]


def test_least_recently_used_prefix_is_dropped_first():
    past = Past(torch.zeros(1, 2, 1, 5, 1))  # 40 bytes
    prefixes = Prefixes(100)
    for name in ("a", "b"):
        prefixes.put(name, past)
    assert prefixes.get("a") is past  # now the most recent
    prefixes.put("c", past)
    assert [prefixes.get(name) is past for name in ("a", "b", "c")] == [True, False, True]
    prefixes.put("huge", Past(torch.zeros(1, 2, 1, 50, 1)))
    assert prefixes.get("huge") is None and prefixes.get("a") is past


@given(pairs, st.sampled_from([0, 10**9]))
def test_batch_beyond_memory_is_halved_until_it_fits(some, capacity):
    states = ExactStates()
    expect_right(score(some, model=Small(), states=states, capacity=capacity), some)
    assert sorted(states.released) == sorted(context for context, _ in some)  # each once, despite failures


class Holding(ExactModel):
    """Has memory for ``room`` rows and pasts together."""

    def __init__(self, room, alive):
        super().__init__()
        self.room, self.alive = room, alive

    def forward(self, inputs_embeds, *rest):
        if len(inputs_embeds) + sum(1 for _ in self.alive) > self.room:
            raise torch.OutOfMemoryError("no room")
        return super().forward(inputs_embeds, *rest)


def test_failed_batch_keeps_no_pasts(monkeypatch):
    alive = weakref.WeakSet()

    class Counted:
        def __init__(self, values):
            self.values = values
            alive.add(self)

        def __len__(self):
            return self.values.shape[-2]

    monkeypatch.setattr(likelihood, "Past", Counted)
    some = [((0, i % V, i // V, 1), text) for i in range(8) for text in ((1, 2, 3), (2, 3, 4))]
    expect_right(score(some, model=Holding(8, alive), batch_size=16), some)


def test_progress_counts_distinct_rows_and_can_cancel():
    some = [((i % V, i // V, 0), (1,)) for i in range(10)] * 2
    calls = []
    score(some, batch_size=4, progress=lambda *call: calls.append(call))
    assert calls == [("scoring", 4, 10), ("scoring", 8, 10), ("scoring", 10, 10)]

    def cancel(*call):
        raise KeyboardInterrupt

    model = ExactModel()
    with pytest.raises(KeyboardInterrupt):
        score(some, model=model, batch_size=4, progress=cancel)
    assert model.scored == 4


def test_log_probabilities_that_are_not_finite_are_an_error():
    class Broken(ExactModel):
        def logits(self, hidden):
            return [part * float("nan") for part in super().logits(hidden)]

    with pytest.raises(WeightsError, match=r"not finite, in torch\.float32"):
        score([((0, 1), (2,))], model=Broken())


class Rounding(ExactModel):
    """Computes logits in bfloat16, around 40, where they are multiples of 1/4."""

    dtype = torch.bfloat16

    def logits(self, hidden):
        return [(part + 40).bfloat16() for part in super().logits(hidden)]

    def logits_of(self, hidden, tokens):
        return logits_of(hidden, self.head, tokens)

    @property
    def head(self):
        head = torch.nn.Linear(D, V)
        head.weight = torch.nn.Parameter(torch.from_numpy(HEAD), requires_grad=False)
        head.bias = torch.nn.Parameter(torch.full((V,), 40.0), requires_grad=False)
        return head


class Rounded(Rounding):
    """Uses the rounded logits."""

    def logits_of(self, hidden, tokens):
        return torch.cat(self.logits(hidden), dim=1).float().gather(1, tokens[:, None])[:, 0]


def test_16_bit_logits_do_not_round_the_log_probabilities():
    """Differences of two tokens' log-probabilities over many contexts."""
    some = [((0, *image, i % V, i // V), (token,)) for i in range(40) for image in IMAGES for token in (1, 5)]

    def differences(model):
        found = np.array([float(one[0]) for one in score(some, model=model)])
        return found[::2] - found[1::2]

    exact, rounding, rounded = (differences(model()) for model in (ExactModel, Rounding, Rounded))
    unlikely = np.abs(exact) < 3  # otherwise one of the two tokens dominates the total
    assert unlikely.sum() > 10
    assert np.abs(rounding - exact)[unlikely].mean() < np.abs(rounded - exact)[unlikely].mean() / 2


def test_single_logits_equal_those_of_the_layer():
    head, features = torch.nn.Linear(5, 7), torch.randn(4, 5)
    tokens = torch.tensor([6, 0, 3, 3])
    expected = head(features).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logits_of(features, head, tokens), expected)
    bare = torch.nn.Linear(5, 7, bias=False)
    torch.testing.assert_close(logits_of(features, bare, tokens), bare(features)[torch.arange(4), tokens])


@pytest.mark.parametrize("bias", [True, False])
def test_parts_of_the_vocabulary_are_all_of_it_in_order(monkeypatch, bias):
    monkeypatch.setattr(likelihood, "_CACHED", 3)
    head, hidden = torch.nn.Linear(5, 7, bias=bias), torch.randn(4, 5)
    parts = list(decoder.Decoder(None, None, head, max_tokens=1).logits(hidden))
    assert [part.shape[1] for part in parts] == [3, 3, 1]
    torch.testing.assert_close(torch.cat(parts, dim=1), head(hidden))


def test_rows_with_pasts_of_different_lengths_give_the_same_as_alone():
    model, states = ExactModel(), ExactStates()
    rows = [(0, 1, 2, 3, 4), (5,), (6, 7, 1)]
    pasts = read(model, rows, states, remember=True).pasts()
    assert [len(past) for past in pasts] == [5, 1, 3]
    feeds = [(1,), (2, 3, 4), (5, 6)]
    together = read(model, feeds, states, pasts=pasts, remember=True)
    for i, (row, feed) in enumerate(zip(rows, feeds, strict=True)):
        alone = read(model, [row + feed], states)
        expected = alone.hidden[0, len(row) :]
        torch.testing.assert_close(together.hidden[i, : len(feed)], expected, rtol=0, atol=0)
        assert together.hidden.shape == (3, 3, D)
        assert len(together.pasts()[i]) == len(row) + len(feed)


@pytest.mark.parametrize(
    ("context", "beginning"),
    [
        ((0, -1, -2, 5), (0, -1, -2)),
        ((0, -1, -2), (0, -1)),
        ((0, 1, 2), (0, 1)),
        ((-1, 3, -2, 4, 5), (-1, 3, -2)),
    ],
)
def test_prefix_ends_with_the_last_image_and_never_with_the_last_token(context, beginning):
    assert up_to_last_image(context) == beginning
