// Scales of a picture: from values to pixels, ticks, numbers as they are written beside them, colours of curves.

export const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];  // Okabe and Ito's

/** A scale from [low, high] to [start, end] pixels; `log`: by the logarithm. `of(value)` is the place, `at(place)` the value. */
export function scale(low, high, start, end, log = false) {
  const to = log ? Math.log10 : (value) => value, from = log ? (value) => 10 ** value : (value) => value;
  const [a, b] = [to(low), to(high)], span = b - a || 1;
  return { low, high, log, of: (value) => start + (to(value) - a) / span * (end - start), at: (place) => from(a + (place - start) / (end - start) * span) };
}

/** Round values within a scale, about `count` of them. */
export function ticks({ low, high, log }, count) {
  if (log && high / low >= 10) {
    const every = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const digit of [1, 2, 5]) every.push(Number(`${digit}e${power}`));
    const inside = every.filter((value) => value >= low && value <= high), powers = inside.filter((value) => String(value.toExponential())[0] === "1");
    return inside.length > 2 * count && powers.length > 1 ? powers : inside;
  }
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((each) => each >= rough) ?? power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

/** A range with a little room around it; around a single value too. */
export function padded(values, log) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
  if (low === Infinity) return [log ? 0.1 : 0, 1];
  if (log) { const room = Math.max(1.02, (high / low) ** 0.05); return [low / room, high * room]; }
  const room = (high - low) * 0.05 || Math.abs(high) * 0.05 || 0.5;
  return [low - room, high + room];
}

/** A number to at most five digits, without needless zeros: 12,345 · 3.4568 · 5e-5. */
export function brief(value, digits = 5) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e9)) return Number(value.toPrecision(Math.min(digits, 4))).toExponential().replace("e+", "e");
  return Number(value.toPrecision(Math.max(digits, Math.ceil(Math.log10(size || 1))))).toLocaleString("en-US", { maximumFractionDigits: 6 });
}
