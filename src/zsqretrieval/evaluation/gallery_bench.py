"""Recall as the gallery grows: measured with every image at hand, stressed with made-up ones, extrapolated.

dataset -> Contest             every answer against all other images (gallery_size)
       --> measured            recall at each size, exact averages over galleries
       --> hard_synthetic      the same with made-up distractors around the queries
       --> fit_spreads         models of how hard queries are (extrapolation), checked on what was held out
       --> extrapolated        recall, ceilings, candidates needed; cost of reading them (roofline)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets import Dataset
from zsqretrieval.evaluation.extrapolation import (
    Spread,
    candidates_needed,
    extrapolated_share,
    fit_spreads,
    image_draws,
    interval_of,
    recall_of,
)
from zsqretrieval.evaluation.gallery_size import (
    Contest,
    contest,
    hard_distractors,
    list_suffices,
    recall_in_sample,
    recall_reranked,
)
from zsqretrieval.evaluation.progress import Progress, encode_in_parts, untold
from zsqretrieval.evaluation.remembered import kept_vectors
from zsqretrieval.evaluation.rerank_bench import first_candidates
from zsqretrieval.evaluation.roofline import LAION_5B, laion_cost
from zsqretrieval.evaluation.runs import GeneratorSystem, Run
from zsqretrieval.evaluation.score_matrix import Seen
from zsqretrieval.protocols import Encoder, Generator
from zsqretrieval.search.fusion import Fusion, RerankOnly, WeightedSum
from zsqretrieval.search.scoring import Likelihood, Scoring
from zsqretrieval.types import Image

__all__ = ["ASSUMPTIONS", "GalleryBench", "bench_gallery"]

KS = (1, 10)
_CEILINGS = (10, 100, 1000, 10_000, 100_000)
_SIZES = 8  # galleries measured between the smallest and all
_SMALLEST = 100
_TAIL, _TAIL_AT_LEAST = 0.02, 20  # best distractors whose scores a tail is fitted to
_HELD_OUT = 10  # the models are checked by fitting on a tenth of the distractors
_LARGE = (10**5, 10**6, 10**7, 10**8, 10**9, LAION_5B)
_NEAR = 20  # real neighbours between which hard distractors lie
_AT_ONCE = 20_000  # synthetic vectors in memory together

ASSUMPTIONS = (
    "Distractors beyond those at hand are drawn at random from the same population. LAION's are not "
    "Flickr's: most have nothing to do with people and dogs in action and are easier; near-duplicates are "
    "many, and harder.",
    "An encoder that was trained on images that are distractors here, as the mini encoder was on Flickr8k's "
    "training split, may treat them otherwise than images it never saw.",
    "Every query has one right image. Among billions many images answer a caption as well, so recall of the "
    "one is not usefulness.",
    "The chance p that a random image beats the answer shows down to about one over the number of "
    "distractors at hand. Below it the models assume, and their disagreement is part of the uncertainty. "
    "Without a model only this holds: recall in a larger gallery is between 0 and the recall measured in the "
    "largest.",
    "Intervals are percentile bootstraps over images with their queries, with the same distractors in all "
    "draws.",
    "Hard synthetic distractors are made-up vectors and no images: no generator reads them, and no model is "
    "fitted to them.",
    "After re-ranking: the ceiling by a model of the first stage, times the share of it that is kept, whose "
    "logit is continued linearly in the logarithm of the gallery. Over five decades this is a guess.",
    "The first stage is exact search. An approximate index loses some recall in addition.",
)
"""What has to be believed to believe the extrapolation."""


@dataclass(frozen=True, slots=True)
class GalleryBench:
    """What was measured and what follows; every number in percent with a 95 % interval ``_ci``.

    Attributes:
        setting: data, sizes, parts, seeds.
        measured: by system, a row for each ``gallery`` size: ``R@1``, ``R@10``; for the first stage also the
            ceilings ``R@100`` ... as far as the gallery goes. Systems after re-ranking are named
            ``likelihood@K`` and ``fused@K`` by how many candidates are read.
        hard_synthetic: first stage with all real images and more and more ``synthetic`` ones.
        held_out: what the models, fitted on a tenth of the distractors, predict of the largest gallery, and
            what was measured there; ``_off_ci`` is of the difference, in points.
        fits: parameters of the models.
        extrapolated: by system and model, rows as above; ``envelope`` spans all intervals.
        candidates_needed: by model, rows of ``gallery`` and the ``K`` that keeps the ceiling of those read.
        cost: reading candidates on one H100, computed.
        assumptions: sentences.
    """

    setting: Mapping[str, Any]
    measured: Mapping[str, Sequence[Mapping[str, Any]]]
    hard_synthetic: Sequence[Mapping[str, Any]]
    held_out: Sequence[Mapping[str, Any]]
    fits: Mapping[str, Mapping[str, Any]]
    extrapolated: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
    candidates_needed: Mapping[str, Sequence[Mapping[str, Any]]]
    cost: Mapping[str, Any]
    assumptions: Sequence[str] = ASSUMPTIONS


def bench_gallery(
    encoder: Encoder,
    generator: Generator | None,
    dataset: Dataset,
    *,
    distractors: Sequence[Image] = (),
    queries: int | None = None,
    candidates: int = 100,
    depths: Sequence[int] = (10, 50),
    scoring: Scoring = Likelihood(),  # noqa: B008  # frozen
    fusion: Fusion = WeightedSum(),  # noqa: B008  # frozen
    synthetic: int = 100_000,
    resamples: int = 200,
    draws: int = 20,
    batch_size: int = 64,
    work: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> GalleryBench:
    """Measure recall against the size of the gallery, and extrapolate.

    Args:
        encoder: the first stage; compares exactly, without an index.
        generator: reads candidates; None measures the first stage alone.
        dataset: whose texts ask, each with one right image.
        distractors: images beside its gallery.
        queries: how many texts ask, evenly from all images; all when None.
        candidates: how many of the first stage over the whole gallery the generator scores.
        depths: how many candidates are read in a gallery of any size; at most ``candidates``. The best of a
            small gallery are spread wider over the whole one's list, so a depth is measured from that size on
            that the list suffices for.
        scoring: the generator's rule.
        fusion: joins it with the first stage.
        synthetic: how many hard distractors are made up; none when 0.
        resamples: draws of the bootstrap that models are fitted to.
        draws: galleries drawn for re-ranking.
        batch_size: pairs the generator computes together.
        work: folder that keeps vectors and scores, to go on where an interrupted run was; made when missing.
        seed: of all draws.
        progress: told how far it is.

    Raises:
        InvalidInputError: a query has more than one right image, too few images, or a number is out of range.
        ZsqError: the generator gave a number that is none.
        MissingDependencyError: scipy is not installed.
    """
    if (
        not depths
        or min(depths) < 1
        or max(depths) > candidates
        or synthetic < 0
        or min(resamples, draws) < 1
    ):
        raise InvalidInputError(
            f"{candidates} candidates, {list(depths)} of them read, {synthetic} synthetic, {resamples} "
            f"resamples and {draws} draws: depths are from 1 to candidates, and there must be a draw"
        )
    told = progress or untold
    dataset = replace(dataset, gallery=(*dataset.gallery, *distractors))
    if queries is not None:
        dataset = dataset.sample(queries, seed=seed)
    task = dataset.text_to_image()
    answers = _answers(dataset)
    if len(task.items) <= 10 * _TAIL_AT_LEAST:
        raise InvalidInputError(
            f"{dataset.name} has {len(task.items)} images; a study of sizes needs more than "
            f"{10 * _TAIL_AT_LEAST}"
        )
    texts = [query.text for query in dataset.queries]
    with kept_vectors(encoder, work) as keeping:
        gallery = encode_in_parts(keeping.encode_image, dataset.gallery, "encoding images", told)  # [n, dim]
        asking = encode_in_parts(keeping.encode_text, texts, "encoding captions", told)  # [q, dim]

    whole = _contest(asking, gallery, answers, np.arange(len(gallery)))
    times = image_draws(task.clusters, resamples=resamples, seed=seed)
    sizes = np.unique(np.geomspace(_SMALLEST, len(gallery), _SIZES).astype(np.int64))
    measured = {"first_stage": [_first_stage_row(whole, int(size), times) for size in sizes]}
    spreads = fit_spreads(whole, times)
    extrapolated = {"first_stage": _extrapolate(spreads)}
    if generator is not None:
        first, scored = _read(
            generator, scoring, dataset, asking, gallery, answers, candidates, batch_size, work, told
        )
        for depth in depths:
            for name, one in ((scoring.name, RerankOnly()), ("fused", fusion)):
                rows, found = _reranked(first, scored, answers, one, sizes, depth, draws, seed, times)
                measured[f"{name}@{depth}"] = rows
                extrapolated[f"{name}@{depth}"] = _extrapolate_reranked(spreads, whole, found, depth, times)
    setting = {
        "data": dataset.name,
        "queries": len(task.queries),
        "images_asked_for": len(np.unique(answers)),
        "images": len(gallery),
        "distractors": whole.pool,
        "encoder": encoder.fingerprint,
        "generator": None if generator is None else generator.fingerprint,
        "scoring": repr(scoring),
        "fusion": repr(fusion),
        "candidates": candidates,
        "depths": list(depths),
        "tail": whole.best.shape[1] - 1,
        "resamples": resamples,
        "draws": draws,
        "seed": seed,
    }
    needed = {spread.model: _needed(spread, whole, candidates, times) for spread in spreads}
    return GalleryBench(
        setting,
        measured,
        _hard(asking, gallery, answers, whole, synthetic, seed, times, told),
        _held_out(asking, gallery, answers, whole, times, seed),
        {spread.model: _parameters(spread) for spread in spreads},
        extrapolated,
        needed,
        laion_cost(_CEILINGS, {model: int(rows[-1]["K"]) for model, rows in needed.items() if rows}),
    )


def _answers(dataset: Dataset) -> NDArray[np.int64]:
    """Where in the gallery the right image of every query stands."""
    place = {str(image.id): n for n, image in enumerate(dataset.gallery)}
    places = []
    for query in dataset.queries:
        right = [item for item, grade in dataset.qrels[query.id].items() if grade > 0]
        if len(right) != 1:
            raise InvalidInputError(
                f"{dataset.name}: query {query.id!r} has {len(right)} right images; a study of sizes needs "
                "one"
            )
        places.append(place[right[0]])
    return np.array(places, np.int64)


def _contest(
    asking: NDArray[np.float32],
    gallery: NDArray[np.float32],
    answers: NDArray[np.int64],
    members: NDArray[np.int64],
) -> Contest:
    return contest(asking, gallery, answers, members, max(_TAIL_AT_LEAST, int(_TAIL * len(members))) + 1)


# --- measured ---------------------------------------------------------------------------------------------


def _row(recalls: Mapping[int, NDArray[np.float64]], **what: int) -> dict[str, Any]:
    """A row of numbers: draws of each recall become percent and an interval."""
    row: dict[str, Any] = dict(what)
    for k, draws in recalls.items():
        row[f"R@{k}"] = _percent(draws[0])
        row[f"R@{k}_ci"] = [_percent(end) for end in interval_of(draws)]
    return row


def _percent(share: float) -> float:
    return float(f"{100 * share:.4g}")  # small ones keep their digits


def _mean(times: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over queries in every draw."""
    return np.asarray((times @ values) / times.sum(1))


def _first_stage_row(whole: Contest, size: int, times: NDArray[np.float64]) -> dict[str, Any]:
    ks = [*KS, *(k for k in _CEILINGS if max(KS) < k < size)]
    found = recall_in_sample(whole.beaten_by, whole.pool, size - 1, ks)
    return _row({k: _mean(times, one) for k, one in zip(ks, found, strict=True)}, gallery=size)


def _hard(
    asking: NDArray[np.float32],
    gallery: NDArray[np.float32],
    answers: NDArray[np.int64],
    whole: Contest,
    count: int,
    seed: int,
    times: NDArray[np.float64],
    told: Progress,
) -> list[dict[str, Any]]:
    if not count:
        return []
    near = np.empty((len(asking), _NEAR), np.int64)
    for start in range(0, len(asking), 256):
        rows = slice(start, start + 256)
        similarity = asking[rows] @ gallery.T
        similarity[np.arange(len(similarity)), answers[rows]] = -np.inf
        near[rows] = np.argpartition(-similarity, _NEAR, axis=1)[:, :_NEAR]
    made = hard_distractors(gallery, near, count, seed=seed)
    beaten_by = np.zeros(len(asking), np.int64)
    for start in range(0, count, _AT_ONCE):
        some = made[start : start + _AT_ONCE]
        for part in np.array_split(np.arange(len(asking)), max(len(asking) // 256, 1)):
            beaten_by[part] += (asking[part] @ some.T >= whole.own[part, None]).sum(1)
        told("meeting synthetic distractors", min(start + _AT_ONCE, count), count)
    table = []
    for synthetic in np.unique(np.geomspace(min(_SMALLEST, count), count, _SIZES).astype(int)):
        found = recall_in_sample(beaten_by, count, int(synthetic), KS, ahead=whole.beaten_by)
        recalls = {k: _mean(times, one) for k, one in zip(KS, found, strict=True)}
        table.append(_row(recalls, gallery=len(gallery) + int(synthetic), synthetic=int(synthetic)))
    return table


def _read(
    generator: Generator,
    scoring: Scoring,
    dataset: Dataset,
    asking: NDArray[np.float32],
    gallery: NDArray[np.float32],
    answers: NDArray[np.int64],
    candidates: int,
    batch_size: int,
    work: Path | None,
    told: Progress,
) -> tuple[Run, Run]:
    """The first stage's list over the whole gallery, and what the generator makes of it."""
    found, scores = [], []
    for start in range(0, len(asking), 256):
        rows = slice(start, start + 256)
        best = first_candidates(asking[rows] @ gallery.T, answers[rows], candidates)
        found.append(best[0])
        scores.append(best[1])
    queries, items = (tuple(q.id for q in dataset.queries), tuple(str(image.id) for image in dataset.gallery))
    first = Run("first_stage", queries, items, np.concatenate(found), np.concatenate(scores))
    read = np.unique(first.candidates).tolist()
    shown = Seen(generator, dataset.gallery, only=read, batch_size=batch_size, progress=told)
    system = GeneratorSystem(generator, scoring, shown, batch_size, work)
    return first, system.run(dataset, first, progress=told)


def _reranked(
    first: Run,
    scored: Run,
    answers: NDArray[np.int64],
    fusion: Fusion,
    sizes: NDArray[np.int64],
    depth: int,
    draws: int,
    seed: int,
    times: NDArray[np.float64],
) -> tuple[list[dict[str, Any]], dict[int, dict[int, NDArray[np.float64]]]]:
    """Rows by size, and the same recalls in every draw of images."""
    pool, listed = len(first.items) - 1, first.candidates.shape[1]
    rows, recalls = [], {}
    for size in sizes.tolist():
        if size <= depth or not list_suffices(listed, pool, size - 1, depth):
            continue
        found = recall_reranked(
            first, scored, answers, fusion,
            distractors=size - 1, depth=depth, ks=KS, draws=draws, seed=seed,
        )  # fmt: skip
        recalls[size] = {k: _mean(times, one) for k, one in zip(KS, found, strict=True)}
        rows.append(_row(recalls[size], gallery=size))
    return rows, recalls


# --- extrapolated -----------------------------------------------------------------------------------------


def _extrapolate(spreads: Sequence[Spread]) -> dict[str, list[dict[str, Any]]]:
    by_model = {
        spread.model: [
            _row({k: recall_of(spread, size, k) for k in (*KS, *_CEILINGS[1:])}, gallery=size)
            for size in _LARGE
        ]
        for spread in spreads
    }
    return by_model | {"envelope": _envelope(by_model)}


def _extrapolate_reranked(
    spreads: Sequence[Spread],
    whole: Contest,
    found: Mapping[int, Mapping[int, NDArray[np.float64]]],
    depth: int,
    times: NDArray[np.float64],
) -> dict[str, list[dict[str, Any]]]:
    """The ceiling by each model, times the share of it that re-ranking keeps; nothing from a single size."""
    if len(found) < 2:
        return {}
    sizes = np.array(list(found), np.int64)
    ceilings = [
        _mean(times, recall_in_sample(whole.beaten_by, whole.pool, size - 1, [depth])[0])
        for size in sizes.tolist()
    ]
    shares = {
        k: np.stack(
            [
                found[size][k] / np.maximum(top, 1e-12)
                for size, top in zip(sizes.tolist(), ceilings, strict=True)
            ],
            1,
        )
        for k in KS
    }
    by_model = {
        spread.model: [
            _row(
                {
                    k: recall_of(spread, size, depth) * extrapolated_share(sizes, share, size)
                    for k, share in shares.items()
                },
                gallery=size,
            )
            for size in _LARGE
        ]
        for spread in spreads
    }
    return by_model | {"envelope": _envelope(by_model)}


def _envelope(by_model: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """From the lowest end to the highest end of all models' intervals."""
    rows = []
    for same_size in zip(*by_model.values(), strict=True):
        row: dict[str, Any] = {"gallery": same_size[0]["gallery"]}
        for name in same_size[0]:
            if name.endswith("_ci"):
                row[name] = [min(one[name][0] for one in same_size), max(one[name][1] for one in same_size)]
        rows.append(row)
    return rows


def _held_out(
    asking: NDArray[np.float32],
    gallery: NDArray[np.float32],
    answers: NDArray[np.int64],
    whole: Contest,
    times: NDArray[np.float64],
    seed: int,
) -> list[dict[str, Any]]:
    """Fit on a tenth of the distractors, predict the whole gallery."""
    few = max(whole.pool // _HELD_OUT, 2 * _TAIL_AT_LEAST)
    members = np.random.default_rng(seed).permutation(len(gallery))[: few + 1]
    ks = [*KS, 100]
    truth = recall_in_sample(whole.beaten_by, whole.pool, whole.pool, ks)
    rows = []
    for spread in fit_spreads(_contest(asking, gallery, answers, members), times):
        row: dict[str, Any] = {"model": spread.model, "fitted_on": few, "gallery": len(gallery)}
        for k, found in zip(ks, truth, strict=True):
            predicted, actual = recall_of(spread, len(gallery), k), _mean(times, found)
            row[f"R@{k}"] = _percent(predicted[0])
            row[f"R@{k}_ci"] = [_percent(end) for end in interval_of(predicted)]
            row[f"R@{k}_measured"] = _percent(actual[0])
            # Both by the same draws of images, so that what is left is the error of the model.
            row[f"R@{k}_off_ci"] = [_percent(end) for end in interval_of(predicted - actual)]
        rows.append(row)
    return rows


def _needed(
    spread: Spread, whole: Contest, candidates: int, times: NDArray[np.float64]
) -> list[dict[str, Any]]:
    """K by size of the gallery that keeps the ceiling which the list has in the whole gallery."""
    kept = _mean(times, (whole.beaten_by < candidates).astype(np.float64))
    ceiling = float(kept[0])
    rows = []
    for size in (whole.pool + 1, *_LARGE) if ceiling else ():
        needed = candidates_needed(spread, size, ceiling).astype(np.float64)
        rows.append(
            {
                "gallery": size,
                "ceiling": _percent(ceiling),
                "ceiling_ci": [_percent(end) for end in interval_of(kept)],
                "K": int(needed[0]),
                "K_ci": [round(end) for end in interval_of(needed)],
            }
        )
    return rows


def _parameters(spread: Spread) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name, draws in spread.parameters.items():
        facts[name] = float(f"{draws[0]:.4g}")
        facts[f"{name}_ci"] = [float(f"{end:.4g}") for end in interval_of(draws)]
    return facts
