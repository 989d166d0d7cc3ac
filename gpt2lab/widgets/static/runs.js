import { element, panel, t } from "./lib.js";
import { STATES } from "./states.js";

// The runs of a folder as a table: a click on a name selects a run alone, checkboxes select several. It says so by `model.begin`.

const whole = (value) => value.toLocaleString("en-US");

export function runsView({ model, el }) {
  const { panel: frame, note, body } = panel(t("Runs"), "runs"), states = STATES();
  el.append(frame);
  let chosen = [];

  function choose(ids) {
    chosen = ids;
    draw();
    model.begin?.({ runs: ids });
  }

  function draw() {
    const { rows = [], limit = 6 } = model.get("data") ?? {}, root = el.getRootNode(), key = root.activeElement?.dataset?.key;
    const top = body.querySelector(".g-scroll")?.scrollTop ?? 0;
    note.textContent = rows.length ? t("{count} selected; up to {limit} are compared", { count: chosen.length, limit }) : "";
    if (!rows.length) return body.replaceChildren(element("p", { className: "g-soft", role: "status" }, t("There are no runs yet. Press Start training.")));
    const heads = [t("Name"), t("State"), t("Perplexity"), t("Model"), t("Text"), t("Started")];
    const scroll = element("div", { className: "g-scroll" }, element("table", { "aria-label": t("Runs, newest first") },
      element("thead", {}, element("tr", {}, element("th", {}, element("span", { className: "g-hidden" }, t("Compare"))), ...heads.map((head) => element("th", { scope: "col" }, head)))),
      element("tbody", {}, ...rows.map((row) => line(row, limit)))));
    body.replaceChildren(scroll);
    scroll.scrollTop = top;
    if (key) [...body.querySelectorAll("[data-key]")].find((each) => each.dataset.key === key)?.focus({ preventScroll: true });
  }

  function line(row, limit) {
    const on = chosen.includes(row.id), share = row.total ? Math.min(1, row.step / row.total) : 0;
    const box = element("input", { type: "checkbox", checked: on, disabled: !on && chosen.length >= limit, "data-key": `box ${row.id}`, "aria-label": t("Compare {run}", { run: row.id }),
      onchange: () => choose(on ? chosen.filter((id) => id !== row.id) : [...chosen, row.id]) });
    const name = element("button", { className: "g-open", type: "button", "data-key": `name ${row.id}`, title: row.id, onclick: () => choose([row.id]) }, row.id);
    const steps = t("{step} of {total}", { step: whole(row.step), total: row.total ? whole(row.total) : "?" });
    const alive = ["starting", "queued", "running", "stopping"].includes(row.state);
    return element("tr", { className: on ? chosen[0] === row.id ? "g-on g-first-run" : "g-on" : "", "aria-selected": String(on) },
      element("td", {}, box), element("th", { scope: "row" }, name),
      element("td", { className: `g-state g-${row.state}` }, element("span", {}, `${states[row.state] ?? row.state} `), element("small", {}, steps), alive ? element("span", { className: "g-progress", "aria-hidden": "true" }, element("i", { style: `width: ${100 * share}%` })) : null),
      element("td", {}, row.perplexity), element("td", { title: row.model }, row.model), element("td", { title: row.text }, row.text),
      element("td", { title: row.started }, row.started ? new Date(row.started).toLocaleString(navigator.language, { month: "numeric", day: "numeric", hour: "2-digit", minute: "2-digit" }) : ""));
  }

  const renew = () => { chosen = model.get("data")?.chosen ?? []; draw(); };
  model.on("change:data", renew);
  renew();
  return () => model.off("change:data", renew);
}
