// What a sweep found. An arm is one combination of settings with all its seeds; `kind` is what it is
// called apart from the grid's values.
const SWEEP = DATA.sweep;
const GRID = SWEEP.grid;
const gridPart = (part) => GRID.some((field) => part.startsWith(`${field} `));
const kindOf = (arm) => arm.split(", ").filter((part) => !gridPart(part)).join(", ") || "all";
const ARMS = SWEEP.arms.map((arm) => ({ ...arm, kind: kindOf(arm.arm), runs: SWEEP.runs.filter((run) => run.arm === arm.arm) }));
const KINDS = [...new Set(ARMS.map((arm) => arm.kind))];
// One title: the sweep's own.
const RUNS = [{ label: SWEEP.title }];
const runLabel = (run) => run.label;
const modelOf = () => ({ name: "sweep", heads: 1 });
const store = makeStore({ run: 0, layer: 0 }, {});
const selectLayer = () => {};

const shownPercent = (value) => `${(100 * value).toFixed(2)}${THIN}%`;
const plain = (value) => number(value, 4);
const KNOWN = {
  held_out_loss: { name: "held-out loss", axis: "held-out loss, nats a target", text: (v) => v.toFixed(4), less: true },
  held_out_perplexity: { name: "perplexity", axis: "held-out perplexity", text: plain, less: true },
  held_out_accuracy: { name: "held-out accuracy", axis: "held-out targets that have the largest logit", text: shownPercent },
  tokens_per_second: { name: "tokens a second", axis: "tokens a second, whole run", text: rateText },
  milliseconds: { name: "milliseconds a layer", axis: "milliseconds, forward and backward", text: plain, less: true },
  overlap_of_layers: { name: "overlap of layers' output spaces", axis: "mean cos² of principal angles, layers with each other", text: plain },
  overlap_with_embedding: { name: "overlap with the embedding", axis: "mean cos² of principal angles, layers with the embedding", text: plain },
};
const FOUND = [...new Set(ARMS.flatMap((arm) => Object.keys(arm.numbers)))];
// Counts, which are the same for all and no result.
const COUNTS = ["held_out_tokens", "held_out_examples", "training_tokens", "output_rank", "passes"];
const OTHER = FOUND.filter((key) => !KNOWN[key] && !COUNTS.includes(key)).map((key) => [key, { name: key.replaceAll("_", " "), axis: key.replaceAll("_", " "), text: plain, less: true }]);
const MEASURES = Object.fromEntries([...Object.entries(KNOWN).filter(([key]) => FOUND.includes(key)), ...OTHER]);
const FIRST = Object.keys(MEASURES)[0];

const numberOf = (arm, key) => {
  const found = arm.numbers[key];
  return { mean: found?.mean ?? NaN, half: found?.half_width_95 ?? NaN, count: found?.runs ?? 0 };
};
// Where random spaces would lie.
const chanceOf = (key) => (key.startsWith("overlap_") && FOUND.includes("overlap_by_chance")
  ? meanOf(ARMS.map((arm) => numberOf(arm, "overlap_by_chance").mean).filter((value) => !missing(value))) : NaN);
