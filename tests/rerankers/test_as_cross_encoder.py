"""A generator under the interface of sentence-transformers, and in its own evaluator."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import numpy as np
import pytest
import torch

import zsqretrieval
from zsqretrieval._util.torch import ensure_torchvision
from zsqretrieval.data import documents
from zsqretrieval.data.images import as_image
from zsqretrieval.errors import ImageError, InvalidInputError, PartError
from zsqretrieval.generators.lazy import LazyGenerator
from zsqretrieval.rerankers.as_cross_encoder import as_cross_encoder
from zsqretrieval.search.scoring import Likelihood, YesNo, score_pairs
from zsqretrieval.testing import ToyGenerator
from zsqretrieval.testing.pictures import encoded, painting, paintings
from zsqretrieval.types import Image

ensure_torchvision()
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator  # noqa: E402

QUESTION = "is the thing red?"
PICTURES = [painting(seed) for seed in range(5)]
MODEL = as_cross_encoder(ToyGenerator())


def expected(rule: Any = None) -> np.ndarray:
    images = [Image(picture, "") for picture in PICTURES]
    return score_pairs(ToyGenerator(), rule or Likelihood(), [QUESTION] * 5, images)


@pytest.mark.parametrize(
    ("scoring", "rule"),
    [("likelihood", Likelihood()), ("yes_no", YesNo()), (Likelihood(aggregate="mean"),) * 2],
)
def test_predict_gives_the_scores_of_the_rule(scoring: Any, rule: Any) -> None:
    model = as_cross_encoder(LazyGenerator.of(ToyGenerator()), scoring=scoring)
    found = model.predict([(QUESTION, picture) for picture in PICTURES], batch_size=2)
    assert found.dtype == np.float64 and found.tolist() == expected(rule).tolist()
    assert model.predict([]).shape == (0,)


def test_single_pair_gives_a_number() -> None:
    assert MODEL.predict((QUESTION, PICTURES[2])) == expected()[2]
    assert MODEL.predict([{"text": QUESTION}, PICTURES[2]]) == expected()[2]


def test_tensors_lists_and_activations_are_those_of_sentence_transformers() -> None:
    pairs = [[QUESTION, picture] for picture in PICTURES]
    tensor = MODEL.predict(pairs, convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor) and tensor.tolist() == expected().tolist()
    listed = MODEL.predict(pairs, convert_to_numpy=False)
    assert isinstance(listed, list) and isinstance(listed[0], torch.Tensor)
    squashed = MODEL.predict(pairs, activation_fn=torch.nn.Sigmoid())
    assert squashed == pytest.approx(1 / (1 + np.exp(-expected())))


def test_rank_orders_by_score_and_keeps_positions() -> None:
    order = np.argsort(-expected(), kind="stable").tolist()
    ranked = MODEL.rank(QUESTION, PICTURES)
    assert [one["corpus_id"] for one in ranked] == order
    assert [one["score"] for one in ranked] == [expected()[n] for n in order]
    first = MODEL.rank(QUESTION, PICTURES, top_k=2, return_documents=True, batch_size=1)
    assert [set(one) for one in first] == [{"corpus_id", "score", "text"}] * 2
    assert first[0]["text"] is PICTURES[order[0]]
    twins = MODEL.rank(QUESTION, [PICTURES[1]] * 3)
    assert [one["corpus_id"] for one in twins] == [0, 1, 2]
    assert MODEL.rank(QUESTION, []) == []


def test_every_form_of_an_image_has_the_same_score(tmp_path: Path) -> None:
    data = encoded(PICTURES[0])
    path = tmp_path / "painting.png"
    path.write_bytes(data)
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    forms = [
        PICTURES[0], data, bytearray(data), path, str(path), as_image(path), uri, f"DATA{uri[4:]}",
        f"data:image/png,{quote_from_bytes(data)}", {"image": uri}, {"image": path, "text": "a blue wall"},
    ]  # fmt: skip
    assert MODEL.predict([(QUESTION, form) for form in forms]) == pytest.approx(expected()[0], abs=1e-12)


def test_image_of_many_pairs_is_one_record() -> None:
    seen: list[Any] = []

    class Watching(ToyGenerator):
        def log_likelihood(self, contexts: Any, continuations: Any, **more: Any) -> Any:
            seen.extend(part for context in contexts for part in context if isinstance(part, Image))
            return super().log_likelihood(contexts, continuations, **more)

    as_cross_encoder(Watching()).predict([(question, PICTURES[0]) for question in ("red", "blue", "green")])
    assert len(seen) == 3 and len(set(map(id, seen))) == 1


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("red", "inputs must be a list"),
        (["red", "blue", "green"], r"inputs\[0\] must be a pair"),
        ([("red", PICTURES[0], 3)], r"inputs\[0\] must be a pair"),
        ([(" ", PICTURES[0])], r"the question of inputs\[0\] must be a non-empty string"),
        ([(PICTURES[0], "red")], r"the question of inputs\[0\]"),
        ([("red", {"text": "a dog"})], "has 'text' and no 'image'"),
        ([("red", np.zeros((4, 4, 3)))], "an image must be .* not ndarray"),
        ([("red", "no such file.png")], "no such file"),
        ([("red", "data:image/png;base64")], "it has no comma"),
        ([("red", "data:image/png;base64,!!")], "is not base64"),
        ([("red", "data:text/plain,hello")], "not an image"),
        ([("red", "http://example.org/a.jpg")], r"downloading is off; allow it with fetch=True"),
        ([("red", "file:///etc/passwd")], "is a URL"),
    ],
)
def test_what_is_no_pair_of_question_and_image_is_refused(pairs: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        MODEL.predict(pairs)


@pytest.mark.parametrize("scoring", [None, "auto", "cosine", 3, YesNo])
def test_scoring_that_is_no_rule_is_refused(scoring: Any) -> None:
    with pytest.raises((InvalidInputError, PartError), match="likelihood"):
        as_cross_encoder(ToyGenerator(), scoring=scoring)


def test_prompt_of_a_call_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="the prompt belongs to the scoring rule"):
        MODEL.predict([(QUESTION, PICTURES[0])], prompt="Find it")


# --- URLs -------------------------------------------------------------------------------------------------


@pytest.fixture
def site() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            target = {"/moved": "/0.png", "/loop": "/loop", "/file": "file:///etc/passwd"}.get(self.path)
            body = b"x" * 2000 if self.path == "/large" else encoded(PICTURES[0])
            self.send_response(302 if target else 404 if self.path == "/gone" else 200)
            if target:
                self.send_header("location", target)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_url_is_fetched_only_if_allowed(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = as_cross_encoder(ToyGenerator(), fetch=True)
    assert model.predict((QUESTION, f"{site}/0.png")) == pytest.approx(expected()[0])
    assert model.predict((QUESTION, f"{site}/moved")) == pytest.approx(expected()[0])
    monkeypatch.setattr(documents, "_MOST_BYTES", 1000)
    for path, reason in {
        "/gone": "HTTP status 404",
        "/loop": "more than 5 redirects",
        "/file": "it redirects to 'file:",
        "/large": "more than 1000 bytes",
    }.items():
        with pytest.raises(ImageError, match=rf"{site}{path}: cannot be fetched: .*{reason}"):
            model.predict((QUESTION, site + path))
    with pytest.raises(ImageError, match="cannot be fetched: ConnectError"):
        model.predict((QUESTION, "http://127.0.0.1:1/a.png"))


def test_function_decides_on_each_url_and_redirect(site: str) -> None:
    asked: list[str] = []
    model = as_cross_encoder(ToyGenerator(), fetch=lambda url: asked.append(url) or "moved" in url)
    with pytest.raises(InvalidInputError, match=rf"{site}/0.png: is a URL"):
        model.predict((QUESTION, f"{site}/moved"))
    assert asked == [f"{site}/moved", f"{site}/0.png"]


# --- sentence-transformers --------------------------------------------------------------------------------


def test_evaluator_of_sentence_transformers_takes_it(tmp_path: Path) -> None:
    paths = []
    for n, image in enumerate(paintings(6)):
        paths.append(str(tmp_path / f"{n}.png"))
        Path(paths[-1]).write_bytes(image.content)  # type: ignore[arg-type]
    scores = MODEL.predict([(QUESTION, path) for path in paths])
    best = paths[int(np.argmax(scores))]
    others = [path for path in paths if path != best]
    evaluate = CrossEncoderRerankingEvaluator(
        [{"query": QUESTION, "positive": [best], "documents": [*others, best]}], at_k=3, write_csv=False
    )
    found = evaluate(MODEL)
    assert found["mrr@3"] == found["ndcg@3"] == found["map"] == 1
    assert found["base_mrr@3"] == 0


def test_public_name_is_this_function() -> None:
    assert zsqretrieval.as_cross_encoder is as_cross_encoder
