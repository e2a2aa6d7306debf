"""The shard worker against the ceiling of its encoder, and against clip-retrieval.

The ceiling is the encoder fed with ready tensors. Every round runs all of them one after another, on the
same images and with the same random weights. clip-retrieval needs an environment of its own, whose Python is
given.

python -m benchmarks.embed --tar photos/00000.tar --images 256 --clip-retrieval ../clipret/bin/python
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.output import command_line, run, write_results
from benchmarks.timing import timed
from zsqretrieval.data.images import decode
from zsqretrieval.data.samples import photographs
from zsqretrieval.data.tars import read_webdataset
from zsqretrieval.encoders.clip import CLIPEncoder
from zsqretrieval.encoders.rows import encode_batches
from zsqretrieval.laion.embed import Embed
from zsqretrieval.laion.embeddings import open_embeddings
from zsqretrieval.laion.image_shards import open_image_shards
from zsqretrieval.laion.shards import run_shards
from zsqretrieval.types import Image

_TARS = os.cpu_count() or 1  # clip-retrieval reads one in each of its processes

_RIVAL = """
import json, os, sys, time
if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    sys.path.append(settings.pop("src"))
    from zsqretrieval._util.torch import ensure_torchvision
    ensure_torchvision()
    from all_clip import load_clip
    from clip_retrieval.clip_inference import main, worker
    from clip_retrieval.clip_inference.runner import Runner
    class Silent:  # its loggers are processes that take longer to start than a few images take
        def __init__(self, *_, **__): pass
        def start(self): pass
        def end(self): pass
        def __call__(self, stats): pass
    main.LoggerReader = worker.LoggerWriter = Silent
    model = {"clip_model": settings["clip_model"], "use_jit": False}
    load_clip(**model, warmup_batch_size=settings["batch_size"], clip_cache_path=None)  # it is cached there
    call = Runner.__call__
    def timed(self, partition):
        begin, cpu = time.perf_counter(), sum(os.times()[:4])
        call(self, partition)
        print(json.dumps([time.perf_counter() - begin, sum(os.times()[:4]) - cpu]))
    Runner.__call__ = timed
    main.main(**settings)
"""


def write_tar(path: Path, images: Iterable[bytes]) -> None:
    """Write JPEGs with a caption and metadata each, as img2dataset does."""
    with tarfile.open(path, "w") as tar:
        for n, content in enumerate(images):
            members = {"jpg": content, "txt": b"a photograph", "json": b'{"license": "CC0"}'}
            for suffix, part in members.items():
                member = tarfile.TarInfo(f"{path.stem}{n:08d}.{suffix}")
                member.size = len(part)
                tar.addfile(member, io.BytesIO(part))


def crops(count: int, size: tuple[int, int] = (480, 360)) -> Iterable[bytes]:
    """JPEGs of random parts of the photographs of the demo."""
    random = np.random.default_rng(0)
    pictures = [one for one in map(decode, photographs()) if min(one.size) >= max(size)]
    for n in range(count):
        picture = pictures[n % len(pictures)]
        left, top = (
            int(random.integers(0, have - want + 1)) for have, want in zip(picture.size, size, strict=True)
        )
        buffer = io.BytesIO()
        picture.crop((left, top, left + size[0], top + size[1])).save(buffer, "JPEG", quality=85)
        yield buffer.getvalue()


def rival(
    python: str, tars: Path, out: Path, checkpoint: Path, model: str, batch_size: int
) -> tuple[float, float]:
    """Seconds and CPU seconds of clip-retrieval's ``clip_inference``, without loading the model."""
    script = out.with_suffix(".py")
    script.write_text(_RIVAL)
    settings = {
        "src": str(Path(__file__).parents[1] / "src"),
        "input_dataset": f"{tars}/{{0..{_TARS - 1}}}.tar",
        "output_folder": str(out),
        "input_format": "webdataset",
        "batch_size": batch_size,
        "num_prepro_workers": _TARS,
        "enable_text": False,
        "enable_metadata": True,
        "clip_model": f"open_clip:{model}/{checkpoint}",
        "output_partition_count": 1,
    }
    done = subprocess.run([python, str(script), json.dumps(settings)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"clip-retrieval failed: {done.stderr[-1000:]}")
    seconds, cpu = json.loads(done.stdout.splitlines()[-1])
    return float(seconds), float(cpu)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = command_line(
        "embed",
        "Measure the shard worker against its encoder's ceiling and clip-retrieval.",
        images=(256, "Images."),
        rounds=(3, "Rounds, all of which count."),
        batch_size=(64, "Images encoded together."),
    )
    parser.add_argument("--tar", type=Path, help="Take the first images of this tar; else of the demo.")
    parser.add_argument("--model", default="ViT-B-32", help="Architecture of open_clip.")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16 or fp16.")
    parser.add_argument("--clip-retrieval", help="Python of an environment that has clip-retrieval.")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        facts = bench(Path(folder), given)
    names = [name for name in ("ceiling", "worker", "clip_retrieval") if name in facts]
    write_results(
        facts,
        ("", "images/s", "images per CPU second", "of the ceiling", "by CPU time"),
        [
            (
                name,
                f"{facts[name]:.1f}",
                f"{facts['per_cpu_s'][name]:.1f}",
                f"{facts['of_ceiling'][name]:.3f}",
                f"{facts['of_ceiling_by_cpu'][name]:.3f}",
            )
            for name in names
        ],
        [
            f"{given.images} images, {given.model} {given.precision}, {torch.get_num_threads()} threads, "
            f"medians of {given.rounds} rounds; alone, images per CPU second: "
            f"decode {facts['decode']:.0f}, decode and preprocess {facts['preprocess']:.0f}",
            *(
                [f"smallest cosine with clip-retrieval's vectors: {facts['cosine']:.5f}"]
                if "cosine" in facts
                else []
            ),
        ],
        as_json=given.json,
    )


def bench(folder: Path, given: Any) -> dict[str, Any]:
    """Measure in an empty folder."""
    encoder: Any = CLIPEncoder.from_pretrained(given.model, "random", precision=given.precision)
    checkpoint = folder / "weights.pt"
    torch.save({name: one.float() for name, one in encoder._model.state_dict().items()}, checkpoint)
    tars = folder / "tars"
    tars.mkdir()
    listed = (one for one in read_webdataset([given.tar]) if isinstance(one, Image)) if given.tar else ()
    contents = [one.content for one in islice(listed, given.images) if isinstance(one.content, bytes)]
    contents = contents or list(crops(given.images))
    for n in range(_TARS):
        write_tar(tars / f"{n}.tar", contents[n::_TARS])
    shards, task = open_image_shards(tars), Embed(encoder, batch_size=given.batch_size)
    images = [one for shard in shards for one in shard.images() if isinstance(one, Image)]
    (_, decoding), (_, preparing) = (
        timed(lambda: list(map(decode, images))),
        timed(lambda: list(map(encoder._pixels, images))),
    )
    tensors = [encoder._pixels(image) for image in images]

    def ceiling() -> object:
        return encode_batches(
            lambda batch: encoder._model.encode_image(encoder._stack(batch)),
            tensors, batch_size=given.batch_size, dim=encoder.dim,
        )  # fmt: skip

    timed(ceiling)  # once before it counts
    rounds: list[dict[str, tuple[float, float]]] = []
    for turn in range(given.rounds):
        one = {
            "ceiling": timed(ceiling),
            "worker": timed(lambda turn=turn: run_shards(task, shards, folder / f"out{turn}")),  # type: ignore[misc]
        }
        if given.clip_retrieval:
            out = folder / f"rival{turn}"
            one["clip_retrieval"] = rival(
                given.clip_retrieval, tars, out, checkpoint, given.model, given.batch_size
            )
        rounds.append(one)
    facts: dict[str, Any] = {
        "images": len(images),
        "model": given.model,
        "precision": given.precision,
        "decode": len(images) / decoding,
        "preprocess": len(images) / preparing,
        "per_cpu_s": {},
        "of_ceiling": {},
        "of_ceiling_by_cpu": {},
    }
    for name in rounds[0]:
        facts[name] = len(images) / float(np.median([one[name][0] for one in rounds]))
        facts["of_ceiling"][name] = float(np.median([one["ceiling"][0] / one[name][0] for one in rounds]))
        facts["per_cpu_s"][name] = len(images) / float(np.median([one[name][1] for one in rounds]))
        facts["of_ceiling_by_cpu"][name] = float(
            np.median([one["ceiling"][1] / one[name][1] for one in rounds])
        )
    if given.clip_retrieval:
        ours, theirs = (by_image(folder / name) for name in ("out0", "rival0"))
        facts["cosine"] = min(float(vector @ theirs[name]) for name, vector in ours.items())
    return facts


def by_image(folder: Path) -> dict[str, Any]:
    """Vectors float32 [dim] by the name of the image."""
    return {
        Path(str(row.source).rpartition("#")[2]).stem: vector.astype(np.float32)
        for shard in open_embeddings(folder).shards
        for row, vector in zip(shard.rows(), shard.vectors[:], strict=True)
    }


if __name__ == "__main__":
    run(main)
