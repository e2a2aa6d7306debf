"""Generators with one common bug each, and the checks that must find it."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np

from caught_by import caught_by, spoiled
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.testing import ToyGenerator, ToyStatesGenerator
from zsqretrieval.types import Image, ImageState, LogLikelihood


class SpoiledScores(ToyGenerator):
    """Applies ``spoil`` of a subclass to all log-probabilities."""

    def log_likelihood(self, contexts, continuations, **settings):
        found = super().log_likelihood(contexts, continuations, **settings)
        return [dataclasses.replace(one, token_log_probs=self.spoil(one.token_log_probs)) for one in found]


class SpoiledContexts(ToyGenerator):
    """Applies ``spoil`` of a subclass to all scored contexts."""

    def log_likelihood(self, contexts, continuations, **settings):
        return super().log_likelihood(
            [self.spoil(context) for context in contexts], continuations, **settings
        )


class SpoiledTexts(ToyGenerator):
    """Applies ``spoil`` of a subclass to all generated texts."""

    def generate(self, contexts, **settings):
        return self.spoil(super().generate(contexts, **settings))


class SpoiledStates(ToyStatesGenerator):
    """Applies ``spoil`` of a subclass to all image states."""

    def image_states(self, images, *, batch_size=16):
        return self.spoil(super().image_states(images))


def texts_of(context):
    return [segment for segment in context if isinstance(segment, str)]


def images_of(context):
    return [segment for segment in context if not isinstance(segment, str)]


def first_token_free(log_probs):
    """Shifts within the continuation, so that its first token is never scored."""
    return np.concatenate([np.zeros(1, np.float32), log_probs[1:]])


def dropout(log_probs):
    return log_probs - np.random.default_rng().random(len(log_probs), np.float32)


def without_text_before_the_image(context):
    first = [i for i, segment in enumerate(context) if not isinstance(segment, str)]
    return context[first[0] :] if first else context


def first_image_only(context):
    images = images_of(context)
    return [segment for segment in context if isinstance(segment, str) or segment is images[0]]


def images_in_any_order(context):
    """Gathers the images in an order of its own."""
    return [*sorted(images_of(context), key=lambda image: image.source), *texts_of(context)]


LOG_PROBS, SUM_TO_ONE = "likelihoods_are_log_probabilities", "next_token_probabilities_sum_to_one"
SPOILED = [
    *spoiled(
        SpoiledScores,
        Losses=(lambda log_probs: -log_probs, LOG_PROBS),
        Float64=(lambda log_probs: log_probs.astype(np.float64), LOG_PROBS),
        OneNumberPerText=(lambda log_probs: log_probs.sum(keepdims=True), LOG_PROBS),
        Temperature=(lambda log_probs: log_probs / 2, SUM_TO_ONE),  # without another softmax
        FirstTokenFree=(first_token_free, "chain_rule_holds", SUM_TO_ONE),
        LengthNormalised=(
            lambda log_probs: log_probs / np.float32(len(log_probs)),
            *("chain_rule_holds", "later_tokens_do_not_leak"),
        ),
        Dropout=(dropout, "scoring_is_deterministic"),
    ),
    *spoiled(
        SpoiledContexts,
        IgnoresImages=(texts_of, "image_matters", "every_image_matters"),
        IgnoresText=(images_of, "text_matters"),
        LosesTextBeforeTheImage=(without_text_before_the_image, "text_matters"),
        FirstImageOnly=(first_image_only, "every_image_matters"),
        ImagesInAnyOrder=(images_in_any_order, "every_image_matters"),
    ),
    *spoiled(
        SpoiledTexts,
        FlatTexts=(lambda texts: [text for each in texts for text in each], "n_texts_per_context"),
        UniqueTexts=(lambda texts: [sorted(set(each)) for each in texts], "n_texts_per_context"),
        TextsReversed=(lambda texts: texts[::-1], "generation_order_is_kept"),
        CopiesTheFirstDraw=(lambda texts: [each[:1] * len(each) for each in texts], "sampling_varies"),
        WritesBackwards=(
            lambda texts: [[" ".join(text.split()[::-1]) for text in each] for each in texts],
            "max_new_tokens_is_respected",
        ),
    ),
    *spoiled(
        SpoiledStates,
        StatesOfAnyPrecision=(lambda states: states.astype(np.float64), "image_states_are_as_described"),
        CoarseStates=(lambda states: states.round(1), "state_stands_for_its_image"),
        StatesInReverse=(lambda states: states[::-1], "state_order_is_kept", "state_stands_for_its_image"),
    ),
]


# -- likelihood


@caught_by("fingerprint_is_stable")
class NoFingerprint(ToyGenerator):
    fingerprint = ""


@caught_by("next_token_probabilities_sum_to_one")
class UnshiftedLabels(ToyGenerator):
    """Scores every token by the logits at its own position, where it has been read already."""

    def _score(self, context, text, pair):
        tokens = self._tokens(text)
        segments = self._read((*context, text), "pair")
        start = len(segments) - len(tokens)
        log_probs = [np.log(self._next(segments[: start + t + 1])[token]) for t, token in enumerate(tokens)]
        return LogLikelihood(tuple(self.vocabulary[t] for t in tokens), np.array(log_probs, np.float32))


@caught_by("tokens_depend_on_the_continuation_only", "chain_rule_holds")
class CountsTheContext(ToyGenerator):
    """Adds up the text of the context too."""

    def _score(self, context, text, pair):
        words = " ".join([segment for segment in context if isinstance(segment, str)])
        return super()._score([s for s in context if not isinstance(s, str)], f"{words} {text}".strip(), pair)


@caught_by("later_tokens_do_not_leak")
class NoCausalMask(ToyGenerator):
    """Every token has seen the last one."""

    def _score(self, context, text, pair):
        last = text.split()[-1:] or [""]
        return super()._score((*last, *context), text, pair)


@caught_by("batch_size_changes_nothing", "order_is_kept")
class BatchAverage(ToyGenerator):
    """Hands out the batch's mean loss."""

    def log_likelihood(self, contexts, continuations, *, batch_size=16):
        found = super().log_likelihood(contexts, continuations)
        for start in range(0, len(found), batch_size):
            batch = found[start : start + batch_size]
            mean = np.float32(np.mean([one.mean for one in batch]))
            found[start : start + batch_size] = [
                dataclasses.replace(one, token_log_probs=np.full_like(one.token_log_probs, mean))
                for one in batch
            ]
        return found


@caught_by("padding_changes_nothing", "batch_size_changes_nothing")
class AttendsToPadding(ToyGenerator):
    """Reads the padding on the left as if it were text."""

    def log_likelihood(self, contexts, continuations, *, batch_size=16):
        if len(contexts) != len(continuations):
            return super().log_likelihood(contexts, continuations)
        found = []
        for start in range(0, len(contexts), batch_size):
            texts = continuations[start : start + batch_size]
            longest = max(len(text.split()) for text in texts)
            padded = [
                ("<unk> " * (longest - len(text.split())), *context)
                for context, text in zip(contexts[start : start + batch_size], texts, strict=True)
            ]
            found += super().log_likelihood(padded, texts)
        return found


@caught_by("padding_changes_nothing")
class CountsPadding(ToyGenerator):
    """Pads short texts on the right, and scores the padding."""

    def log_likelihood(self, contexts, continuations, *, batch_size=16):
        found = super().log_likelihood(contexts, continuations)
        longest = max(map(len, found), default=0)
        return [
            LogLikelihood(
                one.tokens + ("<unk>",) * (longest - len(one)),
                np.pad(one.token_log_probs, (0, longest - len(one)), constant_values=-1),
            )
            for one in found
        ]


@caught_by("order_is_kept", "padding_changes_nothing")
class LongestFirstAndNotBack(ToyGenerator):
    def log_likelihood(self, contexts, continuations, *, batch_size=16):
        return sorted(super().log_likelihood(contexts, continuations), key=len, reverse=True)


@caught_by("scoring_is_deterministic")
class LeftoverCache(ToyGenerator):
    """Generation leaves something behind that the next scoring reads."""

    leftover = ()

    def generate(self, contexts, **settings):
        self.leftover = ("red red",)
        return super().generate(contexts, **settings)

    def _score(self, context, text, pair):
        return super()._score((*self.leftover, *context), text, pair)


@caught_by("no_pairs_give_no_likelihoods")
class StacksAnEmptyList(ToyGenerator):
    def log_likelihood(self, contexts, continuations, *, batch_size=16):
        return super().log_likelihood(contexts, continuations) or None


@caught_by("empty_continuation_is_refused")
class EmptyIsCertain(ToyGenerator):
    """A text without tokens has likelihood 1, the most likely of all."""

    def _score(self, context, text, pair):
        return super()._score(context, text, pair) if text else LogLikelihood((), np.empty(0, np.float32))


@caught_by("unequal_lengths_are_refused")
class ZipsToTheShorter(ToyGenerator):
    def log_likelihood(self, contexts, continuations, *, batch_size=16):
        n = min(len(contexts), len(continuations))
        return super().log_likelihood(contexts[:n], continuations[:n])


@caught_by("over_long_continuation_is_not_cut")
class CutsOnTheRight(ToyGenerator):
    def _score(self, context, text, pair):
        return super()._score(context, " ".join(text.split()[:100]), pair)


@caught_by("over_long_continuation_is_not_cut", "over_long_context_is_not_cut")
class CutsOnTheLeft(ToyGenerator):
    """Keeps the end of what is too long, and so loses the image."""

    def _score(self, context, text, pair):
        kept_text = " ".join(text.split()[-100:])
        words = sum(len(segment.split()) if isinstance(segment, str) else 1 for segment in context)
        return super()._score(context if words < 100 else ("of the",), kept_text, pair)


@caught_by("broken_image_is_named")
class SkipsBrokenImages(SpoiledContexts):
    def spoil(self, context):
        kept = []
        for segment in context:
            try:
                self._read([segment], "segment")
            except ImageError:
                continue
            kept.append(segment)
        return kept


@caught_by("broken_image_is_named")
class DoesNotSayWhichImage(ToyGenerator):
    def _read(self, context, name):
        try:
            return super()._read(context, name)
        except ImageError as error:
            raise ImageError("<image>", error.reason) from error


@caught_by("inputs_are_not_changed")
class ExtendsContexts(ToyGenerator):
    def log_likelihood(self, contexts, continuations, *, batch_size=16):
        found = super().log_likelihood(contexts, continuations)
        for context, text in zip(contexts, continuations, strict=True):
            if isinstance(context, list):
                context.append(text)
        return found


@caught_by("progress_reaches_the_total", "progress_can_cancel")
class ReportsNothing(ToyGenerator):
    def log_likelihood(self, contexts, continuations, *, batch_size=16, progress=None):
        return super().log_likelihood(contexts, continuations)


@caught_by("progress_reaches_the_total")
class ReportsBeforeTheBatch(ToyGenerator):
    """Calls ``progress`` when a pair begins, so that the last call is one short."""

    def log_likelihood(self, contexts, continuations, *, batch_size=16, progress=None):
        report = progress and (lambda step, done, total: progress(step, done - 1, total))
        return super().log_likelihood(contexts, continuations, progress=report)


@caught_by("progress_can_cancel")
class CannotBeCancelled(ToyGenerator):
    """Takes the exception of ``progress`` for a failed report, and continues."""

    def log_likelihood(self, contexts, continuations, *, batch_size=16, progress=None):
        def report(*call):
            with contextlib.suppress(Exception):
                progress(*call)

        return super().log_likelihood(contexts, continuations, progress=progress and report)


# -- generation


@caught_by("greedy_generation_is_deterministic")
class AlwaysSamples(ToyGenerator):
    def _continue(self, prompt, limit, temperature, rng):
        return super()._continue(prompt, limit, temperature or 1.0, rng)


@caught_by("generation_order_is_kept")
class FirstPromptForAll(ToyGenerator):
    """Copies the first prompt of a batch over the others."""

    def generate(self, contexts, **settings):
        return super().generate([contexts[0]] * len(contexts) if contexts else [], **settings)


@caught_by("seed_makes_sampling_repeatable")
class IgnoresTheSeed(ToyGenerator):
    def generate(self, contexts, **settings):
        return super().generate(contexts, **{**settings, "seed": None})


@caught_by("seed_makes_sampling_repeatable")
class SeedsOnlyOnce(ToyGenerator):
    """Goes on with the random numbers of the call before."""

    def __init__(self):
        super().__init__()
        self.seeds = {}

    def generate(self, contexts, **settings):
        if (seed := settings.get("seed")) is not None:
            self.seeds[seed] = self.seeds.get(seed, -1) + 1
            settings["seed"] = 1000 * seed + self.seeds[seed]
        return super().generate(contexts, **settings)


@caught_by("sampling_varies")
class OneSeedForAll(ToyGenerator):
    def generate(self, contexts, **settings):
        return super().generate(contexts, **{**settings, "seed": 0})


@caught_by("max_new_tokens_is_respected")
class OneTokenTooMany(ToyGenerator):
    def _continue(self, prompt, limit, temperature, rng):
        return super()._continue(prompt, limit + 1, temperature, rng)


@caught_by("greedy_token_is_the_likeliest")
class TakesTheLeastLikely(ToyGenerator):
    def _continue(self, prompt, limit, temperature, rng):
        if temperature:
            return super()._continue(prompt, limit, temperature, rng)
        return " ".join([self.vocabulary[int(self._next(prompt).argmin())]] * limit)


@caught_by("settings_out_of_range_are_refused")
class NoRanges(ToyGenerator):
    def generate(self, contexts, *, n=1, max_new_tokens=32, temperature=0.0, seed=None, batch_size=16):
        return super().generate(
            contexts,
            n=max(n, 1),
            max_new_tokens=max(max_new_tokens, 1),
            temperature=temperature if temperature > 0 else 0.0,
            seed=seed,
        )


@caught_by("over_long_prompt_is_refused")
class CutsThePrompt(ToyGenerator):
    def generate(self, contexts, **settings):
        short = []
        for context in contexts:
            try:
                self._read(context, "context")
            except ImageError:
                raise
            except InvalidInputError:
                context = [segment for segment in context if isinstance(segment, Image)]
            short.append(context)
        return super().generate(short, **settings)


# -- image states


@caught_by("image_states_are_as_described")
class NoStatesAtAll(ToyStatesGenerator):
    """An empty list has lost its shape."""

    def image_states(self, images, *, batch_size=16):
        return super().image_states(images) if images else np.empty(0, np.float32)


@caught_by("state_stands_for_its_image")
class OneStateForAll(ToyStatesGenerator):
    """Puts the first state of a context in place of every other one."""

    def _read(self, context, name):
        states = [segment for segment in context if isinstance(segment, ImageState)]
        return super()._read([states[0] if isinstance(s, ImageState) else s for s in context], name)


@caught_by("generate_accepts_states")
class WritesWithoutLooking(ToyStatesGenerator):
    def generate(self, contexts, **settings):
        return super().generate(
            [[s for s in c if not isinstance(s, ImageState)] for c in contexts], **settings
        )


@caught_by("state_batch_size_changes_nothing")
class BatchNormalised(ToyStatesGenerator):
    """States depend on what else is in the batch."""

    def image_states(self, images, *, batch_size=16):
        states = super().image_states(images)
        for start in range(0, len(states), batch_size):
            states[start : start + batch_size] -= states[start : start + batch_size].mean(axis=0) / 4
        return states


@caught_by("foreign_state_is_refused")
class ReadsAnyState(ToyStatesGenerator):
    def _recall(self, state):
        return super()._recall(dataclasses.replace(state, fingerprint=self.fingerprint))


@caught_by("misshapen_state_is_refused")
class BroadcastsStates(ToyStatesGenerator):
    def _recall(self, state):
        return super()._recall(dataclasses.replace(state, values=np.resize(state.values, self.state_shape)))


@caught_by("broken_image_has_no_state")
class StatesOfNothing(ToyStatesGenerator):
    """A broken image becomes a black one."""

    def image_states(self, images, *, batch_size=16):
        found = []
        for image in images:
            try:
                found.append(super().image_states([image])[0])
            except ImageError:
                found.append(np.zeros(self.state_shape, np.float32))
        return np.array(found, np.float32).reshape(-1, *self.state_shape)
