// The lanes in a table, which is also the legend of the graphs, and says in text what they show.

import { byId, cells, keyed, row } from "./dom.js";
import { count, rate, seconds } from "./format.js";

const COLUMNS = ["lane", "n", "n", "n", "n may", "n may", "n", "n may", "n", "n may", "n may", "n may"];

export function show(snapshot) {
  const body = byId("lanes").tBodies[0];
  keyed(body, snapshot.lanes, (lane) => lane.lane, (lane) => {
    const tr = row(COLUMNS, "th");
    tr.dataset.lane = lane.lane;
    return tr;
  }, fill);
}

function fill(tr, lane) {
  const { outcomes, answered_from: from, wait } = lane;
  cells(tr, [
    lane.lane,
    rate(lane.received_per_s),
    count(lane.queued),
    count(lane.unfinished),
    seconds(wait.p50_s),
    seconds(wait.p95_s),
    count(outcomes.completed),
    count(from.cached + from.coalesced),
    count(outcomes.failed),
    count(outcomes.cancelled),
    count(outcomes.expired),
    count(outcomes.dead),
  ]);
  const why = Object.entries(lane.failed_by).map(([type, n]) => `${type}: ${count(n)}`).join(", ");
  if (tr.title !== why) tr.title = why;
}
