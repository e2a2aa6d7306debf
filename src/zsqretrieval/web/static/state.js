// What the page shows, and its address: one is made of the other, so that every view has a permanent link.
//
//   /?q=a+beach&and=sunset~0.8&not=people&like=ID&where=year+%3E+2010&cut=0.4&order=both&sort=newest&image=ID
//   /?ask=a+dog                                                           a dialog

/** Weight of a phrase that is left out, unless told otherwise. */
export const WITHOUT = 0.5;

/**
 * @typedef {{kind: "text"|"id"|"upload", value: string, weight: number}} Term
 * @typedef {object} State
 * @property {string} q the question
 * @property {Term[]} terms what is added to it or left out
 * @property {string} where filter
 * @property {number|null} cut lowest probability of images that fit; null for the server's
 * @property {"final"|"both"|"first"} order
 * @property {"best"|"newest"|"oldest"} sort of the images that fit
 * @property {boolean} fold near-duplicates
 * @property {boolean} expand
 * @property {boolean} bank
 * @property {string} image opened on top
 * @property {string} ask description with which a dialog began
 * @property {string} dialog its id at the server
 */

/** @type {State} */
const EMPTY = {
  q: "", terms: [], where: "", cut: null, order: "final", sort: "best", fold: true, expand: false, bank: false,
  image: "", ask: "", dialog: "",
};

const KINDS = [
  // parameter, kind, weight when the address names none
  ["and", "text", 1],
  ["not", "text", -WITHOUT],
  ["like", "id", 1],
  ["unlike", "id", -WITHOUT],
  ["upload", "upload", 1],
];

/** @returns {State} */
export function parse(query) {
  const given = new URLSearchParams(query);
  const one = (name, among, or) => (among.includes(given.get(name)) ? given.get(name) : or);
  const cut = Number.parseFloat(given.get("cut"));
  return {
    q: given.get("q") ?? "",
    terms: KINDS.flatMap(([name, kind, weight]) => given.getAll(name).map((text) => term(kind, text, weight))),
    where: given.get("where") ?? "",
    cut: cut >= 0 && cut <= 1 ? cut : null,
    order: one("order", ["both", "first"], "final"),
    sort: one("sort", ["newest", "oldest"], "best"),
    fold: given.get("fold") !== "0",
    expand: given.get("expand") === "1",
    bank: given.get("bank") === "1",
    image: given.get("image") ?? "",
    ask: given.get("ask") ?? "",
    dialog: given.get("dialog") ?? "",
  };
}

function term(kind, text, weight) {
  const [, value, number] = /^(.*)~(\d*\.?\d+)$/s.exec(text) ?? [null, text, null];
  return { kind, value, weight: number === null ? weight : Math.sign(weight) * Number(number) };
}

/** @param {State} state */
export function address(state) {
  const made = new URLSearchParams();
  if (state.q) made.set("q", state.q);
  for (const { kind, value, weight } of state.terms) {
    const [name, , usual] = KINDS.find(([, its, sign]) => its === kind && sign < 0 === weight < 0);
    const plain = weight === usual && !/~\d*\.?\d+$/.test(value);
    made.append(name, plain ? value : `${value}~${Math.abs(weight)}`);
  }
  for (const name of ["where", "image", "ask", "dialog"]) if (state[name]) made.set(name, state[name]);
  if (state.cut !== null) made.set("cut", state.cut);
  if (state.order !== "final") made.set("order", state.order);
  if (state.sort !== "best") made.set("sort", state.sort);
  if (!state.fold) made.set("fold", "0");
  for (const name of ["expand", "bank"]) if (state[name]) made.set(name, "1");
  const text = made.toString();
  return text ? `/?${text}` : "/";
}

/** A state without a search, and another's view. */
export const fresh = (state = EMPTY) => ({ ...EMPTY, order: state.order, fold: state.fold });

export const searches = (state) => Boolean(state.q || state.terms.length);

/** The question that the generator scores; "" for a sum of terms. */
export const question = (state) => (state.terms.length ? "" : state.q);

/** Whether there are words by which the generator orders the images. */
export const reranks = (state, can) => can.rerank && (state.q !== "" || state.terms.some(({ kind }) => kind === "text"));

/** How the search is called, in words. */
export function summary(state) {
  const texts = state.terms.filter(({ kind }) => kind === "text");
  const images = (sign) => state.terms.filter(({ kind, weight }) => kind !== "text" && weight * sign > 0).length;
  const like = (word, n) => (n ? [`${word} ${n === 1 ? "an image" : `${n} images`}`] : []);
  return [
    ...(state.q ? [`“${state.q}”`] : []),
    ...texts.map(({ value, weight }) => (weight < 0 ? `without “${value}”` : `“${value}”`)),
    ...like("like", images(1)),
    ...like("unlike", images(-1)),
  ].join(", ");
}

/** The body of `/api/search`. */
export function body(state, can, offset = 0, k = 60) {
  const terms = state.terms.map(({ kind, value, weight }) => ({ [kind]: value, weight }));
  if (state.q) terms.unshift({ text: state.q, weight: 1 });
  return {
    terms, k, offset, candidates: 60,
    rerank: reranks(state, can) && state.order !== "first",
    where: state.where || null,
    collapse: state.fold ? 0.97 : null,
    expand: can.expand && state.expand,
    bank: can.bank && state.bank,
  };
}
