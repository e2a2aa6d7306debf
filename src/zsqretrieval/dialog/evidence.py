"""The state of a dialog, and the evidence of an answer for each candidate.

answer --generator--> temper * log P(answer | question, image)                          float64 [n], nats
--encoder----> reread * scale * (cosine of the dialog with the answer - without)  float64 [n], nats
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.dialog.oracle import POLAR_ANSWERS, Gallery, Interview
from zsqretrieval.search.fusion import best_first
from zsqretrieval.tasks.english import is_polar, is_unknown, topic, verdict
from zsqretrieval.types import Hit


@dataclass(frozen=True, slots=True)
class Turn:
    """One completed turn: a question, None for a volunteered statement, and the answer or statement.

    Attributes:
        entropy_before: entropy of the posterior before the answer, in nats.
        entropy_after: the same after it; equal when the answer is "don't know".
        expected_gain: the expected fall of the entropy in nats; None where the policy computes none.
    """

    question: str | None
    answer: str
    entropy_before: float
    entropy_after: float
    expected_gain: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """The state of a dialog, as a policy gets it; the settings are those of the dialog.

    Attributes:
        text: the query that began the dialog.
        turns: the turns so far.
        hits: n candidates, all of them in the gallery.
        log_posterior: log P(image | dialog), float64 [n].
        interview: the generator's questions, answers and likelihoods.
    """

    text: str
    turns: Sequence[Turn]
    hits: Sequence[Hit]
    log_posterior: NDArray[np.float64]
    interview: Interview
    scale: float
    temper: float
    reread: float
    seed: int

    @property
    def gallery(self) -> Gallery:
        """The images."""
        return self.interview.gallery

    def best(self, n: int) -> tuple[list[Hit], NDArray[np.float64]]:
        """The n most probable candidates, most probable first, and their log-posterior [n]."""
        top = best_first(self.log_posterior)[:n]
        return [self.hits[i] for i in top], self.log_posterior[top]

    @property
    def asked(self) -> set[tuple[str, frozenset[str]]]:
        """The topics of all questions so far, answered or not."""
        return {topic(turn.question) for turn in self.turns if turn.question is not None}

    @property
    def known(self) -> str:
        """The query and all turns as one text, without "no" and "don't know"."""
        return ". ".join([self.text, *affirmed(self.turns)])


def answer_evidence(scene: Scene, question: str | None, answer: str) -> NDArray[np.float64]:
    """Evidence of an answer: temper * log P(answer | question, image) + :func:`encoder_evidence`.

    "Yes" and "no" to a yes/no question are normalised over the two; the rest of such an answer ("yes, on a
    boat") follows by the chain rule. Any other answer has the sum of the log-probabilities of its tokens. A
    volunteered statement, without a question, is scored as a search query.

    Returns:
        float64 [n] in nats; nan for an image that cannot be shown.

    Raises:
        InvalidInputError: the answer is too long for the generator.
        ZsqError: no likelihood is finite.
    """
    interview = scene.interview
    said = verdict(answer) if question is not None and is_polar(question) else None
    if question is None or said is None:
        likelihood = interview.log_text(f" {answer.strip()}", scene.hits, question=question)
    else:
        likelihood = interview.log_verdicts(question, scene.hits)[:, POLAR_ANSWERS.index(said.word)]
        if said.rest:
            words = interview.wording.yes if said.word == "yes" else interview.wording.no
            rest = interview.log_text(said.rest, scene.hits, question=question, said=words[0])
            likelihood = likelihood + rest
    tempered: NDArray[np.float64] = scene.temper * likelihood
    if not scene.reread:
        return tempered
    return tempered + encoder_evidence(scene, [(question, [answer])], scene.hits)[0][:, 0]


def encoder_evidence(
    scene: Scene, asked: Sequence[tuple[str | None, Sequence[str]]], hits: Sequence[Hit]
) -> list[NDArray[np.float64]]:
    """Evidence of answers by the encoder: reread * scale * (cosine of the dialog with the answer - without).

    Summed over all turns, the cosines of all texts but the first and the last cancel out, so the posterior
    depends on the whole dialog as one text, as in ChatIR. A "no" adds nothing, because the vector of "is
    there a dog? no" is near to images of dogs.

    Args:
        scene: the dialog before the answers.
        asked: questions, None for a volunteered statement, each with a answers.
        hits: n images.

    Returns:
        For each question float64 [n, a] in nats.
    """
    said = affirmed(scene.turns)
    texts = {
        (question, answer): spoken(question, answer)
        for question, answers in asked
        for answer in answers
        if not _denies(answer)
    }
    if not texts:
        return [np.zeros((len(hits), len(answers))) for _, answers in asked]
    before, _ = fitting(scene.gallery, scene.text, said)
    longest = max(texts.values(), key=len)
    _, left_out = fitting(scene.gallery, scene.text, [*said, longest])
    after = [_joined(scene.text, [*said[left_out:], one]) for one in texts.values()]
    cosine = scene.gallery.similarities([before, *after], hits)  # [1 + texts, n]
    added = dict(zip(texts, scene.reread * scene.scale * (cosine[1:] - cosine[0]), strict=True))
    nothing = np.zeros(len(hits))
    return [
        np.stack([added.get((question, answer), nothing) for answer in answers], axis=1)
        for question, answers in asked
    ]


def dialog_text(gallery: Gallery, text: str, turns: Sequence[Turn]) -> str:
    """The query and the turns as one text, without the oldest turns that the encoder would truncate."""
    return fitting(gallery, text, affirmed(turns))[0]


def affirmed(turns: Sequence[Turn]) -> list[str]:
    """Every turn as text, except those answered "no" or "don't know"."""
    return [
        spoken(turn.question, turn.answer)
        for turn in turns
        if not is_unknown(turn.answer) and not _denies(turn.answer)
    ]


def spoken(question: str | None, answer: str) -> str:
    """A turn as text."""
    return f"{question or ''} {answer}".strip()


def _denies(answer: str) -> bool:
    said = verdict(answer)
    return said is not None and said.word == "no"


def fitting(gallery: Gallery, text: str, said: Sequence[str]) -> tuple[str, int]:
    """A text that the encoder does not truncate, and the number of the oldest turns left out of it."""
    fitting, left_out = text.strip(), 0
    for left_out in range(max(len(said), 1)):
        fitting = _joined(text, said[left_out:])
        if not gallery.encoded_alike([fitting, f"{fitting} zebra"]):
            break
    return fitting, left_out


def _joined(text: str, said: Sequence[str]) -> str:
    return ", ".join([text.strip(), *said])
