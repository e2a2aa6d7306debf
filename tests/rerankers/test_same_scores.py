"""An image has the same score whatever the batch size, the order, the padding and the route.

Promised to 1e-4 nats in float32. Measured here: at most 2e-5 (docs/scoring.md has the numbers by dtype).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_vlms
from tiny_kosmos import tiny_kosmos
from zsqretrieval.generators.checked import read_images
from zsqretrieval.generators.vlm.model import VLMGenerator
from zsqretrieval.mini.generator import MiniGenerator
from zsqretrieval.protocols import ImageStates
from zsqretrieval.rerankers.as_cross_encoder import as_cross_encoder
from zsqretrieval.rerankers.generative import LikelihoodReranker, YesNoReranker
from zsqretrieval.retriever import Retriever
from zsqretrieval.search.rerank import Rerank
from zsqretrieval.search.scoring import Likelihood, YesNo, score_pairs
from zsqretrieval.testing import ToyEncoder
from zsqretrieval.testing.pictures import paintings

SAME = 1e-4  # nats
QUESTIONS = (
    "red",
    "what is the colour of the dog",
    "what is the colour of the red house then is the red thing in the picture",
)
IMAGES = paintings(4)
ROUTES = ("pairs", "pairs with states", "reranker", "cross-encoder", "rank")


@cache
def generator(name: str) -> Any:
    if name == "mini":
        return MiniGenerator.from_pretrained(dtype="float32", device="cpu")
    if name == "kosmos":
        return tiny_kosmos()
    with TemporaryDirectory() as folder:
        vlm = tiny_vlms.FAMILIES[name](Path(folder))
        return VLMGenerator.from_pretrained(vlm, dtype="float32", device="cpu", self_check=False)


@cache
def alone(name: str, rule: type) -> dict[tuple[str, int], float]:
    """The score of each question and image, computed alone from pixels."""
    return {
        (question, n): float(score_pairs(generator(name), rule(), [question], [image], batch_size=1)[0])
        for question in QUESTIONS
        for n, image in enumerate(IMAGES)
    }


ALL = [(question, n) for question in QUESTIONS for n in range(len(IMAGES))]


@pytest.mark.parametrize("name", ["kosmos", "qwen3_vl", "idefics3", "blip2_opt"])
@given(order=st.permutations(ALL), batch_size=st.integers(1, 9))
@settings(max_examples=3, deadline=None)
def test_every_batch_order_and_route_gives_the_score_of_the_pair_alone(
    name: str, order: Any, batch_size: int
) -> None:
    for rule in (Likelihood, YesNo):
        for route in ROUTES:
            expect_same(name, rule, route, order[:7], batch_size)
    expect_same(name, Likelihood, "pairs", order, 6)


@given(order=st.permutations(ALL), route=st.sampled_from(ROUTES))
@settings(max_examples=2, deadline=None)
def test_mini_gives_the_score_of_the_pair_alone(order: Any, route: str) -> None:
    expect_same("mini", Likelihood, route, order, 5)


def expect_same(name: str, rule: Any, route: str, pairs: Any, batch_size: int) -> None:
    if route in ("reranker", "rank"):  # one question about all images
        pairs = [(pairs[0][0], n) for _, n in pairs]
    model = generator(name)
    questions, images = [question for question, _ in pairs], [IMAGES[n] for _, n in pairs]
    if route == "pairs with states" and isinstance(model, ImageStates):
        images = read_images(model, images)
    if route == "reranker":
        kind = {Likelihood: LikelihoodReranker, YesNo: YesNoReranker}[rule]
        found = kind(model, batch_size=batch_size).score(questions[0], images)
    elif route in ("cross-encoder", "rank"):
        encoder = as_cross_encoder(model, scoring=rule.name)
        if route == "rank":
            ranked = encoder.rank(questions[0], images, batch_size=batch_size)
            found = np.array([one["score"] for one in sorted(ranked, key=lambda one: one["corpus_id"])])
        else:
            found = encoder.predict(list(zip(questions, images, strict=True)), batch_size=batch_size)
    else:
        found = score_pairs(model, rule(), questions, images, batch_size=batch_size)
    expected = [alone(name, rule)[pair] for pair in pairs]
    np.testing.assert_allclose(found, expected, rtol=0, atol=SAME)


@pytest.mark.parametrize(
    ("name", "states"),
    [("mini", "lazy"), ("kosmos", "lazy"), ("kosmos", None), ("qwen3_vl", None), ("idefics3", None)],
)
def test_search_gives_the_score_of_the_pair_alone(name: str, states: Any) -> None:
    with Retriever(ToyEncoder(), generator=generator(name), states=states) as retriever:
        retriever.add(IMAGES)
        sources = {image.source: n for n, image in enumerate(IMAGES)}
        for batch_size in (1, 3):
            for question in QUESTIONS[1:]:
                for hit in retriever.search(question, rerank=Rerank(Likelihood(), batch_size=batch_size)):
                    expected = alone(name, Likelihood)[question, sources[hit.source]]
                    assert hit.scores["likelihood"] == pytest.approx(expected, rel=0, abs=SAME)
