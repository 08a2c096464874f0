// Preparation of a picture of one digit as MNIST's were: jaxmnist.inference.pictures.prepare, with
// the steps of jaxmnist/inference/ink.py in the same order and under the same names.

import {
  above,
  affine,
  any,
  atLeast,
  clip,
  closeRows,
  crop,
  distanceTransform,
  equal,
  findObjects,
  gaussianFilter,
  greyClosing,
  image,
  label,
  lookUp,
  max,
  maximumLabels,
  mean,
  median,
  min,
  openRows,
  pairwiseSum,
  percentile,
  resizeBox,
  round,
  subtract,
  sumLabels,
  transpose,
  where,
  zoom,
} from "./image_ops.js";

const SIZE = 28; // side of MNIST's images, in pixels
const BOX = 20; // side of their digits

// Least contrast: as a fraction of the paper's brightness, and in standard deviations of noise.
const LEAST_INK = 0.05;
const LEAST_OF_NOISE = 8;
// Range of the longer side of a picture, in pixels; other pictures are resized.
const LEAST_SIZE = 140;
const MOST_SIZE = 400;
const EDGE = 0.35; // least contrast of faint ink with its local mean, as a fraction of the ink
// Fraction of the range from paper to ink below which ink is dust or camera noise.
const FAINT = 0.25;
const CORE = 0.6; // fraction of the ink above the blur between two strokes that nearly touch
// Fractions of the longer side of a picture.
const WINDOW = 1 / 2; // wider than any stroke
const THIN = 1 / 25; // thicker than any printed line
const LONG = 1 / 5; // least length of the straight runs of a line
const LINE = 0.45; // least length of a line
const BAND = 0.8; // least dark fraction of a row in a band along an edge
const BEYOND = 0.01; // least extent of a line beyond a digit, at both ends
const DEEP = 0.2; // least distance from the edges that a digit that touches them reaches
const SHADE = 0.5; // least ink of a digit that touches the edges, as a fraction of the paper
const SMALL = 0.06; // least size of a digit
// Fractions of the height of the tallest digit.
const SPECK = 1 / 6;
const LOW = 0.45;
// A digit's width, as a fraction of its height.
const NARROW = 0.9;
const WIDE = 1.8;
const MOST_DIGITS = 20;

const NOTHING = "nothing is drawn on it; expected a digit, dark or light";

// A picture that does not show one digit.
export class PictureError extends Error {
  name = "PictureError";
}

// A connected component, or several of one digit; `bottom` and `right` are exclusive.
class Part {
  constructor({ labels, top, bottom, left, right }) {
    Object.assign(this, { labels, top, bottom, left, right });
  }

  get height() {
    return this.bottom - this.top;
  }

  get width() {
    return this.right - this.left;
  }

  get size() {
    return Math.max(this.height, this.width);
  }
}

// Crop, scale and centre one digit like MNIST's.
//
// `greys`: width * height numbers, 0 to 255, row by row, dark on light or light on dark. Returns a
// Uint8Array of 28 * 28 pixels. Throws a PictureError if the picture does not show one digit.
export function prepare(greys, width, height) {
  const digits = findDigits(image(height, width, new Float64Array(greys)));
  if (digits.length !== 1) {
    throw new PictureError(`${digits.length} digits side by side; expected one`);
  }
  return digits[0];
}

// Find the digits in a picture, and scale and centre each like MNIST's, from left to right.
function findDigits(greys) {
  const { ink: all, noise } = inkOf(resized(greys));
  const inside = withoutLines(withoutFrame(threshold(all, noise)));
  const ink = threshold(withoutEdges(inside), noise);
  const { labels, parts } = components(ink);
  const darkest = maximumLabels(ink, labels);
  const tallest = Math.max(...parts.map((part) => part.size));
  if (tallest < SMALL * longest(ink)) throw new PictureError(NOTHING);
  const large = parts.filter((part) => part.size >= SPECK * tallest);
  // A dark speck is no measure of a pale digit.
  const least = CORE * Math.max(...large.map((part) => darkest[part.labels[0]]));
  const digits = group(large.filter((part) => darkest[part.labels[0]] >= least));
  if (digits.some((digit) => digit.width > WIDE * digit.height)) {
    throw new PictureError("what is drawn is wider than a digit; expected digits side by side");
  }
  if (digits.length > MOST_DIGITS) {
    throw new PictureError(
      `there are ${digits.length} marks on it; expected a digit or a number`,
    );
  }
  return digits.map((digit) => asMnist(cut(ink, labels, digit)));
}

function longest({ height, width }) {
  return Math.max(height, width);
}

// Resize a picture so that strokes are several pixels thick and processing stays fast.
function resized(greys) {
  const length = longest(greys);
  if (length <= Math.floor(LEAST_SIZE / 2)) return zoom(greys, Math.floor(LEAST_SIZE / length));
  if (length <= MOST_SIZE) return greys;
  const [height, width] = [greys.height, greys.width].map((side) =>
    Math.max(round((side * MOST_SIZE) / length), 1),
  );
  return image(height, width, new Float64Array(resizeBox(greys, height, width).values));
}

// Return how much darker each pixel is than the paper (1: black), and the noise level.
function inkOf(greys) {
  const length = longest(greys);
  let smooth = gaussianFilter(greys, length / 300);
  let blurred = gaussianFilter(greys, length / 100);
  if (!isDarkOnLight(blurred)) {
    [smooth, blurred] = [smooth, blurred].map((each) => affine(each, -1, 255));
  }
  const window = Math.floor(round(WINDOW * length) / 2) * 2 + 1;
  const light = greyClosing(blurred, window);
  const ink = subtract(light, smooth);
  // Relative to the illumination, for ink in a shadow. The floor of 128 limits the noise.
  for (let at = 0; at < ink.values.length; at += 1) {
    ink.values[at] /= Math.max(light.values[at], 128);
  }
  // The paper is lighter than the estimated light.
  const paper = percentile(ink.values, 25);
  return { ink: affine(ink, 1, -paper), noise: noiseOf(ink) };
}

function noiseOf({ height, width, values }) {
  const step = Math.max(Math.floor(longest({ height, width }) / 100), 1);
  const count = Math.max(width - step, 0);
  const changes = new Float64Array(height * count + 1);
  for (let row = 0; row < height; row += 1) {
    for (let column = 0; column < count; column += 1) {
      const at = row * width + column;
      changes[row * count + column] = Math.abs(values[at + step] - values[at]);
    }
  }
  // Most neighbours differ by noise alone, so the median gives its standard deviation.
  return (1.48 / Math.sqrt(2)) * median(changes);
}

// Return whether the ink is darker than the paper.
function isDarkOnLight(greys) {
  const [least, most] = [min(greys.values), max(greys.values)];
  // At least as far from the darkest grey as from the lightest.
  const light = atLeast(subtract(affine(greys, 1, -least), affine(greys, -1, most)), 0);
  const dark = equal(light, 0);
  const [lightSheet, darkSheet] = [sheet(light), sheet(dark)];
  if (lightSheet === 0 && darkSheet === 0) {
    // The picture is cropped at the digit, which may fill most of it: the edges are paper.
    return mean(edges(light, 1).flatMap(({ values }) => [...values])) >= 0.5;
  }
  // The smaller sheet lies on the larger one.
  return darkSheet === 0 || (0 < lightSheet && lightSheet <= darkSheet);
}

// Return the bands along the top, bottom, left and right edges.
function edges(picture, band) {
  const { height, width } = picture;
  const all = { top: 0, bottom: height, left: 0, right: width };
  return [
    { ...all, bottom: Math.min(band, height) },
    { ...all, top: Math.max(height - band, 0) },
    { ...all, right: Math.min(band, width) },
    { ...all, left: Math.max(width - band, 0) },
  ].map((box) => crop(picture, box));
}

// Return the area of the largest region if it is rectangular like a sheet, otherwise 0.
function sheet(region) {
  const { labels, count } = label(region, 4);
  if (!count) return 0;
  const areas = sumLabels(region, labels);
  const largest = areas.indexOf(max(areas));
  const inside = equal(crop(labels, findObjects(labels)[largest - 1]), largest);
  // A band, because sheets are rarely upright and a digit may reach an edge.
  const [top, bottom, left, right] = edges(inside, Math.max(Math.floor(longest(inside) / 30), 1));
  const isSheet =
    [transpose(top), transpose(bottom), left, right].every(
      (edge) => mean(rowFractions(edge).map((fraction) => fraction > 0)) >= 0.7,
    ) &&
    mean(inside.values) >= 0.5 &&
    Math.min(inside.height / region.height, inside.width / region.width) >= 0.5;
  return isSheet ? inside.values.length : 0;
}

// Return the fraction of each row that a mask contains.
function rowFractions({ height, width, values }) {
  return Array.from({ length: height }, (_, row) =>
    mean(values.subarray(row * width, (row + 1) * width)),
  );
}

// Remove ink that is faint compared with the darkest ink. Throws a PictureError if there is no ink.
function threshold(ink, noise) {
  const darkest = max(ink.values);
  const isLight = darkest < SHADE && !hasEdges(ink);
  if (isLight || darkest < Math.max(LEAST_INK, LEAST_OF_NOISE * noise)) {
    throw new PictureError(NOTHING);
  }
  return where(atLeast(ink, FAINT * darkest), ink);
}

// Faint ink has edges. Residual illumination has none.
function hasEdges(ink) {
  const detail = subtract(ink, gaussianFilter(ink, longest(ink) / 30));
  return max(detail.values) >= EDGE * max(ink.values);
}

// Return the labels, by default of connected ink, and the part of each label.
function components(ink, given = null) {
  const labels = given ?? label(above(ink, 0), 8).labels;
  const parts = findObjects(labels).flatMap((box, at) =>
    box === null ? [] : [new Part({ labels: [at + 1], ...box })],
  );
  return { labels, parts };
}

// Label connected ink; split regions that reach the left or right edge where ink is faint.
function cores(ink) {
  const { labels, count } = label(above(ink, 0), 8);
  const { labels: core } = label(above(ink, CORE * max(ink.values)), 8);
  const inRegion = maximumLabels(core, labels);
  const parted = new Uint8Array(count + 1);
  const [, , left, right] = edges(labels, 1);
  for (const number of [...left.values, ...right.values]) parted[number] = inRegion[number] > 0;
  if (!any(parted)) return labels;
  const { nearest } = distanceTransform(equal(core, 0));
  const split = labels.values.map((number, at) =>
    parted[number] ? core.values[nearest.values[at]] + count : number,
  );
  return image(labels.height, labels.width, split);
}

// Crop dark bands along the edges, such as a desk around the sheet.
function withoutFrame(ink) {
  const dark = above(ink, 0);
  const rows = inside(rowFractions(dark));
  const columns = inside(rowFractions(transpose(dark)));
  const box = { top: rows.first, bottom: rows.end, left: columns.first, right: columns.end };
  const inner = crop(dark, box);
  const isCut = [box.top > 0, box.bottom < ink.height, box.left > 0, box.right < ink.width];
  const openEdges = edges(inner, 1).filter((_, at) => !isCut[at]);
  // In a picture cropped at the digit, strokes reach the edges: keep all of it.
  const isCropped = openEdges.some((edge) => mean(edge.values) > 0.1);
  return isCropped || !any(inner.values) ? ink : crop(ink, box);
}

// Return the range between the bands at both ends, from the dark fraction of each row.
function inside(dark) {
  const most = Math.floor(dark.length / 4);
  const end = (fractions) => {
    const place = fractions.slice(0, most).findIndex((fraction) => fraction < BAND);
    return place < 0 ? most : place;
  };
  return { first: end(dark), end: dark.length - end([...dark].reverse()) };
}

// Remove ruled lines, grids and boxes: thin, straight, and longer than the digit.
function withoutLines(ink) {
  const dark = above(ink, 0);
  const across = lines(dark);
  const down = transpose(lines(transpose(dark)));
  const isRest = neither(across, down);
  const { labels, parts: all } = components(where(isRest, ink));
  const parts = all.filter((part) => part.size >= SMALL * longest(ink));
  if (!parts.length) {
    // A box or grid, or a digit that is one line.
    const isBox = any(across.values) && any(down.values);
    return isBox ? image(ink.height, ink.width) : withoutEdges(ink);
  }
  if (!any(across.values) && !any(down.values)) return ink;
  const free = parts.filter((part) => !touches(part, ink));
  const main = (free.length ? free : parts).reduce((one, other) =>
    other.size > one.size ? other : one,
  );
  const { distances } = distanceTransform(equal(labels, main.labels[0]));
  const stroke = 2 * max(distances.values);
  const longAcross = longer(across, main.left, main.right, stroke);
  const longDown = transpose(longer(transpose(down), main.top, main.bottom, stroke));
  return where(neither(longAcross, longDown), ink);
}

function neither(one, other) {
  return where(equal(one, 0), equal(other, 0));
}

// Return the pixels of thin horizontal lines, except where strokes cross them.
function lines(dark) {
  const length = round(LONG * longest(dark));
  const thickness = round(THIN * longest(dark));
  // Lines are rarely straight: a pixel up or down counts as the same row.
  const runs = openRows(thickened(dark), Math.max(length, 3));
  const strokes = transpose(openRows(transpose(dark), thickness + 1));
  return where(equal(strokes, 0), where(runs, dark));
}

// Return the dilation of a mask by a pixel up and down.
function thickened({ height, width, values }) {
  const result = image(height, width, values.slice());
  for (let at = width; at < values.length; at += 1) {
    if (values[at]) result.values[at - width] = 1;
    if (values[at - width]) result.values[at] = 1;
  }
  return result;
}

// Select the lines that extend beyond the digit at both ends, or are far thinner than strokes.
//
// `left` and `right`: the first column of the digit and the one after its last; `stroke`: the
// thickness of its strokes, in pixels.
function longer(rows, left, right, stroke) {
  // A digit interrupts a line that it crosses: close the gap.
  const { labels } = label(closeRows(rows, right - left + 5), 8);
  const areas = sumLabels(rows, labels);
  const kept = findObjects(labels).map((box, at) => {
    const length = box.right - box.left;
    const beyond = Math.min(left - box.left, box.right - right) >= BEYOND * rows.width;
    return length >= LINE * rows.width && (beyond || areas[at + 1] < 0.4 * stroke * length);
  });
  return where(lookUp([false, ...kept], labels), rows);
}

// Return whether a part touches an edge of the picture.
function touches(part, { height, width }) {
  return part.top === 0 || part.left === 0 || part.bottom === height || part.right === width;
}

// Remove parts that touch the edges: a desk, a strip, a shadow, a part of the next digit. Throws a
// PictureError if nothing else remains.
function withoutEdges(ink) {
  const { labels, parts } = components(ink, cores(ink));
  const touching = parts.filter((part) => touches(part, ink));
  const free = parts.filter(
    (part) => !touches(part, ink) && part.size >= SMALL * longest(ink),
  );
  const mass = sumLabels(ink, labels);
  const depth = maximumLabels(distanceToEdge(ink), labels);
  const most = Math.max(0, ...free.map((part) => mass[part.labels[0]]));
  const isInk = max(ink.values) >= SHADE;
  // Keep a digit that the crop touches: nothing else is as large, and shadows are fainter.
  const isCropped = ({ labels: [number] }) =>
    isInk && depth[number] >= DEEP * Math.min(ink.height, ink.width) && mass[number] > most;
  const kept = new Uint8Array(mass.length).fill(1);
  for (const part of touching) kept[part.labels[0]] = isCropped(part);
  const rest = where(lookUp(kept, labels), ink);
  if (!any(rest.values)) throw new PictureError(`${NOTHING}, within its edges`);
  return rest;
}

function distanceToEdge({ height, width }) {
  const result = image(height, width);
  for (let row = 0; row < height; row += 1) {
    for (let column = 0; column < width; column += 1) {
      const nearest = Math.min(row, height - 1 - row, column, width - 1 - column);
      result.values[row * width + column] = nearest;
    }
  }
  return result;
}

// Merge the parts of each digit; digits are side by side.
function group(parts) {
  const tallestPart = Math.max(...parts.map((part) => part.height));
  const digits = [];
  for (const part of [...parts].sort((one, other) => one.left - other.left)) {
    if (digits.length && isOneDigit(digits.at(-1), part, tallestPart)) {
      digits.push(join(digits.pop(), part));
    } else {
      digits.push(part);
    }
  }
  const tallest = Math.max(...digits.map((digit) => digit.height));
  return digits.filter((digit) => digit.height >= LOW * tallest);
}

// Return whether two parts overlap horizontally, or are close and narrow enough together.
function isOneDigit(left, right, tallest) {
  const gap = right.left - left.right;
  const overlaps = -gap >= Math.min(left.width, right.width) / 4;
  const both = join(left, right);
  const isLow = Math.min(left.height, right.height) < LOW * tallest;
  const close = gap <= 0.12 * both.height && (isLow || both.width <= NARROW * both.height);
  return overlaps || close;
}

function join(one, other) {
  return new Part({
    labels: [...one.labels, ...other.labels],
    top: Math.min(one.top, other.top),
    bottom: Math.max(one.bottom, other.bottom),
    left: Math.min(one.left, other.left),
    right: Math.max(one.right, other.right),
  });
}

// Return the ink of a digit, 0 to 1, in its bounding box.
function cut(ink, labels, digit) {
  const own = new Uint8Array(max(labels.values) + 1);
  for (const number of digit.labels) own[number] = 1;
  const inside = where(lookUp(own, crop(labels, digit)), crop(ink, digit));
  const darkest = max(inside.values);
  return image(inside.height, inside.width, inside.values.map((value) => value / darkest));
}

// Scale ink, 0 to 1, to 20 x 20 pixels, with its centre of mass in the middle of 28 x 28.
function asMnist(ink) {
  const scale = BOX / longest(ink);
  const [height, width] = [ink.height, ink.width].map((side) =>
    Math.max(round(side * scale), 1),
  );
  const digit = resizeBox(ink, height, width);
  const top = offset(rowSums(digit, pairwiseSum));
  const left = offset(rowSums(transpose(digit), sequentialSum));
  const darkest = max(digit.values);
  const picture = new Uint8Array(SIZE * SIZE);
  digit.values.forEach((value, at) => {
    const [row, column] = [top + Math.floor(at / width), left + (at % width)];
    picture[row * SIZE + column] = round(255 * Math.fround(value / darkest));
  });
  return picture;
}

// Return the float32 sum of each row, as np.sum along the last axis (pairwise) or the first one.
function rowSums({ height, width, values }, sum) {
  return Float32Array.from({ length: height }, (_, row) =>
    sum(values.subarray(row * width, (row + 1) * width), Math.fround),
  );
}

function sequentialSum(values, rounded) {
  return values.reduce((sum, value) => rounded(sum + value), 0);
}

// Return the first row of a digit with its centre of mass, from its rows, in the middle.
function offset(mass) {
  const moment = mass.reduce((sum, value, at) => sum + (at + 0.5) * value, 0);
  const centre = moment / pairwiseSum(mass, Math.fround);
  return clip(round(SIZE / 2 - centre), 0, SIZE - mass.length);
}
