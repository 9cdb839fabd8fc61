// Singular values on a logarithmic scale, beside the energy that the first r of them hold.
function drawSpectrum() {
  const kinds = () => [["stack", "stacks, every layer"], ["heads", "heads of the layer"]]
    .filter(([part]) => mapsWith(store.runData, part).length);
  const mapsOf = (part) => mapsWith(store.runData, part).filter((map) => part === "stack" || drawnMaps().includes(map));
  const choices = (part) => mapsOf(part).map((map) => [map, mapTitle(map)]);
  const refill = (f) => {
    f.partField.fill(kinds(), f.options.part);
    f.options.part = f.partField.choice.value;
    f.mapField.fill(choices(f.options.part), f.options.map);
    f.options.map = f.mapField.choice.value;
  };
  const part = kinds()[0][0];
  figure({
    id: "fig-spectrum",
    title: "Singular values and cumulative energy",
    question: "Is there a knee, or does importance fade without a border?",
    see: "Left: singular values relative to the largest, both axes logarithmic unless you choose otherwise. Right: the share of the energy that the first r directions hold, with the retained energy you chose as a dotted line. Stacks are coloured from the first layer to the last; the selected layer, or head, is drawn bold.",
    care: "A sharp knee on a logarithmic axis may be a gentle slope on a linear one; switch before you speak of a gap. Energy is squared: a direction with a tenth of the largest singular value holds a hundredth of its energy, so the right panel saturates long before the left one ends.",
    keys: ["layer", "head", "run", "tau"],
    defaults: { part, map: preferred(mapsOf(part), ["O", "VO"]), scale: "log" },
    controls: (f) => [
      f.partField = select("Of", "part", kinds(), part, (value) => { f.options.part = value; refill(f); f.invalidate(); }),
      f.mapField = select("Map", "map", choices(part), f.options.map, (map) => f.set({ map })),
      select("Horizontal axis", "scale", [["log", "logarithmic"], ["linear", "linear"]], "log", (scale) => f.set({ scale })),
    ],
    refill,
    load: loadSpectrum,
    compose: composeSpectrum,
    csv: (f, m) => [["curve", "r", "relative_singular_value", "cumulative_energy"],
      ...m.curves.flatMap((curve) => Array.from(curve.x, (r, i) => [curve.name, r, curve.sigma[i], curve.energy[i]]))],
  });
}

// A stack's curve at drawing positions, energies from all of its values.
function stackCurve(spectrum, name, more) {
  const lost = energyLost(spectrum);
  const at = drawPositions(spectrum.length);
  return { name, ...more, x: at.map((j) => j + 1), sigma: at.map((j) => spectrum[j] / spectrum[0]),
    energy: at.map((j) => 1 - lost[j + 1]) };
}

// A head's curve from its drawn values; between two of them the spectrum is taken as geometric.
function headCurve(row, positions, name, more) {
  const full = new Float64Array(positions.at(-1) + 1);
  for (let p = 0; p < positions.length; p++) {
    const [from, to] = [positions[Math.max(0, p - 1)], positions[p]];
    for (let j = from; j <= to; j++) {
      const t = to > from ? (j - from) / (to - from) : 1;
      full[j] = row[Math.max(0, p - 1)] ** (1 - t) * row[p] ** t;
    }
  }
  const lost = energyLost(full);
  return { name, ...more, x: positions.map((j) => j + 1), sigma: [...row], energy: positions.map((j) => 1 - lost[j + 1]) };
}

async function loadSpectrum(f) {
  const run = store.runData;
  const { part, map } = f.options;
  const index = store.get("layer");
  if (part === "stack") {
    const spectra = await stackSpectra(run, map);
    const curves = spectra.map((spectrum, i) => spectrum && spectrum[0] > 0 && stackCurve(spectrum, `layer ${run.layers[i].layer}`,
      { index: i, chosen: i === index })).filter(Boolean);
    return { part, map, curves, info: run.layers[index].maps[map]?.stack };
  }
  const drawn = (await drawnSpectra(run, index))[map];
  const picked = drawn && headIn(drawn.relative.length);
  const curves = (drawn?.relative ?? []).map((row, head) => row && drawn.largest[head] > 0
    && headCurve(row, drawn.positions, `${headWord(drawn.relative.length)} ${head}`, { head, chosen: head === picked })).filter(Boolean);
  const metrics = await headMetrics(run, map);
  const ranks = metrics?.row(store.rankColumn, index);
  return { part, map, curves, values: drawn?.values, rank: ranks?.[picked], picked,
    random: described(run, index, map)?.heads?.random[store.rankColumn] };
}

function composeSpectrum(f, { part, map, curves, info, values, rank, picked, random }, { theme, width }) {
  const narrow = width < 620;
  const scale = f.options.scale;
  const depth = depthColours(theme);
  const layers = store.runData.layers.map((layer) => layer.layer);
  const data = [];
  const ordered = [...curves.filter((c) => !c.chosen), ...curves.filter((c) => c.chosen)];
  for (const curve of ordered) {
    const colour = curve.chosen ? theme.pick : part === "stack"
      ? depth.at(layers.length > 1 ? curve.index / (layers.length - 1) : 0) : theme.runs[0];
    const common = { x: curve.x, mode: "lines", showlegend: false, name: curve.name,
      line: { color: colour, width: curve.chosen ? 3 : 1.1 }, opacity: curve.chosen ? 1 : part === "stack" ? 0.75 : 0.35 };
    data.push(
      { ...common, y: curve.sigma, hovertemplate: `${curve.name}<br>σ at %{x}: %{y:.3~g} σ₁<extra></extra>` },
      { ...common, y: curve.energy, xaxis: "x2", yaxis: "y2", hovertemplate: `${curve.name}<br>first %{x}: %{y:.3%} of the energy<extra></extra>` });
  }
  if (part === "stack" && curves.length > 1) data.push(depthBar(theme, layers));
  const xKind = scale === "log" ? logAxis : {};
  const half = Math.max(0.045, 38 / (width - 130));  // room for the second panel's axis
  const split = narrow ? [[0, 1], [0.57, 1], [0, 1], [0, 0.41]] : [[0, 0.5 - half], [0, 1], [0.5 + half, 1], [0, 1]];
  const lowest = Math.min(...curves.map((c) => c.sigma.findLast((s) => s > 0) ?? 1), 0.1);
  const tau = Number(store.get("tau"));
  const layout = baseLayout(theme, {
    height: narrow ? 660 : 410, showlegend: false, margin: { l: 60, r: part === "stack" ? 70 : 16, t: 30, b: 50 },
    xaxis: axis(theme, narrow ? "" : "position j", { domain: split[0], anchor: "y", ...xKind }),
    yaxis: axis(theme, "σⱼ / σ₁", { domain: split[1], anchor: "x", ...logAxis, range: [Math.max(-9, Math.log10(lowest)) - 0.1, 0.06] }),
    xaxis2: axis(theme, "first r directions", { domain: split[2], anchor: "y2", ...xKind }),
    yaxis2: axis(theme, "share of the energy", { domain: split[3], anchor: "x2", tickformat: ".0%", range: [0, 1.03] }),
    shapes: [{ type: "line", xref: "x2 domain", yref: "y2", x0: 0, x1: 1, y0: tau, y1: tau,
      line: { color: theme.random, width: 1.3, dash: "dot" } }],
    annotations: [panelTitle("<b>Singular values</b>", theme, split[0][0], split[1][1] + 0.01),
      panelTitle("<b>Cumulative energy</b>", theme, split[2][0], split[3][1] + 0.01)],
  });
  const layer = store.layerNumber();
  const readout = part === "stack"
    ? info && [el("strong", {}, `Layer ${layer}, ${map} stacked, ${shapeText(info.shape)}: `),
      `${integer(info.metrics[store.rankColumn])} of ${integer(info.values)} directions hold ${store.tauText} of the energy (random ${number(info.random[store.rankColumn])}); condition number ${number(info.metrics.condition_number, 3)}.`]
    : values && [el("strong", {}, `Layer ${layer}, ${mapTitle(map)}, ${headWord(curves.length)} ${picked}: `),
      `${integer(rank)} of ${values} directions hold ${store.tauText} of the energy (random ${number(random)}).`];
  return { data, layout, readout, label: `Singular values and cumulative energy of ${map}, ${curves.length} curves` };
}
