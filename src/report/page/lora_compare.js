// Figure: several adapters side by side, layer by layer.
function drawCompare() {
  if (RUNS.length < 2) return;
  const circuits = () => [...new Set(RUNS.flatMap((run) => run.circuits))];
  figure({
    id: "fig-compare",
    title: "Adapters side by side",
    question: "Do different adapters on one base change the same heads?",
    see: "Left: the relative size of the change in every layer, the median head as a line and all heads as a band. Right: head by head, the first adapter across and the others up; points on the diagonal changed by the same amount.",
    care: "Adapters trained longer, or with a larger scale, are larger everywhere: look at the shape of the lines and at heads off the common trend, not at the height. A higher rank alone does not make a change larger.",
    keys: ["circuit"],
    controls: () => {
      const field = select("Circuit", "circuit", circuits().map((c) => [c, c]), store.get("circuit"), (circuit) => store.set({ circuit }));
      store.on(["circuit"], () => { field.choice.value = store.get("circuit"); });
      return [field];
    },
    async load() {
      const circuit = store.get("circuit");
      const layers = [...new Set(RUNS.flatMap((run) => run.layers))].sort((a, b) => a - b);
      return { circuit, layers, runs: RUNS.map((run) => ({ run, sizes: layers.map((layer) =>
        headsOf(run, layer, circuit).filter(Boolean).map((entry) => entry.rel_fro).filter((v) => !missing(v))) })) };
    },
    compose(f, m, { theme, width }) {
      const stacked = width < 620;
      const domains = stacked ? [[[0, 1], [0.57, 1]], [[0, 1], [0, 0.42]]] : [[[0, 0.46], [0, 1]], [[0.57, 1], [0, 1]]];
      const data = [];
      m.runs.forEach(({ run, sizes }, i) => {
        const colour = theme.runs[i % theme.runs.length];
        const line = (q) => sizes.map((values) => (values.length ? quantile(values, q) : null));
        const band = { x: m.layers, mode: "lines", line: { width: 0 }, showlegend: false, hoverinfo: "skip", legendgroup: String(i) };
        data.push({ ...band, y: line(0) }, { ...band, y: line(1), fill: "tonexty", fillcolor: withAlpha(colour, 0.14) },
          { x: m.layers, y: line(0.5), mode: "lines+markers", name: plotText(runLabel(run)), legendgroup: String(i), line: { color: colour, width: 2.4 },
            marker: { size: 6 }, hovertemplate: `${plotText(runLabel(run))}, layer %{x}: median %{y:.4g}<extra></extra>` });
      });
      const [first, ...rest] = m.runs;
      let top = 0;
      rest.forEach(({ run }, k) => {
        const points = first.run.entries.filter((entry) => entry.circuit === m.circuit)
          .map((entry) => [entry, headEntry(run, entry.layer, entry.head, m.circuit)]).filter(([a, b]) => b && !missing(a.rel_fro) && !missing(b.rel_fro));
        top = Math.max(top, ...points.flat().map((entry) => entry.rel_fro));
        data.push({ type: "scatter", mode: "markers", xaxis: "x2", yaxis: "y2", showlegend: false, x: points.map(([a]) => a.rel_fro), y: points.map(([, b]) => b.rel_fro),
          marker: { size: 7, color: withAlpha(theme.runs[(k + 1) % theme.runs.length], 0.6) }, text: points.map(([a]) => shortUnit(a.layer, a.head)),
          hovertemplate: "head %{text}: %{x:.4g} and %{y:.4g}<extra></extra>" });
      });
      const layout = baseLayout(theme, { height: stacked ? 700 : 420, margin: { l: 60, r: 16, t: 44, b: 50 },
        xaxis: axis(theme, "layer", { domain: domains[0][0], anchor: "y", ...(m.layers.length <= 14 ? { dtick: 1 } : {}) }),
        yaxis: axis(theme, "‖ΔM‖ / ‖M‖", { domain: domains[0][1], anchor: "x", rangemode: "tozero" }),
        xaxis2: axis(theme, `‖ΔM‖ / ‖M‖, ${plotText(runLabel(first.run))}`, { domain: domains[1][0], anchor: "y2", rangemode: "tozero" }),
        yaxis2: axis(theme, rest.length === 1 ? `‖ΔM‖ / ‖M‖, ${plotText(runLabel(rest[0].run))}` : "the others", { domain: domains[1][1], anchor: "x2", rangemode: "tozero" }),
        shapes: [{ type: "line", xref: "x2", yref: "y2", x0: 0, y0: 0, x1: top, y1: top, line: { color: theme.random, width: 1.2 }, layer: "below" }] });
      return { data, layout, label: `Relative change of ${m.circuit} in ${m.runs.length} adapters`,
        readout: [el("strong", {}, `${m.circuit}, median head: `), `${m.runs.map(({ run, sizes }) => `${runLabel(run)} ${number(median(sizes.flat()), 3)}`).join("; ")}.`] };
    },
    csv: (f, m) => [["adapter", "layer", "head", "circuit", "rel_fro"],
      ...m.runs.flatMap(({ run }) => run.entries.filter((entry) => entry.circuit === m.circuit).map((entry) => [runLabel(run), entry.layer, entry.head, entry.circuit, entry.rel_fro]))],
  });
}
