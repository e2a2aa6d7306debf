"""The real thing: `zsq` in a process of its own, with its streams, signals and exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image as PILImage

from zsqretrieval import __version__

Start = Callable[..., "subprocess.Popen[str]"]

HEAVY = {"torch", "torchvision", "transformers", "open_clip", "timm", "PIL", "numpy", "hnswlib", "skimage"}


def finish(started: subprocess.Popen[str]) -> tuple[int, str, str]:
    stdout, stderr = started.communicate(timeout=300)
    return started.returncode, stdout, stderr


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from zsqretrieval.cli import main
for arguments in (["--help"], ["demo", "--help"], ["evaluate", "--help"], ["--version"]):
    sys.argv = ["zsq", *arguments]
    try:
        main()
    except SystemExit as end:
        assert not end.code
print(*{name.split(".")[0] for name in sys.modules}, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.count("Usage: ") == 3 and __version__ in done.stdout
    modules = set(done.stderr.split())
    assert "zsqretrieval" in modules and not modules & HEAVY


def test_the_installed_script_says_its_version() -> None:
    script = Path(sys.executable).with_name("zsq")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"zsqretrieval {__version__}\n")


def test_error_is_one_line_and_debug_shows_the_traceback(process: Start) -> None:
    code, stdout, stderr = finish(process("search", "nowhere", "red"))
    assert (code, stdout) == (1, "")
    assert stderr.startswith("zsq: error: nowhere is not an album") and stderr.count("\n") == 1
    for started in (
        process("--debug", "search", "nowhere", "red"),
        process("search", "nowhere", "red", ZSQ_DEBUG="1"),
    ):
        code, _, stderr = finish(started)
        assert code == 1 and "Traceback" in stderr and "AlbumError" in stderr


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
def test_unwritable_page_is_a_one_line_error(process: Start, colours: Path) -> None:
    code, _, stderr = finish(
        process("demo", "--images", colours, "--preset", "toy", "--out", "/proc/no/such/page.html")
    )
    assert code == 1 and stderr.splitlines()[-1].startswith("zsq: error: ") and "/proc/no" in stderr
    assert "Traceback" not in stderr


def test_a_damaged_index_is_a_warning_of_one_line(process: Start, colours: Path, tmp_path: Path) -> None:
    finish(process("index", colours, "--out", "album", "--preset", "toy"))
    (snapshot,) = (tmp_path / "album").glob("index-*")
    (snapshot / "manifest.json").write_text("torn")
    code, stdout, stderr = finish(process("search", "album", "red", "-k", 1))
    assert code == 0 and "red.png" in stdout
    assert stderr.startswith("zsq: warning: ") and "rebuilt" in stderr and stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot be sent Ctrl-C alone")
def test_ctrl_c_keeps_what_was_added(process: Start, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(300):
        PILImage.new("RGB", (900, 900), (i % 256, i // 256, 7)).save(folder / f"{i:03}.png", compress_level=0)
    arguments = ("index", folder, "--out", "album", "--preset", "toy", "--batch-size", 2)
    # Where the tests run in the background, Ctrl-C is ignored, and a child would inherit that.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        started = process(*arguments)
    finally:
        signal.signal(signal.SIGINT, inherited)
    wal = tmp_path / "album" / "catalog.sqlite-wal"
    deadline = time.monotonic() + 120
    while not (
        wal.exists() and wal.stat().st_size > 800_000
    ):  # the tables are made, some batches have gone by
        assert started.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    started.send_signal(signal.SIGINT)
    code, stdout, stderr = finish(started)
    assert (code, stdout) == (130, "")
    assert "all of them on disk" in stderr and "same command again" in stderr and "Traceback" not in stderr
    safe = json.loads(finish(process("info", "album", "--json"))[1])["images"]
    assert 0 < safe < 300 and f"holds {safe} images" in stderr
    report = json.loads(finish(process(*arguments, "--json"))[1])
    assert (report["known"], len(report["added"]), report["images"]) == (safe, 300 - safe, 300)


def test_output_fits_a_narrow_terminal_and_an_old_code_page(process: Start, tmp_path: Path) -> None:
    folder = tmp_path / "named"
    folder.mkdir()
    PILImage.new("RGB", (9, 9), "red").save(folder / "猫 é.png")
    finish(process("index", folder, "--out", "album", "--preset", "toy"))
    code, stdout, stderr = finish(
        process("search", "album", "red", PYTHONIOENCODING="cp1252", PYTHONUTF8="0")
    )
    assert (code, stderr) == (0, "") and r"\u732b é.png" in stdout
    code, stdout, _ = finish(
        process("demo", "--images", folder, "--preset", "toy", COLUMNS="50", NO_COLOR="1")
    )
    assert code == 0 and "\x1b" not in stdout
    table = stdout.split("questions to")[0].splitlines()[:-1]
    assert max(map(len, table)) <= 50


def test_closed_pipe_is_no_error(process: Start, colours: Path) -> None:
    finish(process("index", colours, "--out", "album", "--preset", "toy"))
    started = process("search", "album", "red")
    started.stdout.close()
    stderr = started.stderr.read()
    started.stderr.close()
    started.wait(60)
    assert "Traceback" not in stderr


def test_two_commands_that_make_the_same_album_at_once_both_succeed(
    process: Start, colours: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for number, folder in enumerate(folders):
        folder.mkdir()
        PILImage.new("RGB", (8, 8), (80 * number, 0, 0)).save(folder / f"{number}.png")
    started = [process("index", folder, "--out", "album", "--preset", "toy", "--json") for folder in folders]
    for code, _, stderr in map(finish, started):
        assert code == 0, stderr
    code, stdout, _ = finish(process("info", "album", "--json"))
    assert code == 0 and json.loads(stdout)["images"] == len(folders)


def test_huge_number_of_results_is_the_number_of_images(process: Start, colours: Path) -> None:
    finish(process("index", colours, "--out", "album", "--preset", "toy"))
    code, stdout, stderr = finish(process("search", "album", "red", "-k", "9" * 400, "--json"))
    assert code == 0, stderr
    assert len(json.loads(stdout)["hits"]) == 4


@pytest.mark.parametrize("command", [["search", "", "red"], ["info", ""], ["index", ".", "--out", ""]])
def test_empty_album_path_is_refused(command: list[str], process: Start, tmp_path: Path) -> None:
    code, _, stderr = finish(process(*command))
    assert (code, stderr) == (1, "zsq: error: '' is not an album path; name a directory, such as './album'\n")
    assert not list(tmp_path.glob("catalog*"))
