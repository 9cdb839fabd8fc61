// Figures of what changes while a model is trained.

// Traces of curves: every seed thin, the mean thick, the range between them shaded.
function curveTraces(theme, curves, hover, more = {}) {
  return curves.flatMap(({ group, lines, x, mean, low, high }) => {
    const colour = theme.runs[group.colour % theme.runs.length];
    const name = plotText(runLabel(group));
    const shared = { mode: "lines", legendgroup: String(group.index), ...more };
    const thick = { ...shared, name, x, y: mean, line: { color: colour, width: 2.2 }, hovertemplate: `${name}: ${hover}<extra></extra>`, ...more.thick };
    if (lines.length < 2) return [thick];
    const edge = { ...shared, line: { width: 0 }, showlegend: false, hoverinfo: "skip" };
    return [
      { ...edge, x, y: low }, { ...edge, x, y: high, fill: "tonexty", fillcolor: withAlpha(colour, 0.16) },
      ...lines.map((line) => ({ ...shared, x: line.x, y: line.y, showlegend: false, line: { color: withAlpha(colour, 0.45), width: 0.8 },
        hovertemplate: `${name}, seed ${line.run.seed}: ${hover}<extra></extra>` })),
      thick,
    ];
  });
}

function acrossAxis(theme, more = {}) {
  return axis(theme, ACROSS[store.get("across")][1], { rangemode: "tozero", exponentformat: store.get("across") === "tokens" ? "B" : "none", ...more });
}

const curveCsv = (m) => [["configuration", "seed", "step", "tokens", "seconds", m.measure],
  ...m.curves.flatMap(({ group }) => group.members.flatMap((run) => run[m.kind].step.map((step, i) =>
    [runLabel(group), run.seed, step, run[m.kind].tokens[i], run[m.kind].seconds[i], run[m.kind][m.measure][i]])))];

const loadCurves = (groups, kind, measure, share) => ({ kind, measure,
  curves: groups.map((group) => curvesOf(group, kind, measure, share)).filter(Boolean) });

const readEnd = (m, text) => m.curves.map(({ group, lines }, i) => [i ? "; " : "", el("strong", {}, `${runLabel(group)}: `),
  `${plusMinus(interval(lines.map((line) => last(line.y))), text)}${lines.length > 1 ? ` (${lines.length} seeds)` : ""}`]).flat();

function drawHeldOut() {
  const measures = ["loss", "perplexity", "accuracy"].filter((key) => RUNS.some((group) => group.members.some((run) => !missing(lastOf(run, key)))));
  if (!measures.length) return;
  figure({
    id: "fig-held-out",
    title: CLASSIFIES ? "What is right on rows that were not trained on" : "Loss on text that was not trained on",
    question: "How good is each model behind so much training, and is one ahead all along?",
    see: "The mean over seeds as a thick line, each seed as a thin one, and the range from the best to the worst seed shaded. A model that is ahead from early on and stays so has learned faster, not only longer. Against minutes instead of tokens the faster program or the smaller model gains.",
    care: "The shaded range is what these seeds happened to do, not an interval of confidence; those are in “Where they end” and in the table. Losses compare only with the same held-out text and tokens: perplexity for a token depends on the vocabulary, and that of masked models is of the masked tokens alone, so it stands beside no decoder's. The rate falls to zero at the end, which brings a last drop: a run stopped half way is worse than this curve at half its length.",
    keys: ["across"],
    defaults: { measure: CLASSIFIES ? "accuracy" : "loss" },
    controls: (f) => [select("Measure", "measure", measures.map((key) => [key, FINALS[key].name]), f.options.measure, (measure) => f.set({ measure }))],
    load: async (f) => loadCurves(RUNS, "evaluations", f.options.measure),
    compose(f, m, { theme }) {
      const { text, axis: title } = FINALS[m.measure];
      const few = m.curves.every(({ x }) => x.length <= 40);
      return { data: curveTraces(theme, m.curves, "%{y:.5g}", { thick: few ? { mode: "lines+markers", marker: { size: 5 } } : {} }),
        layout: baseLayout(theme, { height: 430, xaxis: acrossAxis(theme), yaxis: axis(theme, title, m.measure === "accuracy" ? { tickformat: ".0%" } : {}) }),
        label: `${title} of ${m.curves.length} configurations`, readout: ["At the end: ", ...readEnd(m, text), "."] };
    },
    csv: (f, m) => curveCsv(m),
  });
}

function drawLoss() {
  figure({
    id: "fig-loss",
    title: "Training loss",
    question: "Does training go smoothly, and do the seeds agree?",
    see: "The loss of the logged steps, in nats a target, averaged over a window that can be chosen; thick the mean over seeds, thin each seed, shaded their range. It should fall fast, then ever slower. A jump that does not come back is a run that broke; seeds that drift apart say that one seed proves little.",
    care: "The unsmoothed loss of one step is that of one batch and its masks, so it is noisy by itself; all seeds see other batches. A smoothed curve lags where it falls fast, most at its beginning. Training loss below held-out loss means memory, not skill: compare models by the figure above.",
    keys: ["across"],
    defaults: { share: 0.02, log: false },
    controls: (f) => [
      select("Averaged over", "share", [["0", "nothing"], ["0.005", "0.5 % of the run"], ["0.02", "2 % of the run"], ["0.05", "5 % of the run"]], "0.02", (share) => f.set({ share: Number(share) })),
      select("Across", "scale", [["linear", "linear"], ["log", "logarithmic"]], "linear", (scale) => f.set({ log: scale === "log" })),
    ],
    load: async (f) => loadCurves(RUNS, "steps", "loss", f.options.share),
    compose: (f, m, { theme }) => ({ data: curveTraces(theme, m.curves, "%{y:.4f}"),
      layout: baseLayout(theme, { height: 430, xaxis: acrossAxis(theme, f.options.log ? { ...logAxis, rangemode: "normal" } : {}), yaxis: axis(theme, "training loss, nats a target") }),
      label: `Training loss of ${m.curves.length} configurations`, readout: ["At the end: ", ...readEnd(m, (v) => v.toFixed(4)), "."] }),
    csv: (f, m) => curveCsv(m),
  });
}

function drawSpeed() {
  figure({
    id: "fig-speed",
    title: "Throughput",
    question: "How many tokens a second, and does it stay so?",
    see: "Tokens that were read a second between two logged steps, padding not counted; a line a seed, the mean thick. Level lines are the sign of a device that never waits. The first point holds whatever starts up (allocation, recorded graphs), dips are evaluations and checkpoints, which belong to the time of a run.",
    care: "It compares models only on one device that nothing else uses, with one batch size: devices are named in the table. Tokens a second are no measure of work: a smaller model does less for each token.",
    keys: ["across"],
    load: async () => loadCurves(RUNS, "steps", "tokens_per_second", 0),
    compose: (f, m, { theme }) => ({ data: curveTraces(theme, m.curves, "%{y:.4s} tokens/s"),
      layout: baseLayout(theme, { height: 330, xaxis: acrossAxis(theme), yaxis: axis(theme, "tokens a second", { rangemode: "tozero", exponentformat: "SI" }) }),
      label: "Tokens a second of every run",
      readout: ["Whole runs, evaluations and checkpoints included: ", ...RUNS.flatMap((group, i) => [i ? "; " : "", el("strong", {}, `${runLabel(group)}: `), plusMinus(interval(finalsOf(group, "speed")), FINALS.speed.text)]), "."] }),
    csv: (f, m) => curveCsv(m),
  });
}

function drawRate() {
  figure({
    id: "fig-rate",
    title: "Learning rate and gradient",
    question: "Was the optimiser in calm water?",
    see: "Left: the learning rate as it was set. Right: the norm of the whole gradient before it is clipped, on a logarithmic axis. After the warm-up the norm should settle. Where it stays above the clipping norm (dotted), clipping sets the size of every step.",
    care: "The norm grows with the number of parameters and falls with the batch: it says something about one run over time, little about two models side by side. A spike alone is harmless if the loss does not follow.",
    keys: ["across"],
    load: async () => ({ rate: loadCurves(RUNS, "steps", "lr"), norm: loadCurves(RUNS, "steps", "grad_norm", 0.01) }),
    compose(f, m, { theme, width }) {
      const stacked = width < 620;
      const domains = stacked ? [[[0, 1], [0.58, 1]], [[0, 1], [0, 0.42]]] : [[[0, 0.46], [0, 1]], [[0.56, 1], [0, 1]]];
      const clip = [...new Set(RUNS.map((group) => group.train.max_grad_norm).filter((value) => value > 0))];
      return {
        data: [...curveTraces(theme, m.rate.curves, "%{y:.3g}"), ...curveTraces(theme, m.norm.curves, "%{y:.3g}", { xaxis: "x2", yaxis: "y2", showlegend: false })],
        layout: baseLayout(theme, { height: stacked ? 640 : 350,
          xaxis: acrossAxis(theme, { domain: domains[0][0], anchor: "y" }), yaxis: axis(theme, "learning rate", { domain: domains[0][1], anchor: "x", rangemode: "tozero", exponentformat: "power" }),
          xaxis2: acrossAxis(theme, { domain: domains[1][0], anchor: "y2" }), yaxis2: axis(theme, "norm of the gradient", { domain: domains[1][1], anchor: "x2", ...logAxis }),
          shapes: clip.map((value) => ({ type: "line", xref: "x2 domain", yref: "y2", x0: 0, x1: 1, y0: value, y1: value, line: { color: theme.random, width: 1.2, dash: "dot" } })) }),
        label: "Learning rate and norm of the gradient over training",
        readout: ["Median norm of the second half: ", ...m.norm.curves.flatMap(({ group, mean }, i) => [i ? "; " : "", el("strong", {}, `${runLabel(group)}: `), number(median(mean.slice(mean.length >> 1)), 3)]), "."],
      };
    },
    csv: (f, m) => [["configuration", "seed", "step", "lr", "grad_norm"], ...m.rate.curves.flatMap(({ group }) => group.members.flatMap((run) =>
      run.steps.step.map((step, i) => [runLabel(group), run.seed, step, run.steps.lr[i], run.steps.grad_norm[i]])))],
  });
}

function drawTuned() {
  if (!TUNED.length || RUNS === TUNED) return;
  figure({
    id: "fig-tuned",
    title: "Fine-tuning",
    question: "What is the pre-trained model worth for a task?",
    see: "The share of held-out texts whose class is right, behind every epoch of fine-tuning; thick the mean over runs, thin each, shaded their range. The last epoch is the result: none is chosen by looking at these texts.",
    care: "Of 872 texts (SST-2) one more or less is 0.11 %, and the texts alone make an accuracy of 85 % uncertain by 2.4 % (95 %), the same for all models compared here; seeds come on top. Differences of half a percent need many seeds.",
    keys: ["across"],
    load: async () => loadCurves(TUNED, "evaluations", "accuracy"),
    compose: (f, m, { theme }) => ({ data: curveTraces(theme, m.curves, "%{y:.2%}", { thick: { mode: "lines+markers", marker: { size: 6 } } }),
      layout: baseLayout(theme, { height: 380, xaxis: acrossAxis(theme), yaxis: axis(theme, "accuracy", { tickformat: ".1%" }) }),
      label: "Accuracy behind every epoch of fine-tuning", readout: ["At the end: ", ...readEnd(m, shownPercent), "."] }),
    csv: (f, m) => curveCsv(m),
  });
}
