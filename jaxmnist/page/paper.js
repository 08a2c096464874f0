// The paper: pointer and keys become drawings.

import { EMPTY, History, isEmpty, paint, paintPen } from "./drawing.js";

const STEP = 1 / 28; // how far an arrow key moves the pen
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const KEYS = "keys"; // in place of a pointer's number

export class Paper {
  #canvas;
  #onChange;
  #history = new History();
  #stroke = null; // the one that is being drawn: its points, and the pointer that draws
  #pen = { at: [0.5, 0.25], visible: false }; // of the keyboard

  // `onChange` is called whenever there is another drawing.
  constructor(canvas, onChange) {
    this.#canvas = canvas;
    this.#onChange = onChange;
    this.#listenToPointer();
    this.#listenToKeys();
    this.#paint();
  }

  get drawing() {
    const { now } = this.#history;
    return this.#stroke ? { ...now, strokes: [...now.strokes, this.#stroke.points] } : now;
  }

  get canUndo() {
    return this.#history.canUndo || this.#stroke !== null;
  }

  replace(drawing) {
    this.#finish();
    this.#history.do(drawing);
    this.#changed();
  }

  undo() {
    this.#finish();
    this.#history.undo();
    this.#changed();
  }

  clear() {
    this.#finish();
    if (!isEmpty(this.drawing)) this.replace(EMPTY);
  }

  // ---- The stroke that is being drawn

  #begin(point, by) {
    this.#finish();
    this.#stroke = { points: [point], by };
    this.#changed();
  }

  #extend(points) {
    this.#stroke.points.push(...points);
    this.#changed();
  }

  #finish() {
    if (!this.#stroke) return;
    const drawing = this.drawing;
    this.#stroke = null;
    this.replace(drawing);
  }

  #changed() {
    this.#paint();
    this.#onChange();
  }

  #paint() {
    paint(this.#canvas, this.drawing);
    if (this.#pen.visible) paintPen(this.#canvas, this.#pen.at, this.#stroke?.by === KEYS);
  }

  // ---- Pointer and keys

  #listenToPointer() {
    const canvas = this.#canvas;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || typeof this.#stroke?.by === "number") return;
      canvas.setPointerCapture(event.pointerId);
      this.#pen.visible = false;
      this.#begin(this.#pointOf(event), event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (this.#stroke?.by !== event.pointerId) return;
      const events = event.getCoalescedEvents?.() ?? [];
      this.#extend((events.length ? events : [event]).map((each) => this.#pointOf(each)));
    });
    // It comes after the pointer is lifted, and if it is lost.
    canvas.addEventListener("lostpointercapture", (event) => {
      if (this.#stroke?.by === event.pointerId) this.#finish();
    });
    // A swift line is no swipe, which would swallow the tap after it.
    canvas.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });
  }

  #pointOf(event) {
    const { left, top, width, height } = this.#canvas.getBoundingClientRect();
    return [(event.clientX - left) / width, (event.clientY - top) / height];
  }

  #listenToKeys() {
    const canvas = this.#canvas;
    canvas.addEventListener("keydown", (event) => this.#useKey(event));
    canvas.addEventListener("focus", () => {
      this.#pen.visible = canvas.matches(":focus-visible");
      this.#paint();
    });
    canvas.addEventListener("blur", () => {
      this.#pen.visible = false;
      this.#finish();
      this.#paint();
    });
    document.addEventListener("keydown", (event) => {
      const command = event.ctrlKey || event.metaKey;
      if (command && !event.shiftKey && event.key.toLowerCase() === "z") this.undo();
      else if (event.key === "Delete" || event.key === "Backspace") this.clear();
      else return;
      event.preventDefault();
    });
  }

  #useKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key !== " " && !(event.key in ARROWS)) return;
    event.preventDefault();
    if (event.key in ARROWS) this.#movePen(ARROWS[event.key]);
    else if (!event.repeat) this.#togglePen(); // not while it is held
  }

  #movePen(move) {
    const { at } = this.#pen;
    this.#pen.at = at.map((value, axis) => Math.min(Math.max(value + move[axis] * STEP, 0), 1));
    this.#pen.visible = true;
    if (this.#stroke?.by === KEYS) this.#extend([this.#pen.at]);
    else this.#paint();
  }

  #togglePen() {
    this.#pen.visible = true;
    if (this.#stroke?.by === KEYS) this.#finish();
    else this.#begin(this.#pen.at, KEYS);
  }
}
