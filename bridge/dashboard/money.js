// What was spent, what the budgets have left, and what the cache has saved.

import { bar, byId, fill, keyed, text } from "./dom.js";
import { count, percent, plural, usd } from "./format.js";
import { pairs } from "./providers.js";

export function show(snapshot) {
  const { spend, cache } = snapshot;
  pairs(byId("money-facts"), [
    ["Today", usd(spend?.today_usd)],
    ["This month", usd(spend?.month_usd)],
    ["By the month's end", usd(spend?.projection_usd)],
    ["Saved this month", usd(spend?.saved_month_usd)],
  ]);
  keyed(byId("budgets"), spend?.budgets ?? [], (budget) => budget.budget, (budget) => bar(budget.budget), (node, budget) =>
    fill(node, budget.spent_usd, budget.limit_usd, `${usd(budget.spent_usd)} of ${usd(budget.limit_usd)}, ${percent(budget.share)}`));
  text(byId("money-note"), note(spend));
  pairs(byId("cache-facts"), [
    ["Hit rate", percent(cache.hit_rate)],
    ["Hits", count(cache.hits)],
    ["Shared a call", count(cache.coalesced)],
    ["Misses", count(cache.misses)],
    ["Saved", usd(cache.saved_usd)],
  ]);
}

function note(spend) {
  if (spend === null) return "Not read yet.";
  const open = spend.not_counted ? `${plural(spend.not_counted, "call")} not counted yet. ` : "";
  return open + (spend.budgets.length ? "" : "No budget is set.");
}
