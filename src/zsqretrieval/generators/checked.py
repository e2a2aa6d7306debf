"""Checks of a generator's arguments and answers.

A generator may be a plugin, so its answers are checked here, and only here.

contexts                --write_texts, write_each--> texts
contexts, continuations --read_texts, read_each----> log-likelihoods
images                  --read_images--------------> states, where the generator computes some

A call that fails is repeated with ever fewer items until those that fail alone are found, and for each of
them with a plain picture, and with a short text, in place of its own. So an error names the image or the text
that the generator cannot take, ``write_each`` and ``read_each`` go on without it, and a generator that cannot
do anything is not mistaken for a bad image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import starmap
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.batches import each, fails, sound
from zsqretrieval._util.checks import check_amounts, check_counts, check_sequence
from zsqretrieval._util.floats import all_finite
from zsqretrieval.data.refused import each_image, plain, reason
from zsqretrieval.errors import ImageError, InvalidInputError, PartError, ZsqError
from zsqretrieval.generators.prompts import PROMPTS
from zsqretrieval.protocols import Generator, ImageStates
from zsqretrieval.types import Context, Image, ImageState, LogLikelihood, Progress

T = TypeVar("T")


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
    check_counts(most=10_000, n=n)
    check_counts(most=10**9, max_new_tokens=max_new_tokens)
    check_counts(0, most=2**128, or_none=True, seed=seed)
    check_amounts(temperature=temperature)
    if 0 < temperature < 1e-6:  # by which logits cannot be divided
        raise InvalidInputError(f"temperature must be 0 or at least 1e-6, not {temperature}")


def write_texts(generator: Generator, contexts: Sequence[Context], **settings: Any) -> list[list[str]]:
    """Generate texts, with the settings of :func:`write_each`.

    Raises:
        InvalidInputError, ImageError: the generator cannot generate text; or as in ``generate``. Names the
            image or the text that it cannot take.
        PartError: the generator returned too few or too many texts, or something else.
    """
    return sound(write_each(generator, contexts, stop=True, **settings), InvalidInputError)


def write_each(
    generator: Generator,
    contexts: Sequence[Context],
    *,
    n: int = 1,
    max_new_tokens: int = 24,
    temperature: float = 0.0,
    seed: int | None = None,
    batch_size: int = 16,
    stop: bool = False,
) -> list[list[str] | InvalidInputError]:
    """Generate texts; see :meth:`zsqretrieval.protocols.Generator.generate`.

    An error stands in the place of a context that the generator cannot take; with ``stop`` it is raised. The
    other contexts are then numbered anew, so that they get other samples.
    """
    cannot = InvalidInputError(
        f"{_name(generator)} scores texts but writes none, so it can neither "
        "ask nor answer; use one with generate(), such as that of the preset 'mini'"
    )
    if not callable(getattr(generator, "generate", None)):
        raise cannot

    def write(some: Sequence[Context], _: object) -> list[list[str]]:
        try:
            written = generator.generate(
                some,
                n=n,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed,
                batch_size=batch_size,
            )
        except NotImplementedError as error:
            raise cannot from error
        if not (_is_list(written) and all(map(_is_list, written))):
            raise _broken(generator, f"wrote {_shown(written)}, not a list of texts for each context")
        if [len(texts) for texts in written] != [n] * len(some):
            raise _broken(
                generator, f"wrote {sum(map(len, written))} texts for {len(some)} contexts, not {n} each"
            )
        if strange := [text for texts in written for text in texts if not isinstance(text, str)]:
            raise _broken(generator, f"wrote {_shown(strange[0])}, not a string")
        return written

    return _each(generator, write, contexts, [""] * len(contexts), stop)


def read_texts(
    generator: Generator, contexts: Sequence[Context], continuations: Sequence[str], **settings: Any
) -> list[LogLikelihood]:
    """Score pairs, with the settings of :func:`read_each`.

    Raises:
        InvalidInputError, ImageError: as in ``log_likelihood``. Names the image or the text that the
            generator cannot take: too long, or a likelihood that is not finite.
        PartError: the generator returned too few or too many likelihoods, or something else.
        ZsqError: no likelihood is finite.
    """
    return sound(read_each(generator, contexts, continuations, stop=True, **settings), InvalidInputError)


def read_each(
    generator: Generator,
    contexts: Sequence[Context],
    continuations: Sequence[str],
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
    stop: bool = False,
) -> list[LogLikelihood | InvalidInputError]:
    """Score pairs; see :meth:`zsqretrieval.protocols.Generator.log_likelihood`.

    An error stands in the place of a pair that the generator cannot take; with ``stop`` it is raised. It is
    an :class:`ImageError` if the images of the pair are at fault, alone or together with its text.
    """

    def report(step: str, done: int, total: int | None) -> None:
        assert progress is not None
        try:
            progress(step, done, total)
        except Exception as error:  # the caller's, who may raise to stop
            raise _Stopped from error

    def read(some: Sequence[Context], texts: Sequence[str]) -> list[LogLikelihood]:
        found = generator.log_likelihood(
            some, texts, batch_size=batch_size, progress=report if progress is not None else None
        )
        if not _is_list(found) or len(found) != len(some):
            count = len(found) if _is_list(found) else _shown(found)
            raise _broken(generator, f"gave {count} likelihoods for {len(some)} pairs")
        for context, text, one in zip(some, texts, found, strict=True):
            _check_likelihood(generator, context, text, one)
        return found

    try:
        return _each(generator, read, contexts, continuations, stop)
    except _Stopped as stopped:
        assert stopped.__cause__ is not None
        raise stopped.__cause__ from None


def read_images(generator: Generator, images: Sequence[Image]) -> list[Image | ImageState | ImageError]:
    """The images as inputs of the generator: their states if it computes some, else the images themselves.

    An error stands in the place of an image for which it cannot compute a state.

    Raises:
        PartError: the states have another shape or dtype than the generator says.
    """
    if not isinstance(generator, ImageStates):
        return list(images)
    shape, dtype, fingerprint = tuple(generator.state_shape), generator.state_dtype, generator.fingerprint

    def see(some: Sequence[Image]) -> NDArray[Any]:
        states = np.asarray(generator.image_states(some))
        if states.shape != (len(some), *shape) or states.dtype != dtype:
            raise _broken(
                generator,
                f"made states of {states.dtype} {list(states.shape)} for {len(some)} images but says "
                f"{np.dtype(dtype)} {list(shape)} each",
            )
        if not all_finite(states):
            raise ZsqError(f"{_name(generator)} made a state that is not finite: {_CAUSES}")
        return states

    return [
        one if isinstance(one, ImageError) else ImageState(one, fingerprint, image.source)
        for image, one in zip(images, each_image(_name(generator), see, images), strict=True)
    ]


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


# --- what was wrong ---------------------------------------------------------------------------------------

_CAUSES = "its weights are damaged, its numbers overflow, or it breaks its contract"
_ABOVE = 1e-4  # nats; rounding may leave a certain token a little above 0
_ASKED = PROMPTS["question"].template.removeprefix("<image>")  # a context of few tokens
_SHORT = " a"  # a text of few tokens


class _Stopped(BaseException):
    """Carries an exception of a progress callback past the generator, which must not be blamed for it."""


def _each(
    generator: Generator,
    call: Callable[[Sequence[Context], Sequence[str]], Iterable[T]],
    contexts: Sequence[Context],
    texts: Sequence[str],
    stop: bool,
) -> list[T | InvalidInputError]:
    """Call on n pairs; images and texts that have failed once are left out from then on."""
    check_pairs(contexts, texts)
    faults: dict[object, InvalidInputError] = {}  # by the images or the texts of a pair

    def known(context: Context, text: str) -> InvalidInputError | None:
        return faults.get(_images_of(context)) or faults.get(_texts_of(context, text))

    def some_of(pairs: list[tuple[Context, str]]) -> Iterable[T]:
        if faults and (fault := next(filter(None, starmap(known, pairs)), None)):
            raise fault
        return call([context for context, _ in pairs], [text for _, text in pairs])

    def blame(pair: tuple[Context, str], error: Exception) -> InvalidInputError | None:
        if fault := known(*pair):
            return fault
        context, text = pair
        images = [part for part in context if not isinstance(part, str)]
        if fails(call, [[*map(plain, images[:1]), _ASKED]], [_SHORT]):
            return None
        source = ", ".join(image.source for image in images)
        why = f"{_name(generator)} cannot take it: {reason(error)}"
        if images and isinstance(error, ImageError):
            fault = ImageError(source if len(images) == 1 else error.source, error.reason)
            faults[_images_of(context)] = fault
        elif images and fails(call, [[*images, _ASKED]], [_SHORT]):
            faults[_images_of(context)] = fault = ImageError(source, why)
        elif fails(call, [[one if isinstance(one, str) else plain(one) for one in context]], [text]):
            faults[_texts_of(*pair)] = fault = InvalidInputError(f"{_quoted(*pair)}: {why}")
        else:
            fault = ImageError(source, f"with {_quoted(*pair)}: {why}")
        fault.__cause__ = error
        if stop:
            raise fault
        return fault

    return each(some_of, zip(contexts, texts, strict=True), blame)


def _images_of(context: Context) -> object:
    return tuple(id(part) for part in context if not isinstance(part, str))


def _texts_of(context: Context, text: str) -> object:
    return *(part if isinstance(part, str) else None for part in context), text


def _quoted(context: Context, text: str) -> str:
    whole = "".join(part if isinstance(part, str) else "<image>" for part in context) + text
    return repr(whole if len(whole) <= 200 else f"{whole[:100]} ... {whole[-100:]}")


def _check_likelihood(generator: Generator, context: Context, text: str, one: object) -> None:
    if not isinstance(one, LogLikelihood):
        raise _broken(generator, f"gave {_shown(one)} for {text!r}, not a LogLikelihood")
    values = one.token_log_probs
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or values.shape != (len(one.tokens),):
        raise _broken(
            generator,
            f"gave log-probabilities {_shown(values)} for the {len(one.tokens)} tokens of {text!r}, not an "
            "array float32 [tokens]",
        )
    if not np.isfinite(values).all():
        shown = ", ".join(part.source for part in context if not isinstance(part, str))
        raise ZsqError(
            f"{_name(generator)} gave {one.sum} as the log-probability of {text!r} given {shown}: {_CAUSES}; "
            f"{_KIT}"
        )
    if (values > _ABOVE).any():
        raise _broken(generator, f"gave {values.max():.4g} as a log-probability of {text!r}, above 0")


_KIT = "zsqretrieval.testing.check_generator checks that"


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _shown(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return f"{type(value).__name__} {value!r}"[:80]


def _name(generator: Generator) -> str:
    return f"the generator {type(generator).__name__}"


def _broken(generator: Generator, what: str) -> PartError:
    return PartError(f"{_name(generator)} {what}: it breaks its contract; {_KIT}")
