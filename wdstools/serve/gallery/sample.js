// The page of one sample: every field, its columns, next and previous.

import { download, json, picture, playable, url } from "./api.js";
import { $, bytes, count, counted, dump, el, pretty, value } from "./show.js";
import { format, go, now, query } from "./state.js";
import { focusSample, pageOf, totalOf } from "./grid.js";

const FIRST = ["image", "video", "audio"];
let stop = new AbortController();
let here = null; // the sample that is shown

export function leave() {
  stop.abort();
  if ($("sample").hidden) return;
  $("sample").hidden = true;
  $("sample").replaceChildren();
  $("gallery").hidden = false;
  if (here) focusSample(here.n);
  here = null;
}

/** Show a sample. Raises Failed. */
export async function showSample() {
  stop.abort();
  stop = new AbortController();
  const mine = stop.signal;
  const state = now();
  const [found, total] = await Promise.all([
    json(`samples/${state.n}`, query(state), mine),
    totalOf(state) ?? json("samples", { ...query(state), limit: 1 }, mine).then((page) => page.total),
  ]);
  if (mine.aborted) return;
  here = found;
  document.title = `${found.key} – ${state.set || "wds-serve"}`;
  const members = [...found.members].sort((a, b) => rank(a) - rank(b));
  $("sample").replaceChildren(
    head(found, total, state),
    el("div", { className: "sample-body" },
      el("div", { className: "members" }, ...members.map((member) => panel(found, member, state, mine))), aside(found)));
  $("gallery").hidden = true;
  $("sample").hidden = false;
  $("sample").focus({ preventScroll: true });
  scrollTo(0, 0);
}

const rank = (member) => (FIRST.includes(member.kind) ? FIRST.indexOf(member.kind) : FIRST.length);

/** To the next sample (1) or the one before (-1) of this filter and order. */
export function step(by) {
  if (!here) return;
  const n = by > 0 ? here.next : here.previous;
  if (n === null) return;
  const at = here.position === null ? now().at : pageOf(here.position + by);
  go({ n, at }, "replace");
}

/** Back to the gallery, to the page that this sample is on. */
export function close() {
  go({ n: null });
}

function head(found, total, state) {
  const back = el("a", { className: "button", href: format({ ...state, n: null }) }, "‹ Gallery");
  back.addEventListener("click", (event) => {
    event.preventDefault();
    close();
  });
  const button = (label, by, n) => {
    const made = el("button", { type: "button", disabled: n === null }, label);
    made.addEventListener("click", () => step(by));
    return made;
  };
  const place = found.position === null ? "not in this filter" : `${count(found.position + 1)} of ${count(total)}`;
  return el("header", { className: "sample-head" }, back, el("h2", { className: "sample-key" }, found.key),
    el("p", { className: "dim", role: "status" }, place),
    el("div", { className: "pager" }, button("‹ Previous", -1, found.previous), button("Next ›", 1, found.next)));
}

function aside(found) {
  const row = (name, given) => el("div", {}, el("dt", {}, name), el("dd", {}, given));
  const columns = Object.entries(found.columns).map(([name, given]) => row(name, value(given)));
  return el("aside", { className: "about", "aria-label": "Columns" },
    columns.length ? el("h3", {}, "Columns") : null, el("dl", {}, ...columns), el("h3", {}, "Sample"),
    el("dl", {}, row("number", value(found.n)), row("shard", value(found.shard)), row("size", bytes(found.nbytes)), row("fields", found.fields.join(" "))));
}

function panel(found, member, state, signal) {
  const target = url(`samples/${found.n}/${encodeURIComponent(member.field)}`, { set: state.set });
  const save = el("button", { type: "button", className: "quiet", "aria-label": `Download ${member.field}` }, "Download");
  const size = el("span", { className: "dim" }, `${member.type.split(";")[0]} · ${bytes(member.nbytes)}`);
  const box = el("section", { className: `member kind-${member.kind}`, "aria-label": member.field },
    el("header", {}, el("h3", {}, member.field), size, save));
  const note = (text) => box.append(el("p", { className: "note dim" }, text));
  save.addEventListener("click", () => download(target, `${found.key.split("/").pop()}.${member.field}`)
    .catch((error) => note(`The download failed: ${error.message}`)));
  content(found, member, target, box, signal, note, size);
  return box;
}

function content(found, member, target, box, signal, note, size) {
  if (member.kind === "image") {
    const img = el("img", { alt: `${member.field} of ${found.key}` });
    box.append(el("div", { className: "stage" }, img));
    image(img, target, url(`thumbnails/${found.n}`, { set: now().set, field: member.field, size: 1024 }), signal, note, size);
    return;
  }
  if (member.kind === "audio" || member.kind === "video") {
    const player = el(member.kind, { controls: true, preload: "metadata", src: playable(target), "aria-label": member.field });
    player.addEventListener("error", () => note(`This browser cannot play it.`));
    box.append(el("div", { className: "stage" }, player));
    return;
  }
  text(member, box, note);
}

/** `other`: a smaller copy, of what browsers cannot show, such as TIFF. */
async function image(img, target, other, signal, note, size) {
  try {
    try {
      await picture(img, target, signal);
      size.textContent += ` · ${img.naturalWidth} × ${img.naturalHeight}`;
    } catch (error) {
      if (error.name === "AbortError" || error.status) throw error;
      await picture(img, other, signal);
      note("A smaller copy: this browser cannot show the image itself.");
    }
    if (Math.max(img.naturalWidth, img.naturalHeight) < 128) img.classList.add("tiny");
  } catch (error) {
    if (error.name === "AbortError") return;
    img.parentNode.remove();
    note(error.status ? `The image did not come: ${error.message}` : "This image cannot be shown.");
  }
}

function text(member, box, note) {
  const given = member.text ?? "";
  if (member.kind === "hex") {
    box.append(el("pre", { tabIndex: 0 }, dump(given)));
    if (given.length / 2 < member.nbytes) note(`The first ${counted(given.length / 2, "byte")} of ${count(member.nbytes)}.`);
    return;
  }
  const indented = member.kind === "json" ? pretty(given) : null;
  box.append(el("pre", { tabIndex: 0, className: "wraps" }, indented ?? given));
  const cut = new TextEncoder().encode(given).length < member.nbytes;
  if (cut) note(`Only its beginning, of ${counted(member.nbytes, "byte")}.`);
  else if (member.kind === "json" && indented === null) note("This is no JSON.");
}
