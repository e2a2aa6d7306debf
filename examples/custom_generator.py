"""Write a generator: two methods, here of a language model that knows some words and the colours of images.

    python examples/custom_generator.py

Checks it against the contract of generators, then ranks photographs by the likelihood of questions about
colours. Ten seconds, without any weights. A model of transformers needs less than this: subclass
``zsqretrieval.generators.engine.interleaved.InterleavedGenerator`` or use ``VLMGenerator``.
"""

# ruff: noqa: T201

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zsqretrieval import Retriever
from zsqretrieval.data.images import decode
from zsqretrieval.data.samples import photographs
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.checked import check_pairs, check_sampling
from zsqretrieval.testing import check_generator
from zsqretrieval.testing.toys import ToyEncoder
from zsqretrieval.types import Context, Image, LogLikelihood, Progress

PALETTE = {
    "red": (200, 30, 30), "orange": (240, 140, 30), "green": (50, 140, 50), "blue": (40, 80, 200),
    "brown": (120, 75, 40), "black": (15, 15, 15), "white": (240, 240, 240), "grey": (128, 128, 128),
}  # fmt: skip
WORDS = (*PALETTE, "a", "the", "picture", "of", "in", "something", "and", "what", "is", "color", "?", "<unk>")
LIMIT = 256  # tokens and images that the model reads


class ColorGenerator:
    """P(word) is (1 + m(word)) / (V + sum of m), where m is a memory of what came before.

    An image adds eight times the share of each colour to m, a word adds one to itself; whatever comes next
    halves m first.
    """

    fingerprint = "color-generator-1"  # must change whenever a probability does

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
        for context, text in zip(contexts, continuations, strict=True):
            tokens = _tokens(text)
            if not tokens:
                raise InvalidInputError(f"the continuation {text!r} has no words")
            segments = _segments([*context, text])
            start = len(segments) - len(tokens)
            log_probs = [np.log(_next(segments[: start + n])[token]) for n, token in enumerate(tokens)]
            words = tuple(WORDS[token] for token in tokens)
            found.append(LogLikelihood(words, np.array(log_probs, np.float32)))
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
        random = np.random.default_rng(seed)
        written = []
        for context in contexts:
            written.append([])
            for _ in range(n):
                segments, words = _segments(context), list[str]()
                while len(words) < max_new_tokens and words[-1:] != ["?"]:
                    p = _next(segments) ** (1 / temperature if temperature else 1)
                    token = int(random.choice(len(p), p=p / p.sum()) if temperature else p.argmax())
                    segments.append(np.eye(len(WORDS))[token])
                    words.append(WORDS[token])
                written[-1].append(" ".join(words))
        return written


def _tokens(text: str) -> list[int]:
    found = re.findall(r"<unk>|\w+|[^\w\s]", text.lower())
    return [WORDS.index(word if word in WORDS else "<unk>") for word in found]


def _segments(context: Context) -> list[NDArray[np.float64]]:
    """What each word and image of a context adds to the memory, [V] each."""
    found: list[NDArray[np.float64]] = []
    for segment in context:
        if isinstance(segment, str):
            found += [np.eye(len(WORDS))[token] for token in _tokens(segment)]
        else:
            assert isinstance(segment, Image)  # this model has no cached features
            found.append(8 * _colors(segment))
    if len(found) > LIMIT:
        raise InvalidInputError(f"a context has {len(found)} words and images; this model reads {LIMIT}")
    return found


def _colors(image: Image) -> NDArray[np.float64]:
    """The share of each colour, [V], zero for the other words; a pixel is shared by near colours."""
    pixels = np.asarray(decode(image, size_hint=48).resize((48, 48)), np.float64).reshape(-1, 1, 3)
    near = np.exp(-np.linalg.norm(pixels - np.array(list(PALETTE.values())), axis=-1) / 30)  # [n, colours]
    shares = (near / near.sum(1, keepdims=True)).mean(0)
    return np.pad(shares, (0, len(WORDS) - len(shares)))


def _next(segments: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """P(next word | segments), [V]."""
    weights = 1 + sum(added / 2**n for n, added in enumerate(reversed(segments)))
    return np.asarray(weights / weights.sum())


def main() -> None:
    """Check the generator, and re-rank with it."""
    generator = ColorGenerator()
    check_generator(generator)  # names every broken promise
    print("all checks of the contract pass\n")
    with Retriever(ToyEncoder(), generator=generator) as retriever:
        retriever.add(photographs())
        for question in ("something orange", "blue and white", "a green picture"):
            ranking = retriever.search(question, k=3, rerank="likelihood")
            print(f"{question}: {', '.join(f'{hit.id} ({hit.score:.1f})' for hit in ranking)}")


if __name__ == "__main__":
    main()
