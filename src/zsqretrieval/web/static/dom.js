// Building of elements, and the words of the page. Data only ever becomes text or an attribute.

/**
 * Make an element.
 * @param {string} tag
 * @param {Object<string, unknown>} [attributes] `on...` adds a listener; null, undefined and false are left out.
 * @param {...(Node|string|null)} children
 */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const find = (selector, root = document) => root.querySelector(selector);
export const all = (selector, root = document) => [...root.querySelectorAll(selector)];

/** Text for screen readers only. */
export const hidden = (text) => el("span", { class: "unseen" }, text);

export const button = (text, onclick, attributes = {}) => el("button", { type: "button", onclick, ...attributes }, text);

export const thumb = (id, size = 256) => `/thumb/${encodeURIComponent(id)}?size=${size}`;

/** A probability as people say it: never a certainty that nobody has. */
export function percent(probability) {
  if (probability < 0.01) return "< 1 %";
  if (probability > 0.99) return "> 99 %";
  return `${Math.round(100 * probability)} %`;
}

export const count = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

/** A message with a capital and a full stop. */
export const sentence = (text) => text && text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

/** The parts of an ISO time that a person reads; null when it is none. */
export function when(iso, parts = { dateStyle: "long", timeStyle: "short" }) {
  const time = iso ? new Date(iso.slice(0, 19)) : null; // the camera's own time, whatever its zone
  return time && !Number.isNaN(time.getTime()) ? new Intl.DateTimeFormat("en-GB", parts).format(time) : null;
}

/** Say something to screen readers. */
export function announce(text) {
  find("#said").textContent = text;
}

/** Show an error, with a button that tries again; without arguments, take it away. */
export function complain(error = null, again = null) {
  const place = find("#trouble");
  place.replaceChildren();
  if (error === null || error.name === "AbortError") return;
  place.append(el("p", {}, sentence(error.message)));
  if (again) place.append(button("Try again", () => (complain(), again())));
  place.append(button("Dismiss", () => complain(), { class: "plain" }));
}

/** Change the order or size of elements, and let them glide from where they were. Focus stays. */
export function rearrange(elements, change) {
  const focused = document.activeElement;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const before = new Map(still ? [] : elements().map((one) => [one, one.getBoundingClientRect()]));
  change();
  if (focused !== document.activeElement && document.contains(focused)) focused.focus({ preventScroll: true });
  for (const [one, was] of before) {
    const is = one.getBoundingClientRect();
    if (!one.isConnected || !is.width || (was.x === is.x && was.y === is.y)) continue;
    if (Math.min(was.top, is.top) > innerHeight || Math.max(was.bottom, is.bottom) < 0) continue;
    const from = `translate(${was.x - is.x}px, ${was.y - is.y}px)`;
    one.animate([{ transform: from }, { transform: "none" }], { duration: 420, easing: "cubic-bezier(.2,.7,.2,1)" });
  }
}
