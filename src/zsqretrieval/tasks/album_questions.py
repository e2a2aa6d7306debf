"""Asking all images of an album, and keeping the questions that lead back to them.

    images --generate_questions--> questions --encoder--> vectors --search--> rank of own image: kept?

A generator also writes what is not in the image, and what is in every image. Both hurt an index. So a
question is kept when searching it finds its own image among the first ``top_k``: the consistency filter of
doc2query-- (Gospodinov et al., arXiv 2301.03266) and PreMIR (arXiv 2508.17079), the first stage as judge.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import index
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.checks import check_counts
from zsqretrieval.album.candidates import Viewer
from zsqretrieval.album.catalog import Catalog
from zsqretrieval.album.questions import Judgement, NewQuestion, Recipe
from zsqretrieval.data.loader import Skipped
from zsqretrieval.data.reopen import Reopener
from zsqretrieval.errors import ImageError
from zsqretrieval.generators.prompts import PROMPTS
from zsqretrieval.protocols import Encoder
from zsqretrieval.tasks.english import normalized
from zsqretrieval.tasks.questions import Question, Style, check_sampling, check_style, generate_questions
from zsqretrieval.types import Progress

__all__ = ["FilterReport", "QuestionsReport", "ask_images", "judge_again", "own_ranks"]

Search: TypeAlias = Callable[[NDArray[np.float32], int], NDArray[np.int64]]
"""The first stage: keys int64 [q, k] of the images nearest to vectors float32 [q, dim], best first."""

_CHUNK = 512  # records looked up at once
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class QuestionsReport:
    """What became of the images of an album; every one is counted exactly once.

    Attributes:
        asked: how many were asked now.
        known: how many had been asked in the same way before.
        skipped: those that cannot be shown to the generator, with the reason.
        questions: how many questions are new.
        kept: how many of these are kept.
        seconds: time taken.
    """

    asked: int
    known: int
    skipped: tuple[Skipped, ...]
    questions: int
    kept: int
    seconds: float


@dataclass(frozen=True, slots=True)
class FilterReport:
    """What became of the questions of an album.

    Attributes:
        questions: how many there are.
        kept: how many of them are kept now.
        seconds: time taken.
    """

    questions: int
    kept: int
    seconds: float


def ask_images(
    catalog: Catalog,
    viewer: Viewer,
    encoder: Encoder,
    search: Search,
    *,
    n: int,
    style: str | Style,
    answers: bool,
    top_k: int | None,
    temperature: float,
    seed: int,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress | None,
) -> QuestionsReport:
    """Ask every image that was not asked in this way yet, and write the questions down batch by batch.

    With the same seed, the same images in the same batches are asked the same: a draw is named by the seed
    and the place of its image in the batch. Other batches, because of another ``batch_size`` or because some
    images were asked already, draw others.

    Args:
        catalog: the images; takes the questions.
        viewer: shows them to the generator.
        encoder: makes the questions' vectors.
        search: the first stage, for the round trip.
        n: the most questions of one image.
        style: a name or a style of one's own.
        answers: whether the generator answers as well.
        top_k: how far the own image may stand from the top; None keeps every question.
        temperature: of the sampling.
        seed: of the sampling.
        max_new_tokens: length limit.
        batch_size: images shown together.
        progress: told after every batch how many images are dealt with, and of how many; may raise to stop.

    Raises:
        InvalidInputError: ``n``, ``top_k`` or ``batch_size`` < 1, or as
            :func:`~zsqretrieval.tasks.questions.generate_questions`. Earlier batches stay.
        AlbumError: the disk is full or the album is locked; earlier batches stay.
    """
    begin = time.perf_counter()
    style = check_style(style, answers=answers)
    check_sampling(n, temperature, seed, max_new_tokens)
    check_counts(batch_size=batch_size)
    check_counts(or_none=True, top_k=top_k)
    # What is written down are plain numbers, though NumPy's are welcome.
    n, max_new_tokens, batch_size = index(n), index(max_new_tokens), index(batch_size)
    top_k = None if top_k is None else index(top_k)
    seed = seed if seed is None else index(seed)
    recipe = Recipe(
        style=style.name,
        prompts=tuple(prompt.template for prompt in style.prompts),
        answer_prompt=PROMPTS["vqa"].template if answers else None,
        generator=viewer.generator.get().fingerprint,
        encoder=encoder.fingerprint,
        n=n,
        temperature=float(temperature),
        seed=seed,
        max_new_tokens=max_new_tokens,
    )
    asked = known = questions = kept = 0
    skipped: list[Skipped] = []

    def told() -> None:
        if progress is not None:
            done = asked + known + len(skipped)
            progress(done, max(done, len(catalog)))

    with Reopener() as files:
        for chunk in _batches(catalog.iter_records(), _CHUNK):
            before = catalog.questions.asked(recipe, [record.key for record in chunk])
            known += len(before)
            for batch in _batches(iter([one for one in chunk if one.key not in before]), batch_size):
                with viewer.showing(batch, files) as (generator, shown):
                    seen = {
                        record.key: one
                        for record, one in zip(batch, shown, strict=True)
                        if not isinstance(one, ImageError)
                    }
                    written = generate_questions(
                        generator,
                        list(seen.values()),
                        n,
                        style=style,
                        answers=answers,
                        temperature=temperature,
                        seed=seed,
                        max_new_tokens=max_new_tokens,
                        batch_size=batch_size,
                    )
                made = _judged(catalog, encoder, search, list(seen), written, top_k)
                new, found = catalog.questions.write(recipe, made)
                questions, kept, asked = questions + new, kept + found, asked + len(seen)
                skipped += [Skipped(one.source, one.reason) for one in shown if isinstance(one, ImageError)]
                told()
            told()
    return QuestionsReport(asked, known, tuple(skipped), questions, kept, time.perf_counter() - begin)


def _judged(
    catalog: Catalog,
    encoder: Encoder,
    search: Search,
    images: Sequence[int],
    written: Sequence[Sequence[Question]],
    top_k: int | None,
) -> dict[int, list[NewQuestion]]:
    """The questions of images with their vectors, after the round trip."""
    flat = [(image, one) for image, some in zip(images, written, strict=True) for one in some]
    vectors, judgements = _round_trip(
        catalog, encoder, search, [one.text for _, one in flat], [image for image, _ in flat], top_k
    )
    made: dict[int, list[NewQuestion]] = {image: [] for image in images}
    for (image, one), vector, judgement in zip(flat, vectors, judgements, strict=True):
        made[image].append(
            NewQuestion(
                text=one.text,
                form=normalized(one.text),
                answer=one.answer,
                prompt=one.prompt,
                log_likelihood=one.log_likelihood,
                tokens=one.tokens,
                judgement=judgement,
                vector=vector,
            )
        )
    return made


def judge_again(
    catalog: Catalog,
    encoder: Encoder,
    search: Search,
    *,
    top_k: int | None,
    batch_size: int,
    progress: Progress | None,
) -> FilterReport:
    """Search every question once more, in the album as it is now, and keep those that find their image.

    Args:
        catalog: the questions.
        encoder: makes their vectors.
        search: the first stage.
        top_k: how far the own image may stand from the top; None keeps every question.
        batch_size: questions searched together.
        progress: told after every batch how many questions are done; may raise to stop.

    Raises:
        InvalidInputError: ``top_k`` or ``batch_size`` < 1.
        AlbumError: the disk is full or the album is locked; earlier batches stay.
    """
    begin = time.perf_counter()
    check_counts(batch_size=batch_size)
    check_counts(or_none=True, top_k=top_k)
    top_k, batch_size = None if top_k is None else index(top_k), index(batch_size)
    total = sum(facts.questions for facts in catalog.questions.styles())
    done = kept = 0
    for batch in catalog.questions.batches(batch_size):
        texts, images = [one.text for one in batch], [one.image for one in batch]
        vectors, judgements = _round_trip(catalog, encoder, search, texts, images, top_k)
        keys = [one.key for one in batch]
        catalog.questions.judge(
            dict(zip(keys, judgements, strict=True)), dict(zip(keys, vectors, strict=True))
        )
        kept += sum(one.kept for one in judgements)
        done += len(batch)
        if progress is not None:
            progress(done, max(done, total))
    return FilterReport(done, kept, time.perf_counter() - begin)


def _round_trip(
    catalog: Catalog,
    encoder: Encoder,
    search: Search,
    texts: Sequence[str],
    images: Sequence[int],
    top_k: int | None,
) -> tuple[NDArray[np.float32], list[Judgement]]:
    """The vectors of questions, and whether they find the images they were asked of."""
    vectors = encoder.encode_text(texts)
    gallery = len(catalog)
    if top_k is None or not texts:
        return vectors, [Judgement(None, None, gallery, kept=True)] * len(texts)
    ranks = own_ranks(search(vectors, top_k), np.array(images, np.int64))
    return vectors, [Judgement(int(rank) or None, top_k, gallery, kept=bool(rank)) for rank in ranks]


def own_ranks(found: NDArray[np.int64], own: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each question's own image stands.

    Args:
        found: int64 [q, k], keys of images, best first.
        own: int64 [q], key of the own image.

    Returns:
        int64 [q], from 1; 0 where it is not among the k.
    """
    hits = found == own[:, None]
    return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0).astype(np.int64)


def _batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while batch := list(islice(items, size)):
        yield batch
