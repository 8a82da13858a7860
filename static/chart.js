// The chart: how many transactions got which outcome in the last minutes.

import { call, now } from "./api.js";
import { $, set } from "./dom.js";
import { Rows } from "./lists.js";
import { clock } from "./words.js";

const OUTCOMES = ["COMPLETED", "ERROR", "EXPIRED"];
const MINUTES = 10;
const BAR = 20_000; // ms
const BARS = (MINUTES * 60_000) / BAR;
const NONE = { COMPLETED: 0, ERROR: 0, EXPIRED: 0 };
const bars = new Map(); // number of the bar since 1970: how often each outcome came
const counted = new Set(); // the newest changes, so that a list and the stream count each only once
const key = ({ id, updated }) => `${id} ${updated}`;
let since = 0; // what happened before this time may not be counted

/** Count a change of a transaction. */
export function count(transaction) {
  const { status, updated } = transaction;
  if (status === "PENDING" || counted.has(key(transaction))) return;
  counted.add(key(transaction));
  if (counted.size > 2000) counted.delete(counted.values().next().value);
  const bar = Math.floor(Date.parse(updated) / BAR);
  if (!bars.has(bar)) bars.set(bar, { ...NONE });
  bars.get(bar)[status] += 1;
}

/** Count what happened while the page did not listen, as far as one list tells. */
export async function seed() {
  const from = new Date(now() - MINUTES * 60_000).toISOString();
  const { items, next } = await call(`/transactions?limit=200&created_from=${encodeURIComponent(from)}`);
  if (next && !items.some((item) => counted.has(key(item)))) since = Date.parse(items.at(-1).created);
  items.forEach(count);
  draw();
}

/** Draw the bars up to now: verdicts that confirm go up from the line, everything else goes down. */
export function draw() {
  const end = Math.floor(now() / BAR) + 1;
  for (const bar of bars.keys()) if (bar < end - BARS) bars.delete(bar);
  const up = Math.max(1, ...[...bars.values()].map(({ COMPLETED }) => COMPLETED));
  const down = Math.max(0, ...[...bars.values()].map(({ ERROR, EXPIRED }) => ERROR + EXPIRED));
  const scale = 96 / (up + down);
  const line = 2 + up * scale;
  place($("chart").firstElementChild, 0, line, 300, 0.7);
  rects.forEach(([confirmed, refused, expired], index) => {
    const { COMPLETED, ERROR, EXPIRED } = bars.get(end - BARS + index) ?? NONE;
    place(confirmed, index * 10 + 1, line - COMPLETED * scale, 8, COMPLETED * scale);
    place(refused, index * 10 + 1, line, 8, ERROR * scale);
    place(expired, index * 10 + 1, line + ERROR * scale, 8, EXPIRED * scale);
  });
  const sum = (outcome) => [...bars.values()].reduce((total, bar) => total + bar[outcome], 0);
  captionRows.show(OUTCOMES.map((outcome) => ({ id: outcome, total: sum(outcome) })));
  const partly = since > now() - MINUTES * 60_000;
  const left = partly ? `counted since ${clock(new Date(since))}` : `${MINUTES} minutes ago`;
  set($("axis").firstElementChild, left);
}

function place(rect, x, y, width, height) {
  for (const [name, value] of Object.entries({ x, y, width, height })) {
    if (rect.getAttribute(name) !== String(value)) rect.setAttribute(name, value);
  }
}

function rect(outcome) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  made.dataset.status = outcome;
  $("chart").append(made);
  return made;
}

rect("line");
const rects = Array.from({ length: BARS }, () => OUTCOMES.map(rect));
const captionRows = new Rows($("chart-said"), $("an-outcome"), (element, { id, total }) => {
  element.dataset.status = id;
  set(element, `${total.toLocaleString("en")} ${id}`);
});
