// The API for the page: requests, the stream of events, and how both can fail.

const TOKEN = "API_TOKEN"; // in sessionStorage, so the tab keeps it until it closes
const SLOW = 4000; // ms without an answer until the page reports it
const BEGIN = 10_000; // ms that a stream may take to begin
const PATIENCE = 60_000; // ms without an answer or a sign of life until we give up on a request

/** The service refused a request; `problem` is its answer (RFC 9457). Without a `problem` there was no answer,
 * so we don't know whether the request was carried out. */
export class Failure extends Error {
  constructor(message, problem = null, retryAfter = 0) {
    super(message);
    Object.assign(this, { problem, retryAfter });
  }
}

const token = () => sessionStorage.getItem(TOKEN);
export const hasToken = () => token() !== null;
export const keepToken = (text) => sessionStorage.setItem(TOKEN, text);
export const forgetToken = () => sessionStorage.removeItem(TOKEN);

/** The token for a header: one character per UTF-8 byte. */
const bearer = () => `Bearer ${String.fromCharCode(...new TextEncoder().encode(token()))}`;

/** The service's time in ms. This machine's clock may be wrong. */
export const now = () => Date.now() + ahead;
let ahead = 0;

/** The page's callbacks for every request: `slow()`, `answered()`, `unauthorized()`, `away(message)`. */
export const listener = {};

/** Throw a Failure if the response is an error. */
async function check(response) {
  if (Math.abs(Date.parse(response.headers.get("Date")) - now()) > 2000) {
    ahead = Date.parse(response.headers.get("Date")) - Date.now();
  }
  if (response.ok) return;
  const problem = await response.json();
  if (!problem.detail) throw new TypeError("A proxy answered instead of the service.");
  throw new Failure(problem.detail, problem, Number(response.headers.get("Retry-After")));
}

/** Read a response with `read` unless it's an error. The listener learns whether the service answers. */
async function reach(path, { method = "GET", body, headers = {}, signal }, read) {
  const used = token();
  if (hasToken()) headers = { ...headers, Authorization: bearer() };
  if (body) headers = { ...headers, "Content-Type": "application/json" };
  const timer = setTimeout(() => listener.slow(), SLOW);
  try {
    const response = await fetch(path, { method, headers, body: JSON.stringify(body), cache: "no-store", signal });
    await check(response);
    const answer = await read(response);
    listener.answered();
    return answer;
  } catch (error) {
    if (error instanceof Failure) {
      listener.answered();
      // Ignore it if the user has entered another token since.
      if (error.problem.status === 401 && used === token()) listener.unauthorized();
      throw error;
    }
    const away = new Failure("The service does not answer.");
    if (!signal.aborted || signal.reason?.name === "TimeoutError") listener.away(away.message);
    throw away;
  } finally {
    clearTimeout(timer);
  }
}

/** The answer to a request, with its ETag as `tag`; throws a Failure. */
export function call(path, options = {}) {
  const read = async (response) =>
    response.status === 204 ? {} : { ...(await response.json()), tag: response.headers.get("ETag") };
  return reach(path, { ...options, signal: AbortSignal.timeout(PATIENCE) }, read);
}

/** An Idempotency-Key. `crypto.randomUUID` only exists on localhost and over TLS. */
export const newKey = () => crypto.getRandomValues(new Uint32Array(4)).join("-");

/** Follow `/events` after `place.id`, and hand each event to `hear`. Throws a Failure. Returns if `stop` was
 * aborted, or if events may be missing, so that the next stream starts over. */
export async function follow({ place, stop, hear }) {
  const silence = new AbortController();
  const signal = AbortSignal.any([stop, silence.signal]);
  let timer = setTimeout(() => silence.abort(), BEGIN);
  let rest = "";
  try {
    const headers = place.id ? { "Last-Event-ID": place.id } : {};
    const response = await reach("/events", { headers, signal }, (response) => response);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let chunk = await reader.read(); !chunk.done; chunk = await reader.read()) {
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), PATIENCE);
      const blocks = (rest + chunk.value).split("\n\n"); // HTML, section 9.2.6, as far as we use it
      rest = blocks.pop();
      for (const block of blocks) {
        const event = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/)));
        if (event.event === "reset") {
          place.id = "";
          return;
        }
        hear(event);
      }
    }
    throw new TypeError("It ended.");
  } catch (error) {
    if (stop.aborted) return;
    throw error.problem ? error : new Failure("The event stream broke off.");
  } finally {
    silence.abort();
    clearTimeout(timer);
  }
}
