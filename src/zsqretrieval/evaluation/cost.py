"""Cost of a search: time and arithmetic per query, time per image, bytes per image, peak memory.

Times are of one query at a time on this machine, with its other load. Arithmetic is counted on the real
modules by ``torch.utils.flop_counter``, a multiply-add as two, and does not depend on the machine. Parts that
do not compute with torch have no count.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from zsqretrieval.evaluation.results import row
from zsqretrieval.evaluation.scores import Bench
from zsqretrieval.evaluation.systems import LIKELIHOOD, SYSTEMS, YES_NO, Choice
from zsqretrieval.generators.checked import read_images
from zsqretrieval.protocols import Encoder, Generator, ImageStates, Index
from zsqretrieval.search.scoring import score_pairs
from zsqretrieval.tasks.questions import generate_questions
from zsqretrieval.types import Image

Rows = list[dict[str, Any]]
_Stage = tuple[str, int | None]  # name and depth

_RESAMPLES = 2000
_IMAGES = 32
_TEXT, _COMPARE, _EXPAND = ("encode text", None), ("compare", None), ("search questions", None)


def cost_rows(bench: Bench, encoder: Encoder, choice: Choice, index: Index | None = None) -> Rows:
    """Measure the cost of the systems of a bench, text to image, with texts of its first form.

    The encoder has no cache; the index, if any, is empty, and its size on disk is measured.

    Returns:
        Rows of the group ``cost``; see :mod:`~zsqretrieval.evaluation.results`.
    """
    settings, dataset = bench.settings, bench.dataset
    reranks = [name for name in settings.systems if name in SYSTEMS]
    expands = any("questions" in SYSTEMS[name].needs for name in reranks)
    sample = dataset.of_form(dataset.forms[0]).sample(settings.timed_queries, seed=settings.seed)
    texts = [query.text for query in sample.queries]
    expand = partial(bench.expanded_search, expansion=choice.expansion) if expands else None
    rows = query_costs(bench, encoder, texts, expand)
    questions = settings.questions if expands else 0
    generator = bench.generator if reranks else None
    rows += image_costs(encoder, generator, dataset.gallery[:_IMAGES], questions=questions)
    kept = len(bench.questions(settings.style, settings.questions).texts) if expands else 0
    sizes = bytes_per_image(bench.gallery, generator, index=index, questions=kept)
    rows += [_row("storage", name, "size", size, unit="bytes") for name, size in sizes.items()]
    return rows + [_row("memory", name, "size", size, unit="bytes") for name, size in peak_memory().items()]


def _row(kind: str, system: str, measure: str, value: float, **columns: Any) -> dict[str, Any]:
    return row("cost", system, measure, value, form=kind, **columns)


def _spent(
    kind: str, what: str, seconds: Sequence[float] | NDArray[Any], flops: float, depth: int | None = None
) -> Rows:
    """Rows of the median time of some calls, with its 95 % percentile bootstrap, and of their arithmetic.

    ``flops`` is nan where it was not counted.
    """
    times = 1000 * np.asarray(seconds, np.float64)
    low = high = float(times[0])
    if len(times) > 1:
        found = bootstrap(
            (times,), np.median, n_resamples=_RESAMPLES, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        low, high = float(found.low), float(found.high)
    place = {"depth": depth, "direction": "text to image" if kind in ("stage", "system") else None}
    median = float(np.median(times))
    rows = [_row(kind, what, "time", median, low=low, high=high, queries=len(times), unit="ms", **place)]
    return rows if np.isnan(flops) else [*rows, _row(kind, what, "flops", flops, unit="", **place)]


def query_costs(
    bench: Bench,
    encoder: Encoder,
    texts: Sequence[str],
    expand: Callable[[NDArray[np.float32]], object] | None = None,
) -> Rows:
    """Time the stages of a search for each of some texts, one at a time.

    Args:
        bench: gallery, image features and systems.
        encoder: without a cache.
        texts: the first one is searched once more before, to warm up and to count the arithmetic.
        expand: searches images and questions for a vector float32 [D].

    Returns:
        Rows of the stages, and of every system at every depth as the sum of its stages. Fusion is arithmetic
        on a few numbers and is left out.
    """
    gallery, settings = bench.gallery, bench.settings
    chosen = {name: SYSTEMS[name] for name in settings.systems if name in SYSTEMS}
    needs = {need for system in chosen.values() for need in system.needs}
    rules = [rule for rule in (LIKELIHOOD, YES_NO) if rule.name in needs]
    at = [depth for depth in settings.curve("text to image", len(gallery)) if depth > 0]
    deepest = max(at, default=1)

    def compare(vector: NDArray[np.float32]) -> list[int]:
        similarity = gallery @ vector
        best = np.argpartition(-similarity, deepest - 1)[:deepest]
        nearest: list[int] = best[np.argsort(-similarity[best], kind="stable")].tolist()
        return nearest

    def score(rule: Any, text: str, shown: Sequence[Any]) -> object:
        texts = [text] * len(shown)
        return score_pairs(bench.generator, rule, texts, shown, batch_size=settings.batch_size, faults={})

    stages = [(rule, depth) for rule in rules for depth in at]
    (vector,) = encoder.encode_text([texts[0]])
    shown = bench.shown(compare(vector)) if rules else []
    flops: dict[_Stage, float] = {_COMPARE: 2 * gallery.size}
    flops[_TEXT] = count_flops(encoder.encode_text, [texts[0]])
    for rule in rules:
        score(rule, texts[0], shown)  # prompts that the generator keeps are not counted, at any depth
    for rule, depth in stages:
        flops[rule.name, depth] = count_flops(score, rule, texts[0], shown[:depth])
    seconds: dict[_Stage, list[float]] = {}

    def timed(stage: _Stage, call: Callable[..., Any], *arguments: Any) -> Any:
        begin = time.perf_counter()
        found = call(*arguments)
        seconds.setdefault(stage, []).append(time.perf_counter() - begin)
        return found

    for done, text in enumerate(texts, start=1):
        (vector,) = timed(_TEXT, encoder.encode_text, [text])
        nearest = timed(_COMPARE, compare, vector)
        shown = bench.shown(nearest) if rules else []
        for rule, depth in stages:
            timed((rule.name, depth), score, rule, text, shown[:depth])
        stages = [*stages[1:], *stages[:1]]  # the first one finds cold caches; each is first in turn
        if expand is not None:
            timed(_EXPAND, expand, vector)
        for rule in rules:
            bench.step(f"timing {rule.name}", done, len(texts))
    rows = Rows()
    for (name, at_depth), times in seconds.items():
        rows += _spent("stage", name, times, flops.get((name, at_depth), np.nan), at_depth)

    def total(system: str, depth: int, *parts: _Stage) -> Rows:
        times = np.sum([seconds[part] for part in parts], axis=0)
        return _spent("system", system, times, sum(flops.get(part, np.nan) for part in parts), depth)

    plain = (_TEXT, _COMPARE)
    rows += total(bench.name, 0, *plain)
    for name, system in chosen.items():
        if system.base or "text to image" not in system.directions:
            continue
        first = (_TEXT, _EXPAND) if "questions" in system.needs else plain
        rule_name = next((rule.name for rule in rules if rule.name in system.needs), None)
        rows += total(name, 0, *first)
        rows += [one for depth in at if rule_name for one in total(name, depth, *first, (rule_name, depth))]
    return rows


def image_costs(
    encoder: Encoder, generator: Generator | None, images: Sequence[Image], *, questions: int = 0
) -> Rows:
    """Time the work done once for every image, in batches; per image.

    Images are timed in four parts, the first of which warms up; a quarter of them is asked.
    """
    calls: list[tuple[str, Callable[[Sequence[Image]], object], Sequence[Image]]] = [
        ("encode image", partial(encoder.encode_image, batch_size=16), images)
    ]
    if isinstance(generator, ImageStates):
        calls.append(("image features", partial(read_images, generator), images))
    if questions and generator is not None:
        ask = partial(generate_questions, generator, n=questions, batch_size=16, faults={})
        calls.append(("ask image", ask, images[: max(len(images) // 4, 1)]))
    rows = Rows()
    for what, call, some in calls:
        parts = [list(some[start::4]) for start in range(min(4, len(some)))]
        flops = count_flops(call, parts[0])
        seconds = []
        for part in parts[1:] or parts:
            begin = time.perf_counter()
            call(part)
            seconds.append((time.perf_counter() - begin) / len(part))
        rows += _spent("image", what, seconds, flops // len(parts[0]))
    return rows


def count_flops(call: Callable[..., object], *arguments: Any) -> float:
    """Floating-point operations of a call by torch's counter; nan if it does not compute with torch.

    Matrix products, convolutions and attention are counted; activations, norms and sums are not.
    """
    import torch
    from torch.utils import flop_counter

    # torch's counter has this formula, but not for the CPU.
    count: Any = flop_counter.sdpa_flop_count
    on_cpu = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
            lambda query, key, value, *_, **__: count(query, key, value)
        )
    }
    with flop_counter.FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        call(*arguments)
    return int(counter.get_total_flops()) or np.nan


def bytes_per_image(
    vectors: NDArray[np.float32],
    generator: Generator | None,
    *,
    index: Index | None = None,
    questions: int = 0,
) -> dict[str, float]:
    """Bytes of one image on disk: ``vector``, ``index``, ``image features``, ``question vectors``.

    Args:
        vectors: float32 [n, D], of the gallery.
        generator: its image features are counted if it makes some.
        index: an empty one; it is filled and saved.
        questions: number of kept questions of all images.
    """
    sizes = {"vector": float(vectors[0].nbytes)}
    if index is not None:
        index.add(np.arange(len(vectors), dtype=np.int64), vectors)
        with tempfile.TemporaryDirectory() as folder:
            index.save(Path(folder) / "index")
            stored = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        sizes["index"] = stored / len(vectors)
    if isinstance(generator, ImageStates):
        features = np.prod(generator.state_shape) * np.dtype(generator.state_dtype).itemsize
        sizes["image features"] = float(features)
    if questions:
        sizes["question vectors"] = questions * vectors[0].nbytes / len(vectors)
    return sizes


def peak_memory() -> dict[str, int]:
    """Peak memory of this process in bytes: ``process``, and ``gpu`` if torch has one; empty on Windows."""
    peaks: dict[str, int] = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peaks["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    import torch

    if torch.cuda.is_available():
        peaks["gpu"] = torch.cuda.max_memory_allocated()
    return peaks
