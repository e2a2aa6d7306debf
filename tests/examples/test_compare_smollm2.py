"""The comparison with SmolLM2, with a tiny model of its architecture in its place."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from zsqretrieval._util.torch import ensure_torchvision
from zsqretrieval.mini.generator import MiniModel
from zsqretrieval.mini.weights import read_base_weights

ensure_torchvision()
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

SAID = ["a dog", "two dogs on the beach", "water", "a brown dog runs through the water"]


@pytest.fixture
def word_pieces() -> Tokenizer:
    return read_base_weights().tokenizer


@pytest.fixture
def talker(compare_smollm2: ModuleType) -> Any:
    torch.manual_seed(0)
    eyes = MiniModel(read_base_weights()).eyes
    tiny = LlamaConfig(
        vocab_size=30522, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    return compare_smollm2.Talker(eyes, LlamaForCausalLM(tiny))


def test_texts_in_one_row_score_as_alone(
    compare_smollm2: ModuleType, talker: Any, word_pieces: Tokenizer
) -> None:
    writer = compare_smollm2.Writer(word_pieces, [SAID], np.random.default_rng(0))
    texts = [writer._after("<image>An image of", text, ends=n % 2 == 0) for n, text in enumerate(SAID)]
    before = torch.randn(2, 5, 32)
    with torch.no_grad():
        sums, each = compare_smollm2.packed(talker, before, [texts, texts[::-1]])
        embed = talker.language.model.embed_tokens
        for n, (image, text) in enumerate(
            [*((0, text) for text in texts), *((1, text) for text in texts[::-1])]
        ):
            ids = torch.tensor([*text.prompt, *text.continuation])
            logits = talker.language(inputs_embeds=torch.cat([before[image], embed(ids)])[None]).logits[0]
            log_p = logits[4 + len(text.prompt) : -1].log_softmax(-1)
            alone = log_p[range(len(text.continuation)), text.continuation].sum()
            assert sums[n].item() == pytest.approx(alone.item(), abs=1e-3)
    assert len(each) == 2 * sum(len(text.continuation) + text.ends for text in texts)


def test_untrained_adapters_change_nothing(compare_smollm2: ModuleType) -> None:
    layer = torch.nn.Linear(6, 4)
    x = torch.randn(3, 6)
    adapted = compare_smollm2.LowRank(layer)
    assert torch.equal(adapted(x), layer(x))
    adapted.up.data.fill_(1.0)
    assert not torch.allclose(adapted(x), layer(x))


def test_training_lowers_the_nats_and_keeps_frozen_weights(
    compare_smollm2: ModuleType, talker: Any, word_pieces: Tokenizer, data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(compare_smollm2, "VIEWS", 1)
    compare_smollm2.image_features(talker.eyes.eval(), data, "train", 1, tmp_path)
    captions = [some for _, some in compare_smollm2.captioned(data, "train")]
    writer = compare_smollm2.Writer(word_pieces, captions, np.random.default_rng(0))
    grid = np.load(tmp_path / "train-grid-0.npy")
    names = talker.eyes.names(torch.from_numpy(np.load(tmp_path / "train-classes.npy").astype(np.float32)))
    asked = np.array([[0, 1], [5, 2]])
    found = np.array([[0, 3, 4], [1, 2, 3]])  # the second question's image is not among them

    def facts() -> dict[str, float]:
        score = compare_smollm2.smollm2_score(talker, grid, names.detach())
        judged: dict[str, float] = compare_smollm2.judged(score, writer, captions, found, asked)
        return judged

    before = facts()
    frozen = talker.language.model.layers[0].self_attn.k_proj.weight.clone()
    compare_smollm2.train(talker, writer, tmp_path, steps=8, seed=0)
    after = facts()
    assert after["nats"] < before["nats"]
    assert after["R@10"] == 50
    assert torch.equal(talker.language.model.layers[0].self_attn.k_proj.weight, frozen)
