"""What searching questions brings: every query looks for its image, with and without question expansion.

The images of a split are added to an album and asked, as anybody would do it; then captions of people, and
questions made of these captions by the rules of :mod:`zsqretrieval.evaluation.query_forms`, look for their
images. The captions are held out: no generator sees one. The album is the memory of the bench: with a folder
to work in, an interrupted run goes on where it was.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.checks import check_counts
from zsqretrieval.album.candidates import StatesMode
from zsqretrieval.album.catalog import Catalog
from zsqretrieval.album.info import CATALOG, find_catalog
from zsqretrieval.data.images import digest
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.encoder_bench import KS, Captioned, read_captioned
from zsqretrieval.evaluation.intervals import ClusterBootstrap, rounded
from zsqretrieval.evaluation.leaks import refuse_test_split
from zsqretrieval.evaluation.progress import Progress, encode_in_parts, untold
from zsqretrieval.evaluation.query_forms import as_question, question_form
from zsqretrieval.evaluation.remembered import kept_vectors
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.protocols import Encoder, Generator, ImageStates
from zsqretrieval.retriever import Retriever
from zsqretrieval.search.expansion import EXPANSION, best_questions, join
from zsqretrieval.search.fusion import Fusion, Maximum, ReciprocalRank, WeightedSum, best_first
from zsqretrieval.tasks.questions import Style, check_style

__all__ = ["EXPANSIONS", "GRID", "RULES", "ExpandBench", "bench_expand", "expanded_ranks"]

RULES = ("which", "is there", "what")
"""How captions are asked: "Which picture shows two dogs running?", "Are there two dogs running?", "What is
running?"; see :mod:`zsqretrieval.evaluation.query_forms`."""

EXPANSIONS: Mapping[str, Fusion] = MappingProxyType(
    {"weighted_sum": EXPANSION, "maximum": Maximum(), "reciprocal_rank": ReciprocalRank()}
)
"""What is compared unless told otherwise."""

GRID: Mapping[str, Sequence[Fusion]] = MappingProxyType(
    {
        "weighted_sum": tuple(
            WeightedSum(weight) for weight in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
        ),
        "maximum": tuple(Maximum(shift) for shift in (-3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5)),
        "reciprocal_rank": tuple(ReciprocalRank(constant) for constant in (0.0, 5.0, 20.0, 60.0, 200.0)),
    }
)
"""What is tried in tuning."""

NONE = "none"
"""Name of the first stage without questions."""

_INTERVALS = (
    "95 % percentile bootstrap over images, each with its queries of one form; 2000 draws, the same for all "
    "expansions"
)
_BLOCK = 256  # queries compared at once


@dataclass(frozen=True, slots=True)
class ExpandBench:
    """Recalls of the first stage with and without question expansion on one split.

    Attributes:
        setting: what was measured, and how the intervals are made.
        questions: how many were ``generated`` and ``kept``, and how many ``images`` have a kept one.
        forms: by form of the queries, ``caption``, ``question`` (those of all rules together) and
            ``question/RULE``: ``queries``, their number; by expansion, and for ``none``, ``R@k`` in percent
            and ``R@k_ci``; ``differences``: ``"maximum - none"`` and the like -> ``R@k`` in points,
            ``R@k_ci``.
        sweep: when parameters were tuned, the mean ``R@1`` over captions and questions of each one tried.
    """

    setting: Mapping[str, Any]
    questions: Mapping[str, int]
    forms: Mapping[str, Mapping[str, Any]]
    sweep: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """One object: ``forms``, ``questions``, ``setting``, and ``sweep`` if any."""
        facts = {"forms": self.forms, "questions": self.questions, "setting": self.setting}
        return facts | ({"sweep": list(self.sweep)} if self.sweep else {})


def bench_expand(
    encoder: Encoder,
    generator: Generator,
    data: Path,
    *,
    split: str = "test",
    images: int | None = None,
    questions: int = 3,
    style: str | Style = "questions",
    top_k: int | None = 10,
    temperature: float = 0.7,
    seed: int = 0,
    candidates: int = 100,
    expansions: Mapping[str, Fusion] = EXPANSIONS,
    tune: bool = False,
    batch_size: int = 16,
    work: Path | None = None,
    progress: Progress | None = None,
) -> ExpandBench:
    """Measure recall with and without question expansion on a split of captioned WebDataset shards.

    Args:
        encoder: the first stage; compares exactly.
        generator: asks the images.
        data: folder of shards ``{split}-*.tar``.
        split: which of them.
        images: only the first so many; all when None.
        questions: how many questions of an image at most.
        style: what is written of the images.
        top_k: a question is kept when its own image is among so many; None keeps all.
        temperature: of the sampling.
        seed: of the sampling.
        candidates: how many images of either index are compared in both ways.
        expansions: what is compared, by name.
        tune: choose the parameter of each expansion on this split, from :data:`GRID`: the one with the best
            mean R@1 of captions and questions, the first of equal ones.
        batch_size: images shown to the generator together.
        work: folder that keeps the album, to go on where an interrupted run was; made when missing.
        progress: told how far it is.

    Raises:
        InvalidInputError: the split is missing or has no captions; an image cannot be read or shown; a count
            < 1; ``tune`` on a test split, or of an expansion that has no grid; no such style.
    """
    style = check_style(style)
    check_counts(questions=questions, candidates=candidates)
    check_counts(or_none=True, images=images, top_k=top_k)
    if NONE in expansions:
        raise InvalidInputError(f"an expansion cannot be called {NONE!r}: that is the first stage without")
    if tune:
        refuse_test_split(split)
        if unknown := [name for name in expansions if name not in GRID]:
            raise InvalidInputError(
                f"nothing is known to try for {unknown[0]!r}; tune one of {', '.join(GRID)}"
            )
    told = progress or untold
    samples = list(islice(read_captioned(Path(data), split), images))
    queries = _queries(samples)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()) if work is None else work)
        keeping = stack.enter_context(kept_vectors(encoder, folder))
        digests = [digest(sample.image) for sample in samples]
        made_of = [encoder.fingerprint, generator.fingerprint, digests]
        asked_by = [style, questions, temperature, seed]
        named = hashlib.sha256(repr([made_of, asked_by]).encode()).hexdigest()[:16]
        album = folder / f"expand-{named}"
        _ask(album, keeping, generator, samples, style, questions, temperature, seed, top_k, batch_size, told)
        gallery, answers_of, kept, facts = _read(album, digests)
        asked = encode_in_parts(
            keeping.encode_text, [query.text for query in queries], "encoding queries", told
        )
    answers = np.array([answers_of[query.image] for query in queries], np.int64)
    similarity, by_question = _compared(asked, gallery, *kept)

    rank = {
        NONE: (similarity >= np.take_along_axis(similarity, answers[:, None], 1)).sum(1).astype(np.int64) - 1
    }
    groups = {
        form: np.array([query.form == form or query.form.startswith(f"{form}/") for query in queries])
        for form in ("caption", "question", *map(question_form, RULES))
    }
    groups = {form: members for form, members in groups.items() if members.any()}
    sweep: list[dict[str, Any]] = []
    chosen = dict(expansions)
    for name in expansions:
        tried = GRID[name] if tune else [expansions[name]]
        found = []
        for place, expansion in enumerate(tried, start=1):
            found.append(expanded_ranks(similarity, by_question, answers, expansion, candidates))
            told(f"joining by {name}", place, len(tried))
        means = [_mean_recall(one, groups) for one in found]
        best = int(np.argmax(means))
        chosen[name], rank[name] = tried[best], found[best]
        if tune:
            sweep += [
                {"expansion": name, "parameters": repr(one), "R@1": round(mean, 2)}
                for one, mean in zip(tried, means, strict=True)
            ]
    setting = {
        "data": Path(data).absolute().name,
        "split": split,
        "images": len(samples),
        "encoder": encoder.fingerprint,
        "generator": generator.fingerprint,
        "style": style.name,
        "questions": questions,
        "temperature": temperature,
        "seed": seed,
        "top_k": top_k,
        "candidates": candidates,
        "rules": list(RULES),
        "expansions": {name: repr(one) for name, one in chosen.items()},
        "expansions_from": f"tuned for R@1 on {split}" if tune else "given",
        "intervals": _INTERVALS,
    }
    forms = {form: _summary(rank, answers, members) for form, members in groups.items()}
    return ExpandBench(setting, facts, forms, tuple(sweep))


# --- the task ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Query:
    text: str
    form: str
    image: int  # position among the samples


def _queries(samples: Sequence[Captioned]) -> list[_Query]:
    """All captions, then what each rule makes of them."""
    captions = [(caption, n) for n, sample in enumerate(samples) for caption in sample.captions]
    return [_Query(caption, "caption", n) for caption, n in captions] + [
        _Query(question, question_form(rule), n)
        for rule in RULES
        for caption, n in captions
        if (question := as_question(caption, rule)) is not None
    ]


def _ask(
    album: Path,
    encoder: Encoder,
    generator: Generator,
    samples: Sequence[Captioned],
    style: Style,
    questions: int,
    temperature: float,
    seed: int,
    top_k: int | None,
    batch_size: int,
    told: Progress,
) -> None:
    """Make or continue the album, whose kept questions are then those of ``top_k`` in the whole gallery."""
    index = ExactIndex(encoder.dim, fingerprint=encoder.fingerprint)
    if (album / CATALOG).is_file():
        retriever = Retriever.load(album, encoder=encoder, index=index, generator=generator, states="auto")
    else:
        states: StatesMode = "disk" if isinstance(generator, ImageStates) else None
        retriever = Retriever(encoder, index, generator, path=album, states=states)
    count = len(samples)
    with retriever:
        report = retriever.add(
            (sample.image for sample in samples),
            progress=lambda done: told("encoding images", min(done, count), count),
        )
        if report.skipped:
            one = report.skipped[0]
            raise InvalidInputError(
                f"{len(report.skipped)} images cannot be read: {one.source}: {one.reason}"
            )
        asked = retriever.generate_questions(
            questions,
            style=style,
            top_k=None,
            temperature=temperature,
            seed=seed,
            batch_size=batch_size,
            progress=lambda done, total: told("asking images", done, total),
        )
        if asked.skipped:
            one = asked.skipped[0]
            raise InvalidInputError(
                f"{len(asked.skipped)} images cannot be shown to the generator: {one.source}: {one.reason}"
            )
        retriever.filter_questions(top_k, progress=lambda *done: told("searching questions", *done))


_Kept = tuple[NDArray[np.int64], NDArray[np.float32]]


def _read(
    album: Path, digests: Sequence[str]
) -> tuple[NDArray[np.float32], list[int], _Kept, dict[str, int]]:
    """Vectors of images [N, D]; which is each sample's; kept questions' images [M] and vectors [M, D]."""
    with Catalog.open(find_catalog(album)) as catalog:
        keys = [record.key for record in catalog.iter_records()]  # rising
        row = {record.digest: place for place, record in enumerate(catalog.records(keys))}
        kept = catalog.questions.kept(keys)
        facts = {
            "generated": sum(one.questions for one in catalog.questions.styles()),
            "kept": len(kept.texts),
            "images": len(np.unique(kept.images)),
        }
        owners = np.searchsorted(keys, kept.images).astype(np.int64)
        answers = [row[one] for one in digests]
        return catalog.log.get(keys), answers, (owners, kept.vectors), facts


def _compared(
    asked: NDArray[np.float32],
    gallery: NDArray[np.float32],
    owners: NDArray[np.int64],
    vectors: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of every query the similarities to all images and to their best questions, [Q, N] each."""
    images = np.arange(len(gallery))
    similarity = (asked @ gallery.T).astype(np.float64)
    by_question = np.empty_like(similarity)
    for start in range(0, len(asked), _BLOCK):
        for row, scores in enumerate(asked[start : start + _BLOCK] @ vectors.T, start=start):
            by_question[row], _ = best_questions(images, owners, scores.astype(np.float64))
    return similarity, by_question


# --- what comes of it -------------------------------------------------------------------------------------


def expanded_ranks(
    similarity: NDArray[np.float64],
    by_question: NDArray[np.float64],
    answers: NDArray[np.int64],
    expansion: Fusion,
    candidates: int,
) -> NDArray[np.int64]:
    """Where the right image stands in an expanded search, from 0; a tie counts against it.

    Args:
        similarity: float64 [q, n], of queries and images.
        by_question: float64 [q, n], of queries and the best question of each image; nan where it has none.
        answers: int64 [q], the right image.
        expansion: joins both.
        candidates: how many images either index finds.

    Returns:
        int64 [q]; the largest int64 where neither index finds the right image.
    """
    ranks = np.full(len(answers), np.iinfo(np.int64).max)
    for row, (image, question, answer) in enumerate(zip(similarity, by_question, answers, strict=True)):
        asked = best_first(np.where(np.isnan(question), -np.inf, question))[:candidates]
        near = best_first(image)[:candidates]
        found = np.union1d(near, asked[~np.isnan(question[asked])])
        found = found[best_first(image[found])]
        joined = join(expansion, image[found], question[found])
        own = joined[found == answer]
        if len(own):
            ranks[row] = (joined >= own).sum() - 1
    return ranks


def _mean_recall(rank: NDArray[np.int64], groups: Mapping[str, NDArray[np.bool_]]) -> float:
    """R@1 in percent, captions and questions counting the same."""
    return float(
        np.mean([100 * (rank[groups[form]] < 1).mean() for form in ("caption", "question") if form in groups])
    )


def _summary(
    ranks: Mapping[str, NDArray[np.int64]], answers: NDArray[np.int64], members: NDArray[np.bool_]
) -> dict[str, Any]:
    """Recalls of the queries of one form, and their differences from no expansion, paired."""
    bootstrap = ClusterBootstrap(answers[members])
    hits = {
        (name, k): np.where(rank[members] < k, 100.0, 0.0) for name, rank in ranks.items() for k in KS
    }  # in percent
    summary: dict[str, Any] = {"queries": int(members.sum())}
    differences: dict[str, dict[str, Any]] = {}
    for name in ranks:
        summary[name] = {}
        for k in KS:
            own, base = hits[name, k], hits[NONE, k]
            summary[name][f"R@{k}"] = round(float(own.mean()), 2)
            summary[name][f"R@{k}_ci"] = rounded(bootstrap.interval(lambda one: one, own))
            if name != NONE:
                gain = differences.setdefault(f"{name} - {NONE}", {})
                gain[f"R@{k}"] = round(float((own - base).mean()), 2)
                gain[f"R@{k}_ci"] = rounded(bootstrap.interval(lambda one, other: one - other, own, base))
    return summary | {"differences": differences}
