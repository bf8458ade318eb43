// How numbers, times and values are written.

export const DASH = "–";

/** About `digits` significant digits, no longer than it need be. */
export function number(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return DASH;
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) {
    return value.toExponential(Math.max(0, digits - 2)).replace(/\.?0*e\+?/, "e");
  }
  if (Number.isInteger(value)) return String(value);
  return String(Number(value.toPrecision(Math.max(digits, Math.ceil(Math.log10(size))))));
}

/** Any value of an override on one line. */
export function value(given) {
  if (given === undefined) return "";
  if (typeof given === "number") return number(given);
  return typeof given === "string" ? given : JSON.stringify(given);
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return DASH;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

const CLOCK = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

export function clock(unixSeconds) {
  return unixSeconds ? CLOCK.format(new Date(unixSeconds * 1000)) : DASH;
}

/** The last part of a dotted key, or all of it where another key ends alike. */
export function shortNames(keys) {
  const last = (key) => key.split(".").at(-1);
  const count = {};
  for (const key of keys) count[last(key)] = (count[last(key)] ?? 0) + 1;
  return Object.fromEntries(keys.map((key) => [key, count[last(key)] > 1 ? key : last(key)]));
}

export const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
