"""Base class of the library's generators: lays out texts and images as tokens for the engine."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zsqretrieval._util.checks import check_counts, check_sequence, check_text
from zsqretrieval._util.floats import all_finite
from zsqretrieval.data.images import digest
from zsqretrieval.errors import InvalidInputError, MismatchError
from zsqretrieval.generators.checked import check_pairs, check_sampling
from zsqretrieval.generators.engine.batching import plan_batches, run_batches
from zsqretrieval.generators.engine.decoding import continue_contexts
from zsqretrieval.generators.engine.likelihood import LanguageModel, Prefixes, Tokens, score_pairs
from zsqretrieval.types import Context, Image, ImageState, LogLikelihood, Progress


@dataclass(frozen=True, slots=True)
class Frame:
    """Special tokens of a context."""

    start: Tokens = ()  # at the beginning of every context
    before_image: Tokens = ()
    after_image: Tokens = ()
    before_text: Tokens = ()  # once: before the first text of a context, or at its end if it has none
    stop: frozenset[int] = frozenset()  # end a generated text


class InterleavedGenerator(ABC):
    """A :class:`~zsqretrieval.protocols.ImageStates` generator over a language model that reads embeddings.

    A subclass supplies the language model, the tokenizer and the vision part. This class lays out texts and
    images as one row of tokens and states, and hands all rows of a call to the engine.

    Every text, of a context or a continuation, is tokenised on its own, with one space before it unless it
    begins with white space, as it would stand in running text. So the tokens of a continuation are the same
    after every context.

    Keys and values of contexts stay in ``prefix_cache_bytes`` of memory between calls, which makes a second
    question about the same images cheaper.
    """

    def __init__(
        self, model: LanguageModel, frame: Frame, state_shape: tuple[int, int], *, prefix_cache_bytes: int = 0
    ) -> None:
        check_counts(0, prefix_cache_bytes=prefix_cache_bytes)
        self._language = model
        self._frame = frame
        self._state_shape = state_shape
        self._prefixes = Prefixes(prefix_cache_bytes)

    # -- supplied by a subclass

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Identifies the model; changes whenever its probabilities would."""

    @abstractmethod
    def _tokenize(self, text: str) -> Sequence[int]:
        """Tokens of a text, without those that begin or end a sequence."""

    @abstractmethod
    def _token_texts(self, tokens: Sequence[int]) -> tuple[str, ...]:
        """The readable text of each token."""

    @abstractmethod
    def _detokenize(self, tokens: Sequence[int]) -> str:
        """The text of a row of tokens."""

    @abstractmethod
    def _see(self, images: Sequence[Image]) -> Tensor:
        """States of images: [n, *state_shape], in the model's dtype; called in inference mode."""

    # -- the contract

    @property
    def max_tokens(self) -> int:
        """Context length in tokens; an image takes ``state_shape[0]`` of them and its frame."""
        return self._language.max_tokens

    @property
    def state_shape(self) -> tuple[int, int]:
        """(latent tokens, width) of one image's state."""
        return self._state_shape

    @property
    def state_dtype(self) -> np.dtype[Any]:
        """float16 when the model computes in 16 bits, else float32."""
        return np.dtype(np.float16 if self._language.dtype.itemsize == 2 else np.float32)

    def log_likelihood(
        self,
        contexts: Sequence[Context],
        continuations: Sequence[str],
        *,
        batch_size: int = 16,
        progress: Progress | None = None,
    ) -> list[LogLikelihood]:
        """Score n pairs; see :meth:`zsqretrieval.protocols.Generator.log_likelihood`.

        Give it all pairs at once: the engine sorts them into batches of similar length, encodes each distinct
        image once, computes equal beginnings of contexts once, and halves a batch that does not fit into
        memory. Image states exist only while a batch still needs them. ``progress`` counts rows: equal pairs
        are one row, and so are pairs that differ only in their last token.

        Raises:
            InvalidInputError, ImageError: as in the protocol.
            MismatchError: an image state was made by another generator, or has another shape.
            WeightsError: a probability is not finite: damaged weights, or too narrow a dtype.
        """
        check_pairs(contexts, continuations)
        tokenize = self._text_tokens()
        texts = [self._continuation(text, i, tokenize) for i, text in enumerate(continuations)]
        rows, states = self._lay_out(contexts, tokenize)
        for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
            self._check_length(len(row), len(text), f"pair {i}")
        scored = score_pairs(
            self._language, rows, texts, states,
            prefixes=self._prefixes, batch_size=batch_size, progress=progress,
        )  # fmt: skip
        names = {text: self._token_texts(text) for text in set(texts)}
        return [LogLikelihood(names[text], log_probs) for text, log_probs in zip(texts, scored, strict=True)]

    def generate(
        self,
        contexts: Sequence[Context],
        *,
        n: int = 1,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        seed: int | None = None,
        batch_size: int = 16,
        progress: Progress | None = None,
    ) -> list[list[str]]:
        """Continue each context; see :meth:`zsqretrieval.protocols.Generator.generate`.

        A text ends with the model's end token, after ``max_new_tokens``, or where the context is full. With a
        seed, a text depends on its context, its position in ``contexts`` and its number, not on the batch
        size. ``progress`` is called after each batch with ``"generating"`` and the number of texts.

        Raises:
            InvalidInputError, MismatchError, ImageError: as :meth:`log_likelihood`.
        """
        check_sequence(contexts, "contexts")
        check_sampling(n, max_new_tokens, temperature, seed)
        rows, states = self._lay_out(contexts, self._text_tokens())
        for i, row in enumerate(rows):
            self._check_length(len(row), 1, f"context {i} and one new token")
        continued = continue_contexts(
            self._language, rows, states,
            n=n, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed,
            stop=self._frame.stop, batch_size=batch_size, progress=progress,
        )  # fmt: skip
        return [[self._detokenize(tokens) for tokens in texts] for texts in continued]

    def image_states(
        self, images: Sequence[Image], *, batch_size: int = 16, progress: Progress | None = None
    ) -> NDArray[Any]:
        """Run the vision part; see :meth:`zsqretrieval.protocols.ImageStates.image_states`.

        ``progress`` is called after each batch with ``"encoding images"``.
        """
        found = np.empty((len(images), *self.state_shape), self.state_dtype)

        def step(batch: list[int]) -> None:
            states = self._see([images[i] for i in batch])  # [b, *state_shape]
            found[batch] = states.to(getattr(torch, self.state_dtype.name)).cpu().numpy()

        batches = plan_batches([1] * len(images), batch_size=batch_size, token_budget=len(images) + 1)
        with torch.inference_mode():
            run_batches("encoding images", batches, step, progress)
        return found

    # -- layout

    def _text_tokens(self) -> Callable[[str], Tokens]:
        """Tokenise with one space in front; each distinct text of a call once."""
        return cache(lambda text: tuple(self._tokenize(text if text[:1].isspace() else f" {text}")))

    def _continuation(self, text: str, i: int, tokenize: Callable[[str], Tokens]) -> Tokens:
        check_text(text, f"continuation {i}")
        if not (tokens := tokenize(text)):
            raise InvalidInputError(
                f"continuation {i} has no tokens: {text!r}; a text without tokens has no likelihood"
            )
        return tokens

    def _lay_out(
        self, contexts: Sequence[Context], tokenize: Callable[[str], Tokens]
    ) -> tuple[list[Tokens], _CallStates]:
        """The contexts as rows for the engine, and the states of their distinct images."""
        numbers: dict[Image | ImageState, int] = {}
        rows = []
        for i, context in enumerate(contexts):
            if isinstance(context, str):
                raise InvalidInputError(f"context {i} is one string, not a sequence; try [{context!r}]")
            check_sequence(context, f"context {i}")
            row = list(self._frame.start)
            before_text = self._frame.before_text
            for segment in context:
                if isinstance(segment, str):
                    if segment.strip():
                        check_text(segment, f"a text of context {i}")
                        row += [*before_text, *tokenize(segment)]
                        before_text = ()
                elif not isinstance(segment, Image | ImageState):
                    raise InvalidInputError(
                        f"context {i} contains a {type(segment).__name__}; give texts, ImageStates, and "
                        "Images, which zsqretrieval.data.images.as_image makes"
                    )
                else:
                    if isinstance(segment, ImageState) and segment not in numbers:
                        self._check_state(segment)
                    first = numbers.setdefault(segment, len(numbers)) * self.state_shape[0]
                    row += self._frame.before_image
                    row += range(-1 - first, -1 - first - self.state_shape[0], -1)
                    row += self._frame.after_image
            row += before_text
            if not row:
                raise InvalidInputError(f"context {i} is empty; give it a text or an image to continue from")
            rows.append(tuple(row))
        return rows, _CallStates(self, list(numbers), rows)

    def _check_state(self, state: ImageState) -> None:
        if state.fingerprint != self.fingerprint:
            raise MismatchError(
                f"the state of {state.source} was made by generator {state.fingerprint!r}, and this is "
                f"{self.fingerprint!r}: make it again with image_states, or give the image itself"
            )
        if not isinstance(state.values, np.ndarray) or state.values.dtype not in _FLOATS:
            raise InvalidInputError(
                f"the state of {state.source} is no array of float16, float32 or float64; make it again with "
                "image_states, or give the image itself"
            )
        if state.values.shape != self.state_shape:
            raise MismatchError(
                f"the state of {state.source} has shape {state.values.shape}; this generator needs "
                f"{self.state_shape}"
            )
        if not all_finite(state.values):
            raise InvalidInputError(
                f"the state of {state.source} contains numbers that are not finite; make it again with "
                "image_states, or give the image itself"
            )

    def _check_length(self, context: int, text: int, name: str) -> None:
        if context + text > self.max_tokens:
            raise InvalidInputError(
                f"{name} has {context} + {text} = {context + text} tokens (an image counts "
                f"{self.state_shape[0]}); this model reads {self.max_tokens}. Shorten it: nothing is cut"
            )


_FLOATS = tuple(np.dtype(order + kind) for order in "<>" for kind in ("f2", "f4", "f8"))


class _CallStates:
    """Image states of one call; see :class:`~zsqretrieval.generators.engine.likelihood.States`.

    An image is decoded and encoded when a batch first needs it. Its state is dropped after the last context
    that contains it.
    """

    def __init__(
        self,
        generator: InterleavedGenerator,
        images: Sequence[Image | ImageState],
        contexts: Iterable[Tokens],
    ) -> None:
        self._generator = generator
        self._images = images
        self._size = generator.state_shape[0]
        self._needed = Counter(image for context in contexts for image in self._images_of(context))
        self._states: dict[int, Tensor] = {}
        self._digests: dict[int, str] = {}

    def __call__(self, rows: Tensor) -> Tensor:
        model = self._generator._language
        numbers = rows // self._size
        wanted = torch.tensor(sorted(set(numbers.tolist())))
        missing = [number for number in wanted.tolist() if number not in self._states]
        pictures = [number for number in missing if isinstance(self._images[number], Image)]
        if pictures:
            seen = self._generator._see([self._images[number] for number in pictures])
            self._states.update(zip(pictures, seen, strict=True))
        given = {n: image for n in missing if isinstance(image := self._images[n], ImageState)}
        if given:  # in one transfer
            values = torch.from_numpy(np.stack([image.values for image in given.values()]))
            self._states.update(zip(given, values.to(model.device, model.dtype), strict=True))
        states = torch.stack([self._states[number] for number in wanted.tolist()])  # [images, tokens, D]
        places = torch.searchsorted(wanted, numbers) * self._size + rows % self._size
        return states.flatten(0, 1).index_select(0, places.to(model.device))

    def name(self, tokens: Tokens) -> Hashable:
        firsts = [-1 - token for token in tokens if token < 0 and (-1 - token) % self._size == 0]
        images = tuple(self._digest(first // self._size) for first in firsts)
        return tuple(max(token, -1) for token in tokens), images

    def release(self, contexts: Iterable[Tokens]) -> None:
        for context in contexts:
            self._needed.subtract(self._images_of(context))
        for number in [number for number in self._states if self._needed[number] <= 0]:
            del self._states[number]

    def _images_of(self, context: Tokens) -> set[int]:
        return {(-1 - token) // self._size for token in context if token < 0}

    def _digest(self, number: int) -> str:
        if number not in self._digests:
            image = self._images[number]
            if isinstance(image, Image):
                self._digests[number] = digest(image)
            else:
                values = np.ascontiguousarray(image.values)
                self._digests[number] = hashlib.blake2b(values.data, digest_size=32).hexdigest()
        return self._digests[number]
