// Every head of a layer as a small spectrum, all on one scale, linked to the other figures.
const drawnMaps = () => store.layerData.drawn?.maps ?? [];

function drawGrid() {
  if (!RUNS.some((run) => mapsWith(run, "heads").length)) return;
  const choices = () => drawnMaps().map((map) => [map, mapTitle(map)]);
  figure({
    id: "fig-grid",
    title: "Every head of a layer",
    question: "What do the spectra of single heads look like, side by side?",
    see: "Each small panel is a head: its singular values from the first to the last, relative to its largest, on a logarithmic scale that all panels share. The grey line is the median head of the layer, the numbers above each panel are the head and its rank. A steep line is a head that lives in few directions, a flat one a head that uses all it has. Click a head, or press Enter on it, to select it everywhere.",
    care: "Each spectrum starts at 1, so the panels compare shapes and not strengths: a weak head and a strong one may look alike. The vertical scale ends at the bottom line; values below are not zero but further down.",
    keys: ["layer", "head", "run", "tau"],
    defaults: { map: preferred(drawnMaps(), ["VO", "O", "QK"]), order: "index" },
    controls: (f) => [
      f.mapField = select("Map", "map", choices(), f.options.map, (map) => f.set({ map })),
      select("Order", "order", [["index", "by number"], ["rank", "by rank"]], "index", (order) => f.set({ order })),
    ],
    refill(f) {
      f.mapField.fill(choices(), f.options.map);
      f.options.map = f.mapField.choice.value;
    },
    async load(f) {
      const run = store.runData;
      const { map, order } = f.options;
      const drawn = (await drawnSpectra(run, store.get("layer")))[map];
      if (!drawn) return { map, heads: [] };
      const ranks = (await headMetrics(run, map)).row(store.rankColumn, store.get("layer"));
      const heads = drawn.relative.map((row, head) => ({ head, row, rank: ranks[head], largest: drawn.largest[head] }));
      if (order === "rank") heads.sort((a, b) => a.rank - b.rank);
      const measured = drawn.relative.filter(Boolean);
      const middle = drawn.positions.map((_, p) => median(measured.map((row) => row[p])));
      return { map, heads, positions: drawn.positions, values: drawn.values, middle };
    },
    compose: composeGrid,
    csv: (f, m) => [["layer", "map", "head", "position", "relative_singular_value (drawn, 0.07 %)"],
      ...m.heads.flatMap(({ head, row }) => [...(row ?? [])].map((value, p) =>
        [store.layerNumber(), m.map, head, m.positions[p] + 1, value]))],
  });
}

function composeGrid(f, m, { theme, width }) {
  if (!m.heads.length) {
    return { svg: svg("svg"), height: 40, label: "no heads", readout: `Layer ${store.layerNumber()} has no heads of ${mapTitle(m.map)}.` };
  }
  const count = m.heads.length;
  const left = 34;
  const most = Math.max(3, Math.floor((width - left) / (count > 48 ? 68 : 104)));
  // Rows of equal length where they can be: 12 heads as two sixes rather than ten and two.
  const columns = Math.ceil(count / Math.ceil(count / most));
  const rows = Math.ceil(count / columns);
  const gap = 5;
  const header = 15;
  const cellWidth = (width - left) / columns;
  const cellHeight = header + gap + Math.min(92, Math.max(44, cellWidth * 0.62));
  const height = rows * cellHeight + 34;
  // Four decades hold most heads; fewer when the median needs fewer.
  const floor = -Math.min(4, Math.max(1, Math.ceil(-Math.log10(Math.max(1e-9, m.middle.at(-1) ?? 1)) + 0.3)));
  const [w, h] = [cellWidth - gap, cellHeight - gap - header];
  const last = Math.max(1, m.values - 1);
  const path = (row) => m.positions.map((at, p) => {
    const y = Math.max(floor, Math.log10(Math.max(row[p], 1e-30))) / floor;
    return `${p ? "L" : "M"}${(2 + (at / last) * (w - 4)).toFixed(1)} ${(2 + y * (h - 4)).toFixed(1)}`;
  }).join("");
  const grey = path(m.middle);
  const picked = headIn(count);
  const root = svg("svg", { class: "grid-svg", viewBox: `0 0 ${width} ${height}`, "font-size": 10,
    "font-family": FONT, xmlns: SVG });
  if (theme.name === "paper") root.append(svg("rect", { width, height, fill: "#fff" }));
  m.heads.forEach(({ head, row, rank }, k) => {
    const [x, y] = [left + (k % columns) * cellWidth, Math.floor(k / columns) * cellHeight + 4];
    const chosen = head === picked;
    const cell = svg("g", { class: "cell", transform: `translate(${x.toFixed(1)} ${(y + header).toFixed(1)})`,
      tabindex: chosen ? 0 : -1, role: "button", "aria-pressed": String(chosen), "data-head": head,
      "aria-label": `${headWord(count)} ${head}, rank ${number(rank)} at ${store.tauText}` });
    cell.append(
      svg("rect", { class: "frame", width: w, height: h, rx: 3, fill: chosen ? withAlpha(theme.runs[1], 0.14) : theme.paper,
        stroke: chosen ? theme.pick : theme.grid, "stroke-width": chosen ? 2 : 1 }),
      svg("path", { d: grey, fill: "none", stroke: theme.axis, "stroke-width": 1 }));
    if (row) {
      cell.append(svg("path", { class: "spectrum", d: path(row), fill: "none", "stroke-width": 1.7,
        stroke: chosen ? theme.pick : theme.runs[0], "stroke-linejoin": "round" }));
    }
    cell.append(
      svg("text", { x: w - 1, y: -4, "text-anchor": "end", fill: chosen ? theme.pick : theme.ink, "font-weight": 600 },
        row ? integer(rank) : "not measured"),
      svg("text", { x: 1, y: -4, fill: theme.soft }, String(head)));
    root.append(cell);
  });
  root.append(
    svg("text", { x: left - 5, y: header + 12, "text-anchor": "end", fill: theme.soft }, "1"),
    svg("text", { x: left - 5, y: header + 3 + h, "text-anchor": "end", fill: theme.soft }, `10${[...String(floor)].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] ?? "⁻").join("")}`),
    svg("text", { x: left, y: height - 10, fill: theme.soft, "font-size": 11 },
      `singular value 1 … ${m.values}, relative to the largest. Above each panel: ${headWord(count)}, rank at ${store.tauText}. Grey: median of the layer.`));
  wireGrid(root, f, columns, count);
  const here = m.heads.find(({ head }) => head === picked);
  return { svg: root, height, label: `Spectra of the ${count} ${headWord(count)}s of ${mapTitle(m.map)} in layer ${store.layerNumber()}`,
    readout: here && [el("strong", {}, `Layer ${store.layerNumber()}, ${headWord(count)} ${here.head}: `),
      `rank ${number(here.rank)} of ${m.values} at ${store.tauText} of the energy, largest singular value ${number(here.largest)}.`] };
}

function wireGrid(root, f, columns, count) {
  const cellOf = (event) => event.target.closest?.(".cell");
  const pick = (cell) => selectHead(headToSelect(Number(cell.dataset.head), count));
  root.addEventListener("click", (event) => cellOf(event) && pick(cellOf(event)));
  root.addEventListener("mouseover", (event) => {
    const cell = cellOf(event);
    if (cell) showHover(Number(cell.dataset.head), count);
  });
  root.addEventListener("mouseleave", () => showHover(null, count));
  root.addEventListener("keydown", (event) => {
    const cells = [...root.querySelectorAll(".cell")];
    const at = cells.indexOf(cellOf(event));
    if (at < 0) return;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (event.key === "Enter" || event.key === " ") pick(cells[at]);
    else if (step && cells[at + step]) cells[at + step].focus();
    else if (!step) return;
    event.preventDefault();
  });
}

// Pointing at a head here marks it in the heat map's layer column without selecting it.
function showHover(head, count) {
  const heat = FIGURES.find((one) => one.id === "fig-heat");
  if (!heat?.loaded || heat.loaded.heads !== count || heat.dirty) return;
  const x = store.layerNumber();
  const y = head === null ? -1 : heat.loaded.columns[store.get("layer")].cells.findIndex((cell) => cell.head === head);
  const chosen = (heat.plot.layout?.shapes ?? []).filter((shape) => !shape.name);
  const mark = y < 0 ? [] : [{ name: "hover", type: "circle", x0: x - 0.9, x1: x + 0.9, y0: y - 0.9, y1: y + 0.9,
    line: { color: look.theme.pick, width: 2, dash: "dot" } }];
  Plotly.relayout(heat.plot, { shapes: [...chosen, ...mark] });
}
