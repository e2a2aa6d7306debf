"""Texts that are the same tokens count once."""

from __future__ import annotations

import math
from contextlib import nullcontext

import numpy as np
import pytest

from closed_world import World
from zsqretrieval.dialog.oracle import Interview, Wording
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.checked import distinct
from zsqretrieval.mini.generator import MiniGenerator
from zsqretrieval.search.scoring import YesNo, score_pairs
from zsqretrieval.tasks.choice import choose
from zsqretrieval.testing.pictures import paintings
from zsqretrieval.types import LogLikelihood

IMAGES = paintings(2)
CASES = [
    ([" yes"], [0]),
    ([" yes", " Yes"], [0]),
    ([" YES", " yes", " yeah"], [0, 2]),
    ([" yes, it is", " yes"], [1]),
    ([" yes", " yes it is", " yesterday"], [0, 2]),
    ([" yes it", " yes he", " no"], [0, 1, 2]),
    ([" yes !", " yes!"], [0]),
    ([" café", " cafe"], [0]),  # this tokenizer drops accents
]


@pytest.fixture(scope="module")
def mini() -> MiniGenerator:
    return MiniGenerator.from_pretrained(device="cpu", dtype="float32")


@pytest.mark.parametrize(("words", "kept"), CASES)
def test_words_with_the_same_tokens_count_once(
    words: list[str], kept: list[int], mini: MiniGenerator
) -> None:
    tokens = [tuple(mini._token_texts(mini._tokenize(word))) for word in words]
    assert distinct(tokens) == kept
    all_of_them = score_pairs(mini, YesNo(yes=tuple(words), no=(" red",)), ["a dog"], IMAGES[:1])
    once = score_pairs(mini, YesNo(yes=tuple(words[i] for i in kept), no=(" red",)), ["a dog"], IMAGES[:1])
    assert all_of_them == pytest.approx(once, abs=1e-4)


def test_other_words_still_add_up() -> None:
    def likelihood(word: str, p: float) -> LogLikelihood:
        return LogLikelihood((word,), np.array([math.log(p)], np.float32))

    rule = YesNo(yes=(" yes", " yeah"), no=(" no",))
    score = rule.score([likelihood(" yes", 0.2), likelihood(" yeah", 0.1), likelihood(" no", 0.1)])
    assert score == pytest.approx(math.log(3))


def test_words_of_both_sides_with_the_same_tokens_are_refused(mini: MiniGenerator) -> None:
    with pytest.raises(InvalidInputError, match=r"yes=\(' Yes',\) and no=\(' yes',\) share the tokens"):
        score_pairs(mini, YesNo(yes=(" Yes",), no=(" yes",)), ["a dog"], IMAGES[:1])


@pytest.mark.parametrize("options", [("cat", "Cat"), ("a dog", "cat", "A DOG"), ("cafe", "café")])
def test_options_with_the_same_tokens_are_refused(options: tuple[str, ...], mini: MiniGenerator) -> None:
    with pytest.raises(InvalidInputError, match="are the same tokens for this generator"):
        choose(mini, [(IMAGES[0], "A picture of a")], options)
    assert len(choose(mini, [(IMAGES[0], "A picture of a")], ("cat", "cat house"))) == 1


def test_dialog_counts_words_with_the_same_tokens_once(mini: MiniGenerator) -> None:
    world = World(2, mini)
    world.showing = lambda hits: nullcontext((mini, IMAGES[: len(hits)]))  # type: ignore[method-assign]
    hits = world.first_stage("a dog", 2)
    found = [
        Interview(world, wording=Wording(yes=yes)).log_verdicts("is there a dog?", hits)
        for yes in ((" yes",), (" yes", " Yes", " YES", " yes, there is"), (" a",), (" a", " the"))
    ]
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)
    assert np.abs(found[3] - found[2]).max() > 1e-3
