// The page: a request is put together, sent, followed, and found again.

import { about, ask, byId, h, notice, telling, titleOf } from "./shared.js";
import { Stage, stateOf } from "./stage.js";
import { Timeline } from "./timeline.js";

const info = await about();
let start = null; // what the clip goes on from

const timeline = new Timeline(info.limits, info.fps, info.trained_seconds, () => {});
const stage = new Stage(info, { goOn, reuse, changed: telling(showHistory) });

byId("run").textContent = info.name;
document.title = `${info.name} - Sostenuto`;
timeline.set({ lines: [{ second: 0, caption: info.examples[0] ?? "" }] });
byId("seed").value = 0;
byId("steps").placeholder = info.steps;
byId("times").placeholder = info.times.join(", ");
byId("looping").hidden = !info.loops;
for (const [i, one] of info.systems.entries()) {
  const box = h("input", { type: "checkbox", value: one.name, checked: i === 0, name: "system" });
  byId("systems").append(h("label", { className: "check" }, box, one.title));
}

function wanted() {
  const systems = [...document.querySelectorAll("[name=system]:checked")].map((box) => box.value);
  if (!systems.length) throw new Error("Choose at least one system.");
  const times = byId("times").value.split(",").filter((part) => part.trim());
  const few = systems.includes("mmm") && byId("head").value === "dm";
  return {
    timeline: timeline.lines,
    seconds: timeline.seconds,
    systems,
    seed: Number(byId("seed").value),
    seeds: Number(byId("seeds").value),
    head: byId("head").value,
    steps: byId("steps").value ? Number(byId("steps").value) : null,
    times: few && times.length ? times.map(Number) : null,
    loop: byId("loop").checked,
    start,
  };
}

/** Put a request into the form. */
function reuse(job) {
  const was = job.wanted;
  for (const box of document.querySelectorAll("[name=system]")) box.checked = was.systems.includes(box.value);
  for (const name of ["seed", "head", "steps"]) byId(name).value = was[name] ?? "";
  if (![...byId("seeds").options].some((option) => Number(option.text) === was.seeds))
    byId("seeds").append(h("option", { textContent: String(was.seeds) }));
  byId("seeds").value = String(was.seeds);
  byId("times").value = was.times?.join(", ") ?? "";
  byId("loop").checked = was.loop;
  goFrom(was.start, was.start ? "What the other clip went on from" : "", was.start?.second ?? 0);
  timeline.set({ lines: was.timeline, seconds: was.seconds });
  byId("ask").scrollIntoView();
  notice("The form has its settings.");
}

function goOn(job, clip, second) {
  const frame = 1 / info.fps;
  const at = second > frame ? Math.min(second + frame, job.wanted.seconds) : job.wanted.seconds;
  const held = job.wanted.timeline.filter((line) => line.second <= at).at(-1);
  const name = `${titleOf(clip.system)}, seed ${clip.seed}`;
  goFrom({ job: job.id, clip: clip.name, second: at }, `Goes on from ${name} at ${at.toFixed(1)} s`, at);
  timeline.set({ lines: [{ second: 0, caption: held.caption }], seconds: at + info.trained_seconds });
  byId("loop").checked = false;
  byId("ask").scrollIntoView();
  document.querySelector("#lines textarea").focus();
}

/** What the clip goes on from: a sent file, a clip, or nothing; what to call it, and its seconds. */
function goFrom(from, called, seconds) {
  start = from;
  byId("start").textContent = called || "Drop a video or picture to go on from, or press to choose";
  byId("clear").hidden = !from;
  timeline.set({ given: from ? seconds : 0 });
}

async function send(file) {
  if (!file) return;
  if (file.size > info.limits.bytes)
    throw new Error(`${file.name} has ${file.size} bytes; ${info.limits.bytes} are the most.`);
  notice(`Sending ${file.name} …`);
  const { upload, seconds } = await ask(`/api/uploads?name=${encodeURIComponent(file.name)}`, "POST", file);
  goFrom({ upload }, `Goes on from ${file.name} (${seconds.toFixed(1)} s)`, seconds);
  timeline.set({ seconds: Math.max(timeline.seconds, seconds + info.trained_seconds / 2) });
  notice("");
}

async function make() {
  byId("make").disabled = true;
  try {
    const job = await ask("/api/jobs", "POST", wanted());
    notice("");
    location.hash = job.id;
    await stage.open(job);
    if (matchMedia("(max-width: 56rem)").matches) byId("stage").scrollIntoView();
    await showHistory();
  } finally {
    byId("make").disabled = false;
  }
}

function card(job) {
  const first = job.clips.find((clip) => clip.frames !== undefined);
  const video = first && h("video", { src: `/api/jobs/${job.id}/files/${first.name}.mp4#t=0.1`, muted: true, preload: "metadata", playsInline: true });
  if (video) video.style.aspectRatio = `${info.width} / ${info.height}`;
  const captions = job.wanted.timeline.map((line) => line.caption).join(" → ");
  const when = new Date(1000 * job.created).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
  const button = h(
    "button",
    { type: "button", onclick: telling(() => choose(job.id)) },
    video ?? null,
    h("p", { textContent: captions }),
    h("small", { textContent: `${stateOf(job)} · ${when}` }),
  );
  button.setAttribute("aria-current", String(stage.job?.id === job.id));
  return h("li", {}, button);
}

let shown = 20;

async function showHistory() {
  const jobs = await ask(`/api/jobs?count=${Math.min(shown + 1, 100)}`);
  byId("more").hidden = jobs.length <= shown || shown >= 99;
  byId("past").hidden = !jobs.length;
  byId("history").replaceChildren(...jobs.slice(0, shown).map(card));
}

async function choose(id) {
  location.hash = id;
  await stage.open(await ask(`/api/jobs/${id}`));
  await showHistory();
  byId("stage").scrollIntoView({ block: "nearest" });
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  telling(make)();
});
byId("ask").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) telling(make)();
});
byId("dice").addEventListener("click", () => (byId("seed").value = Math.floor(Math.random() * 2 ** 31)));
byId("clear").addEventListener("click", () => goFrom(null, "", 0));
byId("file").addEventListener("change", telling(async (event) => {
  await send(event.target.files[0]);
  event.target.value = "";
}));
byId("more").addEventListener("click", telling(async () => {
  shown += 20;
  await showHistory();
}));
byId("cancel").addEventListener("click", telling(async () => {
  await stage.open(await ask(`/api/jobs/${stage.job.id}/cancel`, "POST"));
  await showHistory();
}));
byId("delete").addEventListener("click", telling(async () => {
  if (!confirm("Delete these clips?")) return;
  await ask(`/api/jobs/${stage.job.id}`, "DELETE");
  stage.close();
  history.replaceState(null, "", "/");
  await showHistory();
}));

const drop = byId("drop");
drop.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" && event.key !== " ") return;
  event.preventDefault();
  byId("file").click();
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") telling(send)(event.dataTransfer.files[0]);
  });
}

await showHistory();
if (location.hash.length > 1) telling(choose)(location.hash.slice(1));
