"""``zsq bench``: how well encoders, indexes and the scoring engine do, in numbers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from zsqretrieval.cli.console import PlainTable, count_bar, emit_json, human_size, say, show, stage_bars
from zsqretrieval.cli.opening import new_encoder
from zsqretrieval.cli.reading import AsJson, BenchData, EncoderWeights, told_interval

__all__ = ["bench_encoder_command", "bench_index_command", "bench_scoring_command"]


def bench_encoder_command(
    data: BenchData,
    preset: Annotated[str, typer.Option(help="Whose encoder: mini or clip.")] = "mini",
    split: Annotated[
        list[str] | None, typer.Option(help="Split to measure; may be repeated. [default: test]")
    ] = None,
    encoder_weights: EncoderWeights = None,
    as_json: AsJson = False,
) -> None:
    """Measure how often an encoder finds the image of a caption, and the captions of an image."""
    from zsqretrieval.evaluation.encoder_bench import bench_encoder

    encoder = new_encoder(preset, weights=encoder_weights)
    with stage_bars(lines=True) as progress:
        measured = bench_encoder(encoder, data, splits=split or ["test"], progress=progress)
    facts = {name: result for one in measured for name, result in one.to_json().items()}
    if as_json:
        emit_json(facts)
        return
    for name, result in facts.items():
        say(f"{name}: {result['images']} images, {result['captions']} captions")
        table = PlainTable("", "R@1", "R@5", "R@10", "95 % of R@10", numbers=("R@1", "R@5", "R@10"))
        for way, title in (("t2i", "text to image"), ("i2t", "image to text")):
            recalls = result[way]
            found = (f"{recalls[f'R@{k}']:.1f}" for k in (1, 5, 10))
            table.add_row(title, *found, told_interval(recalls["R@10_ci"]))
        show(table)


def bench_index_command(
    n: Annotated[int, typer.Option("--n", min=10, help="Vectors in the gallery.")] = 20_000,
    dim: Annotated[int, typer.Option(min=8, help="Length of the vectors.")] = 512,
    index: Annotated[str, typer.Option(help="hnsw or exact.")] = "hnsw",
    as_json: AsJson = False,
) -> None:
    """Measure recall and speed of an index against exact search, on synthetic vectors shaped like CLIP's."""
    from zsqretrieval import plugins
    from zsqretrieval.evaluation.index_bench import bench_index
    from zsqretrieval.evaluation.synthetic import cliplike

    bench = bench_index(plugins.load("index", index)(dim), cliplike(n, dim=dim, rank=min(96, dim - 2)))
    if as_json:
        emit_json(asdict(bench))
        return
    say(
        f"{bench.index}: {bench.count} synthetic vectors of dim {bench.dim}, built in "
        f"{bench.build_seconds:.1f} s, {human_size(bench.bytes_per_vector)} a vector on disk"
    )
    names = ("recall@10", "queries/s", "exact", "one by one", "exact, one by one")
    table = PlainTable("queries", *names, numbers=names)
    for kind, one in (("text-like", bench.text), ("image-like", bench.image)):
        rates = (one.batch_qps, one.exact_batch_qps, one.single_qps, one.exact_single_qps)
        table.add_row(kind, f"{one.recall_at_10:.3f}", *(f"{rate:.0f}" for rate in rates))
    show(table)


def bench_scoring_command(
    candidates: Annotated[int, typer.Option("--candidates", "-k", min=1, help="Images to score.")] = 100,
    question_tokens: Annotated[int, typer.Option(min=1, help="Length of the question.")] = 30,
    vision_layers: Annotated[int, typer.Option(min=1, help="Of the vision tower; published: 24.")] = 2,
    text_layers: Annotated[int, typer.Option(min=1, help="Of the decoder; published: 24.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="How often each route is timed.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs computed together.")] = 32,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    as_json: AsJson = False,
) -> None:
    """Time the routes of the scoring engine against scoring pair by pair, on Kosmos with random weights."""
    from zsqretrieval.evaluation.scoring_bench import bench_scoring, random_kosmos

    with count_bar("scoring", None) as progress:
        bench = bench_scoring(
            random_kosmos(vision_layers, text_layers, dtype=dtype),
            candidates=candidates,
            question_tokens=question_tokens,
            rounds=rounds,
            naive_pairs=min(24, candidates),
            batch_size=batch_size,
            progress=progress,
        )
    if as_json:
        emit_json(asdict(bench))
        return
    say(
        f"one question of {bench.question_tokens} tokens, {bench.candidates} images; Kosmos at full width, "
        f"{bench.vision_layers} + {bench.text_layers} layers, {bench.dtype}, {bench.threads} threads"
    )
    table = PlainTable("route", "seconds", "times", "nats off", numbers=("seconds", "times", "nats off"))
    for name, route in bench.routes.items():
        times = bench.routes["naive"].seconds / route.seconds
        table.add_row(name, f"{route.seconds:.2f}", f"{times:.1f}", f"{route.max_abs_diff:.1g}")
    show(table)
