// Overview: what runs, what it does, and what was asked of it last.

import { find, get, id, jobs, list } from "../api.js";
import { sparkline } from "../charts.js";
import { badge, bar, bytes, callout, empty, fixed, h, page, percent, repeat, section, short, stats, table } from "../dom.js";
import { jobsTable } from "./jobs.js";

export const title = () => "Overview";

const MOST = 60; // readings of the line, two seconds apart

export async function render({ signal }) {
  const live = h("div"), rates = [];
  let before = null;
  const look = async () => {
    const [seen, recent] = await Promise.all([get("/v1/overview", signal), jobs(5, signal).catch(() => null)]);
    const now = { at: performance.now(), engines: Object.fromEntries(seen.engines.map((e) => [e.base, e.load])) };
    const speeds = before ? speedsOf(before, now) : {};
    before = now;
    rates.push(Object.values(speeds).reduce((sum, rate) => sum + rate, 0));
    rates.splice(0, rates.length - MOST);
    live.replaceChildren(...shown(seen, recent, speeds, rates));
  };
  await look();
  repeat(2000, () => look().catch((error) => signal.aborted || live.prepend(callout("bad", error.message))), signal);
  return [page("Overview", "Every served base has an engine of its own; adapters are loaded where they are asked for."), await savings(signal), live];
}

/** What the slim bases that are worth having save of their dense ones, and what that costs. */
async function savings(signal) {
  const dense = (await list("/v1/bases", signal)).filter((base) => !base.parent);
  const fronts = (await Promise.all(dense.map((base) => find(`/v1/bases/${id(base.id)}/front`, signal)))).filter(Boolean);
  const best = fronts.flatMap((front) => front.data.filter((point) => point.on_front).map((point) => ({ ...point, front })));
  if (!dense.length) return null;
  if (!best.length) return section("What it would save", empty("Nothing is slim yet. ",
    h("a", { href: `#/new?base=${id(dense[0].id)}` }, `See what a cut would leave of ${dense[0].id}`), ", before anything runs."));
  return section("What slim bases save", savingsTable(best),
    h("p", { class: "hint" }, "Nats lost per token are the logarithm of what the perplexity grows by: 0.1 is 11 % more. Adapters lose them on their own held-out rows, in the mean."));
}

const savingsTable = (best) => table("What slim bases save", [
  ["Slim base", (p) => h("a", { href: `#/bases/${id(p.name)}` }, p.name)],
  ["Of", (p) => p.front.base],
  ["Weights saved", (p) => `${bytes(p.front.weight_bytes - p.weight_bytes)}, ${percent(1 - p.weight_bytes / p.front.weight_bytes)}`, "num"],
  ["Perplexity per word", (p) => fixed(p.word_perplexity, 1), "num"],
  ["Nats lost per token", (p) => fixed(p.delta_nats, 3), "num"],
  ["Adapters lose", (p) => fixed(p.adapters_nats, 3), "num"],
], best);

function speedsOf(before, now) {
  const seconds = (now.at - before.at) / 1000;
  return Object.fromEntries(Object.entries(now.engines).map(([base, load]) => {
    const made = (load?.generated_tokens ?? 0) - (before.engines[base]?.generated_tokens ?? 0);
    return [base, Math.max(0, made) / seconds]; // a restarted engine counts from zero
  }));
}

function shown({ engines, jobs: counts }, recent, speeds, rates) {
  const loads = engines.map((e) => e.load).filter(Boolean);
  const sum = (name) => loads.reduce((total, load) => total + load[name], 0);
  const hits = sum("prefix_cache_queries") ? percent(sum("prefix_cache_hits") / sum("prefix_cache_queries")) : "–";
  const resident = engines.reduce((total, e) => total + (e.resident ?? 0), 0);
  const known = loads.length > 0;
  return [
    stats([
      ["Tokens per second", known ? fixed(rates.at(-1), 1) : "–", "generated, all engines"],
      ["Requests", known ? sum("running") : "–", known ? `${sum("waiting")} waiting` : null],
      ["Prefix cache", known ? hits : "–", "of looked-up tokens found"],
      ["Adapters resident", known ? resident : "–", `of ${engines.reduce((n, e) => n + e.adapters, 0)} registered`],
      ["Jobs", counts.running, `running, ${counts.queued} queued`],
    ]),
    known ? section("Tokens per second, the last two minutes", sparkline(rates, "tokens per second")) : null,
    section("Engines", engines.length ? enginesTable(engines, speeds) : nothing()),
    recent ? section("Latest jobs", recent.length ? jobsTable(recent)
      : empty("No job yet. ", h("a", { href: "#/new" }, "Start one"), ".")) : null,
  ].filter(Boolean);
}

const enginesTable = (engines, speeds) => table("Engines", [
  ["Base", (e) => h("a", { href: `#/bases/${id(e.base)}` }, e.base)],
  ["State", (e) => badge(e.state)],
  ["Tokens/s", (e) => (e.load ? fixed(speeds[e.base] ?? 0, 1) : "–"), "num"],
  ["Running", (e) => e.load?.running ?? "–", "num"],
  ["Waiting", (e) => e.load?.waiting ?? "–", "num"],
  ["KV cache", (e) => (e.load ? bar(e.load.kv_cache_usage, `KV cache of ${e.base}`) : "–")],
  ["Adapters", (e) => `${e.resident ?? "–"} of ${e.adapters}`, "num"],
  ["Generated", (e) => (e.load ? short(e.load.generated_tokens) : "–"), "num"],
  ["Restarts", (e) => e.restarts, "num"],
], engines);

const nothing = () => empty("Nothing is served yet. Register a base ", h("a", { href: "#/bases" }, "here"),
  " or type ", h("code", "graftwork bases add NAME DIRECTORY"), ".");
