import { choose, element, t } from "./lib.js";

// Buttons and a slider that go through the steps of a training.

const SPEEDS = [1, 3, 6, 12];  // steps a second
const whole = (value) => value.toLocaleString("en-US");

/** { bar, show, end }; go: called with a step. */
export function stepPlayer({ go }) {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let steps = [], at = 0, timer = 0, speed = still ? 1 : 3;
  const icon = (name) => element("i", { className: `g-icon g-${name}`, "aria-hidden": "true" });
  const button = (label, name, onclick) => element("button", { type: "button", className: "g-button g-round", "aria-label": label, title: label, onclick }, icon(name));
  const before = button(t("Previous step"), "back", () => jump(at - 1)), after = button(t("Next step"), "forward", () => jump(at + 1));
  const play = button(t("Play"), "play", () => timer ? pause() : start());
  const slider = element("input", { type: "range", min: 0, step: 1, "aria-label": t("Training step"), oninput: () => jump(Number(slider.value)) });
  const reading = element("output", { className: "g-now" });
  const speeds = choose(t("Speed"), SPEEDS.map((each) => [each, t("{count} a second", { count: each })]), speed, (to) => { speed = Number(to); });
  speeds.title = t("Steps shown in a second");
  const bar = element("div", { className: "g-panel g-player", role: "group", "aria-label": t("Training step") }, before, play, after, slider, reading, speeds);

  function jump(to) {
    pause();
    if (to >= 0 && to < steps.length) go(steps[to]);
  }
  function start() {
    if (at === steps.length - 1) go(steps[0]);
    timer = setTimeout(advance, 1000 / speed);
    drawPlay();
  }
  function advance() {
    if (at < steps.length - 1) go(steps[at + 1]);
    if (at >= steps.length - 1) return pause();
    timer = setTimeout(advance, 1000 / speed);
  }
  function pause() {
    clearTimeout(timer);
    timer = 0;
    drawPlay();
  }
  function drawPlay() {
    play.replaceChildren(icon(timer ? "pause" : "play"));
    play.title = timer ? t("Pause") : t("Play");
    play.setAttribute("aria-label", play.title);
  }

  /** Show a step among all. */
  function show(all, step) {
    [steps, at] = [all, all.indexOf(step)];
    slider.max = steps.length - 1;
    slider.value = at;
    slider.setAttribute("aria-valuetext", t("step {step}", { step: whole(step) }));
    reading.replaceChildren(t("Step {step}", { step: whole(step) }), element("span", { className: "g-soft" }, t(" of {total}", { total: whole(steps.at(-1)) })));
    before.setAttribute("aria-disabled", at === 0);
    after.setAttribute("aria-disabled", at === steps.length - 1);
    play.disabled = steps.length < 2;
  }
  return { bar, show, end: pause };
}
