// The picture that the networks see, what speaks for and against an answer, and an outline.

import { colourOf } from "./elements.js";

const SIDE = 28;
const DIMMED = 0.55; // of the picture below the colours

export class Picture {
  #canvas;
  #context;
  #outline;

  constructor(canvas, outline) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    this.#outline = outline;
  }

  // `pixels`: 784 greys, or null; `evidence`: 784 values, positive for, or null.
  show(pixels, evidence) {
    if (!pixels) {
      this.#context.clearRect(0, 0, SIDE, SIDE);
      return;
    }
    const image = this.#context.createImageData(SIDE, SIDE);
    const colours = evidence
      ? evidenceColours(pixels, evidence)
      : Array.from(pixels, (grey) => [grey, grey, grey]);
    colours.forEach((colour, place) => image.data.set([...colour, 255], 4 * place));
    this.#context.putImageData(image, 0, 0);
  }

  // Outlines a part of the picture, in pixels; null: none.
  outline(field) {
    this.#outline.hidden = !field;
    if (field) frame(this.#outline, field, SIDE);
  }
}

// Returns the colour of each pixel: the picture, dimmed, below the colour of its evidence.
function evidenceColours(pixels, evidence) {
  const [speaksFor, speaksAgainst] = [colourOf("--for"), colourOf("--against")];
  const largest = evidence.reduce((most, each) => Math.max(most, Math.abs(each)), 1e-9);
  return Array.from(evidence, (value, place) => {
    const cover = Math.sqrt(Math.abs(value) / largest);
    const below = DIMMED * pixels[place];
    return (value > 0 ? speaksFor : speaksAgainst).map((part) => below + cover * (part - below));
  });
}

// Lays an element over part of a square of `side` pixels.
export function frame(place, { top, left, bottom, right }, side) {
  const share = (pixels) => `${(100 * pixels) / side}%`;
  place.style.top = share(top);
  place.style.left = share(left);
  place.style.height = share(bottom - top);
  place.style.width = share(right - left);
}
