// What is selected, shared by all figures.
const store = makeStore({ run: 0, layer: 0, head: 0, tau: String(RUNS[0].taus[0]) }, {
  // `layer` is an index into the run's list, which need not begin with layer 0.
  get layerData() { return this.runData.layers[this.get("layer")]; },
  layerNumber(index = this.get("layer")) { return this.runData.layers[index].layer; },
  get rankColumn() { return `rank_${this.get("tau")}`; },
  get tauText() { return `${+(100 * Number(this.get("tau"))).toFixed(4)} %`; },
});

const selectLayer = (index) => store.set({ layer: clamp(index, store.runData.layers.length - 1) });
const selectHead = (index) => store.set({ head: clamp(index, modelOf(store.runData).heads - 1) });
