// Pictures as SVG, drawn to the width that they get and again when it changes.

import { bytes, count, fixed, h, percent, s, short } from "./dom.js";

/** A picture whose `draw(width)` makes its SVG. */
export function chart(draw) {
  const holder = h("div", { class: "chart" });
  let drawn = 0;
  new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width > 0 && width !== drawn) holder.replaceChildren(draw((drawn = width)));
  }).observe(holder);
  return holder;
}

const picture = (width, height, label, ...children) => framed("img", width, height, label, children);
const framed = (role, width, height, label, ...children) =>
  s("svg", { viewBox: `0 0 ${width} ${height}`, height, role, "aria-label": label }, children);

/** What stays of every layer: query heads in their KV groups on the left, the FFN's width on the right. */
export function layersPicture(layers) {
  const label = `What stays of ${layers.length} layers: ` + layers.map((l) =>
    `layer ${l.layer}: ${l.heads} of ${l.dense_heads} heads in ${l.kv_groups} of ${l.dense_kv_groups} groups, ` +
    `${l.ffn_channels} of ${l.dense_ffn_channels} channels`).join("; ");
  const many = layers.length > 16;
  const row = many ? 16 : 24;
  return h("div",
    chart((width) => {
      const left = 30, gap = 26, reach = width - left;
      const heads = Math.min(reach * 0.42, 26 * Math.max(...layers.map((l) => l.dense_heads)));
      const ffn = reach - heads - gap;
      const rows = layers.map((l, i) => {
        const y = 22 + i * row, tall = row - (many ? 4 : 8);
        return [
          s("text", { x: 0, y: y + tall - (many ? 2 : 4) }, l.layer),
          ...headCells(l, left, y, heads, tall),
          s("rect", { class: "rest", x: left + heads + gap, y, width: ffn, height: tall, rx: 2 }),
          s("rect", { class: "ffn", x: left + heads + gap, y, height: tall, rx: 2,
            width: (ffn * l.ffn_channels) / Math.max(1, l.dense_ffn_channels) }),
        ];
      });
      return picture(width, 22 + layers.length * row, label,
        s("text", { x: left, y: 10 }, "query heads"), s("text", { x: left + heads + gap, y: 10 }, "FFN channels"), rows);
    }),
    h("ul", { class: "key" }, h("li", { class: "attention" }, "heads that stay, framed by KV group"),
      h("li", { class: "ffn" }, "FFN channels that stay"), h("li", "what leaves")));
}

function headCells(layer, left, y, width, tall) {
  const groups = layer.dense_kv_groups, size = layer.dense_heads / groups;
  const stay = layer.kv_groups ? layer.heads / layer.kv_groups : 0;
  const wide = width / groups, cell = (wide - 4) / size;
  return Array.from({ length: groups }, (_, group) => [
    ...Array.from({ length: size }, (_, head) => s("rect", {
      class: group < layer.kv_groups && head < stay ? "attention" : "rest",
      x: left + group * wide + 1 + head * cell, y: y + 1, width: Math.max(1, cell - 1.5), height: tall - 2, rx: 1,
    })),
    group < layer.kv_groups && size > 1 && wide > 10
      ? s("rect", { class: "groups", x: left + group * wide, y, width: wide - 4, height: tall, rx: 2 }) : null,
  ]);
}

/** Size against quality: slim bases of one dense base, the front drawn through the best; `to` makes addresses. */
export function frontPicture(front, here, to = (name) => `#/bases/${encodeURIComponent(name)}`) {
  const points = [...front.data].sort((a, b) => a.parameters - b.parameters);
  const label = `Size against quality of ${points.length} slim bases of ${front.base}: ` + points.map((p) =>
    `${p.name} keeps ${percent(p.parameters / front.parameters)} of the parameters and loses ${fixed(p.delta_nats, 3)} nats per token`).join("; ");
  const worst = Math.max(0.05, ...points.map((p) => p.delta_nats)) * 1.12;
  const least = Math.min(0, ...points.map((p) => p.delta_nats)) * 1.12;
  return h("div",
    chart((width) => {
      const height = Math.min(340, Math.max(240, width * 0.5)), left = 42, bottom = height - 36, top = 26, right = width - 22;
      const low = Math.max(0, Math.floor(10 * Math.min(...points.map((p) => p.parameters / front.parameters)) - 0.5) / 10);
      const x = (part) => left + ((part - low) / (1 - low)) * (right - left);
      const y = (nats) => bottom - ((nats - least) / (worst - least)) * (bottom - top);
      const step = (1 - low > 0.6 ? 0.2 : 0.1) * (width < 420 ? 2 : 1), ticks = [];
      for (let t = 1; t > low - 1e-9; t -= step) ticks.push(t);
      const best = [...points.filter((p) => p.on_front).map((p) => [p.parameters / front.parameters, p.delta_nats]), [1, 0]];
      return framed(to ? "group" : "img", width, height, label,
        ticks.map((t) => [
          s("line", { class: "axis", x1: x(t), x2: x(t), y1: top, y2: bottom }),
          s("text", { x: x(t), y: bottom + 16, "text-anchor": "middle" }, t === 1 ? "dense" : percent(t)),
        ]),
        [0, 0.5, 1].map((t) => {
          const nats = t * worst;
          return [s("line", { class: "axis", x1: left, x2: right, y1: y(nats), y2: y(nats) }),
            s("text", { x: left - 8, y: y(nats) + 4, "text-anchor": "end" }, fixed(nats, 2))];
        }),
        s("text", { x: right, y: height - 2, "text-anchor": "end" }, "parameters kept"),
        s("text", { x: 0, y: 10 }, "nats lost per token"),
        s("polyline", { class: "stroke", points: best.map(([part, nats]) => `${x(part)},${y(nats)}`).join(" ") }),
        points.map((p) => s(to ? "a" : "g", { href: to && to(p.name), "aria-label": to && p.name },
          s("circle", { class: `dot ${p.on_front ? "best" : ""} ${p.name === here ? "here" : ""}`,
            cx: x(p.parameters / front.parameters), cy: y(p.delta_nats), r: 6 },
          s("title", `${p.name}: ${count(p.parameters)} parameters, ${bytes(p.weight_bytes)}, ${fixed(p.delta_nats, 3)} nats lost per token`)))),
        points.length <= 12 ? named(points, front, x, y, bottom) : null,
        s("circle", { class: "dot", cx: x(1), cy: y(0), r: 5 }));
    }),
    h("ul", { class: "key" }, h("li", { class: "dot" }, "worth having: no other is both smaller and better"), h("li", { class: "dot other" }, "another is")));
}

/** Names stand below the front, which falls to the right, or above and to the right where it has fallen; none on another. */
function named(points, front, x, y, bottom) {
  const taken = [];
  return points.filter((p) => p.on_front).map((p) => {
    const at = x(p.parameters / front.parameters), long = 7.6 * p.name.length;
    const below = at > 42 + long && y(p.delta_nats) + 22 < bottom;
    const start = below ? at - 9 - long : Math.min(at - 2, x(1) - long), line = y(p.delta_nats) + (below ? 16 : -12);
    if (taken.some(([other, end, height]) => start < end && start + long > other && Math.abs(line - height) < 13)) return null;
    taken.push([start, start + long, line]);
    return s("text", { class: "strong", x: below ? at - 9 : start, y: line, "text-anchor": below ? "end" : "start" }, p.name);
  });
}

/** Loss of every adapter: the dense base without it, with it, and the slim base with the carried one. */
export function lossPicture(adapters) {
  const measured = adapters.filter((a) => a.dense_adapter !== null);
  const most = Math.max(...measured.flatMap((a) => [a.dense_base, a.slim_adapter, a.dense_adapter])) * 1.02;
  const label = "Loss per completion token, before and after: " + measured.map((a) =>
    `${a.name}: ${fixed(a.dense_base)} without the adapter, ${fixed(a.dense_adapter)} with it, ${fixed(a.slim_adapter)} slim`).join("; ");
  return h("div",
    chart((width) => {
      const left = Math.min(130, width * 0.3), row = 30, top = 40, x = (loss) => left + (loss / most) * (width - left - 10);
      const bottom = top + measured.length * row, step = Math.max(1, Math.ceil(most / (width < 420 ? 4 : 8)));
      const ticks = Array.from({ length: Math.floor(most / step) + 1 }, (_, i) => i * step);
      return picture(width, bottom, label, s("text", { x: 0, y: 10 }, "nats per completion token; less is better"), ticks.map((t) => [
        s("text", { x: x(t), y: 30, "text-anchor": "middle" }, t),
        s("line", { class: "axis", x1: x(t), x2: x(t), y1: 36, y2: bottom }),
      ]), measured.map((a, i) => {
        const y = top + (i + 0.5) * row;
        return [
          s("text", { class: "strong", x: 0, y: y + 4 }, a.name.length > 17 ? `${a.name.slice(0, 16)}…` : a.name),
          s("line", { class: "axis", x1: left, x2: width - 10, y1: y, y2: y }),
          s("line", { class: "line", x1: x(a.dense_adapter), x2: x(a.slim_adapter), y1: y, y2: y }),
          s("circle", { class: "faded", cx: x(a.dense_base), cy: y, r: 4 }, s("title", `without it ${fixed(a.dense_base, 3)}`)),
          s("circle", { class: "attention", cx: x(a.dense_adapter), cy: y, r: 6 }, s("title", `dense ${fixed(a.dense_adapter, 3)}`)),
          s("circle", { class: "ffn", cx: x(a.slim_adapter), cy: y, r: 6 }, s("title", `slim ${fixed(a.slim_adapter, 3)}`)),
        ];
      }));
    }),
    h("ul", { class: "key" }, h("li", { class: "attention" }, "dense base with the adapter"), h("li", { class: "ffn" }, "slim base with the carried one"),
      h("li", { class: "faded" }, "dense base without it")));
}

/** How alike adapters are: a square of cosines. */
export function similarityPicture({ names, cosines }) {
  const label = "Cosine between adapters: " + names.flatMap((a, i) => names.slice(i + 1).map((b, j) =>
    `${a} and ${b} ${fixed(cosines[i][i + 1 + j], 3)}`)).join("; ");
  return chart((width) => {
    const left = Math.min(130, width * 0.28), size = Math.min(64, (width - left) / names.length), top = 8;
    const texts = size > 34;
    return picture(width, top + size * names.length + 24, label, names.map((name, i) => [
      s("text", { class: "strong", x: left - 8, y: top + (i + 0.5) * size + 4, "text-anchor": "end" }, cut(name, 16)),
      s("text", { x: left + (i + 0.5) * size, y: top + size * names.length + 16, "text-anchor": "middle" }, cut(name, Math.floor(size / 7))),
      cosines[i].map((cosine, j) => {
        const part = cosine === null ? 0 : Math.min(1, Math.abs(cosine));
        return [
          s("rect", { class: `cell ${cosine < 0 ? "ffn" : "accent"}`, "fill-opacity": 0.08 + 0.92 * Math.sqrt(part),
            x: left + j * size, y: top + i * size, width: size, height: size, rx: 3 },
          s("title", `${name} and ${names[j]}: ${fixed(cosine, 3)}`)),
          texts ? s("text", { class: part > 0.3 ? "inside" : "strong", x: left + (j + 0.5) * size, y: top + (i + 0.5) * size + 4,
            "text-anchor": "middle" }, fixed(cosine, 2)) : null,
        ];
      }),
    ]));
  });
}

const cut = (text, most) => (text.length > most ? `${text.slice(0, Math.max(1, most - 1))}…` : text);

/** A line of the latest values. */
export function sparkline(values, label) {
  return chart((width) => {
    const height = 56, most = Math.max(1, ...values);
    const x = (i) => (values.length < 2 ? width : (i / (values.length - 1)) * width);
    const y = (value) => height - 4 - (value / most) * (height - 18);
    return picture(width, height, `${label}: now ${short(values.at(-1) ?? 0)}, at most ${short(most)}`,
      s("line", { class: "axis", x1: 0, x2: width, y1: height - 3, y2: height - 3 }),
      s("polyline", { class: "stroke", points: values.map((value, i) => `${x(i)},${y(value)}`).join(" ") }),
      s("text", { x: width, y: 10, "text-anchor": "end" }, `at most ${short(most)}`));
  });
}
