import { ask, canAsk, chip, choose, element, floatsOf, follow, heat, isolated, panel, remember, renew, roving, select, selected, sentence, sentences, shown, sidesShown, signed, t } from "./lib.js";

// What adds to the logit of a token over another: heads and MLPs as bars or as a table; and, on request, the text's tokens.

const LARGEST = 12;  // bars
const METHODS = [["integrated-gradients", t("Integrated gradients")], ["gradient-x-input", t("Gradient × input")], ["leave-one-out", t("Leave one out")]];
const UNITS = [["token", t("Tokens"), t("token")], ["word", t("Words"), t("word")], ["sentence", t("Sentences"), t("sentence")]];  // of the text: name, several, one
const button = (text, onclick, rest = {}) => element("button", { className: "g-button", type: "button", onclick, ...rest }, text);
const say = (place, message) => { place.textContent = message; place.hidden = !message; };

export function contributionsView({ model, el }) {
  const { panel: frame, note, body } = panel(t("Contributions"), "contributions");
  const asks = element("div", { className: "g-bar" }), about = element("div", { className: "g-soft", role: "status" });
  const error = element("div", { className: "g-error", role: "alert", hidden: true }), parts = element("div", { className: "g-columns" });
  const text = element("div", { className: "g-input-tokens" });
  body.append(asks, about, error, parts, text);
  el.append(frame);
  roving(parts);
  let view = "bars", given = [], answers = new Map(), busy = false, chosen = null;
  note.append(choose(t("View"), [["bars", t("Largest parts")], ["grid", t("Layers and heads")]], view, (to) => { view = to; draw(); }));
  const field = (label, placeholder) => element("input", { type: "text", size: 12, maxLength: 100, placeholder, "aria-label": label, onchange: () => draw(), title: t("Text of one token, often with a space before, or #id") });
  const token = field(t("Token"), t("that follows")), against = field(t("Contrast with"), t("runner-up"));
  asks.append(...[[t("Token"), token], [t("Contrast with"), against]].map(([label, input]) => element("label", { className: "g-bar g-soft" }, label, input)));

  /** The prediction that is explained. */
  const question = () => {
    const { position, token: id } = selected(model);
    return { position, token: token.value || (id === null ? null : `#${id}`), against: against.value || null };
  };
  const why = whyView(model, text, question);

  function rebuild() {
    answers = new Map();
    given = model.get("data").sides.map(({ contributions: of }) => ({ ...of, values: floatsOf(of.values) }));
    asks.hidden = !canAsk(model);
    if (asks.hidden) token.value = against.value = "";
    why.rebuild();
  }

  /** What was sent, of a side at the selected position; null where another token was asked for. */
  function sent(i, { position, token: wanted, against: other }) {
    const of = given[i], at = Math.min(position, of.total.length - 1), N = of.values.length / of.total.length;
    if (other !== null || (wanted !== null && wanted !== `#${of.token_id[at]}`)) return null;
    return { token: of.token[at], against: of.against[at], total: of.total[at], values: of.values.subarray(at * N, (at + 1) * N) };
  }

  function draw() {
    const now = selected(model).token;
    if (now !== chosen && now !== null) token.value = "";  // what was selected last holds
    chosen = now;
    const asked = question();
    remember(model, { token: token.value || null, against: asked.against });
    const key = JSON.stringify(asked), { sides } = model.get("data");
    let found = sides.map((_, i) => sent(i, asked)), message = "";
    if (found.includes(null) && canAsk(model)) {
      const answer = answers.get(key);
      if (!answer) request(asked, key);
      found = answer?.sides ?? found;
      message = answer?.error ?? "";
    } else if (found.includes(null)) {
      message = t("Other tokens need Python: open the view in a notebook or in the app.");
      found = sides.map((_, i) => sent(i, { ...asked, token: null }));
    }
    const waiting = found.includes(null) && !message;
    const shownSides = sidesShown(model), indexes = shownSides.map((of) => sides.indexOf(of));
    parts.setAttribute("aria-busy", String(waiting));
    const errors = indexes.map((i) => found[i]?.error).filter(Boolean);
    say(error, message || sentences(errors));
    const drawn = indexes.filter((i) => found[i]?.values);
    if (drawn.length) {
      about.replaceChildren(...drawn.flatMap((i) => summary(sides[i], found[i], asked.position, drawn.length > 1)));
      renew(parts, drawn.map((i) => element("div", {}, drawn.length > 1 ? element("div", { className: "g-soft g-name" }, sides[i].name) : null,
        (view === "bars" ? bars : grid)(model, sides[i], found[i]))));
    } else if (waiting) about.textContent = t("Computing …");
    why.draw();
  }

  /** One request at a time; what is selected when it ends is drawn, or asked for. */
  async function request(asked, key) {
    if (busy) return;
    busy = true;
    const kept = answers;
    const answer = await ask(model, "contributions", asked).catch((reason) => ({ error: reason.message }));
    kept.set(key, answer);
    busy = false;
    draw();
  }
  return follow(model, rebuild, draw);
}

const summary = (of, found, position, named) => [element("div", {}, named ? t("{name}: ", { name: of.name }) : "", ...sentence("{token} over {against} after {last}: {logits}", {
  token: chip(found.token), against: chip(found.against), last: chip(of.tokens[Math.min(position, of.tokens.length - 1)]), logits: element("b", {}, t("{value} logits", { value: signed(found.total, 2) })) }))];

/** [layer, head] of a part; null for one that is no head. */
function headOf({ layers, heads }, part) {
  const layer = Math.floor((part - 2) / (heads + 2)), head = (part - 2) % (heads + 2);
  return part >= 2 && layer < layers && head < heads ? [layer, head] : null;
}

/** What a part is called, in the order that they are added up. */
function partName(side, part) {
  if (part < 2) return part ? t("position embedding") : t("token embedding");
  const layer = Math.floor((part - 2) / (side.heads + 2)), head = (part - 2) % (side.heads + 2);
  if (layer === side.layers) return t("last norm's bias");
  if (head < side.heads) return t("layer {layer}, head {head}", { layer, head });
  return head === side.heads ? t("layer {layer}, attention's bias", { layer }) : t("layer {layer}, MLP", { layer });
}

const headButton = (model, [layer, head], text, rest = {}) => {
  const now = selected(model);
  return element("button", { type: "button", className: "g-part", "aria-pressed": String(now.layer === layer && now.head === head), onclick: () => select(model, { layer, head }), ...rest }, text);
};

/** The largest parts as signed bars, the sum of all others, and the sum. */
function bars(model, side, { values, total }) {
  const order = [...values.keys()].sort((a, b) => Math.abs(values[b]) - Math.abs(values[a])), largest = order.slice(0, LARGEST), others = order.slice(LARGEST);
  const rest = others.reduce((sum, part) => sum + values[part], 0);
  const most = Math.max(1e-9, Math.abs(rest), ...largest.map((part) => Math.abs(values[part])));
  const row = (heading, value) => element("tr", { title: t("{value} logits", { value: signed(value, 4) }) }, element("th", { scope: "row" }, heading),
    element("td", { className: "g-signed" }, element("i", { style: `${value < 0 ? "right" : "left"}: 50%; width: ${(50 * Math.abs(value) / most).toFixed(2)}%; background: rgb(var(${value < 0 ? "--g-cold" : "--g-hot"}))` })),
    element("td", {}, signed(value, 3)));
  return element("table", { className: "g-parts", "aria-label": t("Largest parts in logits, {model}", { model: side.name }) }, element("tbody", {},
    ...largest.map((part) => { const head = headOf(side, part); return row(head ? headButton(model, head, partName(side, part)) : partName(side, part), values[part]); }),
    others.length ? row(t("{count} other parts", { count: others.length }), rest) : null,
    element("tr", { className: "g-total" }, element("th", { scope: "row" }, t("sum")), element("td"), element("td", {}, signed(total, 3)))));
}

/** Layers by heads, with each layer's MLP and the bias of its attention; what belongs to no layer below. */
function grid(model, side, { values, total }) {
  const { layers, heads } = side, most = values.reduce((a, b) => Math.max(a, Math.abs(b)), 1e-9), N = values.length;
  const cell = (part) => {
    const head = headOf(side, part), title = t("{part}: {value} logits", { part: partName(side, part), value: signed(values[part], 4) }), text = signed(values[part], 2);
    return element("td", { style: `background: ${heat(values[part] / most)}`, title }, head ? headButton(model, head, text, { "aria-label": title }) : text);
  };
  const rows = Array.from({ length: layers }, (_, layer) => element("tr", {}, element("th", { scope: "row" }, t("layer {layer}", { layer })),
    ...Array.from({ length: heads + 2 }, (_, i) => cell(2 + layer * (heads + 2) + (i < heads ? i : i === heads ? heads + 1 : heads)))));
  const columns = [...Array(heads).keys(), "MLP", t("bias")].map((name) => element("th", { scope: "col" }, String(name)));
  return element("div", {}, element("div", { className: "g-scroll" }, element("table", { className: "g-part-grid", "aria-label": t("Layers by heads in logits, {model}", { model: side.name }) },
    element("thead", {}, element("tr", {}, element("th", { scope: "row" }, t("head")), ...columns)), element("tbody", {}, ...rows.reverse()))),
  element("div", { className: "g-soft" }, [...[0, 1, N - 1].map((part) => `${partName(side, part)} ${signed(values[part], 2)}`), `${t("sum")} ${signed(total, 2)}`].join(" · ")));
}

// ---- input tokens --------------------------------------------------------------------------------------------

/** What each token, word or sentence of the text adds, once it was asked for: { rebuild, draw }. */
function whyView(model, place, question) {
  const options = { method: METHODS[0][0], unit: UNITS[0][0], curves: false };
  const change = (name) => (value) => { options[name] = value; draw(); };
  const compute = button(t("Compute"), () => request(false));
  const curves = element("input", { type: "checkbox", onchange: () => change("curves")(curves.checked) });
  const bar = element("div", { className: "g-bar" }, choose(t("Method"), METHODS, options.method, change("method")), choose(t("Unit"), UNITS, options.unit, change("unit")),
    element("label", { className: "g-bar g-soft" }, curves, t("Curves")), compute);
  const needs = element("div", { className: "g-soft" }, t("Needs Python: open the view in a notebook or in the app.")), error = element("div", { className: "g-error", role: "alert", hidden: true });
  const out = element("div", { className: "g-columns", "aria-live": "polite" });
  place.append(element("h3", {}, t("Input tokens")), bar, needs, error, out);
  let found = null, drawn = null, busy = false;

  async function request(precise) {
    const asked = { ...question(), ...options, precise }, data = model.get("data");
    busy = true;
    draw();
    const answer = await ask(model, "why", asked).catch((reason) => ({ error: reason.message }));
    busy = false;
    if (data === model.get("data")) {
      const errors = answer.error ?? sentences(answer.sides.map((each) => each.error).filter(Boolean));
      say(error, errors);
      if (!answer.error && answer.sides.some((each) => each.units)) found = { asked, sides: answer.sides };
    }
    draw();
  }

  function rebuild() {
    found = drawn = null;
    say(error, "");
    out.replaceChildren();
    [bar.hidden, needs.hidden] = [!canAsk(model), canAsk(model)];
  }

  function draw() {
    const { side, position } = selected(model), { sides } = model.get("data"), { precise, ...asked } = found?.asked ?? {};
    const current = found && JSON.stringify(asked) === JSON.stringify({ ...question(), ...options });
    const of = sides[side === 1 ? 1 : 0], elsewhere = found && asked.position !== position;
    compute.textContent = busy ? t("Computing …") : elsewhere ? t("Compute for {token}, position {position}", { token: isolated(of.tokens[position]), position }) : t("Compute");
    compute.disabled = busy || Boolean(current);
    if (!found || (drawn?.found === found && drawn.side === side)) return;
    drawn = { found, side };
    const indexes = sidesShown(model).map((each) => sides.indexOf(each)).filter((i) => found.sides[i].units);
    out.replaceChildren(...indexes.map((i) => explained(sides[i], found.sides[i], found.asked, indexes.length > 1, () => request(true))));
  }
  return { rebuild, draw };
}

/** Units coloured by what they add, the sums, a table of the numbers and the curves. */
function explained(side, found, { position, unit, precise }, named, refine) {
  const at = Math.min(position, side.tokens.length - 1), most = found.units.reduce((a, [, , nats]) => Math.max(a, Math.abs(nats)), 1e-9);
  const units = found.units.map(([first, end, nats]) => [side.tokens.slice(first, end).join(""), nats]);
  const error = found.completeness_error, [, , one] = UNITS.find(([name]) => name === unit);
  const what = { token: chip(found.token), last: chip(side.tokens[at]), position: at, nats: element("b", {}, t("{value} nats", { value: signed(found.total, 2) })) };
  return element("div", { className: "g-why" },
    element("div", { className: "g-soft" }, named ? t("{name}: ", { name: side.name }) : "", ...(found.against === null ? sentence("log-probability of {token} after {last}, position {position}: {nats}", what)
      : sentence("log-probability of {token} less that of {against} after {last}, position {position}: {nats}", { ...what, against: chip(found.against) })),
    error === null ? "" : t("; completeness error {percent} %", { percent: (100 * error).toFixed(1) })),
    error !== null && error > 0.01 && !precise ? element("div", { className: "g-bar g-soft" }, `${t("The parts do not add up to within 1 %.")} `, button(t("Refine"), refine, { title: t("Up to 192 points on the path; slower") })) : null,
    element("div", { className: "g-units" }, ...units.map(([text, nats]) => element("span", { className: "g-token", style: `background: ${heat(nats / most)}`, title: t("{value} nats", { value: signed(nats) }) }, text))),
    element("div", { className: "g-legend g-soft" }, signed(-most, 2), element("i", { className: "g-scale g-both", "aria-hidden": "true" }), t("{value} nats", { value: signed(most, 2) })),
    found.share.length ? curvesOf(found, unit) : null,
    element("details", {}, element("summary", {}, t("Table")), element("div", { className: "g-scroll g-values" }, element("table", {},
      element("tr", {}, ...[one, t("adds, nats")].map((name) => element("th", { scope: "col" }, name))),
      ...units.map(([text, nats]) => element("tr", {}, element("th", { scope: "row", className: "g-token" }, text), element("td", {}, signed(nats, 4))))))));
}

const drawing = (tag, attributes, ...children) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};

/** The prediction without the most important units (deletion), and with them alone (insertion). */
function curvesOf({ share, deletion, insertion }, unit) {
  const units = UNITS.find(([name]) => name === unit)[1].toLowerCase();
  const [W, H, left, bottom, top] = [320, 130, 40, 20, 8], all = [...deletion, ...insertion], low = Math.min(...all), high = Math.max(...all, low + 1e-6);
  const x = (s) => left + s * (W - left - 6), y = (v) => top + (high - v) / (high - low) * (H - top - bottom);
  const line = (values, colour, name) => drawing("polyline", { points: values.map((v, i) => `${x(share[i]).toFixed(1)},${y(v).toFixed(1)}`).join(" "), fill: "none", stroke: `rgb(var(${colour}))`, "stroke-width": 2, class: `g-${name}` });
  const label = (text, at, rest = {}) => drawing("text", { x: at[0], y: at[1], ...rest }, text);
  const picture = drawing("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", class: "g-curves", "aria-label": t(
    "Prediction in nats by share of the {units}: deletion from {d0} to {d1}, insertion from {i0} to {i1}",
    { units, d0: shown(deletion[0], 2), d1: shown(deletion.at(-1), 2), i0: shown(insertion[0], 2), i1: shown(insertion.at(-1), 2) }) },
    drawing("path", { d: `M${left},${top}V${H - bottom}H${W - 6}`, fill: "none", stroke: "var(--g-line)" }),
    line(deletion, "--g-cold", "deletion"), line(insertion, "--g-hot", "insertion"),
    label(shown(high, 1), [left - 5, top + 8], { "text-anchor": "end" }), label(shown(low, 1), [left - 5, H - bottom], { "text-anchor": "end" }),
    label("0", [left, H - 5]), label(t("100 % of the {units}", { units }), [W - 6, H - 5], { "text-anchor": "end" }));
  const key = (colour, text) => element("span", {}, element("i", { className: "g-key", style: `background: rgb(var(${colour}))` }), text);
  return element("figure", { className: "g-figure-curves" }, picture, element("figcaption", { className: "g-bar g-soft" }, key("--g-cold", t("Deletion: without the most important")), key("--g-hot", t("Insertion: with them alone")), t("Prediction in nats")));
}
