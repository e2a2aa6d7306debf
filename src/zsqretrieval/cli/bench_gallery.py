"""``zsq bench gallery``: recall as the gallery grows, measured and extrapolated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from zsqretrieval.cli.console import PlainTable, emit_json, say, show, stage_bars
from zsqretrieval.cli.opening import new_encoder, new_generator
from zsqretrieval.cli.reading import (
    AsJson,
    BenchPreset,
    EncoderWeights,
    GeneratorWeights,
    human_seconds,
    told_interval,
)

__all__ = ["bench_gallery_command"]


def bench_gallery_command(
    data: Annotated[
        Path, typer.Option(help="Folder of WebDataset shards; splits that do not ask are distractors.")
    ],
    preset: BenchPreset = "mini",
    split: Annotated[str, typer.Option(help="Split whose captions ask.")] = "test",
    queries: Annotated[
        int | None, typer.Option(min=1, help="Let only so many captions ask.", show_default="all")
    ] = None,
    rerank: Annotated[bool, typer.Option(help="Let the generator read candidates; takes long.")] = True,
    candidates: Annotated[int, typer.Option(min=1, help="Images scored for each caption.")] = 100,
    depth: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Candidates read in a gallery; may be repeated. [default: 10, 50]"),
    ] = None,
    weight: Annotated[
        float | None,
        typer.Option(min=0, help="Weight of the generator in the fusion.", show_default="the preset's"),
    ] = None,
    synthetic: Annotated[int, typer.Option(min=0, help="Hard distractors to make up.")] = 100_000,
    resamples: Annotated[int, typer.Option(min=2, help="Draws that models are fitted to.")] = 200,
    encoder_weights: EncoderWeights = None,
    generator_weights: GeneratorWeights = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder to keep vectors and scores in, to go on from.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs the generator computes together.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Measure how recall falls as the gallery grows, and extrapolate it to LAION-5B."""
    from zsqretrieval.evaluation.gallery_bench import bench_gallery
    from zsqretrieval.evaluation.opening import open_dataset, open_distractors
    from zsqretrieval.evaluation.plan import with_weight
    from zsqretrieval.presets import preset_fusion

    argument = f"shards:{data}"
    encoder = new_encoder(preset, weights=encoder_weights)
    generator = new_generator(preset, weights=generator_weights) if rerank else None
    fusion = preset_fusion(preset)
    with stage_bars(lines=True) as progress:
        bench = bench_gallery(
            encoder,
            generator,
            open_dataset(argument, split),
            distractors=open_distractors(argument, split),
            queries=queries,
            candidates=candidates,
            depths=tuple(depth or [k for k in (10, 50) if k <= candidates] or [candidates]),
            fusion=fusion if weight is None else with_weight(fusion, weight),
            synthetic=synthetic,
            resamples=resamples,
            batch_size=batch_size,
            work=work,
            progress=progress,
        )
    found = asdict(bench)
    if as_json:
        emit_json(found)
    else:
        _tell(found)


def _tell(found: Mapping[str, Any]) -> None:
    setting = found["setting"]
    say(
        f"{setting['data']}: {setting['queries']} captions look for their images among "
        f"{setting['images']} and fewer"
    )
    table = PlainTable("system", "images", "R@1", "R@10", "95 % of R@1", numbers=("images", "R@1", "R@10"))
    for system, rows in found["measured"].items():
        for row in rows:
            _add(table, system.replace("_", " "), row)
    for row in found["hard_synthetic"]:
        _add(table, "first stage, with synthetic", row)
    show(table)
    say("Fitted on a tenth of the distractors, and what became of it at the largest gallery:")
    table = PlainTable("model", "R@10 predicted", "measured", "95 % of the error, in points")
    for row in found["held_out"]:
        table.add_row(
            row["model"],
            f"{row['R@10']:.1f}",
            f"{row['R@10_measured']:.1f}",
            told_interval(row["R@10_off_ci"]),
        )
    show(table)
    say("Extrapolated; docs/laion.md says how far this can be trusted:")
    table = PlainTable(
        "system", "model", "images", "R@1", "R@10", "95 % of R@10", numbers=("images", "R@1", "R@10")
    )
    for system, models in found["extrapolated"].items():
        for model, rows in models.items():
            last = rows[-1]
            recalls = (f"{last[name]:.2g}" if name in last else "" for name in ("R@1", "R@10"))
            name = system.replace("_", " ")
            table.add_row(
                name, model, f"{last['gallery']:.3g}", *recalls, told_interval(last["R@10_ci"], ".2g")
            )
    show(table)
    for model, rows in found["candidates_needed"].items():
        if rows:
            say(
                f"To keep a ceiling of {rows[-1]['ceiling']:.1f} %, {model} reads {rows[-1]['K']:.3g} "
                f"of {rows[-1]['gallery']:.3g} images."
            )
    for row in found["cost"]["per_query"]:
        spent = ", ".join(f"{human_seconds(took)} from {kept}" for kept, took in row["seconds"].items())
        say(f"Reading {row['candidates']:.3g} candidates on {found['cost']['accelerator']}: {spent}")


def _add(table: PlainTable, system: str, row: Mapping[str, Any]) -> None:
    recalls = (f"{row[name]:.1f}" for name in ("R@1", "R@10"))
    table.add_row(system, str(row["gallery"]), *recalls, told_interval(row["R@1_ci"]))
