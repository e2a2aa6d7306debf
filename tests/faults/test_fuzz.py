"""The fuzz job: a quick run over every kind of input, and the faults that it must report."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fuzzing import fuzz
from planted import PLANTS
from strangers import make_album
from tests.fuzz import TARGETS
from zsqretrieval.album.features import read_facts
from zsqretrieval.album.info import CATALOG
from zsqretrieval.cli import app
from zsqretrieval.errors import IntegrityError
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import ToyEncoder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="measures memory by /proc")


@pytest.mark.parametrize("target", TARGETS)
def test_quick_run_finds_no_fault(target: str) -> None:
    ran = fuzz("--target", target, "--cases", 24)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(rf"^{target} +24 ", ran.stdout, re.MULTILINE)


def test_planted_faults_are_reported_and_end_nothing() -> None:
    targets = [word for name in PLANTS for word in ("--target", f"planted:{name}")]
    ran = fuzz(*targets, "--cases", 1, "--seconds", 1, "--megabytes", 250)
    assert ran.returncode == 1, ran.stderr
    reported = dict(re.findall(r"^FAULT planted:(\w+): (.*)$", ran.stdout, re.MULTILINE))
    for name, (_, fault) in PLANTS.items():
        assert reported.get(name, "").startswith(fault) if fault else name not in reported, name
    assert "\n  python -m tests.fuzz --target planted:hang --seed 0 --case 0\n" in ran.stdout


def test_case_can_be_replayed() -> None:
    shown = [fuzz("--target", "images", "--seed", 3, "--case", 5).stdout.splitlines()[:2] for _ in range(2)]
    assert shown[0] == shown[1] and "bytes" in shown[0][0]


# --- what the job has found -------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"\xff", b"{", b"", b"[" * 100_000])
def test_numbers_for_the_verdict_that_are_no_json_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "numbers.json").write_bytes(content)
    command = ["evaluate", str(tmp_path), "--report", "out", "--published", str(tmp_path / "numbers.json")]
    ran = CliRunner().invoke(app, command)
    assert ran.exit_code == 1 and "numbers.json" in ran.stderr and ran.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "content",
    ["[]", "3", "{}", '{"recall": {"a": 1}, "statements": []}', '{"recall": [3], "statements": []}',
     '{"recall": [{"a": 1}]}', '{"recall": [{"a": 1}], "statements": [{}]}', '{"spread": {"images": 1}}',
     '{"spread": {}, "notes": [], "setting": {"rounds": "six"}}', "null"],
)  # fmt: skip
@pytest.mark.parametrize("option", ["--published", "--alternatives"])
def test_numbers_for_the_verdict_of_another_shape_are_refused_before_the_work(
    tmp_path: Path, content: str, option: str
) -> None:
    (tmp_path / "numbers.json").write_text(content)
    ran = CliRunner().invoke(
        app, ["evaluate", "nowhere", "--report", "out", option, str(tmp_path / "numbers.json")]
    )
    assert ran.exit_code == 1 and "numbers.json: is not " in ran.stderr and ran.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["--report", "--work", "--encoder-weights", "--generator-weights"])
def test_empty_path_is_not_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    report = [] if option == "--report" else ["--report", "out"]
    ran = CliRunner().invoke(app, ["evaluate", "nowhere", *report, option, ""])
    assert ran.exit_code == 2 and "path is empty" in ran.stderr and not list(tmp_path.iterdir())


def test_feature_file_of_200_gib_without_content_is_damaged(tmp_path: Path) -> None:
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.truncate(200 * 2**30)
    with pytest.raises(ValueError, match="not on the disk"):
        read_facts(tmp_path / "x.safetensors")


def test_damaged_pages_of_a_catalog_are_an_error_of_one_line(tmp_path: Path) -> None:
    catalog = make_album(tmp_path / "album") / CATALOG
    content = bytearray(catalog.read_bytes())
    content[2 * 16_384] = 255  # the kind of a page
    catalog.write_bytes(content)
    with pytest.raises(IntegrityError, match="is damaged") as refused:
        Retriever.open(tmp_path / "album", encoder=ToyEncoder())
    assert "\n" not in str(refused.value)


def test_animated_png_without_frames_is_decoded_without_a_warning() -> None:
    code = (
        "import io, struct, zlib; from PIL import Image; from zsqretrieval.data.images import decode\n"
        "file = io.BytesIO(); Image.new('RGB', (8, 8), 'red').save(file, 'PNG'); png = file.getvalue()\n"
        "control = b'acTL' + bytes(8)\n"
        "chunk = struct.pack('>I', 8) + control + struct.pack('>I', zlib.crc32(control))\n"
        "assert decode(png[:33] + chunk + png[33:]).getpixel((0, 0)) == (255, 0, 0)"
    )
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_errors_that_pillow_logs_are_not_printed() -> None:
    code = "import logging, zsqretrieval.data.images; logging.getLogger('PIL.TiffImagePlugin').error('65535')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
