// Asks the server for an answer and reads it as it comes.

/** What went wrong, in a sentence for people; `status` is 0 where the server said nothing. */
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/**
 * Cuts bytes into server-sent events. Bytes come in pieces of any size: a piece may end inside a character, between the
 * two halves of a line end, or in the middle of a field.
 */
export class EventReader {
  #decoder = new TextDecoder();
  #rest = "";
  #data = [];

  /** The data of the events that these bytes complete. */
  *read(bytes) {
    this.#rest += this.#decoder.decode(bytes, { stream: true });
    // A carriage return at the very end waits: a line feed may follow and belongs to it.
    const ends = /\r\n|\n|\r(?!$)/g;
    let from = 0;
    for (let end; (end = ends.exec(this.#rest)); from = ends.lastIndex) {
      const line = this.#rest.slice(from, end.index);
      if (line.startsWith("data:")) {
        this.#data.push(line.slice(line[5] === " " ? 6 : 5));
      } else if (line === "" && this.#data.length > 0) {
        yield this.#data.splice(0).join("\n");
      }
    }
    this.#rest = this.#rest.slice(from);
  }
}

const headers = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

// What a status means, for servers (a proxy in between, say) that do not tell in JSON.
const MEANING = {
  401: "This server asks for a key.",
  403: "The server refuses this request.",
  404: "There is no model at this address.",
  413: "The conversation is too long for the server.",
  429: "The server is busy.",
  500: "The server failed.",
  502: "The model behind this address does not answer.",
  503: "The server is not ready yet.",
  504: "The model behind this address takes too long.",
};

async function refusal(response) {
  // What is not in our server's form (a proxy may answer, too) is not shown: the status has to do.
  let said = parse(await response.text().catch(() => ""))?.error?.message;
  if (typeof said !== "string" || said === "") said = MEANING[response.status] ?? `The server answered with status ${response.status}.`;
  const wait = response.headers.get("Retry-After");
  return new ServerError(sentence(said) + (/^\d+$/.test(wait ?? "") ? ` Please wait ${wait} s.` : ""), response.status);
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. Is it still running?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** The name of the model that the server has. */
export async function model(key, signal) {
  const response = await ask("v1/models", { headers: headers(key), signal });
  const id = (await response.json().catch(() => null))?.data?.[0]?.id;
  if (typeof id !== "string") throw new ServerError("The server names no model.", response.status);
  return id;
}

/**
 * Asks for an answer; gives its chunks, as the server sends them.
 *
 * Ends when the answer is complete. Throws `ServerError` where it is not, and an `AbortError` after `signal`.
 */
export async function* answer(request, key, signal) {
  const body = JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } });
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers(key) },
    body,
    signal,
  });
  if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) {
    throw new ServerError("The server did not answer with a stream.", response.status);
  }
  const bytes = response.body.getReader();
  const events = new EventReader();
  let finished = false;
  for (;;) {
    let piece;
    try {
      piece = await bytes.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      piece = { done: true };
    }
    if (piece.done) {
      if (finished) return;
      throw new ServerError("The connection broke before the answer was complete.");
    }
    for (const data of events.read(piece.value)) {
      if (data === "[DONE]") return;
      const chunk = parse(data);
      if (chunk === null || typeof chunk !== "object") throw new ServerError("The server sent something that is no part of an answer.");
      if (chunk.error) throw new ServerError(sentence(String(chunk.error.message ?? MEANING[500])));
      finished ||= Boolean(chunk.choices?.[0]?.finish_reason);
      yield chunk;
    }
  }
}
