"""A search that asks back: a belief over candidates, questions that narrow it, answers that move it.

    text --first stage--> candidates, log P(image) --policy--> question --person--> answer
        ^                   ^                                                         |
        |                   +- the encoder reads it, log P(answer | question, image) -+
        +- all that was said: more candidates ----------------------------------------+

log P(image | dialog) = log-softmax(scale * cosine(dialog, image) + sum_t temper * log P(answer_t |
question_t, image)), where the encoder reads the dialog as one text, as far as ``reread`` says. A dialog is
state: it neither prints nor reads; whoever shows the question brings the answer.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.checks import check_amounts, check_counts, check_text
from zsqretrieval.dialog.oracle import Gallery, Interview, Memory, Wording
from zsqretrieval.dialog.policies import InformationGain, Policy, Proposal, Scene, Turn, retold
from zsqretrieval.dialog.posterior import entropy, log_normalized
from zsqretrieval.errors import AlbumError, InvalidInputError, MismatchError
from zsqretrieval.search.fusion import FIRST_STAGE, best_first
from zsqretrieval.tasks.english import is_unknown, tidy
from zsqretrieval.types import Hit, Ranking

__all__ = ["SCALE", "TEMPER", "Dialog", "Stopped"]

SCALE = 30.0
"""Factor from cosine similarity to log-probability, unless a dialog is given another one (docs/dialog.md)."""

TEMPER = 0.6
"""Exponent of the likelihood of an answer, unless a dialog is given another one (docs/dialog.md)."""

_QUOTED = 60  # characters of an answer in an error

Stopped = Literal["sure", "budget", "nothing to ask", "no candidates"]
"""Why a dialog asks no more: one image is likely enough; as many questions were answered as may be; there is
no question left; or all candidates were removed from the album."""


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """A turn, what it said of each candidate [n], what it answered, and how many candidates were before."""

    turn: Turn
    evidence: NDArray[np.float64]
    proposal: Proposal | None
    candidates: int


@dataclass(frozen=True, slots=True, eq=False)
class _Newcomers:
    """m further candidates, with what the first stage and every turn [m] says of them."""

    hits: tuple[Hit, ...]
    log_prior: NDArray[np.float64]
    evidence: tuple[NDArray[np.float64], ...]


@final
class Dialog:
    """Looks for one image by asking about it; made by :meth:`zsqretrieval.retriever.Retriever.dialog`.

    Pickled, it keeps all that was said and believed but not the gallery: it still tells its ranking, entropy
    and history and can undo, and asks again after :meth:`attach`. Images that are removed from the gallery
    meanwhile drop out, and the others share their probability. For one thread at a time.

    Args:
        gallery: the images, such as ``retriever.gallery``.
        text: what is looked for.
        candidates: how many images of the first stage are considered, >= 1; with ``reread``, as many are
            looked for again by all that was said after every answer, and those that are new join, judged by
            every answer so far.
        policy: what is asked, and what answers mean.
        budget: how many questions are asked at most, >= 0.
        sure: ask no more when an image is that probable, in (0, 1]; at 1 never for that reason.
        scale: factor from cosine similarity to log-probability, finite, >= 0: the inverse temperature of the
            first stage. It depends on the encoder; ``zsq bench dialog --split dev`` tells the one under which
            the images that were meant are likeliest.
        temper: exponent of P(answer | question, image), finite, > 0. Below 1 an answer counts for less than
            the generator says, which a generator that is too sure of itself, most of all over the many
            tokens of a long answer, needs.
        reread: how much of what the encoder makes of an answer counts beside that, finite, >= 0. At 1 the
            first stage reads the whole dialog as one text; at 0 the generator alone understands answers.
        wording: what the generator is told.
        seed: of what is drawn, >= 0.
        batch_size: images shown to the generator together.
        memory: where its answers are kept while the dialog lasts; a mapping to share between dialogs over
            one gallery, generator and wording.

    Raises:
        InvalidInputError: the text says nothing, the gallery is empty, or a setting is out of range.
    """

    def __init__(
        self,
        gallery: Gallery,
        text: str,
        *,
        candidates: int = 100,
        policy: Policy = InformationGain(),  # noqa: B008  # frozen
        budget: int = 10,
        sure: float = 0.9,
        scale: float = SCALE,
        temper: float = TEMPER,
        reread: float = 1.0,
        wording: Wording = Wording(),  # noqa: B008  # frozen
        seed: int = 0,
        batch_size: int = 64,
        memory: Memory | None = None,
    ) -> None:
        _check_text(text, "the text to look for")
        _check_settings(candidates, budget, sure, scale, temper, reread, seed, batch_size)
        if isinstance(policy, type) or not isinstance(policy, Policy):
            raise InvalidInputError(f"policy must be one such as InformationGain(), not {policy!r}")
        _check_gallery(gallery)
        hits = tuple(gallery.first_stage(text, candidates))
        if not hits:
            raise InvalidInputError("the album is empty, so there is nothing to ask about; add images first")
        self.text = text
        self.policy = policy
        self.budget = budget
        self.sure = sure
        self.scale = scale
        self.temper = temper
        self.reread = reread
        self._wording, self._seed, self._batch_size = wording, seed, batch_size
        self._wanted = candidates
        self._hits = hits
        self._log_prior = scale * np.array([hit.score for hit in hits], np.float64)
        self._present = np.ones(len(hits), np.bool_)
        self._steps: list[_Step] = []
        self._proposal: Proposal | None = None
        self._asked_for = False  # whether `_proposal` is what the policy proposes now
        self._told: Proposal | None = None  # what `proposal` gave last: an answer is to that, whatever goes
        self._connect(gallery, memory)

    # --- the gallery --------------------------------------------------------------------------------------

    def attach(self, gallery: Gallery, *, memory: Memory | None = None) -> None:
        """Go on with a gallery, after the dialog was pickled.

        Args:
            gallery: that of the album it began with, opened again.
            memory: as for :class:`Dialog`.

        Raises:
            InvalidInputError: it is no gallery.
            MismatchError: none of the candidates is there. Nothing has changed.
        """
        _check_gallery(gallery)
        if not gallery.present(self._hits).any():
            raise MismatchError(
                f"none of the {len(self._hits)} candidates of the dialog about {self.text!r} is in this "
                "album; attach the one it began with, or begin another dialog"
            )
        self._connect(gallery, memory)

    def _connect(self, gallery: Gallery, memory: Memory | None) -> None:
        self._gallery: Gallery | None = gallery
        self._interview: Interview | None = Interview(
            gallery, wording=self._wording, memory=memory, seed=self._seed, batch_size=self._batch_size
        )

    def __getstate__(self) -> dict[str, Any]:
        with contextlib.suppress(AlbumError):  # the album may be closed already
            self._look()
        return {**self.__dict__, "_gallery": None, "_interview": None}

    def _look(self) -> None:
        """Notice which candidates were removed; a question that was meant for others is forgotten then."""
        if self._gallery is None:
            return
        present = self._present & self._gallery.present(self._hits)
        if not np.array_equal(present, self._present):
            self._present = present
            self._proposal, self._asked_for = None, False

    # --- what is believed ---------------------------------------------------------------------------------

    @property
    def ranking(self) -> Ranking:
        """The candidates, likeliest first.

        ``score`` is log P(image | dialog) in nats, which does not vanish where the probability does;
        ``scores`` has it as ``"dialog"``, beside ``"first_stage"``. Equal ones stand as the first stage put
        them.
        """
        belief = self._belief()
        hits = [
            replace(hit, score=float(log_p), scores={**hit.scores, "dialog": float(log_p)})
            for hit, log_p in zip(self._hits, belief, strict=True)
        ]
        return Ranking(self.text, tuple(hits[i] for i in best_first(belief) if self._present[i]))

    @property
    def probabilities(self) -> Mapping[str, float]:
        """P(image | dialog) of every candidate by its id, likeliest first; they add up to 1."""
        return {hit.id: math.exp(hit.score) for hit in self.ranking}

    @property
    def entropy(self) -> float:
        """How open it is which image is meant, in nats: 0 when one is certain, log n when n are alike."""
        return entropy(self._belief())

    @property
    def history(self) -> tuple[Turn, ...]:
        """What was said, in order."""
        return tuple(step.turn for step in self._steps)

    def _belief(self) -> NDArray[np.float64]:
        """The log-posterior [n]; -inf for candidates that were removed."""
        self._look()
        return self._posterior([step.evidence for step in self._steps])

    def _posterior(self, evidence: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        if not self._present.any():
            return np.full(len(self._hits), -np.inf)
        weights = sum(evidence, self._log_prior)
        return log_normalized(np.where(self._present, weights, -np.inf))

    # --- asking -------------------------------------------------------------------------------------------

    @property
    def proposal(self) -> Proposal | None:
        """The question to be answered next, with what it is expected to gain; None when the dialog stopped.

        Computed when it is first asked for, which takes the generator.

        Raises:
            InvalidInputError: there is no gallery since the dialog was pickled; the album has no generator,
                or one that cannot write.
            ZsqError: the generator's numbers are broken; names the image.
        """
        self._told = self._next()
        return self._told

    def _next(self) -> Proposal | None:
        """What is to be asked now, which nobody is told by this."""
        if self._reason() is not None:
            return None
        if not self._asked_for:
            self._proposal = self.policy.propose(self._scene())
            self._asked_for = True
        return self._proposal

    @property
    def question(self) -> str | None:
        """The question to be answered next, as :attr:`proposal`; None when the dialog stopped."""
        proposal = self.proposal
        return None if proposal is None else proposal.question

    @property
    def stopped(self) -> Stopped | None:
        """Why there is no question; None while there is one. To ask this is not to read the question.

        Raises:
            InvalidInputError, ZsqError: as :attr:`proposal`, which has to be thought of for that.
        """
        reason = self._reason()
        if reason is None and self._next() is None:
            return "nothing to ask"
        return reason

    def _reason(self) -> Literal["sure", "budget", "no candidates"] | None:
        belief = self._belief()
        if not self._present.any():
            return "no candidates"
        if self.sure < 1 and math.exp(belief.max()) >= self.sure:
            return "sure"
        return "budget" if sum(step.proposal is not None for step in self._steps) >= self.budget else None

    def _scene(self) -> Scene:
        belief = self._belief()  # which notices who has gone
        here = np.flatnonzero(self._present)
        return self._scene_of(self.history, [self._hits[i] for i in here], belief[here])

    def _scene_of(
        self, turns: Sequence[Turn], hits: Sequence[Hit], log_posterior: NDArray[np.float64]
    ) -> Scene:
        if self._gallery is None or self._interview is None:
            raise InvalidInputError(
                "this dialog was pickled and has no album any more; give it one: "
                "dialog.attach(retriever.gallery)"
            )
        return Scene(
            text=self.text,
            turns=turns,
            hits=hits,
            log_posterior=log_posterior,
            gallery=self._gallery,
            interview=self._interview,
            scale=self.scale,
            temper=self.temper,
            reread=self.reread,
            seed=self._seed,
        )

    # --- answering ----------------------------------------------------------------------------------------

    def answer(self, text: str) -> None:
        """Answer :attr:`question`, as it was last read, even if images have gone since.

        "Don't know" and its like change nothing but that the question is not asked again. "Yes" and "no" may
        begin a longer answer ("yes, on a boat").

        Args:
            text: the answer.

        Raises:
            InvalidInputError: the dialog has stopped; the answer is empty, no text, or longer than the
                generator reads; or as :attr:`proposal`. Nothing has changed.
            ZsqError: the generator's numbers are broken; names the image. Nothing has changed.
        """
        _check_text(text, "an answer")
        self._refuse_nobody()
        proposal = self._told or self.proposal
        if proposal is None:
            raise InvalidInputError(
                f"there is no question to answer, because the dialog has stopped: {self.stopped}; tell() "
                "takes what is said unasked"
            )
        self._take(proposal.question, text, proposal)

    def tell(self, text: str) -> None:
        """Say something about the image that was not asked for; :attr:`question` may be another one then.

        It counts as an answer, not as a question.

        Args:
            text: for instance "it was taken at night".

        Raises:
            InvalidInputError, ZsqError: as :meth:`answer`, but a dialog that has stopped can still be told.
        """
        _check_text(text, "what is told")
        self._refuse_nobody()
        self._take(None, text, None)

    def _take(self, question: str | None, said: str, proposal: Proposal | None) -> None:
        before = entropy(self._belief())
        gain = None if proposal is None else proposal.expected_gain
        turn = Turn(question, said, before, before, gain)
        evidence = np.zeros(len(self._hits))
        newcomers: _Newcomers | None = None
        if not is_unknown(said):
            scene = self._scene()
            try:
                evidence[self._present] = _checked(self.policy.evidence(scene, question, said), scene)
                newcomers = self._newcomers(
                    scene.gallery, [*self.history, turn], [*(step.evidence for step in self._steps), evidence]
                )
            except InvalidInputError as error:
                start = said if len(said) <= _QUOTED else f"{said[:_QUOTED]}..."
                raise InvalidInputError(
                    f"{start!r} was not taken, and nothing has changed: {error}"
                ) from error
        self._steps.append(_Step(turn, evidence, proposal, len(self._hits)))
        if newcomers is not None:
            self._join(newcomers)
        after = self._posterior([step.evidence for step in self._steps])
        self._steps[-1] = replace(self._steps[-1], turn=replace(turn, entropy_after=entropy(after)))
        self._proposal, self._asked_for, self._told = None, False, None

    def _newcomers(
        self, gallery: Gallery, turns: Sequence[Turn], evidence: Sequence[NDArray[np.float64]]
    ) -> _Newcomers | None:
        """What the first stage finds by all that was said, judged by every turn; None if that is nobody new.

        Args:
            gallery: the images.
            turns: t turns, the last answer included.
            evidence: what each of them said of the candidates there are [n].
        """
        if not self.reread:
            return None
        known = {hit.key for hit in self._hits}
        found = gallery.first_stage(retold(gallery, self.text, turns), self._wanted)
        found = [hit for hit in found if hit.key not in known]
        if not found:
            return None
        (cosine,) = gallery.similarities([self.text], found)
        hits = tuple(
            replace(hit, score=float(one), scores={**hit.scores, FIRST_STAGE: float(one)})
            for hit, one in zip(found, cosine, strict=True)
            if not math.isnan(one)  # removed meanwhile
        )
        if not hits:
            return None
        log_prior = self.scale * np.array([hit.score for hit in hits], np.float64)
        theirs, others = log_prior, np.where(self._present, self._log_prior, -np.inf)
        said: list[NDArray[np.float64]] = []
        for turn, of_others in zip(turns, evidence, strict=True):
            of_them = np.zeros(len(hits))
            if not is_unknown(turn.answer):
                scene = self._scene_of(turns[: len(said)], hits, log_normalized(theirs))
                of_them = _whole(self.policy.evidence(scene, turn.question, turn.answer), scene)
                of_them = np.where(np.isnan(of_them), _average(others, of_others), of_them)
            said.append(of_them)
            theirs, others = theirs + of_them, others + of_others
            if not np.isfinite(theirs).any():
                return None  # none of them is possible
        return _Newcomers(hits, log_prior, tuple(said))

    def _join(self, newcomers: _Newcomers) -> None:
        """Let them in, behind those that are there."""
        self._hits += newcomers.hits
        self._log_prior = np.concatenate([self._log_prior, newcomers.log_prior])
        self._present = np.concatenate([self._present, np.ones(len(newcomers.hits), np.bool_)])
        self._steps = [
            replace(step, evidence=np.concatenate([step.evidence, of_them]))
            for step, of_them in zip(self._steps, newcomers.evidence, strict=True)
        ]

    def _leave(self, n: int) -> None:
        """Go back to the first n candidates."""
        self._hits, self._log_prior, self._present = self._hits[:n], self._log_prior[:n], self._present[:n]
        self._steps = [replace(step, evidence=step.evidence[:n]) for step in self._steps]

    def _refuse_nobody(self) -> None:
        self._look()
        if not self._present.any():
            raise InvalidInputError("all candidates were removed from the album; begin another dialog")

    def undo(self) -> Turn:
        """Take back the last answer, or what was told last; its question is open again.

        Returns:
            The turn that was taken back.

        Raises:
            InvalidInputError: nothing has been said yet.
        """
        if not self._steps:
            raise InvalidInputError("nothing has been answered yet, so there is nothing to undo")
        step = self._steps.pop()
        self._leave(step.candidates)
        self._proposal, self._asked_for = step.proposal, step.proposal is not None
        self._told = step.proposal
        return step.turn

    def __repr__(self) -> str:
        stands = f"{len(self._steps)} turns, {len(self._hits)} candidates, entropy {self.entropy:.2f} nats"
        return f"Dialog({self.text!r}, {type(self.policy).__name__}, {stands})"


def _checked(evidence: NDArray[np.float64], scene: Scene) -> NDArray[np.float64]:
    """The evidence of a policy, in which a candidate that it could not judge keeps its probability.

    That is so when it gets the evidence that all others get on average: log sum_i P(i) P(answer | i), over
    those that could be judged.
    """
    found = _whole(evidence, scene)
    blind = np.isnan(found)
    if blind.all():
        return np.zeros_like(found)
    seen = scene.log_posterior[~blind] + found[~blind]
    if not np.isfinite(seen).any():
        raise InvalidInputError("by this answer none of the candidates is possible")
    if not blind.any():
        return found
    return np.where(blind, _average(scene.log_posterior[~blind], found[~blind]), found)


def _average(log_weights: NDArray[np.float64], evidence: NDArray[np.float64]) -> float:
    """The evidence that candidates of these weights get on average: log sum_i P(i) P(answer | i)."""
    return float(np.logaddexp.reduce(log_weights + evidence) - np.logaddexp.reduce(log_weights))


def _whole(evidence: NDArray[np.float64], scene: Scene) -> NDArray[np.float64]:
    """The evidence of a policy: one number for each candidate, or nan."""
    found = np.asarray(evidence, np.float64)
    if found.shape != (len(scene.hits),) or (found == np.inf).any():
        raise InvalidInputError(
            f"the policy must give one number below infinity for each of {len(scene.hits)} candidates, not "
            f"{found!r}"
        )
    return found


def _check_gallery(gallery: object) -> None:
    if not isinstance(gallery, Gallery):
        raise InvalidInputError(f"a dialog is about a gallery, such as retriever.gallery, not {gallery!r}")


def _check_text(text: object, what: str) -> None:
    check_text(text, what)
    if not tidy(str(text)):
        raise InvalidInputError(f"{what} must be a text that says something, not {text!r}")


def _check_settings(
    candidates: int,
    budget: int,
    sure: float,
    scale: float,
    temper: float,
    reread: float,
    seed: int,
    batch_size: int,
) -> None:
    check_counts(candidates=candidates, batch_size=batch_size)
    check_counts(0, budget=budget, seed=seed)
    check_amounts(sure=sure, scale=scale, temper=temper, reread=reread)
    if not 0 < sure <= 1:
        raise InvalidInputError(f"sure must be a probability, above 0 and at most 1, not {sure}")
    if not temper:
        raise InvalidInputError("temper must be above 0: at 0 no answer would count")
