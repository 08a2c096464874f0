// Every layer of a network from the image to the answer, as small pictures.

import { colourOf, make, plural } from "./elements.js";
import { receptiveField } from "./network.js";
import { frame } from "./picture.js";

const MOST_MAPS = 64; // of a block that are shown
const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
// What follows a convolution or a pooling belongs to its block.
const FOLLOWERS = ["relu", "norm", "group_norm", "add"];

export class Layers {
  #place;
  #onPoint;
  #layers = [];
  #blocks = [];

  // `onPoint({ field, words })` is called with what a pixel sees of the image, or with null.
  constructor(place, onPoint) {
    this.#place = place;
    this.#onPoint = onPoint;
  }

  choose({ layers }) {
    this.#layers = layers;
    this.#blocks = blocksOf(layers).map((block, place) => makeBlock(layers, block, place + 1));
    this.#place.replaceChildren(...this.#blocks.map(({ row }) => row));
    for (const block of this.#blocks) this.#listen(block);
    this.show(null);
  }

  // `outputs`: those of `forward`, or null.
  show(outputs) {
    const colours = ramp();
    for (const { last, maps, side, scores } of this.#blocks) {
      if (scores) showScores(scores, outputs && outputs[last].values);
      else showMaps(maps, outputs && outputs[last].values, side, colours);
    }
  }

  #listen(block) {
    const { maps, strip, side } = block;
    for (const map of maps) {
      const point = (event) => {
        const { left, top, width } = map.canvas.getBoundingClientRect();
        const at = (offset) => clamp(Math.floor((offset / width) * side), side);
        this.#point(block, map, at(event.clientY - top), at(event.clientX - left));
      };
      map.canvas.addEventListener("pointermove", point);
      map.canvas.addEventListener("pointerdown", point);
    }
    if (block.scores) return;
    strip.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") this.#unpoint(block);
    });
    strip.addEventListener("focus", () => {
      if (strip.matches(":focus-visible")) this.#point(block, maps[0], side >> 1, side >> 1);
    });
    strip.addEventListener("blur", () => this.#unpoint(block));
    strip.addEventListener("keydown", (event) => {
      if (!(event.key in ARROWS) || !block.at) return;
      event.preventDefault();
      const [down, right] = ARROWS[event.key];
      const [row, column] = block.at;
      this.#point(block, block.map, clamp(row + down, side), clamp(column + right, side));
    });
  }

  #point(block, map, row, column) {
    for (const other of this.#blocks) if (other !== block) other.marker?.remove();
    block.map = map;
    block.at = [row, column];
    map.canvas.after(block.marker);
    frame(block.marker, { top: row, left: column, bottom: row + 1, right: column + 1 }, block.side);
    const field = receptiveField(this.#layers, block.last, row, column);
    const size = `${field.bottom - field.top} × ${field.right - field.left}`;
    this.#onPoint({
      field,
      words:
        `Row ${row + 1}, column ${column + 1} after step ${block.number} sees ${size} pixels: ` +
        `rows ${field.top + 1} to ${field.bottom}, columns ${field.left + 1} to ${field.right}.`,
    });
  }

  #unpoint(block) {
    block.marker.remove();
    block.at = null;
    this.#onPoint(null);
  }
}

// Returns the nearest place within a side.
function clamp(place, side) {
  return Math.min(Math.max(place, 0), side - 1);
}

// ---- Blocks

// Returns [first, last] of each block: a convolution or a pooling, and what follows it.
function blocksOf(layers) {
  const blocks = [];
  layers.forEach(({ kind }, k) => {
    if (FOLLOWERS.includes(kind) && blocks.length) blocks.at(-1)[1] = k;
    else blocks.push([k, k]);
  });
  return blocks;
}

function makeBlock(layers, [first, last], number) {
  const { side, features } = layers[last];
  const members = layers.slice(first, last + 1);
  const isEnd = last === layers.length - 1;
  const count = isEnd ? 0 : Math.min(features, MOST_MAPS);
  const maps = Array.from({ length: count }, () => makeMap(side));
  const scores = isEnd ? Array.from({ length: features }, (_, digit) => makeScore(digit)) : null;
  const strip = scores ? make("div", { class: "maps" }) : makeStrip(number, features - count);
  strip.prepend(...(scores ?? maps).map(({ cell }) => cell));
  strip.style.setProperty("--side", side);
  const row = make("li", {}, makeWords(members, factsOf(layers, last, members)), strip);
  const marker = make("span", { class: "marker" });
  return { row, strip, number, last, side, maps, scores, marker, map: null, at: null };
}

function makeStrip(number, left) {
  const label = `Maps after step ${number}; the arrow keys move over their pixels`;
  const strip = make("div", { class: "maps", tabindex: 0, role: "group", "aria-label": label });
  if (left) strip.append(make("span", { class: "more" }, `and ${left.toLocaleString("en")} more`));
  return strip;
}

function makeWords(members, facts) {
  const [title, ...followers] = members.map(nameOf);
  const rest = followers.map((name) => `, ${name}`).join("");
  return make(
    "div",
    { class: "step" },
    make("h3", {}, make("strong", {}, title), rest),
    make("p", {}, ...facts.map((fact) => make("span", {}, fact))),
  );
}

function nameOf({ kind, kernel_size, stride, depthwise, groups, source, input_side }) {
  const window = `${kernel_size} × ${kernel_size}`;
  const names = {
    conv: `${window} ${depthwise ? "depthwise " : ""}convolution`,
    relu: "ReLU",
    norm: "normalisation",
    group_norm: groups > 1 ? `normalisation in ${groups} groups` : "layer normalisation",
    max_pool: "2 × 2 max-pooling",
    max: `Maximum of ${input_side} × ${input_side}`,
    mean: `Average of ${input_side} × ${input_side}`,
    add: source < 0 ? "addition of the image" : "addition of earlier maps",
  };
  return names[kind] + (stride > 1 ? ` with stride ${stride}` : "");
}

function factsOf(layers, last, members) {
  const { side, features } = layers[last];
  const parameters = members.reduce((sum, layer) => sum + parametersOf(layer), 0);
  const middle = receptiveField(layers, last, side >> 1, side >> 1);
  const maps = `${plural(features, "map")} of ${side} × ${side}`;
  return [
    last === layers.length - 1 ? "10 scores, one for each digit" : maps,
    parameters ? plural(parameters, "parameter") : "no parameters",
    `sees ${middle.bottom - middle.top} × ${middle.right - middle.left} pixels`,
  ];
}

function parametersOf(layer) {
  const { kernel, scale, bias } = layer;
  return [kernel, scale, bias].reduce((sum, array) => sum + (array?.length ?? 0), 0);
}

// ---- Maps

function makeMap(side) {
  const canvas = make("canvas", { width: side, height: side });
  const context = canvas.getContext("2d");
  const image = context.createImageData(side, side);
  const colours = new Uint32Array(image.data.buffer);
  return { cell: make("span", { class: "map" }, canvas), canvas, context, image, colours };
}

// The maps of a layer share a scale: its smallest value is the one colour, its largest the other.
function showMaps(maps, values, side, colours) {
  if (!values) {
    for (const { context } of maps) context.clearRect(0, 0, side, side);
    return;
  }
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  const channels = values.length / side ** 2;
  const scale = 255 / Math.max(high - low, 1e-9);
  maps.forEach((map, channel) => {
    for (let place = 0; place < side ** 2; place++) {
      map.colours[place] = colours[Math.round((values[place * channels + channel] - low) * scale)];
    }
    map.context.putImageData(map.image, 0, 0);
  });
}

// Returns 256 colours between the two of the style sheet, as pixels of a canvas.
function ramp() {
  const [low, high] = [colourOf("--low"), colourOf("--high")];
  const bytes = new Uint8ClampedArray(4 * 256);
  for (let grey = 0; grey < 256; grey++) {
    for (let k = 0; k < 3; k++) bytes[4 * grey + k] = low[k] + ((high[k] - low[k]) * grey) / 255;
    bytes[4 * grey + 3] = 255;
  }
  return new Uint32Array(bytes.buffer);
}

// ---- The scores at the end

function makeScore(digit) {
  const value = make("span", {}, "–");
  return { cell: make("span", { class: "score" }, make("b", {}, digit), value), value };
}

function showScores(scores, logits) {
  const largest = logits && Math.max(...logits);
  for (const [digit, { cell, value }] of scores.entries()) {
    value.textContent = logits ? logits[digit].toFixed(1).replace("-", "−") : "–";
    cell.classList.toggle("highest", logits !== null && logits[digit] === largest);
  }
}
