"""Questions in the catalog: stored once, removed with their image, with a change log like images."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from zsqretrieval.album.catalog import Catalog
from zsqretrieval.album.changes import Position
from zsqretrieval.album.questions import Judgement, NewQuestion, QuestionTable, Recipe, StyleFacts
from zsqretrieval.album.sqlite import checksum
from zsqretrieval.data.loader import NewImage
from zsqretrieval.errors import IntegrityError, InvalidInputError

DIM = 4
RECIPE = Recipe("questions", ("<image>Ask:",), None, "generator-1", "encoder-1", 2, 1.0, 0, 16)
KEPT = Judgement(rank=1, top_k=5, gallery=3, kept=True)
DROPPED = Judgement(rank=None, top_k=5, gallery=3, kept=False)


def vector(number: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal(DIM).astype(np.float32)


def image(number: int) -> NewImage:
    return NewImage(f"{number}.jpg", f"/{number}.jpg", 100, f"{number:064x}", vector=vector(number))


def question(text: str, judgement: Judgement = KEPT, **changes: object) -> NewQuestion:
    made = NewQuestion(
        text, text.lower(), None, "<image>Ask:", -2.5, 3, judgement, vector(sum(map(ord, text)))
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    with Catalog.create(None, dim=DIM) as made:
        made.add([image(1), image(2), image(3)])
        yield made


@pytest.fixture
def table(catalog: Catalog) -> QuestionTable:
    return catalog.questions


def texts(table: QuestionTable, *images: int) -> list[str]:
    return [one.text for one in table.of(images or [1, 2, 3])]


def test_written_questions_can_be_read(catalog: Catalog, table: QuestionTable) -> None:
    asked = {
        1: [question("A?", log_likelihood=-3.0), question("B?", DROPPED, answer="b", log_likelihood=-1.5)],
        3: [],
    }
    assert table.write(RECIPE, asked) == (2, 1)
    assert table.asked(RECIPE, [1, 2, 3]) == {1, 3} and len(table) == 1
    first, second = table.of([3, 1])
    assert (first.text, first.answer, first.log_likelihood, first.tokens) == ("B?", "b", -1.5, 3)
    assert first.judgement == DROPPED and second.judgement == KEPT
    assert first.recipe == RECIPE and first.prompt == "<image>Ask:"
    assert (first.image, first.id) == (1, "1.jpg")
    assert list(table.batches(1)) == [[second], [first]]
    kept = table.kept([1, 2, 3])
    assert kept.texts == ("A?",) and kept.images.tolist() == [1]
    assert np.array_equal(kept.vectors, [question("A?").vector])
    assert table.styles() == [StyleFacts("questions", 2, 2, 1, 1)]
    catalog.verify()


def test_recipe_is_stored_once_per_image_and_question_once_per_form(table: QuestionTable) -> None:
    assert table.write(RECIPE, {1: [question("A?")]}) == (1, 1)
    assert table.write(RECIPE, {1: [question("B?")]}) == (0, 0)
    other = replace(RECIPE, seed=1, answer_prompt="<image>{question}")
    assert table.asked(other, [1]) == set()
    again = [question("a?", answer="yes"), question("C?"), question("c?")]
    assert table.write(other, {1: again}) == (1, 1)
    assert {one.text: one.answer for one in table.of([1])} == {"A?": "yes", "C?": None}
    assert table.styles() == [StyleFacts("questions", 1, 2, 2, 1)]


def test_questions_and_vectors_are_removed_with_their_image(catalog: Catalog, table: QuestionTable) -> None:
    table.write(RECIPE, {1: [question("A?"), question("B?")], 2: [question("A?")]})
    position = table.log.position
    catalog.remove([1])
    assert texts(table) == ["A?"] and table.asked(RECIPE, [1, 2]) == {2} and len(table) == 1
    (change,) = table.log.changes(position)
    assert len(change.removed_keys) == 2 and not len(change.added_keys)
    assert table.owners([*change.removed_keys, 3]) == {3: 2}
    assert catalog.log.position == Position(3, 1)
    assert table.write(RECIPE, {1: [question("A?")]}) == (0, 0), "the image is gone"
    catalog.verify()


def test_new_judgements_add_and_remove_vectors(table: QuestionTable) -> None:
    table.write(RECIPE, {1: [question("A?"), question("B?", DROPPED)]})
    by_text = {one.text: one.key for one in table.of([1])}
    position = table.log.position
    new = replace(KEPT, rank=4, gallery=9)
    judged = {by_text["A?"]: DROPPED, by_text["B?"]: new, 99: KEPT}
    table.judge(judged, {by_text["B?"]: vector(7), 99: vector(8)})
    assert {one.text: one.judgement for one in table.of([1])} == {"A?": DROPPED, "B?": new}
    (change,) = table.log.changes(position)
    assert len(change.removed_keys) == 1 and np.array_equal(change.added_vectors, [vector(7)])
    position = table.log.position
    table.judge({by_text["B?"]: KEPT}, {by_text["B?"]: vector(7)})
    assert table.log.position == position, "what stays kept keeps its vector"


def test_removed_style_can_be_written_again(table: QuestionTable) -> None:
    captions = replace(RECIPE, style="captions")
    table.write(RECIPE, {1: [question("A?")], 2: []})
    table.write(captions, {1: [question("a dog")]})
    assert table.remove("questions") == 1
    assert texts(table) == ["a dog"] and table.asked(RECIPE, [1, 2]) == set()
    assert table.styles() == [StyleFacts("captions", 1, 1, 1, 0)], "what is there is told"
    assert table.remove("none such") == 0 and table.remove() == 1
    assert table.styles() == [] and len(table) == 0


def test_question_shared_with_a_removed_style_can_be_written_again(table: QuestionTable) -> None:
    search = replace(RECIPE, style="search")
    table.write(RECIPE, {1: [question("A?")], 2: [question("B?")], 3: []})
    table.write(search, {1: [question("A?")], 2: [question("C?")], 3: [question("D?")]})
    table.remove("questions")
    assert texts(table) == ["C?", "D?"]
    assert table.asked(search, [1, 2, 3]) == {3}, "nothing of the third was forgotten"
    assert table.write(search, {1: [question("A?")], 2: [question("C?")]}) == (1, 1)
    assert texts(table) == ["A?", "C?", "D?"]


def test_style_without_images_is_not_listed(catalog: Catalog, table: QuestionTable) -> None:
    table.write(RECIPE, {1: [question("A?")]})
    table.write(replace(RECIPE, style="captions"), {2: [question("a dog")], 3: []})
    catalog.remove([1])
    assert table.styles() == [StyleFacts("captions", 2, 1, 1, 0)]


@pytest.mark.parametrize(
    "damaged",
    ['{"style": "x"}', "[]", "3", '{"prompts": 3}', json.dumps({**asdict(RECIPE), "style": 3})],
)
@pytest.mark.parametrize("style", ["questions", "captions"])
def test_damaged_recipe_is_named(tmp_path: Path, damaged: str, style: str) -> None:
    path = tmp_path / "catalog.sqlite"
    with Catalog.create(path, dim=DIM) as catalog:
        catalog.add([image(1), image(2)])
        catalog.questions.write(RECIPE, {1: [question("A?")]})
        catalog.questions.write(replace(RECIPE, style="captions"), {2: []})
        with sqlite3.connect(path) as other:
            [(row,)] = other.execute("SELECT id FROM recipes WHERE recipe LIKE ?", (f"%{style}%",))
            columns = (damaged, checksum((row, damaged)), row)
            other.execute("UPDATE recipes SET recipe = ?, crc32 = ? WHERE id = ?", columns)
        other.close()
        with pytest.raises(IntegrityError, match="the recipe of a question is damaged"):
            catalog.verify()


def test_bad_vector_changes_nothing(table: QuestionTable) -> None:
    with pytest.raises(InvalidInputError, match=r"'B\?': the vector is zero or not finite"):
        table.write(RECIPE, {1: [question("A?"), question("B?", vector=np.zeros(DIM, np.float32))]})
    assert texts(table) == [] and table.asked(RECIPE, [1]) == set()


def test_damaged_vector_is_named(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    with Catalog.create(path, dim=DIM) as catalog:
        catalog.add([image(1)])
        catalog.questions.write(RECIPE, {1: [question("A?")]})
    content = bytearray(path.read_bytes())
    content[content.index(question("A?").vector.tobytes())] ^= 1
    path.write_bytes(content)
    with Catalog.open(path) as catalog:
        for read in (catalog.verify, lambda: catalog.questions.kept([1])):
            with pytest.raises(IntegrityError, match="the vector of question 1 is damaged"):
                read()


class Asked(RuleBasedStateMachine):
    """A replay of the question log always holds exactly the vectors of the retained questions."""

    def __init__(self) -> None:
        super().__init__()
        self.catalog = Catalog.create(None, dim=DIM)
        self.images: list[int] = []
        self.number = 0
        self.held: dict[int, np.ndarray] = {}
        self.position = Position()

    def teardown(self) -> None:
        self.catalog.close()

    @rule()
    def add(self) -> None:
        self.number += 1
        self.images += self.catalog.add([image(self.number)]).tolist()

    @precondition(lambda self: self.images)
    @rule(data=st.data(), kept=st.lists(st.booleans(), max_size=3), seed=st.integers(0, 2))
    def ask(self, data: st.DataObject, kept: list[bool], seed: int) -> None:
        asked = [question(f"{seed} {n}?", KEPT if one else DROPPED) for n, one in enumerate(kept)]
        recipe = replace(RECIPE, seed=seed, style=f"style {seed}")
        self.catalog.questions.write(recipe, {data.draw(st.sampled_from(self.images)): asked})

    @precondition(lambda self: self.images)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.images))
        self.images.remove(gone)
        self.catalog.remove([gone])

    @rule(data=st.data())
    def judge(self, data: st.DataObject) -> None:
        keys = [one.key for batch in self.catalog.questions.batches() for one in batch]
        judged = {key: data.draw(st.sampled_from([KEPT, DROPPED])) for key in keys}
        self.catalog.questions.judge(judged, {key: vector(key) for key in keys})

    @rule(seed=st.integers(0, 2))
    def forget(self, seed: int) -> None:
        self.catalog.questions.remove(f"style {seed}")

    @rule(batch_size=st.integers(1, 3))
    def follow(self, batch_size: int) -> None:
        for change in self.catalog.questions.log.changes(self.position, batch_size=batch_size):
            for key in change.removed_keys:
                del self.held[int(key)]
            for key, values in zip(change.added_keys, change.added_vectors, strict=True):
                assert int(key) not in self.held
                self.held[int(key)] = values
            self.position = change.position
        kept = self.catalog.questions.kept(self.images)
        assert len(self.held) == len(kept.texts) == len(self.catalog.questions)
        assert set(self.catalog.questions.owners(list(self.held))) == set(self.held)
        assert sorted(map(bytes, self.held.values())) == sorted(map(bytes, kept.vectors))

    @invariant()
    def kept_is_what_has_a_vector(self) -> None:
        stored = self.catalog.questions.of(self.images)
        assert sum(one.judgement.kept for one in stored) == len(self.catalog.questions)


@pytest.mark.parametrize("examples", [10, pytest.param(25, marks=pytest.mark.slow)])
def test_replayed_question_log_holds_the_retained_questions(examples: int) -> None:
    run_state_machine_as_test(
        Asked, settings=settings(max_examples=examples, stateful_step_count=20, deadline=None)
    )
