// The operations of scipy.ndimage, NumPy and Pillow that prepare.js uses, each under their name.
//
// Borders, ties and the order of additions are theirs as well, so that results agree to the bit,
// apart from the last bit of Math.exp.
//
// An image is { height, width, values } with a typed array of values, row by row. A mask is an
// image with a Uint8Array of 0 and 1; labels are an image with an Int32Array.

const BLOCK = 16;

export function image(height, width, values = new Float64Array(height * width)) {
  return { height, width, values };
}

// The pixelwise operations are loops over typed arrays and take no function of a pixel: a call for
// each pixel is ten times as slow.

// Return factor * value + term.
export function affine({ height, width, values }, factor, term) {
  const result = image(height, width);
  for (let at = 0; at < values.length; at += 1) result.values[at] = factor * values[at] + term;
  return result;
}

export function subtract({ height, width, values }, { values: others }) {
  const result = image(height, width);
  for (let at = 0; at < values.length; at += 1) result.values[at] = values[at] - others[at];
  return result;
}

export function above({ height, width, values }, least) {
  const result = image(height, width, new Uint8Array(values.length));
  for (let at = 0; at < values.length; at += 1) result.values[at] = values[at] > least;
  return result;
}

export function atLeast({ height, width, values }, least) {
  const result = image(height, width, new Uint8Array(values.length));
  for (let at = 0; at < values.length; at += 1) result.values[at] = values[at] >= least;
  return result;
}

export function equal({ height, width, values }, number) {
  const result = image(height, width, new Uint8Array(values.length));
  for (let at = 0; at < values.length; at += 1) result.values[at] = values[at] === number;
  return result;
}

// Return the pixels of a mask or an image where another mask is 1, elsewhere 0.
export function where({ values: condition }, { height, width, values }) {
  const result = image(height, width, new values.constructor(values.length));
  for (let at = 0; at < values.length; at += 1) if (condition[at]) result.values[at] = values[at];
  return result;
}

// Return table[label]: a mask of the labels for which the table is 1 or true.
export function lookUp(table, { height, width, values }) {
  const entries = Uint8Array.from(table);
  const result = image(height, width, new Uint8Array(values.length));
  for (let at = 0; at < values.length; at += 1) result.values[at] = entries[values[at]];
  return result;
}

// Transpose in blocks that fit the processor's nearest cache.
export function transpose({ height, width, values }) {
  const result = new values.constructor(values.length);
  for (let top = 0; top < height; top += BLOCK) {
    for (let left = 0; left < width; left += BLOCK) {
      const [bottom, right] = [Math.min(top + BLOCK, height), Math.min(left + BLOCK, width)];
      for (let row = top; row < bottom; row += 1) {
        for (let column = left; column < right; column += 1) {
          result[column * height + row] = values[row * width + column];
        }
      }
    }
  }
  return image(width, height, result);
}

// Return part of an image; `bottom` and `right` are exclusive.
export function crop({ width, values }, { top, bottom, left, right }) {
  const result = new values.constructor((bottom - top) * (right - left));
  for (let row = top; row < bottom; row += 1) {
    const source = values.subarray(row * width + left, row * width + right);
    result.set(source, (row - top) * (right - left));
  }
  return image(bottom - top, right - left, result);
}

export function max(values) {
  let most = -Infinity;
  for (let at = 0; at < values.length; at += 1) if (values[at] > most) most = values[at];
  return most;
}

export function min(values) {
  let least = Infinity;
  for (let at = 0; at < values.length; at += 1) if (values[at] < least) least = values[at];
  return least;
}

export function mean(values) {
  let sum = 0;
  for (let index = 0; index < values.length; index += 1) sum += values[index];
  return sum / values.length;
}

export function any(values) {
  for (let index = 0; index < values.length; index += 1) if (values[index]) return true;
  return false;
}

// Return the sum of at most 128 numbers in the order of np.sum: eight sums, then their sum. `round`
// is Math.fround for float32.
export function pairwiseSum(values, round = Number) {
  const whole = values.length - (values.length % 8);
  let sum = 0;
  if (whole > 0) {
    const sums = Array.from(values.subarray(0, 8));
    for (let index = 8; index < whole; index += 1) {
      sums[index % 8] = round(sums[index % 8] + values[index]);
    }
    for (let step = 1; step < 8; step *= 2) {
      for (let at = 0; at < 8; at += 2 * step) sums[at] = round(sums[at] + sums[at + step]);
    }
    sum = sums[0];
  }
  for (let index = whole; index < values.length; index += 1) sum = round(sum + values[index]);
  return sum;
}

// Round to the nearest integer, and halves to the even one, as Python's round and np.round do.
export function round(number) {
  const nearest = Math.round(number);
  return nearest - number === 0.5 && nearest % 2 !== 0 ? nearest - 1 : nearest;
}

export function clip(number, least, most) {
  return Math.min(Math.max(number, least), most);
}

// np.percentile, with linear interpolation between the two nearest values.
export function percentile(values, percent) {
  const place = (values.length - 1) * (percent / 100);
  const [below, above] = selected(values, Math.floor(place));
  const weight = place - Math.floor(place);
  const step = above - below;
  return weight < 0.5 ? below + step * weight : above - step * (1 - weight);
}

export function median(values) {
  const [below, above] = selected(values, Math.floor((values.length - 1) / 2));
  return values.length % 2 ? below : (below + above) / 2;
}

// Return the values at a place and at the next of the sorted values, by Hoare's quickselect.
function selected(values, place) {
  const parted = values.slice();
  let [first, last] = [0, parted.length - 1];
  while (first < last) {
    const pivot = parted[(first + last) >> 1];
    let [left, right] = [first, last];
    while (left <= right) {
      while (parted[left] < pivot) left += 1;
      while (parted[right] > pivot) right -= 1;
      if (left <= right) {
        const moved = parted[left];
        parted[left] = parted[right];
        parted[right] = moved;
        left += 1;
        right -= 1;
      }
    }
    if (place <= right) last = right;
    else if (place >= left) first = left;
    else break;
  }
  const rest = parted.subarray(Math.min(place + 1, parted.length - 1));
  return [parted[place], min(rest)];
}

// scipy.ndimage.gaussian_filter with its defaults: reflected borders, and 4 standard deviations.
export function gaussianFilter(picture, sigma) {
  const radius = Math.floor(4 * sigma + 0.5);
  const kernel = new Float64Array(2 * radius + 1);
  for (let at = -radius; at <= radius; at += 1) {
    kernel[at + radius] = Math.exp((-0.5 / (sigma * sigma)) * at * at);
  }
  const sum = pairwiseSum(kernel);
  const weights = kernel.map((weight) => weight / sum);
  const border = { before: radius, after: radius, mode: "reflect" };
  const smooth = (each) =>
    filterRows(each, border, (line, result) => correlateSymmetric(line, weights, result));
  return smooth(transpose(smooth(transpose(picture))));
}

// Add the products of the middle first, then of the pairs from the outermost to the innermost.
function correlateSymmetric(line, weights, result) {
  const [radius, last] = [weights.length >> 1, weights.length - 1];
  for (let place = 0; place < result.length; place += 1) {
    let sum = line[place + radius] * weights[radius];
    for (let at = 0; at < radius; at += 1) {
      sum += (line[place + at] + line[place + last - at]) * weights[at];
    }
    result[place] = sum;
  }
}

// scipy.ndimage.grey_closing with a square of odd side and mode "nearest".
export function greyClosing(picture, side) {
  const dilate = (each) => slidingMaximum(each, side, 1);
  const erode = (each) => slidingMaximum(each, side, -1);
  return erode(transpose(erode(dilate(transpose(dilate(picture))))));
}

// Return the maximum of sign * values in a window of a row around each pixel, times the sign.
function slidingMaximum(picture, length, sign) {
  const border = { before: length >> 1, after: length >> 1, mode: "nearest" };
  const toLast = new Float64Array(picture.width + length - 1);
  return filterRows(picture, border, (line, result) =>
    maximumOfWindows(line, length, sign, toLast, result),
  );
}

// The same for one line, in a time that does not depend on the window's length. Source: van Herk,
// "A fast algorithm for local minimum and maximum filters on rectangular and octagonal kernels",
// Pattern Recognition Letters 13, 1992.
function maximumOfWindows(line, length, sign, toLast, result) {
  // In blocks as long as the window: maxima up to the block's last value, and from its first.
  for (let first = 0; first < line.length; first += length) {
    let most = -Infinity;
    for (let at = Math.min(first + length, line.length) - 1; at >= first; at -= 1) {
      const value = sign * line[at];
      if (value > most) most = value;
      toLast[at] = most;
    }
  }
  // A window is a block, or ends in the block after the one in which it begins.
  for (let first = 0; first < line.length; first += length) {
    let most = -Infinity;
    for (let end = first; end < Math.min(first + length, line.length); end += 1) {
      const value = sign * line[end];
      if (value > most) most = value;
      const at = end - length + 1;
      if (at >= 0) result[at] = sign * (toLast[at] > most ? toLast[at] : most);
    }
  }
}

// Filter each row. `filter(line, result)` gets the row with values before and after it that follow
// from the border mode.
function filterRows({ height, width, values }, border, filter) {
  const { places, sources } = borders(width, border);
  const line = new Float64Array(border.before + width + border.after);
  const result = new Float64Array(values.length);
  for (let first = 0; first < values.length; first += width) {
    line.set(values.subarray(first, first + width), border.before);
    for (let at = 0; at < places.length; at += 1) line[places[at]] = line[sources[at]];
    filter(line, result.subarray(first, first + width));
  }
  return image(height, width, result);
}

// Return the places before and after a line, and those whose values they take.
function borders(length, { before, after, mode }) {
  const place = (at) => (at < before ? at : length + at);
  const source = (at) => {
    if (mode === "nearest") return clip(at, 0, length - 1);
    const period = 2 * length; // "reflect": d c b a | a b c d | d c b a
    const inPeriod = ((at % period) + period) % period;
    return inPeriod < length ? inPeriod : period - 1 - inPeriod;
  };
  const places = new Int32Array(before + after).map((_, at) => place(at));
  return { places, sources: places.map((at) => source(at - before) + before) };
}

// Opening of a mask by a row of pixels: of the runs in each row, keep those at least as long.
export function openRows({ height, width, values }, length) {
  const result = image(height, width, new Uint8Array(values.length));
  for (let row = 0; row < height; row += 1) {
    const end = (row + 1) * width;
    for (let at = row * width, first = at; at < end; at += 1) {
      if (!values[at]) first = at + 1;
      else if (at + 1 === end || !values[at + 1]) {
        if (at + 1 - first >= length) result.values.fill(1, first, at + 1);
      }
    }
  }
  return result;
}

// Closing of a mask by a row of pixels, with zeros around it: fill the gaps that are shorter.
export function closeRows({ height, width, values }, length) {
  const result = image(height, width, values.slice());
  for (let row = 0; row < height; row += 1) {
    for (let at = row * width, last = -Infinity; at < (row + 1) * width; at += 1) {
      if (!values[at]) continue;
      if (at - last <= length) result.values.fill(1, last, at);
      last = at;
    }
  }
  return result;
}

// scipy.ndimage.label with 4 or 8 neighbours: number connected regions from 1, in the order of
// their first pixels.
export function label({ height, width, values }, neighbours) {
  const labels = new Int32Array(values.length);
  const stack = new Int32Array(values.length);
  let count = 0;
  for (let first = 0; first < values.length; first += 1) {
    if (!values[first] || labels[first]) continue;
    count += 1;
    labels[first] = count;
    stack[0] = first;
    for (let size = 1; size > 0; ) {
      size -= 1;
      const row = Math.floor(stack[size] / width);
      const column = stack[size] % width;
      const lastRow = Math.min(row + 1, height - 1);
      const lastColumn = Math.min(column + 1, width - 1);
      for (let y = Math.max(row - 1, 0); y <= lastRow; y += 1) {
        for (let x = Math.max(column - 1, 0); x <= lastColumn; x += 1) {
          const next = y * width + x;
          if (!values[next] || labels[next]) continue;
          if (neighbours === 4 && y !== row && x !== column) continue;
          labels[next] = count;
          stack[size] = next;
          size += 1;
        }
      }
    }
  }
  return { labels: image(height, width, labels), count };
}

// scipy.ndimage.find_objects: the bounding box of each label from 1, null where there is none.
export function findObjects({ height, width, values }) {
  const boxes = Array(max(values)).fill(null);
  for (let row = 0; row < height; row += 1) {
    for (let column = 0; column < width; column += 1) {
      const number = values[row * width + column];
      if (number === 0) continue;
      const box = (boxes[number - 1] ??= { top: row, bottom: 0, left: column, right: 0 });
      box.bottom = row + 1;
      box.left = Math.min(box.left, column);
      box.right = Math.max(box.right, column + 1);
    }
  }
  return boxes;
}

// scipy.ndimage.sum_labels, for all labels from 0 to the largest.
export function sumLabels({ values }, { values: labels }) {
  const sums = new Float64Array(max(labels) + 1);
  for (let at = 0; at < values.length; at += 1) sums[labels[at]] += values[at];
  return sums;
}

// scipy.ndimage.maximum of values that are not negative, for all labels from 0 to the largest.
export function maximumLabels({ values }, { values: labels }) {
  const most = new Float64Array(max(labels) + 1);
  for (let at = 0; at < values.length; at += 1) {
    if (values[at] > most[labels[at]]) most[labels[at]] = values[at];
  }
  return most;
}

// scipy.ndimage.distance_transform_edt: the index of the nearest pixel that is 0, and the distance;
// 0 if no pixel is 0.
//
// Of several nearest pixels it is the one in the first column, and there in the first row. Source:
// Felzenszwalb and Huttenlocher, "Distance transforms of sampled functions", Theory of Computing 8,
// 2012.
export function distanceTransform({ height, width, values }) {
  const nearest = image(height, width, new Int32Array(values.length));
  const distances = image(height, width);
  const allRows = nearestRows({ height, width, values });
  for (let row = 0; row < height; row += 1) {
    const first = row * width;
    const rows = allRows.subarray(first, first + width);
    const { columns, starts } = nearestColumns(rows, row);
    for (let column = 0, place = 0; column < width && columns.length > 0; column += 1) {
      if (column === starts[place + 1]) place += 1;
      const [down, right] = [rows[columns[place]] - row, columns[place] - column];
      nearest.values[first + column] = rows[columns[place]] * width + columns[place];
      distances.values[first + column] = Math.sqrt(down * down + right * right);
    }
  }
  return { nearest, distances };
}

// Return the row of the nearest 0 in each pixel's column, the upper one of two, or -1.
function nearestRows({ height, width, values }) {
  const rows = new Int32Array(values.length).fill(-1);
  for (let column = 0; column < width; column += 1) {
    for (let row = 0, above = -1; row < height; row += 1) {
      if (!values[row * width + column]) above = row;
      rows[row * width + column] = above;
    }
    for (let row = height - 1, below = -1; row >= 0; row -= 1) {
      const at = row * width + column;
      if (!values[at]) below = row;
      if (below >= 0 && (rows[at] < 0 || below - row < row - rows[at])) rows[at] = below;
    }
  }
  return rows;
}

// Return the columns of a row's nearest pixels, and the place from which each is the nearest: the
// lower envelope of the parabolas of squared distance.
function nearestColumns(rows, row) {
  const [columns, starts] = [[], []];
  const squared = (column) => (rows[column] - row) * (rows[column] - row) + column * column;
  for (let column = 0; column < rows.length; column += 1) {
    if (rows[column] < 0) continue;
    let start = 0;
    while (columns.length > 0) {
      const last = columns.at(-1);
      start = Math.floor((squared(column) - squared(last)) / (2 * (column - last))) + 1;
      if (start > starts.at(-1)) break;
      columns.pop();
      starts.pop();
      start = 0;
    }
    if (start >= rows.length) continue;
    columns.push(column);
    starts.push(start);
  }
  return { columns, starts };
}

const POLE = Math.sqrt(3) - 2; // of the recursive filter that gives the coefficients
const PADDING = 12; // pixels at each border, beyond which the filter's start does not matter

// scipy.ndimage.zoom with cubic splines, grid_mode and mode "nearest", by an integer factor.
//
// Source: Unser, Aldroubi and Eden, "Fast B-spline transforms for continuous image representation
// and interpolation", IEEE Transactions on Pattern Analysis and Machine Intelligence 13, 1991.
export function zoom({ height, width, values }, factor) {
  const padded = padEdges({ height, width, values }, PADDING);
  const whole = { before: 0, after: 0, mode: "nearest" };
  const filtered = transpose(filterRows(transpose(padded), whole, coefficients));
  const splines = filterRows(filtered, whole, coefficients);
  const [rows, columns] = [height, width].map((length) => samples(length, factor));
  const result = image(rows.length, columns.length);
  rows.forEach((row, y) => {
    columns.forEach((column, x) => {
      let sum = 0;
      for (let down = 0; down < 4; down += 1) {
        const first = (row.first + down) * padded.width + column.first;
        for (let right = 0; right < 4; right += 1) {
          const value = splines.values[first + right];
          sum += value * row.weights[down] * column.weights[right];
        }
      }
      result.values[y * result.width + x] = sum;
    });
  });
  return result;
}

// np.pad with mode "edge".
function padEdges({ height, width, values }, count) {
  const padded = width + 2 * count;
  const pixels = Float64Array.from({ length: (height + 2 * count) * padded }, (_, index) => {
    const row = clip(Math.floor(index / padded) - count, 0, height - 1);
    return values[row * width + clip((index % padded) - count, 0, width - 1)];
  });
  return image(height + 2 * count, padded, pixels);
}

// Fill `result` with the coefficients of the cubic spline through the values of a line, which
// continues as in a mirror.
function coefficients(line, result) {
  const last = line.length - 1;
  const gain = (1 - POLE) * (1 - 1 / POLE);
  line.forEach((value, at) => (result[at] = value * gain));
  const turn = POLE ** last;
  result[0] += turn * result[last];
  for (let at = 1, power = POLE; at < last; at += 1, power *= POLE) {
    result[0] += power * (result[at] + turn * result[last - at]);
  }
  result[0] /= 1 - turn * turn;
  for (let at = 1; at <= last; at += 1) result[at] += POLE * result[at - 1];
  result[last] = ((POLE * result[last - 1] + result[last]) * POLE) / (POLE * POLE - 1);
  for (let at = last - 1; at >= 0; at -= 1) result[at] = POLE * (result[at + 1] - result[at]);
}

// Return the first of four coefficients, and their weights, for each value of an enlarged line.
function samples(length, factor) {
  const step = length / (length * factor);
  return Array.from({ length: length * factor }, (_, at) => {
    const place = (at + 0.5) * step - 0.5 + PADDING;
    const y = place - Math.floor(place);
    const z = 1 - y;
    const weights = [
      (z * z * z) / 6,
      (y * y * (y - 2) * 3 + 4) / 6,
      (z * z * (z - 2) * 3 + 4) / 6,
    ];
    weights.push(1 - weights[0] - weights[1] - weights[2]);
    return { first: Math.floor(place) - 1, weights };
  });
}

// Pillow's Image.resize of float32 pixels with Resampling.BOX.
export function resizeBox(picture, height, width) {
  const pixels = image(picture.height, picture.width, new Float32Array(picture.values));
  const small = resizeRows(pixels, width);
  return transpose(resizeRows(transpose(small), height));
}

function resizeRows({ height, width, values }, size) {
  if (size === width) return image(height, width, values);
  const boxes = boxesOf(width, size);
  const result = new Float32Array(height * size);
  for (let row = 0; row < height; row += 1) {
    boxes.forEach(({ first, weights }, column) => {
      let sum = 0;
      weights.forEach((weight, at) => (sum += values[row * width + first + at] * weight));
      result[row * size + column] = sum;
    });
  }
  return image(height, size, result);
}

// Return the first pixel in the box of each resized pixel, and the weights from there on.
function boxesOf(length, size) {
  const scale = length / size;
  const support = 0.5 * Math.max(scale, 1);
  return Array.from({ length: size }, (_, at) => {
    const centre = (at + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const end = Math.min(Math.trunc(centre + support + 0.5), length);
    const inside = Array.from({ length: end - first }, (_, place) => {
      const distance = (place + first - centre + 0.5) * (1 / Math.max(scale, 1));
      return distance > -0.5 && distance <= 0.5 ? 1 : 0;
    });
    const count = inside.reduce((sum, weight) => sum + weight, 0);
    return { first, weights: inside.map((weight) => (count ? weight / count : 0)) };
  });
}
