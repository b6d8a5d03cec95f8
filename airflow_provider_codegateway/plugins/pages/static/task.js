// What the page of a clip and that of a batch say of their task.

import { breakable, byId, element, get, moment, seconds } from "./common.js";

const query = new URLSearchParams(location.search);
export const task = Object.fromEntries(
  ["dag_id", "run_id", "task_id", "map_index"].map((name) => [name, query.get(name) ?? (name === "map_index" ? "-1" : "")]),
);

/** Of a row of a batch: where its line of the manifest begins. */
const at = query.get("at");
export const isRow = at !== null;

/** What the page is about, from our own server. */
export function ask(what, more = {}) {
  return get(isRow ? `api/batch/${what}` : `api/${what}`, { ...task, ...(isRow ? { at } : {}), ...more });
}

export const NOT_ENDED = ["running", "deferred", "queued", "scheduled", "up_for_retry", "up_for_reschedule", "restarting", null];
/** What of a row was bought, as its manifest has it. */
export const BOUGHT = {
  NO: "Nothing was bought.",
  YES: "One render was bought.",
  PERHAPS: "One render may have been bought.",
};
export const PROBLEMS = {
  GONE: ["The clip is no longer in S3", "Somebody deleted or moved it. Clear the task to render it again; that buys a render."],
  NOT_THE_CLIP: ["This is not a clip that can be shown here", "Another object is at its place in S3 by now, it was made by a task that you may not see or that Airflow no longer knows, or the XCom was edited."],
  DENIED: ["Airflow may not read this clip", "S3 refused the task's AWS connection. The connection needs s3:GetObject on the clip."],
  FORGOTTEN: ["Airflow no longer knows where to ask", "The task's AWS connection was a template or came from another task, and Airflow keeps rendered arguments of the last runs only. The clip may well be in S3."],
  UNREACHABLE: ["S3 did not answer", "The clip may well be there. Try again in a moment."],
};

export function fact(list, name, ...value) {
  list.append(element("div", {}, element("dt", {}, name), element("dd", {}, ...value)));
}

/** A fact that takes the whole width. */
export function longFact(list, name, ...value) {
  fact(list, name, ...value);
  list.lastElementChild.classList.add("long");
}

/** A state in words. Of a deferred task it matters that it renders, and not where it waits. */
export function words(state) {
  return { deferred: "rendering" }[state] ?? (state ?? "not begun").replaceAll("_", " ");
}

/** What of a render was bought, and for how much. */
export function paid({ bought, cost }) {
  const text = BOUGHT[bought] ?? bought ?? "";
  const price = priceOf(cost);
  return price ? `${text.replace(/\.$/, "")}: ${price}.` : text;
}

function priceOf(cost) {
  if (!cost?.at_most) return "";
  const money = (value) => `${value}\u00a0${cost.currency}`;
  if (cost.amount === cost.at_most) return money(cost.amount);
  return `${Number(cost.amount) ? `${money(cost.amount)}, ` : ""}at most ${money(cost.at_most)}`;
}

/** An error: its kind, what it says, and what was paid. */
export function errorText(error) {
  return [
    element("strong", {}, error.class ?? ""),
    element("p", { class: "lines" }, error.message ?? ""),
    element("p", { class: "paid" }, paid(error)),
  ];
}

export function showState(state) {
  const badge = byId("state");
  badge.textContent = words(state);
  badge.dataset.state = state ?? "none";
  badge.hidden = false;
}

function taskUrl() {
  const part = encodeURIComponent;
  const mapped = task.map_index === "-1" ? "" : `/mapped/${part(task.map_index)}`;
  return new URL(`../dags/${part(task.dag_id)}/runs/${part(task.run_id)}/tasks/${part(task.task_id)}${mapped}`, location).href;
}

function dagUrl() {
  return new URL(`../dags/${encodeURIComponent(task.dag_id)}`, location).href;
}

function runUrl() {
  return `${dagUrl()}/runs/${encodeURIComponent(task.run_id)}`;
}

/** A link to a page of Airflow's. */
export function airflowLink(href, ...text) {
  const link = element("a", { href }, ...text);
  link.addEventListener("click", (event) => {
    if (window.parent === window) return;
    // In Airflow's own frame, which may not be left: the UI around it goes there itself.
    event.preventDefault();
    window.parent.history.pushState(null, "", link.href);
    window.parent.dispatchEvent(new PopStateEvent("popstate"));
  });
  return link;
}

/** Outside of Airflow's frame, the way back into it. */
function showTrail() {
  const trail = byId("trail");
  if (window.parent !== window || trail.children.length) return;
  const steps = [[new URL("..", location).href, "Airflow"], [dagUrl(), task.dag_id], [runUrl(), task.run_id], [taskUrl(), task.task_id]];
  trail.append(element("ol", {}, ...steps.map(([href, text]) => element("li", {}, element("a", { href }, ...breakable(text))))));
  trail.hidden = false;
}

export function logUrl(number) {
  return `${taskUrl()}?try_number=${number}`;
}

export function showTask({ label, number }) {
  showTrail();
  const list = byId("task");
  if (list.contains(document.activeElement)) return; // a refresh takes nobody's focus
  list.replaceChildren();
  fact(list, "Task", airflowLink(taskUrl(), ...breakable(task.task_id)));
  if (task.map_index !== "-1") fact(list, "Mapped", label ?? task.map_index);
  fact(list, "DAG", airflowLink(dagUrl(), ...breakable(task.dag_id)));
  fact(list, "Run", airflowLink(runUrl(), ...breakable(task.run_id)));
  if (number > 0) fact(list, "Log", airflowLink(logUrl(number), `of try ${number}`));
}

/** Seconds since a try began that has not ended; null of any other. */
export function elapsed(attempt) {
  if (!attempt?.start || attempt.end || !NOT_ENDED.includes(attempt.state)) return null;
  return Math.max(0, (Date.now() - new Date(attempt.start)) / 1000);
}

export function showTries(tries) {
  const rows = tries.map((attempt) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, String(attempt.number)),
      element("td", {}, element("span", { class: "state", "data-state": attempt.state ?? "none" }, words(attempt.state))),
      element("td", {}, moment(attempt.start)),
      element("td", { class: "wide" }, moment(attempt.end)),
      element("td", {}, seconds(attempt.seconds ?? elapsed(attempt))),
    ),
  );
  byId("tries").replaceChildren(
    ...(rows.length ? rows : [element("tr", {}, element("td", { colspan: "5", class: "muted" }, "Never tried."))]),
  );
}

export function showProblem([title, text], detail) {
  byId("problem").replaceChildren(
    element("strong", {}, title),
    element("p", {}, text),
    ...(detail ? [element("p", { class: "muted" }, `S3 said: ${detail}`)] : []),
  );
  byId("problem").hidden = false;
}
