// The clips of one request, side by side: one seek bar and one speed move all of them.

import { ask, byId, h, titleOf } from "./shared.js";

const APART_S = 0.06; // that two clips may drift before one is moved
const ASK_MS = 400;

export class Stage {
  constructor(info, { goOn, reuse, changed }) {
    this.info = info;
    this.goOn = goOn;
    this.changed = changed;
    this.cells = new Map();
    this.playing = false;
    byId("play").addEventListener("click", () => this.play(!this.playing));
    byId("seek").addEventListener("input", (event) => this.seek(Number(event.target.value)));
    byId("speed").addEventListener("change", () => this.hurry());
    byId("reuse").addEventListener("click", () => reuse(this.job));
    document.addEventListener("keydown", (event) => this.key(event));
    requestAnimationFrame(() => this.tick());
  }

  get videos() {
    return [...this.cells.values()].map((cell) => cell.video).filter((video) => video.duration > 0);
  }

  /** The one that the others follow. */
  get leader() {
    return this.videos.reduce((a, b) => (a && a.duration >= b.duration ? a : b), undefined);
  }

  /** Show a request, and follow it until it ends. */
  async open(job) {
    clearTimeout(this.waiting);
    if (this.job?.id !== job.id) {
      this.cells.clear();
      byId("grid").replaceChildren();
      this.playing = true;
    }
    this.show(job);
    if (job.state === "queued" || job.state === "running") {
      this.waiting = setTimeout(() => this.again(job.id), ASK_MS);
    }
  }

  async again(id) {
    try {
      const job = await ask(`/api/jobs/${id}`);
      if (this.job?.id === id) this.open(job);
      if (job.state !== "queued" && job.state !== "running") this.changed();
    } catch (error) {
      byId("state").textContent = error.message;
      this.waiting = setTimeout(() => this.again(id), 5 * ASK_MS);
    }
  }

  close() {
    clearTimeout(this.waiting);
    this.job = undefined;
    this.cells.clear();
    byId("stage").hidden = true;
  }

  show(job) {
    this.job = job;
    byId("stage").hidden = false;
    byId("what").textContent = job.wanted.timeline.map((line) => line.caption).join(" → ");
    byId("state").textContent = stateOf(job);
    const ended = job.state !== "queued" && job.state !== "running";
    byId("cancel").hidden = ended;
    byId("delete").hidden = !ended;
    byId("progress").hidden = ended;
    byId("progress").value = job.clips.reduce((sum, clip) => sum + shareOf(clip), 0) / job.clips.length;
    const columns = job.wanted.systems.length > 1 ? job.wanted.systems.length : Math.ceil(Math.sqrt(job.clips.length));
    byId("grid").style.setProperty("--columns", columns);
    byId("grid").style.setProperty("--narrow", columns === 3 ? 3 : Math.min(columns, 2));
    const ordered = job.wanted.systems.length > 1 ? bySeed(job.clips) : job.clips;
    for (const clip of ordered) this.showClip(job, clip, ended);
    byId("transport").hidden = !job.clips.some((clip) => clip.frames || clip.progress?.frames);
  }

  showClip(job, clip, ended) {
    if (!this.cells.has(clip.name)) this.cells.set(clip.name, this.cell(job, clip));
    const cell = this.cells.get(clip.name);
    const made = clip.frames !== undefined;
    const grows = !made && clip.progress?.frames > 0 && clip.progress.frames < clip.progress.of;
    const source = made ? "made" : grows ? "grows" : "";
    if (source && cell.source !== source) {
      cell.source = source;
      const at = this.leader?.currentTime ?? 0;
      cell.video.src = `/api/jobs/${job.id}/files/${clip.name}.mp4${made ? "" : "?grows"}`;
      cell.video.addEventListener("loadedmetadata", () => this.join(cell.video, at), { once: true });
    }
    cell.text.hidden = Boolean(source);
    cell.text.classList.toggle("bad", Boolean(clip.error));
    cell.text.textContent = clip.error ?? waitingText(clip, ended);
    const title = h("b", { textContent: titleOf(clip.system) });
    const measures = made
      ? `${clip.evaluations} network evaluations, ${clip.latency.toFixed(1)}\u00a0s`
      : clip.progress
        ? progressText(clip.progress, this.info.fps)
        : "";
    cell.caption.replaceChildren(title, ` seed\u00a0${clip.seed}`, h("br"), measures);
    cell.links.hidden = !made;
  }

  cell(job, clip) {
    const video = h("video", { muted: true, playsInline: true, preload: "auto" });
    video.setAttribute("aria-label", `${titleOf(clip.system)}, seed ${clip.seed}`);
    video.addEventListener("ended", () => video === this.leader && this.playing && this.seek(0, true));
    const text = h("p");
    const frame = h("div", { className: "frame" }, video, text);
    frame.style.aspectRatio = `${this.info.width} / ${this.info.height}`;
    const caption = h("figcaption");
    const file = (kind) => `/api/jobs/${job.id}/files/${clip.name}.${kind}?download=true`;
    const links = h(
      "div",
      { className: "links" },
      h("a", { href: file("mp4"), download: `${clip.name}.mp4`, textContent: "MP4" }),
      h("a", { href: file("gif"), download: `${clip.name}.gif`, textContent: "GIF" }),
      h("a", { href: file("yaml"), download: `${clip.name}.yaml`, textContent: "YAML", title: "What makes it again" }),
      h("button", { type: "button", textContent: "Go on from here", onclick: () => this.goOn(this.job, clip, video.currentTime) }),
    );
    byId("grid").append(h("figure", {}, frame, caption, links));
    return { video, text, caption, links, source: "" };
  }

  /** A clip that has just come goes on where the others are. */
  join(video, at) {
    video.currentTime = Math.min(at, video.duration || at);
    video.playbackRate = Number(byId("speed").value);
    if (this.playing) this.play(true);
  }

  play(on) {
    this.playing = on;
    const leader = this.leader;
    if (on && leader?.ended) this.seek(0);
    for (const video of this.videos) {
      if (on) video.play().catch(() => {});
      else video.pause();
    }
    byId("play").textContent = on ? "Pause" : "Play";
  }

  seek(second, goOn = this.playing) {
    for (const video of this.videos) video.currentTime = Math.min(second, video.duration);
    if (goOn) this.play(true);
  }

  hurry() {
    for (const video of this.videos) video.playbackRate = Number(byId("speed").value);
  }

  tick() {
    const leader = this.leader;
    if (leader && !byId("stage").hidden) {
      const second = leader.currentTime;
      byId("seek").max = Number.isFinite(leader.duration) ? leader.duration : second + 1;
      if (document.activeElement !== byId("seek") || this.playing) byId("seek").value = second;
      byId("clock").textContent = `${second.toFixed(1)} s`;
      for (const video of this.videos) {
        const wanted = Math.min(second, video.duration);
        const apart = Math.abs(video.currentTime - wanted);
        if (video !== leader && !video.seeking && apart > APART_S) video.currentTime = wanted;
      }
    }
    requestAnimationFrame(() => this.tick());
  }

  key(event) {
    const busy = event.target.closest("input, textarea, select, button, a, summary, label");
    if (busy || byId("stage").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
    const frame = 1 / this.info.fps;
    const by = { ArrowLeft: -frame, ArrowRight: frame }[event.key];
    if (event.key === " ") this.play(!this.playing);
    else if (by) {
      this.play(false);
      this.seek(Math.max(0, (this.leader?.currentTime ?? 0) + by));
    } else return;
    event.preventDefault();
  }
}

/** Rows of seeds, columns of systems. */
const bySeed = (clips) => [...clips].sort((a, b) => a.seed - b.seed);

const shareOf = (clip) => {
  if (clip.frames !== undefined || clip.error) return 1;
  const now = clip.progress;
  if (!now) return 0;
  const done = now.frames / now.of;
  return done + (1 - done) * 0.9 * Math.min(1, now.step / now.steps) * (now.frames ? 0.5 : 1);
};

const progressText = (now, fps) =>
  `${(now.frames / fps).toFixed(1)} of ${(now.of / fps).toFixed(1)} s, step ${Math.min(now.step, now.steps)} of ${now.steps}`;

const waitingText = (clip, ended) => (ended ? "not made" : clip.progress ? "being made" : "waits");

export const stateOf = (job) => {
  if (job.state === "queued") return job.position ? `${job.position} before it` : "next";
  if (job.state === "running") return "being made";
  if (job.state === "done") return `made in ${job.seconds.toFixed(1)} s`;
  return job.state === "failed" ? "failed" : "cancelled";
};
