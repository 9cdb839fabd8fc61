// Figure: what lies between two experts.
const BETWEEN = {
  cosine: { name: "likeness to either end", axis: "cosine with either expert", keys: ["to_a", "to_b"] },
  departure: { name: "distance from the straight line", axis: "distance, parts of that between the ends", keys: ["departure"] },
  length: { name: "length", axis: "length, parts of the ends'", keys: ["length"] },
  response: { name: "response to real tokens", axis: "distance from the blend, parts of that between the ends", keys: ["response"] },
};
const PAIRS = { nearest: "an expert and its nearest", drawn: "two experts drawn at random" };

function drawBetween() {
  if (!has("interpolation")) return;
  const known = Object.entries(BETWEEN).filter(([key]) => key !== "response" || LAYERS.some((one) => one.interpolation?.pairs[0]?.response));
  figure({
    id: "fig-between",
    title: "Between two experts",
    question: "Half way between two latents, is there an expert that does half of each?",
    see: "The latent moves in a straight line from one expert to another, and what is generated from it is compared with both. Thin lines are single pairs, thick their mean. Likeness: how the vector turns from one end to the other. Distance from the straight line: 0 if the vector moved as straight as the latent. Response: whether the expert between answers real tokens as a blend of the two would (0) or unlike both (towards 1 and more).",
    care: "Near ends make everything look straight, which is why random pairs stand beside them. A smooth path does not mean that the experts on it are of use: nothing was trained to choose them.",
    keys: ["layer"],
    defaults: { measure: "cosine" },
    controls: (f) => [select("Measure", "measure", known.map(([key, { name }]) => [key, name]), f.options.measure, (measure) => f.set({ measure }))],
    load: async (f) => ({ layer: store.layerData.layer, found: store.layerData.interpolation, measure: f.options.measure }),
    compose(f, m, { theme }) {
      const { axis: title, keys, name } = BETWEEN[m.measure];
      const kinds = Object.keys(PAIRS).filter((kind) => m.found.pairs.some((pair) => pair.kind === kind));
      const meanAt = (kind, key) => m.found.t.map((_, i) => { const list = m.found.pairs.filter((pair) => pair.kind === kind); return list.reduce((sum, pair) => sum + pair[key][i], 0) / list.length; });
      const data = kinds.flatMap((kind) => keys.flatMap((key, k) => {
        const colour = theme.runs[kind === "nearest" ? 0 : 1];
        const dash = k ? "dot" : "solid";
        return [...m.found.pairs.filter((pair) => pair.kind === kind).map((pair) => ({ x: m.found.t, y: pair[key], mode: "lines", showlegend: false, legendgroup: kind, line: { color: withAlpha(colour, 0.22), width: 1, dash },
          hovertemplate: `${pair.a} to ${pair.b}: %{y:.3f}<extra></extra>` })),
        { x: m.found.t, y: meanAt(kind, key), mode: "lines", name: PAIRS[kind], legendgroup: kind, showlegend: k === 0, line: { color: colour, width: 2.8, dash }, hovertemplate: `${PAIRS[kind]}, mean: %{y:.3f}<extra></extra>` }];
      }));
      const of = (kind) => m.found.pairs.filter((pair) => pair.kind === kind);
      const ends = (kind) => of(kind).filter((pair) => pair.midpoint.end).length;
      return { data, layout: baseLayout(theme, { height: 420, xaxis: axis(theme, "way from the first expert to the second", { tickformat: ".0%" }), yaxis: axis(theme, title, m.measure === "cosine" ? {} : { rangemode: "tozero" }) }),
        label: `${name} between pairs of experts, layer ${m.layer}`,
        readout: [el("strong", {}, `Layer ${m.layer}, half way: `), kinds.map((kind) => `${PAIRS[kind][0].toUpperCase()}${PAIRS[kind].slice(1)}: ${keys.map((key) => number(meanAt(kind, key)[(m.found.t.length - 1) / 2], 3)).join(" and ")}; the nearest real expert is one of the two in ${ends(kind)} of ${of(kind).length} pairs`).join(". "), "."] };
    },
    csv: (f, m) => [["layer", "kind", "a", "b", "t", "to_a", "to_b", "length", "departure", "response"], ...m.found.pairs.flatMap((pair) => m.found.t.map((t, i) =>
      [m.layer, pair.kind, pair.a, pair.b, t, pair.to_a[i], pair.to_b[i], pair.length[i], pair.departure[i], pair.response?.[i]]))],
  });
}
