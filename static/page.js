// The page: it follows the service's events and shows the changes. Without events it polls, and says so.

import { Failure, call, follow, forgetToken, hasToken, keepToken, listener } from "./api.js";
import * as chart from "./chart.js";
import { $, ask, change, draw, h, moved, parts, refresh, render, say, sign, state } from "./state.js";
import * as stations from "./stations.js";
import * as transactions from "./transactions.js";
import { clock, noticesOf, partsOf } from "./words.js";

const PAUSE = 2000; // ms between polls while there are no events
const STATIONS = 30_000; // ms between polls for stations, because their changes aren't events
const FRESH = 60_000; // ms in which we resume a stream that broke off
const ICON = '<path d="M16 2 31 30H1z" fill="firebrick"/><path d="M14 11h4v10h-4zm0 13h4v4h-4z" fill="white"/>';
const TROUBLE = `data:image/svg+xml,<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">${ICON}</svg>`;

// A browser opens six connections to a host, so one window follows for all. Over plain HTTP there are no
// locks except on localhost; then each window follows while it's visible.
const others = navigator.locks && new BroadcastChannel("events");

/** Whether the page loads its contents, and whether it follows. (A hidden one follows, for its title.) */
const asks = () => !state.token && !document.hidden;
const follows = () => !state.paused && !state.token && !(document.hidden && !others);
const live = () => state.updates === "live";

// The service's state

listener.slow = () => change({ slow: true });
listener.answered = () => {
  const back = state.away;
  change({ seen: new Date(), away: "", slow: false });
  if (back) ask(...(state.paused ? ["unanswered"] : []));
};
listener.away = (away) => {
  change({ away, ready: null });
  if (live() || state.paused) setTimeout(ask, PAUSE, "readiness");
};

/** A component and its state. */
function item({ id, word, look, each }) {
  const line = [`${id} `, sign(look, word)];
  if (!each.length) return h("li", { key: id }, line);
  const list = each.map((one) => h("li", {}, h("bdi", {}, one.id), " ", sign(one.look, one.word)));
  const all = [h("summary", {}, line), h("ul", {}, list)];
  return h("li", { key: "each" }, h("details", { id: "equipment" }, all));
}

parts.push((state) => {
  const all = partsOf(state);
  const trouble = all.find(({ look }) => look === "bad");
  const idle = state.token ? "Token needed · " : state.updates === "paused" ? "Paused · " : "";
  document.title = `${trouble ? `▲ ${trouble.id} ${trouble.word} · ` : idle}energy2go`;
  draw($("icon"), { href: trouble ? TROUBLE : "/static/icon.svg" });
  draw($("state"), {}, all.map(item));
  draw($("pause"), { ariaPressed: String(state.paused) });
  draw($("token"), { hidden: !state.token });
  draw($("token-said"), {}, state.token);
  draw($("forget"), { hidden: Boolean(state.token) || !hasToken() });
  for (const element of document.querySelectorAll("[data-of]")) {
    draw(element, {}, state.wrong[element.dataset.of]?.text);
    draw($(element.dataset.of), { ariaBusy: String(state.busy.has(element.dataset.of)) });
  }
});

/** Show the problems and when we noticed them, and let screen readers read each out once. */
parts.push((state) => {
  const notices = noticesOf(state);
  const before = state.announced;
  state.announced = new Map(notices.map(({ key }) => [key, before.get(key) ?? clock(Date.now())]));
  notices.forEach(({ key, text }) => before.has(key) || say(text));
  if (before.size && !notices.length) say("Everything works again.");
  const notice = ({ look, text, key }) =>
    h("li", { key, className: "notice", "data-look": look }, `${state.announced.get(key)} ${text}`);
  draw($("notices"), {}, notices.map(notice));
  draw($("live"), {}, state.news.map(({ key, text }) => h("p", { key }, text)));
});

// The token

listener.unauthorized = () => {
  const refused = hasToken();
  forgetToken();
  if (state.token) return;
  change({ token: `The service ${refused ? "refuses this token" : "asks for its token (API_TOKEN)"}.` });
  say(state.token);
  render();
  if (!document.activeElement.matches("input")) $("token-text").focus();
  reconsider();
};

$("token").onsubmit = () => {
  keepToken($("token-text").value.trim());
  $("token").reset();
  $("pause").focus(); // before the form hides
  change({ token: "" });
  ask(); // even if paused
  reconsider();
};

$("forget").onclick = () => {
  forgetToken();
  location.reload();
};

// Load

/** The body of `/readyz`, with 200 or 503. */
async function readiness() {
  const body = (error) => (error.problem?.broker ? error.problem : Promise.reject(error));
  change({ ready: await call("/readyz").catch(body) });
}

const loaders = {
  readiness, counts: chart.load, list: transactions.load, details: transactions.open,
  stations: stations.load, latest: stations.loadLatest, unanswered: stations.resolve,
};

/** Load a part of the page. If that fails, show why, and try again if that may help. */
async function load(name) {
  const { view } = state;
  state.asking += 1;
  try {
    await loaders[name]();
    delete state.refused[name];
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    if (moved(view).includes(name)) return; // the user has moved on
    const { status = 503, detail = "" } = error.problem ?? {}; // the header already shows that the service is away
    const invalid = "The page's address has a value that isn't valid. Clear the filter.";
    state.refused[name] = { 401: "", 422: invalid }[status] ?? detail;
    if (status >= 500) setTimeout(ask, PAUSE, name);
  } finally {
    state.asking -= 1;
    change();
  }
}

parts.push(() => {
  const names = asks() ? [...state.ask] : [];
  names.forEach((name) => state.ask.delete(name));
  names.forEach(load);
});

// Follow

const place = { id: "" }; // in the stream
let aliveAt = 0; // when the stream gave a sign of life
let leads = false; // this window follows for all

/** Handle an event, whether this window follows or another one passed it on. */
function hear({ event, id, data }) {
  if (!follows()) return;
  if (event === "broken") return change({ updates: `every ${PAUSE / 1000} s`, broken: data });
  aliveAt = Date.now();
  listener.answered();
  if (id && id !== place.id && (event === "begin" || !live())) ask(); // earlier events may be missing
  place.id = id ?? place.id;
  if (!live()) change({ updates: "live", broken: "" });
  if (event === "ready") change({ ready: JSON.parse(data) });
  if (event !== "transaction") return undefined;
  chart.recount();
  return transactions.hear(JSON.parse(data));
}

function tell(event) {
  hear(event);
  others?.postMessage(event);
}

others?.addEventListener("message", ({ data }) => {
  if (data.event !== "ask") hear(data);
  else if (leads && live()) others.postMessage({ event: "heartbeat", id: place.id });
});

/** Follow for all windows until `stop`. A stream that worked may end, for example when the service restarts. */
async function lead(stop) {
  leads = true;
  while (!stop.aborted) {
    const began = Date.now();
    if (began - aliveAt > FRESH) place.id = ""; // starting over is quicker than catching up
    try {
      await follow({ place, stop, hear: tell });
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      if (aliveAt > began && Date.now() - began > 1000) continue;
      tell({ event: "broken", data: error.message });
      const over = AbortSignal.any([stop, AbortSignal.timeout(1000 * error.retryAfter || PAUSE)]);
      await new Promise((resolve) => (over.onabort = resolve));
    }
  }
  leads = false;
}

let reconsider; // call this when `follows` may have changed

async function followAlways() {
  for (;;) {
    while (!follows()) await new Promise((resolve) => (reconsider = resolve));
    const turn = new AbortController();
    const { signal } = turn;
    reconsider = () => follows() || turn.abort();
    others?.postMessage({ event: "ask" });
    const leading = navigator.locks?.request("events", { signal }, () => lead(signal)) ?? lead(signal);
    await leading.catch((error) => signal.aborted || Promise.reject(error));
    change({ updates: "paused", broken: "" });
  }
}

/** The page wasn't updating, so it may be out of date. */
function resume() {
  refresh();
  reconsider();
}

// User actions

$("pause").onclick = () => {
  change({ paused: !state.paused, moved: 0 });
  resume();
};
document.addEventListener("visibilitychange", resume);

for (const kind of ["pointermove", "pointerdown", "wheel", "scroll", "keydown"]) {
  addEventListener(kind, () => (state.moved = Date.now()), { capture: true, passive: true });
}
setInterval(() => document.hidden || change(), 1000);
setInterval(() => live() || state.asking || refresh(), PAUSE);
setInterval(() => live() && refresh("stations"), STATIONS);
$("stations-fold").open = !matchMedia("(max-width: 40rem)").matches;
render();
followAlways();
