// Several models on common axes: depth and rank as fractions, since layers and widths differ.
function drawCompare() {
  if (RUNS.length < 2) return;
  const maps = Object.keys(MAP_TEXTS).filter((map) => RUNS.some((run) => run.maps[map]?.stack));
  if (!maps.length) return;
  const map = preferred(maps, ["O", "VO"]);
  figure({
    id: "fig-compare",
    title: "Models side by side",
    question: "Do models of different size use the same share of their space?",
    see: "Left: the rank of the stacked map as a share of what its shape allows, from the first layer (0) to the last (1); the dashed line is the random value of that model. Right: what the best approximation with that share of the directions leaves out, for the median layer, with the middle half of the layers as a band.",
    care: "The random value depends on the shape: a square matrix of noise needs fewer of its directions than a long one, so compare each model with its own dashed line first. Different conventions (scaling of heads, folded norms) make runs incomparable; they are listed below.",
    keys: ["tau"],
    defaults: { map, measure: "energy" },
    controls: (f) => [
      select("Map", "map", maps.map((m) => [m, m]), map, (name) => f.set({ map: name })),
      select("Error as", "measure", [["energy", "energy lost, 1 − E"], ["norm", "relative Frobenius error, √(1 − E)"]], "energy",
        (measure) => f.set({ measure })),
    ],
    async load(f) {
      const shares = Array.from({ length: 101 }, (_, i) => i / 100);
      const models = await Promise.all(RUNS.map(async (run, i) => {
        const series = depthSeries(run, f.options.map, store.rankColumn, "stack", null);
        const spectra = ((await stackSpectra(run, f.options.map)) ?? []).filter(Boolean);
        const rows = shares.map((share) => sorted(spectra.map((s) => energyLost(s)[Math.round(share * s.length)])));
        return { i, run, series, rows: spectra.length ? rows : [] };
      }));
      return { ...f.options, shares, models: models.filter(({ series }) => series.length) };
    },
    compose: composeCompare,
    csv: (f, m) => [["model", "map", "layer", "depth", "rank", "possible", "random"],
      ...m.models.flatMap(({ run, series }) => series.map((row) =>
        [runLabel(run), m.map, row.x, relativeDepth(run, row.index), row.value, row.of, row.random]))],
  });
}

function composeCompare(f, m, { theme, width }) {
  const narrow = width < 620;
  const asShown = m.measure === "norm" ? Math.sqrt : (x) => x;
  const data = [];
  for (const { i, run, series, rows } of m.models) {
    const colour = theme.runs[i % theme.runs.length];
    const name = plotText(runLabel(run));
    const depth = series.map((row) => relativeDepth(run, row.index));
    const line = { mode: series.length > 24 ? "lines" : "lines+markers", name, legendgroup: String(i), line: { color: colour, width: 2.4 }, marker: { size: 5 } };
    data.push(
      { ...line, x: depth, y: series.map((row) => row.value / row.of), customdata: series.map((row) => [row.x, row.value, row.of]),
        hovertemplate: `${name}<br>layer %{customdata[0]}: %{customdata[1]} of %{customdata[2]}<extra></extra>` },
      { x: depth, y: series.map((row) => (missing(row.random) ? null : row.random / row.of)), mode: "lines", showlegend: false,
        legendgroup: String(i), line: { color: colour, width: 1.3, dash: "dash" }, hovertemplate: `random, ${name}: %{y:.1%}<extra></extra>` });
    const second = { x: m.shares, xaxis: "x2", yaxis: "y2", mode: "lines", showlegend: false, legendgroup: String(i) };
    const at = (q) => rows.map((row) => asShown(quantileSorted(row, q)));
    data.push(
      { ...second, y: at(0.25), line: { width: 0 }, hoverinfo: "skip" },
      { ...second, y: at(0.75), line: { width: 0 }, hoverinfo: "skip", fill: "tonexty", fillcolor: withAlpha(colour, 0.18) },
      { ...second, y: at(0.5), line: { color: colour, width: 2.4 }, hovertemplate: `${name}<br>%{x:.0%} of the directions: %{y:.2%}<extra></extra>` });
  }
  const split = narrow ? [[0, 1], [0.57, 1], [0, 1], [0, 0.41]] : [[0, 0.46], [0, 1], [0.56, 1], [0, 1]];
  const name = m.measure === "norm" ? "relative Frobenius error" : "energy lost";
  const layout = baseLayout(theme, {
    height: narrow ? 680 : 430, margin: { l: 60, r: 16, t: 44, b: 50 },
    xaxis: axis(theme, "depth, first to last layer", { domain: split[0], anchor: "y", range: [-0.02, 1.02] }),
    yaxis: axis(theme, `rank at ${store.tauText}, share of possible`, { domain: split[1], anchor: "x", tickformat: "~%", range: [0, 1.04] }),
    xaxis2: axis(theme, "directions kept, share of possible", { domain: split[2], anchor: "y2", tickformat: "~%", range: [0, 1] }),
    yaxis2: axis(theme, name, { domain: split[3], anchor: "x2", tickformat: "~%", range: [0, 1.02] }),
  });
  layout.legend.y = 1.04;
  const words = m.models.map(({ run, series }) => `${runLabel(run)} ${percent(median(series.map((row) => row.value / row.of)))} (random ${percent(median(series.map((row) => row.random / row.of)))})`);
  return { data, layout, label: `${m.map} of ${m.models.length} models on relative axes`,
    readout: [el("strong", {}, `${m.map}, median layer: `), `share of the possible directions that hold ${store.tauText} of the energy: ${words.join("; ")}.`] };
}
