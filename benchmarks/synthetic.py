"""Synthetic vectors with the geometry of CLIP embeddings. Label every figure made from them as synthetic.

Differences between CLIP embeddings and random vectors that are reproduced here:

- a cone: all images share one direction, so two random images have a cosine of about 0.4;
- a modality gap (Liang et al., arXiv 2203.02053): texts share another direction, about 65 degrees away, so
  the nearest images of a text are far (about 0.45) and their similarities differ little;
- few meaningful directions (power-law spectrum), clusters of very unequal sizes (Zipf), and weak noise in all
  directions;
- near-duplicates, one vector in a hundred.

Text-like queries are outside the distribution of the gallery, and a graph index needs about twice the ``ef``
for them. Tune an index on text-like queries, not on image-like ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.errors import InvalidInputError

_CONE = 0.75  # length along the shared direction; the part with meaning has length 1
_GAP_DEGREES = 65.0
_WITHIN_CLUSTER, _BETWEEN_CLUSTERS = 0.6, 0.8
_WITHIN_THEME, _BETWEEN_THEMES = 0.66, 0.75
_ZIPF = 0.7
_IMAGE_NOISE, _TEXT_NOISE, _TWIN_NOISE = 0.25, 0.8, 0.02
_TEXT_MEANING, _TEXT_BLUR = 0.5, 0.45  # a text names half of the content of an image, imprecisely
_TWINS = 0.01
_BLOCK = 16_384


@dataclass(frozen=True, slots=True, eq=False)
class CliplikeVectors:
    """Gallery and two kinds of queries, rows of unit length."""

    gallery: NDArray[np.float32]  # [n, dim], image-like
    text_queries: NDArray[np.float32]  # [q, dim], across the modality gap
    image_queries: NDArray[np.float32]  # [q, dim], from the distribution of the gallery


def cliplike(
    n: int, queries: int = 1000, *, dim: int = 512, rank: int = 96, clusters: int = 4000, seed: int = 0
) -> CliplikeVectors:
    """Draw a gallery and queries; the same arguments give the same vectors.

    Args:
        n: size of the gallery.
        queries: number of queries of each kind.
        dim: length of the vectors.
        rank: number of meaningful directions, at most ``dim - 2``.
        clusters: number of clusters, grouped in a twentieth as many themes.
        seed: of the draw.

    Raises:
        InvalidInputError: a number is below 1, or ``rank`` exceeds ``dim - 2``.
    """
    if min(n, queries, dim, rank, clusters) < 1 or rank > dim - 2:
        raise InvalidInputError(
            f"n={n}, queries={queries}, dim={dim}, rank={rank}, clusters={clusters}: each must be at "
            "least 1, and rank at most dim - 2"
        )
    random = np.random.default_rng(seed)
    axes = np.linalg.qr(random.standard_normal((dim, rank + 2)))[0].T.astype(np.float32)  # [rank + 2, dim]
    image_axis, meaning = axes[0], axes[2:]
    gap = np.deg2rad(_GAP_DEGREES)
    text_axis = (np.cos(gap) * image_axis + np.sin(gap) * axes[1]).astype(np.float32)
    spectrum = np.arange(1, rank + 1) ** -0.5
    spectrum /= np.linalg.norm(spectrum)

    def spread(count: int) -> NDArray[np.float64]:
        return random.standard_normal((count, rank)) * spectrum

    themes = spread(max(1, clusters // 20))
    centres = _BETWEEN_THEMES * themes[random.integers(0, len(themes), clusters)]
    centres += _WITHIN_THEME * spread(clusters)
    share = np.arange(1, clusters + 1) ** -_ZIPF
    share /= share.sum()

    def meanings(count: int) -> NDArray[np.float64]:
        which = random.choice(clusters, count, p=share)
        return _BETWEEN_CLUSTERS * centres[which] + _WITHIN_CLUSTER * spread(count)

    def place(axis: NDArray[np.float32], latent: NDArray[np.float64], noise: float) -> NDArray[np.float32]:
        everywhere = random.standard_normal((len(latent), dim), np.float32) * np.float32(noise / np.sqrt(dim))
        return _unit(np.float32(_CONE) * axis + latent.astype(np.float32) @ meaning + everywhere)

    gallery = np.empty((n, dim), np.float32)
    for start in range(0, n, _BLOCK):
        block = gallery[start : start + _BLOCK]
        block[:] = place(image_axis, meanings(len(block)), _IMAGE_NOISE)
    twins, originals = random.permutation(n)[: 2 * int(n * _TWINS)].reshape(2, -1)
    jitter = random.standard_normal((len(twins), dim), np.float32) * np.float32(_TWIN_NOISE / np.sqrt(dim))
    gallery[twins] = _unit(gallery[originals] + jitter)
    said = _TEXT_MEANING * meanings(queries) + _TEXT_BLUR * spread(queries)
    return CliplikeVectors(
        gallery=gallery,
        text_queries=place(text_axis, said, _TEXT_NOISE),
        image_queries=place(image_axis, meanings(queries), _IMAGE_NOISE),
    )


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = rows / np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    return unit
