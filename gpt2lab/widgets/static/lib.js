// What all views share: elements, colours, packed numbers, the selection, requests to Python.

/** An element: element("button", { className: "x", onclick }, "text", child, …). Text is never read as HTML. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (key in made && !key.includes("-")) made[key] = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** A panel's frame: { panel, head, body }; the title on the left, what it shows or its controls on the right. */
export function panel(title, name) {
  const note = element("span", { className: "g-note" }), body = element("div", { className: "g-body" });
  const head = element("div", { className: "g-head" }, element("h3", {}, title), note);
  return { panel: element("section", { className: `g-panel g-${name}`, "aria-label": title }, head, body), head, note, body };
}

/** A select whose options are [value, text]. */
export function choose(label, options, value, onchange) {
  const select = element("select", { "aria-label": label });
  for (const [key, text] of options) select.append(element("option", { value: key, selected: key === value }, text));
  select.onchange = () => onchange(select.value);
  return select;
}

/** A token as it is shown in a sentence, isolated so that right-to-left text does not reorder what is around it. */
export const isolated = (token) => `\u2068${token}\u2069`;

/** A token as it stands out in a sentence. */
export const chip = (token) => element("span", { className: "g-token g-named" }, token);

/** A number to a few digits; "–" for none. */
export const shown = (value, digits = 3) => value === null || value === undefined || Number.isNaN(value) ? "–" : value.toFixed(digits);
export const signed = (value, digits = 3) => value === null || value === undefined ? "–" : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;

/** Arrow keys, Home and End move the focus among a container's buttons; Tab reaches one of them. */
export function roving(container) {
  const settle = (chosen) => buttonsOf(container).forEach((button) => { button.tabIndex = button === chosen ? 0 : -1; });
  container.addEventListener("focusin", ({ target }) => { if (target.tagName === "BUTTON") settle(target); });
  container.addEventListener("keydown", (event) => {
    const buttons = buttonsOf(container), at = buttons.indexOf(event.target);
    const to = { ArrowUp: at - 1, ArrowLeft: at - 1, ArrowDown: at + 1, ArrowRight: at + 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    buttons[Math.max(0, Math.min(to, buttons.length - 1))].focus();
  });
}

/** Replace what a container with `roving` holds; the focus stays on the button of the same place. */
export function renew(container, children) {
  const at = buttonsOf(container).indexOf(container.getRootNode().activeElement);
  container.replaceChildren(...children);
  const buttons = buttonsOf(container), first = buttons[at] ?? buttons.find((button) => button.getAttribute("aria-pressed") === "true") ?? buttons[0];
  buttons.forEach((button) => { button.tabIndex = button === first ? 0 : -1; });
  if (at >= 0) first?.focus({ preventScroll: true });
}
const buttonsOf = (container) => [...container.querySelectorAll("button")];

/** A view for anywidget: it starts once its element is in the page, where it has colours and a width. */
export const mount = (view) => ({ render({ model, el }) {
  let clean = null, ended = false;
  const start = () => {
    if (ended) return;
    if (el.isConnected) clean = view({ model, el });
    else requestAnimationFrame(start);
  };
  el.classList.add("gpt2lab");
  start();
  return () => { ended = true; clean?.(); };
} });

// ---- language ------------------------------------------------------------------------------------------------

/** A text in the reader's language, its fields filled in; the app knows the Chinese of the texts that stand here in quotes. */
export function t(text, values = {}) {
  const template = globalThis.gpt2labTexts?.[text] ?? text;
  return template.replace(/\{(\w+)\}/g, (field, name) => name in values ? values[name] : field);
}

/** The same with elements in the fields, as what `append` takes: sentence("after {token}", { token: chip("x") }) → ["after ", chip]. */
export const sentence = (text, values) => t(text).split(/\{(\w+)\}/).map((part, i) => i % 2 ? values[part] : part);

/** Items in a row: listed(["a", "b"]) → "a, b". And whole sentences. */
export const listed = (items) => items.join(t(", "));
export const sentences = (items) => items.join(t(" "));

/** What the residual stream is called after an entry: the embedding first, then each layer. */
export const entryName = (entry) => entry ? t("layer {layer}", { layer: entry - 1 }) : t("embedding");

// ---- colours -------------------------------------------------------------------------------------------------

/** A CSS variable of the view as [r, g, b], 0 to 255. */
export function colour(el, name) {
  const value = ["--g-hot", "--g-cold"].includes(name) ? `rgb(var(${name}))` : `var(${name})`;
  const probe = element("i", { style: `display: none; color: ${value}` });
  el.append(probe);
  const computed = getComputedStyle(probe).color, most = computed.startsWith("color(") ? 255 : 1;  // a mixed colour is in shares
  probe.remove();
  return computed.match(/[\d.]+/g).slice(0, 3).map((part) => Math.round(part * most));
}

/** CSS colour of a share, 0 to 1: orange that deepens; below 0, for differences, blue. */
export const heat = (share) => `rgba(var(${share < 0 ? "--g-cold" : "--g-hot"}), ${opacity(share).toFixed(3)})`;
export const opacity = (share) => 0.04 + 0.81 * Math.min(1, Math.abs(share));

/** Give an element with text the colour of a share; none: no colour. */
export function paint(node, share) {
  node.style.background = share === null ? "" : heat(share);
}

/** Call `redraw` when the page turns dark or light; returns what ends that. */
export function onTheme(redraw) {
  const system = matchMedia("(prefers-color-scheme: dark)"), page = new MutationObserver(redraw);
  system.addEventListener("change", redraw);
  for (const node of [document.documentElement, document.body])
    page.observe(node, { attributes: true, attributeFilter: ["class", "data-jp-theme-light"] });
  return () => { system.removeEventListener("change", redraw); page.disconnect(); };
}

// ---- packed numbers ------------------------------------------------------------------------------------------

export function bytesOf(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

export async function inflate(base64) {
  const stream = new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Little-endian float32 numbers, from base64. */
export const floatsOf = (base64) => new Float32Array(bytesOf(base64).buffer);

// ---- the selection -------------------------------------------------------------------------------------------

/** What is selected, within what the data has. */
export function selected(model) {
  const data = model.get("data"), chosen = { position: 0, layer: 0, head: 0, token: null, off: [], side: 0, ...model.get("selection") };
  const side = Math.min(chosen.side, data.sides.length === 1 ? 0 : data.incomparable ? 1 : 2), of = data.sides[side === 1 ? 1 : 0];
  const within = (value, count) => Math.max(0, Math.min(value, (count ?? 1e9) - 1));
  return { ...chosen, side, position: within(chosen.position, of.tokens.length), layer: within(chosen.layer, of.layers), head: within(chosen.head, of.heads) };
}

/** Change a part of the selection; every view of the page follows. */
export function select(model, part) {
  model.set("selection", { ...selected(model), ...part });
  model.save_changes();
}

/** Keep what a view's own fields say, for the file that is saved of it. */
export function remember(model, values) {
  const data = model.get("data");
  data.asked = { ...data.asked, ...values };
}

/** Draw now, when the selection changes (`draw`), and when the data does (`rebuild`); returns what ends that. */
export function follow(model, rebuild, draw) {
  const all = () => { if (model.get("data")?.sides) { rebuild(); draw(); } };
  const moved = () => { if (model.get("data")?.sides) draw(); };
  model.on("change:data", all);
  model.on("change:selection", moved);
  all();
  return () => { model.off("change:data", all); model.off("change:selection", moved); };
}

/** A select of the side that is shown; null where there is one, and on a page of a subject, which has its own. */
export function sideSelect(model) {
  const { sides, subject } = model.get("data");
  if (sides.length < 2 || subject) return null;
  const names = [...sides.map((side) => side.name), t("Difference")];
  const shown = choose(t("Shown"), names.map((name, side) => [side, name]), selected(model).side, (side) => select(model, { side: Number(side) }));
  shown.name = "side";
  return shown;
}

/** The sides that are shown: [side] or, for the difference, both. */
export function sidesShown(model) {
  const { sides } = model.get("data"), { side } = selected(model);
  return side === 2 ? sides : [sides[side]];
}

/** What a later request computed with Python: `await ask(model, kind, options)`; rejects with a sentence for the reader. */
let asked = 0;
export function ask(model, kind, options = {}) {
  if (model.ask) return model.ask(kind, options).then(answered, () => answered());
  if (!canAsk(model)) return Promise.reject(new Error(t("This needs Python: open the view in a notebook or in the app.")));
  const id = `${Date.now()}-${asked++}`;
  return new Promise((resolve, reject) => {
    const listen = (message) => {
      if (message?.id !== id) return;
      model.off("msg:custom", listen);
      answered(message.answer).then(resolve, reject);
    };
    model.on("msg:custom", listen);
    model.send({ id, kind, options });
  });
}
export const canAsk = (model) => Boolean(model.ask || (model.send && model.get("answers")));
const answered = async (answer) => {
  if (!answer) throw new Error(t("The server does not answer; what is here still works."));
  if (answer.error) throw new Error(answer.error);
  return answer;
};

/** Ask only once what is wanted has stood still, and pass on only the last answer: later(kind, options, done, failed); later() cancels. */
export function asker(model, wait = 150) {
  let timer = 0, last = 0;
  return (kind, options, done, failed) => {
    const mine = ++last;
    clearTimeout(timer);
    if (!kind) return;
    timer = setTimeout(() => ask(model, kind, options).then((answer) => mine === last && done(answer), (error) => mine === last && failed(error)), wait);
  };
}

/** What stays the same as long as the data is of the same models and text. */
export function subjectOf(model) {
  const { subject, sides } = model.get("data");
  return JSON.stringify([subject, sides.map(({ name, tokens, layers, heads }) => [name, tokens, layers, heads])]);
}

/** The index that an arrow key leads to among buttons in rows; undefined for other keys. */
export function arrow(event, at, count, columns = count) {
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - columns, ArrowDown: at + columns, Home: 0, End: count - 1 }[event.key];
  if (to === undefined) return undefined;
  event.preventDefault();
  return to < 0 || to >= count ? at : to;
}

/** The model of a page without Python. */
export function fileModel(state) {
  const listeners = {};
  return {
    get: (key) => state[key],
    set: (key, value) => { state[key] = value; [...(listeners[`change:${key}`] ?? [])].forEach((listener) => listener()); },
    on: (event, listener) => { (listeners[event] ??= []).push(listener); },
    off: (event, listener) => { listeners[event] = (listeners[event] ?? []).filter((other) => other !== listener); },
    save_changes: () => {},
    is_file: true,
  };
}

// ---- what is saved -------------------------------------------------------------------------------------------

export function download(content, name, type) {
  const link = element("a", { href: URL.createObjectURL(new Blob([content], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);  // some browsers read it a little later
}

/** Copy a text; over plain http, where browsers offer no clipboard, through a text field. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
  const field = element("textarea", { value: text });
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  return done;
}

/** A CSV line's cell: quoted, and never read as a formula by a spreadsheet. */
export const cell = (value) => typeof value === "number" ? String(value) : `"${(/^[=+\-@\t\r]/.test(value) ? "'" : "") + String(value).replaceAll('"', '""')}"`;
