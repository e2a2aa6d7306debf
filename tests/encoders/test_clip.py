"""CLIPEncoder on a tiny random model, saved and loaded like open_clip's models."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from tiny_clip import ARCHITECTURE, tiny_clip
from zsqretrieval._util.torch import ensure_torchvision
from zsqretrieval.data.images import decode
from zsqretrieval.encoders.clip import CLIPEncoder
from zsqretrieval.errors import InvalidInputError, MismatchError, WeightsError
from zsqretrieval.protocols import Configurable
from zsqretrieval.testing import encoder_checks
from zsqretrieval.testing.pictures import paintings
from zsqretrieval.types import Image

ensure_torchvision()
import open_clip  # noqa: E402

TEXTS = ["a dog", "a red boat on a lake", "", "what is this? " * 100]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model for ``local-dir:``."""
    return tiny_clip(tmp_path_factory.mktemp("tiny-clip"))


@pytest.fixture(scope="session")
def encoder(folder: Path) -> CLIPEncoder:
    return CLIPEncoder.from_pretrained(f"local-dir:{folder}", device="cpu")


@pytest.fixture(scope="session")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny architecture, registered in open_clip under its own name."""
    path = tmp_path_factory.mktemp("configs") / "zsq-tiny.json"
    path.write_text(json.dumps(ARCHITECTURE))
    open_clip.add_model_config(path)
    return "zsq-tiny"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("open_clip.factory.download_pretrained", refuse)


def run(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("check", encoder_checks, ids=lambda check: check.name)
def test_contract(check: Callable[[Any], None], encoder: CLIPEncoder) -> None:
    check(lambda: encoder)


# ---- what it computes


def test_vectors_equal_those_of_open_clip(folder: Path, encoder: CLIPEncoder) -> None:
    name = f"local-dir:{folder}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    tokenize = open_clip.get_tokenizer(name)
    images = paintings(5)
    with torch.no_grad():
        pixels = torch.stack([preprocess(decode(image)) for image in images])
        expected_images = model.eval().encode_image(pixels, normalize=True).numpy()
        expected_texts = model.encode_text(tokenize(TEXTS), normalize=True).numpy()
    np.testing.assert_allclose(encoder.encode_image(images), expected_images, atol=1e-6)
    np.testing.assert_allclose(encoder.encode_text(TEXTS), expected_texts, atol=1e-6)
    assert encoder.dim == 16


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(max_size=20), max_size=6), batch_size=st.integers(1, 7))
def test_text_vectors_do_not_depend_on_the_batch_size(
    encoder: CLIPEncoder, texts: list[str], batch_size: int
) -> None:
    together = encoder.encode_text(texts, batch_size=batch_size)
    assert together.shape == (len(texts), 16) and together.dtype == np.float32
    for row, text in zip(together, texts, strict=True):
        np.testing.assert_allclose(row, encoder.encode_text([text])[0], atol=1e-5)


def test_batches_do_not_exceed_batch_size(encoder: CLIPEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    for method in ("encode_image", "encode_text"):
        real = getattr(encoder._model, method)

        def count(batch: torch.Tensor, real: Callable[..., torch.Tensor] = real) -> torch.Tensor:
            sizes.append(len(batch))
            return real(batch)

        monkeypatch.setattr(encoder._model, method, count)
    encoder.encode_image(paintings(7), batch_size=3)
    encoder.encode_text(TEXTS, batch_size=3)
    assert sizes == [3, 3, 1, 3, 1]


def test_decoding_is_at_most_two_batches_ahead(encoder: CLIPEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million images must not be decoded before the first is encoded."""
    taken = 0

    class Endless(list):
        def __iter__(self):
            nonlocal taken
            for image in super().__iter__():
                taken += 1
                yield image

    seen: list[int] = []
    real = encoder._model.encode_image
    monkeypatch.setattr(encoder._model, "encode_image", lambda batch: seen.append(taken) or real(batch))
    encoder.encode_image(Endless(paintings(2) * 20), batch_size=4)
    assert len(seen) == 10
    assert all(4 * i <= count <= 4 * i + 9 for i, count in enumerate(seen, start=1))


def test_long_text_is_cut_before_its_end_token(encoder: CLIPEncoder) -> None:
    words = "dog " * 200
    rows = encoder.encode_text([words, words + "cat", "dog " * 74, "dog " * 75])
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_allclose(rows[0], rows[3], atol=1e-6)
    assert np.abs(rows[0] - rows[2]).max() > 1e-4, "75 words, start and end token are 77 tokens"


@pytest.mark.parametrize("size", [(4, 3000), (3000, 4), (1, 60_000)])
def test_very_long_image_is_encoded_by_its_middle(
    encoder: CLIPEncoder, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ratios: list[float] = []
    real = encoder._preprocess
    monkeypatch.setattr(
        encoder, "_preprocess", lambda image: ratios.append(max(image.size) / min(image.size)) or real(image)
    )
    strip = PILImage.effect_noise(size, 80).convert("RGB")
    x, y = size[0] // 2, size[1] // 2
    reach = 4 * min(size)  # far enough on both sides of the middle square for the resizing filter
    middle = strip.crop(
        (max(0, x - reach), max(0, y - reach), min(size[0], x + reach), min(size[1], y + reach))
    )
    row, expected = encoder.encode_image([Image(strip, "strip"), Image(middle, "middle")])
    np.testing.assert_allclose(row, expected, atol=1e-5)
    assert max(ratios) <= 17, "resizing all of it takes gigabytes"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close_to_float32(folder: Path, encoder: CLIPEncoder, precision: str) -> None:
    half = CLIPEncoder.from_pretrained(f"local-dir:{folder}", device="cpu", precision=precision)
    for one, other in (
        (half.encode_image(paintings(4)), encoder.encode_image(paintings(4))),
        (half.encode_text(TEXTS), encoder.encode_text(TEXTS)),
    ):
        assert one.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-6)
        assert (one * other).sum(axis=1).min() > 0.995
        assert np.abs(one - other).max() > 1e-6, "not computed in half precision"
    assert half.fingerprint != encoder.fingerprint


@pytest.mark.parametrize(
    ("method", "items", "settings", "message"),
    [
        ("encode_text", "a dog", {}, r"not one string; try \['a dog'\]"),
        ("encode_text", ["a", 3], {}, r"texts\[1\] must be a string, not int"),
        ("encode_text", ["a"], {"batch_size": 0}, "batch_size must be at least 1"),
        ("encode_image", paintings(1), {"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_invalid_input_is_refused(
    encoder: CLIPEncoder, method: str, items: Any, settings: dict[str, int], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        getattr(encoder, method)(items, **settings)


# ---- sources of weights


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_checkpoint_file_gives_the_same_model(
    folder: Path, encoder: CLIPEncoder, architecture: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"checkpoint{suffix}"
    if suffix == ".safetensors":
        shutil.copy(folder / "open_clip_model.safetensors", path)
    else:
        torch.save(
            {"state_dict": open_clip.factory.load_state_dict(folder / "open_clip_model.safetensors")}, path
        )
    from_file = CLIPEncoder.from_pretrained(architecture, pretrained=path, device="cpu")
    np.testing.assert_array_equal(from_file.encode_text(TEXTS), encoder.encode_text(TEXTS))
    # the preprocessing of the folder differs from open_clip's default
    assert np.abs(from_file.encode_image(paintings(1)) - encoder.encode_image(paintings(1))).max() > 1e-3
    assert from_file.fingerprint != encoder.fingerprint
    assert from_file.config["pretrained"] == str(path)


def test_without_network_cached_models_load_and_others_say_what_to_do(
    folder: Path, encoder: CLIPEncoder, tmp_path: Path
) -> None:
    repository = tmp_path / "models--org--tiny"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = f"""
        from zsqretrieval.encoders.clip import CLIPEncoder
        from zsqretrieval.errors import WeightsError
        encoder = CLIPEncoder.from_pretrained("hf-hub:org/tiny", device="cpu", cache_dir={str(tmp_path)!r})
        print(encoder.fingerprint, encoder.dim)
        for name in ("ViT-B-32", "hf-hub:org/tiny"):
            try:
                CLIPEncoder.from_pretrained(name)
            except WeightsError as error:
                print(error)
        """
    cached, *refusals = run(code, HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(tmp_path / "empty")).splitlines()
    assert cached == f"{encoder.fingerprint} 16"
    assert "ViT-B-32 with weights laion2b_s34b_b79k" in refusals[0]
    assert "hf-hub:org/tiny" in refusals[1]
    for message in refusals:
        assert (
            "Offline, load it on a machine with network" in message and "local-dir:/path/to/folder" in message
        )


@pytest.mark.usefixtures("no_network")
class TestRefusedBeforeAnyDownload:
    @pytest.mark.parametrize(
        "name, tag",
        [("ViT-B-32", "openai"), ("ViT-L-14", "openai"), ("ViT-B-16", "dfn2b"), ("RN50", "cc12m")],
    )
    def test_quick_gelu_weights_in_gelu_architecture(self, name: str, tag: str) -> None:
        with pytest.raises(MismatchError, match=f"'{tag}'.*QuickGELU.*'{name}-quickgelu'"):
            CLIPEncoder.from_pretrained(name, tag)

    def test_gelu_weights_with_forced_quick_gelu(self) -> None:
        with pytest.raises(MismatchError, match="leave out force_quick_gelu"):
            CLIPEncoder.from_pretrained("ViT-B-32", "laion2b_s34b_b79k", force_quick_gelu=True)

    @pytest.mark.parametrize(
        ("name", "pretrained", "settings", "message"),
        [
            ("ViT-B32", "openai", {}, r"no model 'ViT-B32'; did you mean .*ViT-B-32"),
            ("ViT-B-32", "laion2b_s34b", {}, r"no weights 'laion2b_s34b'.*did you mean laion2b_s34b_b79k"),
            ("ViT-L-14", None, {}, r"ViT-L-14 needs pretrained=.*openai"),
            ("ViT-B-32", None, {"precision": "int8"}, "must be one of fp32, bf16, fp16, not 'int8'"),
            ("ViT-B-32", None, {"device": "abacus"}, "device 'abacus' cannot be used here"),
        ],
    )
    def test_unknown_name_or_setting(
        self, name: str, pretrained: str | None, settings: dict[str, str], message: str
    ) -> None:
        with pytest.raises(InvalidInputError, match=message):
            CLIPEncoder.from_pretrained(name, pretrained, **settings)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_missing_gpu(self) -> None:
        with pytest.raises(InvalidInputError, match="device 'cuda' cannot be used here"):
            CLIPEncoder.from_pretrained(device="cuda")


@pytest.mark.parametrize("name, tag", [("ViT-B-32-quickgelu", "openai"), ("ViT-B-32", "laion2b_s34b_b79k")])
def test_matching_weights_are_downloaded(name: str, tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("open_clip.factory.download_pretrained", stop)
    with pytest.raises(WeightsError, match="no route to host"):
        CLIPEncoder.from_pretrained(name, tag)


def test_missing_or_damaged_weights_are_refused(folder: Path, architecture: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no checkpoint file .*gone\.pt"):
        CLIPEncoder.from_pretrained(architecture, tmp_path / "gone.pt")
    with pytest.raises(WeightsError, match=r"no open_clip_config\.json"):
        CLIPEncoder.from_pretrained(f"local-dir:{tmp_path}")
    shutil.copy(folder / "open_clip_config.json", tmp_path)
    with pytest.raises(WeightsError, match=r"could not be loaded.*incomplete"):
        CLIPEncoder.from_pretrained(f"local-dir:{tmp_path}")
    weights = (folder / "open_clip_model.safetensors").read_bytes()
    (tmp_path / "open_clip_model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(WeightsError, match=r"SafetensorError.* damaged"):
        CLIPEncoder.from_pretrained(f"local-dir:{tmp_path}")
    with pytest.raises(WeightsError, match=r"AssertionError: text pos_embed.* of another model"):
        CLIPEncoder.from_pretrained("ViT-S-32-alt", folder / "open_clip_model.safetensors")
    with pytest.raises(InvalidInputError, match="has its own weights"):
        CLIPEncoder.from_pretrained(f"local-dir:{folder}", "openai")


def test_random_weights_need_the_name_random(architecture: str, folder: Path) -> None:
    with pytest.raises(InvalidInputError, match="zsq-tiny needs pretrained="):
        CLIPEncoder.from_pretrained(architecture)
    before = torch.random.get_rng_state()
    one, same, other = (
        CLIPEncoder.from_pretrained(architecture, "random", device="cpu", seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.random.get_rng_state()), "the caller's random state changed"
    np.testing.assert_array_equal(one.encode_text(TEXTS), same.encode_text(TEXTS))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    local = CLIPEncoder.from_pretrained(f"local-dir:{folder}", "random", device="cpu", seed=1)
    np.testing.assert_array_equal(one.encode_text(TEXTS), local.encode_text(TEXTS))


# ---- fingerprint and settings


def test_fingerprint_depends_on_everything_that_changes_vectors(
    folder: Path, encoder: CLIPEncoder, tmp_path: Path
) -> None:
    def changed(**sections: dict[str, Any]) -> str:
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        config = json.loads((folder / "open_clip_config.json").read_text())
        for section, values in sections.items():
            config[section] |= values
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        return CLIPEncoder.from_pretrained(f"local-dir:{tmp_path}", device="cpu").fingerprint

    assert changed() == encoder.fingerprint, "the path of the folder changed the fingerprint"
    names = {
        encoder.fingerprint,
        changed(preprocess_cfg={"mean": [0.5, 0.4, 0.31]}),
        changed(preprocess_cfg={"interpolation": "bicubic"}),
        changed(model_cfg={"quick_gelu": True}),
        changed(model_cfg={"vision_cfg": {**ARCHITECTURE["vision_cfg"], "head_width": 16}}),
        changed(
            model_cfg={"text_cfg": {**ARCHITECTURE["text_cfg"], "tokenizer_kwargs": {"clean": "whitespace"}}}
        ),
    }
    assert len(names) == 6
    forced = CLIPEncoder.from_pretrained(f"local-dir:{folder}", device="cpu", force_quick_gelu=True)
    assert forced.fingerprint not in names - {changed(model_cfg={"quick_gelu": True})}
    assert np.abs(forced.encode_text(TEXTS) - encoder.encode_text(TEXTS)).max() > 1e-4
    state = open_clip.factory.load_state_dict(folder / "open_clip_model.safetensors")
    state["visual.proj"][0, 0] += 1e-6
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    save_file(state, tmp_path / "open_clip_model.safetensors")
    assert CLIPEncoder.from_pretrained(f"local-dir:{tmp_path}").fingerprint not in names


def test_tokenizer_of_the_folder_changes_the_fingerprint_and_is_thread_safe(
    folder: Path, tmp_path: Path
) -> None:
    """A fast tokenizer from the folder itself, as in multilingual models."""

    def with_vocabulary(*words: str) -> CLIPEncoder:
        target = tmp_path / words[0]
        shutil.copytree(folder, target)
        config = json.loads((target / "open_clip_config.json").read_text())
        config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "its-own", "context_length": 77}
        (target / "open_clip_config.json").write_text(json.dumps(config))
        vocabulary = {word: i for i, word in enumerate(("[PAD]", "[UNK]", *words))}
        tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = Whitespace()
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
        ).save_pretrained(target)
        return CLIPEncoder.from_pretrained(f"local-dir:{target}", device="cpu")

    one, other = with_vocabulary("A", "probe", "dogs"), with_vocabulary("probe", "dogs", "A")
    assert one.fingerprint != other.fingerprint, "the tokenizers differ"
    texts = ["A probe", "dogs"] * 20
    expected = one.encode_text(texts)
    fresh = CLIPEncoder.from_config(one.config)
    with ThreadPoolExecutor(8) as pool:
        for rows in pool.map(lambda _: fresh.encode_text(texts, batch_size=1), range(8)):
            np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_config_rebuilds_the_encoder(
    folder: Path, encoder: CLIPEncoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert isinstance(encoder, Configurable)
    monkeypatch.chdir(folder.parent)
    relative = CLIPEncoder.from_pretrained(f"local-dir:{folder.name}", device="cpu", precision="bf16")
    monkeypatch.chdir(tmp_path)
    again = CLIPEncoder.from_config(json.loads(json.dumps(relative.config)))
    assert again.fingerprint == relative.fingerprint
    np.testing.assert_array_equal(again.encode_text(TEXTS), relative.encode_text(TEXTS))
    with pytest.raises(InvalidInputError, match="no setting 'devise'"):
        CLIPEncoder.from_config({**encoder.config, "devise": "cpu"})
