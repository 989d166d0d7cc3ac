import { canAsk, cell, choose, colour, download, element, follow, heat, isolated, listed, onTheme, paint, panel, select, selected, sideSelect, signed, subjectOf, t } from "./lib.js";
import { arrivals, comparable, exactRow, fetchPart, largest, matrixOf, picture, share, start, weightsOf } from "./weights.js";
import { canvasPen, svgPen } from "./pen.js";
import { COLOURS, heatmapPlot, linesPlot, ROW } from "./plots.js";

// Who attends to whom: a heatmap, lines or the coloured text of the selected head, or of several heads of its layer together.
// The selected position is the token that attends ("to") or is attended to ("by"); `other` is the token at the pair's other end.

const VIEWS = { heatmap: t("Heatmap"), lines: t("Lines"), text: t("Text") };
const clamp = (value, most) => Math.max(0, Math.min(most, value));
const upTo = (error) => (Math.ceil(error * 1e4) / 1e4).toFixed(4);  // a bound is never rounded down
const readable = (token) => token.replaceAll("·", " ").trim().toLowerCase();

/** textPlace: where the text stands beside the pictures, on a page that has room; else it is one of the views. */
export function attentionView({ model, el, textPlace = null }) {
  const state = { heads: [0], other: null, together: "mean", threshold: 0, first: false, root: true, view: "heatmap", mode: "to", all: false };
  let preview = null;  // a head under the pointer: {layer, head}
  let hovered = null;  // a pair under the pointer: {position, other}
  let was = {}, spans = [], cached = {}, map = {}, subject = null;

  // ---- the parts of the view -------------------------------------------------------------------------------

  const { panel: frame, note, body } = panel(t("Attention"), "attention");
  const button = (text, onclick, properties = {}) => element("button", { type: "button", className: "g-button", onclick, ...properties }, text);
  const views = Object.entries(VIEWS).filter(([view]) => view !== "text" || !textPlace)
    .map(([view, title]) => button(title, () => change({ view }), { value: view }));
  note.append(element("span", { className: "g-bar g-views", role: "group", "aria-label": t("View") }, ...views));
  const places = element("span", { className: "g-bar" }), headBar = element("span", { className: "g-bar g-heads", role: "group", "aria-label": t("Heads of this layer") });
  const mode = choose(t("Direction"), [["to", t("Attends to")], ["by", t("Attended to by")]], "to", (mode) => change({ mode, other: null }));
  const title = element("p", { className: "g-title" });
  const heatmap = element("canvas", { tabIndex: 0, role: "application", className: "g-heatmap",
    "aria-label": t("Heatmap: rows attend to columns. Up and down arrow keys choose the row, left and right the column.") });
  const lines = element("canvas", { tabIndex: 0, role: "application", "aria-label": t("Lines from token to token. Arrow keys choose the token.") });
  const room = element("div"), scroll = element("div", { className: "g-lines" }, lines, room);
  const text = element("div", { className: "g-text", role: "listbox", "aria-label": t("Text coloured by attention"), "aria-orientation": "horizontal" });
  const ramp = element("i", { className: "g-ramp", "aria-hidden": "true" }), range = element("span");
  const legend = element("p", { className: "g-soft g-legend-line" }, ramp, range);
  const hover = element("p", { className: "g-hover" }), trouble = element("p", { className: "g-error", role: "alert", hidden: true });
  const summary = element("div", { className: "g-hidden", "aria-live": "polite" });
  const formula = element("p"), products = element("table");
  const pair = element("section", { className: "g-pair", hidden: true }, element("h3", {}, t("From q and k to the weight")), formula, element("div", { className: "g-scroll" }, products));
  const together = choose(t("Combine"), [["mean", t("Mean")], ["max", t("Maximum")]], "mean", (together) => change({ together }));
  const threshold = element("input", { type: "range", min: 0, max: 1, step: 0.01, value: 0, "aria-label": t("Minimum weight"), oninput: () => change({ threshold: Number(threshold.value) }) });
  const least = element("output");
  const check = (name, label) => {
    const box = element("input", { type: "checkbox", name, onchange: () => change({ [name]: box.checked }) });
    return element("label", { className: "g-bar" }, box, label);
  };
  const checks = [check("first", t("Hide first token (renormalised)")), check("root", t("√ colours")), check("all", t("Lines of all tokens"))];
  const search = element("input", { type: "search", placeholder: t("token"), "aria-label": t("Find token; Enter goes to the next") });
  const png = button("PNG", () => (state.view === "lines" ? lines : heatmap).toBlob((blob) => save(blob, "png")), { title: t("The picture as shown") });
  const svg = button("SVG", () => save(svgOf(), "svg"), { title: t("The whole picture") });
  const files = element("span", { className: "g-bar", role: "group", "aria-label": t("Download") }, png, svg, button("CSV", () => save(csv(), "csv"), { title: t("The weights as shown") }));
  const options = element("details", { className: "g-options" }, element("summary", {}, t("Options and export")), element("div", { className: "g-bar" },
    element("label", { className: "g-bar" }, t("Combine"), together), element("label", { className: "g-bar" }, t("Min weight"), threshold, least), ...checks,
    element("label", { className: "g-bar" }, t("Find"), search), files));
  const rows = element("table"), twin = element("details", { ontoggle: () => drawTable() }, element("summary", {}, t("Weights as a table")), element("div", { className: "g-scroll g-tall" }, rows));
  body.append(element("div", { className: "g-bar" }, places, mode, headBar), title, trouble, heatmap, scroll, legend, hover, pair, options, twin, summary);
  (textPlace ?? element("div")).append(text);
  if (!textPlace) scroll.after(text);
  el.append(frame);

  // ---- what is shown now -----------------------------------------------------------------------------------

  /** What is selected, previewed or hovered, and where its weights are. */
  function current() {
    const { sides } = model.get("data"), chosen = selected(model), side = chosen.side === 2 && !comparable(sides) ? 0 : chosen.side;
    const layer = preview?.layer ?? chosen.layer, heads = preview ? [preview.head] : state.heads, shown = (side === 2 ? sides : [sides[side]]);
    const { tokens } = shown[0];
    return { ...chosen, side, sides, layer, heads, tokens, T: tokens.length, H: shown[0].heads, stores: shown.map(weightsOf) };
  }
  const present = ({ stores, layer }) => stores.every((store) => store.layers.has(layer));
  const placeNow = () => hovered ?? { position: selected(model).position, other: state.other };
  const pairOf = ({ position, other }) => state.mode === "to" ? { query: position, key: other } : { query: other, key: position };

  /** The triangle that is shown: of one head, or the mean or maximum of several (of differences: the one that is largest either way). */
  function matrixNow() {
    const { side, layer, heads, stores } = current(), key = JSON.stringify([side, layer, heads, state.together, state.first]);
    if (cached.key !== key || cached.store !== stores[0]) {
      const matrix = shownMatrix(stores, layer, heads);
      cached = { key, store: stores[0], matrix, most: largest(matrix) || 1 };
    }
    return cached;
  }
  function shownMatrix(stores, layer, heads) {
    const parts = heads.map((head) => matrixOf(stores, layer, head, state.first));
    if (parts.length === 1) return parts[0];
    const all = new Float32Array(parts[0].length);
    for (const part of parts) for (let p = 0; p < all.length; p++) {
      if (state.together === "mean") all[p] += part[p] / parts.length;
      else if (Math.abs(part[p]) > Math.abs(all[p])) all[p] = part[p];
    }
    return all;
  }

  /** The weights of one row as they are shown; from q and k where they are here, else with their bound. */
  function rowNow(query) {
    const { stores, layer, heads } = current(), from = start(query);
    const carried = heads.length === 1 ? stores.map((store) => store.vectors(layer, heads[0])) : [null];
    if (!carried.every(Boolean)) return { values: matrixNow().matrix.subarray(from, from + query + 1), error: boundOf(query) };
    const [ours, theirs] = carried.map((found) => {
      const { weights } = exactRow(found, query), rest = weights.slice(1).reduce((a, b) => a + b, 0);
      return state.first ? weights.map((weight, j) => j && rest ? weight / rest : 0) : weights;
    });
    return { values: theirs ? ours.map((weight, j) => theirs[j] - weight) : ours, error: 0 };
  }
  /** How far a weight of a row, as shown, may lie from the model's: the errors of both sides of a difference add up, and
   *  without the first token those of a weight and of the rest that it is divided by. */
  function boundOf(query) {
    const { stores, layer, heads } = current();
    return stores.map((store) => {
      if (!state.first) return store.bound;
      const rest = Math.min(...heads.map((head) => 1 - store.triangle(layer, head)[start(query)]));
      return Math.min(1, 2 * store.bound / Math.max(rest, store.bound));
    }).reduce((a, b) => a + b, 0);
  }
  const weightAt = (query, key) => { const { values, error } = rowNow(query); return { value: values[key], error }; };

  /** [token, weight] of what the selected token attends to, or of what attends to it; the bound of their error. */
  function around({ position }) {
    const { T } = current(), to = state.mode === "to", hidden = Number(state.first), row = to ? rowNow(position) : null, { matrix } = matrixNow();
    const others = Array.from({ length: to ? position + 1 : T - position }, (_, i) => to ? i : position + i);
    if (hidden && position === 0) return { entries: [], error: 0 };
    const entries = others.filter((i) => i >= hidden).map((i) => [i, to ? row.values[i] : matrix[start(i) + position]]);
    return { entries, error: to ? row.error : Math.max(0, ...entries.map(([i]) => boundOf(i))) };
  }

  // ---- words -----------------------------------------------------------------------------------------------

  const named = (position) => `${position} “${isolated(current().tokens[position])}”`;
  const number = (value, digits) => current().side === 2 ? signed(value, digits) : value.toFixed(digits);
  // of several heads' differences the largest may, within its bound, be another head's of the other sign
  const bound = (error) => current().side === 2 && state.together === "max" && current().heads.length > 1 ? t("{bound} in size", { bound: upTo(error) }) : upTo(error);
  function partName() {
    const { layer, heads, side, sides } = current(), together = state.together === "mean" ? t("mean") : t("max");
    const part = heads.length > 1 ? t("Layer {layer}, heads {heads} ({together})", { layer, heads: listed(heads), together }) : t("Layer {layer}, head {head}", { layer, head: heads[0] });
    if (sides.length < 2) return part;
    return t("{heads}, {model}", { heads: part, model: side === 2 ? t("{other} less {base}", { base: sides[0].name, other: sides[1].name }) : sides[side].name });
  }
  /** The weight of a pair, or the largest weights of one token, as text. */
  function described(place, count) {
    const { query, key } = pairOf(place);
    if (state.first && (query === 0 || key === 0)) return t("The first token is hidden.");
    if (query !== null && key !== null) {
      const { value, error } = weightAt(query, key);
      return t("{query} attends to {keys}", { query: named(query), keys: t("{name}: {value}", { name: named(key), value: `${number(value, error ? 4 : 6)}${error ? ` ± ${bound(error)}` : ""}` }) });
    }
    const { entries, error } = around(place);
    const best = entries.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, count);
    const others = listed(best.map(([i, weight]) => `${named(i)} ${number(weight, 3)}`)) + (error ? ` (± ${bound(error)})` : "");
    return state.mode === "to" ? t("{query} attends to {keys}", { query: named(query), keys: others }) : t("{key} is attended to by {queries}", { key: named(key), queries: others });
  }

  // ---- drawing ---------------------------------------------------------------------------------------------

  let ink = {};
  function readColours() {
    const css = (name) => `rgb(${colour(frame, name).join(", ")})`;
    ink = { hot: colour(frame, "--g-hot"), cold: colour(frame, "--g-cold"), ink: css("--g-ink"), soft: css("--g-soft"), line: css("--g-line"), paper: css("--g-paper"), accent: css("--g-accent") };
    cached = {};
  }

  const scene = () => { const { T, tokens, side } = current(); return { T, tokens, ink, difference: side === 2, ...state, ...pairOf(placeNow()) }; };
  function drawHeatmap(open = canvasPen) {
    map = heatmapPlot(open, heatmap, { ...scene(), width: Math.min(720, body.clientWidth), picture: pictureNow });
  }

  /** The heatmap's picture; kept, so that the pointer's way across it draws only frames. */
  function pictureNow(side) {
    const shown = matrixNow(), key = JSON.stringify([side, state.root, state.threshold]);
    if (shown.drawn !== key) Object.assign(shown, { drawn: key, picture: picture(shown.matrix, current().T, side, shown.most, { ...ink, root: state.root, least: state.threshold }) });
    return shown.picture;
  }

  function drawLines(open = canvasPen, whole = false) {
    const { layer, heads, stores } = current(), parts = heads.map((head) => ({ head, matrix: matrixOf(stores, layer, head, state.first) }));
    const { count, below } = linesPlot(open, lines, { ...scene(), parts, width: scroll.clientWidth, top: whole ? 0 : scroll.scrollTop, whole });
    if (!whole) room.style.height = `${below}px`;
    lines.dataset.lines = count;  // for those who count
  }

  function drawText() {
    const place = placeNow(), weights = new Map(around(place).entries), most = Math.max(1e-9, ...[...weights.values()].map(Math.abs));
    const wanted = search.value.trim().toLowerCase(), { tokens, position } = current();
    spans.forEach((span, i) => {
      const value = weights.get(i) ?? 0, shown = Math.abs(value) >= Math.max(state.threshold, 1e-9);
      paint(span, shown ? share(value, most, state.root) : null);
      span.title = weights.has(i) ? t("{name}: {value}", { name: i, value: number(value, 4) }) : String(i);
      span.setAttribute("aria-selected", i === place.position);
      span.tabIndex = i === position ? 0 : -1;
      span.classList.toggle("g-found", wanted !== "" && readable(tokens[i]).includes(wanted));
    });
  }

  function drawLegend() {
    const { most } = matrixNow(), difference = current().side === 2, several = current().heads.length > 1, asLines = state.view === "lines";
    const stops = Array.from({ length: 17 }, (_, i) => heat(share(difference ? i / 8 - 1 : i / 16, 1, state.root)));
    ramp.style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
    ramp.hidden = asLines && several && !difference;
    const end = asLines && !difference ? 1 : most;
    range.textContent = ramp.hidden ? t("A colour per head; the heavier, the stronger")
      : difference ? t("{low} to {high}, difference of weights", { low: signed(-end), high: signed(end) }) : t("0 to {high}, attention weight", { high: end.toFixed(3) });
  }

  /** The products of q and k for the selected pair, and how they become a weight. */
  function drawPair() {
    const { query, key } = pairOf({ position: selected(model).position, other: state.other }), { heads, layer, side, stores } = current();
    pair.hidden = query === null || key === null || heads.length !== 1 || side === 2 || !stores[0].side.attention.width;
    if (pair.hidden) return;
    const found = stores[0].vectors(layer, heads[0]);
    products.replaceChildren();
    if (!found) {
      formula.textContent = canAsk(model) ? t("Loading q and k…")
        : t("This page has q and k of {heads}; save it with layer {layer}, head {head} selected to see this pair.", { heads: carried(stores[0]), layer, head: heads[0] });
      return need("qk", { layer, head: heads[0] });
    }
    const { q, k, K, scaling, rule } = found, { scores, weights } = exactRow(found, query);
    const table = Array.from({ length: K }, (_, d) => [d, q[query * K + d], k[key * K + d], q[query * K + d] * k[key * K + d]]);
    const dot = table.reduce((sum, row) => sum + row[3], 0);
    formula.textContent = t("q of {query} · k of {key} = {product}; × {scaling} ({rule}) = {score}; softmax over the {count} tokens up to it: {weight}", {
      query: named(query), key: named(key), product: dot.toFixed(4), scaling: scaling.toFixed(4), rule: t(rule), score: scores[key].toFixed(4), count: query + 1, weight: weights[key].toFixed(6) });
    table.sort((a, b) => Math.abs(b[3]) - Math.abs(a[3]));
    fill(products, [t("dimension"), "q", "k", "q × k"], table.map(([d, ...values]) => [d, ...values.map((value) => value.toFixed(4))]));
  }
  const carried = (store) => {
    const found = [...store.pairs.keys()].map((place) => place.split(".")).map(([layer, head]) => t("layer {layer} head {head}", { layer, head }));
    return found.length > 6 ? t("{heads} and {count} more", { heads: listed(found.slice(0, 6)), count: found.length - 6 }) : listed(found);
  };
  const fill = (table, head, rows) => {
    const line = (cells, tag) => element("tr", {}, ...cells.map((cell) => element(tag, {}, String(cell))));
    table.replaceChildren(line(head, "th"), ...rows.map((cells) => line(cells, "td")));
  };

  function drawTable() {
    if (!twin.open || !present(current())) return;
    const { position, tokens } = current(), { entries, error } = around({ position });
    const head = state.mode === "to" ? t("{query} attends to", { query: named(position) }) : t("{key} is attended to by", { key: named(position) });
    fill(rows, ["", head, error ? t("weight ± {bound}", { bound: bound(error) }) : t("weight")], entries.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).map(([i, weight]) => [i, tokens[i], number(weight, error ? 4 : 6)]));
  }

  const need = (kind, options) => fetchPart(model, kind, options).catch((error) => tell(error.message));
  const tell = (line) => Object.assign(trouble, { textContent: line, hidden: false });

  /** Draw what the pointer changes. */
  function drawPlace() {
    if (!body.clientWidth || !present(current())) return;
    if (state.view === "lines") drawLines();
    if (state.view === "heatmap") drawHeatmap();
    if (textPlace || state.view === "text") drawText();
    hover.textContent = described(placeNow(), 3);
  }

  function draw() {
    const now = selected(model);
    if (was.layer !== now.layer || was.head !== now.head) state.heads = [now.head];
    if (was.position !== now.position) state.other = null;
    if (was.side !== now.side && was.side !== undefined) buildText();
    was = now;
    controls();
    const shown = current(), waits = !present(shown);
    body.style.minHeight = waits ? body.style.minHeight || `${body.offsetHeight}px` : "";  // else the page below would jump
    for (const part of [heatmap, scroll, text, legend, hover]) part.hidden = waits;
    const { layer } = shown, without = now.off.some(([l, head]) => l === layer && shown.heads.includes(head));
    title.textContent = waits ? canAsk(model) ? t("Layer {layer}: loading…", { layer }) : t("Layer {layer}: not in this page.", { layer })
      : without ? t("{heads} (off)", { heads: partName() }) : partName();
    if (waits) return shown.stores.every((store) => store.layers.size) && need("attention", { layer });
    heatmap.hidden = state.view !== "heatmap";
    scroll.hidden = state.view !== "lines";
    text.hidden = !textPlace && state.view !== "text";
    drawPlace();
    drawLegend();
    drawPair();
    drawTable();
    const words = t("{heads}. {weights}.", { heads: partName(), weights: described({ position: now.position, other: state.other }, 5) });
    if (summary.textContent !== words) summary.textContent = words;
    el.view?.onchange?.();
    frame.dataset.drawn = "true";  // for those who measure
  }

  function controls() {
    const { layer, side } = selected(model), { H } = current();
    places.querySelectorAll("select").forEach((field) => { field.value = field.name === "layer" ? layer : side; });
    for (const one of views) one.setAttribute("aria-pressed", one.value === state.view);
    for (const one of headBar.children) one.setAttribute("aria-pressed", one.value === "all" ? state.heads.length === H : state.heads.includes(Number(one.value)));
    headBar.classList.toggle("g-coloured", state.view === "lines" && state.heads.length > 1 && side < 2);
    for (const label of checks) label.firstChild.checked = state[label.firstChild.name];
    checks[2].hidden = state.view !== "lines";
    png.hidden = svg.hidden = state.view === "text";
    Object.assign(mode, { value: state.mode });
    Object.assign(together, { value: state.together });
    Object.assign(threshold, { value: state.threshold });
    least.textContent = state.threshold.toFixed(2);
  }

  // ---- what the reader does --------------------------------------------------------------------------------

  /** Change what is shown: of the selection `side, layer, position`, of the view's own state all else. */
  function change({ side, layer, position, ...own }) {
    Object.assign(state, own);
    preview = hovered = null;
    const before = selected(model), head = !own.heads || own.heads.includes(before.head) ? before.head : own.heads[0];
    const asked = Object.entries({ side, layer, position, head }).filter(([, value]) => value !== undefined);
    const moved = Object.fromEntries(asked.filter(([name, value]) => before[name] !== value));
    was = { ...was, ...(own.heads && { layer: layer ?? before.layer, head }), ...("other" in own && { position: position ?? before.position }) };
    if (Object.keys(moved).length) select(model, { ...moved, ...("position" in moved && { token: null }) });
    else draw();
  }
  function toggled(head) {
    const others = state.heads.filter((other) => other !== head);
    if (others.length === state.heads.length) return [...others, head].sort((a, b) => a - b);
    return others.length ? others : state.heads;  // one at least is shown
  }
  /** A pair as the view's direction reads it. */
  const placeOf = (query, key) => state.mode === "to" ? { position: query, other: key } : { position: key, other: query };

  function pointed(part, find, move) {
    part.onpointermove = (event) => {
      const found = event.pointerType === "touch" ? null : find(event);
      if (JSON.stringify(found) === JSON.stringify(hovered)) return;
      hovered = found;
      drawPlace();
    };
    part.onpointerleave = () => { if (hovered) { hovered = null; drawPlace(); } };
    part.onclick = (event) => { const found = find(event); if (found) change(found); };
    part.onkeydown = move;
  }
  const at = (event, canvas) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  pointed(heatmap, (event) => {
    const [x, y] = at(event, heatmap), { T } = current(), query = Math.floor(y / map.size), key = Math.floor((x - map.edge) / map.size);
    if (query < 0 || query >= T) return null;
    return key >= 0 && key <= query ? placeOf(query, key) : key < 0 ? { position: query, other: null } : null;
  }, walk);
  pointed(lines, (event) => {
    const token = Math.floor((at(event, lines)[1] + scroll.scrollTop - 6) / ROW);
    return token >= 0 && token < current().T ? { position: token, other: null } : null;
  }, walk);
  pointed(text, (event) => {
    const token = spans.indexOf(event.target);
    return token < 0 ? null : { position: token, other: null };
  }, walk);
  scroll.onscroll = () => drawPlace();

  /** Arrow keys between tokens: on the heatmap the row up and down, the column left and right; elsewhere the selected token either way. */
  function walk(event) {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [-1e9, 0], End: [1e9, 0] }[event.key], { T, position } = current();
    if (event.key === "Escape") return change({ other: null });
    if (!step) return;
    event.preventDefault();
    if (event.currentTarget !== heatmap) {
      change({ position: clamp(position + step[0] + step[1], T - 1), other: null });
    } else if (state.mode === "to") {
      const query = clamp(position + step[0], T - 1), from = state.other ?? (step[1] > 0 ? -1 : position + 1);
      change({ position: query, other: step[1] ? clamp(from + step[1], query) : state.other === null ? null : Math.min(state.other, query) });
    } else {
      const key = clamp(position + step[1], T - 1), up = Math.abs(step[0]) > 1 ? 0 : step[0], from = state.other ?? (up > 0 ? position - 1 : T);
      change(Math.abs(step[0]) > 1 ? { position: clamp(step[0], T - 1), other: null }
        : { position: key, other: up ? Math.max(key, clamp(from + up, T - 1)) : state.other === null ? null : Math.max(state.other, key) });
    }
    const next = selected(model).position;
    if (event.currentTarget === text) spans[next].focus();
    if (!scroll.hidden) scroll.scrollTop = Math.max(Math.min(scroll.scrollTop, next * ROW), (next + 2) * ROW - scroll.clientHeight);
  }

  /** Select a token that holds what is searched: the first, or the one that is `step` further than the selected one. */
  function find(step) {
    const wanted = search.value.trim().toLowerCase(), { tokens, position } = current();
    drawText();
    const found = wanted ? tokens.flatMap((token, i) => readable(token).includes(wanted) ? [i] : []) : [];
    if (wanted && !found.length) hover.textContent = t("No token contains “{text}”; a longer word may be several tokens.", { text: wanted });
    if (!found.length) return;
    const held = step ? found.indexOf(position) : -1, next = held < 0 ? found[0] : found.at((held + step) % found.length);
    spans[next].scrollIntoView({ block: "nearest" });
    change({ position: next, other: null });
  }
  search.oninput = () => find(0);
  search.onkeydown = (event) => { if (event.key === "Enter") find(event.shiftKey ? -1 : 1); };

  // ---- files -----------------------------------------------------------------------------------------------

  function svgOf() {
    let pen;
    const open = (canvas, ...size) => (pen = svgPen(...size));
    if (state.view === "lines") drawLines(open, true);
    else drawHeatmap(open);
    return pen.svg(listed([partName(), state.first && t("without the first token"), state.threshold && t("from weight {weight}", { weight: state.threshold.toFixed(2) })].filter(Boolean)));
  }
  function csv() {
    const { T, tokens, side } = current(), table = [`query,query_token,key,key_token,${side === 2 ? "difference" : "weight"},error`], hidden = Number(state.first);
    for (let i = hidden; i < T; i++) {
      const { values, error } = rowNow(i);
      for (let j = hidden; j <= i; j++) if (Math.abs(values[j]) >= state.threshold)
        table.push([i, cell(tokens[i]), j, cell(tokens[j]), values[j].toPrecision(error ? 4 : 6), error ? upTo(error) : 0].join(","));
    }
    return `${table.join("\r\n")}\r\n`;
  }
  function save(content, ending) {
    const { layer, heads, side, sides } = current(), of = sides.length > 1 ? `-${["first", "second", "difference"][side]}` : "";
    const parts = [heads.length > 1 ? `-${state.together}` : "", of, state.threshold ? `-from${state.threshold.toFixed(2)}` : "", state.first ? "-without-first" : ""];
    download(content, `attention-layer${layer}-heads${heads.join("-")}${parts.join("")}.${ending}`, { svg: "image/svg+xml", csv: "text/csv" }[ending]);
  }

  // ---- life ------------------------------------------------------------------------------------------------

  function buildText() {
    const { tokens, T } = current();
    spans = tokens.map((token) => element("span", { role: "option", className: token.includes("⏎") ? "g-line" : "", tabIndex: -1 }, token.replaceAll("·", " ")));
    text.replaceChildren(...spans);
    state.other = state.other < T ? state.other : null;
  }
  function rebuild() {
    const waiting = model.get("data").sides.filter((side) => side.attention).map(weightsOf).filter((store) => !store.whole);
    if (subject !== subjectOf(model)) build();
    if (waiting.length) Promise.all(waiting.map((store) => store.ready)).then(draw, () => tell(t("This browser cannot unpack the data; open it in a browser of 2023 or later.")));
  }
  function build() {
    const { H, stores } = current(), { layers } = stores[0].side;
    const layer = choose(t("Layer"), Array.from({ length: layers }, (_, i) => [i, t("Layer {layer}", { layer: i })]), 0, (to) => change({ layer: Number(to) }));
    layer.name = "layer";
    places.replaceChildren(...[sideSelect(model), layer].filter(Boolean));
    const head = (value, label, onclick, style = null) => button(label, onclick, { value, style, "aria-label": value === "all" ? t("All heads") : t("Head {head}", { head: value }) });
    headBar.replaceChildren(...Array.from({ length: H }, (_, i) => head(i, i, () => change({ heads: toggled(i) }), `--colour: ${COLOURS[i % COLOURS.length]}`)),
      head("all", t("all"), () => change({ heads: Array.from({ length: H }, (_, i) => i) })));
    was = {};
    subject = subjectOf(model);
    readColours();
    buildText();
  }

  el.view = {
    state: () => { const { side, layer, position } = selected(model); return { side, layer, position, ...state }; },
    change, weightAt, current, exactRow, boundOf, csv, svg: svgOf,
    preview: (head) => { preview = head; draw(); },
    matrix: () => matrixNow().matrix,
    weights: (side, layer, head) => weightsOf(model.get("data").sides[side]).triangle(layer, head),
    vectors: (side, layer, head) => weightsOf(model.get("data").sides[side]).vectors(layer, head),
    cellAt: (query, key) => ({ x: map.edge + (key + 0.5) * map.size, y: (query + 0.5) * map.size }),
  };
  const end = follow(model, rebuild, draw), endTheme = onTheme(() => { readColours(); draw(); });
  const arrived = () => { trouble.hidden = true; draw(); };
  arrivals.addEventListener("arrived", arrived);
  let width = body.clientWidth;
  const resized = new ResizeObserver(() => { if (body.clientWidth !== width) { width = body.clientWidth; draw(); } });
  resized.observe(body);
  return () => { end(); endTheme(); resized.disconnect(); arrivals.removeEventListener("arrived", arrived); };
}
