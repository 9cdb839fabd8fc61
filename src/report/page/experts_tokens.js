// Figure: which tokens choose an expert.
const WHYS = { used: "the most used", particular: "the most particular" };

function drawTokens() {
  if (!has("tokens")) return;
  figure({
    id: "fig-tokens",
    title: "Which tokens choose an expert",
    question: "Is an expert chosen by certain words, or by all alike?",
    see: "A line an expert, with the tokens that choose it beyond their frequency: the share of its choices that they make, and how many times that is of their share in the text. Most used experts often serve words that are everywhere; the particular ones are those whose tokens differ most from the text's (by Kullback and Leibler's divergence).",
    care: "An expert sees a vector, not a word: what it answers to may be the place in a sentence or what came before, which a list of tokens does not show. Of many experts some look particular by chance; the information stated below, beside that of the same text in another order, says whether tokens tell anything at all.",
    keys: ["layer"],
    defaults: { why: "used" },
    controls: (f) => [select("Experts", "why", Object.entries(WHYS), f.options.why, (why) => f.set({ why }))],
    async load(f) {
      const found = store.layerData.tokens;
      return { layer: store.layerData.layer, found, rows: found.experts.filter(({ why }) => why === f.options.why) };
    },
    compose(f, m, { theme, width }) {
      const lineHeight = 24;
      const height = 30 + Math.max(1, m.rows.length) * lineHeight + 8;
      const text = (x, y, content, more = {}) => svg("text", { x, y, fill: theme.ink, "font-size": 13, ...more }, content);
      const most = Math.max(1, Math.min(8, Math.floor((width - 190) / 120)));
      const root = svg("svg", { class: "grid-svg", viewBox: `0 0 ${width} ${height}`, role: "img" });
      root.append(svg("rect", { x: 0, y: 0, width, height, fill: theme.paper }),
        ...[[0, "expert"], [84, "choices"], [170, "tokens, share of its choices, times their share of the text"]].map(([x, name]) => text(x, 15, name, { fill: theme.soft, "font-size": 12 })));
      m.rows.forEach((row, i) => {
        const y = 40 + i * lineHeight;
        root.append(text(0, y, integer(row.expert), { "font-weight": 600 }), text(84, y, integer(row.choices), { fill: theme.soft }));
        row.tokens.slice(0, most).forEach((token, j) => {
          const x = 170 + j * 120;
          root.append(svg("rect", { x, y: y + 4, width: Math.max(1, 104 * token.share), height: 3, fill: theme.runs[0] }),
            text(x, y, token.token.length > 9 ? `${token.token.slice(0, 8)}…` : token.token),
            text(x + 104, y, `×${number(token.lift, 2)}`, { fill: theme.soft, "font-size": 11, "text-anchor": "end" }));
        });
      });
      if (!m.rows.length) root.append(text(170, 40, "none was chosen often enough", { fill: theme.soft }));
      return { svg: root, height, label: `Tokens that choose ${m.rows.length} experts of layer ${m.layer}`,
        readout: [el("strong", {}, `Layer ${m.layer}: `), `a token tells ${number(m.found.information, 3)} nats of which expert is chosen; the same text in another order gives ${number(m.found.chance, 3)}, so ${number(m.found.information - m.found.chance, 3)} are the token's own.`] };
    },
    csv: (f, m) => [["layer", "expert", "why", "choices", "particular", "token", "count", "share", "lift"], ...LAYERS.flatMap((layer) => (layer.tokens?.experts ?? []).flatMap((row) =>
      row.tokens.map((token) => [layer.layer, row.expert, row.why, row.choices, row.particular, token.token, token.count, token.share, token.lift])))],
  });
}
