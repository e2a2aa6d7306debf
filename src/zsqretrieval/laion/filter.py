"""DataComp's filtering track: choose rows of a pool by rules, CLIP score and likelihood of the alt text.

    pool    parquet tables, a folder of image and text embeddings, or tars of images
    filters rules; clip: cosine of image and caption; likelihood: log P(caption | image) - log P(caption)
    out     a subset file per filter and one for all; report.json: how many each keeps, and how they agree

Uids, masks and scores of the pool are in memory: 30 bytes a row.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.batches import batched, tell
from zsqretrieval._util.checks import check_counts, check_numbers, check_shares
from zsqretrieval._util.files import write_whole
from zsqretrieval.encoders.checked import encode_each, encode_texts
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.generators.checked import read_each, read_images
from zsqretrieval.generators.prompts import PROMPTS
from zsqretrieval.laion.datacomp import UIDS, uids_of, write_subset
from zsqretrieval.laion.embeddings import open_embeddings
from zsqretrieval.laion.hashes import hashes_of
from zsqretrieval.laion.metadata import batch_of, read_metadata
from zsqretrieval.laion.safety import Denied, Safety, SafetyLike, safety_for
from zsqretrieval.laion.storage import Location, parquet_module
from zsqretrieval.protocols import Encoder, Generator
from zsqretrieval.types import Image, ImageState, Progress

if TYPE_CHECKING:
    import pyarrow as pa

Scores: TypeAlias = dict[str, NDArray[np.float32]]
"""Scores [n] by filter, ``clip`` or ``likelihood``; NaN for a row without one."""

CLIP_COLUMNS = ("similarity", "clip_l14_similarity_score", "clip_b32_similarity_score")
"""Columns with a CLIP score; the first that is there counts."""

_OTHERS = 4  # images by which the probability of a caption with any image is estimated
_NAMED_BY = ("url", "image_path", "key")  # a row without uid gets one of the first of these


@dataclass(frozen=True, slots=True)
class Rules:
    """The basic filter of DataComp (arXiv 2304.14108); a row whose value is NULL does not pass.

    Attributes:
        min_side: pixels of the shorter side.
        max_aspect: longer side over shorter side.
        min_words: words of the caption.
        min_chars: characters of the caption.
        languages: values of the column ``language``; empty for any. No language is detected here.

    Raises:
        InvalidInputError: a number is out of range, or ``languages`` is one text.
    """

    min_side: int = 200
    max_aspect: float = 3.0
    min_words: int = 3
    min_chars: int = 6
    languages: Sequence[str] = ()

    def __post_init__(self) -> None:
        limits = {name: getattr(self, name) for name in ("min_side", "min_words", "min_chars")}
        check_counts(0, most=2**31 - 1, **limits)
        if not self.max_aspect >= 1:
            raise InvalidInputError(f"max_aspect must be at least 1, not {self.max_aspect}")
        if isinstance(self.languages, str):
            raise InvalidInputError(f"languages must be a list of codes, not {self.languages!r}")

    def mask(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """Which of the n rows of a canonical batch pass, bool [n]. An InvalidInputError without a column."""
        import pyarrow as pa
        from pyarrow import compute as pc

        needed = ["caption", "width", "height", *(["language"] if self.languages else [])]
        if missing := [name for name in needed if name not in batch.schema.names]:
            raise InvalidInputError(f"the pool has no column {missing[0]!r}, which the rules look at")
        caption, width, height = (batch.column(name) for name in needed[:3])
        short = pc.min_element_wise(width, height, skip_nulls=False)
        long = pc.max_element_wise(width, height, skip_nulls=False)
        passed = [
            pc.greater_equal(short, max(self.min_side, 1)),
            pc.less_equal(long, pc.multiply(short.cast(pa.float64()), self.max_aspect)),
            pc.greater_equal(pc.count_substring_regex(caption, r"\S+"), self.min_words),
            pc.greater_equal(pc.utf8_length(caption), self.min_chars),
        ]
        if self.languages:
            passed.append(pc.is_in(batch.column("language"), value_set=pa.array(self.languages, pa.string())))
        kept = [one.fill_null(False).to_numpy(zero_copy_only=False) for one in passed]
        mask: NDArray[np.bool_] = np.logical_and.reduce(kept)
        return mask


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Rows to choose from; denied rows are not among them.

    Attributes:
        uids: u8,u8 [n]. A row without uid gets 128 bits of BLAKE2b of its URL, path or key.
        ruled: which rows pass the rules, bool [n]; None without rules.
        scores: by filter.
        denied: numbers of rows that were left out, by reason.
    """

    uids: NDArray[np.void]
    ruled: NDArray[np.bool_] | None
    scores: Mapping[str, NDArray[np.float32]]
    denied: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class FilterReport:
    """Result of :func:`choose`; all values are JSON.

    Attributes:
        rows: size of the pool.
        denied: numbers of rows that were left out of it, by reason.
        kept: number of rows that each filter keeps; ``intersection`` is that of all.
        thresholds: by score.
        agreement: for each pair of filters, the numbers of rows that ``both``, one (``only_a``, ``only_b``)
            or ``neither`` keep, ``overlap`` (both / smaller), ``jaccard`` and ``kappa`` (Cohen's).
        spearman: rank correlation of the two scores, where both are known; None with fewer than two.
    """

    rows: int
    denied: Mapping[str, int]
    kept: Mapping[str, int]
    thresholds: Mapping[str, float]
    agreement: Sequence[Mapping[str, Any]]
    spearman: float | None


# --- the rows of a pool -----------------------------------------------------------------------------------

Part: TypeAlias = "tuple[pa.RecordBatch, Scores]"
"""A canonical batch, and scores that are not in its columns."""


def metadata_parts(source: Location) -> Iterator[Part]:
    """The rows of parquet tables."""
    for one in read_metadata(source):
        yield one.batch, {}


def embedding_parts(folder: Location) -> Iterator[Part]:
    """The rows of a folder of image and text embeddings, with the cosines of both as ``clip``."""
    images, texts = open_embeddings(folder), open_embeddings(folder, "text_emb")
    for ours, theirs in zip(images.shards, texts.shards, strict=True):
        for vectors, one in ours.blocks():
            others = theirs.vectors[one.first : one.first + len(vectors)]
            clip = np.einsum("nd,nd->n", vectors.astype(np.float32), others.astype(np.float32))
            yield one.batch, {"clip": clip}


def image_parts(
    images: Iterable[Image | ImageError],
    encoder: Encoder | None,
    generator: Generator | None,
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Iterator[Part]:
    """The rows of images with captions; those that cannot be read are left out.

    Args:
        images: such as those of :func:`~zsqretrieval.data.tars.read_webdataset`.
        encoder: computes ``clip``; None for none.
        generator: computes ``likelihood``: log P(caption | image) - log P(caption), in nats per token.
            P(caption) is its mean probability given the first four images, without its own; it corrects for
            captions that are likely with any image. None for none.
        batch_size: images in memory together.
        progress: called after each batch; may raise to stop.
    """
    done = 0
    others: list[Image | ImageState] = []
    for some in batched((one for one in images if isinstance(one, Image)), batch_size):
        texts = [one.caption or "" for one in some]
        rows = [
            {**one.metadata, "caption": one.caption, "key": one.metadata.get("key", one.id)} for one in some
        ]
        scores: Scores = {}
        if encoder is not None:
            scores["clip"] = _cosines(encoder, some, texts)
        if generator is not None:
            scores["likelihood"] = _likelihoods(generator, some, texts, others)
        yield batch_of(rows), scores
        done += len(some)
        tell(progress, "scoring images", done, None)


def _cosines(encoder: Encoder, images: Sequence[Image], texts: Sequence[str]) -> NDArray[np.float32]:
    captions = encode_texts(encoder, texts)
    found = np.full(len(images), np.nan, np.float32)
    for n, vector in enumerate(encode_each(encoder, images, batch_size=len(images))):
        if not isinstance(vector, ImageError) and texts[n].strip():
            found[n] = vector @ captions[n]
    return found


def _likelihoods(
    generator: Generator, images: Sequence[Image], texts: Sequence[str], others: list[Image | ImageState]
) -> NDArray[np.float32]:
    """Compute log P(text | image) - log P(text | others) per token; NaN where the generator cannot take one.

    ``others`` is given the first images of a run.
    """
    seen = read_images(generator, images)
    fit = [(n, one) for n, one in enumerate(seen) if not isinstance(one, ImageError) and texts[n].strip()]
    others += [one for _, one in fit[: _OTHERS - len(others)]]
    pairs = [(n, one) for n, own in fit for one in (own, *(other for other in others if other is not own))]
    contexts = [PROMPTS["captioning"].context(one) for _, one in pairs]
    read = iter(read_each(generator, contexts, [f" {texts[n].strip()}" for n, _ in pairs]))
    found = np.full(len(images), np.nan, np.float32)
    for n, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
        own, *rest = (next(read) for _ in group)
        sums = [one.sum for one in rest if not isinstance(one, InvalidInputError)]
        if not isinstance(own, InvalidInputError) and sums:
            prior = np.logaddexp.reduce(sums) - np.log(len(sums))
            found[n] = (own.sum - prior) / len(own)
    return found


def pool_of(
    parts: Iterable[Part], rules: Rules | None, safety: SafetyLike = "auto", denied: Denied | None = None
) -> Pool:
    """Collect the rows of a pool that are not denied, with what the filters need of them.

    ``denied`` has numbers of rows that were left out before.

    Raises:
        InvalidInputError: the pool is empty, or lacks a column of the rules.
    """
    parquet_module()  # or says what to install
    denied = {} if denied is None else denied
    uids, ruled, scored, permitted = [], [], [], []
    names: set[str] = set()
    limits = Safety() if safety == "auto" else safety_for(safety, ())
    refused: Denied = {}
    for batch, scores in parts:
        names |= set(batch.schema.names)
        permitted.append(np.ones(batch.num_rows, np.bool_) if limits is None else limits.mask(batch, refused))
        uids.append(_uids(batch))
        if rules is not None:
            ruled.append(rules.mask(batch))
        column = next((name for name in CLIP_COLUMNS if name in batch.schema.names), None)
        if "clip" not in scores and column is not None:
            values = batch.column(column).to_numpy(zero_copy_only=False)
            scores = {**scores, "clip": values.astype(np.float32)}
        scored.append(scores)
    if not uids:
        raise InvalidInputError("the pool has no rows")
    # Some tables of a pool of LAION may lack the columns by which the others are recognised.
    if safety_for(safety, names) is not None:
        for reason, count in refused.items():
            denied[reason] = denied.get(reason, 0) + count
        uids = [one[kept] for one, kept in zip(uids, permitted, strict=True)]
        ruled = [one[kept] for one, kept in zip(ruled, permitted, strict=False)]  # none without rules
        scored = [
            {name: values[kept] for name, values in one.items()}
            for one, kept in zip(scored, permitted, strict=True)
        ]
    kinds = dict.fromkeys(name for one in scored for name in one)
    sizes = [len(one) for one in uids]
    return Pool(
        np.concatenate(uids),
        np.concatenate(ruled) if rules is not None else None,
        {
            name: np.concatenate(
                [
                    one.get(name, np.full(size, np.nan, np.float32))
                    for one, size in zip(scored, sizes, strict=True)
                ]
            )
            for name in kinds
        },
        denied,
    )


def _uids(batch: pa.RecordBatch) -> NDArray[np.void]:
    names = batch.schema.names
    if "uid" in names:
        return uids_of(batch.column("uid"))
    if named := next((name for name in _NAMED_BY if name in names), None):
        return np.ascontiguousarray(hashes_of(batch.column(named))).view(UIDS)[:, 0]
    raise InvalidInputError(f"the pool has no column uid, {', '.join(_NAMED_BY)} to name its rows by")


# --- choosing ---------------------------------------------------------------------------------------------


def choose(
    pool: Pool, least: Mapping[str, float] = {}, share: Mapping[str, float] = {}
) -> tuple[dict[str, NDArray[np.bool_]], FilterReport]:
    """Apply the filters: rules if the pool has some, and a threshold on each score.

    Args:
        pool: the rows.
        least: smallest score that is kept, by score.
        share: share of the pool with the best scores that is kept, in (0, 1], by score; ties at the threshold
            are all kept. A row without a score is never kept.

    Returns:
        Masks bool [n] by filter, with ``intersection``; and the report.

    Raises:
        InvalidInputError: no filter is given, a score is not in the pool, or a number is out of range.
    """
    masks: dict[str, NDArray[np.bool_]] = {} if pool.ruled is None else {"rules": pool.ruled}
    thresholds: dict[str, float] = {}
    for name in (*least, *share):
        if name not in pool.scores:
            raise InvalidInputError(
                f"the pool has no {name} scores; it has {', '.join(pool.scores) or 'none'}"
            )
        scores = pool.scores[name]
        if name in thresholds:
            raise InvalidInputError(f"give either a smallest {name} score or a share, not both")
        if name in least:
            check_numbers(**{name: least[name]})
            thresholds[name] = float(least[name])
        else:
            thresholds[name] = _threshold(scores, name, share[name])
        masks[name] = scores >= np.float32(thresholds[name])
    if not masks:
        raise InvalidInputError("give a filter: rules, or a limit for a score")
    masks["intersection"] = np.logical_and.reduce(list(masks.values()))
    pairs = itertools.combinations([name for name in masks if name != "intersection"], 2)
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    report = FilterReport(
        len(pool.uids), dict(pool.denied), kept, thresholds,
        tuple(agreement(a, b, masks[a], masks[b]) for a, b in pairs), _spearman(pool.scores),
    )  # fmt: skip
    return masks, report


def _threshold(scores: NDArray[np.float32], name: str, share: float) -> float:
    check_shares(above_zero=True, **{f"the share of {name}": share})
    known = np.sort(scores[~np.isnan(scores)])
    if not len(known):
        raise InvalidInputError(f"no row of the pool has a {name} score")
    return float(known[-min(len(known), max(1, round(share * len(scores))))])


def agreement(a: str, b: str, first: NDArray[np.bool_], second: NDArray[np.bool_]) -> dict[str, Any]:
    """How two masks [n] agree; see :attr:`FilterReport.agreement`."""
    both, only_a, only_b = (int(m.sum()) for m in (first & second, first & ~second, second & ~first))
    n = len(first)
    neither = n - both - only_a - only_b
    observed = (both + neither) / n if n else 1.0
    chance = (
        ((both + only_a) * (both + only_b) + (neither + only_a) * (neither + only_b)) / n**2 if n else 1.0
    )
    return {
        "a": a, "b": b, "both": both, "only_a": only_a, "only_b": only_b, "neither": neither,
        "overlap": both / max(1, both + min(only_a, only_b)),
        "jaccard": both / max(1, both + only_a + only_b),
        "kappa": (observed - chance) / (1 - chance) if chance < 1 else 1.0,
    }  # fmt: skip


def _spearman(scores: Mapping[str, NDArray[np.float32]]) -> float | None:
    from scipy.stats import spearmanr

    if len(scores) < 2:
        return None
    first, second = (scores[name] for name in sorted(scores)[:2])
    known = ~np.isnan(first) & ~np.isnan(second)
    if known.sum() < 2 or np.ptp(first[known]) == 0 or np.ptp(second[known]) == 0:
        return None
    return float(spearmanr(first[known], second[known]).statistic)


def write_choice(
    folder: Path, pool: Pool, masks: Mapping[str, NDArray[np.bool_]], report: FilterReport
) -> None:
    """Write ``{filter}.npy``, a subset file of DataComp, for each filter, and ``report.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, mask in masks.items():
        write_subset(folder / f"{name}.npy", pool.uids[mask])
    write_whole(folder / "report.json", [json.dumps(asdict(report), indent=2, allow_nan=False) + "\n"])
