// The answers of all networks: a row of ten bars for each, one below the other.

import { listOf, make } from "./elements.js";
import { softmax } from "./network.js";

const DIGITS = [...Array(10).keys()];
const MOST_ANSWERS = 3; // of which the networks are named

export class Ladder {
  #rows;

  // `onChoose(network)` is called when a row is chosen.
  constructor(place, networks, onChoose) {
    this.#rows = networks.map((network) => makeRow(network, () => onChoose(network)));
    place.append(makeHead(), ...this.#rows.map(({ row }) => row));
  }

  choose(name) {
    for (const { radio } of this.#rows) radio.checked = radio.value === name;
  }

  // `logits`: those of each network, or null; `truth`: the digit, if it is known.
  show(logits, truth) {
    for (const [place, row] of this.#rows.entries()) {
      showRow(row, logits && softmax(logits[place]), truth);
    }
  }
}

// Returns the answers of all networks as a sentence.
export function sentenceOf(networks, logits) {
  const readers = new Map(); // of each digit, the names of those who read it
  for (const [place, { name }] of networks.entries()) {
    const digit = highest(logits[place]);
    readers.set(digit, [...(readers.get(digit) ?? []), name]);
  }
  if (readers.size === 1 && networks.length > 1) return `All read ${[...readers.keys()]}.`;
  if (readers.size > MOST_ANSWERS) return `They disagree: ${listOf([...readers.keys()].sort())}.`;
  const [first, ...others] = [...readers].sort(([, one], [, other]) => other.length - one.length);
  const [digit, { length }] = first;
  const most = length > 2 ? `${length} of ${networks.length} read ${digit}` : clause(first);
  return `${[most, ...others.map(clause)].join("; ")}.`;
}

function clause([digit, names]) {
  return `${listOf(names)} ${names.length > 1 ? "read" : "reads"} ${digit}`;
}

export function highest(values) {
  return values.indexOf(Math.max(...values));
}

function makeHead() {
  const digits = make("span", { class: "bars" }, ...DIGITS.map((digit) => make("span", {}, digit)));
  const heads = ["Network", "Reads", digits, "Parameters", "Test accuracy"];
  const cells = heads.map((head) => make("span", {}, head));
  return make("div", { class: "head", "aria-hidden": "true" }, ...cells);
}

function makeRow({ name, idea, parameters, accuracy }, onChoose) {
  const radio = make("input", { type: "radio", name: "network", value: name });
  radio.addEventListener("change", onChoose);
  const digit = make("b");
  const share = make("small");
  const cells = DIGITS.map((each) => make("span", { "data-digit": each }, make("i")));
  const bars = make("span", { class: "bars", role: "img" }, ...cells);
  const row = make(
    "label",
    { class: "row" },
    cell("name", radio, make("strong", {}, name), cell("idea", idea)),
    cell("answer", digit, share),
    bars,
    cell("fact", parameters.toLocaleString("en"), cell("unit", " parameters")),
    cell("fact", `${accuracy.toFixed(2)} %`, cell("unit", " of the test set")),
  );
  return { row, radio, digit, share, cells, bars };
}

function cell(kind, ...children) {
  return make("span", { class: kind }, ...children);
}

function showRow({ row, digit, share, cells, bars }, probabilities, truth) {
  const answer = probabilities ? highest(probabilities) : null;
  digit.textContent = answer ?? "–";
  share.textContent = probabilities ? percent(probabilities[answer]) : "";
  row.classList.toggle("right", truth !== undefined && answer === truth);
  row.classList.toggle("wrong", truth !== undefined && answer !== truth);
  for (const [place, cell] of cells.entries()) {
    cell.firstChild.style.transform = `scaleY(${probabilities?.[place] ?? 0})`;
    cell.classList.toggle("highest", place === answer);
  }
  bars.setAttribute("aria-label", probabilities ? wordsOf(probabilities) : "no answer yet");
}

// Returns the digits of one percent and more, the most probable first.
function wordsOf(probabilities) {
  const likely = DIGITS.filter((digit) => probabilities[digit] >= 0.01);
  likely.sort((one, other) => probabilities[other] - probabilities[one]);
  return likely.map((digit) => `${digit}: ${percent(probabilities[digit])}`).join(", ");
}

function percent(probability) {
  return `${(100 * probability).toFixed(1)} %`;
}
