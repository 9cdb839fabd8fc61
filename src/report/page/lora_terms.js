// Figures: what a head's change is made of (terms), and whether it is new (2 x 2 split).
function stackedHeads({ theme, width }, m, seriesOf, more) {
  const stacked = width < 620;
  const count = m.circuits.length;
  const gap = 0.1;
  const span = (1 - gap * (count - 1)) / count;
  const layout = baseLayout(theme, { height: stacked ? 300 * count + 60 : 400, barmode: "relative", bargap: 0.25,
    margin: { l: 60, r: 16, t: 62, b: 48 }, annotations: [], shapes: [] });
  layout.legend = { ...layout.legend, y: stacked ? 1.05 : 1.12, traceorder: "normal" };
  const data = [];
  m.circuits.forEach((circuit, i) => {
    const suffix = i ? String(i + 1) : "";
    const from = stacked ? 0 : i * (span + gap);
    const high = stacked ? 1 - i * (span + gap) : 1;
    for (const series of seriesOf(circuit, theme)) {
      data.push({ type: "bar", xaxis: `x${suffix}`, yaxis: `y${suffix}`, x: m.heads, y: series.y, name: series.name,
        legendgroup: series.name, showlegend: series.legend !== false, marker: { color: series.colour, line: { width: 0 } },
        hovertemplate: `${circuit}, head %{x}<br>${series.name}: %{y:.1%}<extra></extra>` });
    }
    layout[`xaxis${suffix}`] = axis(theme, "head", { domain: stacked ? [0, 1] : [from, from + span], anchor: `y${suffix}`, showgrid: false,
      range: [-0.6, m.heads.length - 0.4], ...(m.heads.length <= 16 ? { dtick: 1 } : {}) });
    layout[`yaxis${suffix}`] = axis(theme, i && !stacked ? "" : "share of ‖ΔM‖²", { domain: stacked ? [high - span, high] : [0, 1],
      anchor: `x${suffix}`, tickformat: "~%", zeroline: true, zerolinecolor: theme.axis });
    layout.annotations.push(panelTitle(`<b>${plotText(circuit)}</b>, layer ${m.layer}`, theme, from, high + 0.005));
    layout.shapes.push({ type: "rect", xref: `x${suffix}`, yref: `y${suffix} domain`, x0: m.head - 0.46, x1: m.head + 0.46, y0: 0, y1: 1,
      line: { color: theme.pick, width: 1.6 } }, ...(more?.(circuit, suffix, theme, layout) ?? []));
  });
  return { data, layout };
}

function loadLayer() {
  const run = store.runData;
  const layer = store.layerNumber();
  return { run, layer, head: store.get("head"), circuits: run.circuits.filter((c) => run.at.has(`${layer}/0/${c}`) || headsOf(run, layer, c).some(Boolean)),
    heads: Array.from({ length: run.headCount }, (_, head) => head) };
}
const clickHead = (f) => f.plot.on("plotly_click", ({ points: [point] }) => selectHead(point.x));

function drawTerms() {
  figure({
    id: "fig-terms",
    title: "What the change is made of",
    question: "Do heads look for something new, or do something new with what they find?",
    see: "For every head of the layer, the terms of its change. In QK: q lets a new feature ask for existing keys, k lets existing questions find a new key feature, qk joins the two. In VO: v reads something new and writes it where the head always wrote, o writes what the head always read to a new place, vo does both. Shares of one circuit add up to 100 %.",
    care: "A share may be negative: that term pulls against the sum, and the others exceed 100 %. A term can only be there if its adapters are: with q and v alone no head can write to a new place. The joint terms qk and vo are products of two small numbers, so a small share of them is usual and says nothing against them.",
    keys: ["layer", "head", "run"],
    defaults: { what: "share" },
    controls: (f) => [select("Show", "what", [["share", "share of the change (adds up)"], ["energy", "energy of each term alone"]], "share",
      (what) => f.set({ what }))],
    load: async (f) => ({ ...loadLayer(), what: f.options.what }),
    compose(f, m, how) {
      const { data, layout } = stackedHeads(how, m, (circuit, theme) => {
        const names = termNames(m.run, circuit);
        return names.map((name) => ({ name: plotText(termTitle(name)), colour: termColour(theme, names, name),
          y: headsOf(m.run, m.layer, circuit).map((entry) => entry?.terms[name]?.[m.what] ?? null) }));
      });
      const text = m.circuits.map((circuit) => {
        const entry = headEntry(m.run, m.layer, m.head, circuit);
        return entry && `${circuit}: ${termsOf(entry).map((name) => `${name} ${percent(entry.terms[name][m.what])}`).join(", ")}`;
      }).filter(Boolean).join("; ");
      return { data, layout, label: `Shares of the terms for the heads of layer ${m.layer}`,
        readout: [el("strong", {}, `Layer ${m.layer}, head ${m.head}: `), `${text}.`] };
    },
    csv: (f, m) => [["layer", "head", "circuit", "term", "fro", "share", "energy"],
      ...m.run.entries.flatMap((entry) => termsOf(entry).map((name) =>
        [entry.layer, entry.head, entry.circuit, name, entry.terms[name].fro, entry.terms[name].share, entry.terms[name].energy]))],
    wire: clickHead,
  });
}

const SPLITS = {
  in_in: ["re-weighted: read and write spaces were the head's", 5], new_read: ["new read", 0],
  new_write: ["new write (QK: new key)", 1], new_new: ["new read and new write", 2],
};
function drawSplit() {
  if (!RUNS.some((run) => run.entries.some((entry) => entry.split))) return;
  figure({
    id: "fig-split",
    title: "Amplified, or new",
    question: "Does the adapter turn up what a head did before, or add directions it never had?",
    see: "The change of every head, cut into four parts by the spaces that the head of the base reads from and writes to: inside both (what was there is re-weighted), only the read side is new, only the write side is new, both are new. The parts add up to 100 %. The dotted line is what a change of random direction would have inside the head's own read space.",
    care: "A head uses few of the model's directions, so nearly every direction is new: 97 % new is what chance gives a head of 32 in a width of 1024. Only the distance to the dotted line speaks. Far above it, the change prefers what the head already had. A head that only became louder or quieter changed entirely inside both spaces; without its gain, that part is taken out first.",
    keys: ["layer", "head", "run"],
    defaults: { gain: "split" },
    controls: (f) => (RUNS.some((run) => run.entries.some((entry) => entry.split_gain_free))
      ? [select("Of", "gain", [["split", "the whole change"], ["split_gain_free", "the change without its gain"]], "split", (gain) => f.set({ gain }))] : []),
    load: async (f) => ({ ...loadLayer(), gain: f.options.gain }),
    compose(f, m, how) {
      const { data, layout } = stackedHeads(how, m, (circuit, theme) => Object.entries(SPLITS).map(([key, [name, colour]]) => ({
        name, colour: theme.runs[colour], legend: circuit === m.circuits[0],
        y: headsOf(m.run, m.layer, circuit).map((entry) => entry?.[m.gain]?.[key] ?? null) })),
      (circuit, suffix, theme, layout_) => {
        const level = nullShare(headsOf(m.run, m.layer, circuit).find(Boolean));
        if (missing(level)) return [];
        layout_.annotations.push({ text: `chance ${percent(level, 2)}`, showarrow: false, xref: `x${suffix} domain`, yref: `y${suffix}`, x: 1, y: level,
          xanchor: "right", yanchor: "bottom", font: { size: 11, color: theme.ink }, bgcolor: withAlpha(theme.paper, 0.75) });
        return [{ type: "line", xref: `x${suffix} domain`, yref: `y${suffix}`, x0: 0, x1: 1, y0: level, y1: level,
          line: { color: theme.ink, width: 1.6, dash: "dot" } }];
      });
      const text = m.circuits.map((circuit) => {
        const split = headEntry(m.run, m.layer, m.head, circuit)?.[m.gain];
        return split && `${circuit}: ${Object.keys(SPLITS).map((key) => `${key.replaceAll("_", " ")} ${percent(split[key])}`).join(", ")}`;
      }).filter(Boolean).join("; ");
      return { data, layout, label: `Parts of the change inside and outside the spaces of the heads of layer ${m.layer}`,
        readout: [el("strong", {}, `Layer ${m.layer}, head ${m.head}: `), `${text}.`] };
    },
    csv: (f, m) => [["layer", "head", "circuit", ...Object.keys(SPLITS), ...Object.keys(SPLITS).map((key) => `${key}_gain_free`), "chance"],
      ...m.run.entries.filter((entry) => entry.split).map((entry) =>
        [entry.layer, entry.head, entry.circuit, ...Object.keys(SPLITS).map((key) => entry.split[key]), ...Object.keys(SPLITS).map((key) => entry.split_gain_free?.[key]), nullShare(entry)])],
    wire: clickHead,
  });
}

// d_k / d, as the file states it.
function nullShare(entry) {
  return entry?.null?.read ?? NaN;
}
