"""The two things a generator does, continuing and reading, with its answer checked before anybody uses it.

contexts --write_texts--> texts
contexts, continuations --read_texts--> log P(token | what stands before)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from zsqretrieval.errors import InvalidInputError, ZsqError
from zsqretrieval.protocols import Generator
from zsqretrieval.types import Context, LogLikelihood, Progress

__all__ = ["read_texts", "write_texts"]


def write_texts(
    generator: Generator,
    contexts: Sequence[Context],
    *,
    n: int = 1,
    max_new_tokens: int = 24,
    temperature: float = 0.0,
    seed: int | None = None,
    batch_size: int = 16,
) -> list[list[str]]:
    """Let a generator continue contexts; see :meth:`zsqretrieval.protocols.Generator.generate`.

    Returns:
        n texts for every context.

    Raises:
        InvalidInputError: it scores texts but writes none; or as there.
        ImageError: an image cannot be decoded; names it.
        ZsqError: it wrote too few or too many texts.
    """
    mute = InvalidInputError(
        f"the generator {type(generator).__name__} scores texts but writes none, so it can neither ask nor "
        "answer; give one that has generate(), such as that of the preset 'mini'"
    )
    if not callable(getattr(generator, "generate", None)):
        raise mute
    if not contexts:
        return []
    try:
        written = generator.generate(
            contexts,
            n=n,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            batch_size=batch_size,
        )
    except NotImplementedError as error:
        raise mute from error
    if [len(texts) for texts in written] != [n] * len(contexts):
        raise _broken(
            generator, f"wrote {sum(map(len, written))} texts for {len(contexts)} contexts, not {n} each"
        )
    return written


def read_texts(
    generator: Generator,
    contexts: Sequence[Context],
    continuations: Sequence[str],
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> list[LogLikelihood]:
    """Let a generator read continuations; see :meth:`zsqretrieval.protocols.Generator.log_likelihood`.

    Returns:
        One for every context and its continuation; the sum of each is finite.

    Raises:
        InvalidInputError: a continuation is too long; or as there.
        ImageError: an image cannot be decoded; names it.
        ZsqError: it gave too few or too many, or a number that is none; names the image.
    """
    if not contexts:
        return []
    read = generator.log_likelihood(contexts, continuations, batch_size=batch_size, progress=progress)
    if len(read) != len(contexts):
        raise _broken(generator, f"gave {len(read)} likelihoods for {len(contexts)} pairs")
    for context, text, one in zip(contexts, continuations, read, strict=True):
        if not math.isfinite(one.sum):
            shown = ", ".join(part.source for part in context if not isinstance(part, str))
            raise _broken(generator, f"gave {one.sum} as the log-probability of {text!r} given {shown}")
    return read


def _broken(generator: Generator, what: str) -> ZsqError:
    return ZsqError(
        f"the generator {type(generator).__name__} {what}; its weights are damaged, its numbers overflow, or "
        "it breaks its contract: zsqretrieval.testing.check_generator tells"
    )
