"""Raven-style matrices drawn by rule, so that any generator can be examined without network or data set.

A panel shows some equal shapes; it has four attributes of five levels each, and in a matrix each attribute
follows a rule of its own, along every row:

    constant       one level                            2 2 2
    progression    a step of 1 or 2, the same always    1 2 3 / 3 4 5
    arithmetic     the third is sum or difference       1 2 3 / 2 2 4
    distribution   the same three levels, in any order  1 4 2 / 4 2 1

The last panel is missing. Exactly one level of each attribute can stand there, whichever of the rules one
tries, along rows or down columns; so exactly one candidate is right.

**No hint in the candidates.** Where each distractor is the answer with one thing changed, the answer is
whatever most candidates agree on, and a model solves the test without seeing the matrix. I-RAVEN (Hu et al.,
AAAI 2021, arXiv 2002.06838) makes candidates by an attribute bisection tree instead: three attributes, each
kept in one half and changed to one other level in the other half, which makes 2 x 2 x 2 = 8 candidates, the
corners of a cube. The protocol of :mod:`zsqretrieval.tasks.raven` has six. Two opposite corners, neither of
them the answer, are left out: each level then stands in three of the six, and the six form a ring in which
every place is like every other. The answer's levels are drawn first, all equally likely, and the matrix is
made to suit; so of two levels among the candidates either might have been the answer's. Given the candidates
alone, all six are exactly equally likely.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.tasks.raven import RavenItem
from zsqretrieval.types import Image

__all__ = [
    "ATTRIBUTES",
    "LAYOUTS",
    "LEVELS",
    "RULES",
    "Matrix",
    "Panel",
    "draw_panel",
    "fits",
    "generate_matrices",
    "raven_item",
]

LEVELS = (1, 2, 3, 4, 5)
"""The levels of every attribute."""


class Panel(NamedTuple):
    """One picture of a matrix, by its levels.

    Attributes:
        number: how many shapes.
        size: of each, in equal steps.
        shape: triangle, square, pentagon, hexagon, circle.
        colour: from pale to dark.
    """

    number: int
    size: int
    shape: int
    colour: int


ATTRIBUTES: tuple[str, ...] = Panel._fields
"""The attributes, in the order of :class:`Panel`."""

LAYOUTS: Mapping[str, tuple[int, int]] = MappingProxyType({"2x2": (2, 2), "1x5": (1, 5), "3x3": (3, 3)})
"""Rows and columns by name: 3, 4 and 8 context images."""

_Row: TypeAlias = "tuple[int, ...]"

# --- rules: which rows they allow, and what all rows of a matrix must have in common -----------------------


def _constant(row: _Row) -> Hashable:
    return True if len(set(row)) == 1 else None


def _progression(row: _Row) -> Hashable:
    steps = {b - a for a, b in itertools.pairwise(row)}
    return steps.pop() if len(steps) == 1 and steps <= {-2, -1, 1, 2} else None


def _arithmetic(row: _Row) -> Hashable:
    if len(row) != 3:
        return None
    a, b, c = row
    return "sum" if a + b == c else "difference" if a - b == c else None


def _distribution(row: _Row) -> Hashable:
    """In a row of five the three levels come in turn."""
    in_turn = all(a == b for a, b in zip(row, row[3:], strict=False))
    return frozenset(row) if len(row) >= 3 and len(set(row[:3])) == 3 and in_turn else None


_RULES: Mapping[str, Callable[[_Row], Hashable]] = {
    "constant": _constant,
    "progression": _progression,
    "arithmetic": _arithmetic,
    "distribution": _distribution,
}

RULES: tuple[str, ...] = tuple(_RULES)
"""The rules by name. Shapes know no arithmetic; that and distribution need rows of three or more."""


def _follows(rule: str, rows: Sequence[_Row]) -> bool:
    kinds = {_RULES[rule](row) for row in rows}
    return len(kinds) == 1 and None not in kinds


@cache
def _rows(rule: str, columns: int) -> tuple[_Row, ...]:
    """All rows that a rule allows."""
    return tuple(row for row in itertools.product(LEVELS, repeat=columns) if _RULES[rule](row) is not None)


def _rules_for(attribute: str, rules: Sequence[str], columns: int) -> tuple[str, ...]:
    """Those of the rules that the attribute can follow; constant when it can follow none."""
    known = [rule for rule in rules if _rows(rule, columns) and (attribute, rule) != ("shape", "arithmetic")]
    return tuple(known) or ("constant",)


def _solutions(attribute: str, rows: Sequence[_Row]) -> set[int]:
    """The levels that any rule puts into the gap at the end of the last row, along rows or down columns."""
    found = set()
    for level in LEVELS:
        grid = [*rows[:-1], (*rows[-1], level)]
        readings = [grid, [*zip(*grid, strict=True)]] if len(grid) > 1 else [grid]
        if any(
            _follows(rule, reading)
            for reading in readings
            for rule in _rules_for(attribute, RULES, len(reading[0]))
        ):
            found.add(level)
    return found


# --- matrices ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Matrix:
    """One item, as numbers.

    Attributes:
        layout: a name of :data:`LAYOUTS`.
        rules: the rule of each attribute.
        context: the panels before the gap, in reading order.
        candidates: six different panels.
        answer: the position of the right one among them, from 0.
    """

    layout: str
    rules: Mapping[str, str]
    context: tuple[Panel, ...]
    candidates: tuple[Panel, ...]
    answer: int


def generate_matrices(
    count: int, *, layout: str = "3x3", rules: Sequence[str] = RULES, seed: int = 0
) -> list[Matrix]:
    """Make matrices.

    Args:
        count: how many.
        layout: a name of :data:`LAYOUTS`.
        rules: names of :data:`RULES` to choose from; an attribute that can follow none of them in this
            layout is constant.
        seed: makes them repeatable: the first ten of fifty are the ten of ten.

    Returns:
        ``count`` matrices. One candidate of each fits (:func:`fits`), and the candidates alone do not tell
        which.

    Raises:
        InvalidInputError: the count or seed is negative, the layout or a rule is unknown, or there are no
            rules.
    """
    if count < 0 or seed < 0:
        raise InvalidInputError(f"count={count}, seed={seed}; neither may be negative")
    if layout not in LAYOUTS:
        raise InvalidInputError(f"there is no layout {layout!r}; there are {', '.join(LAYOUTS)}")
    if isinstance(rules, str) or not rules or not set(rules) <= set(RULES):
        raise InvalidInputError(f"rules must be some of {', '.join(RULES)}, not {rules!r}")
    rows, columns = LAYOUTS[layout]
    return [
        _matrix(layout, rules, np.random.default_rng([seed, rows, columns, number]))
        for number in range(count)
    ]


def fits(matrix: Matrix, panel: Panel) -> bool:
    """Whether a panel can stand in the gap: for every attribute some rule holds, along rows or columns."""
    return all(
        panel[place] in _solutions(attribute, _levels(matrix, place))
        for place, attribute in enumerate(ATTRIBUTES)
    )


def _levels(matrix: Matrix, place: int) -> list[_Row]:
    """One attribute's rows; the last one is one level short."""
    columns = LAYOUTS[matrix.layout][1]
    levels = [panel[place] for panel in matrix.context]
    return [tuple(levels[start : start + columns]) for start in range(0, len(levels), columns)]


def _matrix(layout: str, rules: Sequence[str], rng: np.random.Generator) -> Matrix:
    rows, columns = LAYOUTS[layout]
    chosen: dict[str, str] = {}
    grids: list[list[int]] = []  # of each attribute, all levels in reading order
    changed: list[int] = []  # of each attribute, a level that the answer might have had as well
    for attribute in ATTRIBUTES:
        allowed = {rule: _rows(rule, columns) for rule in _rules_for(attribute, rules, columns)}
        possible = sorted({row[-1] for some in allowed.values() for row in some})
        level, other = (possible[i] for i in rng.permutation(len(possible))[:2])
        able = [rule for rule, some in allowed.items() if any(row[-1] == level for row in some)]
        chosen[attribute] = able[rng.integers(len(able))]
        grids.append(_grid(attribute, chosen[attribute], rows, columns, level, rng))
        changed.append(other)
    panels = [Panel(*levels) for levels in zip(*grids, strict=True)]
    candidates, answer = _candidates(panels[-1], changed, rng)
    return Matrix(layout, MappingProxyType(chosen), tuple(panels[:-1]), candidates, answer)


def _grid(
    attribute: str, rule: str, rows: int, columns: int, level: int, rng: np.random.Generator
) -> list[int]:
    """Levels in reading order that follow the rule, end with the level, and leave no other in its place."""
    allowed = _rows(rule, columns)
    ends = [row for row in allowed if row[-1] == level]
    while True:
        last = ends[rng.integers(len(ends))]
        alike = [row for row in allowed if _RULES[rule](row) == _RULES[rule](last)]
        grid = [*(alike[rng.integers(len(alike))] for _ in range(rows - 1)), last]
        if _solutions(attribute, [*grid[:-1], last[:-1]]) == {level}:
            return [one for row in grid for one in row]


def _candidates(
    right: Panel, changed: Sequence[int], rng: np.random.Generator
) -> tuple[tuple[Panel, ...], int]:
    """Six corners of the cube that the answer and three changed attributes span, and the answer's place."""
    places = rng.permutation(len(ATTRIBUTES))[:3]
    left_out = rng.permutation(3)[0]
    corners = []
    for corner in itertools.product((False, True), repeat=3):
        alone = [side != corner[left_out] for side in corner]
        if sum(alone) == 2:
            continue  # this attribute changed and the others not, or the other way round
        panel = list(right)
        for place, side in zip(places, corner, strict=True):
            if side:
                panel[place] = changed[place]
        corners.append(Panel(*panel))
    order = rng.permutation(len(corners))
    shuffled = tuple(corners[position] for position in order)
    return shuffled, shuffled.index(right)


# --- pictures ---------------------------------------------------------------------------------------------

# Which of 3 x 3 places are taken, as on dice.
_PLACES: Mapping[int, tuple[tuple[int, int], ...]] = {
    1: ((1, 1),),
    2: ((0, 0), (2, 2)),
    3: ((0, 0), (1, 1), (2, 2)),
    4: ((0, 0), (2, 0), (0, 2), (2, 2)),
    5: ((0, 0), (2, 0), (1, 1), (0, 2), (2, 2)),
}
_COLOURS = ((250, 220, 110), (240, 150, 60), (210, 70, 90), (120, 40, 130), (30, 20, 80))
_OUTLINE = (20, 20, 20)
_FINER = 3  # drawn so many times larger, then averaged: smooth edges


def draw_panel(panel: Panel, *, side: int = 224) -> PILImage.Image:
    """Draw a panel on white.

    Args:
        panel: its levels.
        side: width and height in pixels, at least 48.

    Raises:
        InvalidInputError: the side is smaller, or a level is unknown.
    """
    if side < 48 or not set(panel) <= set(LEVELS):
        raise InvalidInputError(f"side={side}, {panel}; panels have 48 pixels or more and levels of {LEVELS}")
    large = side * _FINER
    canvas = PILImage.new("RGB", (large, large), "white")
    draw = ImageDraw.Draw(canvas)
    cell = large / 3
    radius = cell / 2 * (0.25 + 0.13 * panel.size)
    colour, line = _COLOURS[panel.colour - 1], max(1, large // 150)
    for column, row in _PLACES[panel.number]:
        x, y = (column + 0.5) * cell, (row + 0.5) * cell
        if panel.shape == LEVELS[-1]:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour, _OUTLINE, line)
        else:
            draw.polygon(_polygon(x, y, radius, corners=panel.shape + 2), colour, _OUTLINE, line)
    return canvas.reduce(_FINER)


def _polygon(x: float, y: float, radius: float, corners: int) -> list[tuple[float, float]]:
    """A regular polygon that stands on a side."""
    angles = np.pi / 2 + np.pi / corners + 2 * np.pi * np.arange(corners) / corners
    return [(x + radius * np.cos(angle), y + radius * np.sin(angle)) for angle in angles]


def raven_item(matrix: Matrix, id: str, *, side: int = 224) -> RavenItem:
    """Draw a matrix as an item for :func:`zsqretrieval.tasks.raven.score_raven`.

    Args:
        matrix: what to draw.
        id: names the item.
        side: width and height of every picture in pixels, at least 48.

    Returns:
        The item; its metadata has ``layout`` and ``rules``. Equal panels are equal pixel by pixel.

    Raises:
        InvalidInputError: the side is smaller.
    """
    context, candidates = (
        tuple(
            Image(draw_panel(panel, side=side), source=f"{id}, {part} {number}")
            for number, panel in enumerate(panels, 1)
        )
        for part, panels in (("context", matrix.context), ("candidate", matrix.candidates))
    )
    return RavenItem(
        id, context, candidates, matrix.answer, {"layout": matrix.layout, "rules": dict(matrix.rules)}
    )
