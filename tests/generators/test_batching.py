"""Batches: every item once, within the budget; halved when memory runs out; stoppable."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.engine.batching import plan_batches, run_batches

LENGTHS = st.lists(st.integers(1, 60), max_size=40)


@given(LENGTHS, st.integers(1, 9), st.integers(1, 200))
def test_every_item_is_in_one_batch_within_both_limits(lengths, batch_size, token_budget):
    batches = plan_batches(lengths, batch_size=batch_size, token_budget=token_budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= batch_size
        assert len(batch) * max(lengths[i] for i in batch) <= token_budget or len(batch) == 1
    longest = [lengths[batch[0]] for batch in batches]
    assert longest == sorted(longest, reverse=True)


@pytest.mark.parametrize(
    "limits", [{"batch_size": 0, "token_budget": 1}, {"batch_size": 1, "token_budget": 0}]
)
def test_a_limit_below_one_is_refused(limits):
    with pytest.raises(InvalidInputError, match="must be at least 1"):
        plan_batches([1], **limits)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory")]
)
@settings(deadline=None)  # the first failure imports torch
@given(lengths=LENGTHS, room=st.integers(1, 9))
def test_a_batch_too_big_for_memory_is_halved_and_nothing_is_lost_or_repeated(error, lengths, room):
    done, reported, failures = [], [], 0

    def step(batch):
        nonlocal failures
        if len(batch) > room:
            failures += 1
            raise error
        done.extend(batch)

    run_batches(
        plan_batches(lengths, batch_size=9, token_budget=1000),
        step,
        lambda n, total: reported.append((n, total)),
    )
    assert sorted(done) == list(range(len(lengths)))
    assert failures <= 4  # the size that fitted is remembered
    assert all(total == len(lengths) for _, total in reported)
    assert [n for n, _ in reported] == sorted({n for n, _ in reported})


def test_a_single_item_that_does_not_fit_is_an_error():
    def step(batch):
        raise MemoryError("too long")

    with pytest.raises(MemoryError, match="too long"):
        run_batches([[0, 1]], step)


def test_other_errors_are_not_taken_for_memory():
    calls = []

    def step(batch):
        calls.append(batch)
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        run_batches([[0, 1]], step)
    assert calls == [[0, 1]]


def test_progress_may_stop_the_work_between_batches():
    done = []

    class StoppedError(Exception):
        pass

    def stop(n, total):
        raise StoppedError

    with pytest.raises(StoppedError):
        run_batches([[0], [1]], done.append, stop)
    assert done == [[0]]
