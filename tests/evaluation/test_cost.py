"""Arithmetic counted by hand, times of parts that wait, and bytes of what is stored."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_sets import write_colours
from torch.nn.functional import scaled_dot_product_attention

from zsqretrieval.evaluation.cost import (
    Cost,
    bytes_per_image,
    count_flops,
    image_costs,
    peak_memory,
    query_costs,
    spent,
)
from zsqretrieval.evaluation.datasets import read_shards
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.search.scoring import Likelihood, YesNo
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator, ToyStatesGenerator


def test_products_and_attention_are_counted_as_by_hand() -> None:
    linear = torch.nn.Linear(8, 16)
    rows, heads = torch.randn(3, 8), torch.randn(1, 2, 4, 8)  # [batch, heads, T, D]
    attention = 2 * 2 * (2 * 4 * 4 * 8)  # heads, and queries times keys, then weights times values
    with torch.inference_mode():
        assert count_flops(linear, rows) == 2 * 3 * 8 * 16
        assert count_flops(scaled_dot_product_attention, heads, heads, heads) == attention
    convolution = torch.nn.Conv2d(3, 5, 3)
    assert count_flops(convolution, torch.randn(1, 3, 6, 6)) == 2 * (5 * 4 * 4) * (3 * 3 * 3)
    assert count_flops(lambda: np.ones((9, 9)) @ np.ones((9, 9))) is None, "not torch's"


def test_times_are_medians_with_intervals() -> None:
    one = spent("search", [3.0, 1.0, 2.0, 9.0, 2.0], depth=5)
    assert one.seconds == 2.0 and one.interval[0] <= 2.0 <= one.interval[1] <= 9.0
    assert one.calls == 5 and one.per_second == 0.5
    assert spent("search", [0.5]).interval == (0.5, 0.5)


class Slow(ToyGenerator):
    """Takes a millisecond for each pair, and multiplies a little."""

    def log_likelihood(self, contexts: Sequence[Any], continuations: Sequence[str], **settings: Any) -> Any:
        time.sleep(0.001 * len(contexts))
        torch.ones(len(contexts), 10) @ torch.ones(10, 1)
        return super().log_likelihood(contexts, continuations)


def test_a_query_costs_what_its_stages_cost(tmp_path: Path) -> None:
    dataset = read_shards(write_colours(tmp_path / "colours"))
    encoder = ToyEncoder()
    gallery = encoder.encode_image(dataset.gallery)
    stages, systems = query_costs(
        encoder,
        Slow(),
        [Likelihood(), YesNo()],
        [query.text for query in dataset.queries[:3]],
        gallery,
        dataset.gallery,
        [0, 2, 6, 100],
        expand=lambda vector: gallery @ vector,
    )
    cost = Cost(stages, systems, (), {}, {})
    likelihood, yes_no = (cost.of(name, 6) for name in ("likelihood", "yes_no"))
    assert likelihood is not None and yes_no is not None and cost.of("likelihood", 100) is None
    assert likelihood.seconds >= 0.006 and yes_no.seconds >= 0.012
    assert cost.of("fused", 6) is not None and cost.of("expand", 0) is not None
    (first,) = [one for one in systems if one.what == "clip"]
    none = cost.of("likelihood", 0)
    assert none is not None and none.seconds == first.seconds
    by_stage = {(one.what, one.depth): one for one in stages}
    assert by_stage["compare", None].flops == 2 * gallery.size
    assert by_stage["likelihood", 2].flops == 2 * 2 * 10 and by_stage["yes_no", 6].flops == 2 * 12 * 10
    assert likelihood.flops is None, "the toy encoder does not compute with torch"
    assert {one.calls for one in (*stages, *systems)} == {3}


def test_images_cost_once(tmp_path: Path) -> None:
    dataset = read_shards(write_colours(tmp_path / "colours"))
    found = image_costs(ToyEncoder(), ToyStatesGenerator(), dataset.gallery)
    assert [(one.what, one.calls) for one in found] == [("encode image", 3), ("see image", 3)]
    asked = image_costs(ToyEncoder(), ToyGenerator(), dataset.gallery[:1], questions=1)
    assert [one.what for one in asked] == ["encode image", "ask image"]


def test_bytes_are_those_of_what_is_stored() -> None:
    vectors = np.random.default_rng(0).normal(size=(100, 16)).astype(np.float32)
    sizes = bytes_per_image(vectors, ToyStatesGenerator(), index=ExactIndex(16), questions=250)
    assert sizes["vector"] == 64 and sizes["state"] == 12 and sizes["question vectors"] == 160
    assert 64 + 8 < sizes["index"] < 64 + 8 + 30
    assert bytes_per_image(vectors, ToyGenerator()) == {"vector": 64.0}


def test_memory_at_its_peak_is_that_of_the_process() -> None:
    before = peak_memory()
    held = np.ones(30_000_000)
    if before:  # not on Windows
        assert peak_memory()["process"] >= max(before["process"], held.nbytes)
