"""Estimated time of an evaluation, and its progress as one number."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, final

from zsqretrieval._util.cache import Cache, cache_key
from zsqretrieval.encoders.checked import encode_each, encode_each_text
from zsqretrieval.errors import ImageError
from zsqretrieval.evaluation.datasets import Judgments
from zsqretrieval.evaluation.scores import Bench, Step
from zsqretrieval.evaluation.systems import LIKELIHOOD, SYSTEMS, WORDINGS, YES_NO
from zsqretrieval.generators.checked import read_images
from zsqretrieval.protocols import ImageStates
from zsqretrieval.search.scoring import score_pairs
from zsqretrieval.tasks.questions import generate_questions
from zsqretrieval.types import Image, ImageState, Progress

_ENOUGH = 0.3  # seconds of a measurement
_RULES = ("likelihood", "yes_no")
_NULLS = 3  # null images of a prior
_TEST = 0.03  # seconds of intervals and test of one measure of one system
_TAUS = 20_000  # pairs and draws of a rank correlation in the time of a test
_FLOOR = 5  # seconds of everything that is not counted


@final
class Clock:
    """Progress of all steps together, in seconds of the estimated total.

    The cache remembers the finished steps, which an evaluation that continues does not count again.
    """

    def __init__(self, progress: Progress | None, cache: Cache) -> None:
        self._progress, self._cache = progress, cache
        self._seconds: dict[str, float] = {}
        self._keys: dict[str, bytes] = {}
        self._shares: dict[str, float] = {}

    def __call__(self, step: str, done: float, total: int) -> None:
        """Report a step after the start; steps that were not expected move nothing."""
        if self._progress is not None and self._seconds:
            share = done / total if total else 1.0
            self._shares[step] = max(self._shares.get(step, 0.0), min(share, 1.0))
            spent = sum(self._shares.get(name, 0.0) * one for name, one in self._seconds.items())
            self._progress(step, round(spent), max(round(sum(self._seconds.values())), 1))

    def labelled(self, label: str) -> Step:
        """The clock for steps whose names begin with a label."""
        return lambda step, done, total: self(f"{label}: {step}", done, total)

    def finished(self, key: bytes) -> bool:
        """Whether an earlier evaluation has finished a step."""
        return key in self._cache.get_many([key])

    def start(
        self, expected: Mapping[str, tuple[bytes, float]], notice: Callable[[str], object] | None
    ) -> None:
        """Take the expected steps, their keys and seconds, and announce the total."""
        self._keys = {step: key for step, (key, _) in expected.items()}
        self._seconds = {step: seconds for step, (_, seconds) in expected.items()} | {"the rest": _FLOOR}
        if notice is not None:
            notice(f"expected time: {human_time(sum(self._seconds.values()))}")

    def finish(self, prefix: str) -> None:
        """Count all steps with a prefix as done, and remember them."""
        done = [step for step in self._keys if step.startswith(prefix)]
        self._cache.put_many({self._keys[step]: b"" for step in done})
        self._shares |= dict.fromkeys(done, 1.0)


def human_time(seconds: float) -> str:
    """``less than a minute``, ``12 minutes``, ``3.5 hours``."""
    if seconds < 60:
        return "less than a minute"
    minutes = math.ceil(seconds / 60)
    if minutes < 90:
        return "a minute" if minutes == 1 else f"{minutes} minutes"
    return f"{seconds / 3600:.1f} hours"


def estimate(
    benches: Sequence[Bench], clock: Clock, judgments: Sequence[Judgments] = (), *, cost: bool
) -> dict[str, tuple[bytes, float]]:
    """Count the work of each step and multiply it by the measured time of a few images, texts and pairs.

    Args:
        benches: the one to measure last, before it those to tune on.
        clock: knows which steps are finished.
        judgments: whose pairs are scored by the last bench.
        cost: whether the cost of the last bench is measured.

    Returns:
        Of every step, its key and its seconds; 0 for finished ones.
    """
    counted: dict[str, tuple[bytes, str, float]] = {}
    for bench in benches:
        last = bench is benches[-1]
        label = "" if last else f"{bench.dataset.name}: "
        of = [bench.encoder.fingerprint, bench.given.name, str(len(bench.given.gallery))]
        of.append(bench.generator.fingerprint if bench.settings.systems else "")
        counts: dict[str, tuple[str, float]] = {}
        for step, unit, count in _steps(bench, judgments if last else (), measured=last, cost=cost and last):
            if count:
                counts[step] = unit, counts.get(step, ("", 0))[1] + count
        for step, (unit, count) in counts.items():
            counted[label + step] = (cache_key("step", *of, step, str(count)), unit, count)
    seconds = _seconds_each(
        benches[-1], {unit for key, unit, _ in counted.values() if not clock.finished(key)}
    )
    return {
        step: (key, 0.0 if clock.finished(key) else count * seconds[unit])
        for step, (key, unit, count) in counted.items()
    }


def _steps(
    bench: Bench, judgments: Sequence[Judgments], *, measured: bool, cost: bool
) -> Iterator[tuple[str, str, float]]:
    """Name, unit and count of the steps of a bench; counts of equal names are to be added."""
    settings, dataset = bench.settings, bench.given
    images, asks = len(dataset.gallery), "text to image" in settings.directions
    chosen = {name: SYSTEMS[name] for name in settings.systems if name in SYSTEMS}
    everything = {need for system in chosen.values() for need in system.needs}
    yield "encoding images", "image", images
    yield "encoding texts", "text", len(dataset.queries)
    if everything and isinstance(bench.generator, ImageStates):
        yield "image features", "features", images
    for need, style, each in (
        ("questions", settings.style, settings.questions),
        ("bank", "search", settings.bank),
    ):
        yield f"asking images: {style}", "question", images * each if asks and need in everything else 0
    for way in settings.directions:
        for form in dataset.forms:
            there = sum(query.form == form for query in dataset.queries)
            all_asking, items = (there, images) if way == "text to image" else (images, there)
            asking = min(all_asking, settings.queries or all_asking)
            pairs = asking * min(settings.deepest(way), items)
            sampled = min(asking, settings.ablation_queries)
            sample = sampled * min(settings.candidates, items)
            here = {name: one for name, one in chosen.items() if way in one.directions}
            needs = {need for one in here.values() for need in one.needs}
            step = f"{way}, {form}: "
            for rule in _RULES:
                yield f"{step}scoring by {rule}", rule, pairs if rule in needs else 0
            if "prior" in needs and way == "image to text":
                yield f"{step}prior", "likelihood", _NULLS * there
            elif "no_image" in here:
                yield f"{step}prior", "likelihood", _NULLS * float(sampled)
            for name in (name for name in here if name in WORDINGS):
                yield f"{step}ablations: scoring by {WORDINGS[name].name}", WORDINGS[name].name, sample
            yield f"{step}ablations: shuffled", "likelihood", sample if "shuffled" in here else 0
            yield (
                f"{step}scoring expanded candidates",
                "likelihood",
                pairs / 4 if "fused+expanded" in here else 0,
            )
            tests = (len(here) + 1) * len(settings.measures) + 4 * len(settings.depths) * len(here)
            yield f"{step}statistics", "test", tests if measured else 0
    for judged in judgments:
        pairs = len(judged.captions)
        for rule in _RULES:
            yield f"{judged.name}: scoring by {rule}", rule, pairs if rule in everything else 0
        yield f"{judged.name}: bootstrap", "test", pairs * settings.resamples / _TAUS * (len(chosen) + 1)
    for rule in _RULES:
        timed = 1.2 * settings.timed_queries * sum(settings.curve("text to image", images))
        yield f"timing {rule}", rule, timed if cost and rule in everything else 0


def _seconds_each(bench: Bench, units: set[str]) -> dict[str, float]:
    """Seconds of one image, text, pair, ... on this machine."""
    dataset, settings = bench.given, bench.settings
    texts = [query.text for query in dataset.queries]
    encoder = bench.encoder.encoder
    images: Sequence[Any] = dataset.gallery
    calls: dict[str, Callable[[int], object]] = {
        "image": lambda n: encode_each(encoder, images[:n]),
        "text": lambda n: encode_each_text(encoder, [texts[i % len(texts)] for i in range(n)]),
    }
    if bench.settings.systems:
        generator = bench.generator
        if isinstance(generator, ImageStates):
            calls["features"] = lambda n: read_images(generator, images[:n])

        @cache
        def few() -> list[Image | ImageState | ImageError]:
            return read_images(generator, images[:8])

        def scoring(rule: Any) -> Callable[[int], object]:
            return lambda n: score_pairs(
                generator, rule, [texts[i % len(texts)] for i in range(n)],
                [few()[i % len(few())] for i in range(n)], batch_size=settings.batch_size, faults={},
            )  # fmt: skip

        calls |= {"likelihood": scoring(LIKELIHOOD), "yes_no": scoring(YES_NO)}
        calls["question"] = lambda n: generate_questions(
            generator,
            [one for one in read_images(generator, images[:n]) if not isinstance(one, ImageError)],
            settings.questions,
            style=settings.style,
            faults={},
        )
    seconds = {"test": _TEST}
    for unit in sorted(units - {"test"}):  # so that a broken generator fails at the same place each time
        most = len(images) if unit in ("image", "features", "question") else 256
        each = settings.questions if unit == "question" else 1
        seconds[unit] = _seconds_of_one(calls[unit], most) / each
    return seconds


def _seconds_of_one(call: Callable[[int], object], most: int) -> float:
    """Time more and more items until the time is long enough to be measured."""
    call(1)  # warm up
    n = min(4, most)
    while True:
        begin = time.perf_counter()
        call(n)
        spent = time.perf_counter() - begin
        if spent >= _ENOUGH or n >= most:
            return spent / n
        n = min(4 * n, most)
