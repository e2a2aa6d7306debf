"""Albums made by somebody else: opening one runs no code, follows no name, and ends."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sqlite3
import struct
import sys
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from strangers import HUGE, in_time, make_album, read_all, set_column
from zsqretrieval import plugins
from zsqretrieval.album.info import CATALOG
from zsqretrieval.cli import app
from zsqretrieval.data.sources import Reopener
from zsqretrieval.errors import AlbumError, ImageError, IntegrityError
from zsqretrieval.indexes.hnsw import HNSWIndex
from zsqretrieval.presets import PRESETS, Preset
from zsqretrieval.retriever import Retriever
from zsqretrieval.search.fusion import ReciprocalRank
from zsqretrieval.testing.toys import ToyEncoder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no pipes, no links without privileges")

ENCODER = ToyEncoder()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_album(tmp_path_factory.mktemp("sound") / "album")


@pytest.fixture
def album(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "album"))


def change(album: Path, table: str, name: object, column: str, value: object) -> None:
    """Set a column of a row, by its key, and give the row the right checksum."""
    key = "key" if table == "images" else "name"
    with closing(sqlite3.connect(album / CATALOG)) as database, database:
        set_column(database, table, key, name, column, value)


def name_part(album: Path, kind: str, plugin: str, config: dict[str, Any]) -> None:
    """Make an album name a part."""
    part = {"plugin": plugin, "config": config}
    with closing(sqlite3.connect(album / CATALOG)) as database, database:
        database.execute("DELETE FROM snapshots")
        [(text,)] = database.execute("SELECT value FROM meta WHERE name = 'settings'")
        settings = json.loads(text)
        if kind == "fusion":
            settings["calibration"]["fusion"] = part
        elif kind == "generator":
            settings["generator"] = {"part": part, "states": None}
        else:
            settings["encoder_part" if kind == "encoder" else kind] = part
        set_column(database, "meta", "name", "settings", "value", json.dumps(settings))


# --- what an album may load -------------------------------------------------------------------------------

CLIP, L14 = PRESETS["clip"].encoder_config, PRESETS["clip-l14-kosmos2"].encoder_config
LOCAL = {"name": "local-dir:/tmp/model", "pretrained": None}
INDEX = HNSWIndex(ENCODER.dim, fingerprint=ENCODER.fingerprint).config


@pytest.mark.parametrize(
    ("kind", "plugin", "config"),
    [
        ("encoder", "clip", {"name": "local-dir:/tmp/model", "pretrained": "random"}),
        ("encoder", "clip", {"name": "hf-hub:someone/model", "pretrained": None}),
        ("encoder", "clip", {"name": "ViT-B-32", "pretrained": "/tmp/checkpoint.pt"}),
        ("encoder", "clip", {**L14, "pretrained": CLIP["pretrained"]}),  # could be a file of that name
        ("encoder", "clip", {**CLIP, "cache_dir": "/tmp/cache"}),
        ("encoder", "clip", {**CLIP, "device": "cuda"}),
        ("encoder", "mini", {"weights": "/tmp/encoder.safetensors"}),
        ("encoder", "mini", {"weights": {"path": 3}}),
        ("encoder", "transformers", {"name_or_path": "someone/model", "dtype": "float32"}),
        ("encoder", "sentence_transformers", {"name_or_path": "/tmp/model"}),
        ("index", "hnsw", {**INDEX, "M": 10_000}),
        ("index", "hnsw", {**INDEX, "threads": 10**6}),
        ("index", "hnsw", {**INDEX, "ef": 1e300}),
        ("index", "hnsw", {**INDEX, "path": "/tmp/index"}),
        ("generator", "kosmos", {"name": "/tmp/kosmos"}),
        ("generator", "kosmos", {"name": "someone/kosmos"}),
        ("generator", "kosmos", {**PRESETS["clip-kosmos2"].generator_config, "prefix_cache_bytes": 10**15}),
        ("generator", "vlm", {"name_or_path": "someone/model"}),
        ("generator", "vlm", {"name_or_path": "microsoft/kosmos-2-patch14-224"}),  # a preset's, of another
        ("generator", "mini", {"weights": "/tmp/generator.safetensors"}),
        ("fusion", "weighted_sum", {"scale": "/tmp/scale"}),
    ],
)
def test_weights_that_only_the_album_names_need_trust(
    album: Path, monkeypatch: pytest.MonkeyPatch, kind: str, plugin: str, config: dict[str, Any]
) -> None:
    name_part(album, kind, plugin, config)
    given: dict[str, Any] = {} if kind == "encoder" else {"encoder": ENCODER}
    made = watched(monkeypatch, plugin, config)
    with pytest.raises(AlbumError, match=rf"the {kind} '{plugin}' with .*trust_parts=True.*--trust-parts"):
        Retriever.open(album, **given)
    assert made == []
    if kind == "generator":  # which is made on first use
        with Retriever.open(album, **given, trust_parts=True) as retriever:
            assert retriever.has_generator
        return
    with pytest.raises(AlbumError, match="would be made now"):
        Retriever.open(album, **given, trust_parts=True)
    assert made == [kind]


def watched(monkeypatch: pytest.MonkeyPatch, plugin: str, config: Any) -> list[str]:
    """The kinds of parts that were about to be made from these settings; making one is an error."""
    made: list[str] = []
    create = plugins.create

    def watch(kind: Any, name: str, settings: Any) -> Any:
        if (name, dict(settings)) != (plugin, dict(config)):
            return create(kind, name, settings)
        made.append(kind)
        raise AlbumError("would be made now")

    monkeypatch.setattr(plugins, "create", watch)
    return made


@pytest.mark.parametrize(
    ("plugin", "config", "preset"),
    [
        ("mini", {}, None),
        ("mini", {"weights": None, "knowledge_share": 0.5}, None),
        ("clip", CLIP, None),
        ("clip", {**CLIP, "precision": "fp16", "cache_dir": None, "force_quick_gelu": False}, None),
        ("clip", {**LOCAL, "seed": 3}, LOCAL),
    ],
)
def test_parts_of_a_preset_or_of_the_caller_need_no_trust(
    album: Path, monkeypatch: pytest.MonkeyPatch, plugin: str, config: Any, preset: Any
) -> None:
    name_part(album, "encoder", plugin, config)
    made = watched(monkeypatch, plugin, config)
    with pytest.raises(AlbumError, match="would be made now"):
        Retriever.open(album, None if preset is None else Preset("clip", preset))
    assert made == ["encoder"]


def test_folder_named_like_a_repository_is_not_followed(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PRESETS["clip-kosmos2"].generator_config
    name_part(album, "generator", "kosmos", dict(config))
    monkeypatch.chdir(album)
    Retriever.open(album, encoder=ENCODER).close()
    Path(config["name"]).mkdir(parents=True)
    with pytest.raises(AlbumError, match="the generator 'kosmos' with name='microsoft"):
        Retriever.open(album, encoder=ENCODER)


def test_command_line_names_the_flag_and_takes_it(album: Path) -> None:
    name_part(album, "encoder", "clip", {"name": "local-dir:/no/such/model", "pretrained": None})
    for command in (["search", album, "a dog"], ["remove", album, "1.png"], ["questions", album, "--list"]):
        words = [str(word) for word in command]
        refused, followed = (CliRunner().invoke(app, words + more) for more in ([], ["--trust-parts"]))
        assert refused.exit_code == followed.exit_code == 1
        assert "local-dir:/no/such/model" in refused.stderr and "--trust-parts" in refused.stderr
        assert "/no/such/model has no open_clip_config.json" in followed.stderr


# --- classes by import path -------------------------------------------------------------------------------

STRANGE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
from zsqretrieval.testing.toys import ToyEncoder
class Mine(ToyEncoder):
    config = {}
    @classmethod
    def from_config(cls, config):
        Path(__file__).with_name("built").touch()
        return cls()
class Safe(Mine):
    safe_settings = {"size": int}
def __getattr__(name):
    Path(__file__).with_name("asked").touch()
    return Mine
"""


@pytest.mark.parametrize("config", [{}, {"size": 3}])
@pytest.mark.parametrize("kind", ["encoder", "index", "generator", "fusion"])
@pytest.mark.parametrize("path", ["strange:Mine", "strange:Safe", "strange:Gone", "strange.deeper:Mine"])
def test_class_that_only_the_album_names_is_not_imported(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, path: str, config: Any
) -> None:
    (tmp_path / "strange.py").write_text(STRANGE)
    monkeypatch.syspath_prepend(tmp_path)
    name_part(album, kind, path, config)
    given: dict[str, Any] = {} if kind == "encoder" else {"encoder": ENCODER}
    with pytest.raises(AlbumError, match=rf"the {kind} '{path}' with .*trust_parts=True"):
        Retriever.open(album, **given)
    assert "strange" not in sys.modules
    assert not {"ran", "built", "asked"} & {file.name for file in tmp_path.iterdir()}


@pytest.mark.parametrize(
    "path",
    ["strange:Mine", "strange:Gone", "strange:Path", "strange:Mine.from_config", "os:system", "sys:exit"],
)
def test_class_that_is_imported_is_not_built_unless_it_says_it_is_safe(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    (tmp_path / "strange.py").write_text(STRANGE)
    monkeypatch.syspath_prepend(tmp_path)
    import strange  # type: ignore[import-not-found]

    name_part(album, "encoder", path, {})
    try:
        with pytest.raises(AlbumError, match=rf"the encoder '{path}' with no settings: .*trust_parts=True"):
            Retriever.open(album)
        assert not {"built", "asked"} & {file.name for file in tmp_path.iterdir()}
        name_part(album, "encoder", "strange:Safe", {"size": 3})
        Retriever.open(album).close()
        assert (tmp_path / "built").exists()
    finally:
        del sys.modules[strange.__name__]


# --- links, pipes and devices -----------------------------------------------------------------------------


def link(target: str) -> Callable[[Path], object]:
    return lambda place: place.symlink_to(target)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("catalog.sqlite", link("../elsewhere/catalog.sqlite")),
        ("catalog.sqlite-wal", link("/dev/zero")),
        ("catalog.sqlite-shm", link("../elsewhere/diary.tmp")),
        ("catalog.sqlite-journal", os.mkfifo),
        ("index-0123abcd", link("../elsewhere")),
        ("index-0123abcd", os.mkfifo),
        ("index-0123abcd", lambda place: place.write_bytes(b"")),
        ("questions-0123abcd", link("/")),
        ("states-0123456789abcdef", link("../elsewhere")),
        ("states-0123456789abcdef/x.safetensors", os.mkfifo),
        ("index-0123abcd/manifest.json", link("/proc/kmsg")),
        ("index-0123abcd/deep/er/manifest.json", link("/dev/zero")),
    ],
)
def test_album_with_links_pipes_or_devices_is_not_opened(
    album: Path, name: str, make: Callable[[Path], object]
) -> None:
    elsewhere = Path(shutil.copytree(album, album.parent / "elsewhere"))
    (elsewhere / "diary.tmp").write_text("my diary")
    (album / name).parent.mkdir(parents=True, exist_ok=True)
    (album / name).unlink(missing_ok=True)
    make(album / name)
    before = sorted(elsewhere.rglob("*"))
    with in_time(), pytest.raises(AlbumError, match=r"is not opened: .* is (a link|a pipe|a file)"):
        Retriever.open(album, encoder=ENCODER)
    assert sorted(elsewhere.rglob("*")) == before


def test_new_album_does_not_write_through_links(tmp_path: Path) -> None:
    for name in ("catalog.sqlite", "states-0123456789abcdef"):
        album = tmp_path / name.split(".")[0]
        album.mkdir()
        (album / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(AlbumError, match="a link"):
            Retriever(ENCODER, path=album)
        with Retriever(ENCODER) as retriever, pytest.raises(AlbumError, match="a link"):
            retriever.save(album)
    with pytest.raises(AlbumError, match="is not an album"):
        Retriever.open(tmp_path / "catalog", PRESETS["mini"].variant(generator=None))
    assert not (tmp_path / "elsewhere").exists()


def test_journal_that_names_another_file_does_not_delete_it(album: Path) -> None:
    victim = album.parent / "diary.txt"
    victim.write_text("my diary")
    pages = (album / CATALOG).stat().st_size // 16384
    name, magic = str(victim).encode(), bytes.fromhex("d9d505f920a163d7")
    header = magic + struct.pack(">IIIII", 0, 1, pages, 512, 16384)
    name_record = struct.pack(">I", 0x40000000 // 16384 + 1) + name + struct.pack(">II", len(name), sum(name))
    (album / f"{CATALOG}-journal").write_bytes(header.ljust(512, b"\0") + name_record + magic)
    with pytest.raises(AlbumError, match="names another file"):
        Retriever.open(album, encoder=ENCODER)
    assert victim.read_text() == "my diary"


# --- what the catalog holds -------------------------------------------------------------------------------

ENDLESS = (
    "WITH RECURSIVE t(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM t) SELECT n AS name, n AS value FROM t"
)


@pytest.mark.parametrize(
    "sql",
    [
        f"DROP TABLE meta; CREATE VIEW meta AS {ENDLESS}",
        f"CREATE VIEW extra AS {ENDLESS}",
        "CREATE TRIGGER t AFTER INSERT ON images BEGIN DELETE FROM images; END",
        "CREATE TRIGGER t AFTER UPDATE ON meta BEGIN INSERT INTO removals (key, inverse) VALUES (1, ~1); END",
        "DROP TRIGGER question_vector_removed",
        "CREATE TABLE extra (x)",
        "CREATE INDEX extra ON images (caption)",
        "DROP TABLE snapshots",
        "ALTER TABLE images ADD COLUMN extra",
        "DROP TABLE snapshots; CREATE TABLE snapshots (name, value, crc32)",
        "CREATE VIRTUAL TABLE extra USING fts5(x)",
        "ANALYZE",
    ],
)
def test_catalog_with_another_schema_is_not_opened(album: Path, sql: str) -> None:
    with closing(sqlite3.connect(album / CATALOG)) as database:
        database.executescript(sql)
    with in_time(), pytest.raises(IntegrityError, match="altered by another program"):
        read_all(album)


@pytest.mark.parametrize(
    ("table", "name", "column", "value"),
    [
        ("meta", "settings", "value", "[" * 10_000 + "]" * 10_000),
        ("meta", "settings", "value", "[]"),
        ("meta", "settings", "value", '{"encoder": 3}'),
        ("meta", "settings", "value", json.dumps({"encoder": ENCODER.fingerprint, "encoder_part": "clip"})),
        ("meta", "dim", "value", "true"),
        ("meta", "dim", "value", "1" + "0" * 5000),
        ("images", 1, "metadata", "[" * 400 + "]" * 400),
        ("images", 1, "metadata", "[1, 2]"),
        ("images", 1, "metadata", '{"year": NaN}'),
        ("images", 1, "metadata", '{"year": 1e999}'),
        ("images", 1, "width", "wide"),
        ("images", 1, "id", b"\xff\xfe"),
    ],
)
def test_odd_values_with_the_right_checksum_are_an_integrity_error(
    album: Path, table: str, name: object, column: str, value: object
) -> None:
    change(album, table, name, column, value)
    with in_time(), pytest.raises(IntegrityError, match="damaged"):
        read_all(album)


@pytest.mark.parametrize(
    "description",
    [
        "3", "{}", "[" * 10_000, '{"part": null, "folder": "index-0123abcd", "position": {}}', "NaN",
        {"folder": "/"}, {"folder": "index-0123abcd/.."}, {"folder": "index-0123abcd\n"}, {"folder": 3},
        {"part": []}, {"part": {"plugin": "hnsw", "config": 3}}, {"position": [1]},
        {"position": {"last_key": 10**15, "last_removal": 0}}, {"position": {"last_key": True}},
        {"position": {"last_key": 1, "last_removal": 1.5}}, {"position": {"seq": 1}},
    ],
)  # fmt: skip
def test_damaged_description_of_the_saved_index_means_rebuild(album: Path, description: Any) -> None:
    expected = read_all(album)
    for name in ("index", "questions"):
        text = description
        if isinstance(description, dict):
            with closing(sqlite3.connect(album / CATALOG)) as database:
                [(text,)] = database.execute("SELECT value FROM snapshots WHERE name = ?", (name,))
            text = json.dumps({**json.loads(text), **description})
        change(album, "snapshots", name, "value", text)
    with in_time(), pytest.warns(RuntimeWarning, match="rebuilt from the catalog"):
        assert read_all(album) == expected
        with Retriever.open(album, encoder=ENCODER) as retriever:
            retriever.save()
    assert (album / "photos").is_dir() and read_all(album) == expected


@pytest.mark.parametrize(
    "manifest", ["[" * 10_000, "3", "[]", '{"checksum": 3}', '{"checksum": {}, "x": NaN}']
)
def test_damaged_manifest_means_rebuild(album: Path, manifest: str) -> None:
    expected = read_all(album)
    for file in album.rglob("manifest.json"):
        file.write_text(manifest)
    with pytest.warns(RuntimeWarning, match="rebuilt from the catalog"):
        assert read_all(album) == expected


def test_huge_files_with_holes_are_not_read(album: Path) -> None:
    expected = read_all(album)
    for file in album.rglob("*-*/*.*"):
        os.truncate(file, HUGE)
    with in_time(), pytest.warns(RuntimeWarning, match="not on the disk"):
        assert read_all(album) == expected


def test_lost_calibration_of_another_fusion_is_noticed(album: Path) -> None:
    with Retriever.open(album, encoder=ENCODER) as retriever:
        retriever._catalog.set_meta("calibration", {"fusion": {"plugin": "reciprocal_rank", "config": {}}})
    with Retriever.open(album, encoder=ENCODER) as retriever:
        assert retriever.calibration.fusion == ReciprocalRank()
    with closing(sqlite3.connect(album / CATALOG)) as database, database:
        database.execute("UPDATE meta SET name = 'calibratioo' WHERE name = 'calibration'")
    with pytest.raises(IntegrityError, match="the setting 'calibratioo' is damaged"):
        Retriever.open(album, encoder=ENCODER)


# --- what a source may be ---------------------------------------------------------------------------------


def tar_with(path: Path, header: tarfile.TarInfo, size: int) -> str:
    """A tar whose only member claims a size; returns the member as a source."""
    header.size = size
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    return f"{path}#{header.name}"


def sources(folder: Path) -> dict[str, str]:
    os.mkfifo(folder / "pipe")
    for name in ("sparse.png", "sparse.tar"):
        with (folder / name).open("wb") as file:
            file.truncate(HUGE)
    huge = tarfile.TarInfo("huge.png")
    with (folder / "zeros.tar.gz").open("wb") as file:
        file.write(gzip.compress(bytes(10240)))
        file.truncate(HUGE)
    note = tarfile.TarInfo("note.png")
    note.type = tarfile.GNUTYPE_LONGNAME
    (folder / "loop.png").symlink_to("loop.png")
    return {
        "pipe": str(folder / "pipe"),
        "member of a pipe": f"{folder / 'pipe'}#1.png",
        "device": "/dev/zero",
        "member of a device": "/dev/zero#1.png",
        "system file that never ends": "/proc/kmsg",
        "system file that claims to be empty": "/proc/self/maps",
        "member of a system file": "/proc/self/maps#1.png",
        "file with holes": str(folder / "sparse.png"),
        "tar with holes": f"{folder / 'sparse.tar'}#1.png",
        "compressed tar with holes": f"{folder / 'zeros.tar.gz'}#1.png",
        "member of 1 TiB": tar_with(folder / "huge.tar", huge, 2**40),
        "name of 1 TiB": tar_with(folder / "note.tar", note, 2**40),
        "folder": str(folder),
        "link to itself": str(folder / "loop.png"),
        "no path": "\0",
        "long path": "x" * 100_000,
    }


def test_source_that_is_no_image_file_is_an_image_error(tmp_path: Path) -> None:
    with Reopener() as files:
        for what, source in sources(tmp_path).items():
            with in_time(), pytest.raises(ImageError):
                pytest.fail(f"{what} was read: {files.open(source, 'f' * 64)}")
