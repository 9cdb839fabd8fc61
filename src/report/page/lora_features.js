// Figure: which heads use which shared direction of the adapter (r x heads).
const featuresOf = (run) => (run.file.layers ?? []).flatMap((one) =>
  (one.shared ?? []).map((shared) => ({ layer: one.layer, ...shared })));

function drawFeatures() {
  if (!RUNS.some((run) => featuresOf(run).length)) return;
  const here = () => featuresOf(store.runData).filter((one) => one.layer === store.layerNumber());
  const choices = () => here().map((one) => [one.change, `${one.change}: what is ${one.side === "read" ? "read" : one.circuit === "VO" ? "written" : "matched as a key"}`]);
  figure({
    id: "fig-features",
    title: "Shared directions, and who uses them",
    question: "Does each head learn something of its own, or do all heads take part in a few new features?",
    see: "What an adapter adds to the reading side is shared by all heads of a layer, at most r directions; a head only chooses how much of each to use (for the output adapter: what is written is shared, what triggers it is each head's own). Rows are these directions, strongest first, in a basis that does not depend on how A and B are written; columns are heads.",
    care: "Rows are directions of the whole layer's change, not features with a meaning of their own; two rows of nearly equal strength may be mixed at will. A row used by one head alone is that head's, a row used by all is the layer's.",
    keys: ["layer", "head", "run"],
    defaults: { change: null },
    controls: (f) => [f.changeField = select("Adapter", "change", choices(), null, (change) => f.set({ change }))],
    refill: (f) => f.changeField.fill(choices(), f.options.change),
    async load(f) {
      f.changeField.fill(choices(), f.options.change);
      const all = here();
      return { run: store.runData, layer: store.layerNumber(), one: all.find((one) => one.change === f.changeField.choice.value) ?? all[0] };
    },
    compose(f, m, { theme }) {
      const loads = m.one?.load ?? [];
      const heads = loads[0]?.map((_, head) => head) ?? [];
      const layout = baseLayout(theme, { height: Math.min(560, 150 + Math.max(20 * loads.length, 150)), margin: { l: 62, r: 16, t: 26, b: 48 },
        xaxis: axis(theme, "head", { showgrid: false, ...(heads.length <= 16 ? { dtick: 1 } : {}) }),
        yaxis: axis(theme, "shared direction", { showgrid: false, autorange: "reversed", ...(loads.length <= 16 ? { dtick: 1 } : {}) }),
        shapes: [{ type: "rect", x0: store.get("head") - 0.5, x1: store.get("head") + 0.5, yref: "y domain", y0: 0, y1: 1, line: { color: theme.pick, width: 2 } }] });
      const energy = loads.map((row) => row.reduce((sum, load) => sum + load * load, 0));
      const total = energy.reduce((a, b) => a + b, 0);
      return { data: [{ type: "heatmap", x: heads, y: loads.map((_, j) => j + 1), z: loads, zmin: 0, zmax: Math.max(...loads.flat(), 1e-12), colorscale: cividisScale, xgap: 1, ygap: 1,
        colorbar: { title: { text: "load", side: "right" }, thickness: 10, outlinewidth: 0, tickfont: { size: 11, color: theme.soft } },
        hovertemplate: "direction %{y}, head %{x}: %{z:.4g}<extra></extra>" }], layout,
      label: `Loads of ${loads.length} shared directions on ${heads.length} heads`,
      readout: m.one ? [el("strong", {}, `Layer ${m.layer}, adapter ${m.one.change}: `), `the strongest direction holds ${percent(energy[0] / total)} of this term in the layer, the first three ${percent(energy.slice(0, 3).reduce((a, b) => a + b, 0) / total)}.`]
        : "This layer has no such adapter." };
    },
    csv: (f, m) => [["layer", "change", "direction", "head", "load"],
      ...featuresOf(m.run).flatMap((one) => one.load.flatMap((row, j) => row.map((load, head) => [one.layer, one.change, j + 1, head, load])))],
    wire: (f) => f.plot.on("plotly_click", ({ points: [point] }) => selectHead(point.x)),
  });
}
