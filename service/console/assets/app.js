// The frame: which page an address shows, and the key where one is needed.

import { get, keep, key } from "./api.js";
import { callout, h, notify } from "./dom.js";

const PAGES = {
  "": "overview", jobs: "jobs", new: "new", bases: "bases", adapters: "adapters", playground: "playground",
  api: "api",
};
const main = document.querySelector("#main");
let leaving = new AbortController();
let shown = null; // the address of what is shown

async function show() {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/").map(decodeURIComponent);
  const module = PAGES[name];
  mark(name);
  if (!module) return place(callout("bad", `There is no page ${name}.`));
  try {
    const { render, title } = await import(`./pages/${module}.js`);
    const content = await render({ item: rest[0] ?? null, query: new URLSearchParams(query), signal });
    if (signal.aborted) return;
    place(content, location.hash !== shown);
    shown = location.hash;
    document.title = `${title(rest[0])} · Graftwork`;
  } catch (error) {
    if (!signal.aborted && error.status !== 401) place(callout("bad", error.message));
  }
}

function place(content, fromTop = true) {
  main.replaceChildren(...[content].flat());
  if (fromTop) scrollTo(0, 0);
}

function focusHeading() {
  main.querySelector("h1")?.focus({ preventScroll: true });
}

function mark(name) {
  for (const link of document.querySelectorAll("nav a")) {
    const own = link.hash.replace(/^#\/?/, "");
    if (own === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function locked() {
  leaving.abort();
  document.title = "Sign in · Graftwork";
  if (key()) notify("The key is not valid.");
  keep(null);
  const input = h("input", { type: "password", autocomplete: "off", required: true, id: "key", placeholder: "gw-…" });
  place(h("div", { class: "login card" },
    h("h1", { tabindex: -1 }, "Sign in"),
    h("p", { class: "faint" }, "This gateway asks for an API key. It is kept until you close this tab, and sent to this host alone."),
    h("form", {
      onsubmit(event) {
        event.preventDefault();
        keep(input.value.trim());
        begin().then(focusHeading);
      },
    },
    h("div", { class: "field" }, h("label", { class: "name", for: "key" }, "API key"), input),
    h("p", { class: "hint" }, "Create one with ", h("code", "graftwork keys create TENANT")),
    h("button", { class: "primary" }, "Sign in"))));
  input.focus();
}

async function begin() {
  try {
    const { tenant, scopes } = await get("/v1/overview");
    document.querySelector("#who").textContent = key() ? `${tenant}, with ${scopes.join(", ")}` : "No key is needed here.";
    document.querySelector("#leave").hidden = !key();
    await show();
  } catch (error) {
    if (error.status !== 401) place(callout("bad", error.message));
  }
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
document.querySelector("#leave").addEventListener("click", () => { keep(null); location.reload(); });
addEventListener("hashchange", async () => { await show(); focusHeading(); });
addEventListener("locked", locked);
begin();
