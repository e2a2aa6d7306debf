"""Choosing rows of a pool by rules, CLIP score and likelihood."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from sklearn.metrics import cohen_kappa_score

from plain import picture
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.laion.datacomp import UIDS, Subset, texts_of
from zsqretrieval.laion.filter import (
    Pool,
    Rules,
    agreement,
    choose,
    embedding_parts,
    image_parts,
    metadata_parts,
    pool_of,
    write_choice,
)
from zsqretrieval.laion.hashes import HashList, hash_texts
from zsqretrieval.laion.metadata import canonical
from zsqretrieval.laion.safety import Safety
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator
from zsqretrieval.types import Image

# --- against plain references -----------------------------------------------------------------------------

ROW = st.fixed_dictionaries(
    {
        "caption": st.sampled_from(
            [None, "", "a", "a b c", "word  word\tword", "ééé éé é", "long words here"]
        ),
        "width": st.sampled_from([None, 0, 199, 200, 300, 601]),
        "height": st.sampled_from([None, 0, 199, 200, 600, 900]),
        "language": st.sampled_from([None, "en", "de"]),
    }
)


def passes(row: dict[str, Any], rules: Rules) -> bool:
    text, sides = row["caption"], [row["width"], row["height"]]
    if text is None or None in sides or min(sides) < max(rules.min_side, 1):
        return False
    if max(sides) > rules.max_aspect * min(sides) or len(text) < rules.min_chars:
        return False
    return len(text.split()) >= rules.min_words and (
        not rules.languages or row["language"] in rules.languages
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(ROW, min_size=1, max_size=6),
    st.sampled_from([Rules(), Rules(1, 2.0, 1, 1), Rules(0, 100.0, 0, 0), Rules(languages=("en",))]),
)
def test_rules_equal_a_plain_reference(rows: list[dict[str, Any]], rules: Rules) -> None:
    kinds = {"caption": pa.string(), "width": pa.int32(), "height": pa.int32(), "language": pa.string()}
    batch = pa.RecordBatch.from_arrays(
        [pa.array([r[n] for r in rows], k) for n, k in kinds.items()], list(kinds)
    )
    assert rules.mask(canonical(batch)).tolist() == [passes(row, rules) for row in rows]


SCORE = st.sampled_from([np.nan, -1.0, 0.0, 0.25, 0.5, 1.0])


def pool(clip: list[float], likelihood: list[float], ruled: list[bool] | None = None) -> Pool:
    uids = np.array([(n, n) for n in range(len(clip))], UIDS)
    scores = {"clip": np.array(clip, np.float32), "likelihood": np.array(likelihood, np.float32)}
    return Pool(uids, None if ruled is None else np.array(ruled), scores, {})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SCORE, SCORE, st.booleans()), min_size=1, max_size=12), st.floats(0.01, 1))
def test_share_keeps_the_best_and_ties(rows: list[tuple[float, float, bool]], share: float) -> None:
    clip, likelihood, ruled = map(list, zip(*rows, strict=True))
    known = sorted((one for one in clip if one == one), reverse=True)
    if not known:
        return
    limit = known[min(len(known), max(1, round(share * len(rows)))) - 1]
    masks, report = choose(pool(clip, likelihood, ruled), {"likelihood": 0.25}, {"clip": share})
    assert masks["clip"].tolist() == [one >= limit for one in clip]
    assert masks["likelihood"].tolist() == [one >= 0.25 for one in likelihood]
    all_three = np.array(ruled) & masks["clip"] & masks["likelihood"]
    assert masks["intersection"].tolist() == all_three.tolist()
    assert report.kept["intersection"] == all_three.sum() and len(report.agreement) == 3
    json.dumps(report.agreement, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_agreement_equals_sklearn_and_sets(rows: list[tuple[bool, bool]]) -> None:
    a, b = (np.array(side) for side in zip(*rows, strict=True))
    found = agreement("a", "b", a, b)
    ours, theirs = set(np.flatnonzero(a).tolist()), set(np.flatnonzero(b).tolist())
    if ours | theirs:
        assert found["jaccard"] == pytest.approx(len(ours & theirs) / len(ours | theirs))
    if len({*a.tolist(), *b.tolist()}) == 2:
        assert found["kappa"] == pytest.approx(cohen_kappa_score(a, b))
    assert found["both"] + found["only_a"] + found["only_b"] + found["neither"] == len(rows)


@pytest.mark.parametrize(
    ("least", "share", "said"),
    [
        ({}, {}, "give a filter"), ({"beauty": 1}, {}, "no beauty scores; it has clip, likelihood"),
        ({"clip": 1}, {"clip": 1}, "either"), ({"clip": float("nan")}, {}, "clip must be"),
        ({}, {"clip": 0}, "share of clip"), ({}, {"clip": 1.5}, "share of clip"),
    ],
)  # fmt: skip
def test_unfit_limits_are_refused(least: Any, share: Any, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        choose(pool([1.0], [1.0]), least, share)
    with pytest.raises(InvalidInputError, match="no row of the pool has a clip score"):
        choose(pool([np.nan], [1.0]), {}, {"clip": 0.5})


# --- pools ------------------------------------------------------------------------------------------------


def test_metadata_are_filtered_into_subset_files_and_a_report(tmp_path: Path) -> None:
    table = {
        "uid": [f"{n:032x}" for n in (7, 3, 5, 1)], "text": ["a good caption", "x", "another good one", None],
        "original_width": [400, 400, 400, 400], "original_height": [300, 300, 50, 300],
        "clip_l14_similarity_score": [0.3, 0.4, None, 0.1], "clip_b32_similarity_score": [0.0] * 4,
    }  # fmt: skip
    parquet.write_table(pa.table(table), tmp_path / "pool.parquet")
    found = pool_of(metadata_parts(tmp_path), Rules())
    masks, report = choose(found, share={"clip": 0.5})
    write_choice(tmp_path / "out", found, masks, report)
    assert texts_of(Subset(tmp_path / "out/rules.npy").uids) == [f"{7:032x}"]
    assert texts_of(Subset(tmp_path / "out/clip.npy").uids) == [f"{n:032x}" for n in (3, 7)]
    assert len(Subset(tmp_path / "out/intersection.npy")) == 1
    written = json.loads((tmp_path / "out/report.json").read_text())
    assert written["rows"] == 4 and written["kept"] == {"rules": 1, "clip": 2, "intersection": 1}
    assert written["thresholds"]["clip"] == pytest.approx(0.3) and written["spearman"] is None


def test_denied_rows_of_laion_are_not_in_the_pool(tmp_path: Path) -> None:
    table = {
        "URL": ["u", "v", "w"],
        "TEXT": ["a", "b", "c"],
        "punsafe": [0.1, None, 0.9],
        "similarity": [0.3] * 3,
    }
    parquet.write_table(pa.table(table), tmp_path / "part.parquet")
    found = pool_of(metadata_parts(tmp_path), None)
    assert len(found.uids) == 1 and found.denied == {"unknown": 1, "unsafe": 1}
    assert len(pool_of(metadata_parts(tmp_path), None, None).uids) == 3
    with pytest.raises(InvalidInputError, match="no column 'width'"):
        pool_of(metadata_parts(tmp_path), Rules())


@pytest.mark.parametrize("bare", ["0.parquet", "2.parquet"])
def test_table_without_the_columns_of_the_others_is_denied_with_its_pool(tmp_path: Path, bare: str) -> None:
    parquet.write_table(pa.table({"url": ["u"]}), tmp_path / bare)
    parquet.write_table(pa.table({"url": ["v"], "punsafe": [0.1]}), tmp_path / "1.parquet")
    found = pool_of(metadata_parts(tmp_path), None)
    assert len(found.uids) == 1 and found.denied == {"unknown": 1}
    (tmp_path / "1.parquet").unlink()
    assert len(pool_of(metadata_parts(tmp_path), None).uids) == 1


def test_clip_score_is_the_cosine_of_both_embeddings(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    both = []
    for kind in ("img", "text"):
        vectors = random.standard_normal((5, 8))
        both.append((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16))
        (tmp_path / f"{kind}_emb").mkdir()
        np.save(tmp_path / f"{kind}_emb/{kind}_emb_0.npy", both[-1])
    (tmp_path / "metadata").mkdir()
    parquet.write_table(pa.table({"image_path": list("abcde")}), tmp_path / "metadata/metadata_0.parquet")
    found = pool_of(embedding_parts(tmp_path), None)
    expected = (both[0].astype(np.float64) * both[1]).sum(axis=1)
    np.testing.assert_allclose(found.scores["clip"], expected, atol=1e-3)
    assert len(set(found.uids.tolist())) == 5


def test_images_are_scored_by_encoder_and_generator_and_unreadable_ones_have_no_score() -> None:
    names = ("red", "blue", "green")
    images: list[Image | ImageError] = [
        Image(
            picture(name).content, name, id=name, caption=text, metadata={"width": 300, "n": [1], "key": name}
        )
        for name, text in zip(names, ("red", "red", None), strict=True)
    ]
    images += [ImageError("x", "torn"), Image(b"no image", "torn", id="torn", caption="red")]
    parts = list(image_parts(images, ToyEncoder(), ToyGenerator(), batch_size=2))
    assert [batch.num_rows for batch, _ in parts] == [2, 2]
    found = pool_of(parts, None)
    clip, likelihood = found.scores["clip"], found.scores["likelihood"]
    assert clip[0] > clip[1] and likelihood[0] > likelihood[1]
    assert np.isnan(clip[2:]).all() and np.isnan(likelihood[2:]).all()
    masks, report = choose(found, share={"clip": 0.25, "likelihood": 0.25})
    assert masks["intersection"].tolist() == [True, False, False, False]
    assert report.spearman == pytest.approx(1.0) and report.agreement[0]["kappa"] == 1.0


@pytest.mark.parametrize("value", [True, 0.5, ["a"], {"a": None}])
def test_value_of_any_type_is_the_same_text_in_an_image_and_in_a_row(tmp_path: Path, value: Any) -> None:
    removed = HashList.write(tmp_path / "list", [hash_texts([str(value)])], ["text"])
    rules = Safety(unknown="keep", removed=removed)
    image = Image(picture("red").content, "red", id="red", metadata={"url": value})
    assert not rules.mask_rows([image.metadata])[0]
    assert pool_of(image_parts([image], None, None), None, rules).denied == {"removed": 1}


@pytest.mark.parametrize(
    "wrong", [{"min_side": -1}, {"min_words": 10**20}, {"max_aspect": float("nan")}, {"languages": "en"}]
)
def test_rules_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        Rules(**wrong)
