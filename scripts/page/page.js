// The page: pointer and keys become drawings, and drawings answers.

import { Answers, highest, make } from "./answers.js";
import { Asker, get } from "./asking.js";
import { EMPTY, History, isEmpty, paint, paintPen, pictureOf } from "./drawing.js";

const STEP = 1 / 28; // how far an arrow key moves the pen
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const KEYS = "keys"; // in place of a pointer's number

const element = (id) => document.getElementById(id);

class Page {
  #history = new History();
  #stroke = null; // the one that is being drawn: its points, and the pointer that draws
  #pen = { at: [0.5, 0.25], visible: false }; // of the keyboard
  #paper = element("paper");

  constructor({ networks, examples }) {
    this.answers = new Answers(networks, element("networks"), element("seen"));
    this.asker = new Asker(
      (answer) => this.show(answer),
      (message) => this.say(message),
    );
    for (const example of examples) {
      element(isHard(example) ? "hard" : "easy").append(this.makeExample(example));
    }
    for (const place of ["easy", "hard"]) {
      element(place).parentElement.hidden = element(place).childElementCount === 0;
    }
    this.listenToButtons();
    this.listenToPointer();
    this.listenToKeys();
    this.changed();
  }

  // ---- The drawing

  get drawing() {
    const { example, strokes } = this.#history.now;
    return this.#stroke ? { example, strokes: [...strokes, this.#stroke.points] } : this.#history.now;
  }

  begin(point, by) {
    this.finish();
    this.#stroke = { points: [point], by };
    this.changed();
  }

  extend(points) {
    this.#stroke.points.push(...points);
    this.changed();
  }

  finish() {
    if (!this.#stroke) return;
    const drawing = this.drawing;
    this.#stroke = null;
    this.replace(drawing);
  }

  replace(drawing) {
    this.finish();
    this.#history.do(drawing);
    this.changed();
  }

  undo() {
    this.finish();
    this.#history.undo();
    this.changed();
  }

  clear() {
    this.finish();
    if (!isEmpty(this.drawing)) this.replace(EMPTY);
  }

  changed() {
    const drawing = this.drawing;
    this.paint();
    element("undo").setAttribute("aria-disabled", !this.#history.canUndo && !this.#stroke);
    element("clear").setAttribute("aria-disabled", isEmpty(drawing));
    const known = drawing.strokes.length === 0;
    this.asker.ask(known ? null : drawing);
    if (known) this.show(drawing.example);
  }

  paint() {
    paint(this.#paper, this.drawing);
    if (this.#pen.visible) paintPen(this.#paper, this.#pen.at, this.#stroke?.by === KEYS);
  }

  // ---- What is shown

  // `answer`: of the server, or an example, which has its own; null of an empty paper.
  show(answer) {
    const { example, strokes } = this.drawing;
    const truth = strokes.length === 0 ? example?.label : undefined;
    this.answers.show(answer, truth);
    if (!answer) this.say("Draw with mouse, finger or keys.");
    else if (truth === undefined) this.say(this.answers.words(answer));
    else this.say(`${nameOf(example)}. ${this.answers.words(answer)}`);
  }

  say(text) {
    // Said again, it would be read aloud again.
    if (element("status").textContent !== text) element("status").textContent = text;
  }

  makeExample(example) {
    const name = nameOf(example);
    const button = make("button", { type: "button", "aria-label": name, title: name });
    button.append(pictureOf(example.image));
    button.addEventListener("click", () => this.replace({ example, strokes: [] }));
    return button;
  }

  // ---- Buttons, pointer and keys

  listenToButtons() {
    element("undo").addEventListener("click", () => this.undo());
    element("clear").addEventListener("click", () => this.clear());
  }

  listenToPointer() {
    const paper = this.#paper;
    paper.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || typeof this.#stroke?.by === "number") return;
      paper.setPointerCapture(event.pointerId);
      this.#pen.visible = false;
      this.begin(this.pointOf(event), event.pointerId);
    });
    paper.addEventListener("pointermove", (event) => {
      if (this.#stroke?.by !== event.pointerId) return;
      const events = event.getCoalescedEvents?.() ?? [];
      this.extend((events.length ? events : [event]).map((each) => this.pointOf(each)));
    });
    // It comes after the pointer is lifted, and if it is lost.
    paper.addEventListener("lostpointercapture", (event) => {
      if (this.#stroke?.by === event.pointerId) this.finish();
    });
    // A swift line is no swipe, which would swallow the tap after it.
    paper.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });
  }

  pointOf(event) {
    const { left, top, width, height } = this.#paper.getBoundingClientRect();
    return [(event.clientX - left) / width, (event.clientY - top) / height];
  }

  listenToKeys() {
    this.#paper.addEventListener("keydown", (event) => this.useKey(event));
    this.#paper.addEventListener("focus", () => {
      this.#pen.visible = this.#paper.matches(":focus-visible");
      this.paint();
    });
    this.#paper.addEventListener("blur", () => {
      this.#pen.visible = false;
      this.finish();
      this.paint();
    });
    document.addEventListener("keydown", (event) => {
      const command = event.ctrlKey || event.metaKey;
      if (command && !event.shiftKey && event.key.toLowerCase() === "z") this.undo();
      else if (event.key === "Delete" || event.key === "Backspace") this.clear();
      else return;
      event.preventDefault();
    });
  }

  useKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key !== " " && !(event.key in ARROWS)) return;
    event.preventDefault();
    if (event.key in ARROWS) this.movePen(ARROWS[event.key]);
    else if (!event.repeat) this.togglePen(); // not while it is held
  }

  movePen(move) {
    const { at } = this.#pen;
    this.#pen.at = at.map((value, axis) => Math.min(Math.max(value + move[axis] * STEP, 0), 1));
    this.#pen.visible = true;
    if (this.#stroke?.by === KEYS) this.extend([this.#pen.at]);
    else this.paint();
  }

  togglePen() {
    this.#pen.visible = true;
    if (this.#stroke?.by === KEYS) this.finish();
    else this.begin(this.#pen.at, KEYS);
  }
}

function isHard({ label, probabilities }) {
  return probabilities.some((each) => highest(each) !== label);
}

function nameOf({ number, label }) {
  return `Test image ${number}, ${label === 8 ? "an" : "a"} ${label}`;
}

try {
  new Page(await get("/shown"));
  document.body.dataset.ready = "";
} catch (error) {
  element("status").textContent = error.message;
}
