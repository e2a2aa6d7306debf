"""A study as a folder: tables in Markdown, numbers in JSON, run files for anybody's trec_eval, one web page.

report.md, report.json, report.html
figures/*.svg
runs/{direction}/{form}/...            as :mod:`~zsqretrieval.evaluation.run_files` has them
work/                                  what the study kept; may be deleted, and is then computed anew
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zsqretrieval.evaluation.figures import figures
from zsqretrieval.evaluation.findings import Study
from zsqretrieval.evaluation.page import page
from zsqretrieval.evaluation.run_files import write_runs
from zsqretrieval.evaluation.tables import Table, answers, in_markdown, markdown_cell, tables
from zsqretrieval.evaluation.writing import write_whole
from zsqretrieval.search.display import thumbnail

__all__ = ["WORK", "environment", "markdown", "write_report"]

WORK = "work"
"""Name of the folder, within the report's, that a study works in."""

_PACKAGES = (
    "zsqretrieval", "torch", "transformers", "open_clip_torch", "timm", "numpy", "pillow", "scipy",
    "ir-measures", "pytrec-eval-terrier", "matplotlib",
)  # fmt: skip
_THUMBNAIL = 160  # longest side in pixels


def environment() -> dict[str, Any]:
    """Versions and machine: ``python``, ``packages``, ``system``, ``processors``, ``threads``, ``gpu``."""
    import torch

    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "packages": packages,
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def write_report(study: Study, folder: Path, *, command: str) -> dict[str, Any]:
    """Write the report; each file appears whole, ``report.json`` last.

    Args:
        study: what was found.
        folder: made when missing; files of a former report of the same names are replaced.
        command: with which it can be done again.

    Returns:
        What stands in ``report.json``.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        ImageError: an image of an example cannot be decoded.
        OSError: the disk refuses.
    """
    folder = Path(folder)
    machine = environment()
    drawn = figures(study)
    found = tables(study)
    said = answers(study)
    files = write_runs(study, folder / "runs")
    for name, (svg, _) in drawn.items():
        files.append(folder / "figures" / name)
        write_whole(files[-1], [svg])
    images = {str(image.id): image for image in study.dataset.gallery}
    wanted = {
        id
        for part in study.parts
        for example in (*part.won, *part.lost)
        for id in (*example.relevant[:1], *example.first_before, *example.first_after)
    }
    pictures = {id: thumbnail(images[id], side=_THUMBNAIL) for id in sorted(wanted)}
    texts = {
        "report.md": markdown(study, said, found, drawn, command, machine),
        "report.html": page(study, said, found, drawn, pictures, command=command, machine=machine),
    }
    for name, text in texts.items():
        write_whole(folder / name, [text])
        files.append(folder / name)
    facts = {
        "command": command,
        "answers": said,
        "environment": machine,
        **study.to_json(),
        "files": {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        },
    }
    write_whole(folder / "report.json", [json.dumps(facts, indent=1, allow_nan=False), "\n"])
    return facts


def markdown(
    study: Study,
    said: Sequence[str],
    found: Sequence[Table],
    drawn: Mapping[str, tuple[str, str]],
    command: str,
    machine: Mapping[str, Any],
) -> str:
    """The report in Markdown; figures are linked, examples told in words."""
    lines = [f"# {study.dataset.name}: what finds its images?", ""]
    lines += [f"- {sentence}" for sentence in said]
    lines += ["", *(f"- Note: {note}" for note in study.dataset.notes), ""]
    for name, (_, what) in drawn.items():
        lines += [f"![{what}](figures/{name})", "", what, ""]
    for table in found:
        lines += in_markdown(table)
    for part in study.parts:
        for heading, examples in (("won", part.won), ("lost", part.lost)):
            if examples:
                lines += [f"## Examples {heading}, {part.direction}, {part.form}", ""]
                lines += [
                    f"- {markdown_cell(one.text)}: rank {_rank(one.before)}, {_rank(one.after)} by "
                    f"{one.system}"
                    for one in examples
                ]
                lines.append("")
    lines += ["## Do it again", "", "```sh", command, "```", ""]
    lines += [f"- {name}: `{value}`" for name, value in study.fingerprints.items()]
    lines += [f"- {name}: `{value}`" for name, value in machine["packages"].items()]
    lines += [f"- {name}: {value}" for name, value in machine.items() if name != "packages"]
    lines += [f"- seed: {study.plan.seed}", ""]
    return "\n".join(lines)


def _rank(rank: int | None) -> str:
    return "none" if rank is None else str(rank)
