"""Train the mini generator on captioned photographs; writes ``mini.safetensors``.

    python examples/train_mini_generator.py                                # a few steps, about half a minute
    python examples/train_mini_generator.py --data PATH/TO/flickr8k --work /tmp/mini --out mini.safetensors

Without ``--data`` it runs every phase for two steps on eight photographs of the demo; the result is useless.
With Flickr8k it takes two hours on two busy cores. ``--data`` is a folder of WebDataset shards named
``train-*.tar`` and ``dev-*.tar`` (``{key}.jpg`` and ``{key}.json`` with the list ``captions``). The test
split is never opened here; judge the result with

    zsq evaluate flickr8k:PATH/TO/flickr8k --report OUT --generator-weights mini.safetensors

Each step writes a file to ``--work``; a restarted script skips the steps that are done:

1. features: the frozen lower layers of the vision model for several augmented views of every image, as for
   the mini encoder (files of ``train_mini_encoder.py`` in ``--work`` are used);
2. ``read``: next-token prediction of captions, of questions made from them by rule, and of answers;
3. ``rank``: the same, and for every question its image against five similar ones: maximum mutual information
   training (Mao et al., arXiv 1511.02283), whose loss is -log of the posterior P(image | question) that the
   likelihoods imply under a uniform prior, so that the model remains a language model; and whether an image
   shows a caption, its own or that of a similar image.

The weights of a phase are a running average over its last two thirds, saved every 200 steps. Deterministic
under ``--seed`` for a given kind of processor, number of threads and version of torch.
"""

from __future__ import annotations

import copy
import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from train_mini_encoder import (
    CAPTIONS,
    STOP_WORDS,
    VIEWS,
    arguments,
    autocast,
    captioned,
    image_features,
    sample,
    write_trained,
)
from zsqretrieval.generators.prompts import PROMPTS
from zsqretrieval.mini.encoder import MiniEncoder
from zsqretrieval.mini.generator import MiniModel
from zsqretrieval.mini.weights import read_base_weights

log = logging.getLogger("train_mini_generator")

ENCODER_WEIGHTS = Path(__file__).parents[1] / "src/zsqretrieval/mini/encoder.safetensors"
CLS, SEP, MASK = 101, 102, 103
GROUP = 6  # similar images that compete for one another's questions
NEIGHBOURS = 60
ASK = "A question about this picture:"


@dataclass(frozen=True)
class Phase:
    """Length, learning rates and texts of one step of training."""

    name: str
    steps: int
    images: int  # per batch
    texts: int  # per image, besides the question of the ranking loss
    ranking: bool
    new_rate: float  # of the resampler and the head, which start untrained
    language_rate: float
    top_rate: float  # of the vision model's upper layers
    mix: tuple[float, float, float]  # shares of captions, of queries, of questions and answers


PHASES = (
    Phase("read", 1200, images=36, texts=4, ranking=False, new_rate=1e-3, language_rate=4e-4, top_rate=3e-5,
          mix=(0.4, 0.35, 0.25)),
    Phase("rank", 1150, images=36, texts=1, ranking=True, new_rate=2e-4, language_rate=1e-4, top_rate=2e-5,
          mix=(0.45, 0.0, 0.55)),
)  # fmt: skip
WARM_UP = 40
MASKED = 0.1  # share of the input tokens that are replaced by [MASK]
WEIGHT_DECAY = 0.05
AVERAGING = 0.02
LENGTHS = 3  # classes of texts by their length
FULL_VOCABULARY_EVERY = 4  # steps; in between, a text competes with the words of the training data only


# --- texts: captions, questions by rule, answers by rule --------------------------------------------------

QUESTIONS = (
    "which picture shows {}?",
    "is there {} in this photo?",
    "where is {}?",
    "can you find {}?",
    "what photo has {}?",
    "do you see {}?",
    "show me {}",
    "i am looking for {}",
)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


COLORS = _words(
    "white black brown red blue green yellow orange pink purple tan grey gray golden blonde blond"
)
ONE_SPELLING = {"gray": "grey", "blond": "blonde"}
WITH_COLOR = _words(
    "dog shirt jacket hat dress ball car horse shorts helmet coat bike uniform toy swimsuit jersey boat "
    "umbrella slide hair bird outfit sweater cap pants"
)
COUNTED = _words("dogs people men women children boys girls kids players cyclists horses puppies")
ONE = _words("dog man woman boy girl child person baby skateboarder surfer snowboarder biker player")
MANY = _words("dogs men women boys girls children people")
WORN = _words("shirt jacket hat dress helmet coat uniform costume suit outfit swimsuit jersey cap sweater")
PLACES = _words(
    "water snow grass field beach street pool park sand road ocean lake river mountain hill woods forest "
    "city track dirt sidewalk yard playground room boat bench bed ice hillside swing couch wave stage"
)
THINGS = _words(
    "dog dogs man men woman women boy boys girl girls child children people person baby ball bike bicycle "
    "beach water snow grass field street car horse bird boat skateboard skateboarder surfer snowboarder "
    "skier rock mountain tree pool fence bench hat helmet jacket shirt dress swing slide frisbee stick "
    "toy soccer football basketball tennis baseball hockey motorcycle ocean river lake building crowd "
    "guitar rope ramp wall sand road park sunglasses camera umbrella table chair bed ice wave kite flag "
    "cat bus train sign playground trampoline sled surfboard tent"
)
MASS = _words("water snow grass sand ice soccer football basketball tennis baseball hockey")
PERSONS = _words(
    "people person man men woman women boy boys girl girls child children baby"
)  # captions do not prove that there is none

_COLOR = re.compile(rf"\b({'|'.join(COLORS)}) ({'|'.join(WITH_COLOR)})\b")
_COUNT = re.compile(rf"\b(one|two|three|four|five|six) (?:\w+ )?({'|'.join(COUNTED)})\b")
_DOING = re.compile(
    r"(?:a|an|the|two|three|some|several|four)?\s*(?:\w+ ){0,2}?"
    rf"({'|'.join([*ONE, *MANY])}|group of people)\b.*?\b(?:is|are)? ?(\w+ing\b.*)$"
)
_WEARING = re.compile(rf"\b(?:wearing|dressed in) ((?:a|an|the) (?:\w+ ){{0,2}}?(?:{'|'.join(WORN)}))\b")
_PLACE = re.compile(
    rf"\b((?:in|on|at|near|through|along|into) (?:the|a|an) (?:\w+ )?(?:{'|'.join(PLACES)}))\b"
)


def plain(caption: str) -> str:
    """Lower case, no full stop, no space before punctuation."""
    return re.sub(r"\s+([,.;'])", r"\1", caption.strip().rstrip(".").strip().lower())


def query(caption: str, random: np.random.Generator) -> str:
    """A query for the picture: the caption, a question, or a few key words."""
    text = plain(caption)
    if random.random() < 0.6:
        return text
    if random.random() < 0.7:
        return QUESTIONS[random.integers(len(QUESTIONS))].format(text)
    return " ".join(word for word in text.split() if word not in STOP_WORDS) or text


def answered(captions: Sequence[str], random: np.random.Generator) -> list[tuple[str, str]]:
    """Questions that an image's captions answer, with the answers."""
    found: list[tuple[str, str]] = []
    words = [set(re.findall(r"[a-z]+", caption.lower())) for caption in captions]
    for caption in map(plain, captions):
        found += [
            (f"what color is the {thing}?", ONE_SPELLING.get(color, color))
            for color, thing in _COLOR.findall(caption)
        ]
        found += [(f"how many {things} are there?", count) for count, things in _COUNT.findall(caption)]
        if doing := _DOING.match(caption):
            be = "are" if doing[1] in (*MANY, "group of people") else "is"
            what = re.split(r"\b(?:while|and|wearing|as|,)\b", doing[2])[0].strip()
            if not what.startswith(("wearing", "something")) and len(what.split()) <= 7:
                found.append((f"what {be} the {doing[1]} doing?", what))
        if wearing := _WEARING.search(caption):
            found.append(("what is the person wearing?", wearing[1]))
        if place := _PLACE.search(caption):
            found.append(("where is this?" if random.random() < 0.5 else "where was this taken?", place[1]))
    for thing in THINGS:
        if sum(thing in some for some in words) >= 2 and random.random() < 0.35:
            found.append((there(thing), "yes"))
    said = set().union(*words)
    absent = [
        thing for thing in THINGS if thing not in PERSONS and not any(thing.rstrip("s") in w for w in said)
    ]
    found += [(there(thing), "no") for thing in random.choice(absent, 3, replace=False)]
    return found


def there(thing: str) -> str:
    """The question whether there is such a thing."""
    if thing in MASS:
        return f"is there {thing}?"
    if thing in MANY or (thing.endswith("s") and thing not in ("dress", "bus")):
        return f"are there {thing}?"
    return f"is there {'an' if thing[0] in 'aeiou' else 'a'} {thing}?"


@dataclass(frozen=True)
class Text:
    """A prompt and its continuation, as tokens."""

    prompt: list[int]
    continuation: list[int]
    ends: bool = True  # followed by [SEP]


class Writer:
    """Draws the texts of a batch."""

    space = ""
    """First character of a continuation; word pieces have none."""

    def __init__(self, tokenizer: Tokenizer, captions: list[list[str]], random: np.random.Generator) -> None:
        self._tokenizer = tokenizer
        self._captions = captions
        self._random = random

    def tokens(self, text: str) -> list[int]:
        """Word pieces of a text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _after(self, prompt: str, text: str, *, ends: bool = True, **fields: str) -> Text:
        spoken = re.sub("<image>", "", prompt).format(**fields)
        return Text(self.tokens(spoken), self.tokens(f"{self.space}{text}"), ends)

    def caption(self, image: int) -> str:
        """One of an image's captions."""
        return self._captions[image][self._random.integers(CAPTIONS)]

    def question(self, image: int) -> Text:
        """A query as the text of the ranking loss."""
        return self._after(PROMPTS["question"].template, query(self.caption(image), self._random), ends=False)

    def judgement(self, image: int, other: int) -> Text:
        """Whether an image shows a caption, its own or that of another image of the group."""
        shown = image if self._random.random() < 0.5 else other
        return self._after(
            PROMPTS["yes_no"].template,
            "yes" if shown == image else "no",
            ends=False,
            question=plain(self.caption(shown)),
        )

    def text(self, image: int, mix: Sequence[float]) -> Text:
        """A caption, a query, or a question with its answer."""
        kind = self._random.choice(3, p=mix)
        if kind == 0:
            return self._after(PROMPTS["captioning"].template, plain(self.caption(image)))
        if kind == 1:
            return self._after(PROMPTS["question"].template, query(self.caption(image), self._random))
        pairs = answered(self._captions[image], self._random)
        if self._random.random() < 0.6:
            question, answer = pairs[self._random.integers(len(pairs))]
            return self._after(PROMPTS["vqa"].template, answer, question=question)
        telling = [question for question, answer in pairs if answer not in ("yes", "no")]
        telling = telling or [question for question, answer in pairs if answer == "yes"]
        telling = telling or [query(self._captions[image][0], self._random)]
        return self._after(ASK, telling[self._random.integers(len(telling))])

    def vocabulary(self) -> Tensor:
        """All tokens of these texts."""
        texts = [caption.lower() for captions in self._captions for caption in captions]
        texts += [
            *QUESTIONS,
            *THINGS,
            ASK,
            "yes no two three four five six what are doing color how many taken",
        ]
        used = {token for encoding in self._tokenizer.encode_batch(texts) for token in encoding.ids}
        return torch.tensor(sorted(used | {SEP, MASK}))


# --- the two losses ---------------------------------------------------------------------------------------


def log_probs(
    model: MiniModel,
    pasts: list[tuple[Tensor, Tensor]],
    texts: Sequence[Text],
    *,
    vocabulary: Tensor | None = None,
    masked: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Score texts, ``len(texts) / B`` for each of B images, in the order of the images.

    Texts of similar length form a batch; otherwise half of the computation would be padding.

    Returns:
        The sum over each continuation [len(texts)], and one number for every token predicted.
    """
    times = len(texts) // len(pasts[0][0])
    by_length = np.argsort([len(text.prompt) + len(text.continuation) for text in texts], kind="stable")
    sums, found = torch.zeros(len(texts)), []
    for chosen in np.array_split(by_length, LENGTHS):
        images = torch.from_numpy(chosen // times)
        cache = DynamicCache(
            [(keys.index_select(0, images), values.index_select(0, images)) for keys, values in pasts]
        )
        part, tokens = _log_probs(model, cache, [texts[i] for i in chosen], vocabulary, masked)
        sums = sums.index_add(0, torch.from_numpy(chosen), part)
        found.append(tokens)
    return sums, torch.cat(found)


def _log_probs(
    model: MiniModel, cache: DynamicCache, texts: Sequence[Text], vocabulary: Tensor | None, masked: float
) -> tuple[Tensor, Tensor]:
    """Score one text for each image in the cache."""
    rows = [[*text.prompt, *text.continuation, *([SEP] if text.ends else [])] for text in texts]
    T = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (T - len(row))] for row in rows])
    first = torch.tensor([len(text.prompt) for text in texts])[:, None]
    last = first + torch.tensor([len(text.continuation) for text in texts])[:, None]
    ends = torch.tensor([[len(row)] for row in rows])
    steps = torch.arange(T)
    predicted = (steps >= first) & (steps < ends)  # the continuation and its end
    read = ids
    if masked:
        read = torch.where((torch.rand(ids.shape) < masked) & predicted, MASK, ids)
    language = model.language
    words = language.bert.embeddings.word_embeddings(read[:, :-1])
    hidden = language.bert.causal(words, cache=cache)[predicted[:, 1:]]
    target, row = ids[:, 1:][predicted[:, 1:]], torch.nonzero(predicted[:, 1:])[:, 0]
    head = language.cls["predictions"]
    hidden = head(hidden)
    weight, bias = language.bert.embeddings.word_embeddings.weight, head.bias
    if vocabulary is not None:
        weight, bias = weight[vocabulary], bias[vocabulary]
        target = torch.searchsorted(vocabulary, target)
    found = -cross_entropy(nn.functional.linear(hidden, weight, bias).float(), target, reduction="none")
    inside = (steps < last)[:, 1:][predicted[:, 1:]]
    return torch.zeros(len(texts)).index_add(0, row, found * inside), found


def look(model: MiniModel, grid: Tensor, names: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of [CLS] and the image state, for every layer."""
    states = model.eyes.resample(grid, names)
    start = model.language.bert.embeddings.word_embeddings.weight[CLS].expand(len(states), 1, -1)
    cache = DynamicCache()
    model.language.bert.causal(torch.cat([start.to(states.dtype), states], dim=1), cache=cache)
    return [(layer.keys, layer.values) for layer in cache.layers]


def train(model: MiniModel, phase: Phase, writer: Writer, near: np.ndarray, work: Path, seed: int) -> None:
    """Train in place; the result is the running average of the weights over the last two thirds."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    files = sorted(work.glob("train-grid-*.npy"))
    grids = [np.load(file, mmap_mode="r") for file in files]  # of each view
    names = model.eyes.names(torch.from_numpy(np.load(work / "train-classes.npy").astype(np.float32)))
    vocabulary = writer.vocabulary()
    groups = parameter_groups(model, phase)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share_of_rate(step, phase.steps))
    average: MiniModel | None = None
    batches = alike(near, phase.images, random)
    for step in range(phase.steps):
        chosen = next(batches)
        views = random.integers(len(grids), size=len(chosen))
        grid = np.stack([grids[view][image] for view, image in zip(views, chosen, strict=True)])
        to_training(model)
        with autocast():
            pasts = look(model, torch.from_numpy(grid.astype(np.float32)), names[torch.from_numpy(chosen)])
            loss = torch.zeros(())
            if phase.ranking:
                others = chosen.reshape(-1, GROUP)[:, random.permutation(GROUP)].reshape(-1)
                judged = [writer.judgement(i, j) for i, j in zip(chosen, others, strict=True)]
                loss = loss + ranking_loss(model, pasts, [writer.question(i) for i in chosen], vocabulary)
                loss = loss - log_probs(model, pasts, judged, vocabulary=vocabulary)[0].mean()
            texts = [writer.text(i, phase.mix) for i in chosen for _ in range(phase.texts)]
            known = None if step % FULL_VOCABULARY_EVERY == 0 else vocabulary
            loss = loss - log_probs(model, pasts, texts, vocabulary=known, masked=MASKED)[1].mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
        optimizer.step()
        schedule.step()
        if step >= phase.steps // 3:
            average = average or copy.deepcopy(model)
            with torch.no_grad():
                for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                    mean.lerp_(value, AVERAGING)
        if step % 25 == 0:
            log.info("%s: step %d of %d, loss %.3f", phase.name, step, phase.steps, loss.item())
        if average is not None and step % 200 == 0:
            torch.save(average.trained(), work / f"generator-{phase.name}-{step}.pt")
    assert average is not None
    model.load_state_dict(average.state_dict())


def to_training(model: nn.Module) -> None:
    """Set training mode, except for the batch statistics of the vision model."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def share_of_rate(step: int, steps: int) -> float:
    """Learning rate of a step as a share of the full one: warm-up, then half a cosine down to 2 %."""
    return min(1, (step + 1) / WARM_UP) * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / steps)))


def ranking_loss(
    model: MiniModel, pasts: list[tuple[Tensor, Tensor]], questions: Sequence[Text], vocabulary: Tensor
) -> Tensor:
    """-log P(image | question) among the images of a group, plus -log P(question | image) per token."""
    groups = [questions[start : start + GROUP] for start in range(0, len(questions), GROUP)]
    everyone = [question for group in groups for _ in group for question in group]  # image by image
    sums, _ = log_probs(model, pasts, everyone, vocabulary=vocabulary)
    scores = sums.view(len(groups), GROUP, GROUP)  # [group, image, question]
    posterior = scores.log_softmax(1).diagonal(dim1=1, dim2=2)
    tokens = sum(len(question.continuation) for question in questions)
    return -posterior.mean() - scores.diagonal(dim1=1, dim2=2).sum() / tokens


def parameter_groups(model: MiniModel, phase: Phase) -> list[dict[str, object]]:
    """Trained parameters at three rates; word embeddings and the lower vision model are frozen."""
    model.requires_grad_(False)
    trained = model.trained()
    rates = {"eyes.tuned_top.": phase.top_rate, "language.bert.": phase.language_rate, "": phase.new_rate}
    groups: dict[str, list[nn.Parameter]] = {prefix: [] for prefix in rates}
    for name, parameter in model.named_parameters():
        if name in trained:
            parameter.requires_grad_(True)
            groups[next(prefix for prefix in rates if name.startswith(prefix))].append(parameter)
    return [{"params": groups[prefix], "lr": rate} for prefix, rate in rates.items()]


def alike(near: np.ndarray, images: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Batches of groups: an image, each once per round, and images similar to it."""
    waiting: list[int] = []
    while True:
        groups = []
        for _ in range(images // GROUP):
            waiting = waiting or random.permutation(len(near)).tolist()
            first = waiting.pop()
            groups.append([first, *random.choice(near[first], GROUP - 1, replace=False)])
        yield np.array(groups).reshape(-1)


def neighbours(data: Path, work: Path) -> np.ndarray:
    """The most similar training images of every training image, by the mini encoder, int [n, NEIGHBOURS]."""
    path = work / "train-near.npy"
    if not path.exists():
        images = [image for image, _ in captioned(data, "train")]
        vectors = MiniEncoder.from_pretrained().encode_image(images)
        similarity = vectors @ vectors.T
        np.fill_diagonal(similarity, -np.inf)
        np.save(path, np.argsort(-similarity, axis=1)[:, :NEIGHBOURS])
    return np.load(path)


def main() -> None:
    """Run the steps that are not done yet."""
    args = arguments(__doc__, "folder of train-*.tar")
    base, encoder = read_base_weights(), load_file(ENCODER_WEIGHTS)
    weights: dict[str, Tensor] | None = None
    views, phases, data = VIEWS, PHASES, args.data
    if data is None:
        views, phases = 2, tuple(replace(phase, steps=2, images=GROUP) for phase in PHASES)
        data = sample(args.work / "sample")
    for phase in phases:
        torch.manual_seed(args.seed)
        model = MiniModel(base)
        if weights is None:
            start_from_encoder(model, encoder)
            image_features(model.eyes.eval(), data, "train", views, args.work)
            captions = [some for _, some in captioned(data, "train")]
            near = neighbours(data, args.work)
        else:
            model.load_trained(weights)
        path = args.work / f"generator-{phase.name}.pt"
        if path.exists():
            weights = torch.load(path, weights_only=True)
            log.info("%s: already done", phase.name)
            continue
        writer = Writer(base.tokenizer, captions, np.random.default_rng(args.seed))
        train(model, phase, writer, near, args.work, args.seed)
        weights = {name: value.clone() for name, value in model.trained().items()}
        torch.save(weights, path)
    assert weights is not None
    write_trained(weights, args.out, {"seed": args.seed, "torch": torch.__version__})


def start_from_encoder(model: MiniModel, encoder: dict[str, Tensor]) -> None:
    """Copy the tuned top and the class names of the mini encoder."""
    prefix = "image.tuned_top."
    top = {name.removeprefix(prefix): value for name, value in encoder.items() if name.startswith(prefix)}
    model.eyes.tuned_top.load_state_dict(top)
    model.eyes.class_names.copy_(encoder["class_names"])
    model.eyes.image_mean.copy_(encoder["image_mean"])


if __name__ == "__main__":
    main()
