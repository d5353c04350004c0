// The keyboard.

import { move, turnBy } from "./grid.js";
import { close, step } from "./sample.js";
import { $ } from "./show.js";
import { go, now } from "./state.js";

const GRID = {
  j: () => move(1), k: () => move(-1), ArrowRight: () => move(1), ArrowLeft: () => move(-1),
  ArrowDown: () => move(1, true), ArrowUp: () => move(-1, true), "[": () => turnBy(-1), "]": () => turnBy(1),
  "/": () => $("key").select(), f: () => $("where").select(),
};
const SAMPLE = {
  j: () => step(1), k: () => step(-1), ArrowRight: () => step(1), ArrowLeft: () => step(-1), Escape: close,
  "/": () => {
    close();
    $("key").select();
  },
};
const BOTH = { "?": () => $("keys").showModal(), t: () => window.wdsToggleTheme() };

/** Whether a key belongs to what has the focus. */
function isTaken(target, key) {
  if (target.isContentEditable || /^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName)) return true;
  if (/^(AUDIO|VIDEO)$/.test(target.tagName)) return key.startsWith("Arrow");
  return target.tagName === "PRE" && /^Arrow(Left|Right)$/.test(key) && target.scrollWidth > target.clientWidth;
}

export function listenToKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || document.querySelector("dialog[open]")) return;
    const { target, key } = event;
    if (isTaken(target, key)) {
      if (key === "Escape") $("samples").focus({ preventScroll: true });
      return;
    }
    if (key === "Escape" && now().n === null && now().is) return go({ is: null, at: 0 });
    const action = BOTH[key] ?? (now().n === null ? GRID : SAMPLE)[key];
    if (!action) return;
    event.preventDefault();
    action();
  });
}
