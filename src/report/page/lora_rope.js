// Figure: the size of a rotary head's change against distance, and by frequency.
// rope.json has every distance, heads.json a few.
const offsetsOf = (entry) => entry?.curve?.offsets ?? Object.keys(entry?.rel_fro_at ?? {}).map(Number).sort((a, b) => a - b);
const curveOf = (entry) => entry?.curve?.rel_fro ?? offsetsOf(entry).map((offset) => entry.rel_fro_at[offset]);
const frequencyOf = (entry) => entry?.freq_share;

function drawRope() {
  if (!RUNS.some((run) => run.entries.some((entry) => offsetsOf(entry).length))) return;
  figure({
    id: "fig-rope",
    title: "Change against distance",
    question: "Does the adapter change what a head attends to nearby, or far away?",
    see: "Left: the relative size of the change of QK for two tokens that far apart. Right: how the energy of the map, and of the change, is spread over the rotary planes, from the fastest (which tell neighbouring positions apart) to the slowest (which hardly turn, and so carry content); last, what does not turn at all.",
    care: "Weights say what could be attended to at a distance, not what is. Peaks at single distances come from the slow beat of few planes; the mean over all distances is the number to quote.",
    keys: ["layer", "head", "run"],
    async load() {
      const run = store.runData;
      const circuit = run.circuits.find((name) => offsetsOf(headEntry(run, store.layerNumber(), store.get("head"), name)).length) ?? "QK";
      return { run, circuit, entry: headEntry(run, store.layerNumber(), store.get("head"), circuit),
        others: headsOf(run, store.layerNumber(), circuit).filter(Boolean) };
    },
    compose(f, m, { theme, width }) {
      const stacked = width < 620;
      const shares = Object.entries(frequencyOf(m.entry) ?? {}).filter(([, values]) => Array.isArray(values));
      const domains = !shares.length ? [[[0, 1], [0, 1]]] : stacked ? [[[0, 1], [0.58, 1]], [[0, 1], [0, 0.42]]] : [[[0, 0.47], [0, 1]], [[0.57, 1], [0, 1]]];
      const data = m.others.map((entry) => ({ type: "scatter", mode: "lines", x: offsetsOf(entry), y: curveOf(entry), showlegend: false,
        line: { color: entry === m.entry ? theme.pick : theme.faint, width: entry === m.entry ? 2.6 : 1 },
        hovertemplate: `head ${entry.head}, distance %{x}: %{y:.4g}<extra></extra>` }));
      shares.forEach(([name, values], i) => data.push({ type: "bar", name, xaxis: "x2", yaxis: "y2",
        x: values.map((_, j) => j + 1), y: values, marker: { color: theme.runs[i % theme.runs.length] },
        hovertemplate: `${plotText(name)}, plane %{x}: %{y:.2%}<extra></extra>` }));
      const layout = baseLayout(theme, { height: stacked ? 680 : 400, margin: { l: 60, r: 16, t: 40, b: 48 }, barmode: "group",
        xaxis: axis(theme, "distance of query and key, tokens", { domain: domains[0][0], anchor: "y" }),
        yaxis: axis(theme, "‖ΔM‖ / ‖M‖ at that distance", { domain: domains[0][1], anchor: "x", rangemode: "tozero" }),
        ...(shares.length ? { xaxis2: axis(theme, "rotary plane, fastest first", { domain: domains[1][0], anchor: "y2", showgrid: false }),
          yaxis2: axis(theme, "share of energy", { domain: domains[1][1], anchor: "x2", tickformat: "~%" }) } : {}) });
      return { data, layout, label: `Change of ${m.circuit} against distance`,
        readout: [el("strong", {}, `${m.circuit}, ${unitName(store.layerNumber(), store.get("head"))}: `), `mean over distances ${number(m.entry?.rel_fro, 3)}; at the same position ${number(curveOf(m.entry)[0], 3)}.`] };
    },
    csv: (f, m) => [["layer", "head", "circuit", "offset", "rel_fro"],
      ...m.others.flatMap((entry) => offsetsOf(entry).map((offset, i) => [entry.layer, entry.head, entry.circuit, offset, curveOf(entry)[i]]))],
  });
}
