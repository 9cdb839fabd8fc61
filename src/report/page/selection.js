// What a page has selected, shared by all its figures, and what every page's bar has.

// A figure names the keys that it shows. `views` are getters and functions beside get, set and on.
function makeStore(values, views) {
  const listeners = [];
  const store = {
    get: (key) => values[key],
    set(changes) {
      const changed = Object.keys(changes).filter((key) => values[key] !== changes[key]);
      if (!changed.length) return;
      Object.assign(values, changes);
      for (const { keys, act } of listeners) {
        if (!keys || keys.some((key) => changed.includes(key))) act(changed);
      }
    },
    on: (keys, act) => listeners.push({ keys, act }),
    get runData() { return RUNS[values.run]; },
  };
  return Object.defineProperties(store, Object.getOwnPropertyDescriptors(views));
}

const clamp = (value, last) => Math.min(last, Math.max(0, value));

function drawTitle() {
  document.getElementById("title").append(...RUNS.flatMap((run, i) => [
    i ? el("span", { class: "versus" }, " and ") : "", runLabel(run)]));
}

// The page's own fields, then what every page has: light and dark, printing, [ and ] for the layer.
function fillBar(fields) {
  document.getElementById("bar").append(...fields.filter(Boolean),
    el("span", { class: "push" },
      el("button", { type: "button", name: "theme", onclick: () => look.toggle() }, "Light / dark"),
      el("button", { type: "button", name: "print", onclick: async () => { await drawAll(); print(); } }, "Print")));
  addEventListener("keydown", (event) => {
    if (event.target.closest("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "[") selectLayer(store.get("layer") - 1);
    if (event.key === "]") selectLayer(store.get("layer") + 1);
  });
}

function drawFoot(text) {
  document.getElementById("foot").append(text);
  plotlyComplete.then(() => document.getElementById("foot").append(`Drawn with Plotly ${Plotly.version}.`));
}
