// The numbers themselves: a row a layer, with the stacked rank and the median head of each map.
function drawTable(section) {
  const holder = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of layers" });
  const title = el("p", { class: "prose" });
  section.append(el("h2", { id: "table-title" }, "Every layer in numbers"), title, holder,
    el("p", {}, el("button", { type: "button", class: "quiet", "data-export": "table", onclick: () =>
      save(`layers-${fileStem(modelOf(store.runData).name)}.csv`, new Blob([csvText(current.rows)], { type: "text/csv" })) },
    "Save as CSV")));
  const current = { rows: [], sort: 0, up: true };

  async function refresh() {
    const run = store.runData;
    const column = store.rankColumn;
    const maps = Object.keys(run.maps).filter((map) => !isOffset(map));
    const heads = maps.filter((map) => run.maps[map].heads);
    const stacks = maps.filter((map) => run.maps[map].stack);
    const metrics = await Promise.all(heads.map((map) => headMetrics(run, map)));
    if (run !== store.runData || column !== store.rankColumn) return;
    const header = ["layer", ...stacks.map((map) => `${map} stack`), ...heads.map((map) => `${map} head`), "notes"];
    const rows = run.layers.map((layer, index) => [layer.layer,
      ...stacks.map((map) => layer.maps[map]?.stack?.metrics[column] ?? null),
      ...metrics.map((one) => { const middle = median(one.row(column, index)); return missing(middle) ? null : middle; }),
      layer.notes.join("; ")]);
    current.rows = [header, ...rows];
    title.textContent = `Directions that hold ${store.tauText} of the energy in ${runLabel(run)}: of the stacked map, and of the median head. Choose a heading to sort by it.`;
    render();
  }

  function render() {
    const [header, ...rows] = current.rows;
    const order = [...rows].sort((a, b) => {
      const [x, y] = [a[current.sort] ?? Infinity, b[current.sort] ?? Infinity];
      return (current.up ? 1 : -1) * (x < y ? -1 : x > y ? 1 : 0);
    });
    const chosen = store.layerNumber();
    holder.replaceChildren(el("table", {},
      el("thead", {}, el("tr", {}, header.map((name, i) => el("th", { scope: "col",
        "aria-sort": i === current.sort ? (current.up ? "ascending" : "descending") : "none" },
      el("button", { type: "button", onclick: () => {
        Object.assign(current, { up: i === current.sort ? !current.up : true, sort: i });
        render();
      } }, name, i === current.sort ? (current.up ? " ↑" : " ↓") : ""))))),
      el("tbody", {}, order.map((row) => el("tr", { class: row[0] === chosen ? "picked" : null },
        row.map((value, i) => el(i ? "td" : "th", i ? {} : { scope: "row" },
          typeof value === "string" ? value : number(value))))))));
  }
  store.on(["run", "tau"], refresh);
  store.on(["layer"], () => current.rows.length && render());
  return refresh();
}
