// Playground: one prompt, two models side by side, each with adapters and their weights.

import { events, find, list } from "../api.js";
import { callout, empty, field, fixed, h, page, select, slider } from "../dom.js";

export const title = () => "Playground";

const MOST_WEIGHT = 2;

export async function render({ query, signal }) {
  const [models, adapters] = await Promise.all([list("/v1/models", signal), find("/v1/adapters", signal)]);
  const bases = models.filter((model) => !model.parent || !model.id.includes("+")); // aliases have a parent too
  const head = page("Playground", "The same prompt to two models; adapters add up with the weights that you give them.");
  if (!bases.length) return [head, empty("Nothing is served yet.")];
  const known = { bases, models, adapters: adapters?.data ?? [] };
  const first = query.get("a") ?? bases[0].id, second = query.get("b") ?? bases.find((b) => b.parent === null && b.id !== first)?.id ?? first;
  const panes = [pane("A", known, first), pane("B", known, second)];
  const prompt = h("textarea", { value: query.get("prompt") ?? "", required: true, rows: 5, placeholder: "Query: how would you say fly in italian\nIntent:" });
  const options = {
    endpoint: select([["completions", "completion"], ["chat/completions", "chat"]], "completions"),
    max_tokens: h("input", { type: "number", value: 64, min: 1, max: 4096 }),
    temperature: h("input", { type: "number", value: 0, min: 0, max: 2, step: 0.1 }),
  };
  let running = null;
  const stop = h("button", { type: "button", hidden: true, onclick: () => running?.abort() }, "Stop");
  const ask = h("button", { class: "primary" }, "Ask both");
  const form = h("form", {
    async onsubmit(event) {
      event.preventDefault();
      running = new AbortController();
      signal.addEventListener("abort", () => running.abort());
      [ask.disabled, stop.hidden] = [true, false];
      await Promise.all(panes.map((one) => one.ask(prompt.value, options, running.signal)));
      [ask.disabled, stop.hidden] = [false, true];
    },
    onkeydown: (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && form.requestSubmit(),
  },
  field("Prompt", prompt, { hint: "Ctrl+Enter asks" }), h("p"),
  h("div", { class: "fields" }, field("As", options.endpoint), field("Tokens at most", options.max_tokens), field("Temperature", options.temperature)),
  h("p"), h("div", { class: "row" }, ask, stop));
  return [head, h("section", { class: "card" }, form), h("div", { class: "panes" }, panes.map((one) => one.element))];
}

/** One model: its base, the weights of adapters, and what it answers. */
function pane(letter, { bases, models, adapters }, wanted) {
  const [home, given] = wanted.split(/\+(.*)/s);
  const base = select(bases.map((b) => [b.id, b.parent ? `${b.id} → ${b.parent}` : b.id]), bases.some((b) => b.id === home) ? home : bases[0].id,
    { onchange: () => offer(null) });
  const weights = new Map(), list = h("ul", { class: "weights" }), shown = h("code"), answer = h("div", { class: "answer", role: "log", tabindex: 0, "aria-label": `Answer of ${letter}` });
  const figures = h("p", { class: "hint" }, " "), named = h("div");

  const model = () => {
    const parts = [...weights].filter(([, weight]) => weight !== 0);
    if (parts.length === 1 && parts[0][1] === 1) return `${base.value}+${parts[0][0]}`;
    return base.value + parts.map(([name, weight]) => `+${name}:${weight}`).join("");
  };
  const tell = () => { shown.textContent = model(); };
  const offer = (preset) => {
    const target = bases.find((b) => b.id === base.value)?.parent ?? base.value;
    const own = adapters.filter((a) => a.base === target);
    const compositions = models.filter((m) => m.parent === target && m.id.includes("+") && !own.some((a) => a.id === m.id));
    weights.clear();
    if (preset && own.some((a) => a.name === preset)) weights.set(preset, 1);
    list.replaceChildren(...own.map((a) => weightRow(a.name)));
    named.replaceChildren(...(compositions.length ? [h("p", { class: "hint" }, `Compositions with names: ${compositions.map((c) => c.id).join(", ")}`)] : []));
    if (!own.length) list.replaceChildren(h("li", { class: "faint" }, "no adapters"));
    tell();
  };
  const weightRow = (name) => {
    const { input, output } = slider({
      label: `Weight of ${name} in ${letter}`, min: 0, max: MOST_WEIGHT, step: 0.05, value: weights.get(name) ?? 0,
      show: (weight) => (weight ? fixed(weight, 2) : "off"), onchange(weight) { weights.set(name, Number(weight.toFixed(2))); tell(); },
    });
    return h("li", h("span", name), input, output);
  };
  offer(given);

  async function ask(prompt, options, signal) {
    answer.replaceChildren(h("span", { class: "asked" }, prompt));
    const chat = options.endpoint.value.startsWith("chat"), started = performance.now();
    const body = {
      model: model(), stream: true, stream_options: { include_usage: true }, max_tokens: Number(options.max_tokens.value), temperature: Number(options.temperature.value),
      ...(chat ? { messages: [{ role: "user", content: prompt }] } : { prompt }),
    };
    let first = null, tokens = 0;
    try {
      for await (const event of events(`/v1/${options.endpoint.value}`, { body, signal })) {
        if (event.error) throw new Error(event.error.message);
        const [choice] = event.choices ?? [];
        const text = chat ? choice?.delta?.content : choice?.text;
        if (text) { first ??= performance.now(); answer.append(text); }
        tokens = event.usage?.completion_tokens ?? tokens;
      }
      figures.textContent = first === null ? "It answered with nothing." : speed(started, first, tokens);
    } catch (error) {
      if (error.name !== "AbortError") answer.append(callout("bad", error.message));
      figures.textContent = error.name === "AbortError" ? "Stopped." : " ";
    }
  }

  return {
    ask,
    element: h("section", { class: "card", "aria-label": `Model ${letter}` }, h("h2", letter), field("Base", base), list, named,
      h("p", { class: "small" }, "model ", shown), answer, figures),
  };
}

function speed(started, first, tokens) {
  const wait = `first token after ${fixed((first - started) / 1000, 2)} s`;
  const took = (performance.now() - first) / 1000;
  return tokens > 1 && took > 0 ? `${wait}, ${tokens} tokens, ${fixed((tokens - 1) / took, 1)} a second` : wait;
}
