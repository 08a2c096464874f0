// The page: drawings become pictures, and pictures answers, once a frame.

import { EMPTY, greysOf, isEmpty, pictureOf } from "./drawing.js";
import { element, make, plural, write } from "./elements.js";
import { Ladder, highest, sentenceOf } from "./ladder.js";
import { Layers } from "./layers.js";
import { decodeNetwork, forward, gradient, predict } from "./network.js";
import { Paper } from "./paper.js";
import { Picture } from "./picture.js";
import { prepare } from "./prepare.js";

const SIDE = 84; // of a drawing that is prepared: three pixels for one of the networks
const FAVOURITE = "gap"; // is chosen at the start, if it is there

const read = (id) => JSON.parse(element(id).textContent);
const bytes = (base64) => Uint8Array.from(atob(base64), (byte) => byte.charCodeAt(0));

class Page {
  #networks;
  #chosen;
  #pixels = null; // what the networks see
  #message = ""; // why they see nothing
  #isDue = false; // whether a frame has been asked for

  constructor(networks, examples) {
    this.#networks = networks;
    this.paper = new Paper(element("paper"), () => this.#look());
    this.picture = new Picture(element("seen"), element("outline"));
    this.layers = new Layers(element("steps"), (pointed) => this.#point(pointed));
    this.ladder = new Ladder(element("networks"), networks, (network) => this.#choose(network));
    for (const kind of ["easy", "hard"]) this.#offer(element(kind), examples?.[kind] ?? []);
    this.#listen();
    write(element("lead"), leadOf(networks));
    this.#look();
    this.#choose(networks.find(({ name }) => name === FAVOURITE) ?? networks.at(-1));
  }

  #offer(place, examples) {
    place.append(...examples.map((example) => this.#makeExample(example)));
    place.parentElement.hidden = examples.length === 0;
  }

  #makeExample({ number, label, pixels }) {
    const example = { number, label, pixels: bytes(pixels) };
    const name = nameOf(example);
    const button = make("button", { type: "button", "aria-label": name, title: name });
    button.append(pictureOf(example.pixels));
    button.addEventListener("click", () => this.paper.replace({ example, strokes: [] }));
    return button;
  }

  #listen() {
    element("undo").addEventListener("click", () => this.paper.undo());
    element("clear").addEventListener("click", () => this.paper.clear());
    element("evidence").addEventListener("click", ({ currentTarget }) => {
      currentTarget.setAttribute("aria-pressed", !this.#showsEvidence);
      this.#draw();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
  }

  get #showsEvidence() {
    return element("evidence").getAttribute("aria-pressed") === "true";
  }

  #choose(network) {
    this.#chosen = network;
    this.ladder.choose(network.name);
    this.layers.choose(network);
    this.#point(null);
    for (const place of document.querySelectorAll(".chosen")) write(place, network.name);
    this.#draw();
  }

  // Prepares the drawing at the next frame, however many changes there are before it.
  #look() {
    const { paper } = this;
    element("undo").setAttribute("aria-disabled", !paper.canUndo);
    element("clear").setAttribute("aria-disabled", isEmpty(paper.drawing));
    element("hint").hidden = !isEmpty(paper.drawing);
    if (this.#isDue) return;
    this.#isDue = true;
    requestAnimationFrame(() => {
      this.#isDue = false;
      [this.#pixels, this.#message] = see(paper.drawing);
      this.#draw();
    });
  }

  #draw() {
    const pixels = this.#pixels;
    const { example, strokes } = this.paper.drawing;
    const known = example && strokes.length === 0 ? example : null;
    const outputs = pixels && forward(this.#chosen, pixels);
    const logits = pixels && this.#networks.map((network) =>
      network === this.#chosen ? outputs.at(-1).values : predict(network, pixels),
    );
    const answer = pixels && highest(outputs.at(-1).values);
    const evidence = pixels && this.#showsEvidence ? gradient(this.#chosen, pixels, answer) : null;
    this.picture.show(pixels, evidence);
    this.layers.show(outputs);
    this.ladder.show(logits, known?.label);
    const words = pixels ? sentenceOf(this.#networks, logits) : this.#message;
    write(element("status"), known ? `${nameOf(known)}. ${words}` : words);
    element("legend").hidden = !evidence;
    for (const place of document.querySelectorAll(".digit")) write(place, String(answer ?? "it"));
  }

  #point(pointed) {
    this.picture.outline(pointed?.field);
    write(element("field"), pointed?.words ?? "");
  }
}

// Returns the pixels of a drawing as the networks see it, and null; or null, and the reason.
function see(drawing) {
  if (isEmpty(drawing)) return [null, "Draw with mouse, finger or keys."];
  if (drawing.example && drawing.strokes.length === 0) return [drawing.example.pixels, null];
  try {
    return [prepare(greysOf(drawing, SIDE), SIDE, SIDE), null];
  } catch (error) {
    return [null, `Not read: ${error.message}.`];
  }
}

function nameOf({ number, label }) {
  return `Test image ${number}, ${label === 8 ? "an" : "a"} ${label}`;
}

function leadOf(networks) {
  const sizes = networks.map(({ parameters }) => parameters);
  const [least, most] = [Math.min(...sizes), Math.max(...sizes)];
  const range = least === most ? "" : `${least.toLocaleString("en")} to `;
  const who = networks.length === 1 ? ["A network", "reads"] : ["Networks", "read"];
  return (
    `${who[0]} of ${range}${plural(most, "parameter")} ${who[1]} it while you draw. ` +
    "Everything runs in this page; nothing leaves it."
  );
}

const networks = read("networks-data").map(decodeNetwork);

function find(name) {
  const found = networks.find((network) => network.name === name);
  if (!found) throw new RangeError(`${name} is no network of this page`);
  return found;
}

window.jaxmnist = {
  networks,
  prepare,
  predict: (name, pixels) => predict(find(name), pixels),
  layers: (name, pixels) => forward(find(name), pixels),
  saliency: (name, pixels, digit) => gradient(find(name), pixels, digit),
};

new Page(networks, read("examples-data"));
document.body.dataset.ready = "";
