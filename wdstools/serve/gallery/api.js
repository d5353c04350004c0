// The server: its JSON, its pictures, the token.

const BASE = new URL("-/", new URL(".", location.href));
const KEPT = "wds-token";
let token = null;

/** Take a token out of the visible URL. */
export function takeToken() {
  const url = new URL(location.href);
  const given = url.searchParams.get("token");
  if (given !== null) {
    setToken(given);
    url.searchParams.delete("token");
    history.replaceState(history.state, "", url);
  } else {
    try { token = sessionStorage.getItem(KEPT); } catch { token = null; }
  }
}

export function setToken(value) {
  token = value;
  try { sessionStorage.setItem(KEPT, value); } catch { /* storage is forbidden: until the page is left, then */ }
}

export const hasToken = () => Boolean(token);

export class Failed extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The URL of something under /-/; parameters that are empty are left out. */
export function url(path, parameters = {}) {
  const found = new URL(path, BASE);
  for (const [key, value] of Object.entries(parameters)) {
    if (value !== "" && value !== null && value !== undefined) found.searchParams.set(key, value);
  }
  return found;
}

async function ask(target, signal, priority) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let reply;
  try {
    reply = await fetch(target, { headers, signal, priority });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failed(0, "wds-serve does not answer. Is it still running?");
  }
  if (reply.ok) return reply;
  let message = (await reply.text()).trim();
  try { message = JSON.parse(message).error ?? message; } catch { /* plain text, then */ }
  throw new Failed(reply.status, message || `status ${reply.status}`);
}

// A whole number that a double cannot hold stays as it is written.
const exact = (key, value, context) =>
  typeof value === "number" && !Number.isSafeInteger(value) && /^-?\d+$/.test(context?.source ?? "") ? context.source : value;

export async function json(path, parameters, signal) {
  return JSON.parse(await (await ask(url(path, parameters), signal)).text(), exact);
}

/** Show a picture. With a token it has to be fetched: an <img> sends no header. Resolves when it is there. */
export async function picture(img, target, signal) {
  const done = new Promise((resolve, reject) => {
    img.onload = resolve;
    img.onerror = () => reject(new Failed(0, "cannot be shown"));
  });
  if (!token) {
    img.src = target;
    return done;
  }
  const blob = URL.createObjectURL(await (await ask(target, signal)).blob());
  img.src = blob;
  return done.finally(() => URL.revokeObjectURL(blob));
}

/** What a player can seek in: it sends no header either. */
export const playable = (target) => withToken(target).href;

function withToken(target) {
  const found = new URL(target);
  if (token) found.searchParams.set("token", token);
  return found;
}

/** Save something under a name. */
export async function download(target, name) {
  const link = document.createElement("a");
  link.download = name;
  if (!token) {
    link.href = target;
    link.click();
    return;
  }
  link.href = URL.createObjectURL(await (await ask(target)).blob());
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
