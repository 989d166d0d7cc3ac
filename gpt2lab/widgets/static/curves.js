import { brief, COLOURS, padded, scale, ticks } from "./axes.js";
import { cell, choose, colour, download, element, isolated, onTheme, panel, roving, t } from "./lib.js";
import { canvasPen, svgPen } from "./pen.js";
import { STATES } from "./states.js";

// What runs have recorded, overlaid. Drag or the wheel zooms, arrow keys read the values, and a table holds them all.

const FONT = "11.5px system-ui, sans-serif", LEFT = 62, RIGHT = 12, TOP = 10, BOTTOM = 38, LEAST_DRAG = 6;
const AXES = () => ({ step: t("Optimizer steps"), tokens: t("Tokens"), epoch: t("Epochs") });
const same = (value) => value;
const MEASURES = () => ({  // title, the column and what is drawn of it
  loss: [t("Loss (nats per token)"), "loss", same],
  perplexity: [t("Perplexity"), "loss", Math.exp],
  lr: [t("Learning rate"), "lr", same],
  grad_norm: [t("Gradient norm"), "grad_norm", same],
  tokens_per_second: [t("Speed (tokens per second)"), "tokens_per_second", same],
  memory: [t("Memory (GB)"), "memory", (bytes) => bytes / 1e9],
  cpu: [t("CPU use (%)"), "cpu", (share) => 100 * share],
  gpu: [t("GPU use (%)"), "gpu", (share) => 100 * share],
});

export function curvesView({ model, el }) {
  const measures = MEASURES(), axes = AXES(), states = STATES();
  const { panel: frame, note, body } = panel(t("Curves"), "curves");
  const plot = element("div", { className: "g-plot" }), canvas = element("canvas", { tabIndex: 0, role: "img" });
  const tip = element("div", { className: "g-tip", hidden: true }), zone = element("div", { className: "g-zone", hidden: true });
  const legend = element("div", { className: "g-bar g-names", role: "group", "aria-label": t("Runs") }), reading = element("div", { className: "g-note g-reading", role: "status" });
  const table = element("details", {}, element("summary", {}, t("Table"))), scroll = element("div", { className: "g-scroll" });
  const help = element("div", { className: "g-soft" }, t("Drag to zoom, double-click to see all. Keys: arrows read values, + and − zoom, 0 shows all."));
  let x = "step", y = "loss", smooth = 0, log = false, zoom = null, cursor = null, drag = null, series = [], shape = null;
  const hidden = new Set();
  plot.append(canvas, zone, tip);
  table.append(scroll);
  table.ontoggle = () => fillTable();
  roving(legend);

  const smoothing = element("input", { type: "range", min: 0, max: 0.95, step: 0.05, value: 0, "aria-label": t("Smoothing"), oninput: () => { smooth = Number(smoothing.value); rebuild(); } });
  const logs = element("input", { type: "checkbox", onchange: () => { log = logs.checked; draw(); } });
  const reset = element("button", { className: "g-button", type: "button", disabled: true, onclick: () => zoomTo(null) }, t("Show all"));
  const save = choose(t("Save"), [["", t("Save as …")], ["png", "PNG"], ["svg", "SVG"], ["csv", "CSV"]], "", (format) => { save.value = ""; if (format) FILES[format](); });
  body.append(element("div", { className: "g-bar g-controls" }, element("label", { className: "g-bar g-soft" }, t("Smoothing"), smoothing), element("label", { className: "g-bar g-soft" }, logs, t("Log scale")), reset, save), legend, plot, reading, help, table);
  el.append(frame);

  /** The curves of the chosen measure: points [x, value, smoothed, row of the run's columns]. */
  function rebuild() {
    const { runs = [] } = model.get("data") ?? {}, has = (column) => runs.some((run) => run.columns[column].some((value) => value !== null));
    const offered = Object.entries(measures).filter(([, [, column]]) => column === "loss" || has(column));
    if (!offered.some(([key]) => key === y)) y = "loss";
    if (!has(x)) x = "step";
    note.replaceChildren(choose(t("Vertical axis"), offered.map(([key, [title]]) => [key, title]), y, (to) => { y = to; rebuild(); }), " ",
      choose(t("Horizontal axis"), Object.entries(axes).filter(([key]) => key === "step" || has(key)), x, (to) => { x = to; zoom = cursor = null; rebuild(); }));
    const [, column, read] = measures[y];
    series = runs.flatMap(({ id, columns }, run) => (column === "loss" ? ["train", "validation"] : ["train"]).map((split) => {
      const rows = columns.split.map((_, i) => i).filter((i) => columns.split[i] === split && columns[column][i] !== null && columns[x][i] !== null);
      const points = rows.map((i) => [columns[x][i], read(columns[column][i]), 0, i]).filter(([, value]) => Number.isFinite(value));
      let mean = 0, weight = 0;
      for (const point of points) {  // an average that forgets, unbiased from the first point on
        mean = smooth * mean + (1 - smooth) * point[1];
        weight = smooth * weight + 1 - smooth;
        point[2] = split === "train" ? mean / weight : point[1];
      }
      return { run, id, split, points };
    }));
    legend.replaceChildren(...runs.map(({ id, state }, run) => element("button", { className: "g-button", type: "button", "aria-pressed": String(!hidden.has(id)), title: t("Show or hide {run} ({state})", { run: id, state: states[state] ?? state }),
      onclick: () => { hidden.has(id) ? hidden.delete(id) : hidden.add(id); rebuild(); legend.querySelectorAll("button")[run].focus(); } },
    element("i", { className: "g-swatch", style: `background: ${COLOURS[run % COLOURS.length]}`, "aria-hidden": "true" }), element("span", { className: "g-id" }, id))));
    if (runs.length) legend.append(element("span", { className: "g-soft" }, column === "loss" ? t("Thin: training. With points: validation.") : t("Measured during training.")));
    draw();
    fillTable();
  }

  const visible = () => series.filter(({ id, points }) => !hidden.has(id) && points.length);

  /** The part of a curve between two x, with its borders interpolated: [x, value]s of raw and smoothed points. */
  function within(points, low, high, at) {
    const found = [];
    points.forEach((point, i) => {
      const before = points[i - 1], cut = (edge) => before && (before[0] - edge) * (point[0] - edge) < 0 && found.push([edge, before[at] + (point[at] - before[at]) * (edge - before[0]) / (point[0] - before[0])]);
      cut(low);
      cut(high);
      if (point[0] >= low && point[0] <= high) found.push([point[0], point[at]]);
    });
    return found.sort((a, b) => a[0] - b[0]);
  }

  /** Draw with a pen that is opened on a size; with `named`, the runs' names stand above. */
  function paint(open, width, height, named) {
    const ink = Object.fromEntries(["ink", "soft", "line", "paper", "accent"].map((name) => [name, `rgb(${colour(el, `--g-${name}`).join(", ")})`]));
    const shown = visible(), top = TOP + (named ? 18 * new Set(shown.map(({ id }) => id)).size : 0), pen = open(width, height, ink.paper);
    const every = shown.flatMap(({ points }) => points.map(([place]) => place)), all = every.length ? [Math.min(...every), Math.max(...every)] : [0, 1];
    const [low, high] = zoom ?? (all[0] === all[1] ? [all[0], all[0] + 1] : all);
    const curves = shown.map((each) => ({ ...each, raw: within(each.points, low, high, 1), line: within(each.points, low, high, 2) }));
    const values = curves.flatMap(({ raw, line }) => [...raw, ...line].map(([, value]) => value)), logarithm = log && values.every((value) => value > 0);
    const [bottom, most] = padded(values, logarithm), across = scale(low, high, LEFT, width - RIGHT), up = scale(bottom, most, height - BOTTOM, top, logarithm);
    pen.font = FONT;
    pen.lineWidth = 1;
    for (const [marks, of, horizontal] of [[ticks(up, Math.max(3, height / 60)), up, true], [ticks(across, Math.max(2, width / 110)), across, false]])
      for (const value of marks) {
        const place = of.of(value);
        pen.strokeStyle = ink.line;
        pen.beginPath();
        if (horizontal) { pen.moveTo(LEFT, place); pen.lineTo(width - RIGHT, place); } else { pen.moveTo(place, top); pen.lineTo(place, height - BOTTOM); }
        pen.stroke();
        pen.fillStyle = ink.soft;
        pen.textAlign = horizontal ? "right" : "center";
        pen.fillText(brief(value, 4), horizontal ? LEFT - 7 : place, horizontal ? place : height - BOTTOM + 12);
      }
    pen.textAlign = "center";
    pen.fillText(axes[x], (LEFT + width - RIGHT) / 2, height - 9);
    const stroke = (points, width) => {
      pen.lineWidth = width;
      pen.beginPath();
      points.forEach(([place, value], i) => i ? pen.lineTo(across.of(place), up.of(value)) : pen.moveTo(across.of(place), up.of(value)));
      pen.stroke();
    };
    for (const { run, split, raw, line, points } of curves) {
      pen.strokeStyle = pen.fillStyle = COLOURS[run % COLOURS.length];
      const train = split === "train";
      if (train && smooth) { pen.globalAlpha = 0.3; stroke(raw, 1); pen.globalAlpha = 1; }
      stroke(line, train ? 1.2 : 2);
      if (!train || points.length === 1) for (const [place, value] of points) if (place >= low && place <= high) pen.fillRect(across.of(place) - 3, up.of(value) - 3, 6, 6);
    }
    if (named) [...new Map(shown.map(({ id, run }) => [id, run]))].forEach(([id, run], i) => {
      pen.fillStyle = COLOURS[run % COLOURS.length];
      pen.fillRect(LEFT, TOP + 18 * i, 10, 10);
      pen.fillStyle = ink.ink;
      pen.textAlign = "left";
      pen.fillText(id, LEFT + 16, TOP + 18 * i + 5);
    });
    return { across, up, low, high, all, pen, top };
  }

  function draw() {
    const width = plot.clientWidth, height = width < 480 ? 240 : 300, shown = visible();
    if (!width) return;
    shape = paint((w, h, paper) => canvasPen(canvas, w, h, paper), width, height, false);
    const { runs = [] } = model.get("data") ?? {};
    canvas.hidden = !shown.length;
    reset.disabled = !zoom;
    help.hidden = !shown.length;
    canvas.setAttribute("aria-label", t("{measure} of {count} runs; the table has the numbers", { measure: measures[y][0], count: new Set(shown.map(({ id }) => id)).size }));
    read(cursor);
    if (!shown.length) reading.textContent = !runs.length ? t("Select a run to see its curves.") : runs.every(({ id }) => hidden.has(id)) ? t("All runs are hidden.") : t("Nothing is measured yet: the first validation comes before training.");
  }

  /** All x of the curves that are shown, in order. */
  const places = () => [...new Set(visible().flatMap(({ points }) => points.map(([place]) => place)))].filter((place) => place >= shape.low && place <= shape.high).sort((a, b) => a - b);

  /** Read the values at a place, or none: a line in the picture, a tip beside it, and the same as text. */
  function read(place) {
    cursor = place;
    tip.hidden = place === null || !visible().length;
    if (tip.hidden) { reading.textContent = ""; return; }
    const rows = visible().flatMap(({ id, run, split, points }) => {
      const point = points.find((each) => each[0] === place);
      return point ? [{ id, run, split, value: point[1], mean: point[2] }] : [];
    });
    const name = ({ id, split }) => `${isolated(id)} ${split === "train" ? t("training") : t("validation")}`;
    const number = ({ value, mean, split }) => brief(value) + (smooth && split === "train" ? t(" (smoothed {value})", { value: brief(mean) }) : "");
    reading.textContent = t("{name}: {value}", { name: `${axes[x]} ${brief(place, 7)}`, value: rows.map((row) => `${name(row)} ${number(row)}`).join(t("; ")) });
    tip.replaceChildren(element("b", {}, `${axes[x]} ${brief(place, 7)}`), ...rows.map((row) => element("div", {}, element("i", { className: "g-swatch", style: `background: ${COLOURS[row.run % COLOURS.length]}` }), `${name(row)} `, element("b", {}, number(row)))));
    const left = shape.across.of(place), right = left > plot.clientWidth / 2;
    tip.style.cssText = right ? `right: ${plot.clientWidth - left + 8}px` : `left: ${left + 8}px`;
    zone.hidden = false;
    if (!drag) zone.style.cssText = `left: ${left}px; width: 0; top: ${TOP}px; bottom: ${BOTTOM}px`;
  }

  function zoomTo(range) {
    const [low, high] = shape.all;
    if (range) range = [Math.max(low, range[0]), Math.min(high, range[1])];
    zoom = range && range[1] > range[0] && (range[0] > low || range[1] < high) ? range : null;
    draw();
  }
  const zoomBy = (factor, about) => zoomTo([about - (about - shape.low) * factor, about + (shape.high - about) * factor]);
  const inside = (event) => Math.max(LEFT, Math.min(plot.clientWidth - RIGHT, event.clientX - canvas.getBoundingClientRect().left));
  const nearest = (value) => places().reduce((best, place) => best === null || Math.abs(place - value) < Math.abs(best - value) ? place : best, null);
  const away = () => { if (!drag) { read(null); zone.hidden = true; } };

  canvas.onpointerdown = (event) => { if (event.button === 0 && event.pointerType !== "touch") { drag = { from: inside(event) }; canvas.setPointerCapture(event.pointerId); } };
  canvas.onpointermove = (event) => {
    const to = inside(event);
    if (drag) zone.style.cssText = `left: ${Math.min(drag.from, to)}px; width: ${Math.abs(to - drag.from)}px; top: ${TOP}px; bottom: ${BOTTOM}px`;
    read(nearest(shape.across.at(to)));
  };
  canvas.onpointerup = (event) => {
    const from = drag?.from, to = inside(event);
    drag = null;
    if (from !== undefined && Math.abs(to - from) >= LEAST_DRAG) zoomTo([from, to].sort((a, b) => a - b).map(shape.across.at));
  };
  canvas.onpointercancel = () => { drag = null; };
  canvas.onpointerleave = away;
  canvas.onblur = away;
  canvas.ondblclick = () => zoomTo(null);
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && canvas.getRootNode().activeElement !== canvas) return;  // the page scrolls past a plot that nobody works with
    event.preventDefault();
    zoomBy(event.deltaY > 0 ? 1.25 : 0.8, shape.across.at(inside(event)));
  }, { passive: false });
  canvas.onkeydown = (event) => {
    const all = places(), at = all.indexOf(cursor), middle = cursor ?? (shape.low + shape.high) / 2;
    const to = { ArrowLeft: at < 0 ? all.length - 1 : at - 1, ArrowRight: at + 1, Home: 0, End: all.length - 1 }[event.key];
    if (to !== undefined) read(all[Math.max(0, Math.min(to, all.length - 1))] ?? null);
    else if (event.key === "+" || event.key === "=") zoomBy(0.6, middle);
    else if (event.key === "-") zoomBy(1 / 0.6, middle);
    else if (event.key === "0" || event.key === "Escape") zoomTo(null);
    else return;
    event.preventDefault();
  };

  /** The numbers of the curves that are shown, a row per place. */
  function fillTable() {
    if (!table.open) return;
    const shown = visible(), rows = new Map();
    shown.forEach(({ points }, i) => points.forEach(([place, value]) => { if (!rows.has(place)) rows.set(place, []); rows.get(place)[i] = value; }));
    scroll.replaceChildren(element("table", { "aria-label": measures[y][0] },
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, axes[x]), ...shown.map(({ id, split }) => element("th", { scope: "col" }, `${isolated(id)} ${split === "train" ? t("training") : t("validation")}`)))),
      element("tbody", {}, ...[...rows].sort(([a], [b]) => a - b).map(([place, values]) => element("tr", {}, element("th", { scope: "row" }, brief(place, 7)), ...shown.map((_, i) => element("td", {}, values[i] === undefined ? "" : brief(values[i], 6))))))));
  }

  const FILES = {
    png: () => { const copy = element("canvas"); paint((w, h, paper) => canvasPen(copy, w, h, paper), 900, 420, true); copy.toBlob((blob) => download(blob, "curves.png", "image/png")); },
    svg: () => { const { pen } = paint((w, h, paper) => svgPen(w, h, paper), 900, 420, true); download(pen.svg(measures[y][0]), "curves.svg", "image/svg+xml"); },
    csv: () => {
      const { runs = [] } = model.get("data") ?? {}, names = ["split", "step", "tokens", "epoch", ...Object.keys(runs[0]?.columns ?? {}).filter((name) => !["split", "step", "tokens", "epoch"].includes(name))];
      const lines = runs.flatMap(({ id, columns }) => columns.step.map((_, i) => [id, ...names.map((name) => columns[name][i] ?? "")]));
      download([["run", ...names], ...lines].map((line) => line.map(cell).join(",")).join("\r\n"), "curves.csv", "text/csv");
    },
  };

  const again = () => rebuild();
  model.on("change:data", again);
  const size = new ResizeObserver(draw), theme = onTheme(draw);
  size.observe(plot);
  rebuild();
  return () => { model.off("change:data", again); size.disconnect(); theme(); };
}
