"""Checks of a generator with image states; the contract is :class:`zsqretrieval.protocols.ImageStates`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from zsqretrieval.errors import ImageError
from zsqretrieval.protocols import ImageStates
from zsqretrieval.testing.checks import Check, expect, expect_refusal, lister
from zsqretrieval.testing.generator_case import (
    QUESTIONS,
    GeneratorCase,
    GeneratorFactory,
    as_case,
    expect_same,
    five_contexts,
    score,
)
from zsqretrieval.testing.pictures import broken_images, paintings
from zsqretrieval.types import Context, Image, ImageState, LogLikelihood

_listed: list[Check[GeneratorFactory]] = []


def _state_check(
    function: Callable[[GeneratorCase, ImageStates], None],
) -> Callable[[GeneratorCase, ImageStates], None]:
    """List the function as a check; a generator without image states passes it."""

    def verify(case: GeneratorCase) -> None:
        if isinstance(case.generator, ImageStates):
            function(case, case.generator)

    verify.__name__, verify.__doc__ = function.__name__, function.__doc__
    lister(_listed, as_case)(verify)
    return function


@_state_check
def image_states_are_as_described(case: GeneratorCase, generator: ImageStates) -> None:
    """``image_states`` returns finite [n, *state_shape] of ``state_dtype``, a float, also for n = 0."""
    dtype, shape = generator.state_dtype, tuple(generator.state_shape)
    expect(np.issubdtype(dtype, np.floating), "state_dtype: a floating-point dtype", dtype)
    for n in (3, 0):
        states = generator.image_states(paintings(n))
        expect(isinstance(states, np.ndarray), "an array", type(states).__name__)
        expect(states.dtype == dtype, f"states of dtype {dtype}", states.dtype)
        expect(states.shape == (n, *shape), f"states of shape {(n, *shape)}", states.shape)
        expect(np.all(np.isfinite(states)), "finite states", states)


@_state_check
def state_stands_for_its_image(case: GeneratorCase, generator: ImageStates) -> None:
    """States in place of images give the same log-probabilities, also of several images in one context."""
    with_states = _in_states(generator, five_contexts())
    found = score(case, with_states, QUESTIONS)
    expect_same(case, score(case, five_contexts(), QUESTIONS), found, "images and their states")


@_state_check
def generate_accepts_states(case: GeneratorCase, generator: ImageStates) -> None:
    """``generate`` takes states, and chooses the token that is the likeliest given the images."""
    contexts = five_contexts()
    written = generator.generate(_in_states(generator, contexts), max_new_tokens=1)
    expected = generator.generate(contexts, max_new_tokens=1)
    for context, (one,), (other,) in zip(contexts, written, expected, strict=True):
        if one != other and one.strip() and other.strip():  # a tie may fall either way
            first = [float(each.token_log_probs[0]) for each in score(case, [context] * 2, [one, other])]
            gap = abs(first[0] - first[1])
            expect(gap <= 2 * case.tolerance, f"{other!r}, or a token as likely", f"{one!r}, by {gap:.3g}")


@_state_check
def state_batch_size_changes_nothing(case: GeneratorCase, generator: ImageStates) -> None:
    """States computed in any ``batch_size`` give the same log-probabilities."""
    images = paintings(5, first_seed=20)
    one_by_one = _score_states(case, generator, images, batch_size=1)
    for batch_size in (2, 5, 8):
        together = _score_states(case, generator, images, batch_size=batch_size)
        expect_same(case, one_by_one, together, f"states computed by {batch_size} and one by one")


@_state_check
def state_order_is_kept(case: GeneratorCase, generator: ImageStates) -> None:
    """State i belongs to image i: permuted images give permuted states."""
    images, order = paintings(5, first_seed=20), [3, 0, 4, 2, 1]
    straight = [_score_states(case, generator, [image], batch_size=8)[0] for image in images]
    permuted = _score_states(case, generator, [images[i] for i in order], batch_size=8)
    expect_same(case, [straight[i] for i in order], permuted, f"states of images in the order {order}")


@_state_check
def foreign_state_is_refused(case: GeneratorCase, generator: ImageStates) -> None:
    """A state with the fingerprint of another generator is refused, and the error names the image."""
    state = _states(generator, paintings(1))[0]
    foreign = ImageState(state.values, f"not {state.fingerprint}", "notes-renamed.jpg")
    read = partial(score, case, [(foreign, "Question:")], QUESTIONS[:1])
    expect_refusal(read, "a state of another generator", naming=foreign.source)


@_state_check
def misshapen_state_is_refused(case: GeneratorCase, generator: ImageStates) -> None:
    """A state of another shape than ``state_shape`` is refused."""
    state = _states(generator, paintings(1))[0]
    for values in (state.values[None], state.values[:-1], np.concatenate([state.values] * 2)):
        wrong = ImageState(values, state.fingerprint, state.source)
        what = f"a state of shape {values.shape}"
        expect_refusal(partial(score, case, [(wrong, "Question:")], QUESTIONS[:1]), what)


@_state_check
def broken_image_has_no_state(case: GeneratorCase, generator: ImageStates) -> None:
    """An image that cannot be decoded raises ImageError naming it, instead of a state."""
    for broken in broken_images():
        states = partial(generator.image_states, [*paintings(2), broken])
        expect_refusal(states, broken.source, ImageError, naming=broken.source)


state_checks = tuple(_listed)
"""Checks of image states, with arguments as in ``generator_checks``."""


def _states(generator: ImageStates, images: Sequence[Image], batch_size: int = 16) -> list[ImageState]:
    values = generator.image_states(images, batch_size=batch_size)
    return [
        ImageState(value, generator.fingerprint, image.source)
        for value, image in zip(values, images, strict=True)
    ]


def _in_states(generator: ImageStates, contexts: Sequence[Context]) -> list[Context]:
    """The contexts with the states of their images in place of these."""
    images = [segment for context in contexts for segment in context if isinstance(segment, Image)]
    state_of = dict(zip(images, _states(generator, images), strict=True))
    return [
        tuple(state_of[segment] if isinstance(segment, Image) else segment for segment in context)
        for context in contexts
    ]


def _score_states(
    case: GeneratorCase, generator: ImageStates, images: Sequence[Image], batch_size: int
) -> list[LogLikelihood]:
    states = _states(generator, images, batch_size)
    return score(case, [(state, "Question:") for state in states], [QUESTIONS[2]] * len(states))
