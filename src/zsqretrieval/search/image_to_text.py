"""Image-to-text retrieval: rank texts for an image. Needs no album."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.batches import sound
from zsqretrieval._util.checks import check_sequence, check_text
from zsqretrieval.encoders.checked import encode_images, encode_texts
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.generators.checked import read_images
from zsqretrieval.generators.lazy import LazyGenerator
from zsqretrieval.protocols import Encoder, Generator, truncated
from zsqretrieval.search.fusion import FIRST_STAGE, FUSED, RerankOnly, best_first, fuse
from zsqretrieval.search.priors import Prior, log_prior
from zsqretrieval.search.rerank import Rerank
from zsqretrieval.search.scoring import Likelihood, Scoring, score_pairs
from zsqretrieval.types import Image, ImageState, Progress


@dataclass(frozen=True, slots=True)
class TextHit:
    """One text of a ranking.

    Attributes:
        text: the text.
        index: its position in the list that was given.
        score: score that the ranking is sorted by; higher is better.
        scores: score of every stage by name.
        truncated: whether the encoder cut the text, so that the first stage knows only its beginning.
    """

    text: str
    index: int
    score: float
    scores: Mapping[str, float]
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class TextRanking(Sequence[TextHit]):
    """Texts for one image, best first; a sequence of :class:`TextHit`.

    Attributes:
        query: source of the image.
        hits: the texts, best first.
        timings: seconds by stage.
    """

    query: str
    hits: tuple[TextHit, ...]
    timings: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, position: Any) -> Any:
        return self.hits[position]


def rank_texts(
    encoder: Encoder,
    generator: LazyGenerator | None,
    image: Image,
    texts: Sequence[str],
    k: int | None,
    *,
    how: Rerank | None,
    prior: Prior | Literal["auto"] | None,
    progress: Progress | None,
) -> TextRanking:
    """Rank texts for an image; see :meth:`zsqretrieval.retriever.Retriever.rank_texts`.

    The fusion of ``how`` is the re-ranking score alone unless it names one; its ``candidates`` and ``risk``
    have no effect.
    """
    check_sequence(texts, "texts")
    for n, text in enumerate(texts):
        check_text(text, f"text {n}")
    rule = None if how is None else how.scoring
    if rule is not None and not isinstance(rule, Scoring):
        raise InvalidInputError(f"texts are ranked by a scoring rule such as Likelihood(), not {rule!r}")
    prior = _prior(prior, rule)
    begin = time.perf_counter()
    cosine = encode_texts(encoder, texts) @ encode_images(encoder, [image])[0]  # [n]
    timings = {"encode": time.perf_counter() - begin}
    cut = truncated(encoder, texts)
    if any(cut):
        warnings.warn(
            f"{sum(cut)} of {len(texts)} texts are longer than the encoder reads, which knows only their "
            f"beginning: {texts[cut.index(True)][:60]!r}...",
            RuntimeWarning,
            stacklevel=3,
        )
    scores = {FIRST_STAGE: cosine.astype(np.float64)}
    order = best_first(cosine)
    if how is not None and rule is not None and generator is not None and len(texts):
        with generator.using() as made:
            begin = time.perf_counter()
            scores |= _scores(made, rule, prior, image, texts, how.batch_size, progress)
            timings[rule.name] = time.perf_counter() - begin
        last = scores["corrected" if prior else rule.name]
        fused = fuse(how.fusion or RerankOnly(), scores[FIRST_STAGE][order], last[order])  # best first
        scores[FUSED] = np.empty(len(texts))
        scores[FUSED][order] = fused
        order = order[best_first(fused)]
    ranked_by = scores.get(FUSED, scores[FIRST_STAGE])
    return TextRanking(
        image.source,
        tuple(
            TextHit(
                texts[n],
                int(n),
                float(ranked_by[n]),
                {name: float(one[n]) for name, one in scores.items()},
                cut[n],
            )
            for n in order[:k]
        ),
        timings,
    )


def _scores(
    generator: Generator,
    rule: Scoring,
    prior: Prior | None,
    image: Image,
    texts: Sequence[str],
    batch_size: int,
    progress: Progress | None,
) -> dict[str, NDArray[np.float64]]:
    """Generator scores of n texts by name, each float64 [n]."""
    # features once, where the generator computes some: every text uses them again
    images = [image, *(prior.null_images if prior else ())]
    features: list[Image | ImageState] = sound(read_images(generator, images), ImageError)
    shown, *blank = features
    scores = score_pairs(
        generator, rule, texts, [shown] * len(texts), batch_size=batch_size, progress=progress
    )
    if prior is None or not isinstance(rule, Likelihood):
        return {rule.name: scores}
    log_priors = log_prior(generator, rule, blank, texts, batch_size=batch_size, progress=progress)
    return {rule.name: scores, "prior": log_priors, "corrected": scores - prior.alpha * log_priors}


def _prior(prior: Prior | Literal["auto"] | None, rule: Scoring | None) -> Prior | None:
    if prior == "auto":
        return Prior() if isinstance(rule, Likelihood) else None
    if prior is not None and not isinstance(prior, Prior):
        raise InvalidInputError(f"prior must be Prior(...), 'auto' or None, not {prior!r}")
    if prior is not None and not isinstance(rule, Likelihood):
        raise InvalidInputError(f"a prior corrects the scoring rule Likelihood only, not {rule!r}")
    return prior
