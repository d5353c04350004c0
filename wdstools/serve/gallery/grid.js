// The page of thumbnails. Only what is on the screen, or about to be, is asked for.

import { json, picture, url } from "./api.js";
import { $, brief, count, el, isGuess, value as text, truthOf } from "./show.js";
import { PAGE, format, go, now, query } from "./state.js";

const SIZE = devicePixelRatio > 1.4 ? 320 : 160;
const AHEAD = 300; // pixels below the screen
let shown = ""; // what the tiles are of
let at = 0;
let total = 0;
let current = 0; // the tile that Tab reaches
let focusNext = null; // the tile to focus once a page is there
let stop = new AbortController();

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    watcher.unobserve(entry.target);
    load(entry.target);
  }
}, { rootMargin: `${AHEAD}px 0px` });

/** Ask at once for what is on the screen, which the watcher would tell a frame later; watch the rest. */
function watch(frames) {
  const seen = frames.map((frame) => frame.getBoundingClientRect().top < innerHeight + AHEAD);
  frames.forEach((frame, index) => (seen[index] ? load(frame) : watcher.observe(frame)));
}

async function load(frame) {
  const img = el("img", { alt: "" });
  const { n, set, field, v } = frame.dataset;
  try {
    const loading = picture(img, url(`thumbnails/${n}`, { set, field, size: SIZE, v }), stop.signal);
    frame.append(img);
    await loading;
  } catch (error) {
    if (error.name === "AbortError") return;
    img.remove();
    frame.append(el("span", { className: "none" }, `${field}: cannot be shown`));
  }
}

/** What stands under a picture: label and prediction, other joined columns, what is sorted by. */
function facts(sample, info, state) {
  const named = info.columns.filter((column) => column.joined).map((column) => column.name);
  const truth = truthOf(info, (name) => name in sample.columns);
  const names = new Set([truth, ...named, state.sort].filter((name) => name in sample.columns));
  return [...names].slice(0, 6).map((name) => {
    const value = sample.columns[name];
    const guess = truth !== undefined && isGuess(name);
    const wrong = guess && value !== null && String(value) !== String(sample.columns[truth]);
    return el("span", { className: wrong ? "fact wrong" : "fact", title: `${name}: ${text(value)}` },
      `${name} `, el("b", {}, brief(value, 24)));
  });
}

function tile(sample, index, info, state) {
  const frame = el("span", { className: "frame" });
  if (sample.image) {
    Object.assign(frame.dataset, { n: sample.n, set: state.set, field: sample.image, v: info.version ?? "" });
  } else {
    frame.append(el("span", { className: "none" }, sample.fields.join(" ")));
  }
  const link = el("a", { className: "tile", href: format({ ...state, n: sample.n }), tabIndex: index ? -1 : 0 },
    frame, el("span", { className: "key", title: sample.key }, sample.key), el("span", { className: "facts" }, ...facts(sample, info, state)));
  link.dataset.n = sample.n;
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go({ n: sample.n });
  });
  link.addEventListener("focus", () => mark(index));
  return el("li", {}, link);
}

const tiles = () => [...$("grid").querySelectorAll(".tile")];

function mark(index) {
  const all = tiles();
  if (all[current]) all[current].tabIndex = -1;
  current = index;
  if (all[index]) all[index].tabIndex = 0;
}

export function clear() {
  stop.abort();
  stop = new AbortController();
  watcher.disconnect();
  for (const img of $("grid").querySelectorAll("img")) if (!img.complete) img.removeAttribute("src"); // nobody waits
  $("grid").replaceChildren();
  $("range").textContent = "";
  for (const pager of document.querySelectorAll("[data-pager]")) pager.hidden = true;
  shown = "";
  current = 0;
}

/** Show the page of a state. `about`: a promise of what /-/info says. Raises Failed. */
export async function showPage(about) {
  const state = now();
  const asked = JSON.stringify(query(state));
  if (asked === shown && at === state.at) return;
  clear();
  const mine = stop.signal;
  $("samples").ariaBusy = "true";
  $("empty").hidden = true;
  try {
    const [found, info] = await Promise.all([
      json("samples", { ...query(state), offset: state.at, limit: PAGE }, mine), about,
    ]);
    if (mine.aborted) return;
    shown = asked;
    at = state.at;
    total = found.total;
    $("grid").append(...found.samples.map((sample, index) => tile(sample, index, info, state)));
    describe(state, found.samples.length);
    if (!$("gallery").hidden) watch([...$("grid").querySelectorAll(".frame[data-n]")]);
    else for (const frame of $("grid").querySelectorAll(".frame[data-n]")) watcher.observe(frame);
    if (focusNext !== null) focusTile(focusNext);
    focusNext = null;
  } finally {
    if (!mine.aborted) $("samples").ariaBusy = "false";
  }
}

function describe(state, here) {
  const first = state.at + 1;
  const last = state.at + here;
  $("range").textContent = here ? `${count(first)}–${count(last)} of ${count(total)}` : "";
  $("empty").hidden = here > 0;
  $("empty").textContent = total ? "This page is past the last sample." : "No sample is like this.";
  for (const pager of document.querySelectorAll("[data-pager]")) {
    const step = (label, at, off) => {
      const button = el("button", { type: "button", disabled: off }, label);
      button.addEventListener("click", () => turn(at));
      return button;
    };
    const jump = el("input", { type: "text", inputMode: "numeric", size: 7, "aria-label": `Go to sample, 1 to ${count(total)}`, placeholder: "go to" });
    jump.addEventListener("change", () => {
      const wanted = Number(jump.value.replaceAll(/[,\s]/g, ""));
      if (Number.isInteger(wanted) && wanted > 0 && total) turn(pageOf(Math.min(wanted, total) - 1));
      else jump.value = "";
    });
    const before = Math.min(state.at - PAGE, pageOf(Math.max(total - 1, 0)));
    pager.replaceChildren(
      step("‹ Previous", Math.max(before, 0), state.at <= 0), total > PAGE ? jump : "", step("Next ›", state.at + PAGE, last >= total));
    pager.hidden = total <= PAGE && state.at === 0;
  }
}

/** How many samples a state has, where its page was shown; else null. */
export const totalOf = (state) => (shown === JSON.stringify(query(state)) ? total : null);

/** The first sample of the page that a position is on. */
export const pageOf = (position) => Math.floor(position / PAGE) * PAGE;

function turn(at) {
  go({ at });
  scrollTo(0, 0);
}

/** The next page (1) or the one before (-1); its first or last tile gets the focus. */
export function turnBy(step, focus = step > 0 ? 0 : PAGE - 1) {
  const at = now().at + step * PAGE;
  if (at < 0 || at >= total) return;
  focusNext = focus;
  turn(at);
}

function focusTile(index) {
  const all = tiles();
  const one = all[Math.min(index, all.length - 1)];
  one?.focus({ preventScroll: true });
  one?.scrollIntoView({ block: "nearest" });
}

/** Focus the tile of a sample, where it is on this page. */
export function focusSample(n) {
  const index = tiles().findIndex((one) => one.dataset.n === String(n));
  if (index >= 0) focusTile(index);
}

/** Move by tiles, or by rows; over the end of the page to the next. */
export function move(by, rows = false) {
  const all = tiles();
  if (!all.length) return;
  if (!all.includes(document.activeElement)) return focusTile(current);
  const wide = rows ? getComputedStyle($("grid")).gridTemplateColumns.split(" ").length : 1;
  const next = current + by * wide;
  if (next >= 0 && next < all.length) focusTile(next);
  else if (!rows) turnBy(by);
}
