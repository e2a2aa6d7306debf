"""``zsq laion embed`` and ``plan``: work and collections that outgrow one machine."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from zsqretrieval.cli.console import continued, emit_json, human_size, name_skipped, notice, say, show
from zsqretrieval.cli.options import (
    AsJson,
    Device,
    MaxPixels,
    given_path,
    json_object,
    preset_with,
)


def embed(
    shards: Annotated[str, typer.Argument(metavar="SHARDS", help="Folder, glob pattern or URL of tars.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", parser=given_path, help="Folder of the results.")],
    preset: Annotated[str, typer.Option(help="Use this preset's encoder or generator.")] = "mini",
    task: Annotated[
        Literal["embed", "questions", "states"], typer.Option(help="What to make of each tar.")
    ] = "embed",
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Work here, or on actors of Ray.")
    ] = "local",
    only: Annotated[str | None, typer.Option("--shards", help="Only these shards, such as 0-99.")] = None,
    worker: Annotated[int, typer.Option(min=0, help="Number of this worker, from 0.")] = 0,
    of: Annotated[int, typer.Option(min=1, help="Workers that share the shards.")] = 1,
    actors: Annotated[
        int | None, typer.Option(min=1, help="Actors of Ray.", show_default="as many as there is room for")
    ] = None,
    cpus: Annotated[float, typer.Option(min=0, help="Cores for each actor.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs for each actor.")] = 0,
    attempts: Annotated[int, typer.Option(min=1, help="Most attempts for each shard.")] = 3,
    encoder: Annotated[str | None, typer.Option(help="Encoder plugin, not the preset's.")] = None,
    encoder_config: Annotated[str | None, typer.Option(help="Its settings, a JSON object.")] = None,
    generator: Annotated[str | None, typer.Option(help="Generator plugin, not the preset's.")] = None,
    generator_config: Annotated[str | None, typer.Option(help="Its settings, a JSON object.")] = None,
    device: Device = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images per batch.", show_default="64 of embed, 16 of the others"),
    ] = None,
    size_hint: Annotated[
        int | None,
        typer.Option(min=1, help="Decode JPEGs of twice this side or more smaller, for embed: faster."),
    ] = None,
    max_pixels: MaxPixels = 200_000_000,
    as_json: AsJson = False,
) -> None:
    """Embed the images of tars, or write questions about them, or compute their features.

    Each tar becomes one shard in OUT, whole or not at all. Shards that are done are skipped, so that the same
    command continues an interrupted run, and any number of workers may share OUT.
    """
    from zsqretrieval.errors import InvalidInputError
    from zsqretrieval.laion.image_shards import open_image_shards
    from zsqretrieval.laion.ray import run_on_ray
    from zsqretrieval.laion.shards import choose, run_shards
    from zsqretrieval.tasks.shards import make_task

    made = preset_with(preset).variant(
        encoder=encoder,
        encoder_config=json_object("--encoder-config", encoder_config),
        generator=generator or "auto",
        generator_config=json_object("--generator-config", generator_config),
    )
    if task == "embed":
        part = {"plugin": made.encoder, "config": dict(made.encoder_config)}
    elif made.generator is None:
        raise InvalidInputError(f"the preset {preset!r} has no generator; choose one with a generator")
    else:
        part = {"plugin": made.generator, "config": dict(made.generator_config)}
    given = {"batch_size": batch_size, "size_hint": size_hint if task == "embed" else None}
    settings = {name: value for name, value in given.items() if value is not None}
    making = partial(make_task, task, part, **settings)
    listed = open_image_shards(shards)
    numbers = choose(len(listed), shards=only, worker=worker, of=of)
    shared: dict[str, Any] = {"attempts": attempts, "max_pixels": max_pixels, "report": _tell}
    with continued("finished shards are on disk"):
        if engine == "ray":
            report = run_on_ray(making, listed, out, numbers, actors=actors, cpus=cpus, gpus=gpus, **shared)
        else:
            report = run_shards(making(), listed, out, numbers, **shared)
    if as_json:
        emit_json({"out": str(out.absolute()), **asdict(report)})
    else:
        known = f", {report.known} done before" if report.known else ""
        say(
            f"{report.done} shards with {report.images} images in {report.seconds:.1f} s{known}; "
            f"{report.refused} images refused."
        )
        name_skipped(report.failed, notice, "failed")
    if report.failed:
        raise typer.Exit(1)


def _tell(stats: Any) -> None:
    if "failed" in stats:
        notice(f"shard {stats['shard']} ({stats['tar']}) failed: {stats['failed']}")
    elif not stats.get("known"):
        speed = ", ".join(f"{stage} {rate:g}" for stage, rate in stats["images_per_s"].items())
        notice(f"shard {stats['shard']} ({stats['tar']}): {stats['images']} images; per second: {speed}")


def plan(
    vectors: Annotated[float, typer.Option(help="Number of images, such as 5.85e9.")],
    dim: Annotated[int, typer.Option(min=1, help="Length of a vector.")] = 768,
    recall: Annotated[float, typer.Option(help="Recall@10 of the index, from 0.9 to 0.98.")] = 0.95,
    qps: Annotated[float, typer.Option(help="Questions a second.")] = 10,
    candidates: Annotated[int, typer.Option(min=0, help="Candidates re-ranked for a question.")] = 50,
    memory: Annotated[float, typer.Option(help="Memory of a machine in GB.")] = 256,
    disk: Annotated[float, typer.Option(help="SSD of a machine in TB.")] = 8,
    cores: Annotated[int, typer.Option(help="Cores of a machine.")] = 32,
    price: Annotated[float | None, typer.Option(help="Price of a machine for an hour.")] = None,
    gpu_price: Annotated[float | None, typer.Option(help="Price of a GPU for an hour.")] = None,
    as_json: AsJson = False,
) -> None:
    """Work out memory, disks, machines, time and price of a collection; docs/scale.md has the formulas."""
    from zsqretrieval.laion import plan as planning

    machine = planning.Machine(memory * 1e9, disk * 1e12, cores, price, gpu_price)
    found = planning.plan(vectors, dim, recall=recall, qps=qps, candidates=candidates, machine=machine)
    if as_json:
        emit_json(asdict(found))
        return
    for one in found.indexes:
        built = "unknown" if one.build_core_hours is None else f"{one.build_core_hours:,.1f} core hours"
        reached = "not published; measure it" if one.recall is None else f"{one.recall:g}"
        show(
            (one.index, ""),
            [
                ("size", f"{human_size(one.bytes)} {'in' if one.on == 'memory' else 'on'} {one.on}"),
                ("machines", f"{one.machines:,}: {one.shards:,} shards, {one.replicas:,} replicas of each"),
                ("questions a second", f"{one.rate:,.0f}"),
                ("recall@10", reached),
                ("build", built),
                ("basis", one.basis),
            ],
        )
    rows = [
        ("vectors in float16", human_size(found.vector_bytes)),
        ("metadata", human_size(found.metadata_bytes)),
        ("image features, if kept", human_size(found.feature_bytes)),
        ("encoding", f"{found.embedding_gpu_hours:,.0f} hours of an A100 with ViT-L/14"),
        *(
            (f"re-ranking from {name}", f"{gpus:,} H200, {found.rerank_gpu_seconds[name]:,.0f} s a thousand")
            for name, gpus in found.rerank_gpus.items()
        ),
        *((f"price of a thousand: {name}", f"{cost:,.3f}") for name, cost in (found.price or {}).items()),
    ]
    show(("all", ""), rows)
