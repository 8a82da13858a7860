// Words for times, transactions and the service, made from the API's answers.

/** The API's time in milliseconds since 1970, with the microseconds that Date drops. */
export function milliseconds(time) {
  return Date.parse(`${time.slice(0, 19)}Z`) + 1000 * Number(`0${time.slice(19, -1)}`);
}

function inWords(ms) {
  if (ms < 1000) return `${ms.toFixed(ms < 100 ? 1 : 0)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  return ms < 3_600_000 ? `${(ms / 60_000).toFixed(1)} min` : `${(ms / 3_600_000).toFixed(1)} h`;
}

export const count = (number) => number.toLocaleString("en");

/** The page's time zone. */
export const zone = (date = new Date()) =>
  date.toLocaleTimeString("en-GB", { timeZoneName: "short" }).split(" ").at(-1);

/** The time of day, with the date unless it's today. */
export function clock(time) {
  const date = new Date(time);
  const day = date.toDateString() === new Date().toDateString() ? {} : { day: "numeric", month: "short" };
  return date.toLocaleString("en-GB", { ...day, hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

/** Date and time with milliseconds and zone, or "not yet". */
export function moment(time) {
  if (!time) return "not yet";
  const text = new Date(time).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });
  return `${text}.${time.slice(20, 23).padEnd(3, "0")} ${zone(new Date(time))}`;
}

export const label = ({ id, description }) => `${id} · ${description}`;

/** How long a transaction took until its verdict or expiry; "" while it's PENDING. */
export const tookOf = ({ status, created, updated }) =>
  status === "PENDING" ? "" : inWords(milliseconds(updated) - milliseconds(created));

const part = (id, word, look, each = []) => ({ id, word, look, each });

/** The components and their states. While the service is away, we only know that. */
export function partsOf({ ready, away, token, updates }) {
  const known = away || token ? null : ready;
  const service = away ? part("Service", "away", "bad") : part("Service", "ok", "good");
  const works = (id, says) => (says === "ok" ? part(id, "ok", "good") : part(id, "unavailable", "bad"));
  return [
    ready || away || token ? service : part("Service", "unknown", ""),
    known ? works("Database", known.database) : part("Database", "unknown", ""),
    known ? works("Broker", known.broker) : part("Broker", "unknown", ""),
    equipmentOf(known),
    part("Updates", updates, updates === "live" ? "good" : updates === "starting" ? "" : "odd"),
  ];
}

/** True if only the equipment is missing. */
const unserved = (ready) => ready?.status && ready.database === "ok" && ready.broker === "ok";

/** The state of all equipment, and of each. While the broker is away, we don't know it. */
function equipmentOf(ready) {
  if (ready?.broker !== "ok" || ready.equipment === "unknown") return part("Equipment", "unknown", "");
  const each = Object.entries(ready.equipment)
    .map(([id, word]) => part(id, word, word === "online" ? "good" : "odd"))
    .sort((one, other) => (one.id < other.id ? -1 : 1));
  const online = each.filter(({ word }) => word === "online").length;
  const counted = `${online || "none"} of ${each.length} online`;
  const word = each.length === 1 ? `${each[0].id} ${each[0].word}` : counted;
  const look = unserved(ready) ? "bad" : online < each.length ? "odd" : "good";
  return part("Equipment", each.length ? word : "none", look, each);
}

/** The problems, worst first: how bad each is, a sentence, and as its key the sentence without the reason, which
 * may change. */
export function noticesOf({ away, seen, ready, refused, broken, slow, paused, token }) {
  const { database = "ok", broker = "ok" } = ready ?? {};
  const all = [
    ["bad", away && `${away} Showing data from ${clock(seen)}. Retrying.`],
    ["bad", database !== "ok" && `The database can't be used: ${database}. Until it can, nothing is stored.`],
    ["bad", broker !== "ok" && `The broker can't be used: ${broker}. Transactions are stored as PENDING.`],
    ["bad", unserved(ready) && "No equipment is online. Transactions stay PENDING, and may expire."],
    ...Object.values(refused).map((text) => ["bad", text]),
    ["odd", broken && !away && `Live updates are down (${broken}) Polling every 2 seconds.`],
    ["odd", slow && "The network or the service is slow. Still waiting for an answer."],
    ["", paused && "Paused: the page doesn't update by itself."],
  ];
  const given = all.filter(([, text]) => text && !token);
  const notices = given.map(([look, text]) => ({ look, text, key: text.split(/[:(]/)[0] }));
  return notices.filter(({ key }, index) => notices.findIndex((one) => one.key === key) === index);
}
