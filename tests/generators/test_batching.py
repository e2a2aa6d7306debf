"""Batches contain every item once, respect the limits, and are halved when memory runs out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory")]
)
@given(lengths=LENGTHS, room=st.integers(1, 9))
def test_batch_beyond_memory_is_halved_and_every_item_is_done_once(error, lengths, room):
    done, reported, failures = [], [], 0

    def step(batch):
        nonlocal failures
        if len(batch) > room:
            failures += 1
            raise error
        done.extend(batch)

    run_batches(
        "work",
        plan_batches(lengths, batch_size=9, token_budget=1000),
        step,
        lambda *call: reported.append(call),
    )
    assert sorted(done) == list(range(len(lengths)))
    assert failures <= 4  # later batches are not larger than the size that fitted
    assert all((name, total) == ("work", len(lengths)) for name, _, total in reported)
    assert [n for _, n, _ in reported] == sorted({n for _, n, _ in reported})


@pytest.mark.parametrize(
    ("error", "tried"),
    [(MemoryError("too long"), [[0, 1], [0]]), (RuntimeError("shapes do not match"), [[0, 1]])],
    ids=["single item beyond memory", "error without a lack of memory"],
)
def test_error_that_halving_cannot_solve_is_raised(error, tried):
    calls = []

    def step(batch):
        calls.append(batch)
        raise error

    with pytest.raises(type(error), match=str(error)):
        run_batches("work", [[0, 1]], step)
    assert calls == tried
