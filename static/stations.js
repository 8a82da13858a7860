// The stations: find, create, rename and delete them, and start transactions for them.

import { Failure, call, newKey } from "./api.js";
import { $, ask, attempt, change, draw, fail, go, h, href, pager, parts, render, say } from "./state.js";
import { sign, state } from "./state.js";
import { learn, meet } from "./transactions.js";
import { clock } from "./words.js";

const LIMIT = 10;

/** The API's list for the page's URL. `#42` finds station 42 and the next ones. */
function url() {
  const { q = "", stations_after: after } = state.view;
  const number = /^#\s*(\d{1,9})$/.exec(q)?.[1];
  const query = number ? { after: after ?? Math.max(0, number - 1) } : { q: q.trim(), after: after ?? "" };
  const given = Object.entries({ ...query, limit: LIMIT }).filter(([, value]) => value);
  return `/stations?${new URLSearchParams(given)}`;
}

export async function load() {
  const asked = url();
  const answer = await call(asked);
  if (asked !== url()) return; // the user has moved on
  change({ stations: { url: asked, ...answer } });
  if (answer.items.some(({ id }) => state.latest[id] === undefined)) ask("latest");
}

/** Load the newest transaction of each visible station. */
export async function loadLatest() {
  const ids = (state.stations?.items ?? []).map(({ id }) => id);
  if (!ids.length) return;
  const { items } = await call(`/transactions/latest?station_id=${ids.join(",")}`);
  for (const id of ids) state.latest[id] ??= null;
  learn(items);
  state.heard.forEach(meet); // newer ones that came while the answer was on its way
}

// Rows

const nameOf = ({ id }) => `station-${id}`; // of its row

function row(station) {
  const { id, description } = station;
  const name = nameOf(station);
  const latest = state.latest[id];
  const edit = state.editing[id];
  const button = (className, text, does, onclick, props) => {
    const ariaLabel = `${does} station ${id}, ${description}`;
    return h("button", { type: "button", className, ariaLabel, onclick, ...props }, text);
  };
  const time = latest && h("time", { dateTime: latest.created }, clock(latest.created));
  const outcome = latest ? [sign(latest.status), " ", time] : "No transaction yet";
  const texts = [
    h("bdi", { className: "name", title: description }, description),
    h("div", { className: "outcome" }, latest === undefined ? "…" : outcome),
  ];
  const line = [
    h("span", { className: "number" }, String(id)),
    h("div", { className: "grows" }, texts),
    button("more", "⋯", "Change", () => toggle(station), { ariaExpanded: String(Boolean(edit)) }),
    button("start", "Start", "Start a transaction for", () => start(station)),
  ];
  return h(
    "li",
    { key: id, id: name, ariaBusy: String(state.busy.has(name)) },
    h("div", { className: "line" }, line),
    edit && form(station, edit, latest),
    h("p", { key: "wrong", className: "wrong" }, state.wrong[name]?.text),
  );
}

function form(station, edit, latest) {
  const oninput = ({ target }) => (edit.text = target.value);
  const field = h("input", { value: edit.text, oninput, required: true, autocomplete: "off" });
  const line = [
    h("button", {}, "Rename"),
    latest === null && h("button", { type: "button", onclick: () => remove(station) }, "Delete"),
    h("a", { key: "all", href: href({ ...state.view, station_id: station.id, after: "" }) }, "Transactions"),
    latest && "It has transactions, so you can't delete it.",
  ];
  const all = [h("label", {}, "Description ", field), h("div", { className: "line" }, line)];
  return h("form", { key: "form", onsubmit: () => rename(station, edit) }, all);
}

parts.push(({ view, stations }) => {
  const items = stations?.items ?? [];
  const none = view.stations_after ? "No more stations." : "There is no station yet. Create the first one here.";
  draw($("stations"), {}, items.map(row));
  draw($("no-stations"), { hidden: !stations || items.length > 0 }, view.q ? "No station matches." : none);
  if (stations && !items.length) draw($("stations-fold"), { open: true });
  draw($("q"), { value: view.q ?? "" });
  const last = stations?.url === url() && stations.next && items.at(-1).id;
  pager($("stations-pager"), "stations_after", ["Previous", "Next"], last);
});

// Actions

/** Start a transaction. We keep its key until it worked, so a second try doesn't start another one. */
async function start(station) {
  const name = nameOf(station);
  const key = (state.keys[name] ??= newKey());
  const post = { method: "POST", body: { station_id: station.id }, headers: { "Idempotency-Key": key } };
  const unknown = "Start it again: it won't start twice.";
  const found = await attempt(name, () => call("/transactions", post), unknown);
  if (found) started(name, found);
}

function started(name, transaction) {
  delete state.keys[name];
  delete state.wrong[name];
  state.followed.set(transaction.id, "");
  learn([transaction]);
}

/** The service is back: look up the starts that got no answer. */
export async function resolve() {
  for (const [name, key] of Object.entries(state.keys)) {
    const { error } = state.wrong[name] ?? {};
    if (!error || error.problem) continue;
    const { items } = await call(`/transactions?${new URLSearchParams({ idempotency_key: key })}`);
    if (items.length) started(name, items[0]);
    else fail(name, "It wasn't started.");
  }
  change();
}

$("new-station").onsubmit = async () => {
  const description = $("description").value;
  const post = { method: "POST", body: { description } };
  const unknown = "Check whether the station exists before you create it again.";
  const station = await attempt("new-station", () => call("/stations", post), unknown);
  if (!station) return;
  if ($("description").value === description) $("new-station").reset(); // else it's already the next one
  say(`Station ${station.id} created.`);
  const { next, items } = state.stations ?? { items: [] };
  if (!next && items.length < LIMIT && !state.view.q) return ask("stations");
  return go({ ...state.view, q: "", stations_after: String(station.id - 1) }, { stations_after: [""] });
};

/** Open or close the form that changes a station. */
function toggle(station) {
  const { id, description } = station;
  const row = () => $(nameOf(station)); // it may have left the list
  const near = !state.editing[id] || row()?.contains(document.activeElement);
  if (state.editing[id]) delete state.editing[id];
  else state.editing[id] = { known: description, text: description };
  delete state.wrong[nameOf(station)];
  render();
  if (near) (row()?.querySelector("input") ?? row()?.querySelector(".more"))?.focus();
}

/** Change or delete a station, unless someone else changed it and the user hasn't seen that. */
async function alter({ id }, options) {
  const edit = state.editing[id];
  const work = async () => {
    const { description, tag } = await call(`/stations/${id}`);
    if (description === edit.known) return call(`/stations/${id}`, { ...options, headers: { "If-Match": tag } });
    edit.known = description;
    throw new Failure(`Someone else renamed it to “${description}”. Press again to do it anyway.`, {});
  };
  const name = nameOf({ id });
  const changed = await attempt(name, work, "Check its name before you try again.");
  const gone = state.wrong[name]?.error?.problem?.status === 404; // its row stays for a while, with the message
  ask("list", ...(gone ? [] : ["stations"]));
  return changed;
}

async function rename(station, edit) {
  // An input drops line breaks: if that is the only difference, the user left the name alone.
  const touched = edit.text.replace(/[\r\n]/g, "") !== edit.known.replace(/[\r\n]/g, "");
  if (touched && !(await alter(station, { method: "PATCH", body: { description: edit.text } }))) return;
  if (state.editing[station.id] === edit) toggle(station); // the user may have closed it
  if (touched) say(`Station ${station.id} renamed.`);
}

async function remove(station) {
  if (!confirm(`Delete station ${station.id}?`) || !(await alter(station, { method: "DELETE" }))) return;
  say(`Station ${station.id} deleted.`);
  $("q").focus();
}

$("q").oninput = () => {
  const q = $("q").value;
  go({ ...state.view, q, stations_after: "" }, {}, Boolean(state.view.q && q));
};
