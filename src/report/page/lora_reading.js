// What follows from the algebra for this adapter, whatever its numbers: which of its matrices heads
// share, what it can and cannot change.
function changesOf(run, circuit) {
  return new Set(termNames(run, circuit).flatMap((name) => (/^[qkvo]{1,2}$/.test(name) ? [...name] : name.split("+"))));
}

const LATENTS = ["q_a", "q_b", "kv_a", "kv_b"];

// [name, equation, text], those that hold of the run.
function readingOf(run) {
  const changes = new Set(run.circuits.flatMap((circuit) => [...changesOf(run, circuit)]));
  const has = (...names) => names.every((name) => changes.has(name));
  const plain = [...changes].every((name) => /^[qkvo]$/.test(name));
  const latent = LATENTS.some((name) => changes.has(name));
  return [
    ...(plain ? newNeurons(run, has) : []),
    sharedAndOwn(has, latent),
    plain && limits(has),
    plain && wholeRoutes(has),
    groupsShared(run, changes),
    ["Where training began", "A random, B = 0", `If training began as usual, its first steps moved only B. Of what queries, keys and values read, the shared directions then started as noise, and what each head makes of them is what was learned${has("o") ? "; for the output it is the reverse: what all heads may write was learned, and what triggers it in each head started as noise" : ""}. Random A that are never trained do nearly as well (Zhu et al., 2024), so where A's directions lie says something only beside chance, which stands with every number about them.`],
    plain && (has("q", "k") || has("v", "o")) && ["Scaling the adapter", "M(s) = base + s (q + k) + s^2 qk", "With all B multiplied by s, the terms of one matrix grow as s and the joint terms (qk, vo) as its square: of a small adapter they are the smallest part, and doubling its scale doubles their share."],
    [...changes].some((name) => name.includes(".mag") || name.includes(".full")) && ["Matrices that change everywhere", "W′ = (W + A B) G", "DoRA's magnitudes, and matrices saved whole, change every direction a little: the counts of new directions above do not bound those parts."],
  ].filter(Boolean);
}

// How many new features a matrix gets: patterns of ranks may differ from the configuration's.
function rankOf(run, change) {
  const ranks = featuresOf(run).filter((one) => one.change === change).map((one) => one.values.length);
  if (!ranks.length) return run.facts.rank ? integer(run.facts.rank) : "r";
  const most = integer(Math.max(...ranks));
  return new Set(ranks).size > 1 ? `up to ${most}` : most;
}

// The change of a head as a list of rank-one maps.
function newNeurons(run, has) {
  const [q, k, v, o] = ["q", "k", "v", "o"].map((change) => rankOf(run, change));
  const sum = (...terms) => terms.filter(Boolean).join(" + ");
  const parts = [];
  const attention = [
    has("q") && `${q} new patterns: features of the asking token, the same ones for all heads of a layer, each looking in this head for something of its own`,
    has("k") && `${k} new features that a token can be found by, the same for all heads, each with a question of this head's own`].filter(Boolean);
  const messages = [
    has("v") && `${v} new messages, set off by as many features of the attended token that all heads of a layer share; what is then sent is the head's own`,
    has("o") && `${o} new vectors to send, the same for all heads of a layer; what sets them off is the head's own`].filter(Boolean);
  if (attention.length) parts.push(["New patterns of a head", `ΔM_{QK} = ${sum(has("q") && "Σ_j a_{q,j} ⊗ (b_{q,j} W_K′^T)", has("k") && "Σ_j (W_Q b_{k,j}^T) ⊗ a_{k,j}")}`, `To where each head looks, the adapter adds ${attention.join("; and ")}.`]);
  if (messages.length) parts.push(["New messages of a head", `ΔM_{VO} = ${sum(has("v") && "Σ_j a_{v,j} ⊗ (b_{v,j} W_O′)", has("o") && "Σ_j (W_V a_{o,j}) ⊗ b_{o,j}")}`, `To what each head moves, it adds ${messages.join("; and ")}. Each is a small neuron: one direction read, one written.`]);
  return parts;
}

function sharedAndOwn(has, latent) {
  const text = latent
    ? "Adapters on the latents (q_a, kv_a) move the latent itself, for all heads at once. Of those behind them (q_b, kv_b), what is read of the latent is shared (by keys and values too, for kv_b) and what is made of it is each head's own."
    : "Of what heads read with (queries, keys, values), A is one matrix for all heads of the layer and B has columns for each head: the new features are shared, what each head does with them is its own.";
  return ["One for all heads, or one each", "ΔW_i = A B_i (reading), A_i B (writing)", `${text}${has("o") ? " For the output it is the reverse: B, what is written, is shared, and A, what sets it off, is each head's own." : ""} So LoRA adapts heads neither one by one nor all by one update: it gives a layer shared latents, as multi-head latent attention has them, beside a base of full rank.`];
}

// What an adapter without one matrix of a pair can never do.
function limits(has) {
  const kept = [
    has("q") && !has("k") && "match keys by features that it did not know: what can be found is as before, only the questions are new",
    has("k") && !has("q") && "ask by features that it did not use: the questions are as before, only what answers them is new",
    has("v") && !has("o") && "write where it did not write before: it re-reads, and never re-writes",
    has("o") && !has("v") && "read what it did not read before: it re-writes, and never re-reads"].filter(Boolean);
  return kept.length ? ["What no head can do", "q, k, v, o", `With these matrices alone, no head can ${kept.join("; nor can it ")}. This holds exactly, whatever was trained.`] : null;
}

function wholeRoutes(has) {
  const [pattern, message] = [has("q", "k"), has("v", "o")];
  const text = pattern && message ? "Here both pairs are adapted, so both exist."
    : pattern ? "Here that is so for attention (qk), not for messages." : message ? "Here that is so for messages (vo), not for attention."
      : "Here neither pair is: every change is a new use of something old.";
  return ["Wholly new routes", "qk, vo", `A route that is new at both ends, something new asked that finds something new, or something new read that is written anew, needs both matrices of a pair. ${text}`];
}

function groupsShared(run, changes) {
  const { heads, kv_groups: groups, attention } = run.facts.base ?? {};
  if (!groups || groups >= heads || attention === "MLA" || ![...changes].some((name) => /^[kv]/.test(name))) return null;
  const own = [changes.has("q") && "queries", changes.has("o") && "output"].filter(Boolean);
  return ["Heads of a group", "ΔW_K^g, ΔW_V^g", `${integer(heads)} heads share ${integer(groups)} keys and values: heads of a group get the same change of them.${own.length ? ` What is each head's own is in the ${own.join(" and the ")}.` : " Nothing of the adapter is a single head's own."}`];
}

function drawReading() {
  const body = el("div");
  document.getElementById("table").before(el("section", { id: "reading", class: "wide", "aria-labelledby": "reading-title" },
    el("h2", { id: "reading-title" }, "What this adapter can and cannot do"),
    el("p", { class: "prose" }, "This follows from which matrices were adapted, not from any number: it would hold whatever the training had been."), body));
  const refresh = () => body.replaceChildren(terms(readingOf(store.runData)));
  store.on(["run"], refresh);
  refresh();
}
