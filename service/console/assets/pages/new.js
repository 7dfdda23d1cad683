// A new job: a recipe as a form, and beside it what it would leave, before anything runs.

import { ApiError, find, list, post, upload } from "../api.js";
import { layersPicture } from "../charts.js";
import { bytes, callout, change, count, empty, field, h, notify, page, percent, select, short, slider, table } from "../dom.js";

export const title = () => "New job";

const RECOVERIES = [
  ["", "none"], ["closed_form", "least-squares refit"], ["distill", "distillation towards the dense base"],
  ["closed_form distill", "refit, then distillation"], ["lora", "LoRA, merged in afterwards"],
];
const WAIT = 250; // milliseconds after the last change

export async function render({ query, signal }) {
  const [bases, methods, files] = await Promise.all([list("/v1/bases", signal), list("/v1/pruning/methods", signal), list("/v1/files", signal)]);
  const dense = bases.filter((base) => !base.parent);
  const head = page("New job", "Whole channels and heads leave the base; its adapters are carried through the same cut.");
  if (!dense.length) return [head, empty("There is nothing to prune yet; ", h("a", { href: "#/bases" }, "register a base"), " first.")];
  const adapters = (await find("/v1/adapters", signal))?.data ?? [];
  return [head, form({ dense, methods, files, adapters, taken: bases.map((b) => b.id) }, query.get("base") ?? dense[0].id, signal)];
}

function form(known, base, signal) {
  const aside = h("div", { class: "aside", "aria-live": "polite" }), problems = h("div");
  const inputs = controls(known, base);
  let timer;
  const look = () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      try {
        const draft = recipe(inputs, false);
        aside.replaceChildren(...told(await post("/v1/pruning/preview", draft), draft));
        problems.replaceChildren();
        blame(whole, null);
      } catch (error) {
        if (!signal.aborted) refused(error);
      }
    }, WAIT);
  };
  const refused = (error) => {
    const control = blame(whole, error);
    problems.replaceChildren(callout("bad", error.message));
    aside.replaceChildren(h("div", { class: "card faint" }, "No preview: the recipe cannot be run as it stands."));
    return control;
  };
  const start = h("button", { class: "primary" }, "Start the job");
  const whole = h("form", {
    class: "split", oninput: look, onchange: look, novalidate: true,
    async onsubmit(event) {
      event.preventDefault();
      if (!whole.reportValidity()) return;
      start.disabled = true;
      try {
        await send(inputs);
        const job = await post("/v1/pruning/jobs", recipe(inputs, true));
        location.hash = `#/jobs/${job.id}`;
      } catch (error) {
        (refused(error) ?? problems.firstChild).scrollIntoView({ block: "center" });
      } finally { start.disabled = false; }
    },
  }, h("div", fieldsets(inputs, known), problems, start), aside);
  inputs.changed = look;
  look();
  return whole;
}

/** Mark the control that an error names, and unmark all others. */
function blame(form, error) {
  for (const other of form.querySelectorAll("[aria-invalid]")) other.removeAttribute("aria-invalid");
  if (!(error instanceof ApiError) || !error.param) return null;
  const control = [...form.querySelectorAll("[data-param]")].find((one) => error.param.startsWith(one.dataset.param));
  control?.setAttribute("aria-invalid", "true");
  return control;
}

function controls({ dense, methods, files, adapters, taken }, base) {
  const named = (kind) => methods.filter((m) => m.kind === kind).map((m) => [m.name, m.name]);
  const inputs = {
    target: 0.3,
    base: select(dense.map((b) => [b.id, b.id]), base, { "data-param": "base" }),
    name: h("input", { required: true, autocomplete: "off", pattern: "[a-zA-Z0-9][a-zA-Z0-9._\\-]{0,62}" }),
    measure: select([["target", "a fraction of the body removed"], ["parameters", "so many parameters left"], ["bytes", "so many bytes left"], ["latency_ms", "milliseconds for a decoding step"]], "target"),
    amount: h("input", { type: "number", min: 0, step: "any", "data-param": "size" }),
    criterion: select(named("criterion"), "obs"),
    allocator: select(named("allocator"), "uniform"),
    recovery: select(RECOVERIES, "closed_form"),
    carry: select([["project", "by index, exactly what stays"], ["refit", "by index, then refit"]], "refit"),
    fleet: h("input", { type: "checkbox" }),
    sequences: h("input", { type: "number", value: 128, min: 1, max: 65536 }),
    length: h("input", { type: "number", value: 256, min: 8, max: 131072 }),
    seed: h("input", { type: "number", value: 0, min: 0 }),
    changed: () => {},
  };
  const suggest = () => { inputs.name.placeholder = suggested(inputs, taken); };
  inputs.texts = Object.fromEntries(["calibration", "evaluation"].map((purpose) => [purpose, textChoice(purpose, files, adapters, inputs)]));
  inputs.base.addEventListener("change", () => Object.values(inputs.texts).forEach((text) => text.offer()));
  inputs.suggested = () => suggested(inputs, taken);
  inputs.slider = slider({
    label: "Part of the body that leaves", min: 0.02, max: 0.9, step: 0.01, value: 0.3, param: "target", show: (part) => percent(part),
    onchange: (part) => { inputs.target = part; suggest(); },
  });
  inputs.base.addEventListener("change", suggest);
  inputs.name.required = false; // what is suggested does
  suggest();
  return inputs;
}

function suggested(inputs, taken) {
  const stem = `${inputs.base.value}-${Math.round(100 * (1 - inputs.target))}`;
  let name = stem;
  for (let i = 2; taken.includes(name); i++) name = `${stem}-${i}`;
  return name;
}

/** Where a text comes from: an uploaded file, one to upload, or an adapter's own rows. */
function textChoice(purpose, files, adapters, inputs) {
  const file = h("input", { type: "file", hidden: true, "aria-label": `${purpose} text to upload`, accept: ".txt,.jsonl,text/plain" });
  const choice = h("select", { required: true, "data-param": purpose });
  const offer = () => {
    const own = adapters.filter((a) => a.base === inputs.base.value && purpose === "calibration");
    const sorted = [...files].sort((a, b) => (b.purpose === purpose) - (a.purpose === purpose));
    const uploaded = sorted.map((f) => h("option", { value: `file ${f.id}` }, `${f.filename}, ${bytes(f.bytes)}`));
    choice.replaceChildren(...(files.length ? [] : [h("option", { value: "" }, "choose …")]), ...uploaded,
      ...own.map((a) => h("option", { value: `adapter ${a.name}` }, `training rows of ${a.name}`)), h("option", { value: "upload" }, "upload a file …"));
  };
  choice.addEventListener("change", () => { file.hidden = choice.value !== "upload"; file.required = !file.hidden; });
  offer();
  return { choice, file, offer };
}

function fieldsets(inputs, { methods }) {
  const about = (kind, control) => {
    const note = h("p", { class: "hint" });
    const tell = () => {
      const method = methods.find((m) => m.kind === kind && m.name === control.value);
      note.replaceChildren(method.summary, " ", h("a", { href: method.paper.url, rel: "noreferrer", "aria-label": `${method.name}: ${method.paper.title}` }, method.paper.venue));
    };
    control.addEventListener("change", tell);
    tell();
    return note;
  };
  const amount = field("Amount", inputs.amount), part = h("div", { class: "slider" }, inputs.slider.input, h("span", { class: "faint" }, "of the parameters outside of the embedding"), inputs.slider.output);
  const measure = () => { amount.hidden = inputs.measure.value === "target"; part.hidden = !amount.hidden; };
  inputs.measure.addEventListener("change", measure);
  measure();
  const name = field("Name of the slim base", inputs.name, { param: "name", hint: "what requests will call it; as suggested when empty" });
  return [
    h("fieldset", h("legend", "What"), h("div", { class: "fields" }, field("Base", inputs.base), name)),
    h("fieldset", h("legend", "How much"), h("div", { class: "fields" }, field("Given as", inputs.measure), amount), h("p"), part),
    h("fieldset", h("legend", "On which text"), h("div", { class: "fields" },
      Object.entries(inputs.texts).map(([purpose, { choice, file }]) => h("div",
        field({ calibration: "Calibration", evaluation: "Evaluation" }[purpose], choice,
          { hint: { calibration: "what the scores and refits see: text like what you serve", evaluation: "held out, for the report" }[purpose] }), file)),
      field("Sequences", inputs.sequences), field("Tokens in each", inputs.length))),
    h("fieldset", h("legend", "By which methods"), h("div", { class: "fields" },
      h("div", field("Criterion, what matters", inputs.criterion, { param: "criterion" }), about("criterion", inputs.criterion)),
      h("div", field("Allocator, how much where", inputs.allocator, { param: "allocator" }), about("allocator", inputs.allocator)),
      field("Recovery, what repairs", inputs.recovery, { param: "recovery" }),
      field("Adapters are carried", inputs.carry, { param: "carry" }),
      field("Seed", inputs.seed, { param: "seed" })),
    h("p"), h("label", { class: "check" }, inputs.fleet, "Score units for all adapters too, not for the base alone")),
  ];
}

/** Upload the texts that are files of this computer. */
async function send(inputs) {
  for (const [purpose, text] of Object.entries(inputs.texts)) {
    if (text.choice.value !== "upload") continue;
    const added = await upload("/v1/files", { purpose }, [["file", text.file.files[0]]]);
    text.choice.prepend(h("option", { value: `file ${added.id}` }, added.filename));
    text.choice.value = `file ${added.id}`;
    text.file.hidden = true;
    text.file.required = false;
    notify(`${added.filename} is uploaded.`);
  }
}

/** The recipe that the form says; a draft leaves out texts that are not chosen yet. */
function recipe(inputs, final) {
  const measure = inputs.measure.value, amount = Number(inputs.amount.value);
  const size = { sequences: Number(inputs.sequences.value), length: Number(inputs.length.value) };
  const whole = {
    base: inputs.base.value,
    name: inputs.name.value.trim() || inputs.suggested(),
    ...(measure === "target" ? { target: inputs.target } : { size: { [measure]: measure === "latency_ms" ? amount : Math.round(amount) } }),
    criterion: { name: inputs.criterion.value },
    allocator: { name: inputs.allocator.value },
    recovery: inputs.recovery.value.split(" ").filter(Boolean).map((name) => ({ name })),
    carry: inputs.carry.value,
    ...(inputs.fleet.checked ? { fleet: {} } : {}),
    seed: Number(inputs.seed.value),
  };
  for (const [purpose, { choice }] of Object.entries(inputs.texts)) {
    const [place, name] = choice.value.split(" ");
    if (name) whole[purpose] = { [place]: name, ...size };
    else if (final) throw new ApiError(0, { message: "choose a text, or upload one", param: purpose });
  }
  return whole;
}

/** What the recipe would leave. */
function told({ dense, slim, layers, exact, notes }, draft) {
  const rows = slim && [
    ["Parameters", dense.parameters, slim.parameters, short], ["Weights", dense.weight_bytes, slim.weight_bytes, bytes],
    ["KV cache, values per token", dense.kv_cache_values_per_token, slim.kv_cache_values_per_token, count],
    ["Multiply-adds per token", dense.flops_per_token / 2, slim.flops_per_token / 2, short],
  ];
  return [h("div", { class: "card" },
    h("h2", "What would be left"),
    slim ? h("p", h("strong", `${bytes(dense.weight_bytes - slim.weight_bytes)} saved`), h("span", { class: "faint" }, `, ${percent(1 - slim.weight_bytes / dense.weight_bytes)} of the weights. Nothing has run yet.`)) : null,
    rows ? table("Before and after", [
      ["", ([name]) => name], ["Dense", ([, before, , show]) => show(before), "num"], ["Slim", ([, , after, show]) => show(after), "num"],
      ["Change", ([, before, after]) => change(after, before), "num"],
    ], rows) : null,
    notes.map((note) => h("p", { class: "hint" }, note[0].toUpperCase() + note.slice(1), ".")),
    layers.length ? h("div", h("p"), h("h3", exact ? "By layer" : "By layer, if all were alike"), layersPicture(layers)) : null,
    h("details", h("summary", "The recipe"), h("pre", { tabindex: 0 }, JSON.stringify(draft, null, 2)),
      h("p", { class: "hint" }, "The same as a YAML file runs with ", h("code", "graftwork prune RECIPE.yaml"), ".")))];
}

