// The page: it follows the service's events and shows what changed. Without events it asks, and says so.

import { Away, Refused, call, follow, forgetToken, hasToken, keepToken, listener, readiness } from "./api.js";
import * as chart from "./chart.js";
import { $, onSubmit, say, set } from "./dom.js";
import { Rows } from "./lists.js";
import * as stations from "./stations.js";
import * as transactions from "./transactions.js";
import { clock, equipmentOf, meaning, milliseconds, partsOf } from "./words.js";

const PAUSE = 2; // seconds between two questions while there are no events
const STATIONS = 30_000; // ms between two looks at the stations, whose changes are no events
const FRESH = 60_000; // ms; a stream that broke off less long ago is resumed

// What is wrong: a sentence for each cause, until the cause is gone

const causes = new Map();

function notify(cause, text) {
  if ((causes.get(cause) ?? "") === text) return;
  if (text) causes.set(cause, text);
  else causes.delete(cause);
  noticeRows.show([...causes].map(([id, sentence]) => ({ id, sentence })));
  if (text || !causes.size) say(text || "All is well again.");
}

let seen = new Date(); // when the service answered last

listener.slow = (waiting) =>
  notify("slow", waiting ? "The network or the service is slow. Still waiting for an answer." : "");
listener.unauthorized = () => askForToken();
listener.answered = () => {
  seen = new Date();
  notify("away", "");
};
listener.away = ({ message }) => {
  if (!causes.has("away"))
    notify("away", `${message} What you see is from ${clock(seen)}. The page keeps trying.`);
  notify("readyz", "");
  showParts(null);
};

const timers = new Map();

/** Do some of the page's work. If that fails, say why, and try again if that may help. */
async function guarded(cause, work) {
  clearTimeout(timers.get(cause));
  try {
    await work();
    notify(cause, "");
  } catch (error) {
    if (!(error instanceof Refused || error instanceof Away)) throw error;
    const { status = 503, detail = "" } = error.problem ?? {}; // that the service is away is said already
    notify(cause, status === 401 ? "" : detail);
    const again = () => live && active() && guarded(cause, work);
    if (status >= 500) timers.set(cause, setTimeout(again, PAUSE * 1000));
  }
}

// How the service is

let last = null; // what it said last
let updates = "starting";

function showReadiness(ready) {
  showParts(ready);
  notify("readyz", meaning(ready));
}

function show(element, { state, id, word }) {
  element.dataset.state = state;
  set(element.querySelector(".name"), id);
  set(element.querySelector(".word"), word);
}

function showParts(ready) {
  last = ready;
  partRows.show(partsOf(ready, updates));
  const { word, state, each } = equipmentOf(ready);
  $("equipment").dataset.state = state;
  set($("equipment").querySelector("b"), word);
  equipmentRows.show(each);
}

// The token

/** Whether a token is asked for; until it is given, every request would be refused. */
const locked = () => !$("token").hidden;

function askForToken() {
  const refused = hasToken();
  forgetToken();
  $("forget").hidden = true;
  if (locked()) return;
  $("token").hidden = false;
  const why = refused ? "The service refuses this token." : "The service asks for its token (API_TOKEN).";
  set($("token-said"), why);
  say(why);
  if (document.activeElement === document.body) $("token-text").focus();
  reconsider();
}

function useToken() {
  keepToken($("token-text").value.trim());
  $("token").reset();
  $("token").hidden = true;
  $("forget").hidden = false;
  reconsider();
}

// Follow the events, or ask

// A browser opens six connections to a host, so one window follows for all. Over plain HTTP there are no
// locks but on localhost; then each window follows while it is seen.
const others = navigator.locks && new BroadcastChannel("events");
const latest = new Map(); // by id: the newest changes, because an event may come before an older answer
let changes = [];
const place = { id: "" }; // in the stream
let aliveAt = 0; // when the stream gave a sign of life
let live = false;
let leads = false; // this window follows for all
let flushing;
let turn = new AbortController(); // aborted when this window is no longer to follow

/** Whether the page should follow: someone looks at it, did not pause it, and has given the token. */
const active = () => !document.hidden && $("pause").ariaPressed === "false" && !locked();

/** Take an event of the stream, from this window or from the one that follows. */
function hear({ event, id, data }) {
  if (!active()) return;
  if (event === "broken") return fallBack(data);
  aliveAt = Date.now();
  listener.answered();
  if (id && id !== place.id && (event === "begin" || !live)) {
    loadTransactions(); // what came before this event may be missing
    guarded("chart", chart.seed);
  }
  place.id = id ?? place.id;
  if (!live) setLive("live");
  if (event === "ready") showReadiness(JSON.parse(data));
  if (event === "transaction") heard(JSON.parse(data));
}

function tell(event) {
  hear(event);
  others?.postMessage(event);
}

if (others) {
  others.onmessage = ({ data }) => {
    if (data.event !== "ask") hear(data);
    else if (leads && live) others.postMessage({ event: "heartbeat", id: place.id });
  };
}

/** Take a change of a transaction; many are shown at once. */
function heard(transaction) {
  const { id, updated } = transaction;
  const known = latest.get(id);
  changes.push(known && milliseconds(known.updated) > milliseconds(updated) ? known : transaction);
  latest.set(id, changes.at(-1));
  if (latest.size > 500) latest.delete(latest.keys().next().value);
  flushing ??= setTimeout(flush, 100);
}

function flush() {
  flushing = null;
  const taken = changes;
  changes = [];
  taken.forEach(chart.count);
  stations.apply(taken);
  transactions.apply(taken);
  chart.draw();
}

const loadTransactions = () =>
  guarded("transactions", async () => stations.apply(await transactions.load()));

/** Ask for everything that the page shows. */
async function load() {
  await Promise.all([
    guarded("service", async () => showReadiness(await readiness())),
    guarded("stations", () => stations.load()),
    loadTransactions(),
    guarded("chart", chart.seed),
    ...stations
      .pending()
      .map((id) => guarded("started", async () => heard(await call(`/transactions/${id}`)))),
  ]);
}

/** Follow one stream until it ends. Returns how many seconds to wait before the next try. */
async function followOnce(stop) {
  if (Date.now() - aliveAt > FRESH) place.id = ""; // a new start is better than all that was missed
  const broken = (data) => tell({ event: "broken", data });
  const tooLong = setTimeout(() => broken("No stream of events begins."), 10_000);
  let begun = Infinity;
  try {
    const begin = (event) => {
      clearTimeout(tooLong);
      begun = Math.min(begun, Date.now());
      tell(event);
    };
    await follow({ place, stop, hear: begin });
  } catch (error) {
    if (!(error instanceof Refused || error instanceof Away)) throw error;
    if (Date.now() - begun > 1000) return 0; // a stream that worked has ended, as when the service restarts
    broken(error.message);
    return error.retryAfter || PAUSE;
  } finally {
    clearTimeout(tooLong);
  }
  return 0;
}

function fallBack(why) {
  setLive(`every ${PAUSE} s`);
  const said = causes.has("away") || locked();
  notify("live", said ? "" : `No live updates (${why}) The page asks every ${PAUSE} seconds instead.`);
}

function setLive(word) {
  live = word === "live";
  updates = word;
  if (live) notify("live", "");
  showParts(last);
  reconsider();
}

const waiting = new Set();

async function until(condition) {
  while (!condition()) await new Promise((resolve) => waiting.add(resolve));
}

function reconsider() {
  for (const resolve of waiting) resolve();
  waiting.clear();
  if (!active()) turn.abort();
}

const pause = (seconds, stop) =>
  new Promise((resolve) => {
    setTimeout(resolve, seconds * 1000);
    stop?.addEventListener("abort", resolve);
  });

/** Ask for everything while there are no events; this is also how the page begins. */
async function poll() {
  for (;;) {
    await until(() => active() && !live);
    await load();
    await pause(PAUSE);
  }
}

/** Follow until this window is no longer to. */
async function lead(stop) {
  leads = true;
  while (!stop.aborted) await pause(await followOnce(stop), stop);
  leads = false;
}

async function followAlways() {
  for (;;) {
    await until(active);
    turn = new AbortController();
    const { signal } = turn;
    others?.postMessage({ event: "ask" });
    const leading = navigator.locks?.request("events", { signal }, () => lead(signal)) ?? lead(signal);
    await leading.catch((error) => signal.aborted || Promise.reject(error));
    setLive("paused");
  }
}

const partRows = new Rows($("state"), $("a-part"), show);
const equipmentRows = new Rows($("equipment").querySelector("ul"), $("a-part"), show);
const noticeRows = new Rows($("notices"), $("a-notice"), (element, { sentence }) => set(element, sentence));

onSubmit($("token"), useToken);
$("forget").addEventListener("click", () => {
  forgetToken();
  location.reload();
});
$("forget").hidden = !hasToken();
$("pause").addEventListener("click", () => {
  const paused = $("pause").ariaPressed === "false";
  $("pause").ariaPressed = String(paused);
  notify("paused", paused ? "Paused: the page does not change by itself." : "");
  reconsider();
});
document.addEventListener("visibilitychange", reconsider);
document.addEventListener("transaction", ({ detail }) => heard(detail));
document.addEventListener("stale", loadTransactions);
document.addEventListener("station", () => guarded("stations", stations.load));
document.addEventListener("view", () => {
  if (locked()) return;
  guarded("stations", () => stations.load(false));
  guarded("transactions", () => transactions.load(false));
});
setInterval(() => document.hidden || chart.draw(), 5000);
setInterval(() => live && active() && guarded("stations", stations.load), STATIONS);
for (const fold of document.querySelectorAll("details[open]")) {
  fold.open = !matchMedia("(max-width: 40rem)").matches;
}
poll();
followAlways();
