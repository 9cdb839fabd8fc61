// Figure: the words nearest to what an adapter reads and writes (tokens.json of `lora tokens`).
const tokensOf = (run) => run.words?.features ?? [];
const headTokensOf = (run) => run.words?.heads ?? [];
const ENDS = { QK: { left: "asks", right: "finds" }, VO: { left: "reads", right: "writes" } };
const endOf = (one) => (ENDS[one.circuit] ?? ENDS.QK)[one.side];

function drawTokens() {
  if (!RUNS.some((run) => tokensOf(run).length)) return;
  const here = () => tokensOf(store.runData).filter((one) => one.layer === store.layerNumber());
  const ofHead = (which) => headTokensOf(store.runData).filter((one) => one.which === which && one.layer === store.layerNumber() && one.head === store.get("head")
    && one.circuit === store.get("circuit")).sort((a, b) => a.direction - b.direction || (a.side < b.side ? -1 : 1));
  const changes = () => [...[...new Set(here().map((one) => one.change))].map((change) => [change, `shared directions of ${change}`]),
    ...(headTokensOf(store.runData).length ? [["delta", "the chosen head's change"], ["base", "the chosen head before"], ["adapted", "the chosen head after"]] : [])];
  figure({
    id: "fig-tokens",
    title: "Words near the new directions",
    question: "Can the shared directions be read as words?",
    see: "For the strongest shared directions of an adapter, the tokens of the vocabulary whose embeddings point most along the direction and most against it, with the cosine: those of the input for what is read, of the output for what is written, norms between taken into account. Where they were asked for, the same of a head's own strongest pairs, what it asks and finds, or reads and writes. The sign of a direction is arbitrary, so the two lists may be exchanged (in both rows of a pair together).",
    care: "The embedding is the residual stream before the first layer: in later layers the same direction may mean something else, and most directions mean no word at all. Cosines near those of random directions (stated below) are noise, however suggestive the words look.",
    keys: ["layer", "head", "circuit", "run"],
    defaults: { change: null },
    controls: (f) => [f.changeField = select("Of", "change", changes(), null, (change) => f.set({ change }))],
    async load(f) {
      f.changeField.fill(changes(), f.options.change);
      const change = f.changeField.choice.value;
      const shared = here().filter((one) => one.change === change);
      const rows = shared.length ? shared.map((one) => ({ ...one, label: `${change} ${one.direction + 1}` }))
        : ofHead(change).map((one) => ({ ...one, label: `${endOf(one)} ${one.direction + 1}` }));
      return { run: store.runData, layer: store.layerNumber(), change, rows, title: shared.length ? `Layer ${store.layerNumber()}, adapter ${change}`
        : `${store.get("circuit")}, ${unitName(store.layerNumber(), store.get("head"))}` };
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
        root.append(text(0, y + 8, row.label, { "font-weight": 600 }), text(86, y, list(row.along)),
          text(86, y + lineHeight - 3, list(row.against), { fill: theme.soft }));
      });
      return { svg: root, height, label: `Tokens near ${m.rows.length} directions: ${m.title}`,
        readout: m.rows.length ? [el("strong", {}, `${m.title}: `), `the largest cosine of all tokens with a random direction is about ${number(m.run.words.random_cosine, 2)}${missing(m.run.words.written) ? "" : ` (of what is written ${number(m.run.words.written.random_cosine, 2)})`}.`]
          : "There are no words of this." };
    },
    csv: (f, m) => [["layer", "head", "circuit", "of", "end", "direction", "side", "token", "cosine"],
      ...[...tokensOf(m.run), ...headTokensOf(m.run)].flatMap((one) => ["along", "against"].flatMap((side) => one[side].map(({ token, cosine }) =>
        [one.layer, one.head, one.circuit, one.change ?? one.which, one.side && endOf(one), one.direction + 1, side, token, cosine])))],
  });
}
