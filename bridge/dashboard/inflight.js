// What is being worked on now, oldest first, each with a button that cancels it.

import { attr, byId, el, keyed, row, text } from "./dom.js";
import { count, seconds } from "./format.js";
import { json, said } from "./session.js";
import { open } from "./trail.js";

const COLUMNS = ["id", "n", "lane", "", "may", "may", "n may"];
const cancelling = new Set();

export function begin() {
  byId("in-flight-rows").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const id = button.closest("tr").dataset.key;
    if (button.classList.contains("link")) open(id);
    else cancel(id, button);
  });
}

export function show(snapshot) {
  const { in_flight: requests, in_flight_total: total } = snapshot;
  for (const id of cancelling) if (!requests.some((request) => request.id === id)) cancelling.delete(id);
  text(byId("in-flight-count"), total > requests.length ? `the oldest ${count(requests.length)} of ${count(total)}` : count(total));
  byId("in-flight-none").hidden = requests.length > 0;
  byId("in-flight-rows").closest(".scroll").hidden = requests.length === 0;
  keyed(byId("in-flight-rows"), requests, (request) => request.id, create, update);
}

function create(request) {
  const tr = row(COLUMNS);
  tr.firstElementChild.append(el("button", { type: "button", className: "link", title: request.id }, request.id));
  tr.append(el("td", { className: "action" }, el("button", { type: "button", "aria-label": `Cancel ${request.id}` }, "Cancel")));
  return tr;
}

function update(tr, request) {
  const id = tr.firstElementChild.firstElementChild;
  text(id, request.id);
  [seconds(request.age_s), request.lane, request.state, request.model ?? "–", request.tenant, request.attempt || "–"].forEach((value, index) =>
    text(tr.children[index + 1], value));
  attr(tr, "data-lane", request.lane);
  attr(tr, "data-state", request.state);
  const button = tr.lastElementChild.firstElementChild;
  attr(button, "aria-disabled", cancelling.has(request.id));
  text(button, cancelling.has(request.id) ? "Cancelling…" : "Cancel");
}

async function cancel(id, button) {
  if (cancelling.has(id)) return;
  cancelling.add(id);
  text(button, "Cancelling…");
  try {
    await json(`api/requests/${encodeURIComponent(id)}`, { method: "DELETE" });
    text(byId("in-flight-said"), `${id} is being cancelled.`);
  } catch (error) {
    cancelling.delete(id);
    text(button, "Cancel");
    text(byId("in-flight-said"), `${id} is not cancelled: ${said(error)}`);
  }
}
