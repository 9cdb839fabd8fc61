// What each map and metric is; also the words used for them in controls.
const MAP_TEXTS = {
  Q: ["Q_i", "The query matrix of head i. For multi-head latent attention the part without rotation, read from the query latent. Stacked: the space all queries of the layer read from."],
  K: ["K_i", "The key matrix of head i, or of a group of heads that share keys. Stacked: the space all keys read from."],
  V: ["V_i", "The value matrix of head i (or group). Stacked: the space all values read from."],
  O: ["O_i", "The output matrix of head i: its rows span what the head can write to the residual stream. Stacked: the space the whole layer can write to, W_O itself."],
  Qpe: ["Q_i^{pe}", "The rotated part of the query matrix (latent attention)."],
  QA: ["Q_A", "The shared matrix that forms the query latent."],
  KVA: ["KV_A", "The shared matrix that forms the latent of keys and values."],
  Kpe: ["K^{pe}", "The one rotated key that all heads of the layer share."],
  OB: ["O_B", "The shared matrix from the output latent back to the residual stream."],
  VO: ["V_i O_i", "Value and output as one map: what head i moves from a position it attends to, and where it puts it. Stacked so that the output side remains: the space written to, as the circuit really uses it."],
  OV: ["V_i O_i", "The same maps stacked so that the input side remains: the space that is read from."],
  QK: ["Q_i K_i^T", "Query and key as one map: the bilinear form that scores pairs of positions. For rotary models at offset 0, for latent attention the part without rotation. Stacked so that the key side remains."],
  KQ: ["Q_i K_i^T", "The same maps stacked so that the query side remains."],
};
const OFFSET_TEXT = ["Q_i R(δ) K_i^T", "The scoring map between positions δ apart, with the rotation R(δ) between query and key; for latent attention its rotated part."];

const METRIC_TEXTS = {
  rank: ["rank at τ", "min r:  Σ_{j≤r} σ_j^2 ≥ τ Σ_j σ_j^2", "How many directions carry the share τ of the energy. A rank at 99 % leaves 1 % of the energy out, which is a relative Frobenius error of 10 %."],
  stable_rank: ["stable rank", "Σ_j σ_j^2 / σ_1^2", "Energy measured in units of the strongest direction. One outlying direction makes it small."],
  entropy_rank: ["entropy rank", "exp(−Σ_j p_j ln p_j),  p_j = σ_j^2 / Σ_k σ_k^2", "The number of equally strong directions that would be as spread out."],
  participation_ratio: ["participation ratio", "(Σ_j σ_j^2)^2 / Σ_j σ_j^4", "Like the entropy rank, with less weight on weak directions."],
  largest: ["largest singular value", "σ_1", "The most a vector of length one can grow."],
  condition_number: ["condition number", "σ_1 / σ_n", "Strongest over weakest direction; large values are often weak directions at the edge of precision."],
  energy_lost: ["energy lost at rank r", "1 − E(r) = Σ_{j>r} σ_j^2 / Σ_j σ_j^2", "What the best approximation of rank r leaves out, as a share of the energy. Its square root is the relative Frobenius error: 1 % of the energy is 10 % in norm."],
};

function metricLabel(column) {
  if (column.startsWith("rank_")) {
    return `rank at ${+(100 * Number(column.slice(5))).toFixed(4)} % energy`;
  }
  if (column.startsWith("energy_lost@")) return `energy lost at rank ${column.slice(12)}`;
  return METRIC_TEXTS[column]?.[0] ?? column;
}

const mapTitle = (map) => (isOffset(map) ? `QK at offset ${offsetOf(map)}` : map);
const shapeText = (shape) => `${integer(shape[0])} × ${integer(shape[1])}`;

// The matrix that is really stored when a stack is replaced by rank-r factors: projecting the
// space that VO writes to changes O, projecting the space that OV reads from changes V, and so on.
const STORED_AS = { VO: "O", OV: "V", QK: "K", KQ: "Q" };

function drawGlossary(section) {
  const present = new Set(RUNS.flatMap((run) => Object.keys(run.maps)));
  const maps = Object.entries(MAP_TEXTS).filter(([map]) => present.has(map))
    .map(([map, texts]) => [map, ...texts]);
  if ([...present].some(isOffset)) maps.push(["QK@δ", ...OFFSET_TEXT]);
  section.append(
    el("h2", { id: "glossary-title" }, "Words and equations"),
    el("p", { class: "prose" },
      "Row vectors, y = x W; σ₁ ≥ σ₂ ≥ … are singular values and σⱼ² is energy. A head's own ",
      "matrix can have at most as many directions as its head dimension; a stack puts the heads ",
      "of a layer side by side along the axis that they do not share."),
    el("h3", {}, "Maps"), terms(maps),
    el("h3", {}, "Metrics"), terms(Object.values(METRIC_TEXTS)),
    el("h3", {}, "Random value"),
    el("p", { class: "prose" },
      "The same metric of a Gaussian random matrix (for fused maps: a product of such) of the ",
      "same shape. Even pure noise needs fewer than all directions for 99 % of its energy, so ",
      "only the distance to this value speaks of structure."));
}
