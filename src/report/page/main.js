// Puts the page together.
drawTitle();

(function drawBar() {
  const layers = () => store.runData.layers.map((layer, index) => [index, String(layer.layer)]);
  const heads = () => Array.from({ length: modelOf(store.runData).heads }, (_, head) => [head, String(head)]);
  const taus = () => store.runData.taus.map((tau) => [tau, `${+(100 * tau).toFixed(4)} %`]);
  const stepper = (label, name, options, value, act) => {
    const field = select(label, name, options, value, (text) => act(Number(text)));
    const step = (by) => el("button", { type: "button", "aria-label": `${by < 0 ? "Previous" : "Next"} ${name}`,
      onclick: () => act(store.get(name) + by) }, by < 0 ? "‹" : "›");
    const control = field.choice;
    const group = el("span", { class: "stepper" }, step(-1));
    control.replaceWith(group);
    group.append(control, step(1));
    return field;
  };
  const layerField = stepper("Layer", "layer", layers(), 0, selectLayer);
  const headField = stepper("Head", "head", heads(), 0, selectHead);
  const tauField = select("Retained energy", "tau", taus(), store.get("tau"), (tau) => store.set({ tau }));
  const runField = RUNS.length < 2 ? null : select("Model", "run", RUNS.map((run, i) => [i, runLabel(run)]), 0, (text) => {
    const run = Number(text);
    store.set({ run, layer: Math.min(store.get("layer"), RUNS[run].layers.length - 1),
      head: Math.min(store.get("head"), modelOf(RUNS[run]).heads - 1),
      tau: RUNS[run].taus.map(String).includes(store.get("tau")) ? store.get("tau") : String(RUNS[run].taus[0]) });
  });
  fillBar([runField, layerField, headField, tauField]);
  store.on(null, (changed) => {
    if (changed.includes("run")) {
      layerField.fill(layers(), store.get("layer"));
      headField.fill(heads(), store.get("head"));
      tauField.fill(taus(), store.get("tau"));
    }
    layerField.choice.value = store.get("layer");
    headField.choice.value = store.get("head");
  });
})();

drawDepth();
drawHeat();
drawGrid();
drawSpectrum();
drawError();
drawRope();
drawCompare();

drawCard(document.getElementById("mast-body"));
drawFacts(document.getElementById("facts"));
drawGlossary(document.getElementById("glossary"));
drawFoot(
  "Numbers are those of the run. Figures: drag to zoom, double-click to reset; [ and ] change the layer; arrow keys move in the heat map and the grid. ");

(async () => {
  await drawSummary(document.getElementById("summary"));
  await drawTable(document.getElementById("table"));
  await FIGURES[0].draw();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
  watchFigures();
  drawWhenIdle();
})();
