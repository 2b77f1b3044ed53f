// The live feed: one snapshot a second over a WebSocket, taken up again by itself after every loss.

import { askForKey, key, NEEDED } from "./session.js";

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 5_000;
const STALE_MS = 3_500;
const DEAD_MS = 12_000;
const LOOK_MS = 500;

/** Follows for ever. `onState` gets: connecting, live, stale, reconnecting, waiting (with words that say why). */
export function follow(onSnapshot, onState) {
  let socket = null;
  let losses = 0;
  let heard = 0;
  let timer = null;

  function connect() {
    clearTimeout(timer);
    timer = null;
    const address = new URL("ws", document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    socket = new WebSocket(address);
    heard = Date.now();
    socket.onopen = () => socket.send(JSON.stringify({ key: key() }));
    socket.onmessage = (event) => {
      losses = 0;
      heard = Date.now();
      onState("live");
      onSnapshot(JSON.parse(event.data));
    };
    socket.onclose = (event) => lost(event.code);
  }

  async function lost(code) {
    socket = null;
    if (code === 4401 || code === 4403) {
      onState("waiting", code === 4403 ? "this key is not an operator's" : "an API key is needed");
      if (!(await askForKey(code === 4403 ? "This key may not see the dashboard: give an operator's." : NEEDED))) return;
      losses = 0;
      return connect();
    }
    const pause = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** losses) * (0.75 + Math.random() / 2);
    losses += 1;
    onState("reconnecting", code === 1013 ? "too many watch this bridge, or this page reads too slowly" : "");
    timer = setTimeout(connect, code === 1013 ? LONGEST_PAUSE_MS : pause);
  }

  function look() {
    const silent = Date.now() - heard;
    if (socket?.readyState !== WebSocket.OPEN) return;
    if (silent > DEAD_MS) socket.close();
    else if (silent > STALE_MS) onState("stale");
  }

  function atOnce() {
    if (timer !== null) connect();
  }

  onState("connecting");
  connect();
  setInterval(look, LOOK_MS);
  addEventListener("online", atOnce);
  document.addEventListener("visibilitychange", () => document.hidden || atOnce());
  return {
    /** With another key. */
    restart() {
      if (socket) socket.close();
      else connect();
    },
  };
}
