// Questions to the server: one at a time; what has changed meanwhile is asked about afterwards.

import { greysOf } from "./drawing.js";

const SIDE = 140; // of what the server takes
const PAUSE = 25; // milliseconds between two questions, at least
const PATIENCE = 5000; // milliseconds, for an answer
const TOO_MANY = 429;

export class Asker {
  #newest = null; // drawing; null if nothing is to be asked
  #busy = false;

  // `onAnswer(answer)` and `onError(message)` are called with what comes of a question.
  constructor(onAnswer, onError) {
    this.onAnswer = onAnswer;
    this.onError = onError;
  }

  // Asks about a drawing; of null nothing is asked, and what is under way is not answered any more.
  async ask(drawing) {
    this.#newest = drawing;
    if (this.#busy) return;
    this.#busy = true;
    let asked = null;
    while (this.#newest !== null && this.#newest !== asked) {
      asked = this.#newest;
      try {
        const answer = await answerOf(asked);
        if (answer === TOO_MANY) asked = null;
        else if (this.#newest !== null) this.onAnswer(answer);
      } catch (error) {
        if (this.#newest !== null) this.onError(error.message);
      }
    }
    this.#busy = false;
  }
}

export async function get(path) {
  const reply = await send(path, {});
  if (!reply.ok) throw new Error(await reply.text());
  return reply.json();
}

async function answerOf(drawing) {
  const question = send("/read", {
    method: "POST",
    headers: { "Content-Type": "application/octet-stream" },
    body: greysOf(drawing, SIDE),
  });
  const [reply] = await Promise.all([question, pause(PAUSE)]);
  if (reply.status === TOO_MANY) return TOO_MANY;
  if (!reply.ok) throw new Error(await reply.text());
  return reply.json();
}

async function send(path, request) {
  try {
    return await fetch(path, { ...request, signal: AbortSignal.timeout(PATIENCE) });
  } catch {
    throw new Error("The server does not answer; is scripts/demo.py still running?");
  }
}

function pause(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
