// All images of the album, before anything is asked; the first ones are in the page already.

import { get } from "./api.js";
import { all, complain, count, el, find } from "./dom.js";
import { mark } from "./selection.js";
import { byDate, rove, tile } from "./tiles.js";

const PAGE = 60;
const SORTS = { best: "-added", newest: "-taken", oldest: "taken" };

export class Browse {
  constructor(album) {
    this.album = album;
    this.place = find("#results");
    this.sort = null;
    const first = find(".gallery", this.place);
    if (first) Object.assign(this, { sort: "best", content: [first], shown: all(".tile", first).length, images: null });
  }

  async show(state) {
    find("#cutoff").hidden = true;
    find("#seconds").textContent = "";
    find("#summary").classList.remove("nothing");
    find("#summary").textContent = this.album.images ? count(this.album.images, "image") : "This album has no images yet. Add some with “zsq index”.";
    const kept = this.sort === state.sort;
    if (!kept) Object.assign(this, { sort: state.sort, content: [], images: [], shown: 0 });
    this.place.replaceChildren(...this.content);
    mark();
    rove();
    if (!kept) await this.page();
  }

  async page() {
    if (this.busy || this.shown >= this.album.images) return;
    this.busy = true;
    const { sort } = this;
    try {
      const found = await get(`/api/images?offset=${this.shown}&limit=${PAGE}&sort=${SORTS[sort]}`);
      if (sort !== this.sort) return;
      this.shown += found.images.length || Infinity;
      if (sort === "best") this.append(found.images);
      else this.group([...this.images, ...found.images]);
      complain();
    } catch (error) {
      complain(error, () => this.page());
    } finally {
      this.busy = false;
      if (sort !== this.sort) this.page();
    }
  }

  append(images) {
    if (!this.content.length) this.content = [el("ul", { class: "gallery" })];
    this.content[0].append(...images.map(tile));
    this.fill();
  }

  group(images) {
    const tiles = new Map(all(".tile", this.place).map((one) => [one.dataset.id, one]));
    this.images = images;
    this.content = byDate(images, this.sort === "oldest").flatMap(({ heading, images: some }) => [
      ...(heading ? [el("h3", {}, heading)] : []),
      el("ul", { class: "gallery" }, ...some.map((image) => tiles.get(image.id) ?? tile(image))),
    ]);
    this.fill();
  }

  /** Put the content into the page, unless it shows something else by now. */
  fill() {
    if (!this.place.dataset.view || this.place.dataset.view === "browse") this.place.replaceChildren(...this.content);
    mark();
    rove();
  }
}
