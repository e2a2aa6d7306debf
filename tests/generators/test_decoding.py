"""Decoding with an exact model: greedy and sampled texts, independent of the batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exact_model import IMAGES, ExactModel, ExactStates, Small, V, contexts, log_probs
from zsqretrieval.generators.engine.decoding import continue_contexts

some_contexts = st.lists(contexts, min_size=1, max_size=6)


def write(some, *, model=None, states=None, **settings):
    settings = {
        "n": 1,
        "max_new_tokens": 5,
        "temperature": 0.0,
        "seed": 0,
        "stop": (),
        "batch_size": 4,
    } | settings
    return continue_contexts(model or ExactModel(), some, states or ExactStates(), **settings)


def next_log_probs(row):
    return np.array([log_probs(row, (token,))[0] for token in range(V)])


@given(some_contexts, st.integers(1, 5), st.sampled_from([(), (3,), (1, 2, 5)]))
def test_greedy_takes_the_likeliest_token_until_a_stop(some, batch_size, stop):
    for context, (text,) in zip(some, write(some, batch_size=batch_size, stop=stop), strict=True):
        for t in range(len(text) + (len(text) < 5)):
            following = next_log_probs((*context, *text[:t]))
            if t < len(text):
                assert text[t] not in stop and following[text[t]] >= following.max() - 1e-5
            else:  # it ended early: a stop token was the likeliest
                assert following[list(stop)].max() >= following.max() - 1e-5


@given(
    some_contexts,
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(0, 2**40),
    st.sampled_from([0.5, 1.0, 3.0]),
)
def test_samples_do_not_depend_on_the_batch(some, n, batch_size, seed, temperature):
    settings = {"n": n, "seed": seed, "temperature": temperature, "stop": (0,)}
    expected = write(some, batch_size=1, **settings)
    assert write(some, batch_size=batch_size, **settings) == expected
    assert write(some, batch_size=batch_size, model=Small(), **settings | {"n": 1}) == [
        texts[:1] for texts in expected
    ]


def test_samples_follow_the_probabilities():
    context, n = (0, *IMAGES[1], 2), 4000
    for temperature in (1.0, 2.0):
        (texts,) = write([context], n=n, max_new_tokens=1, temperature=temperature, batch_size=1)
        counts = np.bincount([text[0] for text in texts], minlength=V)
        p = np.exp(next_log_probs(context) / temperature)
        p /= p.sum()
        assert (np.abs(counts - n * p) <= 5 * np.sqrt(n * p * (1 - p)) + 1).all()


def test_equal_contexts_and_different_seeds_give_different_samples():
    context = (0, *IMAGES[1], 2)
    hot = {"temperature": 5.0, "max_new_tokens": 12}
    one, other = write([context, context], **hot)
    assert one != other
    assert write([context], **hot, seed=0) == [one] != write([context], **hot, seed=1)
    assert write([context], **hot, seed=None) != write([context], **hot, seed=None)


def test_greedy_texts_of_a_context_are_computed_once():
    model = ExactModel()
    texts = write([(0, 1)], n=5, model=model)
    assert texts == [write([(0, 1)])[0] * 5]
    assert model.largest == 1


def test_generation_ends_where_the_context_is_full():
    full = (1,) * (ExactModel.max_tokens - 3)
    texts = write([full, (0, 1)], max_new_tokens=10)
    assert [len(text) for (text,) in texts] == [3, 10]


def test_finished_texts_are_not_computed_further():
    model = ExactModel()
    some = [(0, 1), (0, 2), (0, 3), (0, *IMAGES[2], 3)]
    lengths = [len(text) for (text,) in write(some, model=model, stop=(0, 1, 2, 3), max_new_tokens=8)]
    prompts = len(some) * max(len(context) for context in some)
    # each new token is read, except the last one of a text that reaches the limit
    assert model.read == prompts + sum(min(length, 7) for length in lengths)
    assert len(set(lengths)) > 1


def test_progress_counts_texts_and_images_are_released():
    states, calls = ExactStates(), []
    some = [(0, *image) for image in IMAGES]
    write(some, states=states, batch_size=3, progress=lambda *call: calls.append(call))
    assert calls == [("generating", 3, 4), ("generating", 4, 4)]
    assert sorted(states.released) == sorted(some)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_several_samples_do_not_exceed_the_batch_size(batch_size):
    model = ExactModel()
    write([(0, i) for i in range(6)], n=3, temperature=1.0, batch_size=batch_size, model=model)
    assert model.largest == batch_size


def test_samples_of_one_context_may_be_in_several_batches():
    some = [(0, *IMAGES[0]), (0, 2)]
    options = {"n": 5, "temperature": 1.0, "seed": 3}
    states = ExactStates()
    assert write(some, model=Small(), states=states, **options) == write(some, **options)
    assert sorted(states.released) == sorted(some)


def test_samples_count_towards_the_token_budget():
    model = ExactModel()
    write([tuple([0] * 40)], n=200, temperature=1.0, batch_size=200, max_new_tokens=8, model=model)
    assert model.largest == 4096 // 48
