"""The contracts of encoders, indexes and generators, in words, shapes and units.

A class satisfies a contract by having these members; nothing has to be inherited.
:mod:`zsqretrieval.testing` checks it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from zsqretrieval.types import Context, Image, LogLikelihood, Neighbors, Progress


@runtime_checkable
class Encoder(Protocol):
    """Maps images and texts into one space where cosine similarity means relevance."""

    @property
    def dim(self) -> int:
        """Length of every vector."""
        ...

    @property
    def fingerprint(self) -> str:
        """Name of the function from inputs to vectors.

        Changes whenever the vectors would: a digest over weights, preprocessing and the settings that
        matter. Two encoders with one fingerprint are interchangeable.
        """
        ...

    def encode_image(self, images: Sequence[Image], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Encode images.

        Args:
            images: n images, in any format and colour mode :func:`zsqretrieval.data.images.decode` reads.
            batch_size: how many are computed together; must not change the result by more than 1e-5.

        Returns:
            float32 [n, dim], rows of unit length, in the order given; [0, dim] for no images.

        Raises:
            ImageError: an image cannot be decoded; the error names it.
        """
        ...

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Encode texts.

        Args:
            texts: n texts. A text longer than the model reads is cut, as CLIP does.
            batch_size: how many are computed together; must not change the result by more than 1e-5.

        Returns:
            float32 [n, dim], rows of unit length, in the order given; [0, dim] for no texts.

        Raises:
            InvalidInputError: ``texts`` is one string rather than a sequence of them.
        """
        ...


@runtime_checkable
class TextLimit(Encoder, Protocol):
    """An encoder that tells which texts it cuts."""

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """Whether :meth:`encode_text` cuts each of n texts."""
        ...


def truncated(encoder: Encoder, texts: Sequence[str]) -> list[bool]:
    """Which of n texts an encoder cuts; none if it does not tell."""
    return encoder.truncated(texts) if isinstance(encoder, TextLimit) else [False] * len(texts)


@runtime_checkable
class Index(Protocol):
    """Finds the stored vectors nearest to a query by cosine similarity."""

    @property
    def dim(self) -> int:
        """Length of every vector."""
        ...

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the encoder whose vectors it holds; empty when unknown."""
        ...

    def __len__(self) -> int:
        """Number of keys stored."""
        ...

    def add(self, keys: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Store vectors under new keys; all of them or, when anything is wrong, none.

        Args:
            keys: int64 [n], each >= 0, no repeats, none already present.
            vectors: float32 [n, dim], finite, not zero; scaled to unit length on the way in.

        Raises:
            InvalidInputError: anything above does not hold. Nothing has changed.
        """
        ...

    def search(self, vectors: NDArray[np.float32], k: int) -> Neighbors:
        """Find the k nearest stored vectors of each query.

        Args:
            vectors: float32 [q, dim], finite, not zero.
            k: how many to return, >= 1. More than ``len(self)`` is allowed and padded.

        Returns:
            keys int64 [q, k] and cosine scores float32 [q, k], best first, padded with -1 and nan.

        Raises:
            InvalidInputError: a wrong shape, a value that is not finite, a zero vector, or k < 1.
        """
        ...

    def remove(self, keys: NDArray[np.int64]) -> None:
        """Remove keys; all of them or none.

        Args:
            keys: int64 [n], each present, no repeats.

        Raises:
            InvalidInputError: a key is not present or repeated. Nothing has changed.
        """
        ...

    def save(self, path: Path) -> None:
        """Write everything to the directory ``path``, replacing what an earlier save left there.

        Atomic: a crash or a full disk at any moment leaves either the old state or the new one.

        Raises:
            OSError: the disk refuses.
        """
        ...

    @classmethod
    def load(cls, path: Path, *, dim: int | None = None, fingerprint: str | None = None) -> Self:
        """Read what :meth:`save` wrote, after verifying it.

        Args:
            path: the directory.
            dim: refuse anything else, when given.
            fingerprint: refuse vectors of any other encoder, when given.

        Raises:
            IntegrityError: missing, truncated or altered data.
            MismatchError: another dim, encoder or kind of index; names both sides.
        """
        ...


@runtime_checkable
class FilteredIndex(Index, Protocol):
    """An index that can also search among some of its keys only."""

    def search_among(self, vectors: NDArray[np.float32], k: int, keys: NDArray[np.int64]) -> Neighbors:
        """Like :meth:`Index.search`, over the stored keys named in ``keys`` only.

        Args:
            vectors: float32 [q, dim].
            k: how many to return, >= 1.
            keys: int64 [n]; keys that are not stored are ignored.

        Returns:
            As :meth:`Index.search`; every neighbour is one of ``keys``.
        """
        ...


@runtime_checkable
class Generator(Protocol):
    """A multimodal language model: how likely is a text after a context, and what text follows it.

    Two methods are enough for everything Kosmos-1 does, because a task is a prompt and prompts are data.
    """

    @property
    def fingerprint(self) -> str:
        """Names the model; changes whenever its probabilities would."""
        ...

    def log_likelihood(
        self,
        contexts: Sequence[Context],
        continuations: Sequence[str],
        *,
        batch_size: int = 16,
        progress: Progress | None = None,
    ) -> list[LogLikelihood]:
        """Score n pairs: log P(continuation | context), token by token.

        Args:
            contexts: n contexts of interleaved text and images.
            continuations: n texts, tokenised on their own; not empty.
            batch_size: how many pairs are computed together; must not change the result.
            progress: called between batches; may raise to stop.

        Returns:
            n likelihoods in nats, in the order given.

        The tokens of a continuation depend on it alone, never on the context before it.

        Raises:
            InvalidInputError: lengths differ, a continuation is empty, or a pair exceeds the model's
                context length (never cut silently).
            ImageError: an image cannot be decoded; names it.
        """
        ...

    def generate(
        self,
        contexts: Sequence[Context],
        *,
        n: int = 1,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        seed: int | None = None,
        batch_size: int = 16,
    ) -> list[list[str]]:
        """Continue each context with text.

        Args:
            contexts: contexts of interleaved text and images.
            n: continuations per context.
            max_new_tokens: length limit in tokens.
            temperature: 0 takes the likeliest token; above 0 samples.
            seed: makes sampling repeatable.
            batch_size: how many contexts are computed together.

        Returns:
            One list of ``n`` texts per context, in the order given.

        Raises:
            InvalidInputError: a context is too long, or a setting is out of range: ``n`` or
                ``max_new_tokens`` below 1, a temperature that is negative or not a number.
            ImageError: an image cannot be decoded; names it.
        """
        ...


@runtime_checkable
class ImageStates(Generator, Protocol):
    """A generator whose seeing part can run once per image rather than once per question.

    A row of :meth:`image_states`, wrapped into an :class:`~zsqretrieval.types.ImageState` with this
    generator's fingerprint, may stand in any context in place of the image it was made of, and gives the
    same probabilities.
    """

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of one image's state, for instance (64, 2048): latent tokens by width."""
        ...

    @property
    def state_dtype(self) -> np.dtype[Any]:
        """What states are stored as: the narrowest float that loses nothing the model would notice."""
        ...

    def image_states(self, images: Sequence[Image], *, batch_size: int = 16) -> NDArray[Any]:
        """Run the seeing part.

        Args:
            images: n images.
            batch_size: how many are computed together; must not change the result.

        Returns:
            [n, *state_shape] of ``state_dtype``, in the order given.

        Raises:
            ImageError: an image cannot be decoded; names it.
        """
        ...


@runtime_checkable
class Configurable(Protocol):
    """A part that an album can restore by name: rebuilt as ``type(part).from_config(part.config)``.

    An album made by somebody else restores it without being trusted if its class also has ``safe_settings``,
    the settings and values that are harmless (:func:`zsqretrieval.plugins.names_nothing`).
    """

    @property
    def config(self) -> Mapping[str, Any]:
        """JSON-serialisable settings that rebuild the part (not its data)."""
        ...

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Rebuild the part from :attr:`config`."""
        ...
