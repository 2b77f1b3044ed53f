// What an operator has to know, newest first; what is new is also said to a screen reader, once.

import { announce, attr, byId, el, keyed, text } from "./dom.js";
import { ago, count } from "./format.js";

const MARKS = { info: "i", warning: "!", critical: "‼" };
let told = null;

export function show(snapshot) {
  const { alerts, at } = snapshot;
  byId("alerts-none").hidden = alerts.length > 0;
  const grave = alerts.filter((alert) => alert.severity !== "info");
  byId("alert-count").hidden = grave.length === 0;
  text(byId("alert-count"), count(grave.length));
  attr(byId("alert-count"), "data-severity", grave.some((alert) => alert.severity === "critical") ? "critical" : "warning");
  keyed(byId("alert-rows"), alerts, keyOf, create, (node, alert) => text(node.querySelector("time"), ago(alert.at, at)));
  const keys = new Set(alerts.map(keyOf));
  // What stood there when the page was opened is no news.
  if (told !== null) for (const alert of alerts.filter((a) => !told.has(keyOf(a))).slice(0, 5)) announce(`${alert.severity}: ${alert.message}`);
  told = keys;
}

function keyOf(alert) {
  return `${alert.at} ${alert.kind} ${alert.replica}`;
}

function create(alert) {
  const node = el("li", {},
    el("span", { className: "mark", "aria-hidden": "true" }, MARKS[alert.severity] ?? "?"),
    el("div", {},
      el("p", {}, el("b", {}, alert.severity), " ", alert.message),
      el("p", { className: "quiet" }, el("time", { dateTime: alert.at }), alert.replica ? ` · ${alert.replica}` : "")));
  attr(node, "data-severity", alert.severity);
  return node;
}
