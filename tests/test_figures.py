"""Figures in the prose and tables of the docs are those of the JSON files beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zsqretrieval.evaluation.report import write_report
from zsqretrieval.evaluation.results import Results
from zsqretrieval.laion.plan import plan

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def results(path: str) -> Any:
    return Results.from_json((DOCS / path).read_text(encoding="utf-8")).table


VERDICT = results("verdict/numbers.json")


def numbers(path: str) -> Any:
    return json.loads((DOCS / path).read_text(encoding="utf-8"))


class Row:
    """A system of an evaluation: its recall in percent and its gain in points."""

    def __init__(
        self, form: str, system: str, measure: str = "R@1", direction: str = "text to image",
        table: Any = VERDICT,
    ) -> None:  # fmt: skip
        rows = table[table["group"] == "systems"]
        rows = rows[(rows["direction"] == direction) & (rows["form"] == form)]
        rows = rows[(rows["system"] == system) & (rows["measure"] == measure)]
        (self.row,) = rows.to_dict("records")

    def points(self, *names: str, sign: str = "+") -> list[str]:
        return [f"{100 * self.row[name]:{sign}.1f}" for name in names]

    @property
    def value(self) -> str:
        return "{} ({} to {})".format(*self.points("value", "low", "high", sign=""))

    @property
    def gain(self) -> str:
        return "{} ({} to {})".format(*self.points("gain", "gain_low", "gain_high"))

    @property
    def unsigned(self) -> str:
        return "{} ({} to {})".format(*self.points("gain", "gain_low", "gain_high", sign=""))


def query_time(system: str) -> str:
    """Median milliseconds of a query with 50 candidates."""
    rows = VERDICT[
        (VERDICT["group"] == "cost") & (VERDICT["form"] == "system") & (VERDICT["measure"] == "time")
    ]
    found = rows[rows["system"] == system]["value"]
    return f"{found.max():.3g} ms" if len(found) else "not measured"


FORMS = {"caption": "caption", "question": "question/which"}


def of_rerank() -> Iterator[str]:
    systems = {
        "likelihood": "likelihood", "fused": "fused", "normalized": "normalized",
        "normalized, then fused": "normalized+fused",
    }  # fmt: skip
    for said, form in FORMS.items():
        first, tenth = Row(form, "mini"), Row(form, "mini", "R@10")
        yield f"| {said} | first stage | {first.value} | | | {tenth.value} | |"
        for title, system in systems.items():
            first, tenth = Row(form, system), Row(form, system, "R@10")
            p = f"{first.row['p']:.2g}"
            yield f"| {said} | {title} | {first.value} | {first.gain} | {p} | {tenth.value} | {tenth.gain} |"
    for way in numbers("adaptive-depth/dev.json")["ways"]:
        if (name := way["way"]) not in ("risk 0.1", "risk 4"):  # not in the table
            named = f"`{name.replace('risk ', 'risk=')}` | {way['candidates']:.1f}"
            start = named if "risk" in name else f"{name} | {name}"
            yield f"| {start} | {100 * way['time_ratio']:.0f} % |"
    risk, fixed = (depth_on_test(way) for way in ("risk 0.5", "30"))
    assert all(risk[name]["gain"] == 0 for name in ("R@1", "R@5", "R@10"))
    yield f"scored {risk['candidates']:.1f} of 100 candidates in {100 * risk['time_ratio']:.0f} % of the time"
    yield f"for {100 * risk['same']:.0f} % of the captions, and for {100 * fixed['same']:.0f} % with"


def depth_on_test(way: str) -> dict[str, Any]:
    ways = numbers("data/performance-depth.json")["ways"]
    return next(one for one in ways if one["way"] == way)


def of_when_to_use() -> Iterator[str]:
    first = [Row(form, "mini").points("value", sign="")[0] for form in FORMS.values()]
    yield f"| first stage alone | {first[0]} % | {first[1]} % | {query_time('mini')} |"
    for title, system in {
        "[query bank](rerank.md#images-that-fit-any-question)": "normalized",
        "[re-ranked](rerank.md) and fused": "fused",
        "both": "normalized+fused",
        "[expansion](questions.md) by generated questions": "expanded",
        "ranked by the likelihood alone": "likelihood",
        "ranked by yes or no alone": "yes_no",
    }.items():
        gains = [Row(form, system).gain for form in FORMS.values()]
        yield f"{title} | {gains[0]} | {gains[1]} | {query_time(system)} |"
    risk = depth_on_test("risk 0.5")
    same, time = 100 * risk["same"], 100 * risk["time_ratio"]
    yield f"{same:.0f} % of the searches give the same ten images in {time:.0f} % of the time"
    yield from of_nothing_found(
        "{answered:.0f} % of the answerable questions still find something, {others:.0f} % of the others"
    )


def of_nothing_found(sentence: str) -> Iterator[str]:
    yield sentence.format(
        **{
            name: 100 * share
            for name, share in numbers("nothing-found/numbers.json")["found_at_one_half"].items()
        }
    )


def of_searching() -> Iterator[str]:
    for title, measure in {
        "probability": "probability", "cosine similarity of the best hit": "cosine"
    }.items():  # fmt: skip
        row = numbers("nothing-found/numbers.json")["measures"][measure]["others"]
        low, high = row["interval"]
        alarms = f"{100 * row['false_alarms_at_90']:.0f} %"
        yield f"| {title} | {row['auc']:.3f} ({low:.3f} to {high:.3f}) | {alarms} |"
    yield from of_nothing_found(
        "{answered:.0f} % of the answerable questions find something, and {others:.0f} % of the others"
    )


def of_questions() -> Iterator[str]:
    for form in FORMS.values():
        first, expanded = (Row(form, system).points("value", sign="")[0] for system in ("mini", "expanded"))
        yield f"{first} to {expanded}"


def of_readme() -> Iterator[str]:
    caption, question = FORMS.values()
    first = [Row(form, "mini").points("value", sign="")[0] for form in (caption, question)]
    yield f"from {first[0]} % by {Row(caption, 'normalized+fused').unsigned}".replace("(", "points (95 % CI ")
    yield f"from {first[1]} % by {Row(question, 'normalized+fused').unsigned}"
    yield f"by {Row(caption, 'fused').unsigned[:-1]}, not significant)"
    yield Row(question, "fused").unsigned
    yield from of_adding()
    index = numbers("data/performance-index.json")
    ours, theirs = (list(index[f"qps_ratio_to_{one}"].values()) for one in ("hnswlib", "best_peer"))
    yield f"{min(ours):.1f} to {max(ours):.1f} times as many questions in a batch as hnswlib"
    assert set(index["best_peer"].values()) == {"scann"}
    yield f"{min(theirs):.1f} to {max(theirs):.1f} times as many as ScaNN"


def of_adding() -> Iterator[str]:
    yield f"About {numbers('data/performance-add.json')['add_per_wall_s']:.0f} photographs a second"


def of_scale() -> Iterator[str]:
    for said, vectors, dim in (
        ("1,000,000 x 512", 1e6, 512), ("10,000,000 x 512", 1e7, 512), ("100,000,000 x 512", 1e8, 512),
        ("1e9 x 768", 1e9, 768), ("5.85e9 x 768", 5.85e9, 768),
    ):  # fmt: skip
        made = plan(vectors, dim, recall=0.95, qps=100)
        memory, disk = sorted(made.indexes, key=lambda index: index.on, reverse=True)
        yield f"| {said} |"
        yield f", {memory.machines} | {memory.rate:,.0f} |"
        yield f", {disk.machines} | {made.embedding_gpu_hours:,.0f} |"
    columns = [slice_of(run) for run in ("", "-hnsw", "-hnsw-sq")]
    (album, memory), lites = columns[0], [found for found, _ in columns[1:]]
    rate, again = album["ingest"]["rows_per_second"], album["search again"]["first_answer_seconds"]
    for here, others in (
        (
            f"{round(rate, -2):,.0f} rows/s without the index, {memory['ingest']}",
            [f"{round(lite['ingest']['rows_per_second'], -2):,.0f} rows/s with the index" for lite in lites],
        ),
        (
            f"{album['search']['open_seconds']:.2f} s",
            [f"{lite['search']['open_seconds']:.0f} s" for lite in lites],
        ),
        (
            f"{album['search']['first_answer_seconds']:.1f} s, {again:.1f} s after the removal",
            [f"{lite['search']['first_answer_seconds']:.1f} s" for lite in lites],
        ),
        (
            "{plain_ms:.1f} ms, {plain_recall:.2f}".format_map(album["search"]),
            ["{plain_ms:.0f} ms, {plain_recall:.2f}".format_map(lite["search"]) for lite in lites],
        ),
        (
            "{filtered_ms:.0f} ms, {filtered_recall:.2f}".format_map(album["search"]),
            ["{filtered_ms:.0f} ms, {filtered_recall:.2f}".format_map(lite["search"]) for lite in lites],
        ),
        (
            f"{album['remove']['remove_seconds']:.0f} s",
            [f"{lite['remove']['remove_seconds'] / 60:.0f} minutes" for lite in lites],
        ),
        ("largest memory, while removing", [used["remove"] for _, used in columns]),
    ):
        yield f"| {' | '.join([here, *others])} |"
    yield f"| compressed index of these rows | {album['index']['build_seconds']:.0f} s, {memory['index']}"
    removed = [found["remove"] for found, _ in columns]
    assert not any(one["found_again"] for one in removed) and len({one["removed"] for one in removed}) == 1


def slice_of(run: str) -> tuple[Any, dict[str, str]]:
    """What each step of a slice of a million rows found, and its memory."""
    steps = numbers(f"data/laion-slice-1m{run}.json")["steps"]
    names = [step["name"].removeprefix("milvus ") for step in steps]
    found = {name: step["found"] for name, step in zip(names, steps, strict=True)}
    return found, {name: f"{step['memory'] / 1e9:.1f} GB" for name, step in zip(names, steps, strict=True)}


def of_laion() -> Iterator[str]:
    train, dev = (numbers(f"data/alt-text-{split}.json") for split in ("train", "dev"))
    for score in train["auc"]:
        cells = ("{:.3f} ({:.3f} to {:.3f})".format(*found["auc"][score]) for found in (train, dev))
        yield f"| {score.replace('clip', 'CLIP score')} | {' | '.join(cells)} |"
    right = {name: f"{100 * share:.1f} %" for name, share in train["right among kept"].items()}
    lost = 100 * (1 - train["right that are kept"]["intersection"])
    yield f"{right['clip']} (CLIP score) and {right['likelihood']} (likelihood) are right"
    yield f"{right['intersection']} in the intersection, which loses {lost:.1f} %"
    (agreement,) = train["agreement"]
    yield f"kappa is {agreement['kappa']:.2f}, the rank correlation {train['spearman']:.2f}"


def of_milvus() -> Iterator[str]:
    outputs = [(DOCS / "data" / f"milvus-{kind}.txt").read_text() for kind in ("hnsw", "hnsw-sq")]
    for printed, title in {
        "add": "rows added per second", "build the index": "rows indexed per second",
        "search one by one": "queries per second, one by one",
        "search in one batch": "queries per second, in one batch",
        "search 1 % by where": "with a `where` that selects 1 %", "remove": "rows removed per second",
    }.items():  # fmt: skip
        rates = (re.search(rf"^\| {printed} \|.*\| (\S+) \|$", one, re.MULTILINE) for one in outputs)
        yield f"| {title} | {' | '.join(f'{float(rate[1]):,.0f}' for rate in rates if rate)} |"
    recalls = (re.findall(r"recall@10 (\S+), with the filter (\S+)", one)[0] for one in outputs)
    for title, both in zip(
        ("recall@10", "recall@10 with the `where`"), zip(*recalls, strict=True), strict=True
    ):
        yield f"| {title} | {' | '.join(both)} |"
    peaks = (f"{int(re.findall('peak memory ([0-9]+) MB', one)[0]):,} MB" for one in outputs)
    yield f"with 78 MB of vectors in the program | {' | '.join(peaks)} |"


def of_mini_encoder() -> Iterator[str]:
    for name, table in (("Flickr8k test", VERDICT), ("stamps, zero-shot", results("data/stamps.json"))):
        for direction in ("text to image", "image to text"):
            rows = [Row("caption", "mini", f"R@{k}", direction, table) for k in (1, 5, 10)]
            yield f"| {name} | {direction} | {' | '.join(row.value for row in rows)} |"
    shares = numbers("data/mini-encoder-shares.json")
    for share in ("0", "0.25", "0.5", "1"):
        cells = (
            " / ".join(f"{100 * one:.1f}" for one in shares[name][share])
            for name in ("dev of flickr8k", "test of stamps")
        )
        yield " | " + " | ".join(cells) + " |"


def of_mini_generator() -> Iterator[str]:
    table = results("data/dev-captions.json")
    yield f"among them for {100 * table[table['group'] == 'ceiling']['value'].max():.1f} %"
    for title, system in {
        "first stage (mini encoder)": "mini", "likelihood alone": "likelihood",
        "yes or no alone": "yes_no", "fused, as in the preset": "fused",
    }.items():  # fmt: skip
        rows = [Row("caption", system, f"R@{k}", table=table) for k in (1, 5, 10)]
        gains = ["" if system == "mini" else row.gain for row in rows]
        cells = [cell for row, gain in zip(rows, gains, strict=True) for cell in (row.value, gain)]
        yield " ".join(f"| {title} | {' | '.join(cells)} |".split())
    fused, normalized = (
        [f"{Row(form, system).row['value'] / Row(form, 'mini').row['value']:.2f}" for form in FORMS.values()]
        for system in ("fused", "normalized+fused")
    )
    yield f"fused has {fused[0]} times the R@1 of the first stage for captions"
    yield f"and {fused[1]} times for questions"
    yield f"{normalized[0]} and {normalized[1]} times"


def of_scoring() -> Iterator[str]:
    found = numbers("data/performance-scoring.json")
    for name, route in found["routes"].items():
        speedup = found["routes"]["naive"]["seconds"] / route["seconds"]
        work, rate = route["flops"] / 1e9, route["flops"] / 1e9 / route["seconds"]
        each, share = work / found["candidates"], 100 * route["ceiling_share"]
        yield f"| {name} | {speedup:.1f} | {each:.0f} | {rate:.0f} | {share:.0f} % |"
    yield f"{found['ceiling'] / 1e9:.0f} GFLOP/s in float32"


def of_server() -> Iterator[str]:
    found = numbers("data/serve.json")
    for title, load in {"first stage alone": "first stage", "re-ranked, 20 candidates": "re-ranked"}.items():
        for answer, times in found[load]["seconds"].items():
            yield f"| {title} | {answer} | {times['p50']:.2f} | {times['p99']:.2f} |"
    yield f"{found['first stage']['searches_per_s']:.1f} searches a second by the first stage"
    yield f"{found['re-ranked']['searches_per_s']:.1f} with re-ranking"
    page, images, new, kept = (
        f"{1000 * found['first_paint_s'][name]:.1f} ms"
        for name in ("page", "images", "new thumbnail", "kept thumbnail")
    )
    yield f"gets the page in {page}, a list of 60 images in {images}, and a thumbnail in {new}"
    yield f"{kept} afterwards"


def of_reliability() -> Iterator[str]:
    found = numbers("data/serve.json")
    counts = [found[load]["statuses"] for load in ("first stage", "re-ranked", "ended")]
    assert [set(one) for one in counts] == [{"200", "429"}, {"200", "429"}, {"200", "429", "503"}]
    assert not any(
        found[load]["half_answered"] + found[load]["streams_with_error"]
        for load in ("first stage", "re-ranked")
    )
    yield f"{counts[0]['200']:,} answers with status 200 and {counts[0]['429']:,} with 429 by the first stage"
    yield f"{counts[1]['200']:,} and {counts[1]['429']:,} with re-ranking"
    assert not found["ended"]["lost"] + found["ended"]["half_answered"] + found["ended"]["exit_code"]
    yield f"{counts[2]['503']:,} requests got 503, none was lost and no answer was half"


def of_dialog() -> Iterator[str]:
    shown = {
        "information_gain": "`InformationGain()`",
        "caption_dialog": "`CaptionDialog()`",
        "random": "`RandomQuestion()`",
    }
    for user in ("captions", "generator"):
        found = numbers(f"data/dialog-{user}.json")
        rows = {(row["system"], row["measure"], row["depth"]): row for row in found["table"]}
        hits = {policy: [rows[policy, "Hits@10", n] for n in range(6)] for policy in shown}
        best = {policy: rows[policy, "BRI", None] for policy in shown}
        unit = ".1f" if found["settings"]["dialogs"] >= 1000 else ".0f"
        for policy, name in shown.items():
            before, *between, last = hits[policy]
            cells = [f"{100 * row['value']:{unit}}" for row in (before, *between)]
            ends = (f"{100 * last[bound]:{unit}}" for bound in ("value", "low", "high"))
            cells += ["{} ({} to {})".format(*ends)]
            cells += ["{value:.2f} ({low:.2f} to {high:.2f})".format_map(best[policy])]
            yield f"| {name} | {' | '.join(cells)} |"
        for policy in ("random", "caption_dialog"):
            gains = [lead(best[policy], 1, ".3f"), *(lead(hits[policy][n], 100, unit) for n in (1, 2, 5))]
            yield f"| {shown[policy]} | {' | '.join(gains)} |"
        recall = rows["caption_dialog", "R@10", 5]
        own = rows["information_gain", "R@10", 5]
        if user == "captions":
            yield f"{100 * recall['value']:.1f} % of `CaptionDialog` against {100 * own['value']:.1f}"
            asked = found["asked"]["information_gain"]
            yield f"{100 * asked['dont_know'] / asked['questions']:.0f} % of the questions"


def lead(row: Any, factor: int, unit: str) -> str:
    """What information gain is ahead of another policy, whose row tells how far it is behind."""
    values = (-factor * row[bound] + 0.0 for bound in ("gain", "gain_high", "gain_low"))
    return "{} ({} to {})".format(*(f"{value:+{unit}}".replace("-", "\u2212") for value in values))


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "README.md": of_readme,
    "docs/dialog.md": of_dialog,
    "docs/laion.md": of_laion,
    "docs/milvus.md": of_milvus,
    "docs/mini-encoder.md": of_mini_encoder,
    "docs/mini-generator.md": of_mini_generator,
    "docs/questions.md": of_questions,
    "docs/quickstart.md": of_adding,
    "docs/reliability.md": of_reliability,
    "docs/rerank.md": of_rerank,
    "docs/scale.md": of_scale,
    "docs/scoring.md": of_scoring,
    "docs/searching.md": of_searching,
    "docs/server.md": of_server,
    "docs/when-to-use.md": of_when_to_use,
}


@pytest.mark.parametrize("page", PAGES)
def test_page_has_the_figures_of_its_files(page: str) -> None:
    text = re.sub(r"\s+", " ", (ROOT / page).read_text(encoding="utf-8"))
    assert [figure for figure in PAGES[page]() if figure not in text] == []


def test_tables_of_gallery_sizes_are_rendered_from_their_numbers(tmp_path: Path) -> None:
    results = Results.from_json((DOCS / "gallery-size" / "numbers.json").read_text(encoding="utf-8"))
    write_report(results, tmp_path, command="")
    rendered = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    shown = [
        row for row in (DOCS / "gallery-size.md").read_text(encoding="utf-8").splitlines() if row[:1] == "|"
    ]
    assert len(shown) > 30
    assert [row for row in shown if row not in rendered] == []
