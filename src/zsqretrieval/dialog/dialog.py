"""Search with clarifying questions: a posterior over candidates, updated by every answer.

    text --first stage--> candidates, log prior [n] --policy--> question --user--> answer
        ^                                                                            |
        +-- dialog as one text: more candidates, encoder's score --------------------+
        +-- generator: log P(answer | question, image) -------------------------------+

log P(image | dialog) = log-softmax(scale * cosine(dialog, image) + sum_t temper * log P(answer_t |
question_t, image)), with ``reread`` as the weight of the turns in the encoder's text.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from zsqretrieval._util.checks import check_amounts, check_counts, check_shares, check_text
from zsqretrieval.dialog.evidence import Scene, Turn, dialog_text
from zsqretrieval.dialog.oracle import Gallery, Interview, Memory, Wording
from zsqretrieval.dialog.policies import InformationGain, Policy, Proposal, entropy
from zsqretrieval.errors import AlbumError, InvalidInputError, MismatchError
from zsqretrieval.search.fusion import FIRST_STAGE, best_first
from zsqretrieval.search.ranking import Ranking
from zsqretrieval.tasks.english import is_unknown, tidy
from zsqretrieval.types import Hit, Progress

_QUOTED = 60  # characters of an answer in an error

Stopped = Literal["sure", "budget", "nothing to ask", "no candidates"]
"""Why a dialog ends: one image is probable enough; the budget of questions is spent; no question is left; or
all candidates were removed from the album."""


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """A turn, its evidence [n], the answered proposal, and the number of candidates before the turn."""

    turn: Turn
    evidence: NDArray[np.float64]
    proposal: Proposal | None
    candidates: int


@final
class Dialog:
    """A search for one image by clarifying questions, as ``Retriever.dialog`` begins it.

    The caller shows the question and brings the answer. A pickled dialog keeps its ranking, entropy, history
    and ``undo``, but not the gallery; after :meth:`attach` it asks again. Images that are removed from the
    gallery are no candidates any more, and the others share their probability. Not thread-safe.

    Args:
        gallery: the images, such as ``retriever.gallery()``.
        text: the query.
        scale: factor from cosine similarity to log-probability, finite, >= 0: the inverse temperature of the
            first stage, which depends on the encoder.
        temper: exponent of P(answer | question, image), finite, > 0; below 1 for an overconfident generator.
        reread: weight of the encoder's score of the answers, finite, >= 0; at 0 only the generator scores
            them. Above 0 every answer repeats the first stage with the dialog as one text; new images become
            candidates and are scored on all previous answers.
        candidates: number of first-stage candidates, >= 1.
        policy: chooses questions and interprets answers.
        budget: maximum number of questions, >= 0.
        sure: the probability of one image at which the dialog ends, in (0, 1]; 1 disables this.
        wording: the prompts.
        seed: seed of random choices.
        batch_size: contexts that the generator computes together.
        memory: cache of the generator's output, for dialogs over one gallery, generator and wording.
        progress: called between batches of the generator; may raise to stop.

    Raises:
        InvalidInputError: the text is empty, the gallery is empty, or a setting is out of range.
    """

    def __init__(
        self,
        gallery: Gallery,
        text: str,
        *,
        scale: float,
        temper: float,
        reread: float,
        candidates: int = 100,
        policy: Policy = InformationGain(),  # noqa: B008  # frozen
        budget: int = 10,
        sure: float = 0.9,
        wording: Wording = Wording(),  # noqa: B008  # frozen
        seed: int = 0,
        batch_size: int = 64,
        memory: Memory | None = None,
        progress: Progress | None = None,
    ) -> None:
        _check_text(text, "the query")
        check_counts(candidates=candidates, batch_size=batch_size)
        check_counts(0, budget=budget, seed=seed)
        check_shares(above_zero=True, sure=sure)
        check_amounts(scale=scale, temper=temper, reread=reread)
        if not temper:
            raise InvalidInputError("temper must be above 0: at 0 no answer would count")
        if isinstance(policy, type) or not isinstance(policy, Policy):
            raise InvalidInputError(f"policy must be an object such as InformationGain(), not {policy!r}")
        _check_gallery(gallery)
        self._hits = tuple(gallery.first_stage(text, candidates))
        if not self._hits:
            raise InvalidInputError("the album is empty; add images before a dialog")
        self.text, self.policy, self.budget, self.sure = text, policy, budget, sure
        self.scale, self.temper, self.reread = scale, temper, reread
        self._wording, self._seed, self._batch_size, self._candidates = wording, seed, batch_size, candidates
        self._present = np.ones(len(self._hits), np.bool_)
        self._steps: list[_Step] = []
        self._proposal: Proposal | None = None
        self._proposed = False  # whether `_proposal` is up to date
        self._shown: Proposal | None = None  # the proposal that the caller has seen; an answer belongs to it
        self._connect(gallery, memory, progress)

    # --- the gallery --------------------------------------------------------------------------------------

    def attach(self, gallery: Gallery) -> None:
        """Give an unpickled dialog the gallery of its album.

        Raises:
            InvalidInputError: it is no gallery.
            MismatchError: it has none of the candidates. Nothing has changed.
        """
        _check_gallery(gallery)
        if not gallery.present(self._hits).any():
            raise MismatchError(
                f"none of the {len(self._hits)} candidates of the dialog {self.text!r} is in this album; "
                "attach the album that it began with, or begin another dialog"
            )
        self._connect(gallery)

    def _connect(
        self, gallery: Gallery, memory: Memory | None = None, progress: Progress | None = None
    ) -> None:
        wording, seed, batch_size = self._wording, self._seed, self._batch_size
        self._interview: Interview | None = Interview(
            gallery, wording=wording, memory=memory, seed=seed, batch_size=batch_size, progress=progress
        )

    def __getstate__(self) -> dict[str, Any]:
        with contextlib.suppress(AlbumError):  # a closed album
            self._update_present()
        return {**self.__dict__, "_interview": None}

    def _update_present(self) -> None:
        """Drop removed images; a proposal made with them is no longer up to date."""
        if self._interview is not None:
            present = self._present & self._interview.gallery.present(self._hits)
            if not np.array_equal(present, self._present):
                self._present, self._proposal, self._proposed = present, None, False

    # --- the posterior ------------------------------------------------------------------------------------

    @property
    def ranking(self) -> Ranking:
        """The candidates, most probable first; of equal ones, the first of the first stage.

        ``score``, and ``scores["dialog"]``, is log P(image | dialog) in nats, which does not underflow. An
        image that an answer makes impossible has neither.
        """
        log_p = self._log_posterior()
        hits = [
            replace(hit, score=one, scores={**hit.scores, "dialog": one})
            if math.isfinite(one)
            else replace(hit, score=None)
            for hit, one in zip(self._hits, log_p.tolist(), strict=True)
        ]
        return Ranking(self.text, tuple(hits[i] for i in best_first(log_p) if self._present[i]))

    @property
    def probabilities(self) -> Mapping[str, float]:
        """P(image | dialog) by id, most probable first; the sum is 1."""
        return {hit.id: 0.0 if hit.score is None else math.exp(hit.score) for hit in self.ranking}

    @property
    def entropy(self) -> float:
        """Entropy of the posterior in nats: 0 for one certain image, log n for n equally probable ones."""
        return entropy(self._log_posterior())

    @property
    def history(self) -> tuple[Turn, ...]:
        """The turns, in order."""
        return tuple(step.turn for step in self._steps)

    @property
    def _log_prior(self) -> NDArray[np.float64]:
        return self.scale * np.array([hit.score for hit in self._hits], np.float64)

    def _log_posterior(self) -> NDArray[np.float64]:
        """Log P(image | dialog) [n]; -inf for removed images."""
        self._update_present()
        if not self._present.any():
            return np.full(len(self._hits), -np.inf)
        weights = sum((step.evidence for step in self._steps), self._log_prior)
        log_p: NDArray[np.float64] = log_softmax(np.where(self._present, weights, -np.inf))
        return log_p

    # --- questions ----------------------------------------------------------------------------------------

    @property
    def proposal(self) -> Proposal | None:
        """The next question with its expected gain; None when the dialog has ended.

        The first access runs the generator.

        Raises:
            InvalidInputError: the dialog was unpickled and has no gallery, or the generator cannot write.
            ZsqError: no likelihood is finite.
        """
        self._shown = self._propose()
        return self._shown

    @property
    def question(self) -> str | None:
        """The next question, as :attr:`proposal`; None when the dialog has ended."""
        proposal = self.proposal
        return None if proposal is None else proposal.question

    @property
    def stopped(self) -> Stopped | None:
        """Why the dialog has ended; None while there is a question. Does not count as showing the question.

        Raises as :attr:`proposal`, which this may have to compute.
        """
        return self._ended() or ("nothing to ask" if self._propose() is None else None)

    def _propose(self) -> Proposal | None:
        if self._ended() is not None:
            return None
        if not self._proposed:
            self._proposal = self.policy.propose(self._scene())
            self._proposed = True
        return self._proposal

    def _ended(self) -> Literal["sure", "budget", "no candidates"] | None:
        log_p = self._log_posterior()
        if not self._present.any():
            return "no candidates"
        if self.sure < 1 and math.exp(log_p.max()) >= self.sure:
            return "sure"
        return "budget" if sum(step.proposal is not None for step in self._steps) >= self.budget else None

    def _scene(self) -> Scene:
        log_p = self._log_posterior()
        here = np.flatnonzero(self._present)
        return self._scene_of(self.history, [self._hits[i] for i in here], log_p[here])

    def _scene_of(self, turns: Sequence[Turn], hits: Sequence[Hit], log_p: NDArray[np.float64]) -> Scene:
        if self._interview is None:
            raise InvalidInputError(
                "this dialog was unpickled and has no album; call dialog.attach(retriever.gallery())"
            )
        return Scene(
            self.text, turns, hits, log_p, self._interview, self.scale, self.temper, self.reread, self._seed
        )

    # --- answers ------------------------------------------------------------------------------------------

    def answer(self, text: str) -> None:
        """Answer :attr:`question` as it was last shown, even if images were removed since.

        "Don't know" leaves the posterior as it is. "Yes" and "no" may begin a longer answer.

        Raises:
            InvalidInputError: the dialog has ended; the answer is empty or too long for the generator; or as
                :attr:`proposal`. Nothing has changed.
            ZsqError: no likelihood is finite. Nothing has changed.
        """
        self._check_statement(text, "an answer")
        proposal = self._shown or self.proposal
        if proposal is None:
            raise InvalidInputError(
                f"the dialog has ended ({self.stopped}) and has no question to answer; tell() takes "
                "statements without a question"
            )
        self._take(text, proposal)

    def tell(self, text: str) -> None:
        """Add a volunteered statement, such as "it was taken at night", at no cost to the budget.

        Raises as :meth:`answer`, but a dialog that has ended takes statements.
        """
        self._check_statement(text, "a statement")
        self._take(text, None)

    def undo(self) -> Turn:
        """Take back the last answer or statement and return its turn; its question is open again.

        Raises:
            InvalidInputError: there is no turn.
        """
        if not self._steps:
            raise InvalidInputError("there is no answer yet, so there is nothing to undo")
        step = self._steps.pop()
        n = step.candidates
        self._hits, self._present = self._hits[:n], self._present[:n]
        self._steps = [replace(one, evidence=one.evidence[:n]) for one in self._steps]
        self._proposal, self._proposed = step.proposal, step.proposal is not None
        self._shown = step.proposal
        return step.turn

    def _check_statement(self, text: object, what: str) -> None:
        _check_text(text, what)
        self._update_present()
        if not self._present.any():
            raise InvalidInputError("all candidates were removed from the album; begin another dialog")

    def _take(self, said: str, proposal: Proposal | None) -> None:
        question, gain = (None, None) if proposal is None else (proposal.question, proposal.expected_gain)
        turn = Turn(question, said, self.entropy, self.entropy, gain)
        step = _Step(turn, np.zeros(len(self._hits)), proposal, len(self._hits))
        hits: tuple[Hit, ...] = ()
        evidence: list[NDArray[np.float64]] = []
        if not is_unknown(said):
            scene = self._scene()
            try:
                step.evidence[self._present] = _complete(self.policy, scene, question, said)
                if self.reread:
                    hits, evidence = self._new_candidates(scene.gallery, [*self._steps, step])
            except InvalidInputError as error:
                start = said if len(said) <= _QUOTED else f"{said[:_QUOTED]}..."
                raise InvalidInputError(
                    f"the answer {start!r} was not taken; nothing has changed: {error}"
                ) from error
        self._steps.append(step)
        if hits:  # append the new candidates
            self._hits += hits
            self._present = np.append(self._present, np.ones(len(hits), np.bool_))
            self._steps = [
                replace(one, evidence=np.append(one.evidence, theirs))
                for one, theirs in zip(self._steps, evidence, strict=True)
            ]
        turn = replace(turn, entropy_after=self.entropy)
        self._steps[-1] = replace(self._steps[-1], turn=turn)
        self._proposal, self._proposed, self._shown = None, False, None

    def _new_candidates(
        self, gallery: Gallery, steps: Sequence[_Step]
    ) -> tuple[tuple[Hit, ...], list[NDArray[np.float64]]]:
        """New images [m] that the whole dialog finds, and for each step their evidence [m].

        Neither where there are none, or all are impossible.
        """
        known = {hit.key for hit in self._hits}
        turns = [step.turn for step in steps]
        found = gallery.first_stage(dialog_text(gallery, self.text, turns), self._candidates)
        found = [hit for hit in found if hit.key not in known]
        if not found:
            return (), []
        (cosine,) = gallery.similarities([self.text], found)
        hits = tuple(
            replace(hit, score=float(one), scores={**hit.scores, FIRST_STAGE: float(one)})
            for hit, one in zip(found, cosine, strict=True)
            if not math.isnan(one)  # removed since
        )
        log_p = self.scale * np.array([hit.score for hit in hits], np.float64)  # [m], not normalised
        others = np.where(self._present, self._log_prior, -np.inf)  # [n]
        evidence: list[NDArray[np.float64]] = []
        for step in steps:
            new = np.zeros(len(hits))
            if hits and not is_unknown(step.turn.answer):
                scene = self._scene_of(turns[: len(evidence)], hits, log_softmax(log_p))
                new = _evidence(self.policy, scene, step.turn.question, step.turn.answer)
                new = np.where(np.isnan(new), _average(others, step.evidence), new)
            evidence.append(new)
            log_p, others = log_p + new, others + step.evidence
            if not np.isfinite(log_p).any():
                return (), []
        return hits, evidence

    def __repr__(self) -> str:
        state = f"{len(self._steps)} turns, {len(self._hits)} candidates, entropy {self.entropy:.2f} nats"
        return f"Dialog({self.text!r}, {type(self.policy).__name__}, {state})"


def _evidence(policy: Policy, scene: Scene, question: str | None, answer: str) -> NDArray[np.float64]:
    """The policy's evidence [n], checked; nan where it cannot score a candidate."""
    found = np.asarray(policy.evidence(scene, question, answer), np.float64)
    if found.shape != (len(scene.hits),) or (found == np.inf).any():
        raise InvalidInputError(
            f"the policy must return one number below infinity for each of {len(scene.hits)} candidates, not "
            f"{found!r}"
        )
    return found


def _complete(policy: Policy, scene: Scene, question: str | None, answer: str) -> NDArray[np.float64]:
    """The policy's evidence [n]; where it has none, the average, which does not change the probability."""
    found = _evidence(policy, scene, question, answer)
    unseen = np.isnan(found)
    if unseen.all():
        return np.zeros_like(found)
    log_p = scene.log_posterior[~unseen]
    if not np.isfinite(log_p + found[~unseen]).any():
        raise InvalidInputError("the answer makes all candidates impossible")
    return np.where(unseen, _average(log_p, found[~unseen]), found)


def _average(log_p: NDArray[np.float64], evidence: NDArray[np.float64]) -> float:
    """The average evidence log sum_i P(i) P(answer | i)."""
    return float(np.logaddexp.reduce(log_p + evidence) - np.logaddexp.reduce(log_p))


def _check_gallery(gallery: object) -> None:
    if not isinstance(gallery, Gallery):
        raise InvalidInputError(f"a dialog needs a gallery, such as retriever.gallery(), not {gallery!r}")


def _check_text(text: object, what: str) -> None:
    check_text(text, what)
    if not tidy(str(text)):
        raise InvalidInputError(f"{what} must have letters or digits, not {text!r}")
