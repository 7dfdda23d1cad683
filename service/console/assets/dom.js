// Elements, formats, and the small pieces that several pages share.

const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "selected"]);

/** An element: attributes may be left out; children are nodes, texts, lists, or nothing. */
export const h = (tag, ...rest) => build(document.createElement(tag), rest);
/** The same in a picture. */
export const s = (tag, ...rest) => build(document.createElementNS("http://www.w3.org/2000/svg", tag), rest);

function build(element, rest) {
  const given = rest[0]?.constructor === Object ? rest.shift() : {};
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, own] of Object.entries(value)) element.style.setProperty(key, own);
    else if (PROPERTIES.has(name)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...rest.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// formats

const NUMBER = new Intl.NumberFormat("en");
export const count = (number) => NUMBER.format(Math.round(number));
export const fixed = (number, digits = 2) => (number === null || number === undefined ? "–" : number.toFixed(digits));
export const percent = (part, digits = 0) => `${(100 * part).toFixed(digits)} %`;
export const change = (after, before, digits = 0) => {
  const part = after / before - 1;
  return `${part > 0 ? "+" : part < 0 ? "−" : ""}${percent(Math.abs(part), digits)}`;
};
const scaled = (number, step, units) => {
  let unit = 0;
  while (number >= step && unit < units.length - 1) [number, unit] = [number / step, unit + 1];
  return `${unit && number < 100 ? number.toPrecision(3) : Math.round(number)} ${units[unit]}`.trim();
};
export const short = (number) => scaled(number, 1000, ["", "K", "M", "B", "T"]);
export const bytes = (number) => scaled(number, 1000, ["B", "KB", "MB", "GB", "TB"]);
export const seconds = (number) =>
  number < 60 ? `${number.toFixed(number < 10 ? 1 : 0)} s` : `${Math.floor(number / 60)} min ${Math.round(number % 60)} s`;
export const clock = (unix) => new Date(unix * 1000).toLocaleTimeString("en-GB");
export const when = (unix) => new Date(unix * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });

// pieces

const TONES = {
  succeeded: "good", ready: "good", running: "busy", starting: "busy", restarting: "busy",
  failed: "bad", absent: "bad", stopped: "bad", damaged: "bad",
};
export const badge = (state) => h("span", { class: `badge ${TONES[state] ?? ""}` }, state);

export const bar = (part, label) =>
  h("span", {
    class: "bar", role: "progressbar", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100,
    "aria-valuenow": Math.round(100 * part),
  }, h("i", { style: { "--part": `${100 * part}%` } }));

export const callout = (tone, ...children) => h("div", { class: `callout ${tone}`, role: tone === "bad" ? "alert" : null }, children);

export const empty = (...children) => h("p", { class: "empty" }, children);

/** Figures at a glance: [name, value, note] each. */
export const stats = (figures) =>
  h("dl", { class: "stats" }, figures.map(([name, value, note]) =>
    h("div", h("dt", name), h("dd", value, note ? h("small", note) : null))));

/**
 * A table that scrolls by itself where it is too wide: columns are [title, cell(row), class].  On a phone the rows of a
 * wide one become blocks, whose roles are said because browsers forget them with the display of a table.
 */
export function table(label, columns, rows) {
  const [[, first]] = columns;
  return h("div", { class: "wide", role: "region", tabindex: 0, "aria-label": label },
    h("table", { role: "table", class: columns.length > 4 ? "stacks" : null },
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, columns.map(([title, , kind]) =>
        title ? h("th", { scope: "col", role: "columnheader", class: kind }, title) : h("td", { role: "cell" })))),
      h("tbody", { role: "rowgroup" }, rows.map((row) =>
        h("tr", { role: "row" }, h("th", { scope: "row", role: "rowheader" }, first(row)),
          columns.slice(1).map(([title, cell, kind]) => h("td", { role: "cell", class: kind, "data-title": title }, cell(row))))))));
}

let numbered = 0;
/** A control with its name and what helps to fill it; the API's errors find it by `param`. */
export function field(name, control, { hint, param } = {}) {
  control.id ||= `field-${++numbered}`;
  if (param) control.dataset.param = param;
  const note = hint ? h("p", { class: "hint", id: `${control.id}-hint` }, hint) : null;
  if (note) control.setAttribute("aria-describedby", note.id);
  return h("div", { class: "field" }, h("label", { class: "name", for: control.id }, name), control, note);
}

/** A list to choose from: [value, text] each. */
export const select = (options, value, attributes = {}) =>
  h("select", attributes, options.map(([own, text]) => h("option", { value: own, selected: own === value }, text)));

/** A slider that says its value. */
export function slider({ label, min, max, step, value, show, onchange, param }) {
  const output = h("output", show(value));
  const input = h("input", {
    type: "range", min, max, step, "aria-label": label, "aria-valuetext": show(value), "data-param": param,
    oninput() {
      output.value = show(Number(input.value));
      input.setAttribute("aria-valuetext", output.value);
      onchange(Number(input.value));
    },
  });
  input.value = value; // once its range is set
  return { input, output };
}

export const page = (title, lead, ...actions) =>
  h("div", { class: "head" },
    h("div", h("h1", { tabindex: -1 }, title), lead ? h("p", { class: "lead" }, lead) : null),
    actions.length ? h("div", { class: "actions" }, actions) : null);

export const section = (title, ...children) => h("section", title ? h("h2", title) : null, children);

/** Something to hear, and to read for some seconds. */
export function notify(text) {
  const notice = h("div", text);
  document.querySelector("#notices").append(notice);
  setTimeout(() => notice.remove(), 6000);
}

/** Do something now, and again so many milliseconds after each time, until the page is left. */
export async function repeat(milliseconds, act, signal) {
  while (!signal.aborted) {
    if (!document.hidden) await act();
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
    });
  }
}

/** Act, with the button off meanwhile, and say what went wrong. */
async function once(button, act) {
  button.disabled = true;
  try { await act(); } catch (error) { notify(error.message); } finally { button.disabled = false; }
}

/** A button that acts once at a time. */
export function action(text, act, kind = "") {
  const button = h("button", { type: "button", class: kind, onclick: () => once(button, act) }, text);
  return button;
}

/** A form of fields that acts once at a time, by its button or Enter. */
export function form(text, act, kind, ...fields) {
  const button = h("button", { class: "primary" }, text);
  return h("form", { class: kind, onsubmit: (event) => { event.preventDefault(); once(button, act); } },
    h("div", { class: "fields" }, fields), h("p"), button);
}
