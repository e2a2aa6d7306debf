"""Files made to harm: refused by name, never executed, and in bounded memory."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tars import pack
from zsqretrieval.errors import IntegrityError, InvalidInputError, ZsqError
from zsqretrieval.laion.arrays import open_array, open_arrays
from zsqretrieval.laion.datacomp import Subset
from zsqretrieval.laion.image_shards import open_image_shards, write_image_shard
from zsqretrieval.laion.metadata import read_metadata
from zsqretrieval.laion.storage import File, list_files


def the_file(path: Path) -> File:
    return list_files(path, "")[0]


def npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def header(text: str, version: bytes = b"\1\0") -> bytes:
    size = len(text).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + size + text.encode() + bytes(256)


class Harm:
    """Leaves a trace when it is unpickled."""

    def __reduce__(self) -> Any:
        return print, ("unpickled",)


SHAPED = "{'descr': '<f2', 'fortran_order': False, 'shape': %s}"
HEADERS: list[tuple[bytes, type[Exception], str]] = [
    (header(SHAPED % "(10000000000000, 768)"), IntegrityError, "claims"),
    (header(SHAPED % "(-1, 4)"), IntegrityError, "shape"),
    (header(SHAPED % "(10**9,)"), IntegrityError, "damaged"),
    (header(SHAPED % "()"), IntegrityError, "shape"),
    (header("{'descr': 'O', 'fortran_order': False, 'shape': (1,)}"), InvalidInputError, "never unpickled"),
    (header(SHAPED.replace("'<f2'", "[('a', 'O')]") % "(1,)"), InvalidInputError, "never unpickled"),
    (header("__import__('os').system('true')"), IntegrityError, "damaged"),
    (header("[" * 9000), IntegrityError, "damaged"),
    (b"\x93NUMPY\2\0\xff\xff\xff\xff{", IntegrityError, "damaged"),
    (b"\x93NUMPY\x09\0", IntegrityError, "version"),
    (npy(np.array([Harm()], object)), InvalidInputError, "never unpickled"),
    (pickle.dumps(Harm()), IntegrityError, "damaged"),
    (b"", IntegrityError, "damaged"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "error", "said"), HEADERS)
@pytest.mark.parametrize("zipped", [False, True])
def test_header_of_an_array_is_refused_and_nothing_is_unpickled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, error: Any, said: str, zipped: bool
) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    if zipped:
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.write(path, "l14_img.npy")
    with pytest.raises(error, match=said):
        open_arrays(the_file(tmp_path / "a.npz")) if zipped else open_array(the_file(path))
    assert capsys.readouterr().out == ""


def twice(archive: zipfile.ZipFile) -> None:
    head = npy(np.zeros((1, 1), np.float16))
    archive.writestr("l14_img.npy", head)
    archive.writestr("l14_img.npy", head)


def other_compression(archive: zipfile.ZipFile) -> None:
    archive.writestr("a.npy", npy(np.zeros((4, 4), np.float16)), zipfile.ZIP_BZIP2)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("fill", "said"), [(twice, "two members"), (other_compression, "unknown way")])
def test_archive_that_numpy_does_not_write_is_refused(
    tmp_path: Path, fill: Callable[[zipfile.ZipFile], None], said: str
) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        fill(archive)
    with pytest.raises(IntegrityError, match=said):
        open_arrays(the_file(tmp_path / "a.npz"))


def write_bomb(path: Path) -> None:
    """51 kB of parquet, of which the captions are 1 TB."""
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1_000_000, np.int32)), ["x" * 2**20])
    parquet.write_table(pa.table({"caption": column}), path)


def write_zeros(path: Path) -> None:
    """250 kB of .npz that claims, and is, 250 MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as member:
        member.write(header(SHAPED % "(256000, 512)")[:-256])
        for _ in range(250):
            member.write(bytes(2**20))


BOMBS = {
    "caption": (write_bomb, "for n, one in zip('abc', read_metadata(path)): assert one.batch.nbytes < 2**27"),
    "npz": (write_zeros, "array = open_arrays(list_files(path, '')[0])['a']; assert not array[-9:].any()"),
}  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are those of Linux")
@pytest.mark.parametrize("kind", BOMBS)
def test_bomb_is_read_in_little_memory(tmp_path: Path, kind: str) -> None:
    write, use = BOMBS[kind]
    write(tmp_path / "bomb")
    code = (
        "import re, sys; from pathlib import Path; path = sys.argv[1]\n"
        "from zsqretrieval.laion.arrays import open_arrays\n"
        "from zsqretrieval.laion.metadata import read_metadata\n"
        "from zsqretrieval.laion.storage import list_files\n"
        f"{use}\n"
        r"assert int(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1]) < 300_000"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "bomb"], capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr.decode()[-2000:]


def test_cell_longer_than_any_batch_is_refused(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"caption": ["x" * (2**26 + 1)] * 2}), tmp_path / "a.parquet")
    with pytest.raises(IntegrityError, match=r"a.parquet: row group 0 has a cell of 67108865 bytes"):
        list(read_metadata(tmp_path))


# --- any bytes --------------------------------------------------------------------------------------------

WHOLE: dict[str, Callable[[Path], object]] = {
    "npy": lambda path: open_array(the_file(path))[:],
    "npz": lambda path: [one[:] for one in open_arrays(the_file(path)).values()],
    "parquet": lambda path: [one.batch.validate(full=True) for one in read_metadata(path)],
    "subset": lambda path: Subset(path),
    "tar": lambda path: [list(one.images()) for one in open_image_shards(path)],
    "stats": lambda path: [list(one.images()) for one in open_image_shards(path.parent / "00000.tar")],
}


def sound(kind: str, folder: Path) -> Path:
    """A small whole file of a kind."""
    path = folder / f"a.{kind}"
    match kind:
        case "npy":
            np.save(path, np.ones((3, 4), np.float16))
        case "npz":
            np.savez_compressed(path, a=np.ones((3, 4), np.float16), b=np.ones((3, 2), np.float16))
        case "parquet":
            parquet.write_table(
                pa.table({"URL": ["u", "v", None], "WIDTH": [1.5, 2, None], "hash": [1, 2, 3]}), path
            )
        case "subset":
            np.save(path := folder / "a.npy", np.zeros(3, "u8,u8"))
        case _:
            write_image_shard(folder, 0, [(b"x", {"url": "u"}), (None, {"url": "v"})])
            path = folder / ("00000.tar" if kind == "tar" else "00000_stats.json")
    return path


@settings(max_examples=120, deadline=None)
@given(kind=st.sampled_from(sorted(WHOLE)), data=st.data())
def test_damaged_file_is_read_or_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    path = sound(kind, folder)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = int(data.draw(st.floats(0, 1)) * len(content))
        match data.draw(st.sampled_from(["cut", "flip", "insert", "number"])):
            case "cut":
                del content[place:]
            case "flip":
                content[place : place + 1] = bytes([data.draw(st.integers(0, 255))])
            case "insert":
                content[place:place] = data.draw(st.binary(max_size=9))
            case _:
                content[place : place + 4] = data.draw(
                    st.sampled_from([b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f"])
                )
    path.write_bytes(content)
    try:
        WHOLE[kind](path)
    except ZsqError as error:
        assert folder.name in str(error) and "\n" not in str(error)
    pack(folder / "still there.tar", {})
