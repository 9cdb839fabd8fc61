// The page's words and equations.
const WORDS = [
  ["QK circuit", "M = W_Q W_K^T", "The bilinear form by which a head scores pairs of tokens: what attends to what. With rotary positions W_Q R(δ) W_K^T, δ tokens apart; sizes are root mean squares over the offsets stated."],
  ["VO circuit", "M = W_V W_O", "Value and output as one map: what a head moves from where it attends, and where it writes it."],
  ["LoRA", "W' = W + A B", "The adapter adds a product of two thin matrices to a frozen weight; its scale is inside B. On queries, keys and values all heads of a layer share A, what is read; on the output they share B, what is written."],
  ["terms", "M' = Σ_S T_S", "A circuit is a product of two weights, so a change of each gives three terms: one for each adapter alone and one for both together. q, k, v and o name the adapters that take part."],
  ["relative size", "‖ΔM‖_F / ‖M‖_F", "The size of the change of the whole circuit over the size of the circuit."],
  ["share", "⟨T, ΔM⟩ / ‖ΔM‖^2", "How much of the change a term accounts for. Shares add up to one and may be negative."],
  ["energy", "‖T‖^2 / ‖ΔM‖^2", "The size of a term alone. Energies need not add up to one: terms may overlap or cancel."],
  ["gain, cosine", "⟨M, ΔM⟩ / ‖M‖^2", "How much of the change only makes the head stronger, and whether the map still points the same way."],
  ["new read, new write", "ΔM = P ΔM P + …", "P projects on the space that the head of the base reads from (or writes to). What is outside is new to the head. A random direction lies inside with the share d_k/d, by chance."],
  ["lift", "share inside / (d_k/d)", "How many times more of the change lies in the head's own space than chance would put there."],
  ["intruder", "‖P u'‖^2 < 1/4", "A strong direction of the adapted map that lies mostly outside the space of the base."],
  ["intruder of a module", "max_i |u'·u_i| < 1/2", "A strong direction of a whole adapted weight matrix that is unlike every single direction of the matrix before. A matrix of full rank has no outside, so its directions are compared one by one."],
  ["composition", "S = ‖M_1 N_2‖ / (‖M_1‖ ‖N_2‖)", "How much of what a head writes a later head reads through its queries, keys or values. Chance: 1/√d."],
  ["rewiring", "ρ = ‖Δ(M_1 N_2)‖ / (‖M_1‖ ‖N_2‖)", "How much the joint map of two heads changed, even where its size stayed."],
  ["routes", "bn, nb, nn", "Which of the two is new: the base's writer into the new reading (bn), the new writing into the base's reader (nb), new into new (nn)."],
  ["q value", "q", "The share of false discoveries if all pairs down to this one are believed (Benjamini and Hochberg)."],
];

function drawGlossary(section) {
  section.append(
    el("h2", { id: "glossary-title" }, "Words and equations"),
    el("p", { class: "prose" }, "Row vectors, y = x W; M is a circuit of the base, M′ the same with the adapter, ΔM their difference. ",
      "Only functions of whole circuits are shown: the single matrices of a head can be rescaled against each other without any effect, and so can A and B."),
    terms(WORDS));
}
