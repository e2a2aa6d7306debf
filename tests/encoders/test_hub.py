"""TransformersEncoder and SentenceTransformerEncoder on tiny random models, saved and loaded as real ones."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_dual
from tiny_vlms import hf
from zsqretrieval import plugins
from zsqretrieval._util.torch import ensure_torchvision
from zsqretrieval.data.images import decode
from zsqretrieval.encoders.hub import SentenceTransformerEncoder, TransformersEncoder
from zsqretrieval.errors import InvalidInputError, WeightsError
from zsqretrieval.protocols import Configurable, truncated
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing import encoder_checks
from zsqretrieval.testing.pictures import paintings

ensure_torchvision()
from sentence_transformers import SentenceTransformer  # noqa: E402

KINDS: dict[str, Any] = {
    "transformers": TransformersEncoder,
    "sentence_transformers": SentenceTransformerEncoder,
}
TEXTS = ["the red house", "What is the colour of the dog", "Only Text", "the green house the red thing"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: build(tmp_path_factory.mktemp(name)) for name, build in tiny_dual.FAMILIES.items()}


@pytest.fixture(scope="session")
def made(folders: dict[str, Path]) -> dict[tuple[str, str], Any]:
    return {
        (kind, name): KINDS[kind](str(folder), device="cpu")
        for kind in KINDS
        for name, folder in folders.items()
    }


def cases() -> list[Any]:
    """All checks of two models of each package; of the others those of how they read texts and images."""
    whole = (("transformers", "clip"), ("sentence_transformers", "siglip"))
    some = ("unit_vectors", "batch_size", "order", "differ", "unusual", "extreme")
    return [
        pytest.param(
            kind, name, check, id=f"{kind}-{name}-{check.name}",
            marks=[] if (kind, name) in whole or any(part in check.name for part in some)
            else [pytest.mark.slow],
        )
        for kind in KINDS
        for name in tiny_dual.FAMILIES
        for check in encoder_checks
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "check"), cases())
def test_contract(made: Any, kind: str, name: str, check: Any) -> None:
    check(lambda: made[kind, name])


def unit(rows: Any) -> np.ndarray:
    rows = getattr(rows, "pooler_output", rows)
    return torch.nn.functional.normalize(rows, dim=-1).detach().numpy()


@pytest.mark.parametrize("name", tiny_dual.FAMILIES)
def test_vectors_are_those_of_transformers(made: Any, folders: Any, name: str) -> None:
    model, processor = (
        hf.AutoModel.from_pretrained(folders[name]),
        hf.AutoProcessor.from_pretrained(folders[name]),
    )
    images = paintings(3)
    pixels = processor(images=[decode(image) for image in images], return_tensors="pt")
    texts = [text.lower() if "siglip" in name else text for text in TEXTS]
    padding = {"padding": "max_length", "max_length": 64, "truncation": True}
    words = processor(text=texts, return_tensors="pt", **(padding if "siglip" in name else {"padding": True}))
    if "siglip" in name:
        words = {"input_ids": words["input_ids"]}
    with torch.inference_mode():
        expected = model.get_image_features(**pixels), model.get_text_features(**words)
    encoder = made["transformers", name]
    for found, wanted in zip(
        (encoder.encode_image(images), encoder.encode_text(TEXTS)), expected, strict=True
    ):
        np.testing.assert_allclose(found, unit(wanted), atol=1e-5)


@pytest.mark.parametrize("name", ["clip", "metaclip2"])
def test_vectors_are_those_of_sentence_transformers(made: Any, folders: Any, name: str) -> None:
    model = SentenceTransformer(str(folders[name]), device="cpu")
    images = paintings(3)
    wanted = (
        model.encode([decode(image) for image in images], normalize_embeddings=True),
        model.encode(TEXTS, normalize_embeddings=True),
    )
    encoder = made["sentence_transformers", name]
    for found, rows in zip((encoder.encode_image(images), encoder.encode_text(TEXTS)), wanted, strict=True):
        np.testing.assert_allclose(found, rows, atol=1e-5)


@pytest.mark.parametrize("name", ["siglip", "siglip2"])
def test_both_packages_read_siglip_in_lower_case_and_padded_to_64(made: Any, name: str) -> None:
    one, other = (made[kind, name] for kind in KINDS)
    assert one.encode_text(TEXTS) == pytest.approx(other.encode_text(TEXTS), abs=1e-5)
    for encoder in (one, other):
        shouted = encoder.encode_text([text.upper() for text in TEXTS])
        assert encoder.encode_text(TEXTS) == pytest.approx(shouted, abs=1e-6)
        assert truncated(encoder, ["the red house", "the red house " * 40]) == [False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts_are_cut_and_reported(made: Any, kind: str) -> None:
    encoder = made[kind, "clip"]
    long, longer = "the red house " * 20, "the red house " * 21
    assert truncated(encoder, ["the red house", " ".join(["the"] * 22), " ".join(["the"] * 23), long]) == [
        False,
        False,
        True,
        True,
    ]
    rows = encoder.encode_text([long, longer])
    assert rows[0] == pytest.approx(rows[1], abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_words_not_files_urls_or_tokens(
    made: Any, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sentence-transformers takes such texts for images."""
    encoder = made[kind, "clip"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "house.png").write_bytes(paintings(1)[0].content)  # type: ignore[arg-type]
    odd = ["house.png", "http://127.0.0.1:1/house.png", "data:image/png;base64,AA"]
    image = encoder.encode_image(paintings(1))[0]
    assert all(np.abs(row - image).max() > 1e-3 for row in encoder.encode_text(odd))
    plain, cut = encoder.encode_text(["the red </s> house", "the red </s> dog"])
    assert np.abs(plain - cut).max() > 1e-4, "what follows a typed end token counts"


def test_fingerprint_follows_weights_preprocessing_and_dtype_but_not_the_place(
    folders: Any, made: Any, tmp_path: Path
) -> None:
    for kind in KINDS:
        first = made[kind, "clip"].fingerprint
        seen = {first}

        def changed(file: str, change: Any, kind: str = kind) -> str:
            folder = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
            shutil.copytree(folders["clip"], folder)
            path = folder / file
            path.write_text(json.dumps(change(json.loads(path.read_text()))))
            return KINDS[kind](folder, device="cpu").fingerprint

        assert changed("config.json", lambda config: config) == first
        file = next(file.name for file in folders["clip"].glob("*processor_config.json"))

        def brighter(config: Any) -> Any:
            target = config.get("image_processor", config)
            target["image_mean"] = [0.1, 0.2, 0.3]
            return config

        seen.add(changed(file, brighter))
        seen.add(KINDS[kind](folders["clip"], dtype="bfloat16", device="cpu").fingerprint)
        seen.add(made[kind, "metaclip2"].fingerprint)
        assert len(seen) == 4
    assert made["transformers", "clip"].fingerprint != made["sentence_transformers", "clip"].fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_album_restores_it_by_name(folders: Any, made: Any, kind: str, tmp_path: Path) -> None:
    encoder = made[kind, "clip"]
    assert plugins.load("encoder", kind) is KINDS[kind] and isinstance(encoder, Configurable)
    described = plugins.describe("encoder", encoder)
    config = {"name_or_path": str(folders["clip"]), "dtype": "float32", "revision": None}
    assert described == {"plugin": kind, "config": config}
    assert not plugins.names_nothing("encoder", described)
    with Retriever(encoder, path=tmp_path / "album") as retriever:
        retriever.add(paintings(2))
    with Retriever.open(tmp_path / "album", trust_parts=True) as again:
        assert len(again.search("the red house", rerank=None)) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_model_that_is_given_itself_works_and_has_no_name(folders: Any, made: Any, kind: str) -> None:
    if kind == "transformers":
        model = hf.AutoModel.from_pretrained(folders["clip"])
        encoder = TransformersEncoder(model, hf.AutoProcessor.from_pretrained(folders["clip"]))
    else:
        encoder = SentenceTransformerEncoder(SentenceTransformer(str(folders["clip"]), device="cpu"))
    assert encoder.fingerprint == made[kind, "clip"].fingerprint
    assert encoder.encode_text(TEXTS) == pytest.approx(made[kind, "clip"].encode_text(TEXTS), abs=1e-6)
    assert plugins.describe("encoder", encoder) is None
    assert repr(encoder) == f"{type(encoder).__name__}()"
    copied = pickle.loads(pickle.dumps(encoder))
    assert copied.encode_text(TEXTS) == pytest.approx(encoder.encode_text(TEXTS), abs=1e-6)


def test_making_one_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from zsqretrieval.encoders.hub import SentenceTransformerEncoder, TransformersEncoder\n"
        "for kind in (SentenceTransformerEncoder, TransformersEncoder): kind('someone/model').config\n"
        "assert not {'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_models_that_cannot_be_used_are_refused(folders: Any, tmp_path: Path, kind: str) -> None:
    make = KINDS[kind]
    with pytest.raises(InvalidInputError, match="dtype must be one of"):
        make("someone/model", dtype="int8")
    with pytest.raises(WeightsError, match="cannot load the encoder no/such-model"):
        make("no/such-model", device="cpu").encode_text(TEXTS)
    tokenizer = tiny_dual.words_tokenizer()
    hf.BertModel(hf.BertConfig(**tiny_dual.LAYERS, vocab_size=len(tokenizer))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match=r"no get_image_features|takes text, not both"):
        make(tmp_path, device="cpu").encode_text(TEXTS)
    folder = Path(shutil.copytree(folders["clip"], tmp_path / "damaged"))
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match="The folder is incomplete, damaged"):
        _ = make(folder, device="cpu").fingerprint


def test_model_without_its_processor_is_refused(folders: Any) -> None:
    for arguments in ((object(),), ("someone/model", object())):
        with pytest.raises(InvalidInputError, match="give a model with its processor, or the name of both"):
            TransformersEncoder(*arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_code_beside_the_weights_never_runs(folders: Any, tmp_path: Path, kind: str) -> None:
    folder = Path(shutil.copytree(folders["clip"], tmp_path / "model"))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="evil", auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"})
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError):
        KINDS[kind](folder, device="cpu").encode_text(TEXTS)
    assert not (tmp_path / "ran").exists()
