// The API key, kept for this tab alone, and requests that carry it.

import { byId, text } from "./dom.js";

export const NEEDED = "The bridge wants a valid API key.";
const NAME = "sidecar-key";
let asking = null;

/** A refusal of the bridge, in its own words. */
export class Refused extends Error {
  constructor(status, message, retryAfterS = null) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

export function key() {
  return sessionStorage.getItem(NAME) ?? "";
}

/** Ask for a key; whoever asks meanwhile gets the same answer. Resolves to false where it was not given. */
export function askForKey(why) {
  asking ??= ask(why).finally(() => (asking = null));
  return asking;
}

function ask(why) {
  const dialog = byId("key-dialog");
  text(byId("key-why"), why);
  byId("key-input").value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const form = dialog.querySelector("form");
    const given = (event) => {
      event.preventDefault();
      const entered = byId("key-input").value.trim();
      if (!entered) return;
      sessionStorage.setItem(NAME, entered);
      byId("key-button").hidden = false;
      document.dispatchEvent(new Event("keygiven"));
      dialog.close("given");
    };
    form.addEventListener("submit", given);
    dialog.addEventListener("close", () => {
      form.removeEventListener("submit", given);
      resolve(dialog.returnValue === "given");
      dialog.returnValue = "";
    }, { once: true });
  });
}

/** `fetch` with the key. Where the bridge wants one, or another, it is asked for, and the request sent again. */
export async function send(path, init = {}) {
  const used = key();
  const answer = await fetch(path, { ...init, headers: { ...init.headers, ...bearer() } });
  if (answer.status !== 401) return answer;
  return used !== key() || (await askForKey(NEEDED)) ? send(path, init) : answer;
}

function bearer() {
  return key() ? { Authorization: `Bearer ${key()}` } : {};
}

/** The decoded answer. Throws Refused. */
export async function json(path, init) {
  const answer = await send(path, init);
  if (!answer.ok) throw await refusal(answer);
  return answer.status === 204 ? null : answer.json();
}

export async function refusal(answer) {
  let error = null;
  try {
    error = (await answer.json()).error;
  } catch {
    error = null; // something between us and the bridge has answered, in a form of its own
  }
  return new Refused(answer.status, error?.message ?? `HTTP ${answer.status}`, error?.retry_after_s ?? null);
}

/** What to show of a failure. */
export function said(error) {
  if (error instanceof Refused) {
    return error.message + (error.retryAfterS ? ` (try again in ${Math.ceil(error.retryAfterS)} s)` : "");
  }
  return error instanceof TypeError ? "the bridge cannot be reached" : String(error.message ?? error);
}
