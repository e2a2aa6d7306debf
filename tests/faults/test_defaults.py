"""Defaults that a newcomer meets: features are cached, long work says so, and the device can be chosen."""

from __future__ import annotations

import importlib
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from refusing import refused
from seeing import Seeing
from zsqretrieval import Retriever
from zsqretrieval._util.torch import resolve_device
from zsqretrieval.album import candidates
from zsqretrieval.album.info import describe_album
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.search.rerank import Rerank
from zsqretrieval.testing.pictures import paintings
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator

ENCODER = ToyEncoder()


def made(path: Path | None = None, generator: Any = None, **settings: Any) -> Retriever:
    generator = Seeing() if generator is None else generator
    return Retriever(ENCODER, ExactIndex(ENCODER.dim), generator, path=path, **settings)


# --- image features


def test_features_are_computed_by_the_first_search_and_kept(album: Path) -> None:
    with made(album) as retriever:
        generator: Any = retriever.generator
        retriever.add(paintings(20))
        assert (retriever.states, generator.looked_at) == ("lazy", [])
        first = retriever.search("red ?", 8, rerank=Rerank(candidates=8))
        assert generator.batches == [8]
        assert retriever.search("red ?", 8, rerank=Rerank(candidates=8)).hits == first.hits
        dialog = retriever.dialog("red ?", candidates=8)
        assert dialog.question is not None and generator.batches == [8]
        (facts,) = describe_album(album).states
        assert facts["images"] == 8 and 0 < facts["bytes_on_disk"] < 2000
        retriever.save()
    with Retriever.open(album, encoder=ENCODER, generator=(again := Seeing())) as opened:
        ranking = opened.search("red ?", 8, rerank=Rerank(candidates=8))
        assert (opened.states, ranking.hits, again.looked_at) == ("lazy", first.hits, [])
        opened.remove([record.id for record in opened.records()])
        opened.save()
    assert describe_album(album).bytes_on_disk["states"] == 0


def test_features_of_an_album_in_memory_move_to_disk_with_it(album: Path) -> None:
    with made() as retriever:
        retriever.add(paintings(3))
        ranking = retriever.search("red ?")
        retriever.save(album)
        retriever.search("red ?")
    (facts,) = describe_album(album).states
    assert facts["images"] == 3
    with Retriever.open(album, encoder=ENCODER, generator=(again := Seeing())) as opened:
        assert opened.search("red ?").hits == ranking.hits and again.looked_at == []


def test_default_suits_every_generator_and_none(album: Path) -> None:
    with made(album, ToyGenerator()) as without_features:
        without_features.add(paintings(2))
        assert without_features.search("red ?")[0].scores["likelihood"] <= 0
    with Retriever.open(album, encoder=ENCODER, generator=(later := Seeing())) as retriever:
        retriever.search("red ?")
        retriever.search("red ?")
        assert later.batches == [2]
    with Retriever(ENCODER, path=album.parent / "first stage alone") as alone:
        assert alone.states is None
    with Retriever.open(album.parent / "first stage alone", encoder=ENCODER, generator=Seeing()) as given:
        assert given.states == "lazy"


def test_interrupted_search_keeps_the_features_it_has_computed(album: Path) -> None:
    def stop(step: str, done: int, total: int | None) -> None:
        if (step, done) == ("computing image features", 32):
            raise KeyboardInterrupt

    with made(album) as retriever:
        retriever.add(paintings(40))
        with pytest.raises(KeyboardInterrupt):
            retriever.search("red ?", rerank=Rerank(candidates=40), progress=stop)
        retriever.search("red ?", rerank=Rerank(candidates=40))
        assert retriever.generator.batches == [16, 16, 8]  # type: ignore[union-attr]


def test_none_computes_features_for_every_search(album: Path) -> None:
    with made(album, states=None) as retriever:
        retriever.add(paintings(2))
        for n in (2, 4):
            retriever.search("red ?")
            assert len(retriever.generator.looked_at) == n  # type: ignore[union-attr]
    with Retriever.open(album, encoder=ENCODER, generator=Seeing()) as again:
        assert again.states is None


def test_features_that_cannot_be_written_are_kept_in_memory(album: Path) -> None:
    with made(album) as retriever:
        retriever.add(paintings(2))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(candidates.StateStore, "move_to", _read_only)
            with pytest.warns(RuntimeWarning, match="Read-only file system; they are kept in memory"):
                retriever.search("red ?")
        retriever.search("red ?")
        assert retriever.generator.batches == [2]  # type: ignore[union-attr]
        retriever.save()


def _read_only(*_: object) -> None:
    raise candidates.AlbumError("Read-only file system")


# --- hints and progress


@pytest.fixture
def hints(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log, as if no hint had been given yet."""
    monkeypatch.setattr(candidates, "_hints", [])
    caplog.set_level(logging.INFO, "zsqretrieval")
    return caplog


@pytest.mark.parametrize(
    ("states", "said"), [("lazy", "40 of 40 images for the first time"), (None, "not cached")]
)
def test_one_hint_says_how_to_search_faster(states: Any, said: str, hints: pytest.LogCaptureFixture) -> None:
    with made(states=states) as few, made(states=states) as many:
        few.add(paintings(8))
        few.search("red ?")
        assert hints.messages == []
        many.add(paintings(40))
        many.search("red ?")
        many.dialog("red ?")
        many.search("green ?")
    (hint,) = hints.messages
    assert said in hint and "several times faster" in hint


@pytest.mark.parametrize("generator", [ToyGenerator(), None])
def test_no_hint_where_nothing_would_be_faster(generator: Any, hints: pytest.LogCaptureFixture) -> None:
    with made(generator=generator, states="disk" if generator is None else None) as retriever:
        retriever.add(paintings(40))
        retriever.search("red ?")
    assert hints.messages == []


def test_search_and_dialog_report_all_that_the_generator_does() -> None:
    steps: list[tuple[str, int, int | None]] = []

    def progress(*one: Any) -> None:
        steps.append(one)

    with made() as retriever:
        retriever.add(paintings(20))
        retriever.search("red ?", rerank=Rerank(candidates=18), progress=progress)
        features = [one for one in steps if one[0] == "computing image features"]
        assert features == [("computing image features", n, 18) for n in (16, 18)]
        assert steps[-1][1:] == (18, 18)
    steps.clear()
    with made() as retriever:
        retriever.add(paintings(20))
        dialog = retriever.dialog("red ?", candidates=20, progress=progress)
        assert dialog.question is not None
        names = {name for name, *_ in steps}
        assert {"computing image features", "writing questions", "writing answers"} < names
        assert all(0 < done <= (total or 0) for _, done, total in steps)

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            retriever.dialog("green ?", progress=stop).question  # noqa: B018
        assert retriever.dialog("green ?").question is not None


# --- devices


PARTS = [
    ("encoders.clip", "CLIPEncoder", ("ViT-B-32", "random")),
    ("generators.kosmos", "Kosmos1Generator", ()),
    ("generators.vlm.model", "VLMGenerator", ("no-model",)),
    ("mini.encoder", "MiniEncoder", ()),
    ("mini.generator", "MiniGenerator", ()),
]


@pytest.mark.parametrize("device", ["meta", "hpu", "privateuseone:3", "xla", "vulkan", "cpu:", " ", "\n"])
def test_device_that_computes_nothing_here_is_refused_in_one_line(device: str) -> None:
    refused(
        rf"^device {re.escape(repr(device))} cannot be used here: [^\n]{{0,120}}; leave out device",
        resolve_device,
        device,
    )


@pytest.mark.parametrize(("module", "name", "arguments"), PARTS)
def test_variable_names_the_device_of_every_part(
    module: str, name: str, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    part = getattr(importlib.import_module(f"zsqretrieval.{module}"), name)
    monkeypatch.setenv("ZSQ_DEVICE", "abacus")
    with pytest.raises(InvalidInputError, match="device 'abacus' cannot be used here"):
        part.from_pretrained(*arguments)
    with pytest.raises(InvalidInputError, match="device 'sundial' cannot be used here"):
        part.from_pretrained(*arguments, device="sundial")
    assert "device" not in part._settings and "device" not in getattr(part, "safe_settings", {})
    with pytest.raises(InvalidInputError, match="has no setting 'device'"):
        part.from_config({"device": "cuda"})  # of an album made on another machine


def test_argument_comes_before_the_variable_and_this_before_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZSQ_DEVICE", raising=False)
    best = resolve_device(None)
    monkeypatch.setenv("ZSQ_DEVICE", "nonsense")
    for unnamed in (None, ""):
        refused("device 'nonsense' cannot be used", resolve_device, unnamed)
    assert resolve_device("cpu").type == "cpu"
    monkeypatch.setenv("ZSQ_DEVICE", "")
    assert resolve_device(None) == best
