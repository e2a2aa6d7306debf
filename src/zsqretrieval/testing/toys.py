"""A small encoder, index and generator for tests: no weights, and every number can be computed by hand."""

from __future__ import annotations

import hashlib
import io
import re
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageStat
from typing_extensions import Self

from zsqretrieval._util.checks import check_strings
from zsqretrieval._util.files import atomic_write
from zsqretrieval.data.images import decode
from zsqretrieval.errors import IntegrityError, InvalidInputError, MismatchError
from zsqretrieval.generators.checked import check_pairs, check_sampling
from zsqretrieval.indexes.checks import check_integer, check_keys, unit_rows
from zsqretrieval.types import Context, Image, ImageState, LogLikelihood, Neighbors, Progress

COLOURS = {
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
    "black": (0.0, 0.0, 0.0),
    "white": (1.0, 1.0, 1.0),
}
"""The colours :class:`ToyEncoder` knows by name, as RGB in [0, 1]."""


class ToyEncoder:
    """Encodes the mean colour of each quarter of an image, and the names of :data:`COLOURS` in a text.

    Before scaling to unit length a vector is the four colours minus mid-grey (12 numbers), then four more:
    for an image 0.1, for a text the first four bytes of its SHA-256 digest scaled to [0, 0.2]. So "a red
    bus" is nearest to the reddest image, texts that name no colour still differ, and no vector is zero.
    """

    dim = 16
    fingerprint = "toy-encoder-1"

    def encode_image(self, images: Sequence[Image], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Encode images to float32 [n, 16]; see :meth:`zsqretrieval.protocols.Encoder.encode_image`."""
        rows = np.full((len(images), self.dim), 0.1)
        for row, image in zip(rows, images, strict=True):
            quarters = decode(image).resize((2, 2), PILImage.Resampling.BOX)
            row[:12] = np.asarray(quarters, np.float64).ravel() / 255 - 0.5
        return unit_rows(rows, self.dim)

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Encode texts to float32 [n, 16]; see :meth:`zsqretrieval.protocols.Encoder.encode_text`."""
        check_strings(texts)
        rows = np.empty((len(texts), self.dim))
        for row, text in zip(rows, texts, strict=True):
            named = [COLOURS[word] for word in re.findall(r"\w+", text.lower()) if word in COLOURS]
            row[:12] = np.tile(np.mean(named or [(0.5, 0.5, 0.5)], axis=0) - 0.5, 4)
            row[12:] = np.frombuffer(hashlib.sha256(text.encode()).digest()[:4], np.uint8) / 255 * 0.2
        return unit_rows(rows, self.dim)


class ToyIndex:
    """Brute-force search over two arrays of keys and vectors."""

    def __init__(self, dim: int, fingerprint: str = "") -> None:
        self.dim = dim
        self.fingerprint = fingerprint
        # replaced as a pair and never modified, so that a search needs no lock
        self._rows = np.empty(0, np.int64), np.empty((0, dim), np.float32)
        self._writing = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows[0])

    def add(self, keys: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Store vectors under new keys; see :meth:`zsqretrieval.protocols.Index.add`."""
        units, keys = self._checked(vectors), check_keys(keys)
        if len(keys) != len(units):
            raise InvalidInputError(f"{len(keys)} keys for {len(units)} vectors; give one key per vector")
        with self._writing:
            present, stored = self._rows
            if np.any(again := np.isin(keys, present)):
                raise InvalidInputError(f"keys already present: {keys[again].tolist()}; remove them first")
            self._rows = np.concatenate([present, keys]), np.concatenate([stored, units])

    def search(self, vectors: NDArray[np.float32], k: int) -> Neighbors:
        """Find the k nearest stored vectors; see :meth:`zsqretrieval.protocols.Index.search`."""
        units, k = self._checked(vectors), check_integer("k", k)
        keys, stored = self._rows
        cosine = units @ stored.T  # [q, n]
        best = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
        padding = ((0, 0), (0, k - best.shape[1]))
        return Neighbors(
            np.pad(keys[best], padding, constant_values=-1),
            np.pad(np.take_along_axis(cosine, best, 1), padding, constant_values=np.nan),
        )

    def remove(self, keys: NDArray[np.int64]) -> None:
        """Forget keys; see :meth:`zsqretrieval.protocols.Index.remove`."""
        keys = check_keys(keys)
        with self._writing:
            present, stored = self._rows
            if np.any(unknown := ~np.isin(keys, present)):
                raise InvalidInputError(f"no such keys: {keys[unknown].tolist()}")
            kept = ~np.isin(present, keys)
            self._rows = present[kept], stored[kept]

    def save(self, path: Path) -> None:
        """Write one file that starts with its SHA-256; see :meth:`zsqretrieval.protocols.Index.save`."""
        keys, stored = self._rows
        buffer = io.BytesIO()
        np.savez(buffer, dim=self.dim, fingerprint=self.fingerprint, keys=keys, vectors=stored)
        content = buffer.getvalue()
        path.mkdir(parents=True, exist_ok=True)
        with atomic_write(path / "index.npz") as file:
            file.write_bytes(hashlib.sha256(content).digest() + content)

    @classmethod
    def load(cls, path: Path, *, dim: int | None = None, fingerprint: str | None = None) -> Self:
        """Read what :meth:`save` wrote; see :meth:`zsqretrieval.protocols.Index.load`."""
        try:
            content = (path / "index.npz").read_bytes()
        except OSError as error:
            raise IntegrityError(f"{path}: no saved index can be read here ({error})") from error
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise IntegrityError(f"{path}: index.npz is damaged, its SHA-256 does not match; save it again")
        with np.load(io.BytesIO(content[32:])) as saved:
            index = cls(int(saved["dim"]), str(saved["fingerprint"]))
            index._rows = saved["keys"], saved["vectors"]
        if dim not in (None, index.dim):
            raise MismatchError(f"{path} holds vectors of dim {index.dim}, not {dim}")
        if fingerprint not in (None, index.fingerprint):
            raise MismatchError(f"{path} holds vectors of encoder {index.fingerprint!r}, not {fingerprint!r}")
        return index

    def _checked(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        return unit_rows(vectors, self.dim)


class ToyGenerator:
    """A language model of 15 words, with a memory that decays from left to right.

    Before the first segment the memory ``h``, one entry per word, is zero. A token halves all of ``h``, then
    adds 1 to its own entry; an image halves ``h``, then adds 4 times its mean red, green and blue, in
    [0, 1], to the entries of the words red, green and blue. After t tokens and images, with V words,

        P(v) = (1 + h[v] + 3 * (v == t % V)) / (V + 3 + sum(h)),

    so an image, the text so far, its order and its length all count. A text is lower-cased and split
    into words and punctuation marks; those that are not in :attr:`vocabulary` become ``<unk>``.
    Generation ends after ``?``.

    Args:
        max_tokens: context length: tokens and images of context and continuation together.
    """

    vocabulary = (
        "what", "is", "the", "colour", "of", "thing", "in", "picture",
        "red", "green", "blue", "yes", "no", "?", "<unk>",
    )  # fmt: skip
    fingerprint = "toy-generator-1"

    def __init__(self, max_tokens: int = 256) -> None:
        self._max_tokens = max_tokens

    def log_likelihood(
        self,
        contexts: Sequence[Context],
        continuations: Sequence[str],
        *,
        batch_size: int = 16,
        progress: Progress | None = None,
    ) -> list[LogLikelihood]:
        """Score n pairs; see :meth:`zsqretrieval.protocols.Generator.log_likelihood`."""
        check_pairs(contexts, continuations)
        found = []
        for pair, (context, text) in enumerate(zip(contexts, continuations, strict=True)):
            found.append(self._score(context, text, pair))
            if progress is not None:
                progress("scoring", len(found), len(contexts))
        return found

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
        """Continue each context; see :meth:`zsqretrieval.protocols.Generator.generate`."""
        check_sampling(n, max_new_tokens, temperature, seed)
        rng = np.random.default_rng(seed)
        prompts = [self._read(context, f"context {i}") for i, context in enumerate(contexts)]
        return [
            [self._continue(prompt, max_new_tokens, temperature, rng) for _ in range(n)] for prompt in prompts
        ]

    def probabilities(self, context: Context) -> dict[str, float]:
        """P(next token | context) for every word of the vocabulary."""
        return dict(zip(self.vocabulary, self._next(self._read(context, "context")).tolist(), strict=True))

    def _tokens(self, text: str) -> list[int]:
        words = re.findall(r"<unk>|\w+|[^\w\s]", text.lower())
        return [self.vocabulary.index(word if word in self.vocabulary else "<unk>") for word in words]

    def _read(self, context: Context, name: str) -> list[NDArray[np.float64]]:
        """The additions of each token and image to the memory: float64 [V] each."""
        segments: list[NDArray[np.float64]] = []
        for segment in context:
            if isinstance(segment, str):
                segments += [self._added(token) for token in self._tokens(segment)]
            else:
                added = np.zeros(len(self.vocabulary))
                red = self.vocabulary.index("red")
                seen = self._recall(segment) if isinstance(segment, ImageState) else _mean_colour(segment)
                added[red : red + 3] = 4 * seen
                segments.append(added)
        if len(segments) > self._max_tokens:
            raise InvalidInputError(
                f"{name} has {len(segments)} tokens and images; this model reads {self._max_tokens}"
            )
        return segments

    def _recall(self, state: ImageState) -> NDArray[np.float64]:
        """Mean red, green and blue of a state's image."""
        raise MismatchError(f"{state.source}: this model has no image states")

    def _added(self, token: int) -> NDArray[np.float64]:
        added = np.zeros(len(self.vocabulary))
        added[token] = 1
        return added

    def _next(self, segments: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """P(next token | segments), float64 [V]."""
        memory = np.zeros(len(self.vocabulary))
        for added in segments:
            memory = memory / 2 + added
        weights = 1 + memory
        weights[len(segments) % len(weights)] += 3
        return np.asarray(weights / weights.sum())

    def _score(self, context: Context, text: str, pair: int) -> LogLikelihood:
        tokens = self._tokens(text)
        if not tokens:
            raise InvalidInputError(f"continuation {pair} is empty: {text!r}")
        segments = self._read((*context, text), f"pair {pair}")
        start = len(segments) - len(tokens)
        log_probs = [np.log(self._next(segments[: start + t])[token]) for t, token in enumerate(tokens)]
        return LogLikelihood(tuple(self.vocabulary[t] for t in tokens), np.array(log_probs, np.float32))

    def _continue(
        self, prompt: list[NDArray[np.float64]], limit: int, temperature: float, rng: np.random.Generator
    ) -> str:
        segments, words = list(prompt), list[str]()
        while len(words) < limit and words[-1:] != ["?"]:
            p = self._next(segments)
            if temperature > 0:
                hot = p ** (1 / temperature)
                token = int(rng.choice(len(p), p=hot / hot.sum()))
            else:
                token = int(p.argmax())
            segments.append(self._added(token))
            words.append(self.vocabulary[token])
        return " ".join(words)


class ToyStatesGenerator(ToyGenerator):
    """A :class:`ToyGenerator` with image states; see :class:`zsqretrieval.protocols.ImageStates`.

    The state of an image is its mean red, green and blue, in [0, 1].
    """

    fingerprint = "toy-states-generator-1"
    state_shape = (3,)
    state_dtype = np.dtype(np.float32)

    def image_states(self, images: Sequence[Image], *, batch_size: int = 16) -> NDArray[np.float32]:
        """Mean colours, float32 [n, 3]; see :meth:`zsqretrieval.protocols.ImageStates.image_states`."""
        return np.array([_mean_colour(image) for image in images], np.float32).reshape(-1, 3)

    def _recall(self, state: ImageState) -> NDArray[np.float64]:
        if state.fingerprint != self.fingerprint or state.values.shape != self.state_shape:
            raise MismatchError(
                f"the state of {state.source} is of {state.fingerprint!r} and shape {state.values.shape}; "
                f"this is {self.fingerprint!r}, whose states have shape {self.state_shape}"
            )
        return state.values.astype(np.float64)


def _mean_colour(image: Image) -> NDArray[np.float64]:
    return np.array(ImageStat.Stat(decode(image)).mean, np.float64) / 255
