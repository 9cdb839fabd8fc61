// Heads x layers as a heat map of any metric of any map.
const heatMaps = () => mapsWith(store.runData, "heads").filter((map) => {
  const columns = store.runData.maps[map].heads.columns;
  return !isOffset(map) || columns.includes("stable_rank");
});
const preferred = (maps, wishes) => wishes.find((map) => maps.includes(map)) ?? maps[0];

function drawHeat() {
  if (!RUNS.some((run) => mapsWith(run, "heads").length)) return;
  const columnsOf = (map) => store.runData.maps[map].heads.columns.map((name) => [name, metricLabel(name)]);
  // The entropy rank first: ranks at a threshold are whole numbers and often all near the top.
  const first = preferred(heatMaps(), ["VO", "O", "QK"]);
  figure({
    id: "fig-heat",
    title: "Heads and layers",
    question: "Which heads are unlike the others?",
    see: "Every column is a layer, every cell a head. A cell that stands out from its column is a head unlike its neighbours; a column that stands out is a layer. Click a cell, or move with the arrow keys, to follow that head through the other figures.",
    care: "Heads have no order, so patterns along the vertical axis mean nothing; sort each column by value to see the spread instead. The colours span what this map holds, so faint differences may look strong: read the scale. Against the random value, 1 means no different from noise of that shape.",
    keys: ["layer", "head", "run"],
    defaults: { map: first, metric: "entropy_rank", against: "value", order: "index" },
    controls: (f) => [
      f.mapField = select("Map", "map", heatMaps().map((m) => [m, mapTitle(m)]), f.options.map, (map) => {
        f.set({ map });
        f.metricField.fill(columnsOf(map), f.options.metric);
        f.set({ metric: f.metricField.choice.value });
      }),
      f.metricField = select("Metric", "metric", columnsOf(first), f.options.metric, (metric) => f.set({ metric })),
      select("Show", "against", [["value", "the value"], ["ratio", "value / random value"]], "value",
        (against) => f.set({ against })),
      select("Heads", "order", [["index", "by number"], ["sorted", "sorted by value"]], "index", (order) => f.set({ order })),
    ],
    refill(f) {
      f.mapField.fill(heatMaps().map((m) => [m, mapTitle(m)]), f.options.map);
      f.options.map = f.mapField.choice.value;
      f.metricField.fill(columnsOf(f.options.map), f.options.metric);
      f.options.metric = f.metricField.choice.value;
    },
    load: loadHeat,
    compose: composeHeat,
    csv: (f, m) => [["layer", "head", `${m.map}: ${m.metric}${m.ratio ? " / random" : ""}`],
      ...m.columns.flatMap((column, i) => column.cells.map(({ head, value }) =>
        [store.runData.layers[i].layer, head, value]))],
    wire(f) {
      f.plot.on("plotly_click", ({ points: [point] }) => {
        const index = store.runData.layers.findIndex((layer) => layer.layer === point.x);
        const cell = f.loaded.columns[index].cells[point.y];
        store.set({ layer: index, head: headToSelect(cell.head, f.loaded.heads) });
      });
      f.plot.addEventListener("keydown", (event) => moveInHeat(f, event));
    },
  });
}

// The first head of a group, unless the selected head is already in it.
function headToSelect(row, count) {
  const heads = modelOf(store.runData).heads;
  if (count >= heads) return row;
  return headIn(count) === row ? store.get("head") : Math.floor((row * heads) / count);
}

async function loadHeat(f) {
  const { map, metric, against, order } = f.options;
  const run = store.runData;
  const metrics = await headMetrics(run, map);
  const ratio = against === "ratio";
  const columns = run.layers.map((layer, index) => {
    const random = described(run, index, map)?.heads?.random[metric];
    const row = metrics.row(metric, index) ?? [];
    const cells = Array.from(row, (value, head) => ({ head, raw: value,
      value: ratio ? (random ? value / random : NaN) : value }));
    if (order === "sorted") {
      cells.sort((a, b) => (Number.isNaN(a.value) - Number.isNaN(b.value)) || a.value - b.value);
    }
    return { cells, random };
  });
  return { map, metric, ratio, order, heads: metrics.heads, columns };
}

function composeHeat(f, m, { theme }) {
  const layers = store.runData.layers.map((layer) => layer.layer);
  const finite = m.columns.flatMap(({ cells }) => cells.map(({ value }) => value)).filter(Number.isFinite);
  const logScale = (m.metric === "condition_number" || m.metric.startsWith("energy_lost")) && !m.ratio
    && Math.min(...finite) > 0 && Math.max(...finite) / Math.min(...finite) > 100;
  const shown = (value) => (!Number.isFinite(value) ? null : logScale ? Math.log10(value) : value);
  const z = [];
  const text = [];
  for (let head = 0; head < m.heads; head++) {
    z.push(m.columns.map(({ cells }) => (cells[head] ? shown(cells[head].value) : null)));
    text.push(m.columns.map(({ cells }) => (cells[head]
      ? `${headWord(m.heads)} ${cells[head].head}: ${number(cells[head].value)}` : "")));
  }
  const head = headIn(m.heads);
  const index = store.get("layer");
  const cells = m.columns[index].cells;
  const y = m.order === "sorted" ? cells.findIndex((cell) => cell.head === head) : head;
  const here = cells[y];
  const name = metricLabel(m.metric) + (m.ratio ? " / random" : "");
  const x = layers[index];
  const unit = (theme.name === "paper" ? LIGHT : theme);
  const data = [{
    type: "heatmap", x: layers, y: z.map((_, i) => i), z, text, colorscale: cividisScale,
    hovertemplate: `layer %{x}<br>%{text}<extra></extra>`, hoverongaps: false, xgap: layers.length < 40 ? 1 : 0,
    ygap: m.heads < 40 ? 1 : 0,
    colorbar: { title: { text: logScale ? `log₁₀ ${name}` : name, side: "right", font: { size: 12 } }, thickness: 12,
      outlinewidth: 0, tickfont: { size: 11, color: theme.soft } },
  }];
  const layout = baseLayout(theme, {
    height: Math.min(560, Math.max(300, 90 + 20 * m.heads)),
    xaxis: axis(theme, "layer", { showgrid: false, ...(layers.length <= 32 ? { dtick: 1 } : {}) }),
    yaxis: axis(theme, m.order === "sorted" ? `${headWord(m.heads)}s, sorted in each layer` : headWord(m.heads),
      { showgrid: false, autorange: m.order === "sorted" ? true : "reversed" }),
    shapes: y < 0 ? [] : [{ type: "rect", x0: x - 0.5, x1: x + 0.5, y0: y - 0.5, y1: y + 0.5,
      line: { color: unit.pick, width: 2.5 } }],
    margin: { l: 56, r: 16, t: 12, b: 48 },
  });
  return { data, layout, label: `${name} of ${mapTitle(m.map)}, ${m.heads} ${headWord(m.heads)}s by ${layers.length} layers; arrow keys move the selection`,
    readout: here && [el("strong", {}, `Layer ${x}, ${headWord(m.heads)} ${head}: `),
      `${metricLabel(m.metric)} of ${mapTitle(m.map)} ${number(here.raw)}, random ${number(m.columns[index].random)}; median of the layer ${number(median(cells.map((c) => c.raw)))}.`] };
}

function moveInHeat(f, event) {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step) return;
  event.preventDefault();
  const { heads, order, columns } = f.loaded;
  const index = Math.min(columns.length - 1, Math.max(0, store.get("layer") + step[0]));
  let row = headIn(heads);
  if (step[1]) {
    const cells = columns[index].cells;
    // Sorted columns are drawn with the smallest value at the bottom.
    const at = order === "sorted" ? cells.findIndex((cell) => cell.head === row) - step[1] : row + step[1];
    row = cells[Math.min(heads - 1, Math.max(0, at))].head;
    store.set({ head: headToSelect(row, heads) });
  }
  store.set({ layer: index });
  requestAnimationFrame(() => speak(f.readoutNode.textContent));
}
