// Figures: new wiring between layers (L x L, and H x H of one pair of layers), and the graph of the
// strongest edges.
const screensOf = (run) => run.wiring?.screens ?? [];
const modesOf = (run) => [...new Set([...screensOf(run), ...pairsOf(run)].map((one) => one.mode))];

const WIRING_MEASURES = {
  cosine: ["best match of new writes and new reads", (screen) => screen.cosines?.[0]],
  rho: ["rewiring ρ of the layers", (screen) => screen.rho],
  rho_max: ["largest ρ of two heads", (screen) => screen.rho_max],
};

function drawWiring() {
  if (!RUNS.some((run) => screensOf(run).length)) return;
  const modes = () => modesOf(store.runData).map((mode) => [mode, modeTitle(mode)]);
  figure({
    id: "fig-wiring",
    title: "Wiring between layers",
    question: "Which layers were connected anew?",
    see: "Left: every pair of an earlier layer (across, writing) and a later one (up, reading). All heads of a layer share what the adapter adds to their writing, and to their reading, so the new wiring between two layers is one small matrix; the colour is how well its best direction fits, or how much the pair was rewired. Right: the heads of one pair of layers. Click a cell on the left to choose the pair.",
    care: "A good fit of new writes and new reads says nothing of how much flows there: two adapters trained together often point the same way although neither matters. Rank by the size ρ, never by the fit alone. Paths through the layers between, and through MLPs, are not seen here.",
    keys: ["run"],
    defaults: { mode: modesOf(RUNS[0])[0], measure: "rho", pair: null },
    controls: (f) => [
      f.modeField = select("Mode", "mode", modes(), f.options.mode, (mode) => f.set({ mode, pair: null })),
      select("Colour", "measure", Object.entries(WIRING_MEASURES).map(([key, [text]]) => [key, text]), "rho", (measure) => f.set({ measure })),
    ],
    refill(f) {
      f.modeField.fill(modes(), f.options.mode);
      f.options.mode = f.modeField.choice.value;
      f.options.pair = null;
    },
    async load(f) {
      const run = store.runData;
      const screens = screensOf(run).filter((screen) => screen.mode === f.options.mode);
      const tables = screens.filter((screen) => screen.rho_heads);
      const wanted = f.options.pair && screens.find((screen) => screen.w === f.options.pair[0] && screen.r === f.options.pair[1]);
      return { run, ...f.options, screens, detail: wanted ?? tables.sort((a, b) => b.rho_max - a.rho_max)[0] ?? screens[0] };
    },
    compose: composeWiring,
    csv: (f, m) => [["writer_layer", "reader_layer", "mode", "rho", "rho_max", "best_cosine", ...ROUTES.map((route) => `share_${route}`), "q_bh"],
      ...m.screens.map((screen) => [screen.w, screen.r, screen.mode, screen.rho, screen.rho_max, screen.cosines?.[0],
        ...ROUTES.map((route) => screen.share?.[route]), screen.q_bh])],
    wire: (f) => f.plot.on("plotly_click", ({ points: [point] }) => {
      if (point.curveNumber === 0) f.set({ pair: [point.x, point.y] });
    }),
  });
}

function composeWiring(f, m, { theme, width }) {
  const stacked = width < 700;
  const [title, value] = WIRING_MEASURES[m.measure];
  const layers = [...new Set(m.screens.flatMap((screen) => [screen.w, screen.r]))].sort((a, b) => a - b);
  const writers = layers.slice(0, -1);
  const readers = layers.slice(1);
  const found = new Map(m.screens.map((screen) => [`${screen.w}/${screen.r}`, screen]));
  const z = readers.map((r) => writers.map((w) => value(found.get(`${w}/${r}`) ?? {}) ?? null));
  const domains = stacked ? [[[0, 0.9], [0.56, 1]], [[0, 0.9], [0, 0.44]]] : [[[0, 0.42], [0, 1]], [[0.57, 1], [0, 1]]];
  const bar = (i) => ({ thickness: 10, outlinewidth: 0, tickfont: { size: 11, color: theme.soft },
    x: domains[i][0][1] + 0.01, y: (domains[i][1][0] + domains[i][1][1]) / 2, len: domains[i][1][1] - domains[i][1][0] });
  const dense = layers.length <= 14 ? { dtick: 1 } : {};
  const layout = baseLayout(theme, { height: stacked ? 720 : 430, margin: { l: 56, r: 16, t: 44, b: 48 },
    xaxis: axis(theme, "writing layer", { domain: domains[0][0], anchor: "y", showgrid: false, ...dense }),
    yaxis: axis(theme, "reading layer", { domain: domains[0][1], anchor: "x", showgrid: false, ...dense }),
    annotations: [panelTitle(`${title}, ${modeTitle(m.mode)}`, theme, domains[0][0][0], domains[0][1][1] + 0.01)], shapes: [] });
  const data = [{ type: "heatmap", x: writers, y: readers, z, zmin: 0, zmax: Math.max(...z.flat().filter(Number.isFinite), 1e-12), colorscale: cividisScale, xgap: 1, ygap: 1, colorbar: bar(0),
    hoverongaps: false, hovertemplate: `layer %{x} → layer %{y}: %{z:.4g}<extra></extra>` }];
  const detail = m.detail;
  if (detail) {
    layout.shapes.push({ type: "rect", x0: detail.w - 0.5, x1: detail.w + 0.5, y0: detail.r - 0.5, y1: detail.r + 0.5, line: { color: theme.pick, width: 2.5 } });
    const table = detail.rho_heads ?? tableOfPairs(m.run, detail);
    layout.annotations.push(panelTitle(table ? `ρ of the heads, layer ${detail.w} → ${detail.r}` : `layer ${detail.w} → ${detail.r}: heads not listed in the file`,
      theme, domains[1][0][0], domains[1][1][1] + 0.01));
    if (table) {
      // The file has a row a writer; writers go across here as on the left.
      const turned = table[0].map((_, reader) => table.map((row) => row[reader]));
      const few = table.length <= 14 ? { dtick: 1 } : {};
      data.push({ type: "heatmap", z: turned, zmin: 0, zmax: Math.max(...turned.flat().filter(Number.isFinite), 1e-12), colorscale: cividisScale, xaxis: "x2", yaxis: "y2", xgap: 1, ygap: 1, colorbar: bar(1), hoverongaps: false,
        hovertemplate: `head ${detail.w}.%{x} → head ${detail.r}.%{y}: ρ %{z:.4g}<extra></extra>` });
      layout.xaxis2 = axis(theme, `head of layer ${detail.w}`, { domain: domains[1][0], anchor: "y2", showgrid: false, ...few });
      layout.yaxis2 = axis(theme, `head of layer ${detail.r}`, { domain: domains[1][1], anchor: "x2", showgrid: false, ...few });
    }
  }
  const best = m.screens.reduce((a, b) => (b.rho > (a?.rho ?? -1) ? b : a), null);
  return { data, layout, label: `${title} for pairs of layers, ${modeTitle(m.mode)}`,
    readout: best && [el("strong", {}, `Most rewired ${modeTitle(m.mode)}: `),
      `layer ${best.w} → layer ${best.r}, ρ ${number(best.rho, 3)}; of that ${ROUTES.map((route) => `${ROUTE_TEXTS[route]} ${percent(best.share?.[route])}`).join(", ")}.`] };
}

// The pairs that have scores of their own, where the file has no table.
function tableOfPairs(run, screen) {
  const some = pairsOf(run).filter((pair) => pair.mode === screen.mode && pair.w[0] === screen.w && pair.r[0] === screen.r);
  if (!some.length) return null;
  const table = Array.from({ length: run.headCount }, () => new Array(run.headCount).fill(null));
  for (const pair of some) table[pair.w[1]][pair.r[1]] = pair.rho;
  return table;
}

function drawGraph() {
  if (!RUNS.some((run) => pairsOf(run).length)) return;
  figure({
    id: "fig-graph",
    title: "The strongest new connections",
    question: "Through which heads does the adapter re-route information?",
    see: "Every dot is a head, every line a pair whose joint map changed most (by ρ); its width is ρ. The colour says what is new about it: the reader's adapter listens to an old writer, an old reader hears the writer's adapter, or the two adapters speak to each other. Dashed lines could be chance. The ring around a writing head is how far its own attention moved, ‖ΔM‖ / ‖M‖ of its QK; the largest ring is the most moved of them.",
    care: "A line is a change of what one head can pass to another, by weights. Whether anything passes there on real text is another question, and a head whose attention moved re-routes without any line. Layers between are skipped over: this is the direct path only.",
    keys: ["run"],
    defaults: { count: "40", mode: "all" },
    controls: (f) => [
      select("Lines", "count", ["20", "40", "100"].map((n) => [n, n]), "40", (count) => f.set({ count })),
      select("Mode", "mode", [["all", "all"], ...modesOf(store.runData).map((mode) => [mode, modeTitle(mode)])], "all", (mode) => f.set({ mode })),
    ],
    async load(f) {
      const run = store.runData;
      const pairs = pairsOf(run).filter((pair) => f.options.mode === "all" || pair.mode === f.options.mode)
        .sort((a, b) => b.rho - a.rho).slice(0, Number(f.options.count));
      return { run, pairs };
    },
    compose: composeGraph,
    csv: (f, m) => [["writer_layer", "writer_head", "reader_layer", "reader_head", "mode", "rho", "writer_qk", "main_route", ...ROUTES.map((route) => `share_${route}`), "q_bh"],
      ...m.pairs.map((pair) => [...pair.w, ...pair.r, pair.mode, pair.rho, pair.writer_qk, mainRoute(pair), ...ROUTES.map((route) => pair.share?.[route]), pair.q_bh])],
  });
}

// What a score of what is written cannot show: the writer attends elsewhere.
const movedText = (pair) => (missing(pair.writer_qk) ? "" : `the writer's own QK changed by ${percent(pair.writer_qk)}`);

const mainRoute = (pair) => ROUTES.reduce((best, route) => ((pair.share?.[route] ?? 0) > (pair.share?.[best] ?? 0) ? route : best), "bn");

function composeGraph(f, m, { theme }) {
  const top = Math.max(...m.pairs.map((pair) => pair.rho), 1e-12);
  const data = ROUTES.flatMap((route) => [false, true].map((dashed) => {
    const some = m.pairs.filter((pair) => mainRoute(pair) === route && (pair.q_bh > 0.05) === dashed);
    return some.map((pair, i) => ({ type: "scatter", mode: "lines", x: [pair.w[0], (pair.w[0] + pair.r[0]) / 2, pair.r[0]],
      y: [pair.w[1], (pair.w[1] + pair.r[1]) / 2 + 0.12 * (pair.r[0] - pair.w[0] - 1), pair.r[1]], name: ROUTE_TEXTS[route], legendgroup: route,
      showlegend: i === 0 && (!dashed || !m.pairs.some((other) => mainRoute(other) === route && !(other.q_bh > 0.05))),
      line: { color: withAlpha(routeColour(theme, route), 0.85), width: 0.8 + 5 * (pair.rho / top), dash: dashed ? "dash" : "solid", shape: "spline", smoothing: 1.2 },
      text: `${shortUnit(...pair.w)} → ${shortUnit(...pair.r)} ${modeTitle(pair.mode)}<br>ρ ${number(pair.rho, 3)}, q ${number(pair.q_bh, 2)}<br>${movedText(pair)}`,
      hovertemplate: "%{text}<extra></extra>" }));
  })).flat();
  const layers = m.run.wiring.layers ?? m.run.layers;
  const heads = m.run.wiring.heads ?? m.run.headCount;
  const dots = layers.flatMap((layer) => Array.from({ length: heads }, (_, head) => [layer, head]));
  const used = new Set(m.pairs.flatMap((pair) => [pair.w.join("/"), pair.r.join("/")]));
  const moved = new Map(m.pairs.map((pair) => [pair.w.join("/"), pair.writer_qk ?? 0]));
  const most = Math.max(...moved.values(), 1e-12);
  const rings = [...moved].map(([unit, size]) => [...unit.split("/").map(Number), size]);
  data.push({ type: "scatter", mode: "markers", x: rings.map(([layer]) => layer), y: rings.map(([, head]) => head), showlegend: false, hoverinfo: "skip",
    marker: { size: rings.map(([, , size]) => 10 + 22 * size / most), color: withAlpha(theme.pick, 0.22), line: { color: theme.pick, width: rings.map(([, , size]) => (size > 0 ? 1.4 : 0)) } } });
  data.push({ type: "scatter", mode: "markers", x: dots.map(([layer]) => layer), y: dots.map(([, head]) => head), showlegend: false,
    marker: { size: dots.map((dot) => (used.has(dot.join("/")) ? 10 : 5)), color: dots.map((dot) => (used.has(dot.join("/")) ? theme.ink : theme.axis)) },
    hovertemplate: "layer %{x}, head %{y}<extra></extra>" });
  const layout = baseLayout(theme, { height: Math.min(640, 170 + Math.max(16 * heads, 240)), margin: { l: 56, r: 16, t: 44, b: 48 },
    xaxis: axis(theme, "layer", { showgrid: false, ...(layers.length <= 14 ? { dtick: 1 } : {}), range: [Math.min(...layers) - 0.4, Math.max(...layers) + 0.4] }),
    yaxis: axis(theme, "head", { showgrid: false, range: [heads - 0.3, -0.7], ...(heads <= 14 ? { dtick: 1 } : {}) }) });
  const first = m.pairs[0];
  return { data, layout, label: `Graph of the ${m.pairs.length} most rewired pairs of heads`,
    readout: first && [el("strong", {}, `Strongest: `), `head ${shortUnit(...first.w)} → head ${shortUnit(...first.r)} ${modeTitle(first.mode)}, ρ ${number(first.rho, 3)} (${ROUTE_TEXTS[mainRoute(first)]}${missing(first.writer_qk) ? "" : `; ${movedText(first)}`}). Layer before the point, head behind it.`] };
}
