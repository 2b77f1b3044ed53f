// The figures at the top: the whole gateway in one line.

import { attr, byId, el, text } from "./dom.js";
import { compact, count, percent, plural, rate, seconds, usd } from "./format.js";

const TILES = {
  rate: "Requests a second",
  flight: "In flight",
  queued: "Queued",
  errors: "Errors, 5 min",
  latency: "Slowest p95, 5 min",
  spent: "Spent today",
  budget: "Tightest budget",
  cache: "Without a call",
};
const NEAR = 0.8;
let made = null;

function make() {
  made = {};
  const list = el("dl");
  for (const [name, title] of Object.entries(TILES)) {
    made[name] = { value: el("dd", { className: "value" }), note: el("dd", { className: "note" }) };
    list.append(el("div", { className: "tile", id: `tile-${name}` }, el("dt", {}, title), made[name].value, made[name].note));
  }
  byId("now").append(list);
}

function set(name, value, note, level = "fine") {
  text(made[name].value, value);
  text(made[name].note, note);
  attr(made[name].value.parentElement, "data-level", level);
}

export function show(snapshot) {
  if (made === null) make();
  const { lanes, providers, cache, spend } = snapshot;
  const queued = lanes.some((lane) => lane.queued === null) ? null : sum(lanes, (lane) => lane.queued);
  set("rate", rate(snapshot.requests_per_s), `${rate(total(lanes, "ended_per_s"))} ended`);
  set("flight", count(snapshot.in_flight_total), `${count(snapshot.in_flight.filter((r) => r.state === "waiting").length)} waiting`);
  set("queued", compact(queued), longest(lanes));
  const calls = sum(providers, (p) => p.recent.calls);
  const failed = sum(providers, (p) => p.recent.errors);
  set("errors", percent(calls ? failed / calls : null), `${count(failed)} of ${plural(calls, "call")}`, calls && failed / calls > 0.05 ? "high" : "fine");
  slowest(providers);
  set("spent", usd(spend?.today_usd), spend ? `${usd(spend.month_usd)} this month` : "not read yet");
  budget(spend);
  set("cache", percent(cache.hit_rate), `${usd(cache.saved_usd)} saved`);
}

function longest(lanes) {
  const longest = lanes.reduce((most, lane) => (lane.queued > most.queued ? lane : most));
  return longest.queued ? `most in ${longest.lane}` : "all lanes empty";
}

function slowest(providers) {
  const timed = providers.filter((p) => p.recent.duration.p95_s !== null);
  const worst = timed.reduce((most, p) => (most === null || p.recent.duration.p95_s > most.recent.duration.p95_s ? p : most), null);
  set("latency", seconds(worst?.recent.duration.p95_s), worst?.provider ?? "no call");
}

function budget(spend) {
  const tightest = (spend?.budgets ?? []).reduce((most, one) => (one.share > (most?.share ?? -1) ? one : most), null);
  const share = tightest?.share ?? null;
  set("budget", percent(share), tightest?.budget.replace(/^the /, "") ?? "none is set", share >= 1 ? "full" : share >= NEAR ? "high" : "fine");
}

function sum(items, of) {
  return items.reduce((all, item) => all + (of(item) ?? 0), 0);
}

function total(lanes, name) {
  return lanes.some((lane) => lane[name] === null) ? null : sum(lanes, (lane) => lane[name]);
}
