"""From interleaved text and images to the input tensors of a vision-language model, and to batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from PIL import Image as PILImage
from torch.nn.utils.rnn import pad_sequence

from zsqretrieval.data.images import decode
from zsqretrieval.errors import InvalidInputError, MismatchError
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
    user's turn of a conversation.

    Raises:
        InvalidInputError: ``chat`` is set and the processor has no chat template for images.
    """

    def __init__(
        self, processor: Any, config: Any, family: Family, encoder_decoder: bool, chat: bool
    ) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._family = family
        self._chat = chat
        if chat and not has_chat_template(processor, family):
            raise InvalidInputError(
                f"chat=True needs a processor with a chat template, and this one of {family.name} has none"
            )
        self._written = family.layout.image(processor, config) if family.layout else ""
        self._reserved = self._placeholders()
        self._orders: dict[tuple[bool, ...], bool] = {}  # order of texts and images: kept by the template?
        lead = self._answer_lead() if chat else "" if encoder_decoder else family.lead
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
        if not isinstance(text, str):
            raise InvalidInputError(f"{name} must be a string, not {type(text).__name__}")
        self._check_reserved(text, name)
        if not text.strip():
            raise InvalidInputError(f"{name} is empty: {text!r}")
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
        """Each token as text, with its leading space."""
        pieces = map(str, self._tokenizer.convert_ids_to_tokens(list(ids)))
        texts = [self._tokenizer.decode([one], clean_up_tokenization_spaces=False) for one in ids]
        return tuple(
            f" {text.lstrip()}" if piece.startswith(("▁", "Ġ")) else text
            for piece, text in zip(pieces, texts, strict=True)
        )

    def text(self, ids: Sequence[int]) -> str:
        """The text of generated tokens, as :meth:`continuation` takes it.

        Without special tokens, trailing white space, and the space that :meth:`continuation` adds.
        """
        text = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        ).rstrip()
        return str(text.lstrip() if self._spaced else text)

    # -- text --------------------------------------------------------------------------------------------

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _segments(self, context: Context, name: str) -> list[Segment]:
        """The context, with adjacent texts joined."""
        if isinstance(context, str | bytes) or not isinstance(context, Sequence):
            raise InvalidInputError(
                f"{name} must be a sequence of strings and images, not {type(context).__name__}"
            )
        segments: list[Segment] = []
        for segment in context:
            if isinstance(segment, ImageState):
                raise MismatchError(
                    f"{name} has an image state of {segment.source}, and this generator has no image states; "
                    "give it the image"
                )
            if isinstance(segment, str):
                self._check_reserved(segment, name)
                if segments and isinstance(segments[-1], str):
                    segments[-1] = _joined([segments[-1], segment])
                elif segment:
                    segments.append(segment)
            elif isinstance(segment, Image):
                segments.append(segment)
            else:
                raise InvalidInputError(
                    f"{name} contains a {type(segment).__name__}; give strings and Image records"
                )
        return segments

    def _placeholders(self) -> tuple[str, ...]:
        owners = (self._processor, self._tokenizer)
        names = ("image_token", "video_token", "audio_token", "boi_token")
        found = {str(getattr(owner, name, None) or "") for owner in owners for name in names}
        return tuple(sorted(found - {""}))

    def _check_reserved(self, text: str, name: str) -> None:
        for token in self._reserved:
            if token in text:
                raise InvalidInputError(
                    f"{name} contains {token!r}, which stands for an image in this model; leave it out, and "
                    "put images into the context as Image records"
                )

    # -- inputs that this class writes -------------------------------------------------------------------

    def _write(self, segments: list[Segment], pictures: list[PILImage.Image]) -> ModelInputs:
        layout = self._family.layout
        assert layout is not None
        leading = next((i for i, one in enumerate(segments) if isinstance(one, str)), len(segments))
        rest = [segment if isinstance(segment, str) else self._written for segment in segments[leading:]]
        rows = layout.write(self._tokenizer, self._written * leading, _joined(rest))
        tokens = {name: torch.tensor([row]) for name, row in rows.items()}
        seen = self._processor.image_processor(images=pictures, return_tensors="pt") if pictures else {}
        return ModelInputs(tokens, dict(seen))

    # -- inputs that the processor writes ----------------------------------------------------------------

    def _process(self, segments: list[Segment], pictures: list[PILImage.Image], name: str) -> ModelInputs:
        text = self._conversation(segments, name) if self._chat else self._line(segments)
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
        return ModelInputs(tokens, {key: value for key, value in tensors.items() if key not in tokens})

    def _line(self, segments: list[Segment]) -> str:
        image = self._family.image or str(self._processor.image_token)
        return _joined([segment if isinstance(segment, str) else image for segment in segments])

    def _conversation(self, segments: list[Segment], name: str) -> str:
        if not self._keeps_order(tuple(isinstance(segment, str) for segment in segments)):
            raise InvalidInputError(
                f"{name}: the chat template of this model changes the order of text and images (many put "
                "images first); put the images first, or load it with chat=False"
            )
        return self._turn([segment if isinstance(segment, str) else None for segment in segments])

    def _keeps_order(self, texts: tuple[bool, ...]) -> bool:
        """Whether the template keeps this order of texts (True) and images (False)."""
        if texts not in self._orders:
            # marks that no template contains; a question might occur in one by chance
            marks = [f"zq{number}xj" if is_text else None for number, is_text in enumerate(texts)]
            image = str(self._processor.image_token)
            self._orders[texts] = _in_order([mark or image for mark in marks], self._turn(marks))
        return self._orders[texts]

    def _turn(self, segments: Sequence[str | None]) -> str:
        """A user's turn of texts and images (None), up to the beginning of the answer."""
        parts = [{"type": "image"} if one is None else {"type": "text", "text": one} for one in segments]
        return self._render([{"role": "user", "content": parts}], add_generation_prompt=True)

    def _answer_lead(self) -> str:
        """The white space that the template puts before the assistant's words."""
        user: dict[str, Any] = {"role": "user", "content": [{"type": "text", "text": "zebra"}]}
        prompt = self._render([user], add_generation_prompt=True)
        answer = {**user, "role": "assistant"}
        turn = self._render([user, answer], add_generation_prompt=False)
        lead = turn.removeprefix(prompt).partition("zebra")[0] if turn.startswith(prompt) else ""
        return "" if lead.strip() else lead

    def _render(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        try:
            return str(
                self._processor.apply_chat_template(messages, add_generation_prompt=add_generation_prompt)
            )
        except Exception as error:  # templates are programs and raise various types
            raise InvalidInputError(
                f"the chat template of this model cannot write a user's turn of text and images: {error}; "
                "load it with chat=False"
            ) from error


def _in_order(parts: Sequence[str], text: str) -> bool:
    """Whether the text contains the parts in this order."""
    place = 0
    for part in parts:
        found = text.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    return True


def has_chat_template(processor: Any, family: Family) -> bool:
    """Whether the processor has a chat template for images."""
    return family.layout is None and getattr(processor, "chat_template", None) is not None


def _joined(texts: Sequence[str]) -> str:
    """Join texts, with a space between two that have no white space there."""
    line = ""
    for text in texts:
        needs = line and text and not line[-1].isspace() and not text[0].isspace()
        line += (" " if needs else "") + text
    return line
