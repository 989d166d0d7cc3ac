import { choose, element, follow, heat, isolated, panel, select, selected, shown, signed } from "./lib.js";

// Tokens coloured by a value. Click, or the arrow keys, select one.

const MEASURES = {
  nll: ["Surprisal", "nats", (side) => side.surprisal.nll],
  rank: ["Rank (logarithm)", "log₁₀ rank", (side) => side.surprisal.rank.map((rank) => rank === null ? null : Math.log10(rank))],
  entropy: ["Entropy", "nats", (side) => side.surprisal.entropy],
};

export function tokenstripView({ model, el }) {
  const { panel: frame, note, body } = panel("Text", "tokenstrip");
  const strip = element("div", { className: "g-strip", role: "listbox", "aria-label": "Tokens of the text", "aria-orientation": "horizontal" });
  const legend = element("div", { className: "g-legend g-soft" }), about = element("div", { className: "g-soft g-about", role: "status" });
  body.append(strip, legend, about);
  el.append(frame);
  let measure = "nll", buttons = [], values = [];
  note.append(choose("Colour by", Object.entries(MEASURES).map(([key, [title]]) => [key, title]), measure, (to) => { measure = to; paint(); draw(); }));

  const sideOf = () => { const { sides } = model.get("data"), { side } = selected(model); return sides[side === 1 ? 1 : 0]; };
  /** The colours' values: of a side or, of two that read the same tokens, the second less the first. */
  const valuesNow = () => {
    const { sides } = model.get("data"), { side } = selected(model), read = MEASURES[measure][2];
    if (side < 2) return read(sides[side]);
    const [first, second] = sides.map(read);
    return first.map((value, i) => value === null || second[i] === undefined || second[i] === null ? null : second[i] - value);
  };

  function rebuild() {
    buttons = sideOf().tokens.map((token, i) => element("button", {
      className: "g-token", role: "option", tabIndex: -1, type: "button", onclick: () => select(model, { position: i, token: null }) }, token));
    strip.replaceChildren(...buttons);
    paint();
  }

  function paint() {
    values = valuesNow();
    const most = Math.max(1e-9, ...values.filter((value) => value !== null).map(Math.abs)), [title, unit] = MEASURES[measure];
    const difference = selected(model).side === 2;
    buttons.forEach((button, i) => {
      const value = values[i] ?? null, text = value === null ? "no prediction" : `${difference ? signed(value) : shown(value)} ${unit}`;
      button.style.background = value === null ? "var(--g-wash)" : heat(value / most);
      button.title = `${i}: ${text}`;
      button.setAttribute("aria-label", `${isolated(buttons[i].textContent)}, ${text}`);
    });
    const scale = element("i", { className: difference ? "g-scale g-both" : "g-scale", "aria-hidden": "true" });
    legend.replaceChildren(`${title} ${difference ? signed(-most, 1) : "0"} `, scale, ` ${difference ? signed(most, 1) : shown(most, 1)} ${unit}`);
  }

  let side = null;
  function draw() {
    const { position, side: now } = selected(model), of = sideOf();
    if (side !== now) { side = now; rebuild(); }
    buttons.forEach((button, i) => { button.setAttribute("aria-selected", i === position); button.tabIndex = i === position ? 0 : -1; });
    const { nll, rank } = of.surprisal, next = position + 1;
    const expected = next < of.tokens.length ? `Next comes ${isolated(of.tokens[next])}: ${shown(nll[next], 2)} nats, rank ${rank[next].toLocaleString("en-US")}.` : "The text ends here.";
    about.textContent = `${of.note ? `${of.note} ` : ""}Token ${position}, ${isolated(of.tokens[position])}. ${expected}`;
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
  return follow(model, () => { side = null; }, draw);
}
