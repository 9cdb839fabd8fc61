// Figures of a sweep: its arms, and how a number depends on each field of the grid.
function drawArms() {
  armsFigure({
    id: "fig-arms",
    title: "Every combination",
    question: SWEEP.question || "Which combination does best, and by more than chance?",
    see: "A row a combination: each seed as a pale dot, the mean as a diamond with its 95 % interval (Student's t over seeds). A dotted line, where there is one, is what random spaces would give.",
    care: "Of many combinations one is best by luck: the best of 27 that are all alike still looks good. Believe a difference that a neighbouring combination shows too, or run the best again with new seeds. With one seed there is no interval at all, and with two or three it is wide.",
    measures: MEASURES,
    chance: chanceOf,
    arms: (key) => ARMS.map((arm) => ({ label: arm.arm, group: KINDS.indexOf(arm.kind), ...numberOf(arm, key),
      values: arm.runs.map((run) => ({ seed: run.seed, value: run.numbers[key] })).filter(({ value }) => !missing(value)) })),
  });
}

const valuesOf = (field) => [...new Set(ARMS.map((arm) => arm[field]).filter((value) => typeof value === "number"))].sort((a, b) => a - b);
const numericFields = () => GRID.filter((field) => valuesOf(field).length > 1);

// Arms that differ in `field` alone, as lines over it.
function linesOver(field) {
  const lines = new Map();
  for (const arm of ARMS) {
    const key = JSON.stringify([arm.kind, ...GRID.filter((name) => name !== field).map((name) => arm[name])]);
    if (typeof arm[field] !== "number") continue;
    if (!lines.has(key)) lines.set(key, { kind: arm.kind, name: arm.arm.split(", ").filter((part) => !part.startsWith(`${field} `)).join(", ") || arm.kind, arms: [] });
    lines.get(key).arms.push(arm);
  }
  for (const line of lines.values()) line.arms.sort((a, b) => a[field] - b[field]);
  return [...lines.values()];
}

// The arm of the first kind with the same values of the grid.
const reference = (arm) => ARMS.find((other) => other.kind === KINDS[0] && GRID.every((field) => other[field] === arm[field]));

function drawGrid() {
  const fields = numericFields();
  if (!fields.length) return;
  const ratios = KINDS.length > 1;
  figure({
    id: "fig-grid",
    title: "What depends on what",
    question: "How does a number change as one setting grows, all others as they are?",
    see: `Thin lines: combinations that differ in the chosen field alone. Thick: their mean, a line for each of what is compared. ${ratios ? `As a ratio to ${KINDS[0]}, a line below 1 is where the other is smaller: faster, or of less loss.` : "A flat line says that the setting hardly matters there."}`,
    care: "Settings may depend on each other: where thin lines cross, the mean describes none of them, so look at these first. The horizontal axis is logarithmic. Every point was trained with the same learning rate and as many tokens; another size may want others.",
    keys: [],
    defaults: { field: fields[0], measure: FIRST, ratio: false },
    controls: (f) => [
      select("Over", "field", fields.map((field) => [field, field]), fields[0], (field) => f.set({ field })),
      select("Measure", "measure", Object.entries(MEASURES).map(([key, { name }]) => [key, name]), FIRST, (measure) => f.set({ measure })),
      ratios ? select("As", "as", [["value", "it is"], ["ratio", `ratio to ${KINDS[0]}`]], "value", (as) => f.set({ ratio: as === "ratio" })) : null,
    ].filter(Boolean),
    async load(f) {
      const { field, measure, ratio } = f.options;
      const value = (arm) => {
        const own = numberOf(arm, measure).mean;
        return ratio ? own / (reference(arm) ? numberOf(reference(arm), measure).mean : NaN) : own;
      };
      const lines = linesOver(field).filter((line) => !ratio || line.kind !== KINDS[0])
        .map((line) => ({ ...line, x: line.arms.map((arm) => arm[field]), y: line.arms.map(value) }));
      return { field, measure, ratio, lines };
    },
    compose(f, m, { theme }) {
      const kinds = KINDS.filter((kind) => m.lines.some((line) => line.kind === kind));
      const data = kinds.flatMap((kind) => {
        const colour = theme.runs[KINDS.indexOf(kind) % theme.runs.length];
        const lines = m.lines.filter((line) => line.kind === kind);
        const xs = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
        const middle = xs.map((x) => meanOf(lines.flatMap((line) => line.y.filter((y, i) => line.x[i] === x && !missing(y)))));
        return [...lines.map((line) => ({ x: line.x, y: line.y, mode: "lines+markers", showlegend: false, legendgroup: kind, line: { color: withAlpha(colour, 0.4), width: 1 },
          marker: { size: 4 }, hovertemplate: `${plotText(line.name)}, ${plotText(m.field)} %{x}: %{y:.5g}<extra></extra>` })),
        { x: xs, y: middle, mode: "lines+markers", name: plotText(kind), legendgroup: kind, line: { color: colour, width: 2.6 }, marker: { size: 8 },
          hovertemplate: `${plotText(kind)}, mean at ${plotText(m.field)} %{x}: %{y:.5g}<extra></extra>` }];
      });
      const { axis: title, text } = MEASURES[m.measure];
      const layout = baseLayout(theme, { height: 420, showlegend: kinds.length > 1,
        xaxis: axis(theme, plotText(m.field), { type: "log", tickmode: "array", tickvals: valuesOf(m.field), ticktext: valuesOf(m.field).map(String) }),
        yaxis: axis(theme, m.ratio ? `ratio to ${plotText(KINDS[0])}` : title),
        shapes: m.ratio ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: { color: theme.random, width: 1.3, dash: "dot" } }] : [] });
      const shown = m.ratio ? (v) => number(v, 3) : text;
      const ends = kinds.map((kind, i) => {
        const at = (x) => meanOf(m.lines.filter((line) => line.kind === kind).flatMap((line) => line.y.filter((y, k) => line.x[k] === x && !missing(y))));
        const values = valuesOf(m.field);
        return [i ? "; " : "", el("strong", {}, `${kind}: `), `${shown(at(values[0]))} at ${values[0]}, ${shown(at(values.at(-1)))} at ${values.at(-1)}`];
      }).flat();
      return { data, layout, label: `${title} over ${m.field}`, readout: ["Mean over the other settings, ", ...ends, "."] };
    },
    csv: (f, m) => [["combination", m.field, m.ratio ? `${m.measure}, ratio to ${KINDS[0]}` : m.measure],
      ...m.lines.flatMap((line) => line.x.map((x, i) => [line.name, x, line.y[i]]))],
  });
}
