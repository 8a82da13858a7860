// The API as the page uses it: one function that asks, and the two ways in which that can fail.

const TOKEN = "API_TOKEN"; // in sessionStorage: kept for this tab, forgotten with it

/** The service answered with an error; `problem` is what it said (RFC 9457). */
export class Refused extends Error {
  constructor(problem) {
    super(problem.detail);
    this.problem = problem;
  }
}

/** Nobody answered, or something that is not the service. Whether the request was obeyed is not known. */
export class Away extends Error {}

/** Keep a token for this tab, or forget it; returns whether there was one. */
export function keepToken(token) {
  const had = sessionStorage.getItem(TOKEN) !== null;
  if (token) sessionStorage.setItem(TOKEN, token);
  else sessionStorage.removeItem(TOKEN);
  return had;
}

/** A text as a header carries it: a character for each byte of its UTF-8. */
function asBytes(text) {
  return String.fromCharCode(...new TextEncoder().encode(text));
}

/** What the service answers to one request, within so many seconds; throws Refused or Away. */
export async function call(path, { method = "GET", body, headers = {}, seconds = 5 } = {}) {
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers = { ...headers, Authorization: `Bearer ${asBytes(token)}` };
  if (body) headers = { ...headers, "Content-Type": "application/json" };
  const signal = AbortSignal.timeout(seconds * 1000);
  let response, answer;
  try {
    response = await fetch(path, { method, headers, body: JSON.stringify(body), cache: "no-store", signal });
    answer = await response.json();
  } catch (error) {
    throw new Away("The service does not answer.", { cause: error });
  }
  if (response.ok) return answer;
  if (!answer.detail) throw new Away("Something in front of the service answers in its place.");
  throw new Refused(answer);
}

/** An Idempotency-Key; `crypto.randomUUID` is there on localhost and over TLS only. */
export function newKey() {
  return crypto.getRandomValues(new Uint32Array(4)).join("-");
}

/** The members of `/readyz`, whether it says 200 or 503. */
export async function readiness() {
  try {
    return await call("/readyz");
  } catch (error) {
    if (error instanceof Refused && error.problem.broker) return error.problem;
    throw error;
  }
}
