import { amount, byId, element, get, moment, reason, seconds, showFailure } from "./common.js";
import { fact, longFact, NOT_ENDED, PROBLEMS, showProblem, showState, showTask, showTries, task, words } from "./task.js";

const POLL_MILLISECONDS = 5000;
const COUNTS = { stored: "Stored", reused: "Reused", refused: "Refused", failed: "Failed", unknown: "Unknown", not_begun: "Not begun" };
const BOUGHT = {
  NO: "Nothing was bought.",
  YES: "One render was bought.",
  PERHAPS: "One render may have been bought.",
};
const MANIFEST_PROBLEMS = {
  GONE: ["The manifest is no longer in S3", "Somebody deleted or moved it. Clear the task to write it again: clips that are stored are not bought again."],
  NOT_THE_CLIP: ["This manifest cannot be shown here", "No run of this task wrote it, Airflow may not read it, or the XCom was edited."],
};

function showCounts({ batch, progress, state, stored, result_path: path, error }) {
  const [counts, facts] = [byId("counts"), byId("facts")];
  counts.replaceChildren();
  facts.replaceChildren();
  byId("progress").hidden = byId("progress-words").hidden = Boolean(batch) || !progress;
  if (batch) {
    fact(counts, "Rows", batch.requests.toLocaleString());
    for (const name of Object.keys(COUNTS)) if (batch[name]) fact(counts, COUNTS[name], batch[name].toLocaleString());
    fact(counts, "Cost", amount(batch.cost) ?? "not known");
    const perhaps = batch.renders_unknown ? `, and ${batch.renders_unknown.toLocaleString()} perhaps` : "";
    fact(counts, "Renders bought", `${batch.renders_bought.toLocaleString()}${perhaps}`);
    if (batch.stopped) longFact(facts, "No more rows were begun", batch.stopped);
    longFact(facts, "Manifest", element("code", {}, batch.manifest));
    fact(facts, "Written", moment(stored));
  } else {
    if (progress) showProgress(progress);
    else if (NOT_ENDED.includes(state)) longFact(facts, "Progress", "Nothing has been written yet.");
    if (path) longFact(facts, "Result", element("code", {}, path));
  }
  if (error) longFact(facts, "Error", element("strong", {}, error.class), " ", element("span", { class: "lines" }, error.message));
  if (error && !batch) fact(facts, "Bought", error.bought);
}

function showProgress({ stored, failed, in_flight: inFlight, waiting, spent, seconds_left: left }) {
  const bar = byId("progress");
  bar.max = stored + failed + inFlight + waiting || 1;
  bar.value = stored + failed;
  const parts = [`${stored} stored`, `${failed} failed`, `${inFlight} in flight`, `${waiting} waiting`, `${spent} spent`];
  if (left !== null) parts.push(`about ${seconds(left)} left`);
  byId("progress-words").textContent = `${parts.join(" · ")}. Renewed every half minute.`;
}

// The rows of the manifest.

let next = null;

function rowOf(row) {
  const name = row.id ?? `row ${row.index + 1}`;
  const key = row.uri?.split("/").slice(3).join("/");
  const hasClip = row.status === "stored" || row.status === "reused" || (row.status === "failed" && row.error?.class === "ClipMismatch");
  const clip = element("td", {});
  if (hasClip) {
    const button = element("button", { type: "button", class: "small" }, "Play", element("span", { class: "visually-hidden" }, ` ${name}`));
    button.addEventListener("click", () => play(row, name, button));
    clip.append(button, " ");
  }
  if (key) clip.append(element("code", {}, key));
  if (row.error) clip.append(element("p", { class: "lines" }, element("strong", {}, row.error.class ?? ""), ` ${row.error.message ?? ""} ${BOUGHT[row.error.bought] ?? ""}`));
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, name),
    element("td", {}, element("span", { class: "state", "data-state": row.status }, words(row.status))),
    clip,
    element("td", {}, amount(row.cost) ?? "–"),
    element("td", {}, seconds(row.duration)),
    element("td", {}, row.model ?? "–"),
  );
}

async function addRows(at) {
  byId("more").disabled = true;
  try {
    const chosen = { status: byId("row-status").value, words: byId("words").value };
    const answer = await get("api/batch/rows", { ...task, ...chosen, at });
    const rows = answer.rows.map(rowOf);
    if (!rows.length && at === 0 && answer.next === null) rows.push(element("tr", {}, element("td", { colspan: "6", class: "muted" }, "No rows here.")));
    if (at === 0) byId("rows").replaceChildren(...rows);
    else byId("rows").append(...rows);
    next = answer.next;
    byId("status").textContent = `${answer.rows.length} rows.`;
    byId("manifest").hidden = false;
  } catch (error) {
    next = null;
    const { problem, words: said } = error.answer ?? {};
    showProblem(MANIFEST_PROBLEMS[problem] ?? PROBLEMS[problem] ?? reason(error), said);
  }
  byId("more").hidden = next === null;
  byId("more").disabled = false;
}

async function play(row, name, button) {
  button.setAttribute("aria-busy", "true");
  byId("problem").hidden = true;
  try {
    const { url } = await get("api/batch/link", { ...task, at: row.at });
    const video = byId("video");
    byId("player-title").textContent = name;
    byId("player").hidden = false;
    video.src = url;
    byId("player").scrollIntoView({ block: "nearest" });
    video.focus();
    await video.play().catch(() => {});
  } catch (error) {
    const { problem, words: said } = error.answer ?? {};
    showProblem(PROBLEMS[problem] ?? reason(error), said);
  }
  button.removeAttribute("aria-busy");
}

async function show() {
  const facts = await get("api/batch", task);
  showState(facts.state);
  showCounts(facts);
  showTask(facts);
  showTries(facts.tries);
  byId("batch").hidden = false;
  const name = `${task.task_id}${task.map_index === "-1" ? "" : ` [${facts.label ?? task.map_index}]`}`;
  document.title = `${name} · Batch`;
  byId("name").textContent = name;
  byId("status").textContent = facts.batch ? "The batch has ended." : byId("progress-words").textContent;
  return facts;
}

async function refresh() {
  try {
    const { batch, state } = await show();
    // The page's policy names S3 only once there is a manifest.
    if (batch) location.reload();
    else if (NOT_ENDED.includes(state)) setTimeout(refresh, POLL_MILLISECONDS);
  } catch (error) {
    if (error.status !== 401 && error.status !== 403) {
      setTimeout(refresh, POLL_MILLISECONDS);
      return;
    }
    byId("batch").hidden = true;
    showFailure(error);
  }
}

async function begin() {
  const { batch, state } = await show();
  if (batch) {
    const without = batch.refused + batch.failed + batch.unknown + batch.not_begun;
    byId("row-status").value = without ? "without_clip" : "";
    await addRows(0);
  } else if (NOT_ENDED.includes(state)) setTimeout(refresh, POLL_MILLISECONDS);
}

byId("filter").addEventListener("submit", (event) => {
  event.preventDefault();
  addRows(0);
});
for (const id of ["row-status", "words"]) byId(id).addEventListener("change", () => addRows(0));
byId("more").addEventListener("click", () => addRows(next));
byId("video").addEventListener("error", () => {
  showProblem(["The clip cannot be played here", "Its bucket may be another than that of the batch. Reload this page, and try again in a moment."]);
});
begin().catch(showFailure);
