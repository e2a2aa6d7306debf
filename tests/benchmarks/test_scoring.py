"""The bench compares the routes it says it compares, on the numbers it says."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from tiny_kosmos import tiny_kosmos
from typer.testing import CliRunner

from zsqretrieval.cli.app import app
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation import scoring_bench
from benchmarks.scoring import bench_scoring, random_kosmos
from zsqretrieval.generators.kosmos import Kosmos1Generator


def small_bench(generator=None, **settings):
    settings = {
        "candidates": 12,
        "question_tokens": 5,
        "rounds": 2,
        "naive_pairs": 9,
        "batch_size": 4,
    } | settings
    return bench_scoring(generator or tiny_kosmos(), **settings)


def test_the_routes_agree_and_the_report_says_what_was_measured():
    told = []
    bench = small_bench(progress=lambda done, total: told.append((done, total)))
    assert list(bench.routes) == ["naive", "batched", "states", "kv"]
    assert all(route.seconds > 0 and route.max_abs_diff < 1e-4 for route in bench.routes.values())
    fastest = min(route.seconds for name, route in bench.routes.items() if name != "naive")
    assert bench.speedup == bench.routes["naive"].seconds / fastest
    assert bench.pruned.k == 10 and bench.pruned.same_as_full and 0 <= bench.pruned.saving < 1
    setting = (bench.candidates, bench.question_tokens, bench.rounds, bench.naive_pairs, bench.batch_size)
    assert setting == (12, 5, 2, 9, 4)
    assert (bench.dtype, bench.vision_layers, bench.text_layers) == ("float32", 2, 2)
    assert told == [(i, 8) for i in range(1, 9)]


def test_a_route_that_is_off_is_reported(monkeypatch):
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


def test_a_pruned_search_that_misses_is_reported(monkeypatch):
    top_k = Kosmos1Generator.top_k

    def worst(self, contexts, continuation, k, **settings):
        found = top_k(self, contexts, continuation, len(contexts), **settings)
        return dataclasses.replace(found, positions=found.positions[-k:])

    monkeypatch.setattr(Kosmos1Generator, "top_k", worst)
    assert not small_bench().pruned.same_as_full


@pytest.mark.parametrize("wrong", [{"candidates": 5}, {"rounds": 0}, {"naive_pairs": 0}, {"batch_size": 0}])
def test_what_cannot_be_measured(wrong):
    with pytest.raises(InvalidInputError, match="must be at least 1"):
        small_bench(**wrong)


def test_the_random_model_is_kosmos_at_full_width():
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


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command(monkeypatch, as_json):
    monkeypatch.setattr(scoring_bench, "random_kosmos", lambda *layers, dtype: tiny_kosmos())
    arguments = ["bench", "scoring", "-k", "11", "--rounds", "1", "--question-tokens", "3"]
    ran = CliRunner().invoke(app, [*arguments, *(["--json"] if as_json else [])])
    assert ran.exit_code == 0, ran.output
    if as_json:
        facts = json.loads(ran.stdout)
        assert set(facts["routes"]) == {"naive", "batched", "states", "kv"}
        assert set(facts["routes"]["kv"]) == {"seconds", "max_abs_diff"}
        assert facts["speedup"] > 0 and facts["candidates"] == 11
    else:
        assert "one question of 3 tokens, 11 images" in ran.stdout and "kv" in ran.stdout
