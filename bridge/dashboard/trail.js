// The audit trail of one request: every step, when it was taken, and what was known then.

import { byId, el, text } from "./dom.js";
import { clock, compact, plural, seconds, usd } from "./format.js";
import { json, said } from "./session.js";

let shown = null;

export function begin() {
  const dialog = byId("trail");
  byId("trail-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => {
    shown = null;
    if (location.hash.startsWith("#request=")) history.replaceState(null, "", location.pathname + location.search);
  });
  addEventListener("hashchange", fromAddress);
  fromAddress();
}

/** A request can be linked to: `#request=<id>`. */
function fromAddress() {
  const [, id] = /^#request=([A-Za-z0-9_-]{1,128})$/.exec(location.hash) ?? [];
  if (id && id !== shown) open(id);
}

export async function open(id) {
  shown = id;
  history.replaceState(null, "", `#request=${encodeURIComponent(id)}`);
  text(byId("trail-title"), id);
  text(byId("trail-said"), "Reading…");
  byId("trail-steps").replaceChildren();
  if (!byId("trail").open) byId("trail").showModal();
  try {
    const { events, more } = await json(`api/requests/${encodeURIComponent(id)}/trail`);
    if (shown !== id) return;
    text(byId("trail-said"), summary(events, more));
    byId("trail-steps").replaceChildren(...events.map((event) => step(event, events[0].at)));
  } catch (error) {
    if (shown === id) text(byId("trail-said"), said(error));
  }
}

function summary(events, more) {
  const { tenant, priority } = events[0];
  const calls = events.filter((event) => event.event === "attempt");
  const cost = calls.reduce((all, call) => all + (call.cost_usd ?? 0), 0);
  return `Tenant ${tenant}, lane ${priority}, ${plural(calls.length, "call")} for ${usd(cost)}${more ? "; only the first events are shown" : ""}.`;
}

function step(event, began) {
  const after = (Date.parse(event.at) - Date.parse(began)) / 1000;
  const lines = (FACTS[event.event] ?? (() => []))(event).filter((line) => line);
  const node = el("li", {},
    el("div", { className: "step-top" },
      el("b", {}, event.event),
      el("span", { className: "quiet" }, `${clock(event.at)} · +${seconds(after)} · ${event.replica}`)),
    ...lines.map((line) => el("p", {}, line)),
    el("details", {}, el("summary", {}, "The event as it is kept"), el("pre", { tabIndex: 0 }, JSON.stringify(event, null, 2))));
  node.dataset.event = event.event;
  return node;
}

const FACTS = {
  received: (event) => [
    `${event.model ?? "auto"} was asked for, ${plural(event.messages, "message")}, ${compact(event.body_bytes)} bytes${event.stream ? ", as a stream" : ""}`,
    event.delivery > 1 && `delivery ${event.delivery}: it came again`,
  ],
  routed: (event) => [
    `rule ${event.rule}`,
    ...event.candidates.map((model, index) => `${index + 1}. ${model.model} (${model.provider})${score(model)}: ${model.reason}`),
    ...event.refusals.map((model) => `not ${model.model} (${model.provider}): ${model.reason}`),
  ],
  attempt: (event) => [
    `call ${event.attempt}: ${event.served_by ?? event.model} of ${event.provider}, ${seconds(event.duration_ms / 1000)}` +
      (event.first_token_ms == null ? "" : `, first token ${seconds(event.first_token_ms / 1000)}`),
    `${compact(tokensIn(event.usage))} tokens in, ${compact(event.usage.output_visible + event.usage.output_thinking)} out, ${usd(event.cost_usd)}${event.cost_estimated ? " (estimated)" : ""}`,
    event.error && failure(event.error),
  ],
  completed: ended,
  failed: ended,
  cancelled: ended,
  expired: ended,
  dead: ended,
};

function ended(event) {
  const from = event.cached ? "from the cache" : event.coalesced ? "with an identical request's answer" : `after ${plural(event.attempts, "call")}`;
  return [
    event.model && `${event.model} of ${event.provider}, ${from}${event.finish_reason ? `, finished: ${event.finish_reason}` : ""}`,
    event.saved_usd ? `${usd(event.saved_usd)} saved` : null,
    event.error && failure(event.error),
  ];
}

function failure(error) {
  return `${error.kind}${error.status ? ` (${error.status})` : ""}: ${error.message}`;
}

function score(model) {
  return model.score == null ? "" : `, score ${model.score.toFixed(2)}`;
}

function tokensIn(usage) {
  return usage.input_fresh + usage.cache_read + usage.cache_write_5m + usage.cache_write_1h + usage.tool_input;
}
