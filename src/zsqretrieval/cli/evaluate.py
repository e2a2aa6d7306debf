"""``zsq evaluate``: measure systems on a data set and write a report, or the verdict page."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from zsqretrieval.cli.console import emit_json, notice, progress_bars, say, show
from zsqretrieval.cli.options import (
    AsJson,
    Device,
    EncoderWeights,
    GeneratorWeights,
    given_path,
    json_object,
    preset_with,
)
from zsqretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    from zsqretrieval.evaluation.results import Results
    from zsqretrieval.evaluation.scores import Bench
    from zsqretrieval.search.fusion import Fusion

_DATASET = (
    "kind:path, or a folder whose kind is recognised: shards:FOLDER, flickr8k:FOLDER, "
    "flickr:CAPTIONS,IMAGES,[LIST], karpathy:FILE.json,IMAGES, coco:FILE.json,IMAGES, laion:FOLDER, "
    "inquire:FOLDER,IMAGES, retvqa:FILE.json,IMAGES, chatir:FILE.json,IMAGES,[SEARCH_SPACE.json], "
    "folder:FOLDER."
)
_SYSTEMS = (
    "likelihood, yes_no, fused, expanded, fused+expanded; with a query bank: normalized, normalized+fused; "
    "ablations: no_image, shuffled, wording, mean, prior, pixels; first_stage alone; or all."
)
_PREFIXES = 1 << 30  # bytes of the prefix cache: dialogs score every image with every question


Expansions: TypeAlias = Literal["weighted-sum", "maximum", "reciprocal-rank"]


def evaluate(
    ctx: typer.Context,
    dataset: Annotated[str, typer.Argument(help=_DATASET)],
    report: Annotated[
        Path,
        typer.Option(
            metavar="PATH", parser=given_path, help="Folder of the report; for the verdict, the page, .md."
        ),
    ],
    systems: Annotated[
        str | None,
        typer.Option(help=_SYSTEMS, show_default="likelihood,yes_no,fused,expanded, if there is a generator"),
    ] = None,
    template: Annotated[Literal["report", "verdict"], typer.Option(help="Which pages to write.")] = "report",
    work: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            parser=given_path,
            help="Folder of the cache, from which the same command continues.",
            show_default="REPORT/work",
        ),
    ] = None,
    preset: Annotated[str, typer.Option(help="Preset of encoder, index and generator.")] = "mini",
    encoder: Annotated[str | None, typer.Option(help="Encoder plugin, not the preset's.")] = None,
    encoder_config: Annotated[str | None, typer.Option(help="Its settings, a JSON object.")] = None,
    index: Annotated[str | None, typer.Option(help="Index plugin whose size is measured.")] = None,
    generator: Annotated[
        str | None, typer.Option(help="Generator plugin, not the preset's; none for the first stage alone.")
    ] = None,
    generator_config: Annotated[str | None, typer.Option(help="Its settings, a JSON object.")] = None,
    encoder_weights: EncoderWeights = None,
    generator_weights: GeneratorWeights = None,
    device: Device = None,
    split: Annotated[
        str | None, typer.Option(help="Split to measure.", show_default="test, if there are splits")
    ] = None,
    forms: Annotated[
        str | None,
        typer.Option(
            help="Forms of the texts, such as caption,question/which,question/is-there,question/what.",
            show_default="those of the data set, and question/which from captions",
        ),
    ] = None,
    directions: Annotated[str, typer.Option(help="Retrieval directions.")] = "text-to-image,image-to-text",
    queries: Annotated[
        int | None,
        typer.Option(
            min=1, help="Queries of each form and direction.", show_default="1000; 100 below 200 images"
        ),
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option(
            min=1, help="Candidates re-ranked for each query.", show_default="50, at most half of few images"
        ),
    ] = None,
    curve_candidates: Annotated[
        int | None,
        typer.Option(
            min=1, help="Candidates scored for the text-to-image curve by depth.", show_default="--candidates"
        ),
    ] = None,
    weight: Annotated[
        float | None,
        typer.Option(min=0, help="Weight of the generator in the fusion.", show_default="the preset's"),
    ] = None,
    expansion: Annotated[
        Expansions | None,
        typer.Option(help="How images and questions are combined.", show_default="the preset's"),
    ] = None,
    alpha: Annotated[float, typer.Option(min=0, max=1, help="Share of a text's prior to subtract.")] = 0.8,
    tune_on: Annotated[
        str | None, typer.Option(help="Other split of the data set to tune fusions, expansion and alpha on.")
    ] = None,
    tune_queries: Annotated[int, typer.Option(min=1, help="Queries of each kind to tune on.")] = 300,
    ablation_queries: Annotated[int, typer.Option(min=1, help="Queries of each kind for ablations.")] = 300,
    questions: Annotated[int, typer.Option(min=1, help="Questions of an image for expanded, at most.")] = 3,
    style: Annotated[str, typer.Option(help="Style of these questions.")] = "questions",
    bank: Annotated[int, typer.Option(min=1, help="Texts of an image for the query bank, at most.")] = 4,
    bank_scale: Annotated[
        float | None, typer.Option(min=0, help="Its inverse temperature.", show_default="the preset's")
    ] = None,
    bank_strength: Annotated[
        float | None, typer.Option(min=0, help="Share of hubness to subtract.", show_default="the preset's")
    ] = None,
    dialogs: Annotated[int, typer.Option(min=0, help="Clarifying dialogs to simulate.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Questions of a dialog.")] = 5,
    user: Annotated[
        Literal["generator", "captions"],
        typer.Option(help="Who answers: the generator itself, or people's captions."),
    ] = "captions",
    gallery_sizes: Annotated[
        str | None,
        typer.Option(
            help="Measure recall by gallery size, with the images of the other splits: sizes such as "
            "100,1000, or auto.",
            show_default="not measured",
        ),
    ] = None,
    human: Annotated[bool, typer.Option(help="Compare with human ratings next to the data set.")] = True,
    cost: Annotated[bool, typer.Option(help="Measure times and arithmetic.")] = True,
    published: Annotated[Path | None, typer.Option(help="JSON of published numbers for the verdict.")] = None,
    alternatives: Annotated[
        Path | None, typer.Option(help="JSON of python -m benchmarks.alternatives for the verdict.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every draw.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs the generator computes together.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Measure retrieval systems on a data set, and write a report with run files and figures."""
    from zsqretrieval._util.cache import Cache
    from zsqretrieval.evaluation.datasets import open_dataset, open_distractors, open_judgments
    from zsqretrieval.evaluation.dialogs import measure_dialogs
    from zsqretrieval.evaluation.experiment import evaluate as run
    from zsqretrieval.evaluation.report import read_alternatives, read_published, write_report, write_verdict
    from zsqretrieval.evaluation.scores import Bench
    from zsqretrieval.evaluation.settings import Settings, choose_directions, with_forms, with_weight
    from zsqretrieval.evaluation.systems import choose_systems
    from zsqretrieval.plugins import new_index

    if tune_on is not None and weight is not None:
        raise InvalidInputError("--tune-on chooses the weight and --weight gives it; use one of them")
    if template == "verdict" and (report.suffix != ".md" or work is None):
        raise InvalidInputError("the verdict is a Markdown page: give --report a name in .md, and --work")
    if template == "report" and report.exists() and not report.is_dir():
        raise InvalidInputError(f"{report} is a file; a report is a folder")
    if published is not None:
        read_published(published)
    others = None if alternatives is None else read_alternatives(alternatives)
    own = preset_with(preset, encoder_weights=encoder_weights, generator_weights=generator_weights)
    chosen = own.variant(
        encoder=encoder,
        index=index,
        generator={None: "auto", "none": None}.get(generator, generator),
        encoder_config=json_object("--encoder-config", encoder_config),
        generator_config=json_object("--generator-config", generator_config),
    )
    calibration = chosen.calibration
    names = systems if systems is not None else "likelihood,yes_no,fused,expanded" if chosen.generator else ""
    settings = Settings(
        systems=choose_systems(names.split(",")),
        directions=choose_directions(directions.split(",")),
        queries=queries,
        candidates=50 if candidates is None else candidates,
        curve_candidates=curve_candidates,
        fusion=calibration.fusion if weight is None else with_weight(calibration.fusion, weight),
        expansion=calibration.expansion if expansion is None else _expansion(expansion),
        alpha=alpha,
        origin=f"of the preset {preset}" if weight is None else "given",
        questions=questions,
        style=style,
        bank=bank,
        bank_scale=calibration.bank_scale if bank_scale is None else bank_scale,
        bank_strength=calibration.bank_strength if bank_strength is None else bank_strength,
        ablation_queries=ablation_queries,
        tuning_queries=tune_queries,
        batch_size=batch_size,
        seed=seed,
    )
    sizes = _sizes(gallery_sizes)
    data = with_forms(
        open_dataset(dataset, split),
        None if forms is None else [form.strip().replace("-", " ") for form in forms.split(",")],
    )
    tuning = None if tune_on is None else open_dataset(dataset, tune_on)
    settings = settings.fitting(data, candidates=candidates is None)
    judgments = open_judgments(dataset, split, data) if human else ()
    sample = "all" if settings.queries is None else f"a fixed sample of {settings.queries}"
    notice(f"{data.name}: {sample} queries of each form and direction, {settings.candidates} candidates")
    folder = work if work is not None else report / "work"
    if dialogs and chosen.generator in ("mini", "kosmos"):
        config = {"prefix_cache_bytes": _PREFIXES, **chosen.generator_config}
        chosen = replace(chosen, generator_config=config)
    made = chosen.make_encoder()
    lazy = chosen.make_generator()
    asked = None if lazy is None else lazy.get()
    empty = new_index(chosen.index, made) if cost else None
    with progress_bars(whole=True) as progress:
        results = run(
            data, made, asked, settings,
            work=folder, forms=data.forms, tune_on=tuning, judgments=judgments,
            index=empty, cost=cost, progress=progress, notice=notice,
        )  # fmt: skip
        with Cache(folder / "cache.sqlite") as cache:

            def step(name: str, done: float, total: int) -> None:
                progress(name, round(done), total)

            if sizes is not None:
                gallery = (*data.gallery, *open_distractors(dataset, split))
                bench = Bench(made, asked, replace(data, gallery=gallery), settings, cache, step)
                results = _with_scaling(results, bench, sizes)
            if dialogs:
                rows, facts = measure_dialogs(
                    Bench(made, asked, data, settings, cache, step), data.forms[0],
                    dialogs=dialogs, rounds=rounds, user=user, scale=calibration.dialog_scale,
                    temper=calibration.dialog_temper, reread=calibration.dialog_reread,
                    calibrate=not (split or "test").startswith("test"), seed=seed,
                )  # fmt: skip
                results = results.plus(rows, dialogs=facts)
    results.facts["preset"] = preset
    if others is not None:
        results.facts["alternatives"] = others
    command = command_line(ctx)
    if template == "verdict":
        write_verdict(results, report, command=command, published=published)
        notice(f"verdict: {report.absolute()}")
    else:
        results = replace(results, facts=write_report(results, report, command=command))
        notice(f"report: {(report / 'report.html').absolute()}")
    if as_json:
        emit_json(json.loads(results.to_json()))
    else:
        _show(results)


# --- parts ------------------------------------------------------------------------------------------------


def _expansion(kind: Expansions) -> Fusion:
    from zsqretrieval.search.fusion import Maximum, ReciprocalRank, WeightedSum

    if kind == "weighted-sum":
        return WeightedSum(0.05)
    return Maximum() if kind == "maximum" else ReciprocalRank()


def _sizes(text: str | None) -> list[int] | None:
    """Parse sizes; an empty list for ``auto``."""
    if text is None or text == "auto":
        return None if text is None else []
    try:
        return [int(size) for size in text.split(",")]
    except ValueError:
        raise InvalidInputError(f"--gallery-sizes must be auto or integers, not {text!r}") from None


def _with_scaling(results: Results, bench: Bench, sizes: list[int]) -> Results:
    """Add recall by gallery size; the gallery of the bench includes the distractors."""
    from zsqretrieval.evaluation.scaling import measure_scaling
    from zsqretrieval.evaluation.systems import LIKELIHOOD

    settings = bench.settings
    depth = settings.candidates
    rows, facts = measure_scaling(
        bench, bench.dataset.forms[0],
        queries=settings.queries, sizes=sizes,
        scoring=LIKELIHOOD if settings.systems else None, fusion=settings.fusion,
        candidates=max(100, depth), depths=sorted({min(10, depth), depth}), seed=settings.seed,
    )  # fmt: skip
    return results.plus(rows, scaling=facts)


# --- output -----------------------------------------------------------------------------------------------


def command_line(ctx: typer.Context) -> str:
    """The command as it was given, with the defaults written out."""
    parameters = {parameter.name or "": parameter for parameter in ctx.command.params}
    words = ["zsq", *ctx.command_path.split()[1:]]
    words += [str(ctx.params[name]) for name, one in parameters.items() if one.param_type_name == "argument"]
    for name, one in parameters.items():
        value = ctx.params.get(name)
        if one.param_type_name != "option" or value is None or name == "as_json":
            continue
        if isinstance(value, bool):
            words.append((one.opts if value else one.secondary_opts)[0])
        else:
            words += [one.opts[0], str(value)]
    return shlex.join(words)


def _show(results: Results) -> None:
    """Print the recalls of all systems."""
    from zsqretrieval.evaluation.report import answer

    for sentence in answer(results):
        say(sentence)
    numbers = ("R@1", "95 %", "R@10", "MRR", "p (Holm)", "ms")
    lines = []
    times = results.select("cost", form="system", measure="time")
    for (direction, form, system), rows in results.select("systems").groupby(
        ["direction", "form", "system"], sort=False
    ):
        found = {one["measure"]: one for one in rows.to_dict("records")}
        first = found["R@1"]
        spent = times[times["system"] == system]["value"] if direction == "text to image" else ()
        lines.append([
            str(direction), str(form), str(system), f"{100 * first['value']:.1f}",
            f"{100 * first['low']:.1f} to {100 * first['high']:.1f}",
            *(f"{100 * found[name]['value']:.1f}" if name in found else "" for name in ("R@10", "MRR")),
            f"{first['p']:.2g}" if first["p"] == first["p"] else "",
            f"{max(spent):.3g}" if len(spent) else "",
        ])  # fmt: skip
    show(("direction", "form", "system", *numbers), lines, numbers=numbers)
