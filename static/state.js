// Everything the page knows, in one object, and the functions that draw the page from it.

import { Failure } from "./api.js";

export const FILTERS = ["station_id", "status", "created_from", "created_to"];

/** Everything the page loads, with the URL parameters it depends on. */
const DEPENDS = {
  readiness: [], counts: [], latest: [], unanswered: [],
  stations: ["q", "stations_after"],
  list: [...FILTERS, "after"],
  details: ["transaction"],
};
const parameters = () => Object.fromEntries(new URLSearchParams(location.search));

export const state = {
  view: parameters(), // the URL's parameters, named as in the API where it has them
  ask: new Set(Object.keys(DEPENDS)), // parts to load
  asking: 0, // requests for them on their way
  refused: {}, // by part: why we didn't get it
  token: "", // why we need the token
  paused: false,
  away: "", // why the service doesn't answer
  seen: new Date(), // its last answer
  slow: false, // an answer is taking long
  ready: null, // the body of /readyz
  updates: "starting", // how we get changes
  broken: "", // why we don't get them as events
  busy: new Set(), // forms and rows that wait for an answer
  wrong: {}, // by form or row: why the last try failed
  news: [], // for screen readers to read out
  announced: new Map(), // notices that they have read out, with the time
  stations: null, // the answer, and its URL
  editing: {}, // by station with an open form: its description as last seen, and the user's text
  keys: {}, // by station: the Idempotency-Key of a start with an unknown outcome
  met: new Set(), // stations in transactions, so that we look for each once
  latest: {}, // by station: its newest transaction; null if it has none
  followed: new Map(), // transactions that the user started or opened: the last status read out
  list: null, // the answer, and its URL
  heard: new Map(), // by id: changes since we loaded the list
  rows: { url: "", items: [] }, // visible rows: new ones wait while the user moves
  moved: 0, // when the pointer, the wheel or a key last moved
  details: null, // the open transaction
  opened: false, // whether its dialog is open
  again: null, // how many we asked about again, and whether to continue
  counts: null, // the answers for the last minutes and for today
  bar: null, // the selected bar in the chart
};

/** The functions that draw the page. */
export const parts = [];
let due = null;

/** Change the state. The page shows it soon. */
export function change(changes = {}) {
  Object.assign(state, changes);
  due ??= setTimeout(render, 30);
}

export function render() {
  clearTimeout(due);
  due = null;
  for (const part of parts) part(state);
}

/** Load these parts, or everything. */
export function ask(...names) {
  for (const name of names.length ? names : Object.keys(DEPENDS)) state.ask.add(name);
  change();
}

/** Reload by ourselves, unless the page is paused. */
export const refresh = (...names) => state.paused || ask(...names);

// Drawing

export const $ = (id) => document.getElementById(id);

/** An element with these properties or attributes, and children: texts, elements, lists of them, or falsy values.
 * With a `key` it stays the same element while its neighbours come and go. */
export const h = (tag, { key, ...props }, ...children) => ({ tag, key, props, children });

/** Give an element these properties and, if there are any, children. We only write differences from the last
 * time, so the page doesn't flicker, and the user's input and selection stay. */
export function draw(node, props, ...children) {
  for (const [name, value] of Object.entries(props)) {
    if (node.drawn?.[name] === value && name !== "checked") continue; // the user checks it, too
    if (name in node && !node.ownerSVGElement) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.drawn = props;
  if (!children.length) return;
  const wanted = children.flat(Infinity).filter((child) => child);
  const keys = wanted.map(({ key, tag = "text" }, index) => key ?? `${tag} ${index}`);
  const old = new Map([...node.childNodes].map((child) => [child.key, child]));
  for (const [key, child] of old) if (!keys.includes(key)) remove(child);
  let place = node.firstChild;
  wanted.forEach((child, index) => {
    let made = old.get(keys[index]);
    made ??= child.tag ? document.createElementNS(node.namespaceURI, child.tag) : new Text();
    made.key = keys[index];
    if (made === place) place = made.nextSibling;
    else node.insertBefore(made, place);
    if (child.tag) draw(made, child.props, ...child.children);
    else if (made.data !== child) made.data = child;
  });
}

/** Remove an element. Its neighbour takes the focus. */
function remove(node) {
  const near = node.nextSibling ?? node.previousSibling;
  const focused = node.contains(document.activeElement);
  node.remove();
  if (focused) near?.querySelector?.("a, button")?.focus();
}

/** A word with its meaning's colour and sign. */
export const sign = (look, word = look) => h("b", { "data-look": look }, word);

/** The two buttons under a list. `last` is the last row's id if another page follows. The history keeps the
 * pages before this one, even across a reload. */
export function pager(element, after, [back, on], last) {
  const { view } = state;
  const before = view[after] ? (history.state?.[after] ?? []) : [];
  const button = (text, on, to, pages) => {
    const turn = () => on && view === state.view && go({ ...view, [after]: to }, { [after]: pages });
    // `disabled` would take the focus away from the button just pressed.
    return h("button", { type: "button", ariaDisabled: String(!on), onclick: turn }, text);
  };
  const buttons = [
    button(back, view[after], before.at(-1) ?? "", before.slice(0, -1)),
    button(on, last, last, [...before, view[after] ?? ""]),
  ];
  draw(element, { hidden: !last && !view[after] }, buttons);
}

// The URL

export function href(view) {
  const query = new URLSearchParams(Object.entries(view).filter(([, value]) => value));
  return query.size ? `/?${query}` : "/";
}

/** The parts that depend on what has changed in the URL. */
export const moved = (before) =>
  Object.keys(DEPENDS).filter((part) => DEPENDS[part].some((name) => state.view[name] !== before[name]));

function arrive() {
  const before = state.view;
  state.view = parameters();
  const names = moved(before);
  if (names.length) ask(...names);
}
addEventListener("popstate", arrive);

/** Go to a view, as a new history entry or in place of the last one. The history keeps `pages`. */
export function go(view, pages = {}, replace = false) {
  const kept = { ...history.state, ...pages, opened: view.transaction };
  replace ||= href(view) === href(state.view); // a second click
  history[replace ? "replaceState" : "pushState"](kept, "", href(view));
  arrive();
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href^='/?']");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(Object.fromEntries(new URLSearchParams(link.search)));
});

// User actions

/** Let screen readers read this out, after what they are reading. */
export function say(text) {
  const key = (state.news.at(-1)?.key ?? 0) + 1;
  change({ news: [...state.news, { key, text }].slice(-5) });
}

/** Show a failure until the next try or input. */
export function fail(name, text, error) {
  state.wrong[name] = { text, error };
  if (text) say(text);
}

/** Do this once, even if pressed twice. `unknown` is the advice if no answer came: it may have worked. */
export async function attempt(name, work, unknown) {
  if (state.busy.has(name)) return undefined;
  state.busy.add(name);
  change();
  try {
    const answer = await work();
    delete state.wrong[name];
    return answer;
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    const detail = error.message.replace(/^(body|query)\.\w+: /, "The text ");
    const refused = error.problem?.status === 401 ? "" : detail; // the token form explains it
    fail(name, error.problem ? refused : `No answer came. ${unknown}`, error);
    return undefined;
  } finally {
    state.busy.delete(name);
    change();
  }
}

document.addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("input", ({ target }) => {
  delete state.wrong[target.closest("li, form")?.id];
  change();
});
