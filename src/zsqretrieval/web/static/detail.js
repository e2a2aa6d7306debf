// One image: how well it fits and why, what could be asked of it, what is known of it.

import { get, post } from "./api.js";
import { button, count, el, find, percent, sentence, thumb, when } from "./dom.js";
import { quoted } from "./filters.js";
import { question } from "./state.js";
import { bar, moved } from "./tiles.js";

const SAYS = 0.7; // bits of a word that mean something

const box = () => find("#detail");
let stop = new AbortController();

/**
 * @param {object} album what `/api/album` says
 * @param {{close: function(): void, step: function(number): void, like: function(string, number): void,
 *   ask: function(string): void, filter: function(string): void}} actions
 */
export function startDetail(album, actions) {
  // Esc and a press beside the picture close by way of the address, so that "back" does the same.
  box().addEventListener("cancel", (event) => (event.preventDefault(), actions.close()));
  box().addEventListener("click", (event) => event.target === box() && actions.close());
  box().addEventListener("keydown", (event) => {
    if (event.target.matches("input")) return;
    if (event.key === "ArrowLeft") actions.step(-1);
    if (event.key === "ArrowRight") actions.step(1);
  });

  return { show, hide };

  /** @param {string} id @param {import("./tiles.js").Hit|null} hit what the search says of it */
  async function show(id, hit, state) {
    stop.abort();
    stop = new AbortController();
    const { signal } = stop;
    if (!box().open) box().showModal();
    box().scrollTop = 0;
    let image;
    try {
      image = await get(`/api/images/${encodeURIComponent(id)}`, signal);
    } catch (error) {
      if (error.name !== "AbortError") box().replaceChildren(el("p", { class: "failed", role: "alert" }, sentence(error.message)), closing());
      return;
    }
    const asked = question(state);
    const words = asked && album.can.rerank ? explanation(id, asked, signal) : null;
    box().replaceChildren(
      picture(image),
      el(
        "div",
        { class: "facts" },
        el("h2", { id: "detail-name", tabindex: "-1" }, image.name),
        image.caption ? el("p", { class: "caption", dir: "auto" }, image.caption) : null,
        el("p", { class: "quiet" }, [when(image.taken), `${image.width} × ${image.height}`].filter(Boolean).join(" · ")),
        el(
          "div",
          { class: "row" },
          button("More like this", () => actions.like(id, 1)),
          button("Less like this", () => actions.like(id, -1), { class: "plain" }),
          el("a", { class: "plain button", href: `/image/${encodeURIComponent(id)}`, download: "" }, "Download"),
        ),
        hit ? fit(hit) : null,
        words,
        album.can.questions ? questions(image, signal) : null,
        metadata(image),
      ),
      el(
        "div",
        { class: "turn" },
        button("‹", () => actions.step(-1), { class: "plain", "aria-label": "Previous image" }),
        button("›", () => actions.step(1), { class: "plain", "aria-label": "Next image" }),
        closing(),
      ),
    );
    find("#detail-name").focus();
  }

  function hide() {
    stop.abort();
    if (box().open) box().close();
    box().replaceChildren();
  }

  function closing() {
    return button("×", actions.close, { class: "plain", "aria-label": "Close" });
  }

  function picture(image) {
    const shown = el("img", { src: `/image/${encodeURIComponent(image.id)}`, alt: image.alt, width: image.width, height: image.height });
    shown.style.backgroundImage = `url("${thumb(image.id)}")`; // until the whole image is there
    return el("figure", {}, shown, image.credit ? el("figcaption", {}, image.credit) : null);
  }

  /** The stored questions of an image, or else a button that has some written. */
  function questions(image, signal) {
    const list = el("ul", { class: "questions" });
    const add = (found) => list.append(...found.map(({ text }) => el("li", {}, button(text, () => actions.ask(text), { class: "link", dir: "auto" }))));
    add(image.questions);
    const more = image.questions.length ? null : button("Write questions", ask, { class: "plain" });
    async function ask() {
      more.disabled = true;
      more.textContent = "Thinking …";
      try {
        const { questions: found } = await post("/api/questions", { id: image.id, n: 5 }, signal);
        add(found);
        more.replaceWith(el("p", { class: "quiet", role: "status" }, found.length ? "" : "No question."));
      } catch (error) {
        if (error.name !== "AbortError") more.replaceWith(el("p", { class: "failed", role: "alert" }, sentence(error.message)));
      }
    }
    return part("Questions for this image", list, more);
  }

  function metadata(image) {
    const rows = Object.entries(image.metadata).map(([name, value]) => {
      const simple = name && ["string", "number"].includes(typeof value);
      const list = Array.isArray(value) && value.every((one) => ["string", "number"].includes(typeof one));
      const whole = simple ? String(value) : list ? value.join("; ") : JSON.stringify(value);
      const text = whole.length > LONG ? `${whole.slice(0, LONG)} …` : whole;
      const condition = simple ? `${fieldName(name)} = ${typeof value === "number" ? value : quoted(value)}` : "";
      const only = button("only these", () => actions.filter(condition), { class: "link", "aria-label": `Only images with ${condition}` });
      return [el("dt", {}, name), el("dd", { dir: "auto" }, text, condition ? " " : null, condition ? only : null)];
    });
    return rows.length ? part("Metadata", el("dl", {}, ...rows.flat())) : null;
  }
}

const LONG = 1000; // characters of a value that are shown
const BUILT_IN = /^(id|source|width|height|bytes|caption)$/;
const WORD = /^(and|or|not|in|contains|exists|true|false|null)$/i;

/** The name of a key of the metadata in filters. */
export function fieldName(key) {
  const plain = /^[A-Za-z_]\w*$/.test(key) && !WORD.test(key);
  return (BUILT_IN.test(key) ? "metadata." : "") + (plain ? key : `\`${key.replaceAll("`", "``")}\``);
}

const part = (heading, ...content) => el("section", {}, el("h3", {}, heading), ...content);
const scale = (label, share, text) => el("p", { class: "scale" }, el("span", {}, label), bar(share), el("b", {}, text));

/** What the numbers mean; the numbers themselves are folded away. */
function fit(hit) {
  const made = [];
  if (hit.probability !== null) made.push(scale("Probability that it fits", hit.probability, percent(hit.probability)));
  if (hit.question_fit !== null) made.push(scale("Likelihood, relative to the best image", hit.question_fit, hit.question_fit === 1 ? "the best" : percent(hit.question_fit)));
  const place = el("p", {}, `Rank ${hit.rank}`);
  if (hit.moved) place.append(" ", moved(hit), ` (the first stage had it at ${hit.first_stage_rank})`);
  else if (hit.moved === 0) place.append(", as in the first stage");
  const numbers = [["Cosine similarity", hit.similarity?.toFixed(3)], ["log P(question | image)", hit.likelihood === null ? null : `${hit.likelihood.toFixed(2)} nats`]];
  const rows = numbers.filter(([, value]) => value).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]);
  if (hit.duplicates) made.push(el("p", {}, `Stands for ${count(hit.duplicates, "more near-duplicate")}.`));
  return part("How well it fits", place, ...made, el("details", {}, el("summary", {}, "In numbers"), el("dl", {}, ...rows)));
}

/** The question, each word in the colour of what the image says about it. */
function explanation(id, asked, signal) {
  const text = el("p", { class: "heat", "aria-busy": "true" }, asked);
  const legend = el("p", { class: "quiet", role: "status" }, "Reading the question with this image …");
  const made = part("Words that it explains", text, legend);
  post("/api/explain", { id, question: asked }, signal).then(
    ({ words }) => {
      const letters = [...asked]; // places count code points
      const cut = (from, to) => letters.slice(from, to).join("");
      let end = 0;
      const parts = words.flatMap((word) => {
        const between = cut(end, word.start);
        end = word.end;
        return [between, heat(word, cut(word.start, word.end))];
      });
      text.replaceChildren(...parts, cut(end));
      text.removeAttribute("aria-busy");
      const best = words.filter((word) => says(word) && word.bits > 0).sort((a, b) => b.bits - a.bits)[0];
      legend.textContent = best
        ? `The image makes underlined words likelier, most of all “${best.text.trim()}” (${best.bits.toFixed(1)} bits), and struck ones less likely.`
        : "The image makes none of the words likelier.";
    },
    (error) => {
      text.removeAttribute("aria-busy");
      legend.textContent = error.name === "AbortError" ? "" : sentence(error.message);
    },
  );
  return made;
}

const says = ({ bits, text }) => Math.abs(bits) >= SAYS && /[\p{L}\p{N}]/u.test(text);

function heat(word, text) {
  if (!says(word)) return text;
  const strength = Math.min(Math.abs(word.share), 1);
  const made = el("mark", { class: word.share < 0 ? "against" : "for", title: `${word.bits > 0 ? "+" : ""}${word.bits.toFixed(1)} bits` }, text);
  made.style.setProperty("--strength", `${Math.round(45 * strength)}%`);
  made.style.setProperty("--line", `${(4 * strength).toFixed(1)}px`);
  return made;
}
