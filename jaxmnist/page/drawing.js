// A drawing, its history, and how it looks.
//
// A drawing is { example, strokes }: a test image or null, and over it strokes, which are lists of
// points [x, y] from 0 to 1. It is never changed; each action makes a new one.

export const EMPTY = { example: null, strokes: [] };

// Of the paper's side: about that of MNIST's digits once a drawing is scaled to 20 pixels.
const PEN = 0.07;
const INK = "#14202e";
const MARK = "#c2410c";

export class History {
  #past = [];
  now = EMPTY;

  do(drawing) {
    this.#past.push(this.now);
    this.now = drawing;
  }

  undo() {
    this.now = this.#past.pop() ?? EMPTY;
  }

  get canUndo() {
    return this.#past.length > 0;
  }
}

export function isEmpty(drawing) {
  return drawing.example === null && drawing.strokes.length === 0;
}

// Paints the whole of a canvas, dark on white.
export function paint(canvas, drawing, ink = INK) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const side = canvas.width;
  context.fillStyle = "#fff";
  context.fillRect(0, 0, side, side);
  if (drawing.example) {
    context.imageSmoothingQuality = "high";
    context.drawImage(pictureOf(drawing.example.pixels, ink), 0, 0, side, side);
  }
  context.strokeStyle = context.fillStyle = ink;
  context.lineWidth = PEN * side;
  context.lineCap = context.lineJoin = "round";
  for (const stroke of drawing.strokes) {
    paintStroke(context, stroke.map(([x, y]) => [x * side, y * side]));
  }
}

// Paints the keyboard's pen, filled where it is down.
export function paintPen(canvas, at, isDown) {
  const context = canvas.getContext("2d");
  context.beginPath();
  context.arc(at[0] * canvas.width, at[1] * canvas.width, canvas.width / 40, 0, 2 * Math.PI);
  context.lineWidth = 5;
  context.strokeStyle = context.fillStyle = MARK;
  context.stroke();
  if (isDown) context.fill();
}

// Returns the greys of a drawing, row by row, 255 for white.
export function greysOf(drawing, side) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = side;
  paint(canvas, drawing, "#000");
  const { data } = canvas.getContext("2d").getImageData(0, 0, side, side);
  return new Uint8Array(side * side).map((_, place) => data[4 * place]);
}

// Returns a test image as a canvas, its ink in a colour and its background transparent.
export function pictureOf(pixels, colour = "#fff") {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = Math.sqrt(pixels.length);
  const context = canvas.getContext("2d");
  context.fillStyle = colour;
  context.fillRect(0, 0, canvas.width, canvas.height);
  const image = context.getImageData(0, 0, canvas.width, canvas.height);
  pixels.forEach((grey, place) => (image.data[4 * place + 3] = grey));
  context.putImageData(image, 0, 0);
  return canvas;
}

function paintStroke(context, points) {
  context.beginPath();
  if (points.length === 1) {
    context.arc(...points[0], context.lineWidth / 2, 0, 2 * Math.PI);
    context.fill();
    return;
  }
  context.moveTo(...points[0]);
  // From the middle of a segment to the middle of the next, so that there are no corners.
  for (let place = 1; place < points.length - 1; place += 1) {
    const [x, y] = points[place];
    const [nextX, nextY] = points[place + 1];
    context.quadraticCurveTo(x, y, (x + nextX) / 2, (y + nextY) / 2);
  }
  context.lineTo(...points.at(-1));
  context.stroke();
}
