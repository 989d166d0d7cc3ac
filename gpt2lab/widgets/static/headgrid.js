import { arrow, canAsk, choose, colour, element, follow, onTheme, paint, panel, select, selected, shown, sideSelect, signed, subjectOf, t } from "./lib.js";
import { arrivals, comparable, fetchPart, largest, matrixOf, picture, start, weightsOf } from "./weights.js";

// A cell per head, the last layer on top: coloured by a number, or a thumbnail of its attention. A click selects a head,
// Shift-click switches it off or on.

const THUMBNAIL = 64;  // pixels of a thumbnail's side, at most
const CHANGE = [t("Change"), "share of attention, 0 to 1", t("Mean share of its attention that a token gives to other tokens than before (total variation distance).")];

/** score: what colours the heads first; alone: with a select of the side that is shown; switches: whether heads can be switched off.
 *  onhover: called with the head under the pointer, {layer, head} or null; onshow: with the name of what colours the heads. */
export function headgridView({ model, el, score = "induction", alone = true, switches = true, onhover = () => {}, onshow = () => {} }) {
  const { panel: frame, note, body } = panel(t("Heads"), "headgrid");
  const grid = element("div", { className: "g-heads-grid", role: "grid", "aria-label": t("Heads: layers down, heads across. Shift and Enter switch a head off or on.") });
  const about = element("p", { className: "g-soft" }), off = element("button", { type: "button", className: "g-button", "aria-pressed": "false",
    title: t("Then each click switches a head off or on, as Shift-click does"), onclick: () => { switching = !switching; draw(); } }, t("Switch off"));
  const clear = element("button", { type: "button", className: "g-button", onclick: () => select(model, { off: [] }) }, t("All on"));
  off.hidden = !switches;
  body.append(grid, element("div", { className: "g-bar g-under" }, about, off, clear));
  el.append(frame);
  let cells = [], shows = null, switching = false, drawing = 0, drawn = null, built = null, L = 0, H = 0;

  const now = () => {
    const { sides } = model.get("data"), { side } = selected(model), both = side === 2;
    return { sides, side, both, of: sides[side === 1 ? 1 : 0], same: sides.length < 2 || (sides[0].layers === sides[1].layers && sides[0].heads === sides[1].heads) };
  };

  /** What can be shown, as [name, label, [title, unit as Python names it, definition], the numbers (L, H)]; thumbnails have none. */
  function choices() {
    const { sides, both, of, same } = now(), less = (a, b) => a.map((row, l) => row.map((x, h) => x === null || b[l][h] === null ? null : b[l][h] - x));
    const differs = both && same, found = [];
    (of.scores ?? []).forEach((score, i) => {
      const name = t(score.title), title = name[0].toUpperCase() + name.slice(1);
      found.push([score.name, title, [title, score.unit, t(score.definition)], () => differs ? less(score.values, sides[1].scores[i].values) : score.values, differs]);
    });
    if (of.sweep) {
      const costs = ({ losses, loss }) => losses.map((row) => row.map((value) => value === null ? null : value - loss));
      found.push(["sweep", t("Ablation"), [t("Ablation"), t("nats per token"), t("Loss with this head alone switched off, less the loss of the whole model.")],
        () => differs && sides[1].sweep ? less(costs(sides[0].sweep), costs(sides[1].sweep)) : costs(of.sweep), true]);
    }
    if (of.attention) {
      found.push(["attention", t("Attention"), [t("Attention"), "", t("Each head's attention: rows attend to columns.")]],
        ["rest", t("Attention, no first token"), [t("Attention"), "", t("Without the first token; the others sum to 1.")]]);
      if (comparable(sides)) found.push(["change", CHANGE[0], CHANGE, change, false]);
    }
    return found;
  }

  /** Total variation distance of the two sides, of each head; null where a layer was not sent. */
  function change() {
    const stores = now().sides.map(weightsOf), { T } = stores[0];
    return Array.from({ length: L }, (_, layer) => Array.from({ length: H }, (_, head) => {
      if (T < 2 || !stores.every((store) => store.layers.has(layer))) return null;
      const matrix = matrixOf(stores, layer, head, false);
      let moved = 0;
      for (let p = start(1); p < matrix.length; p++) moved += Math.abs(matrix[p]);
      return moved / 2 / (T - 1);
    }));
  }

  function rebuild() {
    const options = choices(), { layers, heads } = now().of, key = JSON.stringify([subjectOf(model), layers, heads, options.map(([name, label]) => [name, label])]);
    if (built !== key) build(options);
    built = key;
    fill();
    const waiting = now().sides.filter((side) => side.attention).map(weightsOf).filter((store) => !store.whole);
    if (waiting.length) Promise.all(waiting.map((store) => store.ready)).then(() => { fill(); draw(); }, () => { about.textContent = t("This browser cannot unpack the attention weights; use one of 2023 or later."); });
  }

  function show(name) {
    shows = name;
    note.lastChild.value = name;
    fill();
    draw();
  }

  function build(options) {
    ({ layers: L, heads: H } = now().of);
    if (!options.some(([name]) => name === shows)) shows = (options.find(([name]) => name === score) ?? options[0])?.[0];
    note.replaceChildren(...[alone ? sideSelect(model) : null, choose(t("Colour by"), options.map(([name, label]) => [name, label]), shows, (to) => { show(to); onshow(to); })].filter(Boolean));
    grid.style.setProperty("--heads", H);
    grid.classList.toggle("g-many", L > 16 || H > 16);
    cells = Array.from({ length: L * H }, (_, at) => element("button", { type: "button", role: "gridcell", className: "g-cell", tabIndex: -1,
      onclick: (event) => press(at, event.shiftKey), onpointerenter: (event) => { if (event.pointerType !== "touch") onhover(placeOf(at)); }, onpointerleave: () => onhover(null) }));
    const rows = Array.from({ length: L }, (_, row) => element("div", { role: "row" },
      element("span", { role: "rowheader", className: "g-soft g-layer" }, element("i", {}, `${t("layer")} `), L - 1 - row), ...cells.slice(row * H, (row + 1) * H)));
    grid.replaceChildren(...rows, element("div", { role: "row" }, element("span", { role: "columnheader", className: "g-soft g-layer" }, element("i", {}, t("head"))),
      ...Array.from({ length: H }, (_, head) => element("span", { role: "columnheader", className: "g-soft" }, head))));
  }

  const needsWeights = () => ["attention", "rest", "change"].includes(shows);
  const placeOf = (at) => ({ layer: L - 1 - Math.floor(at / H), head: at % H });
  const indexOf = (layer, head) => (L - 1 - layer) * H + head;

  /** Give the cells their numbers or pictures. */
  function fill() {
    const option = choices().find(([name]) => name === shows), { of, both, same } = now(), mine = ++drawing;
    drawn = now().side;
    grid.classList.toggle("g-pictures", shows === "attention" || shows === "rest");
    if (!option) return;
    const [, , [title, unit, definition], values, differs] = option;
    about.textContent = [definition, unit && t("Unit: {unit}.", { unit: t(unit) }), both && !same && t("The models have different shapes, and no difference: the first is shown.")].filter(Boolean).join(" ");
    if (!values) return pictures(mine, of);
    const numbers = values(), all = numbers.flat().filter((value) => value !== null).map(Math.abs);
    const most = !differs && unit.includes("0 to 1") ? 1 : (!differs && of.full?.[shows]) || Math.max(1e-9, ...all), digits = most >= 9.995 ? 1 : most < 0.0995 ? 3 : 2;
    const [kind] = t(unit).split(/[,\uff0c]/);  // without its range
    grid.style.setProperty("--characters", (differs ? signed : shown)(most, digits).length);
    cells.forEach((cell, at) => {
      const { layer, head } = placeOf(at), value = numbers[layer][head], text = value === null ? t("no value") : `${differs ? signed(value, 3) : shown(value, 3)} ${kind}`;
      const number = value === null ? "–" : differs ? signed(value, digits) : shown(value, digits);
      if (cell.firstChild?.tagName === "SPAN") cell.firstChild.textContent = number;
      else cell.replaceChildren(element("span", {}, number));
      paint(cell, value === null ? null : value / most);
      name(cell, t("Layer {layer}, head {head}: {score} {value}", { layer, head, score: title.toLowerCase(), value: text }));
    });
    frame.dataset.drawn = "true";
  }
  const name = (cell, text) => { cell.title = text; cell.dataset.name = text; };

  /** The thumbnails, a few at a time so that the page answers meanwhile. A difference's have one scale, so that they can be compared. */
  function pictures(mine, of) {
    const { sides, side } = now(), shownSides = side === 2 && comparable(sides) ? sides : [of], stores = shownSides.map(weightsOf), { T } = stores[0], first = shows === "rest";
    const colours = { hot: colour(frame, "--g-hot"), cold: colour(frame, "--g-cold") }, has = (layer) => stores.every((store) => store.layers.has(layer));
    let scale = null;
    const mostOf = () => scale ??= Math.max(...cells.map((_, at) => placeOf(at)).filter(({ layer }) => has(layer)).map(({ layer, head }) => largest(matrixOf(stores, layer, head, first)))) || 1;
    const some = (from) => {
      if (mine !== drawing) return;
      const until = performance.now() + 12;
      let at = from;
      for (; at < cells.length && (performance.now() < until || at === from); at++) {
        const { layer, head } = placeOf(at), cell = cells[at];
        paint(cell, null);
        name(cell, has(layer) ? t("Layer {layer}, head {head}", { layer, head })
          : canAsk(model) ? t("Layer {layer}, head {head}: select it to load its layer", { layer, head }) : t("Layer {layer}, head {head}: not in this page", { layer, head }));
        if (!has(layer)) { cell.replaceChildren("·"); continue; }
        const matrix = matrixOf(stores, layer, head, first), most = stores.length > 1 ? mostOf() : largest(matrix) || 1;
        cell.replaceChildren(picture(matrix, T, Math.min(T, THUMBNAIL), most, colours));
      }
      mark();
      if (at < cells.length) setTimeout(some, 0, at);
      else if (cells.length) frame.dataset.drawn = "true";  // for those who measure
    };
    grid.style.setProperty("--rendering", T < THUMBNAIL / 2 ? "pixelated" : "auto");
    some(0);
  }

  /** Show which head is selected, and which are off. */
  function mark() {
    const { layer, head, off: without } = selected(model), places = new Set(without.map((place) => place.join(".")));
    cells.forEach((cell, at) => {
      const place = placeOf(at), chosen = place.layer === layer && place.head === head, isOff = places.has(`${place.layer}.${place.head}`);
      cell.setAttribute("aria-selected", chosen);
      cell.tabIndex = chosen ? 0 : -1;
      cell.classList.toggle("g-off", isOff);
      const named = cell.dataset.name ?? "";
      cell.setAttribute("aria-label", isOff ? t("{head}, switched off", { head: named }) : named);
    });
  }

  function draw() {
    const { layers, heads } = now().of, { off: without, side } = selected(model);
    if (layers !== L || heads !== H) rebuild();
    else if (drawn !== side) fill();
    note.querySelectorAll("select").forEach((field) => { if (field.name === "side") field.value = side; });
    const { layer } = selected(model), known = needsWeights() && weightsOf(now().of).layers;
    if (known.size && !known.has(layer)) fetchPart(model, "attention", { layer }).catch((error) => { about.textContent = error.message; });
    off.setAttribute("aria-pressed", switching);
    clear.hidden = !without.length;
    mark();
  }

  function press(at, withShift) {
    const { layer, head } = placeOf(at), { off: without } = selected(model), others = without.filter(([l, h]) => l !== layer || h !== head);
    if (switches && (withShift || switching)) select(model, { off: others.length < without.length ? others : [...without, [layer, head]] });
    else select(model, { layer, head });
  }

  grid.onkeydown = (event) => {
    const { layer, head } = selected(model), at = indexOf(layer, head);
    if (switches && event.shiftKey && [" ", "Enter"].includes(event.key)) { event.preventDefault(); return press(at, true); }
    const to = arrow(event, at, cells.length, H);
    if (to === undefined) return;
    select(model, placeOf(event.key === "ArrowLeft" && !head || event.key === "ArrowRight" && head === H - 1 ? at : to));
    const chosen = selected(model);
    cells[indexOf(chosen.layer, chosen.head)].focus();
  };

  el.view = { show };
  const end = follow(model, rebuild, draw), endTheme = onTheme(() => { fill(); draw(); });
  const arrived = () => { if (needsWeights()) fill(); mark(); };
  arrivals.addEventListener("arrived", arrived);
  return () => { drawing++; end(); endTheme(); arrivals.removeEventListener("arrived", arrived); };
}
