// Puts the page of a model's experts together.
function drawBar() {
  const layerField = select("Layer", "layer", LAYERS.map((one, index) => [String(index), String(one.layer)]), "0", (text) => selectLayer(Number(text)));
  const heads = has("usage") && headCount() > 1 ? [["all", "all"], ...Array.from({ length: headCount() }, (_, head) => [String(head), String(head)])] : null;
  const headField = heads && select("Head", "head", heads, "all", (head) => store.set({ head }));
  fillBar([layerField, headField]);
  store.on(["layer", "head"], () => {
    layerField.choice.value = String(store.get("layer"));
    if (headField) headField.choice.value = store.get("head");
  });
}

(async () => {
  try {
    await prepare();
  } catch (error) {
    document.getElementById("figures").append(el("p", { class: "failure" }, `The results could not be read: ${error.message}`));
    throw error;
  }
  drawTitle();
  drawBar();
  drawUse();
  drawHistogram();
  drawHeads();
  drawTrained();
  drawTokens();
  drawSpectra();
  drawGroups();
  drawNeighbours();
  drawBetween();
  drawSummary(document.getElementById("summary"), document.getElementById("mast-body"));
  drawTable(document.getElementById("table"));
  drawGlossary(document.getElementById("glossary"));
  drawFacts(document.getElementById("facts"));
  drawFoot("Numbers are those of experts.json. Figures: drag to zoom, double-click to reset; [ and ] change the layer. ");
  await FIGURES[0].draw();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
  watchFigures();
  drawWhenIdle();
})();
