"""The run files of a study, and where each lies.

{direction}/{form}/qrels.txt
{direction}/{form}/{system}.run
{direction}/{form}/ablations/{system}.run      of the queries of the ablations
agreement/{ratings}.tsv                        what each system makes of the pairs rated, in their order
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from zsqretrieval.evaluation.findings import Agreement, Part, Study
from zsqretrieval.evaluation.measures import break_ties
from zsqretrieval.evaluation.runs import shallow
from zsqretrieval.evaluation.trec import write_qrels, write_run
from zsqretrieval.evaluation.writing import write_whole

__all__ = ["run_file", "scores_file", "write_runs"]


def run_file(part: Part, system: str) -> str:
    """Where the run of a system lies within the folder of all, with slashes."""
    folder = "/ablations" if any(run.name == system for run in part.ablation_runs) else ""
    return f"{_file_name(part.direction)}/{_file_name(part.form)}{folder}/{_file_name(system)}.run"


def scores_file(agreed: Agreement) -> str:
    """Where the scores of judged pairs lie within the folder of all, with slashes."""
    return f"agreement/{_file_name(agreed.ratings)}.tsv"


def write_runs(study: Study, folder: Path, *, depth: int | None = None, suffix: str = "") -> list[Path]:
    """Write the runs of all systems and ablations, ties broken, the qrels, and the scores of judged pairs.

    Args:
        study: what was found.
        folder: made when missing. Such files that another study left there are removed, so that all that
            lie there belong together.
        depth: how many of the first are written; all when None.
        suffix: of all names, ``".gz"`` to compress.

    Returns:
        The files.

    Raises:
        OSError: the disk refuses.
    """
    files = []
    for part in study.parts:
        place = Path(folder) / _file_name(part.direction) / _file_name(part.form)
        files.append(place / f"qrels.txt{suffix}")
        write_qrels(part.task.qrels, files[-1])
        for run in (*part.runs, *part.ablation_runs):
            ranked = break_ties(run, part.task.qrels)
            files.append(Path(folder) / f"{run_file(part, run.name)}{suffix}")
            write_run(ranked if depth is None else shallow(ranked, depth), files[-1])
    for agreed in study.agreement:
        files.append(Path(folder) / f"{scores_file(agreed)}{suffix}")
        write_whole(files[-1], _pairs(agreed))
    there = {*Path(folder).rglob(f"*.run{suffix}"), *Path(folder).glob(f"agreement/*.tsv{suffix}")}
    for left in there - {*files}:
        left.unlink()
    return files


def _pairs(agreed: Agreement) -> Iterator[str]:
    yield "\t".join(["image", *agreed.scores]) + "\n"
    for image, *scores in zip(agreed.images, *agreed.scores.values(), strict=True):
        yield "\t".join([image, *(f"{score:.7g}" for score in scores)]) + "\n"


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-")
