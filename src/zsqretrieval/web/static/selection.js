// Images that are selected, and what can be done with them together.

import { download } from "./api.js";
import { all, announce, button, complain, count, el, find } from "./dom.js";

const chosen = new Set();
let last = null; // the tile that a range begins at

const bar = () => find("#selection");
const idOf = (box) => box.closest(".tile").dataset.id;

/** @param {function(string[]): void} more searches for images like these */
export function startSelection(more) {
  document.addEventListener("click", (event) => {
    if (event.target.matches(".pick input")) toggle(event.target, event.shiftKey);
  });
  bar().append(
    el("p", { role: "status" }),
    button("Download as zip", save),
    button("More like these", () => {
      const ids = [...chosen];
      clear();
      more(ids);
    }),
    button("Clear", clear, { class: "plain" }),
  );
}

function toggle(box, range) {
  const boxes = all("#results .pick input");
  const from = boxes.findIndex((one) => one === last);
  const to = boxes.indexOf(box);
  const among = range && from >= 0 ? boxes.slice(Math.min(from, to), Math.max(from, to) + 1) : [box];
  for (const one of among) box.checked ? chosen.add(idOf(one)) : chosen.delete(idOf(one));
  last = box;
  mark();
}

export function clear() {
  chosen.clear();
  last = null;
  mark();
}

/** Show the selection on the tiles; to be called when there are new ones. */
export function mark() {
  for (const box of all("#results .pick input")) {
    box.checked = chosen.has(idOf(box));
    box.closest(".tile").classList.toggle("chosen", box.checked);
  }
  document.body.classList.toggle("choosing", chosen.size > 0);
  bar().hidden = !chosen.size;
  find("p", bar()).textContent = chosen.size ? `${count(chosen.size, "image")} selected` : "";
}

export const selected = () => chosen.size;

async function save({ currentTarget: pressed }) {
  pressed.disabled = true;
  announce("Packing the images");
  try {
    await download([...chosen]);
    complain();
  } catch (error) {
    complain(error, () => save({ currentTarget: pressed }));
  } finally {
    pressed.disabled = false;
  }
}
