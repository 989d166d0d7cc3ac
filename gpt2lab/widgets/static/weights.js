import { ask, canAsk, inflate, opacity } from "./lib.js";

// Attention weights as widgets/attention.py packs them. A triangle holds those of a head, row after row, up to each token itself.

export const start = (row) => row * (row + 1) / 2;  // where a row begins

const stores = new WeakMap();

/** The weights of a side, unpacked once for all views. */
export function weightsOf(side) {
  if (!stores.has(side.attention)) stores.set(side.attention, new Weights(side));
  return stores.get(side.attention);
}

class Weights {
  constructor(side) {
    Object.assign(this, { side, T: side.tokens.length, bound: 0, whole: false, layers: new Map(), decoded: new Map(), pairs: new Map() });
    this.ready = this.add(side.attention);
  }

  /** Take a part that Python packed: weights of layers, q and k of heads, or both; `codes`: weights that are unpacked already. */
  async add({ layers = [], levels, linear = false, bound, weights, codes, places = [], vectors }) {
    const { T, side } = this, size = start(T) * side.heads, bytes = codes ?? (weights && await inflate(weights));
    layers.forEach((layer, i) => this.layers.set(layer, { levels, linear, codes: bytes.subarray(i * size, (i + 1) * size) }));
    this.bound = Math.max(this.bound, bound ?? 0);
    if (places.length) {
      const floats = new Float32Array((await inflate(vectors)).buffer), each = 2 * T * side.attention.width;
      places.forEach(([layer, head], i) => this.pairs.set(`${layer}.${head}`, floats.subarray(i * each, (i + 1) * each)));
    }
    this.whole = true;
  }

  /** The triangle of a head; every row sums to 1, or, of linear codes, as closely as they do. Without the first token, every other row does so too. */
  triangle(layer, head, first = false) {
    const key = `${layer}.${head}`, { T } = this;
    if (!this.decoded.has(key)) {
      const { codes, levels, linear } = this.layers.get(layer), at = head * start(T), triangle = new Float32Array(start(T));
      const squares = Float64Array.from({ length: 256 }, (_, code) => linear ? code / levels : (code / levels) ** 2);
      for (let i = 0; i < T; i++) {
        const from = start(i);
        let sum = 0;
        for (let p = from; p <= from + i; p++) sum += triangle[p] = squares[codes[at + p]];
        if (!linear) for (let p = from; p <= from + i; p++) triangle[p] /= sum;
      }
      this.decoded.set(key, triangle);
    }
    const triangle = this.decoded.get(key);
    if (!first) return triangle;
    const kept = new Float32Array(start(T));
    for (let i = 1; i < T; i++) {
      const from = start(i), rest = 1 - triangle[from];
      if (rest > 1e-9) for (let p = from + 1; p <= from + i; p++) kept[p] = triangle[p] / rest;
    }
    return kept;
  }

  /** q and k of a head, {q, k, K, scaling, rule}, each (T, K); null where they are not here. */
  vectors(layer, head) {
    const values = this.pairs.get(`${layer}.${head}`), { width: K, scaling, rule } = this.side.attention;
    return values ? { q: values.subarray(0, this.T * K), k: values.subarray(this.T * K), K, scaling: scaling[layer], rule } : null;
  }
}

/** The row of one token, from q and k in double precision: {scores, weights}. */
export function exactRow({ q, k, K, scaling }, i) {
  const scores = [];
  for (let j = 0; j <= i; j++) {
    let dot = 0;
    for (let d = 0; d < K; d++) dot += q[i * K + d] * k[j * K + d];
    scores.push(dot * scaling);
  }
  const most = Math.max(...scores), powers = scores.map((score) => Math.exp(score - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return { scores, weights: powers.map((power) => power / sum) };
}

/** Whether the second side less the first has a meaning: as many tokens, layers and heads. */
export const comparable = ([a, b]) => Boolean(b && a.attention && b.attention) && a.tokens.length === b.tokens.length && a.layers === b.layers && a.heads === b.heads;

/** The triangle of a head of one side ([store]), or of two the second less the first. */
export function matrixOf(shown, layer, head, first) {
  const [base, other] = shown.map((store) => store.triangle(layer, head, first));
  return other ? base.map((weight, p) => other[p] - weight) : base;
}

export function largest(matrix) {
  let most = 0;
  for (let p = 0; p < matrix.length; p++) most = Math.max(most, Math.abs(matrix[p]));
  return most;
}

const asked = new WeakMap();  // by the first side's packed weights: what Python was asked for
export const arrivals = new EventTarget();  // "arrived": there is more to draw

/** Ask Python, once, for the weights of a layer ("attention"), or for q and k of a head ("qk"). Rejects with a sentence. */
export async function fetchPart(model, kind, options) {
  const { sides } = model.get("data"), key = JSON.stringify([kind, options]), before = asked.get(sides[0].attention) ?? new Set();
  if (!canAsk(model) || before.has(key)) return;
  asked.set(sides[0].attention, before.add(key));
  try {
    const answers = (await ask(model, kind, options)).sides;
    await Promise.all(answers.map((answer, i) => answer.error ? null : weightsOf(sides[i]).add(answer)));
    arrivals.dispatchEvent(new Event("arrived"));
    if (answers.every((answer) => answer.error)) throw new Error(answers[0].error);  // a smaller model may lack what another has
  } catch (error) {
    before.delete(key);
    throw error;
  }
}

/** How strong the colour of a value is, −1 to 1. */
export function share(value, most, root) {
  const size = Math.min(1, Math.abs(value) / most);
  return Math.sign(value) * (root ? Math.sqrt(size) : size);
}

/** A picture of a triangle: a pixel per weight, or for a block of them; clear ahead, and where a weight is less than `least`.
 *  hot, cold: [r, g, b] of what is above and below 0. */
export function picture(matrix, T, side, most, { hot, cold, root = true, least = 0 }) {
  const image = new ImageData(side, side), pixels = new Uint32Array(image.data.buffer), step = T / side;
  const of = ([r, g, b]) => Uint32Array.from({ length: 256 }, (_, i) => (Math.round(255 * opacity(i / 255)) << 24 | b << 16 | g << 8 | r) >>> 0);
  const above = of(hot), below = of(cold);
  for (let y = 0; y < side; y++) for (let x = 0; x <= y; x++) {
    let value = 0;
    if (step === 1) value = matrix[start(y) + x];
    else {  // the weight farthest from 0 in the block: a mean would hide a lone one
      for (let i = Math.floor(y * step); i < (y + 1) * step; i++)
        for (let j = Math.floor(x * step); j < (x + 1) * step && j <= i; j++)
          if (Math.abs(matrix[start(i) + j]) > Math.abs(value)) value = matrix[start(i) + j];
    }
    if (Math.abs(value) < least) continue;
    const strength = share(value, most, root);
    pixels[y * side + x] = (strength < 0 ? below : above)[Math.round(255 * Math.abs(strength))];
  }
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = side;
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}
