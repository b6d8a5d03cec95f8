// What all pages use. Text from the database goes into the page as text only, never as HTML.

export const byId = (id) => document.getElementById(id);

/** An element with attributes and children; strings become text. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** A key or an id, which may break after its separators rather than within a word. */
export function breakable(text) {
  return text.split(/(?<=[/_=-])/).flatMap((part) => [part, document.createElement("wbr")]);
}

export class Refused extends Error {
  constructor(status, answer) {
    super(`status ${status}`);
    this.status = status;
    this.answer = answer;
  }
}

/** JSON from our own server, with the viewer's login. */
export async function get(path, parameters) {
  const response = await fetch(`${path}?${new URLSearchParams(parameters)}`, {
    headers: { Accept: "application/json" },
  });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(response.status, answer);
  return answer;
}

/** A title and a text that say why there was no answer. */
export function reason(error) {
  if (error.status === 401) return ["You are logged out", "Log in to Airflow, then reload this page."];
  if (error.status === 403) return ["Nothing to see here", "There is no such clip, or you may not see it."];
  return ["Airflow did not answer", "Reload this page in a moment."];
}

/** Say why there is nothing on the page. */
export function showFailure(error) {
  const [title, text] = reason(error);
  byId("failure").replaceChildren(element("h1", {}, title), element("p", {}, text));
  byId("failure").hidden = false;
  byId("status").textContent = title;
}

export function clipPage(task) {
  return `clip?${new URLSearchParams(task)}`;
}

export function rowPage(task, at) {
  return clipPage({ ...task, at });
}

export function batchPage(task) {
  return `batch?${new URLSearchParams(task)}`;
}

/** Colours of the picture that stands for a clip: the same for the same request, whatever its text. */
export function paint(target, fingerprint) {
  const number = Number.parseInt((fingerprint || "0").slice(0, 8), 16) || 0;
  const hue = number % 360;
  target.style.setProperty("--hue", String(hue));
  target.style.setProperty("--hue-2", String((hue + 40 + (number >> 9) % 60) % 360));
  target.style.setProperty("--angle", `${(number >> 16) % 360}deg`);
}

/** A width by a height, such as "9:16", as CSS has it; 16:9 if it is none. */
export function shape(ratio) {
  const parts = /^(\d{1,2}):(\d{1,2})$/.exec(ratio ?? "");
  return parts && +parts[1] && +parts[2] ? `${parts[1]} / ${parts[2]}` : "16 / 9";
}

/** Once a video is known, the place for it takes its shape. */
export function fit(screen, video) {
  if (video.videoWidth && video.videoHeight) {
    screen.style.setProperty("--shape", `${video.videoWidth} / ${video.videoHeight}`);
  }
}

export function size(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  const units = ["kB", "MB", "GB", "TB"];
  let value = bytes;
  let unit = -1;
  while (value >= 999.95 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value.toFixed(1)}\u00a0${units[unit]}`;
}

/** An amount of money, as it was written down; null if it is not known. */
export function amount(cost) {
  return cost?.amount ? `${cost.amount}\u00a0${cost.currency}` : null;
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 100) return `${value.toFixed(1)}\u00a0s`;
  const whole = Math.round(value);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return hours ? `${hours} h ${minutes} min` : `${minutes} min ${rest} s`;
}

/** Dates as Airflow's UI writes them, in the time zone that its viewer chose there. Swedish dates have that form. */
function clock() {
  const form = { dateStyle: "short", timeStyle: "medium" };
  try {
    return new Intl.DateTimeFormat("sv-SE", { ...form, timeZone: JSON.parse(localStorage.getItem("timezone")) ?? undefined });
  } catch {
    return new Intl.DateTimeFormat("sv-SE", form); // no storage for us, or no such zone: the system's
  }
}

/** A moment as text. */
export function date(iso) {
  return clock().format(new Date(iso));
}

/** A moment; in UTC as its tooltip. */
export function moment(iso) {
  if (!iso) return element("span", {}, "–");
  return element("time", { datetime: iso, title: `${new Date(iso).toISOString().slice(0, 19)}Z` }, date(iso));
}

/** How long ago, in the largest unit that fits. */
export function ago(iso) {
  const elapsed = (new Date(iso) - Date.now()) / 1000;
  const units = [["year", 31536000], ["month", 2592000], ["day", 86400], ["hour", 3600], ["minute", 60]];
  const format = new Intl.RelativeTimeFormat(undefined, { numeric: "auto" });
  for (const [unit, length] of units) {
    if (Math.abs(elapsed) >= length) return format.format(Math.trunc(elapsed / length), unit);
  }
  return "just now";
}
