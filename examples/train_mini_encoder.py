"""Train the mini encoder's heads and upper layers on captioned photographs; writes ``mini.safetensors``.

    python examples/train_mini_encoder.py                                  # a few steps, about half a minute
    python examples/train_mini_encoder.py --data PATH/TO/flickr8k --work /tmp/mini --out mini.safetensors

Without ``--data`` it runs every phase for two steps on eight photographs of the demo; the result is useless.
With Flickr8k it takes an hour and a quarter on two busy cores. ``--data`` is a folder of WebDataset shards
named ``train-*.tar`` and ``dev-*.tar`` (``{key}.jpg`` and ``{key}.json`` with the list ``captions``). The
test split is never opened here; judge the result with

    zsq evaluate flickr8k:PATH/TO/flickr8k --report OUT --generator none --encoder-weights mini.safetensors

Each of the four steps writes a file to ``--work``; a restarted script skips the steps that are done:

1. features: the frozen trunks of both towers for several augmented views of every image and two wordings of
   every caption (the caption, and a question or a few key words made from it);
2. ``heads``: a head on each tower's tuned top, as a start for the next step;
3. ``tuned``: the tuned tops together with those heads, at a lower rate;
4. ``own``: other heads on the original tops, from another seed and on the captions without rewording. The two
   pairs of heads make different mistakes, so their sum is better than either.

The weights of a step are a running average over its last two thirds.

The loss is CLIP's symmetric cross entropy over a batch. A part of the target is spread over captions of
similar meaning, since "a dog runs" is not wrong for another running dog. Deterministic under ``--seed`` for a
given kind of processor, number of threads and version of torch.
"""

from __future__ import annotations

import argparse
import copy
import io
import itertools
import json
import logging
import math
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage
from PIL import ImageEnhance
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import normalize

from zsqretrieval._util.torch import ensure_torchvision, resolve_dtype
from zsqretrieval.data.images import decode
from zsqretrieval.data.samples import photographs
from zsqretrieval.evaluation.datasets.readers import read_images
from zsqretrieval.mini.efficientnet import IMAGE_SIZE, likely_names, scale_pixels
from zsqretrieval.mini.encoder import HEAD_DIM, AttentionPool, ImageTower, TextTower, join
from zsqretrieval.mini.weights import read_base_weights
from zsqretrieval.types import Image

log = logging.getLogger("train_mini_encoder")

_, DTYPE = resolve_dtype(None, torch.device("cpu"))  # bfloat16, which CPUs without it compute very slowly

VIEWS = 7
CAPTIONS = 5
SAMPLE = 8  # photographs of the demo
QUESTIONS = (
    "which picture shows {}?",
    "is there {} in this photo?",
    "where is {}?",
    "can you find {}?",
    "what photo has {}?",
    "do you see {}?",
    "show me {}",
)
STOP_WORDS = frozenset(
    {
        "a", "an", "and", "are", "as", "at", "by", "his", "her", "in", "is",
        "it", "its", "of", "on", "that", "the", "their", "to", "while", "with"
    }
)  # fmt: skip
SHARES = tuple(share / 100 for share in range(0, 55, 5))


@dataclass(frozen=True)
class Phase:
    """Length and learning rates of one step of training."""

    name: str
    steps: int
    batch: int
    head_rate: float
    base_rate: float  # for the tuned tops; 0 freezes them
    reworded: float  # share of the captions that are reworded
    own: bool = False  # train the heads on the original tops, from another seed


PHASES = (
    Phase("heads", steps=450, batch=512, head_rate=5e-4, base_rate=0.0, reworded=0.4),
    Phase("tuned", steps=160, batch=384, head_rate=1.5e-4, base_rate=5e-5, reworded=0.4),
    Phase("own", steps=450, batch=512, head_rate=5e-4, base_rate=0.0, reworded=0.0, own=True),
)
DROPOUT = 0.35
SOFT = 0.15  # part of the target that is spread over captions of similar meaning
WEIGHT_DECAY = 0.1
INITIAL_SCALE = 30.0
AVERAGING = 0.03


# --- images, captions, views and wordings -----------------------------------------------------------------


def captioned(data: Path, split: str) -> Iterator[tuple[Image, list[str]]]:
    """Images of the shards ``{split}-*.tar`` with their captions."""
    shards = sorted(data.glob(f"{split}-*.tar"))
    if not shards:
        raise SystemExit(f"{data} has no shards {split}-*.tar; give a folder of WebDataset shards")
    for image in read_images(shards):
        yield image, image.metadata["captions"]


def sample(folder: Path) -> Path:
    """Shards of a few photographs of the demo, the same for training and dev."""
    folder.mkdir(exist_ok=True)
    for split in ("train", "dev"):
        with tarfile.open(folder / f"{split}-00000.tar", "w") as tar:
            for image in photographs()[:SAMPLE]:
                captions = json.dumps({"captions": [f"A photograph of a {image.id}."] * CAPTIONS})
                for suffix, content in (
                    ("jpg", Path(image.source).read_bytes()),
                    ("json", captions.encode()),
                ):
                    member = tarfile.TarInfo(f"{image.id}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def augmented(image: PILImage.Image, view: int, index: int) -> np.ndarray:
    """View 0 is the image, 1 its mirror image, the others crops in other light; uint8 [260, 260, 3]."""
    mirrored = view == 1
    if view >= 2:
        random = np.random.default_rng(index * 100 + view)
        width, height = image.size
        area = random.uniform(0.35 if view % 2 else 0.6, 1)
        aspect = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = (
            min(width, int(width * (area * aspect) ** 0.5)),
            min(height, int(height * (area / aspect) ** 0.5)),
        )
        x, y = random.integers(0, width - w + 1), random.integers(0, height - h + 1)
        image = image.crop((x, y, x + w, y + h))
        for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = change(image).enhance(random.uniform(0.7, 1.3))
        mirrored = random.random() < 0.5
    image = image.resize((IMAGE_SIZE, IMAGE_SIZE), PILImage.Resampling.BICUBIC)
    return np.asarray(image.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT) if mirrored else image)


def reworded(caption: str, random: np.random.Generator) -> str:
    """The caption as a question, or as key words."""
    plain = caption.strip().rstrip(".").strip()
    if random.random() < 0.6:
        return QUESTIONS[random.integers(len(QUESTIONS))].format(plain[:1].lower() + plain[1:])
    words = [word for word in plain.lower().split() if word not in STOP_WORDS]
    return " ".join(words) or plain


# --- step 1: features of the frozen trunks ----------------------------------------------------------------


def image_features(tower: ImageTower, data: Path, split: str, views: int, work: Path) -> None:
    """Write the grids of every view, float16 [n, 208, 9, 9], and the classes of view 0, float16 [n, 1000]."""
    images = [decode(image) for image, _ in captioned(data, split)]
    low = copy.deepcopy(tower).to(DTYPE)
    for view in range(views):
        path = work / f"{split}-grid-{view}.npy"
        if path.exists():
            continue
        grids, classes = [], []
        for start in range(0, len(images), 50):
            batch = [augmented(one, view, start + i) for i, one in enumerate(images[start : start + 50])]
            with torch.inference_mode():
                grid = low.trunk(scale_pixels(torch.from_numpy(np.stack(batch))).to(DTYPE))
                classes.append(low.class_probabilities(low.own(grid)).half().numpy())
                grids.append(grid.half().contiguous().numpy())
        if view == 0:
            np.save(work / f"{split}-classes.npy", np.concatenate(classes))
        save(path, np.concatenate(grids))
        log.info("%s: view %d of %d images", split, view, len(images))


def text_features(tower: TextTower, tokenizer: Tokenizer, texts: list[str], path: Path) -> None:
    """Write the lower hidden states of all texts end to end, their lengths, and their sentence vectors."""
    if path.with_suffix(".sentence.npy").exists():
        return
    tokens = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    hidden: list[np.ndarray] = [np.empty(0)] * len(texts)
    sentence = np.empty((len(texts), 384), np.float32)
    order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))
    for start in range(0, len(order), 256):
        chosen = order[start : start + 256]
        longest = max(len(tokens[i]) for i in chosen)
        ids = torch.tensor([tokens[i] + [0] * (longest - len(tokens[i])) for i in chosen])
        mask = torch.tensor([[1.0] * len(tokens[i]) + [0.0] * (longest - len(tokens[i])) for i in chosen])
        with torch.inference_mode(), autocast():
            states = tower.trunk(ids, mask)
            vectors = tower.sentence(tower.own(states, mask), mask)
        sentence[chosen] = vectors.float().numpy()
        for row, i in enumerate(chosen):
            hidden[i] = states[row, : len(tokens[i])].half().numpy()
    save(path.with_suffix(".length.npy"), np.array([len(one) for one in tokens]))
    save(path.with_suffix(".hidden.npy"), np.concatenate(hidden))
    save(path.with_suffix(".sentence.npy"), sentence)
    log.info("%s: %d texts", path.name, len(texts))


def autocast() -> torch.autocast:
    """Computation in 16 bits where the CPU is fast in them."""
    return torch.autocast("cpu", torch.bfloat16, enabled=DTYPE is torch.bfloat16)


def save(path: Path, array: np.ndarray) -> None:
    """Write a file atomically."""
    temporary = path.with_suffix(".part.npy")
    np.save(temporary, array)
    temporary.replace(path)


class Texts:
    """Random access to the files of :func:`text_features`."""

    def __init__(self, path: Path) -> None:
        self.length = np.load(path.with_suffix(".length.npy"))
        self.end = np.cumsum(self.length)
        self.hidden = np.load(path.with_suffix(".hidden.npy"))
        self.sentence = torch.from_numpy(np.load(path.with_suffix(".sentence.npy")))

    def batch(self, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        """Hidden states [B, T, 384] and mask [B, T] of the chosen texts."""
        hidden = torch.zeros(len(chosen), int(self.length[chosen].max()), 384)
        mask = torch.zeros(hidden.shape[:2])
        for row, i in enumerate(chosen):
            n = self.length[i]
            hidden[row, :n] = torch.from_numpy(self.hidden[self.end[i] - n : self.end[i]].astype(np.float32))
            mask[row, :n] = 1
        return hidden, mask


# --- steps 2 to 4: training -------------------------------------------------------------------------------


class Model(nn.Module):
    """Both towers, and the logarithm of the logit scale."""

    def __init__(self, image_tower: ImageTower, text_tower: TextTower) -> None:
        super().__init__()
        self.image, self.text = image_tower, text_tower
        self.log_scale = nn.Parameter(torch.tensor(math.log(INITIAL_SCALE)))

    def heads(self, own: bool) -> list[nn.Module]:
        """The heads on the original or on the tuned tops."""
        return [tower.own_head if own else tower.tuned_head for tower in (self.image, self.text)]

    def base(self) -> list[nn.Parameter]:
        """The tuned tops."""
        return [*self.image.tuned_top.parameters(), *self.text.tuned_layers.parameters()]

    def renew_own_heads(self) -> None:
        """Draw the heads on the original tops anew from the global random stream."""
        self.image.own_head = AttentionPool(1280, HEAD_DIM, dropout=DROPOUT)
        self.text.own_head = AttentionPool(384, HEAD_DIM, dropout=DROPOUT)

    def dropping_out(self, own: bool) -> None:
        """Set training mode, except for the CNN's batch statistics and for frozen parts."""
        self.eval()
        for part in self.heads(own) if own else [*self.heads(own), self.text.tuned_layers]:
            part.train()

    def encode_image(self, grid: Tensor, own: bool) -> Tensor:
        """Trunk output to [B, D] by one of the heads."""
        return self.image.by_own_head(self.image.own(grid)) if own else self.image.by_tuned_head(grid)

    def encode_text(self, hidden: Tensor, mask: Tensor, own: bool) -> Tensor:
        """Trunk output to [B, D] by one of the heads."""
        text = self.text
        return text.by_own_head(text.own(hidden, mask), mask) if own else text.by_tuned_head(hidden, mask)

    def trained_parts(self) -> dict[str, Tensor]:
        """The tensors that the package ships, by name."""
        parts = ("tuned_top.", "tuned_layers.", "tuned_head.", "own_head.")
        wanted = tuple(f"{tower}.{part}" for tower in ("image", "text") for part in parts)
        return {name: value for name, value in self.state_dict().items() if name.startswith(wanted)}


def train(model: Model, phase: Phase, work: Path, seed: int) -> None:
    """Train in place; the result is the running average of the weights over the last two thirds."""
    seed += phase.own
    torch.manual_seed(seed)
    if phase.own:
        model.renew_own_heads()
    random = np.random.default_rng(seed)
    grids = [np.load(file) for file in sorted(work.glob("train-grid-*.npy"))]  # of each view
    texts = Texts(work / "train-texts")  # captions first, then their rewordings
    n = len(grids[0])
    heads = [parameter for head in model.heads(phase.own) for parameter in head.parameters()]
    if phase.base_rate == 0:  # the heads are new
        model.log_scale.data.fill_(math.log(INITIAL_SCALE))
    groups = [
        {"params": heads, "lr": phase.head_rate},
        {"params": [model.log_scale], "lr": phase.head_rate, "weight_decay": 0.0},
    ]
    model.requires_grad_(False)
    for parameter in [*heads, model.log_scale, *(model.base() if phase.base_rate > 0 else ())]:
        parameter.requires_grad_(True)
    if phase.base_rate > 0:
        groups.append({"params": model.base(), "lr": phase.base_rate})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 30) * (0.5 + 0.5 * math.cos(math.pi * step / phase.steps))
    )
    average: Model | None = None
    for step, chosen in enumerate(itertools.islice(shuffled(n, phase.batch, random), phase.steps)):
        views = random.integers(len(grids), size=len(chosen))
        grid = np.stack([grids[view][i] for view, i in zip(views, chosen, strict=True)]).astype(np.float32)
        captions = chosen * CAPTIONS + random.integers(CAPTIONS, size=len(chosen))
        wordings = captions + n * CAPTIONS * (random.random(len(chosen)) < phase.reworded)
        model.dropping_out(phase.own)
        with autocast():
            pixels = torch.from_numpy(grid).contiguous(memory_format=torch.channels_last)
            image = model.encode_image(pixels, phase.own)
            text = model.encode_text(*texts.batch(wordings), phase.own)
        logits = (
            model.log_scale.exp().clamp(max=100)
            * normalize(image.float(), dim=-1)
            @ normalize(text.float(), dim=-1).T
        )
        sentence = texts.sentence[torch.from_numpy(captions)]
        alike = (sentence @ sentence.T / 0.1).softmax(-1)
        target = (1 - SOFT) * torch.eye(len(chosen)) + SOFT * alike
        loss = -(target * logits.log_softmax(1)).sum(1).mean() / 2
        loss = loss - (target.T * logits.T.log_softmax(1)).sum(1).mean() / 2
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
        if step % 50 == 0:
            log.info("%s: step %d of %d, loss %.3f", phase.name, step, phase.steps, loss.item())
    assert average is not None
    model.load_state_dict(average.state_dict())


def shuffled(n: int, size: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Batches of distinct indices below n, each index once per round."""
    waiting = np.empty(0, int)
    while True:
        if len(waiting) < size:
            waiting = np.concatenate([waiting, random.permutation(n)])
        yield np.unique(waiting[:size])
        waiting = waiting[size:]


# --- the weight of the knowledge part, and the file -------------------------------------------------------


@dataclass(frozen=True)
class Dev:
    """The dev split through both towers: vectors by head (tuned, own), and the knowledge parts."""

    images: tuple[Tensor, Tensor]
    texts: tuple[Tensor, Tensor]
    known_images: Tensor
    known_texts: Tensor

    def recalls(self, share: float) -> dict[str, float]:
        """Text-to-image R@k in percent with this weight of the knowledge part; a tie counts as a miss."""
        images, texts = join(self.images, self.known_images, share), join(self.texts, self.known_texts, share)
        similarity = (images @ texts.T).numpy()  # [n, n * CAPTIONS]
        caption = np.arange(similarity.shape[1])
        rank = (similarity >= similarity[caption // CAPTIONS, caption]).sum(0) - 1
        return {f"R@{k}": round(float(100 * (rank < k).mean()), 2) for k in (1, 5, 10)}


def encode_dev(model: Model, work: Path, facts: dict[str, Tensor]) -> Dev:
    """Encode the dev images and their captions."""
    model.eval()
    grid = np.load(work / "dev-grid-0.npy")
    texts = Texts(work / "dev-texts")
    images: tuple[list[Tensor], list[Tensor]] = ([], [])
    captions: tuple[list[Tensor], list[Tensor]] = ([], [])
    with torch.inference_mode():
        for start in range(0, len(grid), 100):
            pixels = torch.from_numpy(grid[start : start + 100].astype(np.float32))
            for own in (False, True):
                images[own].append(model.encode_image(pixels, own))
        for chosen in np.array_split(np.arange(len(grid) * CAPTIONS), -(-len(grid) * CAPTIONS // 200)):
            for own in (False, True):
                captions[own].append(model.encode_text(*texts.batch(chosen), own))
    names = likely_names(
        torch.from_numpy(np.load(work / "dev-classes.npy").astype(np.float32)), facts["class_names"]
    )
    return Dev(
        images=(torch.cat(images[0]), torch.cat(images[1])),
        texts=(torch.cat(captions[0]), torch.cat(captions[1])),
        known_images=normalize(names - facts["image_mean"], dim=-1),
        known_texts=normalize(texts.sentence - facts["text_mean"], dim=-1),
    )


def knowledge(text_tower: TextTower, tokenizer: Tokenizer, work: Path) -> dict[str, Tensor]:
    """Sentence vectors of the class names, and the means of images and captions in that space."""
    ensure_torchvision()
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    names = [info.index_to_description(index, detailed=False) for index in range(1000)]
    text_features(text_tower, tokenizer, names, work / "class-names")
    vectors = Texts(work / "class-names").sentence
    classes = torch.from_numpy(np.load(work / "train-classes.npy").astype(np.float32))
    captions = Texts(work / "train-texts").sentence[: len(classes) * CAPTIONS]
    return {
        "class_names": vectors,
        "image_mean": likely_names(classes, vectors).mean(0),
        "text_mean": captions.mean(0),
    }


def choose_share(dev: Dev) -> tuple[float, dict[str, dict[str, float]]]:
    """The largest weight of the knowledge part within half a point of the best on dev, and its recalls.

    Dev has the same kind of photographs as the training data; the knowledge part is for all others.
    """
    measured = {}
    for share in SHARES:
        measured[share] = dev.recalls(share)
        log.info("share %.2f: dev t2i %s", share, measured[share])
    mean = {share: sum(recall.values()) / len(recall) for share, recall in measured.items()}
    chosen = max(share for share in SHARES if mean[share] >= max(mean.values()) - 0.5)
    return chosen, {"dev_t2i": measured[chosen]}


def write_trained(parts: dict[str, Tensor], out: Path, recipe: dict[str, object]) -> None:
    """Write the tensors in half precision, with the recipe as metadata."""
    tensors = {name: value.half() if value.is_floating_point() else value for name, value in parts.items()}
    if not all(torch.isfinite(value).all() for value in tensors.values()):
        raise SystemExit("a weight does not fit into half precision")
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    save_file(tensors, out, metadata={"recipe": json.dumps(recipe)})
    out.chmod(0o644)
    log.info("wrote %s", out)


def arguments(description: str | None, data: str) -> argparse.Namespace:
    """Read the options of a training script, start logging, and make the work folder."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help=data)
    parser.add_argument("--work", type=Path, default=Path("mini-training"), help="intermediate files (3 GB)")
    parser.add_argument("--out", type=Path, default=Path("mini.safetensors"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.work.mkdir(parents=True, exist_ok=True)
    return args


def main() -> None:
    """Run the steps that are not done yet."""
    args = arguments(__doc__, "folder of train-*.tar and dev-*.tar")
    base = read_base_weights()
    torch.manual_seed(args.seed)
    image_tower = ImageTower(base, dropout=DROPOUT).eval()
    text_tower = TextTower(base, dropout=DROPOUT).eval()
    tokenizer = base.tokenizer
    tokenizer.enable_truncation(40)

    views, phases, data = VIEWS, PHASES, args.data
    if data is None:
        views, phases = 2, tuple(replace(phase, steps=2, batch=SAMPLE) for phase in PHASES)
        data = sample(args.work / "sample")
    for split, count in (("dev", 1), ("train", views)):
        image_features(image_tower, data, split, count, args.work)
        captions = [caption for _, some in captioned(data, split) for caption in some]
        random = np.random.default_rng(args.seed)
        wordings = [reworded(caption, random) for caption in captions] if split == "train" else []
        text_features(text_tower, tokenizer, captions + wordings, args.work / f"{split}-texts")

    model = Model(image_tower, text_tower)
    facts = knowledge(text_tower, tokenizer, args.work)
    for phase in phases:
        path = args.work / f"{phase.name}.pt"
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
            log.info("%s: already done", phase.name)
        else:
            train(model, phase, args.work, args.seed)
            torch.save(model.state_dict(), path)
    share, measured = choose_share(encode_dev(model, args.work, facts))
    parts = {**model.trained_parts(), **facts, "share": torch.tensor(share)}
    recipe = {"seed": args.seed, "share": share, "torch": torch.__version__, **measured}
    write_trained(parts, args.out, recipe)


if __name__ == "__main__":
    main()
