import { brief, padded, scale, ticks } from "./axes.js";
import { element } from "./lib.js";
import { canvasPen } from "./pen.js";

// Numbers over the steps of a training, with the step that is shown marked. A click, or a drag, goes to the nearest step.

const FONT = "11.5px system-ui, sans-serif", LEFT = 40, RIGHT = 20, TOP = 18, BOTTOM = 24, HEIGHT = 170;

/** A picture { node, draw }; go: called with the step under the pointer. */
export function stepChart({ go }) {
  const node = element("canvas", { role: "img", className: "g-stepchart" });
  let across = null, steps = [];

  const point = (event) => {
    const x = event.clientX - node.getBoundingClientRect().left;
    go(steps.reduce((best, step) => Math.abs(across(step) - x) < Math.abs(across(best) - x) ? step : best, steps[0]));
  };
  node.onpointerdown = (event) => { if (event.button === 0 && steps.length) { node.setPointerCapture(event.pointerId); point(event); } };
  node.onpointermove = (event) => { if (node.hasPointerCapture(event.pointerId)) point(event); };

  /** Draw curves [{ points: [step, value]s, colour, width, alpha, dash }] and marks [{ step, text }].
   *  range: of the values; none: theirs. ink: CSS colours by name. */
  function draw({ steps: all, curves, range = null, marks = [], step, ink, width }) {
    steps = all;
    const pen = canvasPen(node, width, HEIGHT, ink.paper), [low, high] = range ?? padded(curves.flatMap(({ points }) => points.map(([, value]) => value)), false);
    const up = scale(low, high, HEIGHT - BOTTOM, TOP), along = placesOf(all, LEFT, width - RIGHT);
    across = along.of;
    pen.font = FONT;
    pen.lineWidth = 1;
    for (const value of ticks(up, 4)) {
      line(pen, [[LEFT, up.of(value)], [width - RIGHT, up.of(value)]], ink.line);
      write(pen, brief(value, 3), LEFT - 6, up.of(value), "right", ink.soft);
    }
    for (const value of along.ticks) write(pen, brief(value, 7), across(value), HEIGHT - BOTTOM + 13, "center", ink.soft);
    for (const { points, colour, width: weight, alpha = 1, dash = [] } of curves) {
      Object.assign(pen, { globalAlpha: alpha, lineWidth: weight });
      pen.setLineDash(dash);
      line(pen, points.map(([at, value]) => [across(at), up.of(value)]), colour);
    }
    Object.assign(pen, { globalAlpha: 1, lineWidth: 1 });
    for (const { step: at, text } of marks) {
      const x = across(at), room = pen.measureText(text).width + 8;
      pen.setLineDash([3, 3]);
      line(pen, [[x, TOP], [x, HEIGHT - BOTTOM]], ink.soft);
      write(pen, text, x - LEFT > room ? x - 4 : Math.min(x + 4, width - room), TOP - 10, x - LEFT > room ? "right" : "left", ink.ink);
    }
    pen.setLineDash([]);
    pen.lineWidth = 2;
    line(pen, [[across(step), TOP - 2], [across(step), HEIGHT - BOTTOM + 3]], ink.accent);
    pen.fillStyle = ink.accent;
    for (const { points, alpha = 1 } of curves) {
      const here = alpha === 1 && points.find(([at]) => at === step);
      if (here) pen.fillRect(across(step) - 3, up.of(here[1]) - 3, 6, 6);
    }
  }
  return { node, draw };
}

/** From steps to pixels, { of, ticks }: by the logarithm of steps + 1 where most of them are early ones. */
function placesOf(steps, left, right) {
  const [first] = steps, last = steps.at(-1), log = steps.length > 2 && steps[steps.length >> 1] < last / 4;
  const { of } = scale(first + 1, last + 1, left, right, log), count = Math.max(2, (right - left) / 70);
  const found = ticks({ low: Math.max(first, log ? 1 : 0), high: last, log }, count), all = log && first === 0 ? [0, ...found] : found;
  return { of: (step) => first === last ? (left + right) / 2 : of(step + 1), ticks: all };
}

function line(pen, points, colour) {
  pen.strokeStyle = colour;
  pen.beginPath();
  points.forEach(([x, y], i) => i ? pen.lineTo(x, y) : pen.moveTo(x, y));
  pen.stroke();
}

function write(pen, text, x, y, align, colour) {
  Object.assign(pen, { textAlign: align, fillStyle: colour });
  pen.fillText(text, x, y);
}
