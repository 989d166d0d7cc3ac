import { t } from "./lib.js";

// The tokens of a text as the views read them.

const read = new Map();  // by number: of a text that grows, tokens that were read stay as they are

/** [{ token, id, probability, rank, entropy, drawn, removed, shifted, alternatives: [{ token, id, probability, drawn }] }] */
export function stepsOf(text) {
  const before = read.get(text.number);
  if (before?.source === text.steps) return before.steps;
  const grown = before && text.steps.startsWith(before.source);
  const lines = text.steps.slice(grown ? before.source.length : 0).split("\n").filter(Boolean);
  const steps = [...(grown ? before.steps : []), ...lines.map((line) => stepOf(JSON.parse(line)))];
  read.set(text.number, { source: text.steps, steps });
  return steps;
}

function stepOf([token, id, probability, rank, entropy, drawn, removed, shifted, others]) {
  const alternatives = others.map(([word, other, own, sampled]) => ({ token: word, id: other, probability: own, drawn: sampled }));
  return { token, id, probability, rank, entropy, drawn, removed, shifted: Boolean(shifted), alternatives };
}

/** A share as a percentage: three digits of small ones. */
export const percent = (p) => p > 0 && p < 0.0995 ? `${p < 1e-5 ? (100 * p).toExponential(1) : (100 * p).toPrecision(p < 0.000995 ? 2 : 3)} %` : `${(100 * p).toFixed(1)} %`;

/** The numbers of a token, with their units. */
export function tokenTitle(text, step, i) {
  const [rank, V] = [step.rank, text.V].map((n) => n.toLocaleString("en-US"));
  const values = { i, p: percent(step.probability), rank, V, entropy: step.entropy.toFixed(3) };
  if (!step.shifted) return t("token {i}: probability {p}, rank {rank} of {V}, entropy {entropy} nats", values);
  return t("token {i}: probability {p}, rank {rank} of {V}, entropy {entropy} nats. The window moved here: the model re-read only the last tokens.", values);
}

/** A token with its spaces visible. */
export const dotted = (token) => token.replaceAll(" ", "·");
