// The clarifying dialog: the library asks, the person answers, and the candidates shrink.

import { get, post } from "./api.js";
import { all, announce, button, complain, count, el, find, percent, thumb } from "./dom.js";
import { treemap } from "./treemap.js";

const SMALLEST = 0.004; // a candidate below this probability is no longer on the map

const ENDS = {
  budget: "I have no more questions to spend. This is the likeliest.",
  "nothing to ask": "No question of mine would separate these images. This is the likeliest.",
  "no candidates": "All of these images have been removed from the album.",
};

/** Into how many equally likely images the uncertainty would fit. */
const among = (bits) => Math.max(1, Math.round(2 ** bits));

export class Dialog {
  /** @param {{remember: function(string): void, open: function(string): void, search: function(string): void}} actions */
  constructor(actions) {
    this.actions = actions;
    this.place = find("#dialog");
    this.tiles = new Map();
    this.text = "";
    this.id = "";
    new ResizeObserver(() => this.now && this.drawMap()).observe(this.place);
  }

  /** Show the dialog of the address: go on with one that the server has, or begin it. */
  async show({ ask, dialog, where }) {
    if (dialog && dialog === this.id) return;
    this.leave();
    this.build(ask);
    const begin = () => this.run(() => post("/api/dialog", { text: ask, candidates: 60, where: where || null }, this.stop.signal));
    if (dialog) {
      try {
        return this.take(await get(`/api/dialog/${dialog}`, this.stop.signal));
      } catch (error) {
        if (error.status !== 404) return complain(error, () => this.show({ ask, dialog, where }));
      }
    }
    await begin();
  }

  leave() {
    this.stop?.abort();
    this.tiles.clear();
    Object.assign(this, { id: "", now: null, stop: new AbortController() });
  }

  build(text) {
    this.text = text;
    this.turns = el("ol", { class: "turns", reversed: true, "aria-label": "Answers so far, the last first" });
    this.asked = el("div", { class: "asked", role: "group", "aria-live": "polite" });
    this.left = el("p", { class: "left", role: "status" });
    this.map = el("ol", { class: "map", "aria-label": "Candidates, likeliest first" });
    this.gone = el("p", { class: "quiet" });
    this.place.replaceChildren(
      el("div", { class: "talk" }, el("p", { class: "quiet" }, "You are looking for"), el("h2", { dir: "auto" }, text), this.asked, this.turns),
      el("div", { class: "candidates" }, this.left, this.map, this.gone),
    );
    this.think("Looking through the album …");
  }

  think(text) {
    this.asked.setAttribute("aria-busy", "true");
    for (const one of all("button, input", this.asked)) one.disabled = true;
    if (this.now) {
      this.asked.classList.add("thinking");
      find(".step", this.asked).textContent = text;
    } else this.asked.replaceChildren(el("p", { class: "step" }, text));
    announce(text);
  }

  /** Send something, and show what becomes of the dialog. */
  async run(send) {
    const { stop } = this;
    this.think("Thinking …");
    try {
      const now = await send();
      if (stop.signal.aborted) return;
      complain();
      this.take(now);
    } catch (error) {
      if (stop.signal.aborted) return;
      if (this.now) this.ask(); // as it was before
      else this.asked.replaceChildren(el("p", { class: "step" }, "The dialog could not begin."));
      complain(error, () => this.run(send));
    } finally {
      this.asked.removeAttribute("aria-busy");
      this.asked.classList.remove("thinking");
    }
  }

  send(what, said) {
    const address = `/api/dialog/${this.id}`;
    return this.run(() =>
      post(`${address}/${what}`, said, this.stop.signal).catch((error) => {
        if (error.status !== 409) throw error;
        return get(address, this.stop.signal); // answered elsewhere: go on from there
      }),
    );
  }

  take(now) {
    this.now = now;
    this.id = now.dialog;
    this.actions.remember(now.dialog);
    this.asked.removeAttribute("aria-busy");
    announce(""); // the question says itself
    this.drawTurns();
    this.ask();
    this.drawMap();
  }

  drawTurns() {
    const { history } = this.now;
    const turns = history.map(({ question, answer, bits_before: before, bits_after: after }, i) => {
      const fewer = `${among(before)} → ${count(among(after), "image")}`;
      return el(
        "li",
        {},
        el("p", { class: "question", dir: "auto" }, question ?? "Hint"),
        el("p", { class: "answer", dir: "auto" }, answer),
        el("p", { class: "fewer", title: "Images among which it could be, before and after" }, fewer),
        i === history.length - 1 ? button("Undo", () => this.send("undo", {}), { class: "link" }) : null,
      );
    });
    this.turns.replaceChildren(...turns.reverse());
  }

  ask() {
    const { question, answers, stopped, asked, budget, hits } = this.now;
    const best = hits[0];
    const words = el("input", { name: "said", required: true, autocomplete: "off", "aria-label": question ? "Your own answer" : "What else do you know of it?", placeholder: question ? "or in your own words" : "What else do you know of it?" });
    const form = el(
      "form",
      { class: "own" },
      words,
      question ? el("button", { type: "submit", value: "answer" }, "Answer") : null,
      el("button", { type: "submit", value: "tell", class: "plain", title: "Something that the question did not ask" }, "Hint"),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const what = event.submitter?.value ?? (question ? "answer" : "tell");
      this.send(what, what === "answer" ? { answer: words.value, question } : { text: words.value });
    });
    if (question && !stopped) {
      const choices = answers.map((answer, i) => button(answer, () => this.send("answer", { answer, question }), { dir: "auto", "aria-keyshortcuts": String(i + 1) }));
      if (!answers.some((answer) => /know/i.test(answer))) choices.push(button("I don’t know", () => this.send("answer", { answer: "don't know", question }), { class: "plain" }));
      this.asked.replaceChildren(
        el("p", { class: "step" }, `Question ${asked + 1} of at most ${budget}`),
        el("h3", { dir: "auto", tabindex: "-1" }, question),
        el("div", { class: "answers" }, ...choices),
        form,
      );
    } else {
      const found = best && stopped !== "no candidates";
      const ends = stopped === "sure" ? `It is this one, I am ${percent(best.probability)} sure.` : ENDS[stopped] ?? "";
      this.asked.replaceChildren(
        el("p", { class: "step" }, asked === 1 ? "After one question" : `After ${asked} questions`),
        el("h3", { tabindex: "-1" }, ends),
        el(
          "div",
          { class: "answers" },
          found ? button("Open it", () => this.actions.open(best.id)) : null,
          button("Show me a list instead", () => this.actions.search(this.text), { class: "plain" }),
        ),
        found ? el("p", { class: "quiet" }, "Not the right one? Undo an answer, or say more.") : null,
        form,
      );
    }
    if (this.now.history.length) find("h3", this.asked).focus({ preventScroll: true });
  }

  /** Lay out the map; tiles that stay glide to their new place and size. */
  drawMap() {
    const { hits, entropy_bits: bits } = this.now;
    const shown = hits.filter((hit) => hit.probability >= SMALLEST);
    const { clientWidth: width, clientHeight: height } = this.map;
    if (!width) return;
    const areas = treemap(shown.map((hit) => hit.probability), width, height);
    const tiles = shown.map((hit, i) => {
      if (!this.tiles.has(hit.id)) this.tiles.set(hit.id, this.tile(hit));
      const li = this.tiles.get(hit.id);
      const { x, y, width: w, height: h } = areas[i];
      Object.assign(li.style, { left: `${x}px`, top: `${y}px`, width: `${w}px`, height: `${h}px` });
      li.classList.toggle("tiny", w < 64 || h < 40);
      find("b", li).textContent = percent(hit.probability);
      return li;
    });
    // Nodes that stay in the document go on with their transition; so the order is changed only where it differs.
    const keep = new Set(tiles);
    for (const li of [...this.map.children]) if (!keep.has(li)) li.remove();
    tiles.forEach((li, i) => this.map.children[i] !== li && this.map.insertBefore(li, this.map.children[i] ?? null));
    const n = among(bits);
    this.left.textContent = n === 1 ? "Practically one image is left" : `As unsure as among ${n} images`;
    const out = hits.length - shown.length;
    this.gone.textContent = `The area of an image is its probability.${out ? ` ${count(out, "candidate")} ${out === 1 ? "is" : "are"} too improbable to show.` : ""}`;
  }

  tile(hit) {
    const picture = el("img", { src: thumb(hit.id, 512), alt: hit.alt, decoding: "async" });
    const press = (event) => {
      if (event.metaKey || event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      this.actions.open(hit.id);
    };
    return el("li", {}, el("a", { href: `/?image=${encodeURIComponent(hit.id)}`, onclick: press }, picture, el("b", {})));
  }

  /** An answer by its number; whether there is one. */
  press(number) {
    const choice = all(".answers button", this.asked)[number - 1];
    choice?.click();
    return Boolean(choice);
  }
}
