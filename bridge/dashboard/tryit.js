// The box to try a prompt in: the answer as it comes, then which model gave it, why, and for how much.

import { announce, attr, byId, el, keyed, text } from "./dom.js";
import { compact, seconds, usd } from "./format.js";
import { pairs } from "./providers.js";
import { refusal, said, send } from "./session.js";
import { events } from "./sse.js";
import { open } from "./trail.js";

let stopping = null;

export function begin() {
  byId("try-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (stopping === null) ask();
  });
  byId("try-text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("try-form").requestSubmit();
  });
  byId("try-stop").addEventListener("click", () => stopping?.abort());
}

/** The models that can be asked for by name. */
export function show(snapshot) {
  const select = byId("try-model");
  const names = ["auto", ...snapshot.providers.flatMap((provider) => provider.models.map((model) => model.model))];
  const chosen = select.value;
  if (!names.includes(chosen)) names.push(chosen);
  keyed(select, names, (name) => name, (name) => el("option", {}, name), (node, name) => text(node, name));
  if (select.value !== chosen) select.value = chosen;
}

async function ask() {
  stopping = new AbortController();
  const { signal } = stopping;
  begun();
  try {
    await answered(signal);
  } catch (error) {
    failed(signal.aborted ? "stopped" : said(error));
  } finally {
    ended();
  }
}

async function answered(signal) {
  const body = {
    messages: [{ role: "user", content: byId("try-text").value }],
    model: byId("try-model").value,
    priority: byId("try-lane").value,
    stream: true,
  };
  const answer = await send("api/chat", {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
    body: JSON.stringify(body),
    signal,
  });
  if (!answer.ok) throw await refusal(answer);
  let whole = false;
  for await (const { event, data } of events(answer.body)) whole = took(event, JSON.parse(data)) || whole;
  if (!whole) throw new Error("the answer broke off");
}

/** One event of the stream; whether it was the last. */
function took(event, body) {
  const answer = byId("try-answer");
  if (event === "delta") {
    if (body.text) answer.append(body.text);
    if (body.text) text(byId("try-state"), "answering");
  } else if (event === "restarted") {
    answer.replaceChildren();
    text(byId("try-state"), "begun anew by another attempt");
  } else if (event === "error" || event === "broken") {
    throw new Error(body.error.message);
  } else if (event === "final") {
    text(answer, body.response);
    facts(body);
  }
  return event === "final";
}

function begun() {
  byId("try-answer").replaceChildren();
  byId("try-answer").hidden = false;
  attr(byId("try-answer"), "aria-busy", true);
  attr(byId("try-answer"), "data-failed", false);
  byId("try-facts").hidden = byId("try-route").hidden = true;
  byId("try-send").disabled = true;
  byId("try-stop").disabled = false;
  text(byId("try-state"), "asked");
}

function ended() {
  stopping = null;
  attr(byId("try-answer"), "aria-busy", false);
  byId("try-send").disabled = false;
  if (document.activeElement === byId("try-stop")) byId("try-send").focus();
  byId("try-stop").disabled = true;
}

function failed(why) {
  text(byId("try-state"), why);
  attr(byId("try-answer"), "data-failed", true);
  byId("try-answer").hidden = byId("try-answer").textContent === "";
}

function facts(final) {
  const { timing, usage, route } = final;
  text(byId("try-state"), "done");
  byId("try-facts").hidden = byId("try-route").hidden = false;
  pairs(byId("try-facts"), [
    ["Model", `${final.model} · ${final.provider}`],
    ["Route", route.reason],
    ["Cost", final.cached || final.coalesced ? `$0, ${usd(final.saved_usd)} saved` : usd(final.cost_usd) + (final.cost_estimated ? ", estimated" : "")],
    ["Time", `${seconds(timing.total_ms / 1000)}, first token ${seconds(timing.first_token_ms === null ? null : timing.first_token_ms / 1000)}`],
    ["Tokens", `${compact(usage.input_tokens)} in, ${compact(usage.output_tokens)} out`],
    ["From", final.cached ? "the cache" : final.coalesced ? "an identical request's call" : final.attempts === 1 ? "1 call" : `${final.attempts} calls`],
  ]);
  const trail = el("li", {}, el("button", { type: "button", className: "link", onclick: () => open(final.id) }, "The audit trail of this request"));
  byId("try-route").querySelector("ul").replaceChildren(
    ...route.considered.map((model) => el("li", {}, el("b", {}, model.model), ` (${model.provider}): ${model.reason}`)), trail);
  for (const warning of final.warnings) announce(warning);
}
