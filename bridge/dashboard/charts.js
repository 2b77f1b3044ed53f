// Two graphs of the last ten minutes, drawn by uPlot; the page itself keeps what they show.

import { attr, byId, el, text } from "./dom.js";
import { clock, compact, rate } from "./format.js";

const KEPT_S = 600;
const SHOWN_AT_FIRST_S = 120;
const HEIGHT = 150;
const GAP_S = 4;
const MEAN_OF = 5;
const STEPS = [1, 10, 100, 1e3, 1e4, 1e5, 1e6].flatMap((step) => [step, 2 * step, 5 * step]);
const DRAWN_EVERY_MS = matchMedia("(prefers-reduced-motion: reduce)").matches ? 5_000 : 0;
const LANES = ["critical", "high", "medium", "low"];

const GRAPHS = [
  { name: "rate", title: "Requests a second", of: (lane) => lane.received_per_s, format: rate, mean: true },
  { name: "queue", title: "Waiting in the queue", of: (lane) => lane.queued, format: compact },
];
const times = [];
const values = Object.fromEntries(GRAPHS.map((graph) => [graph.name, LANES.map(() => [])]));
const recent = LANES.map(() => []);
const plots = {};
let uPlot = null;
let drawnAt = 0;

/** Load uPlot, if it was fetched when the bridge was installed; the tables say the same without it. */
export async function begin() {
  try {
    ({ default: uPlot } = await import("./vendor/uPlot.esm.js"));
  } catch {
    byId("no-charts").hidden = false;
    document.querySelector(".charts").hidden = true;
    return;
  }
  document.head.append(el("link", { rel: "stylesheet", href: "assets/vendor/uPlot.min.css" }));
  document.addEventListener("themechange", () => plotAnew());
  new ResizeObserver(fit).observe(byId("rate-chart"));
  plotAnew();
}

export function show(snapshot) {
  remember(snapshot);
  for (const graph of GRAPHS) describe(graph);
  if (uPlot === null || Date.now() - drawnAt < DRAWN_EVERY_MS) return;
  drawnAt = Date.now();
  for (const graph of GRAPHS) draw(graph);
}

function remember(snapshot) {
  const at = Date.parse(snapshot.at) / 1000;
  const last = times.at(-1);
  if (last !== undefined && at <= last) return;
  if (last !== undefined && at - last > GAP_S) push(last + 1, () => null); // a line over a gap would be made up
  push(at, (graph, index) => {
    const value = graph.of(snapshot.lanes.find((found) => found.lane === LANES[index]) ?? {}) ?? null;
    return graph.mean ? smoothed(recent[index], value) : value;
  });
  while (times[0] < at - KEPT_S) {
    times.shift();
    for (const graph of GRAPHS) values[graph.name].forEach((series) => series.shift());
  }
}

function push(at, valueOf) {
  times.push(at);
  for (const graph of GRAPHS) LANES.forEach((_, index) => values[graph.name][index].push(valueOf(graph, index)));
}

/** The mean of the last values: requests come one by one, and their number in one second says little. */
function smoothed(last, value) {
  if (value === null) last.length = 0;
  else last.push(value);
  if (last.length > MEAN_OF) last.shift();
  return last.length ? last.reduce((sum, one) => sum + one, 0) / last.length : null;
}

/** What the graph shows, in words. */
function describe(graph) {
  const now = LANES.map((lane, i) => `${lane} ${graph.format(values[graph.name][i].at(-1))}`).join(", ");
  const most = Math.max(0, ...values[graph.name].flat());
  attr(byId(`${graph.name}-chart`), "aria-label", `${graph.title}, last 10 minutes. Now: ${now}. Highest: ${graph.format(most)}.`);
}

function draw(graph) {
  const now = times.at(-1);
  const plot = plots[graph.name];
  plot.batch(() => {
    plot.setData([times, ...values[graph.name]], false);
    plot.setScale("x", { min: Math.max(now - KEPT_S, Math.min(times[0], now - SHOWN_AT_FIRST_S)), max: now });
    plot.setScale("y", { min: 0, max: ceiling(values[graph.name]) });
  });
}

function ceiling(series) {
  return Math.max(4, ...series.flat()) * 1.1;
}

function plotAnew() {
  if (uPlot === null) return;
  for (const graph of GRAPHS) {
    plots[graph.name]?.destroy();
    plots[graph.name] = plotted(graph);
    if (times.length) draw(graph);
  }
}

function plotted(graph) {
  const place = byId(`${graph.name}-chart`);
  const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
  return new uPlot({
    width: place.clientWidth,
    height: HEIGHT,
    padding: [8, 26, 0, 0],
    legend: { show: false },
    cursor: { sync: { key: "lanes" }, drag: { x: false, y: false }, points: { size: 6 } },
    scales: { x: { time: true, auto: false }, y: { auto: false } },
    axes: [
      { ...axis, space: 70, size: 24, values: (_, splits) => splits.map((at) => clock(at * 1000).slice(-8)) },
      { ...axis, size: 38, space: 32, incrs: STEPS, values: (_, splits) => splits.map((value) => compact(value)) },
    ],
    series: [{}, ...LANES.map((lane) => ({
      label: lane,
      stroke: colour(`--${lane}`),
      width: 1.75,
      dash: lane === "low" ? [5, 3] : [],
      points: { show: false },
    }))],
    hooks: { setCursor: [(plot) => read(graph, plot.cursor.idx)] },
  }, [[], ...LANES.map(() => [])], place);
}

/** The values under the pointer. */
function read(graph, index) {
  const at = index == null ? undefined : times[index];
  const said = at === undefined ? "" : LANES.map((lane, i) => `${lane} ${graph.format(values[graph.name][i][index])}`).join(" · ");
  text(byId(`${graph.name}-readout`), said && `${clock(at * 1000)} ${said}`);
}

function fit() {
  for (const graph of GRAPHS) {
    const width = byId(`${graph.name}-chart`).clientWidth;
    if (width && plots[graph.name]) plots[graph.name].setSize({ width, height: HEIGHT });
  }
}

/** A colour of the style sheet as the canvas takes it. */
function colour(name) {
  const probe = document.body.appendChild(el("span"));
  probe.style.color = `var(${name})`;
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}
