"""The mini encoder with its real base weights and its shipped trained part."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file

import zsqretrieval.mini.encoder as mini_module
from zsqretrieval import plugins
from zsqretrieval._util.torch import import_transformers
from zsqretrieval.data.images import decode
from zsqretrieval.data.samples import photographs
from zsqretrieval.errors import InvalidInputError, WeightsError
from zsqretrieval.mini import efficientnet
from zsqretrieval.mini.bert import Bert
from zsqretrieval.mini.efficientnet import pictures, scale_pixels
from zsqretrieval.mini.encoder import ImageTower, MiniEncoder, TextTower
from zsqretrieval.mini.generator import MiniGenerator
from zsqretrieval.mini.weights import read_base_weights
from zsqretrieval.testing import encoder_checks, parametrize_checks
from zsqretrieval.types import Image

SHIPPED = Path(mini_module.__file__).with_name("encoder.safetensors")


@cache
def encoder() -> MiniEncoder:
    return MiniEncoder.from_pretrained()


@parametrize_checks(encoder_checks, encoder)
def test_contract(check) -> None:  # type: ignore[no-untyped-def]
    check()


def test_questions_find_unseen_photographs() -> None:
    questions = {
        "cat": "a cat",
        "coffee": "a cup of coffee on a table",
        "flower": "an orange flower",
        "sports_car": "a white car",
        "photographer": "a man with a camera on a tripod",
    }
    images = [image for image in photographs() if image.id in questions]
    vectors = encoder().encode_image(images)
    similarity = encoder().encode_text(list(questions.values())) @ vectors.T
    found = [images[best].id for best in similarity.argmax(1)]
    assert found == list(questions)


def test_question_is_nearer_to_its_caption_than_to_another() -> None:
    texts = ["A dog runs on the beach.", "where is a dog running on the beach?", "Two men play guitars."]
    caption, question, other = encoder().encode_text(texts)
    assert caption @ question > caption @ other + 0.3


def test_backbone_classifies_a_cat_as_a_cat() -> None:
    """Every weight is loaded into the right place of timm's model. Cats are ImageNet classes 281 to 285."""
    tower = ImageTower(read_base_weights()).eval()
    (cat,) = (image for image in photographs() if image.id == "cat")
    pixels = torch.from_numpy(np.asarray(decode(cat).resize((260, 260)))[None].copy())
    with torch.inference_mode():
        grid = tower.trunk(scale_pixels(pixels))
        probabilities = tower.class_probabilities(tower.own(grid))[0]
    assert grid.shape == (1, 208, 9, 9)
    assert 281 <= int(probabilities.argmax()) <= 285
    assert float(probabilities[281:286].sum()) > 0.8


def _settings(hf: Any) -> Any:
    """Those of MiniLM."""
    return hf.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
        vocab_size=30522, max_position_embeddings=512, layer_norm_eps=1e-12,
    )  # fmt: skip


def test_text_trunk_and_own_layers_equal_minilm() -> None:
    base = read_base_weights()
    tower = TextTower(base).eval()
    hf = import_transformers()
    whole = hf.BertModel(_settings(hf), add_pooling_layer=False).eval()
    whole.load_state_dict(base.minilm)
    ids = torch.tensor([[101, 1037, 3899, 102], [101, 4937, 102, 0]])
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 0]])
    with torch.inference_mode():
        own = tower.own(tower.trunk(ids, mask), mask)
        expected = whole(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    assert torch.allclose(own[mask == 1], expected[mask == 1], atol=1e-5)


@pytest.mark.parametrize("cached", [0, 3])
def test_decoder_with_padding_equals_transformers(cached: int) -> None:
    base, hf = read_base_weights(), import_transformers()
    settings = _settings(hf)
    settings.is_decoder = True
    theirs, ours = hf.BertModel(settings, add_pooling_layer=False).eval(), Bert().eval()
    for model in (theirs, ours):
        model.load_state_dict(base.minilm)
    words = torch.randn(2, cached + 4, 384, generator=torch.Generator().manual_seed(0)) / 20
    mask = torch.ones(2, cached + 4, dtype=torch.long)
    mask[1, [-1, cached - 1]] = 0  # the last one of the cache, and of the new ones
    caches = [hf.DynamicCache(), hf.DynamicCache()]
    with torch.inference_mode():
        if cached:
            ours.causal(words[:, :cached], mask=mask[:, :cached], cache=caches[0])
            theirs(
                inputs_embeds=words[:, :cached], attention_mask=mask[:, :cached], past_key_values=caches[1]
            )
        found = ours.causal(words[:, cached:], mask=mask, cache=caches[0])
        expected = theirs(
            inputs_embeds=words[:, cached:], attention_mask=mask, past_key_values=caches[1],
            position_ids=torch.arange(cached, cached + 4)[None],
        ).last_hidden_state  # fmt: skip
    read = mask[:, cached:] == 1
    assert torch.allclose(found[read], expected[read], atol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_folded_tower_equals_the_one_with_normalisations(
    fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fused:
        monkeypatch.setattr(efficientnet, "_POINTWISE", None)
    base, pixels = read_base_weights(), scale_pixels(pictures(photographs()[:6]))  # more than one part
    plain, folded = ImageTower(base), ImageTower(base).fold()
    with torch.inference_mode():
        grid, expected = folded.trunk(pixels), plain.trunk(pixels)
        assert torch.allclose(grid, expected, atol=1e-3)
        assert torch.allclose(folded.own(grid), plain.own(expected), atol=1e-3)
    assert torch.equal(plain.stem[0].weight, base.efficientnet["_conv_stem.weight"]), "base is as it was"


def test_loading_draws_nothing_at_random() -> None:
    before = torch.random.get_rng_state()
    for model in (MiniEncoder, MiniGenerator):
        model.from_pretrained(device="cpu")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_encoder_is_restored_by_name() -> None:
    assert plugins.name_of("encoder", encoder()) == "mini"
    again = plugins.create("encoder", "mini", encoder().config)
    assert again.fingerprint == encoder().fingerprint
    assert again.dim == encoder().dim == 1408


def test_other_weights_change_the_fingerprint(tmp_path: Path) -> None:
    tensors = load_file(SHIPPED)
    tensors["image.tuned_head.fc2.bias"] = tensors["image.tuned_head.fc2.bias"] + 1
    save_file(tensors, tmp_path / "mine.safetensors")
    mine = MiniEncoder.from_pretrained(tmp_path / "mine.safetensors")
    assert mine.fingerprint != encoder().fingerprint
    picture = Image(PILImage.new("RGB", (30, 20), "teal"), "teal")
    assert np.abs(mine.encode_image([picture]) - encoder().encode_image([picture])).max() > 1e-3
    assert MiniEncoder.from_config(mine.config).fingerprint == mine.fingerprint


def test_knowledge_share_sets_the_weight_of_the_class_names() -> None:
    texts = ["a marmot", "two people on a beach"]
    shipped = encoder().encode_text(texts)
    only = MiniEncoder.from_pretrained(knowledge_share=1)
    assert np.allclose(only.encode_text(texts)[:, :1024], 0)
    assert np.allclose(only.encode_text(texts)[:, 1024:], shipped[:, 1024:] / np.sqrt(0.25), atol=1e-5)
    assert only.fingerprint != encoder().fingerprint
    assert MiniEncoder.from_config(only.config).fingerprint == only.fingerprint


@pytest.mark.parametrize("damage", ["truncated", "lacking", "misshapen", "absent"])
def test_damaged_trained_part_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "mini.safetensors"
    tensors = load_file(SHIPPED)
    if damage == "truncated":
        path.write_bytes(SHIPPED.read_bytes()[:-1000])
    elif damage == "lacking":
        save_file({name: value for name, value in tensors.items() if name != "share"}, path)
    elif damage == "misshapen":
        save_file({**tensors, "text.own_head.fc2.bias": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=r"mini\.safetensors"):
        MiniEncoder.from_pretrained(path)


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda: encoder().encode_text(["a dog"], batch_size=0), "batch_size must be at least 1, not 0"),
        (lambda: encoder().encode_image([], batch_size=-1), "batch_size must be at least 1, not -1"),
        (lambda: encoder().encode_text(["a dog", 3]), "sequence of strings"),  # type: ignore[list-item]
        (lambda: encoder().encode_text("a dog"), "sequence of strings"),
        (lambda: MiniEncoder.from_pretrained(knowledge_share=1.5), "at least 0 and at most 1, not 1.5"),
        (lambda: MiniEncoder.from_pretrained(knowledge_share="0.5"), "must be a finite number, not '0.5'"),  # type: ignore[arg-type]
        (lambda: MiniEncoder.from_pretrained(knowledge_share=True), "must be a finite number, not True"),
        (lambda: MiniEncoder.from_config({"wings": 2}), "MiniEncoder has no setting 'wings'; it has weights"),
    ],
)
def test_wrong_arguments_are_refused(refused: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        refused()
