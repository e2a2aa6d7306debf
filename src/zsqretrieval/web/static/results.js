// The answer to a question: the order of the first stage at once, then that of re-ranking.

import { ApiError, search } from "./api.js";
import { all, announce, complain, count, el, find, percent, rearrange } from "./dom.js";
import { mark } from "./selection.js";
import { body, summary } from "./state.js";
import { byDate, note, rove, tile } from "./tiles.js";

const PAGE = 60;
const LAST = 1800; // the server's last offset

export class Results {
  /** @param {object} album what `/api/album` says @param {function(): void} again tries a failed page once more */
  constructor(album, again) {
    Object.assign(this, { album, again });
    this.place = find("#results");
    this.hits = [];
    this.key = "";
    this.ended = true; // no further page
    this.stop = new AbortController();
  }

  /** Show a search; asks the server only if it is another one. */
  async show(state) {
    const key = JSON.stringify(body(state, this.album.can));
    this.state = state;
    if (key === this.key) {
      if (this.broken) this.ended = false;
      return this.draw();
    }
    this.leave();
    Object.assign(this, { key, hits: [], scores: {}, tiles: new Map(), ended: false, seconds: null, ranked: false });
    this.place.replaceChildren(...waiting());
    scrollTo(0, 0);
    find("#summary").textContent = `Looking for ${summary(state)}`;
    return this.page();
  }

  /** Forget the search, and what is still to come of it. */
  leave() {
    this.stop.abort();
    this.stop = new AbortController();
    this.key = "";
    this.ended = true;
    this.busy = false;
    this.progress(null);
  }

  async page() {
    if (this.busy || this.ended) return;
    this.busy = true;
    this.broken = false; // the last page that was asked for
    const { stop } = this;
    const before = this.hits;
    try {
      await search(body(this.state, this.album.can, before.length, PAGE), stop.signal, (event) => {
        if (!stop.signal.aborted) this.take(event, before);
      });
      complain();
    } catch (error) {
      if (stop.signal.aborted) return;
      this.progress(null);
      this.key = before.length ? this.key : "";
      this.ended = this.broken = true;
      if (!this.hits.length) this.place.replaceChildren();
      find("#summary").textContent = this.hits.length ? "" : "No answer";
      complain(error, this.again);
      if (!(error instanceof ApiError)) throw error;
    } finally {
      if (this.stop === stop) this.busy = false;
    }
  }

  take(event, before) {
    if (event.event === "progress") return this.progress(event.done, event.of);
    if (event.event === "scores") {
      Object.assign(this.scores, event.scores);
      return this.draw();
    }
    const known = new Set(before.map((hit) => hit.id));
    this.hits = [...before, ...event.hits.filter((hit) => !known.has(hit.id))];
    const done = event.event === "done";
    this.ranked = done || before.length > 0; // earlier pages keep their order
    if (done) {
      this.progress(null);
      this.ended = event.hits.length < PAGE || this.hits.length > LAST;
      this.seconds ??= Object.values(event.seconds).reduce((sum, one) => sum + one, 0);
    } else if (!before.length && body(this.state, this.album.can).rerank) this.progress(0, event.hits.length);
    return this.draw();
  }

  progress(done, of = 0) {
    const bar = find("#progress");
    bar.hidden = done === null;
    if (done === null) return;
    find("progress", bar).max = of || 1;
    find("progress", bar).value = done;
    find("span", bar).textContent = of ? `Re-ranking ${done} of ${of}` : "Re-ranking …";
  }

  get cut() {
    return this.state.cut ?? this.album.cutoff;
  }

  /** The hits in the order of the moment: those with a score of the second stage first. */
  order(first) {
    if (first) return [...this.hits].sort((a, b) => a.first_stage_rank - b.first_stage_rank);
    if (this.ranked) return this.hits;
    const score = (hit) => this.scores[hit.id] ?? -1;
    return [...this.hits].sort((a, b) => score(b) - score(a) || a.first_stage_rank - b.first_stage_rank);
  }

  draw() {
    const graded = this.hits.some((hit) => hit.probability !== null && hit.probability !== undefined);
    const fits = (hit) => !graded || (hit.probability ?? 1) >= this.cut;
    find("#cutoff").hidden = !graded;
    rearrange(
      () => all(".tile", this.place),
      () => this.place.replaceChildren(...this.columns(fits)),
    );
    mark();
    rove();
    this.say(graded, this.hits.filter(fits).length);
  }

  columns(fits) {
    if (this.state.order !== "both") return this.sections(fits, this.state.order === "first");
    const column = (name, first) =>
      el("section", { class: "column", "aria-label": name }, el("h2", {}, name), ...this.sections(fits, first));
    return [column("First stage", true), column("Re-ranked", false)];
  }

  sections(fits, first) {
    const order = this.order(first);
    const near = order.filter(fits);
    const far = order.filter((hit) => !fits(hit));
    const dated = this.state.sort !== "best" && !first;
    const groups = dated ? byDate(near, this.state.sort === "oldest") : [{ heading: "", images: near }];
    const made = groups
      .filter((group) => group.images.length)
      .flatMap(({ heading, images }) => [heading ? el("h3", {}, heading) : null, this.list(images, first)]);
    if (far.length) made.push(el("h3", { class: "less" }, `Less likely than ${Math.round(100 * this.cut)} %`), this.list(far, first, "far"));
    return made.filter(Boolean);
  }

  list(hits, first, kind = "") {
    const tiles = hits.map((hit) => {
      const key = `${first && this.state.order === "both"} ${hit.id}`;
      if (!this.tiles.has(key)) this.tiles.set(key, tile(hit));
      const waits = !first && !this.ranked && !(hit.id in this.scores);
      note(this.tiles.get(key), hit, { first, waiting: waits && this.state.order !== "first" });
      return this.tiles.get(key);
    });
    return el("ul", { class: `gallery ${kind}` }, ...tiles);
  }

  say(graded, n) {
    const asked = summary(this.state);
    const [best] = [...this.hits].sort((a, b) => (b.probability ?? 0) - (a.probability ?? 0));
    const least = n === this.hits.length && (!this.ended || n > LAST) ? "At least " : "";
    let said;
    if (!this.hits.length) said = `Nothing found for ${asked}${this.state.where ? " with this filter" : ""}.`;
    else if (!graded) said = `${count(this.hits.length, "image")}, nearest first: ${asked}`;
    else if (n) said = `${least}${count(n, "image")} ${n === 1 ? "fits" : "fit"} ${asked}`;
    else said = `Nothing fits ${asked}. The likeliest image has a probability of ${percent(best.probability)}.`;
    find("#summary").textContent = said;
    find("#summary").classList.toggle("nothing", graded && !n);
    const time = this.seconds === null ? "" : `${this.seconds < 10 ? this.seconds.toFixed(2) : Math.round(this.seconds)} s`;
    find("#seconds").textContent = time;
    if (this.ranked) announce(said);
  }
}

/** Empty boxes in the place of the images to come. */
const waiting = () => [el("ul", { class: "gallery", "aria-hidden": "true" }, ...Array.from({ length: 12 }, () => el("li", { class: "tile empty" }, el("span", { class: "open" }))))];
