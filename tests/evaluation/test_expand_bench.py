"""Recall with and without question expansion, in a world of six colours."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image as PILImage

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.expand_bench import EXPANSIONS, GRID, RULES, bench_expand, expanded_ranks
from zsqretrieval.evaluation.query_forms import as_question
from zsqretrieval.search.fusion import Maximum, RerankOnly, WeightedSum
from zsqretrieval.testing.toys import COLOURS, ToyEncoder, ToyGenerator
from zsqretrieval.types import Context

CAPTIONS = {
    name: (f"A {name} dog runs through the grass .", f"Two dogs run beside a {name} ball .")
    for name in COLOURS
}


class Namer(ToyGenerator):
    """Asks of the colour of each image; counts what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = 0

    def generate(self, contexts: Sequence[Context], *, n: int = 1, **settings: Any) -> list[list[str]]:
        self.shown += len(contexts)
        return [
            [f"what is {name_of(context[0])} number {draw}?" for draw in range(n)] for context in contexts
        ]


def name_of(image: Any) -> str:
    return list(COLOURS)[int(Path(image.source.partition("#")[2]).stem)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "colours"
    folder.mkdir()
    for split in ("dev", "test"):
        write_shard(folder / f"{split}-000.tar", list(COLOURS))
    return folder


def write_shard(path: Path, colours: Sequence[str]) -> None:
    with tarfile.open(path, "w") as tar:
        for name in colours:
            png = io.BytesIO()
            PILImage.new("RGB", (8, 8), name).save(png, "PNG")
            facts = json.dumps({"captions": CAPTIONS[name]}).encode()
            for suffix, content in (("png", png.getvalue()), ("json", facts)):
                member = tarfile.TarInfo(f"{list(COLOURS).index(name):04}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def test_every_form_of_queries_is_measured_with_and_without(data: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    found = bench_expand(
        ToyEncoder(), Namer(), data, questions=2, top_k=1, progress=lambda *one: told.append(one)
    ).to_json()
    json.dumps(found)
    assert found["questions"] == {"generated": 12, "kept": 12, "images": 6}
    forms = found["forms"]
    captions = [caption for some in CAPTIONS.values() for caption in some]
    asked = {rule: [as_question(caption, rule) for caption in captions] for rule in RULES}
    counts = {f"question/{rule}": sum(one is not None for one in some) for rule, some in asked.items()}
    assert {form: facts["queries"] for form, facts in forms.items()} == {
        "caption": 12, "question": sum(counts.values()), **counts,
    }  # fmt: skip
    for facts in forms.values():
        assert set(facts) == {"queries", "none", *EXPANSIONS, "differences"}
        assert set(facts["differences"]) == {f"{name} - none" for name in EXPANSIONS}
        for name, gain in facts["differences"].items():
            for k in (1, 5, 10):
                own = facts[name.partition(" - ")[0]][f"R@{k}"]
                assert gain[f"R@{k}"] == pytest.approx(own - facts["none"][f"R@{k}"], abs=0.02)
                low, high = gain[f"R@{k}_ci"]
                assert low <= gain[f"R@{k}"] <= high
    assert forms["caption"]["none"]["R@1"] == 100, "the encoder knows colours"
    assert found["setting"]["expansions_from"] == "given" and "sweep" not in found
    assert {stage for stage, _, _ in told} >= {"encoding images", "asking images", "searching questions"}
    assert all(0 < done <= total for _, done, total in told)


def test_an_interrupted_run_goes_on_and_a_finished_one_asks_nothing(data: Path, tmp_path: Path) -> None:
    namer = Namer()

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "asking images" and done >= 4:
            raise KeyboardInterrupt

    settings: dict[str, Any] = {"questions": 2, "batch_size": 2, "work": tmp_path / "work"}
    with pytest.raises(KeyboardInterrupt):
        bench_expand(ToyEncoder(), namer, data, progress=stop, **settings)
    assert namer.shown == 4
    first = bench_expand(ToyEncoder(), namer, data, **settings)
    assert namer.shown == 6
    assert bench_expand(ToyEncoder(), namer, data, **settings) == first and namer.shown == 6
    few = bench_expand(ToyEncoder(), namer, data, top_k=1, **settings)
    assert namer.shown == 6 and few.questions["kept"] <= first.questions["kept"], "only judged anew"
    assert bench_expand(ToyEncoder(), namer, data, **settings | {"work": None}) == first
    part = bench_expand(ToyEncoder(), namer, data, images=3, **settings)
    assert part.setting["images"] == 3 and part.forms["caption"]["queries"] == 6


def test_an_album_of_other_images_is_never_taken(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two data sets under one name, as with ``--data .``: the same split, and as many samples."""
    namer, work = Namer(), tmp_path / "work"
    bench_expand(ToyEncoder(), namer, data, images=3, work=work)
    other = tmp_path / "elsewhere" / data.name
    other.mkdir(parents=True)
    write_shard(other / "test-000.tar", list(COLOURS)[::-1])
    found = bench_expand(ToyEncoder(), namer, other, images=3, work=work)
    assert namer.shown == 6
    assert found == bench_expand(ToyEncoder(), Namer(), other, images=3)
    copied = tmp_path / "a copy"
    copied.mkdir()
    (copied / "val-7.tar").write_bytes((data / "test-000.tar").read_bytes())
    bench_expand(ToyEncoder(), namer, copied, split="val", images=3, work=work)
    assert namer.shown == 6, "the same images under another name are known"


def test_parameters_are_chosen_on_dev_only(data: Path) -> None:
    found = bench_expand(ToyEncoder(), Namer(), data, split="dev", tune=True)
    assert len(found.sweep) == sum(map(len, GRID.values()))
    for name, expansion in found.setting["expansions"].items():
        tried = [row for row in found.sweep if row["expansion"] == name]
        best = max(row["R@1"] for row in tried)
        assert next(row for row in tried if row["R@1"] == best)["parameters"] == expansion
        mean = (found.forms["caption"][name]["R@1"] + found.forms["question"][name]["R@1"]) / 2
        assert mean == pytest.approx(best, abs=0.02)
    assert found.setting["expansions_from"] == "tuned for R@1 on dev"
    with pytest.raises(InvalidInputError, match="chosen on the test split have seen the answers"):
        bench_expand(ToyEncoder(), Namer(), data, tune=True)
    with pytest.raises(InvalidInputError, match="nothing is known to try for 'mine'"):
        bench_expand(ToyEncoder(), Namer(), data, split="dev", tune=True, expansions={"mine": RerankOnly()})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": 0}, "images must be at least 1"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"candidates": 0}, "candidates must be at least 1"),
        ({"style": "no"}, "no style 'no'"),
        ({"split": "train"}, "holds no shards train-"),
        ({"expansions": {"none": RerankOnly()}}, "cannot be called 'none'"),
    ],
)
def test_what_makes_no_sense_is_refused(data: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        bench_expand(ToyEncoder(), Namer(), data, **settings)


def test_ranks_by_hand() -> None:
    similarity = np.array([[0.9, 0.5, 0.1], [0.2, 0.3, 0.1]])
    by_question = np.array([[0.1, 0.9, np.nan], [np.nan, np.nan, np.nan]])
    answers = np.array([1, 0])
    far = np.iinfo(np.int64).max
    assert expanded_ranks(similarity, by_question, answers, RerankOnly(), 3).tolist() == [0, 1]
    assert expanded_ranks(similarity, by_question, answers, WeightedSum(0.0), 3).tolist() == [1, 1]
    assert expanded_ranks(similarity, by_question, answers, RerankOnly(), 1).tolist() == [0, far]
    assert expanded_ranks(similarity, by_question, np.array([2, 0]), RerankOnly(), 1).tolist() == [far, far]


@given(
    npst.arrays(np.float64, (4, 6), elements=st.floats(-1, 1, width=16)),
    npst.arrays(np.float64, (4, 6), elements=st.floats(-1, 1, width=16) | st.just(float("nan"))),
    st.integers(1, 6),
)
def test_questions_that_count_nothing_change_no_rank(
    similarity: np.ndarray, by_question: np.ndarray, candidates: int
) -> None:
    answers = np.array([0, 2, 3, 5])
    plain = (similarity >= similarity[np.arange(4), answers][:, None]).sum(1) - 1
    for expansion in (WeightedSum(0.0), Maximum(-100.0)):
        everywhere = expanded_ranks(similarity, by_question, answers, expansion, 6)
        flat = similarity.std(axis=1) < 1e-6  # standardizing rounds such rows
        assert np.all((everywhere == plain) | flat)
        few = expanded_ranks(similarity, by_question, answers, expansion, candidates)
        lost = few == np.iinfo(np.int64).max
        assert np.all(np.where(lost, plain >= candidates, few <= plain) | flat), (
            "none but rivals are left out"
        )
