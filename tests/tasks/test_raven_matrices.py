"""Generated matrices: the rules hold, one candidate is right, and the candidates alone give no hint."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
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
    """A second implementation of the rules."""
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


@given(MATRICES)
def test_only_the_answer_follows_every_rule(matrix: Matrix) -> None:
    assert len(set(matrix.candidates)) == 6
    right = matrix.candidates[matrix.answer]
    for attribute in ATTRIBUTES:
        assert holds(matrix.rules[attribute], rows_of(matrix, right, attribute))
    assert [fits(matrix, panel) for panel in matrix.candidates] == [n == matrix.answer for n in range(6)]


@given(MATRICES)
def test_no_other_level_satisfies_any_rule(matrix: Matrix) -> None:
    """Along rows or down columns."""
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


@given(MATRICES)
def test_every_candidate_has_the_same_distances_to_the_others(matrix: Matrix) -> None:
    """A ring: two neighbours, two behind them, one opposite; each level occurs three or six times."""
    for one in matrix.candidates:
        assert sorted(changes(one, other) for other in matrix.candidates) == [0, 1, 1, 2, 2, 3]
    for levels in zip(*matrix.candidates, strict=True):
        assert sorted(levels.count(level) for level in set(levels)) in ([6], [3, 3])
    assert most_agreed(matrix.candidates) == [*range(6)]


def test_majority_vote_finds_the_answer_among_distractors_with_one_change() -> None:
    """The test above fails on candidates made as in the first RAVEN."""
    for matrix in generate_matrices(50):
        right = matrix.candidates[matrix.answer]
        others = [right._replace(**{name: level}) for name in ATTRIBUTES for level in LEVELS]
        others = [one for one in others if one != right]
        rng = np.random.default_rng(0)
        naive = [right, *(others[n] for n in rng.permutation(len(others))[:5])]
        assert 0 in most_agreed(naive) and len(most_agreed(naive)) < 6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_level_and_no_position_is_right_more_often(layout: str) -> None:
    """The posterior over candidates is flat: levels of answers and of distractors are interchangeable."""
    matrices = generate_matrices(1500, layout=layout, seed=1)
    places = np.bincount([matrix.answer for matrix in matrices], minlength=6)
    assert chisquare(places).pvalue > 1e-4
    assert binomtest(int(places.max()), 1500, 1 / 6).pvalue > 1e-5
    for place in range(len(ATTRIBUTES)):
        pairs = np.zeros((6, 6), int)  # level of the answer, other level
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
def test_every_rule_alone_gives_matrices_of_every_layout(layout: str, rule: str) -> None:
    for matrix in generate_matrices(40, layout=layout, rules=[rule], seed=3):
        short = {"2x2": ("arithmetic", "distribution"), "1x5": ("arithmetic",), "3x3": ()}
        for attribute, found in matrix.rules.items():
            possible = rule not in short[layout] and (attribute, rule) != ("shape", "arithmetic")
            assert found == (rule if possible else "constant")
        assert [*matrix.rules] == [*ATTRIBUTES]


def test_same_seed_gives_the_same_first_matrices() -> None:
    ten, fifty = generate_matrices(10, seed=5), generate_matrices(50, seed=5)
    assert fifty[:10] == ten and len({one.context for one in fifty}) == 50
    assert generate_matrices(10, seed=6) != ten and generate_matrices(0) == []
    assert {rule for one in fifty for rule in one.rules.values()} == set(RULES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": -1}, "count=-1, seed=0; neither may be negative"),
        ({"count": 1, "seed": -1}, "count=1, seed=-1"),
        ({"count": 1, "layout": "4x4"}, "no layout '4x4'; choose from 2x2, 1x5, 3x3"),
        ({"count": 1, "rules": []}, r"rules must be some of constant, .*, not \[\]"),
        ({"count": 1, "rules": "constant"}, "not 'constant'"),
        ({"count": 1, "rules": ["xor"]}, r"not \['xor'\]"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        generate_matrices(**options)  # type: ignore[arg-type]


# --- pictures


def test_panels_differ_and_are_drawn_repeatably() -> None:
    panels = [Panel(*levels) for levels in itertools.product(LEVELS, repeat=4)]
    pictures = {draw_panel(panel, side=48).tobytes() for panel in panels}
    assert len(pictures) == len(panels) == 625
    assert draw_panel(panels[7]).tobytes() == draw_panel(panels[7]).tobytes()
    assert draw_panel(panels[7]).size == (224, 224)
    for panel, side in ((panels[0], 47), (Panel(0, 1, 1, 1), 48), (Panel(1, 1, 1, 6), 48)):
        with pytest.raises(InvalidInputError, match="panels have 48 pixels or more and levels of"):
            draw_panel(panel, side=side)


def test_more_larger_and_darker_shapes_have_more_ink() -> None:
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


# --- scores of matrices


@cache
def look_up() -> dict[str, Panel]:
    panels = [Panel(*levels) for levels in itertools.product(LEVELS, repeat=4)]
    return {digest(draw_panel(panel, side=48)): panel for panel in panels}


class Solver(TableGenerator):
    """Recognises panels and gives yes a probability of 0.9 where the rules hold, else 0.1."""

    def log_likelihood(
        self, contexts: Sequence[Context], continuations: Sequence[str], **_: Any
    ) -> list[LogLikelihood]:
        return [LogLikelihood(("Yes",), np.log([self._yes(one)]).astype(np.float32)) for one in contexts]

    def _yes(self, context: Context) -> float:
        *shown, candidate = [look_up()[digest(one)] for one in context if not isinstance(one, str)]  # type: ignore[arg-type]
        layout = {3: "2x2", 4: "1x5", 8: "3x3"}[len(shown)]
        return 0.9 if fits(Matrix(layout, {}, tuple(shown), (), 0), candidate) else 0.1


class Blind(Solver):
    """Gives everything the same probability."""

    def _yes(self, context: Context) -> float:
        return 0.5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_generator_with_the_rules_solves_all_items_and_a_blind_one_none(layout: str) -> None:
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
