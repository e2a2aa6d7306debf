from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.prompts import PROMPTS, Example, Prompt, few_shot
from zsqretrieval.types import Image, ImageState

PICTURE = Image(b"", "picture")
OTHER = ImageState(np.zeros(3, np.float32), "fingerprint", "other")
TEXTS = st.text(st.sampled_from("ab {}<>") | st.sampled_from("éß\n\"'%$\\"), max_size=12) | st.sampled_from(
    ["<image>", "{question}", "{{", "{0}", "<image>{a}"]
)


def test_context_replaces_the_placeholders() -> None:
    assert PROMPTS["question"].context(PICTURE) == [PICTURE, "Question:"]
    assert PROMPTS["vqa"].context(OTHER, question="What is it?") == [
        OTHER,
        "Question: What is it? Answer:",
    ]
    assert Prompt("{{{a}}} and {a}").context(a="x") == ["{x} and x"]
    assert Prompt("a <image><image> b").context(PICTURE, OTHER) == ["a ", PICTURE, OTHER, " b"]
    assert Prompt("").context() == [] and Prompt("{a}<image>").context(PICTURE, a="") == [PICTURE]


def test_wording_is_that_of_kosmos_1() -> None:
    filled = {
        name: prompt.context(*[PICTURE] * prompt.images, **{field: field.upper() for field in prompt.fields})
        for name, prompt in PROMPTS.items()
    }
    assert filled == {
        "captioning": [PICTURE, "An image of"],
        "question": [PICTURE, "Question:"],
        "ask": [PICTURE, "A question about this picture:"],
        "vqa": [PICTURE, "Question: QUESTION Answer:"],
        "yes_no": [PICTURE, 'Does this picture show "QUESTION"? Answer:'],
        "classification": [PICTURE, "The photo of the"],
        "recognition": [
            "DESCRIPTIONS\n",
            PICTURE,
            "Question:what is the name of CATEGORY in the picture? Answer:",
        ],
        "chain_of_thought": [PICTURE, "Introduce this picture in detail:"],
        "chain_of_thought_answer": [PICTURE, "RATIONALE Question: QUESTION Answer:"],
        **{
            f"raven_{n}": [
                f"Here are {word} images:",
                *[PICTURE] * n,
                "The following image is:",
                PICTURE,
                "Is it correct?",
            ]
            for n, word in ((3, "three"), (4, "four"), (8, "eight"))
        },
    }
    with pytest.raises(TypeError):
        PROMPTS["question"] = Prompt("")  # type: ignore[index]


@given(TEXTS, TEXTS)
def test_texts_are_inserted_literally(question: str, answer: str) -> None:
    prompt = Prompt("<image>Q{{ {question} }}A: {answer}.")
    image, text = prompt.context(PICTURE, question=question, answer=answer)
    assert image is PICTURE and text == f"Q{{ {question} }}A: {answer}."


@given(
    st.lists(TEXTS, max_size=4), st.lists(st.sampled_from(["<image>", "{a}", "{b}", "{{", "}}"]), max_size=8)
)
def test_valid_template_keeps_all_parts_in_order(texts: list[str], marks: list[str]) -> None:
    plain = [text.replace("<image>", "").replace("{", "").replace("}", "") for text in texts]
    parts = [part for pair in zip([*plain, *[""] * 8], [*marks, *[""] * 8]) for part in pair]  # noqa: B905
    prompt = Prompt("".join(parts))
    images = [Image(b"", str(n)) for n in range(marks.count("<image>"))]
    fields = {name: f"<{name}>" for name in "ab" if f"{{{name}}}" in marks}
    context = prompt.context(*images, **fields)
    assert [one for one in context if not isinstance(one, str)] == images
    values = {"{a}": "<a>", "{b}": "<b>", "{{": "{", "}}": "}", "<image>": "\0"}
    assert "".join(one if isinstance(one, str) else "\0" for one in context) == "".join(
        values.get(part, part) for part in parts
    )
    assert "" not in context
    assert not any(isinstance(a, str) and isinstance(b, str) for a, b in pairwise(context))


@pytest.mark.parametrize("template", ["{", "a } b", "{0}", "{a.b}", "{a!r}", "{a b}", "{}", "{{{", "{a"])
def test_stray_brace_is_refused_with_its_position(template: str) -> None:
    with pytest.raises(InvalidInputError, match=r"at \d+ that is not part of a \{name\}; double it"):
        Prompt(template)


@pytest.mark.parametrize(
    ("images", "fields", "message"),
    [
        (0, {"question": "x"}, "takes 1 images, not 0"),
        (2, {"question": "x"}, "takes 1 images, not 2"),
        (1, {}, "needs the field question"),
        (1, {"question": "x", "answer": "y"}, "has no field answer"),
        (1, {"query": "x"}, "needs the field question and has no field query"),
        (1, {"question": None}, "question must be a string, not NoneType"),
    ],
)
def test_wrong_images_or_fields_are_refused_by_name(
    images: int, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        PROMPTS["vqa"].context(*[PICTURE] * images, **fields)


def test_few_shot_puts_solved_examples_first() -> None:
    vqa = PROMPTS["vqa"]
    shots = [Example(vqa.context(OTHER, question="Who?"), " A cat.")]
    assert few_shot(shots, vqa.context(PICTURE, question="What?")) == [
        OTHER,
        "Question: Who? Answer: A cat.\n",
        PICTURE,
        "Question: What? Answer:",
    ]
    text = Example(["one", "two"], " three")
    assert few_shot([text, text], ["four"]) == ["onetwo three\nonetwo three\nfour"]
    assert few_shot([], ["four", PICTURE]) == ["four", PICTURE]


def test_equal_templates_are_equal_prompts() -> None:
    assert Prompt("{a}<image>") == Prompt("{a}<image>") != Prompt("<image>{a}")
    assert len({Prompt("{a}"), Prompt("{a}")}) == 1 and repr(Prompt("{a}")) == "Prompt(template='{a}')"
    assert (PROMPTS["vqa"].images, PROMPTS["vqa"].fields) == (1, ("question",))


def test_path_in_place_of_an_image_is_refused() -> None:
    """It would become part of the text, and the question would be scored without an image."""
    with pytest.raises(
        InvalidInputError, match=r"takes Image records and image states, not 'dog\.jpg'; .*as_image"
    ):
        Prompt("<image>Question:").context("dog.jpg")  # type: ignore[arg-type]
