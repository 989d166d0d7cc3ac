import { arrow, asker, canAsk, choose, element, floatsOf, follow, heat, isolated, listed, panel, select, selected, shown, sidesShown, subjectOf, t } from "./lib.js";

// A block step by step: each formula with the model's numbers, for the selected token, layer and head.

const GROUPS = [  // [label, steps]
  [t("embedding"), ["token_embedding", "position_embedding", "resid_pre"]],
  ["ln_1", ["ln_1"]],
  ["q, k, v", ["query", "key", "value"]],
  [t("weights"), ["products", "scaled", "masked", "weights"]],
  ["z", ["z", "head_out"]],
  ["attn_out", ["attn_out"]],
  ["resid_mid", ["resid_mid"]],
  ["ln_2", ["ln_2"]],
  ["mlp", ["mlp_pre", "mlp_post", "mlp_out"]],
  ["resid_post", ["resid_post"]],
  [t("prediction"), []],
];
const WEIGHTS = GROUPS[3][1];
const MAX_TOKENS = 40;  // tokens read that are listed: those read most
const WRITTEN = 8;  // numbers of a vector that are written out
const CELLS = 256;  // of a strip; of more numbers, each cell shows the largest of a few

export function walkthroughView({ model, el }) {
  const { panel: frame, note, body } = panel(t("Walkthrough"), "walkthrough");
  const rail = element("div", { className: "g-rail", role: "tablist", "aria-label": t("Steps of the block") });
  const detail = element("div", { className: "g-step", role: "tabpanel", tabIndex: 0 });
  const status = element("p", { className: "g-soft", role: "status" }), place = element("span", { className: "g-bar" });
  body.append(status, rail, detail);
  note.append(place);
  el.append(frame);
  const later = asker(model);
  let walks = [], errors = [], subject = null, asked = null, pending = false, drawn = null, listed = null, chosen = 3, visible = false;
  const indexes = () => { const { sides } = model.get("data"); return sidesShown(model).map((side) => sides.indexOf(side)); };

  const tabs = GROUPS.map(([label], i) => element("button", {
    className: "g-tab", role: "tab", type: "button", onclick: () => { chosen = i; show(); } }, element("span", {}, label), element("span", { className: "g-strips", "aria-hidden": "true" })));
  rail.append(...tabs);
  rail.onkeydown = (event) => {
    const to = arrow(event, chosen, tabs.length);
    if (to === undefined) return;
    chosen = to;
    show();
    tabs[to].focus();
  };

  function rebuild() {
    if (subject === subjectOf(model)) return;
    subject = subjectOf(model);
    walks = model.get("data").sides.map((side) => side.walk && unpacked(side.walk));
    errors = [];
    asked = drawn = null;
  }

  function draw() {
    const { layer, head, position } = selected(model), there = indexes().every((i) => walks[i] && where(walks[i]) === where({ layer, head, position }));
    const key = where({ layer, head, position }), [first] = indexes();
    if (there) { asked = null; pending = false; errors = []; later(); }
    else if (canAsk(model) && visible && asked !== key) {
      asked = key;
      pending = true;
      later("walk", { layer, head, position }, ({ sides }) => {
        errors = sides.map((side) => side.error);
        sides.forEach((side, i) => { if (!side.error) walks[i] = unpacked(side); });
        pending = false;
        draw();
      }, (error) => { errors = model.get("data").sides.map(() => error.message); pending = false; draw(); });
    }
    frame.setAttribute("aria-busy", String(pending));
    status.textContent = canAsk(model) || there ? "" : walks[first] ? t("Other places need Python.") : t("The walkthrough needs Python: open it in a notebook or in the app.");
    status.hidden = !status.textContent;
    controls(selected(model));
    const stamp = JSON.stringify([subject, indexes(), errors, walks.map((walk) => walk && where(walk))]);
    if (drawn !== stamp) { drawn = stamp; paint(); show(); }
  }

  /** What the formulas are of; with Python, lists to choose from. */
  function controls({ layer, head, position }) {
    const { sides } = model.get("data"), [first] = indexes(), { tokens, layers, heads } = sides[first];
    if (!canAsk(model)) {
      const walk = walks[first];
      place.textContent = walk ? t("Token {position} {token}, layer {layer}, head {head} of {model}",
        { position: walk.position, token: isolated(tokens[walk.position]), layer: walk.layer, head: walk.head, model: sides[first].name }) : "";
      return;
    }
    if (listed !== `${subject} ${first}`) {
      listed = `${subject} ${first}`;
      const numbers = (count, name) => Array.from({ length: count }, (_, i) => [String(i), name(i)]);
      const list = (label, options, part) => choose(label, options, null, (to) => select(model, { [part]: Number(to) }));
      place.replaceChildren(list(t("Token"), tokens.map((token, i) => [String(i), `${i} ${isolated(token)}`]), "position"),
        list(t("Layer"), numbers(layers, (layer) => t("Layer {layer}", { layer })), "layer"), list(t("Head"), numbers(heads, (head) => t("Head {head}", { head })), "head"));
    }
    [position, layer, head].forEach((value, i) => { place.children[i].value = String(value); });
  }

  /** The strips of all steps. */
  function paint() {
    const found = indexes().map((i) => walks[i]).filter(Boolean);
    tabs.forEach((tab, i) => tab.lastChild.replaceChildren(...found.flatMap((walk) => strips(walk, GROUPS[i][1], frame))));
    rail.hidden = !found.length;
    detail.hidden = !found.length && !errors.some(Boolean);
  }

  /** The chosen step, of each side that is shown. */
  function show() {
    const { sides } = model.get("data");
    tabs.forEach((tab, i) => { tab.setAttribute("aria-selected", String(i === chosen)); tab.tabIndex = i === chosen ? 0 : -1; });
    detail.setAttribute("aria-label", GROUPS[chosen][0]);
    detail.replaceChildren(...indexes().flatMap((i) => [
      sides.length > 1 ? element("h4", {}, sides[i].name) : null,
      errors[i] ? element("p", { className: "g-error", role: "alert" }, errors[i]) : null,
      ...(walks[i] ? step(walks[i], sides[i].tokens, chosen, frame) : []),
    ]).filter(Boolean));
  }

  const watch = new IntersectionObserver((entries) => { visible = entries.at(-1).isIntersecting; if (visible && model.get("data")?.sides) draw(); }, { rootMargin: "200px" });
  const end = follow(model, rebuild, draw);
  watch.observe(frame);
  return () => { watch.disconnect(); later(); end(); };
}

const where = ({ layer, head, position }) => [layer, head, position].join();
const unpacked = (walk) => ({ ...walk, steps: Object.fromEntries(walk.steps.map((one) => [one.name, { ...one, values: floatsOf(one.values) }])) });

// ---- a step --------------------------------------------------------------------------------------------------

function step(walk, tokens, chosen, frame) {
  const [, names] = GROUPS[chosen];
  if (names === WEIGHTS) return weights(walk, tokens);
  if (!names.length) return predictions(walk);
  return [...names.map((name) => vector(walk, walk.steps[name], frame)),
    element("p", { className: "g-soft" }, t("Strips: blue below 0, orange above; the deepest is the largest of its strip."))];
}

/** A formula; what follows an underscore is set lower. */
function formula(text) {
  const parts = text.split(/_([A-Za-z0-9]|heads)\b/).map((part, i) => i % 2 ? element("sub", {}, part) : part);
  return element("span", { className: "g-formula", role: "math", "aria-label": text }, ...parts);
}

function vector(walk, one, frame) {
  const { values, over } = one;
  let low = Infinity, high = -Infinity, squares = 0;
  for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); squares += value * value; }
  const first = listed([...values.slice(0, WRITTEN)].map((value) => shown(value)).concat(values.length > WRITTEN ? "…" : []));
  const about = [t("{count} numbers ({over}), from {low} to {high}, length {length}", { count: values.length, over: t(over), low: shown(low), high: shown(high), length: shown(Math.sqrt(squares)) }),
    ...(one.name === "ln_1" ? [t("mean {mean}, variance {variance}", { mean: shown(walk.mean, 4), variance: shown(walk.variance, 4) })] : [])].join(t("; "));
  const strip = drawStrip(values, frame);
  strip.setAttribute("aria-hidden", "true");
  strip.onmousemove = (event) => {
    const at = Math.min(values.length - 1, Math.floor(event.offsetX / strip.clientWidth * values.length));
    strip.title = t("{name}: {value}", { name: at, value: shown(values[at], 4) });
  };
  const all = element("details", { className: "g-all" }, element("summary", {}, t("All {count} numbers", { count: values.length.toLocaleString("en-US") })));
  all.ontoggle = () => { if (all.open && all.children.length < 2) all.append(numbers(values)); };
  return element("div", { className: "g-vector", "data-step": one.name },
    element("div", { className: "g-title" }, element("b", {}, t(one.title)), " ", formula(one.formula)), strip,
    element("div", { className: "g-soft g-numbers" }, t("{name}: {value}", { name: about, value: first })),
    values.length > WRITTEN ? all : null);
}

/** A vector's numbers as a table, ten to a row. */
function numbers(values) {
  const rows = Array.from({ length: Math.ceil(values.length / 10) }, (_, i) => element("tr", {}, element("th", { scope: "row" }, String(i * 10)),
    ...[...values.slice(i * 10, i * 10 + 10)].map((value) => element("td", {}, shown(value, 4)))));
  return element("div", { className: "g-scroll g-short", tabIndex: 0 }, element("table", {}, element("tbody", {}, ...rows)));
}

/** A table of products, scaled and masked scores and weights: a row per token up to the position, and the next. */
function weights(walk, tokens) {
  const steps = WEIGHTS.map((name) => walk.steps[name]), last = steps.at(-1).values, n = walk.position + 1;
  const most = [...Array(n).keys()].sort((a, b) => last[b] - last[a] || a - b).slice(0, MAX_TOKENS);
  const rows = [...new Set([...most, walk.position, ...(n < tokens.length ? [n] : [])])].sort((a, b) => a - b);
  const number = (value) => value === -Infinity ? "−∞" : shown(value, 4);
  return [element("div", { className: "g-vector", "data-step": "weights" },
    element("div", { className: "g-scroll g-tall", tabIndex: 0 }, element("table", { className: "g-weights" },
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, t("Token j")),
        ...steps.map((one) => element("th", { scope: "col" }, formula(one.formula), element("small", {}, t(one.title)))))),
      element("tbody", {}, ...rows.map((at) => element("tr", { className: at === walk.position ? "g-own" : at > walk.position ? "g-ahead" : "" },
        element("th", { scope: "row" }, `${at} `, element("span", { className: "g-token" }, tokens[at])),
        ...steps.map((one, i) => element("td", i === steps.length - 1 ? { style: `background: ${heat(one.values[at])}` } : {}, number(one.values[at])))))))),
    most.length < n ? element("div", { className: "g-soft" }, t("The {count} read most, of {total} tokens.", { count: most.length, total: n })) : null)];
}

function predictions(walk) {
  return [element("div", { className: "g-vector", "data-step": "prediction" },
    element("div", { className: "g-title" }, element("b", {}, t("If the model stopped here")), " ", formula("softmax(ln_f(x) W_U)")),
    element("table", { className: "g-predictions" }, element("thead", { className: "g-hidden" }, element("tr", {}, element("th", { scope: "col" }, t("Next token")), element("th", { scope: "col" }, t("Probability")))),
      element("tbody", {}, ...walk.predictions.map(([token, probability]) => element("tr", {},
        element("th", { scope: "row" }, element("span", { className: "g-token" }, token)), element("td", {}, shown(probability, 4)),
        element("td", { className: "g-share", "aria-hidden": "true" }, element("i", { style: `width: ${(100 * probability).toFixed(1)}%` })))))))];
}

// ---- strips --------------------------------------------------------------------------------------------------

function strips(walk, names, frame) {
  if (!names.length) return walk.predictions.slice(0, 1).map(([token]) => element("span", { className: "g-token" }, token));
  return (names === WEIGHTS ? ["weights"] : names).map((name) => drawStrip(walk.steps[name].values, frame));
}

/** One row of cells: blue below 0, orange above, the deepest the largest. */
function drawStrip(values, frame) {
  const cells = Math.min(values.length, CELLS), canvas = element("canvas", { className: "g-cells", width: cells, height: 1 });
  const context = canvas.getContext("2d"), image = context.createImageData(cells, 1), style = getComputedStyle(frame);
  const [hot, cold] = ["--g-hot", "--g-cold"].map((name) => style.getPropertyValue(name).split(",").map(Number));
  const found = new Float32Array(cells);
  let most = 1e-12;
  for (let i = 0; i < values.length; i++) {
    const at = Math.floor(i * cells / values.length);
    if (Math.abs(values[i]) > Math.abs(found[at])) found[at] = values[i];
    most = Math.max(most, Math.abs(values[i]));
  }
  found.forEach((value, i) => image.data.set([...(value < 0 ? cold : hot), 255 * Math.min(1, Math.abs(value) / most)], 4 * i));
  context.putImageData(image, 0, 0);
  return canvas;
}
