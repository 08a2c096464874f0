// The networks: forward pass, gradient with respect to the image, receptive fields.
//
// A network is what `describe_network` in networks.py returns, with its arrays decoded. Between its
// layers an image is planes, one for each channel, in double precision: pixel [channel, row, column]
// is x[(channel * side + row) * side + column]. In the formulas, x and y are a layer's input
// and output, dx and dy the gradients of a logit with respect to them.

// For each kind of layer: y of x, dx of dy, and the window of x that one pixel of y sees.
const KINDS = {
  conv: { forward: conv, gradient: convGradient, window: convWindow },
  relu: { forward: relu, gradient: reluGradient, window: pixelWindow },
  norm: { forward: norm, gradient: normGradient, window: pixelWindow },
  max_pool: { forward: maxPool, gradient: maxPoolGradient, window: squareWindow },
  mean: { forward: mean, gradient: meanGradient, window: wholeWindow },
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
  const inputs = activations(network, pixels);
  let dy = new Float64Array(10);
  dy[digit] = 1;
  for (let k = network.layers.length - 1; k >= 0; k--) {
    const layer = network.layers[k];
    dy = KINDS[layer.kind].gradient(layer, inputs[k], dy);
  }
  return Float32Array.from(dy);
}

// Returns the part of the image that a pixel in the output of layer number `index` sees: rows from
// top to bottom and columns from left to right, the ends excluded.
export function receptiveField(layers, index, row, column) {
  let [top, bottom, left, right] = [row, row + 1, column, column + 1];
  for (const layer of layers.slice(0, index + 1).reverse()) {
    const { size, stride, padding } = KINDS[layer.kind].window(layer);
    const first = (start) => Math.max(start * stride - padding, 0);
    const last = (end) => Math.min((end - 1) * stride - padding + size, layer.input_side);
    [top, bottom, left, right] = [first(top), last(bottom), first(left), last(right)];
  }
  return { top, left, bottom, right };
}

// Returns the probabilities of logits, as an array.
export function softmax(logits) {
  const highest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - highest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

// Returns the normalised image, and after it the output of every layer.
function activations({ mean, std, layers }, pixels) {
  const planes = [Float64Array.from(pixels, (pixel) => (pixel / 255 - mean) / std)];
  for (const layer of layers) planes.push(KINDS[layer.kind].forward(layer, planes.at(-1)));
  return planes;
}

// Convolution: y[o, p] = bias[o] + the sum over s and i of kernel[s, i, o] x[i, p + s], where x is
// padded with zeros, p is a pixel and s a shift. In planes as wide as the padded x, a shift is the
// same step for all pixels, so that they are a single loop; what it computes beyond the right edge
// of y is cropped.

function conv(layer, x) {
  const { inputs, input_side, features, side, padding, kernel, bias } = layer;
  const width = input_side + 2 * padding;
  const wide = reframe(x, inputs, input_side, width, padding);
  const shifts = shiftsOf(layer, width);
  const weights = new Float64Array(shifts.length);
  const y = new Float64Array(features * width * width);
  for (let o = 0; o < features; o++) {
    const start = o * width * width;
    const plane = y.subarray(start, start + (side - 1) * width + side);
    if (bias) plane.fill(bias[o]);
    for (let k = 0; k * features < kernel.length; k++) weights[k] = kernel[k * features + o];
    for (let k = 0; k < weights.length; k += 4) addFour(plane, wide, weights, shifts, k);
  }
  return reframe(y, features, width, side, 0);
}

// A convolution too, from y to x.
function convGradient(layer, x, dy) {
  return conv(mirrored(layer), dy);
}

function convWindow({ kernel_size, padding }) {
  return { size: kernel_size, stride: 1, padding };
}

// Returns the steps from a pixel p of y to the pixels [i, p + s] of x, in the order of the kernel's
// rows [(s, i), o], and zeros up to a multiple of four.
function shiftsOf({ kernel_size, inputs }, width) {
  const count = kernel_size ** 2 * inputs;
  const shifts = new Int32Array(4 * Math.ceil(count / 4));
  for (let k = 0; k < count; k++) {
    const s = Math.floor(k / inputs);
    const row = Math.floor(s / kernel_size);
    shifts[k] = ((k % inputs) * width + row) * width + (s % kernel_size);
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
function mirrored({ kernel, kernel_size, padding, inputs, features, input_side, side }) {
  const turned = new Float32Array(kernel.length);
  let k = 0;
  for (let s = kernel_size ** 2 - 1; s >= 0; s--) {
    for (let i = 0; i < inputs; i++) {
      for (let o = 0; o < features; o++) turned[(s * features + o) * inputs + i] = kernel[k++];
    }
  }
  return {
    kernel: turned,
    kernel_size,
    padding: kernel_size - 1 - padding,
    inputs: features,
    features: inputs,
    input_side: side,
    side: input_side,
  };
}

// Copies planes into planes of another side, `margin` pixels from the top and the left, and crops
// what does not fit.
function reframe(planes, channels, side, newSide, margin) {
  const framed = new Float64Array(channels * newSide * newSide);
  const length = Math.min(side, newSide - margin);
  for (let channel = 0; channel < channels; channel++) {
    for (let row = 0; row < length; row++) {
      const from = (channel * side + row) * side;
      const to = (channel * newSide + row + margin) * newSide + margin;
      framed.set(planes.subarray(from, from + length), to);
    }
  }
  return framed;
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
  return mapChannels(layer, x, (value, c) => (value - mean[c]) * factors[c] + bias[c]);
}

function normGradient(layer, x, dy) {
  const factors = normFactors(layer);
  return mapChannels(layer, dy, (value, c) => value * factors[c]);
}

function normFactors({ scale, var: variance, epsilon }) {
  return Float64Array.from(scale, (value, c) => value / Math.sqrt(variance[c] + epsilon));
}

// Max pooling: y is the largest pixel of each 2x2 square of x; a last odd row or column is dropped.
// The gradient goes to that pixel, of equal ones to the first, as in models/layers.py.

function maxPool(layer, x) {
  return Float64Array.from(largest(layer, x), (place) => x[place]);
}

function maxPoolGradient(layer, x, dy) {
  const dx = new Float64Array(x.length);
  largest(layer, x).forEach((place, k) => (dx[place] = dy[k]));
  return dx;
}

function squareWindow() {
  return { size: 2, stride: 2, padding: 0 };
}

// Returns the place in x of the largest pixel of each square.
function largest({ features, side, input_side }, x) {
  const places = new Int32Array(features * side * side);
  let k = 0;
  for (let channel = 0; channel < features; channel++) {
    for (let row = 0; row < side; row++) {
      for (let column = 0; column < side; column++) {
        const first = (channel * input_side + 2 * row) * input_side + 2 * column;
        let place = first;
        for (const other of [first + 1, first + input_side, first + input_side + 1]) {
          if (x[other] > x[place]) place = other;
        }
        places[k++] = place;
      }
    }
  }
  return places;
}

// Mean: y[c] is the mean of the pixels of a channel.

function mean({ features, input_side }, x) {
  const area = input_side ** 2;
  const y = new Float64Array(features);
  for (let k = 0; k < x.length; k++) y[Math.floor(k / area)] += x[k] / area;
  return y;
}

function meanGradient(layer, x, dy) {
  const area = layer.input_side ** 2;
  return mapChannels(layer, x, (_, c) => dy[c] / area);
}

function wholeWindow({ input_side }) {
  return { size: input_side, stride: 1, padding: 0 };
}

// Returns planes of a function of each value and its channel.
function mapChannels({ features }, planes, f) {
  const result = new Float64Array(planes.length);
  const area = planes.length / features;
  for (let c = 0; c < features; c++) {
    for (let k = c * area; k < (c + 1) * area; k++) result[k] = f(planes[k], c);
  }
  return result;
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
