"""Rankings as one HTML page that needs nothing else: images inline, no script, no network.

:func:`thumbnails` opens the images; :func:`contact_sheet` fills the template and touches nothing else.
Templates escape all values; other pages of the library extend ``base.html.j2``.
"""

from __future__ import annotations

import base64
import contextlib
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from PIL import Image as PILImage

from zsqretrieval._util.checks import check_counts, printable
from zsqretrieval._util.optional import import_optional
from zsqretrieval.data.images import ImageLike, decode
from zsqretrieval.data.sources import Reopener
from zsqretrieval.errors import ImageError
from zsqretrieval.search.explain import SAYS, words
from zsqretrieval.search.ranking import Ranking, score_text
from zsqretrieval.search.scoring import YesNo
from zsqretrieval.types import Hit

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console, RenderableType
    from rich.text import Text

THUMBNAIL_SIDE = 256
"""Longest side of a thumbnail in pixels."""


@dataclass(frozen=True, slots=True)
class Stage:
    """How pages and tables show the score of a stage."""

    label: str  # name in words
    digits: int = 2  # after the point
    legend: str = ""  # meaning of the number and its bar; empty for an unknown stage


STAGES: Mapping[str, Stage] = {
    "first_stage": Stage(
        "first stage", 3, "First stage: cosine similarity of question and image; all bars share one scale."
    ),
    "normalized": Stage(
        "normalized",
        3,
        "Normalized: the first stage less the image's similarity to a bank of other questions.",
    ),
    "likelihood": Stage(
        "likelihood", legend="Likelihood: log P(question | image); bars compare P with the best of the row."
    ),
    "yes_no": Stage("yes or no", legend="Yes or no: log-odds of yes; bars show P(yes) against P(no)."),
    "fused": Stage("fused", 3, "Fused: both scores combined, which ranks."),
    "image_similarity": Stage("image similarity", 3),
    "question_similarity": Stage(
        "question similarity",
        3,
        "Similarities of image and question: of the query to the image, and to the nearest stored question "
        "of the image, which is shown under it; the first stage combines both.",
    ),
    "dialog": Stage("dialog", legend="Dialog: log P(image | answers); bars show P."),
}
"""The stages by their names in :attr:`Hit.scores <zsqretrieval.types.Hit.scores>`."""

_PARTS = ("image_similarity", "question_similarity")  # parts of another score; they never rank
_EXPLAINED = (
    "Under an image: its answer, and the question with the gain in nats of each word that the image makes "
    "likelier (+) or less likely (-)."
)


@dataclass(frozen=True, slots=True)
class Row:
    """One query of the page."""

    ranking: Ranking
    expected: str | None = None  # id of the right image, which is marked; None when unknown
    answerable: bool = True  # False: no image is right
    asked_with: bytes | None = None  # thumbnail of the query image; None for a question
    first: int | None = None  # hits that are shown, beside the right one; None for all
    former: int | None = None  # rank of the right image before re-ranking

    def shown(self) -> dict[int, Hit]:
        """The hits on the page, by rank from 1."""
        first = len(self.ranking) if self.first is None else self.first
        ranked = enumerate(self.ranking, start=1)
        return {rank: hit for rank, hit in ranked if rank <= first or hit.id == self.expected}


def thumbnail(image: ImageLike, *, side: int = THUMBNAIL_SIDE) -> bytes:
    """Make a JPEG of at most ``side`` pixels per side; a smaller image keeps its size.

    Raises:
        ImageError: the image cannot be decoded.
    """
    pixels = decode(image, size_hint=side)
    pixels.thumbnail((side, side), PILImage.Resampling.LANCZOS)
    buffer = io.BytesIO()
    pixels.save(buffer, "JPEG", quality=72, optimize=True)
    return buffer.getvalue()


def thumbnails(
    hits: Iterable[Hit], files: Reopener | None = None, *, side: int = THUMBNAIL_SIDE
) -> dict[str, bytes]:
    """Make thumbnails of the images of hits, by id; ``files`` opens those that their album keeps.

    Images that are gone, or are not the album's by their digest, are left out.
    """
    made: dict[str, bytes] = {}
    with files or Reopener() as opened:
        for id, hit in {hit.id: hit for hit in hits}.items():
            with contextlib.suppress(ImageError):
                made[id] = thumbnail(opened.open(hit.source, hit.digest), side=side)
    return made


def contact_sheet(
    rows: Sequence[Row],
    thumbnails: Mapping[str, bytes],
    *,
    title: str,
    summary: str = "",
    credits: str = "",
) -> str:
    """Lay out rankings as a web page, one row of images per query.

    Args:
        rows: the queries. Under each image: the matched question, the explanation, and all scores.
        thumbnails: JPEGs by id of a hit; a hit without one is shown by name.
        title: heading.
        summary: sentence under the heading.
        credits: authors of the images, at the foot.

    Returns:
        HTML, which forbids itself scripts and the network.
    """
    hits = [hit for row in rows for hit in row.shown().values()]
    scores = [hit.scores for hit in hits]
    legends = [stage.legend for name, stage in STAGES.items() if any(name in one for one in scores)]
    if any(hit.explanation for hit in hits):
        legends.append(_EXPLAINED)
    closest = max((one["first_stage"] for one in scores if "first_stage" in one), default=0.0)
    return render(
        "contact_sheet.html.j2",
        title=title,
        summary=summary,
        credits=credits,
        legend=" ".join(filter(None, legends)),
        rows=[_row(row, thumbnails, closest) for row in rows],
    )


def notebook(ranking: Ranking) -> str:
    """Lay out a ranking as a fragment of HTML, for a notebook."""
    return render("notebook.html.j2", ranking=ranking, pictures=_pictures(ranking, side=160))


def figure(ranking: Ranking, columns: int) -> Figure:
    """Draw the hits of a ranking with their scores."""
    install = "pip install matplotlib"
    made = import_optional("matplotlib.figure", "Ranking.plot()", install, package="matplotlib")
    check_counts(columns=columns)
    pictures = _pictures(ranking)
    rows = max(math.ceil(len(ranking) / columns), 1)
    drawn: Figure = made.Figure(figsize=(2.4 * columns, 2.6 * rows), layout="constrained")
    drawn.suptitle(_plain(ranking.query))
    for place, axes in enumerate(drawn.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if place < len(ranking):
            hit = ranking[place]
            if hit.id in pictures:
                axes.imshow(PILImage.open(io.BytesIO(pictures[hit.id])))
            axes.set_title(_plain(f"{place + 1}. {hit.id}\n{score_text(hit)}"), fontsize=8)
    return drawn


def _plain(text: str) -> str:
    """Printable text that matplotlib does not read as a formula."""
    return "\n".join(map(printable, text.splitlines())).replace("$", r"\$")


def rich_lines(ranking: Ranking, console: Console) -> Iterator[RenderableType]:
    """The hits for a terminal, with thumbnails if it shows 24-bit colours."""
    from rich.table import Table
    from rich.text import Text

    shown = console.is_terminal and console.color_system == "truecolor"
    pictures = _pictures(ranking) if shown else {}
    table = Table.grid(padding=(0, 2))
    yield Text(printable(ranking.query), style="bold")
    for rank, hit in enumerate(ranking, start=1):
        picture = [_blocks(pictures[hit.id]) if hit.id in pictures else Text()] if shown else []
        table.add_row(Text(str(rank)), *picture, Text(score_text(hit)), Text(printable(hit.id)))
    yield table


def _blocks(jpeg: bytes, *, width: int = 24, height: int = 16) -> Text:
    """A picture of half-block characters: two pixels, one above the other, per character."""
    from rich.text import Text

    pixels = PILImage.open(io.BytesIO(jpeg)).convert("RGB")
    pixels.thumbnail((width, height))
    values = np.asarray(pixels)
    lines = []
    for upper, lower in zip(values[0::2], values[1::2], strict=False):  # an odd last row is left out
        line = Text()
        for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
            line.append("▀", style="#{:02x}{:02x}{:02x} on #{:02x}{:02x}{:02x}".format(*above, *below))
        lines.append(line)
    return Text("\n").join(lines)


def _pictures(ranking: Ranking, *, side: int = THUMBNAIL_SIDE) -> dict[str, bytes]:
    return thumbnails(ranking, None if ranking.kept is None else ranking.kept.files(), side=side)


def render(template: str, **values: Any) -> str:
    """Fill a template of the package; values are escaped."""
    return templates().get_template(template).render(**values)


@cache
def templates(*packages: str) -> jinja2.Environment:
    """The templates of the package, and those of other packages that extend them."""
    made = jinja2.Environment(
        loader=jinja2.ChoiceLoader([*map(jinja2.PackageLoader, (*packages, "zsqretrieval.search"))]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["base64"] = lambda content: base64.b64encode(content).decode("ascii")
    return made


def _row(row: Row, thumbnails: Mapping[str, bytes], closest: float) -> dict[str, Any]:
    shown = row.shown()
    likeliest = max((hit.scores.get("likelihood", -math.inf) for hit in shown.values()), default=-math.inf)
    return {
        "query": row.ranking.query,
        "asked_with": row.asked_with,
        "verdict": _verdict(row),
        "cards": [
            {
                "hit": hit,
                "rank": rank,
                "picture": thumbnails.get(hit.id),
                "right": hit.id == row.expected,
                "words": _words(hit),
                "lines": _lines(hit, closest, likeliest),
            }
            for rank, hit in shown.items()
        ],
    }


def _verdict(row: Row) -> tuple[str, str] | None:
    """A class and a sentence on the rank of the expected image, or on there being none."""
    if not len(row.ranking):
        return "miss", "no results"
    nothing = row.ranking[: row.first].nothing_found
    if not row.answerable:
        return ("hit", "nothing fits, as expected") if nothing else ("miss", "nothing should fit")
    if row.expected is None:
        return ("near", "probably nothing fits") if nothing else None
    ids = row.ranking.ids
    if row.expected not in ids:
        return "miss", f"{row.expected} is not among the first {len(ids)}"
    rank = ids.index(row.expected) + 1
    said = "ranked first" if rank == 1 else f"rank {rank}"
    if row.former not in (None, rank):
        said += f", {row.former} by the first stage"
    if nothing:
        said += "; judged improbable"
    return "hit" if rank == 1 else "near", said


def _words(hit: Hit) -> list[dict[str, Any]]:
    """The words of an explained question; those of a large gain have a kind."""
    if hit.explanation is None:
        return []
    kinds = {True: "for", False: "against"}
    return [
        {"text": word.text, "gain": word.gain, "kind": kinds[word.gain > 0] if abs(word.gain) >= SAYS else ""}
        for word in words(hit.explanation)
    ]


def _lines(hit: Hit, closest: float, likeliest: float) -> list[dict[str, Any]]:
    """One line per score: label, bar, number, and whether it ranks."""
    several = len(hit.scores) > 1
    ranking = [name for name, score in hit.scores.items() if score == hit.score and name not in _PARTS][-1:]
    lines = []
    for name, score in hit.scores.items():
        stage = STAGES.get(name, Stage(name))
        lines.append(
            {
                "label": stage.label if several else "",
                "share": _share(name, score, closest, likeliest),
                "number": f"{score:.{stage.digits}f}",
                "ranks": several and name in ranking,
            }
        )
    return lines


def _share(name: str, score: float, closest: float, likeliest: float) -> float | None:
    """Filled share of a score's bar, in [0, 1]; None where the scale has no meaning by itself."""
    if name == "first_stage":
        return min(max(score / closest, 0.0), 1.0) if closest > 0 else 0.0
    if name == "likelihood":
        return math.exp(min(score - likeliest, 0.0))
    if name == "dialog":
        return math.exp(min(score, 0.0))
    if name == "yes_no":
        return YesNo.probability(score)
    return None
