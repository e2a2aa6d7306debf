"""The plan of a collection against what was published and measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.laion.plan import Machine, hnsw_bytes, hnsw_rate, plan, pq_bytes

LAION_5B = 5.85e9


def test_laion_5b_has_the_published_sizes():
    found = plan(LAION_5B, 768)
    assert pq_bytes(LAION_5B) == pytest.approx(800e9, rel=0.02)  # "large PQ128 knn index", 800 GB
    assert found.vector_bytes == pytest.approx(9e12, rel=0.02)  # "9 TB of image embeddings"
    assert found.embedding_gpu_hours == pytest.approx(32 * 7 * 24, rel=0.05)  # 32 A100 for a week


@pytest.mark.parametrize(
    ("vectors", "recall", "rate"), [(1e5, 0.9, 3769), (1e6, 0.95, 990), (1e6, 0.98, 553)]
)
def test_measured_rates_and_sizes_of_hnsw_are_met(vectors, recall, rate):
    assert hnsw_rate(vectors, 512, recall) == pytest.approx(rate)
    assert hnsw_bytes(1, 512) == pytest.approx(2190, rel=0.01)  # measured, bytes a vector


@given(
    st.floats(1, 1e11), st.integers(1, 4096), st.floats(0.9, 0.98), st.floats(1e-3, 1e5), st.integers(0, 1000)
)
def test_every_plan_holds_what_it_promises(vectors, dim, recall, qps, candidates):
    machine = Machine(price=2.0, gpu_price=4.0)
    found = plan(vectors, dim, recall=recall, qps=qps, candidates=candidates, machine=machine)
    for one in found.indexes:
        room = machine.memory if one.on == "memory" else machine.disk
        assert one.bytes <= one.shards * room
        assert one.rate >= qps * 0.999999
        assert one.machines == one.shards * one.replicas
    assert [one.machines for one in found.indexes] == sorted(one.machines for one in found.indexes)
    for name, gpus in found.rerank_gpus.items():
        assert gpus >= qps * found.rerank_gpu_seconds[name] / 1000
    assert found.price is not None
    assert min(found.price.values()) >= 0


def test_ten_million_vectors_fit_one_machine_and_five_billion_do_not():
    def machines(vectors, index):
        return {one.index.split()[0]: one.machines for one in plan(vectors, 512).indexes}[index]

    assert machines(1e7, "HNSW") == 1
    assert machines(LAION_5B, "HNSW") > 50
    assert machines(LAION_5B, "IVF_PQ") < 5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"vectors": 0}, "vectors must be a positive number"),
        ({"vectors": float("nan")}, "vectors must be a positive number"),
        ({"dim": -1}, "dim must be"),
        ({"qps": 0}, "qps must be"),
        ({"recall": 0.99}, "recall must be from 0.9 to 0.98"),
        ({"candidates": -1}, "candidates must be >= 0"),
        ({"machine": Machine(price=-1.0)}, "price must be"),
        ({"machine": Machine(memory=0)}, "memory must be"),
        ({"vectors": 1e308}, "vectors must be"),
        ({"dim": 10**400}, "dim must be"),
        ({"qps": 1e-320}, "qps must be"),
        ({"candidates": 10**400}, "candidates must be"),
        ({"machine": Machine(memory=5e-324)}, "memory must be"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong, message):
    given_numbers = {"vectors": 1e6, "dim": 512, **wrong}
    with pytest.raises(InvalidInputError, match=message):
        plan(given_numbers.pop("vectors"), given_numbers.pop("dim"), **given_numbers)
