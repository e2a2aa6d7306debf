"""Re-rankers over a generator keep the contract, and give the scores of a search."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from tiny_kosmos import tiny_kosmos
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.lazy import LazyGenerator
from zsqretrieval.rerankers.generative import LikelihoodReranker, YesNoReranker
from zsqretrieval.retriever import Retriever
from zsqretrieval.search.scoring import Likelihood, YesNo, score_pairs
from zsqretrieval.testing import ToyEncoder, ToyGenerator, parametrize_checks, reranker_checks
from zsqretrieval.testing.pictures import paintings

QUESTION = "what is the colour of the thing?"
kosmos = functools.cache(tiny_kosmos)


@parametrize_checks(reranker_checks, lambda: LikelihoodReranker(ToyGenerator()))
def test_likelihood_contract(check: Any) -> None:
    check()


@parametrize_checks(reranker_checks, lambda: YesNoReranker(kosmos(), batch_size=3))
def test_yes_no_contract(check: Any) -> None:
    check()


@pytest.mark.parametrize(("kind", "rule"), [(LikelihoodReranker, Likelihood()), (YesNoReranker, YesNo())])
def test_scores_are_those_of_a_search_with_the_rule(kind: Any, rule: Any) -> None:
    with Retriever(ToyEncoder(), generator=ToyGenerator()) as retriever:
        retriever.add(paintings(5))
        by_rule, by_reranker = (
            retriever.search(QUESTION, rerank=one) for one in (rule, kind(ToyGenerator()))
        )
    wanted = {hit.id: hit.scores[rule.name] for hit in by_rule}
    assert {hit.id: hit.scores[rule.name] for hit in by_reranker} == wanted


def test_rule_is_used_and_generator_loads_on_first_use() -> None:
    lazy = LazyGenerator("mini", {"dtype": "float32"})
    reranker = LikelihoodReranker(lazy, Likelihood(aggregate="mean"))
    assert lazy.made is None
    images = paintings(2)
    found = reranker.score(QUESTION, images)
    expected = score_pairs(lazy.get(), Likelihood(aggregate="mean"), [QUESTION] * 2, images)
    assert found == pytest.approx(expected, abs=1e-5)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="is not a generator"):
        LikelihoodReranker(3)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="batch_size must be at least 1"):
        YesNoReranker(ToyGenerator(), batch_size=0)
    reranker = LikelihoodReranker(ToyGenerator())
    for question, images, message in ((" ", [], "the question"), ("red", paintings(1)[0], "must be a list")):
        with pytest.raises(InvalidInputError, match=message):
            reranker.score(question, images)  # type: ignore[arg-type]
