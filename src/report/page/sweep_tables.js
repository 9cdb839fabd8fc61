// The summary in words and the table of a sweep.
function summaryTexts() {
  const runs = SWEEP.runs.length;
  const out = [SWEEP.question || `${ARMS.length} combinations, ${runs} runs.`];
  const { name, text, less } = MEASURES[FIRST];
  const ranked = ARMS.filter((arm) => !missing(numberOf(arm, FIRST).mean)).sort((a, b) => (less ? 1 : -1) * (numberOf(a, FIRST).mean - numberOf(b, FIRST).mean));
  if (ranked.length > 1) {
    const [best, second] = ranked;
    const values = (arm) => arm.runs.map((run) => run.numbers[FIRST]).filter((value) => !missing(value));
    const gap = difference(values(second), values(best));
    const sure = missing(gap.half) ? "one seed each, so it may be chance" : Math.abs(gap.mean) > gap.half ? "more than the seeds' chance" : "within the seeds' chance";
    out.push(`The ${less ? "lowest" : "highest"} ${name}: ${best.arm}, ${plusMinus(numberOf(best, FIRST), text)}. Next is ${second.arm}, ${text(Math.abs(gap.mean))}${missing(gap.half) ? "" : ` ± ${text(gap.half)}`} behind (${sure}).`);
  }
  return out;
}

function drawSummary(node, body) {
  node.replaceChildren(...summaryTexts().map((text, k) => el("p", { class: k === 0 ? "lead" : null }, text)));
  const rows = [["combinations", integer(ARMS.length)], ["runs", integer(SWEEP.runs.length)], ["seeds", [...new Set(SWEEP.runs.map((run) => run.seed))].join(", ")],
    ...GRID.map((field) => [field, [...new Set(ARMS.map((arm) => String(arm[field])))].join(", ")])];
  body.append(el("aside", { class: "card", "aria-label": "The sweep in short" }, el("dl", {}, rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]))));
}

function drawTable(section) {
  const keys = Object.keys(MEASURES);
  const rows = () => [["combination", "runs", ...keys.flatMap((key) => [key, `${key}_half_width_95`])],
    ...ARMS.map((arm) => [arm.arm, arm.runs.length, ...keys.flatMap((key) => [numberOf(arm, key).mean, numberOf(arm, key).half])])];
  section.append(el("h2", { id: "table-title" }, "Every combination in numbers"),
    el("p", { class: "prose" }, "Means over seeds ± half the width of their 95 % interval (Student's t)."),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of combinations" }, el("table", {},
      el("thead", {}, el("tr", {}, ["", "runs", ...keys.map((key) => MEASURES[key].name)].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, ARMS.map((arm) => el("tr", {}, el("th", { scope: "row" }, arm.arm), el("td", {}, integer(arm.runs.length)),
        keys.map((key) => el("td", {}, plusMinus(numberOf(arm, key), MEASURES[key].text)))))))),
    el("p", {}, el("button", { type: "button", class: "quiet", "data-export": "table", onclick: () =>
      save("sweep-table.csv", new Blob([csvText(rows())], { type: "text/csv" })) }, "Save as CSV")));
}
