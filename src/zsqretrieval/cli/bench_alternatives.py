"""``zsq bench alternatives``: this library beside what one would take instead."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from zsqretrieval.cli.console import PlainTable, count_bar, emit_json, say, show
from zsqretrieval.cli.reading import AsJson, human_seconds

__all__ = ["bench_alternatives_command"]


def bench_alternatives_command(
    candidates: Annotated[int, typer.Option("--candidates", "-k", min=1, help="Images, and captions.")] = 24,
    question_tokens: Annotated[int, typer.Option(min=1, help="Length of the question.")] = 30,
    vision_layers: Annotated[int, typer.Option(min=1, help="Of Kosmos' vision tower; published: 24.")] = 2,
    text_layers: Annotated[int, typer.Option(min=1, help="Of Kosmos' decoder; published: 24.")] = 2,
    clip_layers: Annotated[int, typer.Option(min=1, help="Of CLIP's towers; ViT-B/32: 12.")] = 12,
    rounds: Annotated[int, typer.Option(min=1, help="How often each route is timed.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs or images computed together.")] = 16,
    dtype: Annotated[str, typer.Option(help="Of Kosmos: bfloat16, float16 or float32.")] = "float32",
    as_json: AsJson = False,
) -> None:
    """Compare with a transformers loop, rerankers and sentence-transformers: same numbers, ratio of time."""
    from zsqretrieval.evaluation.alternatives import bench_alternatives
    from zsqretrieval.evaluation.scoring_bench import random_kosmos

    with count_bar("comparing", None) as progress:
        bench = asdict(
            bench_alternatives(
                random_kosmos(vision_layers, text_layers, dtype=dtype),
                candidates=candidates,
                question_tokens=question_tokens,
                rounds=rounds,
                batch_size=batch_size,
                clip_layers=clip_layers,
                progress=progress,
            )
        )
    if as_json:
        emit_json(bench)
        return
    table = PlainTable(
        "", "route", "seconds", "times ours", "off by at most", numbers=("seconds", "times ours")
    )
    for contest in ("images", "captions", "first_stage"):
        for name, route in bench[contest].items():
            numbers: tuple[str, ...] = ("", "", f"missing: {route['missing']}")
            if not route["missing"]:
                off = f"{route['max_abs_diff']:.1g} of a spread of {bench['spread'][contest]:.1g}"
                least, most = route["times_ours_range"]
                times = f"{route['times_ours']:.2f} ({least:.2f} to {most:.2f})"
                numbers = (human_seconds(route["seconds"]), times, off)
            table.add_row(contest.replace("_", " "), name.replace("_", " "), *numbers)
    show(table)
    for note in bench["notes"]:
        say(note)
