"""``zsq verdict``: the whole study of a data set, and the page that answers the question of this library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zsqretrieval.cli.console import count_bar, notice, stage_bars
from zsqretrieval.cli.evaluate import DATASET
from zsqretrieval.cli.opening import new_encoder, new_generator
from zsqretrieval.cli.reading import BenchPreset, EncoderWeights, GeneratorWeights, command_line
from zsqretrieval.errors import InvalidInputError

__all__ = ["verdict_command"]


def verdict_command(
    ctx: typer.Context,
    dataset: Annotated[str, typer.Argument(help=DATASET)],
    out: Annotated[Path, typer.Option(help="The page, .md; a folder of its name is made beside it.")],
    work: Annotated[Path, typer.Option(help="Folder of vectors and scores; the same command goes on there.")],
    preset: BenchPreset = "mini",
    split: Annotated[
        str | None, typer.Option(help="Split to measure.", show_default="test, where there are splits")
    ] = None,
    tune_on: Annotated[
        str | None, typer.Option(help="Split of the same data set to choose all parameters on.")
    ] = None,
    queries: Annotated[int, typer.Option(min=1, help="Queries of each form and direction.")] = 1000,
    candidates: Annotated[int, typer.Option(min=1, help="Candidates read for each query.")] = 50,
    curve_candidates: Annotated[
        int, typer.Option(min=1, help="Candidates read for the curve of texts that look for images.")
    ] = 100,
    tune_queries: Annotated[int, typer.Option(min=1, help="Queries to tune on, of each kind.")] = 300,
    ablation_queries: Annotated[int, typer.Option(min=1, help="Queries of what lacks a part.")] = 200,
    encoder_weights: EncoderWeights = None,
    generator_weights: GeneratorWeights = None,
    gallery: Annotated[bool, typer.Option(help="Measure how recall falls as the gallery grows.")] = True,
    alternatives: Annotated[bool, typer.Option(help="Time other software beside this.")] = True,
) -> None:
    """Measure everything, and write the page that says: does it find more, how sure, at what cost."""
    from zsqretrieval.evaluation.alternatives import bench_alternatives
    from zsqretrieval.evaluation.gallery_bench import bench_gallery
    from zsqretrieval.evaluation.opening import open_dataset, open_distractors, open_judgments
    from zsqretrieval.evaluation.plan import Plan, choose_systems
    from zsqretrieval.evaluation.scoring_bench import random_kosmos
    from zsqretrieval.evaluation.study import run_study
    from zsqretrieval.evaluation.verdict import VERDICT_MEASURES, write_verdict
    from zsqretrieval.presets import preset_fusion, preset_index

    if out.suffix != ".md":
        raise InvalidInputError(f"{out}: the page is Markdown; give it a name that ends in .md")
    plan = Plan(
        systems=choose_systems(["all"]),
        measures=VERDICT_MEASURES,
        queries=queries,
        candidates=candidates,
        curve_candidates=curve_candidates,
        fusion=preset_fusion(preset),
        fusion_from=f"of the preset {preset}",
        ablation_queries=ablation_queries,
        tuning_queries=tune_queries,
    )
    data = open_dataset(dataset, split)
    tuning = None if tune_on is None else open_dataset(dataset, tune_on)
    encoder = new_encoder(preset, weights=encoder_weights)
    generator = new_generator(preset, weights=generator_weights)
    with stage_bars(lines=True) as progress:
        study = run_study(
            encoder,
            generator,
            data,
            plan,
            work=work,
            tune_on=tuning,
            judgments=open_judgments(dataset, split, data),
            index=preset_index(preset, encoder),
            progress=progress,
        )
        grown = None
        if gallery:
            grown = bench_gallery(
                encoder,
                generator,
                study.dataset.of_form(study.dataset.forms[0]),
                distractors=open_distractors(dataset, split),
                queries=queries,
                fusion=study.choice.fusion["text to image"],
                work=work,
                progress=progress,
            )
    raced = None
    if alternatives:
        with count_bar("comparing software", None) as counted:
            raced = bench_alternatives(random_kosmos(2, 2, dtype="float32"), rounds=6, progress=counted)
    write_verdict(study, out, command=command_line(ctx), gallery=grown, alternatives=raced)
    notice(f"verdict: {out.absolute()}")
