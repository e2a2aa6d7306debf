"""What others compute, beside ours: the same numbers, whichever of them is installed."""

from __future__ import annotations

import dataclasses
import json
import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_kosmos import tiny_kosmos
from typer.testing import CliRunner

from zsqretrieval.cli.app import app
from zsqretrieval.encoders.clip import CLIPEncoder
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation import alternatives, scoring_bench
from benchmarks.alternatives import Route, bench_alternatives, random_clip
from zsqretrieval.generators.kosmos import Kosmos1Generator

SMALL = {"candidates": 4, "question_tokens": 4, "caption_tokens": 5, "rounds": 2, "batch_size": 3}
TINY_CLIP = {"clip_layers": 1, "clip_width": 192}
KNOWN = ("what", "question", "picture", "only", "text", "image", "then", "about")


class T5Ranker:
    """The way of rerankers' UPRRanker: passage to the encoder, question as labels, sums of log-softmax."""

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
def nobody_else(monkeypatch):
    """Neither package can be imported."""
    for name in ("rerankers", "rerankers.models", "rerankers.models.upr", "sentence_transformers"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def ranker_like_theirs(monkeypatch, nobody_else):
    for name in ("rerankers", "rerankers.models", "rerankers.models.upr"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["rerankers.models.upr"], "UPRRanker", T5Ranker, raising=False)


def bench(**settings):
    return bench_alternatives(tiny_kosmos(), words=KNOWN, **{**SMALL, **TINY_CLIP, **settings})


def test_what_is_not_installed_is_missing_and_the_rest_agrees(nobody_else):
    told = []
    found = bench(progress=lambda done, total: told.append((done, total)))
    assert list(found.images) == ["transformers", "ours", "ours_states"]
    assert found.captions["rerankers"] == Route(missing="pip install 'zsqretrieval[alternatives]'")
    assert found.first_stage["sentence-transformers"].missing == found.captions["rerankers"].missing
    for name, route in {**found.images, "captions": found.captions["transformers"]}.items():
        assert 0 < route.seconds_range[0] <= route.seconds <= route.seconds_range[1], name
        assert route.times_ours_range[0] <= route.times_ours <= route.times_ours_range[1], name
        assert route.max_abs_diff < 1e-4, name
    assert found.images["ours"].times_ours == found.captions["ours"].times_ours == 1
    assert found.spread["images"] > 0.01 and found.spread["captions"] > 0.01, "else agreeing is no merit"
    assert told == [(n, 12) for n in range(1, 13)], "2 rounds of 3 + 2 + 1 routes"
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_a_ranker_made_for_t5_scores_captions_as_we_do(ranker_like_theirs):
    found = bench(batch_size=3, candidates=7)  # batches of passages, padded, and a last one alone
    route = found.captions["rerankers"]
    assert route.missing is None and route.max_abs_diff < 1e-4 < found.spread["captions"]


@pytest.mark.skipif(find_spec("rerankers") is None, reason="rerankers is not installed")
def test_rerankers_itself_scores_captions_as_we_do():
    found = bench()
    assert found.captions["rerankers"].max_abs_diff < 1e-4 < found.spread["captions"]


@pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="sentence-transformers is missing")
def test_sentence_transformers_makes_the_vectors_that_we_make():
    found = bench()
    assert found.first_stage["sentence-transformers"].max_abs_diff < 1e-3 < found.spread["first_stage"]


def test_a_route_that_is_off_is_reported(nobody_else, monkeypatch):
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


def test_one_clip_is_the_same_to_transformers_and_to_open_clip(tmp_path):
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
def test_numbers_that_make_no_bench_are_refused(wrong):
    with pytest.raises(InvalidInputError, match="at least 1, and the width"):
        bench(**wrong)


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command(monkeypatch, nobody_else, as_json):
    real = alternatives.bench_alternatives
    monkeypatch.setattr(scoring_bench, "random_kosmos", lambda *_, **__: tiny_kosmos())
    monkeypatch.setattr(
        alternatives,
        "bench_alternatives",
        lambda generator, **settings: real(generator, words=KNOWN, **settings, clip_width=192),
    )
    options = ["-k", "2", "--question-tokens", "3", "--rounds", "1", "--clip-layers", "1"]
    result = CliRunner().invoke(app, ["bench", "alternatives", *options, *(["--json"] if as_json else [])])
    assert result.exit_code == 0, result.output
    if as_json:
        found = json.loads(result.stdout)
        assert found["captions"]["rerankers"]["missing"] and found["setting"]["candidates"] == 2
    else:
        assert "missing: pip install" in result.stdout and "says nothing about quality" in result.stdout
