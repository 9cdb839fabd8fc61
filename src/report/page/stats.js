// Order statistics, energies, and how numbers are written.
function sorted(values) {
  return Float64Array.from(values).filter((v) => !Number.isNaN(v)).sort();
}

// Linear interpolation between order statistics (NumPy's default); NaN for an empty list.
function quantileSorted(list, q) {
  if (!list.length) return NaN;
  const at = q * (list.length - 1);
  const low = Math.floor(at);
  const high = Math.ceil(at);
  return list[low] + (at - low) * (list[high] - list[low]);
}
const quantile = (values, q) => quantileSorted(sorted(values), q);
const median = (values) => quantile(values, 0.5);

// lost[r] = 1 - E(r): what remains of the sum of squares beyond the first r values, r = 0..n.
// Summed from the small end, so that tiny losses keep their digits.
const energyLost = (() => {
  const known = new WeakMap();
  return (spectrum) => {
    if (!known.has(spectrum)) {
      const lost = new Float64Array(spectrum.length + 1);
      for (let j = spectrum.length - 1; j >= 0; j--) {
        lost[j] = lost[j + 1] + spectrum[j] * spectrum[j];
      }
      const total = lost[0];
      if (total > 0) for (let j = 0; j < lost.length; j++) lost[j] /= total;
      known.set(spectrum, lost);
    }
    return known.get(spectrum);
  };
})();

// At most `most` positions of 0..n-1, dense at the start where spectra bend.
function drawPositions(n, most = 240) {
  if (n <= most) return Array.from({ length: n }, (_, j) => j);
  const set = new Set([0, n - 1]);
  for (let k = 0; k < most / 2; k++) {
    set.add(Math.round((k / (most / 2 - 1)) * (n - 1)));
    set.add(Math.round(n ** (k / (most / 2 - 1))) - 1);
  }
  return [...set].sort((a, b) => a - b);
}

const missing = (x) => x === null || x === undefined || Number.isNaN(x);
// Narrow and no-break, so that a number stays in one piece.
const THIN = "\u202f";
function integer(x) {
  if (missing(x)) return "–";
  return String(Math.round(x)).replace(/\B(?=(\d{3})+$)/g, THIN);
}
function number(x, digits = 4) {
  if (missing(x)) return "–";
  if (!Number.isFinite(x)) return "∞";
  if (x !== 0 && (Math.abs(x) >= 1e5 || Math.abs(x) < 1e-3)) {
    const [mantissa, exponent] = x.toExponential(digits - 2).split("e");
    return `${mantissa}·10${[...String(Number(exponent))].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] ?? "⁻").join("")}`;
  }
  return Number.isInteger(x) ? integer(x) : String(+x.toPrecision(digits));
}
const percent = (x, digits = 3) =>
  missing(x) ? "–" : `${number(100 * x, digits)}${THIN}%`;
function millions(x) {
  return x >= 1e9 ? `${number(x / 1e9, 4)} billion` : x >= 1e6 ? `${number(x / 1e6, 4)} million`
    : integer(x);
}
// Of a second: tokens, mostly.
const rateText = (x) => (Math.abs(x) >= 1e5 ? `${(x / 1e6).toFixed(3)}${THIN}M` : `${(x / 1e3).toFixed(2)}${THIN}k`);
function byteText(x) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (x >= 1000 && at < units.length - 1) { x /= 1000; at++; }
  return `${number(x, 3)} ${units[at]}`;
}
