// How many samples there are of each class; a click on one shows only these.

import { json } from "./api.js";
import { $, brief, count, counted, el } from "./show.js";
import { go, now } from "./state.js";

let shown = "";
let stop = new AbortController();

const same = (a, b) => a !== null && b !== null && a[0] === b[0] && a[1] === b[1];

/** The columns that one can count by. */
export const countable = (info) => info.columns.filter((column) => column.type !== "other");

/** The column that is counted by. */
function column(state, info) {
  const names = countable(info).map((one) => one.name);
  return [state.by, info.class_column].find((name) => names.includes(name)) ?? "";
}

export async function showCounts(info) {
  const state = now();
  const by = column(state, info);
  $("counts").hidden = !countable(info).length;
  $("by").replaceChildren(
    el("option", { value: "" }, by ? "" : "choose a column"), ...countable(info).map((one) => el("option", { value: one.name }, one.name)));
  if (by) $("by").firstChild.remove();
  $("by").value = by;
  const asked = JSON.stringify([state.set, state.where, state.key, by]);
  if (asked !== shown) {
    shown = asked;
    stop.abort();
    stop = new AbortController();
    const mine = stop.signal;
    $("classes").replaceChildren();
    $("more").hidden = true;
    if (!by) return;
    try {
      const found = await json("counts", { set: state.set, column: by, where: state.where, key: state.key }, mine);
      if (mine.aborted) return;
      draw(found, by);
    } catch (error) {
      if (error.name === "AbortError") return;
      shown = "";
      $("more").hidden = false;
      $("more").textContent = error.status === 400 ? "" : error.message; // what is wrong with the filter stands there
    }
  }
  press();
}

function draw(found, by) {
  const most = Math.max(1, ...found.counts.map((one) => one.count));
  $("classes").append(...found.counts.map(({ value, count: many }) => {
    const bar = el("span", { className: "bar-of" });
    bar.style.width = `${Math.max(1, (100 * many) / most)}%`;
    const button = el("button", { type: "button", className: "class", title: value === null ? "none" : String(value) },
      bar, el("span", { className: "class-name" }, value === null ? "none" : value === "" ? "(empty)" : brief(value)), el("span", { className: "class-count" }, count(many)));
    button.is = [by, value];
    button.addEventListener("click", () => {
      go({ is: same(now().is, button.is) ? null : button.is, at: 0, n: null });
    });
    return el("li", {}, button);
  }));
  $("more").hidden = !found.more;
  $("more").textContent = found.more ? `The ${counted(found.counts.length, "most frequent value")}.` : "";
}

/** Mark the class that is shown. */
function press() {
  const { is } = now();
  for (const button of $("classes").querySelectorAll("button")) button.ariaPressed = String(same(is, button.is));
  const gone = el("button", { type: "button", className: "chip" });
  if (is) {
    gone.append(`${is[0]} is ${is[1] === null ? "none" : brief(is[1])} ×`);
    gone.ariaLabel = `Show all again, not only those whose ${is[0]} is ${is[1]}`;
    gone.addEventListener("click", () => go({ is: null, at: 0 }));
  }
  $("picked").replaceChildren(is ? gone : "");
}
