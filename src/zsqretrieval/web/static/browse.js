// The images of the album, or those of a filter, before anything is asked; the first ones are in the page already.

import { get } from "./api.js";
import { all, complain, count, el, find } from "./dom.js";
import { mark } from "./selection.js";
import { byDate, rove, tile } from "./tiles.js";

const PAGE = 60;
const SORTS = { best: "-added", newest: "-taken", oldest: "taken" };

const keyOf = ({ sort, where }) => `${SORTS[sort]} ${where}`;

export class Browse {
  /** @param {object} album what `/api/album` says @param {function(): void} again tries a failed page once more */
  constructor(album, again) {
    this.again = again;
    this.place = find("#results");
    const first = find(".gallery", this.place);
    if (first) this.start({ sort: "best", where: "" }, { content: [first], shown: all(".tile", first).length });
    this.total = album.images;
  }

  start({ sort, where }, rest = {}) {
    Object.assign(this, { run: {}, key: keyOf({ sort, where }), sort, where, content: [], images: [], shown: 0, total: Infinity }, rest);
  }

  get ended() {
    return this.shown >= this.total;
  }

  async show(state) {
    find("#cutoff").hidden = true;
    find("#seconds").textContent = "";
    find("#summary").classList.remove("nothing");
    const kept = this.key === keyOf(state);
    if (!kept) this.start(state);
    this.draw();
    if (!kept) await this.page();
  }

  async page() {
    if (this.busy || this.ended) return;
    this.busy = true;
    const { run, sort, where, shown } = this;
    try {
      const filter = where ? `&where=${encodeURIComponent(where)}` : "";
      const found = await get(`/api/images?offset=${shown}&limit=${PAGE}&sort=${SORTS[sort]}${filter}`);
      if (run !== this.run) return;
      this.total = found.images.length ? found.total : shown; // images may be removed in the meantime
      this.shown += found.images.length;
      if (sort === "best") this.append(found.images);
      else this.group([...this.images, ...found.images]);
      if (this.place.dataset.view === "browse") this.draw();
      complain();
    } catch (error) {
      if (run !== this.run) return;
      this.key = null;
      this.total = shown;
      complain(error, this.again);
    } finally {
      this.busy = false;
      if (run !== this.run) this.page();
    }
  }

  append(images) {
    if (!this.content.length) this.content = [el("ul", { class: "gallery" })];
    this.content[0].append(...images.map(tile));
  }

  group(images) {
    const tiles = new Map(this.content.flatMap((one) => all(".tile", one)).map((one) => [one.dataset.id, one]));
    this.images = images;
    this.content = byDate(images, this.sort === "oldest").flatMap(({ heading, images: some }) => [
      ...(heading ? [el("h3", {}, heading)] : []),
      el("ul", { class: "gallery" }, ...some.map((image) => tiles.get(image.id) ?? tile(image))),
    ]);
  }

  draw() {
    this.place.replaceChildren(...this.content);
    const said = this.total ? `${count(this.total, "image")}${this.where ? " with this filter" : ""}` : "No images";
    find("#summary").textContent = Number.isFinite(this.total) ? said : "";
    mark();
    rove();
  }
}
