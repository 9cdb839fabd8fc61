// Puts the page together, once the metrics are parsed.
function drawBar() {
  fillBar([select("Curves against", "across", [["tokens", RUNS[0].model.image_size ? "images" : "tokens"], ["minutes", "minutes"], ["steps", "steps"]], "tokens",
    (across) => store.set({ across }))]);
}

(async () => {
  try {
    for (const run of MEMBERS) await prepare(run);
  } catch (error) {
    document.getElementById("figures").append(el("p", { class: "failure" }, `The runs could not be read: ${error.message}`));
    throw error;
  }
  drawTitle();
  drawBar();
  drawHeldOut();
  drawLoss();
  drawTuned();
  drawFinal();
  drawSpeed();
  drawRate();
  drawSummary(document.getElementById("summary"), document.getElementById("mast-body"));
  drawTable(document.getElementById("table"));
  drawGlossary(document.getElementById("glossary"));
  drawFacts(document.getElementById("facts"));
  drawFoot("Numbers are those of run.json and metrics.jsonl. Figures: drag to zoom, double-click to reset; a name in a legend hides its curves. ");
  await FIGURES[0].draw();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
  watchFigures();
  drawWhenIdle();
})();
