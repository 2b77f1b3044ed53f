// The list of ended requests: searched in the audit log by the bridge, read again as requests end.

import { attr, byId, el, keyed, row, text } from "./dom.js";
import { clock, count, plural, seconds, usd } from "./format.js";
import { json, key, said } from "./session.js";
import { open } from "./trail.js";

const PAGE = 25;
const MOST_SHOWN = 500;
const AGAIN_MS = 3_000;
const TYPED_MS = 300;
const COLUMNS = ["id", "", "", "may", "", "may", "n may", "n may"];

let found = [];
let next = null;
let asked = 0;
let readAt = 0;
let endedThen = null;
let paging = false;
let typing = null;

export function begin() {
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    read();
  });
  byId("search-input").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(read, TYPED_MS);
  });
  byId("refresh").addEventListener("click", () => read());
  byId("older").addEventListener("click", older);
  byId("request-rows").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) open(button.closest("tr").dataset.key);
  });
  document.addEventListener("keygiven", () => read({ quietly: true }));
  if (key()) read({ quietly: true }); // without one, the feed's first snapshot says that none is needed
}

/** Read again where requests have ended since, unless someone is looking at older ones. */
export function show(snapshot) {
  const ended = snapshot.lanes.map((lane) => Object.values(lane.outcomes).join()).join();
  if (document.hidden || paging || Date.now() - readAt < AGAIN_MS) return;
  if (ended === endedThen && (snapshot.metrics || readAt)) return;
  endedThen = ended;
  read({ quietly: true });
}

async function read({ quietly = false } = {}) {
  paging = false;
  const page = await ask(null, quietly);
  if (page === null) return;
  found = page.requests;
  next = page.next_before;
  paint(page);
}

async function older() {
  paging = true;
  const page = await ask(next, false);
  if (page === null) return;
  const known = new Set(found.map((request) => request.id));
  found = [...found, ...page.requests.filter((request) => !known.has(request.id))].slice(0, MOST_SHOWN);
  next = found.length < MOST_SHOWN ? page.next_before : null;
  paint(page);
}

/** A page of the list; null where a later question has overtaken this one, or it failed. */
async function ask(before, quietly) {
  asked += 1;
  const mine = asked;
  readAt = Date.now();
  const query = new URLSearchParams({ limit: PAGE });
  const wanted = byId("search-input").value.trim();
  if (wanted) query.set("search", wanted);
  if (before !== null) query.set("before", before);
  if (!quietly) text(byId("search-said"), "Reading…");
  try {
    const page = await json(`api/requests?${query}`);
    return mine === asked ? page : null;
  } catch (error) {
    if (mine === asked) text(byId("search-said"), `The list cannot be read: ${said(error)}`);
    return null;
  }
}

function paint(page) {
  keyed(byId("request-rows"), found, (request) => request.id, create, update);
  byId("older").hidden = next === null;
  const wanted = byId("search-input").value.trim();
  const scope = next === null ? "all that the log has" : `the newest; ${count(page.events_read)} events were read`;
  text(byId("search-said"), found.length
    ? `${plural(found.length, "request")}${wanted ? " found" : ""}, ${scope}.`
    : wanted ? `Nothing found${next === null ? "" : ` in the newest ${count(page.events_read)} events; Older looks further`}.` : "No request has ended yet.");
}

function create(request) {
  const tr = row(COLUMNS);
  tr.firstElementChild.append(el("button", { type: "button", className: "link", title: request.id }, request.id));
  return tr;
}

function update(tr, request) {
  const made = request.cached ? "cached" : request.coalesced ? "shared" : usd(request.cost_usd);
  [
    clock(request.ended_at),
    request.error ? `${request.outcome}: ${request.error.kind}` : request.outcome,
    request.priority,
    request.model ?? "–",
    request.tenant,
    seconds(request.took_ms === null ? null : request.took_ms / 1000),
    made,
  ].forEach((value, index) => text(tr.children[index + 1], value));
  attr(tr, "data-outcome", request.outcome);
  attr(tr.children[2], "title", request.error?.message ?? "");
}
