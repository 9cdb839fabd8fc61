// Puts the page of a sweep together.
(async () => {
  drawTitle();
  fillBar([]);
  drawArms();
  drawGrid();
  drawSummary(document.getElementById("summary"), document.getElementById("mast-body"));
  drawTable(document.getElementById("table"));
  document.getElementById("glossary").remove();
  document.getElementById("facts").remove();
  drawFoot("Numbers are those of sweep.json. Figures: drag to zoom, double-click to reset. ");
  await FIGURES[0].draw();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
  watchFigures();
  drawWhenIdle();
})();
