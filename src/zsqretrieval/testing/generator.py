"""Checks of every generator; the contract is :class:`zsqretrieval.protocols.Generator`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from zsqretrieval.errors import ImageError
from zsqretrieval.protocols import Generator
from zsqretrieval.testing.checks import Check, expect, expect_refusal, lister, run_checks
from zsqretrieval.testing.generator_case import (
    QUESTIONS,
    WORDS,
    GeneratorCase,
    GeneratorFactory,
    as_case,
    expect_same,
    five_contexts,
    largest_gap,
    score,
)
from zsqretrieval.testing.generator_states import state_checks
from zsqretrieval.testing.pictures import broken_images, paintings
from zsqretrieval.types import Context, LogLikelihood

SPLITS = (("what is", " the colour"), ("what is ", "the colour"), ("what is", "the colour"), ("what", "?"))

_listed: list[Check[GeneratorFactory]] = []
_check = lister(_listed, as_case)


def check_generator(generator: Generator | GeneratorCase) -> None:
    """Run every generator check on ``generator``.

    Raises:
        ContractError: names each failed check, with what was expected and what was got.
    """
    run_checks(generator_checks, lambda: generator)


# -- likelihood --------------------------------------------------------------------------------------


@_check
def fingerprint_is_stable(case: GeneratorCase) -> None:
    """``fingerprint`` is a non-empty str, and using the generator does not change it."""
    generator = case.generator
    before = generator.fingerprint
    expect(
        isinstance(generator, Generator), "the members of the Generator protocol", type(generator).__name__
    )
    expect(type(before) is str and before, "fingerprint: a non-empty str", repr(before))
    generator.log_likelihood(five_contexts()[:1], QUESTIONS[:1])
    generator.generate(five_contexts()[:1], max_new_tokens=2)
    expect(generator.fingerprint == before, f"the fingerprint {before!r} still", repr(generator.fingerprint))


@_check
def likelihoods_are_log_probabilities(case: GeneratorCase) -> None:
    """Each LogLikelihood has at least one token, each with a finite float32 log-probability <= 0."""
    found = score(case, five_contexts(), QUESTIONS)
    for likelihood, question in zip(found, QUESTIONS, strict=True):
        expect(isinstance(likelihood, LogLikelihood), "a LogLikelihood", type(likelihood).__name__)
        tokens, log_probs = likelihood.tokens, likelihood.token_log_probs
        strings = isinstance(tokens, tuple) and all(isinstance(token, str) for token in tokens)
        expect(strings and tokens, f"a tuple of token texts for {question!r}", repr(tokens))
        expect(isinstance(log_probs, np.ndarray), "log-probabilities in an array", type(log_probs).__name__)
        expect(log_probs.dtype == np.float32, "float32 log-probabilities", log_probs.dtype)
        shape = (len(tokens),)
        expect(log_probs.shape == shape, f"one log-probability per token: shape {shape}", log_probs.shape)
        expect(np.all(np.isfinite(log_probs)), "finite log-probabilities", log_probs)
        expect(np.all(log_probs <= 0), "log-probabilities <= 0", log_probs)


@_check
def next_token_probabilities_sum_to_one(case: GeneratorCase) -> None:
    """Probabilities of all one-token continuations sum to 1, of some of them to at most 1."""
    for context in five_contexts():
        words = case.vocabulary or WORDS
        found = score(case, [context] * len(words), words)
        longer = [word for word, one in zip(words, found, strict=True) if case.vocabulary and len(one) != 1]
        expect(not longer, "one token for each text of the vocabulary", f"more for {longer}")
        first = {one.tokens: float(np.exp(one.token_log_probs[0])) for one in found if len(one) == 1}
        total = sum(first.values())
        if case.vocabulary:
            good = len(first) == len(words) and abs(total - 1) <= 1e-3
            expect(good, f"probabilities of {len(words)} tokens that sum to 1", f"{len(first)}: {total:.5f}")
        else:
            expect(total <= 1 + 1e-3, "probabilities of different tokens with a sum <= 1", f"{total:.5f}")


@_check
def chain_rule_holds(case: GeneratorCase) -> None:
    """Log P(ab | c) = log P(a | c) + log P(b | c, a), token by token."""
    context = ("The picture:", paintings(1)[0])  # ends in an image, so that no token spans c and a
    for a, b in [case.split] if case.split else SPLITS:
        whole, first, second = score(case, [context, context, (*context, a)], [a + b, a, b])
        if whole.tokens == first.tokens + second.tokens:
            parts = np.concatenate([first.token_log_probs, second.token_log_probs])
            gap = float(np.abs(whole.token_log_probs - parts).max())
            expect(
                gap <= 2 * case.tolerance, "equal log-probabilities", f"{whole.token_log_probs} and {parts}"
            )
            return
    tried = case.split or SPLITS
    advice = "give some as GeneratorCase(generator, split=(a, b))"
    expect(False, f"texts a, b whose tokens are those of a + b ({advice})", f"none in {tried}")


@_check
def tokens_depend_on_the_continuation_only(case: GeneratorCase) -> None:
    """A continuation has the same tokens after every context, so that likelihoods can be compared."""
    found = score(case, five_contexts(), [QUESTIONS[1]] * 5)
    sets = {one.tokens for one in found}
    expect(len(sets) == 1, f"the same tokens for {QUESTIONS[1]!r} after every context", sets)


@_check
def later_tokens_do_not_leak(case: GeneratorCase) -> None:
    """Later tokens do not change a token's log-probability."""
    context = five_contexts()[0]
    texts = ("what is the colour of the red house", "what is the colour of the dog", "what is the colour")
    found = score(case, [context] * 3, texts)
    shared = 0
    while all(len(one) > shared for one in found) and len({one.tokens[shared] for one in found}) == 1:
        shared += 1
    expect(shared, f"a common first token of {texts}", [one.tokens for one in found])
    for other in found[1:]:
        gap = np.abs(found[0].token_log_probs[:shared] - other.token_log_probs[:shared]).max()
        what = f"equal log-probabilities for the {shared} tokens that {texts} share"
        expect(gap <= case.tolerance, what, f"a difference of {gap:.3g}")


@_check
def batch_size_changes_nothing(case: GeneratorCase) -> None:
    """Any ``batch_size`` gives the same log-probabilities."""
    one_by_one = case.generator.log_likelihood(five_contexts(), QUESTIONS, batch_size=1)
    for batch_size in (2, 5, 8):
        batched = case.generator.log_likelihood(five_contexts(), QUESTIONS, batch_size=batch_size)
        expect_same(case, one_by_one, batched, f"batch_size 1 and {batch_size}")


@_check
def padding_changes_nothing(case: GeneratorCase) -> None:
    """A pair gets the same log-probabilities alone and in a batch with longer pairs."""
    contexts, questions = five_contexts(), list(QUESTIONS)
    together = score(case, contexts, questions)
    for i in range(5):
        alone = score(case, contexts[i : i + 1], questions[i : i + 1])
        expect_same(case, alone, together[i : i + 1], f"pair {i} alone and among longer ones")


@_check
def order_is_kept(case: GeneratorCase) -> None:
    """Answer i belongs to pair i: permuted pairs give permuted likelihoods."""
    order = [3, 0, 4, 2, 1]
    contexts = five_contexts()
    straight = [score(case, contexts[i : i + 1], QUESTIONS[i : i + 1])[0] for i in range(5)]
    permuted = score(case, [contexts[i] for i in order], [QUESTIONS[i] for i in order])
    expect_same(case, [straight[i] for i in order], permuted, f"pairs in the order {order}")


@_check
def scoring_is_deterministic(case: GeneratorCase) -> None:
    """Scoring twice, with generation between, gives the same log-probabilities."""
    first = score(case, five_contexts(), QUESTIONS)
    case.generator.generate(five_contexts()[:1], temperature=1.0, max_new_tokens=2)
    expect_same(case, first, score(case, five_contexts(), QUESTIONS), "pairs scored twice")


@_check
def image_matters(case: GeneratorCase) -> None:
    """Another image in the context gives other log-probabilities."""
    contexts = [(image, "Question:") for image in paintings(3)]
    _expect_all_differ(case, contexts, "contexts that differ in their image")


@_check
def text_matters(case: GeneratorCase) -> None:
    """Another text in the context gives other log-probabilities, before and after the image."""
    image = paintings(1)[0]
    contexts: list[Context] = [
        (image, "the green house:"),
        (image, "the red house:"),
        ("the green house:", image),
        ("the red house:", image),
    ]
    _expect_all_differ(case, contexts[:2], "contexts that differ in the text after the image")
    _expect_all_differ(case, contexts[2:], "contexts that differ in the text before the image")


@_check
def every_image_matters(case: GeneratorCase) -> None:
    """Each of several images changes the log-probabilities, and so does their order."""
    one, two, three = paintings(3)
    contexts = [(one, "then", two, "Question:"), (two, "then", one, "Question:")]
    _expect_all_differ(case, contexts, "contexts with the same images in another order")
    contexts = [(one, "then", two, "Question:"), (three, "then", two, "Question:")]
    _expect_all_differ(case, contexts, "contexts that differ in their first image")
    contexts = [(one, "then", two, "Question:"), (one, "then", three, "Question:")]
    _expect_all_differ(case, contexts, "contexts that differ in their second image")


@_check
def no_pairs_give_no_likelihoods(case: GeneratorCase) -> None:
    """Empty lists give an empty list."""
    found = case.generator.log_likelihood([], [])
    expect(found == [], "[]", found)


@_check
def empty_continuation_is_refused(case: GeneratorCase) -> None:
    """An empty continuation is refused, in any position."""
    for questions in ([""], ["red", "", "blue"]):
        contexts = five_contexts()[: len(questions)]
        _expect_refused(case, contexts, questions, f"the continuations {questions}")


@_check
def unequal_lengths_are_refused(case: GeneratorCase) -> None:
    """Different numbers of contexts and continuations are a ValueError."""
    contexts = five_contexts()
    for n_contexts, n_questions in ((2, 1), (1, 2), (0, 1), (1, 0)):
        what = f"{n_contexts} contexts and {n_questions} continuations"
        _expect_refused(case, contexts[:n_contexts], QUESTIONS[:n_questions], what)


@_check
def over_long_continuation_is_not_cut(case: GeneratorCase) -> None:
    """A continuation beyond the context length is refused; a model without that limit reads all of it."""
    context = five_contexts()[0]
    texts = [
        case.too_long + " red",
        case.too_long + " green",
        "red " + case.too_long,
        "green " + case.too_long,
    ]
    try:
        found = score(case, [context] * 4, texts)
    except ValueError:
        return
    for i, place in ((0, "last"), (2, "first")):
        what = f"a ValueError, or the {place} word of a very long text among its tokens"
        expect(found[i].tokens != found[i + 1].tokens, what, "equal tokens for texts that differ in it")


@_check
def over_long_context_is_not_cut(case: GeneratorCase) -> None:
    """A context beyond the context length is refused; a model without that limit reads all of it."""
    one, other = paintings(2)
    contexts: list[Context] = [
        (one, case.too_long),
        (other, case.too_long),
        (case.too_long, one),
        (case.too_long, other),
    ]
    try:
        found = score(case, contexts, ["red"] * 4)
    except ValueError:
        return
    for i, place in ((0, "before"), (2, "after")):
        what = f"a ValueError, or an image that matters {place} a very long text"
        expect(largest_gap(found[i], found[i + 1]) > 0, what, "equal log-probabilities for two images")


@_check
def broken_image_is_named(case: GeneratorCase) -> None:
    """An image that cannot be decoded raises ImageError naming it."""
    for broken in broken_images():
        contexts = [five_contexts()[0], (paintings(1)[0], broken, "Question:")]
        read = partial(score, case, contexts, QUESTIONS[:2])
        expect_refusal(read, broken.source, ImageError, naming=broken.source)


@_check
def inputs_are_not_changed(case: GeneratorCase) -> None:
    """Scoring and generating leave the caller's lists as they were."""
    contexts, questions = [list(context) for context in five_contexts()], list(QUESTIONS)
    given = [list(context) for context in contexts]
    case.generator.log_likelihood(contexts, questions)
    case.generator.generate(contexts, max_new_tokens=2)
    expect(contexts == given, "the contexts unchanged", contexts)
    expect(questions == list(QUESTIONS), "the continuations unchanged", questions)


@_check
def progress_reaches_the_total(case: GeneratorCase) -> None:
    """``log_likelihood`` calls ``progress(step, done, total)``; done rises, and ends at total."""
    calls: list[tuple[str, int, int | None]] = []
    case.generator.log_likelihood(
        five_contexts(), QUESTIONS, batch_size=2, progress=lambda *call: calls.append(call)
    )
    expect(calls, "at least one call", "none")
    for step in dict.fromkeys(name for name, _, _ in calls):
        expect(type(step) is str and step, "a name of the step", repr(step))
        done = [done for name, done, _ in calls if name == step]
        totals = {total for name, _, total in calls if name == step}
        expect(done == sorted(set(done)), f"a rising number of items done in {step!r}", done)
        expect(
            totals == {done[-1]}, f"one total in {step!r}, equal to the last number done", f"{done}, {totals}"
        )


@_check
def progress_can_cancel(case: GeneratorCase) -> None:
    """An exception of ``progress`` ends the call of ``log_likelihood``; the next call works as before."""
    calls = 0

    def cancel(*_: object) -> None:
        nonlocal calls
        calls += 1
        raise _CancelledError

    before = score(case, five_contexts(), QUESTIONS)
    expect_refusal(
        lambda: case.generator.log_likelihood(five_contexts(), QUESTIONS, batch_size=1, progress=cancel),
        "a progress that raises",
        _CancelledError,
    )
    expect(calls == 1, "no call of progress after it has raised", f"{calls} calls")
    expect_same(case, before, score(case, five_contexts(), QUESTIONS), "pairs scored after a cancelled call")


# -- generation --------------------------------------------------------------------------------------


@_check
def n_texts_per_context(case: GeneratorCase) -> None:
    """``generate`` returns one list of n strings per context, and [] for no contexts."""
    for n, temperature in ((1, 0.0), (3, 0.0), (3, 1.0)):
        found = case.generator.generate(five_contexts(), n=n, max_new_tokens=3, temperature=temperature)
        lengths = [len(texts) for texts in found]
        expect(lengths == [n] * 5, f"5 lists of {n} texts", f"lists of {lengths}")
        expect(all(isinstance(text, str) for texts in found for text in texts), "strings", found)
    expect(case.generator.generate([]) == [], "[] for no contexts", case.generator.generate([]))


@_check
def greedy_generation_is_deterministic(case: GeneratorCase) -> None:
    """At temperature 0 all n texts are equal, whatever the seed."""
    for context in five_contexts():
        found = [
            case.generator.generate([context], n=2, max_new_tokens=6, temperature=0.0, seed=seed)[0]
            for seed in (None, 1, 2)
        ]
        texts = {text for texts in found for text in texts}
        expect(len(texts) == 1, "one and the same text", texts)


@_check
def generation_order_is_kept(case: GeneratorCase) -> None:
    """Texts i belong to context i, in every batch size."""
    contexts = five_contexts()
    alone = [case.generator.generate([context], max_new_tokens=4)[0] for context in contexts]
    for batch_size in (1, 2, 8):
        found = case.generator.generate(contexts[::-1], max_new_tokens=4, batch_size=batch_size)
        expect(found[::-1] == alone, f"{alone} with batch_size {batch_size} too", found[::-1])


@_check
def seed_makes_sampling_repeatable(case: GeneratorCase) -> None:
    """The same seed gives the same texts, whatever was sampled in between."""
    first = _sample(case, seed=1)
    _sample(case, seed=2)
    expect(_sample(case, seed=1) == first, f"{first} again", _sample(case, seed=1))


@_check
def sampling_varies(case: GeneratorCase) -> None:
    """Above temperature 0 the n texts are independent draws; other seeds draw other texts."""
    by_seed = [_sample(case, seed=seed) for seed in range(4)]
    expect(len(set(by_seed[0][0])) > 1, "different texts among 8 draws", by_seed[0][0])
    expect(any(texts != by_seed[0] for texts in by_seed), "other texts for other seeds", by_seed[0])


@_check
def max_new_tokens_is_respected(case: GeneratorCase) -> None:
    """No text has more tokens than asked for, and fewer tokens are a prefix of more, at temperature 0."""
    for context in five_contexts():
        long = case.generator.generate([context], max_new_tokens=6)[0][0]
        for limit in (1, 3):
            short = case.generator.generate([context], max_new_tokens=limit)[0][0]
            expect(long.startswith(short.rstrip()), f"a prefix of {long!r}", repr(short))
            if short.strip():
                tokens = score(case, [context], [short])[0].tokens
                expect(len(tokens) <= limit, f"at most {limit} tokens in {short!r}", tokens)


@_check
def greedy_token_is_the_likeliest(case: GeneratorCase) -> None:
    """At temperature 0 ``generate`` takes a first token that is at least as likely as those of some words."""
    for context in five_contexts():
        chosen = case.generator.generate([context], max_new_tokens=1)[0][0]
        if not chosen.strip():
            continue  # the model ends the text here, and an end token has no text to score
        rivals = tuple(case.vocabulary or WORDS)
        # "dog" and " dog" may be different tokens, and generate may have stripped the space
        found = score(case, [context] * (2 + len(rivals)), [chosen, f" {chosen.lstrip()}", *rivals])
        first = [float(one.token_log_probs[0]) for one in found]
        best = int(np.argmax(first[2:]))
        what = f"{chosen!r}, which generate chose, to be the likeliest ({max(first[:2]):.4f})"
        expect(
            max(first[:2]) >= first[2 + best] - 2 * case.tolerance,
            what,
            f"{rivals[best]!r} ({first[2 + best]:.4f})",
        )


@_check
def settings_out_of_range_are_refused(case: GeneratorCase) -> None:
    """``n`` < 1, ``max_new_tokens`` < 1 and a negative or nan temperature are refused."""
    context = five_contexts()[:1]
    generate = case.generator.generate
    expect_refusal(lambda: generate(context, n=0), "n=0")
    expect_refusal(lambda: generate(context, max_new_tokens=0), "max_new_tokens=0")
    expect_refusal(lambda: generate(context, temperature=-1.0), "temperature=-1")
    expect_refusal(lambda: generate(context, temperature=float("nan")), "temperature=nan")


@_check
def over_long_prompt_is_refused(case: GeneratorCase) -> None:
    """``generate`` refuses a context that is too long for ``log_likelihood``."""
    context = (five_contexts()[0][0], case.too_long)
    try:
        score(case, [context], ["red"])
    except ValueError:
        expect_refusal(
            lambda: case.generator.generate([context], max_new_tokens=1),
            "a context that log_likelihood refuses",
        )


generator_checks = (*_listed, *state_checks)
"""Every generator check; each takes a function without arguments that returns the generator or a case."""


class _CancelledError(Exception):
    pass


def _sample(case: GeneratorCase, seed: int) -> list[list[str]]:
    # hot, so that a confident model varies too
    return case.generator.generate(five_contexts()[:2], n=8, max_new_tokens=6, temperature=2.0, seed=seed)


def _expect_all_differ(case: GeneratorCase, contexts: Sequence[Context], what: str) -> None:
    question = "is the red thing in the picture?"
    found = score(case, contexts, [question] * len(contexts))
    for i, one in enumerate(found):
        for other in found[:i]:
            difference = largest_gap(one, other)
            expected = f"different log-probabilities of {question!r} for {what}"
            expect(difference > 10 * case.tolerance, expected, f"a largest difference of {difference:.3g}")


def _expect_refused(
    case: GeneratorCase, contexts: Sequence[Context], texts: Sequence[str], what: str
) -> None:
    expect_refusal(lambda: case.generator.log_likelihood(contexts, texts), what)
