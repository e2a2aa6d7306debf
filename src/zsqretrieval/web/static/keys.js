// The keyboard: every view can be reached and used without a mouse.

import { all, find } from "./dom.js";
import { clear, selected } from "./selection.js";
import { rove } from "./tiles.js";

const typing = (node) => node.matches("input:not([type=checkbox], [type=range]), select, textarea");

/** @param {{refine: function(): void, order: function(): void, answer: function(number): boolean}} actions */
export function startKeys(actions) {
  const help = find("#help");
  find("#open-help").addEventListener("click", () => help.showModal());
  help.addEventListener("click", (event) => (event.target === help || event.target.closest("button")) && help.close());

  document.addEventListener("focusin", ({ target }) => target.matches("#results .open") && rove(target));
  document.addEventListener("keydown", (event) => {
    const { target, key } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (find("dialog[open]")) return; // it has its own keys
    if (key === "Escape") {
      if (typing(target)) target.blur();
      else if (selected()) clear();
      return;
    }
    if (target.id === "q" && key === "ArrowDown") return void (go(0) && event.preventDefault());
    if (typing(target)) return;
    if (act(key, target)) event.preventDefault();
  });

  function act(key, target) {
    if (key === "/") return find("#q").focus(), find("#q").select(), true;
    if (key === "?") return help.showModal(), true;
    if (key === "r") return actions.refine(), true;
    if (key === "o") return actions.order(), true;
    if (/^[1-9]$/.test(key)) return actions.answer(Number(key));
    if (key === " " && target.matches(".open")) return find(".pick input", target.closest(".tile")).click(), true;
    return key.startsWith("Arrow") && !target.matches("[type=range]") && move(key, target);
  }
}

function go(to) {
  const links = all("#results .open[href]");
  links[to]?.focus();
  return Boolean(links[to]);
}

function move(key, target) {
  const links = all("#results .open[href]");
  const from = links.indexOf(target);
  if (from < 0) return (key === "ArrowDown" || key === "ArrowRight") && target === document.body && go(0);
  if (key === "ArrowLeft" || key === "ArrowRight") return go(from + (key === "ArrowRight" ? 1 : -1));
  const here = target.getBoundingClientRect();
  const sign = key === "ArrowDown" ? 1 : -1;
  let [best, least] = [null, Infinity];
  for (const link of links) {
    const there = link.getBoundingClientRect();
    const down = sign * (there.top - here.top);
    const away = down < here.height / 2 ? Infinity : 4 * down + Math.abs(there.left - here.left);
    if (away < least) [best, least] = [link, away];
  }
  best?.focus();
  return Boolean(best);
}
