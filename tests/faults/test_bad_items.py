"""One image or text that a model cannot take does not end a search, an add, questions or a dialog."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

import tiny_vlms
from picky import Picky, PickyEncoder, PickyStates, ratio, strip
from refusing import refused
from zsqretrieval import Retriever
from zsqretrieval.album.features import _write, read_facts
from zsqretrieval.errors import ImageError, InvalidInputError, MismatchError, PartError
from zsqretrieval.generators.checked import read_texts, write_each
from zsqretrieval.generators.vlm.model import VLMGenerator
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.protocols import Generator
from zsqretrieval.search.scoring import Likelihood, score_pairs
from zsqretrieval.tasks.questions import generate_questions
from zsqretrieval.testing.pictures import as_image, paintings
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator, ToyStatesGenerator
from zsqretrieval.types import Image

REASON = "cannot take it: absolute aspect ratio must be smaller than 200"


def album(folder: Path, generator: Any, encoder: Any = None, states: Any = None) -> Retriever:
    """Five pictures of a folder, one of which is a strip."""
    encoder = encoder or ToyEncoder()
    for n, colour in enumerate(("red", "green", "blue", "yellow")):
        PILImage.new("RGB", (8, 8 + n), colour).save(folder / f"{colour}.png")
    strip().save(folder / "strip.png")
    found = Retriever(encoder, ExactIndex(encoder.dim), generator, states=states)
    found.add(folder)
    return found


def bad_bytes(image: Image) -> None:
    if "strip" in image.source:
        raise OSError("image file is truncated")


def zero(image: Image) -> None:
    if "strip" in image.source:
        raise ZeroDivisionError("division by zero")


def too_small(image: Image) -> None:
    if "strip" in image.source:
        raise RuntimeError("Kernel size can't be greater than actual input size")


LOOKS = {
    "ratio": (ratio, "absolute aspect ratio"),
    "bytes": (bad_bytes, "OSError: image file is truncated"),
    "zero": (zero, "ZeroDivisionError: division by zero"),
    "kernel": (too_small, "RuntimeError: Kernel size"),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=[*LOOKS])
def test_picture_that_the_generator_cannot_take_is_last_skipped_and_keeps_its_probability(
    look: tuple[Callable[[Image], None], str], tmp_path: Path
) -> None:
    fails, reason = look
    with album(tmp_path, Picky(fails)) as own:
        with pytest.warns(RuntimeWarning, match=f"1 of 5 candidates .*strip.png: .*{reason}"):
            ranking = own.search("what is red ?", explain=True)
        assert ranking[-1].id.endswith("strip.png") and ranking[-1].score is None
        assert [hit.explanation is None for hit in ranking] == [False] * 4 + [True]
        report = own.questions.generate(n=1, style="search")
        (skipped,) = report.skipped
        assert report.asked == 4 and skipped.source.endswith("strip.png") and reason in skipped.reason
        with pytest.warns(RuntimeWarning, match=f"1 of the candidates .*{reason}"):
            dialog = own.dialog("red")
            before = dialog.probabilities
            assert dialog.question
            dialog.answer("yes")
        assert sum(dialog.probabilities.values()) == pytest.approx(1) and len(before) == 5
        with pytest.raises(ImageError, match=f"strip.png: .*{reason}"):
            own.rank_texts(strip(), ["red", "green"])


def test_qwen_like_processor_refuses_one_picture_of_a_batch(tmp_path: Path) -> None:
    generator = VLMGenerator.from_pretrained(str(tiny_vlms.qwen2_vl(tmp_path)), device="cpu")
    images = [as_image(PILImage.new("RGB", (32, 32), "red"), "red.png"), Image(strip(), "strip.png")]
    faults: dict[int, Any] = {}
    scores = score_pairs(generator, Likelihood(), ["the red house"] * 2, images, faults=faults)
    assert np.isfinite(scores[0]) and np.isnan(scores[1])
    assert isinstance(faults[1], ImageError) and REASON in str(faults[1])
    texts = write_each(generator, [[one, "Question:"] for one in images])
    assert isinstance(texts[0], list) and REASON in str(texts[1])


@pytest.mark.parametrize("raises", [None, ValueError, ZeroDivisionError, RuntimeError, OSError])
def test_picture_that_the_encoder_cannot_take_is_skipped_each_time(raises: Any, tmp_path: Path) -> None:
    encoder = PickyEncoder(raises=raises)
    with album(tmp_path, None, encoder) as own:
        assert len(own) == 4
        for images in (
            tmp_path,
            tmp_path / "strip.png",
        ):  # alone, too
            (skipped,) = own.add(images).skipped
            assert skipped.source.endswith("strip.png")
            assert "the encoder PickyEncoder cannot take it: " in skipped.reason
        with pytest.raises(ImageError, match="the encoder PickyEncoder cannot take it"):
            own.search(tmp_path / "strip.png")


def test_good_batch_is_encoded_in_one_call_and_a_bad_one_is_halved(tmp_path: Path) -> None:
    encoder = PickyEncoder()
    with Retriever(encoder, ExactIndex(encoder.dim)) as own:
        own.add(paintings(32))
        assert encoder.calls == 1
        own.add([*paintings(31, 50), strip()])
        assert encoder.calls < 1 + 2 * 6 + 2


@pytest.mark.parametrize("error", [TypeError, AttributeError, ImportError, MemoryError, MismatchError])
def test_mistake_in_a_part_is_raised_at_once(error: type[Exception], tmp_path: Path) -> None:
    def look(image: Image) -> None:
        if "strip" in image.source:
            raise error("oops")

    with album(tmp_path, generator := Picky(look)) as own, pytest.raises(error, match="oops"):
        own.search("what is red ?")
    assert generator.calls == 1
    encoder = PickyEncoder(raises=error)
    with pytest.raises(error), Retriever(encoder, ExactIndex(encoder.dim)) as own:
        own.add(tmp_path)


def test_part_that_fails_for_every_image_skips_none(tmp_path: Path) -> None:
    class Down(ToyEncoder):
        def encode_image(self, images: Any, *, batch_size: int = 32) -> Any:
            raise ConnectionError("no route to host")

    def look(image: Image) -> None:
        raise ConnectionError("no route to host")

    with pytest.raises(ConnectionError), Retriever(Down(), ExactIndex(16)) as own:
        own.add(paintings(3))
    with album(tmp_path, Picky(look)) as own:
        for call in (lambda: own.search("red"), lambda: own.questions.generate(n=1)):
            with pytest.raises(ConnectionError):
                call()


def test_question_that_is_too_long_is_refused_as_before(tmp_path: Path) -> None:
    with album(tmp_path, ToyGenerator(30)) as own:
        refused(r"^'.*red red.*: the generator ToyGenerator .* this model reads 30", own.search, "red " * 40)


def test_error_of_a_progress_callback_is_not_blamed_on_an_image(tmp_path: Path) -> None:
    calls: list[object] = []

    def stop(*call: object) -> None:
        calls.append(call)
        if len(calls) == 2:
            raise ValueError("stopped")

    with album(tmp_path, ToyGenerator()) as own, pytest.raises(ValueError, match=r"^stopped$"):
        own.search("red", progress=stop)
    assert len(calls) == 2


def test_written_text_with_the_mark_of_an_image_is_dropped_alone() -> None:
    class Marking(Picky):
        def generate(self, contexts: Any, *, n: int = 1, **settings: Any) -> Any:
            marked = [f"what is red {k} ?" if k else "is it <image_pad> ?" for k in range(n)]
            return [marked for _ in contexts]

    images = paintings(3)
    for answers in (False, True):
        found = generate_questions(Marking(), images, 2, answers=answers)
        assert [len(some) for some in found] == [2, 2, 2]
        assert not any("<image_pad>" in one.text for some in found for one in some)


@pytest.mark.parametrize("raises", [None, ValueError, RuntimeError])
def test_question_that_the_encoder_cannot_take_is_stored_and_not_kept(raises: Any, tmp_path: Path) -> None:
    class Odd(ToyGenerator):
        def generate(self, contexts: Any, *, n: int = 1, **settings: Any) -> Any:
            return [["what is unknown ?", *(f"what is red {k} ?" for k in range(1, n))] for _ in contexts]

    with album(tmp_path, Odd(), PickyEncoder(raises=raises)) as own:
        named = "4 questions are not kept: the encoder PickyEncoder cannot take the text 'what is unknown"
        for top_k in (10, None):
            own.questions.remove()
            with pytest.warns(RuntimeWarning, match=named):
                report = own.questions.generate(n=2, style="search", top_k=top_k)
            assert report.asked == 4 and report.questions == 8 and report.kept == 4
            with pytest.warns(RuntimeWarning, match=named):
                assert own.questions.filter(top_k).kept == 4
        with pytest.raises(InvalidInputError, match="cannot take the text 'unknown'"):
            own.search("unknown")


@pytest.mark.parametrize(
    ("texts", "bad"),
    [
        (["red", "red " * 60, "green"], [1]),
        (["red " * 60, "red"], [0]),
        (["a <image_pad>", "blue"], [0]),
        (["red"] * 3 + ["red " * 60] + ["red"] * 12, [3]),
        (["red " * 60, "blue", "a <image_pad>"], [0, 2]),
    ],
)
def test_text_that_the_generator_cannot_take_is_named_and_the_others_are_scored(
    texts: list[str], bad: list[int]
) -> None:
    images = paintings(len(texts))
    faults: dict[int, Any] = {}
    scores = score_pairs(Picky(max_tokens=50), Likelihood(), texts, images, faults=faults)
    assert np.flatnonzero(np.isnan(scores)).tolist() == sorted(faults) == bad
    assert all(texts[n].strip()[:30] in str(faults[n]) for n in bad)
    assert not any(isinstance(one, ImageError) for one in faults.values())
    with pytest.raises(InvalidInputError, match="the generator Picky cannot take it"):
        read_texts(Picky(max_tokens=50), [[one] for one in images], texts)


def test_text_and_image_that_are_too_long_together_are_both_named() -> None:
    class Large(Picky):
        def _score(self, context: Any, text: str, pair: int) -> Any:
            if context[0].source.endswith("1") and len(text) > 30:
                raise InvalidInputError(f"pair {pair} has 35 + 660 = 695 tokens")
            return super()._score(context, text, pair)

    first, second = (Image(one.content, f"image {n}") for n, one in enumerate(paintings(2)))
    texts = ["red", "red red red red red red red red red red"]
    faults: dict[int, Any] = {}
    scores = score_pairs(Large(), Likelihood(), texts * 2, [first, first, second, second], faults=faults)
    assert np.isnan(scores).tolist() == [False, False, False, True]
    assert isinstance(faults[3], ImageError)
    assert "image 1: with '<image>Question: red red" in str(faults[3]) and "695 tokens" in str(faults[3])


def test_state_that_is_not_finite_is_refused_and_never_stored(tmp_path: Path) -> None:
    with (
        pytest.warns(RuntimeWarning, match=r"1 images have no cached features: .*strip.png"),
        album(tmp_path, PickyStates(), states="disk") as own,
    ):
        assert len(own) == 5
        with pytest.warns(RuntimeWarning, match="1 of 5 candidates .*strip.png: .*state that is not finite"):
            assert own.search("red")[-1].id.endswith("strip.png")


def test_poisoned_features_are_computed_again(tmp_path: Path) -> None:
    parts: dict[str, Any] = {"encoder": ToyEncoder(), "generator": ToyStatesGenerator()}
    path = tmp_path / "own.album"
    for image in paintings(3):
        assert isinstance(image.content, bytes)
        (tmp_path / f"{image.source}.png").write_bytes(image.content)
    with Retriever(**parts, index=ExactIndex(16), path=path, states="disk") as own:
        own.add(tmp_path)
        expected = [hit.score for hit in own.search("red")]
        digests = [record.digest for record in own.records()]
    (folder,) = path.glob("states-*")
    (file,) = folder.iterdir()
    facts = read_facts(file)
    file.unlink()
    _write(folder, {**facts, "crc32": None}, {one: np.full(3, np.nan, np.float32) for one in digests})
    with Retriever.open(path, **parts) as own:
        with pytest.warns(RuntimeWarning, match="3 of 3 image features .* are damaged"):
            assert [hit.score for hit in own.search("red")] == expected
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert [hit.score for hit in own.search("red")] == expected


def test_systematic_contract_error_is_not_narrowed() -> None:
    class Short(Picky):
        def log_likelihood(self, contexts: Any, continuations: Any, **settings: Any) -> Any:
            return super().log_likelihood(contexts, continuations, **settings)[1:]

    generator = Short()
    assert isinstance(generator, Generator)
    with pytest.raises(PartError, match="Short gave 2 likelihoods for 3 pairs"):
        read_texts(generator, [[one] for one in paintings(3)], ["red"] * 3)
    assert generator.calls == 1
