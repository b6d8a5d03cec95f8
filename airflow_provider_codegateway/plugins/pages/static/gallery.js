import { NOT_ENDED, paid, words } from "./task.js";
import { ago, amount, batchPage, byId, clipPage, date, element, fit, get, paint, seconds, shape, showFailure, size } from "./common.js";

const query = new URLSearchParams(location.search);
const chosen = Object.fromEntries(["dag_id", "model", "state", "words", "before"].map((name) => [name, query.get(name) ?? ""]));
const stills = query.get("stills") === "true";
const UNDER_WAY = NOT_ENDED.filter((state) => state !== "up_for_retry");
const POLL_MILLISECONDS = 10_000;

function card(clip) {
  const { task } = clip;
  const picture = element("div", { class: "picture" });
  const screen = element("div", { class: "screen", "aria-hidden": "true" }, ...(clip.clip ? [element("span", { class: "art" }), element("span", { class: "disc" })] : []));
  const isWithout = !clip.clip && !clip.is_batch;
  screen.classList.toggle("without", isWithout);
  screen.classList.toggle("batch", clip.is_batch);
  if (isWithout) screen.append(element("span", { class: "none" }, UNDER_WAY.includes(clip.state) ? "Not there yet" : "No clip"));
  if (clip.is_batch) screen.append(element("span", { class: "count" }, clip.batch ? `${clip.batch.stored + clip.batch.reused} clips` : "Batch"));
  if (clip.clip) screen.style.setProperty("--shape", shape(clip.aspect_ratio));
  paint(screen, clip.clip?.fingerprint);
  if (clip.clip?.has_poster) {
    const poster = element("img", { class: "poster", src: `api/poster?${new URLSearchParams(task)}`, alt: "", loading: "lazy" });
    poster.addEventListener("error", () => poster.remove());
    screen.querySelector(".disc").before(poster);
  }
  picture.append(screen);
  if (clip.state !== "success") picture.append(element("span", { class: "state", "data-state": clip.state }, words(clip.state)));
  const mapped = task.map_index >= 0 ? ` [${clip.label ?? task.map_index}]` : "";
  const title = clip.is_batch ? `Batch ${task.task_id}${mapped}` : (clip.prompt ?? `${task.task_id}${mapped}`);
  const made = element(
    "li",
    {},
    element(
      "a",
      { href: clip.is_batch ? batchPage(task) : clipPage(task), class: "tile" },
      picture,
      element("span", { class: "title" }, title),
      ...(clip.error ? [element("span", { class: "meta why" }, `${clip.error.class}: ${clip.error.message}`)] : []),
      element("span", { class: "meta" }, `${task.dag_id} · ${task.task_id}${mapped}`),
      element(
        "span",
        { class: "meta" },
        ...(clip.model ? [element("span", { class: "chip" }, clip.model)] : []),
      ),
      element(
        "span",
        { class: "meta" },
        element("time", { datetime: clip.when, title: date(clip.when) }, ago(clip.when)),
        ...[...about(clip), clip.error && paid(clip.error)].filter(Boolean).map((words) => ` · ${words}`),
      ),
    ),
  );
  return { made, screen, task, hasClip: Boolean(clip.clip) };
}

function about({ clip, batch }) {
  if (clip) return [clip.duration && seconds(clip.duration), amount(clip.cost) ?? size(clip.bytes), clip.reused && "reused"];
  if (!batch) return [];
  const there = batch.stored + batch.reused;
  const failed = batch.refused + batch.failed + batch.unknown;
  return [
    `${there.toLocaleString()} of ${batch.requests.toLocaleString()} clips`,
    failed && `${failed.toLocaleString()} failed`,
    batch.not_begun && `${batch.not_begun.toLocaleString()} not begun`,
    amount(batch.cost),
  ];
}

/** The first frame, fetched when its card comes into view; what S3 does not give stays a painted card. */
async function showStill({ screen, task }) {
  try {
    const { url } = await get("api/link", task);
    const video = element("video", { preload: "metadata", tabindex: "-1", playsinline: "" });
    video.muted = true;
    video.addEventListener("loadeddata", () => {
      fit(screen, video);
      screen.classList.add("has-still");
    });
    video.src = `${url}#t=0.1`;
    screen.prepend(video);
  } catch {
    // The card's own page says why.
  }
}

function showStillsInView(cards) {
  const waiting = new Map(cards.map((shown) => [shown.screen, shown]));
  const observer = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      observer.unobserve(target);
      showStill(waiting.get(target));
    }
  });
  for (const screen of waiting.keys()) observer.observe(screen);
}

/** A page whose policy does not name S3 was sent before the server knew where that is. By now it does: once is enough. */
function reloadOnce({ effectiveDirective }) {
  if (effectiveDirective !== "media-src") return;
  const [{ type }] = performance.getEntriesByType("navigation");
  if (type !== "reload") location.reload();
}

function link(changes) {
  const parameters = Object.entries({ ...chosen, stills: stills ? "true" : "", ...changes });
  return `clips?${new URLSearchParams(parameters.filter(([, value]) => value))}`;
}

function showPages(next) {
  byId("newest").href = link({ before: "" });
  byId("newest").hidden = !chosen.before;
  byId("older").href = link({ before: next });
  byId("older").hidden = !next;
}

async function showClips() {
  const { clips, next } = await get("api/clips", chosen);
  const cards = clips.map(card);
  byId("cards").replaceChildren(...cards.map(({ made }) => made));
  showPages(next);
  const totals = summary(clips);
  byId("status").textContent = totals;
  byId("totals").textContent = totals;
  if (!clips.length) {
    const [title, text] = next
      ? ["No clips on this page", "None of the newest tasks fits. Older clips follow."]
      : Object.values(chosen).some(Boolean)
        ? ["No clips here", "Choose another DAG, model or state, or other words."]
        : ["No clips yet", "When a task of a DAG that you may read has made a clip, it is here."];
    const clear = Object.values(chosen).some(Boolean) ? [element("a", { href: "clips" }, "Clear the filters")] : [];
    byId("failure").replaceChildren(element("h2", {}, title), element("p", {}, text), ...clear);
  }
  byId("failure").hidden = Boolean(clips.length);
  byId("totals").hidden = !clips.length;
  if (stills) showStillsInView(cards.filter(({ hasClip }) => hasClip));
  if (clips.some(({ state }) => UNDER_WAY.includes(state))) setTimeout(refresh, POLL_MILLISECONDS);
}

/** While something is under way. Not while somebody is among the cards, or looks elsewhere. */
function refresh() {
  if (document.hidden || stills || byId("cards").contains(document.activeElement)) setTimeout(refresh, POLL_MILLISECONDS);
  else showClips().catch(() => setTimeout(refresh, POLL_MILLISECONDS));
}

/** How many tasks are shown, and what they cost together: by currency, as far as it is known. */
function summary(clips) {
  const costs = new Map();
  for (const { clip, batch, error } of clips) {
    const cost = clip ? (clip.reused ? null : clip.cost) : (batch ?? error)?.cost;
    if (cost?.amount) costs.set(cost.currency, plus(costs.get(cost.currency) ?? "0", cost.amount));
  }
  const unpriced = clips.filter(hasNoPrice).length;
  const total = [...costs].map(([currency, sum]) => `${sum} ${currency}`).join(" and ");
  const tasks = `${clips.length} ${clips.length === 1 ? "task" : "tasks"} on this page`;
  const others = total && unpriced ? `, and ${unpriced} more of which the cost is not known` : "";
  return `${tasks}${total ? ` cost ${total}${others}` : ""}.`;
}

/** Whether something was, or may have been, bought that is not in the sum. */
function hasNoPrice({ clip, batch, error }) {
  if (clip) return !clip.reused && !clip.cost?.amount;
  if (batch) return Boolean(batch.renders_bought || batch.renders_unknown) && batch.cost?.amount !== batch.cost?.at_most;
  return Boolean(error) && !/^Nothing/.test(paid(error)) && (!error.cost?.amount || error.cost.amount !== error.cost.at_most);
}

/** The sum of two amounts, exactly: they are texts of decimal digits. */
function plus(one, other) {
  const places = Math.max(...[one, other].map((text) => (text.split(".")[1] ?? "").length));
  const units = (text) => {
    const [whole, fraction = ""] = text.split(".");
    return BigInt(whole + fraction.padEnd(places, "0"));
  };
  const digits = String(units(one) + units(other)).padStart(places + 1, "0");
  return places ? `${digits.slice(0, -places)}.${digits.slice(-places)}` : digits;
}

/** What is chosen can be chosen, also before there is an answer, or where there is none. */
function showChoices(id, names) {
  const others = names.filter((name) => name !== chosen[id]);
  const all = chosen[id] ? [chosen[id], ...others].sort() : others;
  byId(id).replaceChildren(byId(id).options[0], ...all.map((name) => element("option", { value: name }, name)));
  byId(id).value = chosen[id];
}

async function showFilters() {
  for (const id of ["dag_id", "model"]) showChoices(id, []);
  const { dags, models } = await get("api/filters", {});
  showChoices("dag_id", dags);
  showChoices("model", models);
}

// A choice loads the page anew: who made it by the keyboard goes on where they were.
const CHANGED = "codegateway-changed";

function remember(id) {
  try {
    sessionStorage.setItem(CHANGED, id);
  } catch {
    // A browser without storage for us: the focus is at the beginning.
  }
}

function takeBackTheFocus() {
  try {
    const id = sessionStorage.getItem(CHANGED);
    sessionStorage.removeItem(CHANGED);
    if (id) byId(id)?.focus();
  } catch {
    // As above.
  }
}

// A field that is empty says nothing in the address.
byId("filter").addEventListener("formdata", ({ formData }) => {
  for (const [name, value] of [...formData]) if (!value) formData.delete(name);
});
for (const id of ["dag_id", "model", "state", "words", "stills"]) {
  byId(id).addEventListener("change", () => {
    remember(id);
    byId("filter").requestSubmit();
  });
}
takeBackTheFocus();
byId("words").value = chosen.words;
byId("state").value = chosen.state;
byId("stills").checked = stills;
document.addEventListener("securitypolicyviolation", reloadOnce);
showClips().catch(showFailure);
showFilters().catch(() => {});
