"""`zsq laion`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from plain import picture, png
from running import Zsq
from tars import pack
from zsqretrieval.laion.datacomp import Subset
from zsqretrieval.testing.toys import COLOURS, ToyEncoder

NAMES = list(COLOURS)


@pytest.fixture
def emb(tmp_path: Path) -> Path:
    """Embeddings of all colours and one near-duplicate; black is unsafe, of white nothing is known."""
    vectors = ToyEncoder().encode_image([picture(name) for name in [*NAMES, "red"]]).astype(np.float16)
    names = [*NAMES, "crimson"]
    table = {
        "url": [f"https://a.org/{name}.jpg" for name in names], "caption": [f"all {name}" for name in names],
        "punsafe": [{"black": 0.9, "white": None}.get(name, 0.1) for name in names],
        "hash": range(len(names)),
        "NSFW": ["UNLIKELY"] * len(names), "width": [640] * len(names), "height": [480] * len(names),
        "similarity": [0.3] * len(names),
    }  # fmt: skip
    for kind in ("img_emb", "text_emb"):
        (tmp_path / "emb" / kind).mkdir(parents=True)
        np.save(tmp_path / "emb" / kind / f"{kind}_0000.npy", vectors)
    (tmp_path / "emb/metadata").mkdir()
    parquet.write_table(pa.table(table), tmp_path / "emb/metadata/metadata_0000.parquet")
    return tmp_path / "emb"


def test_ingest_search_and_remove(zsq: Zsq, emb: Path) -> None:
    ran = zsq("laion", "ingest", "album", "--embeddings", emb, "--preset", "toy", "--dedup", "0.999")
    assert "5 added in" in ran.stdout and "; 4 images in album." in ran.stdout
    assert "2 rows denied: 1 unsafe (punsafe is above the limit), 1 unknown (punsafe is missing" in ran.stdout
    assert "1 near-duplicates removed" in ran.stdout and "black" not in ran.stdout
    kept = zsq("laion", "ingest", "album", "--embeddings", emb, "--unknown", "keep", "--json").json
    assert (kept["added"], kept["denied"], kept["images"]) == (2, {"unsafe": 1}, 6)
    found = zsq("laion", "search", "album", "red", "-k", "1")
    assert "https://a.org/red.jpg" in found.stdout and "all red" in found.stdout
    assert zsq("laion", "search", "album", "red", "--where", "hash = 2", "--json").json["hits"][0]["id"]
    Path("names.txt").write_text("https://a.org/red.jpg\n")
    removed = zsq("laion", "remove", "album", "--hashes", "names.txt", "--embeddings", emb)
    assert "1 removed in" in removed.stdout and "found 1 of them before, 0 afterwards" in removed.stdout
    assert f"1 rows removed from {emb}" in removed.stdout and "a.org" not in removed.stdout
    again = zsq("laion", "remove", "album", "--hashes", "names.txt", "--json").json
    assert (again["removed"], again["listed"], again["images"]) == (0, 1, 5)
    assert "red.jpg" not in zsq("laion", "search", "album", "red").stdout


def test_ingest_takes_an_allow_list_and_metadata_from_elsewhere(zsq: Zsq, emb: Path) -> None:
    (emb / "metadata").rename("tables")
    parquet.write_table(pa.table({"URL": ["https://a.org/blue.jpg"]}), "relaion.parquet")
    assert "1 rows in allow." in zsq("laion", "allow-list", "relaion.parquet", "--out", "allow").stdout
    where = ("--embeddings", emb, "--metadata", "tables", "--allow", "allow")
    report = zsq("laion", "ingest", "album", *where, "--preset", "toy", "--json").json
    assert report["added"] == 1 and report["denied"] == {"unsafe": 1, "unknown": 1, "not_allowed": 4}
    assert zsq("laion", "ingest", "other", "--embeddings", emb, "--preset", "toy").code == 1
    assert not Path("other").exists()


def test_ordinary_commands_apply_the_rules_too(zsq: Zsq, emb: Path) -> None:
    assert "2 rows denied" in zsq("add-embeddings", "album", emb, "--preset", "toy").stdout
    assert "2 added, 5 known" in zsq("add-embeddings", "album", emb, "--no-safety").stdout


def test_stats_count_nulls_and_thresholds(zsq: Zsq, emb: Path) -> None:
    facts = zsq("laion", "stats", emb / "metadata", "--json").json
    assert (facts["files"], facts["rows"], facts["filled"]["punsafe"]) == (1, 7, 6)
    assert facts["above"]["punsafe"] == {"0.45": 1, "0.5": 1, "0.95": 0} and facts["nsfw"] == {"UNLIKELY": 7}
    assert facts["above"]["height"] == {"199": 7, "255": 7, "511": 0, "1023": 0}
    assert (facts["allowed"], facts["denied"]) == (5, {"unsafe": 1, "unknown": 1})
    said = zsq("laion", "stats", emb / "metadata", "--unknown", "keep").stdout
    assert "1 NULL, 1 above 0.45, 1 above 0.5, 0 above 0.95" in said and "a.org" not in said
    assert zsq("laion", "stats", "nowhere").code == 1


def test_filter_writes_subsets_of_tables_embeddings_and_tars(zsq: Zsq, emb: Path) -> None:
    limits = ("--min-words", 2, "--clip", 0.28)
    tables = zsq("laion", "filter", emb / "metadata", "--out", "a", *limits, "--json").json
    assert tables["kept"] == {"rules": 5, "clip": 5, "intersection": 5}
    assert tables["denied"] == {"unsafe": 1, "unknown": 1}
    assert len(Subset("a/intersection.npy")) == 5
    said = zsq("laion", "filter", emb, "--out", "b", "--no-rules", "--clip-share", 0.5, "--no-safety").stdout
    assert "7 rows in the pool." in said and len(Subset("b/clip.npy")) >= 4
    members = {"0.png": png("red"), "0.txt": b"red", "1.png": png("blue"), "1.txt": b"red"}
    pack(Path("00000.tar"), {**members, "2.png": png("green"), "2.txt": b"green"})
    score = ("--clip-share", 0.67, "--likelihood-share", 0.67, "--preset", "reading")
    ran = zsq("laion", "filter", "00000.tar", "--out", "c", "--no-rules", *score)
    said = ran.stdout
    assert (
        not ran.stderr
        and "clip, likelihood" in said
        and "kappa" in said
        and len(Subset("c/intersection.npy")) == 2
    )
    assert zsq("laion", "filter", emb / "metadata", "--out", "d", "--no-rules").code == 1


def test_plan_prints_what_a_collection_needs(zsq: Zsq) -> None:
    asked = ["laion", "plan", "--vectors", 5.85e9, "--qps", 100, "--price", 2, "--gpu-price", 4]
    told = zsq(*asked)
    assert told.code == 0
    assert "18.8 TB in memory" in told.stdout and "1.53 PB" in told.stdout
    facts = zsq(*asked, "--json").json
    assert {one["index"].split()[0]: one["machines"] for one in facts["indexes"]} == {
        "IVF_PQ": 10,
        "HNSW": 92,
    }
    assert set(facts["price"]) == {"search", "re-rank from features", "re-rank from pixels"}
    refused = zsq("laion", "plan", "--vectors", 1e6, "--recall", 0.999)
    assert refused.code == 1 and "recall must be from 0.9 to 0.98" in refused.stderr
