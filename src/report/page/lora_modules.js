// Figure: intruder dimensions of whole modules, as published.
const modulesOf = (run) => run.whole?.modules ?? [];
const moduleAt = (run, layer, name) => modulesOf(run).find((one) => one.layer === layer && moduleName(one) === name);
// "layers.3.self_attn.q_proj" -> "q_proj"; parts of one name ("output.dense") by what is cut from them.
const MATRIX_TEXTS = { q: "queries", k: "keys", v: "values", o: "output", qa: "query latent", kva: "key-value latent", kpe: "rotary key", ob: "output latent", q_rope: "rotary queries" };
const moduleName = (one) => one.matrices.map((name) => MATRIX_TEXTS[name] ?? name).join(", ");
const moduleNames = (run) => {
  const order = Object.values(MATRIX_TEXTS);
  const rank = (name) => order.indexOf(name.split(", ")[0]);
  return [...new Set(modulesOf(run).map(moduleName))].sort((a, b) => rank(a) - rank(b));
};
// The kind of matrix whose update is largest beside it: the figure opens there.
const strongestUpdate = (run) => moduleName(modulesOf(run).reduce((best, one) => ((one.rel_spec ?? 0) > (best.rel_spec ?? 0) ? one : best)));
const SIDE_TEXTS = { output: "what it writes (output side, as published)", input: "what it reads (input side)" };

function drawModules() {
  if (!RUNS.some((run) => modulesOf(run).length)) return;
  const names = () => moduleNames(store.runData).map((name) => [name, name]);
  const thresholds = () => (store.runData.whole?.options?.thresholds ?? []).map((eps) => [String(eps), eps === 0.5 ? "0.5 (published)" : eps]);
  figure({
    id: "fig-modules",
    title: "Intruders of whole modules",
    question: "Did fine-tuning give a weight matrix a strong direction unlike every one it had?",
    see: "Here a weight matrix is looked at as one piece, all heads together, as Shuttleworth and others do (arXiv 2410.21228). It is taken apart into directions, strongest first, before and after training. A direction of the ten strongest after training whose cosine with every single direction before stays below the threshold is an intruder. Left: their number in each matrix; click a cell to choose it. Right: the largest cosine of each of the ten in that matrix; points below the line are the intruders. Grey: the mean over random updates as strong as this one.",
    care: "An intruder says that the update is strong beside the matrix, not that it is harmful, or does anything: scaling an update up makes intruders of any. Compare with grey: where a random update makes as many, they come from its size alone. Where strengths of the base lie close together, training mixes their directions, and a mixture counts as an intruder although it is nothing new. And a single head may have an intruder that the whole matrix hides, or the reverse: the figure before this one looks at heads.",
    keys: ["layer", "run"],
    defaults: { module: strongestUpdate(RUNS.find((run) => modulesOf(run).length)), side: "output", eps: 0.5 },
    controls: (f) => [
      f.moduleField = select("Matrix", "module", names(), f.options.module, (module) => f.set({ module })),
      select("Side", "side", Object.entries(SIDE_TEXTS), "output", (side) => f.set({ side })),
      f.epsField = select("Threshold", "eps", thresholds(), String(f.options.eps), (eps) => f.set({ eps: Number(eps) })),
    ],
    refill(f) {
      f.moduleField.fill(names(), f.options.module);
      f.options.module = f.moduleField.choice.value;
      f.epsField.fill(thresholds(), String(f.options.eps));
      f.options.eps = Number(f.epsField.choice.value) || 0.5;
    },
    async load(f) {
      const run = store.runData;
      return { run, ...f.options, names: moduleNames(run), layer: store.layerNumber(), one: moduleAt(run, store.layerNumber(), f.options.module) };
    },
    compose: composeModules,
    csv: (f, m) => [["layer", "module", "matrices", "out", "in", "rank", "rel_fro", "side", "direction", "singular_value", "similarity", "nearest", "random_similarity", "threshold", "intruder"],
      ...modulesOf(m.run).flatMap((one) => one[m.side].similarity.map((cosine, j) => [one.layer, one.module, moduleName(one), one.out, one.in, one.rank, one.rel_fro,
        m.side, j + 1, one.singular.adapted[j], cosine, one[m.side].nearest[j] + 1, one[m.side].null?.similarity[j], m.eps, Number(cosine < m.eps)]))],
    wire: (f) => f.plot.on("plotly_click", ({ points: [point] }) => {
      if (point.curveNumber !== 0) return;
      f.options.module = point.y;
      f.moduleField.choice.value = point.y;
      f.invalidate();
      selectLayer(store.runData.layers.indexOf(point.x));
    }),
  });
}

function composeModules(f, m, { theme, width }) {
  const stacked = width < 700;
  const layers = m.run.layers;
  const count = (one) => one[m.side].similarity.filter((cosine) => cosine < m.eps).length;
  const byChance = (one) => one[m.side].null?.intruders?.[(m.run.whole.options.thresholds ?? []).indexOf(m.eps)];
  const z = m.names.map((name) => layers.map((layer) => {
    const one = moduleAt(m.run, layer, name);
    return one ? count(one) : null;
  }));
  const top = m.run.whole?.options?.top ?? 10;
  const domains = stacked ? [[[0, 0.92], [0.62, 1]], [[0, 1], [0, 0.46]]] : [[[0, 0.4], [0, 1]], [[0.58, 1], [0, 1]]];
  const layout = baseLayout(theme, { height: stacked ? 640 : 380, margin: { l: 64, r: 16, t: 40, b: 48 }, annotations: [
    panelTitle("number of intruders among the strongest", theme, domains[0][0][0], domains[0][1][1] + 0.01),
    panelTitle(`${m.module}, layer ${m.layer}`, theme, domains[1][0][0], domains[1][1][1] + 0.01)],
    legend: { orientation: "h", x: domains[1][0][1], xanchor: "right", y: domains[1][1][0] + 0.03, yanchor: "bottom", font: { size: 12 } },
    shapes: [{ type: "line", xref: "x2 domain", yref: "y2", x0: 0, x1: 1, y0: m.eps, y1: m.eps, line: { color: theme.pick, width: 1.4, dash: "dash" } }] });
  layout.xaxis = axis(theme, "layer", { domain: domains[0][0], anchor: "y", showgrid: false, ...(layers.length <= 14 ? { dtick: 1 } : {}) });
  layout.yaxis = axis(theme, "", { domain: domains[0][1], anchor: "x", type: "category", autorange: "reversed", showgrid: false });
  layout.xaxis2 = axis(theme, "direction after training, strongest first", { domain: domains[1][0], anchor: "y2", range: [0.4, top + 0.6], dtick: 1 });
  layout.yaxis2 = axis(theme, "largest cosine with one before", { domain: domains[1][1], anchor: "x2", range: [0, 1.05] });
  const data = [{ type: "heatmap", x: layers, y: m.names, z, zmin: 0, zmax: Math.max(1, ...z.flat().filter(Number.isFinite)), colorscale: cividisScale, xgap: 1, ygap: 1,
    colorbar: { thickness: 10, outlinewidth: 0, tickfont: { size: 11, color: theme.soft }, x: domains[0][0][1] + 0.01,
      y: (domains[0][1][0] + domains[0][1][1]) / 2, len: domains[0][1][1] - domains[0][1][0], dtick: 1 },
    hovertemplate: "%{y}, layer %{x}: %{z}<extra></extra>" }];
  const ranks = m.one?.[m.side].similarity.map((_, j) => j + 1) ?? [];
  const random = m.one?.[m.side].null?.similarity;
  if (random) {
    data.push({ type: "scatter", mode: "lines+markers", x: ranks.slice(0, random.length), y: random, xaxis: "x2", yaxis: "y2", name: "a random update as strong",
      line: { color: theme.random, width: 1.4, dash: "dot" }, marker: { size: 5 }, hovertemplate: "random, direction %{x}: %{y:.3f}<extra></extra>" });
  }
  if (m.one) {
    const { similarity, nearest } = m.one[m.side];
    for (const [name, color, wanted] of [["this adapter", theme.runs[0], (cosine) => cosine >= m.eps], ["its intruders", theme.pick, (cosine) => cosine < m.eps]]) {
      const shown = ranks.filter((rank) => wanted(similarity[rank - 1]));
      data.push({ type: "scatter", mode: "markers", x: shown, y: shown.map((rank) => similarity[rank - 1]), xaxis: "x2", yaxis: "y2", name,
        customdata: shown.map((rank) => nearest[rank - 1] + 1), marker: { size: 10, color },
        hovertemplate: "direction %{x}: cosine %{y:.3f} with direction %{customdata} before<extra></extra>" });
    }
  }
  const all = modulesOf(m.run);
  const sum = (value) => all.reduce((total, one) => total + (value(one) ?? 0), 0);
  const known = all.filter((one) => !missing(byChance(one)));
  const inAll = `In all ${integer(all.length)} adapted matrices ${integer(sum(count))} of ${integer(sum((one) => one[m.side].similarity.length))}`
    + (known.length ? `; random updates as strong: ${number(sum(byChance), 3)}.` : ".");
  return { data, layout, label: `Intruders of whole modules, cosine below ${m.eps}, ${m.side} side`,
    readout: [el("strong", {}, m.one ? `${m.module}, layer ${m.layer}: ` : `${m.module}, layer ${m.layer}: not adapted. `),
      m.one ? `${integer(count(m.one))} of ${integer(ranks.length)} below ${m.eps}${missing(byChance(m.one)) ? "" : ` (random: ${number(byChance(m.one), 3)})`}; the update is ${number(m.one.rel_fro, 3)} of the matrix by size, ${number(m.one.rel_spec, 3)} by its strongest direction. ` : "", inAll] };
}
