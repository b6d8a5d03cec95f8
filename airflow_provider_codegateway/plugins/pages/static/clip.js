import { amount, batchPage, breakable, byId, element, fit, moment, paint, reason, seconds, shape, showFailure, size } from "./common.js";
import { airflowLink, ask, elapsed, errorText, fact, isRow, logUrl, longFact, NOT_ENDED, PROBLEMS, showProblem, showState, showTask, showTries, task } from "./task.js";

// The form of the state of a task: a word for a person, and what it means for the clip.
const ABSENT = {
  success: "This task ended well, but left no facts of a clip: its XCom “clip” is missing.",
  running: "It usually takes about two minutes.",
  deferred: "No worker slot is used. It usually takes about two minutes.",
  failed: "This task failed and has no clip.",
  upstream_failed: "A task before this one failed, so nothing was rendered.",
  up_for_retry: "The last try failed. Airflow will try again.",
  skipped: "This task was skipped, so nothing was rendered.",
  removed: "This task is no longer in its DAG.",
};
const WAITING = "Nothing has been rendered yet: the task has not begun.";
const LABELS = {
  aspect_ratio: "Aspect ratio",
  duration: "Duration",
  resolution: "Resolution",
  generate_audio: "Sound",
  seed: "Seed",
  image: "First frame",
  parameters: "Parameters",
};
const OPTIONAL = ["aspect_ratio", "duration", "resolution", "generate_audio"];
const WORDS = {
  duration: (value) => (/^\d+$/.test(value) ? `${value} s` : value),
  generate_audio: (value) => ({ true: "yes", false: "no" })[value.toLowerCase()] ?? value,
};
const POLL_MILLISECONDS = 5000;

const UNUSUAL_SECONDS = 300;

/** Why the task failed, or how its clip is not what was asked for: before all else. */
function showWhy({ clip, state, row, error, number }) {
  const why = byId("why");
  const differs = clip?.mismatches?.length ? clip.mismatches.join(" ") : "";
  why.hidden = !(error || differs) || (state === "success" && !differs && !row);
  why.classList.toggle("warn", !error);
  byId("clip").classList.toggle("failed", Boolean(error) && !clip && !NOT_ENDED.includes(state));
  if (why.contains(document.activeElement)) return; // a refresh takes nobody's focus
  if (error) why.replaceChildren(...errorText(error));
  else why.replaceChildren(element("strong", {}, "Not as asked for"), element("p", {}, differs));
  if (error && number > 0) why.append(element("p", { class: "actions" }, airflowLink(logUrl(number), `Log of try ${number}`)));
}

function absent({ state, row, tries }) {
  if (row) return [element("p", {}, "This row has no clip.")];
  const since = elapsed(tries.at(-1));
  if (since !== null && ["running", "deferred"].includes(state)) {
    const late = since > UNUSUAL_SECONDS ? " This one takes longer: see its log." : "";
    return [
      element("p", {}, element("strong", {}, `Rendering for ${seconds(since)}.`)),
      element("div", { class: "busy", "aria-hidden": "true" }),
      element("p", {}, `${ABSENT[state]}${late}`),
    ];
  }
  return [element("p", {}, ABSENT[state] ?? WAITING)];
}

function showVideo(facts) {
  const { clip, request } = facts;
  const screen = byId("screen");
  screen.style.setProperty("--shape", shape(request?.aspect_ratio));
  paint(screen, clip?.fingerprint);
  if (clip?.poster && !byId("poster")) {
    const poster = element("img", { id: "poster", class: "poster", src: `api/poster?${new URLSearchParams(task)}`, alt: "" });
    poster.addEventListener("error", () => poster.remove());
    byId("play").querySelector(".disc").before(poster);
  }
  byId("play").hidden = !clip || !byId("video").hidden;
  screen.classList.toggle("empty", !clip);
  byId("absent").hidden = Boolean(clip);
  byId("absent").replaceChildren(...absent(facts));
}

function copyButton(text) {
  const button = element("button", { type: "button" }, "Copy S3 URI");
  button.addEventListener("click", async () => {
    const copied = await copy(text);
    button.textContent = copied ? "Copied" : "Not copied";
    byId("status").textContent = copied ? "The S3 URI is copied." : "The browser did not allow to copy.";
    setTimeout(() => (button.textContent = "Copy S3 URI"), 2000);
  });
  return button;
}

function downloadButton() {
  const button = element("button", { type: "button" }, "Download");
  button.addEventListener("click", async () => {
    const answer = await ask("link", { download: true }).catch(showNoLink);
    if (answer) save(answer.url);
  });
  return button;
}

/** By the page around ours, if there is one: the frame of Airflow 3.1 and 3.2 allows no downloads within it. */
function save(url) {
  const link = window.parent.document.createElement("a");
  link.href = url;
  link.download = "";
  link.click();
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // No clipboard without https: the old way.
    const field = element("textarea", { class: "visually-hidden", "aria-hidden": "true" });
    field.value = text;
    document.body.append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    return copied;
  }
}

function showPrompt(request) {
  const prompt = byId("prompt");
  prompt.textContent =
    request?.prompt ?? (request ? "No prompt: this clip was made from an image." : "The prompt was not rendered, or Airflow no longer keeps it.");
  prompt.classList.toggle("muted", !request?.prompt);
  prompt.classList.toggle("long", (request?.prompt?.length ?? 0) > 300);
}

/** A long prompt unfolds. How long it is on the screen is known once it is there. */
function foldPrompt() {
  const [prompt, button] = [byId("prompt"), byId("unfold")];
  if (prompt.classList.contains("unfolded")) return;
  button.hidden = prompt.hidden || prompt.scrollHeight <= prompt.clientHeight + 2;
}

function unfold() {
  const isOpen = byId("prompt").classList.toggle("unfolded");
  byId("unfold").setAttribute("aria-expanded", String(isOpen));
  byId("unfold").textContent = isOpen ? "Show less" : "Show all";
}

function showFacts({ clip, stored, request, model, target, error, row }) {
  showPrompt(request);
  const headline = byId("headline");
  const facts = byId("facts");
  headline.replaceChildren();
  facts.replaceChildren();
  if (!clip) {
    if (row?.model ?? model) fact(headline, "Model", ...breakable(row?.model ?? model));
    longFact(facts, "Target", target ? element("code", {}, ...breakable(target)) : "The arguments were not rendered, or Airflow no longer keeps them.");
    return;
  }
  fact(headline, "Cost", amount(clip.cost) ?? "not known");
  fact(headline, "Renders bought", clip.reused && !clip.renders_bought_here ? "none: reused" : String(clip.renders_bought));
  if (clip.facts?.duration) fact(headline, "Duration", seconds(clip.facts.duration));
  if (clip.model) fact(headline, "Model", ...breakable(clip.model));
  if (clip.render_seconds !== null) fact(headline, "Render time", seconds(clip.render_seconds));
  if (clip.bytes !== null) fact(headline, "Size", element("span", { title: `${clip.bytes.toLocaleString()} bytes` }, size(clip.bytes)));
  if (clip.facts) {
    const { width, height, fps, audio } = clip.facts;
    if (width && height) fact(facts, "Picture", `${width} × ${height}${fps ? `, ${fps} ${fps === 1 ? "frame" : "frames"} a second` : ""}`);
    fact(facts, "Sound", audio ? "yes" : "no");
  }
  if (clip.fallback?.length) longFact(facts, "Fallback", clip.fallback.map(({ model, reason }) => `${model}: ${reason}`).join("; "));
  longFact(facts, "S3 URI", element("code", {}, ...breakable(clip.uri)));
  if (!byId("actions").children.length) byId("actions").append(downloadButton(), copyButton(clip.uri));
  const [rendered, kept] = [clip.created === null ? null : new Date(clip.created * 1000), stored && new Date(stored)];
  if (rendered) fact(facts, "Rendered", moment(rendered.toISOString()));
  if (kept && Math.abs(kept - (rendered ?? 0)) > 60_000) fact(facts, "Stored", moment(stored));
  if (clip.reused) longFact(facts, "Reused", `It was there already, after ${clip.renders_bought} ${clip.renders_bought === 1 ? "render" : "renders"}.`);
  if (!clip.fingerprint) return;
  const technical = element("dl", {});
  longFact(technical, "Fingerprint", element("code", {}, clip.fingerprint));
  if (clip.sha256) longFact(technical, "SHA-256", element("code", {}, clip.sha256));
  byId("technical").replaceChildren(element("details", {}, element("summary", {}, "Technical"), technical));
}

function showRequest(request) {
  const list = byId("request");
  list.replaceChildren();
  const { prompt, ...rest } = request ?? {};
  for (const [name, value] of Object.entries(rest)) {
    (value.length > 40 ? longFact : fact)(list, LABELS[name] ?? name, (WORDS[name] ?? String)(value));
  }
  if (list.children.length) {
    for (const name of OPTIONAL) if (!(name in rest)) fact(list, LABELS[name], element("span", { class: "muted" }, "the model's default"));
  }
  if (!list.children.length) {
    const text = request ? "Everything as the model does by default." : "The arguments were not rendered, or Airflow no longer keeps them.";
    longFact(list, "Arguments", text);
  }
}

let linkEndsAt = 0;

/** Whether the video has a link now; if not, the page says why. */
async function load() {
  try {
    const { url, seconds: life } = await ask("link");
    linkEndsAt = performance.now() + life * 1000;
    byId("video").src = url;
    return true;
  } catch (error) {
    showNoLink(error);
    return false;
  }
}

function showNoLink(error) {
  const { problem, words } = error.answer ?? {};
  showProblem(PROBLEMS[problem] ?? reason(error), words);
}

/** The browser may not start by itself, and the video reports its own errors: its controls are there. */
function start(video) {
  return video.play().catch(() => {});
}

async function play() {
  const [video, button] = [byId("video"), byId("play")];
  button.setAttribute("aria-busy", "true");
  byId("problem").hidden = true;
  if (await load()) {
    video.hidden = false;
    button.hidden = true;
    video.focus();
    await start(video);
  }
  button.removeAttribute("aria-busy");
}

/** A link lives for minutes: who comes back later gets a new one, at the same place in the clip. */
async function revive() {
  const video = byId("video");
  if (performance.now() < linkEndsAt) {
    video.hidden = true;
    byId("play").hidden = false;
    showProblem(["The clip cannot be played", "Reload this page in a moment."]);
    return;
  }
  const at = video.currentTime;
  if (await load()) {
    video.currentTime = at;
    await start(video);
  }
}

async function show() {
  const facts = await ask("clip");
  const { row } = facts;
  if (row) facts.error = row.error;
  showState(row?.status ?? facts.state);
  showWhy(facts);
  showVideo(facts);
  showFacts(facts);
  if (!row) showRequest(facts.request);
  showTask(facts);
  showTries(facts.tries);
  byId("clip").hidden = false;
  foldPrompt();
  byId("status").textContent = facts.clip ? "The clip is ready to play." : byId("absent").textContent;
  const name = row?.id ?? (facts.clip?.key ?? facts.target ?? task.task_id).split("/").pop();
  document.title = `${name} · Clip`;
  byId("name").textContent = name;
  if (facts.clip || row) return;
  if (NOT_ENDED.includes(facts.state)) setTimeout(refresh, POLL_MILLISECONDS);
}

async function refresh() {
  try {
    await show();
    // The page's policy names S3 only once there is a clip.
    if (!byId("play").hidden) location.reload();
  } catch (error) {
    if (error.status !== 401 && error.status !== 403) {
      setTimeout(refresh, POLL_MILLISECONDS);
      return;
    }
    byId("clip").hidden = true;
    showFailure(error);
  }
}

byId("play").addEventListener("click", play);
byId("unfold").addEventListener("click", unfold);
window.addEventListener("resize", foldPrompt);
byId("video").addEventListener("loadedmetadata", () => fit(byId("screen"), byId("video")));
byId("video").addEventListener("error", revive);
if (isRow) {
  byId("back").href = batchPage(task);
  byId("back").textContent = "← Batch";
  // A manifest has no prompts: those are beside it, with all else that was asked for.
  byId("prompt-title").hidden = byId("prompt").hidden = byId("request-card").hidden = true;
  byId("facts-card").classList.add("full");
}
show().catch(showFailure);
