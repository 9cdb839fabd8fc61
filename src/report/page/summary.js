// What was found, in words, from the numbers of the result alone.
async function summaryOf(run) {
  const tau = String(run.taus[0]);
  const column = `rank_${tau}`;
  const share = `${+(100 * Number(tau)).toFixed(4)} %`;
  const out = [];
  const written = preferred(mapsWith(run, "stack"), ["O", "VO", "Q"]);
  if (written) out.push(...stackSentences(run, written, column, share));
  for (const map of ["VO", "QK"].filter((name) => run.maps[name]?.heads)) {
    out.push(await headSentence(run, map, column, share));
  }
  const stack = written && rankNeeded(run, written, column, share);
  if (stack) out.push(stack);
  const marked = run.layers.flatMap((layer) => layer.notes.map((note) => `layer ${layer.layer}: ${note}`));
  if (marked.length) out.push(`Notes of the run: ${marked.slice(0, 5).join("; ")}${marked.length > 5 ? `; and ${marked.length - 5} more` : ""}.`);
  return out.filter(Boolean);
}

function stackSentences(run, map, column, share) {
  const series = depthSeries(run, map, column, "stack", null);
  if (!series.length) return [];
  const lowest = series.reduce((a, b) => (b.value / b.of < a.value / a.of ? b : a));
  const middle = median(series.map((row) => row.value));
  const random = median(series.map((row) => row.random));
  const where = map === "O" ? "The heads of a layer together write" : `The stacked ${map} of a layer puts`;
  const target = map === "O" ? `to ${integer(middle)} of ${integer(series[0].of)} directions` : `into ${integer(middle)} of ${integer(series[0].of)} directions`;
  const versus = missing(random) ? "" : ` (random weights of that shape: ${integer(random)})`;
  const low = series.length > 1 ? ` Layer ${lowest.x} uses the fewest, ${integer(lowest.value)}.` : "";
  const trend = depthTrend(series);
  return [`${where} ${share} of the energy ${target}${series.length > 1 ? " in the median layer" : ""}${versus}.${low}${trend}`];
}

// Speaks of a trend only where the first and the last third are apart.
function depthTrend(series) {
  if (series.length < 6) return "";
  const third = Math.floor(series.length / 3);
  const mean = (rows) => rows.reduce((sum, row) => sum + row.value / row.of, 0) / rows.length;
  const [early, late] = [mean(series.slice(0, third)), mean(series.slice(-third))];
  if (Math.abs(late - early) < 0.03) return "";
  return ` The rank ${late > early ? "rises" : "falls"} with depth: ${percent(early, 2)} of the possible in the first third of the layers, ${percent(late, 2)} in the last.`;
}

async function headSentence(run, map, column, share) {
  const metrics = await headMetrics(run, map);
  const all = metrics.column(column);
  // Ranks at a threshold are often all near the top; the entropy rank still tells heads apart.
  const spread = metrics.column("entropy_rank");
  let least = -1;
  for (let i = 0; i < spread.length; i++) if (!Number.isNaN(spread[i]) && (least < 0 || spread[i] < spread[least])) least = i;
  if (least < 0) return null;
  const index = Math.floor(least / metrics.heads);
  const info = run.layers[index].maps[map].heads;
  const random = info.random[column];
  const does = map === "VO" ? "moves information" : "compares positions";
  return `A single head ${does} along ${integer(median(all))} of ${info.values} directions (${share} of the energy of ${map}, median head${missing(random) ? "" : `; random ${integer(random)}`}). The most concentrated is head ${least % metrics.heads} of layer ${run.layers[index].layer}: entropy rank ${number(spread[least], 3)}, the median head has ${number(median(spread), 3)}.`;
}

function rankNeeded(run, map, column, share) {
  const ranks = depthSeries(run, map, column, "stack", null);
  const stored = storedShape(run, ranks[0]?.index ?? 0, map);
  if (!ranks.length || !stored) return null;
  const { breakEven } = savings(stored.shape, 1);
  const below = ranks.filter((row) => row.value < breakEven).length;
  if (breakEven >= ranks[0].of) return null;
  const many = below === 0 ? "no layer gets by with that" : below === ranks.length ? "every layer gets by with less"
    : `${below} of ${ranks.length} layers get by with less`;
  return `Factors of ${map} save parameters only below rank ${integer(breakEven)}; for ${share} of its energy ${many}.`;
}

async function drawSummary(node) {
  const texts = await Promise.all(RUNS.map(summaryOf));
  node.replaceChildren(...texts.map((sentences, i) => el("div", {},
    RUNS.length > 1 ? el("p", { class: "of" }, runLabel(RUNS[i])) : null,
    sentences.map((text, k) => el("p", { class: RUNS.length === 1 && k === 0 ? "lead" : null }, text)))));
}

// The few facts that stand beside the summary of a single model.
function drawCard(body) {
  body.classList.toggle("several", RUNS.length > 1);
  if (RUNS.length > 1) return;
  const [run] = RUNS;
  const model = modelOf(run);
  const facts = [["family", model.family], ["attention", model.attention],
    ["layers", run.layers.length === model.layers ? integer(model.layers) : `${run.layers.length} of ${model.layers}`],
    ["heads", model.kv_groups === model.heads ? integer(model.heads) : `${model.heads}, ${model.kv_groups} of keys and values`],
    ["width", integer(model.hidden_size)], ["stacked", conventionText(run.facts.conventions).split("; ")[1].replace("heads stacked ", "")],
    ["norms", run.facts.conventions.fold_norms ? "folded in" : "left out"]];
  if (!missing(run.facts.bytes_read)) facts.push(["read", `${byteText(run.facts.bytes_read)} of ${byteText(run.facts.bytes_in_checkpoint)}`]);
  if (!missing(run.facts.times?.total_seconds)) facts.push(["time", `${number(run.facts.times.total_seconds, 3)} s`]);
  body.append(el("aside", { class: "card", "aria-label": "The model in short" },
    el("dl", {}, facts.flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]))));
}

const listText = (object) => Object.entries(object ?? {}).map(([key, value]) =>
  `${key} ${Array.isArray(value) ? value.join(" ") : value}`).join(", ") || "–";

function drawFacts(section) {
  const rows = [
    ["family", (r) => `${modelOf(r).family} (${modelOf(r).attention})`],
    ["layers analysed", (r) => `${r.layers.length} of ${modelOf(r).layers}`],
    ["width", (r) => integer(modelOf(r).hidden_size)],
    ["heads", (r) => `${modelOf(r).heads}, ${modelOf(r).kv_groups} of keys and values`],
    ["dimensions", (r) => listText(modelOf(r).dims)],
    ["rotary positions", (r) => (modelOf(r).rope ? listText(modelOf(r).rope) : "none")],
    ["dtypes in the file", (r) => listText(modelOf(r).dtypes)],
    ["conventions", (r) => conventionText(r.facts.conventions)],
    ["read", (r) => (missing(r.facts.bytes_read) ? "–" : `${byteText(r.facts.bytes_read)} of ${byteText(r.facts.bytes_in_checkpoint)}`)],
    ["time", (r) => (missing(r.facts.times?.total_seconds) ? "–" : `${number(r.facts.times.total_seconds, 3)} s on ${r.facts.device}`)],
    ["largest memory", (r) => (missing(r.facts.peak_memory_bytes) ? "–" : byteText(r.facts.peak_memory_bytes))],
    ["program", (r) => `subspace: ${listText(r.facts.program)}`],
  ];
  section.append(el("h2", { id: "facts-title" }, "Models and conventions"),
    el("div", { class: "sideways" }, el("table", { class: "facts" },
      RUNS.length > 1 ? el("thead", {}, el("tr", {}, el("th", {}, ""), RUNS.map((run) => el("th", { scope: "col" }, runLabel(run))))) : null,
      el("tbody", {}, rows.map(([name, text]) => el("tr", {}, el("th", { scope: "row" }, name), RUNS.map((run) => el("td", {}, text(run)))))))));
}

function conventionText(conventions) {
  const parts = [conventions.name ?? "default",
    `heads stacked ${conventions.normalize === "none" || !conventions.normalize ? "as they are" : `after ${conventions.normalize} scaling`}`,
    conventions.fold_norms ? "norm weights folded in" : "norm weights left out"];
  if (conventions.space) parts.push(`fused maps in ${conventions.space} space`);
  if (conventions.exact) parts.push("exact (Householder) decomposition");
  if (!missing(conventions.accuracy_floor)) parts.push(`values resolved down to ${number(conventions.accuracy_floor, 2)} σ₁`);
  return parts.join("; ");
}
