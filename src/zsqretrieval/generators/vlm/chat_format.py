"""From interleaved text and images to the input tensors of a vision-language model, and to batches."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

import torch
from PIL import Image as PILImage
from torch.nn.utils.rnn import pad_sequence

from zsqretrieval._util.checks import check_sequence, check_text
from zsqretrieval._util.letters import TypedText, as_letters
from zsqretrieval.data.images import decode
from zsqretrieval.errors import InvalidInputError, MismatchError
from zsqretrieval.generators.vlm.chat_template import ChatTemplate, joined, template_of
from zsqretrieval.generators.vlm.families import Family
from zsqretrieval.types import Context, Image, ImageState

Segment: TypeAlias = "str | Image"


@dataclass(frozen=True, slots=True, eq=False)
class ModelInputs:
    """One context as the model's input tensors, by name."""

    tokens: dict[str, torch.Tensor]  # one entry per token: integer [1, n, ...]; ``input_ids`` is one of them
    images: dict[str, torch.Tensor]  # pixels and their metadata, images along the first axis

    def __len__(self) -> int:
        return self.tokens["input_ids"].shape[1]

    @property
    def shape(self) -> tuple[object, ...]:
        """Equal for inputs whose images can be stacked along the first axis."""
        tensors = [*self.tokens.items(), *self.images.items()]
        return tuple((name, *value.shape[2 if name in self.tokens else 1 :]) for name, value in tensors)

    def followed_by(self, ids: Sequence[int], family: Family) -> ModelInputs:
        """These inputs followed by the tokens ``ids`` of a continuation."""
        follow = {"attention_mask": 1, **family.following}
        tokens = {}
        for name, value in self.tokens.items():
            if value.ndim > 2:  # the images a token attends to: the same as for the last token
                more = value[:, -1:].expand(-1, len(ids), *value.shape[2:])
            else:
                more = torch.full((1, len(ids)), follow.get(name, 0), dtype=value.dtype)
            tokens[name] = torch.cat([value, more], dim=1)
        tokens["input_ids"][0, len(self) :] = torch.tensor(ids)
        return ModelInputs(tokens, self.images)

    def without_last(self, n: int) -> ModelInputs:
        """These inputs without their last n tokens."""
        return ModelInputs({name: value[:, :-n] for name, value in self.tokens.items()}, self.images)


def collate(
    prompts: Sequence[ModelInputs], *, pad: int, side: str, device: Any, dtype: Any
) -> dict[str, torch.Tensor]:
    """Stack B inputs of one shape as keyword arguments: [B, longest, ...] per token, images in sequence."""
    batch = {}
    for name in prompts[0].tokens:
        rows = [prompt.tokens[name][0] for prompt in prompts]  # [n, ...] each
        fill = pad if name == "input_ids" else 0
        batch[name] = pad_sequence(rows, True, fill, side).to(device)
    for name in prompts[0].images:
        value = torch.cat([prompt.images[name] for prompt in prompts])
        batch[name] = value.to(device, dtype if value.is_floating_point() else None)
    return batch


class Reader:
    """Converts contexts and continuations to the inputs of one family, and tokens back to text.

    With ``encoder_decoder`` continuations go to a separate decoder; with ``chat`` a context becomes the
    user's turn of a conversation, written by the chat template with the variables ``settings``. Special
    tokens in a text are letters. An end token that the tokenizer puts after a context is dropped.

    Raises:
        InvalidInputError: ``chat`` is set and there is no chat template for images, or as for
            :class:`~zsqretrieval.generators.vlm.chat_template.ChatTemplate`; or ``settings`` without chat.
    """

    def __init__(
        self,
        processor: Any,
        config: Any,
        family: Family,
        encoder_decoder: bool,
        chat: bool,
        settings: Mapping[str, Any],
    ) -> None:
        self._tokenizer = processor.tokenizer
        self._letters = as_letters(processor.tokenizer)
        self._typed = TypedText(processor.tokenizer, _placeholders(processor))
        self._special = frozenset(self._typed.marks.values())
        self._processor = copy.copy(processor)
        self._processor.tokenizer = self._typed.tokenizer
        self._family = family
        if chat and not has_chat_template(processor, family):
            raise InvalidInputError(
                f"chat=True needs a processor with a chat template, and this one of {family.name} has none"
            )
        if settings and not chat:
            raise InvalidInputError("chat_template_kwargs needs a model with a chat template, and chat=True")
        self._written = family.layout.image(processor, config) if family.layout else ""
        self.template = ChatTemplate(processor, self._image, settings) if chat else None
        self._end = [] if encoder_decoder else _added_end(self._tokenizer)
        lead = self.template.lead if self.template else "" if encoder_decoder else family.lead
        self._spaced = lead == " "
        # some tokenizers add a space in front of a text, and would add a second one
        self._marks = str(self._tokenizer.convert_ids_to_tokens(self._ids("a"))[0]).startswith("▁")
        self._lead = "" if self._marks and self._spaced else lead

    def prompt(self, context: Context, name: str) -> ModelInputs:
        """The inputs of a context; ``name`` is for errors."""
        segments = self._segments(context, name)
        pictures = [decode(segment) for segment in segments if isinstance(segment, Image)]
        layout = self._family.layout
        prompt = self._write(segments, pictures) if layout else self._process(segments, pictures, name)
        if not len(prompt):
            raise InvalidInputError(f"{name} is empty; give it a text or an image to continue from")
        return prompt

    def continuation(self, text: str, name: str) -> list[int]:
        """The tokens of a continuation, which depend on nothing else."""
        check_text(text, name)
        if not text[0].isspace():
            text = self._lead + text
        elif self._marks and text[0] == " ":
            text = text[1:]
        ids = self._ids(text)
        if not ids:
            raise InvalidInputError(
                f"{name} has no tokens: {text!r}; a text without tokens has no likelihood"
            )
        return ids

    def shown(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Each token as text, with its leading space; part of a character as the tokenizer names it."""
        pieces = map(str, self._tokenizer.convert_ids_to_tokens(list(ids)))
        texts = [self._tokenizer.decode([one], clean_up_tokenization_spaces=False) for one in ids]
        return tuple(
            piece if "\ufffd" in text else f" {text.lstrip()}" if piece.startswith(("▁", "Ġ")) else text
            for piece, text in zip(pieces, texts, strict=True)
        )

    def text(self, ids: Sequence[int]) -> str:
        """The text of generated tokens, as :meth:`continuation` takes it.

        Without special tokens, trailing white space, and the space that :meth:`continuation` adds.
        """
        words = [one for one in ids if one not in self._special]
        text = self._tokenizer.decode(
            words, skip_special_tokens=True, clean_up_tokenization_spaces=False
        ).rstrip()
        return str(text.lstrip() if self._spaced else text)

    def show(self, prompt: ModelInputs) -> str:
        """The text of a prompt's tokens; a run of n equal special tokens is one, followed by ``[x n]``."""
        ids = prompt.tokens["input_ids"][0].tolist()
        shown = ""
        for mark, run in groupby(ids, key=lambda one: one if one in self._special else None):
            some = list(run)
            text = self._tokenizer.decode(
                some if mark is None else some[:1], clean_up_tokenization_spaces=False
            )
            shown += f"{text}[x {len(some)}]" if mark is not None and len(some) > 1 else str(text)
        return shown

    # -- text --------------------------------------------------------------------------------------------

    def _ids(self, text: str) -> list[int]:
        return list(self._letters(text, add_special_tokens=False).input_ids)

    def _segments(self, context: Context, name: str) -> list[Segment]:
        """The context, with adjacent texts joined."""
        check_sequence(context, name)
        segments: list[Segment] = []
        for segment in context:
            if isinstance(segment, ImageState):
                raise MismatchError(
                    f"{name} has an image state of {segment.source}, and this generator has no image states; "
                    "give it the image"
                )
            if isinstance(segment, str):
                if segment.strip():
                    check_text(segment, f"a text of {name}")
                if segments and isinstance(segments[-1], str):
                    segments[-1] = joined([segments[-1], segment])
                elif segment:
                    segments.append(segment)
            elif isinstance(segment, Image):
                segments.append(segment)
            else:
                raise InvalidInputError(
                    f"{name} contains a {type(segment).__name__}; give strings and Image records"
                )
        return [self._typed.hide(one, name) if isinstance(one, str) else one for one in segments]

    # -- inputs that this class writes -------------------------------------------------------------------

    def _write(self, segments: list[Segment], pictures: list[PILImage.Image]) -> ModelInputs:
        layout = self._family.layout
        assert layout is not None
        leading = next((i for i, one in enumerate(segments) if isinstance(one, str)), len(segments))
        rest = [segment if isinstance(segment, str) else self._written for segment in segments[leading:]]
        rows = layout.write(self._typed.tokenizer, self._written * leading, joined(rest))
        tokens = {name: torch.tensor([row]) for name, row in rows.items()}
        seen = self._processor.image_processor(images=pictures, return_tensors="pt") if pictures else {}
        return self._open_ended(ModelInputs(tokens, dict(seen)))

    # -- inputs that the processor writes ----------------------------------------------------------------

    def _process(self, segments: list[Segment], pictures: list[PILImage.Image], name: str) -> ModelInputs:
        text = self._conversation(segments, name) if self.template else self._line(segments)
        begins = bool(self._tokenizer.bos_token) and text.startswith(self._tokenizer.bos_token)
        encoded = self._processor(
            text=[text],
            images=[pictures] if pictures else None,
            return_tensors="pt",
            **({"add_special_tokens": False} if begins else {}),
        )
        encoded.pop("labels", None)
        tensors = {key: value for key, value in encoded.items() if isinstance(value, torch.Tensor)}
        n = tensors["input_ids"].shape[1]
        of_images = set(self._processor.image_processor.model_input_names)
        tokens = {
            key: value.long() if value.ndim == 2 else value
            for key, value in tensors.items()
            if key not in of_images and tuple(value.shape[:2]) == (1, n)
        }
        images = {key: value for key, value in tensors.items() if key not in tokens}
        found = ModelInputs(tokens, images)
        return found if begins else self._open_ended(found)

    def _open_ended(self, prompt: ModelInputs) -> ModelInputs:
        """Without the end token that the tokenizer has added: an answer follows."""
        n = len(self._end)
        ends = n and prompt.tokens["input_ids"][0, -n:].tolist() == self._end
        return prompt.without_last(n) if ends else prompt

    @property
    def _image(self) -> str:
        """An image in a plain prompt."""
        return self._family.image or str(self._processor.image_token)

    def _line(self, segments: list[Segment]) -> str:
        return joined([segment if isinstance(segment, str) else self._image for segment in segments])

    def _conversation(self, segments: list[Segment], name: str) -> str:
        assert self.template is not None
        if not self.template.keeps_order(tuple(isinstance(segment, str) for segment in segments)):
            raise InvalidInputError(
                f"{name}: the chat template of this model changes the order of text and images (many put "
                "images first); put the images first, or load it with chat=False"
            )
        return self.template.write([segment if isinstance(segment, str) else None for segment in segments])


def _placeholders(processor: Any) -> set[str]:
    """Strings that a processor replaces by the tokens of an image, and the like."""
    names = ("image_token", "video_token", "audio_token", "boi_token")
    owners = (processor, processor.tokenizer)
    return {str(getattr(owner, name, None) or "") for owner in owners for name in names} - {""}


def _added_end(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts after a text."""
    own, whole = (list(tokenizer("a", add_special_tokens=add).input_ids) for add in (False, True))
    for start in range(len(whole) - len(own) + 1):
        if whole[start : start + len(own)] == own:
            return whole[start + len(own) :]
    return []


def has_chat_template(processor: Any, family: Family) -> bool:
    """Whether the processor or its tokenizer has a chat template, and the family takes its prompts."""
    return family.layout is None and template_of(processor) is not None
