// Figure: the words nearest to what an adapter reads and writes (tokens.json of `lora tokens`).
const tokensOf = (run) => run.words?.features ?? [];

function drawTokens() {
  if (!RUNS.some((run) => tokensOf(run).length)) return;
  const here = () => tokensOf(store.runData).filter((one) => one.layer === store.layerNumber());
  const changes = () => [...new Set(here().map((one) => one.change))].map((change) => [change, change]);
  figure({
    id: "fig-tokens",
    title: "Words near the new directions",
    question: "Can the shared directions be read as words?",
    see: "For the strongest shared directions of an adapter, the tokens of the vocabulary whose embeddings point most along the direction and most against it, with the cosine. The sign of a direction is arbitrary, so the two lists may be exchanged.",
    care: "The embedding is the residual stream before the first layer: in later layers the same direction may mean something else, and most directions mean no word at all. Cosines near those of random directions (stated below) are noise, however suggestive the words look.",
    keys: ["layer", "run"],
    defaults: { change: null },
    controls: (f) => [f.changeField = select("Adapter", "change", changes(), null, (change) => f.set({ change }))],
    async load(f) {
      f.changeField.fill(changes(), f.options.change);
      const change = f.changeField.choice.value;
      return { run: store.runData, layer: store.layerNumber(), change, rows: here().filter((one) => one.change === change) };
    },
    compose(f, m, { theme, width }) {
      const lineHeight = 19;
      const most = 8;
      const height = 34 + m.rows.length * 2 * lineHeight + 10;
      const text = (x, y, content, more = {}) => svg("text", { x, y, fill: theme.ink, "font-size": 13, ...more }, content);
      const list = (tokens) => tokens.slice(0, most).map((one) => `${one.token} ${number(one.cosine, 2)}`).join("   ");
      const root = svg("svg", { class: "grid-svg", viewBox: `0 0 ${width} ${height}`, role: "img" });
      root.append(svg("rect", { x: 0, y: 0, width, height, fill: theme.paper }),
        text(0, 16, "direction", { fill: theme.soft, "font-size": 12 }), text(86, 16, "along (above) and against (below)", { fill: theme.soft, "font-size": 12 }));
      m.rows.forEach((row, i) => {
        const y = 40 + i * 2 * lineHeight;
        root.append(text(0, y + 8, `${m.change} ${row.direction + 1}`, { "font-weight": 600 }), text(86, y, list(row.along)),
          text(86, y + lineHeight - 3, list(row.against), { fill: theme.soft }));
      });
      return { svg: root, height, label: `Tokens near ${m.rows.length} directions of adapter ${m.change}`,
        readout: m.rows.length ? [el("strong", {}, `Layer ${m.layer}, adapter ${m.change}: `), `the largest cosine of all tokens with a random direction is about ${number(m.run.words.random_cosine, 2)}.`]
          : "This layer has no such adapter." };
    },
    csv: (f, m) => [["layer", "change", "direction", "side", "token", "cosine"],
      ...tokensOf(m.run).flatMap((one) => ["along", "against"].flatMap((side) => one[side].map(({ token, cosine }) =>
        [one.layer, one.change, one.direction + 1, side, token, cosine])))],
  });
}
