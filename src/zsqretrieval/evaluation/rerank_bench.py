"""What re-ranking brings: every caption looks for its image, before and after a generator has read them.

The first stage compares each caption with all images of a split and keeps the best; the generator scores
those (:mod:`zsqretrieval.evaluation.score_matrix`). Everything after that is arithmetic on two matrices.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.checks import check_counts
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.encoder_bench import KS, read_captioned
from zsqretrieval.evaluation.intervals import ClusterBootstrap, rounded
from zsqretrieval.evaluation.leaks import refuse_test_split
from zsqretrieval.evaluation.progress import Progress, encode_in_parts, untold
from zsqretrieval.evaluation.remembered import kept_vectors
from zsqretrieval.evaluation.score_matrix import Seen, score_matrix
from zsqretrieval.evaluation.systems import ask_gallery, bank_of
from zsqretrieval.protocols import Encoder, Generator
from zsqretrieval.search.fusion import Fusion, WeightedSum, best_first
from zsqretrieval.search.query_bank import SCALE, STRENGTH, QueryBank
from zsqretrieval.search.scoring import Likelihood, Scoring, YesNo, score_images
from zsqretrieval.types import Image, ImageState

__all__ = ["WEIGHTS", "RerankBench", "bench_rerank", "first_candidates", "ranks_among"]

WEIGHTS = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1, 1.2, 1.5, 2, 3, 5, 10)
"""The weights of a :class:`~zsqretrieval.search.fusion.WeightedSum` that are tried in tuning."""

_INTERVALS = (
    "95 % percentile bootstrap over images, each with its queries; 2000 draws, the same for all stages"
)
_STAGES = ("first_stage", "fused", "normalized", "normalized_fused")
_TIMED = 10  # queries asked one at a time


@dataclass(frozen=True, slots=True)
class RerankBench:
    """Recalls of each stage on one split, text to image.

    Attributes:
        setting: what was measured: data, queries, candidates, parts, fusion, and how the intervals are made.
        stages: by name: ``first_stage``, one per scoring rule, ``fused``; with a bank ``normalized``, the
            first stage without what an image gets from any question, and ``normalized_fused``, which joins
            that one. Each has ``R@k`` in percent, ``R@k_ci``, and ``seconds_per_query``: one question alone,
            all that this ranking needs, median. The first stage also has ``ceiling``: how often the image is
            among the candidates at all.
        differences: ``"fused - first_stage"`` and the like -> ``R@k`` in points, ``R@k_ci``.
        ratios: ``"fused / first_stage"`` and the like -> ``R@k``, ``R@k_ci``; None over a recall of zero.
        sweep: when the weight was tuned, ``R@k`` of each ``weight`` tried, by the ``stage`` that it was tried
            in.
    """

    setting: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Any]]
    differences: Mapping[str, Mapping[str, Any]]
    ratios: Mapping[str, Mapping[str, Any]]
    sweep: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """One object: the stages by name, and ``differences``, ``ratios``, ``setting``, ``sweep`` if any."""
        facts = {**self.stages, "differences": self.differences, "ratios": self.ratios}
        return {**facts, **({"sweep": list(self.sweep)} if self.sweep else {}), "setting": self.setting}


def bench_rerank(
    encoder: Encoder,
    generator: Generator,
    data: Path,
    *,
    split: str = "test",
    queries: int | None = None,
    candidates: int = 50,
    scorings: Sequence[Scoring] = (Likelihood(), YesNo()),
    fusion: Fusion = WeightedSum(),  # noqa: B008  # frozen
    fusion_from: str = "given",
    tune: bool = False,
    bank: int | None = None,
    bank_scale: float = SCALE,
    bank_strength: float = STRENGTH,
    batch_size: int = 64,
    work: Path | None = None,
    progress: Progress | None = None,
) -> RerankBench:
    """Measure recall before and after re-ranking on a split of captioned WebDataset shards.

    Args:
        encoder: the first stage; compares exactly, without an index.
        generator: reads the candidates. Where it makes image states, each image is seen once.
        data: folder of shards ``{split}-*.tar``.
        split: which of them.
        queries: how many captions ask, taken evenly from all images and always the same; all when None.
        candidates: how many images of the first stage are read for each.
        scorings: the rules, of different names; the first one is fused.
        fusion: joins it with the first stage.
        fusion_from: where the fusion comes from, for the record.
        tune: choose the weight of ``fusion`` on this split: the one of :data:`WEIGHTS` with the best R@1,
            then R@5, then R@10; the smallest of equal ones. With a bank for either first stage.
        bank: let the generator write so many texts of each image, in the style ``"search"``; those that lead
            back to it are the :class:`~zsqretrieval.search.query_bank.QueryBank`. None measures without.
        bank_scale: its scale.
        bank_strength: its strength.
        batch_size: pairs the generator computes together.
        work: folder that keeps vectors and scores, to go on where an interrupted run was; made when missing.
        progress: told how far it is.

    Raises:
        InvalidInputError: the split is missing or has no captions; there is nothing to ask or to read; two
            scorings have one name; ``tune`` on a test split, or of a fusion without a weight.
        ZsqError: the generator gave a number that is none.
    """
    names = [scoring.name for scoring in scorings]
    if not names or len({*names, *_STAGES}) != len(names) + len(_STAGES):
        raise InvalidInputError(f"scorings must have names of their own, one or more of them, not {names}")
    check_counts(candidates=candidates)
    check_counts(or_none=True, queries=queries, bank=bank)
    if tune:
        refuse_test_split(split)
        if not isinstance(fusion, WeightedSum):
            raise InvalidInputError(f"only a WeightedSum has a weight to tune, not {fusion!r}")
    told = progress or untold
    task = _read_task(Path(data), split, queries)
    shown = Seen(generator, task.images, batch_size=batch_size, progress=told)
    query_bank = None
    with kept_vectors(encoder, work) as keeping:
        gallery = encode_in_parts(keeping.encode_image, task.images, "encoding images", told)  # [N, D]
        asked = encode_in_parts(keeping.encode_text, task.questions, "encoding captions", told)  # [Q, D]
        if bank is not None:
            written = ask_gallery(
                keeping, generator, task.images,
                shown=shown, n=bank, style="search", batch_size=batch_size, work=work, progress=told,
            )  # fmt: skip
            query_bank = bank_of(written, encoder.fingerprint, scale=bank_scale, strength=bank_strength)
    similarity = asked @ gallery.T  # [Q, N]
    found, first = first_candidates(similarity, task.answers, candidates)  # [Q, K] each
    scores = {
        scoring.name: score_matrix(
            generator, scoring, task.questions, task.images, found,
            shown=shown, batch_size=batch_size, work=work, progress=told,
        )
        for scoring in scorings
    }  # fmt: skip

    right = (similarity >= _at(similarity, task.answers)).sum(1) - 1  # [Q], a tie counts against it
    ranks = {"first_stage": right.astype(np.int64)}
    ranks |= {name: ranks_among(found, score, task.answers) for name, score in scores.items()}
    joined = {"fused": first}  # what the likelihood is joined with
    if query_bank is not None:
        joined["normalized_fused"] = first - query_bank.taken(gallery)[found]
        ranks["normalized"] = ranks_among(found, joined["normalized_fused"], task.answers)
    tried: list[Fusion] = [fusion]
    if tune and isinstance(fusion, WeightedSum):
        tried = [replace(fusion, weight=float(weight)) for weight in WEIGHTS]
    fusions, sweep = {}, []
    for name, before in joined.items():
        fusions[name], ranks[name], recalled = _best(tried, before, scores[names[0]], found, task.answers)
        if tune:
            rows = zip(WEIGHTS, recalled, strict=True)
            sweep += [{"stage": name, "weight": float(weight), **recall} for weight, recall in rows]

    seconds = _time_queries(
        encoder, generator, scorings, query_bank, task, gallery, shown, candidates, batch_size
    )
    stages, differences, ratios = _summaries(ranks, task.answers)
    for name, spent in seconds.items():
        stages[name]["seconds_per_query"] = round(spent, 6)
    stages["first_stage"]["ceiling"] = round(float(100 * (found == task.answers[:, None]).any(1).mean()), 2)
    setting = {
        "data": Path(data).absolute().name,
        "split": split,
        "images": len(task.images),
        "queries": len(task.questions),
        "of_queries": task.available,
        "candidates": found.shape[1],
        "encoder": encoder.fingerprint,
        "generator": generator.fingerprint,
        "scorings": {scoring.name: repr(scoring) for scoring in scorings},
        "fusion": repr(fusions["fused"]),
        "weight": getattr(fusions["fused"], "weight", None),
        "weight_from": f"tuned for R@1 on {split}" if tune else fusion_from,
        "bank": None
        if query_bank is None
        else {
            "written": written.generated,
            "questions": len(query_bank),
            "scale": query_bank.scale,
            "strength": query_bank.strength,
            "fusion": repr(fusions["normalized_fused"]),
        },
        "intervals": _INTERVALS,
    }
    return RerankBench(setting, stages, differences, ratios, tuple(sweep))


# --- the task ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Task:
    images: list[Image]  # [N], the gallery
    questions: list[str]  # [Q]
    answers: NDArray[np.int64]  # [Q], position of the image a question is about
    available: int  # captions of the split


def _read_task(data: Path, split: str, queries: int | None) -> _Task:
    samples = list(read_captioned(data, split))
    captions = [caption for sample in samples for caption in sample.captions]
    owner = np.repeat(np.arange(len(samples)), [len(sample.captions) for sample in samples])
    # Every image asks once before any asks twice; which caption it is, is drawn.
    random = np.random.default_rng(0)
    shuffled = random.permutation(len(captions))
    turn = np.empty(len(captions), np.int64)
    counted: dict[int, int] = {}
    for caption in shuffled:
        turn[caption] = counted.setdefault(owner[caption], 0)
        counted[owner[caption]] += 1
    chosen = np.sort(shuffled[np.argsort(turn[shuffled], kind="stable")][:queries])
    return _Task(
        [sample.image for sample in samples], [captions[i] for i in chosen], owner[chosen], len(captions)
    )


# --- the first stage --------------------------------------------------------------------------------------


def first_candidates(
    similarity: NDArray[np.float32], answers: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The k images most similar to each question.

    Args:
        similarity: float32 [q, n].
        answers: int64 [q], the right image of each question; among equally similar ones it comes last.
        k: how many, >= 1; all when there are fewer.

    Returns:
        Positions int64 [q, k] and their similarities float64 [q, k], best first.
    """
    is_right = np.arange(similarity.shape[1]) == answers[:, None]
    found = np.lexsort((is_right, -similarity), axis=-1)[:, :k].astype(np.int64)
    return found, np.take_along_axis(similarity, found, 1).astype(np.float64)


def _at(values: NDArray[np.float32], columns: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.take_along_axis(values, columns[:, None], 1)


# --- what comes of it -------------------------------------------------------------------------------------


def ranks_among(
    found: NDArray[np.int64], scores: NDArray[np.float64], answers: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Where the right image stands after re-ranking, from 0; a tie counts against it.

    Args:
        found: int64 [q, k], the candidates.
        scores: float64 [q, k], higher is better.
        answers: int64 [q], the right image.

    Returns:
        int64 [q]; the largest int64 where the right image is not among the candidates.
    """
    is_right = found == answers[:, None]
    own = np.where(is_right, scores, -np.inf).max(1, keepdims=True)
    ranks = (scores >= own).sum(1) - 1
    return np.where(is_right.any(1), ranks, np.iinfo(np.int64).max)


def _fused(
    fusion: Fusion,
    first: NDArray[np.float64],
    scores: NDArray[np.float64],
    found: NDArray[np.int64],
    answers: NDArray[np.int64],
) -> NDArray[np.int64]:
    order = np.argsort(-first, axis=1, kind="stable")  # which a fusion is promised
    best, scored = np.take_along_axis(first, order, 1), np.take_along_axis(scores, order, 1)
    fused = np.stack([fusion.fuse(*rows) for rows in zip(best, scored, strict=True)])
    return ranks_among(np.take_along_axis(found, order, 1), fused, answers)


def _best(
    tried: Sequence[Fusion],
    first: NDArray[np.float64],
    scores: NDArray[np.float64],
    found: NDArray[np.int64],
    answers: NDArray[np.int64],
) -> tuple[Fusion, NDArray[np.int64], list[dict[str, float]]]:
    """The best of some fusions, where it puts the right images, and the recalls of all of them."""
    ranks = [_fused(one, first, scores, found, answers) for one in tried]
    recalls = [_recalls(one) for one in ranks]
    best = max(range(len(tried)), key=lambda n: list(recalls[n].values()))
    return tried[best], ranks[best], recalls


def _recalls(ranks: NDArray[np.int64]) -> dict[str, float]:
    return {f"R@{k}": round(float(100 * (ranks < k).mean()), 2) for k in KS}


def _summaries(
    ranks: Mapping[str, NDArray[np.int64]], answers: NDArray[np.int64]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Recalls, their differences from the first stage, and their ratios to it, with paired intervals."""
    bootstrap = ClusterBootstrap(answers)
    stages: dict[str, dict[str, Any]] = {name: _recalls(rank) for name, rank in ranks.items()}
    differences: dict[str, dict[str, Any]] = {}
    ratios: dict[str, dict[str, Any]] = {}
    for name, rank in ranks.items():
        for k in KS:
            hits = np.where(rank < k, 100.0, 0.0)
            stages[name][f"R@{k}_ci"] = rounded(bootstrap.interval(lambda own: own, hits), 2)
            if name == "first_stage":
                continue
            base = np.where(ranks["first_stage"] < k, 100.0, 0.0)
            gain = differences.setdefault(f"{name} - first_stage", {})
            gain[f"R@{k}"] = round(float((hits - base).mean()), 2)
            gain[f"R@{k}_ci"] = rounded(bootstrap.interval(lambda own, other: own - other, hits, base), 2)
            factor = ratios.setdefault(f"{name} / first_stage", {})
            with np.errstate(divide="ignore", invalid="ignore"):
                interval = bootstrap.interval(lambda own, other: own / other, hits, base)
            factor[f"R@{k}"] = round(float(hits.mean() / base.mean()), 3) if base.any() else None
            factor[f"R@{k}_ci"] = rounded(interval, 3) if np.isfinite(interval).all() else None
    return stages, differences, ratios


def _time_queries(
    encoder: Encoder,
    generator: Generator,
    scorings: Sequence[Scoring],
    bank: QueryBank | None,
    task: _Task,
    gallery: NDArray[np.float32],
    shown: Sequence[Image | ImageState],
    candidates: int,
    batch_size: int,
) -> dict[str, float]:
    """Seconds until each stage's ranking is there, one question at a time as in a search; median."""
    shown = shown[:]  # seen before the clock runs
    spent: dict[str, list[float]] = {}
    step = max(len(task.questions) // _TIMED, 1)
    for question in task.questions[::step][:_TIMED]:
        begin = time.perf_counter()
        similarity = gallery @ encoder.encode_text([question])[0]
        found = best_first(similarity)[:candidates]
        first = time.perf_counter() - begin
        spent.setdefault("first_stage", []).append(first)
        if bank is not None:
            best_first(bank.normalized(similarity[found], gallery[found]))
            spent.setdefault("normalized", []).append(time.perf_counter() - begin)
        for scoring in scorings:
            begin = time.perf_counter()
            score_images(generator, scoring, question, [shown[i] for i in found], batch_size=batch_size)
            spent.setdefault(scoring.name, []).append(first + time.perf_counter() - begin)
    medians = {name: float(np.median(one)) for name, one in spent.items()}
    medians["fused"] = medians[scorings[0].name]
    if bank is not None:
        medians["normalized_fused"] = medians["fused"] + medians["normalized"] - medians["first_stage"]
    return medians
