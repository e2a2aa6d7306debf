"""What asking back brings: simulated users look for their images, under one policy after another.

Every dialog begins with one caption of an image; its user answers by the generator or by the other captions.
All policies see the same dialogs, users, generator and first stage, so their differences are paired. What
the generator says of an image is computed once for all of them, and kept in ``work``.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.checks import check_counts
from zsqretrieval.data.images import digest
from zsqretrieval.dialog.dialog import SCALE, TEMPER, Dialog
from zsqretrieval.dialog.gallery import encoded_alike
from zsqretrieval.dialog.oracle import Interview, Memory, Wording
from zsqretrieval.dialog.policies import CaptionDialog, InformationGain, Policy, RandomQuestion, Turn, retold
from zsqretrieval.dialog.posterior import log_normalized
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.evaluation.encoder_bench import read_captioned
from zsqretrieval.evaluation.intervals import ClusterBootstrap, rounded
from zsqretrieval.evaluation.progress import Progress, encode_in_parts, untold
from zsqretrieval.evaluation.remembered import Remembered, kept_vectors
from zsqretrieval.evaluation.score_matrix import Seen
from zsqretrieval.evaluation.simulated_user import CaptionUser, GeneratorUser, SimulatedUser
from zsqretrieval.protocols import Encoder, Generator
from zsqretrieval.search.fusion import FIRST_STAGE, best_first
from zsqretrieval.tasks.english import is_unknown
from zsqretrieval.types import Hit, Image, ImageState

__all__ = [
    "POLICIES",
    "DialogBench",
    "UserKind",
    "bench_dialog",
    "best_rank_integral",
    "best_so_far",
    "calibrated",
    "draw_dialogs",
]

UserKind = Literal["generator", "captions"]

POLICIES: Mapping[str, Policy] = {
    "information_gain": InformationGain(),
    "caption_dialog": CaptionDialog(),
    "random": RandomQuestion(),
}
"""The policies that are compared, by name."""

_K = 10
_SCALES = tuple(float(scale) for scale in np.geomspace(1, 300, 120).round(2))
_TEMPERS = tuple(float(temper) for temper in np.geomspace(0.02, 2, 80).round(3))
_INTERVALS = (
    "95 % percentile bootstrap over images, each with its dialogs; 2000 draws, the same for all policies"
)
_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class DialogBench:
    """How well policies find the image that is meant, by round; round 0 is before the first question.

    Attributes:
        setting: what was measured: data, dialogs, parts, user, policies, seeds, and how intervals are made.
        hits: by policy, Hits@10 of rounds 0..T in percent, cumulative as ChatIR counts: the image has been
            among the first ten in this or an earlier round. ``hits_ci`` has the intervals.
        recall: the same for this round alone.
        bri: by policy, the best log rank integral (:func:`best_rank_integral`); lower is better.
        differences: ``"information_gain - random"`` and the like -> ``hits@10``, ``recall@10``, ``bri``, each
            with its paired interval.
        asked: by policy, ``questions`` and ``dont_know`` per dialog on average, and where the policy expects
            a gain, ``expected_gain`` and ``gain``, how much the entropy really fell, in nats per question.
        calibration: only off the test split: the ``scale`` and the ``temper`` under which the images that
            were meant were likeliest.
        examples: the first dialogs of the first policy, in words.
        seconds: by policy.
    """

    setting: Mapping[str, Any]
    hits: Mapping[str, list[float]]
    hits_ci: Mapping[str, list[list[float]]]
    recall: Mapping[str, list[float]]
    recall_ci: Mapping[str, list[list[float]]]
    bri: Mapping[str, float]
    bri_ci: Mapping[str, list[float]]
    differences: Mapping[str, Mapping[str, Any]]
    asked: Mapping[str, Mapping[str, float]]
    calibration: Mapping[str, float]
    examples: tuple[Mapping[str, Any], ...]
    seconds: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """One object: ``policies`` -> Hits@10 by round, ``policies_ci``, ``recall@10`` and so on."""
        return {
            "policies": self.hits,
            "policies_ci": self.hits_ci,
            "recall@10": self.recall,
            "recall@10_ci": self.recall_ci,
            "bri": self.bri,
            "bri_ci": self.bri_ci,
            "differences": self.differences,
            "asked": self.asked,
            **({"calibration": self.calibration} if self.calibration else {}),
            "examples": list(self.examples),
            "seconds": self.seconds,
            "setting": self.setting,
        }


def bench_dialog(
    encoder: Encoder,
    generator: Generator,
    data: Path,
    *,
    split: str = "test",
    dialogs: int = 200,
    rounds: int = 5,
    candidates: int = 100,
    user: UserKind = "captions",
    policies: Mapping[str, Policy] = POLICIES,
    scale: float = SCALE,
    temper: float = TEMPER,
    reread: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    work: Path | None = None,
    progress: Progress | None = None,
) -> DialogBench:
    """Measure policies on a split of captioned WebDataset shards.

    Args:
        encoder: the first stage; compares exactly, without an index.
        generator: asks and answers. Where it makes image states, each image is seen once.
        data: folder of shards ``{split}-*.tar``; all images of the split are the gallery.
        split: which of them.
        dialogs: how many; every image is meant once before any is meant twice.
        rounds: questions in each, >= 1. A dialog that has nothing more to ask stays where it is.
        candidates: images that a belief begins with; answers bring more. The others stay behind them, as the
            first stage put them. :class:`~zsqretrieval.dialog.policies.CaptionDialog` ranks the whole gallery, as in
            ChatIR.
        user: who answers: the generator itself, or the captions that did not begin the dialog.
        policies: what is compared, by name; the first is compared with the others.
        scale: as for :class:`~zsqretrieval.dialog.dialog.Dialog`.
        temper: the same.
        reread: the same.
        seed: of the choice of dialogs, and of what they draw.
        batch_size: images the generator reads together.
        work: folder that keeps vectors and all that the generator said; made when missing.
        progress: told how far it is.

    Raises:
        InvalidInputError: the split is missing; there are fewer captions than dialogs, or none beside the one
            that begins the dialog; a count is below 1; or a setting is out of range.
        ZsqError: the generator gave a number that is none.
    """
    check_counts(dialogs=dialogs, rounds=rounds, candidates=candidates)
    if user not in ("generator", "captions"):
        raise InvalidInputError(f"user must be 'generator' or 'captions', not {user!r}")
    told = progress or untold
    samples = list(read_captioned(Path(data), split))
    captions = [sample.captions for sample in samples]
    meant = draw_dialogs(captions, dialogs, seed)
    with contextlib.ExitStack() as stack:
        keeping = stack.enter_context(kept_vectors(encoder, work))
        gallery = _Gallery(keeping, generator, [sample.image for sample in samples], batch_size, told)
        memory: Memory = {}
        if work is not None:
            setting = repr([generator.fingerprint, repr(Wording()), gallery.digests])
            memory = stack.enter_context(Remembered(Path(work) / "dialogs.sqlite", setting))
        run = _Run(gallery, captions, memory, rounds, candidates, user, scale, temper, reread, seed,
                   batch_size)  # fmt: skip
        found = {name: _play(run, name, policy, meant, told) for name, policy in policies.items()}
        return _summary(run, found, meant, policies, Path(data), split)


# --- measures ---------------------------------------------------------------------------------------------


def best_so_far(ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """The best rank in this or an earlier round: int64 [d, T + 1], ranks from 0."""
    return np.minimum.accumulate(ranks, axis=1)


def best_rank_integral(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """The best log rank integral (BRI) of PlugIR (Lee et al., ACL 2024, arXiv 2406.03411).

    The area under the logarithm of the best rank so far, by the trapezoidal rule, over T rounds:
    log(pi_0 pi_T) / 2T + (log pi_1 + ... + log pi_(T-1)) / T, where pi_t is the best rank up to round t, from
    1. It is 0 for an image that always stood first; earlier and higher is lower.

    Args:
        ranks: int64 [d, T + 1], T >= 1, the rank of the image that is meant in every round, from 0.

    Returns:
        float64 [d].
    """
    logs = np.log(best_so_far(ranks) + 1.0)
    area = (logs[:, 0] + logs[:, -1]) / 2 + logs[:, 1:-1].sum(1)
    per_round: NDArray[np.float64] = area / (ranks.shape[1] - 1)
    return per_round


def calibrated(
    grid: Sequence[float], evidence: Sequence[tuple[NDArray[np.float64], NDArray[np.float64], int]]
) -> float:
    """The factor under which what was meant is likeliest: maximum likelihood of a softmax temperature.

    Args:
        grid: the factors to choose from.
        evidence: for every case a fixed part [n], a part [n] that is multiplied by the factor, and the
            position of what was meant.

    Returns:
        The factor with the highest mean of log-softmax(fixed + factor * scaled)[meant].
    """

    def mean_log_p(factor: float) -> float:
        return float(
            np.mean([log_normalized(fixed + factor * scaled)[meant] for fixed, scaled, meant in evidence])
        )

    return max(grid, key=mean_log_p)


# --- the dialogs ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Meant:
    """Which image a dialog is about, and which of its captions begins it."""

    image: int
    caption: int


def draw_dialogs(captions: Sequence[Sequence[str]], count: int, seed: int = 0) -> list[_Meant]:
    """Draw which images are meant, and what is said of them to begin with.

    Args:
        captions: of every image.
        count: how many dialogs; every image is meant once before any is meant twice.
        seed: of the draw.

    Returns:
        ``count`` dialogs, of which those of a smaller count are the first.

    Raises:
        InvalidInputError: there are fewer captions, or an image has only one.
    """
    if count > sum(map(len, captions)):
        raise InvalidInputError(f"{count} dialogs need as many captions; there are {sum(map(len, captions))}")
    if min(map(len, captions)) < 2:
        raise InvalidInputError("every image needs two captions: one to begin with, others to answer by")
    random = np.random.default_rng(seed)
    orders = [random.permutation(len(some)) for some in captions]
    turns = [
        _Meant(int(image), int(orders[image][turn]))
        for turn in range(max(map(len, captions)))
        for image in random.permutation(len(captions))
        if turn < len(orders[image])
    ]
    return turns[:count]


class _Gallery:
    """All images of a split, as a gallery for dialogs."""

    def __init__(
        self,
        encoder: Encoder,
        generator: Generator,
        images: Sequence[Image],
        batch_size: int,
        told: Progress,
    ) -> None:
        self.encoder, self.generator = encoder, generator
        self.images = images
        self.digests = [digest(image) for image in images]
        self.vectors = encode_in_parts(encoder.encode_image, images, "encoding images", told)  # [N, D]
        self.shown = Seen(generator, images, batch_size=batch_size, progress=told)

    def hit(self, key: int, cosine: float = math.nan) -> Hit:
        source = self.images[key].source
        return Hit(key, self.images[key].id or source, source, cosine, {FIRST_STAGE: cosine})

    def cosines(self, texts: Sequence[str]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = (self.encoder.encode_text(texts) @ self.vectors.T).astype(np.float64)
        return found  # [t, N]

    def first_stage(self, text: str, k: int) -> list[Hit]:
        (cosine,) = self.cosines([text])
        return [self.hit(int(i), float(cosine[i])) for i in best_first(cosine)[:k]]

    def similarities(self, texts: Sequence[str], hits: Sequence[Hit]) -> NDArray[np.float64]:
        chosen: NDArray[np.float64] = self.cosines(texts)[:, [hit.key for hit in hits]]
        return chosen

    def encoded_alike(self, texts: Sequence[str]) -> bool:
        return encoded_alike(self.encoder, texts)

    def present(self, hits: Sequence[Hit]) -> NDArray[np.bool_]:
        return np.ones(len(hits), np.bool_)

    def stored_questions(self, hits: Sequence[Hit]) -> list[tuple[str, ...]]:
        return [() for _ in hits]

    @contextlib.contextmanager
    def showing(
        self, hits: Sequence[Hit]
    ) -> Iterator[tuple[Generator, list[Image | ImageState | ImageError]]]:
        yield self.generator, [self.shown[hit.key] for hit in hits]


@dataclass(frozen=True, slots=True)
class _Run:
    """What all dialogs of a bench share."""

    gallery: _Gallery
    captions: Sequence[Sequence[str]]
    memory: Memory
    rounds: int
    candidates: int
    user: UserKind
    scale: float
    temper: float
    reread: float
    seed: int
    batch_size: int

    def text(self, one: _Meant) -> str:
        """What begins the dialog."""
        return self.captions[one.image][one.caption].strip()

    def answering(self, one: _Meant) -> SimulatedUser:
        """Who means the image."""
        if self.user == "captions":
            own = self.captions[one.image]
            return CaptionUser([caption for n, caption in enumerate(own) if n != one.caption])
        interview = Interview(self.gallery, memory=self.memory, seed=self.seed, batch_size=self.batch_size)
        return GeneratorUser(interview, self.gallery.hit(one.image))


@dataclass(frozen=True, slots=True)
class _Played:
    """What became of the dialogs of one policy."""

    ranks: NDArray[np.int64]  # [d, T + 1], from 0
    turns: list[tuple[Turn, ...]]
    evidence: list[tuple[NDArray[np.float64], NDArray[np.float64], int]]  # encoder, generator, who is meant
    seconds: float


def _play(run: _Run, name: str, policy: Policy, meant: Sequence[_Meant], told: Progress) -> _Played:
    begin = time.perf_counter()
    ranks, turns, evidence = [], [], []
    # ChatIR ranks everything, and that costs an encoder nothing.
    considered = len(run.gallery.images) if isinstance(policy, CaptionDialog) else run.candidates
    for done, one in enumerate(meant, start=1):
        dialog = Dialog(
            run.gallery, run.text(one), candidates=considered, policy=policy, budget=run.rounds, sure=1.0,
            scale=run.scale, temper=run.temper, reread=run.reread, seed=run.seed, batch_size=run.batch_size,
            memory=run.memory,
        )  # fmt: skip
        before = _log_p(dialog)
        user = run.answering(one)
        own = [_rank(run, dialog, one)]
        while (question := dialog.question) is not None:
            dialog.answer(user.answer(question))
            own.append(_rank(run, dialog, one))
        ranks.append(own + own[-1:] * (run.rounds + 1 - len(own)))
        turns.append(dialog.history)
        if one.image in before:
            after = _log_p(dialog)
            keys = list(before)
            prior = np.array([before[key] for key in keys])
            answers = np.array([after[key] for key in keys]) - prior
            said, more = run.gallery.cosines([dialog.text, retold(run.gallery, dialog.text, dialog.history)])
            heard = run.reread * run.scale * (more - said)[keys]
            evidence.append((prior + heard, answers - heard, keys.index(one.image)))
        if isinstance(run.memory, Remembered):
            run.memory.keep()
        told(f"dialogs by {name.replace('_', ' ')}", done, len(meant))
    return _Played(np.array(ranks, np.int64), turns, evidence, time.perf_counter() - begin)


def _log_p(dialog: Dialog) -> dict[int, float]:
    return {hit.key: hit.score for hit in dialog.ranking}


def _rank(run: _Run, dialog: Dialog, one: _Meant) -> int:
    """Where the image that is meant stands, from 0; a tie counts against it."""
    log_p = _log_p(dialog)
    if one.image in log_p:
        return sum(score >= log_p[one.image] for score in log_p.values()) - 1
    (cosine,) = run.gallery.cosines([dialog.text])
    return int((cosine >= cosine[one.image]).sum()) - 1


# --- what comes of it -------------------------------------------------------------------------------------


def _summary(
    run: _Run,
    found: Mapping[str, _Played],
    meant: Sequence[_Meant],
    policies: Mapping[str, Policy],
    data: Path,
    split: str,
) -> DialogBench:
    bootstrap = ClusterBootstrap(np.array([one.image for one in meant]))
    values = {
        name: {
            "hits@10": 100.0 * (best_so_far(played.ranks) < _K),
            "recall@10": 100.0 * (played.ranks < _K),
            "bri": best_rank_integral(played.ranks)[:, None],
        }
        for name, played in found.items()
    }  # each [d, columns]

    def means(one: NDArray[np.floating[Any]], digits: int) -> list[float]:
        return [round(float(mean), digits) for mean in one.mean(0)]

    def intervals(one: NDArray[np.floating[Any]], digits: int) -> list[list[float]]:
        return [rounded(bootstrap.interval(lambda drawn: drawn, column), digits) for column in one.T]

    first, *others = found
    differences: dict[str, dict[str, Any]] = {}
    for other in others:
        gain = {name: values[first][name] - values[other][name] for name in values[first]}
        differences[f"{first} - {other}"] = {
            "hits@10": means(gain["hits@10"], 2),
            "hits@10_ci": intervals(gain["hits@10"], 2),
            "recall@10": means(gain["recall@10"], 2),
            "recall@10_ci": intervals(gain["recall@10"], 2),
            "bri": means(gain["bri"], 4)[0],
            "bri_ci": intervals(gain["bri"], 4)[0],
        }
    setting = {
        "data": data.absolute().name,
        "split": split,
        "images": len(run.gallery.images),
        "dialogs": len(meant),
        "rounds": run.rounds,
        "candidates": min(run.candidates, len(run.gallery.images)),
        "user": run.user,
        "policies": {name: repr(policy) for name, policy in policies.items()},
        "encoder": run.gallery.encoder.fingerprint,
        "generator": run.gallery.generator.fingerprint,
        "wording": repr(Wording()),
        "scale": run.scale,
        "temper": run.temper,
        "reread": run.reread,
        "seed": run.seed,
        "intervals": _INTERVALS,
    }
    return DialogBench(
        setting=setting,
        hits={name: means(one["hits@10"], 2) for name, one in values.items()},
        hits_ci={name: intervals(one["hits@10"], 2) for name, one in values.items()},
        recall={name: means(one["recall@10"], 2) for name, one in values.items()},
        recall_ci={name: intervals(one["recall@10"], 2) for name, one in values.items()},
        bri={name: means(one["bri"], 4)[0] for name, one in values.items()},
        bri_ci={name: intervals(one["bri"], 4)[0] for name, one in values.items()},
        differences=differences,
        asked={name: _asked(played.turns) for name, played in found.items()},
        calibration={} if split.startswith("test") else _calibration(run, found, policies, meant),
        examples=tuple(
            _told(run, one, turns) for one, turns in zip(meant, found[first].turns[:_EXAMPLES], strict=False)
        ),
        seconds={name: round(played.seconds, 1) for name, played in found.items()},
    )


def _asked(dialogs: Sequence[tuple[Turn, ...]]) -> dict[str, float]:
    turns = [turn for some in dialogs for turn in some]
    facts = {
        "questions": len(turns) / len(dialogs),
        "dont_know": sum(is_unknown(turn.answer) for turn in turns) / len(dialogs),
    }
    expecting = [turn for turn in turns if turn.expected_gain is not None and not is_unknown(turn.answer)]
    if expecting:
        facts["expected_gain"] = sum(turn.expected_gain or 0.0 for turn in expecting) / len(expecting)
        facts["gain"] = sum(turn.entropy_before - turn.entropy_after for turn in expecting) / len(expecting)
    return {name: round(value, 4) for name, value in facts.items()}


def _calibration(
    run: _Run, found: Mapping[str, _Played], policies: Mapping[str, Policy], meant: Sequence[_Meant]
) -> dict[str, float]:
    """The scale that fits the first stage, and the temper that fits answers to questions drawn at random.

    Where the policy chooses questions by what it believes, another temper would have asked others.
    """
    cosine = run.gallery.cosines([run.text(one) for one in meant])  # [d, N]
    first = [(np.zeros(len(row)), row, one.image) for row, one in zip(cosine, meant, strict=True)]
    facts = {"scale": calibrated(_SCALES, first)}
    drawn = [
        case
        for name, played in found.items()
        if isinstance(policies[name], RandomQuestion)
        for case in played.evidence
    ]
    if drawn:
        facts["temper"] = round(run.temper * calibrated(_TEMPERS, drawn), 4)
    return facts


def _told(run: _Run, one: _Meant, turns: Sequence[Turn]) -> dict[str, Any]:
    return {
        "text": run.text(one),
        "image": run.gallery.hit(one.image).id,
        "turns": [
            {"question": turn.question, "answer": turn.answer, "entropy": round(turn.entropy_after, 3)}
            for turn in turns
        ],
    }
