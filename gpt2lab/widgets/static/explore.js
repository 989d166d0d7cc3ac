import { ask, bytesOf, canAsk, choose, copy, download, element, follow, select, selected, t } from "./lib.js";
import { ablationView } from "./ablation.js";
import { attentionView } from "./attention.js";
import { contributionsView } from "./contributions.js";
import { headgridView } from "./headgrid.js";
import { lensgridView } from "./lensgrid.js";
import { predictionsView } from "./predictions.js";
import { tokenstripView } from "./tokenstrip.js";
import { walkthroughView } from "./walkthrough.js";

// The whole page: every view of one text, linked by one selection, and what can be taken along.

const PLACES = [  // [columns of 12, views from top to bottom]
  [12, tokenstripView],
  [5, headgridView, predictionsView],
  [7, attentionView],
  [12, lensgridView],
  [6, contributionsView],
  [6, ablationView],
];
const MAX_LINK = 4000;  // characters of an address that servers and browsers take

export function exploreView({ model, el }) {
  const sides = element("div", { className: "g-bar g-sides", role: "group", "aria-label": t("Model shown") });
  const grid = element("div", { className: "g-grid" });
  el.append(sides, grid);
  const preview = (head) => grid.querySelector(".g-attention").parentElement.view.preview(head);
  const made = PLACES.flatMap(([columns, ...views]) => {
    const place = element("div", { className: `g-place g-w${columns}` }, ...views.map(() => element("div")));
    grid.append(place);
    return views.map((view, i) => view({ model, el: place.children[i], onhover: preview }));
  });
  const walk = folded(model, t("Walkthrough of the block"), walkthroughView);
  grid.append(element("div", { className: "g-place g-w12" }, walk));
  const foot = element("section", { className: "g-panel g-foot", "aria-label": t("Save and share") });
  el.append(foot);
  el.view = model;  // for scripts of the reader's own
  const end = follow(model, () => { el.dataset.text = model.get("data").subject.text; drawFoot(model, foot); }, () => drawSides(model, sides));
  return () => { made.forEach((clean) => clean?.()); end(); };
}

/** A view that is there while it is open: it asks Python at every selection. */
function folded(model, title, view) {
  const place = element("div"), fold = element("details", { className: "g-panel g-fold" }, element("summary", {}, title), place);
  let clean = null;
  fold.ontoggle = () => {
    clean?.();
    place.replaceChildren();
    clean = fold.open ? view({ model, el: place }) : null;
  };
  return fold;
}

function drawSides(model, bar) {
  const { sides, incomparable } = model.get("data"), { side } = selected(model);
  bar.hidden = sides.length < 2;
  if (bar.hidden) return;
  const names = [...sides.map((of) => of.name), t("Difference")];
  const focused = [...bar.children].indexOf(document.activeElement);
  bar.replaceChildren(...names.map((name, i) => element("button", {
    className: "g-button", type: "button", "aria-pressed": String(side === i), disabled: i === 2 && Boolean(incomparable),
    title: i === 2 ? t("{other} less {base}", { base: names[0], other: names[1] }) : name, onclick: () => select(model, { side: i }) }, name)),
  element("span", { className: "g-note" }, incomparable));
  if (focused >= 0) bar.children[focused].focus();
}

// ---- what can be taken along ---------------------------------------------------------------------------------

/** The lines that make this page in a notebook. */
export function pythonLines(model) {
  const { subject } = model.get("data"), { position, layer, head, off } = selected(model), [first, second] = subject.models.map((name) => JSON.stringify(name));
  const lines = ["from gpt2lab import explore, load_model", "", `lab = load_model(${first})`,
    `page = explore(lab, ${JSON.stringify(subject.text)}${second ? `, compare=load_model(${second})` : ""})`,
    `page.position, page.layer, page.head = ${position}, ${layer}, ${head}`];
  if (off.length) lines.push(`page.off = (${off.map((place) => `(${place.join(", ")}),`).join(" ")})`);
  return [...lines, "page"].join("\n");
}

/** A notebook with these lines. */
export function notebook(model) {
  const source = (text) => text.split(/(?<=\n)/), { subject } = model.get("data");
  const cell = (type, text, rest = {}) => ({ cell_type: type, id: `${type}-1`, metadata: {}, source: source(text), ...rest });
  return JSON.stringify({
    cells: [cell("markdown", `# ${subject.models.join(" and ")} on a text\nMade by gpt2lab's Explore page.`),
            cell("code", pythonLines(model), { execution_count: null, outputs: [] })],
    metadata: { kernelspec: { display_name: "Python 3", language: "python", name: "python3" } }, nbformat: 4, nbformat_minor: 5,
  }, null, 1);
}

/** The address that opens the app with this view; null for a text that is too long for one. */
export function linkTo(model) {
  const { subject } = model.get("data"), { position, layer, head, side } = selected(model), [first, second] = subject.models;
  const query = new URLSearchParams({ text: subject.text, model: first, ...(second ? { compare: second, side } : {}), position, layer, head });
  const address = `${location.origin}${location.pathname}?${query}`;
  return address.length <= MAX_LINK ? address : null;
}

function drawFoot(model, foot) {
  const python = canAsk(model), said = element("span", { className: "g-note", role: "status" });
  const button = (text, onclick) => element("button", { className: "g-button", type: "button", onclick }, text);
  const out = element("div", { className: "g-out" });
  const bar = element("div", { className: "g-bar" });
  foot.replaceChildren(element("div", { className: "g-head" }, element("h3", {}, t("Save and share"))), bar, out);
  if (python) {
    bar.append(...saving(model, said), button(t("Rollout"), () => drawRollout(model, out)),
      choose(t("bertviz view"), [["", "bertviz"], ...BERTVIZ], "",
        (view) => view ? drawBertviz(model, out, view) : out.replaceChildren()));
  }
  if (model.is_app) bar.append(button(t("Copy link"), async () => {
    const address = linkTo(model);
    if (!address) said.textContent = t("The text is too long for a link.");
    else if (await copy(address)) said.textContent = t("Copied.");
    else said.replaceChildren(element("a", { href: address }, t("Link to this view")));
  }));
  bar.append(button(t("As Python"), () => {
    const code = element("pre", { className: "g-code", tabIndex: 0 }, pythonLines(model));
    const copied = button(t("Copy"), async () => { copied.textContent = await copy(code.textContent) ? t("Copied") : t("Select and copy"); });
    out.replaceChildren(code, copied);
  }), button(t("As notebook"), () => download(notebook(model), "explore.ipynb", "application/x-ipynb+json")), said);
}

const FORMATS = ["png", "svg", "csv", "npz", "json", "html"];
const BERTVIZ = [["head", t("Head view")], ["model", t("Model view")], ["neuron", t("Neuron view")]];
const PARTS = [["surprisal", t("Surprisal")], ["lens", t("Lens")], ["attention of the head", t("Attention of the head")], ["attention of all heads", t("Attention of all heads")],
  ["head scores", t("Head scores")], ["attribution", t("Attribution")], ["attribution at every position", t("Attribution at every position")], ["ablation", t("Ablation")],
  ["sweep", t("Sweep")], ["patching", t("Patching")], ["walkthrough", t("Walkthrough")], ["rollout", t("Rollout")]];

function saving(model, said) {
  const part = choose(t("Part to save"), PARTS, PARTS[0][0], () => {});
  const format = choose(t("Format"), FORMATS.map((name) => [name, name.toUpperCase()]), "csv", () => {});
  const save = element("button", { className: "g-button", type: "button", onclick: async () => {
    said.textContent = t("Saving …");
    try {
      const { name, content } = await ask(model, "save", { part: part.value, format: format.value, selection: selected(model), asked: model.get("data").asked ?? {} });
      download(bytesOf(content), name, "application/octet-stream");
      said.textContent = t("Saved {file}.", { file: name });
    } catch (error) { said.textContent = error.message; }
  } }, t("Save"));
  return [part, format, save];
}

const isDark = (el) => { const [r, g, b] = getComputedStyle(el).color.match(/[\d.]+/g).map(Number); return r + g + b > 382; };

async function asked(out, request, draw) {
  const waiting = element("p", { className: "g-soft", role: "status" }, t("Computing …"));
  out.replaceChildren(waiting);
  const drawn = await request.then(draw, (error) => [element("p", { className: "g-error", role: "alert" }, error.message)]);
  if (waiting.isConnected) out.replaceChildren(...drawn);  // else another was asked for meanwhile
}

function drawRollout(model, out) {
  return asked(out, ask(model, "rollout", { dark: isDark(out) }), ({ png, rows }) => [
    element("img", { src: `data:image/png;base64,${png}`, alt: t("Attention rollout; the table below has its largest shares"), className: "g-figure" }),
    element("details", {}, element("summary", {}, t("The {count} largest shares", { count: rows.length })), element("div", { className: "g-scroll" }, element("table", {},
      element("tr", {}, ...[t("token"), t("at"), t("comes from"), t("at"), t("share")].map((name) => element("th", {}, name))),
      ...rows.map((row) => element("tr", {}, ...row.map((value) => element("td", { className: "g-token" }, String(value)))))))),
  ]);
}

function drawBertviz(model, out, view) {
  const { layer, head } = selected(model);
  return asked(out, ask(model, "bertviz", { view, layer, head, dark: isDark(out) }), ({ html, height, note }) => [
    element("iframe", { sandbox: "allow-scripts", srcdoc: html, title: `bertviz, ${BERTVIZ.find(([name]) => name === view)[1].toLowerCase()}`, className: "g-frame", style: `height: ${height}px` }),
    element("p", { className: "g-soft" }, note),
  ]);
}
