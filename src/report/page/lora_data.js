// Results of `subspace lora`: one run a folder; its files are parsed before the page is put together.
const RUNS = DATA.runs;
const CIRCUITS = ["QK", "QK_rope", "VO"];

async function parsed(index) {
  return missingIndex(index) ? null : JSON.parse(new TextDecoder().decode(await chunk(index)));
}
const missingIndex = (index) => index === null || index === undefined;

async function prepare(run) {
  run.file = await parsed(run.heads);
  run.wiring = await parsed(run.compose);
  run.whole = await parsed(run.modules);
  run.causes = await parsed(run.causal);
  run.words = await parsed(run.tokens);
  run.turning = await parsed(run.rope);
  run.entries = run.file.heads;
  run.facts = run.file.model ?? {};
  const numbers = (values) => [...new Set(values)].sort((a, b) => a - b);
  run.layers = numbers(run.entries.map((entry) => entry.layer));
  run.headCount = Math.max(...run.entries.map((entry) => entry.head)) + 1;
  const found = new Set(run.entries.map((entry) => entry.circuit));
  run.circuits = [...CIRCUITS.filter((name) => found.has(name)), ...[...found].filter((name) => !CIRCUITS.includes(name))];
  run.at = new Map(run.entries.map((entry) => [`${entry.layer}/${entry.head}/${entry.circuit}`, entry]));
  for (const one of run.turning?.heads ?? []) {
    const entry = headEntry(run, one.layer, one.head, one.circuit);
    if (entry) Object.assign(entry, { curve: { offsets: run.turning.offsets, rel_fro: one.rel_fro }, freq_share: one.freq_share });
  }
}

const headEntry = (run, layer, head, circuit) => run.at.get(`${layer}/${head}/${circuit}`);
const modelOf = (run) => ({ name: runLabel(run), heads: run.headCount });
function runLabel(run) {
  const same = RUNS.filter((other) => other.name === run.name);
  return same.length > 1 ? `${run.name} (${same.indexOf(run) + 1})` : run.name;
}

// What is selected, shared by all figures. `layer` is an index into the run's list.
const store = makeStore({ run: 0, layer: 0, head: 0, circuit: "VO" }, {
  layerNumber(index = this.get("layer")) { return this.runData.layers[index]; },
  get entry() { return headEntry(this.runData, this.layerNumber(), this.get("head"), this.get("circuit")); },
});

const selectLayer = (index) => store.set({ layer: clamp(index, store.runData.layers.length - 1) });
const selectHead = (index) => store.set({ head: clamp(index, store.runData.headCount - 1) });
function selectUnit(layer, head, circuit) {
  const index = store.runData.layers.indexOf(layer);
  if (index >= 0) store.set({ layer: index, head, ...(circuit ? { circuit } : {}) });
}

// Singular values of a circuit's heads in a layer: {base, adapted, delta}, each a list a head.
const headValues = (() => {
  const known = new Map();
  return (run, layer, circuit) => {
    const key = `${RUNS.indexOf(run)}/${layer}`;
    if (!known.has(key)) known.set(key, decode(run.values?.[layer]));
    return known.get(key).then((parts) => parts?.[circuit]);
  };
  async function decode(stored) {
    if (!stored) return null;
    const bytes = await chunk(stored.chunk);
    const out = {};
    let at = 0;
    for (const [name, heads, count] of stored.parts) {
      const [circuit, which] = name.split(".");
      const all = floats(bytes, at, heads * count);
      at += 4 * heads * count;
      (out[circuit] ??= {})[which] = Array.from({ length: heads }, (_, head) => all.subarray(head * count, (head + 1) * count));
    }
    return out;
  }
})();

// Terms of a circuit in the order of the file, the base left out.
const termsOf = (entry) => Object.keys(entry?.terms ?? {}).filter((name) => name !== "base");
function termNames(run, circuit) {
  const names = [];
  for (const entry of run.entries) {
    if (entry.circuit === circuit) for (const name of termsOf(entry)) if (!names.includes(name)) names.push(name);
  }
  return names;
}

// [before, after] of a metric that is stated for both.
const pairOf = (value) => (Array.isArray(value) ? value : [null, null]);
