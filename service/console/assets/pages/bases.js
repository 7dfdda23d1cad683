// Bases: dense ones with their slim ones below them, aliases, and the report of one.

import { find, get, id, list, patch, post, put, remove } from "../api.js";
import { frontPicture, layersPicture, lossPicture } from "../charts.js";
import {
  action, badge, bytes, callout, change, count, empty, field, fixed, form, h, notify, page, percent, seconds, section, short, stats, table, when,
} from "../dom.js";

export const title = (item) => item ?? "Bases";

const link = (name) => h("a", { href: `#/bases/${id(name)}` }, name);
const reload = () => dispatchEvent(new HashChangeEvent("hashchange"));
const state = (base) => badge(!base.serve ? "not served" : base.ready ? "ready" : "starting");

export async function render({ item, signal }) {
  if (!item) return all(signal);
  const base = await get(`/v1/bases/${id(item)}`, signal);
  return base.parent ? slim(base, signal) : dense(base, signal);
}

async function all(signal) {
  const [bases, aliases, seen] = await Promise.all([list("/v1/bases", signal), list("/v1/aliases", signal), get("/v1/overview", signal)]);
  const order = bases.filter((b) => !b.parent).flatMap((b) => [b, ...bases.filter((own) => own.parent === b.id)]);
  const size = Object.fromEntries(bases.map((b) => [b.id, b.parameters]));
  return [page("Bases", "Dense checkpoints that you register, and the slim bases that jobs made of them."),
    section(null, order.length ? table("Bases", [
      ["Base", (b) => h("span", { class: b.parent ? "inset" : "" }, link(b.id))],
      ["State", state],
      ["Family", (b) => b.family],
      ["Layers", (b) => b.layers, "num"],
      ["Parameters", (b) => short(b.parameters), "num"],
      ["Of the dense", (b) => (b.parent ? percent(b.parameters / size[b.parent]) : ""), "num"],
      ["Since", (b) => when(b.created), "num"],
    ], order) : empty("No base yet; register the first below, or type ", h("code", "graftwork bases add NAME DIRECTORY"), ".")),
    section("Aliases", h("p", { class: "faint" }, "A name that clients keep while what it stands for moves."),
      aliases.length ? aliasTable(aliases) : empty("No alias yet; promote a base on its page.")),
    seen.scopes.includes("admin") ? section("Register a base", registration()) : null].filter(Boolean);
}

const aliasTable = (aliases) => table("Aliases", [
  ["Alias", (a) => a.id],
  ["Stands for", (a) => link(a.base)],
  ["Before", (a) => (a.before.length ? a.before.slice(-3).join(" → ") : "–")],
  ["Since", (a) => when(a.created), "num"],
  ["", (a) => h("span", { class: "row" },
    a.before.length ? action(`Roll back to ${a.before.at(-1)}`, () => rollBack(a.id)) : null,
    action("Forget", async () => { await remove(`/v1/aliases/${id(a.id)}`); reload(); }, "quiet"))],
], aliases);

async function rollBack(alias) {
  const now = await post(`/v1/aliases/${id(alias)}/rollback`);
  notify(`${alias} stands for ${now.base} again.`);
  reload();
}

function registration() {
  const name = h("input", { required: true, autocomplete: "off" }), path = h("input", { required: true, autocomplete: "off" });
  return form("Register", async () => {
    await post("/v1/bases", { name: name.value.trim(), path: path.value.trim() });
    notify(`${name.value} is registered.`);
    reload();
  }, "card", field("Name", name, { hint: "what requests call it" }),
  field("Directory", path, { hint: "on the server: config.json, safetensors and a tokenizer" }));
}

async function dense(base, signal) {
  const [front, adapters] = await Promise.all([get(`/v1/bases/${id(base.id)}/front`, signal), find(`/v1/adapters?base=${id(base.id)}`, signal)]);
  return [page(base.id, h("span", `${base.family}, ${base.layers} layers`, base.path ? [" · ", h("code", base.path)] : null),
    serveButton(base), h("a", { class: "button primary", href: `#/new?base=${id(base.id)}` }, "Prune it")),
    stats([["State", state(base)], ["Parameters", short(base.parameters), count(base.parameters)], ["Weights", bytes(front.weight_bytes)],
      ["Adapters", adapters?.data.length ?? "–"], ["Slim bases", front.data.length]]),
    section("Size against quality", front.data.length ? frontPicture(front) : empty("No slim base yet. ", h("a", { href: `#/new?base=${id(base.id)}` }, "Prune it"), " to see what it costs.")),
    front.data.length ? section("Slim bases", frontTable(front)) : null,
    await promotion(base, signal)].filter(Boolean);
}

const frontTable = (front) => table("Slim bases", [
  ["Base", (p) => link(p.name)],
  ["Parameters", (p) => `${short(p.parameters)}, ${percent(p.parameters / front.parameters)}`, "num"],
  ["Weights", (p) => bytes(p.weight_bytes), "num"],
  ["Perplexity", (p) => fixed(p.word_perplexity, 1), "num"],
  ["Nats lost", (p) => fixed(p.delta_nats, 3), "num"],
  ["Adapters lose", (p) => fixed(p.adapters_nats, 3), "num"],
  ["Worth having", (p) => (p.on_front ? "yes" : "")],
], [...front.data].reverse());

const serveButton = (base) => action(base.serve ? "Stop serving" : "Serve it", async () => {
  await patch(`/v1/bases/${id(base.id)}`, { serve: !base.serve });
  reload();
});

async function slim(base, signal) {
  const [report, front] = await Promise.all([find(`/v1/bases/${id(base.id)}/report`, signal), find(`/v1/bases/${id(base.parent)}/front`, signal)]);
  const lead = h("span", "A slim base of ", link(base.parent), " · ", h("code", base.artifact.slice(0, 12)), ` · ${when(base.created)}`);
  const head = page(base.id, lead, serveButton(base), h("a", { class: "button", href: `#/playground?a=${id(base.parent)}&b=${id(base.id)}` }, "Compare in the playground"));
  if (!report) return [head, callout("warn", "Its report is gone."), await promotion(base, signal)];
  const before = report.dense, after = report.slim, size = (name) => [after.size[name], before.size[name]];
  return [head,
    report.warnings.map((text) => callout("bad", text)),
    stats([
      ["Parameters", short(after.size.parameters), `${change(...size("parameters"))} of ${short(before.size.parameters)}`],
      ["Weights", bytes(after.size.weight_bytes), `${change(...size("weight_bytes"))} of ${bytes(before.size.weight_bytes)}`],
      ["KV cache per token", count(after.size.kv_cache_values_per_token), `values, ${change(...size("kv_cache_values_per_token"))}`],
      ["Perplexity per word", fixed(after.quality.word_perplexity, 1), `was ${fixed(before.quality.word_perplexity, 1)}`],
      ["Nats lost per token", fixed(report.delta_nats, 3), `divergence ${fixed(report.divergence, 3)}`],
    ]),
    section("What stayed, by layer", h("div", { class: "card" }, layersPicture(report.layers), h("details", h("summary", "As a table"), layerTable(report.layers)))),
    report.adapters.some((a) => a.dense_adapter !== null) ? section("Adapters before and after",
      h("div", { class: "card" }, lossPicture(report.adapters), h("details", h("summary", "As a table"), adapterTable(report.adapters)))) : null,
    front?.data.length ? section(`All slim bases of ${base.parent}`, h("div", { class: "card" }, frontPicture(front, base.id), h("details", h("summary", "As a table"), frontTable(front)))) : null,
    await promotion(base, signal),
    section("What they write", report.samples.map((sample) => h("div", { class: "card" },
      h("p", { class: "faint small" }, `${sample.prompt} …`),
      h("div", { class: "columns" }, h("div", h("h3", "dense"), h("p", sample.dense)), h("div", h("h3", "slim"), h("p", sample.slim)))))),
    h("details", h("summary", "How it was made"), made(report))].flat().filter(Boolean);
}

const kept = (own, all) => `${count(own)} of ${count(all)}`;
const layerTable = (layers) => table("What stayed, by layer", [
  ["Layer", (l) => l.layer], ["Heads", (l) => kept(l.heads, l.dense_heads), "num"], ["KV groups", (l) => kept(l.kv_groups, l.dense_kv_groups), "num"],
  ["FFN channels", (l) => kept(l.ffn_channels, l.dense_ffn_channels), "num"], ["Departure", (l) => fixed(l.departure, 3), "num"],
], layers);
const adapterTable = (adapters) => table("Loss in nats per completion token", [
  ["Adapter", (a) => a.name], ["Rows", (a) => a.rows, "num"], ["Dense base", (a) => fixed(a.dense_base, 3), "num"],
  ["With it", (a) => fixed(a.dense_adapter, 3), "num"], ["Slim base", (a) => fixed(a.slim_base, 3), "num"], ["With the carried", (a) => fixed(a.slim_adapter, 3), "num"],
], adapters);

const made = (report) => h("div",
  table("Stages", [["Stage", (stage) => stage.stage], ["Took", (stage) => seconds(stage.seconds), "num"], ["Peak memory", (stage) => bytes(stage.peak_rss_bytes), "num"]], report.stages),
  h("ul", report.methods.map((method) => h("li", `${method.kind} ${method.name}: ${method.authors}, `,
    h("a", { href: method.url, rel: "noreferrer" }, method.title), `, ${method.venue}`))),
  h("pre", { tabindex: 0 }, JSON.stringify(report.recipe, null, 2)));

async function promotion(base, signal) {
  const aliases = await list("/v1/aliases", signal);
  const own = aliases.filter((a) => a.base === base.id);
  const name = h("input", { autocomplete: "off", list: "aliases", placeholder: "prod", required: true });
  const choice = form("Promote", async () => {
    await put(`/v1/aliases/${id(name.value.trim())}`, { base: base.id });
    notify(`${name.value} stands for ${base.id} now.`);
    reload();
  }, null, field("Alias", name, { hint: "new, or one that moves here from another base" }));
  return section("Promote", h("div", { class: "card" },
    own.map((a) => h("p", { class: "row" }, h("span", h("strong", a.id), " stands for this base."),
      a.before.length ? action(`Roll back to ${a.before.at(-1)}`, () => rollBack(a.id)) : null)),
    h("datalist", { id: "aliases" }, aliases.map((a) => h("option", { value: a.id }))), choice));
}
