import { amount, breakable, byId, date, element, get, moment, reason, rowPage, seconds, showFailure } from "./common.js";
import { BOUGHT, errorText, fact, longFact, PROBLEMS, showProblem, showState, showTask, showTries, task, words } from "./task.js";

const POLL_MILLISECONDS = 5000;
const COUNTS = { stored: "Stored", reused: "Reused", refused: "Refused", failed: "Failed", unknown: "Unknown", not_begun: "Not begun" };
const MANIFEST_PROBLEMS = {
  GONE: ["The manifest is no longer in S3", "Somebody deleted or moved it. Clear the task to write it again: clips that are stored are not bought again."],
  NOT_THE_CLIP: ["This manifest cannot be shown here", "No run of this task wrote it, Airflow may not read it, or the XCom was edited."],
};

function showCounts({ batch, progress, manifest, has_ended: hasEnded, stored, result_path: path, error }) {
  const [counts, facts] = [byId("counts"), byId("facts")];
  counts.replaceChildren();
  facts.replaceChildren();
  byId("progress").hidden = byId("progress-words").hidden = !progress;
  if (batch) {
    fact(counts, "Rows", batch.requests.toLocaleString());
    for (const name of Object.keys(COUNTS)) if (batch[name]) fact(counts, COUNTS[name], batch[name].toLocaleString());
    fact(counts, "Cost", amount(batch.cost) ?? "not known");
    const perhaps = batch.renders_unknown ? `, and ${batch.renders_unknown.toLocaleString()} perhaps` : "";
    fact(counts, "Renders bought", `${batch.renders_bought.toLocaleString()}${perhaps}`);
    if (batch.stopped) longFact(facts, "No more rows were begun", batch.stopped);
  } else {
    if (progress) showProgress(progress);
    else if (!hasEnded) longFact(facts, "Progress", "Nothing has been written yet.");
  }
  showWhy(error, batch);
  const [name, uri] = manifest && batch ? ["Manifest", manifest] : ["Result", path];
  if (uri) longFact(facts, name, element("code", {}, ...breakable(uri)));
  if (batch) fact(facts, "Written", moment(stored));
}

/** Of a batch that has a manifest the first line is enough: its rows follow. */
function showWhy(error, batch) {
  const why = byId("why");
  why.hidden = !error;
  if (!error || why.contains(document.activeElement)) return;
  const [first, ...rest] = (error.message ?? "").split("\n");
  const folded = rest.length > 4 || (batch && rest.length);
  const shown = folded ? { ...error, message: first } : error;
  const [kind, message, money] = errorText(shown);
  const more = element("details", {}, element("summary", {}, `${rest.length} more ${rest.length === 1 ? "line" : "lines"}`), element("p", { class: "lines" }, rest.join("\n")));
  why.replaceChildren(kind, message, money, ...(folded ? [more] : []));
}

function showProgress({ stored, failed, in_flight: inFlight, waiting, spent, seconds_left: left, at }) {
  const bar = byId("progress");
  bar.max = stored + failed + inFlight + waiting || 1;
  bar.value = stored + failed;
  const counts = byId("counts");
  for (const [name, count] of [["Stored", stored], ["Failed", failed], ["In flight", inFlight], ["Waiting", waiting]]) {
    fact(counts, name, count.toLocaleString());
  }
  fact(counts, "Spent", spent);
  if (left !== null) fact(counts, "Time left", left < 90 ? `about ${Math.round(left)} s` : `about ${Math.round(left / 60)} min`);
  byId("progress-words").textContent = `As of ${date(at)}. Updated every 30 s.`;
}

// The rows of the manifest.

let next = null;
let asked = 0;

function rowOf(row) {
  const name = row.id ?? `row ${row.index === null ? "?" : row.index + 1}`;
  const key = row.uri?.split("/").slice(3).join("/");
  const clip = element("td", {});
  if (key) clip.append(element("code", {}, ...breakable(key)));
  if (row.error) {
    const { class: kind, message, bought } = row.error;
    clip.append(element("p", { class: "lines" }, element("strong", {}, kind ?? ""), ` ${message ?? ""} ${BOUGHT[bought] ?? ""}`));
  }
  const link = element("a", { href: rowPage(task, row.at) }, ...breakable(name));
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, link),
    element("td", {}, element("span", { class: "state", "data-state": row.status }, words(row.status))),
    clip,
    element("td", { class: "number" }, amount(row.cost) ?? ""),
    element("td", { class: "number" }, row.facts?.duration ? seconds(row.facts.duration) : ""),
    element("td", {}, row.model ?? ""),
    element("td", {}, ...(row.has_clip ? [playButton(row, name)] : [])),
  );
}

function playButton(row, name) {
  const button = element("button", { type: "button", class: "small" }, "Play", element("span", { class: "visually-hidden" }, ` ${name}`));
  button.addEventListener("click", () => play(row, name, button));
  return button;
}

/** Some more rows, from a byte of the manifest on: a long one is looked through in parts, until something is found. */
async function addRows(at) {
  const turn = ++asked;
  const chosen = { status: byId("row-status").value, words: byId("words").value };
  byId("manifest").setAttribute("aria-busy", "true");
  try {
    let answer = await get("api/batch/rows", { ...task, ...chosen, at });
    while (turn === asked && !answer.rows.length && answer.next !== null) {
      answer = await get("api/batch/rows", { ...task, ...chosen, at: answer.next });
    }
    if (turn !== asked) return; // something else was chosen meanwhile
    showRows(answer, at === 0);
  } catch (error) {
    if (turn !== asked) return;
    showNoRows(error);
  }
  byId("manifest").removeAttribute("aria-busy");
  byId("more").hidden = next === null;
}

function showRows(answer, isFirst) {
  const rows = answer.rows.map(rowOf);
  const first = rows[0]?.querySelector("a");
  if (!rows.length && isFirst) rows.push(element("tr", {}, element("td", { colspan: "7", class: "muted" }, "No rows here.")));
  const hadFocus = document.activeElement === byId("more");
  if (isFirst) byId("rows").replaceChildren(...rows);
  else byId("rows").append(...rows);
  next = answer.next;
  const shown = byId("rows").querySelectorAll("a").length.toLocaleString();
  byId("status").textContent = byId("rows-shown").textContent = `${shown} ${shown === "1" ? "row" : "rows"} shown${next === null ? "" : ", more follow"}.`;
  byId("manifest").hidden = false;
  if (hadFocus) first?.focus(); // the button may be gone, and the new rows are above it
}

function showNoRows(error) {
  next = null;
  const { problem, words: said } = error.answer ?? {};
  // A task that failed before its batch began has no manifest, or that of another run.
  if (!hasSummary && (problem === "GONE" || problem === "NOT_THE_CLIP")) return;
  showProblem(MANIFEST_PROBLEMS[problem] ?? PROBLEMS[problem] ?? reason(error), said);
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
    opener = button;
    byId("player").scrollIntoView({ block: "nearest" });
    video.focus();
    await video.play().catch(() => {});
  } catch (error) {
    const { problem, words: said } = error.answer ?? {};
    showProblem(PROBLEMS[problem] ?? reason(error), said);
    byId("problem").scrollIntoView({ block: "nearest" });
  }
  button.removeAttribute("aria-busy");
}

let opener = null;

function close() {
  byId("video").pause();
  byId("video").removeAttribute("src");
  byId("player").hidden = true;
  opener?.focus();
}

let hasSummary = false;

async function show() {
  const facts = await get("api/batch", task);
  hasSummary = Boolean(facts.batch);
  showState(facts.state);
  showHowMany(facts.batch);
  showCounts(facts);
  showTask(facts);
  showTries(facts.tries);
  byId("batch").hidden = false;
  const folder = facts.result_path?.replace(/\/+$/, "").split("/").slice(3).pop();
  const name = `${folder || task.task_id}${task.map_index === "-1" ? "" : ` [${facts.label ?? task.map_index}]`}`;
  document.title = `${name} · Batch`;
  byId("name").textContent = name;
  byId("status").textContent = facts.has_ended ? "The batch has ended." : byId("progress-words").textContent;
  return facts;
}

/** A task may succeed while some of its rows have no clip. */
function showHowMany(batch) {
  if (!batch) return;
  const there = batch.stored + batch.reused;
  if (there === batch.requests) return;
  byId("state").textContent = `${there.toLocaleString()} of ${batch.requests.toLocaleString()} clips`;
  if (byId("state").dataset.state === "success") byId("state").dataset.state = "some";
}

async function refresh() {
  try {
    const { manifest, has_ended: hasEnded } = await show();
    // The page's policy names S3 only once there is a manifest.
    if (manifest) location.reload();
    else if (!hasEnded) setTimeout(refresh, POLL_MILLISECONDS);
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
  const { batch, manifest, has_ended: hasEnded } = await show();
  if (manifest) {
    const without = !batch || batch.refused + batch.failed + batch.unknown + batch.not_begun;
    byId("row-status").value = without ? "without_clip" : "";
    await addRows(0);
  } else if (!hasEnded) setTimeout(refresh, POLL_MILLISECONDS);
}

byId("filter").addEventListener("submit", (event) => {
  event.preventDefault();
  addRows(0);
});
for (const id of ["row-status", "words"]) byId(id).addEventListener("change", () => addRows(0));
byId("close").addEventListener("click", close);
byId("more").addEventListener("click", () => addRows(next));
byId("video").addEventListener("error", () => {
  showProblem(["The clip cannot be played here", "Its bucket may be another than that of the batch. Its own page, which its name leads to, can play it."]);
});
begin().catch(showFailure);
