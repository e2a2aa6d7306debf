"""The mini generator with its real base weights and its shipped trained part."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import zsqretrieval.mini.generator as mini_module
from contract_cases import contract_cases
from zsqretrieval import plugins
from zsqretrieval.data.samples import photographs
from zsqretrieval.errors import InvalidInputError, WeightsError
from zsqretrieval.generators.prompts import PROMPTS
from zsqretrieval.mini.generator import MiniGenerator
from zsqretrieval.protocols import ImageStates
from zsqretrieval.search.scoring import YesNo, score_pairs
from zsqretrieval.testing import GeneratorCase
from zsqretrieval.types import Image, ImageState

SHIPPED = Path(mini_module.__file__).with_name("generator.safetensors")


@cache
def generator(dtype: str = "float32") -> MiniGenerator:
    return MiniGenerator.from_pretrained(dtype=dtype)


@cache
def photos() -> dict[str, Image]:
    return {str(image.id): image for image in photographs()}


@pytest.mark.parametrize(("name", "check"), contract_cases(["mini"]))
def test_contract(name, check) -> None:  # type: ignore[no-untyped-def]
    """The code that mini shares with Kosmos keeps its contract in generators/test_kosmos.py."""
    check(lambda: GeneratorCase(generator(), split=("a dog", " runs")))


# On CPUs with AMX, and on those without AVX-512, the order of addition depends on the number of rows: one
# other rounding in bfloat16 moves a sum by some hundredths of a nat.
_STEADY = torch.cpu._is_avx512_supported() and not torch.cpu._is_amx_tile_supported()
BFLOAT16 = 2e-2 if _STEADY else 0.15


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", BFLOAT16)])
def test_states_pixels_batches_and_order_give_equal_scores(dtype: str, tolerance: float) -> None:
    model = generator(dtype)
    images = list(photos().values())[:7]
    questions = ["is there a cat?", "a man with a camera on a tripod in a field", "who?"]
    states = [
        ImageState(values, model.fingerprint, image.source)
        for image, values in zip(images, model.image_states(images, batch_size=3), strict=True)
    ]
    prompt = PROMPTS["question"]

    def sums(shown, batch_size: int, turned: bool = False) -> np.ndarray:  # type: ignore[no-untyped-def]
        pairs = [(prompt.context(image), question) for image in shown for question in questions]
        pairs = pairs[::-1] if turned else pairs
        found = model.log_likelihood(*map(list, zip(*pairs, strict=True)), batch_size=batch_size)  # type: ignore[arg-type]
        return np.array([one.sum for one in (found[::-1] if turned else found)])

    expected = sums(images, 1)
    assert np.reshape(expected, (7, 3))[:, :2].std(0).min() > 10 * tolerance, "scores depend on the image"
    for other in (sums(states, 1), sums(states, 64), sums(images, 5), sums(states, 4, turned=True)):
        np.testing.assert_allclose(other, expected, atol=tolerance)


def test_yes_no_scores_differ_between_photographs_in_bfloat16() -> None:
    """bfloat16 logits are rounded to sixteenths; scores must not be."""
    question, images = "does this show a man with a camera?", list(photos().values())[:18]
    exact, rounded = (
        score_pairs(generator(dtype), YesNo(), [question] * len(images), images)
        for dtype in ("float32", "bfloat16")
    )
    assert len(np.unique(rounded)) >= 0.9 * len(rounded)
    assert np.abs(rounded - exact).max() < 0.15 and np.corrcoef(rounded, exact)[0, 1] > 0.98


def test_question_is_likeliest_of_its_photograph() -> None:
    questions = {
        "cat": "a cat looking at the camera",
        "flower": "an orange flower",
        "sports_car": "a white car",
        "photographer": "a man with a camera on a tripod in a field",
    }
    images = [photos()[name] for name in questions]
    contexts = [PROMPTS["question"].context(image) for image in images]
    found = {
        name: max(
            range(len(images)),
            key=[one.sum for one in generator().log_likelihood(contexts, [text] * len(contexts))].__getitem__,
        )
        for name, text in questions.items()
    }
    right = sum(list(questions).index(name) == best for name, best in found.items())
    assert right >= 3, found


def test_captions_differ_and_answers_are_short() -> None:
    shown = [photos()[name] for name in ("cat", "photographer", "rocket")]
    captions = generator().generate([PROMPTS["captioning"].context(image) for image in shown])
    assert len({texts[0] for texts in captions}) == 3
    assert all(3 <= len(texts[0].split()) <= 25 for texts in captions)
    answer = generator().generate([PROMPTS["vqa"].context(shown[1], question="is there a man?")])
    assert answer[0][0] in {"yes", "no"}


def test_image_state_takes_24_kibibytes_in_16_bits() -> None:
    model = generator("bfloat16")
    assert isinstance(model, ImageStates)
    states = model.image_states([photos()["cat"]])
    assert states.shape == (1, 32, 384)
    assert states.dtype == model.state_dtype == np.float16
    assert states.nbytes == 24 * 1024


def test_prefix_cache_changes_no_score() -> None:
    cached = MiniGenerator.from_pretrained(dtype="float32", prefix_cache_bytes=1 << 26)
    contexts = [PROMPTS["question"].context(photos()[name]) for name in ("cat", "coffee")]
    for question in ("a cat", "a cup of coffee"):
        expected = generator().log_likelihood(contexts, [question] * 2)
        found = cached.log_likelihood(contexts, [question] * 2)
        assert [one.sum for one in found] == pytest.approx([one.sum for one in expected], abs=1e-4)


def test_tokens_spell_the_text() -> None:
    (found,) = generator().log_likelihood([["an image of"]], ["Two Skateboarders, jumping."])
    assert "".join(found.tokens) == " two skateboarders , jumping ."


def test_generator_is_restored_by_name() -> None:
    assert "mini" in plugins.available("generator")
    again = plugins.create("generator", "mini", generator().config)
    assert isinstance(again, MiniGenerator)
    assert again.fingerprint == generator().fingerprint


def test_precision_is_part_of_the_fingerprint() -> None:
    assert generator("bfloat16").fingerprint != generator("float32").fingerprint


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="'wings'"):
        MiniGenerator.from_config({"wings": 2})
    with pytest.raises(InvalidInputError, match="dtype must be one of"):
        MiniGenerator.from_pretrained(dtype="int3")


def test_damaged_trained_part_is_refused(tmp_path: Path) -> None:
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(SHIPPED.read_bytes()[:100_000])
    with pytest.raises(WeightsError, match=r"torn\.safetensors is not a readable"):
        MiniGenerator.from_pretrained(torn)
    tensors = load_file(SHIPPED)
    tensors.pop("eyes.latents")
    lacking = tmp_path / "lacking.safetensors"
    save_file(tensors, lacking)
    with pytest.raises(WeightsError, match=r"(?s)lacking\.safetensors does not fit.*eyes\.latents"):
        MiniGenerator.from_pretrained(lacking)


def test_trained_part_is_small_enough_to_ship() -> None:
    assert SHIPPED.stat().st_size < 40_000_000
