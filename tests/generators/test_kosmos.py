"""Kosmos1Generator compared with transformers' own forward pass, with random weights."""

from __future__ import annotations

import functools
import json
import weakref
from pathlib import PurePosixPath

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import tiny_vlms
from benchmarks.scoring import naive_log_likelihood
from contract_cases import contract_cases
from tiny_kosmos import (
    Kosmos2Config,
    Kosmos2ForConditionalGeneration,
    tiny_kosmos,
    tiny_model,
    tiny_processor,
)
from zsqretrieval import plugins
from zsqretrieval.data.images import decode
from zsqretrieval.errors import InvalidInputError, MismatchError, WeightsError
from zsqretrieval.generators.kosmos import Kosmos1Generator
from zsqretrieval.protocols import Configurable, ImageStates
from zsqretrieval.testing import GeneratorCase
from zsqretrieval.testing.generator_case import QUESTIONS
from zsqretrieval.testing.pictures import painting, paintings
from zsqretrieval.types import Image, ImageState

PROMPT = "Question:"
IMAGES = paintings(5, first_seed=40)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # of a sum, in nats


@functools.cache
def kosmos(dtype=torch.float32, prefix_cache_bytes=0):
    return tiny_kosmos(dtype, prefix_cache_bytes=prefix_cache_bytes)


def in_states(generator, images):
    return [
        ImageState(values, generator.fingerprint, image.source)
        for values, image in zip(generator.image_states(images), images, strict=True)
    ]


# -- the contract


CONTRACTS = {
    "float32": kosmos,
    "with-prefixes-kept": lambda: kosmos(prefix_cache_bytes=100_000),
    "in-16-bits": lambda: GeneratorCase(kosmos(torch.bfloat16), tolerance=0.01),
}


@pytest.mark.parametrize(
    ("name", "check"), contract_cases([*CONTRACTS], whole=["float32", "with-prefixes-kept"])
)
def test_contract(name, check):
    check(CONTRACTS[name])


def test_generator_is_a_configurable_plugin_with_image_states():
    assert isinstance(kosmos(), ImageStates) and isinstance(kosmos(), Configurable)
    assert plugins.load("generator", "kosmos") is Kosmos1Generator


# -- parity


@pytest.fixture(scope="module", params=TOLERANCE, ids=str)
def naive(request):
    """Scores of every image and question, one forward pass of transformers per pair."""
    sums = [
        [naive_log_likelihood(kosmos(request.param), image, PROMPT, question).sum for question in QUESTIONS]
        for image in IMAGES
    ]
    return request.param, np.array(sums)


def sums_of(found):
    return np.array([one.sum for one in found])


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize(
    "route", ["one image, many questions", "one question, many images", "all", "states", "kept"]
)
def test_every_route_gives_the_naive_scores(naive, route, batch_size):
    dtype, expected = naive
    generator = kosmos(dtype)
    shown = IMAGES
    if route == "kept":
        generator = tiny_kosmos(dtype, prefix_cache_bytes=10**9)
        generator.log_likelihood([(image, PROMPT) for image in IMAGES], ["red"] * len(IMAGES))
    if route in ("states", "kept"):
        shown = in_states(generator, IMAGES)
    score = functools.partial(generator.log_likelihood, batch_size=batch_size)
    if route == "one image, many questions":
        found = [sums_of(score([(image, PROMPT)] * len(QUESTIONS), QUESTIONS)) for image in shown]
    elif route == "one question, many images":
        found = np.transpose(
            [sums_of(score([(image, PROMPT) for image in shown], [text] * len(shown))) for text in QUESTIONS]
        )
    else:
        pairs = [((image, PROMPT), text) for image in shown for text in QUESTIONS]
        order = np.random.default_rng(0).permutation(len(pairs))
        scored = sums_of(score([pairs[i][0] for i in order], [pairs[i][1] for i in order]))
        found = scored[np.argsort(order)].reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype])
    assert expected.std(axis=0).min() > 10 * TOLERANCE[dtype]  # scores of different images differ by more


def test_latent_queries_see_the_whole_image_with_fused_attention():
    model = tiny_model(len(tiny_processor().tokenizer))
    model.image_to_text_projection.x_attn.is_causal = True  # as transformers before 5.23 sets it
    generator = Kosmos1Generator(model, tiny_processor(), config={})
    expected = generator.image_states(IMAGES)  # on a CPU, without fused kernels
    model.text_model.set_attn_implementation("sdpa")
    np.testing.assert_allclose(generator.image_states(IMAGES), expected, rtol=0, atol=1e-5)


def test_token_log_probabilities_equal_those_of_transformers():
    found = kosmos().log_likelihood([(IMAGES[0], PROMPT)], [QUESTIONS[3]])[0]
    expected = naive_log_likelihood(kosmos(), IMAGES[0], PROMPT, QUESTIONS[3])
    np.testing.assert_allclose(found.token_log_probs, expected.token_log_probs, atol=1e-5)
    assert found.tokens == tuple(token.replace("\u2581", " ") for token in expected.tokens)
    assert "".join(found.tokens) == f" {QUESTIONS[3]}"


def test_several_images_between_texts_keep_their_order():
    generator = kosmos()
    model, tokenizer = generator.model, generator.processor.tokenizer
    one, other = IMAGES[:2]
    (found,) = generator.log_likelihood([("The picture:", one, "is", other, PROMPT)], ["red dog"])
    slots = generator.state_shape[0]
    text = "<s> The picture:<image>{0}</image> is<image>{0}</image> Question: red dog".format("<pad>" * slots)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    pixels = generator.processor.image_processor(
        [decode(one), decode(other)], return_tensors="pt"
    ).pixel_values
    with torch.inference_mode():
        logits = model(
            pixel_values=pixels,
            input_ids=ids.where(ids != tokenizer.pad_token_id, 4),  # pads would shift transformers' positions
            image_embeds_position_mask=ids == tokenizer.pad_token_id,
        ).logits[0]
    expected = logits[-3:-1].log_softmax(dim=1).gather(1, ids[0, -2:, None])[:, 0]
    np.testing.assert_allclose(found.token_log_probs, expected, atol=1e-5)


def test_greedy_generation_equals_that_of_transformers():
    generator = kosmos()
    processor = generator.processor
    for image in IMAGES[:3]:
        inputs = processor(
            images=decode(image), text=PROMPT, num_image_tokens=generator.state_shape[0], return_tensors="pt"
        )
        written = generator.model.generate(
            pixel_values=inputs.pixel_values,
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            image_embeds_position_mask=inputs.image_embeds_position_mask,
            max_new_tokens=8,
            do_sample=False,
        )
        tags = set(processor.tokenizer.get_added_vocab().values())
        words = [one for one in written[0, inputs.input_ids.shape[1] :].tolist() if one not in tags]
        expected = processor.tokenizer.decode(words)
        assert generator.generate([(image, PROMPT)], max_new_tokens=8) == [[expected.strip()]]


def test_parameter_counts_at_full_size():
    with torch.device("meta"):
        model = Kosmos2ForConditionalGeneration(Kosmos2Config())
    parts = (model.vision_model, model.image_to_text_projection, model.text_model)
    counts = [sum(parameter.numel() for parameter in part.parameters()) for part in parts]
    assert counts == [303_179_776, 19_015_680, 1_342_289_920]
    generator = Kosmos1Generator(model, tiny_processor(), config={})
    assert (generator.state_shape, generator.max_tokens) == ((64, 2048), 2048)


# -- each image once


@pytest.fixture
def seen(monkeypatch):
    """Sources of the images that the vision part has encoded."""
    sources = []
    see = Kosmos1Generator._see

    def spy(self, images):
        sources.extend(image.source for image in images)
        return see(self, images)

    monkeypatch.setattr(Kosmos1Generator, "_see", spy)
    return sources


def test_split_calls_give_the_scores_of_one_call():
    """To the tolerance of docs/scoring.md, with repeated images and contexts of several images."""
    contexts = [
        (IMAGES[i % 5], PROMPT) if i % 3 else (IMAGES[i % 5], "then", IMAGES[i % 4]) for i in range(30)
    ]
    texts = [QUESTIONS[i % 4] for i in range(30)]
    whole = sums_of(kosmos().log_likelihood(contexts, texts))
    for size in (1, 7, 16):
        parts = [
            kosmos().log_likelihood(contexts[i : i + size], texts[i : i + size]) for i in range(0, 30, size)
        ]
        np.testing.assert_allclose(sums_of([one for part in parts for one in part]), whole, rtol=0, atol=1e-4)


def test_progress_of_encoding_images():
    calls = []
    kosmos().image_states(IMAGES, batch_size=2, progress=lambda *call: calls.append(call))
    assert calls == [("encoding images", done, 5) for done in (2, 4, 5)]


def test_states_exist_only_while_a_batch_needs_them(monkeypatch):
    """Many pairs about many images, in any order, hold few states at a time."""
    alive, most = [], []
    see = Kosmos1Generator._see

    def spy(self, images):
        found = see(self, images)
        alive.append(weakref.ref(found.untyped_storage()))
        most.append(sum(one() is not None for one in alive))
        return found

    monkeypatch.setattr(Kosmos1Generator, "_see", spy)
    images = paintings(40)
    pairs = [((image, PROMPT), text) for text in QUESTIONS for image in images]
    kosmos().log_likelihood([context for context, _ in pairs], [text for _, text in pairs], batch_size=8)
    assert len(alive) >= 20 and max(most) <= 3


def test_each_image_is_encoded_once_in_a_call(seen):
    contexts = [(IMAGES[i % 3], IMAGES[(i + 1) % 3], PROMPT) for i in range(9)]
    texts = [QUESTIONS[i % 5] for i in range(9)]
    kosmos().log_likelihood(contexts, texts, batch_size=2)
    assert sorted(seen) == sorted(image.source for image in IMAGES[:3])
    seen.clear()
    kosmos().generate([*contexts, (IMAGES[0],)], max_new_tokens=1, batch_size=2)
    assert sorted(seen) == sorted(image.source for image in IMAGES[:3])


def test_states_and_kept_prefixes_need_no_encoding(seen):
    generator = tiny_kosmos(prefix_cache_bytes=10**9)
    states = in_states(generator, IMAGES)
    seen.clear()
    generator.log_likelihood([(state, PROMPT) for state in states], ["red"] * 5)
    assert seen == []
    for _ in range(2):  # images are recognised by their content
        generator.log_likelihood([(painted, PROMPT) for painted in paintings(5)], ["red"] * 5)
    assert len(seen) == 5


# -- texts

_FRAME = ("<s>", "<image>", "</image>")


def test_text_is_tokenised_alone_with_one_space_before_it():
    (plain,) = kosmos().log_likelihood([(IMAGES[0],)], ["red dog"])
    (spaced,) = kosmos().log_likelihood([(IMAGES[0], " ")], [" red dog"])
    assert plain.tokens == spaced.tokens == (" red", " dog")
    np.testing.assert_array_equal(plain.token_log_probs, spaced.token_log_probs)


def test_grounding_stands_before_the_first_text_if_asked_for():
    generator = tiny_kosmos(grounding=True)
    tokenizer = generator.processor.tokenizer
    tag = tokenizer.convert_tokens_to_ids("<grounding>")
    rows, _ = generator._lay_out(
        [(IMAGES[0], "An image of", "red"), (IMAGES[0],), ("An image of", IMAGES[0])], generator._tokenize
    )
    assert [row.count(tag) for row in rows] == [1, 1, 1]
    words = [tokenizer.convert_ids_to_tokens([one for one in row if one >= 0]) for row in rows]
    assert words[0] == [*_FRAME, "<grounding>", "\u2581An", "\u2581image", "\u2581of", "\u2581red"]
    assert words[1] == [*_FRAME, "<grounding>"]
    assert words[2][:3] == ["<s>", "<grounding>", "\u2581An"]
    plain = kosmos().log_likelihood([(IMAGES[0], "An image of")], ["red"])[0]
    asked = generator.log_likelihood([(IMAGES[0], "An image of")], ["red"])[0]
    assert abs(plain.sum - asked.sum) > 1e-3
    assert generator.fingerprint != kosmos().fingerprint == tiny_kosmos(grounding=False).fingerprint


# -- refusals


LONG = "red" + " red" * 299
ONE = (IMAGES[0],)


def scored(contexts, continuations, **settings):
    return lambda: kosmos().log_likelihood(contexts, continuations, **settings)


def written(contexts, **settings):
    return lambda: kosmos().generate(contexts, **settings)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (scored([ONE] * 2, ["red", LONG]), r"pair 1 has 9 \+ 300 = 309 tokens .* reads 256"),
        (written([("red",), ("red" + " red" * 254,)]), "context 1 and one new token has 256"),
        (scored([ONE, "red"], ["red"] * 2), r"context 1 is one string.*\['red'\]"),
        (written([(PurePosixPath("dog.jpg"), "red")]), r"context 0 contains a PurePosixPath.*as_image"),
        (written([IMAGES[0]]), "context 0 must be a list, not Image"),
        (scored([ONE] * 3, "red"), "continuations must be a list, not str"),
        (scored([ONE], [3]), "continuation 0 must be a"),
        (scored([ONE], ["\ud800"]), "continuation 0 is not Unicode"),
        (scored([(IMAGES[0], "\ud800")], ["red"]), "a text of context 0 is not Unicode"),
        (scored([ONE], ["red"], batch_size=0), "batch_size must be at least 1"),
        (written([ONE], batch_size=0), "batch_size must be at least 1"),
        (lambda: kosmos().image_states(IMAGES, batch_size=0), "batch_size must be at least 1"),
        (written([ONE], temperature=float("inf")), "temperature must be a finite number of at least 0"),
        (written([ONE], seed=-1), "seed"),
        (lambda: tiny_kosmos(prefix_cache_bytes=-1), "prefix_cache_bytes"),
        (lambda: Kosmos1Generator.from_pretrained(dtype="int4"), "dtype must be one of float32"),
        (lambda: Kosmos1Generator.from_config({"size": 3}), "no setting 'size'"),
    ],
)
def test_invalid_input_is_refused_by_position_or_name(use, message):
    with pytest.raises(InvalidInputError, match=message):
        use()


def test_context_length_can_be_used_to_the_last_token():
    kosmos().log_likelihood([ONE], ["red" + " red" * (255 - 9)])


VALUES = np.zeros((6, 32), np.float32)


@pytest.mark.parametrize(
    ("values", "fingerprint", "error", "message"),
    [
        (VALUES, "a" * 64, MismatchError, f"'{'a' * 64}'.*{{own}}"),
        (VALUES[1:], None, MismatchError, r"x\.jpg has shape \(5, 32\).*\(6, 32\)"),
        (VALUES * np.nan, None, InvalidInputError, r"x\.jpg contains numbers that are not finite"),
        (VALUES.astype(np.int32), None, InvalidInputError, r"x\.jpg is no array of float16"),
        (VALUES.astype(np.complex64), None, InvalidInputError, r"x\.jpg is no array of float16"),
        (VALUES.astype(np.longdouble), None, InvalidInputError, r"x\.jpg is no array of float16"),
        (VALUES.tolist(), None, InvalidInputError, r"x\.jpg is no array of float16"),
    ],
    ids=["another generator", "another shape", "not finite", "int", "complex", "longdouble", "list"],
)
def test_wrong_image_state_is_refused_by_its_source(values, fingerprint, error, message):
    own = kosmos().fingerprint
    state = ImageState(values, fingerprint or own, "x.jpg")
    with pytest.raises(error, match=message.replace("{own}", own)):
        kosmos().log_likelihood([(state, PROMPT)], ["red"])


def test_very_long_picture_is_encoded():
    generator = tiny_kosmos()
    generator.processor.image_processor.size = {"shortest_edge": 28}
    strip = Image(painting(0, size=(1, 40_000)), "strip")
    assert generator.image_states([strip]).shape == (1, 6, 32)


# -- loading and saving


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kosmos")
    dtype = getattr(torch, request.param)
    kosmos(dtype).save_pretrained(folder)
    return kosmos(dtype), folder, request.param


def test_saved_generator_is_loaded_unchanged(saved):
    original, folder, dtype = saved
    loaded = Kosmos1Generator.from_pretrained(folder, dtype=dtype, device="cpu")
    assert (folder / "model.safetensors").is_file()
    assert loaded.config == {"name": str(folder), "dtype": dtype, "grounding": False, "prefix_cache_bytes": 0}
    again = Kosmos1Generator.from_config(json.loads(json.dumps(dict(loaded.config))))
    contexts = [(image, PROMPT) for image in IMAGES]
    expected = original.log_likelihood(contexts, QUESTIONS)
    for generator in (loaded, again):
        assert generator.fingerprint == original.fingerprint
        assert generator.model.dtype == original.model.dtype
        for one, other in zip(generator.log_likelihood(contexts, QUESTIONS), expected, strict=True):
            np.testing.assert_array_equal(one.token_log_probs, other.token_log_probs)
    assert loaded.generate(contexts[:1]) == original.generate(contexts[:1])


def test_states_have_the_width_of_the_computation():
    assert kosmos().state_dtype == np.float32 and kosmos(torch.bfloat16).state_dtype == np.float16
    for dtype in TOLERANCE:
        generator = kosmos(dtype)
        from_pixels = generator.log_likelihood([(IMAGES[0], PROMPT)], [QUESTIONS[3]])[0]
        from_state = generator.log_likelihood(
            [(in_states(generator, IMAGES[:1])[0], PROMPT)], [QUESTIONS[3]]
        )[0]
        np.testing.assert_array_equal(from_pixels.token_log_probs, from_state.token_log_probs)


def test_fingerprint_depends_on_everything_that_changes_scores():
    processor = tiny_processor()
    other_weights = Kosmos1Generator(tiny_model(len(processor.tokenizer), seed=1), processor, config={})
    other_pixels = tiny_kosmos()
    other_pixels.processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    other_heads = tiny_kosmos()
    other_heads.model.config.text_config.attention_heads = 2
    other_words = tiny_kosmos()
    backend = json.loads(other_words.processor.tokenizer.backend_tokenizer.to_str())
    words = backend["model"]["vocab"]
    *_, one, other = words
    words[one], words[other] = words[other], words[one]
    other_words.processor.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(backend))
    other_head = tiny_kosmos()
    head = other_head.model.text_model.lm_head
    head.weight = torch.nn.Parameter(head.weight.detach() * 2)
    generators = [kosmos(), kosmos(torch.bfloat16), other_weights, other_pixels, other_heads]
    generators += [other_words, other_head]
    assert len({generator.fingerprint for generator in generators}) == len(generators)
    assert tiny_kosmos(prefix_cache_bytes=5).fingerprint == kosmos().fingerprint


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_failed_loading_says_what_to_do(saved, offline, tmp_path):
    with pytest.raises(
        WeightsError, match=r"from no/such-model: .*microsoft/kosmos-2-patch14-224.*save_pretrained"
    ):
        Kosmos1Generator.from_pretrained("no/such-model")
    with pytest.raises(WeightsError, match="folder is incomplete, damaged, or of another model"):
        Kosmos1Generator.from_pretrained(tmp_path)
    _, folder, _ = saved
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    whole = load_file(weights)
    save_file(
        {key: value for key, value in whole.items() if ".layers.1." not in key}, weights, {"format": "pt"}
    )
    with pytest.raises(WeightsError, match=r"has no weights, .*layers\.1\..* and others"):
        Kosmos1Generator.from_pretrained(tmp_path)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="incomplete, damaged"):
        Kosmos1Generator.from_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="is a llava model, not Kosmos"):
        Kosmos1Generator.from_pretrained(tiny_vlms.llava(tmp_path / "llava"))


def test_out_of_memory_on_loading_is_raised_unchanged(saved, monkeypatch):
    def refuse(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Kosmos2ForConditionalGeneration, "from_pretrained", refuse)
    with pytest.raises(MemoryError):
        Kosmos1Generator.from_pretrained(saved[1])
