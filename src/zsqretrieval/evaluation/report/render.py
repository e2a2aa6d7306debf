"""A report as a folder, and the verdict as a page with its folder, from the results of an evaluation.

report.md, report.html, report.json, figures/*.svg      the report
runs/{direction}/{form}/{system}.run, qrels.txt         TREC files, paths as in the results
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from zsqretrieval._util.files import write_whole
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets.dataset import read_json
from zsqretrieval.evaluation.report.conclusions import SIGNIFICANT, answer, summary
from zsqretrieval.evaluation.report.figures import figures
from zsqretrieval.evaluation.report.tables import Table, frame_of, software, tables
from zsqretrieval.evaluation.results import Results
from zsqretrieval.evaluation.trec import write_qrels, write_run
from zsqretrieval.search.display import thumbnail

_PACKAGES = (
    "zsqretrieval", "torch", "transformers", "open_clip_torch", "timm", "numpy", "pillow", "scipy", "pandas",
    "ir-measures", "pytrec-eval-terrier", "matplotlib",
)  # fmt: skip
_THUMBNAIL = 160  # longest side in pixels
_DEPTH = 10  # results of the run files beside a verdict


def environment() -> dict[str, Any]:
    """Versions and machine: ``python``, ``system``, ``processors``, ``threads``, ``gpu``, ``packages``."""
    import torch

    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": packages,
    }


def write_report(results: Results, folder: Path, *, command: str) -> dict[str, Any]:
    """Write a report. Each file is replaced as a whole, ``report.json`` last.

    Args:
        results: of an evaluation.
        folder: made when missing.
        command: that reproduces the report.

    Returns:
        The facts of ``report.json``, with the SHA-256 of every other file.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        ImageError: an image of an example cannot be decoded.
        OSError: the disk refuses.
    """
    results = _completed(results, command)
    drawn = figures(results)
    files = [*write_runs(results, folder), *_write_figures(drawn, folder)]
    for template in ("report.md", "report.html"):
        files.append(folder / template)
        page = render(results, template, figures=drawn, pictures=_pictures(results))
        write_whole(files[-1], [page])
    sums = {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }
    results.facts["files"] = sums
    write_whole(folder / "report.json", [results.to_json()])
    return results.facts


def write_verdict(results: Results, path: Path, *, command: str, published: Path | None = None) -> None:
    """Write the verdict and a folder of its name: ``runs/`` (compressed), ``figures/`` and ``numbers.json``.

    The folder holds ids of the data set, but no texts or images. Results that were read from ``numbers.json``
    have no runs; the page and the figures are then written anew and the run files stay.

    Args:
        results: of an evaluation with all systems.
        path: of the page, ``.md``.
        command: that reproduces the page.
        published: a JSON file of published numbers: ``recall`` (rows of a table) and ``statements``.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OSError: the disk refuses.
    """
    folder = path.with_suffix("")
    results = _completed(_without_texts(results), command)
    if results.runs:
        write_runs(results, folder, depth=_DEPTH, suffix=".gz")
        linked = results.table["run"].where(results.table["run"].isna(), results.table["run"] + ".gz")
        results = replace(results, table=results.table.assign(run=linked))
    written = results.to_json()
    results = Results.from_json(written)  # so that the page is exactly that of the rounded numbers
    drawn = {name: one for name, one in figures(results).items() if not name.startswith("reliability")}
    others = None if published is None else read_published(published)
    page = render(results, "verdict.md", figures=drawn, place=f"{folder.name}/", published=others)
    _write_figures(drawn, folder)
    write_whole(folder / "numbers.json", [written])
    write_whole(path, [page])


def render(
    results: Results,
    template: str,
    *,
    figures: Mapping[str, tuple[str, str]],
    place: str = "",
    pictures: Mapping[str, bytes] = {},
    published: Mapping[str, Any] | None = None,
) -> str:
    """Lay results out as a page. HTML escapes every name and text, and forbids scripts and the network.

    Args:
        results: of an evaluation, with ``command``, ``measured`` and ``environment`` among the facts.
        template: ``report.html``, ``report.md`` or ``verdict.md``.
        figures: SVG and caption by file name.
        place: of the folder with run files and figures, as the page links to it; ends in a slash.
        pictures: JPEGs by image id; images of examples without one appear by id.
        published: numbers of others, for the verdict.
    """
    facts = results.facts
    told = Table("", summary(results))
    reproduce = [
        *facts["fingerprints"].items(),
        *((name, value) for name, value in facts["environment"].items() if name != "packages"),
        *facts["environment"].get("packages", {}).items(),
        ("settings", json.dumps(facts["settings"], default=str)),
    ]
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("zsqretrieval.evaluation.report"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "base64": lambda content: base64.b64encode(content).decode(),
        "cell": markdown_cell,
        "code": lambda text: Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))),
        "markdown": lambda frame: _markdown(frame, place),
        "frame": _frame,
    }
    templates.filters |= filters
    page = templates.get_template(f"{template}.j2").render(
        answer=answer(results),
        summary=told if template == "report.html" else told.frame,
        tables=tables(results),
        figures=figures,
        facts={"examples": [], "scaling": None, **facts},
        alternatives=software(facts["alternatives"]) if facts.get("alternatives") else None,
        pictures=pictures,
        place=place,
        published=published,
        reproduce=reproduce,
        significant=SIGNIFICANT,
    )
    return page if template == "report.html" else re.sub(r"\n{3,}", "\n\n", page).strip() + "\n"


def read_published(path: Path) -> Any:
    """Read numbers of others for the verdict; an InvalidInputError if the page cannot show them."""

    def show(page: Any) -> None:
        _markdown(_frame(page["recall"]), "")
        "".join(page["statements"])

    return _read_numbers(path, show, "an object of recall (a list of rows) and statements")


def read_alternatives(path: Path) -> Any:
    """Read times of other software for the verdict; an InvalidInputError if the page cannot show them."""

    def show(page: Any) -> None:
        _markdown(software(page), "")
        "".join(page["notes"])
        0.5 ** page["setting"]["rounds"]

    return _read_numbers(path, show, "what python -m benchmarks.alternatives writes")


def _read_numbers(path: Path, show: Callable[[Any], None], shape: str) -> Any:
    value = read_json(path, "numbers for the verdict", "benchmarks/")
    try:
        show(value)
    except Exception as error:  # whatever the shape leads to
        raise InvalidInputError(f"{path}: is not {shape}: {type(error).__name__} {error}") from error
    return value


def _frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    return frame_of({name: str(cell) for name, cell in row.items()} for row in rows)


def markdown_cell(text: object) -> str:
    """A text on one line without meaning in Markdown tables or HTML."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _markdown(frame: pd.DataFrame, place: str) -> str:
    """A table in Markdown; each system links to its run file."""
    cells = frame.map(markdown_cell)
    if "run" in cells:
        cells["system"] = [
            f"[{system}]({place}{run})" if run else system
            for system, run in zip(cells["system"], cells.pop("run"), strict=True)
        ]
    sides = ["right" if right else "left" for right in Table("", frame).numeric.values()]
    text: str = cells.to_markdown(index=False, disable_numparse=True, colalign=sides)
    return re.sub(r" {2,}", " ", re.sub(r"(:?)-{3,}(:?)", r"\1---\2", text))


def _completed(results: Results, command: str) -> Results:
    """The results with the facts that the writer adds; those of results read from a file are kept."""
    added = {"measured": date.today().isoformat(), "environment": environment()}
    return replace(results, facts={**added, **results.facts, "command": command})


def _without_texts(results: Results) -> Results:
    """The results without examples and pairs, which hold texts of the data set."""
    facts = {**results.facts, "examples": []}
    facts["dataset"] = {name: one for name, one in facts["dataset"].items() if name != "unscored"}
    if "dialogs" in facts:
        facts["dialogs"] = {name: one for name, one in facts["dialogs"].items() if name != "examples"}
    return replace(results, facts=facts)


def _pictures(results: Results) -> dict[str, bytes]:
    """Thumbnails of the images of the examples, by id."""
    gallery = {} if results.dataset is None else {str(image.id): image for image in results.dataset.gallery}
    wanted = {
        id
        for example in results.facts.get("examples", ())
        for id in (*example["relevant"][:1], *example["first_before"], *example["first_after"])
    }
    return {id: thumbnail(gallery[id], side=_THUMBNAIL) for id in sorted(wanted & gallery.keys())}


def _write_figures(drawn: Mapping[str, tuple[str, str]], folder: Path) -> list[Path]:
    """Write figures, and remove those of an earlier evaluation."""
    files = {folder / "figures" / name: svg for name, (svg, _) in drawn.items()}
    for file, svg in files.items():
        write_whole(file, [svg])
    for left in {*folder.glob("figures/*.svg")} - {*files}:
        left.unlink()
    return [*files]


def write_runs(results: Results, folder: Path, *, depth: int | None = None, suffix: str = "") -> list[Path]:
    """Write all runs with ties broken, the qrels, and the scores of rated pairs; returns the files.

    Run files of an earlier evaluation are removed.

    Args:
        results: of an evaluation.
        folder: of the report, made when missing.
        depth: results of a query that are written; all when None.
        suffix: of all names, ``".gz"`` to compress.
    """
    files = []
    for name, run in results.runs.items():
        files.append(folder / f"{name}{suffix}")
        write_run(run, files[-1], depth=depth)
        judged = files[-1].with_name(f"qrels.txt{suffix}")
        if judged not in files and judged.parent.name != "ablations":
            files.append(judged)
            write_qrels(run.task.qrels, judged)
    for name, scores in results.ratings.items():
        files.append(folder / f"{name}{suffix}")
        write_whole(files[-1], [scores.to_csv(sep="\t", index=False, float_format="%.7g")])
    runs = folder / "runs"
    for left in {*runs.rglob(f"*.run{suffix}"), *runs.glob(f"agreement/*.tsv{suffix}")} - {*files}:
        left.unlink()
    return files
