import { arrow, ask, canAsk, chip, choose, copy, element, isolated, paint, panel, t } from "./lib.js";
import { alternativesPanel } from "./alternatives.js";
import { dotted, stepsOf, tokenTitle } from "./steps.js";
import { tokenTable, statistics } from "./steptables.js";
import { branchTree } from "./branchtree.js";

// A generated text: its tokens coloured by a value, the alternatives of the selected one, and the tree of branches.

const MEASURES = {  // [title, of a step → share of the fullest colour, ends of the scale]
  probability: [t("Probability"), ({ probability }) => probability, () => ["0", "1"]],
  rank: [t("Rank (logarithm)"), ({ rank }, V) => Math.log(rank) / Math.log(V), (V) => ["1", V.toLocaleString("en-US")]],
  entropy: [t("Entropy"), ({ entropy }, V) => Math.min(1, entropy / Math.log(V)), (V) => ["0", t("{n} nats", { n: Math.log(V).toFixed(1) })]],
};
const FINISHES = {
  "end of text": t("the model ended the text"), "stop string": t("the stop string came"), length: t("the length is reached"),
  context: t("the model's context is full"), stopped: t("stopped"), writing: t("writing"),
};

export function generationView({ model, el }) {
  const { panel: frame, note, body } = panel(t("Text"), "generation");
  const empty = element("p", { className: "g-soft" }, t("A generated text will be here, with the probability of each token."));
  const columns = element("div", { className: "g-texts" }), legend = element("div", { className: "g-legend g-soft" });
  const lower = element("div", { className: "g-lower" }), foot = element("div", { className: "g-more" });
  body.append(empty, columns, legend, lower, foot);
  el.append(frame);

  let measure = "probability", sides = [], shown = [], given = "";
  const state = { side: 0, index: 0, follow: false };  // follow: the newest token is selected while a text is written
  const texts = () => model.get("data")?.texts ?? [];
  const text = () => sides[state.side]?.text;
  const busy = () => Boolean(model.get("data")?.writing);

  /** What the other parts read and call. */
  const page = {
    model, texts, text, busy, shown: () => shown,
    step: () => { const of = text(); return of && stepsOf(of)[state.index]; },
    index: () => state.index,
    open(number) { shown[state.side] = number; draw(); },
    leave: () => sides[state.side]?.focus(),
    async branch(token) {
      const options = { text: text().number, index: state.index, token, shown, side: state.side };
      if (model.begin) return model.begin(options);  // the app streams it
      const { text: made } = await ask(model, "branch", options), data = model.get("data");
      shown[state.side] = made.number;
      model.set("data", { ...data, texts: [...data.texts.filter(({ number }) => number !== made.number), made] });
    },
    canBranch: () => !busy() && Boolean(model.begin || canAsk(model)),
  };
  const alternatives = alternativesPanel(page), tree = branchTree(page), table = tokenTable(page), numbers = statistics(page);
  lower.append(alternatives.node, tree.node);
  foot.append(table.node, numbers.node);
  const fresh = (data) => { const key = JSON.stringify([data.run, data.shown, data.subject]); return key !== given && Boolean(given = key); };

  function moved(side, index) {
    Object.assign(state, { side, index, follow: false });
    model.set("selection", { ...model.get("selection"), position: index });
    model.save_changes();
    mark();
    alternatives.draw();
    tree.draw();
    table.draw();
  }

  function heads() {
    note.replaceChildren(choose(t("Colour by"), Object.entries(MEASURES).map(([key, [title]]) => [key, title]), measure, (to) => { measure = to; sides.forEach((side) => side.paint()); scale(); }));
    if (texts().length < 2) return;
    const others = texts().map(({ number, name }) => [number, t("Beside text {number}, {name}", { number, name })]);
    note.append(" ", choose(t("Text beside it"), [[0, t("One text")], ...others], shown[1] ?? 0, (to) => {
      shown = Number(to) ? [shown[0], Number(to)] : [shown[0]];
      draw();
    }));
  }

  function draw() {
    const data = model.get("data"), all = texts();
    for (const part of [columns, legend, lower, foot, note]) part.hidden = !all.length;
    empty.hidden = Boolean(all.length);
    if (!all.length) return;
    const first = fresh(data);
    if (first) shown = [...data.shown];
    shown = shown.filter((number, i) => all.some((of) => of.number === number) && (i === 0 || number !== shown[0]));
    if (!shown.length) shown = [all.at(-1).number];
    state.side = Math.min(state.side, shown.length - 1);
    sides.splice(shown.length).forEach(({ node }) => node.remove());
    shown.forEach((number, i) => {
      if (!sides[i]) columns.append((sides[i] = oneText(i, moved, (step, V) => MEASURES[measure][1](step, V))).node);
      sides[i].draw(all.find((of) => of.number === number), shown.length > 1);
    });
    columns.classList.toggle("g-two", shown.length > 1);
    const last = stepsOf(text()).length - 1;
    if (first && busy()) state.follow = !text().kept;
    state.index = Math.max(0, state.follow ? last : Math.min(state.index, last));
    if (!busy()) state.follow = false;
    el.dataset.text = text().prompt + text().text;
    heads();
    scale();
    mark();
    for (const part of [alternatives, tree, table, numbers]) part.draw();
  }

  function scale() {
    const [title, , ends] = MEASURES[measure], [low, high] = ends(text().V);
    legend.replaceChildren(`${title} ${low} `, element("i", { className: "g-scale", "aria-hidden": "true" }), ` ${high}`);
  }
  const mark = () => sides.forEach((side, i) => side.mark(i === state.side ? state.index : null));

  const position = () => { const to = model.get("selection")?.position ?? 0; if (to !== state.index && text()) moved(state.side, Math.min(to, stepsOf(text()).length - 1)); };
  model.on("change:data", draw);
  model.on("change:selection", position);
  state.index = model.get("selection")?.position ?? 0;
  draw();
  return () => { model.off("change:data", draw); model.off("change:selection", position); alternatives.end(); };
}

/** One text: who wrote it, its prompt and its tokens, coloured by a share of each step. */
function oneText(side, moved, share) {
  const head = element("div", { className: "g-bar g-soft" }), prompt = element("span", { className: "g-prompt" });
  const list = element("span", { role: "listbox", "aria-label": t("Tokens of the continuation"), "aria-orientation": "horizontal" });
  const node = element("div", { className: "g-one" }, head, element("div", { className: "g-flow" }, prompt, list));
  const copied = element("button", { className: "g-button", type: "button", onclick: async () => {
    copied.textContent = await copy(made.text.prompt + made.text.text) ? t("Copied") : t("Select and copy");
    setTimeout(() => { copied.textContent = t("Copy"); }, 2000);
  } }, t("Copy"));
  let spans = [], nodes = [], drawn = [], current = 0;

  const made = {
    node, text: null,
    draw(text, named) {
      const steps = stepsOf(text), same = made.text?.number === text.number ? steps.findIndex((step, i) => step !== drawn[i]) : 0;
      const from = same < 0 ? steps.length : same;
      made.text = text;
      node.classList.toggle("g-named-side", named);
      head.replaceChildren(element("b", {}, text.name), about(text, steps.length), copied);
      prompt.textContent = text.prompt;
      spans.splice(from);
      nodes.splice(from).flat().forEach((each) => each.remove());
      for (let i = from; i < steps.length; i++) list.append(...(nodes[i] = token(text, steps[i], i)));
      drawn = steps;
    },
    paint: () => spans.forEach((span, i) => paint(span, share(drawn[i], made.text.V))),
    /** Select a token; null: none, and Tab reaches the first. */
    mark(index) {
      spans[current]?.setAttribute("aria-selected", "false");
      if (spans[current]) spans[current].tabIndex = -1;
      spans[index]?.setAttribute("aria-selected", "true");
      current = index ?? 0;
      if (spans[current]) spans[current].tabIndex = 0;
    },
    focus: () => spans[current]?.focus(),
  };

  function token(text, step, i) {
    const chosen = i === text.kept - 1, title = tokenTitle(text, step, i);
    const span = element("span", { className: `g-token${chosen ? " g-chosen" : ""}`, role: "option", tabIndex: -1, title, "aria-selected": "false",
      "aria-label": `${isolated(dotted(step.token))}, ${title}`, onclick: () => { moved(side, i); span.focus(); } }, step.token);
    spans[i] = span;
    paint(span, share(step, text.V));
    const seam = step.shifted ? element("i", { className: "g-seam", "aria-hidden": "true", title }, "⋮") : null;
    return [seam, span, step.token.includes("⏎") ? document.createTextNode("\n") : null].filter(Boolean);
  }

  list.onkeydown = (event) => {
    const at = spans.indexOf(event.target);
    if (at < 0) return;
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); moved(side, at); node.closest(".g-panel").querySelector(".g-alternatives button")?.focus(); return; }
    const to = ["ArrowUp", "ArrowDown"].includes(event.key) ? line(spans, at, event.key === "ArrowUp" ? -1 : 1) : arrow(event, at, spans.length, 0);
    if (to === undefined) return;
    event.preventDefault();
    moved(side, to);
    spans[to].focus();
  };
  return made;
}

/** The token above or below one, where the text is wrapped. */
function line(spans, at, way) {
  const boxes = spans.map((span) => span.getClientRects()[0]), { left, top } = boxes[at];
  const lines = boxes.map((box, i) => [i, box]).filter(([, box]) => box && (box.top - top) * way > 4);
  const next = Math.min(...lines.map(([, box]) => (box.top - top) * way)), row = lines.filter(([, box]) => (box.top - top) * way < next + 4);
  return row.length ? row.reduce((a, b) => Math.abs(b[1].left - left) < Math.abs(a[1].left - left) ? b : a)[0] : at;
}

/** Seed, length and end of a text. */
function about({ number, seed, finish, kept, parent, begin, spaced, prompt }, count) {
  const parts = [t("text {number}", { number }), t("seed {seed}", { seed }), t("{n} tokens", { n: count.toLocaleString("en-US") }), FINISHES[finish]];
  if (parent) parts.push(t("branch of text {parent} at token {index}", { parent, index: kept - 1 }));
  if (spaced) parts.push(t("The prompt ends in a space. Remove it for more natural text."));
  const said = element("span", { className: "g-about-text" }, parts.join(" · "));
  if (!prompt) said.append(" · ", t("no prompt: the model began from"), " ", chip(begin));
  return said;
}
