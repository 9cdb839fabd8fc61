// Figures: weights against measured effects, and how the effect is shared among circuits.
const EFFECTS = {
  loo: ["lost without it", "loss of the tuned model without this head's change, less that with it"],
  aoi: ["gained by it alone", "loss of the base, less that with this head's change alone"],
  shapley: ["Shapley share", "its average contribution over all orders of adding the changes"],
};
const meanOf = (effect) => effect?.mean ?? NaN;

function drawCausal() {
  if (!RUNS.some((run) => run.causes?.heads?.length)) return;
  figure({
    id: "fig-causal",
    title: "Weights against effects",
    question: "Do the heads whose weights changed most also matter most?",
    see: "Every point is a circuit of a head: across, how much its weights changed; up, what that change is worth on held-out data, in nats a token, with the interval over batches. If weights told effects, the points would rise from left to right.",
    care: "Leaving one change out understates those that have a stand-in: if two heads do the same, each alone looks useless. The Shapley share is fair to both. The correlation is over ranks and over all heads; a single head far to the upper right can matter although the correlation is weak.",
    keys: ["layer", "head", "run"],
    defaults: { effect: "shapley", measure: "rel_fro" },
    controls: (f) => [
      select("Effect", "effect", Object.entries(EFFECTS).map(([key, [text]]) => [key, text]), "shapley", (effect) => f.set({ effect })),
      select("Weights", "measure", Object.entries(SIZES).map(([key, [text]]) => [key, text]), "rel_fro", (measure) => f.set({ measure })),
    ],
    async load(f) {
      const run = store.runData;
      const points = (run.causes?.heads ?? []).map((one) => ({ ...one, effect: one[f.options.effect],
        size: sizeOf(headEntry(run, one.layer, one.head, one.circuit), f.options.measure) }))
        .filter((one) => Number.isFinite(one.size) && Number.isFinite(meanOf(one.effect)));
      return { run, ...f.options, points };
    },
    compose(f, m, { theme }) {
      const circuits = [...new Set(m.points.map((one) => one.circuit))];
      const data = circuits.map((circuit, i) => {
        const some = m.points.filter((one) => one.circuit === circuit);
        return { type: "scatter", mode: "markers", name: circuit, x: some.map((one) => one.size), y: some.map((one) => meanOf(one.effect)),
          error_y: { type: "data", symmetric: false, array: some.map((one) => (one.effect.ci?.[1] ?? meanOf(one.effect)) - meanOf(one.effect)),
            arrayminus: some.map((one) => meanOf(one.effect) - (one.effect.ci?.[0] ?? meanOf(one.effect))), thickness: 1, width: 2, color: withAlpha(theme.runs[i], 0.6) },
          marker: { size: 9, color: theme.runs[i], symbol: i ? "diamond" : "circle",
            line: { width: some.map((one) => (one.layer === store.layerNumber() && one.head === store.get("head") ? 3 : 0)), color: theme.pick } },
          text: some.map((one) => shortUnit(one.layer, one.head)), customdata: some.map((one) => [one.layer, one.head, circuit]),
          hovertemplate: `${circuit}, head %{text}<br>weights %{x:.4g}, effect %{y:.4g} nats<extra></extra>` };
      });
      const layout = baseLayout(theme, { height: 440, margin: { l: 64, r: 16, t: 40, b: 50 },
        xaxis: axis(theme, SIZES[m.measure][0], { rangemode: "tozero" }),
        yaxis: axis(theme, `${EFFECTS[m.effect][0]}, nats a token`, { zeroline: true, zerolinecolor: theme.axis }) });
      const rho = spearman(m.points.map((one) => one.size), m.points.map((one) => meanOf(one.effect)));
      const k = Math.min(5, m.points.length);
      const top = (get) => new Set([...m.points].sort((a, b) => get(b) - get(a)).slice(0, k));
      const [bySize, byEffect] = [top((one) => one.size), top((one) => meanOf(one.effect))];
      const hit = [...bySize].filter((one) => byEffect.has(one)).length;
      return { data, layout, label: `Effect of ${m.points.length} circuits of heads against the size of their change`,
        readout: [el("strong", {}, "Rank correlation "), `${number(rho, 3)} over ${integer(m.points.length)} circuits of heads; of the ${k} largest changes ${hit} are among the ${k} largest effects.`] };
    },
    csv: (f, m) => [["layer", "head", "circuit", m.measure, ...Object.keys(EFFECTS).flatMap((name) => [name, `${name}_low`, `${name}_high`])],
      ...m.points.map((one) => [one.layer, one.head, one.circuit, one.size,
        ...Object.keys(EFFECTS).flatMap((name) => [meanOf(one[name]), one[name]?.ci?.[0], one[name]?.ci?.[1]])])],
    wire: (f) => f.plot.on("plotly_click", ({ points: [point] }) => selectUnit(...point.customdata)),
  });
}

function drawShapley() {
  if (!RUNS.some((run) => run.causes?.groups?.length)) return;
  figure({
    id: "fig-shapley",
    title: "Who earned the improvement",
    question: "Which layers and circuits make the tuned model better, and together with whom?",
    see: "The drop of the loss from the base to the tuned model, dealt out to the changed circuits (all heads of a layer together) by their Shapley values, with 95 % intervals. The thin marks are what is lost when that circuit's change alone is left out.",
    care: "Shapley values add up to the whole drop by construction, so a bar says how much credit, not how much is irreplaceable: for that compare it with its mark. A bar far above its mark has a stand-in elsewhere.",
    keys: ["run"],
    async load() {
      const run = store.runData;
      return { run, loss: run.causes?.loss, groups: run.causes?.groups ?? [] };
    },
    compose(f, m, { theme }) {
      const names = m.groups.map((one) => `layer ${one.layer} ${one.circuit}`);
      const circuits = [...new Set(m.groups.map((one) => one.circuit))];
      const error = (one, side) => Math.abs((one.shapley?.ci?.[side] ?? meanOf(one.shapley)) - meanOf(one.shapley));
      const data = circuits.map((circuit, i) => {
        const some = m.groups.map((one, j) => [one, names[j]]).filter(([one]) => one.circuit === circuit);
        return { type: "bar", name: circuit, x: some.map(([, name]) => name), y: some.map(([one]) => meanOf(one.shapley)), marker: { color: theme.runs[i] },
          error_y: { type: "data", symmetric: false, array: some.map(([one]) => error(one, 1)), arrayminus: some.map(([one]) => error(one, 0)), color: theme.ink, thickness: 1.2, width: 3 },
          hovertemplate: "%{x}: %{y:.4g} nats<extra></extra>" };
      });
      data.push({ type: "scatter", mode: "markers", name: "lost without it", x: names, y: m.groups.map((one) => meanOf(one.loo)),
        marker: { symbol: "line-ew", size: 26, line: { width: 3, color: theme.ink } }, hovertemplate: "without %{x}: %{y:.4g} nats lost<extra></extra>" });
      const layout = baseLayout(theme, { height: 420, margin: { l: 62, r: 16, t: 44, b: 70 }, bargap: 0.3,
        xaxis: axis(theme, "", { showgrid: false, categoryorder: "array", categoryarray: names }),
        yaxis: axis(theme, "nats a token", { zeroline: true, zerolinecolor: theme.axis }) });
      const best = m.groups.reduce((a, b) => (meanOf(b.shapley) > meanOf(a?.shapley) || !a ? b : a), null);
      return { data, layout, label: `Shapley values of ${m.groups.length} circuits`,
        readout: best && [el("strong", {}, `Loss ${number(meanOf(m.loss?.base), 4)} → ${number(meanOf(m.loss?.tuned), 4)} nats: `),
          `layer ${best.layer} ${best.circuit} earned most, ${number(meanOf(best.shapley), 3)} nats; the bars add up to ${number(m.groups.reduce((sum, one) => sum + meanOf(one.shapley), 0), 4)}.`] };
    },
    csv: (f, m) => [["layer", "circuit", ...Object.keys(EFFECTS).flatMap((name) => [name, `${name}_low`, `${name}_high`])],
      ...m.groups.map((one) => [one.layer, one.circuit, ...Object.keys(EFFECTS).flatMap((name) => [meanOf(one[name]), one[name]?.ci?.[0], one[name]?.ci?.[1]])])],
  });
}
