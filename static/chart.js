// The chart and the counts: how many transactions were created in the last minutes and today, by status.

import { call, now } from "./api.js";
import { $, change, draw, h, href, parts, refresh, sign } from "./state.js";
import { clock, count, zone } from "./words.js";

const STATUSES = ["COMPLETED", "ERROR", "EXPIRED", "PENDING"];
const BAR = 20_000; // ms
const BARS = 30;
const DAY = 86_400_000; // ms
const PERIOD = 5500; // ms; the service counts at most once every 5 s

const iso = (ms) => new Date(ms).toISOString();

/** When the first bar begins. The last one is still filling. */
const start = () => (Math.floor(now() / BAR) + 1 - BARS) * BAR;

async function counts(from, step, steps) {
  const query = { from: iso(from), to: iso(from + steps * step), step: step / 1000 };
  return (await call(`/transactions/counts?${new URLSearchParams(query)}`)).items;
}

/** Load the bars, the counts for today, and the older transactions that are still PENDING. */
export async function load() {
  const midnight = new Date(now()).setHours(0, 0, 0, 0);
  const older = call(`/transactions?status=PENDING&limit=200&created_to=${iso(midnight)}`);
  const asked = [counts(start(), BAR, BARS), counts(midnight, DAY, 2), older]; // a day may have 25 hours
  const [bars, days, { items, next }] = await Promise.all(asked);
  const pending = count(total(days, "PENDING") + items.length) + (next ? "+" : "");
  change({ counts: { bars, today: sum(days), midnight, pending } });
}

let timer = null;

/** Reload the counts after a change: now, and again once the service recounts. */
export function recount() {
  if (!timer) refresh("counts");
  timer ??= setTimeout(() => ((timer = null), refresh("counts")), PERIOD);
}

const total = (items, status) => items.reduce((count, one) => count + one[status], 0);
const sum = (items) => Object.fromEntries(STATUSES.map((status) => [status, total(items, status)]));

/** The bars up to now, oldest first. */
function barsOf({ counts: known }) {
  const found = new Map(known?.bars.map((one) => [Date.parse(one.from), one]));
  return Array.from({ length: BARS }, (_, index) => {
    const from = start() + index * BAR;
    return { ...(found.get(from) ?? sum([])), from, to: from + BAR };
  });
}

/** COMPLETED and PENDING go up from the line, ERROR and EXPIRED down. */
function drawBars(bars, chosen) {
  const up = Math.max(1, ...bars.map((one) => one.COMPLETED + one.PENDING));
  const down = Math.max(0, ...bars.map((one) => one.ERROR + one.EXPIRED));
  const scale = 96 / (up + down);
  const line = 2 + up * scale;
  const rect = (key, look, x, y, height, width = 8) => h("rect", { key, "data-look": look, x, y, width, height });
  const stack = ({ COMPLETED, ERROR, EXPIRED, PENDING }, index) =>
    [
      ["COMPLETED", line - COMPLETED * scale, COMPLETED],
      ["PENDING", line - (COMPLETED + PENDING) * scale, PENDING],
      ["ERROR", line, ERROR],
      ["EXPIRED", line + ERROR * scale, EXPIRED],
    ].map(([status, y, number]) => rect(`${status} ${index}`, status, index * 10 + 1, y, number * scale));
  const back = bars[chosen] && rect("chosen", "chosen", chosen * 10, 0, 100, 10);
  draw($("chart"), {}, back, h("rect", { x: 0, y: line, width: 300, height: 0.7 }), bars.map(stack));
  const label = (number, top) => h("span", { style: `top: ${top / 20}rem` }, count(number));
  draw($("scale"), {}, label(up, 2), label(0, line), down > 0 && label(down, 98));
}

/** A number that links to the transactions it counts. */
const link = (number, filter) => h("td", { className: "amount" }, h("a", { href: href(filter) }, count(number)));

parts.push((state) => {
  const bars = barsOf(state);
  const chosen = bars[state.bar];
  const { today = sum([]), midnight = 0, pending = "0" } = state.counts ?? {};
  const recent = sum(chosen ? [chosen] : bars);
  const range = { created_from: iso((chosen ?? bars[0]).from), created_to: chosen && iso(chosen.to) };
  const times = ({ from, to }) => `${clock(from)} – ${clock(to)}`;
  const text = (counts) => STATUSES.map((status) => `${count(counts[status])} ${status}`).join(" ");
  const head = ["Created", chosen ? times(chosen) : "Last 10 minutes", "Today"];
  const row = (status) => [
    h("th", { scope: "row" }, sign(status)),
    link(recent[status], { status, ...range }),
    link(today[status], { status, created_from: iso(midnight) }),
  ];
  drawBars(bars, state.bar);
  draw($("chart"), { ariaLabel: `Last 10 minutes: ${text(sum(bars))}` });
  const shown = chosen ?? bars.at(-1);
  draw($("bar"), { value: String(state.bar ?? BARS - 1), ariaValueText: `${times(shown)}: ${text(shown)}` });
  draw($("axis"), {}, h("span", {}, clock(bars[0].from)), h("span", {}, `now (${zone()})`));
  draw($("counts"), {}, [
    h("tr", {}, head.map((name, index) => h("th", { scope: "col", className: index ? "amount" : "" }, name))),
    STATUSES.map((status) => h("tr", {}, row(status))),
  ]);
  draw($("pending"), {}, "PENDING now: ", h("a", { href: href({ status: "PENDING" }) }, pending));
});

const choose = (bar) => change({ bar });
$("bar").oninput = $("bar").onfocus = () => choose(Number($("bar").value));
$("bar").onpointermove = ({ offsetX }) => choose(Math.floor((offsetX / $("bar").clientWidth) * (BARS - 0.01)));
// A tap ends with the finger leaving, and its bar stays.
$("counting").onpointerleave = ({ pointerType }) => pointerType === "touch" || choose(null);
$("counting").addEventListener("focusout", ({ relatedTarget: to }) => $("counting").contains(to) || choose(null));
