// Figures of how evenly experts are used.
function drawUse() {
  if (!has("usage")) return;
  figure({
    id: "fig-use",
    title: "Experts from the most used down",
    question: "Do a few experts do all the work?",
    see: "Each expert's share of all choices, the most used first, both axes logarithmic. A level line is even use; one that falls early is a layer that lives off a few experts. Dashed: what so many choices give by chance if every expert is as likely as any other, which is not level either, because counts scatter. Thin lines are single heads.",
    care: "The end of the line on the right depends on how much text was read: an expert that was not chosen by this text may be chosen by another. Compare with the dashed line, which knows how many choices there were, and not with 100 %. Uneven use is no fault by itself: words are not equally frequent either.",
    keys: ["layer", "head"],
    load: async () => ({ layer: store.layerData, use: useOf(store.layerData), head: store.get("head") }),
    compose(f, m, { theme }) {
      const thin = m.head === "all" ? (m.layer.usage.heads ?? []) : [];
      const positive = (curve, key) => curve[key].map((share) => (share > 0 ? share : null));
      const data = thin.map((use, head) => ({ x: use.curve.rank, y: positive(use.curve, "share"), mode: "lines", showlegend: false,
        line: { color: withAlpha(theme.runs[0], 0.35), width: 1 }, hovertemplate: `head ${head}, rank %{x}: %{y:.3g}<extra></extra>` }));
      data.push({ x: m.use.curve.rank, y: positive(m.use.curve, "chance"), mode: "lines", name: "even use, by chance", line: { color: theme.random, width: 1.6, dash: "dash" },
        hovertemplate: "by chance, rank %{x}: %{y:.3g}<extra></extra>" },
      { x: m.use.curve.rank, y: positive(m.use.curve, "share"), mode: "lines", name: headText(m.head), line: { color: theme.runs[0], width: 2.4 },
        hovertemplate: "rank %{x}: %{y:.3g}<extra></extra>" });
      return { data, layout: baseLayout(theme, { height: 420, xaxis: axis(theme, "expert, the most used first", logAxis), yaxis: axis(theme, "share of choices", logAxis) }),
        label: `Shares of choices by rank, layer ${m.layer.layer}, ${headText(m.head)}`,
        readout: [el("strong", {}, `Layer ${m.layer.layer}, ${headText(m.head)}: `), `${percent(m.use.used)} of ${integer(DATA.model.experts)} experts were chosen at all (${percent(m.use.chance.used)} by chance) in ${integer(m.use.choices)} choices; the most used 1 % took ${percent(m.use.top_percent)}, the most used one ${percent(m.use.largest)}.`] };
    },
    csv: (f, m) => [["layer", "head", "rank", "share", "by_chance"], ...LAYERS.flatMap((layer) => ["all", ...(layer.usage?.heads ?? []).keys()].flatMap((head) => {
      const curve = useOf(layer, head)?.curve;
      return curve ? curve.rank.map((rank, i) => [layer.layer, head, rank, curve.share[i], curve.chance[i]]) : [];
    }))],
  });
}

function drawHistogram() {
  if (!has("usage")) return;
  figure({
    id: "fig-histogram",
    title: "How often an expert is chosen",
    question: "How many experts idle, and how many are busy?",
    see: "Bars: the number of experts that were chosen so many times, in steps that double. Diamonds: the same if choices fell evenly and by chance. Bars to the left of the diamonds are experts that are passed over, bars to the right of them experts that are sought.",
    care: "The first bar counts experts that this text never chose; more text makes it smaller in every model. Only its distance to its diamond says something.",
    keys: ["layer", "head"],
    load: async () => ({ layer: store.layerData, use: useOf(store.layerData), head: store.get("head") }),
    compose(f, m, { theme }) {
      const bins = m.use.histogram;
      const names = bins.from.map((low, i) => (low === bins.to[i] ? integer(low) : `${integer(low)}–${integer(bins.to[i])}`));
      return { data: [{ type: "bar", x: names, y: bins.experts, name: "experts", marker: { color: theme.runs[0] }, hovertemplate: "chosen %{x} times: %{y} experts<extra></extra>" },
        { type: "scatter", mode: "markers", x: names, y: bins.chance, name: "even use, by chance", marker: { symbol: "diamond-open", size: 10, color: theme.random, line: { width: 2 } },
          hovertemplate: "by chance %{y:.1f} experts<extra></extra>" }],
      layout: baseLayout(theme, { height: 380, bargap: 0.15, xaxis: axis(theme, "times chosen", { type: "category", showgrid: false }), yaxis: axis(theme, "experts", { rangemode: "tozero" }) }),
      label: `Experts by how often they were chosen, layer ${m.layer.layer}, ${headText(m.head)}`,
      readout: [el("strong", {}, `Layer ${m.layer.layer}, ${headText(m.head)}: `), `${integer(bins.experts[0])} experts were never chosen; chance would leave ${integer(bins.chance[0])} out.`] };
    },
    csv: (f, m) => [["layer", "head", "from", "to", "experts", "by_chance"], ...m.use.histogram.from.map((low, i) =>
      [m.layer.layer, m.head, low, m.use.histogram.to[i], m.use.histogram.experts[i], m.use.histogram.chance[i]])],
  });
}

function drawHeads() {
  if (!has("usage")) return;
  const heads = () => ["all", ...Array.from({ length: headCount() > 1 ? headCount() : 0 }, (_, head) => String(head))];
  figure({
    id: "fig-heads",
    title: "Layers and heads",
    question: "Is one layer, or one head, used unlike the others?",
    see: "One cell a head of a layer, and the row on top for all heads of a layer together. A head that uses few experts beside others that use many has collapsed; a layer in which every head uses few, but together they use many, has heads that divided the experts among themselves.",
    care: "All heads choose among the same experts with the same keys; only their queries differ. Colours run over the range that is found, so that a pale difference may be a small one: read the numbers.",
    keys: ["layer", "head"],
    defaults: { measure: "kl_uniform" },
    controls: (f) => [select("Measure", "measure", Object.entries(USES).map(([key, { name }]) => [key, name]), f.options.measure, (measure) => f.set({ measure }))],
    async load(f) {
      const { of } = USES[f.options.measure];
      return { measure: f.options.measure, heads: heads(), z: heads().map((head) => LAYERS.map((layer) => { const use = useOf(layer, head); return use ? of(use) : null; })) };
    },
    compose(f, m, { theme }) {
      const x = layerNumbers().map(String);
      const { name, text } = USES[m.measure];
      const chosen = { x: store.get("layer"), y: m.heads.indexOf(store.get("head")) };
      return { data: [{ type: "heatmap", x, y: m.heads, z: m.z, colorscale: cividisScale, xgap: 1, ygap: 1, hovertemplate: "layer %{x}, head %{y}: %{z:.4g}<extra></extra>",
        colorbar: { title: { text: name, side: "right" }, thickness: 10, outlinewidth: 0, tickfont: { size: 11, color: theme.soft } } }],
      layout: baseLayout(theme, { height: Math.min(520, 130 + Math.max(150, 24 * m.heads.length)), xaxis: axis(theme, "layer", { type: "category", showgrid: false }),
        yaxis: axis(theme, "head", { type: "category", showgrid: false, autorange: "reversed" }),
        shapes: [{ type: "rect", x0: chosen.x - 0.5, x1: chosen.x + 0.5, y0: chosen.y - 0.5, y1: chosen.y + 0.5, line: { color: theme.pick, width: 2 } }] }),
      label: `${name} of every head and layer`,
      readout: [el("strong", {}, `Layer ${store.layerData.layer}, ${headText(store.get("head"))}: `), `${name} ${text(m.z[chosen.y][chosen.x] ?? NaN)}.`] };
    },
    csv: (f, m) => [["layer", "head", m.measure], ...m.heads.flatMap((head, y) => LAYERS.map((layer, i) => [layer.layer, head, m.z[y][i]]))],
    wire: (f) => f.plot.on("plotly_click", ({ points: [point] }) => store.set({ layer: layerNumbers().map(String).indexOf(point.x), head: point.y })),
  });
}

function drawTrained() {
  if (!DATA.training) return;
  const { training } = DATA;
  const layers = Object.keys(training.layers);
  const measures = ["used", "kl_uniform", "entropy"];
  figure({
    id: "fig-trained",
    title: "Use while the model was trained",
    question: "Did experts die on the way, or come into use?",
    see: "A line a layer, dark the first and light the last, over the tokens read. Each point counts the choices of training since the logged step before. A share that falls and stays low is a collapse: experts that are never chosen get no gradient and do not come back by themselves.",
    care: "A point rests on as many choices as lie between two logged steps, so the share used depends on that interval: compare points of one run, not runs that were logged unlike each other.",
    keys: [],
    defaults: { measure: "used" },
    controls: (f) => [select("Measure", "measure", measures.map((key) => [key, USES[key].name]), f.options.measure, (measure) => f.set({ measure }))],
    load: async (f) => ({ measure: f.options.measure }),
    compose(f, m, { theme }) {
      const colours = depthColours(theme);
      const lines = layers.map((layer, i) => ({ x: training.tokens, y: training.layers[layer][m.measure], mode: "lines", name: `layer ${layer}`, showlegend: layers.length <= 8,
        line: { color: colours.at(layers.length > 1 ? i / (layers.length - 1) : 0), width: 2 }, hovertemplate: `layer ${layer}: %{y:.4g}<extra></extra>` }));
      const { axis: title, text, name } = USES[m.measure];
      return { data: layers.length > 8 ? [...lines, depthBar(theme, layers.map(Number))] : lines,
        layout: baseLayout(theme, { height: 380, xaxis: axis(theme, "tokens read", { rangemode: "tozero", exponentformat: "B" }),
          yaxis: axis(theme, title.replace(", %", ""), m.measure === "used" ? { tickformat: ".0%", rangemode: "tozero" } : {}) }),
        label: `${name} while the model was trained`,
        readout: [`${name[0].toUpperCase()}${name.slice(1)} at the end: `, ...layers.flatMap((layer, i) => [i ? "; " : "", el("strong", {}, `layer ${layer} `), text(training.layers[layer][m.measure].at(-1))]), "."] };
    },
    csv: (f, m) => [["layer", "step", "tokens", m.measure], ...layers.flatMap((layer) => training.step.map((step, i) => [layer, step, training.tokens[i], training.layers[layer][m.measure][i]]))],
  });
}
