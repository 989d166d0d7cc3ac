import { copy, element, listed, panel, selected, t } from "./lib.js";
import { headgridView } from "./headgrid.js";
import { attentionView } from "./attention.js";
import { weightsOf } from "./weights.js";

// The offline page of a trace or of two: all heads, the text, and the selected heads large. Its address holds what is shown.

export function attentionpageView({ model, el }) {
  const about = element("p", { className: "g-soft g-about-page" }), link = element("button", { type: "button", className: "g-button" }, t("Copy link"));
  const { panel: textFrame, body: textBody } = panel(t("Text"), "textpanel"), heads = element("div"), large = element("div");
  textFrame.classList.add("g-attention");  // it holds a part of that view
  el.append(element("div", { className: "g-bar g-top" }, about, link), element("div", { className: "g-page" }, element("div", {}, heads, textFrame), large));
  const ends = [attentionView({ model, el: large, textPlace: textBody })], { view } = large;
  ends.push(headgridView({ model, el: heads, alone: false, onhover: (head) => view.preview(head) }));

  function permalink() {
    const { first, root, all, heads: chosen, other, ...state } = view.state();
    return new URLSearchParams({ ...state, other: other ?? "", heads: chosen, first: +first, root: +root, all: +all }).toString();
  }

  /** Show a part of the state and, before it, what the address asks for; what this page does not have is passed over. */
  function fromAddress(part = {}) {
    const asked = new URLSearchParams(location.hash.slice(1)), { sides } = model.get("data");
    const whole = (name) => /^\d{1,6}$/.test(asked.get(name) ?? "") ? Number(asked.get(name)) : null;
    const within = (name, count) => { if (whole(name) !== null && whole(name) < count) part[name] = whole(name); };
    const among = (name, values) => { if (values.includes(asked.get(name))) part[name] = asked.get(name); };
    const T = sides[0].tokens.length, H = sides[0].heads;
    within("side", sides.length === 1 ? 1 : 3);
    if (weightsOf(sides[0]).layers.has(whole("layer"))) part.layer = whole("layer");
    const named = (asked.get("heads") ?? "").split(",").filter((head) => /^\d{1,6}$/.test(head) && head < H).map(Number);
    if (named.length) part.heads = [...new Set(named)].sort((a, b) => a - b);
    among("together", ["mean", "max"]);
    among("view", ["heatmap", "lines"]);
    among("mode", ["to", "by"]);
    const threshold = Number(asked.get("threshold"));
    if (asked.has("threshold") && threshold >= 0 && threshold <= 1) part.threshold = threshold;
    for (const name of ["first", "root", "all"]) if (asked.has(name)) part[name] = asked.get(name) === "1";
    within("position", T);
    const at = part.position ?? selected(model).position, mode = part.mode ?? view.state().mode;
    if (asked.has("other")) {
      within("other", T);
      const fits = part.other !== undefined && (mode === "to" ? part.other <= at : part.other >= at);
      part.other = fits ? part.other : null;
    }
    view.change(part);
  }
  const addressed = location.protocol !== "about:";  // a page within another has no address of its own
  let noting = 0;
  const note = () => {
    clearTimeout(noting);  // browsers refuse a hundred changes of the address at once, which a slider makes
    if (addressed) noting = setTimeout(() => history.replaceState(null, "", `#${permalink()}`), 250);
  };

  link.hidden = !addressed;
  link.onclick = async () => {
    history.replaceState(null, "", `#${permalink()}`);
    link.textContent = await copy(location.href) ? t("Copied") : t("Copy it from the address bar");
  };
  const { sides, chosen } = model.get("data"), upTo = (error) => (Math.ceil(error * 1e4) / 1e4).toFixed(4);
  Promise.all(sides.map((side) => weightsOf(side).ready)).then(() => {
    const [{ attention, layers, heads: H, tokens }] = sides, sent = attention.layers;
    const [base, other] = sides.map((side) => side.name), count = tokens.length.toLocaleString("en-US");
    const part = sent.length === layers ? layers === 1 ? t("1 layer") : t("{count} layers", { count: layers })
      : sent.length > 1 ? t("layers {layers} of {count}", { layers: listed(sent), count: layers }) : t("layer {layer} of {count}", { layer: sent[0], count: layers });
    about.textContent = [other ? t("{base} and {other}", { base, other }) : base, listed([`${part} × ${H === 1 ? t("1 head") : t("{count} heads", { count: H })}`, tokens.length === 1 ? t("1 token") : t("{count} tokens", { count })]),
      t("stored weights are within {bound} of the model's", { bound: upTo(Math.max(...sides.map((side) => weightsOf(side).bound))) }), ...sides.map((side) => side.note).filter(Boolean)].join(" · ");
    fromAddress({ heads: chosen });
    view.onchange = note;
    document.body.dataset.ready = "true";
  }, () => {});
  const follows = () => fromAddress();
  addEventListener("hashchange", follows);
  el.view = Object.assign(view, { permalink });
  return () => { ends.forEach((end) => end()); removeEventListener("hashchange", follows); };
}
