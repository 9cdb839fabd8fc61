// Figures of the weights: spectra, groups, neighbours.
function drawSpectra() {
  if (!has("maps")) return;
  const maps = () => Object.keys(store.layerData.maps).map((map) => [map, `${map}: ${MAP_NAMES[map] ?? map}`]);
  figure({
    id: "fig-spectra",
    title: "Spectra of the table and of what experts share",
    question: "How many directions do the experts, and the matrices they share, really use?",
    see: `Singular values, the largest first, in parts of the largest. A line that falls fast is a table of experts that are much alike, or a shared matrix of which few directions are used. ${KIND === "ethos" ? "TABLE holds the vectors that are generated from the latents; gelu gives all of them a common part, which is TABLE's first value and gone from TABLE-MEAN." : "DOWN and UP hold the stored vectors of all experts."} Rings mark where 99 % and 99.9 % of the energy are reached.`,
    care: "A random matrix of the same shape does not have equal singular values either: the ranks below stand beside those of chance. A matrix with many more rows than columns has a nearly level spectrum by chance, so for a table even a gentle slope says something.",
    keys: ["layer"],
    defaults: { scale: "log", shown: "all" },
    controls: (f) => [
      f.mapField = select("Matrix", "shown", [["all", "all"], ...maps()], "all", (shown) => f.set({ shown })),
      select("Horizontal axis", "scale", [["log", "logarithmic"], ["linear", "linear"]], "log", (scale) => f.set({ scale })),
    ],
    async load(f) {
      const chosen = Object.entries(store.layerData.maps).filter(([map]) => f.options.shown === "all" || map === f.options.shown);
      return { layer: store.layerData.layer, maps: chosen };
    },
    compose(f, m, { theme }) {
      const order = Object.keys(store.layerData.maps);
      const dashes = ["solid", "dot"];
      const data = m.maps.flatMap(([map, { values, stack }]) => {
        const at = order.indexOf(map);
        const colour = theme.runs[at % theme.runs.length];
        const top = values[0] || 1;
        const places = drawPositions(values.length).filter((i) => values[i] > 1e-9 * top);
        const line = { x: places.map((i) => i + 1), y: places.map((i) => values[i] / top), mode: "lines", name: map, legendgroup: map,
          line: { color: colour, width: 2.2, dash: dashes[Math.floor(at / theme.runs.length) % 2] }, hovertemplate: `${map}, direction %{x}: %{y:.4g}<extra></extra>` };
        const rings = ["rank_0.99", "rank_0.999"].filter((key) => stack[key] > 0).map((key) => ({ x: [stack[key]], y: [values[stack[key] - 1] / top], mode: "markers", showlegend: false, legendgroup: map,
          marker: { symbol: key === "rank_0.99" ? "circle" : "diamond", size: 10, color: theme.paper, line: { color: colour, width: 2 } },
          hovertemplate: `${map}: ${stack[key]} directions hold ${key === "rank_0.99" ? "99" : "99.9"} %<extra></extra>` }));
        return [line, ...rings];
      });
      return { data, layout: baseLayout(theme, { height: 430, xaxis: axis(theme, "direction, strongest first", f.options.scale === "log" ? logAxis : {}), yaxis: axis(theme, "singular value, parts of the largest", logAxis) }),
        label: `Singular values of ${m.maps.length} matrices of layer ${m.layer}`,
        readout: [el("strong", {}, `Layer ${m.layer}, entropy rank (chance): `), m.maps.map(([map, { stack }]) => `${map} ${number(stack.entropy_rank, 3)} (${number(stack.random.entropy_rank, 3)}) of ${Math.min(...stack.shape)}`).join("; "), "."] };
    },
    csv: (f, m) => [["layer", "matrix", "direction", "singular_value"], ...m.maps.flatMap(([map, { values }]) => values.map((value, i) => [m.layer, map, i + 1, value]))],
  });
}

function drawGroups() {
  if (!has("clusters")) return;
  const counted = has("usage");
  figure({
    id: "fig-groups",
    title: "Groups of experts",
    question: "Do experts form kinds, or one cloud?",
    see: `Left: how much of the spread of the ${LAYERS[0].clusters.of} is explained by so many groups (k-means), and by as many in a Gaussian cloud of the same mean and covariance. Only a line above the dashed one is evidence of groups. Right: the experts in the two directions of largest spread${counted ? ", large and dark the more often they are chosen" : ""}.`,
    care: "k-means always finds groups, in a cloud as well: that is what the dashed line is for. Two directions of many show little, and groups that lie apart elsewhere may overlap here; the share of the spread that the two directions have is stated below.",
    keys: ["layer"],
    defaults: { colour: counted ? "choices" : "group" },
    controls: (f) => (counted ? [select("Colour", "colour", [["choices", "choices"], ["group", "group of 8"]], f.options.colour, (colour) => f.set({ colour }))] : []),
    load: async () => ({ layer: store.layerData.layer, found: store.layerData.clusters }),
    compose(f, m, { theme, width }) {
      const stacked = width < 620;
      const domains = stacked ? [[[0, 1], [0.6, 1]], [[0, 1], [0, 0.48]]] : [[[0, 0.4], [0, 1]], [[0.52, 1], [0, 1]]];
      const { found } = m;
      const { map } = found;
      const logs = map.choices?.map((count) => Math.log10(1 + count));
      const byChoices = f.options.colour === "choices" && logs;
      const scatter = { x: map.x, y: map.y, mode: "markers", type: "scatter", showlegend: false, xaxis: "x2", yaxis: "y2",
        marker: { size: logs ? logs.map((v) => 3 + 2.2 * v) : 4, opacity: 0.8, ...(byChoices ? { color: logs, colorscale: depthColours(theme).scale, reversescale: theme.name !== "dark",
          colorbar: { title: { text: "choices", side: "right" }, thickness: 9, outlinewidth: 0, tickvals: [0, 1, 2, 3, 4], ticktext: ["0", "9", "99", "999", "9999"], tickfont: { size: 11, color: theme.soft } } }
          : { color: map.group.map((group) => [...theme.runs, theme.random, theme.ink][group % 8]) }) },
        text: map.expert.map((expert, i) => `expert ${expert}${map.choices ? `, ${map.choices[i]} choices` : ""}`), hovertemplate: "%{text}<extra></extra>" };
      const curve = (key, name, line) => ({ x: found.clusters, y: found[key], mode: "lines+markers", name, line, hovertemplate: `${name}: %{x} groups explain %{y:.1%}<extra></extra>` });
      const last = found.clusters.length - 1;
      return { data: [curve("chance", "one cloud, by chance", { color: theme.random, width: 1.6, dash: "dash" }), curve("explained", "experts", { color: theme.runs[0], width: 2.4 }), scatter],
        layout: baseLayout(theme, { height: stacked ? 720 : 430,
          xaxis: axis(theme, "groups", { domain: domains[0][0], anchor: "y", type: "log", tickmode: "array", tickvals: found.clusters, ticktext: found.clusters.map(String) }),
          yaxis: axis(theme, "spread explained", { domain: domains[0][1], anchor: "x", tickformat: ".0%", rangemode: "tozero" }),
          xaxis2: axis(theme, "largest direction", { domain: domains[1][0], anchor: "y2" }), yaxis2: axis(theme, "second", { domain: domains[1][1], anchor: "x2" }) }),
        label: `Groups of experts in layer ${m.layer}`,
        readout: [el("strong", {}, `Layer ${m.layer}: `), last < 0 ? "too few experts for groups." : `${found.clusters[last]} groups explain ${percent(found.explained[last])} of the spread, ${percent(found.chance[last])} in one cloud; the two directions drawn have ${percent(found.axes.reduce((a, b) => a + b, 0))} of it. Groups of 8, share of experts${counted ? " (of choices)" : ""}: ${found.groups.map((group) => `${percent(group.experts, 2)}${counted ? ` (${percent(group.choices, 2)})` : ""}`).join(", ")}.`] };
    },
    csv: (f, m) => [["layer", "expert", "x", "y", "group", "choices"], ...m.found.map.expert.map((expert, i) => [m.layer, expert, m.found.map.x[i], m.found.map.y[i], m.found.map.group[i], m.found.map.choices?.[i]])],
  });
}

function drawNeighbours() {
  if (!has("neighbours")) return;
  figure({
    id: "fig-neighbours",
    title: "The nearest expert",
    question: "Are experts copies of each other, or spread out?",
    see: "For every layer, the cosine between an expert and its nearest among all others, of the vectors they compare their input with (the mean of all taken out): box from the lower to the upper quarter, line from 5 to 95 %, of up to 256 experts. Grey: the same for as many experts whose latents are drawn at random with the same mean and covariance. Higher than grey means that experts have come together.",
    care: "In few dimensions, and among many, everything has a near neighbour: a cosine of 0.8 alone says nothing. Nearest experts need not be chosen together, because keys and latents are learned apart; the share that has a key in common is stated below.",
    keys: ["layer"],
    load: async () => ({ layers: LAYERS.filter((one) => one.neighbours), layer: store.layerData }),
    compose(f, m, { theme }) {
      const x = m.layers.map((one) => String(one.layer));
      const box = (key, name, colour) => ({ type: "box", x, name, marker: { color: colour }, line: { color: colour, width: 1.6 }, fillcolor: withAlpha(colour, 0.2),
        ...Object.fromEntries(["lowerfence", "q1", "median", "q3", "upperfence"].map((part, i) => [part, m.layers.map((one) => one.neighbours[key][i])])) });
      const found = m.layer.neighbours;
      const named = found.examples.slice(0, 3).map((one) => `${integer(one.expert)}: ${one.nearest.slice(0, 3).map((other) => `${integer(other.expert)} (${number(other.cosine, 2)})`).join(", ")}`);
      return { data: [box("cosines", "experts", theme.runs[0]), box("chance", "drawn at random", theme.random)],
        layout: baseLayout(theme, { height: 400, boxmode: "group", xaxis: axis(theme, "layer", { type: "category", showgrid: false }), yaxis: axis(theme, "cosine to the nearest expert") }),
        label: "Cosine to the nearest expert, by layer",
        readout: [el("strong", {}, `Layer ${m.layer.layer}: `), `median ${number(found.cosines[2], 3)}, ${number(found.chance[2], 3)} at random; ${percent(found.shared_key)} of the eight nearest share a key with the expert, ${percent(found.shared_key_by_chance)} by chance. ${has("usage") ? "Most used" : "For example"}: ${named.join("; ")}.`] };
    },
    csv: () => [["layer", "expert", "choices", "nearest", "cosine"], ...LAYERS.flatMap((layer) => (layer.neighbours?.examples ?? []).flatMap((one) =>
      one.nearest.map((other) => [layer.layer, one.expert, one.choices, other.expert, other.cosine])))],
  });
}
