"""Readers and writers of the tools themselves take what we write, and write what we read.

Each test skips without its package: clip-retrieval, embedding-reader, webdataset, and DataComp's
``resharder.py``, which is no package and has to be in a folder of ``PYTHONPATH``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from plain import picture, png
from zsqretrieval._util.torch import ensure_torchvision
from zsqretrieval.laion.datacomp import open_features, texts_of, uids_of, write_features, write_subset
from zsqretrieval.laion.embeddings import VectorRow, open_embeddings, writing_embeddings
from zsqretrieval.laion.image_shards import open_image_shards, write_image_shard
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import COLOURS, ToyEncoder
from zsqretrieval.types import Image

pytestmark = pytest.mark.filterwarnings("default")  # theirs


def needed(module: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(module)


def vectors(count: int, seed: int) -> Any:
    return np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float16)


@pytest.mark.parametrize("kind", ["img_emb", "text_emb"])
def test_embedding_reader_reads_our_folder_row_by_row(tmp_path: Path, kind: str) -> None:
    reader = needed("embedding_reader")
    written = {"img_emb": vectors(25, 1), "text_emb": vectors(25, 2)}
    rows = [VectorRow(f"{n}", caption=f"c{n}", metadata={"n": n}) for n in range(25)]
    with writing_embeddings(tmp_path / "emb", encoder="e", dim=8, shard_size=10, texts=True) as write:
        write(written["img_emb"], rows, written["text_emb"])
    opened = reader.EmbeddingReader(
        embeddings_folder=str(tmp_path / "emb" / kind), metadata_folder=str(tmp_path / "emb/metadata"),
        meta_columns=["id", "caption", "n"], file_format="parquet_npy",
    )  # fmt: skip
    assert (opened.count, opened.dimension) == (25, 8)
    batches = list(opened(batch_size=7, show_progress=False))
    np.testing.assert_array_equal(
        np.concatenate([one for one, _ in batches]), written[kind].astype(np.float32)
    )
    found = [tuple(row) for _, table in batches for row in table[["id", "caption", "n"]].to_numpy()]
    assert found == [(f"{n}", f"c{n}", n) for n in range(25)]


@pytest.mark.parametrize("partitions", [1, 10, 1000])
def test_we_read_what_the_writer_of_clip_retrieval_writes(tmp_path: Path, partitions: int) -> None:
    if find_spec("clip_retrieval") is None:
        pytest.skip("no clip_retrieval")
    writer = _module("clip_retrieval", "clip_inference/writer.py")
    images, texts = vectors(6, 1), vectors(6, 2)
    for number, part in enumerate((slice(0, 4), slice(4, 6))):
        keys = [f"{n:09d}" for n in range(6)][part]
        sink = writer.NumpyWriter(number, str(tmp_path / "emb"), True, True, True, partitions)
        facts = [json.dumps({"key": key, "url": f"https://a.org/{key}", "WIDTH": 5}) for key in keys]
        sink({"image_embs": images[part], "text_embs": texts[part], "image_filename": keys,
              "text": [f"c {key}" for key in keys], "metadata": facts})  # fmt: skip
        sink.flush()
    for kind, wanted in (("img_emb", images), ("text_emb", texts)):
        found = open_embeddings(tmp_path / "emb", kind)  # type: ignore[arg-type]
        np.testing.assert_array_equal(np.concatenate([one.vectors[:] for one in found.shards]), wanted)
    rows = [row for one in found.shards for row in one.rows()]
    assert [(row.id, row.caption, row.metadata["url"]) for row in rows][5] == (
        "000000005", "c 000000005", "https://a.org/000000005",
    )  # fmt: skip
    batch = next(found.shards[0].blocks())[1].batch
    assert batch.column("width").type == pa.int32() and batch.column("caption")[0].as_py() == "c 000000000"


def test_metadata_provider_of_clip_back_reads_our_folder(tmp_path: Path) -> None:
    ensure_torchvision()
    back = needed("clip_retrieval.clip_back")
    rows = [VectorRow(f"{n}", f"https://a.org/{n}", f"c{n}", {"similarity": n / 8}) for n in range(6)]
    with writing_embeddings(tmp_path / "emb", encoder="e", dim=8, shard_size=4) as write:
        write(vectors(6, 1), rows)
    provider = back.ParquetMetadataProvider(str(tmp_path / "emb/metadata"))
    found = provider.get([5, 0], ["image_path", "caption", "similarity"])
    assert found == [
        {"image_path": f"https://a.org/{n}", "caption": f"c{n}", "similarity": n / 8} for n in (5, 0)
    ]


def _module(package: str, file: str) -> Any:
    """A file of a package whose other parts need a GPU stack."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    found = spec_from_file_location("part", Path(spec.submodule_search_locations[0], file))
    assert found is not None and found.loader is not None
    module = module_from_spec(found)
    found.loader.exec_module(module)
    return module


def image_shards(folder: Path) -> list[str]:
    """Two shards of five rows, of which four have an image; their uids in order."""
    uids = [f"{n % 3:016x}{n:016x}" for n in range(10)]
    for number in range(2):
        rows = [
            {"url": f"u{n}", "caption": f"c{n}", "uid": uids[n]} for n in range(5 * number, 5 * number + 5)
        ]
        write_image_shard(folder, number, [(None if n == 2 else png(n), row) for n, row in enumerate(rows)],
                          suffix="png")  # fmt: skip
    return uids


def test_we_read_what_the_writer_of_img2dataset_writes(tmp_path: Path) -> None:
    writer, logger = needed("img2dataset.writer"), needed("img2dataset.logger")
    kinds = {"width": pa.int32(), **dict.fromkeys(("url", "caption", "key", "status"), pa.string())}
    made = writer.WebDatasetSampleWriter(3, str(tmp_path), True, 5, pa.schema(kinds.items()), "png")
    statuses = ["success", "failed_to_download", "success"]
    for n, status in enumerate(statuses):
        sound = status == "success"
        facts = {"url": f"u{n}", "caption": f"c{n}", "key": f"{30000 + n:09d}", "status": status}
        made.write(png(n) if sound else None, facts["key"], f"c{n}", facts | {"width": 4 if sound else None})
    made.close()
    counts = logger.CappedCounter()
    for status in statuses:
        counts.increment(status)
    logger.write_stats(str(tmp_path), 3, 3, 2, 1, 0, 0.0, 1.0, counts, 5)
    (shard,) = open_image_shards(tmp_path)
    found = list(shard.images())
    assert [(one.content, one.caption, one.metadata["width"]) for one in found if isinstance(one, Image)] == [
        (png(0), "c0", 4), (png(2), "c2", 4),
    ]  # fmt: skip


def test_reader_and_logger_of_img2dataset_take_our_shards(tmp_path: Path) -> None:
    reader, logger = needed("img2dataset.reader"), needed("img2dataset.logger")
    image_shards(tmp_path)
    (tmp_path / "tmp").mkdir()
    listed = reader.Reader(
        str(tmp_path), "parquet", "url", "caption", None, None, ["uid"], 100, set(), str(tmp_path / "tmp")
    )
    tables = [pa.ipc.open_file(path).read_all().to_pydict() for _, path in listed]
    assert [url for one in tables for url in one["url"]] == [f"u{n}" for n in range(10)]
    speed = logger.SpeedLogger("worker", enable_wandb=False)
    stats = json.loads((tmp_path / "00001_stats.json").read_text())
    names = ("count", "successes", "failed_to_download", "failed_to_resize", "start_time", "end_time")
    speed(*(stats[name] for name in names))
    assert (speed.count, speed.success, speed.failed_to_download) == (5, 4, 1)
    assert logger.CappedCounter.load(stats["status_dict"]).most_common(1) == [("success", 4)]


def test_webdataset_reads_our_shards(tmp_path: Path) -> None:
    webdataset = needed("webdataset")
    uids = image_shards(tmp_path)
    files = [str(one.tar) for one in open_image_shards(tmp_path)]
    found = list(webdataset.WebDataset(files, shardshuffle=False))
    assert [one["__key__"] for one in found[:5]] == [
        "000000000",
        "000000001",
        "000000003",
        "000000004",
        "000010000",
    ]
    assert (found[1]["png"], found[1]["txt"], json.loads(found[1]["json"])["uid"]) == (png(1), b"c1", uids[1])


def test_resharder_of_datacomp_takes_our_shards_and_subset(tmp_path: Path) -> None:
    spec = find_spec("resharder")
    if spec is None or spec.origin is None:
        pytest.skip("no resharder.py of DataComp")
    uids = image_shards(tmp_path / "in")
    (tmp_path / "out").mkdir()
    wanted = [uids[n] for n in (8, 0, 4)]
    write_subset(tmp_path / "subset.npy", uids_of(wanted))
    subprocess.run(
        [sys.executable, spec.origin, "-i", "in", "-o", "out", "-s", "subset.npy", "-j", "1",
         "--shard-format", "{:05d}.tar", "--shard-stats-format", "{:05d}_stats.json"],
        check=True, timeout=120, capture_output=True, cwd=tmp_path,
    )  # fmt: skip
    found = [image for one in open_image_shards(tmp_path / "out") for image in one.images()]
    assert sorted(one.metadata["uid"] for one in found if isinstance(one, Image)) == sorted(wanted)


def test_code_of_datacomp_reads_our_features_and_uids(tmp_path: Path) -> None:
    """As ``baselines/apply_filter.py`` reads the files of a pool."""
    pandas = needed("pandas")
    uids, features = [f"{n:032x}" for n in range(4)], vectors(4, 1)
    table = pa.table({"uid": uids, "text": ["a"] * 4, "clip_l14_similarity_score": [0.1, 0.3, 0.2, 0.4]})
    write_features(tmp_path / "00.parquet", table, {"l14_img": features})
    frame = pandas.read_parquet(tmp_path / "00.parquet", columns=["uid", "clip_l14_similarity_score"])
    with (tmp_path / "00.npz").open("rb") as file:
        np.testing.assert_array_equal(np.load(file)["l14_img"], features)
    kept = frame[frame["clip_l14_similarity_score"] >= 0.3]["uid"].values
    theirs = np.array([(int(uid[:16], 16), int(uid[16:32], 16)) for uid in kept], np.dtype("u8,u8"))
    np.testing.assert_array_equal(uids_of(kept.tolist()), theirs)
    assert texts_of(theirs) == list(kept) and parquet.read_table(tmp_path / "00.parquet").num_rows == 4
    assert len(open_features(tmp_path, "l14_img")) == 4


def test_folder_in_s3_is_added_to_an_album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a server that speaks S3, through s3fs."""
    needed("s3fs")
    server = needed("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "a")
        colours = np.asarray(ToyEncoder().encode_image([picture(name) for name in COLOURS]))
        with writing_embeddings(tmp_path / "emb", encoder="toy-encoder-1", dim=16, shard_size=4) as write:
            write(colours, [VectorRow(name, metadata={"n": len(name)}) for name in COLOURS])
        system = needed("fsspec").filesystem("s3")
        system.mkdir("bucket")
        system.put(str(tmp_path / "emb"), "bucket/emb", recursive=True)
        with Retriever(ToyEncoder()) as album:
            assert album.add_embeddings("s3://bucket/emb", batch_size=2).added == tuple(COLOURS)
            assert [hit.id for hit in album.search("red", 1)] == ["red"]
    finally:
        server.stop()
