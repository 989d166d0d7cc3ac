import { chip, choose, element, follow, isolated, panel, renew, roving, select, selected, sentence, sidesShown, t } from "./lib.js";

// Bars of the most probable next tokens; of two models side by side. A click selects a token, a second one none.

const COUNTS = [5, 8, 10, 20, 50];
const ROW = 25;  // pixels; there is room for the token that follows and for the other tokens

export function predictionsView({ model, el }) {
  const { panel: frame, note, body } = panel(t("Next token"), "predictions");
  const after = element("span"), lists = element("div", { className: "g-columns" });
  body.append(lists);
  el.append(frame);
  roving(lists);
  let count = null;

  function rebuild() {
    const most = Math.max(...model.get("data").sides.map((of) => of.next[0].length));
    const counts = [...COUNTS.filter((n) => n < most), most];
    if (!counts.includes(count)) count = counts.findLast((n) => n <= 10) ?? most;
    note.replaceChildren(after, ...(counts.length > 1 ? [" ", choose(t("Number of tokens"), counts.map((n) => [n, t("Top {count}", { count: n })]), count, (to) => { count = Number(to); draw(); })] : []));
  }

  function draw() {
    const shown = sidesShown(model), { position } = selected(model), [first] = shown;
    after.replaceChildren(...sentence("after {token}", { token: chip(first.tokens[Math.min(position, first.tokens.length - 1)]) }));
    const found = shown.map((of) => rowsOf(of, Math.min(position, of.tokens.length - 1), count));
    const most = Math.max(...found.flat().map(({ probability }) => probability));
    renew(lists, found.map((rows, i) => element("div", { style: `min-height: ${ROW * (count + 2 + (shown.length > 1))}px` },
      shown.length > 1 ? element("div", { className: "g-soft g-name" }, shown[i].name) : null,
      element("ul", { "aria-label": t("Next token, by {model}", { model: shown[i].name }) }, ...rows.map((row) => element("li", {}, bar(model, row, most)))),
      element("div", { className: "g-choice g-soft" }, element("span", {}, t("other tokens")), element("span", { className: "g-value" }, percent(Math.max(0, 1 - rows.reduce((sum, { probability }) => sum + probability, 0))))))));
  }
  return follow(model, rebuild, draw);
}

/** The top predictions after a position, and the token that follows in the text where it is not among them. */
function rowsOf(of, position, count) {
  const next = of.ids[position + 1], rows = of.next[position].slice(0, count).map(([word, token, probability], i) => ({ word, token, probability, rank: i + 1, follows: token === next }));
  if (next === undefined || rows.some(({ follows }) => follows)) return rows;
  const { nll, rank } = of.surprisal;
  return [...rows, { word: of.tokens[position + 1], token: next, probability: nll[position + 1] === null ? 0 : Math.exp(-nll[position + 1]), rank: rank[position + 1], follows: true }];
}

function bar(model, { word, token, probability, rank, follows }, most) {
  const pressed = selected(model).token === token, share = 100 * probability / Math.max(most, 1e-9);
  const values = { token: isolated(word), percent: (100 * probability).toPrecision(3), rank: rank.toLocaleString("en-US") };
  return element("button", {
    className: follows ? "g-choice g-follows" : "g-choice", type: "button", "aria-pressed": String(pressed), onclick: () => select(model, { token: pressed ? null : token }),
    title: follows ? t("{token}: {percent} %, rank {rank}; the text continues with it", values) : t("{token}: {percent} %, rank {rank}", values) },
  element("span", { className: "g-token" }, word),
  element("span", { className: "g-track" }, element("i", { style: `width: ${share.toFixed(2)}%` }), follows ? element("small", { style: share > 55 ? `right: ${(100 - share).toFixed(2)}%; color: var(--g-ink)` : `left: ${share.toFixed(2)}%` }, t("in the text")) : null),
  element("span", { className: "g-value" }, percent(probability)));
}

const percent = (p) => p > 0 && p < 0.0005 ? p < 5e-6 ? "< 0.001 %" : `${(100 * p).toFixed(3)} %` : `${(100 * p).toFixed(1)} %`;
