// Adapters: of one base, how alike they are, and where the made ones come from.

import { find, id, jobPath, list, post, remove, upload } from "../api.js";
import { similarityPicture } from "../charts.js";
import { action, callout, empty, field, form, h, notify, page, section, select, table, when } from "../dom.js";
import { jobLink, madeAdapters } from "./jobs.js";

export const title = () => "Adapters";

const reload = () => dispatchEvent(new HashChangeEvent("hashchange"));

export async function render({ query, signal }) {
  const [bases, all, made] = await Promise.all([list("/v1/bases", signal), list("/v1/adapters", signal), madeAdapters(signal).catch(() => [])]);
  if (!bases.length) return [page("Adapters"), empty("Adapters belong to a base; ", h("a", { href: "#/bases" }, "register one"), " first.")];
  const base = query.get("base") ?? bases.find((b) => all.some((a) => a.base === b.id))?.id ?? bases[0].id;
  const own = all.filter((a) => a.base === base), home = bases.find((b) => b.id === base);
  const chosen = select(bases.map((b) => [b.id, b.id]), base, { onchange: () => (location.hash = `#/adapters?base=${id(chosen.value)}`) });
  return [page("Adapters", "LoRAs as PEFT saves them. Requests ask for BASE+NAME, or for several at once with weights."),
    h("div", { class: "fields" }, field("Of the base", chosen)), h("p"),
    section(null, own.length ? listed(own, home, all, made) : empty(`${base} has no adapter yet.`)),
    own.length > 1 ? section("How alike they are", await comparison(base, own, made, signal)) : null,
    section("Add one", addition(base))].filter(Boolean);
}

const listed = (own, home, all, made) => table("Adapters", [
  ["Adapter", (a) => a.name],
  ["Rank", (a) => a.rank, "num"],
  ["Comes from", (a) => origin(a, home, all, made)],
  ["Content", (a) => h("code", a.digest.slice(0, 12))],
  ["Seen by", (a) => (a.visibility === "shared" ? "all tenants" : "its own")],
  ["Since", (a) => when(a.created), "num"],
  ["", (a) => h("span", { class: "row" }, h("a", { href: `#/playground?a=${id(a.base)}&b=${id(a.id)}` }, "Try"),
    action("Remove", () => forget(a), "quiet"))],
], own);

async function forget(adapter) {
  if (!confirm(`Remove ${adapter.id}? Requests for it will fail.`)) return;
  await remove(`/v1/adapters/${id(adapter.id)}`);
  reload();
}

/** Whether a job made it, of what, or a cut carried it, or somebody brought it. */
function origin(adapter, home, all, made) {
  const job = made.find((one) => one.result.models.includes(adapter.id));
  if (job) {
    const parts = (job.recipe.sources ?? []).map((s) => `${s.base ? `${s.base}+` : ""}${s.adapter} × ${s.weight}`);
    const method = job.recipe.method ? ` (${job.recipe.method.name})` : "";
    return h("span", jobLink(job), `: ${job.recipe.kind}${method}${parts.length ? ` of ${parts.join(", ")}` : job.recipe.source ? ` of ${job.recipe.source}` : ""}`);
  }
  const dense = all.find((a) => a.base === home.parent && a.name === adapter.name);
  return dense ? `carried from ${dense.id}` : "registered";
}

async function comparison(base, own, made, signal) {
  const job = made.find((one) => one.recipe.kind === "compare" && one.model === base);
  const report = job && (await find(`${jobPath(job.id)}/report`, signal));
  const compare = action(report ? "Compare again" : "Compare them", async () => {
    const started = await post("/v1/adapters/jobs", { kind: "compare", base });
    location.hash = `#/jobs/${started.id}`;
  });
  if (!report) return h("div", { class: "card" }, h("p", { class: "faint" },
    "A job measures the angle between what every two adapters add to the weights, from their factors: near 1 they say the same, near 0 they live apart, below 0 they undo each other."), compare);
  const missing = own.filter((a) => !report.names.includes(a.name)).map((a) => a.name);
  return h("div", { class: "card" }, missing.length ? callout("warn", `Not compared yet: ${missing.join(", ")}.`) : null,
    similarityPicture(report),
    h("p", { class: "hint" }, "Cosine between the ΔW over all linears. Near 1 they say the same, near 0 they live apart."), compare);
}

function addition(base) {
  const name = h("input", { required: true, autocomplete: "off" });
  const files = h("input", { type: "file", multiple: true, required: true, accept: ".json,.safetensors,.jsonl" });
  return form("Upload", async () => {
    const added = await upload("/v1/adapters", { name: name.value.trim(), base }, [...files.files].map((file) => ["files", file]));
    notify(`${added.id} is there, with rank ${added.rank}.`);
    reload();
  }, "card", field("Name", name, { hint: `requests ask for ${base}+NAME` }),
  field("Files", files, { hint: "adapter_config.json, adapter_model.safetensors and, maybe, eval.jsonl and calibration.jsonl" }));
}
