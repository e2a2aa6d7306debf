"""Clarifying dialogs with simulated users, under one policy after another.

Every dialog is about one target image and begins with one of its captions. All policies have the same
dialogs, users, generator and first stage, so their differences are paired. The generator's output is computed
once for all policies and kept in the cache of the bench.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from zsqretrieval._util.cache import cache_key
from zsqretrieval._util.checks import check_counts
from zsqretrieval.dialog.dialog import Dialog
from zsqretrieval.dialog.evidence import Turn, dialog_text
from zsqretrieval.dialog.gallery import encoded_alike
from zsqretrieval.dialog.oracle import Interview, Wording
from zsqretrieval.dialog.policies import CaptionDialog, InformationGain, Policy, RandomQuestion
from zsqretrieval.encoders.checked import encode_texts
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.evaluation.results import paired_rows
from zsqretrieval.evaluation.scores import Bench
from zsqretrieval.evaluation.simulated_user import CaptionUser, GeneratorUser
from zsqretrieval.evaluation.stats import ClusterBootstrap
from zsqretrieval.protocols import Generator
from zsqretrieval.search.fusion import FIRST_STAGE, best_first
from zsqretrieval.tasks.english import is_unknown
from zsqretrieval.types import Hit, Image, ImageState

UserKind = Literal["captions", "generator"]

POLICIES: Mapping[str, Policy] = {
    "information_gain": InformationGain(),
    "caption_dialog": CaptionDialog(),
    "random": RandomQuestion(),
}
"""The compared policies."""

_K = 10
_SCALES = tuple(float(scale) for scale in np.geomspace(1, 300, 120).round(2))
_TEMPERS = tuple(float(temper) for temper in np.geomspace(0.02, 2, 80).round(3))
_EXAMPLES = 3


def measure_dialogs(
    bench: Bench,
    form: str,
    *,
    scale: float,
    temper: float,
    reread: float,
    dialogs: int = 200,
    rounds: int = 5,
    candidates: int = 100,
    user: UserKind = "captions",
    policies: Mapping[str, Policy] = POLICIES,
    calibrate: bool = False,
    seed: int = 0,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure how well policies find the target images of simulated users.

    Args:
        bench: the whole gallery is searched, exactly. A generator with a prefix cache is much faster, since
            it scores every image with every question.
        form: of the texts that are the captions of their images.
        scale: as for :class:`~zsqretrieval.dialog.dialog.Dialog`.
        temper: likewise.
        reread: likewise.
        dialogs: how many.
        rounds: questions of each. A dialog without further questions keeps its ranking.
        candidates: images at the start of a dialog; answers add more. The others keep the order of the first
            stage, below them. :class:`~zsqretrieval.dialog.policies.CaptionDialog` ranks the whole gallery,
            as in ChatIR.
        user: who answers: the generator, or the captions that did not begin the dialog. A simulated user
            that is the same model that asks gives optimistic results.
        policies: by name; the others are compared with the first.
        calibrate: fit ``scale`` and ``temper``. Never on the split that results are reported on.
        seed: of the choice of dialogs and of their random choices.

    Returns:
        Rows of group ``dialogs``: ``depth`` is the number of answers, 0 before the first question. Measures
        are ``Hits@10``, cumulative as in ChatIR: the target has been among the first ten by then; ``R@10`` of
        this round alone; and ``BRI`` (:func:`best_rank_integral`, lower is better), without ``depth``.

        Facts: ``settings``; ``asked``, by policy: ``questions`` and ``dont_know`` per dialog on average, and
        for policies that expect a gain, ``expected_gain`` and ``gain``, the fall of the entropy, in nats per
        question; ``calibration``, the ``scale`` and ``temper`` of maximum likelihood; ``examples``, the first
        dialogs of the first policy; ``seconds`` by policy.

    Raises:
        InvalidInputError: there are fewer captions than dialogs, an image has a single caption, or a setting
            is out of range.
        ZsqError: the generator gave a score that is not finite.
    """
    check_counts(dialogs=dialogs, rounds=rounds, candidates=candidates)
    if user not in ("generator", "captions"):
        raise InvalidInputError(f"user must be 'generator' or 'captions', not {user!r}")
    captions = _captions(bench, form)
    targets = [
        _Target(image, captions[image][n], captions[image][:n] + captions[image][n + 1 :])
        for image, n in draw_targets(captions, dialogs, seed)
    ]
    settings = {"scale": scale, "temper": temper, "reread": reread, "seed": seed}
    host = _Host(bench, _Gallery(bench), {}, user, rounds, candidates, settings)
    played = {name: host.play(name, policy, targets) for name, policy in policies.items()}
    facts = {
        "settings": {
            **settings, "dialogs": dialogs, "rounds": rounds, "candidates": candidates, "user": user,
            "images": len(bench.dataset.gallery), "wording": repr(Wording()),
            "policies": {name: repr(policy) for name, policy in policies.items()},
        },
        "asked": {name: _asked(one.turns) for name, one in played.items()},
        "calibration": _calibration(host, played, policies, targets) if calibrate else {},
        "examples": [
            {"text": target.text, "image": str(bench.dataset.gallery[target.image].id),
             "turns": [{"question": turn.question, "answer": turn.answer, "entropy": turn.entropy_after}
                       for turn in turns]}
            for target, turns in zip(targets[:_EXAMPLES], next(iter(played.values())).turns, strict=False)
        ],
        "seconds": {name: one.seconds for name, one in played.items()},
    }  # fmt: skip
    return _rows(played, targets, user, seed), facts


class _Target(NamedTuple):
    image: int
    text: str  # the caption that begins the dialog
    others: list[str]  # the other captions


def _captions(bench: Bench, form: str) -> dict[int, list[str]]:
    """The texts of every image that has some, by its position."""
    dataset = bench.dataset.of_form(form)
    text = {query.id: query.text.strip() for query in dataset.queries}
    task, places = dataset.image_to_text(), dataset.places
    return {places[image]: [text[query] for query in task.qrels[image]] for image in task.queries}


def draw_targets(captions: Mapping[int, Sequence[str]], count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Draw ``count`` target images of ``captions``, and for each the caption that begins the dialog.

    Every image has at least two captions and is drawn once before any is drawn twice. A smaller count gives
    the first of the same draws.
    """
    counts = [len(some) for some in captions.values()]
    if count > sum(counts):
        raise InvalidInputError(f"{count} dialogs need as many captions; there are {sum(counts)}")
    if min(counts) < 2:
        raise InvalidInputError("every image needs two captions: one to begin with, others to answer by")
    random = np.random.default_rng(seed)
    images, orders = list(captions), [random.permutation(some) for some in counts]
    pairs = [
        (images[n], int(orders[n][turn]))
        for turn in range(max(counts))
        for n in random.permutation(len(images))
        if turn < counts[n]
    ]
    return pairs[:count]


# --- playing ----------------------------------------------------------------------------------------------


class _Gallery:
    """The images of a bench, as a :class:`~zsqretrieval.dialog.oracle.Gallery`."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def hit(self, key: int, cosine: float = math.nan) -> Hit:
        image = self._bench.dataset.gallery[key]
        return Hit(key, str(image.id), image.source, cosine, {FIRST_STAGE: cosine})

    def cosines(self, texts: Sequence[str]) -> NDArray[np.float64]:
        vectors = encode_texts(self._bench.encoder, texts)
        return np.asarray(vectors @ self._bench.gallery.T, np.float64)  # [t, N]

    def first_stage(self, text: str, k: int) -> list[Hit]:
        (cosine,) = self.cosines([text])
        return [self.hit(int(i), float(cosine[i])) for i in best_first(cosine)[:k]]

    def similarities(self, texts: Sequence[str], hits: Sequence[Hit]) -> NDArray[np.float64]:
        return np.asarray(self.cosines(texts)[:, [hit.key for hit in hits]])

    def encoded_alike(self, texts: Sequence[str]) -> bool:
        return encoded_alike(self._bench.encoder, texts)

    def present(self, hits: Sequence[Hit]) -> NDArray[np.bool_]:
        return np.ones(len(hits), np.bool_)

    def stored_questions(self, hits: Sequence[Hit]) -> list[tuple[str, ...]]:
        return [() for _ in hits]

    @contextlib.contextmanager
    def showing(
        self, hits: Sequence[Hit]
    ) -> Iterator[tuple[Generator, list[Image | ImageState | ImageError]]]:
        # Features of all images at once, since their last bits depend on the batch.
        shown = self._bench.shown(range(len(self._bench.dataset.gallery)))
        yield self._bench.generator, [shown[hit.key] for hit in hits]


@dataclass(frozen=True, slots=True)
class _Played:
    """The dialogs of one policy."""

    ranks: NDArray[np.int64]  # [d, T + 1], of the target, from 0
    turns: list[tuple[Turn, ...]]
    evidence: list[tuple[NDArray[np.float64], NDArray[np.float64], int]]  # encoder, generator, target
    seconds: float


@dataclass(frozen=True, slots=True)
class _Host:
    """Plays dialogs."""

    bench: Bench
    gallery: _Gallery
    memory: dict[tuple[str, ...], Any]  # the generator's output
    user: UserKind
    rounds: int
    candidates: int
    settings: Mapping[str, Any]  # of every dialog: scale, temper, reread, seed

    def play(self, name: str, policy: Policy, targets: Sequence[_Target]) -> _Played:
        """Play the dialogs of one policy."""
        begin = time.perf_counter()
        ranks, turns, evidence = [], [], []
        # ChatIR ranks the whole gallery, which costs only the encoder.
        candidates = len(self.bench.dataset.gallery) if isinstance(policy, CaptionDialog) else self.candidates
        for done, target in enumerate(targets, 1):
            with self._remembered(name, target):
                dialog = Dialog(
                    self.gallery, target.text, candidates=candidates, policy=policy, budget=self.rounds,
                    sure=1.0, batch_size=self.bench.settings.batch_size, memory=self.memory, **self.settings,
                )  # fmt: skip
                before, user = _log_p(dialog), self._user(target)
                own = [self._rank(dialog, target)]
                while (question := dialog.question) is not None:
                    dialog.answer(user.answer(question))
                    own.append(self._rank(dialog, target))
            ranks.append(own + own[-1:] * (self.rounds + 1 - len(own)))
            turns.append(dialog.history)
            if target.image in before:
                evidence.append(self._evidence(dialog, before, target))
            self.bench.step(f"dialogs by {name.replace('_', ' ')}", done, len(targets))
        return _Played(np.array(ranks, np.int64), turns, evidence, time.perf_counter() - begin)

    @contextlib.contextmanager
    def _remembered(self, name: str, target: _Target) -> Iterator[None]:
        """Take the generator's output in this dialog from the cache, and keep there what is new."""
        bench = self.bench
        recipe = repr([bench.generator.fingerprint, Wording(), bench.digests])
        key = cache_key("dialog", recipe, name, target.text, bench.digests[target.image])
        stored = json.loads(bench.cache.get_many([key]).get(key, "[]"))
        known = [(tuple(asked), said) for asked, said in stored]
        self.memory.update(known)
        before = len(self.memory)
        yield
        if len(self.memory) > before:
            new = [*self.memory.items()][before:]
            bench.cache.put_many({key: json.dumps(known + new).encode()})

    def _user(self, target: _Target) -> CaptionUser | GeneratorUser:
        if self.user == "captions":
            return CaptionUser(target.others)
        seed, batch_size = self.settings["seed"], self.bench.settings.batch_size
        interview = Interview(self.gallery, memory=self.memory, seed=seed, batch_size=batch_size)
        return GeneratorUser(interview, self.gallery.hit(target.image))

    def _rank(self, dialog: Dialog, target: _Target) -> int:
        """Rank of the target from 0; a tie counts against it."""
        log_p = _log_p(dialog)
        if target.image in log_p:
            return sum(score >= log_p[target.image] for score in log_p.values()) - 1
        (cosine,) = self.gallery.cosines([dialog.text])
        return int((cosine >= cosine[target.image]).sum()) - 1

    def _evidence(
        self, dialog: Dialog, before: Mapping[int, float], target: _Target
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
        """Log-probabilities of the first candidates, by encoder and by answers; place of the target."""
        after, keys = _log_p(dialog), list(before)
        prior = np.array([before[key] for key in keys])
        answers = np.array([after[key] for key in keys]) - prior
        told = dialog_text(self.gallery, dialog.text, dialog.history)
        said, more = self.gallery.cosines([dialog.text, told])
        heard = self.settings["reread"] * self.settings["scale"] * (more - said)[keys]
        return prior + heard, answers - heard, keys.index(target.image)


def _log_p(dialog: Dialog) -> dict[int, float]:
    return {hit.key: -math.inf if hit.score is None else hit.score for hit in dialog.ranking}


# --- results ----------------------------------------------------------------------------------------------


def best_rank_integral(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """The best log rank integral (BRI) of PlugIR (Lee et al., ACL 2024, arXiv 2406.03411).

    The area under the logarithm of the best rank so far, from 1, by the trapezoidal rule and divided by the T
    rounds; 0 for a target that always ranks first. ``ranks``, int64 [d, T + 1] with T >= 1, are those of the
    target in every round, from 0.
    """
    logs = np.log(np.minimum.accumulate(ranks, axis=1) + 1.0)
    area = (logs[:, 0] + logs[:, -1]) / 2 + logs[:, 1:-1].sum(1)
    return np.asarray(area / (ranks.shape[1] - 1))


def _rows(
    played: Mapping[str, _Played], targets: Sequence[_Target], user: str, seed: int
) -> list[dict[str, Any]]:
    """Every measure of every policy, compared with the first; images are the clusters."""
    bootstrap = ClusterBootstrap(np.array([target.image for target in targets]), seed=seed)
    values = defaultdict[tuple[str, int | None], dict[str, NDArray[np.float64]]](dict)
    for name, one in played.items():
        best = np.minimum.accumulate(one.ranks, axis=1)
        for turn in range(one.ranks.shape[1]):
            values["Hits@10", turn][name] = (best[:, turn] < _K).astype(np.float64)
            values["R@10", turn][name] = (one.ranks[:, turn] < _K).astype(np.float64)
        values["BRI", None][name] = best_rank_integral(one.ranks)
    rows: list[dict[str, Any]] = []
    for (measure, depth), of in values.items():
        rows += paired_rows(
            "dialogs", measure, of, bootstrap, baseline=next(iter(played)),
            form=f"answered by {user}", direction="text to image", depth=depth,
            unit="" if depth is None else "%",
        )  # fmt: skip
    return rows


def _asked(dialogs: Sequence[tuple[Turn, ...]]) -> dict[str, float]:
    turns = [turn for some in dialogs for turn in some]
    unknown = sum(is_unknown(turn.answer) for turn in turns)
    facts = {"questions": len(turns) / len(dialogs), "dont_know": unknown / len(dialogs)}
    expecting = [turn for turn in turns if turn.expected_gain is not None and not is_unknown(turn.answer)]
    if expecting:
        facts["expected_gain"] = float(np.mean([turn.expected_gain for turn in expecting]))
        facts["gain"] = float(np.mean([turn.entropy_before - turn.entropy_after for turn in expecting]))
    return facts


def calibrated(
    grid: Sequence[float], evidence: Sequence[tuple[NDArray[np.float64], NDArray[np.float64], int]]
) -> float:
    """The factor in ``grid`` with the highest mean of log-softmax(fixed + factor * scaled)[target]."""

    def mean_log_p(factor: float) -> float:
        log_p = [log_softmax(fixed + factor * scaled)[target] for fixed, scaled, target in evidence]
        return float(np.mean(log_p))

    return max(grid, key=mean_log_p)


def _calibration(
    host: _Host, played: Mapping[str, _Played], policies: Mapping[str, Policy], targets: Sequence[_Target]
) -> dict[str, float]:
    """The scale that fits the first stage, and the temper that fits answers to random questions.

    A policy that chooses questions by its probabilities would have asked others with another temper.
    """
    cosine = host.gallery.cosines([target.text for target in targets])  # [d, N]
    first = [(np.zeros(len(line)), line, target.image) for line, target in zip(cosine, targets, strict=True)]
    facts = {"scale": calibrated(_SCALES, first)}
    random = [name for name, policy in policies.items() if isinstance(policy, RandomQuestion)]
    if drawn := [case for name in random for case in played[name].evidence]:
        facts["temper"] = round(host.settings["temper"] * calibrated(_TEMPERS, drawn), 4)
    return facts
