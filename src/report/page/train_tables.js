// The summary in words, the table of configurations, and what they are.
const seedsText = (group) => (group.members.length === 1 ? "one seed" : `${group.members.length} seeds`);

function summaryTexts() {
  const total = RUNS.reduce((sum, group) => sum + group.members.length, 0);
  const tokens = meanOf(RUNS.flatMap((group) => group.members.map((run) => last(run.steps.tokens))));
  const out = [`${RUNS.length === 1 ? "One configuration" : `${RUNS.length} configurations`}, ${total === 1 ? "one run" : `${total} runs`} of ${millions(tokens)} ${RUNS[0].model.image_size ? "images" : "tokens"}${total === 1 ? "" : " each"} (${RUNS.map((group) => `${runLabel(group)}: ${seedsText(group)}`).join("; ")}).`];
  if (new Set(RUNS.map((group) => group.data)).size > 1) out.push("The data are not the same for all: losses and accuracies do not compare across data.");
  for (const key of finalNames().filter((name) => name !== "perplexity" && name !== "speed" && (name !== "accuracy" || CLASSIFIES))) {
    const text = compared(key);
    if (text) out.push(text);
  }
  return out;
}

// The best configuration, and how far every other is behind, with the interval of that difference.
function compared(key) {
  const { name, text, less } = FINALS[key];
  const sets = RUNS.map((group) => ({ label: runLabel(group), values: finalsOf(group, key) })).filter(({ values }) => values.length);
  if (!sets.length) return "";
  sets.sort((a, b) => (less ? 1 : -1) * (meanOf(a.values) - meanOf(b.values)));
  const [best, ...others] = sets;
  const title = name[0].toUpperCase() + name.slice(1);
  if (!others.length) return `${title}: ${plusMinus(interval(best.values), text)}.`;
  const parts = others.map((other) => {
    const gap = difference(other.values, best.values);
    const sure = missing(gap.half) ? "one seed: it may be chance" : Math.abs(gap.mean) > gap.half ? "more than chance" : "within chance";
    return `${other.label} ${text(meanOf(other.values))}, ${text(Math.abs(gap.mean))}${missing(gap.half) ? "" : ` ± ${text(gap.half)}`} ${less ? "more" : "less"} (${sure})`;
  });
  return `${title}: ${best.label} has the ${less ? "lowest" : "highest"}, ${plusMinus(interval(best.values), text)}; ${parts.join("; ")}.`;
}

function drawSummary(node, body) {
  node.replaceChildren(...summaryTexts().map((text, k) => el("p", { class: k === 0 ? "lead" : null }, text)));
  const all = RUNS.flatMap((group) => group.members);
  const each = (value) => [...new Set(all.map(value))].join(", ");
  const rows = [["configurations", integer(RUNS.length)], ["runs", integer(all.length)], ["steps", each((run) => integer(last(run.steps.step)))],
    ["device", each((run) => run.device)], ["precision", [...new Set(RUNS.map((group) => group.dtype))].join(", ")],
    ["data", [...new Set(RUNS.map((group) => group.data.slice(0, 12)))].join(", ")]];
  body.append(el("aside", { class: "card", "aria-label": "The runs in short" }, el("dl", {}, rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]))));
}

const TABLE_COLUMNS = () => [
  ["parameters", (group) => group.members.find((run) => run.parameters)?.parameters ?? NaN, integer],
  ["runs", (group) => group.members.length, integer],
  ["tokens", (group) => meanOf(group.members.map((run) => last(run.steps.tokens))), millions],
  ["minutes", (group) => meanOf(group.members.map((run) => last(run.steps.seconds) / 60)), (v) => number(v, 3)],
  ...finalNames().map((key) => [FINALS[key].name, (group) => interval(finalsOf(group, key)), (found) => plusMinus(found, FINALS[key].text)]),
];

function drawTable(section) {
  const columns = TABLE_COLUMNS();
  const csv = () => [["configuration", ...columns.flatMap(([name, value]) => (typeof value(RUNS[0]) === "object" ? [name, `${name}, half width of 95 %`] : [name]))],
    ...RUNS.map((group) => [runLabel(group), ...columns.flatMap(([, value]) => {
      const found = value(group);
      return typeof found === "object" ? [found.mean, found.half] : [found];
    })])];
  section.append(el("h2", { id: "table-title" }, "The results in numbers"),
    el("p", { class: "prose" }, "Means over seeds ± half the width of their 95 % interval (Student's t). Parameters are those of the checkpoint; minutes include evaluations and checkpoints."),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of configurations" }, el("table", {},
      el("thead", {}, el("tr", {}, ["", ...columns.map(([name]) => name)].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, RUNS.map((group) => el("tr", {}, el("th", { scope: "row" }, runLabel(group)), columns.map(([, value, text]) => el("td", {}, text(value(group))))))))),
    el("p", {}, el("button", { type: "button", class: "quiet", "data-export": "table", onclick: () =>
      save("training-table.csv", new Blob([csvText(csv())], { type: "text/csv" })) }, "Save as CSV")));
}

// Every field of the configurations: what differs first, then what all have.
function drawFacts(section) {
  const groups = [...RUNS, ...TUNED.filter((group) => !RUNS.includes(group))];
  const of = (group) => ({ ...group.model, ...Object.fromEntries(Object.entries(group.train).map(([name, value]) => [`train.${name}`, value])),
    data: group.data?.slice(0, 12), dtype: group.dtype, devices: [...new Set(group.members.map((run) => run.device))].join(", "),
    seeds: group.members.map((run) => run.seed).join(", ") });
  const all = groups.map(of);
  const text = (value) => (value === undefined || value === null ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value));
  const names = [...new Set(all.flatMap(Object.keys))];
  const differs = (name) => new Set(all.map((fields) => text(fields[name]))).size > 1;
  const rows = (list) => list.map((name) => el("tr", {}, el("th", { scope: "row" }, name), all.map((fields) => el("td", {}, text(fields[name])))));
  const same = names.filter((name) => !differs(name));
  section.append(el("h2", { id: "facts-title" }, "What was run"),
    el("div", { class: "sideways" }, el("table", { class: "facts" },
      el("thead", {}, el("tr", {}, el("th", {}, ""), groups.map((group) => el("th", { scope: "col" }, `${runLabel(group)}${group.tuned && RUNS !== TUNED ? ", fine-tuned" : ""}`)))),
      el("tbody", {}, rows(names.filter(differs))))),
    groups.length > 1 ? el("h3", {}, "The same in all") : null,
    groups.length > 1 ? el("p", { class: "prose" }, same.map((name) => `${name} ${text(all[0][name])}`).join(", ") + ".") :
      el("div", { class: "sideways" }, el("table", { class: "facts" }, el("tbody", {}, rows(same)))));
}

const WORDS = [
  ["loss", "−mean log p(target)", "In nats a target. Targets are the masked tokens (masked models), every next token (decoders), or classes."],
  ["perplexity", "exp(loss)", "As unsure as a choice among so many tokens of equal chance. It depends on the vocabulary and on what is predicted."],
  ["tokens", "", "Tokens that were read; padding is none. Images for vision models."],
  ["± (95 %)", "t s / √n", "Half the width of the interval that holds the true mean over seeds with 95 % confidence; s is the seeds' standard deviation, n their number."],
  ["difference", "t √(s_a^2/n_a + s_b^2/n_b)", "Half the width of the 95 % interval of a difference of two means, their variances not presumed equal (Welch)."],
  ["norm of the gradient", "‖g‖_2", "Over all parameters, before clipping; a step takes min(1, max_grad_norm / ‖g‖) of it."],
];

function drawGlossary(section) {
  section.append(el("h2", { id: "glossary-title" }, "Words and equations"), terms(WORDS));
}
