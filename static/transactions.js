// The transactions: filter and find them, page through them, follow their changes, and ask about them again.

import { call, now } from "./api.js";
import { $, ask, attempt, change, draw, fail, FILTERS, go, h, href, pager, parts, say } from "./state.js";
import { sign, state } from "./state.js";
import { clock, label, milliseconds, moment, tookOf, zone } from "./words.js";

const LIMIT = 20;
const REST = 2000; // ms without a move from the user until rows may move

function url(limit = LIMIT, after = state.view.after ?? "") {
  const given = FILTERS.map((name) => [name, state.view[name]]);
  const asked = [...given, ["after", after], ["limit", limit]].filter(([, value]) => value);
  return `/transactions?${new URLSearchParams(asked)}`;
}

export async function load() {
  const asked = url();
  if (state.list) state.list.items = current();
  state.heard = new Map();
  const { items, next } = await call(asked);
  if (asked !== url()) return; // the user has moved on
  state.list = { url: asked, items, more: Boolean(next) };
  learn(items);
}

// Changes

/** The newer one of two answers about a transaction. */
const newer = (one, other) =>
  other?.updated && milliseconds(other.updated) > milliseconds(one.updated) ? other : one;

/** Update these transactions everywhere on the page. */
export function learn(transactions) {
  for (const one of transactions) {
    const { id, status, station } = one;
    if (newer(one, state.heard.get(id)) !== one) continue;
    state.heard.set(id, one);
    if (state.followed.has(id) && state.followed.get(id) !== status) {
      state.followed.set(id, status);
      say(`${station.description}: ${status}${status === "PENDING" ? "" : ` after ${tookOf(one)}`}`);
    }
    if (state.details?.id === id) state.details = newer(one, state.details);
    meet(one);
  }
  if (state.heard.size > 1000) ask("list");
  change();
}

/** Handle a change from an event. We reload a filtered list, but not for every change. */
export function hear(transaction) {
  learn([transaction]);
  if (filtered()) refill ??= setTimeout(() => ((refill = null), ask("list")), 500);
}

/** Update a station's newest transaction. Reload the stations if this one may be new among them. */
export function meet(transaction) {
  const { id } = transaction.station;
  const latest = state.latest[id];
  if (latest?.id === transaction.id) state.latest[id] = newer(transaction, latest);
  else if (latest === null || latest?.id < transaction.id) state.latest[id] = transaction;
  else if (!latest && !state.met.has(id) && state.stations && !state.stations.next) ask("stations");
  state.met.add(id);
}

const fresh = (one) => newer(one, state.heard.get(one.id));
const filtered = () => FILTERS.some((name) => state.view[name]);
let refill = null;

/** The list with later changes. Only the service knows which other transactions match a filter. */
function current() {
  const all = new Map(state.list.items.map((one) => [one.id, fresh(one)]));
  const others = filtered() || state.view.after ? [] : state.heard;
  for (const [id, one] of others) if (!all.has(id)) all.set(id, one);
  const sorted = [...all.values()].sort((one, other) => (one.id < other.id ? 1 : -1));
  state.list.more ||= sorted.length > LIMIT;
  return sorted.slice(0, LIMIT);
}

/** The rows to show: new ones wait while the user moves. */
function rows() {
  const { list, moved, rows: shown } = state;
  if (list?.url !== url()) return shown;
  const items = current();
  const rests = Date.now() - moved > REST;
  if (rests || !shown.items.length || shown.url !== list.url) return { ...list, items, fresh: 0 };
  const known = new Set(shown.items.map(({ id }) => id));
  return { ...shown, items: shown.items.map(fresh), fresh: items.filter(({ id }) => !known.has(id)).length };
}

// Rows

function row(transaction) {
  const { id, station, status, created } = transaction;
  const time = h("time", { dateTime: created }, clock(created));
  const link = h("a", { href: href({ ...state.view, transaction: id }) }, time);
  const name = h("bdi", { title: label(station) }, station.description);
  const cell = (text, className = "") => h("td", { className }, text);
  const cells = [cell(link), cell(name, "station"), cell(sign(status)), cell(tookOf(transaction), "amount")];
  return h("tr", { key: id, "data-id": id }, cells);
}

parts.push((state) => {
  state.rows = rows();
  const { url: shown, items, more, fresh } = state.rows;
  draw($("zone"), {}, `Created (${zone()})`);
  draw($("transactions"), {}, items.map(row));
  const begin = state.stations?.items.length ? "Press Start beside a station." : "Create a station to begin.";
  const none = filtered() ? "No transaction matches." : `There is no transaction yet. ${begin}`;
  draw($("no-transactions"), {}, shown && !items.length && none);
  draw($("new"), { hidden: !fresh }, `${fresh} new`);
  pager($("transactions-pager"), "after", ["Newer", "Older"], shown === url() && more && items.at(-1)?.id);
});
$("new").onclick = () => change({ moved: 0 });

// Filters

/** Convert the API's time to the local time in a form's field, and back. */
const local = (time) => {
  const date = new Date(time);
  return date > 0 ? new Date(date - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 19) : "";
};
const utc = (text) => (text ? new Date(text).toISOString().replace(".000", "") : "");

parts.push(({ view }) => {
  const active = FILTERS.filter((name) => view[name]).length;
  draw($("filter"), { open: filtered() || $("filter").open });
  draw($("filter-title"), {}, active ? `Filter (${active})` : "Filter");
  const statuses = view.status?.split(",") ?? [];
  for (const box of $("filters").elements.status) draw(box, { checked: statuses.includes(box.value) });
  draw($("station_id"), { value: view.station_id ?? "" });
  draw($("created_from"), { value: local(view.created_from) });
  draw($("created_to"), { value: local(view.created_to) });
});

$("filters").onchange = $("filters").onsubmit = () => {
  if (!$("filters").reportValidity()) return; // for example a half-typed time
  const boxes = [...$("filters").elements.status].filter(({ checked }) => checked);
  const status = boxes.length === 4 ? "" : boxes.map(({ value }) => value).join(",");
  const range = { created_from: utc($("created_from").value), created_to: utc($("created_to").value) };
  go({ ...state.view, station_id: $("station_id").value, status, ...range, after: "" });
};
$("filters").onreset = () => go({ q: state.view.q, stations_after: state.view.stations_after });

// Find one by its id or its key

$("lookup").onsubmit = async () => {
  const text = $("lookup-text").value.trim();
  const look = async () => {
    const { items } = await call(`/transactions?${new URLSearchParams({ idempotency_key: text })}`);
    return items[0] ?? call(`/transactions/${encodeURIComponent(text)}`);
  };
  const found = await attempt("lookup", look, "Try again.");
  if (found) go({ ...state.view, transaction: found.id });
  const { status } = state.wrong.lookup?.error?.problem ?? {};
  if (status === 404 || status === 422) fail("lookup", "No transaction has this id or idempotency key.");
};

// Ask again about all

/** Ask again about everything that matches the filter, eight at a time. Skip transactions with a verdict. */
async function askAgain() {
  const again = { asked: 0, on: true };
  change({ again });
  const one = async ({ id }) => {
    const settled = (error) => error.problem?.status === 409 || Promise.reject(error);
    await call(`/transactions/${id}/retry`, { method: "POST" }).catch(settled);
    again.asked += 1;
    change();
  };
  const all = async () => {
    for (let next = url(200, ""); next && again.on; ) {
      const page = await call(next);
      while (page.items.length && again.on) await Promise.all(page.items.splice(0, 8).map(one));
      next = page.next;
    }
  };
  await attempt("all", all, "Start again: it is harmless.");
  again.on = false;
  change();
}

parts.push(({ view, again, rows }) => {
  draw($("all"), { hidden: view.status !== "EXPIRED" || !(again || rows.items.length) });
  const onclick = again?.on ? () => (again.on = false) : askAgain;
  draw($("again"), { onclick }, again?.on ? "Stop" : "Ask again about all");
  draw($("asked"), {}, again && `${again.asked} asked again`);
});

// Details

/** Open the transaction in the URL, or close the last one. */
export async function open() {
  const { transaction: id } = state.view;
  if (id !== state.details?.id) {
    delete state.wrong.details;
    change({ details: id ? (state.rows.items.find((one) => one.id === id) ?? { id }) : null });
  }
  if (!id) return;
  const get = () => call(`/transactions/${encodeURIComponent(id)}`);
  const found = await attempt("details", get, "Close it and try again.");
  if (!found || state.view.transaction !== id) return;
  if (!state.followed.has(id)) state.followed.set(id, found.status);
  learn([found]);
}

function fields({ station, status, created, updated, asked, attempts, expires, reason, equipment }) {
  const left = Math.max(0, Math.ceil((Date.parse(expires) - now()) / 1000));
  const ends = expires ? `${left} s (${moment(expires)})` : "not asked yet";
  return [
    ["Station", h("bdi", {}, label(station))],
    ["Status", sign(status)],
    ["Reason", h("bdi", {}, reason ?? "–")],
    ["Equipment", h("bdi", {}, equipment ?? "–")],
    ["Created", moment(created)],
    ["Asked", moment(asked)],
    ["Updated", moment(updated)],
    ["Took", tookOf({ status, created, updated }) || "–"],
    ["Attempts", String(attempts)],
    ["Expires in", status === "PENDING" ? ends : "–"],
  ];
}

parts.push(({ view, details }) => {
  if (!view.transaction || !details) return $("details").close();
  draw($("id"), {}, details.id);
  const known = details.status ? fields(details) : [];
  draw($("fields"), {}, known.map(([name, text]) => [h("dt", {}, name), h("dd", {}, text)]));
  draw($("retry"), { hidden: details.status !== "EXPIRED" });
  return $("details").open || $("details").showModal();
});

/** Close. If going back shows the same list, go back, so that Back doesn't open it again. */
function close() {
  const { transaction, ...view } = state.view;
  if (!transaction) return;
  if (history.state?.opened === transaction) history.back();
  else go(view, {}, true);
}
$("details").onclose = $("close").onclick = close;
$("details").onclick = (event) => event.target === $("details") && close();
$("retry").onclick = async () => {
  const again = () => call(`/transactions/${state.details.id}/retry`, { method: "POST" });
  const found = await attempt("details", again, "Ask again: it is harmless.");
  if (!found) return;
  $("close").focus();
  learn([found]);
};
