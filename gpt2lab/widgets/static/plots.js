import { largest, start } from "./weights.js";

// The two pictures of attention, drawn with a canvas's pen or with one that writes SVG.

export const ROW = 20;  // pixels of a token in the lines
const LEAST_LINE = 0.01;  // of the strongest there can be: fainter lines cannot be seen
const HEIGHT = 560;  // pixels in sight
const MOST_LINES = 8000;  // drawn at once, the heaviest of those in sight: more make scrolling halt
const SMALL = "11.5px ui-monospace, monospace";
// Distinguishable with colour blindness. Source: Martin Krzywinski, Designing for Color Blindness, 12-colour palette
export const COLOURS = ["#9f0162", "#009f81", "#ff5aaf", "#00fccf", "#8400cd", "#008df9", "#00c2f9", "#ffb2fd", "#a40122", "#e20134", "#ff6e3a", "#ffc33b"];

/** Rows attend to columns; {edge, size, side}: where the cells begin, and pixels of a cell and of all.
 *  picture(side): a canvas of that many pixels; query, key: the row and the column that stand out, or null. */
export function heatmapPlot(open, canvas, { T, tokens, width, picture, query, key, ink }) {
  const ruler = canvas.getContext("2d");
  const names = tokens.map((token) => [...token].length > 12 ? `${[...token].slice(0, 11).join("")}…` : token);
  ruler.font = SMALL;
  const longest = Math.min(width / (width < 480 ? 4 : 3), Math.ceil(Math.max(...names.map((name) => ruler.measureText(name).width))) + 10);
  const labelled = (width - longest - 2) / T >= 9, edge = labelled ? longest : 34;
  let size = Math.min(Math.max(19, Math.min(40, 380 / T)), (width - edge - 2) / T, labelled ? 99 : HEIGHT / T);
  if (size >= 6) size = Math.floor(size);
  const side = size * T, below = labelled ? longest : 18, pen = open(canvas, edge + side + 2, side + below + 2, ink.paper);
  pen.imageSmoothingEnabled = false;
  pen.font = SMALL;
  pen.drawImage(picture(Math.min(T, Math.max(1, Math.round(side * (window.devicePixelRatio || 1))))), edge, 0, side, side);
  pen.fillStyle = ink.paper;
  if (size >= 6) for (let i = 1; i <= T; i++) { pen.fillRect(edge, i * size - 1, side, 1); pen.fillRect(edge + i * size - 1, 0, 1, side); }
  const step = labelled ? 1 : Math.ceil(T / 8);
  for (let i = 0; i < T; i += step) {
    const name = labelled ? names[i] : i, at = (i + 0.5) * size;
    pen.textAlign = "right";
    pen.fillStyle = i === query ? ink.ink : ink.soft;
    pen.fillText(labelled ? cut(pen, name, edge - 8) : name, edge - 7, Math.max(6, at));
    pen.fillStyle = i === key ? ink.ink : ink.soft;
    pen.save();
    pen.translate(edge + at, side + 6);
    pen.rotate(labelled ? -Math.PI / 2 : 0);
    pen.textAlign = labelled ? "right" : "center";
    pen.fillText(labelled ? cut(pen, name, below - 6) : name, 0, labelled ? 0 : 6);
    pen.restore();
  }
  pen.strokeStyle = ink.accent;
  pen.lineWidth = 2;
  if (query !== null) pen.strokeRect(edge - 1, Math.max(1, query * size - 1), (query + 1) * size + 1, Math.max(size, 2));
  if (key !== null) pen.strokeRect(edge + key * size - 1, Math.max(1, key * size - 1), Math.max(size, 2) + 1, side - key * size);
  return { edge, size, side };
}

/** Lines from tokens that attend to what they attend to; {count, below}: of lines, and pixels that the canvas, which is as high as is in sight, leaves out.
 *  parts: {head, matrix} of each head; top: pixels scrolled past; all: lines of every token, not of the selected one alone. */
export function linesPlot(open, canvas, { T, tokens, width, top, whole, parts, difference, all, root, threshold, mode, query, key, ink }) {
  const total = T * ROW + 12, height = whole ? total : Math.min(total, HEIGHT), pen = open(canvas, width, height, ink.paper), left = width * 0.34, right = width * 0.66;
  const y = (i) => i * ROW + ROW / 2 + 6 - top, seen = (i) => y(i) > -ROW && y(i) < height + ROW;
  pen.font = SMALL;
  const label = (i, x, align, chosen) => {
    pen.textAlign = align;
    pen.fillStyle = chosen ? ink.ink : ink.soft;
    pen.fillText(cut(pen, tokens[i], left - 12), x, y(i));
  };
  const on = (i, j) => mode === "to" ? i === query : j === key;
  for (let i = 0; i < T; i++) if (seen(i)) { label(i, left - 6, "right", all || i === query); label(i, right + 6, "left", all || i === key); }
  const rgb = (values) => `rgb(${values.join(", ")})`, colourOf = (head) => parts.length > 1 ? COLOURS[head % COLOURS.length] : rgb(ink.hot);
  const most = difference ? Math.max(...parts.map(({ matrix }) => largest(matrix))) || 1 : 1, least = Math.max(threshold, LEAST_LINE * most), drawn = [];
  for (const { head, matrix } of parts) for (let i = 0; i < T; i++) for (let j = 0; j <= i; j++) {
    const weight = matrix[start(i) + j];
    if (Math.abs(weight) < least || !(all || on(i, j)) || !(seen(i) || seen(j))) continue;
    drawn.push({ i, j, strength: Math.min(1, Math.abs(weight) / most), colour: difference ? rgb(weight > 0 ? ink.hot : ink.cold) : colourOf(head) });
  }
  drawn.sort((a, b) => a.strength - b.strength).splice(0, drawn.length - MOST_LINES);  // the heaviest are drawn last, on top
  for (const { i, j, strength, colour } of drawn) {
    pen.strokeStyle = colour;
    pen.globalAlpha = root && !all ? Math.sqrt(strength) : strength;  // with all lines drawn, square roots would fill the picture
    pen.lineWidth = 1 + 2 * strength;
    pen.beginPath();
    pen.moveTo(left, y(i));
    pen.lineTo(right, y(j));
    pen.stroke();
  }
  pen.globalAlpha = 1;
  return { count: drawn.length, below: total - height };
}

function cut(pen, name, width) {
  const characters = [...name];
  if (pen.measureText(name).width <= width) return name;
  do characters.pop(); while (characters.length > 1 && pen.measureText(`${characters.join("")}…`).width > width);
  return `${characters.join("")}…`;
}
