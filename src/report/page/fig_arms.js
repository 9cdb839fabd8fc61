// Figure: what is compared, one row each, with its seeds as dots and the mean's interval as a bar.
// spec: {id, title, question, see, care, measures: {key: {name, axis, text, less}}, arms(key): [{label, group, values: [{seed, value}],
// mean, half}], chance?(key)}
function armsFigure(spec) {
  const keys = Object.keys(spec.measures);
  if (!keys.length) return;
  figure({
    ...spec,
    keys: [],
    defaults: { measure: keys[0], order: "given" },
    controls: (f) => [
      select("Measure", "measure", keys.map((key) => [key, spec.measures[key].name]), keys[0], (measure) => f.set({ measure })),
      select("Order", "order", [["given", "as given"], ["best", "best first"]], "given", (order) => f.set({ order })),
    ],
    async load(f) {
      const { measure, order } = f.options;
      const arms = spec.arms(measure).filter((arm) => !missing(arm.mean));
      const better = spec.measures[measure].less ? 1 : -1;
      if (order === "best") arms.sort((a, b) => better * (a.mean - b.mean));
      return { measure, arms };
    },
    compose(f, { measure, arms }, { theme }) {
      const { text, axis: title, less } = spec.measures[measure];
      const names = arms.map((arm) => plotText(arm.label));
      const colour = (arm) => theme.runs[arm.group % theme.runs.length];
      const chance = spec.chance?.(measure);
      const best = arms.reduce((a, b) => ((less ? b.mean < a.mean : b.mean > a.mean) ? b : a), arms[0]);
      const layout = baseLayout(theme, { height: Math.max(190, 90 + 30 * arms.length), showlegend: false, margin: { l: 56, r: 20, t: 16, b: 52 },
        xaxis: axis(theme, title, measure === "accuracy" || measure === "tuned" ? { tickformat: ".1%" } : { exponentformat: "SI" }),
        yaxis: axis(theme, "", { autorange: "reversed", type: "category", categoryorder: "array", categoryarray: names, ticks: "" }),
        shapes: missing(chance) ? [] : [{ type: "line", yref: "paper", y0: 0, y1: 1, x0: chance, x1: chance, line: { color: theme.random, width: 1.4, dash: "dot" } }] });
      return {
        data: [
          { type: "scatter", mode: "markers", x: arms.flatMap((arm) => arm.values.map(({ value }) => value)), y: arms.flatMap((arm, i) => arm.values.map(() => names[i])),
            text: arms.flatMap((arm) => arm.values.map(({ seed }) => `seed ${seed}`)), hovertemplate: "%{y}, %{text}: %{x:.5g}<extra></extra>",
            marker: { size: 7, color: arms.flatMap((arm) => arm.values.map(() => withAlpha(colour(arm), 0.45))) } },
          { type: "scatter", mode: "markers", x: arms.map((arm) => arm.mean), y: names, marker: { size: 11, symbol: "diamond", color: arms.map(colour) },
            error_x: { type: "data", array: arms.map((arm) => (missing(arm.half) ? 0 : arm.half)), color: theme.ink, thickness: 1.4, width: 5 },
            hovertemplate: "%{y}: mean %{x:.5g}<extra></extra>" },
        ],
        layout, label: `${title} of ${arms.length} rows`,
        readout: best ? [el("strong", {}, `${less ? "Lowest" : "Highest"}: `), `${best.label}, ${plusMinus(best, text)}.`] : [],
      };
    },
    csv: (f, { measure, arms }) => [["row", "seed", measure, "mean", "half_width_95"],
      ...arms.flatMap((arm) => arm.values.map(({ seed, value }) => [arm.label, seed, value, arm.mean, arm.half]))],
  });
}
