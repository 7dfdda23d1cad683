// The API, request by request, read from the gateway's own OpenAPI document.

import { get } from "../api.js";
import { empty, field, h, page, section, table } from "../dom.js";

export const title = () => "API";

const MEDIA = ["application/json", "multipart/form-data"];

export async function render({ signal }) {
  const { paths, components } = await get("/openapi.json", signal);
  const requests = Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, request]) => ({ ...request, path, method: method.toUpperCase() })));
  const sought = h("input", { type: "search", autocomplete: "off", placeholder: "adapters" });
  const shown = h("div");
  const find = () => shown.replaceChildren(...grouped(requests, sought.value.trim().toLowerCase(), components.schemas));
  sought.addEventListener("input", find);
  find();
  return [page("API", h("span", "OpenAI's clients work as they are, with the address ", h("code", `${location.origin}/v1`), "."),
    h("a", { class: "button", href: "/openapi.json" }, "OpenAPI document")),
  section(null, field("Find a request", sought)), shown];
}

function grouped(requests, word, schemas) {
  const found = requests.filter((one) => `${one.method} ${one.path} ${one.description}`.toLowerCase().includes(word));
  if (!found.length) return [empty("No request is called so.")];
  const tags = [...new Set(found.map((one) => one.tags[0]))];
  return tags.map((tag) => section(tag[0].toUpperCase() + tag.slice(1), h("div", { class: "card requests" },
    found.filter((one) => one.tags[0] === tag).map((one) => request(one, schemas)))));
}

const request = (one, schemas) => unfolding(
  [h("span", { class: "method" }, one.method), h("code", one.path), h("span", { class: "faint" }, sentence(one.description.split("\n\n")[0]))],
  () => [
    one.description.split("\n\n").slice(1).map((text) => h("p", sentence(text))),
    one.parameters?.length ? fields("Parameters", Object.fromEntries(one.parameters.map((p) => [p.name, { ...p.schema, place: p.in }])),
      one.parameters.filter((p) => p.required).map((p) => p.name), schemas) : null,
    Object.entries(one.requestBody?.content ?? {}).filter(([media]) => MEDIA.includes(media)).map(([media, { schema }]) => described(`Body, ${media}`, schema, schemas)),
    answers(one).map((schema) => described("Answer", schema, schemas)),
  ]);

const answers = ({ responses }) => Object.entries(responses).filter(([status]) => status.startsWith("2"))
  .map(([, answer]) => answer.content?.["application/json"]?.schema).filter((schema) => schema && Object.keys(schema).length);

/** A schema by its fields, or in a word where it has none. */
function described(heading, schema, schemas) {
  const { properties, required } = schema.$ref ? schemas[named(schema)] : schema;
  if (properties) return fields(heading, properties, required ?? [], schemas);
  return [h("h3", heading), h("p", type(schema)), inner([schema], schemas)];
}

/** The fields of an object, and below them those of the objects in it, folded. */
const fields = (heading, properties, required, schemas) => [h("h3", heading),
  table(heading, [
    ["Name", ([name]) => h("code", name)],
    ["Type", ([, schema]) => type(schema)],
    ["Default", ([name, schema]) => (required.includes(name) ? "required" : schema.default === undefined ? "" : h("code", JSON.stringify(schema.default)))],
    ["Meaning", ([, schema]) => sentence(meaning(schema))],
  ].slice(0, Object.values(properties).some(meaning) ? 4 : 3), Object.entries(properties)),
  inner(Object.values(properties), schemas)];

const meaning = ({ place, description }) => [place && `in the ${place}`, description].filter(Boolean).join("; ");

const inner = (owners, schemas) => [...new Set(owners.flatMap(references))].filter((name) => schemas[name].properties)
  .map((name) => unfolding([h("code", name)], () => described(name, { $ref: `#/${name}` }, schemas)));

const named = (schema) => schema.$ref.split("/").at(-1);
const parts = (schema) => schema.anyOf ?? schema.oneOf ?? [];
const references = (schema) => (schema.$ref ? [named(schema)] : [...parts(schema), schema.items, schema.additionalProperties].filter(Boolean).flatMap(references));

/** A type in a few words, as the documentation words it. */
function type(schema) {
  if (schema.$ref) return named(schema);
  if (parts(schema).length) return [...new Set(parts(schema).map(type))].join(" or ");
  if (schema.enum ?? schema.const) return (schema.enum ?? [schema.const]).join(", ");
  if (schema.type === "array") return `list of ${type(schema.items ?? {})}`;
  const limits = [["minimum", "≥"], ["exclusiveMinimum", ">"], ["maximum", "≤"], ["exclusiveMaximum", "<"]];
  return [schema.type ?? "any", ...limits.filter(([key]) => key in schema).map(([key, sign]) => `${sign} ${schema[key]}`)].join(" ");
}

/** A text whose `code` is set as such. */
const sentence = (text) => text.split(/`+([^`]+)`+/).map((part, i) => (i % 2 ? h("code", part) : part));

/** What is built once somebody looks. */
function unfolding(summary, build) {
  const whole = h("details", { ontoggle: () => whole.childElementCount > 1 || whole.append(h("div", { class: "unfolded" }, build())) },
    h("summary", summary));
  return whole;
}
