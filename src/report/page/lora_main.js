// Puts the page together, once the results are parsed.
function drawBar() {
  const layers = () => store.runData.layers.map((layer, index) => [String(index), String(layer)]);
  const heads = () => Array.from({ length: store.runData.headCount }, (_, head) => [String(head), String(head)]);
  const circuits = () => store.runData.circuits.map((circuit) => [circuit, circuit]);
  const layerField = select("Layer", "layer", layers(), store.get("layer"), (text) => selectLayer(Number(text)));
  const headField = select("Head", "head", heads(), store.get("head"), (text) => selectHead(Number(text)));
  const circuitField = select("Circuit", "circuit", circuits(), store.get("circuit"), (circuit) => store.set({ circuit }));
  const runField = RUNS.length < 2 ? null : select("Adapter", "run", RUNS.map((run, i) => [i, runLabel(run)]), 0, (text) => {
    const run = RUNS[Number(text)];
    store.set({ run: Number(text), layer: clamp(store.get("layer"), run.layers.length - 1), head: clamp(store.get("head"), run.headCount - 1),
      circuit: run.circuits.includes(store.get("circuit")) ? store.get("circuit") : run.circuits[0] });
  });
  fillBar([runField, layerField, headField, circuitField]);
  store.on(null, (changed) => {
    if (changed.includes("run")) {
      layerField.fill(layers(), store.get("layer"));
      headField.fill(heads(), store.get("head"));
      circuitField.fill(circuits(), store.get("circuit"));
    }
    layerField.choice.value = store.get("layer");
    headField.choice.value = store.get("head");
    circuitField.choice.value = store.get("circuit");
  });
}

// The page opens on the head that changed most.
function selectMostChanged() {
  const run = RUNS[0];
  const most = run.entries.reduce((best, entry) => ((entry.rel_fro ?? 0) > (best.rel_fro ?? 0) ? entry : best), run.entries[0]);
  selectUnit(most.layer, most.head, most.circuit);
}

(async () => {
  try {
    for (const run of RUNS) await prepare(run);
  } catch (error) {
    document.getElementById("figures").append(el("p", { class: "failure" }, `The results could not be read: ${error.message}`));
    throw error;
  }
  selectMostChanged();
  drawTitle();
  drawBar();
  drawSize();
  drawTerms();
  drawSplit();
  drawFeatures();
  drawSpectrum();
  drawIntruders();
  drawModules();
  drawRope();
  drawWiring();
  drawGraph();
  drawScores();
  drawCausal();
  drawShapley();
  drawTokens();
  drawCompare();
  drawSummary(document.getElementById("summary"), document.getElementById("mast-body"));
  drawReading();
  drawTable(document.getElementById("table"));
  drawGlossary(document.getElementById("glossary"));
  drawFacts(document.getElementById("facts"));
  drawFoot(
    "Numbers are those of the result files. Figures: drag to zoom, double-click to reset; [ and ] change the layer; arrow keys move in the first figure. ");
  await FIGURES[0].draw();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
  watchFigures();
  drawWhenIdle();
})();
