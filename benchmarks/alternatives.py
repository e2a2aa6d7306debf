"""This library and its alternatives in one process: the same model, candidates and question.

python -m benchmarks.alternatives --json

Three contests, each with routes that take turns on one machine:

- ``images``: log P(question | image) by Kosmos with random weights. ``transformers`` is a plain loop with one
  forward pass per pair; ``ours`` is the scoring engine from pixels, ``ours_states`` from image states.
- ``captions``: log P(question | caption) by the same decoder, without images. This is UPR, and all that
  ``rerankers`` can do. Its ``UPRRanker`` supports only T5; its own code runs here with an adapter in the
  place of T5, which puts passage and question into one row of the decoder.
- ``first_stage``: images and texts to vectors by one CLIP with random weights, through
  ``sentence-transformers`` over transformers and ``ours`` over open_clip.

A package that is not installed is reported as missing, with the command that installs it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from torch import Tensor

from benchmarks.output import command_line, progress_bar, run, write_results
from benchmarks.random_models import PROMPT, WORDS, random_clip, random_kosmos
from benchmarks.scoring import engine_scores, image_states, naive_log_likelihood
from zsqretrieval._util.torch import ensure_torchvision
from zsqretrieval.encoders.clip import CLIPEncoder
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.kosmos import Kosmos1Generator
from zsqretrieval.types import Context, Image, Progress

Scores: TypeAlias = NDArray[np.float64]
_Ways: TypeAlias = Mapping[str, Callable[[], Scores]]

_PACKAGES = ("torch", "transformers", "open_clip_torch", "rerankers", "sentence-transformers")
_INSTALL = "pip install 'zsqretrieval[alternatives]'"
_HEAD, _TAIL = "<s> passage:", "question:"
_OURS = "ours"

NOTES = (
    "Weights are random, so this compares computations and says nothing about quality.",
    "rerankers has no ranker that scores a question given an image: UPRRanker supports T5 and text only, and "
    "its one ranker for images asks a fine-tuned model for yes or no. It takes part with captions.",
    "Adapted to a decoder, rerankers recomputes every passage for every question and the whole vocabulary at "
    "every position, as it does with T5.",
    "sentence-transformers prepares pixels by transformers, ours by open_clip: vectors of images may differ "
    "by the rounding of the two resizers.",
)
"""Notes for readers of the numbers."""


@dataclass(frozen=True, slots=True)
class Route:
    """One way to compute the same numbers; the numbers are None if it is missing.

    With n rounds the true median lies in the range of the rounds with probability 1 - 2^(1 - n) for any
    distribution: 97 % for 6 rounds.
    """

    seconds: float | None = None  # for all candidates; median over rounds
    seconds_range: tuple[float, float] | None = None
    times_ours: float | None = None  # its seconds by those of ``ours`` in the same round, median
    times_ours_range: tuple[float, float] | None = None
    max_abs_diff: float | None = None  # largest difference of a number from ``ours``
    missing: str | None = None  # the command that installs what the route needs


@dataclass(frozen=True, slots=True)
class AlternativesBench:
    """Routes by name, for each contest."""

    images: Mapping[str, Route]  # numbers: sums over the question, in nats
    captions: Mapping[str, Route]
    first_stage: Mapping[str, Route]  # numbers: elements of unit vectors
    spread: Mapping[str, float]  # by contest, standard deviation over candidates, to compare differences with
    setting: Mapping[str, Any]  # sizes, versions, rounds
    notes: Sequence[str] = NOTES


def bench_alternatives(
    generator: Kosmos1Generator,
    *,
    candidates: int = 24,
    question_tokens: int = 30,
    caption_tokens: int = 15,
    rounds: int = 3,
    batch_size: int = 16,
    clip_layers: int = 12,
    clip_width: int = 768,
    words: Sequence[str] = WORDS,
    progress: Progress | None = None,
) -> AlternativesBench:
    """Run all routes in turns.

    Captions have half to one and a half times ``caption_tokens``. Each of the ``words`` of question and
    captions is one token of the model. The sizes of CLIP are as for
    :func:`~benchmarks.random_models.random_clip`.

    Raises:
        InvalidInputError: a number is below 1, or the width is not a multiple of 192.
    """
    sizes = (candidates, question_tokens, caption_tokens, rounds, batch_size, clip_layers)
    if min(sizes) < 1 or clip_width < 1 or clip_width % 192:
        raise InvalidInputError(
            f"candidates, tokens, rounds, batch and layers {sizes} must be at least 1, and the width a "
            f"multiple of 192, not {clip_width}"
        )
    random = np.random.default_rng(0)
    question = _sentence(random, words, question_tokens)
    lengths = random.integers((caption_tokens + 1) // 2, 3 * caption_tokens // 2 + 1, candidates)
    captions = [_sentence(random, words, int(length)) for length in lengths]
    with TemporaryDirectory() as folder:
        images = _photographs(random, candidates, Path(folder))
        clip = random_clip(Path(folder) / "clip", layers=clip_layers, width=clip_width)
        contests = {
            "images": _image_ways(generator, images, question, batch_size),
            "captions": _caption_ways(generator, captions, question, batch_size),
            "first_stage": _first_stage_ways(clip, images, captions, batch_size),
        }
        turns = rounds * sum(len(ways) for ways, _ in contests.values())
        counted = itertools.count(1)

        def turn() -> None:
            done = next(counted)
            if progress is not None:
                progress("comparing", done, turns)

        timed = {name: _race(ways, rounds, turn) for name, (ways, _) in contests.items()}
    routes = {
        name: {**timed[name][0], **{way: Route(missing=_INSTALL) for way in missing}}
        for name, (_, missing) in contests.items()
    }
    config = generator.model.config
    return AlternativesBench(
        images=routes["images"],
        captions=routes["captions"],
        first_stage=routes["first_stage"],
        spread={name: spread for name, (_, spread) in timed.items()},
        setting={
            "candidates": candidates, "question_tokens": question_tokens, "caption_tokens": caption_tokens,
            "rounds": rounds, "batch_size": batch_size,
            "dtype": str(generator.model.dtype).removeprefix("torch."),
            "vision_layers": config.vision_config.num_hidden_layers, "text_layers": config.text_config.layers,
            "clip_layers": clip_layers, "clip_width": clip_width, "threads": torch.get_num_threads(),
            "versions": {name: _version(name) for name in _PACKAGES}, "seed": 0,
        },
    )  # fmt: skip


def _race(ways: _Ways, rounds: int, turn: Callable[[], None]) -> tuple[dict[str, Route], float]:
    """Time the routes in turns; each is the first of a round equally often."""
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    numbers: dict[str, Scores] = {}
    for n in range(rounds):
        for name in (*names[n % len(names) :], *names[: n % len(names)]):
            began = time.perf_counter()
            numbers[name] = ways[name]()
            seconds[name].append(time.perf_counter() - began)
            turn()
    ratios = {name: np.array(seconds[name]) / np.array(seconds[_OURS]) for name in names}
    routes = {
        name: Route(
            float(np.median(seconds[name])),
            (min(seconds[name]), max(seconds[name])),
            float(np.median(ratios[name])),
            (float(ratios[name].min()), float(ratios[name].max())),
            float(np.abs(numbers[name] - numbers[_OURS]).max()),
        )
        for name in names
    }
    return routes, float(numbers[_OURS].std(axis=0).mean())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# --- the problem ------------------------------------------------------------------------------------------


def _sentence(random: np.random.Generator, words: Sequence[str], length: int) -> str:
    return " ".join(words[n] for n in random.integers(0, len(words), length))


def _photographs(random: np.random.Generator, count: int, folder: Path) -> list[Image]:
    """JPEG files as large as photographs on web pages."""
    images = []
    for n in range(count):
        coarse = PILImage.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        path = folder / f"{n}.jpg"
        coarse.resize((640, 480), PILImage.Resampling.BICUBIC).save(path, quality=90)
        images.append(Image(path, str(path)))
    return images


# --- images -----------------------------------------------------------------------------------------------


def _image_ways(
    generator: Kosmos1Generator, images: Sequence[Image], question: str, batch_size: int
) -> tuple[_Ways, list[str]]:
    pixels: list[Context] = [(image, PROMPT) for image in images]
    states: list[Context] = [(state, PROMPT) for state in image_states(generator, images, batch_size)]

    def loop() -> Scores:
        return np.array([naive_log_likelihood(generator, image, PROMPT, question).sum for image in images])

    return {
        "transformers": loop,
        _OURS: lambda: engine_scores(generator, pixels, question, batch_size),
        "ours_states": lambda: engine_scores(generator, states, question, batch_size),
    }, []


# --- captions ---------------------------------------------------------------------------------------------


def _caption_ways(
    generator: Kosmos1Generator, captions: Sequence[str], question: str, batch_size: int
) -> tuple[_Ways, list[str]]:
    # The prompt of rerankers: head, passage, full stop, tail. Contexts of ours begin with <s> without asking.
    passages = [f"{_HEAD} {caption}. {_TAIL}" for caption in captions]
    contexts = [(passage.removeprefix("<s>"),) for passage in passages]
    tokenizer, decoder = generator.processor.tokenizer, _DecoderAsT5(generator)

    def loop() -> Scores:
        labels = tokenizer(question, add_special_tokens=False, return_tensors="pt").input_ids
        sums = []
        with torch.inference_mode():
            for passage in passages:
                read = tokenizer(passage, add_special_tokens=False, return_tensors="pt")
                log_probs = (
                    decoder(read.input_ids, read.attention_mask, labels).logits.float().log_softmax(-1)
                )
                sums.append(float(log_probs.gather(-1, labels[..., None]).sum()))
        return np.array(sums)

    ways: dict[str, Callable[[], Scores]] = {
        "transformers": loop,
        _OURS: lambda: engine_scores(generator, contexts, question, batch_size),
    }
    ensure_torchvision()
    try:
        from rerankers.models.upr import UPRRanker
    except ImportError:
        return ways, ["rerankers"]
    # The constructor would load a T5 by name; ranking needs only these attributes.
    ranker = UPRRanker.__new__(UPRRanker)
    ranker.verbose, ranker.device, ranker.batch_size = 0, generator.model.device, batch_size
    ranker.verbalizer_head, ranker.verbalizer = _HEAD, _TAIL
    ranker.max_input_length = ranker.max_query_length = generator.max_tokens
    ranker.model, ranker.tokenizer = decoder, tokenizer

    def rerank() -> Scores:
        ranked = ranker.rank(question, list(captions), doc_ids=list(range(len(captions))))
        return np.array([one.score for one in sorted(ranked.results, key=lambda one: one.document.doc_id)])

    return {**ways, "rerankers": rerank}, []


class _DecoderAsT5:
    """A decoder in the place of T5: the question follows the passage in one row."""

    def __init__(self, generator: Kosmos1Generator) -> None:
        self._model = generator.model.text_model
        self._pad = generator.processor.tokenizer.pad_token_id

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> SimpleNamespace:
        """Logits of the tokens of the questions ``labels`` [b, t], as T5 returns them.

        The passages are padded on the right: ``input_ids`` and ``attention_mask`` [b, s].
        """
        ends = attention_mask.sum(1)  # [b]
        rows = torch.full((len(labels), input_ids.shape[1] + labels.shape[1]), self._pad)  # [b, s + t]
        for row, ids, end, asked in zip(rows, input_ids, ends, labels, strict=True):
            row[: end + len(asked)] = torch.cat([ids[:end], asked])
        rows = rows.to(self._model.device)
        logits = self._model(input_ids=rows, attention_mask=(rows != self._pad).long()).logits.cpu()
        before = ends[:, None] - 1 + torch.arange(labels.shape[1])  # [b, t], the token before each
        return SimpleNamespace(logits=logits[torch.arange(len(rows))[:, None], before])  # [b, t, V]


# --- the first stage --------------------------------------------------------------------------------------


def _first_stage_ways(
    clip: Path, images: Sequence[Image], texts: Sequence[str], batch_size: int
) -> tuple[_Ways, list[str]]:
    encoder = CLIPEncoder.from_pretrained(f"local-dir:{clip}", device="cpu")
    ways: dict[str, Callable[[], Scores]] = {
        _OURS: lambda: _vectors(
            encoder.encode_image(images, batch_size=batch_size),
            encoder.encode_text(texts, batch_size=batch_size),
        )
    }
    ensure_torchvision()
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return ways, ["sentence-transformers"]
    model = SentenceTransformer(str(clip), device="cpu")
    settings = {"batch_size": batch_size, "normalize_embeddings": True, "show_progress_bar": False}

    def encode() -> Scores:
        pictures = [PILImage.open(image.source) for image in images]
        return _vectors(model.encode(pictures, **settings), model.encode(list(texts), **settings))

    return {**ways, "sentence-transformers": encode}, []


def _vectors(images: NDArray[np.float32], texts: NDArray[np.float32]) -> Scores:
    return np.stack([images, texts], axis=1).astype(np.float64)  # [n, 2, dim]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = command_line(
        "alternatives",
        "Compare with a transformers loop, rerankers and sentence-transformers: same numbers, ratio of time.",
        candidates=(24, "Images, and captions."),
        question_tokens=(30, "Length of the question."),
        vision_layers=(2, "Layers of Kosmos' vision tower; published: 24."),
        text_layers=(2, "Layers of Kosmos' decoder; published: 24."),
        clip_layers=(12, "Layers of CLIP's towers; ViT-B/32: 12."),
        rounds=(5, "Timings of each route."),
        batch_size=(16, "Pairs or images computed together."),
    )
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16 [default: float32]")
    given = vars(parser.parse_args(arguments))
    as_json, layers = given.pop("json"), (given.pop("vision_layers"), given.pop("text_layers"))
    kosmos = random_kosmos(*layers, dtype=given.pop("dtype"))
    with progress_bar("comparing") as progress:
        bench = bench_alternatives(kosmos, progress=progress, **given)
    contests = {"images": bench.images, "captions": bench.captions, "first stage": bench.first_stage}
    write_results(
        asdict(bench),
        ("", "route", "seconds", "times ours", "max. difference"),
        [
            (contest, *_row(name, route, bench.spread[contest.replace(" ", "_")]))
            for contest, routes in contests.items()
            for name, route in routes.items()
        ],
        bench.notes,
        as_json=as_json,
    )


def _row(name: str, route: Route, spread: float) -> tuple[str, ...]:
    if route.times_ours_range is None:
        return name, "", "", f"missing: {route.missing}"
    least, most = route.times_ours_range
    return (
        name.replace("_", " "),
        f"{route.seconds:.3g}",
        f"{route.times_ours:.2f} ({least:.2f} to {most:.2f})",
        f"{route.max_abs_diff:.1g} of a spread of {spread:.1g}",
    )


if __name__ == "__main__":
    run(main)
