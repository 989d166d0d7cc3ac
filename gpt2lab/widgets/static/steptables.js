import { ask, canAsk, cell, choose, download, element, t } from "./lib.js";
import { dotted, stepsOf } from "./steps.js";

// The tokens of a text as a table and as files; and statistics of the texts that are shown.

const COLUMNS = ["token", "id", "probability", "rank", "entropy", "sampled_probability", "removed", "window_shifted"];
const TOP = 5;  // predictions in a row

const button = (text, onclick) => element("button", { className: "g-button", type: "button", onclick }, text);
const row = (tag, cells, rest = {}) => element("tr", {}, ...cells.map((value) => element(tag, rest, value)));

export function tokenTable(page) {
  const place = element("div", { className: "g-scroll g-steps" });
  const save = element("div", { className: "g-bar" }, button(t("Save CSV"), () => download(csv(page.text()), "generation.csv", "text/csv")),
    button(t("Save JSON"), () => download(json(page.text()), "generation.json", "application/json")));
  const node = element("details", { ontoggle: () => { drawn = null; draw(); } }, element("summary", {}, t("Token table")), save, place);
  let drawn = null;
  function draw() {
    const text = page.text(), steps = text && stepsOf(text);
    if (!node.open || !text || drawn === steps) return;
    drawn = steps;
    const name = (token) => element("span", { className: "g-token" }, dotted(token));
    place.replaceChildren(element("table", {}, element("thead", {}, row("th", ["", t("token"), t("probability"), t("rank"), t("entropy, nats"), t("under the sampler"), t("top {n} predictions", { n: TOP })], { scope: "col" })),
      element("tbody", {}, ...steps.map((step, i) => element("tr", {}, element("td", {}, `${i}${step.shifted ? " ⋮" : ""}`), element("th", { scope: "row" }, name(step.token)),
        ...[step.probability.toFixed(4), step.rank.toLocaleString("en-US"), step.entropy.toFixed(3), step.drawn.toFixed(4)].map((value) => element("td", {}, value)),
        element("td", { className: "g-tops" }, ...step.alternatives.slice(0, TOP).flatMap((other) => [name(other.token), ` ${other.probability.toFixed(3)} `])))))));
  }
  return { node, draw };
}

function csv(text) {
  const lines = stepsOf(text).map((step) => [step.token, step.id, step.probability, step.rank, step.entropy, step.drawn, step.removed, Number(step.shifted)]);
  return [COLUMNS, ...lines].map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
}

function json(text) {
  const { steps, number, parent, kept, spaced, begin, V, ...about } = text;
  return JSON.stringify({ ...about, steps: stepsOf(text) }, null, 1);
}

// ---- statistics ----------------------------------------------------------------------------------------------

const shown = (value, digits) => value === null || value === undefined ? "–" : value.toFixed(digits);
const ROWS = [  // [name, what it is, of a column → text]
  [t("Tokens"), "", ({ tokens }) => String(tokens)],
  ...[1, 2, 3].map((n) => [t("Distinct-{n}", { n }), t("different runs of {n} tokens over all of them; 1: none comes twice", { n }), ({ distinct }) => shown(distinct[n - 1], 3)]),
  [t("Repeated"), t("share of runs of 4 tokens that occurred before"), ({ repeated }) => shown(repeated, 3)],
  [t("Longest copy"), t("longest part that occurs in the training text word for word"), ({ copied, copy }) => copied === null ? "–" : t("{n} tokens: {text}", { n: copied, text: JSON.stringify(copy) })],
];

export function statistics(page) {
  const out = element("div", { className: "g-scroll" }), said = element("div", { className: "g-soft", role: "status" }), choice = element("span");
  const go = button(t("Compute"), compute);
  const node = element("details", {}, element("summary", {}, t("Text statistics")), element("div", { className: "g-bar" }, element("label", { className: "g-bar g-soft" }, t("Copied from the training split of"), choice), go), said, out);
  let select = null, of = null;

  function draw() {
    const { corpora = [] } = page.model.get("data");
    node.hidden = !canAsk(page.model);
    if (!select && corpora.length) choice.append(select = choose(t("Data set"), corpora.map((name) => [name, name]), corpora[0], () => {}));
    go.disabled = page.busy();
    if (of && of !== String(page.shown())) { of = null; out.replaceChildren(); said.textContent = ""; }
  }

  async function compute() {
    const texts = [...page.shown()];
    said.textContent = t("Computing …");
    try {
      const { columns } = await ask(page.model, "measure", { texts, data: select.value });
      of = String(texts);
      out.replaceChildren(table(columns));
      said.textContent = "";
      draw();
    } catch (error) { said.textContent = error.message; }
  }
  return { node, draw };
}

function table(columns) {
  const labs = Object.keys(columns[0].perplexity);
  const rows = [...ROWS, ...labs.map((name) => [t("Perplexity under {name}", { name }), t("per token of the continuation; lower is more probable"), ({ perplexity }) => shown(perplexity[name], 2)])];
  return element("table", { className: "g-statistics" }, row("th", ["", ...columns.map(({ number, name }) => t("{name}: {value}", { name: number, value: name }))], { scope: "col" }),
    ...rows.map(([name, help, value]) => element("tr", { title: help }, element("th", { scope: "row" }, name, help ? element("small", { className: "g-soft" }, help) : null), ...columns.map((column) => element("td", {}, value(column))))));
}
