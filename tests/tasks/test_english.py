"""Rules over the words of questions, answers and captions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsqretrieval.tasks.english import (
    Verdict,
    content_words,
    existence_questions,
    first_line,
    form,
    is_polar,
    is_settled,
    is_unknown,
    names,
    normalized,
    presupposed,
    question_in,
    stem,
    things,
    tidy,
    tidy_question,
    topic,
    verdict,
)


def test_tidy_ignores_case_spaces_and_punctuation() -> None:
    assert tidy("  Don\u2019t   know! ") == tidy("don't know.") == "don't know"
    assert tidy(" ?! ") == ""


def test_first_line_and_question_drop_the_rest_of_a_text() -> None:
    assert first_line("\n  a  red \tdog \nA cat") == "a red dog"
    assert first_line(" \n ") == ""
    assert question_in(" Is it  a dog? Yes.\nWhat?") == "Is it a dog?"
    assert question_in("A dog.\nWhat?") == question_in(" ?") == ""
    assert tidy_question("Is it  a Dog ? Yes.") == "is it a dog?"
    assert tidy_question("a dog") == tidy_question("...?") == ""


@given(st.text())
def test_normalized_is_idempotent_and_ignores_punctuation(text: str) -> None:
    form = normalized(text)
    assert normalized(form) == form == normalized(f" ({text}). ")
    assert form == " ".join(form.split())


@pytest.mark.parametrize(
    ("word", "root"),
    [("dogs", "dog"), ("puppies", "puppy"), ("benches", "bench"), ("dress", "dress"), ("women", "woman"),
     ("bus", "bus"), ("people", "person"), ("colour", "color"), ("gas", "gas")],
)  # fmt: skip
def test_stem_is_the_singular(word: str, root: str) -> None:
    assert stem(word) == root


def test_content_words_leave_out_function_words() -> None:
    assert content_words("What are the two dogs in this picture doing?") == {"two", "dog", "doing"}


@pytest.mark.parametrize(
    ("question", "polar"),
    [("Is there a dog?", True), ("are they outside", True), ("Does he smile?", True), ("What is it?", False),
     ("how many are there?", False), ("?", False)],
)  # fmt: skip
def test_yes_no_questions_begin_with_a_verb(question: str, polar: bool) -> None:
    assert is_polar(question) is polar


def test_topic_is_question_word_and_content_words() -> None:
    assert topic("Where is this?") == topic("where was this photo taken?")
    assert topic("Is there a dog?") == topic("are there any dogs?")
    assert topic("Is there a dog?") != topic("Is there a cat?")
    assert topic("How many dogs are there?") != topic("How is the dog?")
    assert topic("What is the man doing?") != topic("What is the dog doing?")


def test_form_is_question_word_and_attributes() -> None:
    assert form("What is the man doing?") == form("what are the dogs doing?")
    assert form("What is the man doing?") != form("What is the man wearing?")
    assert form("Is there a dog?") == form("Are there boats?") != form("Where is the dog?")


def test_open_questions_presuppose_their_things() -> None:
    assert presupposed("What color is the dog?") == {"dog"}
    assert presupposed("Is there a dog?") == presupposed("Where is this?") == frozenset()


def test_words_for_persons_count_as_person() -> None:
    assert names({"woman", "hat"}, "person") and names({"person"}, "person")
    assert not names({"dog"}, "person") and not names({"person"}, "woman")


@pytest.mark.parametrize(
    ("question", "text", "answers", "settled"),
    [
        ("Is there a dog?", "two dogs on a beach", (), True),
        ("Is there a dog on the beach?", "a dog", (), False),
        ("Is it?", "a dog", (), False),  # no content words
        ("What color is the dog?", "a brown dog", ("black", "brown"), True),
        ("What color is the dog?", "a brown house", ("black", "brown"), False),
        ("What color is the dog?", "a dog", ("black", "brown"), False),
        ("Where is this?", "somebody on the beach", ("in the water", "on the beach"), True),
        ("Where is this?", "somebody", ("in the water", "on the beach"), False),
        ("Where is this?", "somebody", ("", "it is there"), False),
    ],
)
def test_settled_when_the_text_has_the_words_of_question_and_answer(
    question: str, text: str, answers: tuple[str, ...], settled: bool
) -> None:
    assert is_settled(question, text, answers) is settled


@pytest.mark.parametrize("answer", ["Don't know", "I don\u2019t know.", "no idea!", "IDK", "not sure"])
def test_dont_know_is_unknown(answer: str) -> None:
    assert is_unknown(answer)


@pytest.mark.parametrize("answer", ["no", "I know", "I don't think so", "unknown soldier", ""])
def test_other_answers_are_known(answer: str) -> None:
    assert not is_unknown(answer)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Yes", Verdict("yes", "")),
        ("no.", Verdict("no", "")),
        ("yes, on a boat", Verdict("yes", ", on a boat")),
        ("Nope \u2013 nobody", Verdict("no", " \u2013 nobody")),
        ("nobody", None),
        ("yesterday", None),
        ("a yes", None),
        ("?", None),
    ],
)
def test_verdict_is_the_yes_or_no_at_the_beginning(answer: str, said: Verdict | None) -> None:
    assert verdict(answer) == said


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("a man in a blue shirt is riding a bike on a grassy hill", ["man", "shirt", "bike", "hill"]),
        ("two dogs are running through a field", ["dogs", "field"]),
        ("a group of people sitting at a table", ["people", "table"]),
        ("a dog runs through the water", ["dog", "water"]),
        ("children play in front of a building", ["play", "building"]),  # the rule has no dictionary
        ("", []),
    ],
)
def test_things_of_a_caption_follow_articles_and_prepositions(caption: str, named: list[str]) -> None:
    assert list(things(caption).values()) == named


def test_existence_questions_tell_captions_apart() -> None:
    captions = ["a dog in the water", "two dogs on a bench", "an apple and a dog in the snow"]
    assert existence_questions(captions) == {
        "is there water?": {0},
        "is there a bench?": {1},
        "is there an apple?": {2},
        "is there snow?": {2},
    }
    assert existence_questions([]) == {}
    assert existence_questions(["children in a boat", "a boat"]) == {"are there children?": {0}}
