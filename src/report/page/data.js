// What the page holds of each run, decoded when first needed.
function remembered(load) {
  const known = new Map();
  return (run, key) => {
    const name = `${RUNS.indexOf(run)}/${key}`;
    if (!known.has(name)) known.set(name, load(run, key));
    return known.get(name);
  };
}

const RUNS = DATA.runs;

// Metrics of a map's heads: column(name)[layerIndex * heads + head], NaN where there is none.
const headMetrics = remembered(async (run, map) => {
  const info = run.maps[map]?.heads;
  if (!info) return null;
  const size = run.layers.length * info.heads;
  const all = floats(await chunk(info.chunk), 0, size * info.columns.length);
  return {
    heads: info.heads,
    columns: info.columns,
    column(name) {
      const at = info.columns.indexOf(name);
      return at < 0 ? null : all.subarray(at * size, (at + 1) * size);
    },
    row(name, layerIndex) {
      return this.column(name)?.subarray(layerIndex * info.heads, (layerIndex + 1) * info.heads);
    },
  };
});

// Singular values of a map's stacks, one Float32Array a layer (null where there is none).
const stackSpectra = remembered(async (run, map) => {
  const info = run.maps[map]?.stack;
  if (!info) return null;
  const lengths = run.layers.map((layer) => layer.maps[map]?.stack?.values ?? 0);
  const total = lengths.reduce((sum, n) => sum + n, 0);
  const bits = words(await chunk(info.chunk), 0, total);
  for (let i = 1; i < total; i++) bits[i] = bits[i - 1] - bits[i];
  const values = new Float32Array(bits.buffer);
  let begin = 0;
  return lengths.map((n) => (n ? values.subarray(begin, (begin += n)) : null));
});

const STEPS_PER_OCTAVE = 512;

// Drawn spectra of one layer: map -> {positions, largest[h], relative[h][point]}, null if marked.
const drawnSpectra = remembered(async (run, layerIndex) => {
  const layer = run.layers[layerIndex];
  if (!layer.drawn) return {};
  const bytes = await chunk(layer.drawn.chunk);
  const out = {};
  let at = 0;
  for (const map of layer.drawn.maps) {
    const { count, values } = layer.maps[map].heads;
    const positions = run.samples[values];
    const largest = floats(bytes, at, count);
    at += 4 * count;
    const relative = Array.from(largest, (first) => {
      if (Number.isNaN(first)) return null;
      const row = new Float32Array(positions.length);
      row[0] = 1;
      let level = 0;
      for (let p = 1; p < positions.length; p++) {
        for (let shift = 0; ; shift += 7) {
          const byte = bytes[at++];
          level += (byte & 0x7f) * 2 ** shift;
          if (byte < 0x80) break;
        }
        row[p] = 2 ** (-level / STEPS_PER_OCTAVE);
      }
      return row;
    });
    out[map] = { positions, largest, relative, values };
  }
  return out;
});

const isOffset = (map) => map.includes("@");
const offsetOf = (map) => Number(map.split("@")[1]);
const mapsWith = (run, part) => Object.keys(run.maps).filter((map) => run.maps[map][part]);
const offsetMaps = (run) => mapsWith(run, "heads").filter(isOffset)
  .sort((a, b) => offsetOf(a) - offsetOf(b));

// Shape and random values of a map in a layer; all offsets share those of the first.
function described(run, layerIndex, map) {
  const maps = run.layers[layerIndex].maps;
  return maps[map] ?? (isOffset(map) ? maps[Object.keys(maps).find(isOffset)] : undefined);
}

const modelOf = (run) => run.facts.model;
const runLabel = (run) => {
  const name = modelOf(run).name;
  const same = RUNS.filter((other) => modelOf(other).name === name);
  return same.length > 1 ? `${name} (${same.indexOf(run) + 1})` : name;
};
