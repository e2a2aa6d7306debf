"""A study as one web page that needs nothing else: figures and images inline, no script, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from zsqretrieval.evaluation.findings import Example, Study
from zsqretrieval.evaluation.plan import BASELINE
from zsqretrieval.evaluation.tables import Table
from zsqretrieval.search.html import document, inlined

__all__ = ["page"]


def page(
    study: Study,
    said: Sequence[str],
    found: Sequence[Table],
    drawn: Mapping[str, tuple[str, str]],
    pictures: Mapping[str, bytes],
    *,
    command: str,
    machine: Mapping[str, Any],
) -> str:
    """Lay a report out.

    Args:
        study: what was found.
        said: sentences that stand first.
        found: the tables.
        drawn: SVGs by name, each with what it shows.
        pictures: JPEGs by the id of the image; one that is missing is named only.
        command: with which it can be done again.
        machine: as :func:`~zsqretrieval.evaluation.report.environment` gives it.

    Returns:
        The HTML. Names and texts are escaped, and the page forbids itself scripts and the network.
    """
    sections = [_list([*said, *(f"Note: {note}" for note in study.dataset.notes)], "answers")]
    sections += [_figure(svg, what) for svg, what in drawn.values()]
    for part in study.parts:
        for heading, examples in (("found better", part.won), ("found worse", part.lost)):
            if examples:
                title = f"Examples {heading} by {examples[0].system}, {part.direction}, {part.form}"
                rows = "\n".join(_example(one, pictures) for one in examples)
                sections.append(f"<section><h2>{escape(title)}</h2>\n{rows}</section>")
    sections += [_table(table) for table in found]
    facts = [f"{name}: {value}" for name, value in study.fingerprints.items()]
    facts += [f"{name} {version}" for name, version in machine["packages"].items()]
    facts += [f"{name}: {value}" for name, value in machine.items() if name != "packages"]
    facts.append(f"seed: {study.plan.seed}")
    sections.append(
        f"<section><h2>Do it again</h2><pre>{escape(command)}</pre>{_list(facts, 'facts')}</section>"
    )
    title = f"{study.dataset.name}: what finds its images?"
    forms = ", ".join(study.dataset.forms)
    summary = (
        f"{len(study.dataset.gallery):,} images; texts of the forms {forms}; the best "
        f"{study.plan.candidates} of the first stage are read."
    )
    header = f"<header><h1>{escape(title)}</h1><p>{escape(summary)}</p></header>"
    return document(title, _STYLE, "\n".join([header, *sections]))


def _list(items: Sequence[str], kind: str) -> str:
    return f'<ul class="{kind}">' + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _figure(svg: str, what: str) -> str:
    return (
        f'<figure><img src="{inlined(svg.encode(), "image/svg+xml")}" alt="{escape(what)}">'
        f"<figcaption>{escape(what)}</figcaption></figure>"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th{_kind(n, table)}>{escape(name)}</th>" for n, name in enumerate(table.header))
    body = "\n".join(
        "<tr>" + "".join(f"<td{_kind(n, table)}>{escape(cell)}</td>" for n, cell in enumerate(row)) + "</tr>"
        for row in table.rows
    )
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    return (
        f"<section><h2>{escape(table.title)}</h2>{note}"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}</tbody></table></div></section>"
    )


def _kind(column: int, table: Table) -> str:
    return ' class="word"' if column < table.words else ""


def _example(one: Example, pictures: Mapping[str, bytes]) -> str:
    rows = [
        ("right", one.relevant[:1]),
        (f"{BASELINE}: {_rank(one.before)}", one.first_before),
        (f"{one.system}: {_rank(one.after)}", one.first_after),
    ]
    strips = "".join(
        f'<div class="strip"><span>{escape(label)}</span>'
        + "".join(_picture(id, id in one.relevant, pictures) for id in ids)
        + "</div>"
        for label, ids in rows
    )
    return f'<article><h3>{escape(one.text)}</h3><div class="strips">{strips}</div></article>'


def _rank(rank: int | None) -> str:
    return "not found" if rank is None else f"rank {rank}"


def _picture(id: str, right: bool, pictures: Mapping[str, bytes]) -> str:
    kind = ' class="right"' if right else ""
    if id not in pictures:
        return f"<span{kind}>{escape(id)}</span>"
    source = inlined(pictures[id], "image/jpeg")
    return f'<img{kind} src="{source}" alt="{escape(id)}" title="{escape(id)}">'


_STYLE = """
:root { --paper: #faf9f7; --sheet: #fff; --ink: #22211f; --quiet: #716d66; --line: #e6e2db;
  --right: #2f7d5b; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #161615; --sheet: #1f1f1d; --ink: #e9e6e1; --quiet: #9a958c; --line: #33312e;
    --right: #6fc39b; }
}
* { box-sizing: border-box; margin: 0; }
body { background: var(--paper); color: var(--ink);
  font: 16px/1.5 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 92rem; margin: 0 auto; padding: clamp(1rem, 4vw, 3rem); }
h1 { font-size: clamp(1.5rem, 4vw, 2.1rem); font-weight: 600; letter-spacing: -0.02em; line-height: 1.2; }
h2 { font-size: 1.15rem; font-weight: 600; }
h3 { font-size: 1rem; font-weight: 500; overflow-wrap: anywhere; }
header p, section p, figcaption { color: var(--quiet); font-size: 0.88rem; max-width: 90ch;
  margin-top: 0.3rem; }
.answers { padding: 1.2rem 0 1.2rem 1.2rem; max-width: 90ch; display: grid; gap: 0.6rem; }
section, figure { border-top: 1px solid var(--line); padding: 1.4rem 0; }
figure img { max-width: 100%; background: #fff; border-radius: 8px; padding: 0.4rem; }
.wide { overflow-x: auto; margin-top: 0.8rem; }
table { border-collapse: collapse; font-size: 0.8rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.28rem 0.7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { color: var(--quiet); font-weight: 500; }
.word { text-align: left; padding-left: 0; }
article { padding: 0.9rem 0; }
.strips { display: flex; flex-wrap: wrap; gap: 0.6rem 1.6rem; margin-top: 0.4rem; }
.strip { display: flex; flex-wrap: wrap; align-items: center; gap: 0.4rem; }
.strip > span:first-child { color: var(--quiet); font-size: 0.78rem; width: 100%; }
.strip img { height: 6rem; width: auto; border-radius: 6px; border: 3px solid transparent; }
.strip .right { border-color: var(--right); color: var(--right); }
pre { background: var(--sheet); border: 1px solid var(--line); border-radius: 6px; padding: 0.7rem;
  overflow-x: auto; font-size: 0.8rem; margin: 0.8rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.facts { color: var(--quiet); font-size: 0.8rem; padding-left: 1.2rem; columns: 3 16rem;
  overflow-wrap: anywhere; }
"""
