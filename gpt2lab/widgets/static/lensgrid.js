import { choose, element, entryName, follow, heat, isolated, panel, select, selected, shown, signed, t } from "./lib.js";

// Logit lens: layers by positions, the last layer on top. Click, or the arrow keys, select a position.

const percent = (p) => `${(100 * p).toFixed(1)} %`;
const MEASURES = {  // title, unit, what is coloured, the value of the full colour; none: the largest
  top_probability: [t("Top probability"), "", (p) => p, 1],
  probability: [t("Next token's probability"), "", (p) => p, 1],
  rank: [t("Next token's rank (logarithm)"), t("log₁₀ rank"), Math.log10],
  entropy: [t("Entropy"), t("nats"), (nats) => nats],
  divergence: [t("Divergence from the last layer"), t("nats"), (nats) => nats],
};

export function lensgridView({ model, el }) {
  const { panel: frame, note, body } = panel(t("Logit lens"), "lensgrid");
  const scroll = element("div", { className: "g-scroll g-lens" }), legend = element("div", { className: "g-legend g-soft" });
  body.append(scroll, legend);
  el.append(frame);
  let measure = "top_probability", side = null, at = null, row = 0, columns = [];
  note.append(choose(t("Colour by"), Object.entries(MEASURES).map(([key, [title]]) => [key, title]), measure, (to) => { measure = to; paint(); }));

  /** Cells [position][entry] of a side's table, each column's heading first; of two models, those of the second. */
  function build() {
    const { sides } = model.get("data"), of = sides[Math.min(side, sides.length - 1)], { words, top } = of.lens;
    const onclick = (position, entry) => () => { row = entry; select(model, { position, token: null }); };
    columns = of.tokens.map((token, position) => [
      element("th", { scope: "col", className: "g-token", title: t("{name}: {value}", { name: position, value: token }) }, token),
      ...top.map((found, entry) => element("td", { role: "gridcell", className: "g-token", tabIndex: -1, onclick: onclick(position, entry) }, words[found[position]])),
    ]);
    const rows = top.map((_, entry) => element("tr", {}, element("th", { scope: "row" }, entryName(entry)), ...columns.map((cells) => cells[entry + 1])));
    scroll.replaceChildren(element("table", { role: "grid", "aria-label": t("Top prediction after each layer, at each position") },
      element("thead", {}, element("tr", {}, element("th", { scope: "row" }, t("after")), ...columns.map(([heading]) => heading))),
      element("tbody", {}, ...rows.reverse())));
    row = Math.min(row, top.length - 1);
    at = null;
    paint();
  }

  /** Colours, and every number of a cell as its title. */
  function paint() {
    const { sides } = model.get("data"), [title, unit, read, full] = MEASURES[measure], difference = side === 2;
    const lenses = (difference ? sides : [sides[side]]).map((of) => of.lens);
    const values = lenses.at(-1)[measure].map((line, entry) => line.map((value, position) => read(value) - (difference ? read(lenses[0][measure][entry][position]) : 0)));
    const most = !difference && full ? full : values.flat().reduce((a, b) => Math.max(a, Math.abs(b)), 1e-9);
    columns.forEach(([, ...cells], position) => cells.forEach((cell, entry) => {
      const here = (table) => table[entry][position];
      const numbers = lenses.map((lens, i) => (difference ? `${isolated(sides[i].name)}: ` : "") + t(
        "top prediction {top} {top_probability}; next token {next} {probability}, rank {rank}; entropy {entropy} nats; divergence from the last layer {divergence} nats", {
          top: isolated(lens.words[here(lens.top)]), top_probability: percent(here(lens.top_probability)), next: isolated(lens.followed[position]), probability: percent(here(lens.probability)),
          rank: here(lens.rank).toLocaleString("en-US"), entropy: shown(here(lens.entropy)), divergence: shown(here(lens.divergence)) }));
      const change = difference ? [t("difference: {value}", { value: `${signed(here(values))} ${unit}`.trim() })] : [];
      cell.title = [t("{entry}, position {position}", { entry: entryName(entry), position }), ...numbers, ...change].join("\n");
      cell.setAttribute("aria-label", `${isolated(cell.textContent)}. ${cell.title}`);
      cell.style.background = heat(here(values) / most);
    }));
    const scale = element("i", { className: difference ? "g-scale g-both" : "g-scale", "aria-hidden": "true" }), digits = full ? 2 : 1;
    legend.replaceChildren(`${title} ${difference ? signed(-most, digits) : "0"} `, scale, ` ${difference ? signed(most, digits) : shown(most, full ? 0 : 1)} ${unit}`);
  }

  /** Scroll to a cell within the table's own frame, beside its sticky headings. */
  function reveal(cell) {
    const heading = scroll.querySelector("th"), [dx, dy] = [heading.offsetWidth, heading.offsetHeight];
    const left = cell.offsetLeft - dx, top = cell.offsetTop - dy;
    if (left < scroll.scrollLeft || cell.offsetLeft + cell.offsetWidth > scroll.scrollLeft + scroll.clientWidth) scroll.scrollLeft = left - (scroll.clientWidth - dx - cell.offsetWidth) / 2;
    if (top < scroll.scrollTop || cell.offsetTop + cell.offsetHeight > scroll.scrollTop + scroll.clientHeight) scroll.scrollTop = top - (scroll.clientHeight - dy - cell.offsetHeight) / 2;
  }

  function draw() {
    const { position, side: now } = selected(model);
    if (side !== now) { side = now; build(); }
    columns[at]?.forEach((cell) => { cell.classList.remove("g-on"); cell.tabIndex = -1; cell.removeAttribute("aria-selected"); });
    at = position;
    columns[at].forEach((cell, i) => { cell.classList.add("g-on"); if (i) cell.setAttribute("aria-selected", "true"); });
    const cell = columns[at][row + 1];
    cell.tabIndex = 0;
    reveal(cell);
  }

  scroll.onkeydown = (event) => {
    const entries = columns[at].length - 1, T = columns.length;
    const to = { ArrowLeft: [at - 1, row], ArrowRight: [at + 1, row], ArrowUp: [at, row + 1], ArrowDown: [at, row - 1], Home: [0, row], End: [T - 1, row] }[event.key];
    if (!to) return;
    event.preventDefault();
    const within = (value, count) => Math.max(0, Math.min(value, count - 1));
    row = within(to[1], entries);
    const position = within(to[0], T);
    if (position === at) draw();
    else select(model, { position, token: null });
    columns[at].forEach((each, i) => { if (i) each.tabIndex = i === row + 1 ? 0 : -1; });
    columns[at][row + 1].focus({ preventScroll: true });
  };
  const end = follow(model, () => { side = null; }, draw);
  const watch = new ResizeObserver(() => { if (at !== null) reveal(columns[at][row + 1]); });  // also when it is shown for the first time
  watch.observe(scroll);
  return () => { watch.disconnect(); end(); };
}
