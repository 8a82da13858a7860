// What the page says of times, of transactions and of the service: functions of what the API answered.

/** Milliseconds since 1970 of a time of the API, with the microseconds that Date leaves out. */
export function milliseconds(time) {
  return Date.parse(`${time.slice(0, 19)}Z`) + 1000 * Number(`0${time.slice(19, -1)}`);
}

/** How long a transaction took from its creation to what became of it. */
export const took = ({ created, updated }) => milliseconds(updated) - milliseconds(created);

export function inWords(ms) {
  const digits = ms < 100 ? 1 : 0;
  return `${ms.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits })} ms`;
}

/** The time of day, with the date if it is another one. */
export function clock(date) {
  const day = date.toDateString() === new Date().toDateString() ? {} : { day: "numeric", month: "short" };
  return date.toLocaleString("en-GB", { ...day, hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

/** Date and time with milliseconds, or that there is none. */
export function moment(time) {
  const options = { dateStyle: "medium", timeStyle: "medium" };
  return time
    ? `${new Date(time).toLocaleString("en-GB", options)}.${time.slice(20, 23).padEnd(3, "0")}`
    : "not yet";
}

/** What is on the page, in a line; a time is that of a verdict, so EXPIRED has none. */
export function sumUp(items) {
  const having = (...statuses) => items.filter(({ status }) => statuses.includes(status));
  const statuses = ["COMPLETED", "ERROR", "EXPIRED", "PENDING"].filter((status) => having(status).length);
  const times = having("COMPLETED", "ERROR")
    .map(took)
    .sort((a, b) => a - b);
  const middle = (times.length - 1) / 2;
  const median = (times[Math.floor(middle)] + times[Math.ceil(middle)]) / 2;
  const speed = times.length ? ` · median ${inWords(median)}, slowest ${inWords(times.at(-1))}` : "";
  return statuses.length
    ? `On this page: ${statuses.map((status) => `${having(status).length} ${status}`).join(", ")}${speed}`
    : "";
}

const part = (id, word, good) => ({
  id,
  word,
  state: good ? "good" : word === "unknown" ? "unknown" : "bad",
});

/** Each part of the service and how it is; of a service that is away nothing is known. */
export function partsOf(ready, updates) {
  const works = (id, says) =>
    part(id, says ? (says === "ok" ? "ok" : "unavailable") : "unknown", says === "ok");
  const service = part("Service", ready ? "ok" : "away", ready);
  return [
    service,
    works("Database", ready?.database),
    works("Broker", ready?.broker),
    { id: "Updates", word: updates, state: updates === "live" ? "good" : "unknown" },
  ];
}

/** A word for all equipment, and one for each. What it said before the broker went is old. */
export function equipmentOf(ready) {
  const known = ready?.broker === "ok" && ready.equipment !== "unknown";
  const each = Object.entries(known ? ready.equipment : {}).map(([id, word]) =>
    part(id, word, word === "online"),
  );
  const online = each.filter(({ state }) => state === "good").length;
  const count = each.length === 1 ? `${each[0].id} ${each[0].word}` : `${online} of ${each.length} online`;
  const word = known ? (each.length ? count : "none") : "unknown";
  return { ...part("", word, online > 0), each: each.sort((a, b) => (a.id < b.id ? -1 : 1)) };
}

/** What that means for those who want to start a transaction; nothing if all is well. */
export function meaning({ database, broker, equipment }) {
  if (database !== "ok") return `The database cannot be used: ${database}. Nothing is stored until it can.`;
  if (broker !== "ok")
    return `The broker cannot be used: ${broker}. Transactions are stored and stay PENDING.`;
  if (equipment === "unknown" || Object.values(equipment).includes("online")) return "";
  return "No equipment is online. Transactions stay PENDING, and expire if none answers in time.";
}
