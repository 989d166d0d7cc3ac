import { asker, canAsk, chip, element, isolated, renew, roving, sentences, t } from "./lib.js";
import { dotted, percent } from "./steps.js";

// What a token was chosen from: the model's top predictions, by its own probability and by the sampler's. One of them branches.

const FIELDS = [["temperature", t("Temperature"), 0, 100, 0.1], ["top_p", t("Top-p"), 0, 1, 0.05], ["top_k", t("Top-k"), 0, 1e9, 1], ["min_p", t("Min-p"), 0, 1, 0.01]];
const EXACT = 5e-4;  // bounds that are shown as one number

export function alternativesPanel(page) {
  const title = element("h4", {}), facts = element("div", { className: "g-soft g-facts" });
  const list = element("ul", { className: "g-alternatives", "aria-label": t("Alternatives of the token") }), said = element("div", { className: "g-soft", role: "status" });
  const error = element("div", { className: "g-error", role: "alert", hidden: true });
  const inputs = FIELDS.map(([name, label, min, max, step]) => element("input", { type: "number", min, max, step, "aria-label": t("{setting} of the bars", { setting: label }), title: name === "top_k" ? t("0 keeps all tokens.") : null, oninput: () => request() }));
  const reset = element("button", { className: "g-button", type: "button", onclick: () => { fill(); request(); } }, t("Reset"));
  const controls = element("div", { className: "g-bar g-redraw" }, ...FIELDS.map(([, label], i) => element("label", {}, element("span", { className: "g-soft" }, label), inputs[i])), reset);
  const key = element("div", { className: "g-bar g-soft g-keys" }, element("span", {}, element("i", { className: "g-own" }), t("model")), element("span", {}, element("i", { className: "g-drawn" }), t("sampler")));
  const node = element("div", { className: "g-choices" }, element("div", { className: "g-head" }, title, key), facts, list, error, said, controls);
  const later = asker(page.model);
  let of = null, bounds = null, settings = null;
  roving(list);
  list.addEventListener("keydown", (event) => { if (event.key === "Escape") page.leave(); });

  const own = () => { const { sampling } = page.text(); return FIELDS.map(([name]) => sampling[name] ?? 0); };
  const values = () => inputs.map(({ value }) => value === "" ? null : Number(value));
  const say = (message) => { error.textContent = message; error.hidden = !message; };
  function fill() { own().forEach((value, i) => { inputs[i].value = value; }); }

  /** The bars for the fields' settings: those of the text are there, others are asked for. */
  function request() {
    const now = values();
    reset.disabled = String(now) === String(own());
    later();
    say("");
    if (reset.disabled) { bounds = null; bars(); return; }
    const options = Object.fromEntries(FIELDS.map(([name], i) => [name, now[i]]));
    later("redraw", { ...options, text: page.text().number, index: page.index() }, (answer) => { bounds = answer; bars(); }, (reason) => say(reason.message));
  }

  function bars() {
    const step = of, text = page.text(), listed = step.alternatives.some(({ id }) => id === step.id), others = listed ? step.alternatives : [...step.alternatives, step];
    const low = bounds ? [...bounds.low, bounds.chosen[0]] : others.map(({ drawn }) => drawn), high = bounds ? [...bounds.high, bounds.chosen[1]] : low;
    const most = Math.max(1e-9, ...high, ...others.map(({ probability }) => probability)), can = page.canBranch();
    renew(list, others.map((other, i) => element("li", {}, bar(other, low[i], high[i], most, other.id === step.id, can))));
    const wide = bounds && Math.max(...high.map((value, i) => value - low[i])) >= EXACT, parts = [];
    if (wide) parts.push(t("The {M} top predictions that are kept, {share} of the probability, do not determine these bars: they end between two bounds.", { M: bounds.M, share: percent(bounds.share) }));
    if (bounds && text.sampling.repetition_penalty !== 1) parts.push(t("The repetition penalty is left out."));
    said.textContent = sentences(parts);
  }

  /** A prediction's bars; without bounds where its probability under other settings is not known. */
  function bar(other, low, high, most, chosen, can) {
    const share = (value) => `width: ${(100 * value / most).toFixed(2)}%`, exact = high - low < EXACT, range = exact ? percent(low) : t("{low} to {high}", { low: percent(low), high: percent(high) });
    const values = { token: isolated(dotted(other.token)), p: percent(other.probability), range };
    const what = chosen ? t("{token}: probability {p}, under the sampler {range}; chosen", values) : t("{token}: probability {p}, under the sampler {range}", values);
    return element("button", { className: `g-alternative${chosen ? " g-is-chosen" : ""}`, type: "button", title: can && !chosen ? t("{what}. Click to continue from here.", { what }) : what, "aria-label": what,
      "aria-disabled": String(!can || chosen), "aria-pressed": String(chosen), onclick: () => can && !chosen && branch(other.id) },
    element("span", { className: "g-token" }, dotted(other.token)),
    element("span", { className: "g-tracks" }, element("i", { className: "g-own", style: share(other.probability) }), element("i", { className: "g-drawn", style: share(low) }),
      exact ? null : element("i", { className: "g-bound", style: `${share(high - low)}; left: ${(100 * low / most).toFixed(2)}%` })),
    element("span", { className: "g-value" }, percent(other.probability)), element("span", { className: "g-value" }, exact ? percent(low) : `≥ ${percent(low)}`));
  }

  async function branch(token) {
    say("");
    said.textContent = t("Writing …");
    try { await page.branch(token); if (!page.busy()) said.textContent = ""; } catch (reason) { said.textContent = ""; say(reason.message); }
  }

  function draw() {
    const step = page.step(), text = page.text();
    node.hidden = !step;
    if (!step) return;
    const mine = JSON.stringify(text.sampling), moved = step !== of;
    if (settings !== mine) { settings = mine; of = step; fill(); }
    of = step;
    if (moved) bounds = null;
    title.replaceChildren(t("Alternatives at token {i}", { i: page.index() }), " ", chip(dotted(step.token)));
    const fact = (name, value) => element("span", {}, `${name} `, element("b", {}, value));
    facts.replaceChildren(fact(t("probability"), percent(step.probability)), fact(t("rank"), step.rank.toLocaleString("en-US")), fact(t("entropy"), t("{n} nats", { n: step.entropy.toFixed(3) })),
      fact(page.index() === text.kept - 1 ? t("chosen by hand; under the sampler") : t("drawn with"), percent(step.drawn)), fact(t("removed by filters"), percent(step.removed)));
    controls.hidden = !canAsk(page.model);
    if (moved) request();
    else bars();
  }
  return { node, draw, end: () => later() };
}
