"""What users would take instead, beside this library, in one run: the same model, candidates and question.

Three contests, each with routes that take turns on one machine:

- ``images``: log P(question | image) of Kosmos at random weights. ``transformers`` is the loop one writes by
  hand, a forward pass per pair; ``ours`` the scoring engine from pixels, ``ours_states`` from image states.
- ``captions``: log P(question | caption) of the same decoder, without images: what UPR is, and all that
  ``rerankers`` can do. Its ``UPRRanker`` knows T5 alone; it is run as it is, with an adapter in T5's place
  that puts passage and question into one row of the decoder.
- ``first_stage``: images and texts to vectors by one CLIP at random weights, by ``sentence-transformers``
  over transformers and by ``ours`` over open_clip.

What is not installed is reported as missing, with the command that installs it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from safetensors.torch import save_file
from torch import Tensor

from zsqretrieval._util.torchvision import ensure_importable
from zsqretrieval.encoders.clip import CLIPEncoder
from zsqretrieval.errors import InvalidInputError
from benchmarks.scoring import naive_log_likelihood
from zsqretrieval.generators.kosmos import Kosmos1Generator
from zsqretrieval.types import Context, Image, ImageState

__all__ = ["NOTES", "AlternativesBench", "Route", "bench_alternatives", "random_clip"]

Scores: TypeAlias = NDArray[np.float64]
_Ways: TypeAlias = Mapping[str, Callable[[], Scores]]

_INSTALL = "pip install 'zsqretrieval[alternatives]'"
_PROMPT = "question:"
_HEAD, _TAIL = "<s> passage:", "question:"
_OURS = "ours"

WORDS = tuple(f"w{n}" for n in range(1000))
"""Those that the random Kosmos knows."""

NOTES = (
    "Weights are random: this compares computations and says nothing about quality.",
    "rerankers has no ranker that scores a question given an image: UPRRanker reads text by T5, and its one "
    "ranker for images asks a fine-tuned model for yes or no. It takes part with captions.",
    "Adapted to a decoder, rerankers reads every passage anew for every question and computes the whole "
    "vocabulary at every position, as it does with T5.",
    "sentence-transformers prepares pixels by transformers, ours by open_clip: vectors of images may differ "
    "by the rounding of two resizers.",
)
"""What a reader of the numbers should know."""


@dataclass(frozen=True, slots=True)
class Route:
    """One way to compute the same numbers.

    Attributes:
        seconds: for all candidates; median over rounds. None when missing.
        seconds_range: of the fastest and of the slowest round. With n rounds the true median lies between
            them with probability 1 - 2^(1 - n), whatever the distribution: 97 % of 6 rounds.
        times_ours: its seconds over those of ``ours`` in the same round; median. Above 1, ours is faster.
        times_ours_range: the same of the ratio.
        max_abs_diff: largest difference of a number from that of ``ours``.
        missing: the command that installs what it needs; None when it is there.
    """

    seconds: float | None = None
    seconds_range: tuple[float, float] | None = None
    times_ours: float | None = None
    times_ours_range: tuple[float, float] | None = None
    max_abs_diff: float | None = None
    missing: str | None = None


@dataclass(frozen=True, slots=True)
class AlternativesBench:
    """Routes by name, for each contest.

    Attributes:
        images: in nats, sums over the question.
        captions: the same of captions.
        first_stage: elements of unit vectors.
        spread: standard deviation of the numbers compared, by contest, over candidates: a difference is to be
            seen beside it.
        setting: sizes, versions, rounds.
        notes: sentences.
    """

    images: Mapping[str, Route]
    captions: Mapping[str, Route]
    first_stage: Mapping[str, Route]
    spread: Mapping[str, float]
    setting: Mapping[str, Any]
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
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> AlternativesBench:
    """Run all routes in turns.

    Args:
        generator: a model, as :func:`~benchmarks.scoring.random_kosmos` makes one.
        candidates: images, and captions.
        question_tokens: length of the question.
        caption_tokens: length of a caption in the middle; captions have half to one and a half times it.
        rounds: how often each route is timed.
        batch_size: pairs or images computed together, where a route batches.
        clip_layers: of both towers of the CLIP; 12 in ViT-B/32.
        clip_width: of its image tower, a multiple of 192; 768 in ViT-B/32.
        words: what question and captions are drawn from; each a token that the model knows.
        seed: of weights, images and texts.
        progress: told how many turns are done, and of how many.

    Raises:
        InvalidInputError: a number is below 1, or the width is none.
    """
    sizes = (candidates, question_tokens, caption_tokens, rounds, batch_size, clip_layers)
    if min(sizes) < 1 or clip_width < 1 or clip_width % 192:
        raise InvalidInputError(
            f"candidates, tokens, rounds, batch and layers {sizes} must be at least 1, and the width a "
            f"multiple of 192, not {clip_width}"
        )
    random = np.random.default_rng(seed)
    question = _sentence(random, words, question_tokens)
    lengths = random.integers((caption_tokens + 1) // 2, 3 * caption_tokens // 2 + 1, candidates)
    captions = [_sentence(random, words, int(length)) for length in lengths]
    with TemporaryDirectory() as folder:
        images = _photographs(random, candidates, Path(folder))
        clip = random_clip(Path(folder) / "clip", layers=clip_layers, width=clip_width, seed=seed)
        contests = {
            "images": _image_ways(generator, images, question, batch_size),
            "captions": _caption_ways(generator, captions, question, batch_size),
            "first_stage": _first_stage_ways(clip, images, captions, batch_size),
        }
        turns = rounds * sum(len(ways) for ways, _ in contests.values())
        done = 0

        def turn() -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, turns)

        timed = {name: _race(ways, rounds, turn) for name, (ways, _) in contests.items()}
    routes = {
        name: {**timed[name][0], **{way: Route(missing=_INSTALL) for way in missing}}
        for name, (_, missing) in contests.items()
    }
    config = generator.model.config
    return AlternativesBench(
        routes["images"],
        routes["captions"],
        routes["first_stage"],
        spread={name: spread for name, (_, spread) in timed.items()},
        setting={
            "candidates": candidates,
            "question_tokens": question_tokens,
            "caption_tokens": caption_tokens,
            "rounds": rounds,
            "batch_size": batch_size,
            "dtype": str(generator.model.dtype).removeprefix("torch."),
            "vision_layers": config.vision_config.num_hidden_layers,
            "text_layers": config.text_config.layers,
            "clip_layers": clip_layers,
            "clip_width": clip_width,
            "threads": torch.get_num_threads(),
            "versions": _versions(),
            "seed": seed,
        },
    )


def _race(ways: _Ways, rounds: int, turn: Callable[[], None]) -> tuple[dict[str, Route], float]:
    """Time the routes in turns; each begins a round as often as the others."""
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


def _versions() -> dict[str, str | None]:
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {}
    for name in ("torch", "transformers", "open_clip_torch", "rerankers", "sentence-transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


# --- the problem ------------------------------------------------------------------------------------------


def _sentence(random: np.random.Generator, words: Sequence[str], length: int) -> str:
    return " ".join(words[n] for n in random.integers(0, len(words), length))


def _photographs(random: np.random.Generator, count: int, folder: Path) -> list[Image]:
    """JPEG files of the size that photographs on web pages have."""
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
    states = [
        ImageState(value, generator.fingerprint, image.source)
        for value, image in zip(generator.image_states(images, batch_size=batch_size), images, strict=True)
    ]

    def loop() -> Scores:
        return np.array([naive_log_likelihood(generator, image, _PROMPT, question).sum for image in images])

    return {
        "transformers": loop,
        _OURS: lambda: _engine(generator, [(image, _PROMPT) for image in images], question, batch_size),
        "ours_states": lambda: _engine(
            generator, [(state, _PROMPT) for state in states], question, batch_size
        ),
    }, []


def _engine(
    generator: Kosmos1Generator, contexts: Sequence[Context], question: str, batch_size: int
) -> Scores:
    found = generator.log_likelihood(contexts, [question] * len(contexts), batch_size=batch_size)
    return np.array([one.sum for one in found])


# --- captions ---------------------------------------------------------------------------------------------


def _caption_ways(
    generator: Kosmos1Generator, captions: Sequence[str], question: str, batch_size: int
) -> tuple[_Ways, list[str]]:
    # As rerankers words it: head, passage, a full stop, what is asked for. <s> begins every context of ours.
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
        _OURS: lambda: _engine(generator, contexts, question, batch_size),
    }
    ensure_importable()
    try:
        from rerankers.models.upr import UPRRanker
    except ImportError:
        return ways, ["rerankers"]
    # Its constructor loads a T5 by name; these are the attributes that ranking needs.
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
    """A decoder where T5 is expected: the question follows the passage in one row."""

    def __init__(self, generator: Kosmos1Generator) -> None:
        self._model = generator.model.text_model
        self._pad = generator.processor.tokenizer.pad_token_id

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> SimpleNamespace:
        """Logits of each token of the questions, as T5 gives them.

        Args:
            input_ids: int64 [b, s], passages, padded on the right.
            attention_mask: int64 [b, s].
            labels: int64 [b, t], questions of one length.
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
    ensure_importable()
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


def random_clip(folder: Path, *, layers: int = 12, width: int = 768, seed: int = 0) -> Path:
    """Write one CLIP with random weights into a folder, so that transformers and open_clip both read it.

    With the defaults it has the sizes of ViT-B/32. The tokenizer is CLIP's own.

    Args:
        folder: made when missing.
        layers: of both towers.
        width: of the image tower, a multiple of 192; the text tower and the vectors have two thirds of it.
        seed: of the weights.

    Returns:
        The folder.
    """
    ensure_importable()
    import open_clip
    import transformers

    library: Any = transformers  # whose stubs leave much out
    narrow = width * 2 // 3
    words = open_clip.get_tokenizer("ViT-B-32")
    begin, end = (words.encoder[name] for name in ("<start_of_text>", "<end_of_text>"))
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    tokenizer = library.CLIPTokenizer(
        vocab={names.get(name, name): id for name, id in words.encoder.items()},
        merges=[tuple(pair) for pair in words.bpe_ranks],
        model_max_length=77,
    )
    text = {"hidden_size": narrow, "intermediate_size": 4 * narrow, "num_attention_heads": narrow // 64}
    vision = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}
    config = library.CLIPConfig(
        text_config={
            **text, "num_hidden_layers": layers, "projection_dim": narrow,
            "bos_token_id": begin, "eos_token_id": end,
        },
        vision_config={**vision, "num_hidden_layers": layers, "projection_dim": narrow},
        projection_dim=narrow,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = library.CLIPModel(config).eval()
    model.save_pretrained(folder)
    library.CLIPProcessor(library.CLIPImageProcessorPil(), tokenizer).save_pretrained(folder)
    save_file(_as_open_clip(model.state_dict()), folder / "open_clip_model.safetensors")
    preprocess = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
    architecture = {
        "embed_dim": narrow,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "patch_size": 32, "width": width, "layers": layers},
        "text_cfg": {
            "context_length": 77, "vocab_size": 49408,
            "width": narrow, "heads": narrow // 64, "layers": layers,
        },
    }  # fmt: skip
    facts = {"model_cfg": architecture, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


_TOWERS = {"vision_model.": "visual.", "text_model.": ""}
_PARTS = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding": "conv1",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding": "token_embedding",
    "pre_layrnorm": "ln_pre",
    "post_layernorm": "ln_post",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "self_attn": "attn",
    "layer_norm": "ln_",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def _as_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's weights by open_clip's names; it has the three projections of attention in one."""
    renamed: dict[str, Tensor] = {
        "visual.proj": weights["visual_projection.weight"].T.contiguous(),
        "text_projection": weights["text_projection.weight"].T.contiguous(),
        "logit_scale": weights["logit_scale"].clone(),
    }
    for name, value in weights.items():
        tower = next((tower for tower in _TOWERS if name.startswith(tower)), None)
        if tower is None or name.endswith("position_ids") or ".k_proj." in name or ".v_proj." in name:
            continue
        new = _TOWERS[tower] + name.removeprefix(tower)
        for theirs, ours in _PARTS.items():
            new = new.replace(theirs, ours)
        if ".q_proj." in name:
            value = torch.cat([weights[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"])
            new = new.replace("q_proj.", "in_proj_")
        renamed[new] = value.clone().contiguous()
    return renamed
