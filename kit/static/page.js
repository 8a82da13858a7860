// The page: it asks the API once a second, shows what changed, and touches nothing that did not.

import { Away, Refused, call, keepToken, newKey, readiness } from "./api.js";
import { Pages, Rows, set } from "./lists.js";
import { clock, inWords, meaning, partsOf, sumUp, took } from "./words.js";

const STATIONS = "/stations?limit=10";
const WAITS = 2; // at one time: a browser has six connections to a host, and all its tabs share them
const $ = (id) => document.getElementById(id);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Tell those who listen to the page; what was said before is still read to its end. */
function say(text) {
  const line = document.createElement("p");
  line.textContent = text;
  $("live").append(line);
  if ($("live").childElementCount > 5) $("live").firstElementChild.remove();
}

// Transactions

function showStatus(element, transaction) {
  const status = element.querySelector(".status");
  set(status, transaction.status);
  status.dataset.status = transaction.status;
  set(element.querySelector(".took"), transaction.status === "PENDING" ? "" : inWords(took(transaction)));
}

function fillTransaction(row, transaction) {
  const { id, station, created } = transaction;
  row.querySelector("time").dateTime = created;
  row.querySelector("bdi").title = `Station ${station.id}: ${station.description}`;
  set(row.querySelector("time"), clock(new Date(created)));
  set(row.querySelector("bdi"), station.description);
  set(row.querySelector(".id"), id);
  showStatus(row, transaction);
}

/** The first page of what the filters ask for. */
function filtered() {
  const wanted = { status: $("by-status").value, station_id: $("by-station").value, limit: 20 };
  return `/transactions?${new URLSearchParams(Object.entries(wanted).filter(([, value]) => value))}`;
}

async function pollTransactions() {
  const items = await transactions.poll();
  if (!items) return;
  set($("summary"), sumUp(items));
  if (transactions.moved) say($("summary").textContent || $("no-transactions").textContent);
  transactions.moved = false;
  for (const row of stationRows.elements.values()) {
    const late = items.find(({ id, status }) => id === row.shows && status !== "PENDING");
    if (late) showStatus(row, late); // a verdict that came after EXPIRED
  }
}

// Stations

const known = new Map(); // every station seen until now, for the filter

function fillStation(row, { id, description }) {
  set(row.querySelector(".number"), String(id));
  row.querySelector(".name").title = description;
  set(row.querySelector(".name"), description);
  row.querySelector("button").ariaLabel = `Start a transaction for station ${id}, ${description}`;
}

function fillOption(option, { id, description }) {
  option.value = id;
  set(option, `${id} · ${description.slice(0, 40)}`);
}

async function pollStations() {
  for (const station of (await stations.poll()) ?? []) known.set(station.id, station);
  optionRows.show([...known.values()].sort((a, b) => a.id - b.id));
}

/** Start a transaction. Its key stays until that worked, so that a second try starts no second one. */
async function start(row, station) {
  row.key ??= newKey();
  const post = { method: "POST", body: { station_id: station.id }, headers: { "Idempotency-Key": row.key } };
  const unknown = "Start it again: it will not be started twice.";
  const transaction = await attempt(row, "/transactions", post, unknown);
  if (!transaction) return;
  row.key = null;
  follow(transaction, row);
}

let waits = 0;

/** Show a transaction in its station's row until it has its verdict, or until the row shows a newer one. */
async function follow(transaction, row) {
  const { id, station } = transaction;
  row.shows = id;
  showStatus(row, transaction);
  say(`${station.description}: ${transaction.status}`);
  refresh();
  while (transaction.status === "PENDING") {
    while (locked()) await pause(1000);
    const waiting = waits < WAITS;
    waits += waiting;
    try {
      const headers = waiting ? { Prefer: "wait=10" } : {};
      transaction = await call(`/transactions/${id}`, { headers, seconds: 15 });
    } catch (error) {
      told(error); // the notice says it too, and what is stored stays PENDING
      if (error.problem?.status === 404) return;
    } finally {
      waits -= waiting;
    }
    if (transaction.status === "PENDING") await pause(1000);
  }
  if (row.shows === id) showStatus(row, transaction);
  say(`${station.description}: ${transaction.status} after ${inWords(took(transaction))}`);
  refresh();
}

async function create() {
  const post = { method: "POST", body: { description: $("description").value } };
  const unknown = "Look whether the station is there before you create it again.";
  const station = await attempt($("new-station"), "/stations", post, unknown);
  if (!station) return;
  $("new-station").reset();
  say(`Station ${station.id} is created.`);
  if (stations.next || stationRows.elements.size >= 10) stations.go(`${STATIONS}&after=${station.id - 1}`);
  refresh();
}

/** Post once, even if pressed twice. Returns undefined if that failed, and shows why in `.wrong`; with what to do if
 * nobody answered, since it is not known then whether the service obeyed. */
async function attempt(element, path, post, unknown) {
  if (element.ariaBusy === "true") return undefined;
  element.ariaBusy = "true";
  const wrong = element.querySelector(".wrong");
  try {
    const answer = await call(path, { ...post, seconds: 15 });
    set(wrong, "");
    return answer;
  } catch (error) {
    set(wrong, error instanceof Away ? `No answer came. ${unknown}` : told(error));
    say(wrong.textContent);
    return undefined;
  } finally {
    element.ariaBusy = "false";
  }
}

// The service

function notify(text) {
  const notice = $("notice");
  if (notice.textContent === text) return;
  say(text || "All is well again.");
  set(notice, text);
  notice.hidden = !text;
}

/** What to tell of an error; the first 401 asks for the token. */
function told(error) {
  if (!(error instanceof Refused || error instanceof Away)) throw error;
  if (error.problem?.status === 401) askForToken();
  return error.message;
}

/** Whether a token is asked for; until it is given, every question would be refused. */
const locked = () => !$("token").hidden;

function askForToken() {
  const refused = keepToken("");
  if (locked()) return;
  $("token").hidden = false;
  set($("token-said"), refused ? "The service refuses this token." : "The service asks for its token (API_TOKEN).");
  say($("token-said").textContent);
  if (document.activeElement === document.body) $("token-text").focus();
}

function useToken() {
  keepToken($("token-text").value.trim());
  $("token").reset();
  $("token").hidden = true;
  refresh();
}

// Once a second

let seen = new Date(); // when the service answered last

async function poll() {
  let ready = null;
  let trouble = "";
  try {
    ready = await readiness();
    trouble = meaning(ready);
    if (!locked()) {
      await pollStations();
      await pollTransactions();
    }
    seen = new Date();
  } catch (error) {
    const text = told(error);
    if (error instanceof Away) {
      ready = null;
      trouble = `${text} What you see is from ${clock(seen)}; it is asked again every second.`;
    } else if (!locked()) {
      trouble ||= text;
    }
  }
  partRows.show(partsOf(ready));
  document.body.classList.toggle("stale", !ready);
  notify(trouble);
}

let timer, polling, again;

/** Ask now, and once a second from now on while somebody looks; never twice at a time. */
async function refresh() {
  again = true;
  if (polling) return;
  polling = true;
  clearTimeout(timer);
  try {
    while (again) {
      again = false;
      await poll();
    }
  } finally {
    polling = false;
    if (!document.hidden) timer = setTimeout(refresh, 1000);
  }
}

/** What a form does instead of leaving the page. */
function onSubmit(form, act) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    act();
  });
}

const partRows = new Rows($("state"), $("a-part"), (element, { id, state, word }) => {
  element.dataset.state = state;
  set(element.querySelector(".name"), id);
  set(element.querySelector(".word"), word);
});
const optionRows = new Rows($("known"), $("an-option"), fillOption);
const stationRows = new Rows($("stations"), $("a-station"), fillStation, (row, station) =>
  row.querySelector("button").addEventListener("click", () => start(row, station)),
);
const transactionRows = new Rows($("transactions"), $("a-transaction"), fillTransaction);
const stations = new Pages(STATIONS, stationRows, $("stations-pager"), $("no-stations"));
const transactions = new Pages(filtered(), transactionRows, $("transactions-pager"), $("no-transactions"));

onSubmit($("new-station"), create);
onSubmit($("token"), useToken);
$("filters").addEventListener("change", () => transactions.go(filtered(), []));
document.addEventListener("turn", refresh);
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : refresh()));
refresh();
