// Numbers as people read them; what is not known is a dash, never a zero.

export const UNKNOWN = "–";
const LOCALE = "en-US";
const whole = new Intl.NumberFormat(LOCALE, { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat(LOCALE, { maximumFractionDigits: 1, minimumFractionDigits: 1 });
const compactly = new Intl.NumberFormat(LOCALE, { notation: "compact", maximumFractionDigits: 1 });
const time = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const dayAndTime = new Intl.DateTimeFormat("en-GB", {
  month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit",
});

const known = (format) => (value) => (value === null || value === undefined ? UNKNOWN : format(value));

export const count = known((n) => whole.format(n));
export const compact = known((n) => (Math.abs(n) < 10_000 ? whole.format(n) : compactly.format(n)));
export const short = known((n) => compactly.format(n));
export const rate = known((n) => (n >= 100 ? whole.format(n) : tenths.format(n)));
export const percent = known((share) => {
  const value = share * 100;
  return `${value > 0 && value < 10 ? tenths.format(value) : whole.format(value)} %`;
});

/** Dollars: cents, and as many more digits as a small amount needs. */
export const usd = known((amount) => {
  if (amount === 0) return "$0";
  const digits = Math.abs(amount) >= 0.1 ? 2 : Math.min(7, 1 - Math.floor(Math.log10(Math.abs(amount))));
  return `$${amount.toLocaleString(LOCALE, { minimumFractionDigits: digits, maximumFractionDigits: digits })}`;
});

/** Dollars where there is no room: a small amount is only said to be one. */
export const cents = known((amount) => (amount > 0 && amount < 0.01 ? "<$0.01" : usd(amount)));

/** A duration given in seconds. */
export const seconds = known((s) => {
  if (s < 0.001) return `${tenths.format(s * 1000)} ms`;
  if (s < 0.9995) return `${whole.format(s * 1000)} ms`;
  if (s < 59.95) return `${tenths.format(s)} s`;
  const minutes = Math.floor(s / 60);
  if (minutes < 60) return `${minutes} m ${whole.format(Math.floor(s % 60))} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} m` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
});

/** How long before `now` (both ISO 8601). */
export const ago = (at, now) => {
  const s = Math.max(0, (Date.parse(now) - Date.parse(at)) / 1000);
  if (s < 5) return "now";
  if (s < 60) return `${Math.floor(s)} s ago`;
  return s < 3600 ? `${Math.floor(s / 60)} m ago` : `${seconds(s)} ago`;
};

/** The time of day here; with its date where that is not today's. */
export const clock = (iso) => {
  const at = new Date(iso);
  return (at.toDateString() === new Date().toDateString() ? time : dayAndTime).format(at);
};

export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;
