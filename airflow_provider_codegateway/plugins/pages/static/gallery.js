import { ago, byId, clipPage, element, fit, get, paint, shape, showFailure, size } from "./common.js";

const query = new URLSearchParams(location.search);
const chosen = Object.fromEntries(["dag_id", "model", "before"].map((name) => [name, query.get(name) ?? ""]));
const stills = query.get("stills") === "true";

function card(clip) {
  const { task } = clip;
  const picture = element("div", { class: "picture" });
  const screen = element("div", { class: "screen", "aria-hidden": "true" }, element("span", { class: "art" }), element("span", { class: "disc" }));
  screen.style.setProperty("--shape", shape(clip.aspect_ratio));
  paint(screen, clip.fingerprint);
  picture.append(screen);
  const mapped = task.map_index >= 0 ? ` [${task.map_index}]` : "";
  const title = clip.prompt ?? `${task.task_id}${mapped}`;
  const made = element(
    "li",
    {},
    element(
      "a",
      { href: clipPage(task), class: "tile" },
      picture,
      element("span", { class: "title" }, title),
      element("span", { class: "meta" }, `${task.dag_id} · ${task.task_id}${mapped}`),
      element("span", { class: "meta" }, element("span", { class: "chip" }, clip.model)),
      element(
        "span",
        { class: "meta" },
        element("time", { datetime: clip.stored, title: new Date(clip.stored).toLocaleString() }, ago(clip.stored)),
        ` · ${size(clip.bytes)}${clip.reused ? " · reused" : ""}`,
      ),
    ),
  );
  return { made, screen, task };
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
  byId("status").textContent = `${clips.length} clips on this page.`;
  if (!clips.length) {
    const [title, text] = next
      ? ["No clips on this page", "What Airflow has here are no clips of this provider. Older clips follow."]
      : chosen.dag_id || chosen.model || chosen.before
        ? ["No clips here", "Choose another DAG or model."]
        : ["No clips yet", "When a task of a DAG that you may read has made a clip, it is here."];
    byId("failure").replaceChildren(element("h2", {}, title), element("p", {}, text));
    byId("failure").hidden = false;
  }
  if (stills) showStillsInView(cards);
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

// A field that is empty says nothing in the address.
byId("filter").addEventListener("formdata", ({ formData }) => {
  for (const [name, value] of [...formData]) if (!value) formData.delete(name);
});
byId("stills").checked = stills;
document.addEventListener("securitypolicyviolation", reloadOnce);
showClips().catch(showFailure);
showFilters().catch(() => {});
