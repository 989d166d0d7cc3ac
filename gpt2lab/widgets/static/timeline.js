import { attentionView } from "./attention.js";
import { COLOURS } from "./axes.js";
import { headgridView } from "./headgrid.js";
import { lensgridView } from "./lensgrid.js";
import { colour, element, inflate, isolated, listed, onTheme, panel, select, selected, shown, subjectOf, t } from "./lib.js";
import { stepPlayer } from "./player.js";
import { stepChart } from "./stepchart.js";
import { tokenstripView } from "./tokenstrip.js";
import { start } from "./weights.js";

// The inside of a model along its training: curves and a slider over its steps, and the views of a text, which show one
// step. Of two trainings, the views stand side by side, each at its own step that is nearest to the slider's.

const PLACES = [  // [columns of 12 for one training, views from top to bottom]
  [5, tokenstripView, headgridView],
  [7, attentionView],
  [12, lensgridView],
];
const LEVELS = 255;  // a stored weight of 1
const whole = (value) => value.toLocaleString("en-US");
const capital = (text) => text[0].toUpperCase() + text.slice(1);
const LOSSES = () => ({ train: t("Training"), validation: t("Validation"), "first showing": t("Random tokens"), "second showing": t("The same tokens again") });

export function timelineView({ model, el }) {
  const root = element("div", { className: "g-timeline" }), { panel: frame, note, body } = panel(t("Inside over time"), "overtime");
  const go = (step) => select(model, { step }), controls = stepPlayer({ go }), losses = stepChart({ go }), scores = stepChart({ go });
  const notes = element("div", { className: "g-soft", role: "status" });
  const charts = element("div", { className: "g-charts" }, chartPlace(losses), chartPlace(scores));
  const table = element("details", { ontoggle: () => fillTable() }, element("summary", {}, t("Steps as a table"))), scroll = element("div", { className: "g-scroll" });
  const grid = element("div", { className: "g-grid" });
  table.append(scroll);
  body.append(notes, charts, table);
  root.append(frame, controls.bar, grid);
  el.append(root);
  let trainings = [], steps = [], ends = [], subject = null, score = "induction", turn = 0, ink = {}, width = 0;

  // ---- data ------------------------------------------------------------------------------------------------

  /** Unpack what Python sent, then draw; views that show the same text of the same models stay. */
  async function renew() {
    const { sides = [], notes: said = [] } = model.get("data") ?? {}, mine = ++turn;
    const bytes = await Promise.all(sides.map((side) => inflate(side.attention.weights))).catch(() => null);
    if (mine !== turn) return;
    const lines = !bytes ? [t("This browser cannot unpack the data; open it in a browser of 2023 or later.")]
      : sides.length || said.length ? said : [t("Select a run to see its inside over time.")];
    notes.replaceChildren(...lines.map((line) => element("div", {}, line)));
    notes.hidden = !lines.length;
    const found = bytes ? sides : [], now = found.length ? subjectOf(model) : null, last = steps.at(-1), atEnd = now === subject && last !== undefined && stepNow() === last;
    trainings = found.map((side, i) => ({ side, bytes: bytes[i], cache: [], at: -1, model: trainings[i]?.model }));
    steps = [...new Set(found.flatMap((side) => side.steps))].sort((a, b) => a - b);
    for (const part of [charts, table, controls.bar, grid]) part.hidden = !found.length;
    if (now !== subject) build();
    subject = now;
    note.textContent = "";
    if (!found.length) return;
    if (atEnd && steps.at(-1) > last) go(steps.at(-1));  // at the last step, the view follows the run
    draw(true);
    fillTable();
  }

  const nearest = (all, step) => all.reduce((best, each, i) => Math.abs(each - step) < Math.abs(all[best] - step) ? i : best, 0);
  const stepNow = () => steps[nearest(steps, selected(model).step ?? steps.at(-1))];

  function build() {
    ends.forEach((end) => end());
    ends = [];
    const two = trainings.length > 1;
    grid.replaceChildren(...(two ? trainings.map(({ side }, i) => runName(side, i)) : []));
    for (const training of trainings) {
      training.model ??= stepModel(model);
      training.model.show(atStep(training, nearest(training.side.steps, stepNow())));
    }
    for (const [columns, ...views] of two ? PLACES.flatMap(([, ...views]) => views.map((view) => [6, view])) : PLACES) trainings.forEach((training, i) => {
      const place = element("div", { className: `g-place g-w${columns}` }, ...views.map(() => element("div")));
      grid.append(place);
      views.forEach((view, k) => {
        const own = place.children[k];
        ends.push(view({ model: training.model, el: own, ...(view === headgridView && { alone: false, switches: false, score, onshow: (name) => showScore(name, i) }) }));
        if (two) own.querySelector("h3").append(element("span", { className: "g-run" }, ` ${isolated(training.side.name)}`));
      });
    });
  }
  const runName = (side, i) => element("div", { className: "g-place g-w6 g-run-name" }, swatch(i), element("b", { className: "g-id" }, side.name), element("span", { className: "g-soft" }));

  /** The other heads follow the score that one grid shows. */
  function showScore(name, from) {
    if (trainings[0].side.scores.some((each) => each.name === name)) score = name;
    grid.querySelectorAll(".g-headgrid").forEach((each, i) => { if (i !== from) each.parentElement.view.show(name); });
    drawCharts();
    fillTable();
  }

  // ---- drawing ---------------------------------------------------------------------------------------------

  /** Show the selected step; all: also where the step is the same. */
  function draw(all = false) {
    if (!trainings.length) return;
    const step = stepNow();
    controls.show(steps, step);
    trainings.forEach((training, i) => {
      const at = nearest(training.side.steps, step);
      if (all || at !== training.at) training.model.show(atStep(training, at));
      else training.model.moved();
      training.at = at;
      const name = grid.querySelectorAll(".g-run-name .g-soft")[i];
      if (name) name.textContent = t("step {step}", { step: whole(training.side.steps[at]) });
    });
    note.textContent = trainings.map(({ side }) => t("{count} steps of {run} were observed", { count: side.steps.length, run: isolated(side.name) })).join(t("; "));
    drawCharts();
    markRow();
    root.dataset.step = step;  // for those who measure
  }

  function drawCharts() {
    if (!trainings.length || !width) return;
    const step = stepNow(), { layer, head } = selected(model), two = trainings.length > 1, kinds = LOSSES();
    const curve = ({ side }, values) => side.steps.map((at, i) => [at, values[i]]).filter(([, value]) => value !== null);
    const drawn = Object.keys(kinds).filter((kind) => trainings.some(({ side }) => side.losses[kind]));
    const dash = (i) => i ? [6, 4] : [];
    losses.place.hidden = !drawn.length;
    charts.classList.toggle("g-both", drawn.length > 0);
    if (drawn.length) {
      const curves = drawn.flatMap((kind, k) => trainings.flatMap((training, i) => training.side.losses[kind] ? [{ points: curve(training, training.side.losses[kind]), colour: COLOURS[k], width: 2, dash: dash(i) }] : []));
      losses.draw({ steps, curves, step, ink, width });
      caption(losses, t("Loss (nats per token)"), drawn.map((kind, k) => [COLOURS[k], kinds[kind], trainings.map(({ side, at }) => side.losses[kind]?.[at] ?? null)]));
    }
    const of = trainings.map(({ side }) => side.scores.find(({ name }) => name === score)), title = t(of[0].title), share = of[0].unit.includes("0 to 1");
    const others = two ? [] : of[0].values[0].flatMap((heads, l) => heads.map((_, h) => ({ points: curve(trainings[0], of[0].values.map((table) => table[l][h])), colour: ink.soft, width: 1, alpha: 0.3 })));
    const chosen = trainings.map((training, i) => ({ points: curve(training, of[i].values.map((table) => table[layer][head])), colour: COLOURS[i], width: 2.5, dash: dash(i) }));
    const marks = trainings.flatMap(({ side }) => { const at = side.formed[score]; return at === null || two ? [] : [{ step: at, text: formedText(title, at) }]; });
    scores.draw({ steps, curves: [...others, ...chosen], range: share ? [0, 1] : null, marks, step, ink, width });
    caption(scores, `${capital(title)} (${t(of[0].unit)})`, [
      ...trainings.map(({ side, at }, i) => [COLOURS[i], two ? isolated(side.name) : t("Layer {layer}, head {head}", { layer, head }), [of[i].values[at][layer][head]]]),
      ...(two ? [] : [[ink.soft, t("The other heads"), []]])]);
    scores.node.setAttribute("aria-label", [t("{score} of layer {layer}, head {head} over training; the table has the numbers", { score: title, layer, head }), ...marks.map(({ text }) => text)].join(". "));
    losses.node.setAttribute("aria-label", t("Losses over training; the table has the numbers"));
  }

  /** A chart's title, and what its colours stand for with the values at the step. */
  function caption(chart, title, entries) {
    chart.title.textContent = title;
    const [, second] = trainings;
    chart.legend.replaceChildren(...entries.map(([paint, name, values]) => element("span", {}, element("i", { className: "g-swatch", style: `background: ${paint}`, "aria-hidden": "true" }), `${name} `, !values.length ? null : element("b", {}, values.map((value) => shown(value, 2)).join(" | ")))), second ? element("span", {}, t("Dashed: {run}", { run: isolated(second.side.name) })) : "");
  }

  // ---- the same as a table ---------------------------------------------------------------------------------

  function fillTable() {
    if (!table.open || !trainings.length) return;
    const { layer, head } = selected(model), kinds = LOSSES();
    scroll.replaceChildren(...trainings.map(({ side }) => {
      const { title, values } = side.scores.find(({ name }) => name === score), drawn = Object.keys(kinds).filter((kind) => side.losses[kind]);
      const names = [t("Step"), ...drawn.map((kind) => kinds[kind]), t("Highest heads by {score}", { score: t(title) }), t("Layer {layer}, head {head}", { layer, head })];
      return element("table", {}, element("caption", {}, isolated(side.name)), element("thead", {}, element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name)))),
        element("tbody", {}, ...side.steps.map((step, i) => element("tr", { "data-step": step }, element("th", { scope: "row" }, whole(step)), ...drawn.map((kind) => element("td", {}, shown(side.losses[kind][i]))),
          element("td", {}, highest(values[i])), element("td", {}, shown(values[i][layer][head]))))));
    }));
    markRow();
  }
  const highest = (values) => listed(values.flatMap((heads, layer) => heads.map((value, head) => ({ value: value ?? -Infinity, name: t("{name}: {value}", { name: `${layer}.${head}`, value: shown(value) }) })))
    .sort((a, b) => b.value - a.value).slice(0, 3).map(({ name }) => name));
  function markRow() {
    for (const row of scroll.querySelectorAll("tr[data-step]")) {
      const on = trainings.some(({ side, at }) => side.steps[at] === Number(row.dataset.step));
      if (on) row.setAttribute("aria-current", "step"); else row.removeAttribute("aria-current");
    }
  }

  // ---- life ------------------------------------------------------------------------------------------------

  const readColours = () => { ink = Object.fromEntries(["ink", "soft", "line", "paper", "accent"].map((name) => [name, `rgb(${colour(el, `--g-${name}`).join(", ")})`])); };
  let head = "";
  const moved = () => {
    draw();
    const { layer, head: now } = selected(model);
    if (head !== (head = `${layer}.${now}`)) fillTable();
  };
  readColours();
  model.on("change:data", renew);
  model.on("change:selection", moved);
  const endTheme = onTheme(() => { readColours(); drawCharts(); }), size = new ResizeObserver(() => { width = scores.place.clientWidth; drawCharts(); });
  size.observe(scores.place);
  renew();
  return () => {
    turn++;
    model.off("change:data", renew);
    model.off("change:selection", moved);
    [controls.end, endTheme, ...ends].forEach((end) => end());
    size.disconnect();
  };
}

const swatch = (i) => element("i", { className: "g-swatch", style: `background: ${COLOURS[i]}`, "aria-hidden": "true" });
/** What the change of a score at a step says: "induction head forms at step 2,048". */
const formedText = (score, step) => t("{score} head forms at step {step}", { score, step: whole(step) });

function chartPlace(chart) {
  chart.title = element("b");
  chart.legend = element("div", { className: "g-bar g-soft g-values" });
  chart.place = element("figure", { className: "g-chart" }, element("figcaption", {}, chart.title, chart.legend), chart.node);
  return chart.place;
}

/** What a view reads at one of a training's steps: a side, as widgets/data.py describes it. */
function atStep({ side, bytes, cache }, at) {
  return cache[at] ??= { sides: [sideAt(side, bytes, at)] };
}
function sideAt({ name, steps, tokens, layers, heads, full, scores, surprisal, ranks, attention }, bytes, at) {
  const size = layers * heads * start(tokens.length), packed = attention.at.reduce((best, each, i) => Math.abs(each - at) < Math.abs(attention.at[best] - at) ? i : best, 0);
  return {
    name, tokens, layers, heads, full,
    note: attention.at[packed] === at ? "" : t("The attention shown is that of step {step}.", { step: whole(steps[attention.at[packed]]) }),
    scores: scores.map((score) => ({ ...score, values: score.values[at] })),
    surprisal: { nll: surprisal[at], rank: [null, ...ranks[at].at(-1).slice(0, -1)] },
    lens: { rank: ranks[at], followed: [...tokens.slice(1), t("the top prediction")] },
    attention: { layers: Array.from({ length: layers }, (_, layer) => layer), levels: LEVELS, linear: true, bound: 0.5 / LEVELS, codes: bytes.subarray(packed * size, (packed + 1) * size) },
  };
}

/** A model whose data is that of one step; the selection is the whole page's. */
function stepModel(model) {
  const listeners = {}, fire = (event) => [...(listeners[event] ?? [])].forEach((listener) => listener());
  let data = null;
  return {
    get: (key) => key === "data" ? data : model.get(key),
    set: (key, value) => model.set(key, value),
    save_changes: () => model.save_changes(),
    on: (event, listener) => { (listeners[event] ??= []).push(listener); },
    off: (event, listener) => { listeners[event] = (listeners[event] ?? []).filter((other) => other !== listener); },
    show: (next) => { data = next; fire("change:data"); },
    moved: () => fire("change:selection"),
  };
}
