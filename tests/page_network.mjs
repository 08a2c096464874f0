// Answers questions about networks, JSON from standard input, by the engine at a URL:
// node page_network.mjs URL

import { readFileSync } from "node:fs";

const engine = await import(process.argv[2]);

function answer({ description, images, maps, digits, units }) {
  const network = engine.decodeNetwork(description);
  const logits = images.map((pixels) => engine.predict(network, Uint8Array.from(pixels)));
  return {
    logits: logits.map((values) => [...values]),
    probabilities: logits.map(engine.softmax),
    maps: images.slice(0, maps).map((pixels) =>
      engine.forward(network, pixels).map((map) => ({ ...map, values: [...map.values] })),
    ),
    gradients: digits.map((digit, k) => [...engine.gradient(network, images[k], digit)]),
    fields: units.map((unit) => engine.receptiveField(network.layers, ...unit)),
  };
}

const answers = {};
for (const [name, question] of Object.entries(JSON.parse(readFileSync(0)))) {
  answers[name] = answer(question);
}
console.log(JSON.stringify(answers));
