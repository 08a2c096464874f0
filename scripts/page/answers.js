// What is shown of the networks' answers: the picture that they see, a card of bars for each.

import { pictureOf } from "./drawing.js";

const DIGITS = [...Array(10).keys()];

export class Answers {
  #networks;
  #seen;

  // `place` is where the cards go, `seen` the canvas of the 28 x 28 picture.
  constructor(networks, place, seen) {
    this.#networks = networks.map(makeNetwork);
    this.#seen = seen.getContext("2d");
    place.style.setProperty("--columns", networks.length);
    place.append(...this.#networks.map(({ card }) => card));
  }

  // `answer`: the image and each network's probabilities, or null; `truth`: the digit, if known.
  show(answer, truth) {
    const { width, height } = this.#seen.canvas;
    this.#seen.clearRect(0, 0, width, height);
    if (answer) this.#seen.drawImage(pictureOf(answer.image), 0, 0);
    for (const [place, network] of this.#networks.entries()) {
      showNetwork(network, answer?.probabilities[place] ?? [], truth);
    }
  }

  // The same in words.
  words(answer) {
    const readers = new Map(); // of each digit, the names of those who read it
    for (const [place, { name }] of this.#networks.entries()) {
      const digit = highest(answer.probabilities[place]);
      readers.set(digit, [...(readers.get(digit) ?? []), name]);
    }
    if (readers.size === 1 && this.#networks.length > 1) return `All read ${[...readers.keys()]}.`;
    return `${[...readers].map(sentence).join("; ")}.`;
  }
}

export function highest(probabilities) {
  return probabilities.length ? probabilities.indexOf(Math.max(...probabilities)) : undefined;
}

export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function sentence([digit, names]) {
  return `${names.join(", ")} ${names.length > 1 ? "read" : "reads"} ${digit}`;
}

function makeNetwork({ name, idea, parameters, accuracy }) {
  const answer = make("p", { class: "answer" }, "?");
  const bars = DIGITS.map(makeBar);
  const card = make(
    "article",
    { "aria-label": name },
    make("h2", {}, name),
    make("p", { class: "idea" }, idea),
    answer,
    make("div", { class: "bars" }, ...bars.map(({ row }) => row)),
    make("p", {}, `${parameters.toLocaleString("en")} parameters`),
    make("p", {}, `${accuracy.toFixed(2)} % of the test images`),
  );
  return { name, card, answer, bars };
}

function makeBar(digit) {
  const bar = make("span", { class: "bar" });
  const share = make("span", { class: "share" });
  const limits = { "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": 0 };
  const row = make("div", { role: "meter", "aria-label": digit, ...limits });
  row.append(`${digit}`, make("span", { class: "track" }, bar), share);
  return { row, bar, share };
}

function showNetwork({ card, answer, bars }, probabilities, truth) {
  const digit = highest(probabilities);
  answer.textContent = digit ?? "?";
  card.classList.toggle("right", truth !== undefined && digit === truth);
  card.classList.toggle("wrong", truth !== undefined && digit !== truth);
  for (const [place, { row, bar, share }] of bars.entries()) {
    const percent = (100 * (probabilities[place] ?? 0)).toFixed(1);
    bar.style.width = `${percent}%`;
    share.textContent = probabilities.length ? percent : "";
    row.classList.toggle("highest", place === digit);
    row.setAttribute("aria-valuenow", percent);
    row.setAttribute("aria-valuetext", `${percent} %`);
  }
}
