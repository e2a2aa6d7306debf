"""VLMGenerator on tiny random models of every tested family, saved and loaded by the public API."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

import tiny_vlms
from contract_cases import contract_cases
from zsqretrieval import plugins
from zsqretrieval._util.torch import ensure_torchvision
from zsqretrieval.data.images import decode
from zsqretrieval.errors import InvalidInputError, MismatchError, MissingDependencyError, WeightsError
from zsqretrieval.generators.vlm import families
from zsqretrieval.generators.vlm.loading import hidden_behind, watched_head
from zsqretrieval.generators.vlm.model import VLMGenerator
from zsqretrieval.protocols import Configurable, Generator, ImageStates
from zsqretrieval.testing import GeneratorCase, generator_checks
from zsqretrieval.testing.pictures import paintings
from zsqretrieval.types import Context, ImageState

ensure_torchvision()
import transformers as hf  # noqa: E402
from transformers.models.smolvlm import processing_smolvlm  # noqa: E402

ALL = tuple(tiny_vlms.FAMILIES)
CHATTING = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm", "internvl")
ENCODING = ("blip2_t5", "florence2")  # encoder-decoders
QUESTION = "what is the colour of the red house"
NO_CHAIN = {
    **dict.fromkeys(CHATTING, "a context's text is in the user's turn, a continuation in the assistant's"),
    **dict.fromkeys(ENCODING, "a context's text is read by the encoder, a continuation by the decoder"),
    "paligemma": "a context's text is read in both directions and closed by a new line, as it was trained",
}

OLD_ARRAYS = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""PaliGemma's processor converts tensors to a numpy array in a way that numpy 2 deprecates."""

Load = Callable[..., VLMGenerator]


@pytest.fixture(scope="session", autouse=True)
def quiet() -> Iterator[None]:
    hf.utils.logging.disable_progress_bar()
    yield
    hf.utils.logging.enable_progress_bar()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model by its family; each is made once."""
    made: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in made:
            made[name] = tiny_vlms.FAMILIES[name](tmp_path_factory.mktemp(name))
        return made[name]

    return find


@pytest.fixture(scope="session")
def load(folder: Callable[[str], Path]) -> Load:
    """A generator by its family and settings; each is loaded once."""
    made: dict[Any, VLMGenerator] = {}

    def find(name: str, **settings: Any) -> VLMGenerator:
        key = (name, *sorted(settings.items()))
        if key not in made:
            made[key] = VLMGenerator.from_pretrained(folder(name), device="cpu", **settings)
        return made[key]

    return find


def context(seed: int = 0) -> Context:
    return (paintings(1, first_seed=seed)[0], "Question:")


# -- the contract ----------------------------------------------------------------------------------------


# A family of each kind keeps the whole contract; no family has image states.
WHOLE = ("llava", "qwen2_vl", "florence2", "mllama")


@pytest.mark.parametrize(("name", "check"), contract_cases(ALL, WHOLE, states=False))
def test_contract(name: str, check: Any, load: Load, request: pytest.FixtureRequest) -> None:
    if check.name == "chain_rule_holds" and name in NO_CHAIN:
        request.applymarker(pytest.mark.xfail(strict=True, reason=NO_CHAIN[name]))
    check(lambda: GeneratorCase(load(name), too_long="what is the colour of " * 120))


@pytest.mark.parametrize("name", CHATTING)
def test_without_chat_the_chain_rule_holds_for_chat_families(name: str, load: Load) -> None:
    (check,) = (check for check in generator_checks if check.name == "chain_rule_holds")
    check(lambda: load(name, chat=False))


def test_generator_is_a_configurable_plugin(load: Load) -> None:
    generator = load("llava")
    assert isinstance(generator, Generator)
    assert isinstance(generator, Configurable)
    assert not isinstance(generator, ImageStates)
    assert plugins.load("generator", "vlm") is VLMGenerator


# -- against the models' own loss, with prompts of their processors ------------------------------


def native(name: str, processor: Any, picture: PILImage.Image) -> dict[str, torch.Tensor]:
    """The model's arguments for an image and "Question:", made without this library."""
    if name in CHATTING:
        content = [{"type": "image", "image": picture}, {"type": "text", "text": "Question:"}]
        encoded = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    else:
        image = {"gemma3": "<start_of_image> ", "llava": "<image> ", "mllama": "<|image|> "}.get(name, "")
        suffix = {"suffix": [QUESTION]} if name == "paligemma" else {}
        text = ["<image>Question:" if suffix else f"{image}Question:"]
        encoded = processor(text=text, images=[[picture]], return_tensors="pt", **suffix)
    return dict(encoded)


def with_labels(inputs: dict[str, torch.Tensor], answer: list[int]) -> dict[str, torch.Tensor]:
    """The arguments with ``answer`` after the prompt, and labels for the answer only."""
    n, inputs = inputs["input_ids"].shape[1], dict(inputs)
    following = {"input_ids": torch.tensor([answer]), "attention_mask": torch.ones(1, len(answer)).long()}
    for key, value in inputs.items():
        if key == "cross_attention_mask":
            inputs[key] = torch.cat([value, value[:, -1:].repeat(1, len(answer), 1, 1)], 1)
        elif value.shape == (1, n):
            inputs[key] = torch.cat([value, following.get(key, torch.zeros(1, len(answer)).long())], 1)
    labels = torch.cat([torch.full((1, n), -100), torch.tensor([answer])], 1)
    return {**inputs, "labels": labels}


@OLD_ARRAYS
@pytest.mark.parametrize("name", ALL)
def test_sum_equals_the_models_own_loss(name: str, load: Load, folder: Callable[[str], Path]) -> None:
    processor = hf.AutoProcessor.from_pretrained(folder(name))
    model = hf.AutoModelForImageTextToText.from_pretrained(folder(name)).eval()
    image = paintings(1, first_seed=5)[0]
    inputs = native(name, processor, decode(image))
    answer = processor.tokenizer(QUESTION, add_special_tokens=False).input_ids
    if name in ENCODING:
        inputs["labels"] = torch.tensor([answer])
    elif name == "paligemma":  # the processor appended the answer and an end token
        assert inputs["input_ids"][0, -1] == processor.tokenizer.eos_token_id
        inputs["labels"][0, -1] = -100
    else:
        inputs = with_labels(inputs, answer)
    with torch.no_grad():
        loss = float(model(**inputs).loss)
    (found,) = load(name).log_likelihood([(image, "Question:")], [QUESTION])
    assert len(found) == len(answer) > 3
    assert found.sum == pytest.approx(-loss * len(answer), abs=1e-3)


# -- contexts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["blip2_opt", "kosmos2", "paligemma", "florence2", "llava"])
def test_images_keep_their_position_in_the_context(name: str, load: Load) -> None:
    reader = load(name)._reader
    one, two = paintings(2)
    token = reader._tokenizer.convert_tokens_to_ids("<image>")
    ids = reader.prompt(("the red house", one, two, "then", one), "it").tokens["input_ids"][0].tolist()
    shown = [token if one == token else 0 for one in ids]
    runs = "".join("I" if one else "." for one in shown)
    per_image = {"blip2_opt": 4, "kosmos2": 65, "paligemma": 16, "florence2": 17, "llava": 16}[name]
    assert runs.count("I") == 3 * per_image
    words = [i for i, one in enumerate(ids) if reader.shown([one])[0].strip() in ("house", "then")]
    assert runs[: words[0]].count("I") == 0
    assert runs[: words[1]].count("I") == 2 * per_image


def test_adjacent_texts_are_joined(load: Load) -> None:
    contexts: list[Context] = [
        (paintings(1)[0], "the red", "house"),
        (paintings(1)[0], "the red house"),
        (paintings(1)[0], "", "the red house", ""),
    ]
    for name in ("llava", "qwen2_vl", "blip2_t5"):
        found = load(name).log_likelihood(contexts, [QUESTION] * 3)
        for one in found[1:]:
            np.testing.assert_allclose(one.token_log_probs, found[0].token_log_probs, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_leading_space_of_a_continuation_is_optional(name: str, load: Load) -> None:
    """Where an answer follows a space; after a new line, a space is an additional token."""
    bare, spaced = load(name).log_likelihood([context()] * 2, [QUESTION, f" {QUESTION}"])
    if name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl"):
        assert bare.tokens[0] == "what"
        assert spaced.tokens[0] == " what"
    else:
        assert bare.tokens[0] == spaced.tokens[0] == " what"
        np.testing.assert_allclose(bare.token_log_probs, spaced.token_log_probs, atol=1e-5)


def test_without_chat_the_answer_follows_a_space(load: Load) -> None:
    (found,) = load("qwen2_vl", chat=False).log_likelihood([context()], [QUESTION])
    assert "".join(found.tokens) == f" {QUESTION}"


def test_chat_is_the_default_where_there_is_a_template(load: Load) -> None:
    scores = [
        load("qwen2_vl", **settings).log_likelihood([context()], [QUESTION])[0].sum
        for settings in ({}, {"chat": True}, {"chat": False})
    ]
    assert scores[0] == scores[1] != scores[2]
    with pytest.raises(InvalidInputError, match="chat template"):
        load("llava", chat=True)
    with pytest.raises(InvalidInputError, match="chat template"):
        load("kosmos2", chat=True)


def test_template_that_moves_images_is_refused(tmp_path: Path) -> None:
    template = (
        "{% for part in messages[0]['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
        "{% for part in messages[0]['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
        "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    )
    generator = VLMGenerator.from_pretrained(tiny_vlms.llava(tmp_path, template), device="cpu")
    image = paintings(1)[0]
    assert len(generator.log_likelihood([(image, "the red house:")], ["red"])) == 1
    with pytest.raises(InvalidInputError, match=r"context 1: the chat template .* chat=False"):
        generator.log_likelihood([context(), ("the red house:", image)], ["red"] * 2)
    # also if the template itself contains the text
    generator = VLMGenerator.from_pretrained(tiny_vlms.llava(tmp_path, f"house: {template}"), device="cpu")
    with pytest.raises(InvalidInputError, match=r"context 0: the chat template .* chat=False"):
        generator.log_likelihood([("house:", image)], ["red"])


STATE = ImageState(np.zeros((4, 32), np.float16), "another", "a.png")
ONE = (paintings(1)[0], "Question:")


@pytest.mark.parametrize(
    ("contexts", "continuations", "message"),
    [
        (["a text"], ["red"], "context 0 must be a list, not str"),
        ([(3,)], ["red"], "context 0 contains a int; give strings and Image records"),
        ([(Path("a.png"),)], ["red"], "context 0 contains a PosixPath"),
        ([ONE], "red", "continuations must be a list"),
        ([ONE], [3], "continuation 0 must be a non-empty string, not 3"),
        *(([ONE] * 2, ["red", empty], "continuation 1 must be a non-empty") for empty in ("", "  ", "\n")),
        ([ONE], ["red\ud800"], "continuation 0 is not Unicode"),
        ([(*ONE, "\ud800")], ["red"], "a text of context 0 is not Unicode"),
        ([ONE], ["red " * 600], "pair 0 needs"),
    ],
)
def test_invalid_pair_is_refused_by_its_position(
    contexts: Any, continuations: Any, message: str, load: Load
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        load("llava").log_likelihood(contexts, continuations)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda load: load("llava").log_likelihood([], [], batch_size=0), "batch_size"),
        (lambda load: load("llava").generate([ONE], temperature=1.0, seed=-1), "seed"),
        (lambda load: load("llava").generate([ONE], max_new_tokens=600), "context 0 needs"),
        (lambda load: load("llava", token_budget=0), "token_budget"),
        (lambda load: load("llava", dtype="int8"), "dtype must be one of float32"),
        (lambda load: VLMGenerator.from_pretrained("a folder", device="nowhere"), "device 'nowhere'"),
        (
            lambda load: load("qwen2_vl", chat=False).log_likelihood([ONE, ("",)], ["red", "red"]),
            "context 1 is empty",
        ),
    ],
)
def test_settings_out_of_range_and_empty_contexts_are_refused(use: Any, message: str, load: Load) -> None:
    with pytest.raises(InvalidInputError, match=message):
        use(load)


def test_image_state_is_refused(load: Load) -> None:
    with pytest.raises(MismatchError, match=r"a\.png.*no image states"):
        load("llava").log_likelihood([(STATE, "Question:")], ["red"])


def test_empty_turn_of_a_conversation_is_a_context(load: Load) -> None:
    (found,) = load("qwen2_vl", chat=True).log_likelihood([("",)], ["red"])
    assert np.isfinite(found.sum)


def test_continuation_without_tokens_is_refused(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = load("llava")
    monkeypatch.setattr(generator._reader, "_ids", lambda text: [])  # as for a text that a normalizer removes
    with pytest.raises(InvalidInputError, match="continuation 0 has no tokens"):
        generator.log_likelihood([("a",)], ["\u200b"])


def test_log_probabilities_that_are_not_finite_are_an_error(folder: Callable[[str], Path]) -> None:
    generator = VLMGenerator.from_pretrained(folder("llava"), device="cpu")
    with torch.no_grad():
        generator._model.get_output_embeddings().weight[3] = torch.nan
    with pytest.raises(WeightsError, match="not finite"):
        generator.log_likelihood([("Question:",)], ["what is it?"])


@pytest.mark.parametrize("name", ["llava", "kosmos2", "florence2"])
def test_context_length_can_be_used_to_the_last_token(name: str, load: Load) -> None:
    generator = load(name)
    image = paintings(1)[0]
    used = len(generator._reader.prompt((image,), "it"))
    words = tiny_vlms.POSITIONS - used - (0 if name in ENCODING else 1)
    full = (image, "red " * (words - 1) + "red")
    assert len(generator._reader.prompt(full, "it")) == used + words
    assert np.isfinite(generator.log_likelihood([full], ["red"])[0].sum)
    with pytest.raises(
        InvalidInputError, match=rf"pair 0 needs 51[34] tokens .* reads {tiny_vlms.POSITIONS}"
    ):
        generator.log_likelihood([(*full, "red")], ["red"])


# -- batches ---------------------------------------------------------------------------------------------


def pairs(n: int) -> tuple[list[Context], list[str]]:
    contexts: list[Context] = []
    for i in range(n):
        images = paintings(2, first_seed=i)
        contexts.append([(images[0], "Question:"), ("Only text.",), (images[0], "then", images[1])][i % 3])
    return contexts, [("red", QUESTION, "is the thing blue?")[i % 3] for i in range(n)]


def test_many_pairs_get_the_same_scores_as_alone(load: Load) -> None:
    """More pairs than are in memory at once."""
    contexts, texts = pairs(21)
    calls: list[tuple[str, int, int | None]] = []
    found = load("qwen2_vl").log_likelihood(
        contexts, texts, batch_size=2, progress=lambda *call: calls.append(call)
    )
    assert calls[-1] == ("scoring", 21, 21)
    assert calls == sorted(calls)
    for i in range(21):
        (alone,) = load("qwen2_vl").log_likelihood(contexts[i : i + 1], texts[i : i + 1])
        np.testing.assert_allclose(found[i].token_log_probs, alone.token_log_probs, atol=1e-4)


def test_batch_beyond_memory_is_halved(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = load("llava")
    contexts, texts = [context(i) for i in range(6)], ["red"] * 6
    expected = [one.sum for one in generator.log_likelihood(contexts, texts)]
    sizes: list[int] = []
    forward = generator._model.forward

    def small(**inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("out of memory")
        return forward(**inputs)

    monkeypatch.setattr(generator._model, "forward", small)
    found = generator.log_likelihood(contexts, texts)
    assert [one.sum for one in found] == pytest.approx(expected, abs=1e-4)
    assert sizes == [6, 3, 2, 1, 2, 1] or max(sizes[2:]) <= 3


def test_token_budget_limits_batches(folder: Callable[[str], Path]) -> None:
    generator = VLMGenerator.from_pretrained(folder("llava"), device="cpu", token_budget=60)
    rows: list[torch.Size] = []
    generator._model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    generator.log_likelihood([context(i) for i in range(7)], ["red"] * 7)
    assert sum(shape[0] for shape in rows) == 7
    assert all(shape[0] * shape[1] <= 60 for shape in rows)


def test_repeated_context_is_converted_once(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, seen = load("llava"), list[str]()
    prompt = generator._reader.prompt
    monkeypatch.setattr(
        generator._reader, "prompt", lambda context, name: seen.append(name) or prompt(context, name)
    )
    one = context()
    generator.log_likelihood([one, list(one), one, (*one, "red"), one], ["red"] * 5)
    assert seen == ["context 0", "context 3"]


def test_head_gets_only_the_continuation_in_one_contiguous_block(load: Load) -> None:
    """For a strided view, torch would copy the vocabulary matrix for every row."""
    generator = load("llava")
    seen: list[tuple[int, bool]] = []
    head = generator._model.get_output_embeddings()
    hook = head.register_forward_pre_hook(
        lambda module, args: seen.append((args[0].shape[1], args[0].is_contiguous()))
    )
    found = generator.log_likelihood([context(i) for i in range(3)], [QUESTION, "red", "the dog"])
    hook.remove()
    assert seen == [(1 + len(found[0]), True)]


# -- generation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_greedy_generation_takes_the_likeliest_token(name: str, load: Load) -> None:
    """Compared with forward passes over the whole text without a cache; in a batch with a longer row."""
    generator = load(name)
    contexts: list[Context] = [context(3), (*paintings(2, first_seed=4), "is the thing blue?")]
    together = generator.generate(contexts, max_new_tokens=5)
    for i, one in enumerate(contexts):
        prompt, ids = generator._reader.prompt(one, "it"), list[int]()
        while len(ids) < 5 and not set(ids) & generator._ends:
            with torch.inference_mode():
                if name in ENCODING:
                    start = torch.tensor([[generator._start, *ids]])
                    logits = generator._model(**generator._collate([prompt]), decoder_input_ids=start).logits
                else:
                    whole = prompt.followed_by(ids, generator._family)
                    logits = generator._model(**generator._collate([whole])).logits
            ids.append(int(logits[0, -1].argmax()))
        assert together[i] == [generator._reader.text(generator._until_end(ids))]


@pytest.mark.parametrize("name", ["llava", "kosmos2", "florence2", "blip2_opt"])
def test_generation_settings_of_the_checkpoint_are_ignored(
    name: str, load: Load, folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = json.loads((folder(name) / "generation_config.json").read_text())
    assert saved["no_repeat_ngram_size"] == 1
    generated: list[int] = []  # ids: Kosmos-2 writes tags of places, which are no text
    reader = load(name)._reader
    monkeypatch.setattr(reader, "text", lambda ids: str(generated.extend(ids)))
    load(name).generate([context(1)], max_new_tokens=60)
    assert max(Counter(generated).values()) > 1


def test_samples_follow_the_probabilities(load: Load) -> None:
    """Frequencies of first words, compared with their probabilities."""
    generator, one = load("llava"), context(7)
    n = 600
    drawn = Counter(
        generator.generate([one], n=n, max_new_tokens=1, temperature=1.0, seed=3, batch_size=64)[0]
    )
    words = [word for word, _ in drawn.most_common(4) if word]
    found = generator.log_likelihood([one] * len(words), words)
    for word, likelihood in zip(words, found, strict=True):
        p = math.exp(likelihood.sum)
        assert abs(drawn[word] / n - p) < 4 * math.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize("name", ALL)
def test_samples_do_not_depend_on_the_batch(name: str, load: Load) -> None:
    """With contexts of different lengths; samples reveal a wrong position that greedy texts may hide."""
    contexts = pairs(4)[0]
    settings: dict[str, Any] = {"n": 2, "max_new_tokens": 8, "temperature": 1.0, "seed": 11}
    one_by_one = load(name).generate(contexts, batch_size=1, **settings)
    assert load(name).generate(contexts, batch_size=3, **settings) == one_by_one
    assert load(name).generate(contexts[:2], **settings) == one_by_one[:2]


def test_without_a_seed_samples_differ(load: Load) -> None:
    settings: dict[str, Any] = {"n": 4, "max_new_tokens": 6, "temperature": 1.5}
    first, second = (load("llava").generate([context()], **settings) for _ in range(2))
    assert first != second


def test_temperature_near_zero_is_greedy(load: Load) -> None:
    (greedy,) = load("llava").generate([context()], max_new_tokens=6)
    assert load("llava").generate([context()], n=2, max_new_tokens=6, temperature=1e-6)[0] == greedy * 2


# -- loading ---------------------------------------------------------------------------------------------


def test_config_rebuilds_the_generator(load: Load, folder: Callable[[str], Path]) -> None:
    generator = load("qwen2_vl", chat=False, dtype="float32")
    assert json.loads(json.dumps(generator.config)) == {
        "name_or_path": str(folder("qwen2_vl")),
        "dtype": "float32",
        "chat": False,
        "chat_template_kwargs": None,
        "token_budget": 8192,
        "revision": None,
    }
    again = VLMGenerator.from_config(generator.config)
    assert again.fingerprint == generator.fingerprint
    with pytest.raises(InvalidInputError, match="no setting 'device'"):
        VLMGenerator.from_config({**generator.config, "device": "cpu"})
    with pytest.raises(InvalidInputError, match="name_or_path"):
        VLMGenerator.from_config({})


def test_fingerprint_depends_on_everything_that_changes_scores(
    load: Load, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    def moved(name: str) -> Path:
        return Path(shutil.copytree(folder("qwen2_vl"), tmp_path / name))

    def fingerprint(path: Path) -> str:
        return VLMGenerator.from_pretrained(path, device="cpu", self_check=False).fingerprint

    base = load("qwen2_vl").fingerprint
    assert fingerprint(moved("elsewhere")) == base
    other_images = moved("other images")
    settings = json.loads((other_images / "processor_config.json").read_text())
    settings["image_processor"]["image_mean"] = [0.1, 0.2, 0.3]
    (other_images / "processor_config.json").write_text(json.dumps(settings))
    other_template = moved("other template")
    (other_template / "chat_template.jinja").write_text(
        (other_template / "chat_template.jinja").read_text().replace("assistant", "helper")
    )
    other_weights = moved("other weights")
    model = hf.AutoModelForImageTextToText.from_pretrained(other_weights)
    tiny_vlms.widen(model, seed=1).save_pretrained(other_weights)
    found = {fingerprint(path) for path in (other_images, other_template, other_weights)}
    found |= {load("qwen2_vl", chat=False).fingerprint, load("qwen2_vl", dtype="bfloat16").fingerprint}
    assert len(found - {base}) == 5


def test_bfloat16_scores_are_close_to_float32(load: Load) -> None:
    contexts, texts = pairs(6)
    full = load("llava").log_likelihood(contexts, texts)
    half = load("llava", dtype="bfloat16").log_likelihood(contexts, texts)
    assert load("llava", dtype="bfloat16")._model.dtype == torch.bfloat16
    for one, other in zip(full, half, strict=True):
        assert other.token_log_probs.dtype == np.float32
        assert one.mean == pytest.approx(other.mean, abs=0.2)


@pytest.mark.parametrize("name", ALL)
def test_16_bit_logits_do_not_round_the_log_probability(name: str, load: Load) -> None:
    generator = load(name, dtype="bfloat16")
    head, words = generator._model.get_output_embeddings(), ("red", "dog", "house", "the", "what", "is")
    answers = [generator._reader.continuation(word, "") for word in words]
    with torch.no_grad(), watched_head(generator._model) as seen:
        head.weight *= 16  # logits as large as those of real models, so that rounding shows
        try:
            found = [generator.log_likelihood([context()], [word])[0].token_log_probs[0] for word in words]
            exact, totals = [], []
            for (token, *more), (hidden, logits) in zip(answers, seen, strict=True):
                place = 0 if name in ENCODING else -2 - len(more)
                exact.append(float(hidden[0, place].double() @ head.weight[token].double()))
                row = logits[0, place].double()
                row[token] = exact[-1]  # the only unrounded term of the total
                totals.append(float(row.logsumexp(0)))
        finally:
            head.weight /= 16
    assert found == pytest.approx(np.subtract(exact, totals), abs=2e-3)
    # the totals differ slightly between the tokens; with rounded logits the differences would be larger
    assert np.diff(found) == pytest.approx(np.diff(exact), abs=1e-2)


def test_logits_changed_after_the_head_have_no_hidden_states() -> None:
    class Model:
        def __init__(self, head: Any) -> None:
            self.get_output_embeddings = lambda: head

    head, hidden = torch.nn.Linear(4, 8).to(torch.bfloat16), torch.ones(1, 4, dtype=torch.bfloat16)
    with watched_head(Model(head)) as seen:
        logits = head(hidden)
    assert hidden_behind(logits, seen) is hidden
    assert hidden_behind(30 * torch.tanh(logits / 30), seen) is None
    head(hidden)
    assert len(seen) == 1
    with watched_head(Model(head.float())) as seen:
        head(hidden.float())
    with watched_head(Model(None)) as unseen:
        pass
    assert seen == unseen == []


def test_damaged_folder_is_refused(folder: Callable[[str], Path], tmp_path: Path) -> None:
    whole = Path(shutil.copytree(folder("llava"), tmp_path / "copy"))
    weights = (whole / "model.safetensors").read_bytes()
    (whole / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(WeightsError, match="cannot load the weights"):
        VLMGenerator.from_pretrained(whole)
    (whole / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="cannot load the weights"):
        VLMGenerator.from_pretrained(whole)
    for file in whole.glob("*processor*"):
        file.unlink()
    with pytest.raises(WeightsError, match="processor"):
        VLMGenerator.from_pretrained(whole)
    (whole / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="cannot load the configuration"):
        VLMGenerator.from_pretrained(whole)
    with pytest.raises(WeightsError, match="there is no folder"):
        VLMGenerator.from_pretrained(tmp_path / "nothing")


def test_missing_weights_are_refused(folder: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    whole = Path(shutil.copytree(folder("llava"), tmp_path / "copy"))
    state = load_file(whole / "model.safetensors")
    key = next(key for key in state if "multi_modal_projector" in key)
    save_file({name: value for name, value in state.items() if name != key}, whole / "model.safetensors")
    with pytest.raises(WeightsError, match=r"has no weights, or .*multi_modal_projector"):
        VLMGenerator.from_pretrained(whole)


def test_name_that_cannot_be_downloaded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"(?s)nobody/no-such-model.*hf download nobody/no-such-model"):
        VLMGenerator.from_pretrained("nobody/no-such-model")


def test_language_model_is_refused(tmp_path: Path) -> None:
    hf.OPTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match=r"opt model, which is not image-text-to-text; .*LLaVA.*Qwen"):
        VLMGenerator.from_pretrained(tmp_path)


@pytest.mark.parametrize("config", [hf.BlipConfig, hf.GitConfig, hf.Pix2StructConfig, hf.InstructBlipConfig])
def test_families_that_cannot_be_scored_are_refused_by_name(config: Any, tmp_path: Path) -> None:
    config().save_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match=f"{config.model_type} models cannot be scored"):
        VLMGenerator.from_pretrained(tmp_path)


def test_missing_package_is_named(folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder("smolvlm")
    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    with pytest.raises(MissingDependencyError, match="pip install num2words"):
        VLMGenerator.from_pretrained(path)


# -- the check on loading --------------------------------------------------------------------------------


def forget(monkeypatch: pytest.MonkeyPatch, model_type: str) -> None:
    """Make a family unknown."""
    others = {key: value for key, value in families.FAMILIES.items() if key != model_type}
    monkeypatch.setattr(families, "FAMILIES", others)


@OLD_ARRAYS
def test_unknown_family_that_leaks_is_refused_by_name(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PaliGemma without its row in the table: its text joins the bidirectional prefix."""
    forget(monkeypatch, "paligemma")
    with pytest.raises(InvalidInputError, match=r"paligemma model .* later tokens change"):
        VLMGenerator.from_pretrained(folder("paligemma"), device="cpu")
    leaking = VLMGenerator.from_pretrained(folder("paligemma"), device="cpu", self_check=False)
    (check,) = (check for check in generator_checks if check.name == "later_tokens_do_not_leak")
    with pytest.raises(AssertionError, match="later_tokens"):
        check(lambda: leaking)


@pytest.mark.parametrize(
    "name",
    [
        "llava",
        "mllama",
        "internvl",
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("idefics3", "gemma3")),
    ],
)
def test_unknown_family_that_does_not_leak_is_scored_pair_by_pair(
    name: str, load: Load, folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts, texts = pairs(6)
    expected = load(name).log_likelihood(contexts, texts)
    forget(monkeypatch, name)
    generator = VLMGenerator.from_pretrained(folder(name), device="cpu")
    rows: list[int] = []
    generator._model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    found = generator.log_likelihood(contexts, texts)
    assert rows == [1] * 6
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one.token_log_probs, other.token_log_probs, atol=1e-4)


class Tampered(VLMGenerator):
    """Scores with one fault."""

    fault = ""

    def _score(self, prompts: Any, answers: Any) -> Any:
        if self.fault == "blind":
            prompts = [
                type(one)(one.tokens, {key: value * 0 for key, value in one.images.items()})
                for one in prompts
            ]
        scores = super()._score(prompts, answers)
        if self.fault == "padding" and len(prompts) > 1:
            scores = [one - 0.01 for one in scores]
        if self.fault == "nan" or (self.fault == "nan beside another" and len(prompts) > 1):
            scores = [one * np.nan for one in scores]
        if self.fault == "code":
            raise RuntimeError("shapes do not match")
        return scores


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("blind", "another image changes nothing"),
        ("padding", "padding changes"),
        ("nan", "not finite"),
        ("nan beside another", "not finite"),
        ("code", "RuntimeError: shapes do not match"),
    ],
)
def test_load_check_finds_faults(
    fault: str, message: str, folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tampered, "fault", fault)
    with pytest.raises(InvalidInputError, match=f"llava model and cannot be scored .*{message}"):
        Tampered.from_pretrained(folder("llava"), device="cpu")
    assert Tampered.from_pretrained(folder("llava"), device="cpu", self_check=False)


def test_out_of_memory_in_the_load_check_is_raised_unchanged(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(VLMGenerator, "_score", fail)
    with pytest.raises(torch.OutOfMemoryError):
        VLMGenerator.from_pretrained(folder("llava"), device="cpu")
