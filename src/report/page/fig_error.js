// What a rank r costs in energy and saves in parameters.
function savings(shape, rank) {
  const [rows, columns] = shape;
  const dense = rows * columns;
  const factored = rank * (rows + columns);
  return { dense, factored, saved: 1 - factored / dense, breakEven: Math.floor(dense / (rows + columns)) };
}

// Shape of the weights that a rank-r stack of this map would replace, and whose they are. Nothing
// can be said so simply where they are blocks on a diagonal, most of the matrix being zeros that
// nobody stores.
function storedShape(run, layerIndex, map) {
  const owner = STORED_AS[map] ?? map;
  const info = run.layers[layerIndex].maps[owner]?.stack;
  return info && !info.blocks ? { owner, shape: info.shape } : null;
}

// Stated by summary.json if it can be, else the sum over all the stack's values.
function lostAt(info, spectrum, rank) {
  if (rank >= spectrum.length) return 0;
  const stated = info.metrics[`energy_lost@${rank}`];
  return missing(stated) ? energyLost(spectrum)[rank] : stated;
}

function drawError() {
  const maps = () => mapsWith(store.runData, "stack");
  if (!maps().length) return;
  const map = preferred(maps(), ["O", "VO"]);
  const longest = (name) => Math.max(...store.runData.layers.map((layer) => layer.maps[name]?.stack?.values ?? 1));
  const setRank = (f, rank) => {
    const most = longest(f.options.map);
    const chosen = Math.min(most, Math.max(1, Math.round(rank) || f.options.rank));
    for (const input of [f.slider, f.box]) {
      input.max = most;
      input.value = chosen;
    }
    f.slider.setAttribute("aria-valuetext", `rank ${chosen} of ${most}`);
    f.options.rank = chosen;
    f.invalidate();
  };
  // A first rank that saves something: three quarters of the break-even, in steps of 16.
  const stored = storedShape(store.runData, 0, map);
  const goal = stored ? 0.75 * savings(stored.shape, 1).breakEven : longest(map) / 2;
  const start = Math.min(longest(map), Math.max(1, goal < 32 ? Math.round(goal) : 16 * Math.round(goal / 16)));
  figure({
    id: "fig-error",
    title: "Error against rank",
    question: "What do I lose at rank r, and what do I save?",
    see: "Left: what the best approximation of rank r leaves out, one curve a layer. Right: the same at the rank you choose, layer by layer. Factors of rank r take r (m + n) parameters in place of m n, so they save anything only below the break-even rank, marked by the dashed line.",
    care: "Energy lost is 1 − E; the relative Frobenius error is its square root, so 1 % is 10 %: say which you mean. Either counts all directions of the weights alike, while the activations do not use them alike: a small error here is no promise of a small loss of quality, nor a large one of harm. For fused maps the parameters are those of the matrix that would be replaced.",
    keys: ["layer", "run"],
    defaults: { map, measure: "energy", rank: start },
    controls: (f) => [
      f.mapField = select("Map", "map", maps().map((m) => [m, m]), map, (name) => {
        const share = f.options.rank / longest(f.options.map);
        f.options.map = name;
        setRank(f, share * longest(name));
      }),
      select("Error as", "measure", [["energy", "energy lost, 1 − E"], ["norm", "relative Frobenius error, √(1 − E)"]], "energy",
        (measure) => f.set({ measure })),
      el("label", { class: "field slider" }, "Rank r",
        f.slider = el("input", { type: "range", name: "rank", min: 1, max: longest(map), value: start, step: 1,
          oninput: () => setRank(f, Number(f.slider.value)) }),
        f.box = el("input", { type: "number", name: "rank-number", min: 1, max: longest(map), value: start, "aria-label": "Rank r",
          onchange: () => setRank(f, Number(f.box.value)) })),
    ],
    refill(f) {
      f.mapField.fill(maps().map((m) => [m, m]), f.options.map);
      f.options.map = f.mapField.choice.value;
      setRank(f, f.options.rank);
    },
    async load(f) {
      const run = store.runData;
      const spectra = await stackSpectra(run, f.options.map);
      const layers = run.layers.map((layer, index) => spectra[index] && ({ index, layer: layer.layer, spectrum: spectra[index],
        info: layer.maps[f.options.map].stack, stored: storedShape(run, index, f.options.map) })).filter(Boolean);
      return { ...f.options, layers };
    },
    compose: composeError,
    csv: (f, m) => [["layer", "map", "rank", "energy_lost", "relative_frobenius_error", "dense_parameters", "factored_parameters"],
      ...m.layers.map(({ layer, info, spectrum, stored }) => {
        const lost = lostAt(info, spectrum, m.rank);
        const saved = stored && savings(stored.shape, m.rank);
        return [layer, m.map, m.rank, lost, Math.sqrt(lost), saved?.dense, saved?.factored];
      })],
    wire: (f) => f.plot.on("plotly_click", ({ points: [point] }) => {
      if (point.customdata !== undefined) selectLayer(point.customdata);
    }),
  });
}

function composeError(f, m, { theme, width }) {
  const narrow = width < 620;
  const asShown = m.measure === "norm" ? Math.sqrt : (x) => x;
  const name = m.measure === "norm" ? "relative Frobenius error" : "energy lost";
  const depth = depthColours(theme);
  const span = Math.max(1, m.layers.length - 1);
  const chosen = store.get("layer");
  const curves = m.layers.map(({ index, layer, spectrum, info }, i) => {
    const lost = energyLost(spectrum);
    const at = [0, ...drawPositions(spectrum.length, 160).map((j) => j + 1)];
    return { type: "scatter", mode: "lines", x: at, y: at.map((r) => asShown(r === spectrum.length ? 0 : lost[r])), showlegend: false,
      line: { color: index === chosen ? theme.pick : depth.at(i / span), width: index === chosen ? 3 : 1.1 },
      opacity: index === chosen ? 1 : 0.75, customdata: at.map(() => index),
      hovertemplate: `layer ${layer}, rank %{x}<br>${name} %{y:.3%}<extra></extra>` };
  });
  curves.sort((a, b) => a.line.width - b.line.width);
  const lostHere = m.layers.map(({ info, spectrum }) => lostAt(info, spectrum, m.rank));
  const bars = { type: "bar", x: m.layers.map((one) => one.layer), y: lostHere.map(asShown), xaxis: "x2", yaxis: "y2", showlegend: false,
    customdata: m.layers.map((one) => one.index),
    marker: { color: m.layers.map(({ index }, i) => (index === chosen ? theme.pick : depth.at(i / span))) },
    hovertemplate: `layer %{x}<br>${name} %{y:.3%}<extra></extra>` };
  const here = m.layers.find(({ index }) => index === chosen) ?? m.layers[0];
  const saved = here.stored && savings(here.stored.shape, m.rank);
  const split = narrow ? [[0, 1], [0.57, 1], [0, 1], [0, 0.41]] : [[0, 0.5], [0, 1], [0.59, 1], [0, 1]];
  const most = Math.max(...m.layers.map(({ spectrum }) => spectrum.length));
  const vertical = (x, colour, dash) => ({ type: "line", xref: "x", yref: "y domain", x0: x, x1: x, y0: 0, y1: 1,
    line: { color: colour, width: 1.5, dash } });
  const dtick = m.layers.length <= 16 ? { dtick: 1 } : {};
  const layout = baseLayout(theme, {
    height: narrow ? 660 : 410, showlegend: false, bargap: 0.15, margin: { l: 60, r: 16, t: 34, b: 50 },
    xaxis: axis(theme, narrow ? "" : "rank r", { domain: split[0], anchor: "y", range: [0, most * 1.01] }),
    yaxis: axis(theme, name, { domain: split[1], anchor: "x", tickformat: "~%", range: [0, 1.02] }),
    xaxis2: axis(theme, "layer", { domain: split[2], anchor: "y2", showgrid: false, ...dtick }),
    yaxis2: axis(theme, name, { domain: split[3], anchor: "x2", tickformat: "~%", rangemode: "tozero" }),
    shapes: [vertical(m.rank, theme.pick, "solid")],
    annotations: [panelTitle(`<b>${m.map}</b>, every layer`, theme, split[0][0], split[1][1] + 0.01),
      panelTitle(`<b>at rank ${integer(m.rank)}</b>`, theme, split[2][0], split[3][1] + 0.01)],
  });
  if (saved && saved.breakEven < most) {
    layout.shapes.push(vertical(saved.breakEven, theme.random, "dash"));
    layout.annotations.push({ text: `break-even ${integer(saved.breakEven)}`, xref: "x", yref: "y domain", x: saved.breakEven, y: 0.98,
      xanchor: saved.breakEven > most * 0.74 ? "right" : "left", yanchor: "top", showarrow: false, font: { size: 11, color: theme.soft } });
  }
  return { data: [...curves, bars], layout, label: `${name} against rank for ${m.layers.length} layers of ${m.map}`,
    readout: errorReadout(m, here, lostHere, saved) };
}

function errorReadout(m, here, lostHere, saved) {
  const lost = lostHere[m.layers.indexOf(here)];
  const worst = lostHere.indexOf(Math.max(...lostHere));
  const parts = [el("strong", {}, `At rank ${integer(m.rank)}: `),
    `layer ${here.layer} loses ${percent(lost)} of the energy of ${m.map} (relative Frobenius error ${percent(Math.sqrt(lost))}); the median layer ${percent(median(lostHere))}, the worst, layer ${m.layers[worst].layer}, ${percent(lostHere[worst])}. `];
  if (saved) {
    const change = saved.saved >= 0 ? `saves ${percent(saved.saved)}` : `costs ${percent(-saved.saved)} more`;
    parts.push(`${here.stored.owner} is ${shapeText(here.stored.shape)}: ${millions(saved.dense)} parameters, as factors ${millions(saved.factored)}, which `,
      el("strong", {}, change), `; break-even at rank ${integer(saved.breakEven)}.`);
  }
  return parts;
}
