"""The examples of docs/testing.md do what the text says."""

import re
import subprocess
import sys
from pathlib import Path

from zsqretrieval.testing import encoder_checks, generator_checks, index_checks

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def run(arguments, folder):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=folder)


def test_the_script_prints_what_the_page_shows(tmp_path):
    (tmp_path / "script.py").write_text(EXAMPLES[0], encoding="utf-8")
    (shown,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert run(["script.py"], tmp_path).stderr.endswith(shown)


def test_the_pytest_example_works(tmp_path):
    (tmp_path / "my_package.py").write_text(
        """
import numpy as np
from zsqretrieval.testing import ToyEncoder, ToyIndex

class MyEncoder(ToyEncoder):
    @classmethod
    def from_pretrained(cls, name):
        return cls()

class MyIndex(ToyIndex):
    def add(self, keys, vectors):
        if keys.dtype == np.int64 and np.any(keys > 2**45):
            raise ValueError("a key of more than 32 bits")
        super().add(keys, vectors)
"""
    )
    (tmp_path / "test_mine.py").write_text(EXAMPLES[1], encoding="utf-8")
    done = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"], tmp_path)
    passed = len(encoder_checks) + len(index_checks) - 1
    assert f"{passed} passed, 1 xfailed" in done.stdout


def test_the_generator_example_works(tmp_path):
    (tmp_path / "script.py").write_text(EXAMPLES[2], encoding="utf-8")
    done = run(["script.py"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_page_counts_right():
    counts = re.search(r"(\d+) for an encoder, (\d+) for an index, (\d+) for a generator", PAGE)
    assert [int(n) for n in counts.groups()] == [
        len(encoder_checks),
        len(index_checks),
        len(generator_checks),
    ]
