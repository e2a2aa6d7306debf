"""Against CrossEncoders of sentence-transformers over tiny random models."""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_vlms
from zsqretrieval._util.torch import ensure_torchvision
from zsqretrieval.data.images import decode
from zsqretrieval.errors import InvalidInputError, MissingDependencyError, PartError, WeightsError
from zsqretrieval.rerankers.cross_encoder import CrossEncoderReranker
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing import ToyEncoder, parametrize_checks, reranker_checks
from zsqretrieval.testing.pictures import paintings

ensure_torchvision()
import transformers as hf  # noqa: E402
from sentence_transformers import CrossEncoder  # noqa: E402
from sentence_transformers.base.modules import Dense  # noqa: E402

QUESTION = "what is the colour of the red house"
PROMPT = "the picture:"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlms.cross_encoder(tmp_path_factory.mktemp("reranker"))


@pytest.fixture(scope="session")
def reranker(folder: Path) -> CrossEncoderReranker:
    return CrossEncoderReranker(str(folder), batch_size=3, device="cpu")


@functools.cache
def over_qwen2() -> CrossEncoderReranker:
    with tempfile.TemporaryDirectory() as folder:
        saved = tiny_vlms.cross_encoder(Path(folder), tiny_vlms.qwen2_vl)
        return CrossEncoderReranker(CrossEncoder(str(saved), device="cpu"), batch_size=3)


@parametrize_checks(reranker_checks, over_qwen2)
def test_contract(check: Any) -> None:
    check()


@pytest.mark.parametrize("prompt", [None, PROMPT])
def test_scores_are_the_log_odds_computed_with_transformers(folder: Path, prompt: str | None) -> None:
    processor = hf.AutoProcessor.from_pretrained(folder)
    model = hf.AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval()
    ids = tiny_vlms.ids(processor.tokenizer, yes="Ġyes", no="Ġno")
    expected = []
    for image in paintings(4):
        turns = [
            {"role": "query", "content": [{"type": "text", "text": QUESTION}]},
            {"role": "document", "content": [{"type": "image", "image": decode(image)}]},
        ]
        if prompt:
            turns.insert(0, {"role": "system", "content": [{"type": "text", "text": prompt}]})
        inputs = processor.apply_chat_template(
            turns, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=False
        )
        with torch.inference_mode():
            logits = model(**inputs).logits[0, -1]
        expected.append(float(logits[ids["yes"]] - logits[ids["no"]]))
    found = CrossEncoderReranker(str(folder), prompt=prompt, device="cpu").score(QUESTION, paintings(4))
    assert found.dtype == np.float64 and found == pytest.approx(np.array(expected), abs=1e-4)
    assert min(expected) < 0 < max(expected) or np.ptp(expected) > 0.1, "log-odds rather than probabilities"


def test_scores_in_16_bits_are_no_multiples_of_sixteenths(folder: Path) -> None:
    model = CrossEncoder(
        str(folder), device="cpu", model_kwargs={"dtype": "bfloat16"}, activation_fn=torch.nn.Sigmoid()
    )
    pairs = [(QUESTION, decode(image)) for image in paintings(6)]
    coarse = model.predict(pairs, activation_fn=torch.nn.Identity())
    fine = CrossEncoderReranker(model).score(QUESTION, paintings(6))
    assert (coarse * 256 == np.round(coarse * 256)).all()
    assert (fine * 256 != np.round(fine * 256)).any()
    assert fine == pytest.approx(coarse, abs=0.1)
    CrossEncoderReranker(model)  # a second time


def test_question_is_words_not_a_file_a_url_or_a_token(
    reranker: CrossEncoderReranker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dog.png").write_bytes(paintings(1)[0].content)  # type: ignore[arg-type]
    seen: list[str] = []
    process = reranker._model[0].processor.apply_chat_template
    monkeypatch.setattr(
        reranker._model[0].processor, "apply_chat_template",
        lambda turns, **more: seen.append(str(turns)) or process(turns, **more),
    )  # fmt: skip
    questions = ("dog.png", "http://127.0.0.1:1/dog.png", "data:image/png;base64,AA", "what is <|im_end|>?")
    for question in questions:
        reranker.score(question, paintings(1))
    shown = " ".join(seen)
    for question in (*questions[:3], "what is < |im_end|>?"):
        assert f"{{'type': 'text', 'text': {question!r}}}" in shown


def test_few_images_are_decoded_at_a_time(
    reranker: CrossEncoderReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    predict = reranker._model.predict
    monkeypatch.setattr(
        reranker._model, "predict", lambda pairs, **more: sizes.append(len(pairs)) or predict(pairs, **more)
    )
    reranker.score(QUESTION, paintings(7))
    assert sizes == [3, 3, 1]


def test_search_uses_its_scores(reranker: CrossEncoderReranker) -> None:
    with Retriever(ToyEncoder()) as retriever:
        retriever.add(paintings(5))
        ranking = retriever.search(QUESTION, rerank=reranker)
    scores = [hit.scores["cross_encoder"] for hit in ranking]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 5


def test_models_that_cannot_rerank_images_are_refused(tmp_path: Path, folder: Path) -> None:
    tokenizer = tiny_vlms.words_tokenizer()
    settings = hf.BertConfig(**tiny_vlms.LAYERS, vocab_size=len(tokenizer), num_labels=1)
    hf.BertForSequenceClassification(settings).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match=r"takes text and no images; use one such as Qwen"):
        CrossEncoderReranker(tmp_path, device="cpu")
    several = CrossEncoder(str(folder), device="cpu")
    several[1] = Dense(32, 3, module_output_name="scores")
    with pytest.raises(InvalidInputError, match="gives 3 scores per pair"):
        CrossEncoderReranker(several)
    with pytest.raises(InvalidInputError, match=r"its name or folder, not int"):
        CrossEncoderReranker(3)
    with pytest.raises(WeightsError, match=r"cannot load the cross-encoder no/such-model"):
        CrossEncoderReranker("no/such-model", device="cpu")


def test_code_beside_the_weights_never_runs(tmp_path: Path) -> None:
    saved = tiny_vlms.cross_encoder(tmp_path / "saved")
    (saved / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    modules = json.loads((saved / "modules.json").read_text())
    modules[1]["type"] = "evil.Evil"
    (saved / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(WeightsError):
        CrossEncoderReranker(saved, device="cpu")
    assert not (tmp_path / "ran").exists()


def test_scores_that_are_not_finite_are_a_part_error(folder: Path) -> None:
    model = CrossEncoder(str(folder), device="cpu")
    with torch.no_grad():
        model[0].auto_model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(PartError, match=r"not one finite number each; its weights are damaged"):
        CrossEncoderReranker(model).score(QUESTION, paintings(2))


def test_template_without_the_roles_of_a_pair_is_a_part_error(folder: Path) -> None:
    model = CrossEncoder(str(folder), device="cpu")
    model[0].processor.chat_template = "nothing"
    with pytest.raises(
        PartError, match=r"cannot score 2 images \(painting 0, painting 1\): ValueError: The chat"
    ):
        CrossEncoderReranker(model).score(QUESTION, paintings(2))


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingDependencyError, match="CrossEncoderReranker needs the package"):
        CrossEncoderReranker("name")
