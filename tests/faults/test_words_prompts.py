"""The prompt of a vision-language model is complete, the same every day, and can be looked at."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

import tiny_vlms
from tiny_kosmos import tiny_kosmos
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.vlm.chat_template import ChatTemplate, template_of
from zsqretrieval.generators.vlm.model import VLMGenerator
from zsqretrieval.testing.pictures import painting, paintings
from zsqretrieval.types import Image

hf = tiny_vlms.hf
IMAGE = paintings(1)[0]
PARTS = (
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
)
TURNS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n" + PARTS + "<|im_end|>\n{% endfor %}"
)
BEGIN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
PROMPT = "<|im_start|>user\n<image>Question:<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlms.llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def processor(llava: Path) -> Any:
    return hf.AutoProcessor.from_pretrained(llava)


@pytest.fixture
def template(processor: Any) -> Callable[..., ChatTemplate]:
    def make(text: str, **settings: Any) -> ChatTemplate:
        own = copy.copy(processor)
        own.chat_template = text
        return ChatTemplate(own, "<image>", settings)

    return make


def written(template: ChatTemplate) -> str:
    return template.write([None, "Question:"])


# --- the place of the answer ------------------------------------------------------------------------------


def thinking(opening: str) -> str:
    return TURNS + BEGIN.replace("assistant\n", f"assistant\n{opening}")


@pytest.mark.parametrize(
    "opening",
    [
        "<think>\n",
        "<think>",
        "<thinking> ",
        "<|begin_of_thought|>\n",
        "◁think▷",
        "[THINK]",
        "<|START_THINKING|>",
        "<think></think>\n<reasoning>",
    ],
)
def test_template_that_opens_a_thought_is_refused(opening: str, template: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"opens a thought before the answer.*enable_thinking"):
        template(thinking(opening))


@pytest.mark.parametrize("closed", ["<think>\n\n</think>\n\n", "<|begin_of_thought|>x<|end_of_thought|>", ""])
def test_closed_thought_is_no_fault(closed: str, template: Any) -> None:
    assert written(template(thinking(closed))) == PROMPT + closed


def test_typed_thought_is_no_fault(template: Any) -> None:
    made = template(TURNS + BEGIN)
    assert made.write([None, "<think> about it"]).count("<think>") == 1


OPTIONAL = TURNS + BEGIN.replace(
    "{% endif %}", "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% else %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)  # fmt: skip


def test_thought_is_turned_off_by_a_setting(template: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"contains .*enable_thinking"):
        template(OPTIONAL)
    assert written(template(OPTIONAL, enable_thinking=False)) == f"{PROMPT}<think>\n\n</think>\n\n"


ANSWERS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}EMPTY{% endif %}" + PARTS + "<|im_end|>\n{% endfor %}"
)


@pytest.mark.parametrize(
    ("text", "added", "lead"),
    [
        (TURNS, "<|im_start|>assistant\n", ""),  # ignores add_generation_prompt
        (TURNS.replace("}}\n", "}}: ", 1), "<|im_start|>assistant:", " "),
        (ANSWERS.replace("EMPTY", "<think>\n\n</think>\n\n") + BEGIN, "<think>\n\n</think>\n\n", ""),
        (ANSWERS.replace("EMPTY", "<think>\n\n</think>\n\n") + thinking("<think>\n")[len(TURNS) :],
         "\n</think>\n\n", ""),
    ],
)  # fmt: skip
def test_missing_beginning_of_an_answer_is_added(text: str, added: str, lead: str, template: Any) -> None:
    with pytest.warns(RuntimeWarning, match=r"ends its prompt before '.* added to every prompt"):
        made = template(text)
    assert written(made).endswith(added)
    assert made.lead == lead


@pytest.mark.parametrize(
    ("text", "lead"),
    [
        (TURNS + BEGIN, ""),
        (TURNS + BEGIN.replace("assistant\n", "assistant"), "\n"),
        (f"{{% for message in messages %}}{{% if message['role'] == 'user' %}}[INST] {PARTS} [/INST]"
         f"{{% else %}} {PARTS}</s>{{% endif %}}{{% endfor %}}", " "),
    ],
)  # fmt: skip
def test_complete_prompt_stays(text: str, lead: str, template: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = template(text)
    assert made.lead == lead
    assert made._header == ""


# --- the same every day -----------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["%d %b %Y", "%Y-%m-%d", "%B %d, %Y %H:%M"])
def test_date_of_a_prompt_stands_still(format: str, template: Any) -> None:
    text = "Today: {{ strftime_now('FORMAT') }}\n".replace("FORMAT", format) + TURNS + BEGIN
    assert written(template(text)) == f"Today: {datetime(2024, 7, 26).strftime(format)}\n{PROMPT}"
    later = "{% set f = 'FORMAT' %}Today: {{ strftime_now(f) }}\n".replace("FORMAT", format) + TURNS + BEGIN
    assert written(template(later)).startswith("Today: 26 Jul 2024\n")


def test_date_of_llama_can_be_set(template: Any) -> None:
    text = (
        "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
        '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "never" %}'
        "{%- endif %}{%- endif %}{{ date_string }}: " + TURNS + BEGIN
    )
    assert written(template(text)) == f"26 Jul 2024: {PROMPT}"
    assert written(template(text, date_string="1 May 2025")) == f"1 May 2025: {PROMPT}"


@pytest.mark.parametrize(
    "part", ["{{ range(1000) | random }}", "{{ lipsum(1) }}", "{{ ['a', 'b'] | random }}"]
)
def test_template_that_draws_is_refused(part: str, template: Any) -> None:
    with pytest.raises(InvalidInputError, match="writes something else each time"):
        template(part + TURNS + BEGIN)


# --- which template ---------------------------------------------------------------------------------------

ONE_STRING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}"
    "<|im_end|>\n{% endfor %}" + BEGIN
)


def test_template_for_one_string_gets_one_string(template: Any) -> None:
    assert written(template(ONE_STRING)) == PROMPT.replace("<image>", "<image> ")
    adding = ONE_STRING.replace("message['content'] | trim", "message['content'] + ''")
    assert written(template(adding)) == PROMPT.replace("<image>", "<image> ")


@pytest.mark.parametrize(
    "text", ["<|im_start|>{{ bos }}", "{{ raise_exception('no') }}", TURNS.replace("<image>", "")]
)
def test_template_that_leaves_something_out_is_refused(text: str, template: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"cannot write a user's turn of text and images.*chat=False"):
        template(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"enable_thinkin": False}, "no variable 'enable_thinkin'"),
        ({"messages": []}, "no variable 'messages'"),
        ({"add_generation_prompt": False}, "no variable 'add_generation_prompt'"),
        ({"tokenize": True}, "no variable 'tokenize'"),
        ({"enable_thinking": object()}, "must be JSON values"),
    ],
)
def test_setting_without_effect_is_refused(settings: Any, message: str, template: Any) -> None:
    with pytest.raises(InvalidInputError, match=message):
        template(OPTIONAL, **settings)


def test_template_of_the_tokenizer_alone_is_used(llava: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llava, tmp_path / "copy"))
    plain = VLMGenerator.from_pretrained(folder, device="cpu", self_check=False)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TURNS + BEGIN}))
    chatting = VLMGenerator.from_pretrained(folder, device="cpu", self_check=False)
    context = (IMAGE, "Question:")
    assert "<|im_start|>" not in plain.show_prompt(context)
    assert chatting.show_prompt(context).endswith("<|im_start|>assistant \n")
    assert VLMGenerator.from_pretrained(folder, device="cpu", chat=False).fingerprint == plain.fingerprint


def test_template_is_the_processors_or_else_the_tokenizers(processor: Any) -> None:
    own = copy.copy(processor)
    own.tokenizer = copy.copy(processor.tokenizer)
    assert template_of(own) is None
    own.tokenizer.chat_template = {"default": "a", "tools": "b"}
    assert template_of(own) == "a"
    own.chat_template = "c"
    assert template_of(own) == "c"


# --- the whole generator ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_options(llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(llava, tmp_path_factory.mktemp("options") / "copy"))
    (folder / "chat_template.jinja").write_text(OPTIONAL)
    return folder


def test_settings_of_the_template_are_part_of_the_generator(with_options: Path) -> None:
    with pytest.raises(InvalidInputError, match="opens a thought"):
        VLMGenerator.from_pretrained(with_options, device="cpu")
    with pytest.raises(InvalidInputError, match="needs a model with a chat template, and chat=True"):
        VLMGenerator.from_pretrained(
            with_options, device="cpu", chat=False, chat_template_kwargs={"enable_thinking": False}
        )
    made = VLMGenerator.from_pretrained(
        with_options, device="cpu", chat_template_kwargs={"enable_thinking": False}
    )
    assert made.config["chat_template_kwargs"] == {"enable_thinking": False}
    again = VLMGenerator.from_config(json.loads(json.dumps(made.config)))
    other = VLMGenerator.from_pretrained(
        with_options, device="cpu", chat_template_kwargs={"enable_thinking": None}
    )
    assert again.fingerprint == made.fingerprint != other.fingerprint
    shown = made.show_prompt((IMAGE, "the red house", "Question:"))
    assert shown.count("<image>[x 16]") == 1
    assert "the red house Question:" in shown


def test_end_token_after_a_context_is_dropped(llava: Path) -> None:
    """As tokenizers with add_eos_token=True put it there."""
    plain = VLMGenerator.from_pretrained(llava, device="cpu", self_check=False)
    ending = VLMGenerator.from_pretrained(llava, device="cpu", self_check=False)._processor
    end = ("</s>", ending.tokenizer.eos_token_id)
    for single in ("$A </s>", "<s> $A </s>"):
        ending.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=single, special_tokens=[end, ("<s>", ending.tokenizer.bos_token_id)]
        )
        made = VLMGenerator(plain._model, ending, config={})
        found = made.show_prompt((IMAGE, "Question:"))
        assert found.removeprefix("<s>").lstrip() == plain.show_prompt((IMAGE, "Question:")).lstrip()
        assert "</s>" not in found
        assert np.isfinite(made.log_likelihood([(IMAGE, "Question:")], ["red"])[0].sum)


# --- pictures and folders ---------------------------------------------------------------------------------


def test_kosmos_squeezes_long_pictures_as_published() -> None:
    generator = tiny_kosmos()  # resizes to a square, as use_square_size does
    size = (900, 28)  # its ends are cut off in a picture trimmed to 16 : 1
    ends = painting(0, size=size)
    ends.paste((255, 0, 0), (0, 0, 150, 28))
    plain = generator.image_states([Image(painting(0, size=size), "plain"), Image(ends, "ends")])
    assert np.abs(plain[0] - plain[1]).max() > 1e-3
    pixels = generator.processor.image_processor([ends], return_tensors="pt").pixel_values
    seen = generator.model.vision_model(pixels).last_hidden_state
    seen = generator.model.vision_model.model.post_layernorm(seen)
    expected = generator.model.image_to_text_projection(seen / seen.norm(dim=-1, keepdim=True))[0]
    np.testing.assert_allclose(plain[1], expected[0].detach().numpy(), atol=1e-4)
    cropping = tiny_kosmos()
    cropping.processor.image_processor.size = {"shortest_edge": 28}
    trimmed = cropping.image_states([Image(painting(0, size=size), "plain"), Image(ends, "ends")])
    np.testing.assert_allclose(trimmed[0], trimmed[1], atol=1e-4)
    assert cropping.fingerprint != generator.fingerprint


def test_llava_folder_without_a_patch_size_is_read(llava: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llava, tmp_path / "old"))
    settings = json.loads((folder / "processor_config.json").read_text())
    for name in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"):
        del settings[name]
    (folder / "processor_config.json").write_text(json.dumps(settings))
    old = VLMGenerator.from_pretrained(folder, device="cpu")
    new = VLMGenerator.from_pretrained(llava, device="cpu")
    context = (IMAGE, "Question:")
    assert old.show_prompt(context) == new.show_prompt(context)
    (one,), (other,) = (made.log_likelihood([context], ["red house"]) for made in (old, new))
    np.testing.assert_array_equal(one.token_log_probs, other.token_log_probs)
