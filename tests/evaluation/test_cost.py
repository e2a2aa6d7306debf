"""Arithmetic counted by hand, times of parts that wait, and bytes of what is stored."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from plane import bench_of
from small_sets import write_colours
from zsqretrieval.evaluation.cost import (
    bytes_per_image,
    cost_rows,
    count_flops,
    image_costs,
    peak_memory,
    query_costs,
)
from zsqretrieval.evaluation.datasets import read_shards
from zsqretrieval.evaluation.results import table_of
from zsqretrieval.evaluation.systems import Choice
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.search.fusion import WeightedSum
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator, ToyStatesGenerator


def test_flops_of_products_and_attention_by_hand() -> None:
    linear = torch.nn.Linear(8, 16)
    rows, heads = torch.randn(3, 8), torch.randn(1, 2, 4, 8)  # [batch, heads, T, D]
    attention = 2 * 2 * (2 * 4 * 4 * 8)  # heads, and queries times keys, then weights times values
    with torch.inference_mode():
        assert count_flops(linear, rows) == 2 * 3 * 8 * 16
        assert count_flops(scaled_dot_product_attention, heads, heads, heads) == attention
    convolution = torch.nn.Conv2d(3, 5, 3)
    assert count_flops(convolution, torch.randn(1, 3, 6, 6)) == 2 * (5 * 4 * 4) * (3 * 3 * 3)
    assert np.isnan(count_flops(lambda: np.ones((9, 9)) @ np.ones((9, 9)))), "not torch's"


class Slow(ToyGenerator):
    """Takes a millisecond for each pair, and multiplies a little."""

    def log_likelihood(self, contexts: Sequence[Any], continuations: Sequence[str], **settings: Any) -> Any:
        time.sleep(0.001 * len(contexts))
        torch.ones(len(contexts), 10) @ torch.ones(10, 1)
        return super().log_likelihood(contexts, continuations)


def test_systems_cost_the_sum_of_their_stages(tmp_path: Path) -> None:
    dataset, encoder = read_shards(write_colours(tmp_path / "colours")), ToyEncoder()
    bench = bench_of(
        dataset, encoder, Slow(), systems=("likelihood", "yes_no", "fused", "expanded", "no_image"),
        candidates=6, depths=(0, 2, 6, 100),
    )  # fmt: skip
    texts = [query.text for query in dataset.queries[:3]]
    rows = query_costs(bench, encoder, texts, lambda vector: bench.gallery @ vector)
    table = {(one["form"], one["system"], one["measure"], one["depth"]): one for one in rows}
    likelihood, yes_no = (table["system", name, "time", 6]["value"] for name in ("likelihood", "yes_no"))
    assert likelihood >= 6 and yes_no >= 12, "milliseconds"
    assert ("system", "fused", "time", 6) in table and ("system", "expanded", "time", 0) in table
    assert not {("system", "no_image", "time", 6), ("system", "likelihood", "time", 100)} & table.keys()
    first = table["system", "ToyEncoder", "time", 0]
    assert table["system", "likelihood", "time", 0]["value"] == first["value"]
    assert first["low"] <= first["value"] <= first["high"]
    assert table["stage", "compare", "flops", None]["value"] == 2 * bench.gallery.size
    assert table["stage", "likelihood", "flops", 2]["value"] == 2 * 2 * 10
    assert table["stage", "yes_no", "flops", 6]["value"] == 2 * 12 * 10
    assert ("system", "likelihood", "flops", 6) not in table, "the toy encoder does not compute with torch"
    assert {one["queries"] for one in rows if one["measure"] == "time"} == {3}


def test_image_costs_are_timed_per_image(tmp_path: Path) -> None:
    dataset = read_shards(write_colours(tmp_path / "colours"))
    found = image_costs(ToyEncoder(), ToyStatesGenerator(), dataset.gallery)
    assert [(one["system"], one["queries"]) for one in found] == [("encode image", 3), ("image features", 3)]
    asked = image_costs(ToyEncoder(), ToyGenerator(), dataset.gallery[:1], questions=1)
    assert [one["system"] for one in asked] == ["encode image", "ask image"]
    assert [one["system"] for one in image_costs(ToyEncoder(), None, dataset.gallery)] == ["encode image"]


def test_cost_rows_fit_the_table(tmp_path: Path) -> None:
    dataset = read_shards(write_colours(tmp_path / "colours"))
    choice = Choice(WeightedSum(), WeightedSum(0.05), 0.8, "given")
    for systems, generator in ((("likelihood", "expanded"), ToyStatesGenerator()), ((), None)):
        bench = bench_of(dataset, ToyEncoder(), generator, systems=systems, timed_queries=2, top_k=99)
        table = table_of(cost_rows(bench, ToyEncoder(), choice, ExactIndex(16)))
        assert set(table["group"]) == {"cost"}
        assert set(table["form"]) >= {"stage", "system", "image", "storage"}
        assert ("question vectors" in set(table["system"])) == bool(systems)


def test_bytes_per_image_are_the_stored_sizes() -> None:
    vectors = np.random.default_rng(0).normal(size=(100, 16)).astype(np.float32)
    sizes = bytes_per_image(vectors, ToyStatesGenerator(), index=ExactIndex(16), questions=250)
    assert sizes["vector"] == 64 and sizes["image features"] == 12 and sizes["question vectors"] == 160
    assert 64 + 8 < sizes["index"] < 64 + 8 + 30
    assert bytes_per_image(vectors, ToyGenerator()) == {"vector": 64.0}


def test_peak_memory_covers_a_large_array() -> None:
    before = peak_memory()
    held = np.ones(30_000_000)
    if before:  # not on Windows
        assert peak_memory()["process"] >= max(before["process"], held.nbytes)
