"""The page of an album in a real browser."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest

from pages import HOSTILE, Asking, card, cards, go, ids, opened, serving, settled
from zsqretrieval.album.filters import Filter

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright").expect

N = 130
GENERATOR = Asking()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with cards(N, GENERATOR) as retriever, serving(retriever, title="Cards", upload_rate=1000) as at:
        yield at


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    with opened(browser, address, reduced_motion="reduce") as made:
        yield made


def ask(page: Page, text: str) -> None:
    page.fill("#q", text)
    page.keyboard.press("Enter")
    settled(page)


def link(page: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def called(page: Page, module: str, function: str, *arguments: str) -> str:
    """What a function of a module of the page gives."""
    call = """async ([file, name, given]) =>
      (await import(new URL(file, document.scripts[0].src)))[name](...given)"""
    return str(page.evaluate(call, [f"{module}.js", function, arguments]))


def cut_short(route: Route) -> None:
    """Give only the first event of a search."""
    lines = route.fetch().text().splitlines(keepends=True)
    route.fulfill(body=lines[0], content_type="application/x-ndjson")


def refuse(route: Route) -> None:
    said = {"error": {"code": "busy", "message": "too many searches wait; try again in a moment"}}
    route.fulfill(status=429, json=said)


def scroll(page: Page, there: Callable[[], bool]) -> None:
    """Scroll to the end until something is there."""
    end = time.monotonic() + 60
    while not there():
        assert time.monotonic() < end, f"{len(ids(page))} images, {page.inner_text('main')[:300]!r}"
        page.mouse.wheel(0, 20_000)
        page.wait_for_timeout(50)


# --- start and search ---------------------------------------------------------------------------------------


def test_start_page_shows_newest_images_and_more_on_scrolling(page: Page) -> None:
    go(page)
    assert ids(page)[:2] == ["twin", f"cards/{N - 1} ?#%.png"]
    page.keyboard.press("End")
    scroll(page, lambda: len(ids(page)) > N)
    assert len(set(ids(page))) == N + 1
    expect(page.locator("#summary")).to_have_text(f"{N + 1} images")


LATE = """
const Real = IntersectionObserver;
window.IntersectionObserver = class extends Real {
  constructor(call, options) {
    super((changes) => call([{ isIntersecting: false }, ...changes]), options);
  }
};
"""


def test_scrolling_goes_on_in_a_page_that_learns_of_several_changes_at_once(page: Page) -> None:
    page.add_init_script(LATE)
    go(page)
    scroll(page, lambda: len(ids(page)) > N)


def test_page_without_script_has_images_with_boxes_and_texts(browser: Browser, address: str) -> None:
    with opened(browser, address, java_script_enabled=False) as page:
        page.goto("/")
        image = page.locator(".tile img").nth(1)
        expect(image).to_have_attribute("alt", f"card {N - 1}")
        expect(image).to_have_attribute("loading", "lazy")
        assert image.get_attribute("width") == "40" and image.get_attribute("height") == "30"


def test_first_stage_is_shown_at_once_and_reordered_by_scores(page: Page) -> None:
    go(page)
    GENERATOR.gate.clear()
    try:
        page.fill("#q", "a red thing")
        page.click("button:text-is('Search')")
        page.wait_for_selector(".tile.waiting .place")
        first = ids(page)
        expect(page.locator("#progress")).to_be_visible()
        assert page.locator(".moved").count() == 0
    finally:
        GENERATOR.gate.set()
    settled(page)
    expect(page.locator("#progress")).to_be_hidden()
    assert page.locator(".moved").count() > 0 and ids(page) != first and sorted(ids(page)) == sorted(first)
    expect(page.locator("#said")).to_contain_text("a red thing")


def test_orders_stand_side_by_side(page: Page) -> None:
    go(page, "/?q=a+red+thing")
    settled(page)
    alone = ids(page)
    page.check("#orders [value=both]", force=True)
    assert ids(page, ".column:last-child") == alone and link(page)["order"] == ["both"]
    before = ids(page, ".column:first-child")
    assert sorted(before) == sorted(alone) and before != alone
    page.hover(".column:last-child .tile >> nth=3")
    assert [one.get_attribute("data-id") for one in page.locator(".same").all()] == [alone[3]] * 2
    page.check("#orders [value=first]", force=True)
    settled(page)
    assert ids(page) == before and page.locator(".moved").count() == 0


def test_cutoff_moves_images_between_fitting_and_less_likely(page: Page) -> None:
    go(page, "/?q=red")
    settled(page)
    fitting = len(ids(page, ".gallery:not(.far)"))
    assert 0 < fitting < 60
    expect(page.locator("#summary")).to_have_text(f"{fitting} images fit “red”")
    page.locator("#cut").fill("0.95")
    assert len(ids(page, ".gallery:not(.far)")) < fitting and link(page)["cut"] == ["0.95"]
    page.locator("#cut").fill("0")
    assert page.locator(".far").count() == 0
    expect(page.locator("#cut-value")).to_have_text("0 %")


def test_nothing_fits_is_said(page: Page) -> None:
    go(page, "/?q=something+else")
    settled(page)
    expect(page.locator("#summary")).to_contain_text("Nothing fits “something else”")
    assert ids(page, ".gallery:not(.far)") == [] and ids(page, ".far")


def test_pages_of_results_follow_on_scrolling(page: Page) -> None:
    go(page, "/?q=red&cut=0&fold=0")
    settled(page)
    scroll(page, lambda: len(ids(page)) > N)
    assert len(set(ids(page))) == N + 1


def test_pages_keep_their_order_while_the_next_one_comes_or_fails(page: Page) -> None:
    go(page, "/?q=a+red+thing&cut=0&fold=0")
    settled(page)
    first = ids(page)
    expect(page.locator("#summary")).to_have_text("At least 60 images fit “a red thing”")
    page.route("**/api/search", cut_short)
    page.mouse.wheel(0, 20_000)
    expect(page.get_by_role("alert")).to_contain_text("broke off")
    assert len(ids(page)) > 60 and ids(page)[:60] == first
    page.unroute("**/api/search")
    page.click(".tile .open >> nth=0")
    expect(page.get_by_role("alert")).to_be_empty()
    page.keyboard.press("Escape")
    scroll(page, lambda: len(ids(page)) > N)


# --- one image ----------------------------------------------------------------------------------------------


def test_image_shows_fit_words_questions_and_metadata(page: Page) -> None:
    go(page, "/?q=a+red+thing")
    settled(page)
    chosen = ids(page)[0]
    page.click(".tile .open >> nth=0")
    detail = page.locator("#detail")
    expect(detail.locator("mark.for").first).to_be_visible()
    assert "red" in detail.locator("mark.for").all_inner_texts()
    expect(detail.locator(".scale")).to_have_count(2)
    expect(detail.locator("h2")).to_be_focused()
    detail.get_by_role("button", name="Write questions").click()
    expect(detail.locator(".questions button")).to_have_text("what is the colour of the thing?")
    assert link(page)["image"] == [chosen]
    page.keyboard.press("ArrowRight")
    expect(detail.locator("h2")).not_to_have_text(chosen.rpartition("/")[2])
    page.keyboard.press("Escape")
    expect(detail).to_be_hidden()
    assert "image" not in link(page)


def test_more_like_this_and_less_like_this_become_terms(page: Page) -> None:
    go(page, "/?image=cards/3+%3F%23%25.png")
    page.click("text=More like this")
    settled(page)
    assert link(page) == {"like": ["cards/3 ?#%.png"]} and "cards/3 ?#%.png" not in ids(page)
    expect(page.locator(".chip img")).to_be_visible()
    expect(page.locator("#orders")).to_be_hidden()  # there are no words to re-rank by
    page.click(".tile .open >> nth=0")
    page.click("text=Less like this")
    settled(page)
    assert set(link(page)) == {"like", "unlike"}
    expect(page.locator("#summary")).to_contain_text("unlike an image")


def test_caption_with_markup_is_text(page: Page) -> None:
    go(page, "/?image=hostile")
    expect(page.locator("#detail .caption")).to_have_text(HOSTILE)
    note, long, boxes = page.locator("#detail dd").all_inner_texts()
    assert HOSTILE in note and long.startswith("x" * 1000 + " …") and boxes == '[{"x":1}]'
    page.keyboard.press("Escape")
    go(page, "/?q=red&fold=0")
    settled(page)
    expect(page.locator("[data-id=hostile] img")).to_have_attribute("alt", HOSTILE)
    assert page.locator("script").count() == 1 and "owned" not in page.title()


def test_metadata_of_an_image_filters(page: Page) -> None:
    go(page, "/?image=cards/4+%3F%23%25.png")
    page.click("[aria-label=\"Only images with camera = 'Box & Co''s'\"]")
    expect(page.locator(".chip")).to_contain_text("camera = 'Box & Co''s'")
    expect(page.locator("#summary")).to_have_text(f"{N // 2} images with this filter")


# --- terms and filters --------------------------------------------------------------------------------------


def test_phrases_are_left_out_with_a_weight(page: Page) -> None:
    go(page, "/?q=red")
    page.click("#open-refine")
    page.fill("#phrase", "blue~2")
    page.click("button:text-is('Without')")
    settled(page)
    assert link(page)["not"] == ["blue~2~0.5"]
    with page.expect_request("**/api/search") as sent:
        page.fill(".chip input", "0.8")
        page.keyboard.press("Tab")
    assert json.loads(sent.value.post_data or "")["terms"] == [
        {"text": "red", "weight": 1},
        {"text": "blue~2", "weight": -0.8},
    ]
    go(page, page.url)
    expect(page.locator(".chip input")).to_have_value("0.8")
    page.click("[aria-label='Remove blue~2']")
    assert set(link(page)) == {"q"}


def test_form_writes_the_filter_and_reads_it(page: Page) -> None:
    go(page)
    page.click("#open-refine")
    page.fill("[aria-label='year at least']", "2008")
    page.fill("[aria-label='taken from']", "2019-02-01")
    page.fill("[aria-label='taken to']", "2019-02-10")
    page.click("button:text-is('Filter')")
    page.wait_for_selector(".chip")
    where = "taken >= '2019-02-01' and taken < '2019-02-11' and year >= 2008"
    assert link(page) == {"where": [where]}
    go(page, page.url)
    expect(page.locator("#summary")).to_contain_text("with this filter")
    shown = [card(int(id.split("/")[1].split()[0]), N).metadata for id in ids(page)]
    assert shown and all(
        one["year"] >= 2008 and "2019-02-01" <= one["taken"][:10] <= "2019-02-10" for one in shown
    )
    page.click("#open-refine")
    expect(page.locator("[aria-label='taken to']")).to_have_value("2019-02-10")
    page.click("[aria-label='Remove year >= 2008']")
    assert "year" not in link(page)["where"][0]


def test_condition_that_is_added_narrows_the_whole_filter(page: Page) -> None:
    go(page)
    added = "c = 1"
    for where in ("a = 1 or b = 2", "a = 1 and (b = 2 or b = 3)", "a = 'x or y'", "not a = 1 OR b in [2, 3]"):
        narrowed = called(page, "filters", "narrowed", where, added)
        assert Filter.parse(narrowed) == Filter.parse(where) & Filter.parse(added)
        assert called(page, "filters", "narrowed", narrowed, added) == narrowed


def test_names_of_keys_mean_the_metadata(page: Page) -> None:
    go(page)
    for key in ("year", "id", "ID", "bytes", "metadata", "and", "Not", "null", "a.b", "a `b`", "2", "größe"):
        name = called(page, "detail", "fieldName", key)
        assert Filter.parse(f"{name} = 1") == Filter("in", ("metadata", key), (1,))


@pytest.mark.parametrize("date", ["june", "2019-02-01T12:00"])
def test_date_that_no_form_can_show_stays_in_the_filter(page: Page, date: str) -> None:
    go(page, f"/?where=taken+<+'{date}'")
    expect(page.locator("#summary")).to_contain_text("with this filter")
    page.click("#open-refine")
    expect(page.locator("[aria-label='taken to']")).to_have_value("")
    page.fill("[aria-label='year at least']", "2008")
    page.click("button:text-is('Filter')")
    expect(page.locator(".chip")).to_have_count(2)
    assert link(page) == {"where": [f"taken < '{date}' and year >= 2008"]}


def test_wrong_filter_is_explained(page: Page) -> None:
    go(page, "/?q=red&where=yaer+%3E+3")
    expect(page.locator("#trouble")).to_contain_text("yaer")
    expect(page.locator("#trouble")).to_contain_text("year")


def test_relevant_images_are_grouped_by_month(page: Page) -> None:
    go(page, "/?q=red&sort=oldest")
    settled(page)
    headings = page.locator("#results h3:not(.less)").all_inner_texts()
    assert headings[:3] == ["January 2019", "February 2019", "March 2019"]
    page.select_option("#sort", "newest")
    assert page.locator("#results h3:not(.less)").all_inner_texts()[:3] == headings[2::-1]


def test_near_duplicates_are_folded_unless_asked_for(page: Page) -> None:
    go(page, "/?q=red")
    settled(page)
    assert page.locator(".alike").count() and not {"twin", "cards/0 ?#%.png"} <= set(ids(page))
    page.click("#open-refine")
    page.uncheck("#fold")
    settled(page)
    assert {"twin", "cards/0 ?#%.png"} <= set(ids(page))


# --- images of the visitor ----------------------------------------------------------------------------------


def test_image_is_uploaded_by_picker_paste_and_drop(page: Page) -> None:
    go(page)
    content = bytes(card(50, N).content)  # type: ignore[arg-type]
    page.set_input_files("#file", {"name": "mine.png", "mimeType": "image/png", "buffer": content})
    settled(page)
    assert ids(page)[0] == "cards/50 ?#%.png"
    for kind in ("paste", "drop"):
        page.evaluate(
            """([kind, bytes]) => {
              const moved = new DataTransfer();
              moved.items.add(new File([new Uint8Array(bytes)], "mine.png", { type: "image/png" }));
              const made = { dataTransfer: moved, clipboardData: moved, bubbles: true };
              const Kind = kind === "drop" ? DragEvent : ClipboardEvent;
              document.body.dispatchEvent(new Kind(kind, made));
            }""",
            [kind, list(content)],
        )
        page.wait_for_selector(f".chip:nth-child({2 if kind == 'paste' else 3}) img")
    settled(page)
    assert ids(page)[0] == "cards/50 ?#%.png"


def test_file_that_is_no_image_is_explained(page: Page) -> None:
    go(page)
    page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": b"nothing"})
    expect(page.locator("#trouble")).to_contain_text("not an image")
    page.click("#trouble >> text=Dismiss")
    expect(page.locator("#trouble")).to_be_empty()


# --- links, keys, selection ---------------------------------------------------------------------------------


def test_link_restores_the_view_and_back_leads_to_the_one_before(page: Page) -> None:
    go(page, "/?q=red&not=blue&where=year+%3E+2002&order=both&image=cards/3+%3F%23%25.png")
    expect(page.locator("#detail h2")).to_have_text("3.png")
    page.keyboard.press("Escape")
    settled(page)
    assert page.locator(".chip").count() == 2 and page.locator(".column").count() == 2
    ask(page, "green")
    green = ids(page)
    page.click(".tile .open >> nth=1")
    page.wait_for_selector("#detail h2")
    page.go_back()
    expect(page.locator("#detail")).to_be_hidden()
    assert ids(page) == green
    page.go_back()
    expect(page.locator("#q")).to_have_value("red")
    page.click("#home")
    expect(page.locator("#summary")).to_have_text(f"{N + 1} images")
    page.go_back()
    settled(page)
    expect(page.locator("#q")).to_have_value("red")


def test_keyboard_reaches_everything(page: Page) -> None:
    go(page)
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("a red thing")
    page.keyboard.press("Enter")
    settled(page)
    page.keyboard.press("ArrowDown")
    links = page.locator("#results .open")
    expect(links.first).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    expect(links.nth(1)).to_be_focused()
    page.keyboard.press("Space")
    expect(page.locator("#selection p")).to_have_text("1 image selected")
    page.keyboard.press("Enter")
    expect(page.locator("#detail h2")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    expect(links.nth(1)).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#selection")).to_be_hidden()
    page.keyboard.press("o")
    assert page.locator(".column").count() == 2
    page.keyboard.press("r")
    expect(page.locator("#phrase")).to_be_focused()


def test_selected_images_come_as_a_zip(page: Page) -> None:
    go(page)
    page.locator(".pick input").nth(1).check(force=True)
    page.locator(".pick input").nth(4).click(force=True, modifiers=["Shift"])
    expect(page.locator("#selection p")).to_have_text("4 images selected")
    with page.expect_download() as saved:
        page.click("text=Download as zip")
    with zipfile.ZipFile(saved.value.path()) as archive:
        assert sorted(archive.namelist()) == [f"{N - n}.png" for n in (4, 3, 2, 1)]
        assert archive.read(f"{N - 1}.png") == card(N - 1, N).content
    page.click("text=More like these")
    settled(page)
    assert len(link(page)["like"]) == 4


# --- trouble ------------------------------------------------------------------------------------------------


def test_busy_server_is_explained_and_can_be_asked_again(page: Page) -> None:
    go(page)
    page.route("**/api/search", refuse)
    page.fill("#q", "red")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Too many searches wait; try again in a moment.")
    page.unroute("**/api/search", refuse)
    page.get_by_role("button", name="Try again").click()
    settled(page)
    expect(page.get_by_role("alert")).to_be_empty()


@pytest.mark.parametrize(
    ("path", "route"), [("/", "**/api/images?*"), ("/?q=red&cut=0&fold=0", "**/api/search")]
)
def test_scrolling_goes_on_after_a_page_that_failed(page: Page, path: str, route: str) -> None:
    go(page, path)
    page.route(route, refuse)
    scroll(page, lambda: page.get_by_role("button", name="Try again").count() > 0)
    page.unroute(route, refuse)
    page.get_by_role("button", name="Try again").click()
    scroll(page, lambda: len(ids(page)) > N)
    expect(page.get_by_role("alert")).to_be_empty()


def test_error_leaves_with_its_view(page: Page) -> None:
    go(page)
    page.route("**/api/search", refuse)
    alert = page.get_by_role("alert")
    page.fill("#q", "red")
    page.keyboard.press("Enter")
    expect(alert).to_contain_text("Too many searches")
    page.click("#home")
    expect(alert).to_be_empty()
    page.go_back()
    expect(alert).to_contain_text("Too many searches")
    page.go_forward()
    expect(alert).to_be_empty()


def test_answer_that_breaks_off_is_explained(page: Page) -> None:
    go(page)
    page.route("**/api/search", cut_short)
    page.fill("#q", "red")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("broke off")
    assert ids(page)


def test_zip_of_too_many_images_is_explained(page: Page) -> None:
    go(page)
    said = {"error": {"code": "too_large", "message": "a download has at most 2 images"}}
    page.route("**/api/download", lambda route: route.fulfill(status=413, json=said))
    page.locator(".pick input").first.check(force=True)
    page.click("text=Download as zip")
    expect(page.get_by_role("alert")).to_contain_text("A download has at most 2 images.")
