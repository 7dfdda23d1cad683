// Jobs: the list, and one of them as it runs.

import { events, find, get, jobPath, jobs, jobsPath, list, post } from "../api.js";
import {
  action, badge, bar, bytes, callout, clock, count, empty, fixed, h, notify, page, percent, repeat, seconds, section, short, table, when,
} from "../dom.js";
import { frontPicture, similarityPicture } from "../charts.js";

export const title = (item) => item ?? "Jobs";

const ENDED = ["succeeded", "failed", "cancelled"];
export const makes = (job) =>
  job.recipe.name ?? (job.recipe.kind === "profile" ? `profile of ${job.recipe.source}` : `comparison of ${job.model}'s adapters`);
export const jobLink = (job) => h("a", { href: `#/jobs/${job.id}` }, makes(job));

export async function render({ item, signal }) {
  return item ? one(item, signal) : all(signal);
}

async function all(signal) {
  const live = h("div");
  const look = async () => {
    const found = await jobs(50, signal);
    live.replaceChildren(found.length ? jobsTable(found) : empty("No job yet. ", h("a", { href: "#/new" }, "Start one"),
      ", or type ", h("code", "graftwork prune RECIPE.yaml"), "."));
  };
  await look();
  repeat(2000, () => look().catch(() => null), signal);
  return [page("Jobs", "A job that is killed in any stage resumes there and makes the same bytes."), live];
}

export const jobsTable = (found) => table("Jobs", [
  ["Makes", jobLink],
  ["Of", (job) => job.model],
  ["Status", (job) => badge(job.status)],
  ["Stage", (job) => job.stage ?? ""],
  ["Done", (job) => bar(job.progress, `progress of ${makes(job)}`)],
  ["Took", (job) => (job.finished_at && job.started_at ? seconds(job.finished_at - job.started_at) : ""), "num"],
  ["Created", (job) => when(job.created_at), "num"],
], found);

async function one(id, signal) {
  let job = await get(jobPath(id), signal);
  const head = h("div"), stages = h("ol", { class: "stages" }), result = h("div");
  const log = h("div", { class: "log", role: "log", tabindex: 0, "aria-label": "Events" });
  const seen = {}; // by stage, the last that was said of it

  const draw = () => {
    head.replaceChildren(...headOf(job, signal));
    stages.replaceChildren(...job.stages.map((name) => stageItem(name, seen[name], job)));
  };
  const hear = (event) => {
    const { stage } = event.data;
    if (stage) seen[stage] = { ...seen[stage], ...event.data, message: event.message };
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    log.append(h("div", { class: event.level }, h("span", { class: "faint" }, clock(event.created_at)),
      h("span", { class: "faint" }, stage ?? ""), h("span", event.message)));
    if (atEnd) log.scrollTop = log.scrollHeight;
  };
  const follow = async () => {
    for await (const event of events(`${jobPath(id)}/events`, { signal })) {
      hear(event);
      if (event.type === "progress" || event.type === "metrics") job = { ...job, status: "running", stage: event.data.stage, progress: part(job, event.data) };
      if (event.type === "stage") job = { ...(await get(jobPath(id), signal)), stage: event.data.stage }; // which a job has from its progress
      draw();
    }
    job = await get(jobPath(id), signal);
    draw();
    result.replaceChildren(...(await resultOf(job, signal)));
    if (!ENDED.includes(job.status)) return;
    document.title = `${job.status} · ${makes(job)} · Graftwork`;
  };
  draw();
  follow().catch((error) => signal.aborted || notify(error.message));
  return [head, result,
    h("div", { class: "columns" }, section("Stages", h("div", { class: "card" }, stages)), section("Events", h("div", { class: "card" }, log))),
    h("details", h("summary", "Recipe"), h("pre", { tabindex: 0 }, JSON.stringify(job.recipe, null, 2)))];
}

const part = (job, { stage, fraction }) => (Math.max(0, job.stages.indexOf(stage)) + fraction) / job.stages.length;

function headOf(job) {
  const buttons = [];
  if (!ENDED.includes(job.status))
    buttons.push(action("Cancel", async () => { await post(`${jobPath(job.id)}/cancel`); notify("The job is cancelled."); }, "danger"));
  if (["failed", "cancelled"].includes(job.status)) buttons.push(action("Retry", () => retry(job), "primary"));
  if (job.pruned_model) buttons.push(h("a", { class: "button primary", href: `#/bases/${encodeURIComponent(job.pruned_model)}` }, "Open the report"));
  const made = job.object === "adapter.job" ? job.result?.models[0] : null;
  if (made) buttons.push(h("a", { class: "button primary", href: `#/playground?a=${encodeURIComponent(job.model)}&b=${encodeURIComponent(made)}` }, "Try it"));
  const lead = h("span", `${{ "pruning.job": "Prunes", "sweep.job": "Tries many cuts of" }[job.object] ?? { merge: "Merges adapters of", compare: "Compares the adapters of" }[job.recipe.kind] ?? "On adapters of"} `,
    h("a", { href: `#/bases/${encodeURIComponent(job.model)}` }, job.model), ` · ${when(job.created_at)} · `, h("code", job.id));
  return [page(makes(job), lead, ...buttons),
    h("p", { class: "row" }, badge(job.status), h("span", { class: "faint" }, percent(job.progress))),
    h("p", bar(job.progress, "progress of the job")),
    job.error ? callout("bad", h("strong", job.error.param ? `${job.error.param}: ` : ""), job.error.message) : null].filter(Boolean);
}

async function retry(job) {
  const again = await post(jobsPath(job.id), job.recipe);
  location.hash = `#/jobs/${again.id}`;
}

function stageItem(name, said, job) {
  const done = said && "seconds" in said, now = !done && job.stage === name && job.status === "running";
  const broken = job.status === "failed" && said && !done;
  const state = done || job.status === "succeeded" ? "done" : broken ? "broken" : now ? "now" : "waits";
  const told = done ? seconds(said.seconds) : now ? said?.message ?? "" : broken ? "stopped here" : "";
  return h("li", { class: state, "aria-current": now ? "step" : null }, h("span", { class: "sign" }), h("span", name),
    now ? bar(said?.fraction ?? 0, `progress of ${name}`) : h("span", { class: "faint small" }, told),
    h("span", { class: "faint small" }, done ? bytes(said.peak_rss_bytes) : now ? told : ""));
}

async function resultOf(job, signal) {
  if (job.status !== "succeeded" || job.object === "pruning.job") return [];
  const report = await find(`${jobPath(job.id)}/report`, signal);
  if (!report) return [];
  if (job.object === "sweep.job") return sweepOf(job, report);
  if (job.recipe.kind === "compare") return [section("How alike they are", similarityPicture(report))];
  if (!report.results) return [];
  return report.results.map((result) => section(`${result.name}, ${bytes(result.bytes)}`, table("What survives", [
    ["Source", (task) => task.source], ["Weight", (task) => fixed(task.weight, 3), "num"], ["Rows", (task) => count(task.rows), "num"],
    ["Base", (task) => fixed(task.base, 3), "num"], ["Itself", (task) => fixed(task.own, 3), "num"], ["Result", (task) => fixed(task.result, 3), "num"],
    ["Gain kept", (task) => (task.recovered === null ? "–" : percent(task.recovered)), "num"],
  ], result.tasks), h("p", { class: "hint" },
    "Losses in nats per completion token on each source's held-out rows: of the base alone, with the source itself, and with the result.")));
}

/** The cells of a sweep by size and loss, and a button to make one of those worth having. */
function sweepOf(job, report) {
  const cells = report.cells.map((cell) => ({ ...cell, name: `${cell.number}`, on_front: cell.dominated_by === null }));
  const front = { base: job.model, parameters: report.dense.parameters, data: cells };
  const make = (cell) => action("Make it", async () => {
    const made = await post(`${jobPath(job.id)}/jobs`, { target_bytes: cell.bytes });
    location.hash = `#/jobs/${made.id}`;
  });
  return [section("Size against quality", h("div", { class: "card" }, frontPicture(front, null, null))),
    section("Cells", table("Cells", [
      ["Cell", (cell) => cell.number],
      ...Object.keys(job.recipe.grid).map((name) => [name, (cell) => told(cell.changes[name])]),
      ["Parameters", (cell) => `${short(cell.parameters)}, ${percent(cell.parameters / front.parameters)}`, "num"],
      ["Bytes", (cell) => bytes(cell.bytes), "num"],
      ["Nats lost", (cell) => fixed(cell.delta_nats, 3), "num"],
      ["", (cell) => (cell.on_front ? make(cell) : `${cell.dominated_by} is better`)],
    ], cells)),
    ...report.failed.map((cell) => callout("warn", `Cell ${cell.number} could not be made: ${cell.param}: ${cell.message}`))];
}

/** A value of a grid in a word or two. */
const told = (value) => {
  if (Array.isArray(value)) return value.map(told).join(", ") || "none";
  if (value === null || typeof value !== "object") return String(value);
  return [value.name, ...Object.entries(value.params ?? {}).map(([name, own]) => `${name} ${own}`)].filter(Boolean).join(" ") || JSON.stringify(value);
};

/** Jobs on adapters that succeeded, newest first. */
export const madeAdapters = async (signal) =>
  (await list("/v1/adapters/jobs?limit=100", signal)).filter((job) => job.status === "succeeded");
