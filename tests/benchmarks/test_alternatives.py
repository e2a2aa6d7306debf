"""Comparison with other libraries: equal numbers, whichever of them is installed."""

from __future__ import annotations

import dataclasses
import json
import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import alternatives
from benchmarks.alternatives import Route, bench_alternatives
from benchmarks.random_models import random_clip
from tiny_kosmos import tiny_kosmos
from zsqretrieval.encoders.clip import CLIPEncoder
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.kosmos import Kosmos1Generator

SMALL = {"candidates": 4, "question_tokens": 4, "caption_tokens": 5, "rounds": 2, "batch_size": 3}
TINY_CLIP = {"clip_layers": 1, "clip_width": 192}
KNOWN = ("what", "question", "picture", "only", "text", "image", "then", "about")


class T5Ranker:
    """UPRRanker of rerankers: passage to the encoder, question as labels, sums of log-softmax."""

    @torch.inference_mode()
    def rank(self, query, docs, doc_ids):
        results = []
        for start in range(0, len(docs), self.batch_size):
            some = docs[start : start + self.batch_size]
            passages = self._tokens([f"{self.verbalizer_head} {doc}. {self.verbalizer}" for doc in some])
            asked = self._tokens([query] * len(some)).input_ids
            logits = self.model(
                input_ids=passages.input_ids, attention_mask=passages.attention_mask, labels=asked
            ).logits
            sums = logits.log_softmax(-1).gather(-1, asked.unsqueeze(-1)).squeeze(-1).sum(1)
            results += [
                SimpleNamespace(document=SimpleNamespace(doc_id=doc_ids[start + n]), score=float(one))
                for n, one in enumerate(sums)
            ]
        return SimpleNamespace(results=sorted(results, key=lambda one: -one.score))

    def _tokens(self, texts):
        return self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_input_length, return_tensors="pt"
        )


@pytest.fixture
def without_others(monkeypatch):
    """Neither package can be imported."""
    for name in ("rerankers", "rerankers.models", "rerankers.models.upr", "sentence_transformers"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def with_ranker(monkeypatch, without_others):
    for name in ("rerankers", "rerankers.models", "rerankers.models.upr"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["rerankers.models.upr"], "UPRRanker", T5Ranker, raising=False)


def bench(**settings):
    return bench_alternatives(tiny_kosmos(), words=KNOWN, **{**SMALL, **TINY_CLIP, **settings})


def test_absent_packages_are_missing_and_the_other_routes_agree(without_others):
    told = []
    found = bench(progress=lambda _, done, total: told.append((done, total)))
    assert list(found.images) == ["transformers", "ours", "ours_states"]
    assert found.captions["rerankers"] == Route(missing="pip install 'zsqretrieval[alternatives]'")
    assert found.first_stage["sentence-transformers"].missing == found.captions["rerankers"].missing
    for name, route in {**found.images, "captions": found.captions["transformers"]}.items():
        assert 0 < route.seconds_range[0] <= route.seconds <= route.seconds_range[1], name
        assert route.times_ours_range[0] <= route.times_ours <= route.times_ours_range[1], name
        assert route.max_abs_diff < 1e-4, name
    assert found.images["ours"].times_ours == found.captions["ours"].times_ours == 1
    assert found.spread["images"] > 0.01 and found.spread["captions"] > 0.01, (
        "equal scores would agree anyway"
    )
    assert told == [(n, 12) for n in range(1, 13)], "2 rounds of 3 + 2 + 1 routes"
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_ranker_for_t5_gives_our_scores_of_captions(with_ranker):
    found = bench(batch_size=3, candidates=7)  # batches of passages, padded, and a last one alone
    route = found.captions["rerankers"]
    assert route.missing is None and route.max_abs_diff < 1e-4 < found.spread["captions"]


@pytest.mark.skipif(find_spec("rerankers") is None, reason="rerankers is not installed")
def test_rerankers_gives_our_scores_of_captions():
    found = bench()
    assert found.captions["rerankers"].max_abs_diff < 1e-4 < found.spread["captions"]


@pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="sentence-transformers is missing")
def test_sentence_transformers_gives_our_vectors():
    found = bench()
    assert found.first_stage["sentence-transformers"].max_abs_diff < 1e-3 < found.spread["first_stage"]


def test_deviating_route_is_reported(without_others, monkeypatch):
    score = Kosmos1Generator.log_likelihood

    def off(self, contexts, continuations, **settings):
        found = score(self, contexts, continuations, **settings)
        return [
            dataclasses.replace(one, token_log_probs=one.token_log_probs - np.float32(0.25)) for one in found
        ]

    monkeypatch.setattr(Kosmos1Generator, "log_likelihood", off)
    found = bench()
    assert found.images["transformers"].max_abs_diff == pytest.approx(1.0, abs=1e-3)
    assert found.images["ours_states"].max_abs_diff < 1e-4


def test_transformers_and_open_clip_load_the_same_clip(tmp_path):
    from transformers import CLIPModel, CLIPTokenizer

    folder = random_clip(tmp_path / "clip", layers=2, width=192)
    texts = ["a dog runs", "two people on a very long bench, under trees!"]
    ours = CLIPEncoder.from_pretrained(f"local-dir:{folder}", device="cpu").encode_text(texts)
    tokens = CLIPTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        model = CLIPModel.from_pretrained(folder)
        hidden = model.text_model(**tokens).pooler_output
        theirs = torch.nn.functional.normalize(model.text_projection(hidden), dim=-1).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.abs(ours[0] - ours[1]).max() > 0.01


@pytest.mark.parametrize("wrong", [{"candidates": 0}, {"rounds": 0}, {"clip_width": 100}, {"clip_width": 0}])
def test_numbers_out_of_range_raise(wrong):
    with pytest.raises(InvalidInputError, match="at least 1, and the width"):
        bench(**wrong)


def test_command_prints_json_or_a_table(monkeypatch, capsys, without_others):
    small = {"words": KNOWN, "clip_width": 192}
    monkeypatch.setattr(alternatives, "random_kosmos", lambda *_, **__: tiny_kosmos())
    monkeypatch.setattr(
        alternatives,
        "bench_alternatives",
        lambda *given, **options: bench_alternatives(*given, **options, **small),
    )
    options = ["--candidates", "2", "--question-tokens", "3", "--rounds", "1", "--clip-layers", "1"]
    alternatives.main([*options, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["captions"]["rerankers"]["missing"] and found["setting"]["candidates"] == 2
    alternatives.main(options)
    said = capsys.readouterr().out
    assert "missing: pip install" in said and "says nothing about quality" in said
