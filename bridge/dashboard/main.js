// Puts the page together: what each snapshot changes, and what is said of the feed.

import * as alerts from "./alerts.js";
import * as charts from "./charts.js";
import { attr, byId, text } from "./dom.js";
import { follow } from "./feed.js";
import { clock, plural } from "./format.js";
import * as inFlight from "./inflight.js";
import * as lanes from "./lanes.js";
import * as money from "./money.js";
import * as providers from "./providers.js";
import * as requests from "./requests.js";
import { askForKey, key } from "./session.js";
import * as tiles from "./tiles.js";
import * as trail from "./trail.js";
import * as tryIt from "./tryit.js";

const PANELS = [tiles, charts, lanes, providers, inFlight, money, alerts, requests, tryIt];
const TROUBLE = {
  no_broker: "The bridge cannot reach its NATS broker. It tries again by itself.",
  no_sidecar: "No sidecar answers on this broker: start one with `sidecar processor`. What is queued is kept.",
};
const SAID = {
  connecting: "connecting",
  live: "live",
  stale: "no news",
  reconnecting: "reconnecting",
  waiting: "waiting for a key",
};

let last = null;
let feed = "connecting";
let feedSays = "";

function onSnapshot(snapshot) {
  last = snapshot;
  for (const panel of PANELS) panel.show(snapshot);
  const names = snapshot.replicas.map((replica) => replica.replica);
  text(byId("replicas"), names.length ? plural(names.length, "replica") : "no replica");
  attr(byId("replicas"), "title", names.join(", "));
  text(byId("as-of"), `As of ${clock(snapshot.at)}`);
  banner();
}

function onState(state, says = "") {
  if (state === feed && says === feedSays) return;
  feed = state;
  feedSays = says;
  const pill = byId("state");
  attr(pill, "data-state", state);
  text(pill.firstElementChild, SAID[state]);
  document.body.classList.toggle("stale", last !== null && state !== "live");
  banner();
}

/** The one thing that an operator has to know first. */
function banner() {
  const node = byId("banner");
  const [level, message] = trouble();
  node.hidden = message === "";
  attr(node, "data-level", level);
  text(node, message);
}

function trouble() {
  const since = last === null ? "" : ` What is shown is of ${clock(last.at)}.`;
  if (feed === "stale") return ["warning", `The bridge has fallen silent.${since}`];
  if (feed === "reconnecting") return ["warning", `The live feed is lost${feedSays && `: ${feedSays}`}. It is taken up again by itself.${since}`];
  if (feed === "waiting") return ["warning", `The live feed is off: ${feedSays}.${since}`];
  if (last === null) return ["info", ""];
  if (last.state in TROUBLE) return ["critical", TROUBLE[last.state]];
  if (!last.metrics) return ["info", "The sidecars run with ENABLE_METRICS=false: nothing is counted, so rates and latencies are not known."];
  return ["info", ""];
}

charts.begin();
inFlight.begin();
requests.begin();
trail.begin();
tryIt.begin();
const live = follow(onSnapshot, onState);
byId("key-button").hidden = !key();
byId("key-cancel").addEventListener("click", () => byId("key-dialog").close());
byId("key-button").addEventListener("click", async () => {
  if (await askForKey("Another key for this tab.")) live.restart();
});
