// The page: its controls, and what is shown for each state of the URL.

import { hasToken, json, setToken, takeToken } from "./api.js";
import { showCounts } from "./counts.js";
import { clear, showPage } from "./grid.js";
import { listenToKeys } from "./keys.js";
import { leave, showSample } from "./sample.js";
import { $, bytes, count, counted, el, isGuess, truthOf } from "./show.js";
import { go, listen, now, quoted } from "./state.js";

let about = null; // {set, info}: a promise of what /-/info says about a set

function info() {
  const { set } = now();
  if (about?.set !== set) {
    about = { set, info: json("info", { set }) };
    about.info.then(describe, () => (about = null));
  }
  return about.info;
}

async function show(back = false) {
  const state = now();
  controls(state, back);
  $("failed").hidden = true;
  const known = info();
  try {
    if (state.n !== null) {
      await Promise.all([showSample(), known]);
      return;
    }
    document.title = state.set || "wds-serve";
    await Promise.all([showPage(known), known]);
    if (now() !== state) return;
    leave();
    wrong("");
    await showCounts(await known);
  } catch (error) {
    if (error.name !== "AbortError" && now() === state) failed(error);
  }
}

function failed(error) {
  if (error.status === 401) {
    $("ask").showModal();
    return;
  }
  if (error.status === 400 && now().n === null) {
    clear();
    leave();
    $("counts").hidden = true;
    wrong(error.message);
    return;
  }
  $("sample").replaceChildren(); // rather nothing than another sample than the URL says
  $("failed").hidden = false;
  $("failed").textContent = error.message;
  if (!(error.status >= 0)) throw error;
}

/** Say beside the filter what the server says about it. */
function wrong(message) {
  $("wrong").hidden = !message;
  $("wrong").textContent = message;
  $("where").ariaInvalid = String(Boolean(message));
}

/** back: the state is an older one. Otherwise what is being typed may be newer than the state. */
function controls(state, back) {
  for (const [id, text] of [["key", state.key], ["where", state.where]]) {
    if (back || document.activeElement !== $(id)) $(id).value = text;
  }
  $("desc").textContent = state.desc ? "↓" : "↑";
  $("desc").ariaLabel = state.desc ? "Highest first; change to lowest first" : "Lowest first; change to highest first";
  $("desc").disabled = !state.sort;
  if (about?.columns) sorting(about.columns, state);
}

/** What a set is, and the controls that depend on its columns. */
function describe(found) {
  $("name").textContent = found.name;
  if (!$("set").hidden) $("set").value = found.name;
  $("about").textContent = `${counted(found.samples, "sample")} · ${counted(found.shards, "shard")} · ${bytes(found.nbytes)}`;
  $("columns").replaceChildren(...found.columns.map((column) => el("span", { className: "fact" }, el("b", {}, column.name), ` ${column.type}`)));
  const numbers = found.columns.filter((column) => column.type === "number");
  const one = numbers.find((column) => column.joined) ?? numbers[0];
  $("where").placeholder = one ? `SQL, such as ${one.name} > 2` : "SQL: a condition on columns";
  about.columns = found.columns;
  $("quick").replaceChildren(...ways(found).map(({ label, on, off, is }) => {
    const button = el("button", { type: "button", className: "chip" }, label);
    button.isOn = is;
    button.addEventListener("click", () => go({ ...(is(now()) ? off : on), at: 0 }));
    return button;
  }));
  sorting(found.columns, now());
}

/** What one click away is: the highest of every joined number, and predictions that are wrong. */
function ways(found) {
  const joined = found.columns.filter((column) => column.joined);
  const guess = joined.find((column) => isGuess(column.name))?.name;
  const truth = truthOf(found, (name) => found.columns.some((column) => column.name === name));
  const ranked = joined.filter(({ name, type }) => type === "number" && name !== truth && name !== guess);
  const made = ranked.map(({ name }) => ({
    label: `Highest ${name}`, on: { sort: name, desc: true }, off: { sort: "", desc: false }, is: (state) => state.desc && state.sort === name,
  }));
  if (guess && truth) {
    const where = `${quoted(truth)} <> ${quoted(guess)}`;
    made.push({ label: `${truth} ≠ ${guess}`, on: { where }, off: { where: "" }, is: (state) => state.where === where });
  }
  return made;
}

function sorting(columns, state) {
  const names = new Set([...columns.map((column) => column.name), "key", "nbytes"]);
  if (state.sort) names.add(state.sort);
  $("sort").replaceChildren(el("option", { value: "" }, "order in the shards"), ...[...names].map((name) => el("option", { value: name }, name)));
  $("sort").value = state.sort;
  for (const button of $("quick").children) button.ariaPressed = String(button.isOn(state));
}

async function sets() {
  try {
    const found = (await json("sets")).sets;
    if (!found.length) return nothing();
    if (found.length < 2) return;
    $("set").replaceChildren(...found.map((one) => el("option", { value: one.name, title: `${count(one.samples)} samples` }, one.name)));
    $("set").value = now().set || found[0].name;
    $("set").hidden = false;
    $("name").hidden = true;
  } catch (error) {
    if (error.status !== 401) failed(error);
  }
}

function nothing() {
  $("failed").hidden = true;
  $("empty").hidden = false;
  $("empty").textContent = "Nothing here has an index. Make one with wds-index, beside the shards.";
}

function wire() {
  let typing = 0;
  $("key").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => go({ key: $("key").value, at: 0 }, "type"), 200);
  });
  $("where").addEventListener("change", () => go({ where: $("where").value.trim(), at: 0 }));
  $("tools").addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(typing);
    go({ key: $("key").value, where: $("where").value.trim(), at: 0 });
  });
  for (const id of ["key", "where"]) {
    $(id).addEventListener("keydown", (event) => {
      if (event.key === "Enter") {
        event.preventDefault();
        $("tools").requestSubmit();
      }
    });
  }
  $("sort").addEventListener("change", () => go({ sort: $("sort").value, desc: false, at: 0 }));
  $("desc").addEventListener("click", () => go({ desc: !now().desc, at: 0 }));
  $("by").addEventListener("change", () => go({ by: $("by").value, is: null, at: 0 }));
  $("set").addEventListener("change", () => go({ set: $("set").value, key: "", where: "", sort: "", desc: false, is: null, by: "", at: 0, n: null }));
  $("theme").addEventListener("click", () => window.wdsToggleTheme());
  $("help").addEventListener("click", () => $("keys").showModal());
  $("skip").addEventListener("click", (event) => {
    event.preventDefault();
    (now().n === null ? $("samples") : $("sample")).focus();
  });
  $("ask").addEventListener("close", () => {
    if (!$("token").value) return;
    setToken($("token").value.trim());
    $("token").value = "";
    start();
  });
  const wide = matchMedia("(min-width: 60rem)");
  const fit = () => ($("counts").open = wide.matches);
  wide.addEventListener("change", fit);
  fit();
}

function start() {
  $("files").hidden = hasToken(); // links send no header
  sets();
  show();
}

takeToken();
wire();
listen(show);
listenToKeys();
start();
