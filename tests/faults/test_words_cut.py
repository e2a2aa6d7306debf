"""A question that the encoder cuts causes one warning, and is marked."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import processors

from tiny_tokenizers import word_pieces
from zsqretrieval import Retriever
from zsqretrieval._util.torch import ensure_torchvision
from zsqretrieval.encoders.cached import CachedEncoder
from zsqretrieval.encoders.clip import CLIPEncoder, _letters
from zsqretrieval.evaluation.datasets import Dataset, Query
from zsqretrieval.evaluation.experiment import evaluate
from zsqretrieval.evaluation.settings import Settings
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.mini.encoder import MiniEncoder
from zsqretrieval.protocols import Encoder, TextLimit
from zsqretrieval.testing.pictures import paintings
from zsqretrieval.testing.toys import ToyEncoder

ensure_torchvision()
import open_clip  # noqa: E402

LONG = "a dog that runs " * 40
ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> CLIPEncoder:
    folder = tmp_path_factory.mktemp("clip")
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": ARCHITECTURE, "preprocess_cfg": preprocess})
    )
    return CLIPEncoder.from_pretrained(f"local-dir:{folder}", "random", device="cpu")


@pytest.fixture(scope="module")
def mini() -> MiniEncoder:
    return MiniEncoder.from_pretrained(device="cpu")


CASES = [("dog " * 75, False), ("dog " * 76, True), ("", False), (LONG, True), ("! " * 80, True)]
CASES += [("<end_of_text> " * 10, False), ("<end_of_text> " * 11, True)]


@pytest.mark.parametrize(("text", "cut"), CASES)
def test_clip_tells_which_texts_it_cuts(text: str, cut: bool, clip: CLIPEncoder) -> None:
    assert clip.truncated([text, "a dog"]) == [cut, False]


def test_mini_tells_which_texts_it_cuts(mini: MiniEncoder) -> None:
    texts = ["dog " * 126, "dog " * 127, "a dog", LONG]
    assert mini.truncated(texts) == [False, True, False, True]
    shorter = mini.encode_text(["dog " * 126, "dog " * 130, "dog " * 127])
    np.testing.assert_allclose(shorter[1], shorter[0], atol=1e-6)


@pytest.mark.parametrize(("mode", "most"), [({}, 6), ({"tokenizer_mode": "clips"}, 5)])
def test_a_hugging_face_tokenizer_tells_which_texts_it_cuts(mode: dict, most: int, tmp_path: Path) -> None:
    made = word_pieces()
    made.bos_token, made.eos_token = "[CLS]", "[SEP]"
    made.backend_tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.save_pretrained(tmp_path)
    tokenize = _letters(open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=8, **mode))
    whole, cut, more = (tokenize(["dog " * n])[0].tolist() for n in (most, most + 1, most + 2))
    assert cut == whole and more == whole
    encoder = object.__new__(CLIPEncoder)
    encoder._tokenize = tokenize
    assert encoder.truncated(["dog " * n for n in (most, most + 1)]) == [False, True]


def test_ranking_says_that_its_question_was_cut(mini: MiniEncoder) -> None:
    encoder: Encoder = CachedEncoder(mini)
    assert isinstance(encoder, TextLimit)
    with Retriever(encoder, ExactIndex(encoder.dim)) as album:
        album.add(paintings(3))
        with pytest.warns(RuntimeWarning, match="'a dog that runs .* is longer than the encoder reads"):
            rankings = album.search([LONG, "a dog", *paintings(1), f"{LONG} cat"])
        assert [one.truncated for one in rankings] == [True, False, False, True]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert album.search(LONG).truncated


def test_texts_that_are_cut_are_marked_in_a_ranking_and_named_in_a_report() -> None:
    class Ten(ToyEncoder):
        def truncated(self, texts: Sequence[str]) -> list[bool]:
            return [len(text.split()) > 10 for text in texts]

    image, *_ = paintings(2)
    with Retriever(Ten(), ExactIndex(16)) as album:
        with pytest.warns(RuntimeWarning, match=r"1 of 2 texts are longer than .*'a dog that"):
            ranking = album.rank_texts(image, ["a dog", LONG])
        assert {hit.text: hit.truncated for hit in ranking} == {"a dog": False, LONG: True}
    queries = (Query("q0", "a dog", "caption", ""), Query("q1", LONG, "caption", ""))
    data = Dataset("cut", (replace(image, id="i"),), queries, {one.id: {"i": 1} for one in queries})
    settings = Settings(systems=(), directions=("text to image",), resamples=9, permutations=9)
    results = evaluate(data, Ten(), None, settings, forms=["caption"], cost=False)
    (note,) = results.facts["dataset"]["notes"]
    assert note.startswith("1 of 2 texts are longer than the encoder reads") and note.endswith(": q1")


def test_encoder_that_does_not_tell_is_used_without_a_mark() -> None:
    encoder = CachedEncoder(ToyEncoder())
    assert encoder.truncated([LONG]) == [False]
    with Retriever(ToyEncoder(), ExactIndex(encoder.dim)) as album:
        album.add(paintings(2))
        assert not album.search(LONG).truncated
