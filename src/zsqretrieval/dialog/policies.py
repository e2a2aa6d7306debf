"""Policies: choose the next clarifying question.

    posterior --question_pool--> questions --InformationGain--> the question with the most expected gain

:class:`InformationGain` is the default; :class:`RandomQuestion` and :class:`CaptionDialog` are the baselines.
``docs/dialog.md`` has the formulas and their sources.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, log_softmax

from zsqretrieval._util.checks import check_amounts, check_counts
from zsqretrieval.dialog.evidence import Scene, Turn, answer_evidence, encoder_evidence, fitting, spoken
from zsqretrieval.dialog.oracle import POLAR_ANSWERS
from zsqretrieval.tasks.english import (
    content_words,
    existence_questions,
    form,
    is_polar,
    is_settled,
    is_unknown,
    names,
    presupposed,
    tidy_question,
    topic,
)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A clarifying question.

    Attributes:
        question: the question.
        expected_gain: the expected fall of the entropy in nats; None where the policy computes none.
        answers: the answers that the policy considered.
    """

    question: str
    expected_gain: float | None = None
    answers: tuple[str, ...] = ()


@runtime_checkable
class Policy(Protocol):
    """Chooses questions and interprets answers; any object with these two methods."""

    def propose(self, scene: Scene) -> Proposal | None:
        """The next question; None when there is none left."""
        ...

    def evidence(self, scene: Scene, question: str | None, answer: str) -> NDArray[np.float64]:
        """The evidence of an answer to a question, None for a volunteered statement, for each candidate.

        The scene is the dialog before the answer, which is not empty, and not "don't know".

        Returns:
            float64 [n] in nats, to be added to the log-posterior, which is then normalised; nan for a
            candidate that cannot be scored, whose probability then does not change.
        """
        ...


# --- entropy and information gain -------------------------------------------------------------------------


def entropy(log_p: NDArray[np.float64]) -> float:
    """Shannon entropy -sum p log p in nats of log-probabilities [n]: 0 for one certain candidate or none."""
    return float(entr(np.exp(log_p)).sum()) + 0.0  # no -0.0


def information_gain(log_p: NDArray[np.float64], log_answers: NDArray[np.float64]) -> float:
    """Expected fall of the entropy by the answer to a question: the mutual information of answer and image.

    H(answer) - H(answer | image) = sum_i P(i) sum_a P(a | i) log (P(a | i) / P(a)): Lindley's measure of an
    experiment (Annals of Mathematical Statistics, 1956), in nats; at least 0, at most the entropy of the
    images and at most log a.

    Args:
        log_p: log P(image) [n], normalised.
        log_answers: log P(answer | image) [n, a], each row normalised.
    """
    joint = log_p[:, None] + log_answers  # [n, a]
    marginal = np.logaddexp.reduce(joint, axis=0)  # [a]
    possible = np.isfinite(joint)
    ratio = np.subtract(log_answers, marginal, out=np.zeros_like(joint), where=possible)
    return max(float((np.exp(joint) * ratio)[possible].sum()), 0.0)


# --- candidate questions ----------------------------------------------------------------------------------


def question_pool(scene: Scene, images: int, size: int) -> dict[str, float]:
    """At most ``size`` questions that may tell the most probable candidates apart, most promising first.

    Sources and weights: the generator's questions about the most probable images and the retained questions
    of these images, by the probability of the images; and yes/no questions about things that some of the
    generator's captions name and others do not ("is there a dog?"), by p (1 - p), where p is the probability
    of the images whose captions contain the word. Every weight is multiplied by (k + 1) / (n + 1), the share
    of earlier questions of the same form that were answered. Open and yes/no questions alternate. Questions
    that were asked before, or that the dialog has already settled, are left out.

    Returns:
        By question the probability that the user knows an answer: that of the images that were asked the
        question or whose caption names the things that it presupposes, times the share above.
    """
    hits, log_p = scene.best(images)
    mass = np.exp(log_softmax(log_p))
    captions = [caption or "" for caption in scene.interview.captions(hits)]
    stored = scene.gallery.stored_questions(hits)
    by_image = [
        list(dict.fromkeys([*written, *map(tidy_question, retained)]))
        for written, retained in zip(scene.interview.questions(hits), stored, strict=True)
    ]

    weights: dict[tuple[str, frozenset[str]], dict[str, float]] = {}  # topic -> spelling -> weight

    def add(question: str, weight: float) -> None:
        spellings = weights.setdefault(topic(question), {})
        spellings[question] = spellings.get(question, 0.0) + weight

    for share, questions in zip(mass, by_image, strict=True):
        for question in questions:
            add(question, float(share))
    for question, naming in existence_questions(captions).items():
        p = float(mass[list(naming)].sum())
        add(question, p * (1 - p))

    excluded, known = {*scene.asked, ("polar", frozenset())}, scene.known
    totals = {
        max(spellings, key=lambda one: spellings[one]): sum(spellings.values())
        for about, spellings in weights.items()
        if about not in excluded
    }
    fresh = [question for question in totals if not is_settled(question, known)]
    fresh.sort(key=lambda one: -totals[one] * _answered_share(one, scene.turns))  # stable
    split = [question for question in fresh if not is_polar(question)], [*filter(is_polar, fresh)]
    chosen = [one for one in chain.from_iterable(zip_longest(*split)) if one is not None][:size]

    topics = [set(map(topic, questions)) for questions in by_image]
    named = [content_words(caption) for caption in captions]

    def answerable(question: str) -> float:
        able = [
            topic(question) in asked or all(names(things, thing) for thing in presupposed(question))
            for asked, things in zip(topics, named, strict=True)
        ]
        return min(float(mass[able].sum()), 1.0) * _answered_share(question, scene.turns)

    return {question: answerable(question) for question in chosen}


def _answered_share(question: str, turns: Sequence[Turn]) -> float:
    """(k + 1) / (n + 1), where k of the n earlier questions of this form were answered."""
    alike = [turn for turn in turns if turn.question is not None and form(turn.question) == form(question)]
    answered = sum(not is_unknown(turn.answer) for turn in alike)
    return (answered + 1) / (len(alike) + 1)


def _expected_answers(
    scene: Scene, questions: Iterable[str], images: int, count: int
) -> dict[str, tuple[str, ...]]:
    """Yes and no, or for an open question the generator's answers for the most probable images."""
    hits, log_p = scene.best(images)
    mass = np.exp(log_softmax(log_p))
    expected: dict[str, tuple[str, ...]] = dict.fromkeys(questions, POLAR_ANSWERS)
    open_ones = [question for question in expected if not is_polar(question)]
    found = scene.interview.answers(open_ones, hits)
    for question, answers in zip(open_ones, found, strict=True):
        weights: dict[str, float] = {}  # answer -> probability of the images that give it
        for answer, share in zip(answers, mass, strict=True):
            if answer:
                weights[answer] = weights.get(answer, 0.0) + float(share)
        expected[question] = tuple(sorted(weights, key=lambda answer: -weights[answer])[:count])
    return expected


# --- policies ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InformationGain:
    """Asks the question with the highest expected information gain.

    The gain of a question is :func:`information_gain` over the most probable candidates, for the generator's
    answers about the most probable of them, with P(answer | question, image) normalised over these answers;
    times the probability that the user knows an answer.

    Attributes:
        images: number of the most probable candidates that supply questions and answers.
        top: number of the most probable candidates over which the gain is computed.
        pool: number of questions compared.
        answers: maximum number of answers to a question.
        least: minimum gain in nats of a question that is asked.

    Raises:
        InvalidInputError: a count is below 1, ``top`` or ``answers`` below 2, or ``least`` negative.
    """

    images: int = 5
    top: int = 16
    pool: int = 12
    answers: int = 4
    least: float = 0.0

    def __post_init__(self) -> None:
        check_counts(images=self.images, pool=self.pool)
        check_counts(2, top=self.top, answers=self.answers)
        check_amounts(least=self.least)

    def propose(self, scene: Scene) -> Proposal | None:
        """The question of the pool with the highest expected gain; of equal ones the most answerable."""
        hits, log_p = scene.best(self.top)
        if len(hits) < 2:
            return None
        pool = question_pool(scene, self.images, self.pool)
        expected = _expected_answers(scene, pool, self.images, self.answers)
        asked = [
            (question, answers)
            for question, answers in expected.items()
            if answers and (is_polar(question) or not is_settled(question, scene.known, answers))
        ]
        likely = [scene.temper * found for found in scene.interview.log_answers(asked, hits)]  # each [top, a]
        if scene.reread:
            by_text = encoder_evidence(scene, asked, hits)
            likely = [found + read for found, read in zip(likely, by_text, strict=True)]
        ranked: list[tuple[tuple[float, float], Proposal]] = []
        for (question, answers), log_answers in zip(asked, likely, strict=True):
            seen = ~np.isnan(log_answers).any(1)
            if seen.any():
                told = information_gain(log_softmax(log_p[seen]), log_softmax(log_answers[seen], axis=-1))
                gain = pool[question] * told
                ranked.append(((gain, pool[question]), Proposal(question, gain, answers)))
        (gain, _), best = max(ranked, key=lambda one: one[0], default=((-np.inf, 0.0), None))
        return best if gain >= self.least else None

    evidence = staticmethod(answer_evidence)


@dataclass(frozen=True, slots=True)
class RandomQuestion:
    """Asks a random question of the same pool as :class:`InformationGain`, and interprets answers alike.

    The ``images`` most probable candidates supply a pool of ``pool`` questions.

    Raises:
        InvalidInputError: one of them is below 1.
    """

    images: int = 5
    pool: int = 12

    def __post_init__(self) -> None:
        check_counts(images=self.images, pool=self.pool)

    def propose(self, scene: Scene) -> Proposal | None:
        """A question drawn with the seed, the query and the number of turns."""
        pool = list(question_pool(scene, self.images, self.pool))
        drawn_by = [scene.seed, zlib.crc32(scene.text.encode(errors="surrogatepass")), len(scene.turns)]
        for i in np.random.default_rng(drawn_by).permutation(len(pool)):
            ((question, answers),) = _expected_answers(scene, [pool[i]], self.images, self.images).items()
            if is_polar(question) or not is_settled(question, scene.known, answers):
                return Proposal(question, answers=answers)
        return None

    evidence = staticmethod(answer_evidence)


@dataclass(frozen=True, slots=True)
class CaptionDialog:
    """The strategy of ChatIR (Levy et al., NeurIPS 2023): the dialog becomes one long caption.

    It asks the generator's likeliest question about the most probable image; the ``images`` most probable may
    supply it. The log-posterior is scale times the cosine similarity of the whole dialog as one text; the
    generator has no part in it. Where the encoder would truncate this text (CLIP reads 77 tokens), the oldest
    turns are left out, with a RuntimeWarning; the query and the last answer stay.

    Raises:
        InvalidInputError: ``images`` is below 1.
    """

    images: int = 5

    def __post_init__(self) -> None:
        check_counts(images=self.images)

    def propose(self, scene: Scene) -> Proposal | None:
        """The first question about the most probable image that was not asked before."""
        for hit in scene.best(self.images)[0]:
            for question in scene.interview.questions([hit])[0]:
                if topic(question) not in scene.asked:
                    return Proposal(question)
        return None

    def evidence(self, scene: Scene, question: str | None, answer: str) -> NDArray[np.float64]:
        """Scale * (cosine of the text with this answer - cosine of the text without), float64 [n]."""
        said = [spoken(turn.question, turn.answer) for turn in scene.turns if not is_unknown(turn.answer)]
        said.append(spoken(question, answer))
        before, _ = fitting(scene.gallery, scene.text, said[:-1])
        after, left_out = fitting(scene.gallery, scene.text, said)
        if left_out:
            warnings.warn(
                f"the dialog is too long for the encoder; the first {left_out} of {len(said)} turns are left "
                "out",
                RuntimeWarning,
                stacklevel=2,
            )
        cosine = scene.gallery.similarities([before, after], scene.hits)  # [2, n]
        added: NDArray[np.float64] = scene.scale * (cosine[1] - cosine[0])
        return added
