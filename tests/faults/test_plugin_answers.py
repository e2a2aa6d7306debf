"""An answer of a plugin that breaks its contract is refused by the name of the part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import broken_encoders
import broken_indexes
from zsqretrieval import Retriever
from zsqretrieval.encoders.cached import CachedEncoder
from zsqretrieval.encoders.checked import encode_images, encode_texts
from zsqretrieval.errors import ImageError, IntegrityError, InvalidInputError, PartError, ZsqError
from zsqretrieval.generators.checked import read_images, read_texts, write_texts
from zsqretrieval.indexes.checks import nearest
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.search.fusion import fuse
from zsqretrieval.search.rerank import Rerank, ask_reranker
from zsqretrieval.testing.pictures import paintings
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator, ToyIndex, ToyStatesGenerator
from zsqretrieval.types import LogLikelihood, Neighbors

IMAGES = paintings(3)


def answers(kind: type, name: str, answer: Any) -> Any:
    """A part of a kind, one method of which gives an answer, or what a function makes of the right one."""

    def method(self: Any, *given: Any, **options: Any) -> Any:
        right = getattr(kind, name)(self, *given, **options)
        return answer(right) if callable(answer) else answer

    return type("Broken", (kind,), {name: method})


ENCODERS = {
    "too few": (lambda rows: rows[1:], r"vectors of shape \[2, 16\], not \[3, 16\]"),
    "too many": (lambda rows: np.vstack([rows, rows]), r"vectors of shape \[6, 16\]"),
    "flat": (lambda rows: rows.ravel(), r"vectors of shape \[48\]"),
    "other width": (lambda rows: rows[:, :8], r"vectors of shape \[3, 8\]"),
    "None": (None, "NoneType, not a float32 array"),
    "list": (lambda rows: rows.tolist(), "list, not a float32 array"),
    "integers": (lambda rows: (9 * rows).astype(int), "int64, not a float32 array"),
    "objects": (lambda rows: rows.astype(object), "object, not a float32 array"),
    "complex": (lambda rows: rows.astype(complex), "complex128, not a float32 array"),
    "long": (lambda rows: 7 * rows, "a vector of length 7, not 1"),
    "zero": (lambda rows: 0 * rows, "a vector that is zero or not finite"),
    "nan": (lambda rows: np.nan * rows, "a vector that is zero or not finite"),
    "beyond float32": (lambda rows: rows.astype(np.float64) * 1e200, "a vector that is zero or not finite"),
}


@pytest.mark.parametrize(("answer", "told"), ENCODERS.values(), ids=[*ENCODERS])
def test_vectors_that_break_the_contract_are_refused(answer: Any, told: str) -> None:
    for name, encode in (("encode_image", encode_images), ("encode_text", encode_texts)):
        encoder = answers(ToyEncoder, name, answer)()
        given: Any = IMAGES if name == "encode_image" else ["red", "green", "blue"]
        for part in (encoder, CachedEncoder(encoder)):
            with pytest.raises(ZsqError, match=f"the encoder Broken gave {told}"):
                encode(part, given)
    with Retriever(answers(ToyEncoder, "encode_image", answer)(), ExactIndex(16)) as own:
        with pytest.raises(ZsqError, match=f"the encoder Broken gave {told}"):
            own.add(IMAGES)
        assert len(own) == 0


def scores(answer: Any) -> Any:
    return lambda right: [LogLikelihood(one.tokens, answer(one.token_log_probs)) for one in right]


LIKELIHOODS = {
    "too few": (lambda right: right[1:], "gave 2 likelihoods for 3 pairs"),
    "None": (None, "gave NoneType None likelihoods for 3 pairs"),
    "array": (np.zeros(3), r"gave float64 \[3\] likelihoods for 3 pairs"),
    "floats": (lambda right: [one.sum for one in right], "gave float -.* for ' red ?', not a LogLikelihood"),
    "Nones": ([None] * 3, "gave NoneType None for ' red ?', not a LogLikelihood"),
    "above 0": (scores(lambda one: -one), r"gave .* as a log-probability of ' red ?', above 0"),
    "a list": (scores(list), r"gave log-probabilities list .* not an array"),
    "one number": (
        scores(lambda one: one.sum(keepdims=True)),
        r"gave log-probabilities float32 \[1\] for the 2",
    ),
    "integers": (scores(lambda one: one.astype(int)), r"gave log-probabilities int64 \[2\]"),
    "two axes": (scores(lambda one: one[None]), r"gave log-probabilities float32 \[1, 2\]"),
    "nan": (scores(lambda one: one * np.nan), "gave nan as the log-probability of ' red ?' given painting 0"),
    "minus infinity": (scores(lambda one: one - np.inf), "gave -inf as the log-probability"),
}


@pytest.mark.parametrize(("answer", "told"), LIKELIHOODS.values(), ids=[*LIKELIHOODS])
def test_likelihoods_that_break_the_contract_are_refused(answer: Any, told: str, tmp_path: Path) -> None:
    generator = answers(ToyGenerator, "log_likelihood", answer)()
    told = told.replace(" ?'", r" \?'")
    with pytest.raises(ZsqError, match=f"the generator Broken {told}"):
        read_texts(generator, [[image, "Question:"] for image in IMAGES], [" red ?"] * 3)
    for image in IMAGES:
        assert isinstance(image.content, bytes)
        (tmp_path / f"{image.source}.png").write_bytes(image.content)
    with Retriever(ToyEncoder(), ExactIndex(16), generator) as own:
        own.add(tmp_path)
        with pytest.raises(ZsqError, match="the generator Broken "):
            own.search("red ?")


TEXTS = {
    "None": (None, "wrote NoneType None, not a list of texts"),
    "flat": (["a", "b", "c"], "wrote list .*, not a list of texts for each context"),
    "too few": ([["a"]] * 2, "wrote 2 texts for 3 contexts, not 1 each"),
    "too many": ([["a", "b"]] * 3, "wrote 6 texts for 3 contexts"),
    "uneven": ([["a", "b"], ["a"], []], "wrote 3 texts for 3 contexts, not 1 each"),
    "Nones": ([[None]] * 3, "wrote NoneType None, not a string"),
    "bytes": ([[b"a"]] * 3, "wrote bytes b'a', not a string"),
}


@pytest.mark.parametrize(("answer", "told"), TEXTS.values(), ids=[*TEXTS])
def test_texts_that_break_the_contract_are_refused(answer: Any, told: str) -> None:
    generator = answers(ToyGenerator, "generate", answer)()
    with pytest.raises(PartError, match=f"the generator Broken {told}"):
        write_texts(generator, [[image] for image in IMAGES])


STATES = {
    "too few": (
        lambda rows: rows[1:],
        r"made states of float32 \[2, 3\] for 3 images but says float32 \[3\]",
    ),
    "other shape": (lambda rows: rows[:, :2], r"made states of float32 \[3, 2\]"),
    "other dtype": (lambda rows: rows.astype(np.float64), "made states of float64"),
    "None": (None, r"made states of object \[\]"),
    "nan": (lambda rows: rows * np.nan, "made a state that is not finite"),
}


@pytest.mark.parametrize(("answer", "told"), STATES.values(), ids=[*STATES])
def test_image_states_that_break_the_contract_are_refused(answer: Any, told: str) -> None:
    generator = answers(ToyStatesGenerator, "image_states", answer)()
    with pytest.raises(ZsqError, match=f"the generator Broken {told}"):
        read_images(generator, IMAGES)


def found(change: Any) -> Any:
    return lambda right: Neighbors(*change(right.keys.copy(), right.scores.copy()))


def with_first(values: np.ndarray, value: float) -> np.ndarray:
    values[:, 0] = value
    return values


NEIGHBORS = {
    "None": (None, "NoneType, not Neighbors"),
    "a pair": (lambda right: (right.keys, right.scores), "tuple, not Neighbors"),
    "lists": (found(lambda keys, cosines: (keys.tolist(), cosines)), "keys of list, not int64"),
    "int32": (found(lambda keys, cosines: (keys.astype(np.int32), cosines)), "keys of int32, not int64"),
    "float64": (found(lambda keys, cosines: (keys, cosines.astype(float))), "scores of float64, not float32"),
    "too few": (found(lambda keys, cosines: (keys[:, :1], cosines)), r"keys of shape \[1, 1\], not \[1, 3\]"),
    "flat": (found(lambda keys, cosines: (keys[0], cosines[0])), r"keys of shape \[3\]"),
    "nan": (found(lambda keys, cosines: (keys, cosines * np.nan)), "the score nan, not a cosine"),
    "distances": (found(lambda keys, cosines: (keys, 1 - cosines)), "not a cosine|not best first"),
    "worst first": (found(lambda keys, cosines: (keys, -cosines)), "scores that are not best first"),
    "key twice": (found(lambda keys, cosines: (keys * 0, cosines)), "a key twice for one query"),
    "negative": (found(lambda keys, cosines: (with_first(keys, -7), cosines)), "a negative key"),
    "gap": (found(lambda keys, cosines: (with_first(keys, -1), cosines)), "-1 in front of a key"),
}


@pytest.mark.parametrize(("answer", "told"), NEIGHBORS.values(), ids=[*NEIGHBORS])
def test_neighbours_that_break_the_contract_are_refused(answer: Any, told: str) -> None:
    with Retriever(ToyEncoder(), answers(ToyIndex, "search", answer)(16)) as own:
        own.add(IMAGES)
        with pytest.raises(PartError, match=f"the index Broken gave .*({told})"):
            own.search("red", 3)


def test_keys_that_were_never_added_are_refused() -> None:
    broken = answers(ToyIndex, "search", found(lambda keys, cosines: (keys + 1000, cosines)))
    with Retriever(ToyEncoder(), broken(16)) as own:
        own.add(IMAGES)
        with pytest.raises(IntegrityError, match="the index Broken and the catalog of this album disagree"):
            own.search("red", 3)


FUSED = {
    "None": None,
    "too few": lambda scores: scores[1:],
    "nan": lambda scores: scores * np.nan,
    "infinity": lambda scores: scores + np.inf,
    "texts": lambda scores: ["a"] * len(scores),
    "ragged": lambda scores: [[1.0], [1.0, 2.0], [3.0]],
    "objects": lambda scores: [None] * len(scores),
    "one number": 1.0,
    "complex": lambda scores: scores * 1j,
    "truth": lambda scores: scores > 0,
    "bfloat16": lambda scores: torch.tensor(scores, dtype=torch.bfloat16),
    "with a gradient": lambda scores: torch.tensor(scores, requires_grad=True),
}


@pytest.mark.parametrize("answer", FUSED.values(), ids=[*FUSED])
def test_fusions_rerankers_and_rules_that_give_no_finite_numbers_are_refused(answer: Any) -> None:
    class Broken:
        name = "broken"

        def fuse(self, first_stage: Any, scores: Any) -> Any:
            return answer(scores) if callable(answer) else answer

        def score(self, question: str, images: Any) -> Any:
            return answer(np.arange(len(images), dtype=float)) if callable(answer) else answer

    with pytest.raises(InvalidInputError, match=r"the fusion .*Broken.* gave .* for 3 candidates"):
        fuse(Broken(), np.arange(3.0), np.arange(3.0))
    with pytest.raises(PartError, match=r"the re-ranker broken gave .* for 3 images"):
        ask_reranker(Rerank(Broken()), "red", IMAGES)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [one for one in broken_encoders.SPOILED if "unit_vec" in str(one.caught_by)])
def test_spoiled_encoders_are_refused_or_harmless(kind: Any) -> None:
    """The rest is of no harm: float64, column-major and a length of 1.001."""
    refused = kind.__name__ in ("NanRows",)
    try:
        rows = encode_images(kind(), IMAGES)
    except (ZsqError, ImageError):
        assert refused
    else:
        assert not refused and rows.dtype == np.float32
        assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 0.01


@pytest.mark.parametrize("kind", broken_indexes.SPOILED, ids=lambda kind: kind.__name__)
def test_spoiled_indexes_give_checked_answers(kind: Any) -> None:
    index, right = kind(16), ToyIndex(16)
    vectors = ToyEncoder().encode_image(IMAGES)
    for one in (index, right):
        one.add(np.array([0, 5, 2**40]), vectors)
    try:
        answer = nearest(index, vectors, 4)
    except PartError as error:
        assert f"the index {kind.__name__} gave" in str(error)
    else:
        assert answer.keys.dtype == np.int64 and answer.scores.shape == (3, 3)  # as many as there are


DAMAGE = [OSError("gone"), ValueError("no JSON"), EOFError("end"), IntegrityError("bit")]
MISTAKES = [TypeError("oops"), AttributeError("oops"), KeyError("oops"), NameError("oops")]


@pytest.mark.parametrize("error", DAMAGE, ids=repr)
def test_index_that_cannot_read_its_files_is_rebuilt(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, monkeypatch, error)
    with (
        pytest.warns(RuntimeWarning, match=f"is damaged and is rebuilt from the catalog; .*{error}"),
        Retriever.open(tmp_path / "own.album", encoder=ToyEncoder()) as own,
    ):
        assert len(own.search("red")) == 3


@pytest.mark.parametrize("error", MISTAKES, ids=repr)
def test_mistake_in_the_code_of_an_index_is_not_taken_for_damage(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, monkeypatch, error)
    with (
        Retriever.open(tmp_path / "own.album", encoder=ToyEncoder()) as own,
        pytest.raises(type(error), match="oops"),
    ):
        own.search("red")


def saved(folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """An album whose saved index raises when it is loaded."""
    with Retriever(ToyEncoder(), ExactIndex(16), path=folder / "own.album") as own:
        own.add(IMAGES)
        own.save()

    def load(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(ExactIndex, "load", load)
