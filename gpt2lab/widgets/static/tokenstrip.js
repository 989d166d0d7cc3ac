import { chip, choose, element, follow, isolated, paint, panel, select, selected, sentence, shown, sidesShown, signed, t } from "./lib.js";

// Tokens coloured by a value. Click, or the arrow keys, select one.

const MEASURES = {
  nll: [t("Surprisal"), t("nats"), (side) => side.surprisal.nll],
  rank: [t("Rank (logarithm)"), t("log₁₀ rank"), (side) => side.surprisal.rank.map((rank) => rank === null ? null : Math.log10(rank))],
  entropy: [t("Entropy"), t("nats"), (side) => side.surprisal.entropy],
};

export function tokenstripView({ model, el }) {
  const { panel: frame, note, body } = panel(t("Text"), "tokenstrip");
  const strip = element("div", { className: "g-strip", role: "listbox", "aria-label": t("Tokens of the text"), "aria-orientation": "horizontal" });
  const legend = element("div", { className: "g-legend g-soft" }), about = element("div", { className: "g-soft g-about", role: "status" });
  const limits = element("input", { type: "text", value: "10, 100, 1000", "aria-label": t("Limits of ranks"), size: 14 });
  const counts = element("div", { className: "g-scroll" });
  const ranks = element("details", { ontoggle: () => count() }, element("summary", {}, t("Ranks")), limits, counts);
  limits.onchange = () => count();
  body.append(strip, legend, about, ranks);
  el.append(frame);
  let measure = "nll", buttons = [], values = [], built = null;

  const sideOf = () => { const { sides } = model.get("data"), { side } = selected(model); return sides[side === 1 ? 1 : 0]; };
  /** The colours' values: of a side or, of two that read the same tokens, the second less the first. */
  const valuesNow = () => {
    const { sides } = model.get("data"), { side } = selected(model), read = MEASURES[measure][2];
    if (side < 2) return read(sides[side]);
    const [first, second] = sides.map(read);
    return first.map((value, i) => value === null || second[i] === undefined || second[i] === null ? null : second[i] - value);
  };

  function rebuild() {
    const { tokens, surprisal } = sideOf(), offered = Object.entries(MEASURES).filter(([key]) => surprisal[key]), key = JSON.stringify([tokens, offered]);
    if (built !== key) build(tokens, offered.map(([key, [title]]) => [key, title]));
    built = key;
    colourAll();
  }

  function build(tokens, offered) {
    note.replaceChildren(choose(t("Colour by"), offered, measure, (to) => { measure = to; colourAll(); draw(); }));
    buttons = tokens.map((token, i) => element("button", {
      className: "g-token", role: "option", tabIndex: -1, type: "button", onclick: () => select(model, { position: i, token: null }) }, token));
    strip.replaceChildren(...buttons);
  }

  function colourAll() {
    values = valuesNow();
    const [title, unit] = MEASURES[measure], difference = selected(model).side === 2, full = difference ? null : sideOf().full?.[measure];
    const most = full ?? Math.max(1e-9, ...values.filter((value) => value !== null).map(Math.abs));
    buttons.forEach((button, i) => {
      const value = values[i] ?? null, text = value === null ? t("no prediction") : `${difference ? signed(value) : shown(value)} ${unit}`;
      paint(button, value === null ? null : value / most);
      button.title = t("{name}: {value}", { name: i, value: text });
      button.setAttribute("aria-label", `${isolated(buttons[i].textContent)}, ${text}`);
    });
    legend.hidden = values.every((value) => value === null);
    const scale = element("i", { className: difference ? "g-scale g-both" : "g-scale", "aria-hidden": "true" });
    legend.replaceChildren(`${title} ${difference ? signed(-most, 1) : "0"} `, scale, ` ${difference ? signed(most, 1) : shown(most, 1)} ${unit}`);
  }

  /** How many tokens had which rank, as a table with bars; of each side. */
  function count() {
    if (!ranks.open) return;
    const edges = [...new Set(limits.value.split(",").map(Number).filter((edge) => Number.isInteger(edge) && edge > 0))].sort((a, b) => a - b);
    limits.value = edges.join(", ");
    const rows = [...edges, Infinity].map((high, i) => [(edges[i - 1] ?? 0) + 1, high]), { sides } = model.get("data");
    const name = ([low, high]) => high === Infinity ? t("{low} or more", { low: low.toLocaleString("en-US") }) : low === high ? `${low}`
      : t("{low} to {high}", { low: low.toLocaleString("en-US"), high: high.toLocaleString("en-US") });
    const counted = sides.map((of) => rows.map(([low, high]) => of.surprisal.rank.filter((rank) => rank !== null && rank >= low && rank <= high).length));
    counts.replaceChildren(element("table", { className: "g-ranks" },
      element("tr", {}, element("th", {}, t("Rank")), ...sides.map((of) => element("th", {}, of.name))),
      ...rows.map((row, i) => element("tr", {}, element("th", { scope: "row" }, name(row)), ...sides.map((of, s) =>
        element("td", {}, element("i", { style: `width: ${120 * counted[s][i] / Math.max(1, of.tokens.length - 1)}px` }), String(counted[s][i])))))));
  }

  let side = null;
  function draw() {
    const { position, side: now } = selected(model), of = sideOf();
    if (side !== now) { side = now; rebuild(); }
    buttons.forEach((button, i) => { button.setAttribute("aria-selected", i === position); button.tabIndex = i === position ? 0 : -1; });
    const next = position + 1, cost = ({ surprisal: { nll, rank } }) => t("{nats} nats, rank {rank}", { nats: shown(nll[next], 2), rank: rank[next].toLocaleString("en-US") });
    const sidesNow = sidesShown(model).filter(({ tokens }) => next < tokens.length);
    const costs = sidesNow.map((each) => now === 2 ? `${isolated(each.name)} ${cost(each)}` : cost(each)).join(t("; "));
    const here = { position, token: chip(of.tokens[position]) };
    about.replaceChildren(of.note ? `${of.note} ` : "", ...(next < of.tokens.length
      ? sentence("Token {position} {token}. Next comes {next}: {costs}.", { ...here, next: chip(of.tokens[next]), costs })
      : sentence("Token {position} {token}. The text ends here.", here)));
  }

  strip.onkeydown = (event) => {
    const T = buttons.length, { position } = selected(model);
    const to = { ArrowLeft: position - 1, ArrowRight: position + 1, Home: 0, End: T - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const at = Math.max(0, Math.min(T - 1, to));
    select(model, { position: at, token: null });
    buttons[at].focus();
  };
  return follow(model, () => { side = null; count(); }, draw);
}
