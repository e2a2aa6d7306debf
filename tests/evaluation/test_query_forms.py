from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusing import refused
from zsqretrieval.evaluation.datasets import Dataset, Query
from zsqretrieval.evaluation.query_forms import QUESTION_RULES, as_question, question_form, with_questions
from zsqretrieval.types import Image

# caption -> which, is there, what, how many
EXAMPLES: dict[str, tuple[str | None, ...]] = {
    "Two dogs run through the grass .": (
        "Which picture shows two dogs running through the grass?",
        "Are there two dogs running through the grass?",
        "What is running through the grass?",
        "How many dogs are running through the grass?",
    ),
    "A man in a hat is looking at stars .": (
        "Which picture shows a man in a hat looking at stars?",
        "Is there a man in a hat looking at stars?",
        "Who is looking at stars?",
        None,
    ),
    "A person in blue jeans holds a fish and smiles .": (  # "jeans" and "smiles" could be either
        "Which picture shows a person in blue jeans holding a fish and smiling?",
        "Is there a person in blue jeans holding a fish and smiling?",
        "Who is holding a fish and smiling?",
        None,
    ),
    "The boy sits in a tree": (  # no question of the form "is there the boy"
        "Which picture shows the boy sitting in a tree?",
        None,
        "Who is sitting in a tree?",
        None,
    ),
    "Dog lying on the sofa.": (
        "Which picture shows a dog lying on the sofa?",
        "Is there a dog lying on the sofa?",
        "What is lying on the sofa?",
        None,
    ),
    "There is a bus next to the red house": (
        "Which picture shows a bus next to the red house?",
        "Is there a bus next to the red house?",
        None,
        None,
    ),
    "Three red kites": (
        "Which picture shows three red kites?",
        "Are there three red kites?",
        None,
        None,
    ),
    "Two boys and a girl are on a swing": (  # whom to count?
        "Which picture shows two boys and a girl on a swing?",
        "Are there two boys and a girl on a swing?",
        "Who is on a swing?",
        None,
    ),
    "3 women in a boat": (
        "Which picture shows 3 women in a boat?",
        "Are there 3 women in a boat?",
        "Who is in a boat?",
        "How many women are in a boat?",
    ),
    "A skier has reached the summit": (
        "Which picture shows a skier has reached the summit?",  # beyond the rules: bad English
        None,
        None,
        None,
    ),
}


@pytest.mark.parametrize("caption", EXAMPLES)
def test_rules_give_the_expected_questions(caption: str) -> None:
    assert tuple(as_question(caption, rule) for rule in QUESTION_RULES) == EXAMPLES[caption]


VERBS = "rides lies sits carries watches looks does begins opens throws plays"
GERUNDS = "riding lying sitting carrying watching looking doing beginning opening throwing playing"


@pytest.mark.parametrize(("verb", "gerund"), list(zip(VERBS.split(), GERUNDS.split(), strict=True)))
def test_verbs_become_gerunds(verb: str, gerund: str) -> None:
    assert as_question(f"A man {verb} a door", "is there") == f"Is there a man {gerund} a door?"


SOME = """a the two man dogs people runs running is are in on red wearing and has who there , . shirt rides
group of 3 PARIS ing s building while standing"""
WORDS = st.sampled_from(SOME.split())
BEGINNINGS = ("Which picture shows ", "Is there ", "Are there ", "Who is ", "What is ", "How many ")


@given(st.lists(WORDS, max_size=12).map(" ".join) | st.text(max_size=30))
def test_any_caption_gives_one_question_or_none(caption: str) -> None:
    for rule in QUESTION_RULES:
        question = as_question(caption, rule)
        assert question == as_question(caption, rule)
        if question is None:
            continue
        assert question.endswith("?") and "  " not in question and question == question.strip()
        assert question.startswith(BEGINNINGS)


def test_questions_are_added_with_the_answers_of_their_captions() -> None:
    queries = (
        Query("x#0", "Two dogs run in snow", "caption", "file:1"),
        Query("x#1", "A skier has fallen", "caption", "file:2"),
        Query("x#2", "who fell?", "human question", "file:3"),
    )
    data = Dataset("toy", (Image(b"", "x", "x"),), queries, {query.id: {"x": 1} for query in queries})
    more = with_questions(data, ["which", "how many"])
    assert more.queries[:3] == queries
    assert more.queries[3:] == (
        Query("x#0?which", "Which picture shows two dogs running in snow?", "question/which", "file:1"),
        Query("x#1?which", "Which picture shows a skier has fallen?", "question/which", "file:2"),
        Query("x#0?how-many", "How many dogs are running in snow?", question_form("how many"), "file:1"),
    )
    assert more.qrels == {query.id: {"x": 1} for query in more.queries}
    assert more.notes == (
        "the rule 'which' applies to 2 of 2 captions",
        "the rule 'how many' applies to 1 of 2 captions",
    )
    assert more.of_form("caption").image_to_text().items == ("x#0", "x#1")


def test_unknown_rules_are_refused() -> None:
    refused("no rule 'why'; choose from which, is there", as_question, "a dog", "why")
