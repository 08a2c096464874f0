// Elements of the page, and words and colours for them.

export function element(id) {
  return document.getElementById(id);
}

export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Writes a text, unless it is there already: a screen reader would read it aloud again.
export function write(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

// Returns the names as a list in words.
export function listOf(names) {
  return new Intl.ListFormat("en-GB").format(names.map(String));
}

// Returns red, green and blue of a colour of the style sheet, which has it as #rrggbb.
export function colourOf(name) {
  const digits = getComputedStyle(document.documentElement).getPropertyValue(name).trim().slice(1);
  return [0, 2, 4].map((place) => parseInt(digits.slice(place, place + 2), 16));
}

export function plural(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}
