"""``zsq bench rerank``: what re-ranking brings, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from zsqretrieval.cli.console import PlainTable, emit_json, say, show, stage_bars
from zsqretrieval.cli.opening import new_encoder, new_generator
from zsqretrieval.cli.reading import (
    AsJson,
    BenchData,
    BenchPreset,
    EncoderWeights,
    GeneratorWeights,
    human_seconds,
    told_interval,
)
from zsqretrieval.errors import InvalidInputError

__all__ = ["bench_rerank_command"]


def bench_rerank_command(
    data: BenchData,
    preset: BenchPreset = "mini",
    split: Annotated[str, typer.Option(help="Split to measure.")] = "test",
    queries: Annotated[
        int | None, typer.Option(min=1, help="Let only so many captions ask.", show_default="all")
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, help="Images read for each caption.")] = 50,
    weight: Annotated[
        float | None,
        typer.Option(min=0, help="Weight of the generator in the fusion.", show_default="the preset's"),
    ] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Choose the weight on this split, not test.")] = False,
    bank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Let the generator write so many texts of each image, and take away from the first stage "
            "what an image gets from any of them.",
            show_default="none",
        ),
    ] = None,
    bank_scale: Annotated[
        float | None, typer.Option(min=0, help="Its inverse temperature.", show_default="the library's")
    ] = None,
    bank_strength: Annotated[
        float | None, typer.Option(min=0, help="How much is taken away.", show_default="the library's")
    ] = None,
    yes_no: Annotated[bool, typer.Option(help="Score by yes and no as well; takes long.")] = True,
    encoder_weights: EncoderWeights = None,
    generator_weights: GeneratorWeights = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder to keep scores in; the same command then goes on there.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs the generator computes together.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Measure how often the image of a caption is found before and after the generator has read the best."""
    from zsqretrieval.evaluation.plan import with_weight
    from zsqretrieval.evaluation.rerank_bench import bench_rerank
    from zsqretrieval.presets import preset_fusion
    from zsqretrieval.search.query_bank import SCALE, STRENGTH
    from zsqretrieval.search.scoring import Likelihood, YesNo

    if bank is None and (bank_scale is not None or bank_strength is not None):
        raise InvalidInputError("--bank-scale and --bank-strength are of a bank; give --bank as well")
    if tune and weight is not None:
        raise InvalidInputError("--tune chooses the weight and --weight gives it; use one of them")
    fusion = preset_fusion(preset)
    encoder = new_encoder(preset, weights=encoder_weights)
    generator = new_generator(preset, weights=generator_weights)
    with stage_bars(lines=True) as progress:
        found = bench_rerank(
            encoder,
            generator,
            data,
            split=split,
            queries=queries,
            candidates=candidates,
            scorings=(Likelihood(), YesNo()) if yes_no else (Likelihood(),),
            fusion=fusion if weight is None else with_weight(fusion, weight),
            fusion_from=f"of the preset {preset}" if weight is None else "given",
            tune=tune,
            bank=bank,
            bank_scale=SCALE if bank_scale is None else bank_scale,
            bank_strength=STRENGTH if bank_strength is None else bank_strength,
            batch_size=batch_size,
            work=work,
            progress=progress,
        ).to_json()
    if as_json:
        emit_json(found | {"setting": {"preset": preset, **found["setting"]}})
    else:
        _tell(found)


def _tell(found: Mapping[str, Any]) -> None:
    setting = found["setting"]
    say(
        f"{setting['data']} {setting['split']}: {setting['queries']} captions look for their images among "
        f"{setting['images']}; the best {setting['candidates']} are read, the right one is among them in "
        f"{found['first_stage']['ceiling']:.1f} %"
    )
    names = ("R@1", "R@5", "R@10", "a query")
    table = PlainTable("", *names, "95 % of R@1", "R@1 over first stage", numbers=names)
    for stage in ("first_stage", "likelihood", "yes_no", "fused", "normalized", "normalized_fused"):
        if stage not in found:
            continue
        one, gain = found[stage], found["ratios"].get(f"{stage} / first_stage", {})
        ratio = f"{gain['R@1']:.2f}x, {told_interval(gain['R@1_ci'], '.2f')}" if gain.get("R@1_ci") else ""
        recalls = (f"{one[f'R@{k}']:.1f}" for k in (1, 5, 10))
        spent = human_seconds(one["seconds_per_query"])
        table.add_row(stage.replace("_", " "), *recalls, spent, told_interval(one["R@1_ci"]), ratio)
    show(table)
    if "sweep" in found:
        names = ("weight", "R@1", "R@5", "R@10")
        table = PlainTable("", *names, numbers=names)
        for row in found["sweep"]:
            recalls = (f"{row[f'R@{k}']:.1f}" for k in (1, 5, 10))
            table.add_row(row["stage"].replace("_", " "), f"{row['weight']:g}", *recalls)
        show(table)
    if bank := setting["bank"]:
        say(
            f"Normalized by {bank['questions']} of {bank['written']} texts about these images, scale "
            f"{bank['scale']:g}, strength {bank['strength']:g}; fused by {bank['fusion']}."
        )
    how = f"by {setting['fusion']}" if setting["weight"] is None else f"with weight {setting['weight']:g}"
    say(f"Fused {how}, {setting['weight_from']}.")
