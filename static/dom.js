// What the parts of the page have in common: texts that change, news, and forms that do one thing at a time.

import { Away, Refused } from "./api.js";
import { inWords, took } from "./words.js";

export const $ = (id) => document.getElementById(id);

/** Write only what differs, so that nothing flickers and no selection is lost; text stays text. */
export function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Show the status of a transaction, and how long it took, in an element. */
export function showStatus(element, transaction) {
  const status = element.querySelector(".status");
  set(status, transaction.status ?? "");
  status.dataset.status = transaction.status ?? "";
  const settled = transaction.status && transaction.status !== "PENDING";
  set(element.querySelector(".took"), settled ? inWords(took(transaction)) : "");
}

/** Tell those who listen to the page; what was said before is still read to its end. */
export function say(text) {
  const line = document.createElement("p");
  line.textContent = text;
  $("live").append(line);
  if ($("live").childElementCount > 5) $("live").firstElementChild.remove();
}

/** What a form does instead of leaving the page. */
export function onSubmit(form, act) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    act();
  });
}

/** Do this once, even if pressed twice. If it fails, show why in `.wrong` until the next try or input.
 * `unknown` says what to do if no answer came: the service may have done it. */
export async function attempt(element, work, unknown) {
  if (element.ariaBusy === "true") return undefined;
  element.ariaBusy = "true";
  const wrong = element.querySelector(".wrong");
  element.addEventListener("input", () => set(wrong, ""), { once: true });
  try {
    const answer = await work();
    set(wrong, "");
    return answer;
  } catch (error) {
    if (!(error instanceof Refused || error instanceof Away)) throw error;
    const refused = error.problem?.status === 401 ? "" : error.message; // the form for the token says it
    set(wrong, error instanceof Away ? `No answer came. ${unknown}` : refused);
    say(wrong.textContent);
    return undefined;
  } finally {
    element.ariaBusy = "false";
  }
}
