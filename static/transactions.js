// The transactions: filter and find them, page through them, follow their changes, and ask about them again.

import { call, Failure, now } from "./api.js";
import { $, ask, attempt, change, draw, FILTERS, go, h, href, pager, parts, say } from "./state.js";
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
  for (const one of transactions.map(fresh)) {
    const { id, status, station } = one;
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
  if (list?.url !== url()) return state.refused.list ? { url: "", items: [] } : shown;
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
  const none = "There is no transaction yet. Press Start beside a station.";
  draw($("no-transactions"), {}, shown && !items.length && (filtered() ? "No transaction matches." : none));
  draw($("new"), { hidden: !fresh }, `${fresh}${fresh < LIMIT ? "" : "+"} new`);
  pager($("transactions-pager"), "after", ["Newer", "Older"], shown === url() && more && items.at(-1)?.id);
});
$("new").onclick = () => change({ moved: 0 });

// Filters

const TIMES = { created_from: "Z", created_to: ".999999Z" }; // the first and last microsecond of a second

/** The API's time as the local time in a form's field. */
const local = (time) => {
  const date = new Date(time);
  return isNaN(date) ? "" : new Date(date - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
};

parts.push(({ view }) => {
  const active = FILTERS.filter((name) => view[name]).length;
  draw($("filter"), { open: filtered() || $("filter").open });
  draw($("filter-title"), {}, active ? `Filter (${active})` : "Filter");
  const statuses = view.status?.split(",") ?? [];
  for (const box of $("filters").elements.status) draw(box, { checked: statuses.includes(box.value) });
  draw($("station_id"), { value: view.station_id ?? "" });
  // A field with the focus belongs to the user, who may be typing a year. The others show the URL.
  const times = Object.keys(TIMES).map($).filter((field) => field !== document.activeElement);
  for (const field of times) field.value = local(view[field.id]);
});

/** Apply the field that changed, and leave the others as they are in the URL. */
$("filters").onchange = ({ target }) => {
  const { name } = target;
  let value = new FormData($("filters")).getAll(name).join(",");
  if (value && TIMES[name]) value = new Date(value).toISOString().replace(".000Z", TIMES[name]);
  const again = Boolean(TIMES[name] && state.view[name]); // a time changes with each digit
  if (target.reportValidity()) go({ ...state.view, [name]: value, after: "" }, {}, again);
};
$("filters").onreset = () => go({ q: state.view.q, stations_after: state.view.stations_after });

// Find one by its id or its key

/** Load a transaction. A path with another text, such as "..", could lead elsewhere. */
async function get(id) {
  if (!/^[0-9a-f-]{36}$/i.test(id)) throw new Failure("There is no such transaction.", {});
  return call(`/transactions/${id}`);
}

$("lookup").onsubmit = async () => {
  const text = $("lookup-text").value.trim();
  const look = async () => {
    const { items } = await call(`/transactions?${new URLSearchParams({ idempotency_key: text })}`);
    return items[0] ?? get(text);
  };
  const found = await attempt("lookup", look, "Try again.");
  if (found) go({ ...state.view, transaction: found.id });
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
  const { view } = state;
  const id = view.transaction?.toLowerCase(); // as the API writes it
  if (id !== state.details?.id) {
    delete state.wrong.details;
    change({ details: id ? (state.rows.items.find((one) => one.id === id) ?? { id }) : null });
  }
  if (!id) return;
  const found = await attempt("details", () => get(id), "Close it and try again.");
  if (state.view.transaction !== view.transaction) return ask("details"); // the user has moved on
  if (!found) return;
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

parts.push(({ view, details, opened, token }) => {
  state.opened = Boolean(view.transaction && details && !token);
  if (opened && !state.opened) $("details").close();
  if (!state.opened) return;
  draw($("id"), {}, details.id);
  const known = details.status ? fields(details) : [];
  draw($("fields"), {}, known.map(([name, text]) => [h("dt", {}, name), h("dd", {}, text)]));
  draw($("retry"), { hidden: details.status !== "EXPIRED" });
  if (!opened) $("details").showModal();
});

/** The user closed it. If going back shows the same list, go back, so that Back doesn't open it again. */
$("details").onclose = () => {
  const { transaction, ...view } = state.view;
  if (!state.opened || $("details").open) return; // the URL closed it, and may have opened it again since
  change({ view, opened: false, details: null }); // the same view opens it again
  if (history.state?.opened === transaction) history.back();
  else go(view, {}, true);
};
$("close").onclick = () => $("details").close();
$("retry").onclick = async () => {
  const again = () => call(`/transactions/${state.details.id}/retry`, { method: "POST" });
  const found = await attempt("details", again, "Ask again: it is harmless.");
  if (!found) return;
  $("close").focus();
  learn([found]);
};
