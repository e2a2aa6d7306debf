"""From the galleries that could be measured to those that could not: models of how hard queries are.

Let p be the chance that one more image, drawn at random, beats the answer of a query. Queries differ in p. In
a gallery of N images the answer has N - 1 chances to be beaten, so over queries ::

    recall@k(N) = E[ P(Binomial(N - 1, p) <= k - 1) ]

and for k = 1 it is E[(1 - p)^(N - 1)]. What counts in a large gallery is how much of the distribution of p
lies near zero, below k / N. A gallery of M images shows p only down to about 1 / M. What lies below has to be
assumed; three assumptions are made here, which agree where there are data and differ where there are none:

- ``beta``: p has a beta distribution (beta-binomial counts). Recall falls as a power of N.
- ``normal``: the probit of p is normal, as when the scores of answers and of distractors both are (signal
  detection). The exponent of N then changes slowly with N.
- ``pareto``: not counts but scores. The best distractors' scores of a query have a generalised Pareto tail
  (Pickands, Annals of Statistics 3, 1975), its shape common to all queries, and p is that tail beyond the
  answer's score. A tail that ends leaves p = 0 to answers beyond its end, which no gallery takes away.

Every model ends as probabilities over the same bins of p, one row per draw of a bootstrap over images, so
everything asked of it afterwards is a product of arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.errors import InvalidInputError, MissingDependencyError
from zsqretrieval.evaluation.gallery_size import Contest

__all__ = [
    "Spread",
    "candidates_needed",
    "extrapolated_share",
    "fit_counts",
    "fit_spreads",
    "fit_tail",
    "found_at_random",
    "image_draws",
    "interval_of",
    "recall_of",
]

Floats: TypeAlias = NDArray[np.float64]

_EDGES = np.linspace(-9, 5, 351)
"""Probits of p; below the first is as good as zero, even among 10^10 images."""

_DEPTHS = 400  # tried between 1 and the gallery, six percent apart at 10^10


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """How p is distributed over queries, by one model.

    Attributes:
        model: its name.
        mass: float64 [1 + draws, bins] of p, rows sum to 1; the first is the estimate, the others are draws.
        parameters: by name, float64 [1 + draws].
    """

    model: str
    mass: Floats
    parameters: Mapping[str, Floats]


def image_draws(clusters: NDArray[np.int64], *, resamples: int = 200, seed: int = 0) -> Floats:
    """How often each query is in each draw of a bootstrap over images.

    Args:
        clusters: int64 [q], which image each query belongs to; an image is drawn with all of its queries.
        resamples: draws.
        seed: of them.

    Returns:
        float64 [1 + resamples, q]; the first row is the data themselves, all ones.

    Raises:
        InvalidInputError: there are no queries.
    """
    if not len(clusters):
        raise InvalidInputError("there are no queries to draw from; ask for at least one")
    images, cluster = np.unique(clusters, return_inverse=True)
    drawn = np.random.default_rng(seed).integers(len(images), size=(resamples, len(images)))
    times = np.stack([np.bincount(one, minlength=len(images)) for one in drawn])
    return np.concatenate([np.ones((1, len(clusters))), times[:, cluster]])


def interval_of(draws: Floats, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of what was computed for each draw of :func:`image_draws`."""
    low, high = np.percentile(draws[1:], [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


# --- models -----------------------------------------------------------------------------------------------


def fit_spreads(contest: Contest, times: Floats) -> tuple[Spread, ...]:
    """All models: ``beta``, ``normal``, ``pareto``.

    Args:
        contest: what every answer met with.
        times: float64 [1 + draws, q], as :func:`image_draws` makes it.
    """
    counted = tuple(fit_counts(model, contest.beaten_by, contest.pool, times) for model in ("beta", "normal"))
    return (*counted, fit_tail(contest, times))


def fit_counts(model: str, beaten_by: NDArray[np.int64], pool: int, times: Floats) -> Spread:
    """Fit a distribution of p to counts b ~ Binomial(M, p), by maximum likelihood in every draw.

    Args:
        model: ``"beta"``, with parameters ``a`` and ``b``; or ``"normal"``, with ``mean`` and ``deviation``
            of the probit of p.
        beaten_by: int64 [q], b of every query.
        pool: M.
        times: float64 [1 + draws, q], how often each query counts.

    Raises:
        InvalidInputError: there is no such model, or a count is not between 0 and M.
        MissingDependencyError: scipy is not installed.
    """
    if model not in _MODELS:
        raise InvalidInputError(f"there is no model {model!r}; there are {', '.join(_MODELS)}")
    counts, which = np.unique(beaten_by, return_inverse=True)
    if not len(counts) or not 0 <= counts[0] <= counts[-1] <= pool:
        raise InvalidInputError(f"counts {counts[:1]} to {counts[-1:]} are not of {pool} distractors")
    sums = np.stack([np.bincount(which, weights=row) for row in times])  # [1 + draws, counts]
    weights = sums / sums.sum(1, keepdims=True)
    likelihood = _count_likelihood(counts, pool)  # [counts, bins]
    distribution, names, start = _MODELS[model]
    minimize = _scipy("optimize").minimize

    def loss(parameters: Floats, weight: Floats) -> float:
        mean = likelihood @ _mass(distribution(parameters))
        return -float(weight @ np.log(np.maximum(mean, 1e-300)))

    fitted: list[Floats] = []
    for weight in weights:
        near = start if not fitted else fitted[0]  # every draw is close to the data it was drawn from
        tolerance = {"xatol": 1e-3, "fatol": 1e-6, "maxiter": 400}
        fitted.append(minimize(loss, near, args=(weight,), method="Nelder-Mead", options=tolerance).x)
    found = np.stack(fitted)
    parameters = {name: how(found[:, n]) for n, (name, how) in enumerate(names.items())}
    return Spread(model, np.stack([_mass(distribution(one)) for one in found]), parameters)


def fit_tail(contest: Contest, times: Floats) -> Spread:
    """Continue the distractors' scores by a generalised Pareto tail; p is what lies beyond the answer.

    Excesses over the lowest kept score are measured in their mean, query by query. Their shape is the one of
    all queries together, by probability-weighted moments (Hosking and Wallis, Technometrics 29, 1987): with
    r = a1 / a0, the shape is (1 - 4 r) / (1 - 2 r), and 0 is an exponential tail. An answer below the tail
    has p = b / M, counted.

    Args:
        contest: with at least 3 of the best scores kept.
        times: float64 [1 + draws, q], how often each query counts.

    Raises:
        InvalidInputError: fewer scores are kept.
    """
    kept = contest.best.shape[1] - 1  # m; the last is the threshold
    if kept < 2:
        raise InvalidInputError(f"a tail of {kept} scores has no shape; keep 3 of the best or more")
    threshold = contest.best[:, -1].astype(np.float64)
    excess = contest.best[:, :-1].astype(np.float64) - threshold[:, None]  # [q, m], largest first
    mean = excess.mean(1)
    weighted = (excess * np.arange(kept) / (kept - 1)).mean(1)  # a1; the largest has no one above it
    own = contest.own - threshold
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(mean > 0, weighted / mean, 0.25)
        beyond = np.where(own > 0, own / mean, 0.0)  # in mean excesses; inf where all the others are equal
    r = (times @ ratio) / times.sum(1)
    shape = np.clip((1 - 4 * r) / (1 - 2 * r), -5, 0.9)
    counted = contest.beaten_by / contest.pool
    mass = []
    for weight, xi in zip(times, shape, strict=True):
        chance = np.where(own > 0, kept / contest.pool * _pareto_tail(beyond, float(xi)), counted)
        mass.append(_histogram(chance, weight))
    return Spread("pareto", np.stack(mass), {"shape": shape})


def _pareto_tail(beyond: Floats, shape: float) -> Floats:
    """P(excess > x), x in mean excesses: the scale is then 1 - shape."""
    if abs(shape) < 1e-6:
        return np.asarray(np.exp(-beyond))
    base = np.maximum(1 + shape * beyond / (1 - shape), 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.where(base > 0, base ** (-1 / shape), 0.0))


def _beta(parameters: Floats) -> Floats:
    a, b = np.exp(np.clip(parameters, -12, 12))
    special = _scipy("special")
    return np.asarray(special.betainc(a, b, special.ndtr(_EDGES)))


def _normal(parameters: Floats) -> Floats:
    mean, log_deviation = parameters
    return np.asarray(_scipy("special").ndtr((_EDGES - mean) * np.exp(-np.clip(log_deviation, -12, 12))))


_MODELS: Mapping[str, tuple[Callable[[Floats], Floats], Mapping[str, Callable[[Floats], Floats]], Floats]] = {
    "beta": (_beta, {"a": np.exp, "b": np.exp}, np.log([0.5, 10.0])),
    "normal": (_normal, {"mean": np.asarray, "deviation": np.exp}, np.array([-2.0, 0.0])),
}
"""The distribution function at the edges of the bins, what its parameters mean, and where to begin."""


def _mass(distribution: Floats) -> Floats:
    """Probabilities of the bins; what is outside them belongs to the first and the last."""
    return np.diff(np.concatenate([[0.0], distribution[1:-1], [1.0]]))


def _histogram(chance: Floats, weight: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        probit = np.clip(_scipy("special").ndtri(chance), _EDGES[0], _EDGES[-1])
    mass = np.histogram(probit, _EDGES, weights=weight)[0]
    return np.asarray(mass / mass.sum())


def _count_likelihood(counts: NDArray[np.int64], pool: int) -> Floats:
    """P(b | p), averaged over each bin exactly, float64 [counts, bins].

    The integral of a binomial term is an incomplete beta function. A bin may so be wider than the peak that
    the likelihood has in a large pool.
    """
    special = _scipy("special")
    p = special.ndtr(_EDGES)
    integral = special.betainc(counts[:, None] + 1, pool - counts[:, None] + 1, p)  # [counts, edges]
    return np.asarray(np.diff(integral, axis=1) / ((pool + 1) * np.diff(p)))


# --- what follows from a model ----------------------------------------------------------------------------


def found_at_random(p: Floats, gallery: int, k: int) -> Floats:
    """P(Binomial(N - 1, p) <= k - 1): the chance to be among the first k of N images.

    Args:
        p: chances that one image beats the answer.
        gallery: N, >= 1.
        k: depth, >= 1.

    Raises:
        InvalidInputError: a number is below 1.
    """
    if min(gallery, k) < 1:
        raise InvalidInputError(f"the first {k} of {gallery} images: both must be at least 1")
    if k >= gallery:
        return np.ones_like(p)
    return np.asarray(_scipy("special").betaincc(float(k), float(gallery - k), p))


def recall_of(spread: Spread, gallery: int, k: int) -> Floats:
    """recall@k among ``gallery`` images by a model, float64 [1 + draws] in [0, 1]."""
    return np.asarray(spread.mass @ found_at_random(_middles(), gallery, k))


def _middles() -> Floats:
    return np.asarray(_scipy("special").ndtr((_EDGES[1:] + _EDGES[:-1]) / 2))


def candidates_needed(spread: Spread, gallery: int, recall: float) -> NDArray[np.int64]:
    """The smallest K whose recall@K among ``gallery`` images is at least ``recall``, to within 6 %.

    For K well above 1 this is N times a quantile of p: in whatever way p is distributed, K has to grow in
    proportion with the gallery.

    Returns:
        int64 [1 + draws], at most ``gallery``.

    Raises:
        InvalidInputError: ``recall`` is not in (0, 1].
    """
    if not 0 < recall <= 1:
        raise InvalidInputError(f"a recall of {recall} cannot be kept; it must be above 0 and at most 1")
    ks = np.unique(np.geomspace(1, gallery, _DEPTHS).round().astype(np.int64))
    recalls = spread.mass @ _found_by_depth(gallery, tuple(ks.tolist())).T  # [1 + draws, ks], rising
    return np.asarray(ks[np.argmax(recalls >= min(recall, 1 - 1e-9), axis=1)])


@lru_cache(maxsize=8)  # models have it in common; one megabyte a size
def _found_by_depth(gallery: int, ks: tuple[int, ...]) -> Floats:
    return np.stack([found_at_random(_middles(), gallery, k) for k in ks])  # [ks, bins]


def extrapolated_share(sizes: NDArray[np.int64], share: Floats, gallery: int) -> Floats:
    """Continue a share over sizes of galleries: its logit is taken to be linear in log N (least squares).

    Args:
        sizes: int64 [s], two sizes or more.
        share: float64 [1 + draws, s], in [0, 1].
        gallery: N.

    Returns:
        float64 [1 + draws], in (0, 1).

    Raises:
        InvalidInputError: fewer than two sizes.
    """
    if len(np.unique(sizes)) < 2:
        raise InvalidInputError(f"a trend over sizes needs two of them or more, not {sizes.tolist()}")
    x = np.log(sizes) - np.log(sizes).mean()
    near = np.clip(share, 1e-6, 1 - 1e-6)
    logit = np.log(near / (1 - near))
    slope = (logit @ x) / (x @ x)
    at = logit.mean(1) + slope * (np.log(gallery) - np.log(sizes).mean())
    return np.asarray(1 / (1 + np.exp(-at)))


def _scipy(module: str) -> Any:
    try:
        from scipy import optimize, special
    except ImportError as error:
        raise MissingDependencyError(
            "scipy", "extrapolating", "pip install 'zsqretrieval[evaluation]'"
        ) from error
    return {"optimize": optimize, "special": special}[module]
