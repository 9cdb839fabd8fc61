// What `subspace ethos inspect` found, a layer a chunk. One model a page.
const KIND = DATA.model.feed_forward;
const KIND_NAMES = { ethos: "generated experts (ETHOS)", peer: "stored experts (PEER)", molae: "stored experts in a latent space (MoLAE)", moe: "a mixture of experts" };
const LAYERS = [];
const RUNS = [{ label: DATA.run }];
const runLabel = (run) => run.label;
const modelOf = () => ({ name: DATA.run, heads: 1 });

async function prepare() {
  for (const { chunk: index } of DATA.layers) LAYERS.push(JSON.parse(new TextDecoder().decode(await chunk(index))));
}

const store = makeStore({ run: 0, layer: 0, head: "all" }, {
  get layerData() { return LAYERS[this.get("layer")]; },
});
const selectLayer = (index) => store.set({ layer: clamp(index, LAYERS.length - 1) });
const layerNumbers = () => LAYERS.map((one) => one.layer);
const headCount = () => DATA.model.heads;
const has = (part) => LAYERS.some((one) => one[part]);

// Use of a layer, of all its heads or of one.
const useOf = (layer, head = store.get("head")) => (head === "all" ? layer.usage?.all : layer.usage?.heads?.[Number(head)]);
const headText = (head) => (head === "all" ? (headCount() > 1 ? "all heads" : "the router") : `head ${head}`);
const whyAbsent = (part) => DATA.absent.find(({ what }) => what === part)?.why;

// What is read off counts of choices: name, axis, text, value, and the value of even use.
const USES = {
  used: { name: "share of experts used", axis: "experts chosen at all, %", text: (v) => percent(v), of: (use) => use.used, even: (use) => use.chance.used },
  kl_uniform: { name: "KL to uniform", axis: "log N − entropy, nats", text: (v) => number(v, 3), of: (use) => use.kl_uniform, even: (use) => use.chance.kl_uniform },
  entropy: { name: "entropy", axis: "entropy of choices, nats", text: (v) => number(v, 4), of: (use) => use.entropy, even: (use) => use.chance.entropy },
  top_percent: { name: "share of the most used 1 %", axis: "choices of the most used 1 %, %", text: (v) => percent(v), of: (use) => use.top_percent, even: () => NaN },
};
const MAP_NAMES = {
  Z: "latents z of all experts", TABLE: "generated vectors h of all experts", "TABLE-MEAN": "the same without their mean",
  DOWN: "vectors that read, of all experts", UP: "vectors that write, of all experts", W1: "W1, latent to hidden",
  WU: "W_u, shared, reads the stream", WV: "W_v, shared, writes to it", K1: "keys of side 1", K2: "keys of side 2",
};
