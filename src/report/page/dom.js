// Elements, controls and downloads. Text always goes in as text: names come from files.
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";
function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// A labelled select. options: [[value, text], ...]; its node's `fill` replaces them.
function select(label, name, options, value, act) {
  const control = el("select", { name, onchange: () => act(control.value) });
  const field = el("label", { class: "field" }, label, control);
  field.fill = (list, chosen) => {
    control.replaceChildren(...list.map(([key, text]) => el("option", { value: key }, text)));
    control.value = list.some(([key]) => key === String(chosen)) ? String(chosen) : list[0]?.[0] ?? "";
  };
  field.fill(options, value);
  field.choice = control;
  return field;
}

function save(name, blob) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const fileStem = (text) => text.toLowerCase().replace(/[^a-z0-9@]+/g, "-").replace(/^-|-$/g, "");

function csvText(rows) {
  const cell = (value) => {
    const text = value === null || value === undefined || Number.isNaN(value) ? "" : String(value);
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";
}

function speak(text) {
  document.getElementById("live").textContent = text;
}

async function svgToPng(text, width, height, scale) {
  const image = new Image();
  const url = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
  try {
    await new Promise((done, failed) => {
      image.onload = done;
      image.onerror = () => failed(new Error("the figure could not be drawn as an image"));
      image.src = url;
    });
    const canvas = el("canvas", { width: width * scale, height: height * scale });
    canvas.getContext("2d").drawImage(image, 0, 0, width * scale, height * scale);
    return await new Promise((done) => canvas.toBlob(done, "image/png"));
  } finally {
    URL.revokeObjectURL(url);
  }
}

// "Q_i K_i^T" with its indices and exponents set as such.
function math(text) {
  return text.split(/([_^](?:\{[^}]*\}|.))/).map((part) => {
    if (!/^[_^]./.test(part)) return part;
    return el(part[0] === "_" ? "sub" : "sup", {}, part.slice(1).replace(/[{}]/g, ""));
  });
}

function terms(rows) {
  return el("dl", { class: "terms" }, rows.flatMap(([name, equation, text]) => [
    el("dt", {}, name, el("span", { class: "eq" }, math(equation))),
    el("dd", {}, text),
  ]));
}
