"""``zsq evaluate``: a whole comparison on a data set, with its report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from zsqretrieval.cli.console import PlainTable, emit_json, notice, say, show, stage_bars
from zsqretrieval.cli.opening import new_encoder, new_generator
from zsqretrieval.cli.reading import (
    AsJson,
    BenchPreset,
    EncoderWeights,
    GeneratorWeights,
    command_line,
    told_interval,
)
from zsqretrieval.errors import InvalidInputError

__all__ = ["DATASET", "evaluate"]

DATASET = (
    "kind:path, or a folder that tells its kind: shards:FOLDER, flickr8k:FOLDER, "
    "flickr:CAPTIONS,IMAGES,[LIST], karpathy:FILE.json,IMAGES, coco:FILE.json,IMAGES, laion:FOLDER, "
    "inquire:FOLDER,IMAGES, retvqa:FILE.json,IMAGES, chatir:FILE.json,IMAGES,[SEARCH_SPACE.json], "
    "folder:FOLDER."
)
"""Help of the argument that names a data set."""


def evaluate(
    ctx: typer.Context,
    dataset: Annotated[str, typer.Argument(help=DATASET)],
    report: Annotated[Path, typer.Option(help="Folder of the report; the same command goes on there.")],
    systems: Annotated[
        str,
        typer.Option(
            help="clip, likelihood, yesno, fused, expand; with a query bank: normalized, normalized_fused; "
            "what takes a part away: no_image, shuffled, wording, mean, prior, pixels; or all."
        ),
    ] = "clip,likelihood,yesno,fused,expand",
    preset: BenchPreset = "mini",
    split: Annotated[
        str | None, typer.Option(help="Split to measure.", show_default="test, where there are splits")
    ] = None,
    forms: Annotated[
        str | None,
        typer.Option(
            help="Forms of the texts, such as caption,question/which,question/is-there,question/what.",
            show_default="those there are, and question/which of captions",
        ),
    ] = None,
    directions: Annotated[str, typer.Option(help="Who looks for whom.")] = "text-to-image,image-to-text",
    queries: Annotated[
        int | None,
        typer.Option(min=1, help="Queries of each form and direction, taken evenly.", show_default="all"),
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, help="Candidates read for each query.")] = 50,
    curve_candidates: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Candidates read for the curve of texts that look for images.",
            show_default="--candidates",
        ),
    ] = None,
    weight: Annotated[
        float | None,
        typer.Option(min=0, help="Weight of the generator in the fusion.", show_default="the preset's"),
    ] = None,
    alpha: Annotated[
        float, typer.Option(min=0, max=1, help="How much of a text's prior is taken away.")
    ] = 0.8,
    tune_on: Annotated[
        str | None, typer.Option(help="Split of the same data set to choose weight and alpha on.")
    ] = None,
    tune_queries: Annotated[
        int, typer.Option(min=1, help="Queries of each form and direction to tune on.")
    ] = 300,
    ablation_queries: Annotated[
        int, typer.Option(min=1, help="Queries of each form and direction that what lacks a part is asked.")
    ] = 300,
    questions: Annotated[int, typer.Option(min=1, help="Questions of an image for expand, at most.")] = 3,
    bank: Annotated[int, typer.Option(min=1, help="Texts of an image for the query bank, at most.")] = 4,
    encoder_weights: EncoderWeights = None,
    generator_weights: GeneratorWeights = None,
    human: Annotated[
        bool, typer.Option(help="Compare scores with human ratings, where they lie beside the data set.")
    ] = True,
    cost: Annotated[bool, typer.Option(help="Measure times and arithmetic.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs the generator computes together.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Measure what finds the images of a data set, and write a report with run files and figures."""
    from zsqretrieval.evaluation.opening import open_dataset, open_judgments
    from zsqretrieval.evaluation.plan import Plan, choose_directions, choose_systems, with_weight
    from zsqretrieval.evaluation.report import WORK, write_report
    from zsqretrieval.evaluation.study import run_study
    from zsqretrieval.presets import preset_fusion, preset_index

    if tune_on is not None and weight is not None:
        raise InvalidInputError("--tune-on chooses the weight and --weight gives it; use one of them")
    if report.exists() and not report.is_dir():
        raise InvalidInputError(f"{report} is a file; a report is a folder")
    fusion = preset_fusion(preset)
    plan = Plan(
        systems=choose_systems(systems.split(",")),
        directions=choose_directions(directions.split(",")),
        queries=queries,
        candidates=candidates,
        curve_candidates=curve_candidates,
        fusion=fusion if weight is None else with_weight(fusion, weight),
        fusion_from=f"of the preset {preset}" if weight is None else "given",
        alpha=alpha,
        questions=questions,
        bank=bank,
        ablation_queries=ablation_queries,
        tuning_queries=tune_queries,
        batch_size=batch_size,
        seed=seed,
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
            work=report / WORK,
            forms=None if forms is None else [form.strip().replace("-", " ") for form in forms.split(",")],
            tune_on=tuning,
            judgments=open_judgments(dataset, split, data) if human else (),
            index=preset_index(preset, encoder) if cost else None,
            cost=cost,
            progress=progress,
        )
    facts = write_report(study, report, command=command_line(ctx))
    if as_json:
        emit_json(facts)
    else:
        _tell(facts)
        notice(f"report: {(report / 'report.html').absolute()}")


def _tell(facts: Mapping[str, Any]) -> None:
    for sentence in facts["answers"]:
        say(sentence)
    numbers = ("R@1", "95 %", "R@10", "MRR", "p (Holm)", "ms")
    table = PlainTable("direction", "form", "system", *numbers, numbers=numbers)
    spent = {(one["what"], one["depth"]): one["seconds"] for one in (facts["cost"] or {}).get("systems", ())}
    deepest = min(facts["plan"]["candidates"], facts["dataset"]["images"])
    for part in facts["parts"]:
        by_text = part["direction"] == "text to image"
        rows: dict[str, dict[str, Any]] = {}
        for one in part["results"]:
            rows.setdefault(one["system"], {})[one["measure"]] = one
        for system, found in rows.items():
            first, against = found["R@1"], found["R@1"]["against"]
            sure = told_interval(100 * end for end in first["interval"])
            seconds = spent.get((system, deepest), spent.get((system, 0))) if by_text else None
            table.add_row(
                part["direction"],
                part["form"],
                system,
                *(sure if name == "95 %" else f"{100 * found[name]['mean']:.1f}" for name in numbers[:4]),
                "" if against is None else f"{against['p_holm']:.2g}",
                "" if seconds is None else f"{1000 * seconds:.3g}",
            )  # fmt: skip
    show(table)
