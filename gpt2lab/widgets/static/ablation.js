import { arrow, ask, asker, canAsk, chip, element, entryName, follow, heat, isolated, listed, panel, remember, select, selected, sentence, shown, signed, subjectOf, t } from "./lib.js";

// What a text costs without the heads and MLPs that are switched off, each head alone, and activation patching.

export function ablationView({ model, el }) {
  const { panel: frame, note, body } = panel(t("Ablation"), "ablation");
  const off = element("div", { className: "g-bar" }), blocks = element("div", { className: "g-blocks" }), patched = element("div", { className: "g-blocks" });
  const python = element("div", { className: "g-bar" }), patching = element("section", { className: "g-patching", "aria-label": t("Activation patching") }), failure = element("p", { className: "g-error", role: "alert", hidden: true });
  const mean = element("input", { type: "checkbox", onchange: () => draw() });
  const later = asker(model, 250);
  let subject = null, asked = null, pending = false, mlps = [], found = [], errors = [], sweeps = [], patches = [], patchErrors = [], drawn = null;

  const sweep = layerwise(t("Ablate every head alone"), {
    begin: () => {
      const { sides } = model.get("data"), options = { mean: mean.checked };
      sweeps = sides.map((side) => ({ loss: null, losses: [], mean: mean.checked }));
      drawBlocks();
      return { count: Math.max(...sides.map((side) => side.layers)), ask: (layer) => ask(model, "sweep", { ...options, layer }) };
    },
    take: (layer, { sides }) => {
      const layers = model.get("data").sides.map((side) => side.layers);
      sides.forEach((side, i) => { if (!side.error) { sweeps[i].loss = side.loss; sweeps[i].losses[layer] = side.losses; } });
      drawBlocks();
      const wrong = sides.find((side, i) => side.error && layer < layers[i]);
      if (wrong) throw new Error(wrong.error);
    },
    end: () => {
      const data = model.get("data");
      model.set("data", { ...data, sides: data.sides.map((side, i) => ({ ...side, sweep: sweeps[i] })) });
    },
  });

  const field = (label, width, placeholder) => element("input", { type: "text", "aria-label": label, placeholder, title: label, className: width });
  const corrupted = field(t("Corrupted prompt"), "g-wide", t("Corrupted prompt")), answer = field(t("Answer; empty: the top prediction"), "g-narrow", t("Answer")),
    against = field(t("Against; empty: the top prediction after the corrupted prompt"), "g-narrow", t("Against"));
  const patch = layerwise(t("Patch"), {
    begin: () => {
      const { sides } = model.get("data"), options = { corrupted: corrupted.value, token: answer.value || null, against: against.value || null };
      remember(model, { corrupted: options.corrupted, answer: options.token, rival: options.against });
      patches = sides.map(() => null);
      patchErrors = [];
      return { count: Math.max(...sides.map((side) => side.layers)) + 1, ask: (layer) => ask(model, "patch", { ...options, layer }) };
    },
    take: (layer, { sides }) => {
      const layers = model.get("data").sides.map((side) => side.layers);
      sides.forEach(({ error, recovered, ...rest }, i) => {
        if (error) { if (layer <= layers[i]) patchErrors[i] = error; return; }
        patches[i] ??= { ...rest, recovered: [] };
        patches[i].recovered[layer] = recovered;
      });
      if (sides.every((side) => side.error) && layer === 0) { drawPatches(); throw new Error(""); }
      drawPatches();
    },
    end: () => {},
  });
  corrupted.onkeydown = (event) => { if (event.key === "Enter") patch.start(); };

  python.append(corrupted, answer, against, ...patch.parts);
  patching.append(element("h4", {}, t("Activation patching")),
    element("p", { className: "g-soft" }, t("States of the clean run are put into the run of a corrupted prompt of as many tokens, one at a time. 0: the answer stays as corrupted; 1: as clean.")),
    python, patch.error, patched);
  const needs = element("p", { className: "g-soft" }, t("Other ablations need Python: open the view in a notebook or in the app."));
  body.append(sweep.error, off, failure, blocks, needs, patching);
  note.append(element("label", { className: "g-check", title: t("Ablated parts write their mean over the text instead of nothing") }, mean, ` ${t("Mean")}`), ...sweep.parts);
  el.append(frame);

  const sidesOf = () => model.get("data").sides;
  const deepest = () => Math.max(...sidesOf().map((side) => side.layers ?? 0));
  const same = ([layer, head]) => ([l, h]) => l === layer && h === head;
  const toggle = (place) => {
    const now = selected(model).off, without = now.filter((other) => !same(place)(other));
    select(model, { layer: place[0], head: place[1], off: without.length < now.length ? without : [...now, place] });
  };

  function rebuild() {
    const { sides, subject: named } = model.get("data");
    if (subject !== subjectOf(model)) {
      subject = subjectOf(model);
      sweep.stop();
      patch.stop();
      later();
      found = sides.map(({ ablation }) => ablation?.off.length || ablation?.mlps.length ? ablation : null);
      patches = sides.map((side) => side.patching ?? null);
      errors = [];
      patchErrors = [];
      sweeps = [];
      mlps = found[0]?.mlps ?? [];
      mean.checked = Boolean(found[0]?.mean);
      asked = found[0] ? keyOf(found[0]) : null;
      pending = false;
      corrupted.value = named?.text ?? "";
      drawPatches();
    }
    if (!sweep.running()) sweeps = sides.map((side, i) => side.sweep ?? sweeps[i] ?? null);
    const live = canAsk(model);
    python.hidden = !live;
    needs.hidden = live;
    note.hidden = !live;
    drawn = null;
    patching.hidden = !live && !patches.some(Boolean);
  }

  function draw() {
    const now = selected(model), wanted = { off: now.off, mlps, mean: mean.checked }, key = keyOf(wanted);
    if (canAsk(model) && key !== asked) {
      asked = key;
      drawn = null;
      errors = [];
      failure.hidden = true;
      pending = now.off.length + mlps.length > 0;
      if (!pending) { found = []; later(); }
      else later("ablate", wanted, ({ sides }) => {
        pending = false;
        errors = sides.map((side) => side.error);
        sides.forEach((side, i) => { if (!side.error) found[i] = side; });
        drawBlocks();
      }, (error) => { pending = false; failure.hidden = false; failure.textContent = error.message; drawBlocks(); });
    }
    remember(model, { mlps, mean: mean.checked });
    drawOff(now);
    if (drawn !== JSON.stringify([now.off, pending])) drawBlocks();
    else mark();
    patched.querySelectorAll("[data-at]").forEach((cell) => cell.classList.toggle("g-at", Number(cell.dataset.at) === now.position));
  }

  /** What is switched off, and buttons for the selected head and the MLPs. */
  function drawOff({ layer, head, off: places }) {
    off.hidden = !canAsk(model);
    if (off.hidden) return;
    const focused = [...off.querySelectorAll("button")].indexOf(document.activeElement);
    const button = (text, pressed, label, onclick) => element("button", { className: "g-button", type: "button", "aria-pressed": pressed, "aria-label": label, title: label, onclick }, text);
    const isOff = places.some(same([layer, head]));
    off.replaceChildren(
      button(t("Head {layer}.{head} off", { layer, head }), String(isOff), t("Switch off layer {layer}, head {head}", { layer, head }), () => toggle([layer, head])),
      element("span", { className: "g-soft" }, t("MLPs off")),
      element("span", { className: "g-bar g-mlps", role: "group", "aria-label": t("MLPs off") }, ...Array.from({ length: deepest() }, (_, l) => button(String(l), String(mlps.includes(l)), t("Switch off the MLP of layer {layer}", { layer: l }),
        () => { mlps = mlps.includes(l) ? mlps.filter((other) => other !== l) : [...mlps, l].sort((a, b) => a - b); draw(); }))),
      ...(places.length + mlps.length ? [button(t("Clear"), null, t("Switch everything on"), () => { mlps = []; select(model, { off: [] }); })] : []));
    if (focused >= 0) (off.querySelectorAll("button")[focused] ?? off.querySelector("button")).focus();
  }

  // ---- a side ------------------------------------------------------------------------------------------------

  function drawBlocks() {
    const focused = blocks.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    drawn = JSON.stringify([selected(model).off, pending]);
    frame.setAttribute("aria-busy", String(pending));
    blocks.replaceChildren(...sidesOf().map((side, i) => element("div", { className: "g-block" },
      sidesOf().length > 1 ? element("h4", {}, side.name) : null,
      element("div", { className: "g-pair" }, side.layers ? heads(side, i) : null, cost(side, i)))));
    mark();
    if (focused) blocks.querySelector(`[data-key="${focused}"]`)?.focus();
  }

  /** Show what is selected, in what is drawn. */
  function mark() {
    const { layer, head, position } = selected(model);
    blocks.querySelectorAll("[aria-selected=true]").forEach((old) => { old.setAttribute("aria-selected", "false"); old.tabIndex = -1; });
    sidesOf().forEach((side, i) => {
      const at = Math.min(position, side.tokens.length - 1), one = found[i];
      for (const key of [`${i}.${layer}.${head}`, `${i}:${at}`]) {
        const button = blocks.querySelector(`[data-key="${key}"]`);
        button?.setAttribute("aria-selected", "true");
        if (button) button.tabIndex = 0;
      }
      blocks.children[i].querySelector(".g-next")?.replaceChildren(element("div", { className: "g-soft" }, ...sentence("Next prediction after {token}", { token: chip(side.tokens[at]) })),
        element("div", { className: "g-tops" }, top(t("Before"), t("Next prediction, before"), one.before[at]), top(t("After"), t("Next prediction, after"), one.after[at])));
    });
  }

  /** Layers × heads, the last layer on top; coloured once each was ablated alone. */
  function heads(side, i) {
    const { off: places } = selected(model), swept = sweeps[i], { layers: L, heads: H } = side;
    const change = (l, h) => swept?.losses[l] ? swept.losses[l][h] - swept.loss : null;
    const most = Math.max(1e-9, ...(swept?.losses ?? []).flatMap((row) => row ? row.map((loss) => Math.abs(loss - swept.loss)) : []));
    const grid = element("div", { className: "g-heads", role: "grid", "aria-label": t("Heads of {model}", { model: side.name }), style: `grid-template-columns: auto repeat(${H}, minmax(0, 1fr))` });
    for (let l = L - 1; l >= 0; l--) {
      const row = element("div", { role: "row", className: "g-row" }, element("span", { className: "g-soft", role: "rowheader", "aria-label": t("Layer {layer}", { layer: l }) }, String(l)));
      for (let h = 0; h < H; h++) {
        const value = change(l, h), isOff = places.some(same([l, h]));
        const place = t("layer {layer}, head {head}", { layer: l, head: h }), valued = value === null ? place : t("{head}: {value} nats per token", { head: place, value: signed(value, 4) });
        const text = isOff ? t("{head}, off", { head: valued }) : valued;
        row.append(element("button", { type: "button", role: "gridcell", "data-key": `${i}.${l}.${h}`, "aria-selected": "false", tabIndex: -1,
          "aria-label": text, title: canAsk(model) ? `${text}\n${t("Click selects, Shift-click switches off")}` : text, style: value === null ? "" : `background: ${heat(value / most)}`,
          onclick: (event) => event.shiftKey && canAsk(model) ? toggle([l, h]) : select(model, { layer: l, head: h }) }, isOff ? "×" : ""));
      }
      grid.append(row);
    }
    grid.append(element("div", { className: "g-row", "aria-hidden": "true" }, element("span", {}), ...Array.from({ length: H }, (_, h) => element("span", { className: "g-soft" }, String(h)))));
    grid.onkeydown = (event) => {
      const { layer, head } = selected(model), to = arrow(event, (L - 1 - layer) * H + head, L * H, H);
      if (to === undefined) return;
      select(model, { layer: L - 1 - Math.floor(to / H), head: to % H });
      blocks.querySelector(`[data-key="${i}.${L - 1 - Math.floor(to / H)}.${to % H}"]`)?.focus();
    };
    const title = !swept ? t("Heads, by layer") : swept.mean ? t("Loss without each head alone (mean): ±{value} nats per token", { value: shown(most) })
      : t("Loss without each head alone: ±{value} nats per token", { value: shown(most) });
    return element("div", {}, element("div", { className: "g-soft g-caption" }, title), grid);
  }

  /** The loss before and after, the tokens by what they cost more, the next prediction before and after. */
  function cost(side, i) {
    const one = found[i], out = element("div", { className: "g-cost" });
    if (errors[i]) out.append(element("p", { className: "g-error", role: "alert" }, errors[i]));
    if (!one) {
      if (!errors[i]) out.append(element("p", { className: "g-soft", role: "status" }, pending ? t("Ablating …") : canAsk(model) ? t("Nothing is switched off. Switch off the selected head or an MLP, or Shift-click heads.") : t("No heads or MLPs are switched off.")));
      return out;
    }
    const change = one.loss_ablated - one.loss;
    const most = Math.max(1e-9, ...one.change.map((value) => Math.abs(value ?? 0)));
    const strip = element("div", { className: "g-costs", role: "listbox", "aria-label": t("Tokens by added surprisal"), "aria-orientation": "horizontal" });
    side.tokens.forEach((token, at) => {
      const value = one.change[at] ?? null, text = value === null ? t("no prediction") : t("{value} nats", { value: signed(value) });
      strip.append(element("button", { type: "button", role: "option", className: "g-token", "data-key": `${i}:${at}`, tabIndex: -1, "aria-selected": "false",
        title: t("{name}: {value}", { name: at, value: text }), "aria-label": listed([isolated(token), text]), style: `background: ${value === null ? "var(--g-wash)" : heat(value / most)}`, onclick: () => select(model, { position: at, token: null }) }, token));
    });
    strip.onkeydown = (event) => {
      const to = arrow(event, selected(model).position, side.tokens.length);
      if (to === undefined) return;
      select(model, { position: to, token: null });
      blocks.querySelector(`[data-key="${i}:${to}"]`)?.focus();
    };
    const parts = listed([...one.off.map((place) => place.join(".")), ...one.mlps.map((l) => `${l}.mlp`)]);
    out.append(
      element("p", { className: "g-loss" }, ...sentence("{before} → {after} nats per token {change}", {
        before: element("b", {}, shown(one.loss, 4)), after: element("b", {}, shown(one.loss_ablated, 4)), change: element("span", { className: "g-chip", style: `background: ${heat(change < 0 ? -0.5 : 0.5)}` }, signed(change, 4)) }),
      " ", element("span", { className: "g-soft" }, one.mean ? t("mean of {parts}", { parts }) : t("without {parts}", { parts }))),
      strip,
      element("div", { className: "g-soft g-caption" }, t("Added nats per token: blue {low}, orange {high}", { low: signed(-most, 1), high: signed(most, 1) })),
      element("div", { className: "g-next" }));
    return out;
  }

  function top(title, name, predicted) {
    return element("ol", { "aria-label": name }, element("li", { className: "g-soft" }, title),
      ...predicted.map(([word, , probability]) => element("li", { title: t("{name}: {value}", { name: isolated(word), value: shown(probability, 5) }) }, element("span", { className: "g-token" }, word),
        element("i", { "aria-hidden": "true", style: `--share: ${probability}` }), element("span", {}, shown(probability)))));
  }

  // ---- patching ----------------------------------------------------------------------------------------------

  function drawPatches() {
    const many = sidesOf().length > 1, { position } = selected(model);
    patched.replaceChildren(...sidesOf().map((side, i) => element("div", { className: "g-block" }, many && (patches[i] || patchErrors[i]) ? element("h4", {}, side.name) : null,
      patchErrors[i] ? element("p", { className: "g-error", role: "alert" }, patchErrors[i]) : null, patches[i] ? grid(patches[i], position) : null)));
    patched.querySelectorAll(".g-scroll").forEach((scroll) => { scroll.scrollLeft = (scroll.querySelector("small")?.offsetLeft ?? 0) - 160; });  // before the first token that differs, all are 0
  }

  function grid({ tokens, clean_tokens, words, clean, corrupted: other, recovered }, position) {
    const at = (i) => ({ "data-at": i, className: i === position ? "g-at" : "", onclick: () => select(model, { position: i, token: null }) });
    const rows = recovered.map((row, entry) => element("tr", {}, element("th", { scope: "row" }, entryName(entry)), ...row.map((value, i) =>
      element("td", { ...at(i), title: t("{entry}, token {position}: {value} recovered", { entry: entryName(entry), position: i, value: shown(value) }), style: `background: ${heat(value)}` }, share(value))))).reverse();
    const head = tokens.map((token, i) => element("th", { scope: "col", ...at(i) }, element("button", { type: "button", className: "g-token", title: t("Token {position}", { position: i }) }, token),
      clean_tokens[i] === token ? null : element("small", { className: "g-token" }, clean_tokens[i])));
    return element("div", {},
      element("p", { className: "g-soft" }, ...sentence("Logit of {answer} less that of {against} after the last token: clean {clean}, corrupted {corrupted}.",
        { answer: chip(words[0]), against: chip(words[1]), clean: signed(clean), corrupted: signed(other) }), ` ${t("Share recovered by the clean state after each layer, at each token.")}`),
      element("div", { className: "g-scroll", tabIndex: 0 }, element("table", { className: "g-patches" }, element("thead", {}, element("tr", {}, element("th", {}, t("State after")), ...head)), element("tbody", {}, ...rows))));
  }

  const end = follow(model, rebuild, draw);
  return () => { sweep.stop(); patch.stop(); later(); end(); };
}

const share = (value) => Math.abs(value) < 0.005 ? "0" : value.toFixed(2).replace("-", "−");
const keyOf = ({ off, mlps, mean }) => JSON.stringify([[...off].sort(([a, b], [c, d]) => a - c || b - d), mlps, Boolean(mean)]);

/** A button that asks for layer after layer, with how far it is and a Stop button beside it. */
function layerwise(text, { begin, take, end }) {
  let run = null;
  const button = (label, properties) => element("button", { className: "g-button", type: "button", ...properties }, label);
  const go = button(text, { onclick: () => start() }), halt = button(t("Stop"), { hidden: true, onclick: () => stop() });
  const status = element("span", { className: "g-soft", role: "status" }), error = element("p", { className: "g-error", role: "alert", hidden: true });
  const show = () => {
    const had = document.activeElement;
    go.hidden = Boolean(run);
    halt.hidden = !run;
    if (had === go && run) halt.focus();
    if (had === halt && !run) go.focus();
  };
  function stop() {
    if (!run) return;
    run = null;
    status.textContent = t("Stopped.");
    show();
  }
  async function start() {
    if (run) return;
    const mine = run = {}, { count, ask: request } = begin(), began = performance.now();
    error.hidden = true;
    show();
    try {
      for (let layer = 0; layer < count; layer++) {
        const work = (from, to) => Array.from({ length: to - from }, (_, i) => count - from - i).reduce((a, b) => a + b, 0);  // a layer costs what lies above it
        const left = layer ? Math.ceil((performance.now() - began) / 1000 * work(layer, count) / work(0, layer)) : null;
        status.textContent = left === null ? t("Layer {layer} of {count}", { layer: layer + 1, count }) : t("Layer {layer} of {count}, about {seconds} s left", { layer: layer + 1, count, seconds: left });
        const answer = await request(layer);
        if (run !== mine) return;
        take(layer, answer);
      }
      status.textContent = "";
      run = null;
      end();
    } catch (problem) {
      if (run !== mine) return;
      run = null;
      status.textContent = "";
      error.textContent = problem.message;
      error.hidden = !problem.message;
    }
    show();
  }
  return { parts: [go, halt, status], error, start, stop, running: () => Boolean(run) };
}
