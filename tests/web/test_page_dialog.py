"""The clarifying dialog of the page, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest

from pages import Asking, cards, go, opened, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

N = 30
expect = pytest.importorskip("playwright.sync_api", reason="needs playwright").expect


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with cards(N, Asking()) as retriever, serving(retriever, title="Cards") as at:
        yield at


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    with opened(browser, address, reduced_motion="reduce") as made:
        yield made


def areas(page: Page) -> dict[str, float]:
    """The share of the map of each image."""
    return page.eval_on_selector_all(
        ".map li",
        """all => Object.fromEntries(all.map(({ firstChild, offsetWidth, offsetHeight, parentNode }) => {
          const share = offsetWidth * offsetHeight / (parentNode.clientWidth * parentNode.clientHeight);
          return [new URLSearchParams(firstChild.search).get("image"), share];
        }))""",
    )


def begin(page: Page) -> None:
    go(page)
    page.fill("#q", "a thing")
    page.click("#ask-back")
    expect(page.locator(".asked h3")).to_have_text("what is the colour of the thing?")


def test_answers_shrink_the_map_until_the_dialog_ends(page: Page) -> None:
    begin(page)
    before = areas(page)
    assert sum(before.values()) == pytest.approx(1, abs=0.02)
    expect(page.locator("#said")).to_have_text("")
    page.click(".answers >> text=blue")
    expect(page.locator(".turns .answer")).to_have_text("blue")
    after = areas(page)
    most = max(after, key=lambda one: after[one] - before.get(one, 0))
    assert 0.55 < int(most.split("/")[1].split()[0]) / N < 0.8  # a blue hue
    assert sum(after.values()) == pytest.approx(1, abs=0.02)
    expect(page.locator(".turns .fewer")).to_contain_text("→")
    page.fill(".own input", "it is blue")
    page.get_by_role("button", name="Hint").click()
    expect(page.locator(".turns li")).to_have_count(2)
    expect(page.locator(".turns .question").first).to_have_text("Hint")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".turns li")).to_have_count(1)
    while page.locator(".answers >> text=Open it").count() == 0:
        turns = page.locator(".turns li").count()
        page.keyboard.press("1")
        expect(page.locator(".turns li")).to_have_count(turns + 1)
    expect(page.locator(".step")).to_contain_text("After")
    best = page.locator(".map a").first.get_attribute("href")
    page.click("text=Open it")
    expect(page.locator("#detail")).to_be_visible()
    assert (
        best is not None
        and parse_qs(urlsplit(page.url).query)["image"] == parse_qs(urlsplit(best).query)["image"]
    )
    page.keyboard.press("Escape")
    page.click("text=Show me a list instead")
    expect(page.locator("#summary")).to_contain_text("a thing")


def test_own_words_and_not_knowing_are_answers(page: Page) -> None:
    begin(page)
    before = areas(page)
    page.click("text=/I don.t know/")
    expect(page.locator(".turns .answer")).to_have_text("don't know")
    assert areas(page) == pytest.approx(before, abs=0.001)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".turns li")).to_have_count(0)
    page.fill(".own input", "green")
    page.keyboard.press("Enter")
    expect(page.locator(".turns .answer")).to_have_text("green")


def test_reloaded_dialog_goes_on_and_a_lost_one_begins_again(page: Page) -> None:
    begin(page)
    page.click(".answers >> text=red")
    expect(page.locator(".turns li")).to_have_count(1)
    page.reload()
    expect(page.locator(".turns .answer")).to_have_text("red")
    go(page, "/?ask=a+thing&dialog=lost")
    expect(page.locator(".asked h3")).to_have_text("what is the colour of the thing?")
    expect(page.locator(".turns li")).to_have_count(0)


def test_refused_answer_is_explained_and_can_be_given_again(page: Page) -> None:
    begin(page)
    said = {"error": {"code": "busy", "message": "the server is busy"}}
    page.route("**/answer", lambda route: route.fulfill(status=429, json=said), times=1)
    page.click(".answers >> text=red")
    expect(page.get_by_role("alert")).to_contain_text("The server is busy.")
    expect(page.locator(".answers button").first).to_be_enabled()
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".turns .answer")).to_have_text("red")


def test_answer_given_elsewhere_is_shown(page: Page) -> None:
    begin(page)
    id = parse_qs(urlsplit(page.url).query)["dialog"][0]
    page.evaluate(
        """id => fetch(`/api/dialog/${id}/answer`, {
            method: "POST", headers: {"content-type": "application/json"}, body: '{"answer": "green"}'})""",
        id,
    )
    page.click(".answers >> text=red")
    expect(page.locator(".turns .answer")).to_have_text("green")


def test_candidate_opens_and_back_leads_to_the_dialog(page: Page) -> None:
    begin(page)
    page.click(".map a >> nth=1")
    heading = page.locator("#detail h2")
    expect(heading).to_be_focused()
    name, at = heading.inner_text(), page.url
    page.keyboard.press("ArrowRight")  # leads to no image of the list that the dialog hides
    assert page.evaluate("location.href") == at
    expect(heading).to_have_text(name)
    page.go_back()
    expect(page.locator("#detail")).to_be_hidden()
    expect(page.locator(".asked h3")).to_be_visible()


def test_dialog_that_is_left_before_it_begins_is_stopped(page: Page) -> None:
    go(page)
    page.route("**/api/dialog", lambda route: None)
    page.fill("#q", "a thing")
    with page.expect_request("**/api/dialog"):
        page.click("#ask-back")
    with page.expect_event("requestfailed", timeout=5000):
        page.click("#home")
