// What was found, in words, from the numbers alone; the table of all heads; the facts of the runs.
function summaryOf(run) {
  return [mostChanged(run), whatItIs(run), newOrOld(run), routes(run), causes(run)].filter(Boolean);
}

const byCircuit = (run, circuit) => run.entries.filter((entry) => entry.circuit === circuit && !missing(entry.rel_fro));
const largest = (entries) => entries.reduce((best, entry) => (entry.rel_fro > (best?.rel_fro ?? -1) ? entry : best), null);

function mostChanged(run) {
  const parts = run.circuits.map((circuit) => {
    const entries = byCircuit(run, circuit);
    const top = largest(entries);
    return top && { circuit, top, middle: median(entries.map((entry) => entry.rel_fro)) };
  }).filter((part) => part && part.top.rel_fro > 0);
  if (!parts.length) return "The adapter changes no head: every change is zero.";
  const main = parts.reduce((a, b) => (b.middle > a.middle ? b : a));
  const others = parts.filter((part) => part !== main);
  const does = (circuit) => (circuit === "VO" ? "what heads move and write" : circuit === "QK" ? "what heads attend to" : "the rotated part of what heads attend to");
  return `The adapter changes ${does(main.circuit)} by ${percent(main.middle)} of its size in the median head${others.length ? `, ${others.map((part) => `${does(part.circuit)} by ${percent(part.middle)}`).join(", ")}` : ""}. The head that changed most is head ${main.top.head} of layer ${main.top.layer} (${main.circuit}, ${percent(main.top.rel_fro)}).`;
}

// Which terms carry the change, in the median head.
function whatItIs(run) {
  const parts = run.circuits.filter((circuit) => circuit !== "QK_rope").map((circuit) => {
    const names = termNames(run, circuit);
    const shares = names.map((name) => [name, median(byCircuit(run, circuit).map((entry) => entry.terms[name]?.share ?? 0))]);
    const main = shares.reduce((a, b) => (b[1] > (a?.[1] ?? -Infinity) ? b : a), null);
    return main && `${percent(main[1])} of the change of ${circuit} is the term ${main[0]} (${(TERM_TEXTS[main[0]] ?? ": the product of these changes").split(": ")[1]})`;
  }).filter(Boolean);
  const vo = termNames(run, "VO");
  const only = vo.length && !changesOf(run, "VO").has("o") ? " Without an adapter on the output, no head can write where it did not write before." : "";
  return parts.length ? `In the median head ${parts.join("; ")}.${only}` : "";
}

function newOrOld(run) {
  const lifts = byCircuit(run, "VO").map((entry) => entry.align_lift?.read).filter((v) => !missing(v));
  const intruders = run.entries.reduce((sum, entry) => sum + (countOf(entry.intruder_sub) || 0), 0);
  const heads = run.entries.filter((entry) => countOf(entry.intruder_sub) > 0).length;
  const known = run.entries.some((entry) => !missing(countOf(entry.intruder_sub)));
  const lift = lifts.length ? `What the changed heads read anew lies ${number(median(lifts), 2)} times as much in what they read before as a random direction would (VO, median head). ` : "";
  return lift + (!known ? "" : intruders ? `${integer(intruders)} of the strongest directions of ${integer(heads)} adapted maps lie outside what the base had (intruders).`
    : "No strong direction lies outside what the base had (no intruders).");
}

function routes(run) {
  const pairs = pairsOf(run);
  if (!pairs.length) return "";
  const top = pairs.reduce((a, b) => (b.rho > a.rho ? b : a));
  const sure = pairs.filter((pair) => pair.q_bh <= 0.05).length;
  return `The most rewired pair of heads is ${top.w.join(".")} → ${top.r.join(".")} ${modeTitle(top.mode)} (layer.head; ρ ${number(top.rho, 3)}), mostly ${ROUTE_TEXTS[mainRoute(top)]}; of the ${integer(pairs.length)} pairs scored, ${integer(sure)} are unlikely to be chance.`;
}

function causes(run) {
  if (run.causes) return "";
  return "These are statements about weights. Which of them matter on data, only a causal check tells (subspace lora causal).";
}

function drawSummary(node, body) {
  node.replaceChildren(...RUNS.map((run) => el("div", {}, RUNS.length > 1 ? el("p", { class: "of" }, runLabel(run)) : null,
    summaryOf(run).map((text, k) => el("p", { class: RUNS.length === 1 && k === 0 ? "lead" : null }, text)))));
  body.classList.toggle("several", RUNS.length > 1);
  if (RUNS.length > 1) return;
  body.append(el("aside", { class: "card", "aria-label": "The adapter in short" },
    el("dl", {}, FACTS.filter(([, , card]) => card).flatMap(([name, text]) => {
      const value = text(RUNS[0]);
      return value ? [el("dt", {}, name), el("dd", {}, value)] : [];
    }))));
}

const rangesOf = (numbers) => {
  const parts = [];
  for (let i = 0; i < numbers.length; i++) {
    let j = i;
    while (numbers[j + 1] === numbers[j] + 1) j++;
    parts.push(i === j ? String(numbers[i]) : `${numbers[i]}–${numbers[j]}`);
    i = j;
  }
  return parts.join(", ");
};

// [name, text of a run, whether it stands on the card]
const FACTS = [
  ["kind", (run) => run.facts.type, true],
  ["base", (run) => run.facts.base?.model_type ?? run.facts.base_model_name_or_path, true],
  ["attention", (run) => run.facts.base?.attention, true],
  ["rank", (run) => run.facts.rank && `${run.facts.rank}, alpha ${run.facts.alpha}`, true],
  ["targets", (run) => run.facts.target_modules?.join(", "), true],
  ["layers", (run) => rangesOf(run.layers), true],
  ["heads", (run) => integer(run.headCount), true],
  ["parameters", (run) => run.facts.parameters && integer(run.facts.parameters), true],
  ["offsets", (run) => run.entries.find((entry) => entry.offset_mode && entry.offset_mode !== "none")?.offset_mode, true],
  ["approximations", (run) => [...new Set([...run.entries, run.wiring, run.causes].flatMap((part) => part?.approx ?? []))].map((flag) => APPROX_TEXTS[flag] ?? flag).join("; "), false],
  ["notes", (run) => (run.facts.notes ?? run.file.notes ?? []).join("; "), false],
];

const APPROX_TEXTS = {
  qk_norm: "norms on queries and keys are folded in, their scalars a token left out (qk_norm)",
  mla_rms: "the latents' norms change a token's scale, which weights do not show (mla_rms)",
  post_norm: "of the norm behind attention the weight is folded in where norms are, its scale a token left out (post_norm)",
  data_unweighted: "all directions of the residual count alike (data_unweighted)",
  tokens_alike: "the first layer is weighted by the embeddings, all tokens as often (tokens_alike)",
  dora: "DoRA's gains are terms of their own (dora)",
  norm_not_folded: "the input norm that training changed is left out (norm_not_folded)",
  values_rotated: "values turn with their position; VO is shown at offset 0 (values_rotated)",
  latent_biases: "biases before a latent's norm are left out (latent_biases)",
  shapley_sampled: "Shapley values of many parts are means over drawn orders (shapley_sampled)",
  edge_norm: "where a connection is withheld, the norm's scale stays as it was (edge_norm)",
};

function drawFacts(section) {
  section.append(el("h2", { id: "facts-title" }, "Adapters and conventions"),
    el("div", { class: "sideways" }, el("table", { class: "facts" },
      RUNS.length > 1 ? el("thead", {}, el("tr", {}, el("th", {}, ""), RUNS.map((run) => el("th", { scope: "col" }, runLabel(run))))) : null,
      el("tbody", {}, FACTS.map(([name, text]) => el("tr", {}, el("th", { scope: "row" }, name), RUNS.map((run) => el("td", {}, text(run) || "–"))))))));
  const missingParts = [
    ["modules", "Whole modules are not shown: `subspace lora heads --modules yes` looks at them."],
    ["compose", "Connections between heads are not shown: run `subspace lora compose` into the same folder."],
    ["causal", "Causal effects are not shown: run `subspace lora causal` into the same folder."],
  ].filter(([part]) => RUNS.some((run) => missingIndex(run[part]))).map(([, text]) => text);
  if (missingParts.length) section.append(el("p", { class: "prose absent" }, missingParts.join(" ")));
}

function drawTable(section) {
  const COLUMNS = [["layer", (e) => e.layer], ["head", (e) => e.head], ["circuit", (e) => e.circuit], ["‖ΔM‖/‖M‖", (e) => e.rel_fro],
    ["strongest", (e) => e.rel_spec], ["cos", (e) => e.cos], ["gain", (e) => e.gain], ["main term", (e) => mainTerm(e)],
    ["new write", (e) => e.split && e.split.new_write + e.split.new_new], ["lift read", (e) => e.align_lift?.read], ["intruders", (e) => countOf(e.intruder_sub)]];
  const holder = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of heads" });
  const title = el("p", { class: "prose" });
  const state = { sort: 3, up: false, rows: [] };
  section.append(el("h2", { id: "table-title" }, "Every head in numbers"), title, holder,
    el("p", {}, el("button", { type: "button", class: "quiet", "data-export": "table", onclick: () =>
      save(`heads-${fileStem(runLabel(store.runData))}.csv`, new Blob([csvText([COLUMNS.map(([name]) => name), ...state.rows])], { type: "text/csv" })) }, "Save as CSV")));
  const render = () => {
    const sorted = [...state.rows].sort((a, b) => {
      const [x, y] = [a[state.sort] ?? -Infinity, b[state.sort] ?? -Infinity];
      return (state.up ? 1 : -1) * (x < y ? -1 : x > y ? 1 : 0);
    });
    holder.replaceChildren(el("table", {},
      el("thead", {}, el("tr", {}, COLUMNS.map(([name], i) => el("th", { scope: "col", "aria-sort": i === state.sort ? (state.up ? "ascending" : "descending") : "none" },
        el("button", { type: "button", onclick: () => { Object.assign(state, { up: i === state.sort ? !state.up : i < 3, sort: i }); render(); } }, name, i === state.sort ? (state.up ? " ↑" : " ↓") : ""))))),
      el("tbody", {}, sorted.slice(0, 400).map((row) => el("tr", { class: row[0] === store.layerNumber() && row[1] === store.get("head") ? "picked" : null },
        row.map((value, i) => el(i ? "td" : "th", i ? {} : { scope: "row" }, typeof value === "string" ? value : number(value, 3))))))));
  };
  const refresh = () => {
    state.rows = store.runData.entries.map((entry) => COLUMNS.map(([, get]) => get(entry) ?? null));
    title.textContent = `All heads of ${runLabel(store.runData)}, the most changed first; choose a heading to sort by it.${state.rows.length > 400 ? ` The first 400 of ${state.rows.length} are shown, the CSV has all.` : ""}`;
    render();
  };
  store.on(["run"], refresh);
  store.on(["layer", "head"], render);
  refresh();
}

function mainTerm(entry) {
  const names = termsOf(entry);
  return names.reduce((best, name) => ((entry.terms[name].share ?? 0) > (entry.terms[best]?.share ?? -Infinity) ? name : best), names[0]);
}
