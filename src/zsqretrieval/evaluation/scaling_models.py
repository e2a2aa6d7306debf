"""Recall in smaller and in larger galleries than the one at hand, and the cost of re-ranking there.

A query has one relevant image and M other images, its *distractors*; b of them score at least as high. In a
gallery of the relevant image and n distractors, drawn at random without replacement, the number of images
ahead of it is hypergeometric. The exact average over all such galleries is ::

    recall@k(n + 1) = P(H <= k - 1),   H ~ Hypergeometric(M, b, n)

A re-ranked list is not such a count, because the candidates depend on the other images; there, galleries are
drawn (:func:`~zsqretrieval.evaluation.scaling.recall_reranked`). For a larger gallery, let p be the chance
that one more random image scores higher than the relevant image of a query; over queries ::

    recall@k(N) = E[ P(Binomial(N - 1, p) <= k - 1) ]

This depends on the distribution of p below k / N, but a gallery of M images shows p only down to about 1 / M.
Three models agree where there are data and differ where there are none:

- ``beta``: p has a beta distribution (beta-binomial counts). Recall falls as a power of N.
- ``normal``: the probit of p is normal, as in signal detection, where the scores of relevant and of other
  images are both normal. The exponent of N then changes slowly with N.
- ``pareto``: fitted to scores in place of counts. The highest scores of the other images have a generalised
  Pareto tail (Pickands, Annals of Statistics 3, 1975) with the same shape for all queries, and p is the tail
  beyond the score of the relevant image. If the tail ends, p = 0 beyond its end, in a gallery of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special
from scipy.stats import genpareto, hypergeom

Floats: TypeAlias = NDArray[np.float64]

_EDGES = np.linspace(-9, 5, 351)
"""Probits of p; p below the first edge counts as zero even for 10^10 images."""

_MIDDLES = special.ndtr((_EDGES[1:] + _EDGES[:-1]) / 2)

_DEPTHS = 400  # depths tried between 1 and the gallery, six percent apart for 10^10


def interval_of(draws: Floats) -> tuple[float, float]:
    """95 % percentile interval; the first element of ``draws`` is the estimate, the others are draws."""
    low, high = np.percentile(draws[1:], [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """Distribution of p over queries by one model; the first row is the estimate."""

    model: str
    mass: Floats  # [1 + draws, bins] of p, rows sum to 1
    parameters: Mapping[str, Floats]  # by name, [1 + draws]

    def recall(self, gallery: int, k: int) -> Floats:
        """recall@k among ``gallery`` images, float64 [1 + draws] in [0, 1]."""
        return np.asarray(self.mass @ found_at_random(_MIDDLES, gallery, k))

    def candidates_needed(self, gallery: int, recall: float) -> NDArray[np.int64]:
        """The smallest K with recall@K >= ``recall`` in (0, 1], to within 6 %; int64 [1 + draws].

        For K well above 1 this is N times a quantile of p: for any distribution of p, K grows in proportion
        to the gallery.
        """
        ks = np.unique(np.geomspace(1, gallery, _DEPTHS).round().astype(np.int64))
        recalls = self.mass @ _found_by_depth(gallery, tuple(ks.tolist())).T  # [1 + draws, ks], rising
        return np.asarray(ks[np.argmax(recalls >= min(recall, 1 - 1e-9), axis=1)])


def found_at_random(p: Floats, gallery: int, k: int) -> Floats:
    """P(Binomial(N - 1, p) <= k - 1): the chance to be among the first k >= 1 of N >= 1 images."""
    if k >= gallery:
        return np.ones_like(p)
    return np.asarray(special.betaincc(float(k), float(gallery - k), p))


@lru_cache(maxsize=8)  # shared by the models; one megabyte per size
def _found_by_depth(gallery: int, ks: tuple[int, ...]) -> Floats:
    return np.stack([found_at_random(_MIDDLES, gallery, k) for k in ks])  # [ks, bins]


# --- parts of the gallery ---------------------------------------------------------------------------------


def recall_in_sample(
    beaten_by: NDArray[np.int64], pool: int, distractors: int, ks: Sequence[int], *, ahead: Any = 0
) -> NDArray[np.float64]:
    """Exact mean recall@k over all galleries with n of the M distractors, float64 [len(ks), q].

    ``ahead``, int64 [q], further images score at least as high in every gallery.
    """
    counts, which = np.unique(beaten_by, return_inverse=True)
    exactly = hypergeom.pmf(np.arange(max(ks))[:, None], pool, counts, distractors)  # [k, counts]
    at_most = np.minimum(np.cumsum(exactly, axis=0), 1.0)
    left = np.array(ks)[:, None] - 1 - (np.zeros_like(beaten_by) + ahead)  # [len(ks), q]
    return np.where(left >= 0, at_most[np.maximum(left, 0), which], 0.0)


def list_suffices(listed: int, pool: int, distractors: int, depth: int) -> bool:
    """Whether the first ``depth`` of a part of a gallery are in the list of the whole, in 99 of 100 draws.

    The list has ``listed`` images; the whole gallery has M distractors (``pool``), the part n.
    """
    return bool(hypergeom.cdf(depth - 1, pool, min(listed, pool), distractors) <= 0.01)


# --- fitting ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Competition:
    """Similarities of the relevant images and their distractors."""

    pool: int  # M, the number of distractors of every query
    own: NDArray[np.float32]  # [q], similarity of the relevant image
    beaten_by: NDArray[np.int64]  # [q], b, the number of distractors that are at least as similar
    best: NDArray[np.float32]  # [q, m], the m highest similarities of distractors, best first


def fit_spreads(found: Competition, weights: Floats) -> tuple[Spread, ...]:
    """All models: ``beta``, ``normal``, ``pareto``."""
    counted = (fit_counts(model, found.beaten_by, found.pool, weights) for model in ("beta", "normal"))
    return (*counted, fit_tail(found, weights))


def fit_counts(model: str, beaten_by: NDArray[np.int64], pool: int, weights: Floats) -> Spread:
    """Fit a distribution of p to counts b ~ Binomial(M, p), by maximum likelihood in every draw.

    Args:
        model: ``"beta"``, with parameters ``a`` and ``b``; or ``"normal"``, with ``mean`` and ``deviation``
            of the probit of p.
        beaten_by: int64 [q], b of every query, at most M.
        pool: M.
        weights: float64 [1 + draws, q], how often each query counts.
    """
    counts, which = np.unique(beaten_by, return_inverse=True)
    sums = np.stack([np.bincount(which, weights=row) for row in weights])  # [1 + draws, counts]
    shares = sums / sums.sum(1, keepdims=True)
    likelihood = _count_likelihood(counts, pool)  # [counts, bins]
    distribution, names, start = _MODELS[model]

    def loss(parameters: Floats, share: Floats) -> float:
        mean = likelihood @ _mass(distribution(parameters))
        return -float(share @ np.log(np.maximum(mean, 1e-300)))

    tolerance = {"xatol": 1e-3, "fatol": 1e-6, "maxiter": 400}
    fitted: list[Floats] = []
    for share in shares:
        near = fitted[0] if fitted else start  # every draw is close to the data it was drawn from
        found = optimize.minimize(loss, near, args=(share,), method="Nelder-Mead", options=tolerance)
        fitted.append(found.x)
    parameters = {name: how(np.stack(fitted)[:, n]) for n, (name, how) in enumerate(names.items())}
    return Spread(model, np.stack([_mass(distribution(one)) for one in fitted]), parameters)


def fit_tail(found: Competition, weights: Floats) -> Spread:
    """Continue the scores of the distractors by a generalised Pareto tail.

    Excesses over the lowest of the m >= 3 kept scores are divided by their mean, query by query. Their shape
    is fitted to all queries together, by probability-weighted moments (Hosking and Wallis, Technometrics 29,
    1987): with r = a1 / a0, the shape is (1 - 4 r) / (1 - 2 r), and 0 is an exponential tail. For a relevant
    image below the tail, p = b / M as counted. ``weights`` as for :func:`fit_counts`.
    """
    pool, best = found.pool, found.best
    kept = best.shape[1] - 1  # m
    threshold = best[:, -1].astype(np.float64)
    excess = best[:, :-1].astype(np.float64) - threshold[:, None]  # [q, m], largest first
    mean = excess.mean(1)
    weighted = (excess * np.arange(kept) / (kept - 1)).mean(1)  # a1; no score is above the largest
    beyond_threshold = found.own - threshold
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(mean > 0, weighted / mean, 0.25)
        beyond = np.where(beyond_threshold > 0, beyond_threshold / mean, 0.0)  # inf if all kept are equal
    r = (weights @ ratio) / weights.sum(1)
    shape = np.clip((1 - 4 * r) / (1 - 2 * r), -5, 0.9)
    mass = []
    for weight, xi in zip(weights, shape, strict=True):
        tail = kept / pool * genpareto.sf(beyond, xi, scale=1 - xi)  # excesses have the mean 1
        chance = np.where(beyond_threshold > 0, tail, found.beaten_by / pool)
        probit = np.clip(special.ndtri(chance), _EDGES[0], _EDGES[-1])
        binned = np.histogram(probit, _EDGES, weights=weight)[0]
        mass.append(binned / binned.sum())
    return Spread("pareto", np.stack(mass), {"shape": shape})


def _beta(parameters: Floats) -> Floats:
    a, b = np.exp(np.clip(parameters, -12, 12))
    return np.asarray(special.betainc(a, b, special.ndtr(_EDGES)))


def _normal(parameters: Floats) -> Floats:
    mean, log_deviation = parameters
    return np.asarray(special.ndtr((_EDGES - mean) * np.exp(-np.clip(log_deviation, -12, 12))))


_MODELS: Mapping[str, tuple[Callable[[Floats], Floats], Mapping[str, Callable[[Floats], Floats]], Floats]] = {
    "beta": (_beta, {"a": np.exp, "b": np.exp}, np.log([0.5, 10.0])),
    "normal": (_normal, {"mean": np.asarray, "deviation": np.exp}, np.array([-2.0, 0.0])),
}
"""Distribution function at the edges of the bins, its parameters by name, and the start of the search."""


def _mass(distribution: Floats) -> Floats:
    """Probabilities of the bins; p outside them belongs to the first and the last."""
    return np.diff(np.concatenate([[0.0], distribution[1:-1], [1.0]]))


def _count_likelihood(counts: NDArray[np.int64], pool: int) -> Floats:
    """P(b | p), averaged over each bin exactly, float64 [counts, bins].

    The integral of a binomial term is an incomplete beta function, so a bin may be wider than the peak of the
    likelihood in a large pool.
    """
    p = special.ndtr(_EDGES)
    integral = special.betainc(counts[:, None] + 1, pool - counts[:, None] + 1, p)  # [counts, edges]
    return np.asarray(np.diff(integral, axis=1) / ((pool + 1) * np.diff(p)))


def extrapolated_share(sizes: NDArray[np.int64], share: Floats, gallery: int) -> Floats:
    """Continue a share [1 + draws, s] to N images: its logit is linear in log N (least squares).

    ``sizes`` int64 [s] has two different sizes or more. Returns float64 [1 + draws] in (0, 1).
    """
    x = np.log(sizes) - np.log(sizes).mean()
    logit = special.logit(np.clip(share, 1e-6, 1 - 1e-6))
    slope = (logit @ x) / (x @ x)
    return np.asarray(special.expit(logit.mean(1) + slope * (np.log(gallery) - np.log(sizes).mean())))


# --- the cost of re-ranking -------------------------------------------------------------------------------

LAION_5B = 5_850_000_000
"""Pairs of LAION-5B (laion.ai/blog/laion-5b)."""

_H100_FLOPS = 989e12  # dense bfloat16 peak, data sheet of NVIDIA's H100 SXM
_UTILISATION = 0.4  # assumed share of the peak that is used, for large batches that are well fed
_PATCHES, _VISION_WIDTH, _VISION_LAYERS = 256, 1024, 24
_LATENTS, _WIDTH, _LAYERS, _WORDS = 64, 2048, 24, 65_037
_FRAME = 3  # <s>, <image> and </image> around the latents
_QUESTION = 30  # tokens of prompt and question together


def reranking_cost(depths: Sequence[int], needed: Mapping[str, int]) -> dict[str, Any]:
    """Cost of a query over LAION-5B on one H100, computed from the architecture, not measured.

    FLOPs of matrix products, two for a multiplication and its addition. The sizes of Kosmos-2 are those of
    its released configuration (microsoft/kosmos-2-patch14-224): a CLIP ViT-L/14 at 224 pixels, a resampler
    to 64 latents, a decoder of 24 layers of width 2048 over 65,037 words.

    Args:
        depths: numbers of candidates.
        needed: by model, the number of candidates that keep the ceiling.

    Returns:
        JSON values. What is kept of an image: ``pixels``: nothing; ``states``: the output of the resampler;
        ``prefixes``: keys and values of everything before the question.
    """
    tokens, prefix = _PATCHES + 1, _LATENTS + _FRAME
    seen = tokens + _LATENTS  # the latents attend to the image and to themselves
    patches = 2 * _PATCHES * (3 * 14 * 14) * _VISION_WIDTH
    vision = patches + _VISION_LAYERS * _layer_flops(tokens, tokens, _VISION_WIDTH)
    projections = 2 * tokens * _VISION_WIDTH * _WIDTH + 2 * 2 * (seen + _LATENTS) * _WIDTH**2
    resampler = projections + 4 * _LATENTS * seen * _WIDTH
    length = prefix + _QUESTION
    head = 2 * _QUESTION * _WIDTH * _WORDS
    states = _LAYERS * _layer_flops(length, length, _WIDTH) + head
    prefixes = _LAYERS * _layer_flops(_QUESTION, length, _WIDTH) + head
    flops = {"pixels": vision + resampler + states, "states": states, "prefixes": prefixes}
    speed = _UTILISATION * _H100_FLOPS

    def per_query(candidates: int, **model: str) -> dict[str, Any]:
        seconds = {kept: float(f"{candidates * one / speed:.3g}") for kept, one in flops.items()}
        return {"candidates": candidates, "seconds": seconds, **model}

    return {
        "model": "Kosmos-2 re-ranks the candidates of CLIP ViT-L/14; computed, not measured",
        "accelerator": f"one H100: {_H100_FLOPS / 1e12:g} TFLOP/s dense bfloat16, used to {_UTILISATION:.0%}",
        "per_query": [
            *(per_query(k) for k in depths),
            *(per_query(k, keeps_the_ceiling_by=model) for model, k in needed.items()),
        ],
        "left_out": "embedding the question (milliseconds), the index search, fetching images or states",
    }


def _layer_flops(queries: int, keys: int, width: int) -> float:
    """One transformer layer with a feed-forward part four times as wide."""
    return 2 * queries * 12 * width**2 + 4 * queries * keys * width
