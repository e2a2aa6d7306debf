"""The first import of torchvision; every test runs in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


def run(code: str, *, first_on_path: Path | None = None) -> str:
    """Run ``code`` in a fresh interpreter where warnings are errors; return what it prints."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if first_on_path is not None:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(first_on_path), env.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def fake(tmp_path: Path):
    """Write a package named torchvision that shadows the installed one; returns its parent folder."""

    def write(init: str, **modules: str) -> Path:
        package = tmp_path / "torchvision"
        package.mkdir()
        (package / "__init__.py").write_text(textwrap.dedent(init))
        for name, source in modules.items():
            (package / f"{name}.py").write_text(textwrap.dedent(source))
        return tmp_path

    return write


BROKEN = """
    import torch
    from torchvision import early, late
"""
# as torchvision's _meta_registrations.py, when the compiled operators are missing
LATE = """
    import torch

    @torch.library.register_fake("torchvision::nms")
    def meta_nms(dets, scores, iou_threshold):
        return dets.new_empty(0, dtype=torch.long)
"""
EARLY = "import os; os.environ['EARLY'] = os.environ.get('EARLY', '') + 'x'"


def test_model_libraries_import_with_the_installed_torchvision() -> None:
    run("""
        from zsqretrieval._util.torch import ensure_torchvision
        ensure_torchvision()
        ensure_torchvision()
        import open_clip, timm, torchvision
        from transformers import Kosmos2ForConditionalGeneration
        from torchvision.transforms import v2
        assert torchvision.transforms.Resize and v2.Resize
        """)


def test_missing_operator_is_declared_and_torchvision_imported_again(fake) -> None:
    early = run(
        """
        import os, sys
        try:
            import torchvision
        except RuntimeError as error:
            assert "operator torchvision::nms does not exist" in str(error), error
        else:
            raise AssertionError("the fake is not broken")
        from zsqretrieval._util import torch as _torch
        del sys.modules["torchvision.early"]
        os.environ["EARLY"] = ""
        _torch.ensure_torchvision()
        library = _torch._library
        _torch.ensure_torchvision()
        assert _torch._library is library is not None
        import torch, torchvision
        assert sys.modules["torchvision.early"] is torchvision.early
        assert "iou_threshold" in str(torch.ops.torchvision.nms.default._schema)
        print(os.environ["EARLY"])
        """,
        first_on_path=fake(BROKEN, early=EARLY, late=LATE),
    )
    assert early == "xx", "submodules of the failed import were not imported again"


def test_concurrent_calls_are_safe(fake) -> None:
    run(
        """
        import threading
        from zsqretrieval._util.torch import ensure_torchvision
        failures, barrier = [], threading.Barrier(8)
        def ask():
            barrier.wait()
            try:
                ensure_torchvision()
            except BaseException as error:
                failures.append(error)
        threads = [threading.Thread(target=ask) for _ in range(8)]
        [t.start() for t in threads]; [t.join() for t in threads]
        assert not failures, failures
        import torchvision
        """,
        first_on_path=fake(BROKEN, early=EARLY, late=LATE),
    )


def test_working_torchvision_is_unchanged(fake) -> None:
    run(
        """
        import sys
        from zsqretrieval._util import torch as _torch
        _torch.ensure_torchvision()
        assert sys.modules["torchvision"].answer == 42
        assert _torch._library is None
        assert "torch" not in sys.modules
        """,
        first_on_path=fake("answer = 42"),
    )


@pytest.mark.parametrize(
    "init, expected",
    [
        ("raise RuntimeError('libc10.so is damaged')", "RuntimeError: libc10.so is damaged"),
        (
            "raise RuntimeError('operator torchvision::roi_align does not exist')",
            "RuntimeError: operator torchvision::roi_align does not exist",
        ),
        ("import no_such_dependency", "ModuleNotFoundError: No module named 'no_such_dependency'"),
        ("raise OSError('disk on fire')", "OSError: disk on fire"),
    ],
)
def test_other_import_errors_are_raised(fake, init: str, expected: str) -> None:
    seen = run(
        """
        from zsqretrieval._util import torch as _torch
        try:
            _torch.ensure_torchvision()
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
        assert _torch._library is None
        """,
        first_on_path=fake(init),
    )
    assert seen == expected


def test_second_import_error_is_raised(fake) -> None:
    seen = run(
        """
        from zsqretrieval._util.torch import ensure_torchvision
        try:
            ensure_torchvision()
        except RuntimeError as error:
            print(error)
        """,
        first_on_path=fake(BROKEN, early="", late=LATE + "\n    raise RuntimeError('and another thing')"),
    )
    assert seen == "and another thing"


def test_missing_torchvision_is_ignored() -> None:
    run("""
        import sys
        sys.modules["torchvision"] = None  # what a missing package looks like to the import system
        from zsqretrieval._util.torch import ensure_torchvision
        ensure_torchvision()
        """)
