"""Routes of the scoring benchmark and the results it reports."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from benchmarks import scoring
from benchmarks.random_models import random_kosmos
from benchmarks.scoring import bench_scoring
from tiny_kosmos import tiny_kosmos
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.kosmos import Kosmos1Generator


def small_bench(**settings):
    small = {"candidates": 12, "question_tokens": 5, "rounds": 2, "naive_pairs": 9, "batch_size": 4}
    return bench_scoring(tiny_kosmos(), **small | settings)


def test_routes_agree_and_settings_are_reported():
    told = []
    bench = small_bench(progress=lambda _, done, total: told.append((done, total)))
    assert list(bench.routes) == ["naive", "batched", "states", "kv"]
    assert all(route.seconds > 0 and route.max_abs_diff < 1e-4 for route in bench.routes.values())
    fastest = min(route.seconds for name, route in bench.routes.items() if name != "naive")
    assert bench.speedup == bench.routes["naive"].seconds / fastest
    setting = (bench.candidates, bench.question_tokens, bench.rounds, bench.naive_pairs, bench.batch_size)
    assert setting == (12, 5, 2, 9, 4)
    assert (bench.dtype, bench.vision_layers, bench.text_layers) == ("float32", 2, 2)
    assert told == [(i, 6) for i in range(1, 7)]


def test_deviating_route_is_reported(monkeypatch):
    score = Kosmos1Generator.log_likelihood

    def off(self, contexts, continuations, **settings):
        found = score(self, contexts, continuations, **settings)
        if not self._prefixes.capacity:
            return found
        return [
            dataclasses.replace(one, token_log_probs=one.token_log_probs - np.float32(0.25)) for one in found
        ]

    monkeypatch.setattr(Kosmos1Generator, "log_likelihood", off)
    bench = small_bench()
    assert bench.routes["kv"].max_abs_diff == pytest.approx(5 * 0.25, abs=1e-3)
    assert bench.routes["states"].max_abs_diff < 1e-4


@pytest.mark.parametrize("wrong", [{"candidates": 5}, {"rounds": 0}, {"naive_pairs": 0}, {"batch_size": 0}])
def test_numbers_out_of_range_raise(wrong):
    with pytest.raises(InvalidInputError, match="must be at least 1"):
        small_bench(**wrong)


def test_random_model_is_kosmos_at_full_width():
    with torch.device("meta"):
        generator = random_kosmos(1, 2)
    model = generator.model
    assert generator.state_shape == (64, 2048) and model.dtype == torch.bfloat16
    assert (len(model.vision_model.model.encoder.layers), len(model.text_model.model.layers)) == (1, 2)
    layer = sum(parameter.numel() for parameter in model.text_model.model.layers[0].parameters())
    assert layer == 50_378_752
    assert len(generator._tokenize(" w1 w22 w999 question:")) == 4
    with pytest.raises(InvalidInputError, match="not 'int4'"):
        random_kosmos(1, 1, dtype="int4")


def test_command_prints_json_or_a_table(monkeypatch, capsys):
    monkeypatch.setattr(scoring, "random_kosmos", lambda *layers, dtype, device: tiny_kosmos())
    options = ["--candidates", "11", "--rounds", "1", "--question-tokens", "3"]
    scoring.main([*options, "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert set(facts["routes"]) == {"naive", "batched", "states", "kv"}
    assert facts["routes"]["kv"].keys() >= {"seconds", "max_abs_diff"}
    assert facts["ceiling"] is facts["routes"]["kv"]["flops"] is None
    assert facts["speedup"] > 0 and facts["candidates"] == 11
    scoring.main(options)
    said = capsys.readouterr().out
    assert "One question of 3 tokens, 11 images" in said and "kv" in said
    scoring.main([*options, "--profile", "--json"])
    facts = json.loads(capsys.readouterr().out)
    flops = [facts["routes"][name]["flops"] for name in ("batched", "states", "kv")]
    assert flops[0] > flops[1] > flops[2] > 0 < facts["ceiling"]
