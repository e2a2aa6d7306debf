"""The chat template of a model: the text around a context, up to the place of the answer."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from zsqretrieval.errors import InvalidInputError

_ASKED, _ANSWERED = "zq0xj", "zq1xj"  # texts that no template contains; a question might occur in one
_THOUGHT = re.compile(
    r"[<\[◁][^<>\[\]◁▷\s]*(think|thought|reason|analysis|scratchpad)[^<>\[\]◁▷\s]*[>\]▷]", re.IGNORECASE
)
_OURS = ("messages", "add_generation_prompt", "continue_final_message", "tokenize")
_DRAWS = 8  # renderings compared to find a template that writes something else each time

_STILL = datetime(2024, 7, 26)
"""The date that ``strftime_now`` gives to a template: the one that Llama 3.2's has for want of a clock."""


def template_of(processor: Any) -> str | None:
    """The chat template of a processor, or else of its tokenizer; None if both have none."""
    for owner in (processor, processor.tokenizer):
        found = getattr(owner, "chat_template", None)
        if isinstance(found, Mapping):
            found = found.get("default")
        if found:
            return str(found)
    return None


class ChatTemplate:
    """Writes a user's turn of texts and images, up to the place of the answer.

    The answer stands where the template itself puts the words of an assistant. If its prompt ends before that
    place, because it ignores ``add_generation_prompt`` or opens a thought that finished answers have closed,
    what is missing is added, with a RuntimeWarning. The clock of a template stands still.

    Args:
        processor: of the model, with a template.
        image: an image in a prompt of plain text, for templates that take one string as a turn's content.
        settings: variables for the template, such as ``enable_thinking``.

    Attributes:
        lead: spaces between the prompt and an answer.

    Raises:
        InvalidInputError: the template has no such variable, fails, leaves out texts or images, writes
            something else each time, or leaves a thought open in which the answer would stand.
    """

    def __init__(self, processor: Any, image: str, settings: Mapping[str, Any]) -> None:
        template = template_of(processor)
        assert template is not None
        self._processor, self._image = processor, image
        self._settings = _checked(settings, template)
        self._template = _with_still_clock(template)
        self._orders: dict[tuple[bool, ...], bool] = {}  # order of texts and images: kept by the template?
        self._one_string = not self._shows_all()
        self._header, self.lead = self._before_answer()
        if len({self.write([None, _ASKED]) for _ in range(_DRAWS)}) > 1:
            raise InvalidInputError(
                "the chat template of this model writes something else each time, so scores could not be "
                "compared; load it with chat=False"
            )
        self._check_thought()

    def describe(self) -> dict[str, Any]:
        """All that determines the prompts, as JSON, with an example."""
        return {
            "template": self._template,
            "settings": dict(self._settings),
            "prompt": self.write([None, "Question:"]),
        }

    def write(self, segments: Sequence[str | None]) -> str:
        """The prompt of texts and images (None).

        Raises:
            InvalidInputError: the template fails.
        """
        return self._turn(segments) + self._header

    def keeps_order(self, texts: tuple[bool, ...]) -> bool:
        """Whether the template keeps this order of texts (True) and images (False)."""
        if texts not in self._orders:
            marks = [f"zq{number}xj" if is_text else None for number, is_text in enumerate(texts)]
            token = str(self._processor.image_token)
            self._orders[texts] = _in_order([mark or token for mark in marks], self._turn(marks))
        return self._orders[texts]

    # -- rendering

    def _turn(self, segments: Sequence[str | None], answer: str | None = None) -> str:
        """A user's turn, and with an answer also the assistant's."""
        messages = [{"role": "user", "content": self._content(segments)}]
        if answer is not None:
            messages.append({"role": "assistant", "content": self._content([answer])})
        try:
            return str(
                self._processor.apply_chat_template(
                    messages,
                    chat_template=self._template,
                    add_generation_prompt=answer is None,
                    **self._settings,
                )
            )
        except Exception as error:  # templates are programs and raise various types
            raise InvalidInputError(
                f"the chat template of this model cannot write a user's turn of text and images: {error}; "
                "load it with chat=False"
            ) from error

    def _content(self, segments: Sequence[str | None]) -> Any:
        if self._one_string:
            return joined([self._image if one is None else one for one in segments])
        return [{"type": "image"} if one is None else {"type": "text", "text": one} for one in segments]

    # -- checks

    def _shows_all(self) -> bool:
        """Whether the template takes a list of texts and images; False if it takes one string.

        Raises:
            InvalidInputError: it takes neither.
        """
        reason = "it leaves out one of them"
        for one_string in (False, True):
            self._one_string = one_string
            try:
                shown = self._turn([None, _ASKED])
            except InvalidInputError as error:
                reason = reason if one_string else str(error.__cause__)
                continue
            if _ASKED in shown and str(self._processor.image_token) in shown:
                return not one_string
        raise InvalidInputError(
            f"the chat template of this model cannot write a user's turn of text and images: {reason}; "
            "load it with chat=False"
        )

    def _before_answer(self) -> tuple[str, str]:
        """What the template puts between its prompt and an answer: text for the prompt, and spaces."""
        prompt, whole = self._turn([_ASKED]), self._turn([_ASKED], _ANSWERED)
        place = whole.find(_ANSWERED)
        if place < 0 or not whole[:place].startswith(prompt):
            return "", ""
        between = whole[len(prompt) : place]
        if not between.strip():
            return "", between
        header = between.rstrip(" ")
        advice = ""
        if re.search(r"\benable_thinking\b", self._template):
            advice = "; chat_template_kwargs={'enable_thinking': False} may do the same"
        warnings.warn(
            f"the chat template of this model ends its prompt before {header!r}, behind which it puts an "
            f"answer, so this is added to every prompt (see VLMGenerator.show_prompt){advice}",
            RuntimeWarning,
            stacklevel=2,
        )
        return header, between[len(header) :]

    def _check_thought(self) -> None:
        _, _, end = self.write([_ASKED]).rpartition(_ASKED)
        tags = list(_THOUGHT.finditer(end))
        if tags and not re.search(r"/|end", tags[-1][0], re.IGNORECASE):
            names = sorted(set(re.findall(r"\b\w*(?:think|reason)\w*\b", self._template, re.IGNORECASE)))
            raise InvalidInputError(
                f"the chat template of this model opens a thought before the answer: its prompt ends with "
                f"{end[-60:]!r}, so answers would be scored as thoughts. Turn that off with "
                "chat_template_kwargs={'enable_thinking': False} if the template has such a variable (it "
                f"contains {', '.join(names)}), or load it with chat=False"
            )


def joined(texts: Sequence[str]) -> str:
    """Join texts, with a space between two that have no white space there."""
    line = ""
    for text in texts:
        needs = line and text and not line[-1].isspace() and not text[0].isspace()
        line += (" " if needs else "") + text
    return line


def _in_order(parts: Sequence[str], text: str) -> bool:
    """Whether the text contains the parts in this order."""
    place = 0
    for part in parts:
        found = text.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    return True


def _checked(settings: Mapping[str, Any], template: str) -> dict[str, Any]:
    if not isinstance(settings, Mapping):
        raise InvalidInputError(
            f"chat_template_kwargs must map names to values, such as {{'enable_thinking': False}}, not "
            f"{settings!r}"
        )
    for name in settings:
        if not isinstance(name, str) or name in _OURS or not re.search(rf"\b{re.escape(name)}\b", template):
            raise InvalidInputError(
                f"the chat template of this model has no variable {name!r} to set with chat_template_kwargs"
            )
    try:
        json.dumps(dict(settings))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"chat_template_kwargs must be JSON values: {error}") from error
    return dict(settings)


def _with_still_clock(template: str) -> str:
    """The template with a ``strftime_now`` that always gives the same date."""
    if "strftime_now" not in template:
        return template
    formats = [found[2] for found in re.finditer(r"strftime_now\(\s*(['\"])(.*?)\1", template)]
    dates = {one: _STILL.strftime(one) for one in formats}
    table = f"{json.dumps(dates)}.get(format, {json.dumps(_STILL.strftime('%d %b %Y'))})"
    # transformers drops the first new line after a block
    return f"{{% macro strftime_now(format) %}}{{{{ {table} }}}}{{% endmacro %}}\n{template}"
