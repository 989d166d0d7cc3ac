import { chip, element, t } from "./lib.js";
import { dotted, stepsOf } from "./steps.js";

// The texts so far as a tree: a branch below the text that it branches from. Arrow keys walk, and show each text.

export function branchTree(page) {
  const tree = element("div", { className: "g-tree", role: "tree", "aria-label": t("Texts and branches") });
  const node = element("div", { className: "g-branches" }, element("h4", {}, t("Texts and branches")), tree);
  let rows = [];

  /** [{ text, level, at, of }] in the order of the tree. */
  function ordered() {
    const texts = page.texts(), known = new Set(texts.map(({ number }) => number)), found = [];
    const add = (text, level, siblings) => {
      found.push({ text, level, at: siblings.indexOf(text) + 1, of: siblings.length });
      const children = texts.filter(({ parent }) => parent === text.number);
      children.forEach((child) => add(child, level + 1, children));
    };
    const roots = texts.filter(({ parent }) => !known.has(parent));
    roots.forEach((root) => add(root, 1, roots));
    return found;
  }

  function draw() {
    node.hidden = page.texts().length < 2;
    if (node.hidden) return;
    const focused = rows.find(({ item }) => item === item.getRootNode().activeElement)?.text.number, shown = page.shown();
    rows = ordered().map((row) => ({ ...row, item: item(row, shown) }));
    tree.replaceChildren(...rows.map(({ item }) => item));
    const current = rows.find(({ text }) => text.number === page.text()?.number) ?? rows[0];
    rows.forEach(({ item }) => { item.tabIndex = item === current.item ? 0 : -1; });
    rows.find(({ text }) => text.number === focused)?.item.focus({ preventScroll: true });
  }

  function item({ text, level, at, of }, shown) {
    const steps = stepsOf(text), chosen = text.kept ? steps[text.kept - 1] : null;
    const rest = steps.slice(text.kept).map(({ token }) => token).join("").trim();
    const what = chosen ? [chip(dotted(chosen.token)), " ", t("at token {index} of text {parent}", { index: text.kept - 1, parent: text.parent })] : [text.name, " · ", t("seed {seed}", { seed: text.seed })];
    return element("div", { role: "treeitem", "aria-level": String(level), "aria-posinset": String(at), "aria-setsize": String(of), "aria-selected": String(shown.includes(text.number)),
      "data-number": String(text.number), style: `padding-left: ${8 + 18 * Math.min(level - 1, 6)}px`, onclick: () => go(text.number) },
    element("span", { className: "g-what" }, element("b", {}, `${text.number} `), ...what), element("span", { className: "g-soft g-rest" }, rest));
  }

  function go(number) {
    page.open(number);
    rows.find(({ text }) => text.number === number)?.item.focus();
  }

  tree.onkeydown = (event) => {
    const at = rows.findIndex(({ item }) => item === event.target), row = rows[at];
    if (!row) return;
    const to = { ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: rows.length - 1, Enter: at, " ": at,
      ArrowLeft: rows.findIndex(({ text }) => text.number === row.text.parent), ArrowRight: rows.findIndex(({ text }) => text.parent === row.text.number) }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (rows[to]) go(rows[to].text.number);
  };
  return { node, draw };
}
