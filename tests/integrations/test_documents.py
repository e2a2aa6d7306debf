"""Images of documents in every form, and their order for a question."""

from __future__ import annotations

import base64
import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from tars import pack
from zsqretrieval.data import documents
from zsqretrieval.data.documents import as_document_image
from zsqretrieval.data.images import as_image, decode
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.integrations.documents import DocumentRanker
from zsqretrieval.search.rerank import Rerank
from zsqretrieval.search.scoring import Likelihood, YesNo, score_pairs
from zsqretrieval.testing.toys import ToyGenerator


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def data_uri(path: Path) -> str:
    return f"data:image/png;base64,{encoded(path)}"


def percent(path: Path) -> str:
    return "data:image/png," + "".join(f"%{byte:02x}" for byte in path.read_bytes())


def member(path: Path) -> str:
    tar = path.with_name("some.tar")
    pack(tar, {"red.png": path.read_bytes()})
    return f"{tar}#red.png"


FORMS: dict[str, Callable[[Path], Any]] = {
    "path": lambda path: path,
    "text": str,
    "bytes": Path.read_bytes,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "pil": PILImage.open,
    "record": as_image,
    "data uri": data_uri,
    "data uri in capitals": lambda path: "DATA:image/png;BASE64," + encoded(path),
    "data uri with line breaks": lambda path: "data:image/png;base64,%0A" + encoded(path)[:20] + "\n"
    + encoded(path)[20:],
    "data uri without base64": percent,
    "tar": member,
    "mapping": lambda path: {"text": "a wall", "image": path},
    "base64": lambda path: {"base64": encoded(path)},
    "chat": lambda path: {"type": "image_url", "image_url": {"url": data_uri(path)}},
    "undecoded row": lambda path: {"image": {"bytes": path.read_bytes(), "path": "elsewhere.png"}},
    "undecoded row of a file": lambda path: {"image": {"bytes": None, "path": str(path)}},
    "local file before url": lambda path: {"image_url": "http://x/a.png", "file_path": str(path)},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_image(form: str, folder: Path) -> None:
    value = FORMS[form](folder / "red.png")
    assert decode(as_document_image(value)).tobytes() == decode(folder / "red.png").tobytes()


@pytest.mark.parametrize(
    ("value", "error", "reason"),
    [
        (None, ImageError, "<document>: it has no image"),
        ({}, ImageError, "it has no image"),
        ({"image": None, "text": "a wall"}, ImageError, "it has no image"),
        ({"image_url": {}}, ImageError, "it has no image"),
        ("https://x/a.png", ImageError, "is a URL, and downloading is off; allow it with fetch=True"),
        ("HTTP://x/a.png", ImageError, "is a URL"),
        ("s3://bucket/a.png", InvalidInputError, "is a URL, and this library never downloads"),
        ("data:image/png;base64", ImageError, "is no data URI: it has no comma"),
        ("data:image/png;base64,iVBOR", ImageError, "<data:image/png;base64>: is not base64: "),
        ({"base64": "a wall"}, ImageError, "is not base64: "),
        ({"base64": "é"}, ImageError, "is not base64: "),
        (3, InvalidInputError, "not int"),
        ({"image": [1]}, InvalidInputError, "not list"),
    ],
)
def test_broken_image_is_refused(value: Any, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason.replace("?", r"\?")):
        as_document_image(value)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_url_is_downloaded_if_allowed(server: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{server}/red.png"
    image = as_document_image({"image_url": url}, fetch=True)
    assert (image.content, image.source) == ((folder / "red.png").read_bytes(), url)
    for wrong in (
        f"{server}/missing.png",
        f"{server}/a b.png",
        "http://127.0.0.1:1/",
        "http://[/",
        "http:///",
    ):
        with pytest.raises(ImageError, match="cannot be fetched"):
            as_document_image(wrong, fetch=True)
    monkeypatch.setattr(documents, "_MOST_BYTES", 10)
    with pytest.raises(ImageError, match="more than 10 bytes"):
        as_document_image(url, fetch=True)


@pytest.mark.parametrize("rule", ["likelihood", "yes_no", Likelihood(aggregate="mean"), YesNo()])
@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
def test_order_is_that_of_the_scores_one_by_one(folder: Path, rule: Any, data: st.DataObject) -> None:
    values = {
        **{colour: folder / f"{colour}.png" for colour in ("red", "green", "blue")},
        "missing": folder / "missing.png",
        "none": None,
        "broken": b"no image",
        "array": [1],
    }
    names = data.draw(st.lists(st.sampled_from(list(values)), max_size=8))
    generator, how = ToyGenerator(), Rerank.of(rule, generator=True)
    assert how is not None
    expected: list[tuple[int, float | None]] = []
    for n, name in enumerate(names):
        scored = name in ("red", "green", "blue")
        pair = (["green"], [as_image(values[name])]) if scored else ([], [])
        score: list[float] = score_pairs(generator, how.scoring, *pair).tolist()  # type: ignore[arg-type]
        expected.append((n, score[0] if score else None))
    expected.sort(key=lambda pair: (pair[1] is None, -(pair[1] or 0)))
    unavailable = sum(score is None for _, score in expected)
    counted = f"^{unavailable} of {len(names)} documents have no image"
    with pytest.warns(RuntimeWarning, match=counted) if unavailable else warnings.catch_warnings():
        found = DocumentRanker(generator, rule, batch_size=3).rank("green", [values[name] for name in names])
    assert found == expected


@pytest.mark.parametrize(
    ("settings", "question", "reason"),
    [
        ({"scoring": None}, "green", "scoring must be a rule for the generator, not None"),
        ({"scoring": "cosine"}, "green", "'cosine'"),
        ({"batch_size": 0}, "green", "batch_size must be at least 1"),
        ({"generator": object()}, "green", "is not a generator"),
        ({}, " ", "the question must be a non-empty string"),
        ({}, "red " * 300, "303 tokens"),
    ],
)
def test_bad_argument_is_refused(folder: Path, settings: Any, question: str, reason: str) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        DocumentRanker(**{"generator": ToyGenerator(), **settings}).rank(question, [folder / "red.png"])
