// What several figures of this page share: names, colours, and clicking on heads.
const CIRCUIT_TEXTS = {
  QK: "what attends to what (QK)", QK_rope: "the rotated part of what attends to what (QK rope)",
  VO: "what is moved and written (VO)",
};
const circuitTitle = (name) => CIRCUIT_TEXTS[name] ?? name;
const circuitSelect = (f) => select("Circuit", "circuit", store.runData.circuits.map((c) => [c, c]), store.get("circuit"),
  (circuit) => store.set({ circuit }));

// A control for the circuit that follows the selection of the other figures.
function circuitControl(f) {
  const field = circuitSelect(f);
  store.on(["circuit", "run"], () => field.fill(store.runData.circuits.map((c) => [c, c]), store.get("circuit")));
  return field;
}

const unitName = (layer, head) => `layer ${layer}, head ${head}`;
const shortUnit = (layer, head) => `${layer}.${head}`;
const headsOf = (run, layer, circuit) => Array.from({ length: run.headCount }, (_, head) => headEntry(run, layer, head, circuit));

// One colour a term: reading or asking side, writing or answering side, both.
function termColour(theme, names, name) {
  const fixed = { q: 0, v: 0, k: 1, o: 1, qk: 2, vo: 2 };
  return theme.runs[(fixed[name] ?? names.indexOf(name)) % theme.runs.length];
}
const TERM_TEXTS = {
  q: "q: new query feature, existing keys", k: "k: existing queries, new key feature", qk: "qk: new query feature, new key feature",
  v: "v: new read, existing write", o: "o: existing read, new write", vo: "vo: new read, new write",
};
const termTitle = (name) => TERM_TEXTS[name] ?? name;

const ROUTES = ["bn", "nb", "nn"];
const ROUTE_TEXTS = { bn: "base writer, new reader", nb: "new writer, base reader", nn: "new writer, new reader" };
const routeColour = (theme, route) => theme.runs[ROUTES.indexOf(route)];
const MODE_TEXTS = { q: "queries", k: "keys", v: "values" };
const modeTitle = (mode) => `into ${MODE_TEXTS[mode.toLowerCase()] ?? mode}`;

const absent = (text) => el("p", { class: "prose absent" }, text);

// Pearson correlation of ranks, ties shared.
function spearman(x, y) {
  const ranks = (values) => {
    const order = values.map((value, i) => [value, i]).sort((a, b) => a[0] - b[0]);
    const out = new Array(values.length);
    for (let i = 0; i < order.length;) {
      let j = i;
      while (j < order.length && order[j][0] === order[i][0]) j++;
      for (let k = i; k < j; k++) out[order[k][1]] = (i + j - 1) / 2;
      i = j;
    }
    return out;
  };
  const [a, b] = [ranks(x), ranks(y)];
  const mean = (values) => values.reduce((sum, v) => sum + v, 0) / values.length;
  const [ma, mb] = [mean(a), mean(b)];
  let [ab, aa, bb] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    ab += (a[i] - ma) * (b[i] - mb);
    aa += (a[i] - ma) ** 2;
    bb += (b[i] - mb) ** 2;
  }
  return ab / Math.sqrt(aa * bb);
}
