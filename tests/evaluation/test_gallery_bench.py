"""The study of sizes as a whole, on images that are numbers."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from typer.testing import CliRunner

from zsqretrieval.cli.app import app
from zsqretrieval.data.images import decode
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.gallery_bench import bench_gallery
from zsqretrieval.evaluation.gallery_size import recall_in_sample
from zsqretrieval.evaluation.opening import open_dataset, open_distractors
from zsqretrieval.evaluation.roofline import LAION_5B
from zsqretrieval.presets import preset_fusion
from zsqretrieval.search.fusion import RerankOnly, WeightedSum
from zsqretrieval.types import LogLikelihood

ASKED, OTHERS = 60, 240
SPACE = np.random.default_rng(0).standard_normal((ASKED + OTHERS, 12)) + 0.5
NOISE = np.random.default_rng(1).standard_normal((ASKED, 2, 12))


def write_shard(path: Path, numbers: range, captioned: bool = True) -> None:
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            png = io.BytesIO()
            PILImage.new("RGB", (4, 4), (number // 256, number % 256, 0)).save(png, "PNG")
            files = {"png": png.getvalue()}
            if captioned:
                files["json"] = json.dumps({"captions": [f"{number} a", f"{number} b"]}).encode()
            for suffix, content in files.items():
                member = tarfile.TarInfo(f"{number:04}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def number_of(image) -> int:
    red, green, _ = np.asarray(decode(image))[0, 0]
    return int(red) * 256 + int(green)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class NumberEncoder:
    """Image n is row n of a table; a caption is near its image."""

    dim, fingerprint = 12, "numbers"

    def encode_image(self, images, *, batch_size=32):
        return unit(SPACE[[number_of(image) for image in images]])

    def encode_text(self, texts, *, batch_size=32):
        said = [text.split() for text in texts]
        return unit(np.stack([SPACE[int(n)] + 1.6 * NOISE[int(n), "ab".index(which)] for n, which in said]))


class NumberGenerator:
    """Knows which image a caption is about; every fifth image it likes least of all."""

    fingerprint = "numbers-generator"
    pairs = 0

    def log_likelihood(self, contexts, continuations, *, batch_size=16):
        self.pairs += len(contexts)
        return [self._one(context, text) for context, text in zip(contexts, continuations, strict=True)]

    def _one(self, context, text):
        shown, asked = number_of(context[0]), int(text.split()[0])
        if shown == asked:
            return LogLikelihood((text,), np.array([-1 if asked % 5 else -99], np.float32))
        return LogLikelihood((text,), np.array([-9 - shown / 1000], np.float32))

    def generate(self, contexts, **_):
        raise AssertionError("nothing is generated here")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("numbers")
    write_shard(folder / "test-0.tar", range(ASKED))
    write_shard(folder / "train-0.tar", range(ASKED, ASKED + OTHERS), captioned=False)
    return folder


SMALL = {"candidates": 60, "depths": (5, 20), "synthetic": 500, "resamples": 12, "draws": 4}


def bench(generator, data, **settings):
    argument = f"shards:{data}"
    others = open_distractors(argument, "test")
    return bench_gallery(NumberEncoder(), generator, open_dataset(argument), distractors=others, **settings)


@pytest.fixture(scope="module")
def found(data):
    return asdict(bench(NumberGenerator(), data, fusion=WeightedSum(1.0), **SMALL))


def beaten_by():
    """How many images are as near to each caption as its own, in the whole gallery."""
    texts = NumberEncoder().encode_text([f"{n} {c}" for n in range(ASKED) for c in "ab"])
    similarity = texts @ unit(SPACE).T
    own = similarity[np.arange(2 * ASKED), np.arange(2 * ASKED) // 2]
    return (similarity >= own[:, None]).sum(1) - 1


def test_the_largest_gallery_is_what_a_loop_measures(found):
    rank = beaten_by()
    last = found["measured"]["first_stage"][-1]
    assert last["gallery"] == found["setting"]["images"] == ASKED + OTHERS
    for k in (1, 10, 100):
        assert last[f"R@{k}"] == pytest.approx(100 * (rank < k).mean(), abs=0.05)
        assert last[f"R@{k}_ci"][0] <= last[f"R@{k}"] <= last[f"R@{k}_ci"][1]
    curve = [row["R@1"] for row in found["measured"]["first_stage"]]
    assert curve == sorted(curve, reverse=True) and curve[0] > curve[-1]


def test_a_generator_that_knows_keeps_its_share_of_the_ceiling(found):
    """Right for four images in five, whenever their image is read."""
    assert set(found["measured"]) == {
        "first_stage", "likelihood@5", "fused@5", "likelihood@20", "fused@20",
    }  # fmt: skip
    deep, shallow = found["measured"]["likelihood@20"], found["measured"]["likelihood@5"]
    assert deep[-1]["gallery"] == shallow[-1]["gallery"] == ASKED + OTHERS
    assert len(shallow) > len(deep), "fewer candidates are known in smaller galleries too"
    ceilings = recall_in_sample(beaten_by(), ASKED + OTHERS - 1, ASKED + OTHERS - 1, [5, 20])
    for rows, within in ((shallow, ceilings[0]), (deep, ceilings[1])):
        right = within[np.arange(2 * ASKED) // 2 % 5 > 0].sum()
        assert rows[-1]["R@1"] == pytest.approx(100 * right / (2 * ASKED), abs=0.05)


def test_synthetic_distractors_are_named_and_hurt(found):
    rows = found["hard_synthetic"]
    assert [row["gallery"] - row["synthetic"] for row in rows] == [ASKED + OTHERS] * len(rows)
    assert rows[-1]["synthetic"] == 500
    assert rows[-1]["R@10"] < found["measured"]["first_stage"][-1]["R@10"]
    assert any("no images" in sentence for sentence in found["assumptions"])


def test_the_extrapolation_falls_and_its_envelope_holds_all_models(found):
    for models in found["extrapolated"].values():
        *named, envelope = models.items()
        assert [name for name, _ in named] == ["beta", "normal", "pareto"] and envelope[0] == "envelope"
        for _, rows in named:
            assert rows[-1]["gallery"] == LAION_5B
            for row, outer in zip(rows, envelope[1], strict=True):
                assert outer["R@10_ci"][0] <= row["R@10_ci"][0] <= row["R@10_ci"][1] <= outer["R@10_ci"][1]
    for model in ("beta", "normal", "pareto"):
        first = found["extrapolated"]["first_stage"][model]
        for k in (1, 10, 100):
            falling = [found["measured"]["first_stage"][-1][f"R@{k}"], *(row[f"R@{k}"] for row in first)]
            assert falling == sorted(falling, reverse=True)
        # What a re-ranking of twenty finds, the first stage has among its hundred.
        for row, ceiling in zip(found["extrapolated"]["fused@20"][model], first, strict=True):
            assert row["R@1"] <= row["R@10"] <= ceiling["R@100"]


def test_what_was_held_out_is_told(found):
    assert [row["model"] for row in found["held_out"]] == ["beta", "normal", "pareto"]
    for row in found["held_out"]:
        assert row["fitted_on"] == 40 and row["gallery"] == ASKED + OTHERS
        assert row["R@10_measured"] == found["measured"]["first_stage"][-1]["R@10"]
        low, high = row["R@10_off_ci"]
        assert low <= row["R@10"] - row["R@10_measured"] <= high + 1
        assert abs(row["R@10"] - row["R@10_measured"]) < 15, "a seventh of the images tells nearly as much"


def test_candidates_have_to_grow_with_the_gallery_and_so_does_the_cost(found):
    for model, rows in found["candidates_needed"].items():
        assert rows[0]["gallery"] == ASKED + OTHERS and rows[0]["K"] == pytest.approx(60, rel=0.6)
        assert rows[0]["ceiling_ci"][0] <= rows[0]["ceiling"] <= rows[0]["ceiling_ci"][1]
        assert rows[-1]["K"] / rows[-2]["K"] == pytest.approx(LAION_5B / 10**9, rel=0.08)
        costs = [row for row in found["cost"]["per_query"] if row.get("keeps_the_ceiling_by") == model]
        assert [row["candidates"] for row in costs] == [rows[-1]["K"]]
        assert costs[0]["seconds"]["states"] < costs[0]["seconds"]["pixels"]


def test_the_first_stage_alone_needs_no_generator(data):
    found = bench(None, data, queries=30, **SMALL | {"synthetic": 0})
    assert set(found.measured) == set(found.extrapolated) == {"first_stage"}
    assert found.hard_synthetic == [] and found.setting["generator"] is None
    assert found.setting["queries"] == 30


def test_an_interrupted_run_goes_on_where_it_was(data, tmp_path):
    settings = SMALL | {"work": tmp_path / "work", "queries": 20, "fusion": RerankOnly()}
    once = bench(NumberGenerator(), data, **settings)
    reader = NumberGenerator()
    assert asdict(bench(reader, data, **settings)) == asdict(once)
    assert reader.pairs == 0


def test_what_cannot_be_studied_is_refused(data, tmp_path):
    with pytest.raises(InvalidInputError, match="depths are from 1 to candidates"):
        bench(None, data, candidates=10, depths=(20,))
    write_shard(tmp_path / "test-0.tar", range(9))
    with pytest.raises(InvalidInputError, match="has 9 images"):
        bench(None, tmp_path)
    asked = open_dataset(f"shards:{data}")
    first = asked.queries[0].id
    several = replace(asked, qrels=asked.qrels | {first: {str(image.id): 1 for image in asked.gallery[:2]}})
    with pytest.raises(InvalidInputError, match=f"query '{first}' has 2 right images"):
        bench_gallery(NumberEncoder(), None, several)


@pytest.fixture
def commanded(monkeypatch, data):
    from zsqretrieval.cli import bench_gallery as command

    monkeypatch.setattr(command, "new_encoder", lambda preset, weights=None: NumberEncoder())
    monkeypatch.setattr(command, "new_generator", lambda preset, weights=None: NumberGenerator())
    return ["bench", "gallery", "--data", str(data), "--candidates", "30", "--depth", "5", "--resamples", "5"]


def test_the_command_prints_one_json_object(commanded):
    result = CliRunner().invoke(app, [*commanded, "--synthetic", "100", "--weight", "0.25", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found["measured"]) == {"first_stage", "likelihood@5", "fused@5"}
    assert found["extrapolated"]["first_stage"]["envelope"][-1]["gallery"] == LAION_5B
    expected = replace(preset_fusion("mini"), weight=0.25)
    assert found["setting"]["fusion"] == repr(expected), "the preset's, with another weight"


def test_the_command_tells_people_what_it_found(commanded):
    result = CliRunner().invoke(app, [*commanded, "--synthetic", "100", "--no-rerank"])
    assert result.exit_code == 0, result.output
    for said in (
        "120 captions",
        "with synthetic",
        "Fitted on a tenth",
        "5.85e+09",
        "To keep a ceiling",
        "H100",
    ):
        assert said in result.stdout
