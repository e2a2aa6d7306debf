// Images in a list: each a link to its own view, with a box to select it, and what the search says of it.

import { all, count, el, find, hidden, percent, thumb, when } from "./dom.js";

/**
 * @typedef {object} Image
 * @property {string} id
 * @property {string} name
 * @property {number} width
 * @property {number} height
 * @property {string|null} taken ISO time
 * @property {string|null} caption
 * @property {string} alt
 * @property {string|null} credit
 *
 * @typedef {Image & {rank: number, first_stage_rank: number, moved: number|null, probability: number|null,
 *   similarity: number, likelihood: number|null, question_fit: number|null, duplicates: number}} Hit
 */

/** A list item for an image. The server makes the first ones the same way. @param {Image} image */
export function tile(image) {
  const small = thumb(image.id);
  const picture = el("img", {
    src: small,
    srcset: `${small} 256w, ${thumb(image.id, 512)} 512w`,
    sizes: "(max-width: 40rem) 46vw, 15rem",
    width: image.width || 4,
    height: image.height || 3,
    alt: image.alt,
    loading: "lazy",
    decoding: "async",
  });
  return el(
    "li",
    { class: "tile", "data-id": image.id },
    el("a", { class: "open", href: `/?image=${encodeURIComponent(image.id)}` }, picture),
    el("label", { class: "pick" }, el("input", { type: "checkbox", "aria-label": `Select ${image.name}` })),
  );
}

/** Write under a tile what the search says of it. @param {Hit} hit */
export function note(li, hit, { first = false, waiting = false } = {}) {
  find(".note", li)?.remove();
  find(".place", li)?.remove();
  const rank = first ? hit.first_stage_rank : hit.rank;
  if (rank) find(".open", li).append(el("span", { class: "place" }, hidden("rank "), String(rank)));
  const fit = hit.probability;
  const parts = [];
  if (fit !== null && fit !== undefined) {
    const title = "Probability that this image is relevant";
    parts.push(el("span", { class: "fit", title }, bar(fit), percent(fit), hidden(" likely")));
  }
  if (!first && !waiting && hit.moved) parts.push(moved(hit));
  if (hit.duplicates) parts.push(el("span", { class: "alike" }, `+ ${hit.duplicates} alike`));
  li.append(el("p", { class: "note" }, ...parts));
  li.classList.toggle("waiting", waiting);
}

export function bar(share, kind = "") {
  const filled = el("i");
  filled.style.width = `${100 * Math.min(Math.max(share, 0), 1)}%`;
  return el("span", { class: `bar ${kind}`, "aria-hidden": "true" }, filled);
}

/** How far re-ranking moved an image. */
export function moved(hit) {
  const up = hit.moved > 0;
  const steps = Math.abs(hit.moved);
  const said = `${up ? "up" : "down"} ${count(steps, "place")} from ${hit.first_stage_rank}`;
  return el(
    "span",
    { class: up ? "moved up" : "moved down", title: `Re-ranking moved it ${said}` },
    el("span", { "aria-hidden": "true" }, `${up ? "▲" : "▼"} ${steps}`),
    hidden(said),
  );
}

/** Groups of images by month, by day where all are of one month; those without a date last. */
export function byDate(images, oldestFirst) {
  const dated = images.filter((image) => when(image.taken));
  const months = new Set(dated.map((image) => image.taken.slice(0, 7)));
  const [length, words] = months.size > 1 ? [7, { month: "long", year: "numeric" }] : [10, { dateStyle: "long" }];
  const groups = new Map();
  const sign = oldestFirst ? 1 : -1;
  dated.sort((a, b) => sign * (a.taken < b.taken ? -1 : a.taken > b.taken ? 1 : 0));
  for (const image of dated) {
    const key = image.taken.slice(0, length);
    if (!groups.has(key)) groups.set(key, { heading: when(image.taken, words), images: [] });
    groups.get(key).images.push(image);
  }
  const others = images.filter((image) => !when(image.taken));
  if (others.length) groups.set("", { heading: groups.size ? "Without a date" : "", images: others });
  return [...groups.values()];
}

/** The link among the tiles that Tab reaches; the arrow keys lead to the others. */
export function rove(to = null) {
  const links = all("#results .open");
  const reached = to ?? links.find((link) => link.tabIndex === 0) ?? links[0];
  for (const link of links) link.tabIndex = link === reached ? 0 : -1;
}
