"""Answers of a generator are checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from zsqretrieval.errors import InvalidInputError, ZsqError
from zsqretrieval.generators.checked import read_texts, write_texts
from zsqretrieval.testing import ToyGenerator
from zsqretrieval.types import Image, LogLikelihood

TOY = ToyGenerator()
RED, BLUE = (Image(PILImage.new("RGB", (4, 4), name), source=f"{name}.png") for name in ("red", "blue"))
CONTEXTS = [[RED, "What is it?"], ["Like this:", BLUE, RED]]


def test_valid_answers_are_returned_unchanged() -> None:
    assert write_texts(TOY, CONTEXTS, n=2, temperature=1.0, seed=3) == TOY.generate(
        CONTEXTS, n=2, max_new_tokens=24, temperature=1.0, seed=3
    )
    texts = [" a cat", " a dog"]
    read, plain = read_texts(TOY, CONTEXTS, texts), TOY.log_likelihood(CONTEXTS, texts)
    assert [one.sum for one in read] == [one.sum for one in plain]
    assert write_texts(TOY, []) == read_texts(TOY, [], []) == []


def test_generator_without_text_generation_is_refused() -> None:
    class Mute:
        fingerprint = "mute"
        log_likelihood = TOY.log_likelihood

    class Refusing(ToyGenerator):
        def generate(self, contexts: Any, **settings: Any) -> Any:
            raise NotImplementedError

    for generator in (Mute(), Refusing()):
        with pytest.raises(
            InvalidInputError, match=f"{type(generator).__name__} scores texts but writes none"
        ):
            write_texts(generator, CONTEXTS)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="writes none"):
        write_texts(Mute(), [])  # type: ignore[arg-type]


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_log_probability_that_is_not_finite_is_refused_with_its_images(broken: float) -> None:
    class Broken(ToyGenerator):
        def log_likelihood(self, contexts: Any, continuations: Any, **settings: Any) -> Any:
            found = super().log_likelihood(contexts, continuations)
            return [*found[:-1], LogLikelihood(("x",), np.array([broken], np.float32))]

    told = rf"Broken gave {broken} as the log-probability of ' a dog' given blue\.png, red\.png: .*check_gen"
    with pytest.raises(ZsqError, match=told):
        read_texts(Broken(), CONTEXTS, [" a cat", " a dog"])
