"""The Raven test: reader, writer and score."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from tables import TableGenerator, picture
from zsqretrieval.data.images import decode
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.generators.prompts import Prompt
from zsqretrieval.tasks import RavenItem, read_raven, score_raven, write_raven
from zsqretrieval.testing.toys import ToyGenerator
from zsqretrieval.types import Image


def item(id: str, count: int = 3, answer: int = 0) -> RavenItem:
    context = tuple(picture(f"{id} context {n}") for n in range(count))
    return RavenItem(id, context, tuple(picture(f"{id} {n}") for n in range(6)), answer)


def says(**probabilities: list[float]) -> dict[tuple[str, str], list[float]]:
    return {(f"{id} {n}", " Yes"): [p] for id, some in probabilities.items() for n, p in enumerate(some)}


def test_candidate_with_the_highest_probability_of_yes_is_chosen() -> None:
    generator = TableGenerator(
        says(
            a=[0.1, 0.2, 0.3, 0.25, 0.01, 0.29],  # 2
            b=[0.5, 0.4, 0.4, 0.4, 0.4, 0.4],  # 0
            c=[0.3, 0.3, 0.2, 0.1, 0.1, 0.1],  # 0 and 1
            d=[0.1, 0.1, 0.1, 0.1, 0.1, 0.2],  # 5
        )
    )
    told: list[tuple[str, int, int | None]] = []
    items = [item("a", 3, 2), item("b", 4, 1), item("c", 8, 0), item("d", 3, 5)]
    score = score_raven(generator, items, progress=lambda *at: told.append(at))
    assert [one.choice for one in score.answers] == [2, 0, None, 5]
    assert [one.correct for one in score.answers] == [True, False, False, True]
    assert score.answers[0].log_probs == pytest.approx(np.log([0.1, 0.2, 0.3, 0.25, 0.01, 0.29]), abs=1e-6)
    assert (score.accuracy.correct, score.accuracy.total, score.accuracy.chance) == (2, 4, 1 / 6)
    assert score.ties == 1 and told == [("scoring items", n, 4) for n in (1, 2, 3, 4)]
    # Two or more of four by guessing: 1 - (5/6)^4 - 4 (1/6) (5/6)^3.
    assert score.accuracy.p_value == pytest.approx(1 - (5 / 6) ** 4 - 4 / 6 * (5 / 6) ** 3)


def test_contexts_follow_the_protocol_of_kosmos_1() -> None:
    generator = TableGenerator(says(a=[0.1] * 6))
    score_raven(generator, [item("a", 4)])
    before = ["Here are four images:", *(f"<a context {n}>" for n in range(4)), "The following image is:"]
    assert generator.contexts == [[*before, f"<a {n}>", "Is it correct?"] for n in range(6)]


def test_toy_generator_in_closed_form() -> None:
    """After "Is it correct?", 4 tokens, a candidate of colour c adds 4 sum(c) / 2^4 to the mass of all words.

    P(yes) = (1 + [yes = t mod 15] 3) / (18 + mass): the darker, the likelier.
    """
    greys = [Image(PILImage.new("RGB", (2, 2), (51 * n,) * 3), f"{n}") for n in (3, 5, 1, 4, 0, 2)]
    black = tuple(Image(PILImage.new("RGB", (2, 2)), "black") for _ in range(3))
    score = score_raven(ToyGenerator(), [RavenItem("x", black, tuple(greys), 4)])
    (found,) = score.answers
    assert found.choice == 4 and score.accuracy.correct == 1
    mass = np.exp(-found.log_probs)  # (18 + mass) / weight
    brightness = np.array([3, 5, 1, 4, 0, 2]) / 5
    # Texts weigh the same in all; candidate n adds 12 n / 5 halved four times; yes weighs 1, as t = 3 + 13.
    assert mass - mass[4] == pytest.approx(12 * brightness / 16, abs=1e-4)


def test_prompts_and_yes_are_parameters() -> None:
    table = {(f"a {n}", " right"): [0.1 + 0.1 * (n == 3)] for n in range(6)}
    prompt = Prompt("<image><image><image>then<image>?")
    score = score_raven(TableGenerator(table), [item("a", 3, 3)], prompts={3: prompt}, yes=" right")
    assert score.accuracy.correct == 1
    with pytest.raises(InvalidInputError, match=r"no prompt for 4 context images among \[3\]"):
        score_raven(TableGenerator(table), [item("a", 4)], prompts={3: prompt})


def test_missing_and_bad_items_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="there are no items"):
        score_raven(TableGenerator(), [])
    with pytest.raises(InvalidInputError, match="two items have the id 'a'"):
        score_raven(TableGenerator(says(a=[0.1] * 6)), [item("a"), item("a")])
    for count, answer, message in ((5, 0, "5 context images"), (3, 6, "no candidate 6")):
        with pytest.raises(InvalidInputError, match=message):
            item("a", count, answer)


# --- files


def folder(path: Path, **changes: Any) -> Path:
    """A test of one item with changed fields; ``...`` leaves a field out."""
    names = [f"{part}{n}.png" for part in ("context", "candidate") for n in range(6)]
    for number, name in enumerate(names):
        PILImage.new("RGB", (4, 4), (20 * number, 0, 0)).save(path / name)
    facts = {"id": "one", "context": names[:4], "candidates": names[6:], "answer": names[8], **changes}
    line = json.dumps({name: value for name, value in facts.items() if value is not ...})
    (path / "items.jsonl").write_text(f"\n{line}\n", encoding="utf-8")
    return path


def test_folder_is_read(tmp_path: Path) -> None:
    (found,) = read_raven(folder(tmp_path, metadata={"site": "example"}))
    assert (found.id, found.answer, found.metadata) == ("one", 2, {"site": "example"})
    assert [len(found.context), len(found.candidates)] == [4, 6]
    assert decode(found.candidates[2]).getpixel((0, 0)) == (160, 0, 0)
    assert found.candidates[2].source == str(tmp_path / "candidate2.png")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ...}, "line 2: the field 'id' is missing"),
        ({"id": 7}, "line 2, field 'id': must be a non-empty string, not 7"),
        ({"answer": ...}, "line 2: the field 'answer' is missing"),
        ({"answer": 2}, "line 2, field 'answer': 2 is not one of the candidates"),
        ({"answer": "context0.png"}, "field 'answer': 'context0.png' is not one of the candidates"),
        ({"anwser": 1}, "line 2: unknown field 'anwser'; the fields are id, context, candidates, answer"),
        ({"metadata": []}, r"line 2, field 'metadata': must be an object, not \[\]"),
        ({"context": "context0.png"}, "line 2, field 'context': must be a list of paths"),
        ({"context": ["context0.png"] * 2}, "line 2: item 'one' has 2 context images and 6 candidates"),
        ({"context": ["none.png"] * 3}, "line 2, field 'context': there is no file .*none.png"),
        ({"context": ["../a.png"] * 3}, "line 2, field 'context': '../a.png' must be a path inside"),
        ({"context": ["/a.png"] * 3}, "line 2, field 'context': '/a.png' must be a path inside"),
        ({"candidates": ["candidate2.png"] * 6}, "line 2, field 'candidates': an image is named twice"),
        ({"candidates": ["candidate2.png", 3]}, "line 2, field 'candidates': must be a list of paths"),
        ({"candidates": [f"candidate{n}.png" for n in range(5)]}, "line 2: item 'one' has 4 .* 5 candidates"),
    ],
)
def test_errors_name_file_line_and_field(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=f"items.jsonl, {message}" if "line" in message else message):
        read_raven(folder(tmp_path, **changes))


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"items.jsonl: cannot be read: No such file"):
        read_raven(tmp_path)
    file = tmp_path / "items.jsonl"
    for content, message in (
        (b"", "items.jsonl has no items"),
        (b"\xff\xfe", "items.jsonl: not UTF-8 at byte 0"),
        (b'{"id": "a",\n', "line 1, column 12: not JSON"),
        (b"[]", "line 1: must be a JSON object, not list"),
    ):
        file.write_bytes(content)
        with pytest.raises(InvalidInputError, match=message):
            read_raven(tmp_path)
    line = (folder(tmp_path) / "items.jsonl").read_text().strip()
    file.write_text(f"{line}\n{line}\n")
    with pytest.raises(InvalidInputError, match="line 2: the id 'one' is already in line 1"):
        read_raven(tmp_path)


def test_byte_order_mark_is_no_part_of_the_test(tmp_path: Path) -> None:
    items = read_raven(folder(tmp_path))
    file = tmp_path / "items.jsonl"
    file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    assert [one.id for one in read_raven(tmp_path)] == [one.id for one in items]


def test_broken_image_is_named_when_it_is_decoded(tmp_path: Path) -> None:
    items = read_raven(folder(tmp_path))
    (tmp_path / "candidate3.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"candidate3\.png"):
        score_raven(ToyGenerator(), items)


def test_written_test_is_read_back(tmp_path: Path) -> None:
    items = read_raven(folder(tmp_path, metadata={"rule": "ä"}))
    again = [RavenItem("two/..", items[0].candidates[:3], items[0].candidates, 5), *items]
    write_raven(tmp_path / "new", again)
    found = read_raven(tmp_path / "new")
    for one, other in zip(again, found, strict=True):
        assert (one.id, one.answer, one.metadata) == (other.id, other.answer, other.metadata)
        for image, copy in zip(one.context + one.candidates, other.context + other.candidates, strict=True):
            assert np.array_equal(decode(image), decode(copy))
    with pytest.raises(InvalidInputError, match="exists already"):
        write_raven(tmp_path / "new", again)
    with pytest.raises(InvalidInputError, match="their ids must differ"):
        write_raven(tmp_path / "newer", [*items, *items])


def test_id_may_be_any_text(tmp_path: Path) -> None:
    """JSON does not escape these, and str.splitlines splits at them."""
    ids = ["\u2028", "\u2029", "\x85", "\x0b", "\r", "\n", "\x1c"]
    write_raven(tmp_path, [item(f"a{id}b") for id in ids])
    assert [one.id for one in read_raven(tmp_path)] == [f"a{id}b" for id in ids]


def test_interrupted_write_leaves_no_test_and_can_be_repeated(tmp_path: Path) -> None:
    broken = item("a")
    bad = RavenItem("b", broken.context, (*broken.candidates[:5], Image(b"no image", "bad")), 0)
    with pytest.raises(ImageError, match="bad"):
        write_raven(tmp_path, [broken, bad])
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_raven(tmp_path)
    write_raven(tmp_path, [broken])
    assert len(read_raven(tmp_path)) == 1
