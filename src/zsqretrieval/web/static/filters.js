// Filters: forms that write the text of the filter language, and chips that take conditions out of it.

import { el } from "./dom.js";

export const quoted = (text) => `'${String(text).replaceAll("'", "''")}'`;

/** The conditions that `and` joins at the top; one alone, in parentheses, where there is an `or`. */
export function conditions(where) {
  const tokens = where.match(/'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|[()[\]]|[^\s'"`()[\]]+|\s+/g) ?? [];
  const parts = [""];
  let depth = 0;
  for (const token of tokens) {
    if ("([".includes(token)) depth += 1;
    if (")]".includes(token)) depth -= 1;
    if (depth === 0 && /^or$/i.test(token)) return [`(${where.trim()})`];
    if (depth === 0 && /^and$/i.test(token)) parts.push("");
    else parts[parts.length - 1] += token;
  }
  return parts.map((part) => part.trim()).filter(Boolean);
}

export const joined = (parts) => parts.join(" and ");

/** A filter with one more condition. */
export const narrowed = (where, condition) => {
  const parts = conditions(where);
  return parts.includes(condition) ? where : joined([...parts, condition]);
};

const SIMPLE = /^(`(?:[^`]|``)*`|[\w.]+) (>=|<=|<|=|contains) (?:'((?:[^']|'')*)'|(-?[\d.e+]+))$/i;

const DAY = /^\d{4}-\d\d-\d\d$/; // a date with a time stays a condition of its own

/** A condition of one field as the forms write it; null for others. */
function read(condition) {
  const [, field, operator, text, number] = SIMPLE.exec(condition) ?? [];
  return field ? { field, operator, value: text === undefined ? number : text.replaceAll("''", "'") } : null;
}

const MOST = 9; // fields of the form

/** The date some days after another; "" if that is none. */
function dayAfter(day, days = 1) {
  const time = new Date(Date.parse(day) + days * 86_400_000);
  return Number.isNaN(time.getTime()) ? "" : time.toISOString().slice(0, 10);
}

/** Inputs per kind of field: label, attributes, from a value to a condition, and back. */
const INPUTS = {
  date: (field) => [
    { label: "from", type: "date", operator: ">=", write: quoted, show: (value) => value.slice(0, 10), min: field.min, max: field.max },
    { label: "to", type: "date", operator: "<", write: (day) => quoted(dayAfter(day)), show: (value) => dayAfter(value.slice(0, 10), -1), min: field.min, max: field.max },
  ],
  number: (field) => [
    { label: "at least", type: "number", operator: ">=", write: String, placeholder: field.min },
    { label: "at most", type: "number", operator: "<=", write: String, placeholder: field.max },
  ],
  text: (field) => [{ label: "contains", type: "text", operator: "contains", write: quoted, values: field.values, placeholder: field.values?.[0] }],
};

const FIRST = ["taken", "camera", "width", "height"];

/** Fields with several values, the best known first; the text of the filter reaches the others. */
function useful(fields) {
  const place = ({ name, type }) => (FIRST.indexOf(name) + 1 || (type === "text" ? 8 : 7)) + (name === "bytes" ? 9 : 0);
  const several = fields.filter(({ type, values, min, max }) => (type === "text" ? values.length > 1 : min !== max));
  return several.sort((a, b) => place(a) - place(b)).slice(0, MOST);
}

/** A condition on a field, to show how one is written. */
const example = ({ name, type, values, min }) =>
  type === "text" ? `${name} contains ${quoted(values[0])}` : `${name} >= ${type === "date" ? quoted(min.slice(0, 10)) : min}`;

/**
 * A form for the fields of the album.
 * @param {{name: string, type: "number"|"text"|"date", values: unknown[], min: unknown, max: unknown}[]} fields
 * @param {string} where the filter of now
 * @param {function(string): void} apply gets the new filter
 */
export function filterForm(fields, where, apply) {
  const parts = conditions(where);
  const simple = parts.map(read);
  const inputs = [];
  const known = useful(fields);
  const rows = known.map((field) => {
    const made = (INPUTS[field.type] ?? INPUTS.text)(field).map((one) => {
      const now = simple.find((part) => part?.field === field.name && part.operator === one.operator && (one.type !== "date" || DAY.test(part.value)));
      const list = one.values?.length ? `values-${field.name}` : null;
      const input = el("input", {
        type: one.type, step: one.type === "number" ? "any" : null, list, placeholder: one.placeholder, autocomplete: "off",
        min: one.min?.slice?.(0, 10), max: one.type === "date" ? one.max?.slice?.(0, 10) : null, value: now ? (one.show ?? String)(now.value) : "",
        "aria-label": `${field.name} ${one.label}`,
      });
      const options = list && el("datalist", { id: list }, ...one.values.map((value) => el("option", { value: String(value) })));
      inputs.push({ input, field: field.name, ...one, shown: input.value ? now : null });
      return el("label", {}, el("span", {}, one.label), input, options);
    });
    return el("fieldset", {}, el("legend", {}, field.name), ...made);
  });
  const text = el("input", { type: "text", value: where, spellcheck: "false", autocomplete: "off", placeholder: known.slice(0, 2).map(example).join(" and ") });
  const form = el(
    "form",
    { class: "filter" },
    ...rows,
    el("label", { class: "whole" }, el("span", {}, "or as text"), text),
    el("button", { type: "submit" }, "Filter"),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (text.value.trim() !== where) return apply(text.value.trim());
    const others = parts.filter((_, i) => !simple[i] || !inputs.some(({ shown }) => shown === simple[i]));
    const written = inputs.filter((one) => one.input.value).map((one) => `${one.field} ${one.operator} ${one.write(one.input.value)}`);
    return apply(joined([...others, ...written]));
  });
  return form;
}
