import { element, isolated, listed, panel, sentences, t } from "./lib.js";

// A text as it is trained on: counts of its splits, the lengths of its articles, and the tokens of its first block.

const COLUMNS = () => [["articles", t("Articles")], ["characters", t("Characters")], ["tokens", t("Tokens")], ["blocks", t("Blocks")]];
const SPLITS = () => ({ train: t("Train"), validation: t("Validation"), test: t("Test") });
const whole = (value) => value.toLocaleString("en-US");

export function previewView({ model, el }) {
  const { panel: frame, note, body } = panel(t("Text preview"), "preview");
  el.append(frame);

  function draw() {
    const data = model.get("data") ?? {};
    note.textContent = data.splits ? t("{text} in blocks of {size} tokens", { text: isolated(data.name), size: whole(data.block_size) }) : "";
    if (!data.splits) return body.replaceChildren(element("p", { className: "g-soft", role: "status" }, data.message ?? t("Choose a text to see what the model is trained on.")));
    body.replaceChildren(counts(data), ...leftOut(data), histogram(data), firstBlock(data));
  }
  model.on("change:data", draw);
  draw();
  return () => model.off("change:data", draw);
}

function counts({ splits }) {
  const names = SPLITS(), columns = COLUMNS();
  return element("div", { className: "g-scroll" }, element("table", { "aria-label": t("Splits of the text") },
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, t("Split")), ...columns.map(([, title]) => element("th", { scope: "col" }, title)))),
    element("tbody", {}, ...splits.map((split) => element("tr", {}, element("th", { scope: "row" }, names[split.split]), ...columns.map(([key]) => element("td", {}, whole(split[key]))))))));
}

/** What training does not see, a line each. */
function leftOut({ splits, note, end_token }) {
  const names = SPLITS(), lines = note ? [t("Read: {what}.", { what: note })] : [];
  const sum = (key) => splits.reduce((total, split) => total + split[key], 0), per = (key) => listed(splits.filter((split) => split[key]).map((split) => `${names[split.split]} ${whole(split[key])}`));
  if (sum("blank lines left out")) lines.push(t("Blank lines left out: {counts}.", { counts: per("blank lines left out") }));
  for (const split of splits.filter(({ blocks }) => !blocks))
    lines.push(t("{split}: {tokens} tokens fill no block; give more text or a smaller block.", { split: names[split.split], tokens: whole(split["tokens dropped"]) }));
  if (splits.some((split) => split.blocks && split["tokens dropped"])) lines.push(t("A single token left over is dropped: it would predict nothing."));
  if (sum("padding")) lines.push(t("The last block is filled up with padding, which is neither read nor scored: {counts}.", { counts: per("padding") }));
  lines.push(end_token ? t("Each article ends with {token}.", { token: end_token }) : t("Articles follow each other without an end token."));
  return [element("p", { className: "g-soft g-lines" }, sentences(lines))];
}

function histogram({ histogram: { edges, counts }, splits }) {
  const names = SPLITS(), bins = edges.slice(1).map((end, i) => ({ start: edges[i], end: end - 1, parts: splits.map(({ split }) => [split, counts[split][i]]) }));
  const total = ({ parts }) => parts.reduce((sum, [, n]) => sum + n, 0), most = Math.max(1, ...bins.map(total));
  const name = ({ start, end, parts }) => t("{start} to {end} tokens: {counts}", { start: whole(start), end: whole(end), counts: listed(parts.filter(([, n]) => n).map(([split, n]) => `${names[split]} ${whole(n)}`)) || "0" });
  const bars = bins.map((bin) => element("div", { className: "g-bin", title: name(bin) }, ...bin.parts.map(([split, n]) => element("i", { className: `g-${split}`, style: `height: ${100 * n / most}%` }))));
  const label = t("Articles by tokens; at most {most} in a bar", { most: whole(most) });
  return element("div", { className: "g-lengths" }, element("div", { className: "g-bar g-soft" }, t("Tokens per article"), ...splits.map(({ split }) => element("span", {}, element("i", { className: `g-key g-${split}` }), names[split]))),
    element("div", { className: "g-bins", role: "img", "aria-label": label }, ...bars),
    element("div", { className: "g-ends g-soft", "aria-hidden": "true" }, ...[edges[0], edges[edges.length >> 1], edges.at(-1) - 1].map((edge) => element("span", {}, whole(edge)))),
    element("details", {}, element("summary", {}, t("Table")), element("div", { className: "g-scroll g-short" }, element("table", {}, element("tbody", {}, ...bins.filter(total).map((bin) => element("tr", {},
      element("th", { scope: "row" }, `${whole(bin.start)}–${whole(bin.end)}`), ...bin.parts.map(([split, n]) => element("td", {}, `${names[split]} ${whole(n)}`)))))))));
}

function firstBlock({ first_block: { tokens, ids } }) {
  const words = tokens.flatMap((token, i) => [element("span", { className: "g-token", title: t("Token {index}, id {id}", { index: i, id: ids[i] }) }, token), ...(token.endsWith("⏎") ? [element("br")] : [])]);
  return element("div", { className: "g-first" }, element("div", { className: "g-soft" }, t("First training block, token by token ({count} shown)", { count: whole(tokens.length) })),
    element("div", { className: "g-scroll g-words", tabIndex: 0, role: "region", "aria-label": t("First training block") }, ...words));
}
