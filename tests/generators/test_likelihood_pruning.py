"""The pruned search finds exactly what scoring everything finds, with less scoring."""

from __future__ import annotations

import numpy as np
import pytest
from exact_model import STATES, ExactModel, ExactStates, V, log_probs
from hypothesis import given, settings
from hypothesis import strategies as st
from test_likelihood import IMAGES, Small, contexts, continuations, score

from zsqretrieval.generators.engine import pruning
from zsqretrieval.generators.engine.likelihood import Prefixes
from zsqretrieval.generators.engine.pruning import best_first


def search(some, continuation, k, *, model=None, states=None, capacity=0, **settings):
    return best_first(
        model or ExactModel(), some, continuation, k, states or ExactStates(),
        prefixes=Prefixes(capacity), **{"block": 2, "batch_size": 4, **settings},
    )  # fmt: skip


def in_full(some, continuation, k):
    """Scoring everything, then sorting; equal sums keep their order."""
    scored = score([(context, continuation) for context in some])
    sums = [float(one.sum(dtype=np.float64)) for one in scored]
    order = sorted(range(len(some)), key=lambda i: -sums[i])[:k]
    return order, [scored[i] for i in order]


candidates = st.lists(contexts, min_size=1, max_size=14)


@settings(deadline=None, max_examples=200)
@given(
    candidates,
    continuations,
    st.integers(1, 5),
    st.integers(1, 7),
    st.integers(1, 6),
    st.sampled_from([0, 10**9]),
)
def test_the_top_k_is_that_of_full_scoring(some, continuation, k, block, batch_size, capacity):
    found, scored = search(some, continuation, k, block=block, batch_size=batch_size, capacity=capacity)
    places, values = in_full(some, continuation, k)
    assert [place for place, _ in found] == places
    for (_, one), other in zip(found, values, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert scored <= len(set(some)) * len(continuation)


@settings(deadline=None)
@given(candidates, continuations, st.integers(1, 5))
def test_with_room_for_few_pasts_the_top_k_is_the_same(some, continuation, k):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning, "_PASTS_BYTES", 1)
        found, _ = search(some, continuation, k)
    assert [place for place, _ in found] == in_full(some, continuation, k)[0]


@settings(deadline=None)
@given(candidates, continuations)
def test_batches_that_do_not_fit_are_halved(some, continuation):
    found, _ = search(some, continuation, 3, model=Small(), batch_size=9)
    assert [place for place, _ in found] == in_full(some, continuation, 3)[0]


def unlike_contexts():
    """One context after which 20 times token 1 is far likelier than after the others, among twelve."""
    few = [(0, *image, a) for image in IMAGES for a in range(3)]
    text = (1,) * 20
    return few, text, [log_probs(context, text) for context in few]


def test_what_cannot_win_is_not_scored_to_the_end():
    few, text, exact = unlike_contexts()
    found, scored = search(few, text, 1, block=1, batch_size=1)
    best = int(np.argmax([one.sum() for one in exact]))
    assert found[0][0] == best
    # A context has to be scored as long as what was scored of it is no worse than the best one's whole.
    needed = sum(int((np.cumsum(one)[:-1] >= exact[best].sum()).sum()) + 1 for one in exact)
    assert scored == needed < len(few) * len(text)


def test_equal_contexts_take_their_places_in_the_top_k_but_are_scored_once():
    few, text, exact = unlike_contexts()
    order = np.argsort([-one.sum() for one in exact])
    some = [few[order[2]], few[order[0]], few[order[1]], few[order[0]]]
    model = ExactModel()
    found, scored = search(some, text, 3, model=model)
    assert [place for place, _ in found] == [1, 3, 2]
    assert scored == model.scored <= 3 * len(text)


def test_images_are_released_once_nothing_is_read_of_them_any_more():
    some, states = [(0, *image, 1) for image in [*IMAGES, IMAGES[0]]], ExactStates()
    search(some, (1, 2, 3, 4, 5), 2, states=states)
    assert sorted(states.released) == sorted(some)
    assert len(states.asked) == len(STATES)


def test_progress_counts_what_is_finished_or_dropped_and_may_stop():
    some = [(0, i % V, i // V) for i in range(9)]
    told = []
    search(some, (1, 2, 3), 2, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (9, 9) and told == sorted(told)

    class StoppedError(Exception):
        pass

    def stop(done, total):
        raise StoppedError

    with pytest.raises(StoppedError):
        search(some, (1, 2, 3), 2, progress=stop)


def test_batches_keep_to_the_token_budget_and_to_like_lengths(monkeypatch):
    monkeypatch.setattr(pruning, "TOKEN_BUDGET", 64)
    some = [tuple(1 + (i + t) % 3 for t in range(20 if i % 5 == 0 else 3)) for i in range(25)]
    model = Widest()
    found, _ = search(some, (1, 2, 3, 4, 5, 6), 25, model=model, batch_size=16, block=2)
    assert sorted(position for position, _ in found) == list(range(25))
    assert model.widest <= 64
    assert model.read < 2 * sum(len(context) + 5 for context in set(some))


def test_what_does_not_fit_is_not_tried_again_in_every_block():
    model = Forgetful()
    some = [(0, i % V, i // V) for i in range(40)]
    assert search(some, (1, 2, 3, 4, 5, 6, 7), 40, model=model, block=1, batch_size=16)[1] == 40 * 7
    assert model.failed <= 4  # 16, 8, 4: halved until it fits


class Widest(ExactModel):
    """Knows how much it ever held: rows times positions, those of the past included."""

    widest = 0

    def forward(self, inputs_embeds, attention_mask, position_ids, cache):
        held = 0 if cache is None else cache.get_seq_length()
        self.widest = max(self.widest, len(inputs_embeds) * (inputs_embeds.shape[1] + held))
        return super().forward(inputs_embeds, attention_mask, position_ids, cache)


class Forgetful(Small):
    """Counts how often its memory was not enough."""

    failed = 0

    def forward(self, inputs_embeds, *rest):
        self.failed += len(inputs_embeds) > self.room
        return super().forward(inputs_embeds, *rest)
