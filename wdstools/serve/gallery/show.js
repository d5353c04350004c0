// Elements and texts. Data becomes text nodes, never markup.

export const $ = (id) => document.getElementById(id);

/** An element. Properties that are no properties of the element are attributes; undefined ones are left out. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined) continue;
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const grouped = new Intl.NumberFormat("en-US");
export const count = (number) => grouped.format(number);
export const counted = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

export function bytes(number) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  let value = number;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit && value < 9.95 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

/** A value of a column, in full. */
export function value(given) {
  if (given === null || given === undefined) return "–";
  return typeof given === "object" ? JSON.stringify(given) : String(given);
}

/** A value of a column, where there is little room. */
export function brief(given, most = 60) {
  if (typeof given === "number" && !Number.isInteger(given)) return String(Number(given.toPrecision(4)));
  const text = value(given);
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

/** Whether a column of this name is what a model said. */
export const isGuess = (name) => /^pred(icted|iction)?$/i.test(name);

/** The column that a prediction is compared with. `has`: whether there is a column. */
export const truthOf = (info, has) => ["label", "target", info.class_column].find((name) => name && has(name));

/** JSON, indented. Only white space is changed: numbers and strings stay as they are written. null: it is none. */
export function pretty(text) {
  try {
    JSON.parse(text);
    const tokens = text.match(/"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g) ?? [];
    let at = 0;
    const read = (indent) => {
      const token = tokens[at++];
      if (token !== "{" && token !== "[") return token;
      const end = token === "{" ? "}" : "]";
      const parts = [];
      while (tokens[at] !== end) {
        let part = "";
        if (token === "{") {
          part = `${tokens[at]}: `;
          at += 2;
        }
        parts.push(part + read(`${indent}  `));
        if (tokens[at] === ",") at += 1;
      }
      at += 1;
      const line = `${token}${parts.join(", ")}${end}`;
      if (!parts.length || (indent && line.length < 72 && !/[{[]./.test(line.slice(1)))) return line;
      return `${token}\n${parts.map((part) => `${indent}  ${part}`).join(",\n")}\n${indent}${end}`;
    };
    return read("");
  } catch { // no JSON, or nested deeper than the stack
    return null;
  }
}

/** Hexadecimal digits as lines of 16 bytes: offset, bytes, ASCII. */
export function dump(digits) {
  const lines = [];
  for (let at = 0; at < digits.length; at += 32) {
    const pairs = digits.slice(at, at + 32).match(/../g) ?? [];
    const ascii = pairs.map((pair) => {
      const code = parseInt(pair, 16);
      return code > 31 && code < 127 ? String.fromCharCode(code) : "·";
    });
    const offset = (at / 2).toString(16).padStart(6, "0");
    const left = pairs.slice(0, 8).join(" ");
    lines.push(`${offset}  ${left.padEnd(23)}  ${pairs.slice(8).join(" ").padEnd(23)}  ${ascii.join("")}`);
  }
  return lines.join("\n");
}
