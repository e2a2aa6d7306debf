"""``zsq bench dialog``: what asking back brings, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
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
    Reread,
    Scale,
    Temper,
    told_interval,
)

__all__ = ["Users", "bench_dialog_command"]

_PREFIXES = 1 << 30  # bytes; every image is read again with every question


class Users(str, Enum):
    """Who means the image and answers."""

    GENERATOR = "generator"
    CAPTIONS = "captions"


def bench_dialog_command(
    data: BenchData,
    preset: BenchPreset = "mini",
    split: Annotated[str, typer.Option(help="Split to measure.")] = "test",
    dialogs: Annotated[int, typer.Option(min=1, help="How many dialogs.")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="Questions in each.")] = 5,
    candidates: Annotated[int, typer.Option(min=1, help="Images that a belief begins with.")] = 100,
    user: Annotated[
        Users, typer.Option(help="Who answers: the generator itself, or what people wrote of the image.")
    ] = Users.CAPTIONS,
    scale: Scale = None,
    temper: Temper = None,
    reread: Reread = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of dialogs and of what they draw.")] = 0,
    encoder_weights: EncoderWeights = None,
    generator_weights: GeneratorWeights = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder to keep answers in; the same command then goes on there.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images the generator reads together.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Measure how often the image that is meant is among the first ten, question by question."""
    from zsqretrieval.dialog.dialog import SCALE, TEMPER
    from zsqretrieval.evaluation.dialog_bench import bench_dialog

    encoder = new_encoder(preset, weights=encoder_weights)
    generator = new_generator(preset, weights=generator_weights, prefix_cache_bytes=_PREFIXES)
    with stage_bars(lines=True) as progress:
        found = bench_dialog(
            encoder,
            generator,
            data,
            split=split,
            dialogs=dialogs,
            rounds=rounds,
            candidates=candidates,
            user=user.value,
            scale=SCALE if scale is None else scale,
            temper=TEMPER if temper is None else temper,
            reread=reread,
            seed=seed,
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
        f"{setting['data']} {setting['split']}: {setting['dialogs']} dialogs about {setting['images']} "
        f"images, answered by the {setting['user']}; Hits@10 in percent after so many questions"
    )
    rounds = [str(n) for n in range(setting["rounds"] + 1)]
    last = f"95 % after {rounds[-1]}"
    table = PlainTable("", *rounds, last, "BRI", "95 %", numbers=(*rounds, "BRI"))
    for name, hits in found["policies"].items():
        table.add_row(
            name.replace("_", " "),
            *(f"{one:.1f}" for one in hits),
            told_interval(found["policies_ci"][name][-1]),
            f"{found['bri'][name]:.3f}",
            told_interval(found["bri_ci"][name], ".3f"),
        )
    for name, gain in found["differences"].items():
        table.add_row(
            name.replace("_", " "),
            *(f"{one:+.1f}" for one in gain["hits@10"]),
            told_interval(gain["hits@10_ci"][-1]),
            f"{gain['bri']:+.3f}",
            told_interval(gain["bri_ci"], ".3f"),
        )
    show(table)
    if "calibration" in found:
        fitted = ", ".join(f"{name} {value:g}" for name, value in found["calibration"].items())
        say(f"Likeliest on this split: {fitted}.")
