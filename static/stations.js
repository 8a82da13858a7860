// The stations: find, create, rename and delete them, and start transactions for them.

import { ask, call, newKey } from "./api.js";
import { $, attempt, onSubmit, say, set, showStatus } from "./dom.js";
import { Pager, Rows, go, view } from "./lists.js";
import { inWords, took } from "./words.js";

const LIMIT = 10;

/** The list of the API that the URL asks for. `#42` finds station 42 and those after it. */
function url() {
  const { q = "", stations_after: after } = view();
  const number = /^#\s*(\d{1,9})$/.exec(q)?.[1];
  const query = number ? { after: after ?? Math.max(0, number - 1) } : { q: q.trim(), after: after ?? "" };
  const given = Object.entries({ ...query, limit: LIMIT }).filter(([, value]) => value);
  return `/stations?${new URLSearchParams(given)}`;
}

let shown = ""; // the list that is shown
let filled = ""; // the list whose search is in the form

/** Show what the URL asks for; with `always`, ask for it again. */
export async function load(always = true) {
  const asked = url();
  if (asked === shown && !always) return;
  if (asked !== filled) $("q").value = view().q ?? "";
  filled = asked;
  const { items, next } = await call(asked);
  if (asked !== url()) return; // the user has moved on
  shown = asked;
  rows.show(items);
  pager.show(next && items.at(-1).id);
  $("no-stations").hidden = items.length > 0;
  set(
    $("no-stations"),
    view().q ? "No station matches." : "There is no station yet. Create the first one here.",
  );
}

const met = new Set(); // stations of transactions; each one is looked for once

/** Show those of these transactions that were started here; ask for the list if it may have a new station. */
export function apply(transactions) {
  const unknown = transactions.filter(({ station: { id } }) => !rows.elements.has(id) && !met.has(id));
  unknown.forEach(({ station }) => met.add(station.id));
  if (shown && unknown.length && !pager.last) document.dispatchEvent(new Event("station"));
  for (const transaction of transactions) {
    const { id, station } = transaction;
    const row = rows.elements.get(station.id);
    if (row?.shows !== id || row.querySelector(".status").textContent === transaction.status) continue;
    showStatus(row, transaction);
    const time = transaction.status === "PENDING" ? "" : ` after ${inWords(took(transaction))}`;
    say(`${station.description}: ${transaction.status}${time}`);
  }
}

/** The transactions that were started here and have no outcome yet. */
export function pending() {
  const waiting = [...rows.elements.values()].filter(
    (row) => row.querySelector(".status").textContent === "PENDING",
  );
  return waiting.map((row) => row.shows);
}

/** Start a transaction. Its key stays until that worked, so that a second try starts no second one. */
async function start(row, { id }) {
  row.key ??= newKey();
  const post = { method: "POST", body: { station_id: id }, headers: { "Idempotency-Key": row.key } };
  const unknown = "Start it again: it will not be started twice.";
  const transaction = await attempt(row, () => call("/transactions", post), unknown);
  if (!transaction) return;
  Object.assign(row, { key: null, shows: transaction.id });
  document.dispatchEvent(new CustomEvent("transaction", { detail: transaction }));
}

async function create() {
  const post = { method: "POST", body: { description: $("description").value } };
  const unknown = "Look whether the station is there before you create it again.";
  const station = await attempt($("new-station"), () => call("/stations", post), unknown);
  if (!station) return;
  $("new-station").reset();
  say(`Station ${station.id} is created.`);
  const fits = !pager.last && rows.elements.size < LIMIT && !view().q;
  if (!fits) go({ q: "", stations_after: String(station.id - 1) }, { stations_after: [""] });
  else await load();
}

/** Ask for the station again, with its ETag, so that no change of someone else is overwritten unseen. */
async function read(row, { id }) {
  const { answer, tag } = await ask(`/stations/${id}`);
  row.tag = tag;
  fill(row, answer);
  return answer;
}

/** Open or close the form that changes a station. */
async function edit(row, station) {
  const form = row.querySelector("form");
  const opening = form.hidden;
  const now = opening && (await attempt(row, () => read(row, station), "Try again."));
  form.hidden = !now;
  row.querySelector(".more").ariaExpanded = String(Boolean(now));
  if (!opening) set(row.querySelector(".wrong"), "");
  if (!now) return row.querySelector(".more").focus();
  form.querySelector("input").value = now.description;
  return form.querySelector("input").focus();
}

/** Change or delete a station if it is as it was read. If not, its row shows what it is now. */
async function change(row, station, options) {
  const headers = { "If-Match": row.tag };
  const work = async () => (await call(`/stations/${station.id}`, { ...options, headers })) ?? true;
  const changed = await attempt(row, work, "Look at what it is now before you try again.");
  if (changed) await edit(row, station);
  else await read(row, station).catch(() => {});
  return changed;
}

async function rename(row, station) {
  const body = { description: row.querySelector("input").value };
  const changed = await change(row, station, { method: "PATCH", body });
  if (!changed) return;
  fill(row, changed);
  say(`Station ${station.id} is renamed.`);
  document.dispatchEvent(new Event("stale"));
}

async function remove(row, station) {
  if (!confirm(`Delete station ${station.id}?`) || !(await change(row, station, { method: "DELETE" })))
    return;
  say(`Station ${station.id} is deleted.`);
  await load();
  if (document.activeElement === document.body) $("q").focus();
}

function fill(row, { id, description }) {
  set(row.querySelector(".number"), String(id));
  row.querySelector(".name").title = description;
  set(row.querySelector(".name"), description);
  row.querySelector(".start").ariaLabel = `Start a transaction for station ${id}, ${description}`;
  row.querySelector(".more").ariaLabel = `Change station ${id}, ${description}`;
}

const pager = new Pager($("stations-pager"), "stations_after");
const rows = new Rows($("stations"), $("a-station"), fill, (row, station) => {
  row.querySelector("a").href = `/?station_id=${station.id}`;
  row.querySelector("a").addEventListener("click", (event) => {
    event.preventDefault();
    go({ station_id: String(station.id), after: "" }, { after: [] });
    $("transactions-title").scrollIntoView();
  });
  row.querySelector(".start").addEventListener("click", () => start(row, station));
  row.querySelector(".delete").addEventListener("click", () => remove(row, station));
  row.querySelector(".more").addEventListener("click", () => edit(row, station));
  onSubmit(row.querySelector("form"), () => rename(row, station));
});

let typing;
onSubmit($("new-station"), create);
onSubmit($("find"), () => {});
$("q").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => {
    const q = $("q").value;
    if (q !== (view().q ?? ""))
      go({ q, stations_after: "" }, { stations_after: [] }, Boolean(view().q && q));
  }, 200);
});
