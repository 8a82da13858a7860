// Everything the page knows, in one object, and how the page is drawn from it.

import { Failure } from "./api.js";

export const FILTERS = ["station_id", "status", "created_from", "created_to"];

/** Everything the page asks for, with the URL's parameters that matter for it. */
const DEPENDS = {
  readiness: [], counts: [], latest: [], unanswered: [],
  stations: ["q", "stations_after"],
  list: [...FILTERS, "after"],
  details: ["transaction"],
};
const parameters = () => Object.fromEntries(new URLSearchParams(location.search));

export const state = {
  view: parameters(), // the URL's parameters, named as in the API where it has them
  ask: new Set(Object.keys(DEPENDS)), // what has to be asked for
  asking: 0, // requests for it that are on their way
  refused: {}, // by what was asked for: why we did not get it
  token: "", // why the token is asked for
  paused: false,
  away: "", // why the service does not answer
  seen: new Date(), // when it answered last
  slow: false, // an answer takes long
  ready: null, // the body of /readyz
  updates: "starting", // how changes come
  broken: "", // why they do not come as events
  since: {}, // by part of the service: how it is, and since when
  busy: new Set(), // the forms and rows that wait for an answer
  wrong: {}, // by form or row: why the last try failed
  news: [], // what screen readers read out
  announced: [], // the notices that they have read out
  stations: null, // the answer, and its URL
  editing: {}, // by station: its tag and description when its form was opened
  keys: {}, // by station: the Idempotency-Key of a start whose outcome is unknown
  met: new Set(), // stations that transactions named, so each is looked for once
  latest: {}, // by station: its newest transaction; null if it has none
  followed: new Map(), // the transactions that the user started or opened: the status that was read out
  list: null, // the answer, and its URL
  heard: new Map(), // by id: the changes since we asked for the list
  rows: { url: "", items: [] }, // the rows that are shown: new ones wait while the user moves
  moved: 0, // when the pointer, the wheel or a key moved last
  details: null, // the transaction that is open
  again: null, // about how many we asked again, and whether we go on
  counts: null, // the answers about the last minutes and about today
  bar: null, // the bar of the chart that the user looks at
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

/** Ask for these, or for everything. */
export function ask(...names) {
  for (const name of names.length ? names : Object.keys(DEPENDS)) state.ask.add(name);
  change();
}

// Drawing

export const $ = (id) => document.getElementById(id);

/** An element with these properties or attributes, and children: texts, elements, lists of them, or nothing.
 * With a `key` it is kept while its neighbours come and go. */
export const h = (tag, { key, ...props }, ...children) => ({ tag, key, props, children });

/** Give an element these properties and, if there are any, children. We write only what differs from the last
 * time, so nothing flickers, and what the user typed or selected stays. */
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

/** A word with the colour and the sign of its meaning. */
export const sign = (look, word = look) => h("b", { "data-look": look }, word);

/** The two buttons under a list. `last` is the id of the last row if another page follows. The history
 * keeps the pages before this one, also over a reload. */
export function pager(element, after, [back, on], last) {
  const { view } = state;
  const before = view[after] ? (history.state?.[after] ?? []) : [];
  const button = (text, on, to, pages) => {
    const turn = () => on && view === state.view && go({ ...view, [after]: to }, { [after]: pages });
    // `disabled` would take the focus away from the button that was just pressed.
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

function arrive() {
  const before = state.view;
  state.view = parameters();
  const moved = (name) => state.view[name] !== before[name];
  const names = Object.keys(DEPENDS).filter((name) => DEPENDS[name].some(moved));
  if (names.length) ask(...names);
}
addEventListener("popstate", arrive);

/** Show something else, as a new entry in the history or in place of the last one. The history keeps `pages`. */
export function go(view, pages = {}, replace = false) {
  const kept = { ...history.state, ...pages, opened: view.transaction };
  history[replace ? "replaceState" : "pushState"](kept, "", href(view));
  arrive();
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href^='/?']");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(Object.fromEntries(new URLSearchParams(link.search)));
});

// What the user does

/** Let screen readers read this out, after what they are reading. */
export function say(text) {
  const key = (state.news.at(-1)?.key ?? 0) + 1;
  change({ news: [...state.news, { key, text }].slice(-5) });
}

/** Show that something failed, until the next try or input. */
export function fail(name, text, error) {
  state.wrong[name] = { text, error };
  if (text) say(text);
}

/** Do this once, even if pressed twice. `unknown` is the advice if no answer came, since it may be done. */
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
    const refused = error.problem?.status === 401 ? "" : error.message; // the form for the token says it
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
