// Colours safe for colour-blind readers (Okabe and Ito; cividis for ordered values) in two themes.
const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif';
const LIGHT = {
  name: "light", paper: "#fdfdfb", ink: "#1b1f24", soft: "#59616b", grid: "#e9ebec", axis: "#9aa1a8",
  random: "#6f7780", pick: "#c44e00", faint: "rgba(60,70,80,0.20)",
  runs: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"],
};
const DARK = {
  name: "dark", paper: "#14171a", ink: "#e8e6e1", soft: "#a2a9b1", grid: "#262b30", axis: "#59616b",
  random: "#969ea6", pick: "#ff9a4d", faint: "rgba(200,210,220,0.20)",
  runs: ["#56B4E9", "#F0863A", "#2FC79A", "#E3A0C4", "#F2C14E", "#9BD3F5"],
};
const PAPER = { ...LIGHT, name: "paper", paper: "#ffffff" };

const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74",
  "#c3b369", "#e1cc55", "#fee838"];
const cividisScale = CIVIDIS.map((colour, i) => [i / (CIVIDIS.length - 1), colour]);

const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
const withAlpha = (hex, alpha) => `rgba(${channels(hex).join(",")},${alpha})`;

// Depth as a colour: first layer dark, last light (the ends near the paper's own colour left out).
function depthColours(theme) {
  const [low, high] = theme.name === "dark" ? [0.3, 1] : [0, 0.86];
  const at = (t) => {
    const x = (low + t * (high - low)) * (CIVIDIS.length - 1);
    const i = Math.min(CIVIDIS.length - 2, Math.floor(x));
    const [a, b] = [channels(CIVIDIS[i]), channels(CIVIDIS[i + 1])];
    return `rgb(${a.map((c, k) => Math.round(c + (x - i) * (b[k] - c))).join(",")})`;
  };
  return { at, scale: [0, 0.25, 0.5, 0.75, 1].map((t) => [t, at(t)]) };
}

// Plotly reads <b>, <a ...> and the like in texts: names from files must not be read so.
const plotText = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;")
  .replaceAll(">", "&gt;");

function axis(theme, title, more = {}) {
  return {
    title: { text: title, standoff: 8, font: { size: 13, color: theme.ink } }, gridcolor: theme.grid, linecolor: theme.axis,
    zeroline: false, showline: true, ticks: "outside", ticklen: 4, tickcolor: theme.axis,
    tickfont: { color: theme.soft, size: 12 }, automargin: true, ...more,
  };
}

// Powers of ten are labelled, what lies between has marks only.
const logAxis = { type: "log", exponentformat: "power", showexponent: "all", dtick: 1,
  minor: { dtick: "D1", ticks: "outside", ticklen: 2, showgrid: false } };

function baseLayout(theme, more = {}) {
  return {
    font: { family: FONT, size: 13, color: theme.ink },
    paper_bgcolor: theme.paper, plot_bgcolor: theme.paper,
    margin: { l: 56, r: 16, t: 28, b: 48 },
    hoverlabel: { bgcolor: theme.paper, bordercolor: theme.axis,
      font: { family: FONT, size: 12, color: theme.ink } },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 12 } },
    hovermode: "closest", dragmode: "zoom", ...more,
  };
}

const panelTitle = (text, theme, x, y) => ({
  text, showarrow: false, xref: "paper", yref: "paper", x, y, xanchor: "left", yanchor: "bottom",
  font: { size: 13, color: theme.ink },
});

const depthBar = (theme, layers, more = {}) => ({
  type: "scatter", x: [null], y: [null], mode: "markers", showlegend: false, hoverinfo: "skip",
  marker: {
    color: [layers[0]], cmin: layers[0], cmax: Math.max(layers.at(-1), layers[0] + 1),
    colorscale: depthColours(theme).scale, showscale: true,
    colorbar: { title: { text: "layer", side: "right" }, thickness: 9, outlinewidth: 0, len: 0.8,
      tickfont: { size: 11, color: theme.soft }, x: 1.01, ...more },
  },
});

const look = (() => {
  const stored = () => { try { return localStorage.getItem("subspace-theme"); } catch { return null; } };
  const system = matchMedia("(prefers-color-scheme: dark)");
  let forced = stored();
  const listeners = [];
  const name = () => forced ?? (system.matches ? "dark" : "light");
  const tell = () => {
    document.documentElement.dataset.theme = name();
    listeners.forEach((act) => act());
  };
  system.addEventListener("change", tell);
  document.documentElement.dataset.theme = name();
  return {
    get theme() { return name() === "dark" ? DARK : LIGHT; },
    onChange: (act) => listeners.push(act),
    toggle() {
      forced = name() === "dark" ? "light" : "dark";
      try { localStorage.setItem("subspace-theme", forced); } catch { /* a private window */ }
      tell();
    },
  };
})();
