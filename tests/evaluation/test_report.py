"""Reports: run files, tables, sentences, figures, and pages."""

from __future__ import annotations

import gzip
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import ir_measures
import numpy as np
import pandas as pd
import pytest

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets import Task
from zsqretrieval.evaluation.metrics import measure
from zsqretrieval.evaluation.report import answer, summary, write_report, write_verdict
from zsqretrieval.evaluation.report.conclusions import outcome
from zsqretrieval.evaluation.report.figures import PALETTE, figures
from zsqretrieval.evaluation.report.render import render, write_runs
from zsqretrieval.evaluation.report.tables import number, records, tables
from zsqretrieval.evaluation.results import Results, compare, row, table_of
from zsqretrieval.evaluation.run import Run
from zsqretrieval.evaluation.trec import ratings_path, read_run, run_path

NASTY = '<script>alert("|")</script> red'
WAY = "text to image"
FORMS = ("caption", "question/which")
IMAGES, QUERIES = tuple(f"image {n}" for n in range(12)), tuple(f"q{n}" for n in range(24))
TASK = Task(
    "toys", QUERIES, IMAGES, {query: {IMAGES[n // 2]: 1} for n, query in enumerate(QUERIES)},
    np.arange(24) // 2, ("caption",) * 24,
)  # fmt: skip


def run(name: str, seed: int, task: Task = TASK) -> Run:
    """Every image for every query, in random order."""
    random = np.random.default_rng(seed)
    candidates = np.stack([random.permutation(len(IMAGES)) for _ in QUERIES])
    return Run(name, task, candidates, np.tile(np.arange(12.0, 0, -1), (24, 1)))


def of(form: str) -> Task:
    return replace(TASK, forms=(form,) * 24)


def interval(group: str, system: str, measure: str, value: float, **others: Any) -> dict[str, Any]:
    return row(group, system, measure, value, low=0.9 * value, high=1.1 * value, queries=24, **others)


@pytest.fixture(scope="module")
def results() -> Results:
    """Rows of every group for two forms, with the runs of the systems and one ablation."""
    drawn = {"resamples": 50, "permutations": 99}
    rows, runs = list[dict[str, Any]](), {}
    for form in FORMS:
        where = {"form": form, "direction": WAY}
        task = of(form)
        systems = [run(name, n, task) for n, name in enumerate(("mini", "likelihood", "fused", "yes_no"))]
        rows += compare(systems, baseline="mini", measures=["R@1", "R@10", "MRR"], depth=5, **drawn)
        without = [systems[1], run("no_image", 4, task)]
        rows += compare(without, baseline="likelihood", group="ablations", depth=5, **drawn)
        rows.append(row("ablations", "chance", "R@1", 0.1, **where))
        for one in rows:
            if one["system"] != "chance" and one["form"] == form and one["group"] in ("systems", "ablations"):
                one["run"] = run_path(WAY, form, one["system"], ablation=one["system"] == "no_image")
        runs |= {run_path(WAY, form, one.name): one for one in systems}
        runs[run_path(WAY, form, "no_image", ablation=True)] = without[1]
        for depth in (0, 2, 5):
            rows += [interval("curve", name, "R@1", 0.3 + 0.01 * depth, depth=depth, **where) for name in
                     ("likelihood", "fused")]  # fmt: skip
        rows += [
            interval("ceiling", "mini", "ceiling", 0.1 * depth, depth=depth, **where) for depth in (2, 5)
        ]
        rows += [interval("reliability", "fused", "calibration error", 0.2, **where)]
        rows += [interval("reliability", "fused", "observed", 0.1 * n, depth=n, **where) for n in range(5)]
        rows += [row("reliability", "fused", "predicted", 0.2 * n, depth=n, **where) for n in range(5)]
    rows += [interval("agreement", "fused", "tau-c", 0.5, form="Flickr8k-Expert", unit="",
                      run=ratings_path("Flickr8k-Expert"))]  # fmt: skip
    for name, depth, time in (("mini", 0, 40.0), *((name, n, 60.0 * n) for name in ("likelihood", "fused")
                                                   for n in (2, 5))):  # fmt: skip
        rows += [interval("cost", name, "time", time, form="system", depth=depth, unit="ms"),
                 row("cost", name, "flops", 2e9, form="system", depth=depth, unit="")]  # fmt: skip
    rows += [row("cost", "vector", "size", 2048, form="storage", unit="bytes")]
    rows += [
        interval("dialogs", "gain", "Hits@10", 0.2 * n, form="answered by captions", depth=n) for n in (0, 1)
    ]
    rows += [
        interval("scaling", "mini", "R@1", 5 / n, form="measured", depth=n, direction=WAY) for n in (10, 100)
    ]
    rows += [
        row("scaling", "mini", "R@1", np.nan, low=1e-7, high=0.02, form="envelope", depth=10**n)
        for n in (8, 9)
    ]
    example = {
        "direction": WAY, "form": "caption", "outcome": "won", "query": "q0", "text": NASTY,
        "system": "fused", "before": 4, "after": 1, "relevant": [IMAGES[0]],
        "first_before": [IMAGES[1]], "first_after": [IMAGES[0]],
    }  # fmt: skip
    forms = dict.fromkeys(FORMS, 24)
    facts = {
        "dataset": {"name": "toys <test>", "images": 12, "forms": forms, "notes": ["a & b"]},
        "first_stage": "mini", "settings": {"candidates": 5}, "measured": "2026-01-31",
        "fingerprints": {"encoder": "mini-1", "generator": "mini-2"}, "environment": {"packages": {}},
        "choice": {"origin": "given", "alpha": 0.8, "sweep": [1]}, "examples": [example],
        "checks": {"pixels": {"largest_difference": 0.25}}, "ablations": {"no_image": "null images"},
        "probabilities": {WAY: {"fused": "softmax of the first candidate"}},
    }  # fmt: skip
    ratings = {ratings_path("Flickr8k-Expert"): pd.DataFrame({"image": ["image 1"], "fused": [0.25]})}
    return Results(table_of(rows), facts, runs, ratings)


@pytest.fixture(scope="module")
def folder(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(results, folder, command="zsq evaluate <here> | less")
    return folder


# --- files ------------------------------------------------------------------------------------------------


def test_run_files_measure_the_values_of_the_table(results: Results, folder: Path) -> None:
    rows = results.table[results.table["run"].str.endswith(".run", na=False)]
    assert set(rows["run"]) == set(results.runs)
    for one in records(rows):
        again = measure(read_run(folder / one["run"], TASK), [one["measure"]])[one["measure"]]
        assert np.mean(again) == pytest.approx(one["value"]), one["run"]
    judged = ir_measures.read_trec_qrels(str(folder / "runs/text-to-image/question-which/qrels.txt"))
    assert [(one.query_id, unquote(one.doc_id), one.relevance) for one in judged] == [
        (query, item, grade) for query, own in TASK.qrels.items() for item, grade in own.items()
    ]
    assert (folder / ratings_path("Flickr8k-Expert")).read_text() == "image\tfused\nimage 1\t0.25\n"


def test_run_files_can_be_cut_and_compressed(results: Results, tmp_path: Path) -> None:
    files = write_runs(results, tmp_path, depth=2, suffix=".gz")
    assert all(file.name.endswith(".gz") for file in files)
    fused = tmp_path / f"{run_path(WAY, 'caption', 'fused')}.gz"
    assert read_run(fused, TASK).candidates.shape[1] == 2
    contents = [file.read_bytes() for file in files]
    (tmp_path / "runs" / "old.run.gz").write_bytes(b"of another evaluation")
    assert contents == [file.read_bytes() for file in write_runs(results, tmp_path, depth=2, suffix=".gz")]
    assert not (tmp_path / "runs" / "old.run.gz").exists()
    for broken in (fused.read_bytes()[:-9], b"no archive"):
        fused.write_bytes(broken)
        with pytest.raises(InvalidInputError, match=r"fused\.run\.gz: cannot be read"):
            read_run(fused, TASK)


def test_json_holds_all_rows_and_the_checksums_of_all_files(results: Results, folder: Path) -> None:
    read = Results.from_json((folder / "report.json").read_text())
    pd.testing.assert_frame_equal(read.table, results.table)
    assert read.facts["command"] == "zsq evaluate <here> | less"
    for name, checksum in read.facts["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == checksum
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == {*read.facts["files"], "report.json"}


def test_same_results_give_the_same_files(results: Results, folder: Path, tmp_path: Path) -> None:
    write_report(results, tmp_path, command="zsq evaluate <here> | less")
    for file in folder.rglob("*.*"):
        assert (tmp_path / file.relative_to(folder)).read_bytes() == file.read_bytes(), file


# --- pages ------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Texts, sources and links of a page; every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script"
        self.attributes += attrs
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_html_is_self_contained_and_escapes_every_text(results: Results, folder: Path) -> None:
    text = (folder / "report.html").read_text()
    page = Page(text)
    links = [value or "" for name, value in page.attributes if name in ("src", "href")]
    assert links and all((folder / link).is_file() for link in links)
    assert {NASTY, "a & b", "toys <test>: which system finds the images?", "zsq evaluate <here> | less"} <= {
        *page.texts
    }
    assert "default-src 'none'" in text and "@media (prefers-color-scheme: dark)" in text
    assert text.count("<svg") == len(list((folder / "figures").glob("*.svg"))) > 5
    read = Results.from_json((folder / "report.json").read_text())
    shown = Page(render(read, "report.html", figures={}, pictures={IMAGES[0]: b"JPEG"}))
    assert ("src", "data:image/jpeg;base64,SlBFRw==") in shown.attributes and IMAGES[1] in shown.texts


def test_markdown_and_html_have_the_same_tables(results: Results, folder: Path) -> None:
    markdown, texts = (folder / "report.md").read_text(), Page((folder / "report.html").read_text()).texts
    found = tables(results)
    assert [table.title for table in found] == [
        "Text to image", "Ablations, text to image", "Quality and cost by depth, text to image",
        "Reliability of scores", "Agreement with people", "Cost of a query", "Cost of an image", "Dialogs",
        "Gallery size, measured", "Gallery size, extrapolated", "Checks", "Parameters",
    ]  # fmt: skip
    for table in found:
        assert f"## {table.title}\n" in markdown and table.title in texts
        for cell in table.frame.drop(columns="run", errors="ignore").to_numpy().flat:
            assert cell in markdown and (cell in texts or not cell), (table.title, cell)
    for link in re.findall(r"\]\(([^)]+)\)", markdown):
        assert (folder / link).is_file(), link
    assert "&lt;script>" in markdown and "<script" not in markdown


def test_every_recall_links_to_its_run_file(results: Results, folder: Path) -> None:
    for text in ((folder / "report.md").read_text(), (folder / "report.html").read_text()):
        for name in results.runs:
            assert text.count(name) >= (2 if name.endswith("fused.run") else 1), name


def test_every_measured_number_has_its_interval(results: Results) -> None:
    seen = set()
    for table in tables(results):
        for name, cells in table.frame.items():
            measured = re.search(r"R@|Hits|tau|time|error|ceiling", str(name))
            for system, cell in zip(table.frame.get("system", cells), cells, strict=True):
                if measured and cell and system != "chance":
                    assert re.search(r"\d to [+-]?\d", cell), (table.title, name, cell)
                    seen.add(table.title)
    assert len(seen) == 9


@pytest.mark.parametrize(
    ("value", "low", "high", "unit", "text"),
    [
        (0.285, 0.257, 0.314, "%", "28.5 (25.7 to 31.4)"),
        (np.nan, 0.00091, 0.028, "%", "0.091 to 2.8"),
        (0.1, np.nan, np.nan, "%", "10.0"),
        (298.4, 277.0, 333.1, "ms", "298 (277 to 333)"),
        (119701292.0, 1.0, 2e8, "", "119,701,292 (1 to 200,000,000)"),
        (5.0, np.nan, np.nan, "bytes", "5"),
    ],
)
def test_number_is_written_in_its_unit(value: float, low: float, high: float, unit: str, text: str) -> None:
    assert number({"value": value, "low": low, "high": high, "unit": unit, "measure": "R@1"}) == text


# --- sentences --------------------------------------------------------------------------------------------


def told(results: Results, gain: float, p: float, form: str | None = None) -> str:
    """The answer if fused differed by so much, with p, in one form or all."""
    table = results.table.copy()
    rows = (table["system"] == "fused") & table["gain"].notna() & ((table["form"] == form) | (form is None))
    table.loc[rows, ["gain", "gain_low", "gain_high", "p"]] = gain, gain - 0.02, gain + 0.02, p
    return answer(replace(results, table=table))[0]


@pytest.mark.parametrize(
    ("gain", "p", "word", "verb", "interval"),
    [
        (0.1, 0.04, "better", "finds more images than mini", "+10.0 points, 95 % CI +8.0 "),
        (-0.1, 0.001, "worse", "finds fewer images than mini", "-10.0 points, 95 % CI -12.0 "),
        (0.009, 0.05, "no significant difference", "makes no significant difference", "+0.9 "),
        (-0.1, 0.83, "no significant difference", "makes no significant difference", "-10.0 "),
    ],
)
def test_first_sentence_follows_gain_and_p(
    results: Results, gain: float, p: float, word: str, verb: str, interval: str
) -> None:
    said = told(results, gain, p)
    assert said.startswith("Combined with the score of mini (`fused`), the generator's likelihood ")
    assert f"{verb} for caption queries (R@1 {interval}" in said
    assert f"p = {p:g}) and question/which queries (" in said
    assert outcome({"gain": gain, "p": p}) == word


def test_first_sentence_distinguishes_forms(results: Results) -> None:
    table = results.table.copy()
    table.loc[table["form"] == "question/which", "p"] = 1.0
    said = told(replace(results, table=table), 0.1, 0.01, "caption")
    assert "finds more images than mini for caption queries" in said
    assert "; it makes no significant difference for question/which queries" in said


def test_answer_is_three_sentences_and_one_table(results: Results) -> None:
    said = answer(results)
    assert len(said) == 3 and said[1].startswith("Alone (`likelihood`), the generator's likelihood ")
    assert said[2] == "A query takes 300 (270 to 330) ms instead of 40 (36 to 44) ms, 7.5 times as long."
    told = summary(results).set_index(["queries", "system"])
    assert len(told) == 8 and told.loc[("caption", "mini"), "R@1 against mini"] == ""
    words = "better: |worse: |no significant difference: "
    assert re.match(words, told.loc[("caption", "fused"), "R@10 against mini"])
    assert list(told["ms a query"].iloc[:4]) == ["40 (36 to 44)", *["300 (270 to 330)"] * 2, ""]


def test_report_of_one_or_no_system_renders(results: Results) -> None:
    rows = results.select("systems")
    only = rows[rows["system"].isin(["mini", "yes_no"])]
    said = answer(replace(results, table=only))
    assert len(said) == 1 and said[0].startswith("Alone (`yes_no`)")
    alone = replace(results, table=only[only["system"] == "mini"].assign(direction="image to text"))
    only_mini = r"Only mini was measured\. Its first result is right for [\d.]+ \(.* to .*\) % of caption"
    assert re.match(only_mini, answer(alone)[0])
    for few in (replace(results, table=only), alone, replace(results, table=only.iloc[:0])):
        few.facts.setdefault("command", "zsq")
        for template in ("report.md", "report.html"):
            assert "Reproduce" in render(few, template, figures={})
    assert answer(replace(results, table=only.iloc[:0])) == []


# --- figures ----------------------------------------------------------------------------------------------


def contrast(colour: str, paper: str) -> float:
    """WCAG's contrast ratio."""

    def luminance(code: str) -> float:
        parts = [int(code[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    dark, light = sorted((luminance(colour), luminance(paper)))
    return (light + 0.05) / (dark + 0.05)


def test_figures_follow_the_theme_and_fit_400_pixels(results: Results) -> None:
    drawn = figures(results)
    names = ("systems-text-to-image", "depth-text-to-image-question-which", "scaling")
    assert {f"{name}.svg" for name in names} <= drawn.keys()
    used = set()
    for name, (svg, caption) in drawn.items():
        assert "currentColor" in svg and "@media(prefers-color-scheme:dark){svg{color:" in svg, name
        assert not re.search(r"(fill|stroke): (#000|#fff|black|white)", svg), name
        width = re.search(r'width="([\d.]+)pt"', svg)
        assert width is not None and float(width[1]) * 4 / 3 <= 368, name
        sizes = re.findall(r"font-size: ([\d.]+)px", svg)
        assert sizes and min(map(float, sizes)) * 4 / 3 >= 12, name  # CSS pixels at the width above
        used |= set(re.findall(r"#[0-9a-f]{6}", svg.split("</style>")[1]))
        assert caption.endswith((".", "(bands)."))
    assert used and set(PALETTE) & used
    for colour in {*used, *PALETTE}:
        assert min(contrast(colour, paper) for paper in ("#ffffff", "#161615", "#0d1117")) >= 3, colour


# --- the verdict ------------------------------------------------------------------------------------------


def test_verdict_opens_with_answer_and_table_and_links_to_files(results: Results, tmp_path: Path) -> None:
    published = tmp_path / "published.json"
    published.write_text(
        '{"recall": [{"system": "BLIP, log P(text | image)", "R@1": 76.8}], "statements": ["S."]}'
    )
    path = tmp_path / "docs" / "verdict.md"
    write_verdict(results, path, command="zsq evaluate toys", published=published)
    text = path.read_text()
    assert text.startswith("\n\n".join(
        ["# Does question generation find images, and at what cost?",
         "\n".join(answer(results)), "| queries | "]
    ))  # fmt: skip
    assert "`mini` is the first stage (`mini-1`)" in text and "| clip |" not in text
    assert "on 2026-01-31" in text and "zsq evaluate toys" in text
    assert "| BLIP, log P(text \\| image) | 76.8 |" in text
    links = re.findall(r"\]\((verdict/[^)]+)\)", text)
    assert len(links) > 10 and all((path.parent / link).is_file() for link in links)
    for file in path.with_suffix("").rglob("*.*"):
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        assert b"alert" not in content, "texts of the data set stay out of the folder"
    again = Results.from_json((path.with_suffix("") / "numbers.json").read_text())
    write_verdict(again, path, command="zsq evaluate toys", published=published)
    assert path.read_text() == text and all((path.parent / link).is_file() for link in links)


def test_verdict_shows_times_of_other_software(results: Results) -> None:
    route = {"seconds": 2.0, "seconds_range": [1, 3], "times_ours": 1.5, "times_ours_range": [1.25, 2],
             "max_abs_diff": 2e-5, "missing": None}  # fmt: skip
    missing = {**dict.fromkeys(route), "missing": "pip install it"}
    bench = {"images": {"loop": route, "other": missing}, "spread": {"images": 1.0}, "setting": {"rounds": 6},
             "notes": ["Weights are random."]}  # fmt: skip
    facts = {**results.facts, "command": "zsq", "alternatives": bench}
    text = render(replace(results, facts=facts), "verdict.md", figures={})
    assert "| images | loop | 2 (1 to 3) | 1.5 (1.25 to 2) | 2e-05 (spread 1) |" in text
    assert "| images | other | | | not installed: pip install it |" in text and "probability 97 %" in text
