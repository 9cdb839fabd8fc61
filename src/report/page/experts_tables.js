// The summary in words, the table of layers, words and facts.
function rangeText(values, text) {
  const list = values.filter((value) => !missing(value));
  if (!list.length) return "–";
  const [low, high] = [text(Math.min(...list)), text(Math.max(...list))];
  return low === high ? low : `${low} to ${high}`;
}
const middleOf = (layer, kind, key) => { const found = layer.interpolation; if (!found) return NaN;
  const list = found.pairs.filter((pair) => pair.kind === kind); return list.reduce((sum, pair) => sum + pair[key][(found.t.length - 1) / 2], 0) / list.length; };

function summaryTexts() {
  const { experts, heads, per_head: each } = DATA.model;
  const out = [`${KIND_NAMES[KIND][0].toUpperCase()}${KIND_NAMES[KIND].slice(1)}: ${LAYERS.length === 1 ? "one layer" : `${LAYERS.length} layers`} of ${integer(experts)}, of which a token chooses ${heads > 1 ? `${heads} × ${each}` : each}.`];
  if (has("usage")) {
    const all = LAYERS.map((layer) => layer.usage.all);
    out.push(`Of ${integer(DATA.data.tokens)} ${DATA.data.held_out ? "held-out" : "training"} tokens, ${rangeText(all.map((use) => use.used), percent)} of a layer's experts were chosen by at least one (${rangeText(all.map((use) => use.chance.used), percent)} by chance); the divergence from even use is ${rangeText(all.map((use) => use.kl_uniform), (v) => number(v, 3))} nats (${rangeText(all.map((use) => use.chance.kl_uniform), (v) => number(v, 2))} by chance).`);
  }
  if (has("tokens")) out.push(`The token alone tells ${rangeText(LAYERS.map((layer) => layer.tokens.information - layer.tokens.chance), (v) => number(v, 3))} nats of which expert is chosen, beyond chance.`);
  if (has("clusters")) {
    const gaps = LAYERS.map((layer) => layer.clusters.explained.at(-1) - layer.clusters.chance.at(-1)).filter((gap) => !missing(gap));
    if (gaps.length) out.push(`${LAYERS[0].clusters.clusters.at(-1)} groups explain ${rangeText(gaps.map(Math.abs), (v) => number(100 * v, 2))} points ${Math.max(...gaps) <= 0 ? "less" : Math.min(...gaps) >= 0 ? "more" : "more or less"} of the spread of experts than they would of one cloud${Math.max(...gaps) < 0.02 ? ": there are no groups to speak of" : ""}.`);
  }
  for (const { what, why } of DATA.absent) out.push(`No ${what}: ${why}.`);
  return out;
}

function drawSummary(node, body) {
  node.replaceChildren(...summaryTexts().map((text, k) => el("p", { class: k === 0 ? "lead" : null }, glued(text))));
  const rows = [["experts a layer", integer(DATA.model.experts)], ["layers", layerNumbers().join(", ")], ["heads × choices", `${DATA.model.heads} × ${DATA.model.per_head}`],
    DATA.model.latent ? ["latent", integer(DATA.model.latent)] : null, DATA.model.hidden ? ["hidden", integer(DATA.model.hidden)] : null, ["width", integer(DATA.model.width)],
    DATA.step ? ["checkpoint of step", integer(DATA.step)] : null, DATA.data ? ["tokens that chose", integer(DATA.data.tokens)] : null].filter(Boolean);
  body.append(el("aside", { class: "card", "aria-label": "The model in short" }, el("dl", {}, rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]))));
}

const COLUMNS = [
  ["used", (one) => one.usage?.all.used, percent], ["used by chance", (one) => one.usage?.all.chance.used, percent],
  ["KL to uniform", (one) => one.usage?.all.kl_uniform, (v) => number(v, 3)], ["most used 1 %", (one) => one.usage?.all.top_percent, percent],
  ["token's information", (one) => one.tokens?.information, (v) => number(v, 3)], ["by chance", (one) => one.tokens?.chance, (v) => number(v, 3)],
  ["entropy rank of the table", (one) => (one.maps?.TABLE ?? one.maps?.DOWN)?.stack.entropy_rank, (v) => number(v, 4)],
  ["nearest cosine", (one) => one.neighbours?.cosines[2], (v) => number(v, 3)], ["at random", (one) => one.neighbours?.chance[2], (v) => number(v, 3)],
  ["nearest that share a key", (one) => one.neighbours?.shared_key, percent], ["half way off the line", (one) => middleOf(one, "drawn", "departure"), (v) => number(v, 3)],
].map(([name, of, text]) => ({ name, of: (one) => of(one) ?? NaN, text }));

function drawTable(section) {
  const columns = COLUMNS.filter(({ of }) => LAYERS.some((one) => !missing(of(one))));
  section.append(el("h2", { id: "table-title" }, "Every layer in numbers"),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of layers" }, el("table", {},
      el("thead", {}, el("tr", {}, ["layer", ...columns.map(({ name }) => name)].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, LAYERS.map((one) => el("tr", {}, el("th", { scope: "row" }, String(one.layer)), columns.map(({ of, text }) => el("td", {}, text(of(one))))))))),
    el("p", {}, el("button", { type: "button", class: "quiet", "data-export": "table", onclick: () =>
      save("experts-table.csv", new Blob([csvText([["layer", ...columns.map(({ name }) => name)], ...LAYERS.map((one) => [one.layer, ...columns.map(({ of }) => of(one))])])], { type: "text/csv" })) }, "Save as CSV")));
}

const WORDS = [
  ["choice", "", "One expert chosen by one head for one token; each token makes heads × choices of them."],
  ["used", "", "The share of experts that were chosen at least once. By chance: 1 − exp(−choices / experts)."],
  ["KL to uniform", "log N + sum_e p_e log p_e", "How far the experts' shares p of all choices are from equal ones, in nats; exp of it says how many times fewer the experts seem than they are."],
  ["information", "sum p(t,e) log (p(t,e) / (p(t) p(e)))", "What the token says of the expert, in nats. Few choices give some by chance; the same text in another order says how much."],
  ["particular", "sum_t p(t|e) log (p(t|e) / p(t))", "How much the tokens of an expert differ from the text's."],
  ["spread explained", "1 − W_k / W_1", "W is the sum of squared distances to the nearest of so many centres (k-means)."],
  ["half way off the line", "‖h(½) − (h_a + h_b)/2‖ / ‖h_a − h_b‖", "How far the vector generated half way between two drawn latents is from the middle of the two experts' vectors."],
  ["entropy rank", "exp(−sum p_j log p_j), p_j = σ_j^2 / sum σ^2", "As many equally strong directions have the same entropy."],
];

function drawGlossary(section) {
  section.append(el("h2", { id: "glossary-title" }, "Words and equations"), terms(WORDS));
}

function drawFacts(section) {
  const rows = [...Object.entries(DATA.model), ["run", DATA.run], ["device", DATA.device], ["program", Object.entries(DATA.program).map(([name, value]) => `${name} ${value}`).join(", ")],
    ...(DATA.data ? [["data", `${DATA.data.id.slice(0, 12)}, ${DATA.data.held_out ? "held-out rows" : "rows of training"}, ${integer(DATA.data.rows)} rows`]] : []),
    ...DATA.absent.map(({ what, why }) => [`no ${what}`, why])];
  section.append(el("h2", { id: "facts-title" }, "What was looked at"),
    el("div", { class: "sideways" }, el("table", { class: "facts" }, el("tbody", {}, rows.map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name.replaceAll("_", " ")), el("td", {}, String(value))))))));
}
