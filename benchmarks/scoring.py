"""What the routes of the scoring engine save over scoring pair by pair, in one run on one machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from torch.nn.functional import pad

from zsqretrieval._util.torch import resolve_dtype
from zsqretrieval._util.torchvision import ensure_importable
from zsqretrieval.data.images import decode
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.engine.interleaved import TopK
from zsqretrieval.generators.kosmos import Kosmos1Generator
from zsqretrieval.types import Context, Image, ImageState, LogLikelihood

__all__ = [
    "PrunedBench",
    "RouteBench",
    "ScoringBench",
    "bench_scoring",
    "naive_log_likelihood",
    "random_kosmos",
]

_PROMPT = "question:"
_K = 10  # of the pruned search
_WORDS = 1000  # in the vocabulary that questions are drawn from
_ROUNDING = 0.1  # nats by which sums of one route and another may differ in 16 bits


@dataclass(frozen=True, slots=True)
class RouteBench:
    """One way to score one question against all candidates.

    Attributes:
        seconds: for all candidates; median over rounds.
        max_abs_diff: largest difference of a log-likelihood (a sum) from the naive route's, in nats.
    """

    seconds: float
    max_abs_diff: float


@dataclass(frozen=True, slots=True)
class PrunedBench:
    """The search for the best ten that drops the others early, from image states.

    Attributes:
        k: how many are found.
        seconds: median over rounds.
        saving: share of the question's tokens that were not scored.
        same_as_full: whether it found what sorting the route ``states`` finds, but for ties within rounding.
    """

    k: int
    seconds: float
    saving: float
    same_as_full: bool


@dataclass(frozen=True, slots=True)
class ScoringBench:
    """All routes, for one question and K images, at random weights.

    Attributes:
        routes: ``naive``: a forward pass of transformers' own per pair, from pixels, with logits at every
            position; ``batched``: :meth:`log_likelihood` from pixels; ``states``: from image states;
            ``kv``: with the keys and values of every image kept from an earlier question.
        pruned: the pruned search.
        speedup: seconds of ``naive`` over those of the fastest other route.
        candidates: K.
        question_tokens: tokens of the question.
        dtype: of the computation.
        vision_layers: layers of the vision tower; 24 in the published model.
        text_layers: layers of the decoder; 24 in the published model.
        threads: that torch used.
        rounds: how often each route was timed, in turns.
        naive_pairs: how many pairs the naive route scored.
        batch_size: of the routes that batch.
    """

    routes: dict[str, RouteBench]
    pruned: PrunedBench
    speedup: float
    candidates: int
    question_tokens: int
    dtype: str
    vision_layers: int
    text_layers: int
    threads: int
    rounds: int
    naive_pairs: int
    batch_size: int


def bench_scoring(
    generator: Kosmos1Generator,
    *,
    candidates: int = 100,
    question_tokens: int = 30,
    rounds: int = 3,
    naive_pairs: int = 24,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> ScoringBench:
    """Time every route on one question and K noise images.

    The routes take turns, so that all feel the same load. Before every turn the naive route, whose cost per
    pair does not depend on how many pairs there are, scores a few candidates more: its seconds are the median
    cost of a pair times K, and the numbers of these candidates are what the other routes are compared with.

    Args:
        generator: a model that knows the words ``w0`` ... ``w999``, as :func:`random_kosmos` makes one.
        candidates: K.
        question_tokens: length of the question.
        rounds: how often every route is timed.
        naive_pairs: how many candidates the naive route scores in all; at most K.
        batch_size: pairs computed together.
        seed: of the images and the question.
        progress: told how many steps are done, and of how many.

    Raises:
        InvalidInputError: a number is below 1, or ``naive_pairs`` is more than ``candidates``.
    """
    if min(rounds, question_tokens, batch_size, naive_pairs) < 1 or naive_pairs > candidates:
        raise InvalidInputError(
            f"{candidates} candidates, {naive_pairs} scored naively, {question_tokens} question tokens, "
            f"{rounds} rounds, batches of {batch_size}: all must be at least 1, the second at most the first"
        )
    contexts, question = _problem(candidates, question_tokens, seed)
    images = [context[0] for context in contexts]
    hot = Kosmos1Generator(
        generator.model, generator.processor, config=generator.config, prefix_cache_bytes=2**40
    )
    values = generator.image_states(images, batch_size=batch_size)
    stored: list[Context] = [
        (ImageState(value, generator.fingerprint, image.source), _PROMPT)
        for value, image in zip(values, images, strict=True)
    ]

    def score(scorer: Kosmos1Generator, pairs: Sequence[Context]) -> list[LogLikelihood]:
        return scorer.log_likelihood(pairs, [question] * candidates, batch_size=batch_size)

    hot.log_likelihood(stored, ["w0"] * candidates, batch_size=batch_size)  # an earlier question
    ways: dict[str, Callable[[], Any]] = {
        "batched": lambda: score(generator, contexts),
        "states": lambda: score(generator, stored),
        "kv": lambda: score(hot, stored),
        "pruned": lambda: generator.top_k(stored, question, _K, batch_size=batch_size),
    }
    answers: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ("naive", *ways)}
    naive: dict[int, float] = {}  # sums by candidate
    turns = [name for _ in range(rounds) for name in ways]
    for turn, name in enumerate(turns):
        for i in range(turn, naive_pairs, len(turns)):
            began = time.perf_counter()
            naive[i] = naive_log_likelihood(generator, images[i], _PROMPT, question).sum
            seconds["naive"].append((time.perf_counter() - began) * candidates)
        began = time.perf_counter()
        answers[name] = ways[name]()
        seconds[name].append(time.perf_counter() - began)
        if progress is not None:
            progress(turn + 1, len(turns))
    median = {name: float(np.median(times)) for name, times in seconds.items()}
    sums = {name: np.array([one.sum for one in answers[name]]) for name in ("batched", "states", "kv")}
    routes = {"naive": RouteBench(median["naive"], 0.0)} | {
        name: RouteBench(median[name], max(abs(found[i] - expected) for i, expected in naive.items()))
        for name, found in sums.items()
    }
    config = generator.model.config
    return ScoringBench(
        routes=routes,
        pruned=_pruned(answers["pruned"], median["pruned"], sums["states"]),
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
    )


def naive_log_likelihood(
    generator: Kosmos1Generator, image: Image, prompt: str, continuation: str
) -> LogLikelihood:
    """Score one pair as one would without this library: the yardstick of every other route.

    Transformers' processor lays out image and prompt, its model runs from the pixels, and logits are computed
    at every position.

    Args:
        generator: the model and processor.
        image: the image, which comes first.
        prompt: what follows it.
        continuation: what is scored, with the leading space it is given.
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


def random_kosmos(
    vision_layers: int, text_layers: int, *, dtype: str = "bfloat16", seed: int = 0
) -> Kosmos1Generator:
    """Kosmos at full width with random weights, fewer layers, and a vocabulary of made-up words.

    The connector's weights are scaled up: as they are drawn, one image would hardly differ from another.

    Args:
        vision_layers: of the vision tower, 24 in the published model.
        text_layers: of the decoder, 24 in the published model.
        dtype: of weights and computation, by torch's name for it.
        seed: of the weights.

    Raises:
        InvalidInputError: another dtype than float32, bfloat16 and float16.
    """
    _, torch_dtype = resolve_dtype(dtype, torch.device("cpu"))
    ensure_importable()
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    library: Any = transformers  # whose stubs leave much out
    names = ["<s>", "<pad>", "</s>", "<unk>", _PROMPT, *(f"w{i}" for i in range(_WORDS))]
    words = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = library.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    config = library.Kosmos2Config(
        text_config={"layers": text_layers}, vision_config={"num_hidden_layers": vision_layers}
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = library.Kosmos2ForConditionalGeneration._from_config(config, dtype=torch_dtype)
    with torch.no_grad():
        model.image_to_text_projection.dense.weight *= 400
    processor = library.Kosmos2Processor(library.CLIPImageProcessorPil(), tokenizer)
    return Kosmos1Generator(model, processor, config={})


def _problem(candidates: int, question_tokens: int, seed: int) -> tuple[list[tuple[Image, str]], str]:
    """Noise images, each with the prompt after it, and a question of random words."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (candidates, 224, 224, 3), dtype=np.uint8)
    images = [Image(PILImage.fromarray(pixels), f"noise {i}") for i, pixels in enumerate(noise)]
    question = " ".join(f"w{word}" for word in rng.integers(0, _WORDS, question_tokens))
    return [(image, _PROMPT) for image in images], question


def _pruned(found: TopK, seconds: float, sums: NDArray[np.float64]) -> PrunedBench:
    chosen, best = sums[list(found.positions)], np.sort(sums)[::-1][:_K]
    return PrunedBench(
        k=len(found.positions),
        seconds=seconds,
        saving=found.saving,
        same_as_full=bool(np.allclose(chosen, best, rtol=0, atol=_ROUNDING)),
    )
