// A figure: title, controls, drawing, readout, caption and exports. It is drawn when it comes into
// view (or the page is idle), and again when something that it shows changes.
//
//   figure({ id, title, question, see, care, keys, defaults, controls(f), load(f), compose(f, m, look),
//            csv(f, m), wire?(f) })
//
// load is asynchronous and returns what is to be shown, m; compose(f, m, {theme, width, print}) is pure
// and returns {data, layout, label, readout?, ownHeight?} for Plotly, or {svg, height, label, readout?}.
const FIGURES = [];
const EXPORT_WIDTH = 1100;

// Plotly stands last in the page: a second and more of compiling, during which the text is there to
// be read and the data are unpacked.
const plotlyComplete = new Promise((done) =>
  document.addEventListener("plotly-complete", done, { once: true }));

class Figure {
  constructor(spec) {
    Object.assign(this, spec);
    this.options = { ...spec.defaults };
    this.number = FIGURES.length + 1;
    this.dirty = true;
    this.visible = false;
    this.turn = 0;
    this.build();
    FIGURES.push(this);
    store.on(spec.keys, (changed) => {
      if (changed.includes("run")) this.refill?.(this);
      this.invalidate();
    });
  }

  build() {
    this.plot = el("div", { class: "plot pending", role: "group", tabindex: "0" });
    this.readoutNode = el("p", { class: "readout" });
    const exports = el("span", { class: "exports" },
      ["SVG", "PNG", "CSV"].map((kind) => el("button", {
        type: "button", class: "quiet", "data-export": kind.toLowerCase(),
        "aria-label": `Save figure ${this.number} as ${kind}`,
        onclick: () => this.export(kind.toLowerCase()),
      }, kind)));
    this.controlsNode = el("div", { class: "controls" }, this.controls?.(this) ?? [], exports);
    this.section = el("section", { class: "figure", id: this.id, "aria-labelledby": `${this.id}-title` },
      el("div", { class: "together" },
        el("div", { class: "head" }, el("span", { class: "number" }, `Figure ${this.number}`),
          el("h2", { id: `${this.id}-title` }, this.title)),
        el("p", { class: "question" }, this.question),
        this.controlsNode, this.plot, this.readoutNode),
      el("div", { class: "caption" },
        el("p", {}, el("b", {}, "What it shows."), " ", glued(this.see)),
        el("p", {}, el("b", {}, "How not to misread it."), " ", glued(this.care))));
    document.getElementById("figures").append(this.section);
  }

  set(changes) {
    Object.assign(this.options, changes);
    this.invalidate();
  }

  invalidate() {
    this.dirty = true;
    this.loaded = null;
    if (this.visible) this.draw();
  }

  async draw() {
    if (!this.dirty) return;
    this.dirty = false;
    const turn = ++this.turn;
    try {
      const [model] = await Promise.all([this.load(this), plotlyComplete]);
      if (turn !== this.turn) return;  // something newer is on its way
      this.loaded = model;
      this.paint({ theme: look.theme, width: this.plot.clientWidth });
    } catch (error) {
      this.plot.classList.remove("pending");
      this.plot.replaceChildren(el("p", { class: "failure" }, `This figure could not be drawn: ${error.message}`));
      throw error;
    }
  }

  paint(how) {
    if (!this.loaded) return;
    const drawing = this.compose(this, this.loaded, how);
    this.plot.classList.remove("pending");
    this.plot.setAttribute("aria-label", drawing.label);
    this.paintedWidth = how.width;
    if (drawing.svg) {
      const focused = this.plot.contains(document.activeElement)
        ? document.activeElement.dataset.head : undefined;
      this.plot.style.setProperty("--height", "0px");
      this.plot.replaceChildren(drawing.svg);
      if (focused !== undefined) this.plot.querySelector(`[data-head="${focused}"]`)?.focus();
    } else {
      if (how.print && !drawing.ownHeight) drawing.layout.height = Math.min(PRINT_HEIGHT, drawing.layout.height);
      this.plot.style.setProperty("--height", `${drawing.layout.height}px`);
      Plotly.react(this.plot, drawing.data, { ...drawing.layout, width: how.width },
        { displayModeBar: false, displaylogo: false });
    }
    if (!this.wired) {
      this.wired = true;
      this.wire?.(this);
    }
    this.readoutNode.replaceChildren(...[drawing.readout ?? []].flat());
    this.section.dataset.drawn = String(Number(this.section.dataset.drawn ?? 0) + 1);
  }

  async export(kind) {
    await this.draw();
    const name = fileStem(`${this.id.replace("fig-", "")}-${modelOf(store.runData).name}`);
    if (kind === "csv") {
      save(`${name}.csv`, new Blob([csvText(this.csv(this, this.loaded))], { type: "text/csv" }));
      return;
    }
    const drawing = this.compose(this, this.loaded, { theme: PAPER, width: EXPORT_WIDTH });
    let text;
    let height;
    if (drawing.svg) {
      height = drawing.height;
      drawing.svg.setAttribute("width", EXPORT_WIDTH);
      drawing.svg.setAttribute("height", height);
      text = new XMLSerializer().serializeToString(drawing.svg);
    } else {
      height = drawing.layout.height;
      const url = await Plotly.toImage({ data: drawing.data, layout: { ...drawing.layout, width: EXPORT_WIDTH } },
        { format: "svg", width: EXPORT_WIDTH, height });
      text = decodeURIComponent(url.slice(url.indexOf(",") + 1));
    }
    const blob = kind === "svg" ? new Blob([text], { type: "image/svg+xml" })
      : await svgToPng(text, EXPORT_WIDTH, height, 2);
    save(`${name}.${kind}`, blob);
  }
}

// A number and its sign of percent stay on one line.
const glued = (text) => text.replace(/(\d) %/g, "$1\u00a0%");

const figure = (spec) => new Figure(spec);

// Heads of a layer that share keys and values also share those maps.
function headIn(count, head = store.get("head")) {
  const heads = modelOf(store.runData).heads;
  return count >= heads ? head : Math.floor((head * count) / heads);
}
const headWord = (count) => (count < modelOf(store.runData).heads ? "group" : "head");

function watchFigures() {
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const f = FIGURES.find((one) => one.plot === entry.target);
      f.visible = entry.isIntersecting;
      if (f.visible) f.draw();
    }
  }, { rootMargin: "300px" });
  FIGURES.forEach((f) => seen.observe(f.plot));

  const sized = new ResizeObserver((entries) => requestAnimationFrame(() => {
    for (const entry of entries) {
      const f = FIGURES.find((one) => one.plot === entry.target);
      if (f.loaded && !printing && Math.abs(f.plot.clientWidth - f.paintedWidth) > 2) {
        f.paint({ theme: look.theme, width: f.plot.clientWidth });
      }
    }
  }));
  FIGURES.forEach((f) => sized.observe(f.plot));
  look.onChange(() => FIGURES.forEach((f) => f.paint({ theme: look.theme, width: f.plot.clientWidth })));
}

// Print in light colours at the width of a page, and what has not been in view as well.
const PRINT_WIDTH = 690;
const PRINT_HEIGHT = 310;  // two figures a page
let printing = false;
addEventListener("beforeprint", () => {
  printing = true;
  document.documentElement.dataset.theme = "light";
  FIGURES.forEach((f) => f.paint({ theme: PAPER, width: PRINT_WIDTH, print: true }));
});
addEventListener("afterprint", () => {
  printing = false;
  document.documentElement.dataset.theme = look.theme.name;
  FIGURES.forEach((f) => f.paint({ theme: look.theme, width: f.plot.clientWidth }));
});

async function drawAll() {
  for (const f of FIGURES) await f.draw();
}

// One figure at a time whenever the browser has nothing else to do.
function drawWhenIdle() {
  const next = () => {
    const f = FIGURES.find((one) => one.dirty);
    if (!f) return;
    f.draw().finally(() => later(next));
  };
  const later = (act) => (window.requestIdleCallback ? requestIdleCallback(act) : setTimeout(act, 200));
  later(next);
}
