// Training runs in groups of one configuration: what the figures compare. A fine-tuned run whose base
// is among the runs says what the base became; alone it is a run like any other.
const MEMBERS = DATA.runs;
const GROUPS = DATA.groups.map((group, index) => ({ ...group, index, members: MEMBERS.filter((run) => run.group === index) }));
for (const group of GROUPS) {
  // What was fine-tuned has the colour of what it was made from.
  const base = MEMBERS[group.members.find((run) => run.base !== null)?.base];
  group.colour = (base ?? { group: group.index }).group;
}
const PRETRAINED = GROUPS.filter((group) => !group.tuned);
const TUNED = GROUPS.filter((group) => group.tuned);
const RUNS = PRETRAINED.length ? PRETRAINED : TUNED;
const modelOf = () => ({ name: "training", heads: 1 });
const runLabel = (group) => group.label;

const CLASSIFIES = RUNS.every((group) => group.tuned || group.model.image_size);

async function prepare(run) {
  Object.assign(run, JSON.parse(new TextDecoder().decode(await chunk(run.chunk))));
}

const last = (list) => list?.at(-1) ?? NaN;
const lastOf = (run, measure) => last(run.evaluations[measure]);
// Accuracy behind fine-tuning, a mean where a run was tuned more than once.
function tunedAccuracy(run) {
  const found = MEMBERS.filter((other) => other.base !== null && MEMBERS[other.base] === run).map((other) => lastOf(other, "accuracy"));
  return found.length ? meanOf(found) : NaN;
}

// What a run ended with: name, text of a number, value, whether less is better.
const shownPercent = (value) => `${(100 * value).toFixed(2)}${THIN}%`;
const FINALS = {
  loss: { name: "held-out loss", axis: "held-out loss, nats a target", text: (v) => v.toFixed(4), of: (run) => lastOf(run, "loss"), less: true },
  perplexity: { name: "perplexity", axis: "held-out perplexity", text: (v) => number(v, 4), of: (run) => lastOf(run, "perplexity"), less: true },
  accuracy: { name: CLASSIFIES ? "accuracy" : "share of targets guessed", axis: "held-out targets that have the largest logit", text: shownPercent, of: (run) => lastOf(run, "accuracy") },
  tuned: { name: "accuracy after fine-tuning", axis: "accuracy after fine-tuning", text: shownPercent, of: tunedAccuracy },
  speed: { name: "tokens a second", axis: "tokens a second, whole run", text: rateText, of: (run) => last(run.steps.tokens) / last(run.steps.seconds) },
};
const finalNames = () => Object.keys(FINALS).filter((key) => RUNS.some((group) => group.members.some((run) => !missing(FINALS[key].of(run)))));
const finalsOf = (group, key) => group.members.map(FINALS[key].of).filter((value) => !missing(value));

// What curves are drawn against.
const ACROSS = {
  tokens: ["tokens", RUNS[0].model.image_size ? "images seen" : "tokens read (padding is none)", (v) => v],
  minutes: ["seconds", "minutes of training", (v) => v / 60],
  steps: ["step", "steps", (v) => v],
};
const store = makeStore({ run: 0, layer: 0, across: "tokens" }, {});
const selectLayer = () => {};  // there are none here

// Mean over a window that is as wide as `share` of the list, shorter at the ends.
function smooth(values, share) {
  const half = Math.floor((share * values.length) / 2);
  if (!half) return values;
  const sums = [0];
  for (const value of values) sums.push(sums.at(-1) + (value ?? NaN));
  return values.map((_, i) => {
    const reach = Math.min(half, i, values.length - 1 - i);
    return (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1);
  });
}

// A group's curve: {x, mean, low, high, lines: [{run, x, y}]} at the steps that all its runs have.
function curvesOf(group, kind, measure, share = 0) {
  const [column, , scaled] = ACROSS[store.get("across")];
  const lines = group.members.map((run) => {
    const table = run[kind];
    const y = smooth(table[measure], share);
    return { run, steps: table.step, x: table[column].map(scaled), y, at: new Map(table.step.map((step, i) => [step, i])) };
  }).filter((line) => line.y.some((value) => !missing(value)));
  if (!lines.length) return null;
  const steps = lines[0].steps.filter((step) => lines.every((line) => line.at.has(step) && !missing(line.y[line.at.get(step)])));
  const all = (name) => steps.map((step) => lines.map((line) => line[name][line.at.get(step)]));
  const y = all("y");
  return { group, lines, x: all("x").map(meanOf), mean: y.map(meanOf), low: y.map((v) => Math.min(...v)), high: y.map((v) => Math.max(...v)) };
}
