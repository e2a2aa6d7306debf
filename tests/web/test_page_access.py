"""Who can use the page: contrast and names by axe, narrow screens, little motion; and how soon it paints."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pages import Asking, card, cards, go, opened, serving, settled
from zsqretrieval import Retriever
from zsqretrieval.testing import ToyEncoder

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytest.importorskip("playwright.sync_api", reason="needs playwright")

VIEWS = {
    "start": ("/", ".tile"),
    "results": ("/?q=a+red+thing&not=blue&where=year+%3E+2000&order=both", ".column .place"),
    "dates": ("/?q=red&sort=newest", "h3"),
    "nothing": ("/?q=something+else", ".nothing"),
    "detail": ("/?q=a+red+thing&image=cards/2+%3F%23%25.png", "mark"),
    "dialog": ("/?ask=a+thing", ".answers"),
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with cards(30, Asking()) as retriever, serving(retriever, title="Cards") as at:
        yield at


def show(page: Page, view: str) -> None:
    path, there = VIEWS[view]
    go(page, path)
    page.wait_for_selector(there)
    page.wait_for_selector(".waiting", state="detached")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Browser, address: str, scheme: str) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="needs axe-playwright-python"
    ).Axe()
    with opened(browser, address, color_scheme=scheme, reduced_motion="reduce", bypass_csp=True) as page:
        for view in VIEWS:
            show(page, view)
            if view == "results":
                page.keyboard.press("r")
                page.locator(".pick input").first.check(force=True)
            if view == "start":
                page.keyboard.press("?")
            found = axe.run(page)
            assert found.violations_count == 0, f"{view}: {found.generate_report()}"


def test_nothing_is_wider_than_a_phone(browser: Browser, address: str) -> None:
    with opened(
        browser, address, viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True
    ) as page:
        for view in VIEWS:
            show(page, view)
            if view == "results":
                page.keyboard.press("r")
                page.locator(".pick input").first.check(force=True)
            assert page.evaluate("document.documentElement.scrollWidth") == 360, view
            assert page.evaluate("document.querySelector('#detail').scrollWidth") <= 360, view


def test_boxes_do_not_move_when_images_arrive(browser: Browser, address: str) -> None:
    with opened(browser, address) as page:
        page.add_init_script(
            """globalThis.shift = 0; new PerformanceObserver(list => list.getEntries().forEach(
               one => { if (!one.hadRecentInput) globalThis.shift += one.value; }))
               .observe({ type: "layout-shift", buffered: true });"""
        )
        go(page)
        page.wait_for_load_state("networkidle")
        assert page.evaluate("shift") < 0.01


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_tiles_glide_unless_motion_is_unwanted(browser: Browser, address: str, motion: str) -> None:
    with opened(browser, address, reduced_motion=motion) as page:
        page.add_init_script(
            """globalThis.moved = 0;
               const { animate } = Element.prototype;
               Element.prototype.animate = function (...all) {
                 moved += 1;
                 return animate.apply(this, all);
               };"""
        )
        show(page, "nothing")
        page.locator("#cut").fill("0")
        page.check("#orders [value=both]", force=True)
        settled(page)
        assert (page.evaluate("moved") > 0) == (motion != "reduce")


@pytest.mark.skipif(
    os.getloadavg()[0] > (os.cpu_count() or 1), reason="the time of a busy machine says nothing"
)
@pytest.mark.parametrize("n", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_first_paint_is_soon(
    browser: Browser, tmp_path: Path, n: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The aim is 300 ms; the limit is wide, since other programs may run."""
    for number in range(60):
        (tmp_path / f"{number}.png").write_bytes(card(number, 60).content)  # type: ignore[arg-type]
    vectors = np.random.default_rng(0).normal(size=(n, ToyEncoder.dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with Retriever(ToyEncoder()) as retriever:
        names = [f"image {number}" for number in range(n)]
        retriever.add_embeddings(vectors, ids=names, sources=[tmp_path / f"{i % 60}.png" for i in range(n)])
        times = []
        with serving(retriever) as at:
            for _ in range(3):
                with opened(browser, at) as page:
                    go(page)
                    page.wait_for_selector(".tile img")
                    times.append(
                        page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
                    )
    with capsys.disabled():
        sys.stdout.write(f"\n{n} images: first contentful paint after {statistics.median(times):.0f} ms\n")
    assert statistics.median(times) < 1000
