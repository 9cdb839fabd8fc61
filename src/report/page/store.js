// What is selected, shared by all figures. A figure names the keys that it shows.
const store = (() => {
  const values = {
    run: 0,
    layer: 0,
    head: 0,
    tau: String(RUNS[0].taus[0]),
  };
  const listeners = [];
  return {
    get: (key) => values[key],
    set(changes) {
      const changed = Object.keys(changes).filter((key) => values[key] !== changes[key]);
      if (!changed.length) return;
      Object.assign(values, changes);
      for (const { keys, act } of listeners) {
        if (!keys || keys.some((key) => changed.includes(key))) act(changed);
      }
    },
    on: (keys, act) => listeners.push({ keys, act }),
    // `layer` is an index into the run's list, which need not begin with layer 0.
    get runData() { return RUNS[values.run]; },
    get layerData() { return RUNS[values.run].layers[values.layer]; },
    layerNumber: (index = values.layer) => RUNS[values.run].layers[index].layer,
    get rankColumn() { return `rank_${values.tau}`; },
    get tauText() { return `${+(100 * Number(values.tau)).toFixed(4)} %`; },
  };
})();

function selectLayer(index) {
  const last = store.runData.layers.length - 1;
  store.set({ layer: Math.min(last, Math.max(0, index)) });
}

function selectHead(index) {
  const last = modelOf(store.runData).heads - 1;
  store.set({ head: Math.min(last, Math.max(0, index)) });
}
