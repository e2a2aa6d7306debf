"""The procedural test: its rules hold, one candidate is right, and the candidates alone do not tell which."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare
from tables import TableGenerator

from zsqretrieval.data.images import digest
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.tasks import Matrix, Panel, generate_matrices, raven_item, score_raven
from zsqretrieval.tasks.raven_matrices import ATTRIBUTES, LAYOUTS, LEVELS, RULES, draw_panel, fits
from zsqretrieval.types import Context, LogLikelihood

MATRICES = st.builds(
    lambda layout, rules, seed: generate_matrices(1, layout=layout, rules=rules, seed=seed)[0],
    st.sampled_from([*LAYOUTS]),
    st.lists(st.sampled_from(RULES), min_size=1, unique=True),
    st.integers(0, 10**6),
)


def rows_of(matrix: Matrix, panel: Panel, attribute: str) -> list[tuple[int, ...]]:
    levels = [getattr(one, attribute) for one in (*matrix.context, panel)]
    columns = LAYOUTS[matrix.layout][1]
    return [tuple(levels[at : at + columns]) for at in range(0, len(levels), columns)]


def holds(rule: str, rows: list[tuple[int, ...]]) -> bool:
    """The rules once more, in words of their own."""
    if rule == "constant":
        return all(row == row[:1] * len(row) for row in rows)
    if rule == "progression":
        return any(all(row == (*range(row[0], row[0] + step * len(row), step),) for row in rows)
                   for step in (-2, -1, 1, 2))  # fmt: skip
    if rule == "arithmetic":
        return all(a + b == c for a, b, c in rows) or all(a == b + c for a, b, c in rows)
    first = set(rows[0][:3])
    if len(rows) == 1:
        return len(first) == 3 and rows[0] == (rows[0][:3] * 2)[: len(rows[0])]
    return len(first) == 3 and all(set(row) == first for row in rows)


@settings(deadline=None)
@given(MATRICES)
def test_the_answer_follows_every_rule_and_no_other_candidate_does(matrix: Matrix) -> None:
    assert len(set(matrix.candidates)) == 6
    right = matrix.candidates[matrix.answer]
    for attribute in ATTRIBUTES:
        assert holds(matrix.rules[attribute], rows_of(matrix, right, attribute))
    assert [fits(matrix, panel) for panel in matrix.candidates] == [n == matrix.answer for n in range(6)]


@settings(deadline=None)
@given(MATRICES)
def test_no_rule_at_all_can_be_meant_by_another_candidate(matrix: Matrix) -> None:
    """Whoever looks for any rule, along rows or down columns, finds the same level for the gap."""
    right = matrix.candidates[matrix.answer]
    for place, attribute in enumerate(ATTRIBUTES):
        for level in set(LEVELS) - {right[place]}:
            other = right._replace(**{attribute: level})
            rows = rows_of(matrix, other, attribute)
            readings = [rows, [*zip(*rows, strict=True)]] if len(rows) > 1 else [rows]
            for reading in readings:
                wide = len(reading[0])
                known = [rule for rule in RULES if wide >= 3 or rule in ("constant", "progression")]
                if wide > 3 or attribute == "shape":
                    known.remove("arithmetic") if "arithmetic" in known else None
                assert not any(holds(rule, reading) for rule in known)


# --- the candidates alone


def changes(a: Panel, b: Panel) -> int:
    return sum(x != y for x, y in zip(a, b, strict=True))


def most_agreed(candidates: Sequence[Panel]) -> list[int]:
    """The shortcut: the candidates that agree most with the others, attribute by attribute."""
    agreement = [-sum(changes(one, other) for other in candidates) for one in candidates]
    return [n for n, value in enumerate(agreement) if value == max(agreement)]


@settings(deadline=None)
@given(MATRICES)
def test_from_the_others_every_candidate_looks_alike(matrix: Matrix) -> None:
    """A ring: two neighbours, two behind them, one opposite. And of each level there are three or six."""
    for one in matrix.candidates:
        assert sorted(changes(one, other) for other in matrix.candidates) == [0, 1, 1, 2, 2, 3]
    for levels in zip(*matrix.candidates, strict=True):
        assert sorted(levels.count(level) for level in set(levels)) in ([6], [3, 3])
    assert most_agreed(matrix.candidates) == [*range(6)]


def test_the_shortcut_would_work_on_distractors_that_change_one_thing() -> None:
    """The test above can fail: it does on candidates as the first RAVEN made them."""
    for matrix in generate_matrices(50):
        right = matrix.candidates[matrix.answer]
        others = [
            right._replace(**{attribute: level})
            for attribute in ATTRIBUTES
            for level in LEVELS
            if level != getattr(right, attribute)
        ]
        rng = np.random.default_rng(0)
        naive = [right, *(others[n] for n in rng.permutation(len(others))[:5])]
        assert 0 in most_agreed(naive) and len(most_agreed(naive)) < 6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_level_and_no_place_is_more_often_right(layout: str) -> None:
    """The posterior over candidates is flat: levels of answers and of their rivals are interchangeable."""
    matrices = generate_matrices(1500, layout=layout, seed=1)
    places = np.bincount([matrix.answer for matrix in matrices], minlength=6)
    assert chisquare(places).pvalue > 1e-4
    assert binomtest(int(places.max()), 1500, 1 / 6).pvalue > 1e-5
    for place in range(len(ATTRIBUTES)):
        pairs = np.zeros((6, 6), int)  # the level of the answer, and the other level there is
        for matrix in matrices:
            right = matrix.candidates[matrix.answer][place]
            for other in {panel[place] for panel in matrix.candidates} - {right}:
                pairs[right, other] += 1
        one, other = pairs[np.triu_indices(6, 1)], pairs.T[np.triu_indices(6, 1)]
        seen = one + other > 0
        assert chisquare(pairs.sum(1)[1:]).pvalue > 1e-4
        each = [
            binomtest(int(a), int(a + b), 0.5).pvalue for a, b in zip(one[seen], other[seen], strict=True)
        ]
        assert len(each) == 10 and min(each) > 1e-4


@pytest.mark.parametrize(("layout", "rule"), [*itertools.product(LAYOUTS, RULES)])
def test_every_rule_alone_makes_matrices_of_every_layout(layout: str, rule: str) -> None:
    for matrix in generate_matrices(40, layout=layout, rules=[rule], seed=3):
        possible = (
            layout == "3x3"
            or rule in ("constant", "progression")
            or (layout, rule) == ("1x5", "distribution")
        )
        expected = {
            attribute: rule if possible and (attribute, rule) != ("shape", "arithmetic") else "constant"
            for attribute in ATTRIBUTES
        }
        assert dict(matrix.rules) == expected


def test_a_seed_makes_the_same_and_more_are_only_added() -> None:
    ten, fifty = generate_matrices(10, seed=5), generate_matrices(50, seed=5)
    assert fifty[:10] == ten and len({one.context for one in fifty}) == 50
    assert generate_matrices(10, seed=6) != ten and generate_matrices(0) == []
    assert {rule for one in fifty for rule in one.rules.values()} == set(RULES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": -1}, "count=-1, seed=0; neither may be negative"),
        ({"count": 1, "seed": -1}, "count=1, seed=-1"),
        ({"count": 1, "layout": "4x4"}, "no layout '4x4'; there are 2x2, 1x5, 3x3"),
        ({"count": 1, "rules": []}, r"rules must be some of constant, .*, not \[\]"),
        ({"count": 1, "rules": "constant"}, "not 'constant'"),
        ({"count": 1, "rules": ["xor"]}, r"not \['xor'\]"),
    ],
)
def test_what_cannot_be_made_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        generate_matrices(**options)  # type: ignore[arg-type]


# --- pictures


def test_every_panel_looks_different_and_always_the_same() -> None:
    panels = [Panel(*levels) for levels in itertools.product(LEVELS, repeat=4)]
    pictures = {draw_panel(panel, side=48).tobytes() for panel in panels}
    assert len(pictures) == len(panels) == 625
    assert draw_panel(panels[7]).tobytes() == draw_panel(panels[7]).tobytes()
    assert draw_panel(panels[7]).size == (224, 224)
    for panel, side in ((panels[0], 47), (Panel(0, 1, 1, 1), 48), (Panel(1, 1, 1, 6), 48)):
        with pytest.raises(InvalidInputError, match="panels have 48 pixels or more and levels of"):
            draw_panel(panel, side=side)


def test_more_and_larger_and_darker_shapes_leave_more_ink() -> None:
    def ink(panel: Panel) -> int:
        return int(255 * 3 * 224 * 224 - np.asarray(draw_panel(panel), np.int64).sum())

    for attribute in ("number", "size", "colour"):
        levels = [ink(Panel(3, 3, 3, 3)._replace(**{attribute: level})) for level in LEVELS]
        assert levels == sorted(set(levels))


def test_an_item_has_the_pictures_of_its_matrix() -> None:
    (matrix,) = generate_matrices(1, layout="2x2", seed=2)
    item = raven_item(matrix, "one", side=64)
    assert (item.id, item.answer, len(item.context)) == ("one", matrix.answer, 3)
    assert item.metadata == {"layout": "2x2", "rules": dict(matrix.rules)}
    for image, panel in zip(item.context + item.candidates, matrix.context + matrix.candidates, strict=True):
        assert digest(image) == digest(draw_panel(panel, side=64))
    assert item.candidates[2].source == "one, candidate 3"


# --- from matrix to verdict


@cache
def look_up() -> dict[str, Panel]:
    panels = [Panel(*levels) for levels in itertools.product(LEVELS, repeat=4)]
    return {digest(draw_panel(panel, side=48)): panel for panel in panels}


class Solver(TableGenerator):
    """Sees panels in pictures, and says yes with probability 0.9 where the rules say so, else 0.1."""

    def log_likelihood(
        self, contexts: Sequence[Context], continuations: Sequence[str], *, batch_size: int = 16
    ) -> list[LogLikelihood]:
        return [LogLikelihood(("Yes",), np.log([self._yes(one)]).astype(np.float32)) for one in contexts]

    def _yes(self, context: Context) -> float:
        *shown, candidate = [look_up()[digest(one)] for one in context if not isinstance(one, str)]  # type: ignore[arg-type]
        layout = {3: "2x2", 4: "1x5", 8: "3x3"}[len(shown)]
        return 0.9 if fits(Matrix(layout, {}, tuple(shown), (), 0), candidate) else 0.1


class Blind(Solver):
    """Says the same of everything."""

    def _yes(self, context: Context) -> float:
        return 0.5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_who_sees_the_rules_solves_all_and_who_is_blind_none(layout: str) -> None:
    items = [
        raven_item(matrix, f"{layout} {number}", side=48)
        for number, matrix in enumerate(generate_matrices(8, layout=layout, seed=9))
    ]
    solved = score_raven(Solver(), items)
    assert (solved.accuracy.correct, solved.accuracy.total, solved.ties) == (8, 8, 0)
    assert all(np.sort(one.log_probs)[-2:] == pytest.approx(np.log([0.1, 0.9]), abs=1e-6)
               for one in solved.answers)  # fmt: skip
    blind = score_raven(Blind(), items)
    assert (blind.accuracy.correct, blind.ties) == (0, 8)
