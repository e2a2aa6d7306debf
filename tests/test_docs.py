"""Every Python and shell snippet of the README and the docs runs, page by page and from top to bottom."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import SkipTest
from unittest.mock import create_autospec

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image as PILImage
from pyarrow import parquet
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser
from typer.testing import CliRunner

from rerank_server import serving
from served import listening_at
from tars import pack
from tiny_dual import clip, siglip
from tiny_vlms import cross_encoder
from worded import worded
from zsqretrieval.cli import app
from zsqretrieval.data.images import as_image
from zsqretrieval.data.samples import photographs
from zsqretrieval.encoders.clip import CLIPEncoder
from zsqretrieval.generators.kosmos import Kosmos1Generator
from zsqretrieval.generators.vlm.model import VLMGenerator
from zsqretrieval.laion.datacomp import write_features
from zsqretrieval.laion.embeddings import VectorRow, writing_embeddings
from zsqretrieval.laion.image_shards import write_image_shard
from zsqretrieval.mini.encoder import MiniEncoder
from zsqretrieval.mini.generator import MiniGenerator
from zsqretrieval.presets import PRESETS, Calibration
from zsqretrieval.retriever import Retriever
from zsqretrieval.tasks import generate_matrices, raven_item, write_raven
from zsqretrieval.testing import (
    ToyEncoder,
    ToyGenerator,
    encoder_checks,
    generator_checks,
    index_checks,
    reranker_checks,
)

ROOT = Path(__file__).parents[1]
README = "README.md"
SCRIPTS = "testing.md"  # its snippets are scripts
MEASURED = "verdict.md"  # made by a command, whose commands take data sets for hours
PAGES = {path.name: path for path in (ROOT / README, *sorted((ROOT / "docs").glob("*.md")))}

Names = dict[str, Any]


def run_commands(example: Example) -> None:
    """Run commands of ``zsq``, without input."""
    for line in example.parsed.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            assert words[0] == "zsq" and words[1] != "serve", f"{line}: say above the block why it is skipped"
            done = CliRunner().invoke(app, words[1:])
            assert done.exit_code == 0, f"{line}: {done.output}"


BOOK = Sybil([PythonCodeBlockParser(), CodeBlockParser("sh", run_commands), SkipParser()])


def snippets(page: str, language: str = "python") -> list[str]:
    return [str(found.parsed) for found in Sybil([CodeBlockParser(language, print)]).parse(PAGES[page])]


def run(page: str, names: Names) -> None:
    """Run a page from top to bottom, except what says above it why it is skipped."""
    document = BOOK.parse(PAGES[page])
    document.namespace.update(names)
    for example in document:
        with suppress(SkipTest):
            example.evaluate()


def save_photographs(folder: str, count: int = 3) -> None:
    """Copy photographs, with suffixes that the library recognises."""
    Path(folder).mkdir()
    for image in photographs()[:count]:
        source = Path(image.source)
        Path(folder, f"{image.id}{source.suffix}").write_bytes(source.read_bytes())


def save_colours(*files: str) -> None:
    for n, file in enumerate(files):
        PILImage.new("RGB", (64, 48), ("red", "green", "blue", "yellow")[n % 4]).save(file)


# --- names and files that a page takes for granted ------------------------------------------------------


def dialog() -> Names:
    save_photographs("Pictures")
    vague = replace(
        PRESETS["mini"].calibration, dialog_scale=1.0, dialog_temper=0.05
    )  # never sure of an image
    with Retriever.open("holidays.album", replace(PRESETS["mini"], calibration=vague)) as retriever:
        retriever.add("Pictures")
        retriever.save()
    return {}


def evaluation() -> Names:
    save_photographs("photos")
    lines = [f'{{"image": "{path.name}", "caption": "a {path.stem}"}}' for path in Path("photos").iterdir()]
    Path("photos/captions.jsonl").write_text("\n".join(lines))
    return {}


def photos() -> Names:
    save_photographs("photos")
    return {}


def nothing() -> Names:
    return {}


def with_pictures() -> Names:
    save_photographs("Pictures")
    return {}


def commands() -> Names:
    save_colours("bicycle.jpg")
    Retriever.open("other.album", preset="mini").close()
    return with_pictures()


def pictures() -> Names:
    save_colours("a.jpg", "b.jpg", "c.jpg")
    return {"pictures": {"a.jpg": 2009, "b.jpg": 2015, "c.jpg": 2021}}


def integrations() -> Names:
    for package in ("langchain_core", "llama_index.core", "haystack", "mteb", "datasets"):
        pytest.importorskip(package)
    return evaluation()


def milvus() -> Names:
    for package in ("pymilvus", "milvus_lite"):
        pytest.importorskip(package)
    save_colours("bus.jpg", "park.jpg", "lake.jpg")
    return {"encoder": ToyEncoder(), "generator": ToyGenerator()}


def indexes() -> Names:
    encoder = ToyEncoder()
    return {"encoder": encoder, "vectors": encoder.encode_text(["red", "green"]), "path": Path("index")}


def embedding() -> Names:
    ray = pytest.importorskip("ray")
    save_photographs("Pictures")
    Path("shards").mkdir()
    for n, picture in enumerate(Path("Pictures").iterdir()):
        pack(Path(f"shards/{n:05d}.tar"), {picture.name: picture.read_bytes()})
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, ignore_reinit_error=True)
    return {}


def encoders() -> Names:
    save_photographs("photos")
    siglip(Path("models/siglip2-base-patch16-224"))
    clip(Path("models/clip-ViT-B-32"))
    return {}


_urls: list[str] = []  # of a re-ranking server


@pytest.fixture(scope="module", autouse=True)
def reranking() -> Iterator[None]:
    with serving() as server:
        _urls.append(server.url)
        yield


_opened = ExitStack()


@pytest.fixture(autouse=True)
def closed_again() -> Iterator[None]:
    """Close what a page opened."""
    yield
    _opened.close()


def serve() -> Names:
    save_photographs("Pictures")
    save_colours("bicycle.jpg")
    retriever = _opened.enter_context(Retriever(ToyEncoder(), generator=ToyGenerator()))
    retriever.calibration = Calibration(dialog_scale=1.0, dialog_temper=0.05)  # never sure of an image
    retriever.add("Pictures")
    address, _ = _opened.enter_context(listening_at(retriever))
    return {"address": address, "retriever": retriever}


def rerankers() -> Names:
    save_photographs("photos")
    cross_encoder(Path("models/Qwen3-VL-Reranker-2B"))
    return {"url": _urls[-1]}


def tasks() -> Names:
    save_colours(*(f"{name}.jpg" for name in ("cat", "dog", "a", "b", "c")))
    items = [raven_item(matrix, str(n)) for n, matrix in enumerate(generate_matrices(1, layout="2x2"))]
    write_raven("iq50", items)
    images = ["cat.jpg", "dog.jpg"]
    labels = ["three toed woodpecker", "downy woodpecker"]
    training = {"training_images": ["a.jpg", "b.jpg", "c.jpg", *images, "a.jpg"]}
    return {"images": images, "labels": labels, **training, "training_labels": ["cat", "dog", "horse"] * 2}


def toys() -> Names:
    save_colours("dog.jpg")
    return {"encoder": ToyEncoder(), "image": as_image("dog.jpg")}


def laion() -> Names:
    """Files of all formats; embeddings of LAION of which one row is unsafe and one unknown."""
    save_colours("cat.jpg")
    for folder in ("metadata", "pool"):
        Path(folder).mkdir()
    table = pa.table({"URL": ["u"], "TEXT": ["a"], "uid": ["0" * 32], "clip_l14_similarity_score": [0.3]})
    parquet.write_table(table, "metadata/part-00000.parquet")
    write_features(Path("pool/00.parquet"), table, {"l14_img": np.ones((1, 4))})
    with writing_embeddings(Path("embeddings"), encoder="e", dim=4) as write:
        write(np.ones((2, 4)), [VectorRow("a"), VectorRow("b")])
    captions = ["a harbour at night", "a tabby cat", "a red bicycle in a garden", "two dogs on a beach"]
    urls = [f"https://example.org/{n}.jpg" for n in range(4)]
    rows = {
        "url": urls, "caption": captions, "punsafe": [0.1, 0.9, None, 0.2],
        "similarity": [0.3, 0.3, 0.2, 0.31],
        "width": [640] * 4, "height": [480] * 4, "language": ["en"] * 4,
    }  # fmt: skip
    vectors = MiniEncoder.from_pretrained().encode_text(captions).astype(np.float16)
    for kind in ("img_emb", "text_emb"):
        Path("laion2B", kind).mkdir(parents=True)
        np.save(f"laion2B/{kind}/{kind}_0000.npy", vectors)
    for folder, file in (("laion2B/metadata", "metadata_0000"), ("relaion", "part-0")):
        Path(folder).mkdir(parents=True)
        parquet.write_table(pa.table(rows), f"{folder}/{file}.parquet")
    save_photographs("photos")
    images = [path.read_bytes() for path in sorted(Path("photos").iterdir())]
    fetched = [
        (one, {"url": url, "caption": text}) for one, url, text in zip(images, urls, captions, strict=False)
    ]
    write_image_shard(
        Path("downloaded"), 0, [*fetched, (None, {"url": urls[3], "error_message": "timed out"})]
    )
    Path("takedown.txt").write_text(f"{urls[0]}\n{'0' * 32}\n-42\n")
    return {}


SETUPS: dict[str, Callable[[], Names]] = {
    "cli.md": commands,
    "clip.md": toys,
    "dialog.md": dialog,
    "embedding.md": embedding,
    "encoders.md": encoders,
    "evaluation.md": evaluation,
    "filters.md": pictures,
    "gallery-size.md": nothing,
    "gpu.md": nothing,
    "indexes.md": indexes,
    "integrations.md": integrations,
    "kosmos.md": toys,
    "laion-formats.md": laion,
    "laion.md": laion,
    "milvus.md": milvus,
    "mini-encoder.md": toys,
    "mini-generator.md": nothing,
    "own-parts.md": photos,
    "own-vectors.md": photos,
    "questions.md": photos,
    "quickstart.md": with_pictures,
    "recall-at-scale.md": nothing,
    "rerank.md": photos,
    "rerankers.md": rerankers,
    "scale.md": nothing,
    "scoring.md": nothing,
    "searching.md": with_pictures,
    "serve.md": nothing,
    "server.md": serve,
    "settings.md": nothing,
    "tasks.md": tasks,
    "troubleshooting.md": nothing,
    "vlm.md": toys,
    "when-to-use.md": nothing,
}


STAND_INS: dict[str, tuple[Any, Any]] = {
    "clip.md": (CLIPEncoder, ToyEncoder()),  # would download 0.6 GB
    "kosmos.md": (Kosmos1Generator, ToyGenerator()),  # 6.7 GB
    "vlm.md": (VLMGenerator, ToyGenerator()),  # 7.5 GB
    "tasks.md": (MiniGenerator, worded(PAGES["tasks.md"])),  # would score 50 matrices for minutes
}
"""Parts that a page does not load here; the arguments of its ``from_pretrained`` must fit the signature."""


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    """The mini models are loaded once for all pages."""

    def cached(load: Callable[..., Any]) -> Any:
        made = functools.cache(load)
        return staticmethod(functools.wraps(load)(lambda *names, **settings: made(*names, **settings)))

    with pytest.MonkeyPatch.context() as patch:
        for kind in (MiniEncoder, MiniGenerator):
            patch.setattr(kind, "from_pretrained", cached(kind.from_pretrained))
        yield


def test_no_page_with_snippets_is_left_out() -> None:
    with_snippets = {page for page in PAGES if snippets(page) or snippets(page, "sh")}
    assert with_snippets == {*SETUPS, README, SCRIPTS, MEASURED}
    assert not [
        page for page in PAGES for language in ("bash", "console", "shell") if snippets(page, language)
    ]


@pytest.mark.parametrize("page", SETUPS)
def test_snippets_run_from_top_to_bottom(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if page in STAND_INS:
        kind, toy = STAND_INS[page]
        monkeypatch.setattr(kind, "from_pretrained", create_autospec(kind.from_pretrained, return_value=toy))
        monkeypatch.setattr(toy, "save_pretrained", lambda folder: None, raising=False)
    run(page, SETUPS[page]())


def test_readme_runs_twice_in_the_same_folder() -> None:
    save_photographs("Pictures")
    for _ in range(2):
        run(README, {})


# --- docs/testing.md: scripts -----------------------------------------------------------------------------

MY_PACKAGE = """
import numpy as np
from zsqretrieval.testing import ToyEncoder, ToyIndex

class MyEncoder(ToyEncoder):
    @classmethod
    def from_pretrained(cls, name):
        return cls()

class MyIndex(ToyIndex):
    def add(self, keys, vectors):
        if keys.dtype == np.int64 and np.any(keys > 2**45):
            raise ValueError("a key of more than 32 bits")
        super().add(keys, vectors)
"""


def script(number: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    Path("test_script.py").write_text(snippets(SCRIPTS)[number], encoding="utf-8")
    return subprocess.run([sys.executable, *arguments, "test_script.py"], capture_output=True, text=True)


def test_failing_checks_print_the_error_that_the_page_shows() -> None:
    (shown,) = snippets(SCRIPTS, "text")
    assert script(0).stderr.endswith(shown)


def test_checks_become_test_cases_in_pytest() -> None:
    Path("my_package.py").write_text(MY_PACKAGE)
    done = script(1, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert f"{len(encoder_checks) + len(index_checks) - 1} passed, 1 xfailed" in done.stdout


def test_checks_of_a_generator_and_a_reranker_run_as_scripts() -> None:
    for number in (2, 3):
        done = script(number)
        assert (done.returncode, done.stderr) == (0, "")


def test_page_has_the_numbers_of_checks() -> None:
    text = " ".join(PAGES[SCRIPTS].read_text(encoding="utf-8").split())
    kits = (encoder_checks, index_checks, generator_checks, reranker_checks)
    counts = re.search(
        r"(\d+) for an encoder, (\d+) for an index, (\d+) for a generator, (\d+) for a re-ranker", text
    )
    assert counts is not None
    assert [*map(int, counts.groups())] == [*map(len, kits)]
