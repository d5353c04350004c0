// What is shown, kept in the part of the URL behind #: it can be sent around, and Back works.

export const PAGE = 60; // samples on a page
const NONE = { set: "", key: "", where: "", sort: "", desc: false, is: null, by: "", at: 0, n: null };

const whole = (text) => (/^\d{1,15}$/.test(text ?? "") ? Number(text) : null);

/** The state in a hash. `is`: [column, value], the class that was clicked; `at`: the first sample of the page. */
export function parse(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const text = (name) => given.get(name) ?? "";
  let is = null;
  try {
    is = JSON.parse(text("is"));
  } catch { /* none, or somebody's typing error */ }
  if (!Array.isArray(is) || is.length !== 2 || typeof is[0] !== "string" || (is[1] && typeof is[1] === "object")) is = null;
  return {
    set: text("set"), key: text("key"), where: text("where"), sort: text("sort"), desc: text("desc") === "1", is,
    by: text("by"), at: whole(given.get("at")) ?? 0, n: whole(given.get("n")),
  };
}

export function format(state) {
  const out = new URLSearchParams();
  for (const name of ["set", "key", "where", "sort", "by"]) if (state[name]) out.set(name, state[name]);
  if (state.desc) out.set("desc", "1");
  if (state.is) out.set("is", JSON.stringify(state.is));
  if (state.at) out.set("at", state.at);
  if (state.n !== null) out.set("n", state.n);
  return `#${out}`;
}

let onChange = () => {};
let known = null;

/** The state now. */
export const now = () => (known ??= { ...NONE, ...parse(location.hash) });

export function listen(callback) {
  onChange = callback;
  addEventListener("popstate", () => {
    known = null;
    onChange(true);
  });
}

/** Go to another state. how: "push", "replace", or "type": what is typed makes one entry, not one a letter. */
export function go(change, how = "push") {
  const next = { ...now(), ...change };
  const url = format(next);
  if (url === format(now())) return;
  known = next;
  const replace = how === "replace" || (how === "type" && history.state?.typed);
  history[replace ? "replaceState" : "pushState"]({ typed: how === "type" }, "", url);
  onChange(false);
}

/** A column's name in SQL. */
export const quoted = (column) => `"${column.replaceAll('"', '""')}"`;
const literal = (value) => (typeof value === "string" ? `'${value.replaceAll("'", "''")}'` : String(value));

/** The SQL of the filter and of the class that was clicked. */
export function condition(state) {
  if (!state.is) return state.where;
  const [column, value] = state.is;
  const picked = `${quoted(column)} ${value === null ? "IS NULL" : `= ${literal(value)}`}`;
  return state.where.trim() ? `(${state.where}\n) AND ${picked}` : picked;
}

/** The parameters that choose and order samples. */
export function query(state) {
  const { set, key, sort } = state;
  return { set, key, where: condition(state), sort, desc: sort && state.desc ? "1" : "" };
}
