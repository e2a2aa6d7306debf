"""Checks of a generator's arguments and answers.

A generator may be a plugin, so its answers are checked here, and only here.

contexts                --write_texts--> texts
contexts, continuations --read_texts--> log-likelihoods
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from zsqretrieval._util.checks import check_amounts, check_counts, check_sequence
from zsqretrieval.errors import InvalidInputError, ZsqError
from zsqretrieval.protocols import Generator
from zsqretrieval.types import Context, LogLikelihood, Progress


def check_pairs(contexts: Sequence[Context], continuations: Sequence[str]) -> None:
    """Check that there is one continuation for each context; an InvalidInputError if not."""
    check_sequence(contexts, "contexts")
    check_sequence(continuations, "continuations")
    if len(contexts) != len(continuations):
        raise InvalidInputError(
            f"{len(contexts)} contexts for {len(continuations)} continuations; give one of each per pair"
        )


def check_sampling(n: int, max_new_tokens: int, temperature: float, seed: int | None) -> None:
    """Check the settings of ``generate``; an InvalidInputError names one that is out of range."""
    check_counts(n=n, max_new_tokens=max_new_tokens)
    check_counts(0, or_none=True, seed=seed)
    check_amounts(temperature=temperature)


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
    """Generate texts; see :meth:`zsqretrieval.protocols.Generator.generate`.

    Raises:
        InvalidInputError, ImageError: the generator cannot generate text; or as in ``generate``.
        ZsqError: the generator returned too few or too many texts.
    """
    cannot = InvalidInputError(
        f"the generator {type(generator).__name__} scores texts but writes none, so it can neither "
        "ask nor answer; use one with generate(), such as that of the preset 'mini'"
    )
    if not callable(getattr(generator, "generate", None)):
        raise cannot
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
        raise cannot from error
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
    """Score pairs; see :meth:`zsqretrieval.protocols.Generator.log_likelihood`.

    Raises:
        InvalidInputError, ImageError: as in ``log_likelihood``.
        ZsqError: the generator returned too few or too many likelihoods, or one that is not finite; names the
            image.
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


def distinct(tokens: Sequence[Sequence[str]]) -> list[int]:
    """Positions of the texts whose probabilities add up, by the tokens of each.

    A text whose tokens are those of another, or begin with them, is left out: its probability is contained in
    the other's.
    """
    kept: list[int] = []
    for i in sorted(range(len(tokens)), key=lambda i: len(tokens[i])):
        if not any(tuple(tokens[i][: len(tokens[j])]) == tuple(tokens[j]) for j in kept):
            kept.append(i)
    return sorted(kept)


def _broken(generator: Generator, what: str) -> ZsqError:
    return ZsqError(
        f"the generator {type(generator).__name__} {what}: its weights are damaged, its numbers overflow, or "
        "it breaks its contract; zsqretrieval.testing.check_generator checks that"
    )
