// The page's data: a description in JSON, and compressed chunks that are decoded when first needed.
const DATA = JSON.parse(document.getElementById("data").textContent);

const chunkPromises = new Map();
const chunksComplete = new Promise((done) =>
  document.addEventListener("chunks-complete", done, { once: true }));

async function gunzip(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

function chunk(index) {
  if (!chunkPromises.has(index)) {
    chunkPromises.set(index, (async () => {
      const id = `chunk-${index}`;
      // The browser may still be reading the page when the first figure wants its data.
      if (!document.getElementById(id)?.nextSibling) await chunksComplete;
      return gunzip(fromBase64(document.getElementById(id).textContent));
    })());
  }
  return chunkPromises.get(index);
}

// Four planes of bytes, least significant first, back to 32-bit words.
function words(bytes, begin, count) {
  const out = new Uint32Array(count);
  for (let plane = 0; plane < 4; plane++) {
    const from = begin + plane * count;
    for (let i = 0; i < count; i++) out[i] |= bytes[from + i] << (8 * plane);
  }
  return out;
}

const floats = (bytes, begin, count) => new Float32Array(words(bytes, begin, count).buffer);
