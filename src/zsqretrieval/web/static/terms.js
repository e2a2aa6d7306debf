// The parts of a search beside its question: phrases that are added or left out, images, and conditions.

import { upload } from "./api.js";
import { announce, button, complain, el, find, thumb } from "./dom.js";
import { conditions, filterForm, joined } from "./filters.js";
import { WITHOUT } from "./state.js";

/**
 * @param {object} album what `/api/album` says
 * @param {function(object): void} change gets the parts of the state that change
 */
export function startTerms(album, change) {
  let state;
  const phrase = find("#phrase");
  const add = (term) => change({ terms: [...state.terms, term] });

  find("#more").addEventListener("submit", (event) => {
    event.preventDefault();
    const value = phrase.value.trim();
    if (!value) return phrase.focus();
    phrase.value = "";
    return add({ kind: "text", value, weight: event.submitter?.value === "not" ? -WITHOUT : 1 });
  });

  const refine = find("#refine");
  const opener = find("#open-refine");
  const open = (wanted) => {
    refine.hidden = !wanted;
    opener.setAttribute("aria-expanded", String(wanted));
  };
  opener.addEventListener("click", () => open(refine.hidden));

  for (const name of ["fold", "expand", "bank"]) {
    const box = find(`#${name}`);
    box.addEventListener("change", () => change({ [name]: box.checked }));
    if (name !== "fold") box.closest("label").hidden = !album.can[name];
  }

  // Images: chosen, dropped or pasted anywhere.
  const picker = find("#file");
  find("#choose").addEventListener("click", () => picker.click());
  picker.addEventListener("change", () => take(picker.files));
  document.addEventListener("paste", (event) => take(event.clipboardData?.files, event));
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("dropping"));
  document.addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    take(event.dataTransfer.files, event);
  });

  async function take(files, event) {
    if (!files?.length) return;
    event?.preventDefault();
    const [file] = files;
    announce(`Uploading ${file.name}`);
    document.body.classList.add("uploading");
    try {
      add({ kind: "upload", value: (await upload(file)).upload, weight: 1 });
      complain();
    } catch (error) {
      complain(error);
    } finally {
      document.body.classList.remove("uploading");
      picker.value = "";
    }
  }

  /** Chips for all parts, and the form of the filter. */
  function show(now) {
    state = now;
    const parts = conditions(state.where);
    find("#terms").replaceChildren(
      ...state.terms.map((term, i) => chip(term, i)),
      ...parts.map((text, i) =>
        el("li", { class: "chip" }, el("span", {}, text), remove(text, () => change({ where: joined(parts.filter((_, j) => j !== i)) }))),
      ),
    );
    for (const name of ["fold", "expand", "bank"]) find(`#${name}`).checked = state[name];
    if (find("#filters").dataset.where !== state.where) {
      find("#filters").replaceChildren(filterForm(album.fields, state.where, (where) => change({ where })));
      find("#filters").dataset.where = state.where;
    }
  }

  function chip(term, i) {
    const without = term.weight < 0;
    const name = term.kind === "text" ? term.value : term.kind === "id" ? "this image" : "your image";
    const label = without ? "without" : term.kind === "text" ? "and" : "like";
    const weight = el("input", { type: "number", min: "0.1", max: "5", step: "0.1", value: Math.abs(term.weight), title: "Weight", "aria-label": `Weight of ${name}` });
    const others = (replacement) => change({ terms: state.terms.flatMap((one, j) => (j === i ? replacement : [one])) });
    weight.addEventListener("change", () => {
      const value = Number(weight.value);
      if (value > 0) others([{ ...term, weight: without ? -value : value }]);
    });
    const source = term.kind === "id" ? thumb(term.value) : `/thumb-upload/${encodeURIComponent(term.value)}`;
    const shown = term.kind === "text" ? el("span", { dir: "auto" }, term.value) : el("img", { src: source, alt: name, width: 40, height: 40 });
    return el(
      "li",
      { class: `chip ${without ? "without" : ""}` },
      el("span", { class: "quiet" }, label),
      shown,
      weight,
      remove(name, () => others([])),
    );
  }

  const remove = (name, action) => button("×", action, { class: "plain", "aria-label": `Remove ${name}` });

  return { show, open: () => (open(true), phrase.focus()) };
}
