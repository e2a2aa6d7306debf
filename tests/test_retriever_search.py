"""Searches with a generator: stages, scores, cached image features, parts, and ranking texts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from seeing import Seeing
from together import together
from zsqretrieval import plugins
from zsqretrieval.album.catalog import Catalog
from zsqretrieval.album.features import StateStore
from zsqretrieval.data.images import decode
from zsqretrieval.data.sources import open_images
from zsqretrieval.errors import AlbumError, ImageError, InvalidInputError, ZsqError
from zsqretrieval.generators.lazy import LazyGenerator
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.presets import PRESETS, Calibration, Preset
from zsqretrieval.retriever import Retriever
from zsqretrieval.search.fusion import Maximum, ReciprocalRank, RerankOnly, WeightedSum, best_first
from zsqretrieval.search.priors import Prior, log_prior
from zsqretrieval.search.ranking import Ranking
from zsqretrieval.search.rerank import Rerank
from zsqretrieval.search.scoring import Likelihood, YesNo, score_pairs
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator
from zsqretrieval.types import Image

ENCODER = ToyEncoder()
TOY = ToyGenerator()


def red() -> PILImage.Image:
    return PILImage.new("RGB", (6, 6), "red")


class Painter(ToyEncoder):
    """A toy encoder that can be made anew from its settings."""

    config: dict[str, Any] = {}  # noqa: RUF012

    @classmethod
    def from_config(cls, config: Any) -> Painter:
        return cls()


@pytest.fixture(autouse=True)
def offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offers the plugins "painter" and "seeing", and a preset of both."""
    monkeypatch.setitem(plugins._registered["encoder"], "painter", Painter)
    monkeypatch.setitem(plugins._registered["generator"], "seeing", Seeing)
    monkeypatch.setitem(
        PRESETS,  # type: ignore[arg-type]
        "both",
        Preset("painter", index="exact", generator="seeing", generator_config={"glasses": 2}),
    )


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve images of two colours each, left and right."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    colours = np.random.default_rng(3).integers(0, 256, (12, 2, 3), np.uint8)
    for n, pair in enumerate(colours):
        picture = PILImage.fromarray(pair[None]).resize((8, 4), PILImage.Resampling.NEAREST)
        picture.save(folder / f"{n:02}.png")
    return folder


def exact() -> ExactIndex:
    return ExactIndex(ENCODER.dim, fingerprint=ENCODER.fingerprint)


def made(generator: Any = TOY, **rest: Any) -> Retriever:
    return Retriever(ENCODER, exact(), generator, **rest)


def ids(ranking: Ranking) -> list[str]:
    return [hit.id for hit in ranking]


# --- stages


@pytest.mark.parametrize("rule", [Likelihood(), Likelihood(aggregate="mean"), YesNo()])
@pytest.mark.parametrize("fusion", [RerankOnly(), WeightedSum(), ReciprocalRank()])
def test_hit_has_the_score_of_every_stage(pictures: Path, rule: Any, fusion: Any) -> None:
    with made() as retriever:
        retriever.add(pictures)
        first = retriever.search("red ?", k=8, rerank=None)
        assert all(hit.scores == {"first_stage": hit.score} for hit in first)
        ranking = retriever.search(
            "red ?", k=5, rerank=Rerank(rule, fusion=fusion, candidates=8, batch_size=3)
        )

    images = [next(open_images(hit.source)) for hit in first]
    cosine, scores = np.array([hit.score for hit in first]), score_pairs(TOY, rule, ["red ?"] * 8, images)
    fused = fusion.fuse(cosine, scores)
    order = best_first(fused)[:5]
    assert ids(ranking) == [first[n].id for n in order] and ranking.query == "red ?"
    for hit, n in zip(ranking, order, strict=True):
        assert hit.score == hit.scores["fused"] == pytest.approx(fused[n])
        assert hit.scores[rule.name] == pytest.approx(scores[n])
        assert hit.scores["first_stage"] == cosine[n]
        assert list(hit.scores) == ["first_stage", rule.name, "fused"]
    assert list(ranking.timings) == ["encode", "first_stage", rule.name]
    assert all(seconds >= 0 for seconds in ranking.timings.values())


def test_search_reranks_by_likelihood_if_there_is_a_generator(pictures: Path) -> None:
    with made() as retriever, made(None) as without:
        for one in (retriever, without):
            one.add(pictures)
        ranking = retriever.search("red ?")
        assert list(ranking[0].scores) == ["first_stage", "likelihood", "fused"]
        assert ids(ranking) == ids(
            retriever.search("red ?", rerank=Rerank(Likelihood(), fusion=WeightedSum()))
        )
        assert list(without.search("red ?")[0].scores) == ["first_stage"]
        assert (retriever.has_generator, without.has_generator) == (True, False)
        assert retriever.generator is TOY and without.generator is None
        assert list(retriever.search(pictures / "00.png")[0].scores) == ["first_stage"]


def test_number_of_scored_candidates_is_the_larger_of_k_and_candidates(pictures: Path) -> None:
    generator = Seeing()
    with made(generator, states=None) as retriever:
        retriever.add(pictures)
        for k, candidates, read in [(3, 5, 5), (5, 3, 5), (2, 100, 12), (100, 1, 12)]:
            generator.looked_at.clear()
            ranking = retriever.search("red", k, rerank=Rerank(candidates=candidates))
            assert len(generator.looked_at) == read and len(ranking) == min(k, 12)
        first = retriever.search("red", 4, rerank=None)
        assert set(ids(retriever.search("red", 4, rerank=Rerank(candidates=4)))) == set(ids(first))


def test_exception_from_progress_stops_search(pictures: Path) -> None:
    generator = Seeing()
    seen: list[tuple[int, int | None]] = []

    def stop(step: str, done: int, total: int | None) -> None:
        seen.append((done, total))
        if done > 7:
            raise KeyboardInterrupt

    with made(generator, states=None) as retriever:
        retriever.add(pictures)
        with pytest.raises(KeyboardInterrupt):
            retriever.search("red", progress=stop, rerank=Rerank(candidates=11, batch_size=4))
        assert seen == [(n, 11) for n in range(1, 9)] and len(generator.looked_at) == 8
        retriever.search(
            "red", progress=lambda _, *news: seen.append(news), rerank=Rerank(candidates=11, batch_size=4)
        )
        assert seen[8:] == [(n, 11) for n in range(1, 12)]


def test_batch_size_does_not_change_the_ranking(pictures: Path) -> None:
    with made() as retriever:
        retriever.add(pictures)
        rankings = [retriever.search("red ?", 12, rerank=Rerank(batch_size=size)) for size in (1, 5, 100)]
        assert ids(rankings[0]) == ids(rankings[1]) == ids(rankings[2])
        for hits in zip(*rankings, strict=True):
            assert hits[0].score == pytest.approx(hits[1].score) == pytest.approx(hits[2].score)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"query": ""}, "the question must be"),
        ({"query": "  \n"}, "the question must be"),
        ({"query": ["red", ""]}, "the question must be"),
        ({"query": None}, "must be a path, encoded bytes"),
        ({"query": [None]}, "must be a path, encoded bytes"),
        ({"query": b"red"}, "not an image"),
        ({"query": Path("none.png")}, "no such file"),
        ({"query": "red " * 300}, "reads 256"),
        ({"k": 0}, "k must be at least 1, not 0"),
        ({"query": red(), "k": -1}, "k must be at least 1, not -1"),
        ({"rerank": "likely"}, "re-ranking takes 'likelihood', 'yes_no', a rule .*, not 'likely'"),
        ({"rerank": Likelihood}, "re-ranking takes"),
        ({"rerank": WeightedSum()}, "re-ranking takes"),
        ({"query": red(), "rerank": "yes_no"}, "need a question, not an image"),
        ({"query": red(), "explain": True}, "need a question, not an image"),
        ({"bank": "red"}, r"bank must be a QueryBank of Retriever.query_bank\(\), not 'red'"),
    ],
)
def test_invalid_argument_of_search_is_refused(pictures: Path, settings: Any, message: str) -> None:
    with made() as retriever:
        retriever.add(pictures)
        error = ImageError if message == "no such file" else InvalidInputError
        with pytest.raises(error, match=message):
            retriever.search(**{"query": "red", **settings})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rerank(candidates=0), "candidates must be at least 1, not 0"),
        (lambda: Rerank(batch_size=-1), "batch_size must be at least 1, not -1"),
        (lambda: Rerank("likely"), "re-ranking takes"),
        (lambda: Rerank(fusion="best"), "the fusion is the"),
        (lambda: Calibration(WeightedSum), "the fusion is the"),
        (lambda: Calibration(expansion=0.5), "is not a fusion: it has no fuse"),
    ],
)
def test_invalid_setting_of_stages_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make()


def test_scoring_rule_without_generator_is_refused() -> None:
    with made(None) as retriever:
        for rule in (Likelihood(), YesNo()):
            with pytest.raises(InvalidInputError, match=f"re-ranking by '{rule.name}' needs a generator"):
                retriever.search("red", rerank=rule)
        with pytest.raises(InvalidInputError, match="needs a generator"):
            retriever.rank_texts(PILImage.new("RGB", (4, 4)), ["red"], rerank=Likelihood())


def test_empty_album_gives_no_hits_and_can_be_saved(album: Path) -> None:
    with made(Seeing(), states="disk", path=album) as retriever:
        assert len(retriever.search("red")) == 0
        retriever.save()


def test_fusion_that_gives_no_numbers_is_an_error(pictures: Path) -> None:
    class Lost:
        def fuse(self, first_stage: Any, scores: Any) -> Any:
            return scores[:1] * np.nan

    with made() as retriever:
        retriever.add(pictures)
        with pytest.raises(InvalidInputError, match=r"the fusion .* gave \[nan\] for 12 candidates"):
            retriever.search("red", rerank=Rerank(fusion=Lost()))


# --- images that cannot be shown


def test_missing_or_changed_file_ranks_last_and_is_named(pictures: Path) -> None:
    with made() as retriever:
        retriever.add(pictures)
        first = ids(retriever.search("red", 12, rerank=None))
        (pictures / first[0]).unlink()
        shutil.copy(pictures / first[5], pictures / first[3])
        (pictures / first[7]).write_bytes(b"junk")
        with pytest.warns(RuntimeWarning, match="3 of 12 candidates cannot be opened") as caught:
            ranking = retriever.search("red", 12, rerank=Rerank(batch_size=5))
        for name, reason in ((first[0], "no such file"), (first[3], "has changed"), (first[7], "format")):
            assert name in str(caught[0].message) and reason in str(caught[0].message)
        assert ids(ranking)[-3:] == [first[0], first[3], first[7]]
        assert all(hit.score is None and list(hit.scores) == ["first_stage"] for hit in ranking[-3:])
        assert all(hit.score is not None for hit in ranking[:-3])
        with pytest.warns(RuntimeWarning):
            assert ids(retriever.search("red", 4, rerank=Rerank(candidates=12))) == ids(ranking)[:4]


def test_missing_file_does_not_change_other_scores(pictures: Path) -> None:
    with made() as retriever, made() as alone:
        retriever.add(pictures)
        (pictures / "04.png").unlink()
        alone.add(pictures)
        with pytest.warns(RuntimeWarning, match=r"1 of 12 .*04\.png: no such file"):
            ranking = retriever.search("green ?", 12)
        expected = alone.search("green ?", 12)
        assert ids(ranking)[:-1] == ids(expected) and ids(ranking)[-1] == "04.png"
        assert [hit.score for hit in ranking][:-1] == pytest.approx([hit.score for hit in expected])


def test_first_stage_ranks_if_no_image_can_be_opened(pictures: Path) -> None:
    with made() as retriever:
        retriever.add(pictures)
        shutil.rmtree(pictures)
        with pytest.warns(RuntimeWarning, match="12 of 12 candidates cannot be opened.*; ..."):
            ranking = retriever.search("red", 4)
        first = retriever.search("red", 4, rerank=None)
        assert ranking.hits == first.hits


def test_images_in_tars_are_scored_like_files(pictures: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "shard"), "tar", pictures)
    with made() as retriever, made() as plain:
        retriever.add(tmp_path / "shard.tar")
        plain.add(pictures)
        found, expected = retriever.search("blue ?", 12), plain.search("blue ?", 12)
        assert ids(found) == [f"shard/{Path(id).stem}" for id in ids(expected)]
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected])


# --- states


def test_cached_states_replace_images_in_search(pictures: Path, album: Path) -> None:
    for folder in (album, None):
        generator = Seeing()
        with made(generator, states="disk", path=folder) as retriever, made(Seeing()) as plain:
            plain.add(pictures)
            retriever.add(pictures, batch_size=5)
            assert retriever.states == "disk" and generator.batches == [5, 5, 2]
            assert len(generator.looked_at) == 12
            found, expected = retriever.search("red ?", 12), plain.search("red ?", 12)
            assert len(generator.looked_at) == 12, "no image is looked at twice"
            assert ids(found) == ids(expected)
            assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected])
    assert len(list(album.glob("states-*/*.safetensors"))) == 3


@pytest.mark.parametrize("in_memory", [False, True])
def test_search_with_cached_states_needs_no_files(pictures: Path, album: Path, in_memory: bool) -> None:
    content = [path.read_bytes() for path in sorted(pictures.iterdir())]
    with made(Seeing(), states="disk", path=None if in_memory else album) as retriever:
        retriever.add([*content[:6], red()])
        retriever.save(album)
        retriever.add(content[6:])
        ranking = retriever.search("red ?", 13)
    generator = Seeing()
    with Retriever.open(album, encoder=ENCODER, generator=generator) as again:
        assert again.states == "disk"
        assert again.search("red ?", 13).hits == ranking.hits
    assert generator.looked_at == []


def test_missing_states_are_computed_on_use(pictures: Path, album: Path) -> None:
    with made(None, path=album) as retriever:
        retriever.add(pictures)
    generator = Seeing()
    with Retriever.open(album, encoder=ENCODER, generator=generator, states="disk") as retriever:
        ranking = retriever.search("red ?", 3, rerank=Rerank(candidates=5))
        assert len(generator.looked_at) == 5
        retriever.search("red ?", 3, rerank=Rerank(candidates=5))
        assert len(generator.looked_at) == 5
        report = retriever.add(pictures)
        assert report.known == 12 and not report.added and len(generator.looked_at) == 12
        assert retriever.add(pictures).known == 12 and len(generator.looked_at) == 12
    with Retriever.open(album, encoder=ENCODER, generator=Seeing(), states="disk") as again:
        assert again.search("red ?", 3, rerank=Rerank(candidates=5)).hits == ranking.hits
        assert again.generator.looked_at == []  # type: ignore[union-attr]


def test_damaged_states_are_computed_again_with_a_warning(pictures: Path, album: Path) -> None:
    generator = Seeing()
    with made(generator, states="disk", path=album) as retriever:
        retriever.add(pictures)
        ranking = retriever.search("red ?", 12)
        (file,) = album.glob("states-*/*.safetensors")
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
        generator.looked_at.clear()
        with pytest.warns(RuntimeWarning, match="image features in .* are damaged"):
            assert retriever.search("red ?", 12).hits == ranking.hits
        assert len(generator.looked_at) == 1
        assert retriever.search("red ?", 12).hits == ranking.hits
        retriever.save()
        assert len(list(album.glob("states-*/*.safetensors"))) == 1 and not file.exists()
    with Retriever.open(album, encoder=ENCODER, generator=Seeing()) as again:
        assert again.search("red ?", 12).hits == ranking.hits


def test_another_generator_computes_its_own_states(pictures: Path, album: Path) -> None:
    with made(Seeing(1), states="disk", path=album) as retriever:
        retriever.add(pictures)
    other = Seeing(3)
    with Retriever.open(album, encoder=ENCODER, generator=other) as again, made(Seeing(3)) as plain:
        plain.add(pictures)
        found, expected = again.search("red ?", 12), plain.search("red ?", 12)
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected])
    assert len(other.looked_at) == 12 and len(list(album.glob("states-*"))) == 2


def test_save_deletes_states_of_removed_and_replaced_images(pictures: Path, album: Path) -> None:
    generator = Seeing()
    with made(generator, states="disk", path=album) as retriever:
        retriever.add(pictures)
        shutil.copy(pictures / "01.png", pictures / "spare")
        PILImage.new("RGB", (4, 4), "red").save(pictures / "01.png")
        before = {one.digest for one in retriever.records()}
        assert retriever.add(pictures).replaced == ("01.png",)
        retriever.remove(["02.png", "03.png"])
        retriever.save()
        after = {one.digest for one in retriever.records()}
        store = StateStore(generator, album)
        assert set(store.missing(before | after)) == before - after and len(before - after) == 3
        ranking = retriever.search("red ?", 12)
        assert len(generator.looked_at) == 13
        with made(Seeing()) as plain:
            for name in ("02.png", "03.png", "spare"):
                (pictures / name).unlink()
            plain.add(pictures)
            assert ids(plain.search("red ?", 12)) == ids(ranking)


def test_crash_before_the_catalog_is_written_leaves_only_states(
    pictures: Path, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = Seeing()

    def crash(catalog: Catalog) -> None:
        raise MemoryError

    with made(generator, states="disk", path=album) as retriever:
        with monkeypatch.context() as patch:
            patch.setattr(Catalog, "transaction", crash)
            with pytest.raises(MemoryError):
                retriever.add(pictures)
        assert len(retriever) == 0 and len(generator.looked_at) == 12
        assert len(retriever.add(pictures).added) == 12
        assert len(generator.looked_at) == 12, "their states are still right"


def test_full_disk_adds_neither_image_nor_states(
    pictures: Path, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with made(Seeing(), states="disk", path=album) as retriever:
        with monkeypatch.context() as patch:
            patch.setattr("zsqretrieval.album.features._write", full)
            with pytest.raises(AlbumError, match="cannot write image features: No space left"):
                retriever.add(pictures)
        assert len(retriever) == 0
        retriever.add(pictures)
        ranking = retriever.search("red ?", 12)
        shutil.rmtree(next(album.glob("states-*")))
        with monkeypatch.context() as patch:
            patch.setattr("zsqretrieval.album.features._write", full)
            with pytest.warns(RuntimeWarning, match="cannot be written .* computes them again"):
                assert retriever.search("red ?", 12).hits == ranking.hits


def test_states_without_a_generator_that_computes_them_are_refused(pictures: Path, album: Path) -> None:
    with pytest.raises(InvalidInputError, match="states='disk' needs a generator that computes"):
        made(None, states="disk", path=album)
    with pytest.raises(InvalidInputError, match="ToyGenerator computes no image features"):
        made(states="disk", path=album)
    with pytest.raises(InvalidInputError, match="'lazy', 'disk' or None, not 'yes'"):
        made(Seeing(), states="yes", path=album)
    assert not album.exists()
    made(None, path=album).close()
    with pytest.raises(InvalidInputError, match="needs a generator"):
        Retriever.open(album, encoder=ENCODER, states="disk")
    with pytest.raises(InvalidInputError, match="computes no image features"):
        Retriever.open(album, encoder=ENCODER, generator=TOY, states="disk")


# --- parts


def test_preset_loads_its_generator_on_first_use(pictures: Path, album: Path) -> None:
    before = Seeing.made
    with Retriever.open(album, "both") as retriever:
        retriever.add(pictures)
        retriever.search("red", rerank=None)
        retriever.search(pictures / "00.png")
        retriever.save()
        assert Seeing.made == before and retriever.has_generator
        retriever.search("red")
        assert Seeing.made == before + 1
        assert isinstance(retriever.generator, Seeing) and retriever.generator.glasses == 2
        retriever.search("green")
    with Retriever.open(album) as again:
        again.search("red", rerank=None)
        assert Seeing.made == before + 1 and again.has_generator
        assert list(again.search("red")[0].scores) == ["first_stage", "likelihood", "fused"]
        assert isinstance(again.generator, Seeing) and again.generator.glasses == 2
        assert Seeing.made == before + 2


def test_preset_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    both = PRESETS["both"]
    with Retriever.from_preset(both.variant(generator=None)) as retriever:
        assert not retriever.has_generator
    for variant, glasses in (
        (both.variant(generator_config={"glasses": 5}), 5),
        (both.variant(generator="seeing"), 2),
        (Preset("painter", generator="other", generator_config={"x": 1}).variant(generator="seeing"), 1),
    ):
        with Retriever.from_preset(variant, states="disk") as retriever:
            assert retriever.generator.glasses == glasses and retriever.states == "disk"  # type: ignore[union-attr]
    with pytest.raises(InvalidInputError, match="no generator is named 'blind'"):
        Retriever.from_preset(both.variant(generator="blind"))
    with pytest.raises(InvalidInputError, match="needs a generator; name one as well"):
        Retriever.from_preset(both.variant(generator=None, generator_config={"x": 2}))
    given: list[Any] = []
    monkeypatch.setattr(Painter, "from_config", lambda config: given.append(config) or Painter())
    tuned = Preset("painter", {"a": 1, "b": 2}).variant(encoder_config={"b": 3, "c": 4})
    Retriever.from_preset(tuned).close()
    assert given == [{"a": 1, "b": 3, "c": 4}]


def test_lazy_generator_is_loaded_once_by_many_threads() -> None:
    before = Seeing.made
    lazy = LazyGenerator("seeing", {"glasses": 4})
    assert lazy.part == {"plugin": "seeing", "config": {"glasses": 4}} and lazy.made is None
    found: list[Any] = []
    together(*[lambda: found.append(lazy.get())] * 4)
    assert len({id(one) for one in found}) == 1 and Seeing.made == before + 1 and lazy.made is found[0]


def test_save_stores_the_generator_passed_last(pictures: Path, album: Path) -> None:
    with made(None, path=album) as retriever:
        retriever.add(pictures)
    with Retriever.open(album, encoder=ENCODER) as plain:
        assert not plain.has_generator
    with Retriever.open(album, encoder=ENCODER, generator=Seeing(3), states="disk") as given:
        given.search("red")
    with Retriever.open(album, encoder=ENCODER) as plain:
        assert not plain.has_generator, "it was never saved"
        plain.save()
    with Retriever.open(album, encoder=ENCODER, generator=Seeing(3), states="disk") as given:
        given.save()
    with Retriever.open(album, encoder=ENCODER) as again:
        assert again.generator.glasses == 3 and again.states == "disk"  # type: ignore[union-attr]
    with Retriever.open(album, encoder=ENCODER, states=None) as again:
        assert again.has_generator and again.states is None
    with Retriever.open(album, encoder=ENCODER, generator=TOY, states=None) as other:
        assert other.generator is TOY
        other.save()  # which is no plugin, so the album keeps the one it has
    with Retriever.open(album, encoder=ENCODER) as again:
        assert isinstance(again.generator, Seeing) and again.states == "disk"


class Best:
    """A fusion of one's own: the better of both."""

    def fuse(self, first_stage: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return np.maximum(first_stage, scores)


@pytest.mark.parametrize(
    "fusion", [RerankOnly(), WeightedSum(0.3), WeightedSum(2, "raw", 100), ReciprocalRank(7)]
)
def test_album_keeps_the_calibration_it_was_made_or_saved_with(
    pictures: Path, album: Path, fusion: Any
) -> None:
    calibration = Calibration(fusion, expansion=Maximum(0.1), bank_scale=7.0, dialog_temper=0.25)
    preset = Preset("painter", index="exact", generator="seeing", calibration=calibration)
    with Retriever.open(album, preset) as retriever:
        retriever.add(pictures)
        assert retriever.calibration == calibration
        found = retriever.search("red ?")
        assert found.hits == retriever.search("red ?", rerank=Rerank(fusion=fusion)).hits
        assert found.hits != retriever.search("red ?", rerank=Rerank(fusion=WeightedSum(0.9))).hits
    with Retriever.open(album) as again:  # never saved
        assert again.calibration == calibration and again.search("red ?").hits == found.hits
    other = Calibration(WeightedSum(9))
    Retriever.open(album, calibration=other).close()
    with Retriever.open(album) as again:
        assert again.calibration == calibration, "the other was never saved"
    with Retriever.open(album, calibration=other) as given:
        given.save()
    with Retriever.open(album) as again:
        assert again.calibration == other


def test_variant_with_another_generator_gets_the_default_calibration() -> None:
    preset = Preset("painter", generator="seeing", calibration=Calibration(RerankOnly()))
    assert preset.variant(generator_config={"glasses": 3}).calibration == Calibration(RerankOnly())
    assert preset.variant(generator="kosmos").calibration == Calibration()
    with made() as by_hand:
        assert by_hand.calibration == Calibration() and by_hand.calibration.fusion == WeightedSum()


def test_fusion_that_is_not_a_plugin_has_to_be_passed_again(pictures: Path, album: Path) -> None:
    own = Calibration(Best())
    with made(calibration=own, path=album) as retriever:
        retriever.add(pictures)
        found = retriever.search("red ?")
        assert all(hit.score == max(list(hit.scores.values())[:2]) for hit in found)
        retriever.save()
    parts = {"encoder": ENCODER, "generator": TOY}
    with pytest.raises(AlbumError, match=r"not a plugin.* Retriever\.open\(path, calibration=\.\.\.\)"):
        Retriever.open(album, **parts)
    with Retriever.open(album, **parts, calibration=own) as again:
        assert again.search("red ?").hits == found.hits
        again.save()
    with Retriever.open(album, **parts, calibration=Calibration(RerankOnly())) as again:
        again.save()
    with Retriever.open(album, **parts) as again:
        assert again.calibration.fusion == RerankOnly()


@pytest.mark.parametrize(
    "stored",
    [
        {"fusion": {"plugin": "borda", "config": {}}},
        {"fusion": {"plugin": "weighted_sum", "config": {"depth": 1}}},
        {"depth": 3},
    ],
)
def test_calibration_of_a_later_version_is_refused(album: Path, stored: Any) -> None:
    made(path=album).close()
    with Catalog.open(album / "catalog.sqlite") as catalog:
        catalog.set_meta("calibration", stored)
    with pytest.raises(AlbumError, match="this version of zsqretrieval cannot read; upgrade"):
        Retriever.open(album, encoder=ENCODER, trust_parts=True)
    with Retriever.open(album, encoder=ENCODER, calibration=Calibration()) as given:
        given.save()
    Retriever.open(album, encoder=ENCODER).close()


class Widths:
    """A re-ranker that prefers wide images and keeps what it was asked."""

    name = "width"

    def __init__(self) -> None:
        self.questions: list[str] = []

    def score(self, question: str, images: Any) -> Any:
        self.questions.append(question)
        return [decode(image).width for image in images]


def test_custom_reranker_ranks_alone_and_needs_no_generator(pictures: Path) -> None:
    wide = PILImage.new("RGB", (30, 4), "red")
    wide.save(pictures / "wide.png")
    with made(None) as retriever:
        retriever.add(pictures)
        own = Widths()
        ranking = retriever.search("green", 3, rerank=own)
        assert ranking[0].id == "wide.png" and own.questions == ["green"]
        assert list(ranking[0].scores) == ["first_stage", "width", "fused"]
        assert ranking[0].score == 30 and "width" in ranking.timings
        (pictures / "wide.png").unlink()
        with pytest.warns(RuntimeWarning, match=r"1 of 13 candidates cannot be opened.*wide\.png"):
            assert retriever.search("green", 13, rerank=own)[-1].id == "wide.png"
        for wrong in ([1.0], [np.nan] * 12):
            own.score = lambda question, images, wrong=wrong: wrong  # type: ignore[method-assign]
            with pytest.raises(ZsqError, match="must give one finite number per image"):
                retriever.search("green", rerank=Rerank(own, candidates=12))


# --- the other direction

TEXTS = ["yes", "a red picture", "the green thing", "what is the colour of the thing in the picture ?"]


@pytest.fixture
def retriever() -> Iterator[Retriever]:
    with made() as one:
        yield one


def test_texts_are_ranked_by_their_corrected_likelihood(retriever: Retriever) -> None:
    prior = Prior(0.5)
    ranking = retriever.rank_texts(red(), TEXTS, prior=prior)
    image = Image(red(), "<PIL image>")
    likelihood = score_pairs(TOY, Likelihood(), TEXTS, [image] * 4)
    anyway = log_prior(TOY, Likelihood(), prior.null_images, TEXTS)
    cosine = ENCODER.encode_text(TEXTS) @ ENCODER.encode_image([image])[0]
    corrected = likelihood - 0.5 * anyway
    assert [hit.index for hit in ranking] == best_first(corrected).tolist()
    for hit in ranking:
        assert hit.text == TEXTS[hit.index]
        assert dict(hit.scores) == pytest.approx(
            {
                "first_stage": cosine[hit.index],
                "likelihood": likelihood[hit.index],
                "prior": anyway[hit.index],
                "corrected": corrected[hit.index],
                "fused": corrected[hit.index],
            }
        )
        assert hit.score == hit.scores["fused"]
    assert ranking.query == "<PIL image>" and list(ranking.timings) == ["encode", "likelihood"]
    assert len(ranking) == 4 and next(iter(ranking)) == ranking[0]


def test_prior_changes_the_order_of_texts(retriever: Retriever) -> None:
    plain = retriever.rank_texts(red(), TEXTS, prior=None)
    assert list(plain[0].scores) == ["first_stage", "likelihood", "fused"]
    assert plain[-1].text == TEXTS[3], "the longest is the least likely"
    corrected = retriever.rank_texts(red(), TEXTS, prior=Prior(1.0))
    assert corrected[0].text == "a red picture"
    assert [hit.text for hit in corrected] != [hit.text for hit in plain]
    assert [hit.text for hit in retriever.rank_texts(red(), TEXTS)] == [
        hit.text for hit in retriever.rank_texts(red(), TEXTS, prior=Prior(), rerank=Likelihood())
    ]


def test_rank_texts_takes_other_rules_and_fusions(retriever: Retriever) -> None:
    by_yes = retriever.rank_texts(red(), TEXTS, rerank=YesNo())
    assert list(by_yes[0].scores) == ["first_stage", "yes_no", "fused"]
    fused = retriever.rank_texts(red(), TEXTS, 2, rerank=Rerank(YesNo(), fusion=WeightedSum(0.0)))
    first = retriever.rank_texts(red(), TEXTS, 2, rerank=None)
    assert [hit.text for hit in fused] == [hit.text for hit in first] and len(first) == 2
    assert list(first[0].scores) == ["first_stage"] and first[0].score == first[0].scores["first_stage"]
    with made(None) as without:
        assert [hit.text for hit in without.rank_texts(red(), TEXTS, 2)] == [hit.text for hit in first]


def test_image_is_encoded_once_for_many_texts() -> None:
    generator = Seeing()
    seen: list[tuple[int, int | None]] = []
    with made(generator) as one:
        found = one.rank_texts(
            red(), TEXTS * 10, progress=lambda _, *news: seen.append(news), rerank=Rerank(batch_size=16)
        )
        assert len(generator.looked_at) == 4 and generator.batches == [4], "the image and three of nothing"
        assert (40, 40) in seen and seen[-1] == (120, 120), "the image, then three null images"
        assert [hit.index for hit in found][:10] == sorted(hit.index for hit in found[:10]), "ties keep order"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"texts": "red"}, "texts must be a list, not str"),
        ({"texts": ["red", " "]}, "text 1 must be a .* not ' '"),
        ({"texts": ["red", None]}, "text 1 must be"),
        ({"k": 0}, "k must be at least 1"),
        ({"rerank": YesNo(), "prior": Prior()}, "corrects the scoring rule Likelihood only"),
        ({"rerank": None, "prior": Prior()}, "corrects the scoring rule Likelihood only"),
        ({"prior": 0.5}, r"prior must be Prior\(...\), 'auto' or None, not 0.5"),
        ({"rerank": Widths()}, "texts are ranked by a scoring rule"),
        ({"texts": ["red", "red " * 300]}, "reads 256"),
    ],
)
def test_invalid_argument_of_rank_texts_is_refused(retriever: Retriever, settings: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        retriever.rank_texts(**{"image": red(), "texts": TEXTS, **settings})


def test_no_texts_give_no_hits_and_missing_image_is_an_error(retriever: Retriever, tmp_path: Path) -> None:
    assert len(retriever.rank_texts(red(), [])) == 0
    with pytest.raises(ImageError, match="no such file"):
        retriever.rank_texts(tmp_path / "none.png", TEXTS)
