// Captions over time: a track whose ends are dragged or moved by arrow keys, and the captions below it.

import { byId, h } from "./shared.js";

const LEAST = 0.1; // seconds between two ends, at least

export class Timeline {
  constructor(limits, fps, seconds, changed) {
    this.limits = limits;
    this.fps = fps;
    this.seconds = seconds;
    this.lines = [{ second: 0, caption: "" }];
    this.given = 0; // seconds that it goes on from
    this.usual = seconds;
    this.changed = changed;
    byId("add").addEventListener("click", () => this.add());
    byId("seconds").addEventListener("change", (event) => this.end(Number(event.target.value)));
  }

  set({ lines = this.lines, seconds = this.seconds, given = this.given }) {
    this.lines = lines.map((line) => ({ ...line }));
    this.given = given;
    this.end(seconds);
  }

  /** The time of the nearest frame. */
  round(second) {
    return Number((Math.round(second * this.fps) / this.fps).toFixed(4));
  }

  /** The clip's end; captions that begin after it are put before it. */
  end(seconds) {
    const least = Math.max(this.given, 0) + LEAST * this.lines.length;
    this.seconds = clamp(this.round(seconds || this.usual), this.round(least), this.limits.seconds);
    for (let i = this.lines.length - 1, last = this.seconds; i > 0; i--) {
      last = Math.min(this.lines[i].second, last - LEAST);
      this.lines[i].second = this.round(last);
    }
    this.show();
  }

  add() {
    const last = this.lines.at(-1);
    const second = this.round((Math.max(last.second, this.given) + this.seconds) / 2);
    this.lines.push({ second, caption: last.caption });
    this.show();
    byId("lines").lastElementChild.querySelector("textarea").focus();
  }

  move(index, second) {
    if (index === this.lines.length) return this.end(second);
    const before = index === 1 ? Math.max(0, this.given - LEAST) : this.lines[index - 1].second;
    const after = this.lines[index + 1]?.second ?? this.seconds;
    this.lines[index].second = clamp(this.round(second), this.round(before + LEAST), this.round(after - LEAST));
    this.show();
  }

  /** Seconds that the track is wide: there is room to drag the end to. */
  get width() {
    return this.dragging ?? Math.min(Math.max(this.seconds * 1.2, this.usual), this.limits.seconds);
  }

  show() {
    byId("seconds").value = this.seconds;
    byId("total").textContent = `${this.seconds.toFixed(1)} s`;
    const share = (second) => `${(100 * second) / this.width}%`;
    const focus = document.activeElement?.dataset?.edge;
    const parts = this.lines.map((line, i) => {
      const end = this.lines[i + 1]?.second ?? this.seconds;
      const begin = Math.max(line.second, Math.min(this.given, end));
      const part = h("div", { className: "part", textContent: line.caption || "…", title: line.caption });
      part.style.left = share(begin);
      part.style.width = share(end - begin);
      return part;
    });
    if (this.given) {
      const part = h("div", { className: "part given", title: "what it goes on from" });
      part.style.left = "0";
      part.style.width = share(this.given);
      parts.push(part);
    }
    const edges = [...this.lines.slice(1).map((line) => line.second), this.seconds].map((second, i) =>
      this.edge(i + 1, second, share(second)),
    );
    byId("track").replaceChildren(...parts, ...edges);
    if (focus) edges.find((edge) => edge.dataset.edge === focus)?.focus();
    this.showLines();
    this.changed();
  }

  edge(index, second, left) {
    const last = index === this.lines.length;
    const edge = h("button", { type: "button", className: "edge" });
    edge.style.left = left;
    edge.dataset.edge = String(index);
    const told = { role: "slider", "aria-label": last ? "End of the clip" : `Beginning of caption ${index + 1}` };
    Object.assign(told, { "aria-valuemin": 0, "aria-valuemax": this.limits.seconds, "aria-valuenow": second });
    for (const [name, value] of Object.entries({ ...told, "aria-valuetext": `${second.toFixed(1)} seconds` }))
      edge.setAttribute(name, value);
    edge.addEventListener("keydown", (event) => {
      const frame = 1 / this.fps;
      const keys = { ArrowLeft: -frame, ArrowDown: -frame, ArrowRight: frame, ArrowUp: frame, PageDown: -1, PageUp: 1 };
      const by = keys[event.key];
      if (!by) return;
      event.preventDefault();
      this.move(index, second + by);
    });
    edge.addEventListener("pointerdown", (event) => this.drag(event, index));
    return edge;
  }

  drag(event, index) {
    event.preventDefault();
    event.target.focus();
    const box = byId("track").getBoundingClientRect();
    this.dragging = this.width;
    const moved = (now) => this.move(index, (this.dragging * (now.clientX - box.left)) / box.width);
    const dropped = () => {
      document.removeEventListener("pointermove", moved);
      this.dragging = undefined;
      this.show();
    };
    document.addEventListener("pointermove", moved);
    for (const end of ["pointerup", "pointercancel"]) document.addEventListener(end, dropped, { once: true });
  }

  /** The captions below the track; those that are there stay, so that typing goes on. */
  showLines() {
    const list = byId("lines");
    while (list.children.length > this.lines.length) list.lastElementChild.remove();
    while (list.children.length < this.lines.length) list.append(this.line(list.children.length));
    this.lines.forEach((line, i) => {
      const [at, text, remove] = list.children[i].children;
      at.value = line.second;
      at.disabled = i === 0;
      if (text.value !== line.caption) text.value = line.caption;
      remove.hidden = this.lines.length === 1;
    });
  }

  line(index) {
    const at = h("input", { type: "number", min: 0, step: "any", inputMode: "decimal" });
    at.setAttribute("aria-label", `Second at which caption ${index + 1} begins`);
    at.addEventListener("change", () => this.move(index, Number(at.value)));
    const text = h("textarea", { maxLength: this.limits.prompt, rows: 2, placeholder: "what is to be seen" });
    text.setAttribute("aria-label", `Caption ${index + 1}`);
    text.addEventListener("input", () => {
      this.lines[index].caption = text.value;
      byId("track").children[index].textContent = text.value || "…";
    });
    const remove = h("button", { type: "button", className: "quiet", textContent: "×" });
    remove.setAttribute("aria-label", `Remove caption ${index + 1}`);
    remove.addEventListener("click", () => {
      this.lines.splice(index, 1);
      this.lines[0].second = 0;
      this.show();
    });
    return h("li", {}, at, text, remove);
  }
}

const clamp = (value, least, most) => Math.min(Math.max(value, least), Math.max(least, most));
