// The networks: forward pass, gradient with respect to the image, receptive fields.
//
// A network is what `describe_network` in networks.py returns, with its arrays decoded. Between its
// layers an image is planes, one for each channel, in double precision: pixel [channel, row, column]
// is x[(channel * side + row) * side + column]. In the formulas, x and y are a layer's input
// and output, dx and dy the gradients of a logit with respect to them.

// For each kind of layer: y of x, dx of dy, and the window of x that one pixel of y sees. `add`
// takes a second x, which has the same dx and the same window.
const KINDS = {
  conv: { forward: conv, gradient: convGradient, window: convWindow },
  relu: { forward: relu, gradient: reluGradient, window: pixelWindow },
  norm: { forward: norm, gradient: normGradient, window: pixelWindow },
  group_norm: { forward: groupNorm, gradient: groupNormGradient, window: everyWindow },
  max_pool: { forward: max, gradient: maxGradient, window: squareWindow },
  max: { forward: max, gradient: maxGradient, window: wholeWindow },
  mean: { forward: mean, gradient: meanGradient, window: wholeWindow },
  add: { forward: add, gradient: addGradient, window: pixelWindow },
};

// Returns the network of a description, with its arrays decoded.
export function decodeNetwork(description) {
  return { ...description, layers: description.layers.map(decodeLayer) };
}

// Returns { name, kind, shape: [H, W, C], values } of the output of every layer, in order; the last
// one holds the 10 logits. `pixels` are 784 values from 0 to 255, row by row, 255 for ink.
export function forward(network, pixels) {
  const [, ...outputs] = activations(network, pixels);
  return network.layers.map(({ name, kind, side, features }, k) => ({
    name,
    kind,
    shape: [side, side, features],
    values: channelsLast(outputs[k], features),
  }));
}

// Returns the 10 logits of an image.
export function predict(network, pixels) {
  return Float32Array.from(activations(network, pixels).at(-1));
}

// Returns the gradient of the logit of a digit with respect to the normalised image: 784 values.
export function gradient(network, pixels, digit) {
  const { layers } = network;
  const planes = activations(network, pixels);
  const gradients = []; // with respect to each of the planes
  gradients[layers.length] = new Float64Array(10);
  gradients[layers.length][digit] = 1;
  for (let k = layers.length - 1; k >= 0; k--) {
    const layer = layers[k];
    const dx = KINDS[layer.kind].gradient(layer, planes[k], gradients[k + 1]);
    for (const input of inputsOf(layer, k)) {
      gradients[input] = gradients[input] ? add(layer, gradients[input], dx) : dx;
    }
  }
  return Float32Array.from(gradients[0]);
}

// Returns the part of the image that a pixel in the output of layer number `index` sees: rows from
// top to bottom and columns from left to right, the ends excluded.
export function receptiveField(layers, index, row, column) {
  const fields = []; // in each of the planes
  fields[index + 1] = { top: row, left: column, bottom: row + 1, right: column + 1 };
  for (let k = index; k >= 0; k--) {
    const field = inputField(layers[k], fields[k + 1]);
    for (const input of inputsOf(layers[k], k)) fields[input] = union(field, fields[input]);
  }
  return fields[0];
}

// Returns the part of x that a part of y sees.
function inputField(layer, { top, left, bottom, right }) {
  const { size, stride, padding } = KINDS[layer.kind].window(layer);
  const first = (start) => Math.max(start * stride - padding, 0);
  const last = (end) => Math.min((end - 1) * stride - padding + size, layer.input_side);
  return { top: first(top), left: first(left), bottom: last(bottom), right: last(right) };
}

// Returns the smallest rectangle that contains both.
function union(one, other = one) {
  return {
    top: Math.min(one.top, other.top),
    left: Math.min(one.left, other.left),
    bottom: Math.max(one.bottom, other.bottom),
    right: Math.max(one.right, other.right),
  };
}

// Returns the probabilities of logits, as an array.
export function softmax(logits) {
  const highest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - highest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

// Returns the planes of a network: the normalised image, and after it the output of every layer.
function activations({ mean, std, layers }, pixels) {
  const planes = [Float64Array.from(pixels, (pixel) => (pixel / 255 - mean) / std)];
  for (const [k, layer] of layers.entries()) {
    const inputs = inputsOf(layer, k).map((input) => planes[input]);
    planes.push(KINDS[layer.kind].forward(layer, ...inputs));
  }
  return planes;
}

// Returns the places of the inputs of layer number k among the planes.
function inputsOf({ kind, source }, k) {
  return kind === "add" ? [k, source + 1] : [k];
}

// Convolution: y[o, p] = bias[o] + the sum over s and i of kernel[s, i, o] x[i, stride p + s], where
// x is padded with zeros, p is a pixel, s a shift, and i a channel of the group of o. In planes as
// wide as the padded x, a shift is the same step for all pixels, so that they are a single loop;
// what it computes beyond the right edge of y and between its pixels is left out.

function conv(layer, x) {
  const { inputs, input_side, features, groups, padding, kernel, bias } = layer;
  const width = input_side + 2 * padding;
  const side = width - layer.kernel_size + 1;
  const wide = pad(x, inputs, input_side, padding);
  const shifts = shiftsOf(layer, width);
  const weights = new Float64Array(shifts.length);
  const y = new Float64Array(features * width ** 2);
  for (let o = 0; o < features; o++) {
    const start = o * width ** 2;
    const plane = y.subarray(start, start + (side - 1) * width + side);
    const group = Math.floor((o * groups) / features);
    const source = wide.subarray(((group * inputs) / groups) * width ** 2);
    if (bias) plane.fill(bias[o]);
    for (let k = 0; k * features < kernel.length; k++) weights[k] = kernel[k * features + o];
    for (let k = 0; k < weights.length; k += 4) addFour(plane, source, weights, shifts, k);
  }
  return take(y, placesIn(layer, width));
}

// A convolution too, from y to x, where y has the zeros that a stride leaves out.
function convGradient(layer, x, dy) {
  const side = layer.input_side + 2 * layer.padding - layer.kernel_size + 1;
  const spread = put(dy, placesIn(layer, side), layer.features * side ** 2);
  return conv(mirrored(layer, side), spread);
}

function convWindow({ kernel_size, stride, padding }) {
  return { size: kernel_size, stride, padding };
}

// Returns the steps from a pixel p of y to the pixels [i, p + s] of x, in the order of the kernel's
// rows [(s, i), o], and zeros up to a multiple of four.
function shiftsOf({ kernel_size, inputs, groups }, width) {
  const channels = inputs / groups;
  const count = kernel_size ** 2 * channels;
  const shifts = new Int32Array(4 * Math.ceil(count / 4));
  for (let k = 0; k < count; k++) {
    const s = Math.floor(k / channels);
    const row = Math.floor(s / kernel_size);
    shifts[k] = ((k % channels) * width + row) * width + (s % kernel_size);
  }
  return shifts;
}

// Adds four weighted shifts of x to y; one at a time takes twice as long.
function addFour(y, x, weights, shifts, k) {
  const [w0, w1, w2, w3] = weights.subarray(k, k + 4);
  const [s0, s1, s2, s3] = shifts.subarray(k, k + 4);
  for (let p = 0; p < y.length; p++) {
    y[p] += w0 * x[p + s0] + w1 * x[p + s1] + w2 * x[p + s2] + w3 * x[p + s3];
  }
}

// Returns the convolution whose kernel[-s, o, i] is the layer's kernel[s, i, o].
function mirrored({ kernel, kernel_size, padding, inputs, features, groups, input_side }, side) {
  const [taken, given] = [inputs / groups, features / groups];
  const turned = new Float32Array(kernel.length);
  let k = 0;
  for (let s = kernel_size ** 2 - 1; s >= 0; s--) {
    for (let i = 0; i < taken; i++) {
      for (let group = 0; group < groups; group++) {
        const input = group * taken + i;
        for (let o = 0; o < given; o++) turned[(s * given + o) * inputs + input] = kernel[k++];
      }
    }
  }
  return {
    kernel: turned,
    kernel_size,
    stride: 1,
    padding: kernel_size - 1 - padding,
    inputs: features,
    features: inputs,
    groups,
    input_side: side,
    side: input_side,
  };
}

// Returns planes with zeros around them, `padding` pixels wide.
function pad(planes, channels, side, padding) {
  const width = side + 2 * padding;
  const padded = new Float64Array(channels * width ** 2);
  for (let channel = 0; channel < channels; channel++) {
    for (let row = 0; row < side; row++) {
      const from = (channel * side + row) * side;
      const to = (channel * width + row + padding) * width + padding;
      padded.set(planes.subarray(from, from + side), to);
    }
  }
  return padded;
}

// ReLU: y = max(x, 0); its gradient at 0 is 0.

function relu(layer, x) {
  return x.map((value) => Math.max(value, 0));
}

function reluGradient(layer, x, dy) {
  return dy.map((value, k) => (x[k] > 0 ? value : 0));
}

function pixelWindow() {
  return { size: 1, stride: 1, padding: 0 };
}

// Batch normalisation by the running statistics: y = (x - mean) scale / sqrt(var + epsilon) + bias.

function norm(layer, x) {
  const factors = normFactors(layer);
  const { bias, mean } = layer;
  return mapParts(x, bias.length, (value, c) => (value - mean[c]) * factors[c] + bias[c]);
}

function normGradient(layer, x, dy) {
  const factors = normFactors(layer);
  return mapParts(dy, factors.length, (value, c) => value * factors[c]);
}

function normFactors({ scale, var: variance, epsilon }) {
  return Float64Array.from(scale, (value, c) => value / Math.sqrt(variance[c] + epsilon));
}

// Group normalisation: y = z scale + bias and z = (x - mean) / sd, where mean and var are those of
// a group of channels in this image, and sd = sqrt(var + epsilon).

function groupNorm(layer, x) {
  const { scale, bias } = layer;
  const { z } = standardise(layer, x);
  return mapParts(z, bias.length, (value, c) => value * scale[c] + bias[c]);
}

// dx = (dz - the mean of dz - z times the mean of z dz) / sd, and dz = dy scale.
function groupNormGradient(layer, x, dy) {
  const { scale, groups } = layer;
  const { z, sd } = standardise(layer, x);
  const dz = mapParts(dy, scale.length, (value, c) => value * scale[c]);
  const means = meansOf(dz, groups);
  const products = meansOf(dz.map((value, k) => value * z[k]), groups);
  return mapParts(dz, groups, (value, g, k) => (value - means[g] - z[k] * products[g]) / sd[g]);
}

function standardise({ groups, epsilon }, x) {
  const means = meansOf(x, groups);
  const centred = mapParts(x, groups, (value, g) => value - means[g]);
  const squares = centred.map((value) => value ** 2);
  const sd = meansOf(squares, groups).map((variance) => Math.sqrt(variance + epsilon));
  return { z: mapParts(centred, groups, (value, g) => value / sd[g]), sd };
}

// A pixel sees all pixels, wherever it is.
function everyWindow({ input_side }) {
  return { size: 2 * input_side - 1, stride: 1, padding: input_side - 1 };
}

// Maximum: y is the largest pixel of each window of x, a 2x2 square or the whole plane; a last odd
// row or column is dropped. The gradient goes to that pixel, of equal ones to the first, as in
// models/layers.py.

function max(layer, x) {
  return take(x, largest(layer, x));
}

function maxGradient(layer, x, dy) {
  return put(dy, largest(layer, x), x.length);
}

function squareWindow() {
  return { size: 2, stride: 2, padding: 0 };
}

// Returns the place in x of the largest pixel of each window.
function largest(layer, x) {
  const { kind, input_side } = layer;
  const { size, stride } = KINDS[kind].window(layer);
  return placesIn({ ...layer, stride }, input_side).map((first) => {
    let place = first;
    for (let row = 0; row < size; row++) {
      const start = first + row * input_side;
      for (let other = start; other < start + size; other++) {
        if (x[other] > x[place]) place = other;
      }
    }
    return place;
  });
}

// Mean: y[c] is the mean of the pixels of a channel.

function mean({ features }, x) {
  return meansOf(x, features);
}

function meanGradient({ features, input_side }, x, dy) {
  return mapParts(x, features, (_, c) => dy[c] / input_side ** 2);
}

function wholeWindow({ input_side }) {
  return { size: input_side, stride: 1, padding: 0 };
}

// Addition of an earlier output, a residual connection: y = x + other.

function add(layer, x, other) {
  return x.map((value, k) => value + other[k]);
}

function addGradient(layer, x, dy) {
  return dy;
}

// Returns the places of the pixels of y in planes of another side, `stride` pixels apart.
function placesIn({ features, side, stride }, newSide) {
  const places = new Int32Array(features * side ** 2);
  let k = 0;
  for (let channel = 0; channel < features; channel++) {
    for (let row = 0; row < side; row++) {
      const start = (channel * newSide + row * stride) * newSide;
      for (let column = 0; column < side; column++) places[k++] = start + column * stride;
    }
  }
  return places;
}

// Returns the values at places.
function take(values, places) {
  const taken = new Float64Array(places.length);
  for (let k = 0; k < places.length; k++) taken[k] = values[places[k]];
  return taken;
}

// Returns values at places, and zeros elsewhere.
function put(values, places, length) {
  const result = new Float64Array(length);
  for (let k = 0; k < places.length; k++) result[places[k]] = values[k];
  return result;
}

// Returns a function of each value, the number of its part and its place; the parts are channels,
// or groups of channels.
function mapParts(planes, parts, f) {
  const result = new Float64Array(planes.length);
  const length = planes.length / parts;
  for (let part = 0; part < parts; part++) {
    for (let k = part * length; k < (part + 1) * length; k++) result[k] = f(planes[k], part, k);
  }
  return result;
}

// Returns the mean of each part.
function meansOf(planes, parts) {
  const means = new Float64Array(parts);
  const length = planes.length / parts;
  planes.forEach((value, k) => (means[Math.floor(k / length)] += value / length));
  return means;
}

// Returns planes as [H, W, C].
function channelsLast(planes, channels) {
  const values = new Float32Array(planes.length);
  const area = planes.length / channels;
  for (let c = 0; c < channels; c++) {
    for (let p = 0; p < area; p++) values[p * channels + c] = planes[c * area + p];
  }
  return values;
}

// The arrays that layers have.
const ARRAYS = ["kernel", "bias", "scale", "mean", "var"];

function decodeLayer(layer) {
  const names = ARRAYS.filter((name) => name in layer);
  return { ...layer, ...Object.fromEntries(names.map((name) => [name, floats(layer[name])])) };
}

// Decodes little-endian float32, the order of bytes in the typed arrays of every browser.
function floats(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let k = 0; k < bytes.length; k++) bytes[k] = text.charCodeAt(k);
  return new Float32Array(bytes.buffer);
}
