"""Time of the scoring engine's routes against scoring pair by pair, in one process.

python -m benchmarks.scoring --candidates 100 --json
python -m benchmarks.scoring --profile --device cuda --text-layers 24 --vision-layers 24 --batch-size 256
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from torch.nn.functional import linear, pad
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.output import command_line, progress_bar, run, write_results
from benchmarks.random_models import PROMPT, WORDS, random_kosmos
from zsqretrieval.data.images import decode
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.kosmos import Kosmos1Generator
from zsqretrieval.types import Context, Image, ImageState, LogLikelihood, Progress


@dataclass(frozen=True, slots=True)
class RouteBench:
    """One way to score one question against all candidates."""

    seconds: float  # for all candidates, of the clock below; median over rounds
    max_abs_diff: float  # largest difference of a log-likelihood (a sum) from the naive route, in nats
    flops: int | None = None  # of all matrix products and attention; with a profile
    ceiling_share: float | None = None  # FLOP/s divided by the ceiling; with a profile


@dataclass(frozen=True, slots=True)
class ScoringBench:
    """All routes for one question and K images, with random weights."""

    # naive: one forward pass of transformers per pair, from pixels, with logits at every position; batched:
    # `log_likelihood` from pixels; states: from image states; kv: with the keys and values of every image
    # cached from an earlier question.
    routes: dict[str, RouteBench]
    speedup: float  # seconds of naive divided by those of the fastest other route
    candidates: int  # K
    question_tokens: int
    dtype: str
    vision_layers: int  # 24 in the published model
    text_layers: int  # 24 in the published model
    threads: int
    rounds: int
    naive_pairs: int  # scored by the naive route
    batch_size: int  # of the other routes
    device: str
    clock: str  # "cpu" with one thread, which other programs hardly change; else "wall"
    ceiling: float | None  # FLOP/s of the fastest matrix product tried, in the same dtype; with a profile


def bench_scoring(
    generator: Kosmos1Generator,
    *,
    candidates: int = 100,
    question_tokens: int = 30,
    rounds: int = 3,
    naive_pairs: int = 24,
    batch_size: int = 32,
    profile: bool = False,
    progress: Progress | None = None,
) -> ScoringBench:
    """Time every route on one question and K noise images.

    The routes take turns, so all run under the same load. Before every turn the naive route, whose cost per
    pair does not depend on the number of pairs, scores a few more candidates. Its time is the median cost of
    a pair times K, and the other routes are compared with its scores of these candidates. The vocabulary of
    the model must have :data:`~benchmarks.random_models.WORDS`. With ``profile``, the arithmetic of every
    route is counted with one candidate and compared with the fastest matrix product.

    Raises:
        InvalidInputError: a number is below 1, or ``naive_pairs`` exceeds ``candidates``.
    """
    if min(rounds, question_tokens, batch_size, naive_pairs) < 1 or naive_pairs > candidates:
        raise InvalidInputError(
            f"{candidates} candidates, {naive_pairs} scored naively, {question_tokens} question tokens, "
            f"{rounds} rounds, batches of {batch_size}: all must be at least 1, the second at most the first"
        )
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (candidates, 224, 224, 3), dtype=np.uint8)
    images = [Image(PILImage.fromarray(pixels), f"noise {i}") for i, pixels in enumerate(noise)]
    question = " ".join(WORDS[n] for n in random.integers(0, len(WORDS), question_tokens))
    pixels: list[Context] = [(image, PROMPT) for image in images]
    stored: list[Context] = [(state, PROMPT) for state in image_states(generator, images, batch_size)]
    caching = Kosmos1Generator(
        generator.model, generator.processor, config=generator.config, prefix_cache_bytes=2**40
    )
    caching.log_likelihood(stored, ["w0"] * candidates, batch_size=batch_size)  # an earlier question

    clock = _clock(generator.model.device)
    ways: dict[str, Callable[[], NDArray[np.float64]]] = {
        "batched": lambda: engine_scores(generator, pixels, question, batch_size),
        "states": lambda: engine_scores(generator, stored, question, batch_size),
        "kv": lambda: engine_scores(caching, stored, question, batch_size),
    }
    sums: dict[str, NDArray[np.float64]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ("naive", *ways)}
    naive: dict[int, float] = {}  # candidate -> sum
    turns = [name for _ in range(rounds) for name in ways]
    for turn, name in enumerate(turns):
        for i in range(turn, naive_pairs, len(turns)):
            begin = clock()
            naive[i] = naive_log_likelihood(generator, images[i], PROMPT, question).sum
            seconds["naive"].append((clock() - begin) * candidates)
        begin = clock()
        sums[name] = ways[name]()
        seconds[name].append(clock() - begin)
        if progress is not None:
            progress("scoring", turn + 1, len(turns))
    median = {name: float(np.median(times)) for name, times in seconds.items()}
    routes = {"naive": RouteBench(median["naive"], 0.0)} | {
        name: RouteBench(median[name], float(np.abs(found[list(naive)] - list(naive.values())).max()))
        for name, found in sums.items()
    }
    ceiling = matmul_ceiling(generator.model.device, generator.model.dtype) if profile else None
    if ceiling is not None:
        generator.model.requires_grad_(False)  # else the counter fails in inference mode
        counted: dict[str, Callable[[], object]] = {
            "naive": lambda: naive_log_likelihood(generator, images[0], PROMPT, question),
            "batched": lambda: engine_scores(generator, pixels[:1], question, 1),
            "states": lambda: engine_scores(generator, stored[:1], question, 1),
            "kv": lambda: engine_scores(caching, stored[:1], question, 1),
        }
        for name, way in counted.items():
            with FlopCounterMode(display=False) as counter:
                way()
            flops = counter.get_total_flops() * candidates  # all have the same length
            share = flops / median[name] / ceiling
            routes[name] = replace(routes[name], flops=flops, ceiling_share=share)
    config = generator.model.config
    return ScoringBench(
        routes=routes,
        speedup=median["naive"] / min(median[name] for name in sums),
        candidates=candidates,
        question_tokens=question_tokens,
        dtype=str(generator.model.dtype).removeprefix("torch."),
        vision_layers=config.vision_config.num_hidden_layers,
        text_layers=config.text_config.layers,
        threads=torch.get_num_threads(),
        rounds=rounds,
        naive_pairs=naive_pairs,
        batch_size=batch_size,
        device=str(generator.model.device),
        clock="cpu" if clock is time.process_time else "wall",
        ceiling=ceiling,
    )


def _clock(device: torch.device) -> Callable[[], float]:
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def matmul_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of some matrix products of the model's sizes and larger ones, on random data."""
    large, clock = device.type == "cuda", _clock(device)
    sizes = [(4096, 2048, 8192), (8192, 8192, 8192)] if large else [(512, 2048, 8192), (2048, 2048, 2048)]
    best = 0.0
    for rows, inner, columns in sizes:
        a = torch.randn(rows, inner, device=device, dtype=dtype)
        b = torch.randn(columns, inner, device=device, dtype=dtype)
        together = 20 if large else 1  # so that the device is not waiting for Python
        for _ in range(5):
            begin = clock()
            for _ in range(together):
                product = linear(a, b)  # as in the model; `a @ b` has no fast bfloat16 on some CPUs
            product[0, 0].item()  # waits for the device
            seconds = clock() - begin
            best = max(best, together * 2 * rows * inner * columns / seconds)
    return best


def image_states(generator: Kosmos1Generator, images: Sequence[Image], batch_size: int) -> list[ImageState]:
    """The features of all images."""
    values = generator.image_states(images, batch_size=batch_size)
    return [
        ImageState(value, generator.fingerprint, image.source)
        for value, image in zip(values, images, strict=True)
    ]


def engine_scores(
    generator: Kosmos1Generator, contexts: Sequence[Context], question: str, batch_size: int
) -> NDArray[np.float64]:
    """Log-likelihoods [n] of one question by the scoring engine, sums in nats."""
    found = generator.log_likelihood(contexts, [question] * len(contexts), batch_size=batch_size)
    return np.array([one.sum for one in found])


def naive_log_likelihood(
    generator: Kosmos1Generator, image: Image, prompt: str, continuation: str
) -> LogLikelihood:
    """Score one pair with transformers alone, from the pixels: the baseline of the other routes.

    A space is put before the continuation.
    """
    processor, model = generator.processor, generator.model
    inputs = processor(
        images=decode(image), text=prompt, num_image_tokens=generator.state_shape[0], return_tensors="pt"
    )
    tokens = processor.tokenizer(f" {continuation}", add_special_tokens=False, return_tensors="pt").input_ids
    T = tokens.shape[1]
    with torch.inference_mode():
        logits = model(
            pixel_values=inputs.pixel_values.to(model.device, model.dtype),
            input_ids=torch.cat([inputs.input_ids, tokens], dim=1).to(model.device),
            image_embeds_position_mask=pad(inputs.image_embeds_position_mask, (0, T)).to(model.device),
        ).logits  # [1, prefix + T, V]
        log_probs = logits[0, -T - 1 : -1].float().log_softmax(dim=1).cpu()  # [T, V]
    names = tuple(processor.tokenizer.convert_ids_to_tokens(tokens[0].tolist()))
    return LogLikelihood(names, log_probs.gather(1, tokens.T)[:, 0].numpy())


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = command_line(
        "scoring",
        "Time the routes of the scoring engine against scoring pair by pair, on Kosmos with random weights.",
        candidates=(100, "Images to score."),
        question_tokens=(30, "Length of the question."),
        vision_layers=(2, "Layers of the vision tower; published: 24."),
        text_layers=(2, "Layers of the decoder; published: 24."),
        rounds=(3, "Timings of each route."),
        batch_size=(32, "Pairs computed together."),
    )
    parser.add_argument("--dtype", default="bfloat16", help="of weights and computation [default: bfloat16]")
    parser.add_argument("--device", default="cpu", help="torch device [default: cpu]")
    parser.add_argument(
        "--profile", action="store_true", help="also FLOP/s, beside those of a matrix product"
    )
    given = vars(parser.parse_args(arguments))
    as_json, layers = given.pop("json"), (given.pop("vision_layers"), given.pop("text_layers"))
    kosmos = random_kosmos(*layers, dtype=given.pop("dtype"), device=given.pop("device"))
    with progress_bar("scoring") as progress:
        bench = bench_scoring(kosmos, naive_pairs=min(24, given["candidates"]), progress=progress, **given)
    naive = bench.routes["naive"].seconds
    write_results(
        asdict(bench),
        ("route", "seconds", "speedup", "max. difference, nats", "TFLOP/s", "of the ceiling"),
        [
            (
                name,
                f"{one.seconds:.2f}",
                f"{naive / one.seconds:.1f}",
                f"{one.max_abs_diff:.1g}",
                f"{one.flops / one.seconds / 1e12:.2f}" if one.flops else "-",
                f"{one.ceiling_share:.0%}" if one.ceiling_share else "-",
            )
            for name, one in bench.routes.items()
        ],
        [
            f"One question of {bench.question_tokens} tokens, {bench.candidates} images; Kosmos at full "
            f"width, {bench.vision_layers} + {bench.text_layers} layers, {bench.dtype}, {bench.device}, "
            f"{bench.threads} threads, {bench.clock} seconds"
        ],
        as_json=as_json,
    )


if __name__ == "__main__":
    run(main)
