"""Recall by the size of the gallery: measured, with synthetic distractors, and extrapolated.

dataset -> Competition         every relevant image against all other images
       --> measured            recall at each size, exact averages over galleries
       --> hard synthetic      the same with synthetic distractors near the queries
       --> models              fitted to all images, checked by fitting on a tenth
       --> extrapolated        recall, ceilings, candidates needed
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets import Task
from zsqretrieval.evaluation.results import row
from zsqretrieval.evaluation.run import Run, exact_search
from zsqretrieval.evaluation.scaling_models import (
    LAION_5B,
    Competition,
    Floats,
    Spread,
    extrapolated_share,
    fit_spreads,
    interval_of,
    list_suffices,
    recall_in_sample,
    reranking_cost,
)
from zsqretrieval.evaluation.scores import Bench
from zsqretrieval.evaluation.stats import ClusterBootstrap
from zsqretrieval.search.fusion import Fusion, RerankOnly, WeightedSum, fuse
from zsqretrieval.search.scoring import Likelihood, Scoring

_KS = (1, 10)
_CEILINGS = (10, 100, 1000, 10_000, 100_000)
_SIZES = 8  # galleries measured between the smallest and all images
_SMALLEST = 100
_TAIL, _TAIL_AT_LEAST = 0.02, 20  # share of the distractors whose scores are the tail
_HELD_OUT = 10  # the models are checked by fitting on a tenth of the distractors
_LARGE = (10**5, 10**6, 10**7, 10**8, 10**9, LAION_5B)
_NEAR = 20  # hard distractors lie between the nearest images of a query
_AT_ONCE = 20_000  # synthetic vectors in memory together
_ROWS = 256  # queries whose similarities are in memory together

ASSUMPTIONS = (
    "Further distractors come from the same population. LAION's differ from Flickr8k's: most do not show "
    "people and dogs in action and are easier; near-duplicates are many, and harder.",
    "Images that an encoder was trained on, as the mini encoder was on Flickr8k's training split, are "
    "distractors like unseen ones.",
    "Every query has one relevant image. Among billions, many images match a caption, so recall of the one "
    "image is not usefulness.",
    "The chance p that a random image scores higher than the relevant one is observed down to about one over "
    "the number of distractors at hand. Below that the models assume, and their disagreement is part of the "
    "uncertainty. Without a model, recall in a larger gallery is between 0 and the recall in the largest.",
    "Intervals are percentile bootstraps over images with their queries, with the same distractors.",
    "Hard synthetic distractors are vectors, not images: no generator scores them, and no model is fitted to "
    "them.",
    "After re-ranking: the ceiling by a model of the first stage, times the share of it that is kept, whose "
    "logit is linear in the logarithm of the gallery. Over five decades this is a guess.",
    "The first stage is exact search. An approximate index loses some recall in addition.",
)
"""Assumptions of the extrapolation."""


def measure_scaling(
    bench: Bench,
    form: str,
    *,
    queries: int | None = None,
    sizes: Sequence[int] = (),
    scoring: Scoring | None = Likelihood(),  # noqa: B008  # frozen
    fusion: Fusion = WeightedSum(),  # noqa: B008  # frozen
    candidates: int = 100,
    depths: Sequence[int] = (10, 50),
    synthetic: int = 100_000,
    resamples: int = 200,
    draws: int = 20,
    seed: int = 0,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure text-to-image recall by the size of the gallery, and extrapolate it.

    Args:
        bench: images that no query asks for are distractors.
        form: of the queries, each with one relevant image.
        queries: size of the sample, evenly from all images; all when None.
        sizes: gallery sizes to measure; eight between 100 and all images when empty.
        scoring: re-ranks candidates; None measures the first stage alone.
        fusion: of the first-stage scores and those of ``scoring``.
        candidates: first-stage candidates in the whole gallery that are scored.
        depths: candidates re-ranked in a gallery of any size, at most ``candidates``; measured from the size
            on for which the list of the whole gallery contains the first K of the smaller one.
        synthetic: number of hard synthetic distractors; 0 for none.
        resamples: draws of the bootstrap that models are fitted to.
        draws: galleries drawn for re-ranking.
        seed: of all draws but the sample.

    Returns:
        Rows of group ``scaling``: ``depth`` is the number of images in the gallery. ``form`` is ``measured``;
        ``hard synthetic``; a model (``beta``, ``normal``, ``pareto``), which extrapolates; ``envelope``, from
        the lowest to the highest end of the models' intervals, without a value; or ``held out, MODEL``, the
        prediction after fitting on a tenth of the distractors, whose gain is the error. Measures are ``R@k``,
        and for models ``candidates needed``: K that keeps the ceiling. Re-ranked systems are named
        ``likelihood@K`` and ``fused@K``.

        Facts: ``settings``; ``ceiling``, the share of queries whose relevant image is a candidate; ``fits``,
        the parameters of the models; ``cost`` of re-ranking on one H100; ``assumptions``.

    Raises:
        InvalidInputError: a query has several relevant images, there are too few images, or a number is out
            of range.
    """
    images = len(bench.dataset.gallery)
    if not depths or not 1 <= min(depths) <= max(depths) <= candidates or synthetic < 0 or draws < 1:
        raise InvalidInputError(
            f"{candidates} candidates, depths {list(depths)}, {synthetic} synthetic distractors, {draws} "
            "draws: depths must be from 1 to candidates, and draws at least 1"
        )
    if images <= 10 * _TAIL_AT_LEAST:
        raise InvalidInputError(f"{bench.dataset.name} has {images} images; scaling needs more than 200")
    if sizes and not 2 <= min(sizes) <= max(sizes) <= images:
        raise InvalidInputError(f"gallery sizes {list(sizes)} must be from 2 to {images} images")
    part = bench.part("text to image", form, queries)
    asking, gallery = bench.encode_texts(part.texts), bench.gallery  # [q, D], [n, D]
    answers = _relevant_positions(part.task)
    weights = ClusterBootstrap(part.task.clusters, resamples=resamples, seed=seed).query_weights()
    whole = compete(asking, gallery, answers, np.arange(images))
    study = _Study(bench.name, asking, gallery, answers, whole, weights)

    measured = sorted({*(sizes or np.geomspace(_SMALLEST, images, _SIZES).astype(int).tolist())})
    held_out = max(whole.pool // _HELD_OUT, 2 * _TAIL_AT_LEAST)
    spreads = fit_spreads(whole, weights)
    rows = [*_measured(study, measured), *_held_out(study, held_out, seed)]
    rows += _hard(study, synthetic, seed, bench) if synthetic else []
    ks = (*_KS, *_CEILINGS[1:])
    rows += _extrapolated(study, bench.name, spreads, lambda spread, n: {k: spread.recall(n, k) for k in ks})
    if scoring is not None:
        first = exact_search(asking, gallery, part.task, k=candidates, name=bench.name)
        scored = part.score(first, scoring, f"scoring by {scoring.name}")
        for depth in depths:
            listed = first.candidates.shape[1]
            large = [n for n in measured if n > depth and list_suffices(listed, whole.pool, n - 1, depth)]
            for system, combined in ((scoring.name, RerankOnly()), ("fused", fusion)):
                found = {
                    n: recall_reranked(first, scored, answers, combined, n - 1, depth, draws=draws, seed=seed)
                    for n in large
                }
                rows += _reranked(study, f"{system}@{depth}", spreads, found, depth)
    ceiling = study.mean((whole.beaten_by < candidates).astype(np.float64))
    needed = {spread.model: _needed(study, spread, ceiling[0]) for spread in spreads}
    facts = {
        "settings": {
            "queries": len(answers), "relevant_images": len(np.unique(answers)), "images": images,
            "candidates": candidates, "depths": list(depths), "scoring": repr(scoring),
            "fusion": repr(fusion), "synthetic": synthetic, "tail": whole.best.shape[1] - 1,
            "held_out_fitted_on": held_out, "resamples": resamples, "draws": draws, "seed": seed,
        },
        "ceiling": _with_interval(ceiling),
        "fits": {
            spread.model: {name: _with_interval(values) for name, values in spread.parameters.items()}
            for spread in spreads
        },
        "cost": reranking_cost(_CEILINGS, {m: int(one[-1]["value"]) for m, one in needed.items() if one}),
        "assumptions": list(ASSUMPTIONS),
    }  # fmt: skip
    return [*rows, *(one for found in needed.values() for one in found)], facts


def _relevant_positions(task: Task) -> NDArray[np.int64]:
    """Position of the relevant image of every query, int64 [q]."""
    places = task.relevant
    for query, own in zip(task.queries, places, strict=True):
        if len(own) != 1:
            raise InvalidInputError(f"query {query!r} has {len(own)} relevant images; scaling needs one")
    return np.array(places, np.int64)[:, 0]


def _with_interval(draws: Floats) -> dict[str, Any]:
    return {"value": float(draws[0]), "interval": list(interval_of(draws))}


@dataclass(frozen=True, slots=True, eq=False)
class _Study:
    """Vectors, competition and bootstrap of all queries; makes the rows."""

    system: str  # the first stage
    asking: NDArray[np.float32]  # [q, D], the queries
    gallery: NDArray[np.float32]  # [n, D]
    answers: NDArray[np.int64]  # [q], position of the relevant image
    whole: Competition
    weights: Floats  # [1 + draws, q], times each query counts; the first row is all ones

    def mean(self, values: NDArray[np.float64]) -> Floats:
        """Mean of ``values`` [q] in every draw, float64 [1 + draws]."""
        return np.asarray((self.weights @ values) / self.weights.sum(1))

    def means(self, ks: Sequence[int], found: NDArray[np.float64]) -> dict[int, Floats]:
        """Draws of the mean of each row of ``found`` [len(ks), q]."""
        return {k: self.mean(one) for k, one in zip(ks, found, strict=True)}

    def within(self, size: int, ks: Sequence[int]) -> dict[int, Floats]:
        """Draws of first-stage recall in a gallery of some size, by k."""
        return self.means(ks, recall_in_sample(self.whole.beaten_by, self.whole.pool, size - 1, ks))

    def row(
        self, system: str, form: str, size: int, measure: str, draws: Floats, **more: Any
    ) -> dict[str, Any]:
        """One row of the table, from the draws [1 + draws] of its value."""
        low, high = interval_of(draws)
        columns = {"form": form, "direction": "text to image", "depth": size, "queries": len(self.answers)}
        return row("scaling", system, measure, draws[0], **columns | {"low": low, "high": high} | more)

    def recalls(self, system: str, form: str, size: int, found: Mapping[int, Floats]) -> list[dict[str, Any]]:
        """Rows of recall by k."""
        return [self.row(system, form, size, f"R@{k}", draws) for k, draws in found.items()]


# --- measured ---------------------------------------------------------------------------------------------


def compete(
    asking: NDArray[np.float32],
    gallery: NDArray[np.float32],
    answers: NDArray[np.int64],
    members: NDArray[np.int64],
    best: int | None = None,
) -> Competition:
    """Compare every query with its relevant image and with a part of the gallery.

    Args:
        asking: float32 [q, D], unit rows.
        gallery: float32 [n, D], unit rows.
        answers: int64 [q], position of the relevant image.
        members: int64 [M + 1], different positions. The M others are the distractors of a query whose
            relevant image is a member; for any other query, all but the last member.
        best: m, at most M, of ``Competition.best``; 2 % of the members when None.
    """
    pool = len(members) - 1
    kept = max(_TAIL_AT_LEAST, int(_TAIL * len(members))) + 1 if best is None else best
    column = np.full(len(gallery), pool)  # the last member stands in for a relevant image that is no member
    column[members] = np.arange(len(members))
    own = np.einsum("qd,qd->q", asking, gallery[answers])
    beaten_by = np.empty(len(asking), np.int64)
    highest = np.empty((len(asking), kept), np.float32)
    others = gallery[members]
    for start in range(0, len(asking), _ROWS):
        rows = slice(start, start + _ROWS)
        similarity = asking[rows] @ others.T  # [rows, M + 1]
        answer = column[answers[rows]]
        member = members[answer] == answers[rows]
        # From the same product as the others, so that equal vectors have equal similarities.
        own[rows] = np.where(member, similarity[np.arange(len(answer)), answer], own[rows])
        similarity[np.arange(len(answer)), answer] = -np.inf
        beaten_by[rows] = (similarity >= own[rows, None]).sum(1)
        highest[rows] = -np.sort(np.partition(-similarity, kept - 1, axis=1)[:, :kept], axis=1)
    return Competition(pool, own, beaten_by, highest)


def _measured(study: _Study, sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    for size in sizes:
        ks = [*_KS, *(k for k in _CEILINGS if max(_KS) < k < size)]
        yield from study.recalls(study.system, "measured", size, study.within(size, ks))


# --- hard synthetic distractors ---------------------------------------------------------------------------


def _hard(study: _Study, count: int, seed: int, bench: Bench) -> Iterator[dict[str, Any]]:
    """First-stage recall with all real images and more and more synthetic ones."""
    queries = len(study.asking)
    parts = np.array_split(np.arange(queries), max(queries // _ROWS, 1))
    near = np.empty((queries, _NEAR), np.int64)
    for part in parts:
        similarity = study.asking[part] @ study.gallery.T
        similarity[np.arange(len(part)), study.answers[part]] = -np.inf
        near[part] = np.argpartition(-similarity, _NEAR, axis=1)[:, :_NEAR]
    made = hard_distractors(study.gallery, near, count, seed=seed)
    beaten_by = np.zeros(queries, np.int64)
    for start in range(0, count, _AT_ONCE):
        some = made[start : start + _AT_ONCE]
        for part in parts:
            beaten_by[part] += (study.asking[part] @ some.T >= study.whole.own[part, None]).sum(1)
        bench.step("synthetic distractors", min(start + _AT_ONCE, count), count)
    for synthetic in np.unique(np.geomspace(min(_SMALLEST, count), count, _SIZES).astype(int)).tolist():
        found = recall_in_sample(beaten_by, count, synthetic, _KS, ahead=study.whole.beaten_by)
        size = len(study.gallery) + synthetic
        yield from study.recalls(study.system, "hard synthetic", size, study.means(_KS, found))


def hard_distractors(
    gallery: NDArray[np.float32], near: NDArray[np.int64], count: int, *, seed: int = 0
) -> NDArray[np.float32]:
    """Make up vectors that crowd around the queries, float32 [count, D], unit rows. No image has them.

    Each lies between two of the nearest real images of one query, ``near`` int64 [q, h]. The middle of two
    unit vectors is closer to anything that both are close to, so most are closer to the query than the two
    images. No real gallery has only such distractors; this is a worst case.
    """
    random = np.random.default_rng(seed)
    query = random.integers(len(near), size=count)
    one = random.integers(near.shape[1], size=count)
    other = (one + random.integers(1, near.shape[1], size=count)) % near.shape[1]
    along = random.random((count, 1), dtype=np.float32)
    made = along * gallery[near[query, one]] + (1 - along) * gallery[near[query, other]]
    length = np.linalg.norm(made, axis=1, keepdims=True)
    unit: NDArray[np.float32] = made / np.maximum(length, np.finfo(np.float32).tiny)
    return unit


# --- after re-ranking -------------------------------------------------------------------------------------


def recall_reranked(
    first: Run,
    scored: Run,
    answers: NDArray[np.int64],
    fusion: Fusion,
    distractors: int,
    depth: int,
    *,
    ks: Sequence[int] = _KS,
    draws: int = 20,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Recall@k after re-ranking, as shares of galleries drawn at random, float64 [len(ks), q].

    A drawn gallery has n other images (``distractors``), the same for all queries, and the relevant image of
    every query, ``answers`` int64 [q] in its items. Its candidates are the first ``depth`` of the list
    that are in it; the fusion of their scores ranks them, and a tie counts against the relevant image. Images
    that are no candidates are not found.

    ``first`` is the first stage over the whole gallery, best first and long enough by :func:`list_suffices`;
    ``scored`` has other scores of the same candidates.
    """
    pool = len(first.task.items) - 1
    draws = 1 if distractors == pool else draws
    random = np.random.default_rng(seed)
    relevant = first.candidates == answers[:, None]
    found = np.zeros((len(ks), len(answers)))
    for _ in range(draws):
        place = random.permutation(pool + 1)
        turn = place[first.candidates]  # [q, listed]; the relevant image takes no turn from the others
        there = relevant | (turn - (turn > place[answers][:, None]) < distractors)
        candidate = there & (np.cumsum(there, axis=1) <= depth)
        for query in np.flatnonzero((candidate & relevant).any(axis=1)):
            taken = candidate[query]
            fused = fuse(fusion, first.scores[query, taken], scored.scores[query, taken])
            rank = (fused >= fused[relevant[query, taken]]).sum() - 1
            found[:, query] += rank < np.array(ks)
    return found / draws


def _reranked(
    study: _Study,
    system: str,
    spreads: Sequence[Spread],
    found: Mapping[int, NDArray[np.float64]],
    depth: int,
) -> list[dict[str, Any]]:
    """Recall by size (``found``, [len(_KS), q] each), and its extrapolation from two sizes or more.

    The extrapolation is the ceiling by each model, times the share of it that re-ranking keeps.
    """
    rows: list[dict[str, Any]] = []
    kept: dict[int, list[Floats]] = {k: [] for k in _KS}
    for size, one in found.items():
        recalls = study.means(_KS, one)
        rows += study.recalls(system, "measured", size, recalls)
        ceiling = study.within(size, [depth])[depth]
        for k, recall in recalls.items():
            kept[k].append(recall / np.maximum(ceiling, 1e-12))
    if len(found) < 2:
        return rows
    sizes = np.array(list(found), np.int64)

    def recalls_of(spread: Spread, size: int) -> dict[int, Floats]:
        ceiling = spread.recall(size, depth)
        return {k: ceiling * extrapolated_share(sizes, np.stack(one, 1), size) for k, one in kept.items()}

    return [*rows, *_extrapolated(study, system, spreads, recalls_of)]


# --- models -----------------------------------------------------------------------------------------------


def _extrapolated(
    study: _Study,
    system: str,
    spreads: Sequence[Spread],
    recalls_of: Callable[[Spread, int], Mapping[int, Floats]],
) -> Iterator[dict[str, Any]]:
    """Recall of every model, and the envelope of their intervals."""
    for size in _LARGE:
        by_model = {spread.model: recalls_of(spread, size) for spread in spreads}
        for model, recalls in by_model.items():
            yield from study.recalls(system, model, size, recalls)
        for k in next(iter(by_model.values())):
            ends = np.array([interval_of(recalls[k]) for recalls in by_model.values()])
            unknown = np.full(2, np.nan)
            yield study.row(system, "envelope", size, f"R@{k}", unknown, low=ends.min(), high=ends.max())


def _held_out(study: _Study, distractors: int, seed: int) -> Iterator[dict[str, Any]]:
    """Fit on some of the distractors and predict the whole gallery."""
    size = len(study.gallery)
    members = np.random.default_rng(seed).permutation(size)[: distractors + 1]
    few = compete(study.asking, study.gallery, study.answers, members)
    measured = study.within(size, (*_KS, 100))
    for spread in fit_spreads(few, study.weights):
        for k, found in measured.items():
            predicted = spread.recall(size, k)
            # The same draws of images in both, so what remains is the error of the model.
            error = predicted - found
            low, high = interval_of(error)
            yield study.row(
                study.system, f"held out, {spread.model}", size, f"R@{k}", predicted,
                baseline="measured", gain=float(error[0]), gain_low=low, gain_high=high,
            )  # fmt: skip


def _needed(study: _Study, spread: Spread, ceiling: float) -> list[dict[str, Any]]:
    """Candidates by size of the gallery that keep the ceiling of the list in the whole gallery."""
    sizes = (len(study.gallery), *_LARGE) if ceiling else ()
    needed = {size: spread.candidates_needed(size, ceiling).astype(np.float64) for size in sizes}
    return [
        study.row(study.system, spread.model, size, "candidates needed", draws, unit="")
        for size, draws in needed.items()
    ]
