// The transactions: filter them, turn their pages, follow their changes, and open one.

import { call, now } from "./api.js";
import { $, attempt, onSubmit, say, set, showStatus } from "./dom.js";
import { Pager, Rows, go, view } from "./lists.js";
import { clock, milliseconds, moment, sumUp } from "./words.js";

const LIMIT = 20;
const FILTERS = ["station_id", "status", "created_from", "created_to"];

function url() {
  const asked = view();
  const given = [...FILTERS, "after"].filter((name) => asked[name]).map((name) => [name, asked[name]]);
  return `/transactions?${new URLSearchParams([...given, ["limit", LIMIT]])}`;
}

let items = [];
let more = false;
let shown = ""; // the list that is shown
let filled = ""; // the list whose filters are in the form
let refill;
let missed = null; // changes that came while a list was on its way

/** Show what the URL asks for; with `always`, ask for it again. Returns the transactions on the page. */
export async function load(always = true) {
  open(always);
  const asked = url();
  if (asked === shown && !always) return items;
  if (asked !== filled) showFilters();
  filled = asked;
  const since = (missed = []);
  const page = await call(asked);
  if (asked !== url()) return items; // the user has moved on
  const turned = shown && asked !== shown;
  shown = asked;
  items = page.items;
  more = Boolean(page.next);
  if (missed === since) missed = null;
  apply(since);
  if (turned) say($("summary").textContent || $("no-transactions").textContent);
  return items;
}

/** Whether the list that the URL asks for has room for a transaction. */
function fits({ station, status, created }) {
  const asked = view();
  return (
    (!asked.station_id || asked.station_id === String(station.id)) &&
    (!asked.status || asked.status.split(",").includes(status)) &&
    (!asked.created_from || Date.parse(asked.created_from) <= Date.parse(created)) &&
    (!asked.created_to || Date.parse(created) < Date.parse(asked.created_to))
  );
}

const newer = (one, other) => milliseconds(one.updated) >= milliseconds(other.updated);

/** Show these transactions as they are now, each in its place, if they belong to this page. */
export function apply(changes) {
  missed?.push(...changes);
  const known = new Map(items.map((item) => [item.id, item]));
  for (const change of changes) {
    const old = known.get(change.id);
    if (old ? newer(change, old) : !view().after) known.set(change.id, change);
    if (change.id !== details?.id || !newer(change, details)) continue;
    if (change.status !== details.status) say(`${change.station.description}: ${change.status}`);
    showDetails(change);
  }
  const sorted = [...known.values()].filter(fits).sort((a, b) => (a.id < b.id ? 1 : -1));
  const emptied = more && sorted.length < LIMIT && sorted.length < items.length;
  more ||= sorted.length > LIMIT;
  items = sorted.slice(0, LIMIT);
  rows.show(items);
  pager.show(more && items.length ? items.at(-1).id : null);
  set($("summary"), sumUp(items));
  $("no-transactions").hidden = items.length > 0;
  const filtered = FILTERS.some((name) => view()[name]);
  set($("no-transactions"), filtered ? "No transaction matches." : "There is no transaction yet.");
  clearTimeout(refill);
  if (emptied) refill = setTimeout(() => document.dispatchEvent(new Event("stale")), 500);
}

// Filters

/** A time of the API as the field of a form shows it, in local time; and back. */
const local = (time) => {
  const date = new Date(time);
  return date > 0 ? new Date(date - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 19) : "";
};
const utc = (text) => (text ? new Date(text).toISOString().replace(".000", "") : "");

/** Show in the form what the URL asks for; the name of a station that is not known yet is asked for. */
function showFilters() {
  const { station_id: id = "", status = "", created_from: from, created_to: to } = view();
  if (!$("by-station").value.startsWith(`${id} · `) || !id) {
    $("by-station").value = id;
    if (id)
      call(`/stations/${id}`).then(
        (station) => nameStation(id, station),
        () => {},
      );
  }
  for (const box of $("filters").elements.status) box.checked = status.split(",").includes(box.value);
  $("from").value = local(from);
  $("to").value = local(to);
  const active = FILTERS.filter((name) => view()[name]).length;
  set($("filter").querySelector("summary"), active ? `Filter (${active})` : "Filter");
}

const label = ({ id, description }) => `${id} · ${description}`;

function nameStation(id, station) {
  if ($("by-station").value === id) $("by-station").value = label(station);
}

function filter(changes) {
  set($("filters-said"), "");
  if (Object.entries(changes).every(([name, value]) => (view()[name] ?? "") === value)) return;
  go({ ...changes, after: "" }, { after: [] });
}

/** Offer the stations that match what was typed; without an answer there is nothing to offer. */
async function suggest() {
  clearTimeout(typing);
  const text = $("by-station").value.trim();
  const found = await call(`/stations?${new URLSearchParams(text ? { q: text } : {})}`).catch(() => ({
    items: [],
  }));
  if (text === $("by-station").value.trim()) options.show(found.items);
}

/** Filter by the station that was chosen or typed: by its number, or a text that only one station has. */
async function choose(final) {
  const text = $("by-station").value.trim();
  const chosen = [...$("known").children].find(({ value }) => value === text);
  if (chosen) return filter({ station_id: numberOf(chosen) });
  if (!final || (view().station_id && text.startsWith(`${view().station_id} · `))) return undefined;
  const number = /^#?(\d{1,9})$/.exec(text)?.[1];
  if (!text || number) return filter({ station_id: number ?? "" });
  await suggest();
  const [first, second] = $("known").children;
  if (first && !second) return filter({ station_id: numberOf(first) });
  const many = "More than one station matches. Choose one from the list, or type its number.";
  return set($("filters-said"), first ? many : "No station matches.");
}

const numberOf = ({ value }) => value.split(" ")[0];

/** Read the rest of the form; a time that is only half typed is not valid yet. */
function read() {
  if (!$("from").validity.valid || !$("to").validity.valid) return;
  const boxes = [...$("filters").elements.status].filter(({ checked }) => checked);
  const status = boxes.length === 4 ? "" : boxes.map(({ value }) => value).join(",");
  filter({ status, created_from: utc($("from").value), created_to: utc($("to").value) });
}

// Details

let details = null; // the transaction that is open

/** Open the transaction that the URL names, or close it; with `again`, ask for one that is open already. */
async function open(again = true) {
  const { transaction: id } = view();
  if (id && id === details?.id && !again) return undefined;
  if (id !== details?.id) {
    details = null;
    set($("details-said"), "");
  }
  if (!id) return $("details").close();
  const known = items.find((item) => item.id === id) ?? details;
  showDetails(known ?? { id });
  if (!$("details").open) $("details").showModal();
  const found = await attempt(
    $("details"),
    () => call(`/transactions/${encodeURIComponent(id)}`),
    "Close it and try again.",
  );
  if (!found || view().transaction !== id) return undefined;
  showDetails(found);
  return apply([found]);
}

function showDetails(transaction) {
  details = transaction;
  const { id, station, created, updated, status, attempts, asked, expires } = transaction;
  const left = Math.max(0, Math.ceil((Date.parse(expires) - now()) / 1000));
  const fields = status && {
    station: label(station),
    created: moment(created),
    updated: moment(updated),
    asked: moment(asked),
    attempts: String(attempts),
    expires: status !== "PENDING" ? "–" : expires ? `${left} s (${moment(expires)})` : "not asked yet",
  };
  set($("id"), id);
  for (const field of $("details").querySelectorAll("[data-field]"))
    set(field, fields?.[field.dataset.field] ?? "");
  showStatus($("details"), transaction);
  $("retry").hidden = status !== "EXPIRED";
}

async function copy() {
  const selection = getSelection();
  selection.selectAllChildren($("id"));
  // Over plain HTTP there is no `clipboard`; the old command copies what is selected.
  if (navigator.clipboard) await navigator.clipboard.writeText($("id").textContent);
  else document.execCommand("copy");
  selection.removeAllRanges();
  say("Copied.");
  set($("copy"), "Copied");
  setTimeout(() => set($("copy"), "Copy"), 2000);
}

async function retry() {
  const again = () => call(`/transactions/${details.id}/retry`, { method: "POST" });
  const found = await attempt($("details"), again, "Ask again: it is harmless.");
  if (!found) return;
  $("close").focus();
  document.dispatchEvent(new CustomEvent("transaction", { detail: found }));
}

/** Close by going back where that shows the same list, so that Back does not open it again. */
function close() {
  if (!view().transaction) return;
  if (history.state?.opened === view().transaction) history.back();
  else go({ transaction: "" }, {}, true);
}

function fill(row, transaction) {
  const { id, station, created } = transaction;
  row.dataset.id = id;
  row.querySelector("time").dateTime = created;
  row.querySelector("bdi").title = label(station);
  row.querySelector("a").href = `?${new URLSearchParams({ ...view(), transaction: id })}`;
  set(row.querySelector("time"), clock(new Date(created)));
  set(row.querySelector("bdi"), station.description);
  showStatus(row, transaction);
}

const pager = new Pager($("transactions-pager"), "after");
const rows = new Rows($("transactions"), $("a-transaction"), fill);
const options = new Rows($("known"), $("an-option"), (option, station) => (option.value = label(station)));

let typing;
onSubmit($("filters"), () => choose(true));
$("by-station").addEventListener("focus", suggest, { once: true });
$("by-station").addEventListener("input", () => {
  set($("filters-said"), "");
  clearTimeout(typing);
  typing = setTimeout(suggest, 200);
  choose(false);
});
$("by-station").addEventListener("change", () => choose(true));
$("filters").addEventListener("change", (event) => event.target !== $("by-station") && read());
$("clear").addEventListener("click", () => {
  filter(Object.fromEntries(FILTERS.map((name) => [name, ""])));
  showFilters();
});
$("transactions").addEventListener("click", (event) => {
  const row = event.target.closest("tr");
  const selects = row && !getSelection().isCollapsed && getSelection().containsNode(row, true);
  if (!row || selects || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  row.querySelector("a").focus();
  go({ transaction: row.dataset.id }, { opened: row.dataset.id });
});
$("details").addEventListener("close", close);
$("close").addEventListener("click", () => $("details").close());
$("details").addEventListener("click", (event) => event.target === $("details") && $("details").close());
$("copy").addEventListener("click", copy);
$("retry").addEventListener("click", retry);
setInterval(() => details?.status === "PENDING" && showDetails(details), 1000);
