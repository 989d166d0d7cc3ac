import { element, isolated, panel, roving, t } from "./lib.js";

// What is known of the selected runs: settings, of several those that differ; the samples and the log of the first.

const TABS = () => [["settings", t("Settings")], ["samples", t("Samples")], ["log", t("Log")]];

export function rundetailsView({ model, el }) {
  const { panel: frame, body } = panel(t("Selected run"), "rundetails");
  const about = element("p", { role: "status" }), tabs = element("div", { className: "g-bar", role: "tablist" }), place = element("div", { className: "g-scroll", role: "tabpanel", tabIndex: 0 });
  let tab = "settings";
  const buttons = TABS().map(([key, title]) => element("button", { className: "g-button", type: "button", role: "tab", "data-tab": key, onclick: () => { tab = key; draw(); } }, title));
  tabs.append(...buttons);
  roving(tabs);
  body.append(about, tabs, place);
  el.append(frame);

  function draw() {
    const { id = "", line = "", settings, samples = [], log = "" } = model.get("data") ?? {};
    about.textContent = line || t("No run is selected. Click one in the table.");
    tabs.hidden = place.hidden = !id;
    buttons.forEach((button) => { const on = button.dataset.tab === tab; button.setAttribute("aria-selected", String(on)); button.setAttribute("aria-pressed", String(on)); button.tabIndex = on ? 0 : -1; });
    if (id) place.replaceChildren(...{ settings: () => settingsTable(settings), samples: () => samplesList(samples), log: () => [log.trim() ? element("pre", {}, log) : soft(t("The log is empty so far."))] }[tab]());
  }

  model.on("change:data", draw);
  draw();
  return () => model.off("change:data", draw);
}

const soft = (text) => element("p", { className: "g-soft" }, text);

function settingsTable({ head, rows }) {
  const several = head.length > 2, value = (each) => each === null ? "–" : typeof each === "object" ? JSON.stringify(each) : String(each);
  if (several && !rows.length) return [soft(t("All settings of these runs are the same."))];
  if (!several) return [element("dl", {}, ...rows.map(([name, each]) => element("div", {}, element("dt", {}, name), element("dd", {}, value(each)))))];
  return [soft(t("Settings that differ; the others are the same.")), element("table", {},
    element("thead", {}, element("tr", {}, ...head.map((name, i) => element("th", { scope: "col" }, i ? name : t("Setting"))))),
    element("tbody", {}, ...rows.map(([name, ...values]) => element("tr", {}, element("th", { scope: "row" }, name), ...values.map((each) => element("td", {}, value(each)))))))];
}

function samplesList(samples) {
  if (!samples.length) return [soft(t("No samples yet: one is written at each validation, with the same prompt and seed."))];
  return samples.map(({ step, prompt, text }) => element("div", { className: "g-sample" }, element("b", {}, t("Step {step}", { step: step.toLocaleString("en-US") })), element("p", { dir: "auto" }, element("b", {}, prompt), isolated(text))));
}
