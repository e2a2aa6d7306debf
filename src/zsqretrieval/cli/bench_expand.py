"""``zsq bench expand``: what searching questions as well brings, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from zsqretrieval.cli.console import PlainTable, emit_json, say, show, stage_bars
from zsqretrieval.cli.opening import new_encoder, new_generator
from zsqretrieval.cli.questions import Styles
from zsqretrieval.cli.reading import (
    AsJson,
    BenchData,
    BenchPreset,
    EncoderWeights,
    GeneratorWeights,
    told_interval,
)
from zsqretrieval.errors import InvalidInputError

__all__ = ["bench_expand_command"]


def bench_expand_command(
    data: BenchData,
    preset: BenchPreset = "mini",
    split: Annotated[str, typer.Option(help="Split to measure.")] = "test",
    images: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many images.", show_default="all")
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="Questions of an image, at most.")] = 3,
    style: Annotated[Styles, typer.Option(help="What is written of each image.")] = Styles.QUESTIONS,
    top_k: Annotated[
        int, typer.Option(min=0, help="Keep questions that find their image among so many; 0 keeps all.")
    ] = 10,
    candidates: Annotated[int, typer.Option(min=1, help="Images that either index finds.")] = 100,
    weight: Annotated[float | None, typer.Option(min=0, help="Of the weighted sum.")] = None,
    shift: Annotated[float | None, typer.Option(help="Of the maximum.")] = None,
    constant: Annotated[float | None, typer.Option(min=0, help="Of the reciprocal ranks.")] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Choose these three on this split, not test.")] = False,
    encoder_weights: EncoderWeights = None,
    generator_weights: GeneratorWeights = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder to keep the album in; the same command then goes on there.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images shown to the generator together.")] = 16,
    as_json: AsJson = False,
) -> None:
    """Measure how often captions, and questions made of them, find their image with and without expansion."""
    from zsqretrieval.evaluation.expand_bench import EXPANSIONS, bench_expand
    from zsqretrieval.search.fusion import Maximum, ReciprocalRank, WeightedSum

    given = {
        "weighted_sum": None if weight is None else WeightedSum(weight),
        "maximum": None if shift is None else Maximum(shift),
        "reciprocal_rank": None if constant is None else ReciprocalRank(constant),
    }
    if tune and any(given.values()):
        raise InvalidInputError("--tune chooses the parameters that the other options give; use one of them")
    encoder = new_encoder(preset, weights=encoder_weights)
    generator = new_generator(preset, weights=generator_weights)
    with stage_bars(lines=True) as progress:
        found = bench_expand(
            encoder,
            generator,
            data,
            split=split,
            images=images,
            questions=questions,
            style=style.value,
            top_k=top_k or None,
            candidates=candidates,
            expansions={name: given[name] or default for name, default in EXPANSIONS.items()},
            tune=tune,
            batch_size=batch_size,
            work=work,
            progress=progress,
        ).to_json()
    if as_json:
        emit_json(found | {"setting": {"preset": preset, **found["setting"]}})
    else:
        _tell(found)


def _tell(found: Mapping[str, Any]) -> None:
    setting, questions = found["setting"], found["questions"]
    say(
        f"{setting['data']} {setting['split']}: {setting['images']} images; {questions['generated']} "
        f"questions were made, {questions['kept']} are kept, of {questions['images']} images"
    )
    names = ("R@1", "R@5", "R@10")
    for form, facts in found["forms"].items():
        table = PlainTable(
            f"{form} ({facts['queries']})", *names, "R@1 over none", "R@10 over none", numbers=names
        )
        for name in ("none", *setting["expansions"]):
            gain = facts["differences"].get(f"{name} - none", {})
            gains = (_gain(gain, k) if gain else "" for k in ("R@1", "R@10"))
            table.add_row(name.replace("_", " "), *(f"{facts[name][k]:.1f}" for k in names), *gains)
        show(table)
    said = ", ".join(setting["expansions"].values())
    say(f"Joined by {said}, {setting['expansions_from']}.")


def _gain(gain: Mapping[str, Any], k: str) -> str:
    return f"{gain[k]:+.1f} ({told_interval(gain[f'{k}_ci'], '+.1f')})"
