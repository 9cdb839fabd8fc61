// A metric of QK(delta) against the distance of positions.
function drawRope() {
  if (!RUNS.some((run) => offsetMaps(run).length)) return;
  const metrics = [...RUNS[0].taus.map((tau) => `rank_${tau}`), "entropy_rank", "stable_rank", "participation_ratio", "largest"]
    .map((name) => [name, metricLabel(name)]);
  figure({
    id: "fig-rope",
    title: "The rotated map against distance",
    question: "Does the scoring map change its rank with the distance of two positions?",
    see: "For positions δ apart, rotary models put a rotation between query and key. Each thin line is the median head of one layer; for the selected layer the band holds the middle half of its heads, and the dashed line is the selected head. A flat line means that distance turns the map but keeps its rank.",
    care: "A rotation changes no singular value of the query or of the key matrix alone; only their product can change. Lines join the offsets that were computed: what lies between them was not looked at. For latent attention this is the rotated part only.",
    keys: ["layer", "head", "run"],
    defaults: { metric: metrics[0][0], scale: "symlog" },
    controls: (f) => [
      select("Metric", "metric", metrics, f.options.metric, (metric) => f.set({ metric })),
      select("Distance", "scale", [["symlog", "logarithmic, 1 + δ"], ["linear", "linear"]], "symlog", (scale) => f.set({ scale })),
    ],
    load: loadRope,
    compose: composeRope,
    csv: (f, m) => [["layer", "offset", "metric", "least", "quartile_low", "median", "quartile_high", "most", "selected_head"],
      ...m.layers.flatMap(({ layer, rows }) => rows.map((row) =>
        [layer, row.offset, m.metric, row.least, row.low, row.middle, row.high, row.most, row.head]))],
  });
}

async function loadRope(f) {
  const run = store.runData;
  const { metric } = f.options;
  const tables = await Promise.all(offsetMaps(run).map(async (map) => [offsetOf(map), await headMetrics(run, map)]));
  const layers = run.layers.map((layer, index) => ({ index, layer: layer.layer, rows: tables.map(([offset, table]) => {
    const values = table.row(metric, index);
    if (!values) return null;
    const list = sorted(values);
    if (!list.length) return null;
    return { offset, least: list[0], low: quantileSorted(list, 0.25), middle: quantileSorted(list, 0.5),
      high: quantileSorted(list, 0.75), most: list.at(-1), head: values[headIn(table.heads)] };
  }).filter(Boolean) })).filter(({ rows }) => rows.length);
  const random = layers.length
    ? described(run, store.get("layer"), offsetMaps(run)[0])?.heads?.random[metric] : undefined;
  return { ...f.options, layers, random };
}

function composeRope(f, m, { theme }) {
  if (!m.layers.length) {
    return { data: [], layout: baseLayout(theme, { height: 300 }), label: "no offsets", readout: "This model has no rotated map." };
  }
  const depth = depthColours(theme);
  const shown = m.scale === "symlog" ? (d) => d + 1 : (d) => d;
  const chosen = m.layers.find(({ index }) => index === store.get("layer")) ?? m.layers[0];
  const span = Math.max(1, m.layers.length - 1);
  const xs = (rows) => rows.map((row) => shown(row.offset));
  const data = m.layers.filter((one) => one !== chosen).map(({ layer, rows }) => ({
    mode: "lines", x: xs(rows), y: rows.map((row) => row.middle), showlegend: false, opacity: 0.7, customdata: rows.map((row) => row.offset),
    line: { color: depth.at(m.layers.findIndex((one) => one.layer === layer) / span), width: 1.1 },
    hovertemplate: `layer ${layer}, δ = %{customdata}<br>median head %{y:.4~g}<extra></extra>` }));
  const rows = chosen.rows;
  const edge = { mode: "lines", x: xs(rows), line: { width: 0 }, showlegend: false, hoverinfo: "skip" };
  const marker = { size: rows.length > 60 ? 0.1 : 6 };
  data.push(
    { ...edge, y: rows.map((row) => row.low) },
    { ...edge, y: rows.map((row) => row.high), fill: "tonexty", fillcolor: withAlpha(theme.pick, 0.2) },
    { mode: "lines+markers", x: xs(rows), y: rows.map((row) => row.middle), name: `layer ${chosen.layer}, median head`,
      line: { color: theme.pick, width: 2.8 }, marker, customdata: rows.map((row) => row.offset),
      hovertemplate: `layer ${chosen.layer}, δ = %{customdata}<br>median head %{y:.4~g}<extra></extra>` },
    { mode: "lines", x: xs(rows), y: rows.map((row) => row.head), name: `head ${store.get("head")}`, line: { color: theme.ink, width: 1.8, dash: "dash" },
      customdata: rows.map((row) => row.offset), hovertemplate: `head ${store.get("head")}, δ = %{customdata}: %{y:.4~g}<extra></extra>` });
  const offsets = rows.map((row) => row.offset);
  const ticks = offsets.length > 14 ? [0, 1, 3, 7, 15, 31, 63, 127, 255].filter((d) => d <= offsets.at(-1)) : offsets;
  const shapes = [];
  if (!missing(m.random)) {
    data.push({ mode: "lines", x: [shown(offsets[0]), shown(offsets.at(-1))], y: [m.random, m.random], name: "random",
      line: { color: theme.random, width: 1.4, dash: "dot" }, hoverinfo: "skip" });
  }
  if (m.layers.length > 1) data.push(depthBar(theme, m.layers.map((one) => one.layer)));
  const layout = baseLayout(theme, {
    height: 400, shapes, margin: { l: 60, r: 70, t: 34, b: 50 },
    xaxis: axis(theme, "distance δ in positions", m.scale === "symlog"
      ? { type: "log", tickvals: ticks.map(shown), ticktext: ticks.map(String) } : {}),
    yaxis: axis(theme, metricLabel(m.metric), {}),
  });
  const all = rows.map((row) => row.middle);
  return { data, layout, label: `${metricLabel(m.metric)} against offset for ${m.layers.length} layers and ${offsets.length} offsets`,
    readout: [el("strong", {}, `Layer ${chosen.layer}: `), `median head ${number(all[0])} at δ = ${offsets[0]}; over ${offsets.length} offsets up to ${offsets.at(-1)} it stays between ${number(Math.min(...all))} and ${number(Math.max(...all))}.`] };
}
