// A card for each provider: whether it can be called, how fast it answers, what is left of its limits.

import { attr, bar, byId, cells, el, fill, keyed, row, text } from "./dom.js";
import { cents, compact, count, percent, rate, seconds, short } from "./format.js";

const LIMITS = {
  rpm: "Requests a minute",
  rpd: "Requests a day",
  tpm: "Tokens a minute",
  tpd: "Tokens a day",
  itpm: "Input tokens a minute",
  otpm: "Output tokens a minute",
};
const MODEL_COLUMNS = ["model", "n", "n", "n roomy", "n", "n"];

export function show(snapshot) {
  const configured = snapshot.providers.filter((provider) => provider.configured);
  keyed(byId("cards"), configured, (provider) => provider.provider, create, update);
  const others = snapshot.providers.filter((provider) => !provider.configured).map((provider) => provider.provider);
  text(byId("unconfigured"), others.length ? `Not configured: ${others.join(", ")}.` : "");
}

function create(provider) {
  const title = el("h3", { id: `provider-${provider.provider}` }, provider.provider);
  const heads = ["Model", "Calls", "Errors", "p95", "Tok / min", "Cost"].map((head, index) =>
    el("th", { scope: "col", className: MODEL_COLUMNS[index] }, head));
  const latency = ["", "p50", "p95", "p99"].map((head, index) =>
    el(index ? "th" : "td", index ? { scope: "col", className: "n" } : {}, head));
  return el("article", { className: "card provider", "aria-labelledby": title.id },
    el("div", { className: "provider-top" }, title, el("span", { className: "pill breaker" }, el("span"))),
    el("dl", { className: "facts row" }),
    el("table", { className: "latency" },
      el("caption", { className: "hidden" }, `Latency of ${provider.provider}`),
      el("thead", {}, el("tr", {}, latency)),
      el("tbody", {}, row(["", "n", "n", "n"], "th"), row(["", "n", "n", "n"], "th"))),
    el("div", { className: "limits" }),
    el("div", { className: "scroll", role: "region", "aria-label": `Models of ${provider.provider}`, tabIndex: 0 },
      el("table", { className: "models" },
        el("caption", { className: "hidden" }, `Models of ${provider.provider}`),
        el("thead", {}, el("tr", {}, heads)),
        el("tbody"))));
}

function update(card, provider) {
  const [top, facts, latency, limits, models] = card.children;
  const [state, words] = worst(provider);
  attr(top.lastElementChild, "data-state", state);
  text(top.lastElementChild.firstElementChild, words);
  const { recent } = provider;
  pairs(facts, [
    ["Calls a second", rate(provider.calls_per_s)],
    ["Errors", recent.error_rate === null ? percent(null) : `${percent(recent.error_rate)} (${count(recent.errors)} of ${count(recent.calls)})`],
  ]);
  [["First token", recent.first_token], ["Whole answer", recent.duration]].forEach(([name, times], index) =>
    cells(latency.tBodies[0].rows[index], [name, seconds(times.p50_s), seconds(times.p95_s), seconds(times.p99_s)]));
  bars(limits, provider);
  keyed(models.querySelector("tbody"), provider.models, (model) => model.model, () => row(MODEL_COLUMNS, "th"), updateModel);
}

function updateModel(tr, model) {
  const errors = Object.values(model.errors).reduce((all, n) => all + n, 0);
  cells(tr, [
    model.model,
    count(model.calls),
    count(errors),
    seconds(model.recent.duration.p95_s),
    short(model.last_minute.tokens),
    cents(model.cost_usd),
  ]);
  const kinds = Object.entries(model.errors).map(([kind, n]) => `${kind}: ${count(n)}`);
  const [state, words] = condition(model);
  attr(tr, "data-state", state);
  attr(tr, "title", [model.id, words, `p95 ${seconds(model.recent.duration.p95_s)}`, ...kinds].join(" · "));
}

function condition({ breaker, callable }) {
  const others = breaker.replicas > 1 ? ` on ${count(breaker.replicas)} replicas` : "";
  if (breaker.state === "open") return ["open", `breaker open${others}, tried in ${seconds(Math.ceil(breaker.ready_in_s))}`];
  if (breaker.state === "half_open") return ["half_open", `breaker half open${others}`];
  return callable ? ["closed", "breaker closed"] : ["waiting", "no call possible now"];
}

/** A vendor is reached or not for each model alone, so that its own breaker may be closed and theirs open. */
function worst(provider) {
  const open = provider.models.filter((model) => model.breaker.state !== "closed").map((model) => model.model);
  if (provider.breaker.state !== "closed" || !open.length) return condition(provider);
  return [open.length === provider.models.length ? "open" : "half_open", `breaker open for ${open.join(", ")}`];
}

/** The limits that all its models share, and each model's own. */
function bars(place, provider) {
  const shared = provider.limits.map((limit) => ({ ...limit, whose: "" }));
  const own = provider.models.flatMap((model) => model.limits.map((limit) => ({ ...limit, whose: `${model.model}: ` })));
  keyed(place, [...shared, ...own], (limit) => limit.whose + limit.metric,
    (limit) => bar(limit.whose + lower(LIMITS[limit.metric] ?? limit.metric, limit.whose)),
    (node, limit) => fill(node, limit.used, limit.limit, `${compact(limit.used)} / ${compact(limit.limit)}`));
}

function lower(name, whose) {
  return whose ? name[0].toLowerCase() + name.slice(1) : name;
}

/** The pairs of a description list. */
export function pairs(list, entries) {
  keyed(list, entries, ([name]) => name, ([name]) => el("div", {}, el("dt", {}, name), el("dd")), (node, [, value]) =>
    text(node.lastElementChild, value));
}
