"""The probability that a hit is relevant, from the similarities of its image to other questions.

Some images are a little like every question, so no cosine similarity means "relevant" by itself. The margin
of a question over other questions does. For an image it is

    margin = cos(question, image) - log mean_b exp(20 * cos(b, image)) / 20

over the texts b of a fixed bank, the null distribution. The probability is logistic in the margin, with two
constants of the encoder. :func:`fit` estimates them from images that are known to be relevant and from the
best hits of questions that no image answers.
"""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zsqretrieval._util.checks import check_amounts
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.protocols import Encoder
from zsqretrieval.search.fusion import logistic
from zsqretrieval.search.query_bank import QueryBank

_SCALE = 20.0  # of the mean over the bank

_NOUNS = """
person man woman child baby boy girl crowd couple family athlete soldier chef farmer musician dancer bride
doctor dog cat horse cow sheep pig bird duck chicken fish elephant bear zebra giraffe monkey rabbit mouse
snake lizard frog insect butterfly spider bee car bus truck train tram bicycle motorcycle boat ship
airplane helicopter tractor street road bridge tunnel building house church tower castle skyscraper shop
market factory school hospital stadium station airport harbour farm park garden forest field meadow
mountain hill valley desert beach island river lake waterfall sea ocean sky cloud sunset snow ice rain
fire smoke tree flower grass leaf mushroom fruit vegetable apple banana orange bread cake pizza sandwich
soup salad meat cheese rice noodle egg cup glass bottle plate bowl knife fork spoon pan table chair sofa
bed lamp mirror window door stairs carpet curtain shelf kitchen bathroom bedroom office book newspaper
letter map sign poster painting drawing sculpture photograph computer keyboard phone camera television
clock radio robot machine tool ball kite bat racket skateboard surfboard ski guitar piano drum violin
shirt dress hat shoe bag umbrella glove ring watch coin flag toy doll balloon candle box basket rope wheel
ladder fence wall rock sand mud
"""


@final
class Relevance:
    """Probabilities of relevance for the images of one encoder.

    Args:
        encoder: encodes the bank, once.
        scale: steepness of the logistic function, > 0.
        margin: the margin at which the probability is one half.

    Raises:
        InvalidInputError: a number is out of range.
    """

    def __init__(self, encoder: Encoder, scale: float, margin: float) -> None:
        check_amounts(scale=scale, margin=margin)
        texts = [f"a photo of a {noun}" for noun in _NOUNS.split()]
        self._bank = QueryBank.from_texts(encoder, texts, scale=_SCALE, strength=1.0)
        self._scale, self._margin = scale, margin

    def margins(self, similarities: ArrayLike, images: ArrayLike) -> NDArray[np.float64]:
        """Margins float64 [..., n] of cosine similarities [..., n] to images float32 [n, dim]."""
        return self._bank.normalized(similarities, images)

    def probabilities(self, similarities: ArrayLike, images: ArrayLike) -> NDArray[np.float64]:
        """Probabilities float64 [..., n] in [0, 1]; arguments as for :meth:`margins`."""
        return logistic(self._scale * (self.margins(similarities, images) - self._margin))


def fit(relevant: ArrayLike, irrelevant: ArrayLike) -> tuple[float, float]:
    """Estimate the constants by logistic regression, in which both sides weigh the same.

    Args:
        relevant: margins of images that their questions are about, float [n].
        irrelevant: margins of the best hits of questions that no image answers, float [m].

    Returns:
        Scale and margin, for :class:`Relevance` and
        :class:`Calibration(relevance_scale=..., relevance_margin=...) <zsqretrieval.presets.Calibration>`.

    Raises:
        InvalidInputError: a side is empty or not finite, or relevant margins are not the larger ones.
    """
    from scipy.optimize import minimize

    sides = [np.asarray(one, np.float64) for one in (relevant, irrelevant)]
    if any(one.ndim != 1 or not len(one) or not np.isfinite(one).all() for one in sides):
        raise InvalidInputError("both sides must be lists of one finite number or more")
    positive, negative = sides
    unit = max(np.concatenate(sides).std(), 1e-9)

    def loss(parameters: NDArray[np.float64]) -> float:
        slope, middle = parameters
        right = np.logaddexp(0, -slope * (positive / unit - middle)).mean()
        return float(right + np.logaddexp(0, slope * (negative / unit - middle)).mean())

    start = np.array([1.0, (positive.mean() + negative.mean()) / 2 / unit])
    slope, middle = minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-10}).x
    if slope <= 0:
        raise InvalidInputError("the relevant margins are not larger than the others; check the data")
    return float(slope / unit), float(middle * unit)
