"""Rankings as one HTML page that needs nothing else: images inline, no script, no network.

:func:`thumbnails` reads the images, :func:`contact_sheet` lays them out; the second is a pure function.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image as PILImage

from zsqretrieval.data.images import ImageLike, decode
from zsqretrieval.data.sources import Reopener
from zsqretrieval.errors import ImageError
from zsqretrieval.search.explain import SAYS, Word, words
from zsqretrieval.search.html import document, inlined
from zsqretrieval.types import Hit, Ranking

__all__ = ["STAGES", "Row", "Stage", "contact_sheet", "thumbnail", "thumbnails"]

THUMBNAIL_SIDE = 256
"""Longest side of a thumbnail in pixels."""


@dataclass(frozen=True, slots=True)
class Stage:
    """How the score of a stage is shown to people.

    Attributes:
        label: its name in words.
        digits: how many after the point.
        legend: what the number and its bar mean; empty for a stage that is not known.
    """

    label: str
    digits: int = 2
    legend: str = ""


STAGES: Mapping[str, Stage] = {
    "first_stage": Stage(
        "first stage", 3, "First stage: cosine similarity of question and image; all bars share one scale."
    ),
    "normalized": Stage(
        "normalized", 3, "Normalized: the first stage without what an image gets from any question."
    ),
    "likelihood": Stage(
        "likelihood", legend="Likelihood: log P(question | image); bars compare P with the best of the row."
    ),
    "yes_no": Stage("yes or no", legend="Yes or no: log-odds of yes; bars show P(yes) against P(no)."),
    "fused": Stage("fused", 3, "Fused: both together, which ranks."),
    "image_similarity": Stage("image similarity", 3),
    "question_similarity": Stage(
        "question similarity",
        3,
        "Similarities of image and question: those of what was searched to the image, and to the nearest "
        "question kept for it, which stands under the image; the first stage joins both.",
    ),
    "dialog": Stage("dialog", legend="Dialog: log P(image | what was said); bars show P."),
}
"""The stages by their names in :attr:`Hit.scores <zsqretrieval.types.Hit.scores>`."""

_PARTS = ("image_similarity", "question_similarity")  # of another score; they never rank
_EXPLAINED = (
    "Under an image stand its answer to the question, and behind a word by how many nats the image makes it "
    "likelier or, below 0, less likely."
)


@dataclass(frozen=True, slots=True)
class Row:
    """One question of the page.

    Attributes:
        ranking: what was found.
        expected: id of the image that answers the question, marked where it appears; None when unknown.
        asked_with: thumbnail of the query image, as :func:`thumbnail` makes it; None for a question in words.
    """

    ranking: Ranking
    expected: str | None = None
    asked_with: bytes | None = None


def thumbnail(image: ImageLike, *, side: int = THUMBNAIL_SIDE) -> bytes:
    """Shrink an image.

    Args:
        image: what to shrink.
        side: the longest side in pixels; a smaller image keeps its size.

    Returns:
        A JPEG.

    Raises:
        ImageError: the image cannot be decoded.
    """
    pixels = decode(image, size_hint=side)
    pixels.thumbnail((side, side), PILImage.Resampling.LANCZOS)
    buffer = io.BytesIO()
    pixels.save(buffer, "JPEG", quality=72, optimize=True)
    return buffer.getvalue()


def thumbnails(hits: Iterable[Hit], *, side: int = THUMBNAIL_SIDE) -> dict[str, bytes]:
    """Shrink the images of hits, by reading again what their sources name.

    Args:
        hits: the hits; one image may appear several times.
        side: the longest side in pixels.

    Returns:
        JPEGs by source. Images that are no longer there, never were files, or are others than the album's by
        their digest, are left out.
    """
    made: dict[str, bytes] = {}
    with Reopener() as files:
        for source, digest in {hit.source: hit.digest for hit in hits}.items():
            with contextlib.suppress(ImageError):
                made[source] = thumbnail(files.open(source, digest), side=side)
    return made


def contact_sheet(
    rows: Sequence[Row],
    thumbnails: Mapping[str, bytes],
    *,
    title: str,
    summary: str = "",
    credits: str = "",
) -> str:
    """Lay rankings out as a web page, a row of images for every question.

    Args:
        rows: what to show. Under each image stand the question that matched, the explanation, and the scores
            of all stages, the one that ranks set off.
        thumbnails: JPEGs by the source of a hit; a hit without one appears by name only.
        title: heading of the page.
        summary: a sentence under the heading.
        credits: who made the images; at the foot of the page.

    Returns:
        The HTML. Names and questions are escaped, and the page forbids itself scripts and the network.
    """
    scores = [hit.scores for row in rows for hit in row.ranking]
    legends = [stage.legend for name, stage in STAGES.items() if any(name in one for one in scores)]
    if any(hit.explanation for row in rows for hit in row.ranking):
        legends.append(_EXPLAINED)
    closest = max((one["first_stage"] for one in scores if "first_stage" in one), default=0.0)
    sections = "\n".join(_section(row, thumbnails, closest) for row in rows)
    main = _MAIN.format(
        legend=" ".join(filter(None, legends)),
        title=escape(title),
        summary=f"<p>{escape(summary)}</p>" if summary else "",
        sections=sections,
        credits=f"<p>{escape(credits)}</p>" if credits else "",
    )
    return document(title, _STYLE, main)


def _section(row: Row, thumbnails: Mapping[str, bytes], closest: float) -> str:
    likeliest = max((hit.scores.get("likelihood", -math.inf) for hit in row.ranking), default=-math.inf)
    asked_with = _picture(row.asked_with, "the image asked with") if row.asked_with else ""
    cards = "\n".join(
        _card(place, hit, thumbnails.get(hit.source), row.expected, closest, likeliest)
        for place, hit in enumerate(row.ranking, start=1)
    )
    return (
        f'<section>\n<header><h2 dir="auto">{escape(row.ranking.query)}</h2>{asked_with}{_verdict(row)}'
        f"</header>\n<ol>\n{cards}\n</ol>\n</section>"
    )


def _verdict(row: Row) -> str:
    if not len(row.ranking):
        return '<p class="miss">nothing found</p>'
    if row.expected is None:
        return ""
    ids = [hit.id for hit in row.ranking]
    if row.expected not in ids:
        return f'<p class="miss">{escape(row.expected)} is not among the first {len(ids)}</p>'
    place = ids.index(row.expected) + 1
    kind, words = ("hit", "found first") if place == 1 else ("near", f"found in place {place}")
    return f'<p class="{kind}">{words}</p>'


def _card(
    place: int, hit: Hit, picture: bytes | None, expected: str | None, closest: float, likeliest: float
) -> str:
    image = _picture(picture, hit.caption or hit.id) if picture else '<div class="absent">no picture</div>'
    right = hit.id == expected
    several = len(hit.scores) > 1
    decisive = [name for name, score in hit.scores.items() if score == hit.score and name not in _PARTS][-1:]
    lines = "\n".join(
        _line(name, score, _share(name, score, closest, likeliest), several, name in decisive)
        for name, score in hit.scores.items()
    )
    return (
        f'<li class="card{" expected" if right else ""}" title="{escape(hit.source)}">'
        f'<div class="frame">{image}<span class="place">{place}</span></div>'
        f'<p class="name" dir="auto">{escape(hit.id)}{_TICK if right else ""}</p>{_why(hit)}'
        f'<div class="scores">{lines}</div></li>'
    )


def _why(hit: Hit) -> str:
    """Which question matched, what the image answers, and which words of the question it explains."""
    said = []
    if hit.matched_question is not None:
        said.append(f'<p class="matched" dir="auto">{escape(hit.matched_question)}</p>')
    if hit.explanation is not None:
        if hit.explanation.answer:
            said.append(f'<p class="answer" dir="auto">{escape(hit.explanation.answer)}</p>')
        said.append(f'<p class="words" dir="auto">{" ".join(map(_word, words(hit.explanation)))}</p>')
    return "".join(said)


def _word(word: Word) -> str:
    if abs(word.gain) < SAYS:
        return escape(word.text)
    kind = "for" if word.gain > 0 else "against"
    return f'<b class="{kind}">{escape(word.text)}<sup>{word.gain:+.1f}</sup></b>'


def _line(name: str, score: float, share: float | None, several: bool, ranks: bool) -> str:
    stage = STAGES.get(name, Stage(name))
    label = f'<span class="stage">{escape(stage.label)}</span>' if several else ""
    bar = "" if share is None else f'<i style="width:{100 * share:.1f}%"></i>'
    number = f'<span class="number">{score:.{stage.digits}f}</span>'
    kind = "score ranks" if several and ranks else "score"
    return f'<p class="{kind}">{label}<span class="bar">{bar}</span>{number}</p>'


def _share(name: str, score: float, closest: float, likeliest: float) -> float | None:
    """How much of its bar a score fills, in [0, 1]; None when its scale means nothing by itself."""
    if name == "first_stage":
        return min(max(score / closest, 0.0), 1.0) if closest > 0 else 0.0
    if name == "likelihood":
        return math.exp(min(score - likeliest, 0.0))
    if name == "dialog":
        return math.exp(min(score, 0.0))
    if name == "yes_no":
        return 0.5 + 0.5 * math.tanh(score / 2)  # the logistic function, without overflow
    return None


def _picture(jpeg: bytes, alt: str) -> str:
    return f'<img src="{inlined(jpeg, "image/jpeg")}" alt="{escape(alt)}" decoding="async">'


_TICK = ' <span class="tick" role="img" aria-label="the expected image">&#10003;</span>'

_MAIN = """<header class="top"><h1>{title}</h1>{summary}</header>
{sections}
<footer><p>Higher is better. {legend}</p>{credits}</footer>"""

_STYLE = """
:root {
  --paper: #faf9f7; --sheet: #fff; --ink: #22211f; --quiet: #716d66; --line: #e6e2db; --bar: #b9b3a8;
  --right: #2f7d5b; --wrong: #a4532f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #161615; --sheet: #1f1f1d; --ink: #e9e6e1; --quiet: #9a958c; --line: #33312e; --bar: #5d5952;
    --right: #6fc39b; --wrong: #dc946f;
  }
}
* { box-sizing: border-box; margin: 0; }
body { background: var(--paper); color: var(--ink); line-height: 1.5; -webkit-text-size-adjust: 100%;
  font: 16px/1.5 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: clamp(1.25rem, 4vw, 3.5rem) clamp(1rem, 4vw, 2.5rem); }
h1 { font-size: clamp(1.6rem, 4vw, 2.2rem); font-weight: 600; letter-spacing: -0.02em; line-height: 1.2; }
.top { padding-bottom: 1.75rem; }
.top p { color: var(--quiet); margin-top: 0.5rem; max-width: 60ch; }
section { border-top: 1px solid var(--line); padding: 1.6rem 0; display: grid; gap: 1.1rem 2rem;
  grid-template-columns: minmax(11rem, 16rem) 1fr; align-items: start; }
h2 { font-size: 1.12rem; font-weight: 550; line-height: 1.35; letter-spacing: -0.005em;
  overflow-wrap: anywhere; text-wrap: balance; }
section header img { display: block; width: 100%; border-radius: 8px; margin-top: 0.7rem; }
section header p { font-size: 0.85rem; margin-top: 0.4rem; overflow-wrap: anywhere; }
.hit { color: var(--right); } .near { color: var(--quiet); } .miss { color: var(--wrong); }
ol { list-style: none; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 11.5rem), 1fr)); }
.card { max-width: 17rem; background: var(--sheet); border: 1px solid var(--line); border-radius: 10px;
  overflow: hidden; }
.expected { border-color: var(--right); box-shadow: 0 0 0 1px var(--right); }
.frame { position: relative; aspect-ratio: 4 / 3; background: var(--line); }
.frame img { width: 100%; height: 100%; object-fit: cover; object-position: 50% 25%; display: block; }
.absent { height: 100%; display: grid; place-items: center; color: var(--quiet); font-size: 0.85rem; }
.place { position: absolute; left: 0.5rem; top: 0.5rem; min-width: 1.5rem; padding: 0 0.4rem;
  border-radius: 99px; background: rgb(0 0 0 / 0.55); color: #fff; font-size: 0.75rem; line-height: 1.5rem;
  text-align: center; }
.name { padding: 0.55rem 0.75rem 0; font-size: 0.92rem; overflow-wrap: anywhere; }
.tick { color: var(--right); font-weight: 700; }
.matched, .answer, .words { padding: 0.2rem 0.75rem 0; font-size: 0.8rem; line-height: 1.4;
  color: var(--quiet); overflow-wrap: anywhere; }
.matched::before { content: "asked: "; } .answer::before { content: "answers: "; }
.answer { color: var(--ink); }
.words b { font-weight: 550; } .words sup { font-size: 0.7em; line-height: 0; }
.for { color: var(--right); } .against { color: var(--wrong); }
.scores { padding: 0.15rem 0.75rem 0.65rem; }
.score { display: flex; align-items: center; gap: 0.6rem; color: var(--quiet); font-size: 0.8rem;
  font-variant-numeric: tabular-nums; }
.stage { width: 4.6rem; }
.number { min-width: 2.9rem; text-align: right; }
.ranks { color: var(--ink); font-weight: 600; }
.bar { flex: 1; height: 4px; border-radius: 2px; overflow: hidden; } .bar:has(i) { background: var(--line); }
.bar i { display: block; height: 100%; border-radius: 2px; background: var(--bar); }
.expected .bar i { background: var(--right); }
footer { border-top: 1px solid var(--line); padding-top: 1.4rem; color: var(--quiet); font-size: 0.8rem; }
footer p { max-width: 90ch; } footer p + p { margin-top: 0.5rem; }
@media (max-width: 46rem) {
  section { grid-template-columns: 1fr; }
  ol { grid-template-columns: repeat(auto-fill, minmax(min(100%, 9rem), 1fr)); gap: 0.75rem; }
}
@media print { section { break-inside: avoid; } .place { print-color-adjust: exact; } }
"""
