"""Policies: which question a dialog asks next, and what an answer does to the belief.

    candidates, belief --question_pool--> questions worth asking --InformationGain--> the one that tells most

:class:`InformationGain` is the library's own; :class:`RandomQuestion` and :class:`CaptionDialog` are what it
is measured against. A policy of your own is any object with the two methods of :class:`Policy`.
``docs/dialog.md`` has the formulas and where they come from.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.dialog.oracle import POLAR_ANSWERS, Gallery, Interview
from zsqretrieval.dialog.posterior import information_gain, log_normalized
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.search.fusion import best_first
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
    verdict,
)
from zsqretrieval.types import Hit

__all__ = [
    "CandidateQuestion",
    "CaptionDialog",
    "InformationGain",
    "Policy",
    "Proposal",
    "RandomQuestion",
    "Scene",
    "Turn",
    "answer_evidence",
    "heard",
    "question_pool",
    "retold",
]

_Topic: TypeAlias = tuple[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Turn:
    """One step of a dialog that has been taken.

    Attributes:
        question: what was asked; None for what was told unasked.
        answer: what was said.
        entropy_before: of the belief, in nats.
        entropy_after: the same after the answer; equal when it said that one does not know.
        expected_gain: how much the entropy was expected to fall, in nats; None where nobody computed it.
    """

    question: str | None
    answer: str
    entropy_before: float
    entropy_after: float
    expected_gain: float | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """A question to be asked.

    Attributes:
        question: the question.
        expected_gain: how many nats its answer is expected to take off the entropy; None where nobody
            computed it.
        answers: what was considered as an answer, if anything.
    """

    question: str
    expected_gain: float | None = None
    answers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """What a policy knows of a dialog.

    Attributes:
        text: what was looked for.
        turns: what was said since.
        hits: n candidates, all of them still in the gallery.
        log_posterior: float64 [n], normalised.
        gallery: the images.
        interview: asks the generator about them.
        scale: factor from cosine similarity to log-probability.
        temper: exponent of the likelihood of an answer.
        reread: how much of what the encoder makes of an answer counts beside that.
        seed: of what is drawn.
    """

    text: str
    turns: Sequence[Turn]
    hits: Sequence[Hit]
    log_posterior: NDArray[np.float64]
    gallery: Gallery
    interview: Interview
    scale: float
    temper: float
    reread: float
    seed: int

    def best(self, n: int) -> NDArray[np.intp]:
        """Positions of the n likeliest candidates, likeliest first."""
        return best_first(self.log_posterior)[:n]

    @property
    def asked(self) -> set[_Topic]:
        """The topics of the questions that were asked, answered or not."""
        return {topic(turn.question) for turn in self.turns if turn.question is not None}

    @property
    def known(self) -> str:
        """All that was said of the image, as one text; what it is not, and not known, is left out."""
        return ". ".join([self.text, *_described(self.turns)])


def _described(turns: Sequence[Turn]) -> list[str]:
    """What was said of the image, turn by turn, without what it is not, and not known."""
    return [
        _spoken(turn.question, turn.answer)
        for turn in turns
        if not is_unknown(turn.answer) and not _denies(turn.answer)
    ]


def _spoken(question: str | None, answer: str) -> str:
    return f"{question or ''} {answer}".strip()


def _denies(answer: str) -> bool:
    said = verdict(answer)
    return said is not None and said.word == "no"


@runtime_checkable
class Policy(Protocol):
    """How to ask, and what to make of an answer."""

    def propose(self, scene: Scene) -> Proposal | None:
        """The next question; None when there is nothing left to ask."""
        ...

    def evidence(self, scene: Scene, question: str | None, answer: str) -> NDArray[np.float64]:
        """What an answer says of each candidate.

        Args:
            scene: the dialog before it.
            question: what was answered; None for what was told unasked.
            answer: not empty, and not that one does not know.

        Returns:
            float64 [n] in nats, added to the log-posterior, which is then normalised again; nan for a
            candidate that cannot be judged, whose probability then stays as it is.
        """
        ...


# --- what questions there are -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CandidateQuestion:
    """A question that might be asked.

    Attributes:
        question: the question.
        answerable: the probability that an answer to it is known: that of the images, among those asked for
            questions, which it was asked of, or whose caption names what it takes for granted; times
            (k + 1) / (n + 1), where n questions of its form were asked before and k answered.
    """

    question: str
    answerable: float


def question_pool(scene: Scene, images: int, size: int) -> list[CandidateQuestion]:
    """Questions that might tell the likeliest candidates apart, the most promising first.

    They come from three places: the generator, asked for questions about the likeliest images; the questions
    that are kept with these; and its captions of them, of which those that name a thing and those that do not
    make a question of yes or no ("is there a dog?"). The first two count by the probability of the images
    that they are asked of, the last by p (1 - p), where p is that of the images whose captions have the word;
    all by how often questions of their form were answered before. Open questions and those of yes or no take
    turns.

    What was asked before, and what is settled by what was said, is left out.

    Args:
        scene: the dialog.
        images: how many of the likeliest candidates are asked about.
        size: most questions.
    """
    top = scene.best(images)
    hits = [scene.hits[i] for i in top]
    mass = np.exp(log_normalized(scene.log_posterior[top]))
    captions = [caption or "" for caption in scene.interview.captions(hits)]
    stored = scene.gallery.stored_questions(hits)
    asking = [
        list(dict.fromkeys([*written, *map(tidy_question, kept)]))
        for written, kept in zip(scene.interview.questions(hits), stored, strict=True)
    ]

    rated: dict[_Topic, dict[str, float]] = {}  # what each spelling counts

    def enter(question: str, weight: float) -> None:
        spellings = rated.setdefault(topic(question), {})
        spellings[question] = spellings.get(question, 0.0) + weight

    for share, questions in zip(mass, asking, strict=True):
        for question in questions:
            enter(question, float(share))
    for question, naming in existence_questions(captions).items():
        p = float(mass[list(naming)].sum())
        enter(question, p * (1 - p))

    asked, known = scene.asked, scene.known
    weights = {
        max(spellings, key=lambda one: spellings[one]): sum(spellings.values())
        for about, spellings in rated.items()
        if about not in asked and about != ("polar", frozenset())
    }
    fresh = [question for question in weights if not is_settled(question, known)]
    fresh.sort(key=lambda one: -weights[one] * _answered(one, scene.turns))  # equal ones stay as they are
    split = [question for question in fresh if not is_polar(question)], [*filter(is_polar, fresh)]
    chosen = [one for one in chain.from_iterable(zip_longest(*split)) if one is not None][:size]
    topics = [set(map(topic, questions)) for questions in asking]
    seen = [content_words(caption) for caption in captions]
    return [
        CandidateQuestion(one, _answerable(one, mass, topics, seen) * _answered(one, scene.turns))
        for one in chosen
    ]


def _answerable(
    question: str,
    mass: NDArray[np.float64],
    topics: Sequence[set[_Topic]],
    seen: Sequence[frozenset[str]],
) -> float:
    granted = presupposed(question)
    can = [
        topic(question) in asked or all(names(known, thing) for thing in granted)
        for asked, known in zip(topics, seen, strict=True)
    ]
    return min(float(mass[can].sum()), 1.0)


def _answered(question: str, turns: Sequence[Turn]) -> float:
    """How often a question of this form was answered, supposing that one more had been."""
    alike = [turn for turn in turns if turn.question is not None and form(turn.question) == form(question)]
    known = sum(not is_unknown(turn.answer) for turn in alike)
    return (known + 1) / (len(alike) + 1)


def _closed_answers(scene: Scene, question: str, images: int, count: int) -> tuple[str, ...]:
    """The answers that are expected to a question: those of the likeliest images, by their probability."""
    if is_polar(question):
        return POLAR_ANSWERS
    top = scene.best(images)
    weights: dict[str, float] = {}
    said = scene.interview.answers(question, [scene.hits[i] for i in top])
    for answer, share in zip(said, np.exp(log_normalized(scene.log_posterior[top])), strict=True):
        if answer:
            weights[answer] = weights.get(answer, 0.0) + float(share)
    return tuple(sorted(weights, key=lambda answer: -weights[answer])[:count])


# --- what an answer says ----------------------------------------------------------------------------------


def answer_evidence(scene: Scene, question: str | None, answer: str) -> NDArray[np.float64]:
    """What an answer says of each candidate: temper * log P(answer | question, image), and :func:`heard`.

    To a question of yes or no, "yes" and "no" are normalised over the two; what else such an answer says
    ("yes, on a boat") continues it, so that it counts by the chain rule. Any other answer counts by the sum
    of the log-probabilities of its tokens. What is told unasked counts as what one might type to find the
    image.

    Args:
        scene: the dialog before the answer.
        question: what was answered; None for what was told unasked.
        answer: what was said.

    Returns:
        float64 [n], in nats; nan for an image that cannot be shown.

    Raises:
        InvalidInputError: the answer is too long for the generator.
        ZsqError: the generator's numbers are broken; names the image.
    """
    said = verdict(answer) if question is not None and is_polar(question) else None
    if question is None or said is None:
        evidence = scene.interview.log_text(f" {answer.strip()}", scene.hits, question=question)
    else:
        verdicts = scene.interview.log_verdicts(question, scene.hits)
        evidence = verdicts[:, POLAR_ANSWERS.index(said.word)]
        if said.rest:
            words = scene.interview.wording.yes if said.word == "yes" else scene.interview.wording.no
            evidence = evidence + scene.interview.log_text(
                said.rest, scene.hits, question=question, said=words[0]
            )
    told: NDArray[np.float64] = scene.temper * evidence
    return told + heard(scene, [(question, [answer])], scene.hits)[0][:, 0] if scene.reread else told


def heard(
    scene: Scene, asked: Sequence[tuple[str | None, Sequence[str]]], hits: Sequence[Hit]
) -> list[NDArray[np.float64]]:
    """What the encoder makes of answers: reread * scale * (cosine of the dialog with one - without it).

    Summed over the turns of a dialog, the cosines of all texts but the first and the last cancel out: the
    first stage has read the whole dialog then, as ChatIR's does. A "no" adds nothing, since to an encoder
    "is there a dog? no" is a text about a dog.

    Args:
        scene: the dialog before the answers.
        asked: questions, None for what is told unasked, each with a answers.
        hits: n images.

    Returns:
        For each question float64 [n, a], in nats.
    """
    said = _described(scene.turns)
    spoken = {
        (question, answer): _spoken(question, answer)
        for question, answers in asked
        for answer in answers
        if not _denies(answer)
    }
    if not spoken:
        return [np.zeros((len(hits), len(answers))) for _, answers in asked]
    before, _ = _readable(scene.gallery, scene.text, said)
    longest = max(spoken.values(), key=len)
    _, left_out = _readable(scene.gallery, scene.text, [*said, longest])
    after = [_joined(scene.text, [*said[left_out:], one]) for one in spoken.values()]
    cosine = scene.gallery.similarities([before, *after], hits)  # [1 + texts, n]
    added = dict(zip(spoken, scene.reread * scene.scale * (cosine[1:] - cosine[0]), strict=True))
    nothing = np.zeros(len(hits))
    return [
        np.stack([added.get((question, answer), nothing) for answer in answers], axis=1)
        for question, answers in asked
    ]


def retold(gallery: Gallery, text: str, turns: Sequence[Turn]) -> str:
    """A dialog as one text, as :func:`heard` gives it to the encoder.

    Args:
        gallery: whose encoder reads it; what it would cut off is left out, the oldest first.
        text: what was looked for.
        turns: what was said since.
    """
    return _readable(gallery, text, _described(turns))[0]


def _readable(gallery: Gallery, text: str, said: Sequence[str]) -> tuple[str, int]:
    """A text that the encoder does not cut, and how much of what was said is left out of it."""
    readable, left_out = text.strip(), 0
    for left_out in range(max(len(said), 1)):
        readable = _joined(text, said[left_out:])
        if not gallery.encoded_alike([readable, f"{readable} zebra"]):
            break
    return readable, left_out


def _joined(text: str, said: Sequence[str]) -> str:
    return ", ".join([text.strip(), *said])


# --- policies ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InformationGain:
    """Asks the question whose answer is expected to take most off the entropy of the belief.

    The expected gain of a question is the mutual information of its answer and the image
    (:func:`~zsqretrieval.dialog.posterior.information_gain`) over the likeliest candidates, with the answers that
    the generator gives for the likeliest of them, and P(answer | question, image) normalised over these;
    times the probability that there is an answer at all, since not knowing one gains nothing.

    Attributes:
        images: how many of the likeliest candidates are asked for questions and answers.
        top: how many of the likeliest candidates the gain is computed over.
        pool: how many questions are compared.
        answers: most answers of a question.
        least: a question that is expected to gain less, in nats, is not asked.

    Raises:
        InvalidInputError: a count is below 1, ``top`` or ``answers`` below 2, or ``least`` negative.
    """

    images: int = 5
    top: int = 16
    pool: int = 12
    answers: int = 4
    least: float = 0.0

    def __post_init__(self) -> None:
        _check_counts(self, images=1, top=2, pool=1, answers=2)
        if not self.least >= 0:
            raise InvalidInputError(f"least must be a number of nats, at least 0, not {self.least}")

    def propose(self, scene: Scene) -> Proposal | None:
        """The question of the pool that is expected to gain most."""
        top = scene.best(self.top)
        if len(top) < 2:
            return None
        hits, belief = [scene.hits[i] for i in top], scene.log_posterior[top]
        pool = question_pool(scene, self.images, self.pool)
        answers = [_closed_answers(scene, one.question, self.images, self.answers) for one in pool]
        fresh = [
            (one, some)
            for one, some in zip(pool, answers, strict=True)
            if some and (is_polar(one.question) or not is_settled(one.question, scene.known, some))
        ]
        likely = [scene.temper * scene.interview.log_answers(one.question, some, hits) for one, some in fresh]
        if scene.reread:
            by_text = heard(scene, [(one.question, some) for one, some in fresh], hits)
            likely = [said + read for said, read in zip(likely, by_text, strict=True)]
        best: tuple[tuple[float, float], Proposal] | None = None
        for (one, some), log_answers in zip(fresh, likely, strict=True):
            seen = ~np.isnan(log_answers).any(1)
            if not seen.any():
                continue
            told = information_gain(log_normalized(belief[seen]), log_normalized(log_answers[seen]))
            gain = one.answerable * told
            rank = gain, one.answerable
            if gain >= self.least and (best is None or rank > best[0]):
                best = rank, Proposal(one.question, gain, some)
        return None if best is None else best[1]

    def evidence(self, scene: Scene, question: str | None, answer: str) -> NDArray[np.float64]:
        """As :func:`answer_evidence`."""
        return answer_evidence(scene, question, answer)


@dataclass(frozen=True, slots=True)
class RandomQuestion:
    """Asks any question of the same pool as :class:`InformationGain`, and believes the answers alike.

    Attributes:
        images: how many of the likeliest candidates are asked for questions.
        pool: how many questions it draws from.

    Raises:
        InvalidInputError: one of them is below 1.
    """

    images: int = 5
    pool: int = 12

    def __post_init__(self) -> None:
        _check_counts(self, images=1, pool=1)

    def propose(self, scene: Scene) -> Proposal | None:
        """A question drawn by the seed, the text and the number of turns of the dialog."""
        pool = question_pool(scene, self.images, self.pool)
        drawn_by = [scene.seed, zlib.crc32(scene.text.encode(errors="surrogatepass")), len(scene.turns)]
        for i in np.random.default_rng(drawn_by).permutation(len(pool)):
            question = pool[i].question
            answers = _closed_answers(scene, question, self.images, self.images)
            if is_polar(question) or not is_settled(question, scene.known, answers):
                return Proposal(question, answers=answers)
        return None

    def evidence(self, scene: Scene, question: str | None, answer: str) -> NDArray[np.float64]:
        """As :func:`answer_evidence`."""
        return answer_evidence(scene, question, answer)


@dataclass(frozen=True, slots=True)
class CaptionDialog:
    """The way of ChatIR (Levy et al., NeurIPS 2023): the dialog becomes one long caption.

    It asks what the generator is likeliest to ask about the likeliest image, whatever that tells. The encoder
    reads the text, the questions and the answers as one text, and its cosine similarity, times the scale, is
    the log-posterior: the generator has no say in it. A text that the encoder would cut (CLIP reads 77
    tokens) loses its oldest questions and answers instead, with a RuntimeWarning; the text that began the
    dialog and the last answer stay.

    Attributes:
        images: how many of the likeliest candidates are asked for a question before there is none left.

    Raises:
        InvalidInputError: ``images`` is below 1.
    """

    images: int = 5

    def __post_init__(self) -> None:
        _check_counts(self, images=1)

    def propose(self, scene: Scene) -> Proposal | None:
        """The first question about the likeliest image that was not asked before."""
        asked = scene.asked
        for i in scene.best(self.images):
            for question in scene.interview.questions([scene.hits[i]])[0]:
                if topic(question) not in asked:
                    return Proposal(question)
        return None

    def evidence(self, scene: Scene, question: str | None, answer: str) -> NDArray[np.float64]:
        """What this answer adds: scale * (cosine of the text with it - cosine of the text without)."""
        said = [_spoken(turn.question, turn.answer) for turn in scene.turns if not is_unknown(turn.answer)]
        said.append(_spoken(question, answer))
        before, _ = _readable(scene.gallery, scene.text, said[:-1])
        after, left_out = _readable(scene.gallery, scene.text, said)
        if left_out:
            warnings.warn(
                f"the encoder does not read all of the dialog; the first {left_out} of {len(said)} turns are "
                "left out",
                RuntimeWarning,
                stacklevel=2,
            )
        cosine = scene.gallery.similarities([before, after], scene.hits)  # [2, n]
        added: NDArray[np.float64] = scene.scale * (cosine[1] - cosine[0])
        return added


def _check_counts(policy: object, **least: int) -> None:
    for name, bound in least.items():
        value = getattr(policy, name)
        if not isinstance(value, int) or value < bound:
            raise InvalidInputError(
                f"{name} of {type(policy).__name__} must be a whole number of at least {bound}, not {value!r}"
            )
