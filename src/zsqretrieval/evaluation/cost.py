"""What a search costs: seconds and arithmetic per query, bytes per image, memory at its peak.

Times are of one query at a time, as in a search, on this machine and with its other load; the arithmetic is
counted on the real modules (``torch.utils.flop_counter``), a multiplication with its addition as two, and is
the same everywhere. Attention on the CPU, which torch's counter passes over, is counted by torch's own
formula. Parts that do not compute with torch have no count.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.errors import MissingDependencyError
from zsqretrieval.protocols import Encoder, Generator, ImageStates, Index
from zsqretrieval.search.scoring import Scoring, score_images
from zsqretrieval.tasks.questions import generate_questions
from zsqretrieval.types import Image, ImageState

__all__ = [
    "Cost",
    "Spent",
    "bytes_per_image",
    "count_flops",
    "image_costs",
    "peak_memory",
    "query_costs",
    "spent",
]

_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Spent:
    """What one call costs.

    Attributes:
        what: name of the stage or system.
        depth: candidates read; None where that means nothing.
        seconds: median over the calls.
        interval: 95 % of the median, percentile bootstrap over the calls.
        calls: how many were timed.
        flops: floating-point operations of a call; None when they cannot be counted.
    """

    what: str
    depth: int | None
    seconds: float
    interval: tuple[float, float]
    calls: int
    flops: int | None

    @property
    def per_second(self) -> float:
        """Calls per second, one after the other."""
        return 1 / self.seconds if self.seconds > 0 else float("inf")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a search costs.

    Attributes:
        stages: of one query: encoding the text, comparing it with all images, scoring by each rule at each
            depth.
        systems: the stages added up, by system and depth.
        images: once for every image: encoding it, seeing it, asking it.
        bytes_per_image: of what is stored.
        peak_memory: in bytes: ``process``, and ``gpu`` where there is one.
    """

    stages: tuple[Spent, ...]
    systems: tuple[Spent, ...]
    images: tuple[Spent, ...]
    bytes_per_image: dict[str, float]
    peak_memory: dict[str, int]

    def of(self, system: str, depth: int | None) -> Spent | None:
        """What a system spends on a query when it reads so many candidates; None when nobody measured it."""
        return next((one for one in self.systems if (one.what, one.depth) == (system, depth)), None)

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        return asdict(self)


def spent(
    what: str, seconds: Sequence[float], *, depth: int | None = None, flops: int | None = None, seed: int = 0
) -> Spent:
    """Sum up timed calls.

    Raises:
        MissingDependencyError: scipy is not installed.
    """
    times = np.asarray(seconds, np.float64)
    low = high = float(times[0])
    if len(times) > 1:
        try:
            from scipy.stats import bootstrap
        except ImportError as error:
            raise MissingDependencyError(
                "scipy", "an interval of times", "pip install 'zsqretrieval[evaluation]'"
            ) from error
        found = bootstrap(
            (times,), np.median, n_resamples=_RESAMPLES, method="percentile", rng=np.random.default_rng(seed)
        ).confidence_interval
        low, high = float(found.low), float(found.high)
    return Spent(what, depth, float(np.median(times)), (low, high), len(times), flops)


def count_flops(call: Callable[..., object], *arguments: Any) -> int | None:
    """Floating-point operations of a call, by torch's counter; None when it computes nothing with torch.

    Counted are matrix products, convolutions and attention, which is nearly all; not activations, norms and
    sums.
    """
    import torch
    from torch.utils import flop_counter

    on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    with flop_counter.FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        call(*arguments)
    return int(counter.get_total_flops()) or None


def _attention(
    query: tuple[int, ...],
    key: tuple[int, ...],
    value: tuple[int, ...],
    *_: object,
    out_shape: object = None,
    **__: object,
) -> int:
    from torch.utils.flop_counter import sdpa_flop_count

    count: Any = sdpa_flop_count
    return int(count(query, key, value))


def query_costs(
    encoder: Encoder,
    generator: Generator,
    scorings: Sequence[Scoring],
    questions: Sequence[str],
    gallery: NDArray[np.float32],
    shown: Sequence[Image | ImageState],
    depths: Sequence[int],
    *,
    joined: str | None = "likelihood",
    expand: Callable[[NDArray[np.float32]], object] | None = None,
    batch_size: int = 64,
    progress: Callable[[str, int, int], object] | None = None,
) -> tuple[tuple[Spent, ...], tuple[Spent, ...]]:
    """Time the stages of a search, question by question.

    Args:
        encoder: without any cache around it.
        generator: reads the candidates.
        scorings: the rules, of different names.
        questions: q questions that are timed; the first one is asked once more before, to warm up.
        gallery: float32 [n, D], the images.
        shown: n images or states.
        depths: how many candidates are read; 0 is the first stage alone.
        joined: name of the rule that ``fused`` uses; None when nothing is fused.
        expand: answers a vector [D] of a question by an expanded first stage.
        batch_size: pairs computed together.
        progress: told how far it is.

    Returns:
        The stages; and the systems ``clip``, one per rule, ``fused``, and ``expand`` if any, at each depth.
        Fusing itself is arithmetic on a few numbers and left out.
    """
    at = sorted({min(depth, len(gallery)) for depth in depths} - {0})
    deepest = max(at, default=1)

    def compare(vector: NDArray[np.float32]) -> NDArray[np.intp]:
        similarity = gallery @ vector
        best = np.argpartition(-similarity, deepest - 1)[:deepest]
        return best[np.argsort(-similarity[best], kind="stable")]

    def read(scoring: Scoring, question: str, candidates: Sequence[Image | ImageState]) -> object:
        return score_images(generator, scoring, question, candidates, batch_size=batch_size)

    (vector,) = encoder.encode_text([questions[0]])
    nearest = [shown[place] for place in compare(vector)]
    flops: dict[tuple[str, int | None], int | None] = {
        ("encode text", None): count_flops(encoder.encode_text, [questions[0]]),
        ("compare", None): 2 * gallery.size,
    }
    for scoring in scorings:
        for depth in at:
            flops[scoring.name, depth] = count_flops(read, scoring, questions[0], nearest[:depth])
    seconds: dict[tuple[str, int | None], list[float]] = {}

    def timed(name: str, depth: int | None, call: Callable[..., Any], *arguments: Any) -> Any:
        begin = time.perf_counter()
        found = call(*arguments)
        seconds.setdefault((name, depth), []).append(time.perf_counter() - begin)
        return found

    readings = [(scoring, depth) for scoring in scorings for depth in at]
    for done, question in enumerate(questions, start=1):
        (vector,) = timed("encode text", None, encoder.encode_text, [question])
        candidates = [shown[place] for place in timed("compare", None, compare, vector)]
        for scoring, depth in readings:
            timed(scoring.name, depth, read, scoring, question, candidates[:depth])
        readings = [*readings[1:], *readings[:1]]  # what comes first finds cold caches; so each does in turn
        if expand is not None:
            timed("search questions", None, expand, vector)
        if progress is not None:
            progress("timing queries", done, len(questions))
    stages = [spent(name, times, depth=depth, flops=flops.get((name, depth)))
              for (name, depth), times in seconds.items()]  # fmt: skip

    def together(system: str, depth: int | None, *parts: tuple[str, int | None]) -> Spent:
        counts = [flops.get(part) for part in parts]
        known = [count for count in counts if count is not None]
        return spent(
            system,
            np.sum([seconds[part] for part in parts], axis=0),
            depth=depth,
            flops=sum(known) if len(known) == len(counts) else None,
        )

    first = (("encode text", None), ("compare", None))
    systems = [together("clip", 0, *first)]
    rules = {scoring.name: scoring.name for scoring in scorings}
    if joined is not None:
        rules["fused"] = joined
    for system, rule in rules.items():
        systems.append(together(system, 0, *first))
        systems += [together(system, depth, *first, (rule, depth)) for depth in at]
    if expand is not None:
        systems.append(together("expand", 0, ("encode text", None), ("search questions", None)))
    return tuple(stages), tuple(systems)


def image_costs(
    encoder: Encoder,
    generator: Generator,
    images: Sequence[Image],
    *,
    questions: int = 0,
    batch_size: int = 16,
) -> tuple[Spent, ...]:
    """Time what is done once for every image, in batches as an album does; seconds and count per image.

    Args:
        encoder: without any cache around it.
        generator: seen by it where it makes states.
        images: a few images; they are timed in four parts, the first of which warms up. Only a quarter of
            them are asked, which takes long.
        questions: how many are written of each image; 0 to ask none.
        batch_size: images computed together.
    """
    found = [_image_cost("encode image", partial(encoder.encode_image, batch_size=batch_size), images)]
    if isinstance(generator, ImageStates):
        found.append(_image_cost("see image", partial(generator.image_states, batch_size=batch_size), images))
    if questions:
        ask = partial(generate_questions, generator, n=questions, batch_size=batch_size)
        found.append(_image_cost("ask image", ask, images[: max(len(images) // 4, 1)]))
    return tuple(found)


def _image_cost(what: str, call: Callable[[Sequence[Image]], object], images: Sequence[Image]) -> Spent:
    parts = [list(images[start::4]) for start in range(min(4, len(images)))]
    flops = count_flops(call, parts[0])
    seconds = []
    for part in parts[1:] or parts:
        begin = time.perf_counter()
        call(part)
        seconds.append((time.perf_counter() - begin) / len(part))
    return spent(what, seconds, flops=None if flops is None else flops // len(parts[0]))


def bytes_per_image(
    vectors: NDArray[np.float32], generator: Generator, *, index: Index | None = None, questions: int = 0
) -> dict[str, float]:
    """What an image takes up on disk.

    Args:
        vectors: float32 [n, D], of the gallery.
        generator: whose states are counted, where it makes some.
        index: an empty one; it is filled and saved to see what it takes.
        questions: kept questions of all images, each of which has a vector.

    Returns:
        Bytes of ``vector``; ``index``, ``state`` and ``question vectors`` where there are some.
    """
    sizes = {"vector": float(vectors[0].nbytes)}
    if index is not None:
        index.add(np.arange(len(vectors), dtype=np.int64), vectors)
        with tempfile.TemporaryDirectory() as folder:
            index.save(Path(folder) / "index")
            stored = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        sizes["index"] = stored / len(vectors)
    if isinstance(generator, ImageStates):
        sizes["state"] = float(np.prod(generator.state_shape) * np.dtype(generator.state_dtype).itemsize)
    if questions:
        sizes["question vectors"] = questions * vectors[0].nbytes / len(vectors)
    return sizes


def peak_memory() -> dict[str, int]:
    """Most memory this process has held so far, in bytes: ``process``, and ``gpu`` where torch sees one.

    Empty where the system does not tell (Windows).
    """
    peaks: dict[str, int] = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peaks["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    import torch

    if torch.cuda.is_available():
        peaks["gpu"] = torch.cuda.max_memory_allocated()
    return peaks
