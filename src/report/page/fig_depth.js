// Rank (or another metric) against depth: a panel a map, a line a model, the random value dashed.
function depthSeries(run, map, column, part, metrics) {
  const rows = run.layers.map((layer, index) => {
    const info = layer.maps[map]?.[part];
    if (!info) return null;
    const random = info.random[column];
    if (part === "stack") {
      return { x: layer.layer, index, value: info.metrics[column], random, of: Math.min(...info.shape) };
    }
    const list = sorted(metrics.row(column, index) ?? []);
    return { x: layer.layer, index, random, of: info.values, value: quantileSorted(list, 0.5),
      low: quantileSorted(list, 0.25), high: quantileSorted(list, 0.75),
      least: quantileSorted(list, 0), most: quantileSorted(list, 1) };
  });
  return rows.filter((row) => row && !missing(row.value));
}

const depthMetrics = () => [
  ...RUNS[0].taus.map((tau) => [`rank_${tau}`, metricLabel(`rank_${tau}`)]),
  ...["stable_rank", "entropy_rank", "participation_ratio"].map((name) => [name, metricLabel(name)]),
];

function drawDepth() {
  const kinds = [["stack", "all heads of a layer, stacked"], ["heads", "each head alone"]]
    .filter(([part]) => RUNS.some((run) => mapsWith(run, part).length));
  const differ = new Set(RUNS.map((run) => modelOf(run).hidden_size)).size > 1;
  figure({
    id: "fig-depth",
    title: "Rank against depth",
    question: "How many directions does each map use, layer by layer?",
    see: "One panel a map. The solid line is what the trained weights need, the dashed one with its band what a random matrix of the same shape would need (single draws differ by one rank, or one in a hundred), the thin line at the top all there is. For single heads the line is the median head of the layer, the dark band the middle half of the heads, the pale band all of them. A solid line below the band is structure that training put there.",
    care: "Compare with the dashed line, not with the top: noise, too, falls short of full rank, and by different amounts for different shapes. A rank at 99 % energy leaves 1 % of the energy out, which is 10 % of the norm. Panels have scales of their own.",
    keys: ["layer", "run"],
    defaults: { part: kinds[0][0], metric: depthMetrics()[0][0], scale: differ ? "share" : "count" },
    controls: (f) => [
      select("Show", "part", kinds, f.options.part, (part) => f.set({ part })),
      select("Metric", "metric", depthMetrics(), f.options.metric, (metric) => f.set({ metric })),
      select("As", "scale", [["count", "directions"], ["share", "share of the possible"]], f.options.scale,
        (scale) => f.set({ scale })),
    ],
    async load(f) {
      const { part, metric, scale } = f.options;
      const maps = [...new Set(RUNS.flatMap((run) => mapsWith(run, part)))].filter((m) => !isOffset(m));
      const panels = await Promise.all(maps.map(async (map) => ({
        map,
        series: await Promise.all(RUNS.map(async (run) => depthSeries(run, map, metric, part,
          part === "heads" ? await headMetrics(run, map) : null))),
      })));
      return { part, metric, scale, panels: panels.filter(({ series }) => series.some((s) => s.length)) };
    },
    compose: composeDepth,
    csv: (f, { metric, part, panels }) => [
      ["model", "map", "part", "layer", metric, "random", "possible", "quartile_low", "quartile_high", "least", "most"],
      ...panels.flatMap(({ map, series }) => series.flatMap((rows, i) => rows.map((row) =>
        [runLabel(RUNS[i]), map, part, row.x, row.value, row.random, row.of, row.low, row.high, row.least, row.most]))),
    ],
    wire: (f) => f.plot.on("plotly_click", ({ points }) => {
      const [run, index] = points[0].customdata ?? [];
      if (run === store.get("run")) selectLayer(index);
    }),
  });
}

const relativeDepth = (run, index) => (run.layers.length > 1 ? index / (run.layers.length - 1) : 0);
const depthsDiffer = () => new Set(RUNS.map((run) => run.layers.length)).size > 1;

// As shares of what the shape allows, so that models of different width fit one panel; of different
// depth, too: then the horizontal axis goes from the first layer to the last.
function inShares(panels) {
  const relative = depthsDiffer();
  const share = (row, run) => Object.fromEntries(Object.entries(row).map(([key, value]) => {
    if (key === "x" && relative) return [key, relativeDepth(run, row.index)];
    return [key, ["x", "index"].includes(key) || missing(value) ? value : value / row.of];
  }));
  return panels.map(({ map, series }) => ({ map, series: series.map((rows, i) =>
    rows.map((row) => share(row, RUNS[i]))) }));
}

function composeDepth(f, { part, metric, scale, panels: counted }, { theme, width, print }) {
  const shares = scale === "share";
  const panels = shares ? inShares(counted) : counted;
  const columns = Math.min(panels.length, print || width >= 860 ? 4 : width >= 600 ? 3 : width >= 340 ? 2 : 1);
  const rows = Math.ceil(panels.length / columns);
  const gapX = columns > 1 ? 62 / width : 0;
  const panelHeight = print ? 92 : 168;
  const gapY = print ? 50 : 58;
  const inner = rows * panelHeight + (rows - 1) * gapY;
  const margin = { l: 50, r: 12, t: RUNS.length > 1 ? 62 : 34, b: 44 };
  const layout = baseLayout(theme, { height: inner + margin.t + margin.b, margin, annotations: [], shapes: [],
    showlegend: RUNS.length > 1 });
  if (RUNS.length > 1) Object.assign(layout.legend, { y: 1 + 28 / inner });
  const data = [];
  const relative = shares && depthsDiffer();
  const chosen = relative ? relativeDepth(store.runData, store.get("layer")) : store.layerNumber();
  const [first, final] = relative ? [0, 1] : [Math.min, Math.max].map((pick) =>
    pick(...RUNS.flatMap((run) => [run.layers[0].layer, run.layers.at(-1).layer])));
  const aside = relative ? 0.03 : 0.6;
  panels.forEach(({ map, series }, k) => {
    const [row, column] = [Math.floor(k / columns), k % columns];
    const x0 = (column * (1 + gapX)) / columns;
    const y1 = 1 - (row * (panelHeight + gapY)) / inner;
    const id = k ? String(k + 1) : "";
    const most = Math.max(...series.flat().map((point) => point.of));
    const highest = Math.max(...series.flat().map((point) => Math.max(point.value, point.most ?? 0)));
    const top = metric.startsWith("rank_") || highest > most / 3 ? most : highest;
    const last = row === rows - 1 || k + columns >= panels.length;
    layout[`xaxis${id}`] = axis(theme, last ? (relative ? "depth, first to last layer" : "layer") : "", { domain: [x0, x0 + (1 + gapX) / columns - gapX],
      anchor: `y${id}`, range: [first - aside, final + aside], nticks: 6, showgrid: false,
      ...(relative ? { dtick: 0.5 } : final - first < 8 ? { dtick: 1 } : {}) });
    layout[`yaxis${id}`] = axis(theme, "", { domain: [Math.max(0, y1 - panelHeight / inner), y1],
      anchor: `x${id}`, range: [0, top * 1.07], nticks: 5, ...(shares ? { tickformat: "~%" } : {}) });
    layout.annotations.push(panelTitle(`<b>${plotText(map)}</b>  ${shares ? "" : `<span style="color:${theme.soft}">of ${integer(most)}</span>`}`,
      theme, x0, y1 + 3 / inner));
    layout.shapes.push({ type: "line", xref: `x${id}`, yref: `y${id}`, x0: chosen, x1: chosen, y0: 0, y1: top,
      line: { color: theme.pick, width: 1, dash: "dot" } });
    if (top === most) {
      layout.shapes.push({ type: "line", xref: `x${id} domain`, yref: `y${id}`, x0: 0, x1: 1, y0: most, y1: most,
        line: { color: theme.axis, width: 1 } });
    }
    series.forEach((points, i) => layout.shapes.push(...randomBand(points, i, id, shares ? counted[k].series[i] : points,
      { theme, metric })));
    series.forEach((points, i) => data.push(...depthTraces(points, i, id, map,
      { theme, part, metric, legend: k === 0, format: shares ? ".1%" : ".5~g" })));
  });
  const single = RUNS.length === 1 ? counted.map(({ map, series }) => {
    const here = series[0].find((point) => point.index === store.get("layer"));
    return here && `${map} ${number(here.value)} of ${integer(here.of)} (random ${number(here.random)})`;
  }).filter(Boolean).join("; ") : "";
  return { data, layout, ownHeight: true,
    label: `${metricLabel(metric)} against layer for ${panels.length} maps`,
    readout: single && [el("strong", {}, `Layer ${store.layerNumber()}: `), `${metricLabel(metric)}: ${single}.`] };
}

// How far a single random matrix can be from the value that is computed for its shape: one rank, or
// one in a hundred (docs/metrics.md). Other metrics have no such bound and get the dashed line alone.
function randomBand(points, i, id, counted, { theme, metric }) {
  if (!metric.startsWith("rank_") || points.some((p) => missing(p.random))) return [];
  const half = points.map((p, k) => p.random * Math.max(0.01, 1 / Math.max(1, counted[k].random)));
  const edge = (sign) => points.map((p, k) => `${p.x},${Math.max(0, p.random + sign * half[k])}`);
  const colour = RUNS.length > 1 ? theme.runs[i % theme.runs.length] : theme.random;
  return [{ type: "path", name: "random", xref: `x${id}`, yref: `y${id}`, layer: "below", line: { width: 0 },
    path: `M${[...edge(1), ...edge(-1).reverse()].join("L")}Z`, fillcolor: withAlpha(colour, 0.3) }];
}

function depthTraces(points, i, id, map, { theme, part, metric, legend, format }) {
  const colour = theme.runs[i % theme.runs.length];
  const common = { xaxis: `x${id}`, yaxis: `y${id}`, x: points.map((p) => p.x), showlegend: false };
  const shade = (low, high, alpha) => [
    { ...common, y: points.map((p) => p[low]), mode: "lines", line: { width: 0 }, hoverinfo: "skip" },
    { ...common, y: points.map((p) => p[high]), mode: "lines", line: { width: 0 }, hoverinfo: "skip",
      fill: "tonexty", fillcolor: withAlpha(colour, alpha) },
  ];
  const bands = part === "heads" ? [...shade("least", "most", 0.13), ...shade("low", "high", 0.28)] : [];
  const random = points.some((p) => !missing(p.random)) ? [{ ...common, y: points.map((p) => p.random), mode: "lines",
    line: { color: RUNS.length > 1 ? withAlpha(colour, 0.75) : theme.random, width: 1.4, dash: "dash" },
    hovertemplate: `random ${plotText(map)}: %{y:${format}}<extra></extra>` }] : [];
  const line = { ...common, y: points.map((p) => p.value), name: plotText(runLabel(RUNS[i])), legendgroup: String(i),
    showlegend: legend, mode: points.length > 24 ? "lines" : "lines+markers", line: { color: colour, width: 2.2 }, marker: { size: 5 },
    customdata: points.map((p) => [i, p.index, RUNS[i].layers[p.index].layer]),
    hovertemplate: `${plotText(runLabel(RUNS[i]))}<br>${plotText(map)}, layer %{customdata[2]}<br>${metricLabel(metric)}: %{y:${format}}<extra></extra>` };
  return [...bands, ...random, line];
}
