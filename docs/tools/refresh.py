"""Run the commands whose output a page shows, and update the page.

    python docs/tools/refresh.py docs/tasks.md

A block to be replaced stands between ``<!-- output of: python -m benchmarks.raven -->`` and
``<!-- end of output -->``. A page is written only when all its commands have succeeded.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

BLOCK = re.compile(r"(<!-- output of: python (.+?) -->\n).*?(<!-- end of output -->)", re.DOTALL)
ROOT = Path(__file__).parents[2]


def refreshed(text: str) -> str:
    """The page with the present output of every command."""

    def run(block: re.Match[str]) -> str:
        command = [sys.executable, *shlex.split(block[2])]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, encoding="utf-8")
        return f"{block[1]}\n{done.stdout.strip()}\n\n{block[3]}"

    return BLOCK.sub(run, text)


def main() -> None:
    """Refresh the pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", type=Path, nargs="+", help="Markdown files")
    for page in parser.parse_args().pages:
        text = refreshed(page.read_text(encoding="utf-8"))
        unfinished = page.with_name(f"{page.name}.unfinished")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(page)


if __name__ == "__main__":
    main()
