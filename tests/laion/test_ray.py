"""Shard workers and generators as actors of a real Ray."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import toy_plugins
from plain import png, write_plain
from tars import pack
from zsqretrieval.cli import app
from zsqretrieval.data.samples import photographs
from zsqretrieval.errors import ImageError, InvalidInputError, MismatchError, ZsqError
from zsqretrieval.generators.ray import RayGenerator
from zsqretrieval.laion.image_shards import ImageShard, open_image_shards
from zsqretrieval.laion.ray import run_on_ray
from zsqretrieval.laion.shards import run_shards
from zsqretrieval.mini.generator import MiniGenerator
from zsqretrieval.protocols import ImageStates
from zsqretrieval.retriever import Retriever
from zsqretrieval.tasks.shards import make_task
from zsqretrieval.testing import generator_checks, parametrize_checks
from zsqretrieval.testing.toys import COLOURS, ToyEncoder
from zsqretrieval.types import Image

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("default")  # Ray's own

MORTAL = """
import os, signal
from pathlib import Path
import cli_toys

class Mortal(cli_toys.Toy):
    def __init__(self, file):
        self.config = {"file": file}
    @classmethod
    def from_config(cls, config):
        return cls(**config)
    def encode_image(self, images, *, batch_size=32):
        left = Path(self.config["file"])
        if lives := left.read_text():
            left.write_text(lives[1:])
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_image(images)
"""


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ray on two cores, whose processes find the toys."""
    folder = toy_plugins.install(tmp_path_factory.mktemp("toys"))
    (folder / "mortal.py").write_text(MORTAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture
def tars(tmp_path: Path) -> list[ImageShard]:
    (tmp_path / "tars").mkdir()
    for n, colour in enumerate(COLOURS):
        pack(tmp_path / "tars" / f"{n}.tar", {f"{n}.png": png(colour), "red.png": png("red")})
    return open_image_shards(tmp_path / "tars")


def content(out: Path) -> dict[str, bytes]:
    files = (one for one in out.rglob("*") if one.is_file() and one.parent.name != "stats")
    return {one.relative_to(out).as_posix(): one.read_bytes() for one in files}


def toy(plugin: str = "toy", **config: Any) -> Any:
    return partial(make_task, "embed", {"plugin": plugin, "config": config})


# --- shards -----------------------------------------------------------------------------------------------


def test_output_equals_that_of_one_process(tars: list[ImageShard], tmp_path: Path) -> None:
    told: list[Any] = []
    report = run_on_ray(toy(), tars, tmp_path / "ray", report=told.append)
    assert (report.done, report.images, sorted(one["shard"] for one in told)) == (6, 12, list(range(6)))
    run_shards(toy()(), tars, tmp_path / "local")
    assert content(tmp_path / "ray") == content(tmp_path / "local")
    assert run_on_ray(toy(), tars, tmp_path / "ray", actors=1).known == 6


def test_shard_of_a_killed_actor_is_done_again(tars: list[ImageShard], tmp_path: Path) -> None:
    lives = tmp_path / "lives"
    lives.write_text("xx")
    run_on_ray(toy("mortal:Mortal", file=str(lives)), tars, tmp_path / "ray", actors=1)
    assert lives.read_text() == ""
    run_shards(toy()(), tars, tmp_path / "local")
    assert content(tmp_path / "ray") == content(tmp_path / "local")


def test_actor_that_always_dies_ends_the_run(tars: list[ImageShard], tmp_path: Path) -> None:
    lives = tmp_path / "lives"
    lives.write_text("x" * 99)
    with pytest.raises(ZsqError, match="an actor of Ray died 4 times"):
        run_on_ray(toy("mortal:Mortal", file=str(lives)), tars, tmp_path / "ray", actors=1)


def test_command_runs_on_ray(tars: list[ImageShard], tmp_path: Path) -> None:
    options = ["--encoder", "toy", "--engine", "ray", "--actors", "1", "--json"]
    ran = CliRunner().invoke(app, ["laion", "embed", str(tmp_path / "tars"), str(tmp_path / "ray"), *options])
    assert (ran.exit_code, json.loads(ran.stdout)["images"]) == (0, 12)
    run_shards(toy()(), tars, tmp_path / "local")
    assert content(tmp_path / "ray") == content(tmp_path / "local")


def test_errors_are_those_of_one_process(tars: list[ImageShard], tmp_path: Path) -> None:
    run_shards(toy()(), tars, tmp_path / "out")
    with pytest.raises(MismatchError, match="twin"):
        run_on_ray(toy("twin"), tars, tmp_path / "out", actors=1)
    with pytest.raises(InvalidInputError, match="no encoder is named 'tyo'"):
        run_on_ray(toy("tyo"), tars, tmp_path / "out", actors=1)
    with pytest.raises(ZsqError, match="no room"):
        run_on_ray(toy(), tars, tmp_path / "out", gpus=1)


# --- generators -------------------------------------------------------------------------------------------


@cache
def two(plugin: str) -> RayGenerator:
    """Two models of a kind, for all tests."""
    return RayGenerator(plugin, actors=2, cpus=0.2)


@parametrize_checks(generator_checks, partial(two, "seer"))
def test_contract(check) -> None:  # type: ignore[no-untyped-def]
    check()


@pytest.mark.slow
@parametrize_checks(generator_checks, partial(two, "mini"))
def test_contract_with_a_real_model(check) -> None:  # type: ignore[no-untyped-def]
    check()


def test_scores_and_order_equal_those_of_one_model() -> None:
    one, many = MiniGenerator.from_pretrained(), two("mini")
    assert isinstance(many, ImageStates) and many.fingerprint == one.fingerprint
    images = photographs()[:6]
    contexts = [[image, "Question:"] for image in images for _ in range(2)]
    texts = ["Is there a cat?", "Who is wearing a spacesuit, and where are they going?"] * len(images)
    expected = [likelihood.sum for likelihood in one.log_likelihood(contexts, texts)]
    found = [likelihood.sum for likelihood in many.log_likelihood(contexts, texts)]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.argsort(found[::2]).tolist() == np.argsort(expected[::2]).tolist()
    sampled = {"temperature": 0.7, "seed": 3, "max_new_tokens": 5, "n": 2}
    assert many.generate(contexts[:4], **sampled) == one.generate(contexts[:4], **sampled)
    assert many.generate(contexts[::2]) == one.generate(contexts[::2])


def test_search_ranks_as_with_one_model(tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "pictures", COLOURS)
    rankings = []
    for part in (MiniGenerator.from_pretrained(), two("mini")):
        with Retriever(ToyEncoder(), generator=part) as retriever:
            retriever.add(folder)
            rankings.append([(hit.id, hit.score) for hit in retriever.search("a red picture")])
    assert [id for id, _ in rankings[0]] == [id for id, _ in rankings[1]]
    np.testing.assert_allclose([s for _, s in rankings[0]], [s for _, s in rankings[1]], atol=1e-3)


def test_missing_file_is_named() -> None:
    with pytest.raises(ImageError, match="no such file"):
        two("seer").log_likelihood([[Image(Path("gone.png"), "gone.png")]], ["a"])


def test_generator_is_rebuilt_from_its_config() -> None:
    config = two("reader").config
    assert RayGenerator.from_config({**config, "actors": 1}).config == {**config, "actors": 1}
    assert not isinstance(two("reader"), ImageStates)


def test_deployment_example_is_a_cluster_of_ray() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    file = Path(__file__).parents[2] / "examples/deploy/ray-cluster.yaml"
    validate_config(prepare_config(yaml.safe_load(file.read_text())))
