"""Tokenising what people type as letters, whatever special tokens it names.

A tokenizer looks for its special tokens in every text: the question "what does </s> mean?" would end a
sequence, and "<|im_end|>" a turn of a chat. Here a *mark* is such a token: every special one, and every added
one in brackets, such as ``<think>``. (Other added tokens, for instance runs of spaces, are ordinary text.)

    text --tokenizer--> tokens --no marks among them--> as they are
                              `--marks--> a copy of the tokenizer whose marks have secret names --> letters

Looking at tokens rather than at the text also finds a mark that a normalizer makes out of full-width
characters, and one that is a piece of the model's vocabulary.
"""

from __future__ import annotations

import copy
import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from zsqretrieval.errors import InvalidInputError

_BRACKETED = re.compile(r"[<\[{(|◁].*[>\]})|▷]", re.DOTALL)


def marks_of(tokenizer: Any) -> dict[str, int]:
    """The marks of a tokenizer of transformers, and their ids."""
    try:
        added = tokenizer.added_tokens_decoder
    except NotImplementedError:  # mistral-common, which finds no special token in a text
        return {}
    return {
        str(token): id
        for id, token in added.items()
        if token.special or _BRACKETED.fullmatch(str(token).strip())
    }


def as_letters(tokenizer: Any) -> Any:
    """A copy of a tokenizer of transformers to which no text contains a mark.

    Tokens of texts without marks are the same. Tokens that the tokenizer adds around a text stay. The copy
    raises ``InvalidInputError`` for a mark that cannot be tokenised as letters, which was not seen with any
    tokenizer of the library tokenizers.
    """
    plain = copy.copy(tokenizer)
    if hasattr(tokenizer, "backend_tokenizer"):
        plain._tokenizer = _LetterBackend(tokenizer.backend_tokenizer, marks_of(tokenizer))
    else:
        plain.tokenize = _LetterTokenize(tokenizer)
    return plain


def without_marks(tokenizer: Any, text: str) -> str:
    """A text whose marks are broken by a space, for packages that put it into a template of their own."""
    marks = _any_of(name for name in marks_of(tokenizer) if len(name) > 1)
    while found := marks.search(text):
        text = f"{text[: found.start() + 1]} {text[found.start() + 1 :]}"
    return text


class TypedText:
    """Keeps typed marks apart from real ones in one string, for a prompt that a program writes.

    :meth:`hide` breaks the marks of a typed text; the prompt is made of it and of real marks; then
    :attr:`tokenizer` removes the breaks, and tokenises typed marks as letters and the others as marks.

    Args:
        tokenizer: of transformers.
        placeholders: strings that the program that writes the prompt replaces, such as ``<image>``.
    """

    def __init__(self, tokenizer: Any, placeholders: Iterable[str] = ()) -> None:
        self._original = tokenizer
        self.marks = marks_of(tokenizer)
        self._ids = frozenset(self.marks.values())
        # of a private area of Unicode: without lower and upper case, not white space, and nobody can guess it
        self._break = "".join(chr(0xE000 + byte) for byte in secrets.token_bytes(8))
        # a mark of one character cannot be broken, and acts
        self._pattern = _any_of(name for name in {*self.marks, *placeholders} if len(name) > 1)

    @cached_property
    def tokenizer(self) -> Any:
        """A copy of the tokenizer for strings with hidden marks; for others it is the same."""
        mixed = copy.copy(self._original)
        if hasattr(mixed, "backend_tokenizer"):
            mixed._tokenizer = _MixedBackend(self._original.backend_tokenizer, self.marks, self._break)
        return mixed

    def hide(self, text: str, name: str) -> str:
        """The text with its marks broken; a text without marks unchanged.

        Raises:
            InvalidInputError: this tokenizer cannot tokenise a mark as letters; ``name`` is of the text.
        """
        ids = self._original(text, add_special_tokens=False, verbose=False).input_ids
        found = self._pattern.search(text)
        if not hasattr(self._original, "backend_tokenizer"):
            if found:
                raise InvalidInputError(
                    f"{name} contains {found[0]!r}, which this tokenizer cannot read as text; leave it out"
                )
        elif found or not self._ids.isdisjoint(ids):
            at = len(text) - len(text.lstrip()) + 1
            text = text[:at] + self._break + text[at:]
            while found := self._pattern.search(text):
                text = text[: found.start() + 1] + self._break + text[found.start() + 1 :]
        return text


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern for any of the names, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)")


# --- the library tokenizers -------------------------------------------------------------------------------


class _LetterBackend:
    """A backend of transformers' tokenizers that tokenises marks as letters."""

    def __init__(self, original: Any, marks: Mapping[str, int]) -> None:
        self._original = original
        self._marks = marks
        self._ids = frozenset(marks.values())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_original":
            raise AttributeError(name)
        return getattr(self._original, name)

    @cached_property
    def _secret(self) -> tuple[Any, dict[str, str]]:  # made when a text has marks: takes a second or so
        return _renamed(self._original, self._marks)

    def encode_batch(
        self, batch: Sequence[Any], add_special_tokens: bool = True, **options: Any
    ) -> list[Any]:
        found: list[Any] = self._original.encode_batch(
            batch, add_special_tokens=add_special_tokens, **options
        )
        return [self._replaced(text, one, add_special_tokens) for text, one in zip(batch, found, strict=True)]

    def _replaced(self, text: str, encoding: Any, add_special_tokens: bool) -> Any:
        """The encoding, or another one if the text has marks."""
        return self._letters(text, add_special_tokens) if self._has_marks(encoding) else encoding

    def _has_marks(self, encoding: Any) -> bool:
        added = encoding.special_tokens_mask  # 1 for a token that is not of the text
        return any(id in self._ids and not mask for id, mask in zip(encoding.ids, added, strict=True))

    def _letters(self, text: str, add_special_tokens: bool) -> Any:
        backend, _ = self._secret
        encoding = backend.encode(text, add_special_tokens=False)
        return self._original.post_process(encoding, None, add_special_tokens)


class _MixedBackend(_LetterBackend):
    """Tokenises marks as marks, but those that are broken as letters."""

    def __init__(self, original: Any, marks: Mapping[str, int], mark_break: str) -> None:
        super().__init__(original, marks)
        self._break = mark_break
        self._pattern = _any_of(marks)

    def _replaced(self, text: str, encoding: Any, add_special_tokens: bool) -> Any:
        if self._break not in text:
            return encoding
        _, names = self._secret
        text = self._pattern.sub(lambda found: names[found[0]], text)
        return self._letters(text.replace(self._break, ""), add_special_tokens)


def _renamed(original: Any, marks: Mapping[str, int]) -> tuple[Any, dict[str, str]]:
    """A copy of a backend whose marks have names that nobody can type, and the names by mark."""
    from tokenizers import Tokenizer

    secret = secrets.token_hex(8)
    names = {mark: f"zsq{secret}n{number:06d}z" for number, mark in enumerate(marks)}
    facts = json.loads(original.to_str())
    facts.update(post_processor=None, truncation=None, padding=None)
    for token in facts["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = facts["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): id for piece, id in model["vocab"].items()}
    else:  # Unigram: pieces and their scores
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [pair for pair in pairs if names.keys().isdisjoint((*pair, "".join(pair)))]
    renamed = Tokenizer.from_str(json.dumps(facts))
    for mark, id in marks.items():
        if renamed.token_to_id(names[mark]) != id:
            raise InvalidInputError(f"this tokenizer cannot read {mark!r} as text; leave it out")
    return renamed, names


# --- tokenizers in Python ---------------------------------------------------------------------------------


class _LetterTokenize:
    """``tokenize`` of a tokenizer in Python that tokenises marks as letters."""

    def __init__(self, original: Any) -> None:
        self._original = original
        self._marks = marks_of(original)

    def __call__(self, text: str, **options: Any) -> list[str]:
        tokens: list[str] = self._original.tokenize(text, **options)
        if self._marks.keys().isdisjoint(tokens):
            return tokens
        letters: list[str] = self._original.tokenize(text, **{**options, "split_special_tokens": True})
        unknown = self._original.unk_token
        if left := [one for one in letters if one in self._marks and one != unknown]:
            raise InvalidInputError(
                f"{text!r} contains {left[0]!r}, which this tokenizer cannot read as text; leave it out"
            )
        return letters
