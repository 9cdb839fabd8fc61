// Figure: how much each head changes, layers by heads, one panel a circuit.
const SIZES = {
  rel_fro: ["relative size, ‖ΔM‖ / ‖M‖", "the size of the change over the size of the map, averaged over offsets for rotary heads"],
  rel_spec: ["relative size in the strongest direction, ‖ΔM‖₂ / ‖M‖₂", "the strongest direction of the change over that of the map"],
  turn: ["turned away, 1 − cos(M, M′)", "how far the map has turned; 0: the same directions"],
  gain: ["gain ⟨M, ΔM⟩ / ‖M‖²", "the part that only makes the head stronger (positive) or weaker"],
};
const sizeOf = (entry, measure) => (measure === "turn" ? (missing(entry?.cos) ? NaN : 1 - entry.cos) : entry?.[measure] ?? NaN);

function drawSize() {
  figure({
    id: "fig-size",
    title: "How much each head changes",
    question: "Where in the model did training put its changes?",
    see: "Every column is a layer, every cell a head; one panel for what attends to what (QK), one for what is moved and written (VO). The colour is the change of the whole map, not of one matrix: it cannot be shifted between query and key, or value and output. Click a cell to follow that head through the other figures.",
    care: "Large is not important. A weight may change much in a direction that no token uses, and in experiments with known answers the head with the largest change was often not the head that mattered. Take this as a list of suspects; a causal check has the verdict.",
    keys: ["layer", "head", "circuit", "run"],
    defaults: { measure: "rel_fro" },
    controls: (f) => [select("Measure", "measure", Object.entries(SIZES).map(([key, [text]]) => [key, text]), "rel_fro",
      (measure) => f.set({ measure }))],
    async load(f) {
      const run = store.runData;
      const { measure } = f.options;
      return { run, measure, panels: run.circuits.map((circuit) => ({ circuit,
        z: Array.from({ length: run.headCount }, (_, head) => run.layers.map((layer) => sizeOf(headEntry(run, layer, head, circuit), measure))) })) };
    },
    compose: composeSize,
    csv: (f, m) => [["layer", "head", "circuit", m.measure],
      ...m.run.entries.map((entry) => [entry.layer, entry.head, entry.circuit, sizeOf(entry, m.measure)])],
    wire(f) {
      f.plot.on("plotly_click", ({ points: [point] }) =>
        selectUnit(point.x, point.y, f.loaded.panels[point.curveNumber].circuit));
      f.plot.addEventListener("keydown", (event) => {
        const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
        if (!step) return;
        event.preventDefault();
        selectLayer(store.get("layer") + step[0]);
        selectHead(store.get("head") + step[1]);
        requestAnimationFrame(() => speak(f.readoutNode.textContent));
      });
    },
  });
}

function composeSize(f, m, { theme, width }) {
  const stacked = width < 620;
  const count = m.panels.length;
  const all = m.panels.flatMap(({ z }) => z.flat()).filter((value) => Number.isFinite(value));
  const top = Math.max(...all, 1e-12);
  const low = m.measure === "gain" ? Math.min(...all, 0) : 0;
  const gap = 0.09;
  const span = (1 - gap * (count - 1)) / count;
  const name = SIZES[m.measure][0];
  const data = m.panels.map(({ circuit, z }, i) => ({
    type: "heatmap", x: m.run.layers, y: z.map((_, head) => head), z, zmin: low, zmax: top, colorscale: cividisScale,
    xaxis: i ? `x${i + 1}` : "x", yaxis: i ? `y${i + 1}` : "y", xgap: 1, ygap: 1, showscale: i === count - 1,
    colorbar: { thickness: 10, outlinewidth: 0, tickfont: { size: 11, color: theme.soft } },
    hovertemplate: `${circuit}, layer %{x}, head %{y}: %{z:.4g}<extra></extra>`,
  }));
  const layout = baseLayout(theme, { height: stacked ? 280 * count + 60 : Math.min(620, 150 + Math.max(12 * m.run.headCount, 180)),
    margin: { l: 56, r: 16, t: 40, b: 48 }, annotations: [], shapes: [] });
  m.panels.forEach(({ circuit }, i) => {
    const from = stacked ? 0 : i * (span + gap);
    const high = stacked ? 1 - i * (span + gap) : 1;
    const suffix = i ? String(i + 1) : "";
    layout[`xaxis${suffix}`] = axis(theme, "layer", { domain: stacked ? [0, 1] : [from, from + span], anchor: `y${suffix}`, showgrid: false,
      ...(m.run.layers.length <= 12 ? { dtick: 1 } : {}) });
    layout[`yaxis${suffix}`] = axis(theme, i && !stacked ? "" : "head", { domain: stacked ? [high - span, high] : [0, 1], anchor: `x${suffix}`,
      autorange: "reversed", showgrid: false, ...(m.run.headCount <= 12 ? { dtick: 1 } : {}) });
    layout.annotations.push(panelTitle(`<b>${plotText(circuit)}</b>`, theme, from, high + 0.01));
    const chosen = store.get("circuit") === circuit;
    layout.shapes.push({ type: "rect", xref: `x${suffix}`, yref: `y${suffix}`, x0: store.layerNumber() - 0.5, x1: store.layerNumber() + 0.5,
      y0: store.get("head") - 0.5, y1: store.get("head") + 0.5, line: { color: theme.pick, width: chosen ? 3 : 1.5 } });
  });
  const readings = m.run.circuits.map((circuit) => [circuit, sizeOf(headEntry(m.run, store.layerNumber(), store.get("head"), circuit), m.measure)]);
  return { data, layout, label: `${name} of ${m.run.headCount} heads in ${m.run.layers.length} layers; arrow keys move the selection`,
    readout: [el("strong", {}, `Layer ${store.layerNumber()}, head ${store.get("head")}: `),
      `${name}: ${readings.map(([circuit, value]) => `${circuit} ${number(value, 3)}`).join(", ")} (median of all heads ${m.panels.map(({ circuit, z }) => `${circuit} ${number(median(z.flat()), 3)}`).join(", ")}).`] };
}
