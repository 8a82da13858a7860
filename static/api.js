// The API as the page uses it: requests, the stream of events, and the ways in which both can fail.

const TOKEN = "API_TOKEN"; // in sessionStorage: kept for this tab, forgotten with it
const SLOW = 4000; // ms without an answer, after which the page says so
const PATIENCE = 60_000; // ms without an answer or a sign of life, after which a request is given up

/** The service answered with an error; `problem` is what it said (RFC 9457). */
export class Refused extends Error {
  constructor(problem, retryAfter = 0) {
    super(problem.detail);
    Object.assign(this, { problem, retryAfter });
  }
}

/** No answer came, or one that is not the service's. It is unknown whether the request was carried out. */
export class Away extends Error {}

export const hasToken = () => sessionStorage.getItem(TOKEN) !== null;
export const keepToken = (token) => sessionStorage.setItem(TOKEN, token);
export const forgetToken = () => sessionStorage.removeItem(TOKEN);

/** The token as a header carries it: one character for each byte of its UTF-8. */
function bearer() {
  return String.fromCharCode(...new TextEncoder().encode(sessionStorage.getItem(TOKEN)));
}

/** The service's time of day in ms. The clock of this machine may be wrong. */
export const now = () => Date.now() + ahead;
let ahead = 0;

/** What the page hears of every request: `slow(waiting)` if the oldest takes long, `answered()`,
 * `unauthorized()`, `away(error)`. */
export const listener = {};
let slow = 0;

async function send(path, { method = "GET", body, headers = {}, signal }) {
  if (hasToken()) headers = { ...headers, Authorization: `Bearer ${bearer()}` };
  if (body) headers = { ...headers, "Content-Type": "application/json" };
  let counted = false;
  const timer = setTimeout(() => ((counted = true), listener.slow(++slow)), SLOW);
  try {
    return await fetch(path, { method, headers, body: JSON.stringify(body), cache: "no-store", signal });
  } finally {
    clearTimeout(timer);
    if (counted) listener.slow(--slow);
  }
}

/** Throw Refused for a response that is an error. */
async function check(response) {
  if (Math.abs(Date.parse(response.headers.get("Date")) - now()) > 2000) {
    ahead = Date.parse(response.headers.get("Date")) - Date.now();
  }
  if (response.ok) return;
  const problem = await response.json();
  if (!problem.detail) throw new TypeError("Something in front of the service answers in its place.");
  throw new Refused(problem, Number(response.headers.get("Retry-After")));
}

/** What the service answers, if that is no error; tells the listener whether it answers. */
async function reach(path, options, read) {
  try {
    const response = await send(path, options);
    await check(response);
    const answer = await read(response);
    listener.answered();
    return answer;
  } catch (error) {
    if (options.stop?.aborted) throw error;
    if (error instanceof Refused) {
      listener.answered();
      if (error.problem.status === 401) listener.unauthorized();
      throw error;
    }
    const away = new Away("The service does not answer.", { cause: error });
    listener.away(away);
    throw away;
  }
}

/** The answer to one request and its ETag; throws Refused or Away. */
export function ask(path, options = {}) {
  return reach(path, { ...options, signal: AbortSignal.timeout(PATIENCE) }, async (response) => {
    const answer = response.status === 204 ? null : await response.json();
    return { answer, tag: response.headers.get("ETag") };
  });
}

/** The answer alone. */
export const call = async (path, options) => (await ask(path, options)).answer;

/** The members of `/readyz`, whether it says 200 or 503. */
export async function readiness() {
  try {
    return await call("/readyz");
  } catch (error) {
    if (error instanceof Refused && error.problem.broker) return error.problem;
    throw error;
  }
}

/** An Idempotency-Key; `crypto.randomUUID` exists on localhost and over TLS only. */
export const newKey = () => crypto.getRandomValues(new Uint32Array(4)).join("-");

/** Follow `/events` after `place.id`, and hand each event to `hear`. Throws Refused or Away; returns if
 * `stop` was aborted, or if events may be missing, so that the next stream begins anew. */
export async function follow({ place, stop, hear }) {
  const silence = new AbortController();
  const signal = AbortSignal.any([stop, silence.signal]);
  let timer = setTimeout(() => silence.abort(), PATIENCE);
  let rest = "";
  try {
    const headers = place.id ? { "Last-Event-ID": place.id } : {};
    const response = await reach("/events", { headers, signal, stop }, (response) => response);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let chunk = await reader.read(); !chunk.done; chunk = await reader.read()) {
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), PATIENCE);
      const blocks = (rest + chunk.value).split("\n\n"); // HTML, section 9.2.6, as far as it is used
      rest = blocks.pop();
      for (const block of blocks) {
        const event = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/)));
        if (event.event === "reset") {
          place.id = "";
          return undefined;
        }
        hear(event);
      }
    }
    throw new TypeError("It ended.");
  } catch (error) {
    if (stop.aborted) return undefined;
    if (error instanceof Refused) throw error;
    throw new Away("The stream of events broke off.", { cause: error });
  } finally {
    silence.abort();
    clearTimeout(timer);
  }
}
