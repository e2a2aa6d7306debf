"""How well an encoder matches captions and photographs, both ways, with intervals."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.data.sources import read_webdataset
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.intervals import ClusterBootstrap, rounded
from zsqretrieval.evaluation.progress import Progress, encode_in_parts, untold
from zsqretrieval.protocols import Encoder
from zsqretrieval.types import Image

__all__ = ["Captioned", "EncoderBench", "bench_encoder", "read_captioned", "recalls"]

KS = (1, 5, 10)


@dataclass(frozen=True, slots=True)
class Captioned:
    """An image and the sentences people wrote about it."""

    image: Image
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EncoderBench:
    """Recalls of one encoder on one split.

    Attributes:
        name: folder and split, for instance ``flickr8k_test``.
        images: size of the gallery.
        captions: number of captions.
        t2i: a caption looks for its image: ``R@k`` in percent, and ``R@k_ci``, a 95 % percentile bootstrap
            interval over images, each with all of its captions: 2000 draws from seed 0, the same for every k
            (:class:`~zsqretrieval.evaluation.intervals.ClusterBootstrap`).
        i2t: an image looks for any one of its captions.
        seconds: time to encode everything.
    """

    name: str
    images: int
    captions: int
    t2i: Mapping[str, Any]
    i2t: Mapping[str, Any]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """``{name: {"t2i": ..., "i2t": ..., "images": ..., "captions": ..., "seconds": ...}}``."""
        facts = {"t2i": dict(self.t2i), "i2t": dict(self.i2t), "images": self.images}
        return {self.name: {**facts, "captions": self.captions, "seconds": round(self.seconds, 1)}}


def read_captioned(data: Path, split: str) -> Iterator[Captioned]:
    """Read the shards ``{split}-*.tar`` of a folder.

    Captions are the list ``captions`` of a sample's JSON, or its ``.txt`` alone.

    Raises:
        InvalidInputError: there are no such shards, no image in them, or a sample has no caption or what is
            none; names it.
    """
    shards = sorted(Path(data).glob(f"{split}-*.tar"))
    if not shards:
        raise InvalidInputError(f"{data} holds no shards {split}-*.tar; give a folder of WebDataset shards")
    empty = True
    for image in read_webdataset(shards):
        empty = False
        captions = image.metadata.get("captions")
        if captions is None or captions == []:
            captions = [image.caption] if image.caption else []
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise InvalidInputError(
                f"{image.source}: 'captions' in its .json must be a list of texts, not {captions!r:.80}"
            )
        if not captions:
            raise InvalidInputError(f"{image.source} has no caption, neither in its .json nor as .txt")
        yield Captioned(image, tuple(captions))
    if empty:
        raise InvalidInputError(f"{data}: the shards {split}-*.tar hold no images")


def bench_encoder(
    encoder: Encoder,
    data: Path,
    *,
    splits: Sequence[str] = ("test",),
    progress: Progress | None = None,
) -> list[EncoderBench]:
    """Measure recall on splits of a folder of captioned WebDataset shards.

    Args:
        encoder: what is measured.
        data: the folder.
        splits: prefixes of its shards.
        progress: told how far it is.

    Raises:
        InvalidInputError: a split is missing, or its images have different numbers of captions.
    """
    return [_bench_split(encoder, Path(data), split, progress or untold) for split in splits]


def _bench_split(encoder: Encoder, data: Path, split: str, told: Progress) -> EncoderBench:
    samples = list(read_captioned(data, split))
    per_image = len(samples[0].captions)
    for sample in samples:
        if len(sample.captions) != per_image:
            raise InvalidInputError(
                f"{sample.image.source} has {len(sample.captions)} captions, the first image of the split "
                f"{per_image}; every image needs the same number"
            )
    begin = time.perf_counter()
    images = encode_in_parts(
        encoder.encode_image, [sample.image for sample in samples], f"encoding images of {split}", told
    )
    texts = encoder.encode_text([caption for sample in samples for caption in sample.captions])
    seconds = time.perf_counter() - begin
    ranks = _ranks(images @ texts.T, per_image)
    name = f"{data.absolute().name}_{split}"
    t2i, i2t = (_with_intervals(ranks[way]) for way in ("t2i", "i2t"))
    return EncoderBench(name, len(samples), len(texts), t2i, i2t, seconds)


def recalls(similarity: NDArray[np.float32], captions_per_image: int) -> dict[str, dict[str, float]]:
    """R@1, R@5 and R@10 in percent, both ways.

    Args:
        similarity: float32 [n, n * captions_per_image]; caption c belongs to image c // captions_per_image.
        captions_per_image: how many captions every image has.

    Returns:
        ``t2i`` and ``i2t``, each ``R@k`` -> percent. Image to text counts an image as found when any one of
        its captions is among the first k, as CLIP_benchmark does.
    """
    ranks = _ranks(similarity, captions_per_image)
    return {
        way: {f"R@{k}": round(float(100 * (rank < k).mean()), 2) for k in KS} for way, rank in ranks.items()
    }


def _ranks(similarity: NDArray[np.float32], per_image: int) -> dict[str, NDArray[np.int64]]:
    """Rank of the right answer, from 0, as int64 [n, queries per image]; a tie counts against it."""
    n = len(similarity)
    right = similarity[np.arange(n * per_image) // per_image, np.arange(n * per_image)]
    t2i = (similarity >= right).sum(0) - 1
    own = right.reshape(n, per_image)
    # Captions of the same image that tie with the best one do not push it down.
    others = similarity.copy()
    others[np.arange(n * per_image) // per_image, np.arange(n * per_image)] = -np.inf
    i2t = (others >= own.max(1, keepdims=True)).sum(1)
    return {"t2i": t2i.reshape(n, per_image), "i2t": i2t[:, None]}


def _with_intervals(ranks: NDArray[np.int64]) -> dict[str, Any]:
    """R@k and its interval over images, whose captions are not independent of one another."""
    images, per_image = ranks.shape
    bootstrap = ClusterBootstrap(np.repeat(np.arange(images), per_image))
    measured: dict[str, Any] = {}
    for k in KS:
        hits = np.where(ranks.ravel() < k, 100.0, 0.0)
        interval = bootstrap.interval(lambda mean: mean, hits)
        measured[f"R@{k}"] = round(float(hits.mean()), 2)
        measured[f"R@{k}_ci"] = rounded(interval)
    return measured
