import { ablationView } from "./ablation.js";
import { headgridView } from "./headgrid.js";
import { lensgridView } from "./lensgrid.js";
import { predictionsView } from "./predictions.js";
import { tokenstripView } from "./tokenstrip.js";
import { walkthroughView } from "./walkthrough.js";

// One view of the Explore page at a time: the one that `data.view` names, its heads coloured by `data.score`.

const VIEWS = { ablation: ablationView, headgrid: headgridView, lensgrid: lensgridView, predictions: predictionsView,
  tokenstrip: tokenstripView, walkthrough: walkthroughView };

export function courseView({ model, el }) {
  let shown = null, clean = null;
  const draw = () => {
    const { view = null, score } = model.get("data") ?? {}, now = `${view} ${score}`;
    if (now === shown) return;
    clean?.();
    el.replaceChildren();
    shown = now;
    clean = view && VIEWS[view]({ model, el, score });
  };
  model.on("change:data", draw);
  draw();
  return () => { clean?.(); model.off("change:data", draw); };
}
