"""The toys keep their contracts, and their numbers are the ones their docstrings promise."""

import math

import numpy as np
import pytest
from PIL import Image as PILImage

from zsqretrieval.errors import IntegrityError
from zsqretrieval.testing import (
    GeneratorCase,
    ToyEncoder,
    ToyGenerator,
    ToyIndex,
    ToyStatesGenerator,
    generator_checks,
    parametrize_checks,
)
from zsqretrieval.testing.index_model import random_vectors
from zsqretrieval.types import Image

RED = Image(PILImage.new("RGB", (4, 4), (255, 0, 0)), "red")
BLUE = Image(PILImage.new("RGB", (4, 4), (0, 0, 255)), "blue")


@parametrize_checks(
    generator_checks, lambda: GeneratorCase(ToyStatesGenerator(), vocabulary=ToyGenerator.vocabulary)
)
def test_states_generator_contract(check):
    check()


# -- encoder


def test_encoder_finds_colours_by_name():
    images = ToyEncoder().encode_image([RED, BLUE])
    texts = ToyEncoder().encode_text(["a red bus", "the blue sea"])
    assert (texts @ images.T).argmax(axis=1).tolist() == [0, 1]


def test_encoder_image_vector_by_hand():
    row = np.array([0.5, -0.5, -0.5] * 4 + [0.1] * 4)
    assert ToyEncoder().encode_image([RED])[0] == pytest.approx(row / math.sqrt(12 * 0.25 + 4 * 0.01))


# -- index


def test_index_leaves_one_file_behind(tmp_path):
    index = ToyIndex(4)
    index.add(np.arange(3), random_vectors(3, 4))
    index.save(tmp_path)
    index.save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["index.npz"]
    (tmp_path / "index.npz").write_bytes(b"")
    with pytest.raises(IntegrityError, match="SHA-256"):
        ToyIndex.load(tmp_path)


# -- generator


def test_generator_first_token_by_hand():
    p = ToyGenerator().probabilities([])
    assert p["what"] == pytest.approx(4 / 18)  # the position's word: 1 + 3 of 15 + 3
    assert {p[word] for word in ToyGenerator.vocabulary[1:]} == {1 / 18}


def test_generator_after_an_image_and_a_text_by_hand():
    # red image: h_red = 4; "blue": h_red = 2, h_blue = 1; two segments read, so "the" is favoured
    total = 15 + 3 + 2 + 1
    p = ToyGenerator().probabilities([RED, "blue"])
    assert p["red"] == pytest.approx(3 / total)
    assert p["blue"] == pytest.approx(2 / total)
    assert p["the"] == pytest.approx(4 / total)
    assert p["yes"] == pytest.approx(1 / total)


def test_generator_question_by_hand():
    # "what" after nothing: 4 of 18; then h_what = 1 and "is" is favoured: 4 of 19
    (found,) = ToyGenerator().log_likelihood([[]], ["what is"])
    assert found.tokens == ("what", "is")
    assert found.sum == pytest.approx(math.log(4 / 18) + math.log(4 / 19))


def test_generator_writes_on_in_the_order_of_its_words_until_the_question_mark():
    assert ToyGenerator().generate([["What"]])[0] == [
        "is the colour of thing in picture red green blue yes no ?"
    ]


def test_generator_prefers_the_question_about_the_image():
    questions = ["is the thing red?", "is the thing blue?"]
    about_red = ToyGenerator().log_likelihood([[RED, "Question:"]] * 2, questions)
    about_blue = ToyGenerator().log_likelihood([[BLUE, "Question:"]] * 2, questions)
    assert about_red[0].sum > about_red[1].sum
    assert about_blue[0].sum < about_blue[1].sum
