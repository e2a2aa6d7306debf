"""Recall before and after re-ranking, with an encoder and a generator that say what they are told to."""

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
from PIL import Image as PILImage

from zsqretrieval.data.images import decode
from zsqretrieval.errors import InvalidInputError, ZsqError
from zsqretrieval.evaluation import score_matrix as matrix_module
from zsqretrieval.evaluation.rerank_bench import WEIGHTS, bench_rerank, first_candidates, ranks_among
from zsqretrieval.search.fusion import ReciprocalRank, RerankOnly, WeightedSum
from zsqretrieval.search.query_bank import QueryBank
from zsqretrieval.search.scoring import Likelihood, YesNo
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator
from zsqretrieval.types import Context, Image, ImageState, LogLikelihood


def write_shard(path: Path, captions: Sequence[Sequence[str]]) -> None:
    """Images whose red is their number, and what is said about them."""
    with tarfile.open(path, "w") as tar:
        for number, texts in enumerate(captions):
            png = io.BytesIO()
            PILImage.new("RGB", (8, 8), (number, 0, 0)).save(png, "PNG")
            for suffix, content in (
                ("png", png.getvalue()),
                ("json", json.dumps({"captions": texts}).encode()),
            ):
                member = tarfile.TarInfo(f"{number:04}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def number_of(image: Image) -> int:
    return int(np.asarray(decode(image))[0, 0, 0])


class ScriptedEncoder:
    """Image i is the i-th axis, so a text's vector lists its similarities to all images."""

    fingerprint = "scripted-encoder"

    def __init__(self, similarities: dict[str, list[float]]) -> None:
        self.similarities = similarities
        self.dim = len(next(iter(similarities.values())))
        self.images = 0

    def encode_image(self, images: Sequence[Image], *, batch_size: int = 32) -> Any:
        self.images += len(images)
        return np.eye(self.dim, dtype=np.float32)[[number_of(image) for image in images]]

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> Any:
        return np.array([self.similarities[text] for text in texts], np.float32)


class ScriptedGenerator:
    """The likelihood of a question is a number by image; " yes" gets the same one, " no" a constant."""

    def __init__(self, scores: dict[str, list[float]], fingerprint: str = "scripted-generator") -> None:
        self.scores = scores
        self.fingerprint = fingerprint
        self.pairs: list[tuple[int, str]] = []
        self.calls = 0

    def log_likelihood(
        self, contexts: Sequence[Context], continuations: Sequence[str], *, batch_size: int = 16
    ) -> list[LogLikelihood]:
        self.calls += 1
        found = []
        for context, text in zip(contexts, continuations, strict=True):
            number = self.see(context[0])
            self.pairs.append((number, text))
            (question,) = [one for one in self.scores if one in f"{context[1]} {text}"]
            score = self.scores[question][number] if text != " no" else -1.0
            found.append(LogLikelihood(("x",), np.array([score], np.float32)))
        return found

    def see(self, image: Any) -> int:
        return number_of(image)

    def generate(self, contexts: Sequence[Context], **settings: Any) -> list[list[str]]:
        raise NotImplementedError


class SeeingGenerator(ScriptedGenerator):
    """Sees an image once; afterwards it knows it by its state only."""

    state_shape = (1,)
    state_dtype = np.dtype(np.float16)
    seen = 0

    def image_states(self, images: Sequence[Image], *, batch_size: int = 16) -> Any:
        self.seen += len(images)
        return np.array([[number_of(image)] for image in images], np.float16)

    def see(self, image: Any) -> int:
        assert isinstance(image, ImageState) and image.fingerprint == self.fingerprint
        return int(image.values[0])


# Four images, one caption each. First stage: a right; b second; c third, so not among 2 candidates; d second.
SIMILAR = {
    "a.": [0.9, 0.8, 0.1, 0.0],
    "b.": [0.9, 0.8, 0.1, 0.0],
    "c.": [0.9, 0.8, 0.7, 0.0],
    "d.": [0.1, 0.2, 0.9, 0.8],
}
# Among the first two: the generator keeps a, repairs b, cannot know of c, and gets d wrong once more.
LIKELY = {
    "a.": [-1.0, -2.0, -9, -9],
    "b.": [-3.0, -1.0, -9, -9],
    "c.": [-1.0, -2.0, -0.5, -9],
    "d.": [-9, -9, -1.0, -1.5],
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "four"
    folder.mkdir()
    for split in ("dev", "test"):
        write_shard(folder / f"{split}-00000.tar", [["a."], ["b."], ["c."], ["d."]])
    return folder


def bench(data: Path, generator: Any = None, **settings: Any) -> dict[str, Any]:
    settings = {"candidates": 2, "fusion": WeightedSum(0.0), **settings}
    found = bench_rerank(
        ScriptedEncoder(SIMILAR), generator or ScriptedGenerator(LIKELY), data, **settings
    ).to_json()
    json.dumps(found, allow_nan=False)
    return found


def test_recalls_by_hand(data: Path) -> None:
    found = bench(data)
    recall = {name: [found[name][f"R@{k}"] for k in (1, 5, 10)] for name in ("first_stage", "likelihood")}
    assert recall == {"first_stage": [25.0, 100.0, 100.0], "likelihood": [50.0, 75.0, 75.0]}
    assert found["first_stage"]["ceiling"] == 75.0
    assert found["yes_no"]["R@1"] == 50.0, "log-odds order as the likelihoods do here"
    assert found["fused"]["R@1"] == 25.0, "of weight 0: the first stage"
    assert found["differences"]["likelihood - first_stage"]["R@1"] == 25.0
    assert found["ratios"]["likelihood / first_stage"]["R@1"] == 2.0
    low, high = found["differences"]["fused - first_stage"]["R@1_ci"]
    assert low == high == 0.0, "paired: equal hits differ in no draw"
    for name in ("first_stage", "likelihood", "yes_no", "fused"):
        low, high = found[name]["R@1_ci"]
        assert 0 <= low <= found[name]["R@1"] <= high <= 100
        assert found[name]["seconds_per_query"] > 0
    assert found["likelihood"]["seconds_per_query"] > found["first_stage"]["seconds_per_query"]
    assert found["setting"]["encoder"] == "scripted-encoder" and found["setting"]["queries"] == 4
    assert found["setting"]["data"] == "four" and found["setting"]["split"] == "test"


def test_a_tie_counts_against_every_stage(data: Path) -> None:
    same = {text: [0.5] * 4 for text in SIMILAR}
    generator = ScriptedGenerator({text: [-1.0] * 4 for text in SIMILAR})
    settings: dict[str, Any] = {"candidates": 4, "fusion": WeightedSum(1.0)}
    found = bench_rerank(ScriptedEncoder(same), generator, data, **settings).to_json()
    assert [found[name]["R@1"] for name in ("first_stage", "likelihood", "yes_no", "fused")] == [0.0] * 4
    assert found["ratios"]["fused / first_stage"]["R@1"] is None, "nothing to compare with"
    settings["candidates"] = 3
    found = bench_rerank(ScriptedEncoder(same), generator, data, **settings).to_json()
    assert found["first_stage"]["ceiling"] == 0.0, "the right one is the last of the equal ones"


def test_tuning_takes_the_best_weight_and_shows_all(data: Path) -> None:
    found = bench(data, split="dev", tune=True, fusion=WeightedSum(7.0, "raw"))
    assert [row["weight"] for row in found["sweep"]] == list(WEIGHTS)
    # Raw: b needs 0.8 - w > 0.9 - 3 w, so w > 0.05, and then is right with every larger weight.
    assert [row["R@1"] for row in found["sweep"]] == [25.0, *[50.0] * (len(WEIGHTS) - 1)]
    assert found["setting"]["weight"] == 0.1, "the smallest of the best"
    assert found["setting"]["weight_from"] == "tuned for R@1 on dev"
    assert found["fused"]["R@1"] == 50.0
    assert "sweep" not in bench(data)


def test_tuning_decides_ties_by_the_other_recalls(tmp_path: Path) -> None:
    """The image of "a." is never first, but second rather than last where the generator counts."""
    others = [f"{number}." for number in range(1, 7)]
    write_shard(tmp_path / "dev-0.tar", [["a."], *([text] for text in others)])
    similar = {text: [float(place == number) for place in range(7)] for number, text in enumerate(others, 1)}
    likely = {text: [-1.0] * 7 for text in others}
    similar["a."] = [0.1, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
    likely["a."] = [-2.0, -1.0, -3.0, -4.0, -5.0, -6.0, -7.0]
    encoder, generator = ScriptedEncoder(similar), ScriptedGenerator(likely)
    found = bench_rerank(encoder, generator, tmp_path, split="dev", tune=True)
    assert {row["R@1"] for row in found.sweep} == {85.71}
    assert found.sweep[0]["R@5"] == 85.71 and found.stages["fused"]["R@5"] == 100.0
    assert found.setting["weight"] == min(row["weight"] for row in found.sweep if row["R@5"] == 100.0)


class Writer(ScriptedGenerator):
    """Says two things of every image, what is said of c and of d."""

    def generate(self, contexts: Sequence[Context], *, n: int = 1, **settings: Any) -> list[list[str]]:
        return [[["c.", "d."][draw % 2] for draw in range(n)] for _ in contexts]


def test_a_bank_takes_away_what_any_question_gets(data: Path) -> None:
    written = QueryBank(np.array([SIMILAR["c."], SIMILAR["d."]] * 4, np.float32), "scripted-encoder", 10, 1.2)
    hubness = written.hubness(np.eye(4, dtype=np.float32))
    normalized = {text: np.array(row) - 1.2 * hubness for text, row in SIMILAR.items()}
    right = [normalized[text].argmax() == n for n, text in enumerate(SIMILAR)]
    assert right == [True, False, False, True], "the first stage has a alone right: c goes down, d comes up"
    settings: dict[str, Any] = {"candidates": 4, "bank": 2, "bank_scale": 10, "bank_strength": 1.2}
    found = bench(data, Writer(LIKELY), **settings)
    # among so few images every text leads back to its own
    told = {"written": 8, "questions": 8, "scale": 10, "strength": 1.2, "fusion": repr(WeightedSum(0.0))}
    assert found["setting"]["bank"] == told
    assert found["normalized"]["R@1"] == found["normalized_fused"]["R@1"] == 50.0
    assert found["fused"]["R@1"] == found["first_stage"]["R@1"] == 25.0, "not touched by the bank"
    assert found["differences"]["normalized - first_stage"]["R@1"] == 25.0
    assert found["normalized_fused"]["seconds_per_query"] > found["normalized"]["seconds_per_query"] > 0
    read = bench(data, Writer(LIKELY), **settings, fusion=RerankOnly())
    assert read["normalized_fused"]["R@1"] == read["likelihood"]["R@1"]
    assert bench(data)["setting"]["bank"] is None


def test_either_first_stage_has_a_weight_of_its_own(data: Path) -> None:
    fusion = WeightedSum(7.0, "raw")
    found = bench(data, Writer(LIKELY), split="dev", tune=True, bank=1, bank_strength=0, fusion=fusion)
    rows = {
        stage: [row for row in found["sweep"] if row["stage"] == stage]
        for stage in ("fused", "normalized_fused")
    }
    assert [row["weight"] for row in rows["normalized_fused"]] == list(WEIGHTS)
    recalls = [[row["R@1"] for row in some] for some in rows.values()]
    assert recalls[0] == recalls[1], "of strength 0"
    assert found["setting"]["bank"]["fusion"] == found["setting"]["fusion"]


def test_tuning_on_test_is_refused(data: Path) -> None:
    generator = ScriptedGenerator(LIKELY)
    with pytest.raises(InvalidInputError, match=r"seen the answers.*tune on dev"):
        bench(data, generator, tune=True)
    with pytest.raises(InvalidInputError, match="has a weight to tune"):
        bench(data, generator, split="dev", tune=True, fusion=ReciprocalRank())
    assert not generator.calls


def test_the_weight_is_on_record(data: Path) -> None:
    setting = bench(data, fusion=WeightedSum(0.3), fusion_from="preset mini")["setting"]
    assert (setting["weight"], setting["weight_from"]) == (0.3, "preset mini")
    assert bench(data, fusion=RerankOnly())["setting"]["weight"] is None


def test_an_interrupted_run_goes_on_where_it_was(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix_module, "CHUNK", 3)
    work = tmp_path / "work"
    settings: dict[str, Any] = {"candidates": 3, "scorings": (Likelihood(),), "work": work}  # 12 pairs
    whole = bench(data, candidates=3, scorings=(Likelihood(),))

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("scoring") and done >= 6:
            raise KeyboardInterrupt

    first = ScriptedGenerator(LIKELY)
    with pytest.raises(KeyboardInterrupt):
        bench(data, first, progress=stop, **settings)
    assert len(first.pairs) == 6 and not list(work.glob("*.tmp"))

    timed = 4 * 3  # one by one, for the timings
    second = ScriptedGenerator(LIKELY)
    found = bench(data, second, **settings)
    assert len(second.pairs) == 6 + timed
    assert not set(first.pairs) & set(second.pairs[:6])
    assert found["likelihood"]["R@1"] == whole["likelihood"]["R@1"]

    chunk = sorted(work.glob("likelihood-*.scores"))[0]
    content = chunk.read_bytes()
    flipped = bytes([*content[:-20], content[-20] ^ 1, *content[-19:]])  # still a finite score
    for damaged in (content[:-5], flipped, b""):
        chunk.write_bytes(damaged)
        third = ScriptedGenerator(LIKELY)
        assert bench(data, third, **settings)["likelihood"]["R@1"] == whole["likelihood"]["R@1"]
        assert len(third.pairs) == 3 + timed, "a damaged chunk is computed anew"
        assert chunk.read_bytes() == content

    other = ScriptedGenerator({text: scores[::-1] for text, scores in LIKELY.items()}, "another")
    bench(data, other, **settings)
    assert len(other.pairs) == 12 + timed, "another generator's scores are never taken"
    worded = ScriptedGenerator(LIKELY)
    bench(data, worded, **{**settings, "scorings": (Likelihood(aggregate="mean"),)})
    assert len(worded.pairs) == 12 + timed, "nor those of another rule"


def test_images_are_encoded_and_seen_once(data: Path) -> None:
    generator, encoder = SeeingGenerator(LIKELY), ScriptedEncoder(SIMILAR)
    found = bench_rerank(encoder, generator, data, candidates=2, fusion=WeightedSum(0.0)).to_json()
    assert generator.seen == encoder.images == 4
    assert found["likelihood"]["R@1"] == 50.0


def test_questions_about_an_image_are_asked_together(data: Path) -> None:
    generator = ScriptedGenerator(LIKELY)
    bench(data, generator, scorings=(Likelihood(),))
    numbers = [number for number, _ in generator.pairs[:8]]
    assert numbers == sorted(numbers)


def test_progress_counts_to_the_end(data: Path) -> None:
    seen: dict[str, tuple[int, int]] = {}
    bench(data, progress=lambda what, done, total: seen.update({what: (done, total)}))
    scored = {"scoring by likelihood": (8, 8), "scoring by yes_no": (8, 8)}
    assert seen == {"encoding images": (4, 4), "encoding captions": (4, 4), **scored}


def test_fewer_queries_are_taken_evenly_and_always_the_same(tmp_path: Path) -> None:
    captions = [[f"{number} {turn}." for turn in range(1 + number % 3)] for number in range(10)]
    write_shard(tmp_path / "test-0.tar", captions)
    texts = [text for some in captions for text in some]
    encoder = ScriptedEncoder({text: [0.1] * 10 for text in texts})

    def asked(queries: int | None) -> list[str]:
        generator = ScriptedGenerator({text: [-1.0] * 10 for text in texts})
        found = bench_rerank(
            encoder, generator, tmp_path, queries=queries, candidates=1, scorings=(Likelihood(),)
        )
        assert found.setting["of_queries"] == len(texts)
        return sorted({text.strip() for _, text in generator.pairs})

    ten = asked(10)
    assert sorted(int(text.split()[0]) for text in ten) == list(range(10)), "every image asks once"
    assert asked(10) == ten
    assert len(asked(3)) == 3 and len(asked(15)) == 15
    assert asked(None) == sorted(texts) == asked(1000)


def test_what_cannot_be_measured_is_refused(data: Path) -> None:
    for wrong in (
        {"candidates": 0},
        {"queries": 0},
        {"bank": 0},
        {"scorings": ()},
        {"scorings": (YesNo(), YesNo())},
    ):
        with pytest.raises(InvalidInputError):
            bench(data, **wrong)
    with pytest.raises(InvalidInputError, match=r"no shards train-\*\.tar"):
        bench(data, split="train")
    broken = ScriptedGenerator({text: [-np.inf] * 4 for text in LIKELY})
    with pytest.raises(ZsqError, match=r"' [abcd]\.' given .*0000"):
        bench(data, broken)


def test_it_measures_the_toys(tmp_path: Path) -> None:
    """Nothing scripted: the toys see reds, and all numbers are there."""
    write_shard(tmp_path / "test-0.tar", [[f"what is red {number}?"] for number in range(12)])
    found = bench_rerank(ToyEncoder(), ToyGenerator(), tmp_path, candidates=5).to_json()
    assert set(found) == {
        *("first_stage", "likelihood", "yes_no", "fused", "differences", "ratios", "setting")
    }
    assert 0 <= found["fused"]["R@10"] <= found["first_stage"]["ceiling"] <= 100


@given(st.integers(1, 6), st.integers(1, 8), st.integers(1, 10), st.integers(0, 2**32 - 1))
def test_ranks_agree_with_counting(queries: int, images: int, k: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    similarity = random.integers(0, 4, (queries, images)).astype(np.float32)  # many ties
    answers = random.integers(0, images, queries)
    found, first = first_candidates(similarity, answers, k)
    assert found.shape == first.shape == (queries, min(k, images))
    assert (np.diff(first) <= 0).all()
    scores = random.integers(0, 4, found.shape).astype(np.float64)
    for q, rank in enumerate(ranks_among(found, scores, answers)):
        better = sum(s >= similarity[q, answers[q]] for s in similarity[q]) - 1
        assert (answers[q] in found[q]) == (better < k)
        if answers[q] in found[q]:
            own = scores[q][list(found[q]).index(answers[q])]
            assert rank == sum(score >= own for score in scores[q]) - 1
        else:
            assert rank > 10**9
