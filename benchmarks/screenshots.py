"""Screenshots of the page of ``zsq serve``, with the photographs of ``zsq demo``.

    python -m benchmarks.screenshots docs/serve

Needs the extras ``web`` and ``mini``, playwright, and Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from PIL import Image as PILImage
from playwright.sync_api import sync_playwright

from zsqretrieval import Retriever
from zsqretrieval.data.samples import photographs

if TYPE_CHECKING:
    from playwright.sync_api import Page

SEVERAL = "food on a plate"  # which several photographs show
QUESTION = "two dogs looking out of a window"
DESCRIPTION = "an animal"
ANSWERS = 2  # in the dialog

WIDE, PHONE = (1280, 800), (360, 740)


@contextmanager
def serving(album: Path) -> Iterator[str]:
    """The address of a server of an album."""
    run = [sys.executable, "-c", "from zsqretrieval.cli import main; main()"]
    command = [*run, "serve", str(album), "--port", "0", "--title", "Everyday photographs"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield next(found[0] for line in server.stdout if (found := re.search(r"http://\S+(?=/)", line)))
        finally:
            server.terminate()


def search(page: Page, **view: str) -> None:
    """Open the results of a search, completely."""
    page.goto(f"/?{urlencode(view)}")
    page.wait_for_selector(".tile .place")
    page.wait_for_selector(".waiting", state="detached")


def take(page: Page, size: tuple[int, int]) -> bytes:
    """A WebP of the visible part of the page, after the images have come and nothing moves."""
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(1500)
    buffer = io.BytesIO()
    PILImage.open(io.BytesIO(page.screenshot())).save(buffer, "WEBP", quality=76, method=6)
    return buffer.getvalue()


def shots(page: Page) -> Iterator[tuple[str, bytes]]:
    """The screenshots by name."""
    search(page, q=QUESTION)
    page.click(".tile .open >> nth=0")
    page.wait_for_selector("mark")
    page.get_by_role("button", name="Write questions").click()
    page.wait_for_selector(".questions button")
    yield "image", take(page, WIDE)
    search(page, q=SEVERAL, order="both")
    yield "orders", take(page, WIDE)
    page.goto(f"/?{urlencode({'ask': DESCRIPTION})}")
    for turn in range(ANSWERS):
        page.click(".answers button >> nth=0")
        page.wait_for_selector(f".turns li >> nth={turn}")
    yield "dialog", take(page, WIDE)
    page.emulate_media(color_scheme="dark")
    yield "phone", take(page, PHONE)


def main() -> None:
    """Write the screenshots."""
    parser = argparse.ArgumentParser("python -m benchmarks.screenshots", description=__doc__)
    parser.add_argument("out", type=Path, help="Folder.")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder, sync_playwright() as driver:
        album = Path(folder, "album")
        with Retriever.open(album, preset="mini") as retriever:
            retriever.add(photographs())
        with serving(album) as address:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(base_url=address)
            page.set_default_timeout(300_000)
            for name, content in shots(page):
                (out / f"{name}.webp").write_bytes(content)
            browser.close()


if __name__ == "__main__":
    main()
