// The page of an album. Its address says what it shows; everything else follows from that.

import { get } from "./api.js";
import { Browse } from "./browse.js";
import { startDetail } from "./detail.js";
import { Dialog } from "./dialog.js";
import { all, complain, find } from "./dom.js";
import { narrowed } from "./filters.js";
import { startKeys } from "./keys.js";
import { Results } from "./results.js";
import { clear, startSelection } from "./selection.js";
import { address, fresh, parse, reranks, searches, summary, WITHOUT } from "./state.js";
import { startTerms } from "./terms.js";

let state = parse(location.search);
let album;
try {
  album = await get("/api/album");
} catch (error) {
  complain(error, () => location.reload());
  throw error;
}

const browse = new Browse(album, show);
const results = new Results(album, show);
const search = (patch) => go({ ...state, ask: "", dialog: "", image: "", ...patch });
const terms = startTerms(album, search);
const like = (ids, weight) =>
  go({ ...fresh(state), where: state.where, terms: ids.map((value) => ({ kind: "id", value, weight })) });
const detail = startDetail(album, {
  close: () => (history.state?.opened ? history.back() : go({ ...state, image: "" }, true)),
  step: (by) => {
    const ids = [...new Set(all("#list:not([hidden]) .tile[data-id]").map((one) => one.dataset.id))];
    const at = ids.indexOf(state.image);
    const next = at < 0 ? null : ids[at + by];
    if (next) go({ ...state, image: next }, true);
  },
  // Away from an image alone there is nothing to search with.
  like: (id, weight) => (weight > 0 ? like([id], 1) : search({ terms: [...state.terms, { kind: "id", value: id, weight: -WITHOUT }] })),
  ask: (q) => go({ ...fresh(state), q }),
  filter: (condition) => search({ where: narrowed(state.where, condition) }),
});
const dialog = new Dialog({
  remember: (id) => go({ ...state, dialog: id }, true),
  open: (image) => go({ ...state, image }),
  search: (q) => go({ ...fresh(state), q }),
});

/** Show another state; `replace` where "back" need not lead to this one. */
function go(next, replace = false) {
  if (!replace) complain();
  const opened = replace ? history.state?.opened : next.image && !state.image;
  state = next;
  history[replace ? "replaceState" : "pushState"]({ opened }, "", address(state));
  show();
}

function show() {
  const view = state.ask ? "dialog" : searches(state) ? "results" : "browse";
  const place = find("#results");
  const other = place.dataset.view !== view;
  place.dataset.view = view;
  find("#q").value = state.ask || state.q;
  document.title = [state.ask || summary(state), album.title].filter(Boolean).join(" · ");
  find("#dialog").hidden = view !== "dialog";
  find("#list").hidden = view === "dialog";
  const ordered = reranks(state, album.can);
  const order = ordered ? state.order : "first";
  find("#orders").hidden = view !== "results" || !ordered;
  for (const radio of all("#orders input")) radio.checked = radio.value === state.order;
  place.classList.toggle("both", view === "results" && order === "both");
  find("#sort").value = state.sort;
  find("#sort [value=best]").textContent = view === "results" ? "Best first" : "Last added";
  find("#cut").value = state.cut ?? album.cutoff;
  find("#cut-value").textContent = `${Math.round(100 * find("#cut").value)} %`;
  terms.show(state);
  if (view !== "results" && results.key) results.leave();
  if (view !== "dialog") dialog.leave();
  if (other && place.dataset.shown) (clear(), scrollTo(0, 0));
  place.dataset.shown = "yes";
  const shown = view === "dialog" ? dialog.show(state) : view === "results" ? results.show({ ...state, order }) : browse.show(state);
  Promise.resolve(shown).then(watch);
  if (state.image) open(view === "results" ? shown : null);
  else detail.hide();
}

/** Open an image, at once if what the search says of it is known, else when it is. */
async function open(shown) {
  const { image } = state;
  const hit = () => (shown ? results.hits.find((one) => one.id === image) ?? null : null);
  if (!hit()) await shown;
  if (state.image === image) detail.show(image, hit(), state);
}

// Endless scroll: the next page is asked for before its place comes into sight.
const end = find("#end");
const seen = new IntersectionObserver(
  async (changes) => {
    // A busy page gets several changes at once, the last one last.
    if (!changes.at(-1).isIntersecting || state.ask) return;
    await (searches(state) ? results : browse).page();
    watch();
  },
  { rootMargin: "900px" },
);
function watch() {
  seen.unobserve(end);
  if (!state.ask && !(searches(state) ? results : browse).ended) seen.observe(end);
}

find("#ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const q = find("#q").value.trim();
  if (event.submitter?.id === "ask-back") return q ? go({ ...fresh(state), where: state.where, ask: q }) : find("#q").focus();
  if (q !== state.q || state.ask) search({ q });
  return find("#q").blur();
});
find("#home").addEventListener("click", (event) => {
  if (event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  go(fresh());
});
find("#results").addEventListener("click", (event) => {
  const link = event.target.closest(".open[href]");
  if (!link || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  go({ ...state, image: link.closest(".tile").dataset.id });
});
// The two places of an image show each other.
for (const kind of ["mouseover", "focusin"]) {
  find("#results").addEventListener(kind, ({ target }) => {
    const id = target.closest(".tile")?.dataset.id;
    for (const one of all(".both .tile")) one.classList.toggle("same", one.dataset.id === id);
  });
}
const order = (value) => go({ ...state, order: value }, true);
find("#orders").addEventListener("change", ({ target }) => order(target.value));
find("#sort").addEventListener("change", ({ target }) => go({ ...state, sort: target.value }, true));
find("#cut").addEventListener("input", ({ target }) => go({ ...state, cut: Number(target.value) }, true));
addEventListener("popstate", () => {
  complain();
  state = parse(location.search);
  show();
});

find("#sort").closest("label").hidden = !album.fields.some((field) => field.name === "taken");
startSelection((ids) => like(ids, 1));
startKeys({
  refine: terms.open,
  order: () => find("#orders").hidden || order({ final: "both", both: "first", first: "final" }[state.order]),
  answer: (number) => Boolean(state.ask) && dialog.press(number),
});
show();
document.documentElement.dataset.ready = "yes";
