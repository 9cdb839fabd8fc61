// Figure: composition scores before and after, against chance.
const pairsOf = (run) => run.wiring?.pairs ?? [];
/// Half of the pairs' bands reach less far, half farther: [low, high], or null for older results.
const medianBand = (pairs, name) => {
  const bands = pairs.map((pair) => pair[name]).filter((band) => band?.length === 2 && !band.some(missing));
  return bands.length ? [0, 1].map((end) => median(bands.map((band) => band[end]))) : null;
};
const bandText = (band) => (band && !band.some(missing) ? `<br>chance ${number(band[0], 3)} to ${number(band[1], 3)}` : "");
const rootWidth = (run) => (run.wiring?.d ? 1 / Math.sqrt(run.wiring.d) : NaN);

function drawScores() {
  if (!RUNS.some((run) => pairsOf(run).length)) return;
  figure({
    id: "fig-scores",
    title: "Composition before and after",
    question: "Do two heads fit together better than before, or better than chance?",
    see: "Every point is a pair of heads in two layers: how much of what the first writes the second reads, before (across) and after (up). On the diagonal nothing changed. The dotted lines are what chance gives, 1/√width; the grey bands hold 95 % of what random directions would give two heads with these spectra (the gamma law of the null; each pair has its own, the bands are their median). Full points are significant with the false discoveries controlled; colours say through what the later head reads.",
    care: "These are the pairs that were rewired most, not a sample of all. A point on the diagonal may still be rewired: the product of two heads can turn without becoming larger, which the size ρ sees and the score does not. And a head that now attends elsewhere changes what it passes on although no score moves.",
    keys: ["run"],
    load: async () => ({ run: store.runData, pairs: pairsOf(store.runData) }),
    compose(f, m, { theme }) {
      const modes = [...new Set(m.pairs.map((pair) => pair.mode))];
      const data = modes.map((mode, i) => {
        const some = m.pairs.filter((pair) => pair.mode === mode);
        const sure = some.map((pair) => !(pair.q_bh > 0.05));
        return { type: "scatter", mode: "markers", name: modeTitle(mode), x: some.map((pair) => pair.S), y: some.map((pair) => pair.S1),
          marker: { size: some.map((pair) => 6 + 10 * Math.min(1, pair.rho)), color: sure.map((yes) => withAlpha(theme.runs[i], yes ? 0.75 : 0)),
            line: { width: 1.4, color: theme.runs[i] } },
          customdata: some.map((pair) => [shortUnit(...pair.w), shortUnit(...pair.r), number(pair.rho, 3), number(pair.q_bh, 2), `${bandText(pair.S1_band)}<br>${movedText(pair)}`]),
          hovertemplate: "%{customdata[0]} → %{customdata[1]}<br>S %{x:.4f} → %{y:.4f}<br>ρ %{customdata[2]}, q %{customdata[3]}%{customdata[4]}<extra></extra>" };
      });
      const chance = rootWidth(m.run);
      const top = 1.08 * Math.max(chance || 0, ...m.pairs.flatMap((pair) => [pair.S, pair.S1]));
      const line = (x0, y0, x1, y1, dash) => ({ type: "line", x0, y0, x1, y1, line: { color: theme.random, width: 1.3, dash }, layer: "below" });
      const box = (x0, y0, x1, y1) => ({ type: "rect", x0, y0, x1, y1, line: { width: 0 }, fillcolor: withAlpha(theme.random, 0.14), layer: "below" });
      const before = medianBand(m.pairs, "S_band"), after = medianBand(m.pairs, "S1_band");
      const layout = baseLayout(theme, { height: 480, margin: { l: 62, r: 16, t: 40, b: 50 },
        xaxis: axis(theme, "score S before", { range: [0, top] }), yaxis: axis(theme, "score S′ after", { range: [0, top] }),
        shapes: [...(before ? [box(before[0], 0, before[1], top)] : []), ...(after ? [box(0, after[0], top, after[1])] : []), line(0, 0, top, top, "solid"), ...(missing(chance) ? [] : [line(chance, 0, chance, top, "dot"), line(0, chance, top, chance, "dot")])] });
      const up = m.pairs.filter((pair) => pair.S1 > pair.S).length;
      const above = m.pairs.filter((pair) => pair.S1 > pair.S1_band?.[1]).length;
      const drawn = m.pairs.filter((pair) => !missing(pair.p_S1_drawn));
      return { data, layout, label: `Composition scores of ${m.pairs.length} pairs of heads before and after`,
        readout: [el("strong", {}, `${integer(m.pairs.length)} pairs: `),
          `the score rose in ${integer(up)}; ${integer(m.pairs.filter((pair) => pair.q_bh <= 0.05).length)} are significant at a false discovery rate of 5 %${missing(chance) ? "" : `; chance gives S ${number(chance, 3)}`}${after ? `; ${integer(above)} of them score above their band of chance after` : ""}${drawn.length ? `; of the ${integer(drawn.length)} that change most, ${integer(drawn.filter((pair) => pair.p_S1_drawn <= 0.05).length)} do so where chance was drawn ${integer(m.run.wiring.drawn.draws)} times instead of taken from its law (p ≤ 0.05)` : ""}.`] };
    },
    csv: (f, m) => [["writer_layer", "writer_head", "reader_layer", "reader_head", "mode", "S", "S1", "S_low", "S_high", "S1_low", "S1_high", "rho", "writer_qk", "cos", ...ROUTES.map((route) => `share_${route}`), "p_gamma", "q_bh"],
      ...m.pairs.map((pair) => [...pair.w, ...pair.r, pair.mode, pair.S, pair.S1, pair.S_band?.[0], pair.S_band?.[1], pair.S1_band?.[0], pair.S1_band?.[1], pair.rho, pair.writer_qk, pair.cos, ...ROUTES.map((route) => pair.share?.[route]), pair.p_gamma, pair.q_bh])],
  });
}
