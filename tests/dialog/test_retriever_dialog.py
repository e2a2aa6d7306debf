"""Dialogs about an album: its gallery, added and removed images, and the mini models."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from zsqretrieval import Field, Retriever
from zsqretrieval.data.images import decode
from zsqretrieval.dialog.dialog import Dialog
from zsqretrieval.dialog.oracle import Gallery
from zsqretrieval.dialog.policies import CaptionDialog, InformationGain, RandomQuestion
from zsqretrieval.errors import ImageError, InvalidInputError, MismatchError
from zsqretrieval.testing import ToyEncoder, ToyIndex
from zsqretrieval.types import Context, Image, LogLikelihood

QUESTION = "what is the colour of the thing?"
COLOURS = ("red", "green", "blue")


class Asker:
    """A generator that asks for the colour and gives the right one a probability of 0.9."""

    fingerprint = "asker"

    def log_likelihood(
        self, contexts: Sequence[Context], continuations: Sequence[str], **_: Any
    ) -> list[LogLikelihood]:
        found = []
        for (image, *_), text in zip(contexts, continuations, strict=True):
            p = 0.9 if text.strip() == self._colour(image) else 0.05
            found.append(LogLikelihood((text,), np.log(np.array([p], np.float32))))
        return found

    def _colour(self, image: object) -> str:
        assert isinstance(image, Image)
        return COLOURS[int(np.asarray(decode(image)).mean((0, 1)).argmax())]

    def generate(self, contexts: Sequence[Context], *, n: int = 1, **settings: object) -> list[list[str]]:
        said = {"A question about this picture:": QUESTION, "An image of": "a thing"}
        return [[said.get(str(prompt)) or self._colour(image)] * n for image, prompt in contexts]


def patches(folder: Path, *colours: str) -> Path:
    """Files named by COLOURS, in other colours."""
    folder.mkdir()
    for name, colour in zip(COLOURS, colours, strict=False):
        PILImage.new("RGB", (8, 8), colour).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def album(tmp_path: Path) -> Path:
    return patches(tmp_path / "photos", *COLOURS)


@pytest.fixture
def retriever(album: Path, tmp_path: Path) -> Retriever:
    made = Retriever(ToyEncoder(), ToyIndex(16), Asker(), path=tmp_path / "album")
    made.add(album)
    return made


def test_gallery_has_the_images_of_the_album_without_removed_ones(retriever: Retriever) -> None:
    gallery = retriever.gallery()
    assert isinstance(gallery, Gallery)
    hits = gallery.first_stage("something red", 3)
    assert hits[0].id == "red.png"
    cosine = gallery.similarities(["something red", "something blue"], hits)
    assert cosine[0].tolist() == pytest.approx([hit.score for hit in hits], abs=1e-6)
    assert int(cosine[1].argmax()) == [hit.id for hit in hits].index("blue.png")
    assert gallery.encoded_alike(["red", "red"]) and not gallery.encoded_alike(["red", "green"])
    assert gallery.stored_questions(hits) == [(), (), ()]
    with gallery.showing(hits) as (generator, shown):
        assert isinstance(generator, Asker)
        assert [one.source for one in shown] == [hit.source for hit in hits]
    retriever.remove("red.png")
    assert gallery.present(hits).tolist() == [False, True, True]
    assert np.isnan(gallery.similarities(["x"], hits)).tolist() == [[True, False, False]]
    with gallery.showing(hits) as (_, shown):
        assert isinstance(shown[0], ImageError) and "was removed" in str(shown[0])
        assert not isinstance(shown[1], ImageError)


def test_answer_puts_the_target_image_first(retriever: Retriever) -> None:
    dialog = retriever.dialog("a thing", sure=1.0)
    assert dialog.question == QUESTION
    assert dialog.proposal is not None and (dialog.proposal.expected_gain or 0) > 0
    assert set(dialog.proposal.answers) == set(COLOURS)
    dialog.answer("blue")
    assert dialog.ranking[0].id == "blue.png"
    assert dialog.question is None and dialog.stopped == "nothing to ask"


def test_statement_finds_an_image_that_was_no_candidate(retriever: Retriever) -> None:
    dialog = retriever.dialog("something red", candidates=1, sure=1.0)
    assert set(dialog.probabilities) == {"red.png"}
    dialog.tell("or rather blue, blue, blue")
    assert dialog.ranking[0].id == "blue.png"
    assert dialog.ranking[0].scores["first_stage"] == pytest.approx(
        next(hit.score for hit in retriever.search("something red", 3, rerank=None) if hit.id == "blue.png"),
        abs=1e-6,
    )
    dialog.undo()
    assert set(dialog.probabilities) == {"red.png"}


@pytest.mark.parametrize("top_k", [None, 1])
def test_retained_questions_are_used_and_captions_are_not(retriever: Retriever, top_k: int | None) -> None:
    retriever.questions.generate(1, top_k=top_k)
    judged = {one.id: one.judgement.kept for one in retriever.questions.list()}
    assert set(judged.values()) == ({True} if top_k is None else {True, False})
    retriever.questions.generate(1, style="captions", top_k=None)
    assert {one.text for one in retriever.questions.list()} == {QUESTION, "a thing"}
    hits = retriever.gallery().first_stage("a thing", 3)
    assert retriever.gallery().stored_questions(hits) == [(QUESTION,) * judged[hit.id] for hit in hits]


@pytest.mark.parametrize("policy", [InformationGain(), RandomQuestion(), CaptionDialog()])
def test_unpickled_dialog_continues_in_the_reopened_album(
    retriever: Retriever, tmp_path: Path, policy: InformationGain
) -> None:
    dialog = retriever.dialog("a thing", policy=policy, sure=1.0)
    kept = pickle.dumps(dialog)
    dialog.answer("blue")
    expected = dialog.ranking
    retriever.close()
    assert pickle.loads(pickle.dumps(dialog)).ranking == expected  # after close, too
    again: Dialog = pickle.loads(kept)
    with Retriever.open(tmp_path / "album", encoder=ToyEncoder(), index=ToyIndex(16), generator=Asker()) as r:
        again.attach(r.gallery())
        again.answer("blue")
        assert again.ranking == expected


def test_unpickled_dialog_with_a_filter_gets_it_back(retriever: Retriever, tmp_path: Path) -> None:
    retriever.update("blue.png", {"day": 2})
    retriever.update("red.png", {"day": 1})
    early = Field("day") < 2
    again = pickle.loads(pickle.dumps(retriever.dialog("a thing", where=early, sure=1.0)))
    again.attach(retriever.gallery(where=early))
    again.tell("blue, blue, blue")
    assert set(again.probabilities) == {"red.png"}


def test_changed_file_is_another_image(retriever: Retriever, album: Path) -> None:
    dialog = retriever.dialog("a thing", sure=1.0)
    PILImage.new("RGB", (8, 8), "white").save(album / "red.png")
    retriever.add(album)
    assert set(dialog.probabilities) == {"green.png", "blue.png"}
    assert sum(dialog.probabilities.values()) == pytest.approx(1)
    dialog.answer("green")
    assert dialog.ranking[0].id == "green.png"


def test_image_with_a_missing_file_keeps_its_probability(retriever: Retriever, album: Path) -> None:
    dialog = retriever.dialog("a thing", sure=1.0)
    before = dialog.probabilities["red.png"]
    (album / "red.png").unlink()
    with pytest.warns(RuntimeWarning, match=r"1 of the candidates cannot be shown.*red\.png"):
        dialog.answer("green")
    assert dialog.probabilities["red.png"] == pytest.approx(before)
    assert dialog.ranking[0].id == "green.png"


def test_album_of_other_images_with_the_same_names_cannot_be_attached(
    retriever: Retriever, tmp_path: Path
) -> None:
    strange = Retriever(ToyEncoder(), ToyIndex(16), Asker())
    strange.add(patches(tmp_path / "others", "white", "grey", "black"))
    hits = retriever.gallery().first_stage("a thing", 3)
    assert {(hit.id, hit.key) for hit in hits} == {(one.id, one.key) for one in strange.records()}
    assert not strange.gallery().present(hits).any()
    with strange.gallery().showing(hits) as (_, shown):
        assert all(isinstance(one, ImageError) for one in shown)
    dialog = pickle.loads(pickle.dumps(retriever.dialog("a thing")))
    with pytest.raises(MismatchError, match="none of the 3 candidates"):
        dialog.attach(strange.gallery())


def test_album_without_generator_or_images_has_no_dialog(album: Path) -> None:
    deaf = Retriever(ToyEncoder(), ToyIndex(16))
    deaf.add(album)
    with pytest.raises(InvalidInputError, match="a dialog needs a generator"):
        deaf.dialog("a thing")
    with pytest.raises(InvalidInputError, match="the album is empty"):
        Retriever(ToyEncoder(), ToyIndex(16), Asker()).dialog("a thing")


def test_mini_models_ask_and_score_answers(tmp_path: Path) -> None:
    from zsqretrieval.data.samples import photographs
    from zsqretrieval.presets import PRESETS

    wanted = {"astronaut", "cat", "coffee", "photographer", "rocket", "sports_car"}
    preset = replace(PRESETS["mini"], index="exact")
    with Retriever.from_preset(preset) as retriever:
        retriever.add([one for one in photographs() if one.id in wanted])
        dialog = retriever.dialog("something", sure=1.0, policy=InformationGain(images=3, top=6, pool=4))
        before, question = dialog.entropy, dialog.question
        assert question is not None and question.endswith("?")
        assert dialog.proposal is not None
        assert 0 < (dialog.proposal.expected_gain or 0) <= before
        dialog.answer(dialog.proposal.answers[0])
        assert dialog.entropy != before and dialog.history[0].question == question
        assert dialog.question not in (None, question)
        state = dialog.ranking
        with pytest.raises(InvalidInputError, match="512"):
            dialog.answer("a very long answer " * 400)
        assert dialog.ranking == state
        dialog.undo()
        assert dialog.entropy == before and dialog.question == question

        told = retriever.dialog("something", sure=1.0)
        unmoved = told.probabilities
        told.tell("a cat with green eyes")
        assert told.probabilities.keys() == unmoved.keys() and told.probabilities != unmoved
        assert sum(told.probabilities.values()) == pytest.approx(1)

        encoded = retriever.dialog("something", sure=1.0, policy=CaptionDialog(images=2))
        encoded.answer("a cat with green eyes")
        assert encoded.ranking[0].id == "cat"
