import { choose, element, entryName, follow, heat, isolated, panel, select, selected, shown, signed, t } from "./lib.js";

// Logit lens: layers by positions, the last layer on top. Click, or the arrow keys, select a position.

const percent = (p) => `${(100 * p).toFixed(1)} %`;
const { format: whole } = new Intl.NumberFormat("en-US");
const MEASURES = {  // title, unit, what is coloured, the value of the full colour; none: the largest
  top_probability: [t("Top probability"), "", (p) => p, 1],
  probability: [t("Next token's probability"), "", (p) => p, 1],
  rank: [t("Next token's rank (logarithm)"), t("log₁₀ rank"), (rank) => Math.log10(rank)],
  entropy: [t("Entropy"), t("nats"), (nats) => nats],
  divergence: [t("Divergence from the last layer"), t("nats"), (nats) => nats],
};

export function lensgridView({ model, el }) {
  const { panel: frame, note, body } = panel(t("Logit lens"), "lensgrid");
  const scroll = element("div", { className: "g-scroll g-lens" }), legend = element("div", { className: "g-legend g-soft" });
  body.append(scroll, legend);
  el.append(frame);
  let measure = "top_probability", side = null, at = null, row = 0, columns = [], built = null;
  /** The side whose words are shown: of two models, the second. */
  const sideNow = () => { const { sides } = model.get("data"); return sides[Math.min(side, sides.length - 1)]; };

  function rebuild() {
    const { tokens, lens } = sideNow(), offered = Object.entries(MEASURES).filter(([key]) => lens[key]).map(([key, [title]]) => [key, title]);
    if (!lens[measure]) [[measure]] = offered;
    const key = JSON.stringify([tokens, lens.rank.length, offered]);
    if (built !== key) build(tokens, lens, offered);
    built = key;
    paint();
  }

  /** Cells [position][entry] of a side's table, each column's heading first. */
  function build(tokens, { words, rank }, offered) {
    note.replaceChildren(choose(t("Colour by"), offered, measure, (to) => { measure = to; paint(); }));
    const onclick = (position, entry) => () => { row = entry; select(model, { position, token: null }); };
    columns = tokens.map((token, position) => [
      element("th", { scope: "col", className: "g-token", title: t("{name}: {value}", { name: position, value: token }) }, token),
      ...rank.map((_, entry) => element("td", { role: "gridcell", className: words ? "g-token" : "g-rank", tabIndex: -1, onclick: onclick(position, entry) })),
    ]);
    const rows = rank.map((_, entry) => element("tr", {}, element("th", { scope: "row" }, entryName(entry)), ...columns.map((cells) => cells[entry + 1])));
    scroll.replaceChildren(element("table", { role: "grid", "aria-label": words ? t("Top prediction after each layer, at each position") : t("Rank of the next token after each layer, at each position") },
      element("thead", {}, element("tr", {}, element("th", { scope: "row" }, t("after")), ...columns.map(([heading]) => heading))),
      element("tbody", {}, ...rows.reverse())));
    row = Math.min(row, rank.length - 1);
    at = null;
  }

  /** Colours, and every number of a cell as its title. */
  function paint() {
    const { sides } = model.get("data"), [title, unit, read, all] = MEASURES[measure], difference = side === 2, full = sideNow().full?.[measure] ?? all;
    const lenses = (difference ? sides : [sides[side]]).map((of) => of.lens);
    const values = lenses.at(-1)[measure].map((line, entry) => line.map((value, position) => read(value) - (difference ? read(lenses[0][measure][entry][position]) : 0)));
    const most = !difference && full ? full : values.flat().reduce((a, b) => Math.max(a, Math.abs(b)), 1e-9);
    columns.forEach(([, ...cells], position) => cells.forEach((cell, entry) => {
      const here = (table) => table[entry][position], { words, top, rank, followed } = lenses.at(-1);
      if (!words) return paintRank(cell, here(rank), heat(here(values) / most), isolated(followed[position]));
      const numbers = lenses.map((lens, i) => (difference ? `${isolated(sides[i].name)}: ` : "") + t(
        "top prediction {top} {top_probability}; next token {next} {probability}, rank {rank}; entropy {entropy} nats; divergence from the last layer {divergence} nats", {
          top: isolated(lens.words[here(lens.top)]), top_probability: percent(here(lens.top_probability)), next: isolated(lens.followed[position]), probability: percent(here(lens.probability)),
          rank: whole(here(lens.rank)), entropy: shown(here(lens.entropy)), divergence: shown(here(lens.divergence)) }));
      if (cell.textContent !== words[here(top)]) cell.textContent = words[here(top)];  // else the table would be laid out again
      const change = difference ? [t("difference: {value}", { value: `${signed(here(values))} ${unit}`.trim() })] : [];
      cell.title = [t("{entry}, position {position}", { entry: entryName(entry), position }), ...numbers, ...change].join("\n");
      cell.setAttribute("aria-label", `${isolated(cell.textContent)}. ${cell.title}`);
      cell.style.background = heat(here(values) / most);
    }));
    const scale = element("i", { className: difference ? "g-scale g-both" : "g-scale", "aria-hidden": "true" }), digits = all ? 2 : 1;
    legend.replaceChildren(`${title} ${difference ? signed(-most, digits) : "0"} `, scale, ` ${difference ? signed(most, digits) : shown(most, all ? 0 : 1)} ${unit}`);
  }

  /** A cell of a lens that has no more than ranks; along a training most stay as they are. */
  function paintRank(cell, rank, background, next) {
    const text = whole(rank);
    if (cell.textContent !== text) {
      cell.textContent = text;
      cell.title = t("next token {next}, rank {rank}", { next, rank: text });
    }
    if (cell.dataset.colour !== background) cell.style.background = cell.dataset.colour = background;
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
    if (side !== now) { side = now; rebuild(); }
    const stays = at === position;
    columns[at]?.forEach((cell) => { cell.classList.remove("g-on"); cell.tabIndex = -1; cell.removeAttribute("aria-selected"); });
    at = position;
    columns[at].forEach((cell, i) => { cell.classList.add("g-on"); if (i) cell.setAttribute("aria-selected", "true"); });
    const cell = columns[at][row + 1];
    cell.tabIndex = 0;
    if (!stays) reveal(cell);
  }

  scroll.onkeydown = (event) => {
    const entries = columns[at].length - 1, T = columns.length;
    const to = { ArrowLeft: [at - 1, row], ArrowRight: [at + 1, row], ArrowUp: [at, row + 1], ArrowDown: [at, row - 1], Home: [0, row], End: [T - 1, row] }[event.key];
    if (!to) return;
    event.preventDefault();
    const within = (value, count) => Math.max(0, Math.min(value, count - 1));
    row = within(to[1], entries);
    const position = within(to[0], T);
    if (position === at) { draw(); reveal(columns[at][row + 1]); }
    else select(model, { position, token: null });
    columns[at].forEach((each, i) => { if (i) each.tabIndex = i === row + 1 ? 0 : -1; });
    columns[at][row + 1].focus({ preventScroll: true });
  };
  const end = follow(model, () => { side = null; }, draw);
  const watch = new ResizeObserver(() => { if (at !== null) reveal(columns[at][row + 1]); });  // also when it is shown for the first time
  watch.observe(scroll);
  return () => { watch.disconnect(); end(); };
}
