"""The other direction: which of some texts fits an image best. No album has a part in it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.checks import check_sequence, check_text
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.lazy import LazyGenerator
from zsqretrieval.protocols import Encoder, Generator, ImageStates
from zsqretrieval.search.fusion import FIRST_STAGE, FUSED, Fusion, best_first, fuse
from zsqretrieval.search.priors import Prior, log_prior
from zsqretrieval.search.scoring import Likelihood, Scoring, score_texts
from zsqretrieval.types import Image, ImageState, Progress

__all__ = ["TextHit", "TextRanking", "rank_texts"]


@dataclass(frozen=True, slots=True)
class TextHit:
    """One text of a ranking.

    Attributes:
        text: the text.
        index: its place in what was given.
        score: the score the ranking is sorted by; higher is better.
        scores: the score of every stage by name.
    """

    text: str
    index: int
    score: float
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class TextRanking(Sequence[TextHit]):
    """Texts for one image, best first; a sequence of :class:`TextHit`.

    Attributes:
        query: the source of the image.
        hits: the texts, best first.
        timings: seconds spent per stage, by the stage's name.
    """

    query: str
    hits: tuple[TextHit, ...]
    timings: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[TextHit]:
        return iter(self.hits)

    def __getitem__(self, position: Any) -> Any:
        return self.hits[position]


def rank_texts(
    encoder: Encoder,
    generator: LazyGenerator | None,
    image: Image,
    texts: Sequence[str],
    k: int | None,
    *,
    scoring: Scoring | None,
    prior: Prior | Literal["auto"] | None,
    fusion: Fusion,
    batch_size: int,
    progress: Progress | None,
) -> TextRanking:
    """Rank texts for an image; see :meth:`zsqretrieval.retriever.Retriever.search_texts`."""
    _check(texts)
    prior = _prior(prior, scoring)
    begin = time.perf_counter()
    cosine = encoder.encode_text(texts) @ encoder.encode_image([image])[0]
    timings = {"encode": time.perf_counter() - begin}
    scores = {FIRST_STAGE: cosine.astype(np.float64)}
    order = best_first(cosine)
    if scoring is not None and generator is not None and len(texts):
        with generator.using() as made:
            begin = time.perf_counter()
            scores |= _judge(made, scoring, prior, image, texts, batch_size, progress)
            timings[scoring.name] = time.perf_counter() - begin
        last = scores["corrected" if prior else scoring.name]
        fused = fuse(fusion, scores[FIRST_STAGE][order], last[order])  # which is promised this order
        scores[FUSED] = np.empty(len(texts))
        scores[FUSED][order] = fused
        order = order[best_first(fused)]
    ranked_by = scores.get(FUSED, scores[FIRST_STAGE])
    return TextRanking(
        image.source,
        tuple(
            TextHit(
                texts[n], int(n), float(ranked_by[n]), {name: float(one[n]) for name, one in scores.items()}
            )
            for n in order[:k]
        ),
        timings,
    )


def _judge(
    generator: Generator,
    scoring: Scoring,
    prior: Prior | None,
    image: Image,
    texts: Sequence[str],
    batch_size: int,
    progress: Progress | None,
) -> dict[str, NDArray[np.float64]]:
    """What the generator makes of each text, by name."""
    nulls = prior.null_images if prior else ()
    total = len(texts) * (1 + len(nulls))

    def onward(before: int) -> Progress | None:
        return progress and (lambda done, _: progress(before + done, total))

    shown, *blank = _seen_once(generator, [image, *nulls])
    scores = score_texts(generator, scoring, shown, texts, batch_size=batch_size, progress=onward(0))
    if prior is None or not isinstance(scoring, Likelihood):
        return {scoring.name: scores}
    anyway = log_prior(generator, scoring, blank, texts, batch_size=batch_size, progress=onward(len(texts)))
    return {scoring.name: scores, "prior": anyway, "corrected": scores - prior.alpha * anyway}


def _seen_once(generator: Generator, images: Sequence[Image]) -> list[Image | ImageState]:
    """Many texts will be scored for each image: as its state, where the generator makes states."""
    if not isinstance(generator, ImageStates):
        return list(images)
    states = generator.image_states(images)
    return [
        ImageState(state, generator.fingerprint, image.source)
        for state, image in zip(states, images, strict=True)
    ]


def _check(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise InvalidInputError(f"texts is one text, {texts!r}; give a list of texts")
    check_sequence(texts, "texts")
    for n, text in enumerate(texts):
        check_text(text, f"text {n}")


def _prior(prior: Prior | Literal["auto"] | None, scoring: Scoring | None) -> Prior | None:
    if prior == "auto":
        return Prior() if isinstance(scoring, Likelihood) else None
    if prior is not None and not isinstance(prior, Prior):
        raise InvalidInputError(f"prior must be one such as Prior(alpha=0.8), 'auto' or None, not {prior!r}")
    if prior is not None and not isinstance(scoring, Likelihood):
        raise InvalidInputError(f"a prior corrects a Likelihood, and nothing else, not {scoring!r}")
    return prior
