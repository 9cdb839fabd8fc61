// Figures: singular values of a head before, after, and of the change; intruders.
const SERIES = { base: ["before", 0], adapted: ["after", 1], delta: ["the change", 2] };

function drawSpectrum() {
  if (!RUNS.some((run) => run.entries.some((entry) => entry.singular) || Object.keys(run.values).length)) return;
  figure({
    id: "fig-spectrum",
    title: "Singular values before and after",
    question: "Is the change a few strong directions, and do they reach the top of the head's own?",
    see: "Every map of a head is a list of directions, strongest first; the height is how strong. Blue is the head before, orange after training, green the change alone, which ends at the rank that the adapter allows. Marks show how many directions hold 99 % and 99.9 % of the energy.",
    care: "The curves of before and after may look alike although the directions behind them have turned: the figure of intruders and the cosine tell. Heads with rotary positions are shown at offset 0, two tokens at the same place.",
    keys: ["layer", "head", "circuit", "run"],
    defaults: { scale: "log" },
    controls: (f) => [circuitControl(f), select("Vertical axis", "scale", [["log", "logarithmic"], ["linear", "linear"]], "log", (scale) => f.set({ scale }))],
    async load(f) {
      const entry = store.entry;
      const all = await headValues(store.runData, store.layerNumber(), store.get("circuit"));
      // Without the file of all values: the first few of heads.json.
      const values = Object.fromEntries(Object.keys(SERIES).map((which) =>
        [which, Array.from(all?.[which]?.[store.get("head")] ?? entry?.singular?.[which] ?? [])]));
      return { entry, values, scale: f.options.scale };
    },
    compose(f, m, { theme }) {
      const { entry } = m;
      const data = [];
      const marks = { 0.99: ["erank99", "circle"], 0.999: ["erank999", "diamond"] };
      const top = Math.max(...["base", "adapted", "delta"].flatMap((which) => m.values[which][0] ?? 0), 1e-300);
      Object.entries(SERIES).forEach(([which, [name, colour]], i) => {
        // Beyond rounding there is nothing to draw.
        const values = m.values[which].filter((value) => value > top * 1e-9);
        const x = values.map((_, j) => j + 1);
        data.push({ type: "scatter", mode: values.length > 40 ? "lines" : "lines+markers", x, y: values, name,
          line: { color: theme.runs[colour], width: 2.4 }, marker: { size: 4 }, hovertemplate: `${name}, direction %{x}: %{y:.4g}<extra></extra>` });
        for (const [field, symbol] of Object.values(marks)) {
          const rank = entry?.[field]?.[i];
          if (rank > 0 && values[rank - 1] !== undefined) {
            data.push({ type: "scatter", mode: "markers", x: [rank], y: [values[rank - 1]], showlegend: false,
              marker: { symbol, size: 11, color: theme.paper, line: { color: theme.runs[colour], width: 2.2 } },
              hovertemplate: `${name}: ${rank} directions hold ${field === "erank99" ? "99" : "99.9"} %<extra></extra>` });
          }
        }
      });
      const layout = baseLayout(theme, { height: 400, margin: { l: 64, r: 16, t: 36, b: 48 },
        xaxis: axis(theme, "direction, strongest first"),
        yaxis: axis(theme, "singular value", m.scale === "log" ? logAxis : { rangemode: "tozero" }) });
      const [before, after] = pairOf(entry?.erank99);
      const [stableBefore, stableAfter] = pairOf(entry?.stable_rank);
      return { data, layout, label: `Singular values of ${store.get("circuit")}, ${unitName(store.layerNumber(), store.get("head"))}`,
        readout: [el("strong", {}, `${store.get("circuit")}, ${unitName(store.layerNumber(), store.get("head"))}: `),
          `99 % of the energy in ${number(before)} directions before, ${number(after)} after; stable rank ${number(stableBefore, 3)} → ${number(stableAfter, 3)}; cosine of before and after ${number(entry?.cos, 4)}.`] };
    },
    csv: (f, m) => [["circuit", "layer", "head", "which", "index", "singular_value"],
      ...Object.keys(SERIES).flatMap((which) => m.values[which].map((value, j) =>
        [store.get("circuit"), store.layerNumber(), store.get("head"), which, j + 1, value]))],
  });
}

// A count of one side, or of both.
const countOf = (value) => (Array.isArray(value) ? value.reduce((sum, v) => sum + v, 0) : value && typeof value === "object"
  ? Object.values(value).reduce((sum, v) => sum + v, 0) : value ?? NaN);

const INTRUDERS = ["intruder_vec", "intruder_sub", "intruder_vec_gain_free", "intruder_sub_gain_free"];

function drawIntruders() {
  if (!RUNS.some((run) => run.entries.some((entry) => !missing(countOf(entry.intruder_sub))))) return;
  figure({
    id: "fig-intruders",
    title: "Intruders",
    question: "Did training put a strong direction into a head that the head never had?",
    see: "Of the ten strongest directions of each adapted map, read and write side together: how many are far (cosine below 0.5) from every single direction of the base (left), and how many lie mostly outside the whole space of the base (right). One cell a head.",
    care: "The left count, the published one, is easily fooled: where a head's strengths are nearly equal, a small change mixes its directions and every mixture looks new. The right count is not, and is the one to believe. A head that is large on the left and zero on the right has only mixed what it had.",
    keys: ["layer", "head", "circuit", "run"],
    defaults: { gain: "" },
    controls: (f) => [circuitControl(f), ...(RUNS.some((run) => run.entries.some((entry) => entry.intruder_sub_gain_free))
      ? [select("In", "gain", [["", "the adapted map"], ["_gain_free", "the adapted map without its gain"]], "", (gain) => f.set({ gain }))] : [])],
    async load(f) {
      const run = store.runData;
      const circuit = store.get("circuit");
      const { gain } = f.options;
      const grid = (field) => Array.from({ length: run.headCount }, (_, head) => run.layers.map((layer) => countOf(headEntry(run, layer, head, circuit)?.[field])));
      return { run, circuit, vec: grid(`intruder_vec${gain}`), sub: grid(`intruder_sub${gain}`) };
    },
    compose(f, m, { theme, width }) {
      const stacked = width < 620;
      const top = Math.max(1, ...[...m.vec, ...m.sub].flat().filter(Number.isFinite));
      const domains = stacked ? [[[0, 1], [0.56, 1]], [[0, 1], [0, 0.44]]] : [[[0, 0.46], [0, 1]], [[0.54, 1], [0, 1]]];
      const layout = baseLayout(theme, { height: stacked ? 620 : Math.min(560, 150 + Math.max(12 * m.run.headCount, 170)), margin: { l: 56, r: 16, t: 40, b: 48 }, annotations: [] });
      const data = [["vec", "far from every direction of the base"], ["sub", "outside the space of the base"]].map(([field, title], i) => {
        const suffix = i ? "2" : "";
        layout[`xaxis${suffix}`] = axis(theme, "layer", { domain: domains[i][0], anchor: `y${suffix}`, showgrid: false, ...(m.run.layers.length <= 12 ? { dtick: 1 } : {}) });
        layout[`yaxis${suffix}`] = axis(theme, i && !stacked ? "" : "head", { domain: domains[i][1], anchor: `x${suffix}`, autorange: "reversed", showgrid: false,
          ...(m.run.headCount <= 12 ? { dtick: 1 } : {}) });
        layout.annotations.push(panelTitle(title, theme, domains[i][0][0], domains[i][1][1] + 0.01));
        return { type: "heatmap", x: m.run.layers, y: m[field].map((_, head) => head), z: m[field], zmin: 0, zmax: top, colorscale: cividisScale,
          xaxis: `x${suffix}`, yaxis: `y${suffix}`, xgap: 1, ygap: 1, showscale: i === 1,
          colorbar: { thickness: 10, outlinewidth: 0, tickfont: { size: 11, color: theme.soft } },
          hovertemplate: `layer %{x}, head %{y}: %{z}<extra></extra>` };
      });
      const sum = (grid) => grid.flat().filter(Number.isFinite).reduce((a, b) => a + b, 0);
      const one = (grid) => grid[store.get("head")]?.[store.get("layer")];
      return { data, layout, label: `Intruders in ${m.circuit} by head and layer`,
        readout: [el("strong", {}, `${m.circuit}, ${unitName(store.layerNumber(), store.get("head"))}: `),
          `${number(one(m.vec))} by the published count, ${number(one(m.sub))} outside the base's space; in the whole model ${integer(sum(m.vec))} and ${integer(sum(m.sub))}.`] };
    },
    csv: (f, m) => [["layer", "head", "circuit", ...INTRUDERS],
      ...m.run.entries.map((entry) => [entry.layer, entry.head, entry.circuit, ...INTRUDERS.map((name) => countOf(entry[name]))])],
    wire: (f) => f.plot.on("plotly_click", ({ points: [point] }) => selectUnit(point.x, point.y)),
  });
}
