"""A served album of coloured cards, and a Chromium that opens its page."""

from __future__ import annotations

import colorsys
import io
import shutil
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PILImage

from zsqretrieval import Retriever
from zsqretrieval.data.images import decode
from zsqretrieval.presets import Calibration
from zsqretrieval.testing.pictures import encoded
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator
from zsqretrieval.types import Context, Image, LogLikelihood

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
"""The first that is installed is taken; the headless shell needs half the processor time of the others."""
COLOURS = ("red", "green", "blue")
QUESTION = "what is the colour of the thing?"
HOSTILE = "<script>document.title = 'owned'</script> \"quoted\" & 'so'"


class Asking(ToyGenerator):
    """Asks for colours, and knows those of images; waits for ``gate`` before it scores."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()

    def log_likelihood(
        self, contexts: Sequence[Context], continuations: Sequence[str], **settings: Any
    ) -> list[LogLikelihood]:
        assert self.gate.wait(60)
        found = []
        for context, text in zip(contexts, continuations, strict=True):
            words, shares = text.split(), _shares(context)
            likely = [
                0.01 + 0.98 * shares[COLOURS.index(word)] ** 4 if word in COLOURS else 0.5 for word in words
            ]
            found.append(
                LogLikelihood(tuple(f" {word}" for word in words), np.log(np.array(likely, np.float32)))
            )
        if progress := settings.get("progress"):
            progress("scoring", len(found), len(found))
        return found

    def generate(self, contexts: Sequence[Context], *, n: int = 1, **settings: Any) -> list[list[str]]:
        return [
            [QUESTION if "question about" in str(one[-1]) else COLOURS[_shares(one).argmax()]] * n
            for one in contexts
        ]


def _shares(context: Context) -> NDArray[np.float64]:
    """The shares of red, green and blue in what is not grey."""
    (image,) = (one for one in context if isinstance(one, Image))
    mean = np.asarray(decode(image), np.float64).mean((0, 1))
    colour = mean - mean.min() + 1e-9
    return colour / colour.sum()


def card(number: int, of: int) -> Image:
    """A card with the colour wheel's colour at ``number / of``, darker to one side; of 2019."""
    bright = np.array(colorsys.hsv_to_rgb(number / of, 0.9, 1.0)) * 255
    pixels = np.linspace(bright, bright * (0.3 + 0.6 * (number % 7) / 7), 40)[None].repeat(30, 0)
    metadata = {
        "taken": f"2019-{1 + number % 3:02d}-{1 + number % 28:02d}T12:00:00",
        "year": 2000 + number % 10,
        "camera": ("Box & Co's", "Pinhole")[number % 2],
    }
    return Image(
        encoded(PILImage.fromarray(pixels.astype(np.uint8))),
        f"cards/{number}.png",
        id=f"cards/{number} ?#%.png",
        caption=f"card {number}",
        metadata=metadata,
    )


def cards(n: int, generator: Asking | None = None) -> Retriever:
    """An album of n cards, one with a hostile caption, and the first twice."""
    retriever = Retriever(
        ToyEncoder(), generator=generator, calibration=Calibration(relevance_scale=25.0, relevance_margin=0.2)
    )
    made = [card(number, n) for number in range(n)]
    twin = PILImage.open(io.BytesIO(made[0].content)).resize((44, 33))  # type: ignore[arg-type]
    odd = {"note": HOSTILE, "long": "x" * 1001, "boxes": [{"x": 1}]}
    hostile = Image(made[1].content, "hostile", id="hostile", caption=HOSTILE, metadata=odd)
    retriever.add(
        [*made[:1], hostile, *made[2:], Image(encoded(twin), "twin", id="twin", caption="the twin")]
    )
    return retriever


@contextmanager
def serving(retriever: Retriever, **settings: Any) -> Iterator[str]:
    """The address of a server in a thread."""
    uvicorn = pytest.importorskip("uvicorn", reason="needs zsqretrieval[web]")
    pytest.importorskip("fastapi", reason="needs zsqretrieval[web]")
    from zsqretrieval.web.app import make_app
    from zsqretrieval.web.settings import Settings

    with socket.create_server(("127.0.0.1", 0)) as opened:
        app = make_app(retriever, Settings(**settings))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, args=([opened],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{opened.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium; skips without one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if path is None:
        pytest.skip("needs Chromium on the PATH")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, address: str, **settings: Any) -> Iterator[Page]:
    """A page of a new profile; an error of a script, or something that the policy forbids, fails the test."""
    context = browser.new_context(
        base_url=address, **{"viewport": {"width": 1280, "height": 800}, **settings}
    )
    context.set_default_timeout(30_000)
    page, wrong = context.new_page(), list[str]()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console", lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None
    )
    yield page
    context.close()
    assert not wrong


def go(page: Page, path: str = "/") -> None:
    """Open an address and wait until the page can be used."""
    page.goto(path, wait_until="domcontentloaded")
    page.wait_for_selector("html[data-ready]")


def settled(page: Page) -> None:
    """Wait for the end of a search."""
    page.wait_for_selector("#results .tile .place")
    page.wait_for_selector(".waiting", state="detached")


def ids(page: Page, within: str = "#results") -> list[str]:
    """The images that are shown, in order."""
    return page.eval_on_selector_all(f"{within} .tile", "tiles => tiles.map(one => one.dataset.id)")
