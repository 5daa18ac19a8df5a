// A server with the page and a model that says what a test wants, byte by byte: slowly, in odd pieces, not to the end.

import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";

const PAGE = new URL("../../page/", import.meta.url);
const TYPES = { html: "text/html", css: "text/css", js: "text/javascript" };
const HEADERS = {
  "Content-Security-Policy": readFileSync(new URL("policy.txt", PAGE), "utf8").trim(),
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cache-Control": "no-cache",
};

/** One answer as it is written. */
class Stream {
  #response;
  tokens = 0;

  constructor(response, request) {
    this.#response = response;
    this.request = request;
  }

  get gone() {
    return this.#response.destroyed;
  }

  head() {
    if (!this.#response.headersSent) this.#response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
  }

  /** Bytes as they are, each call a piece of its own. */
  async raw(bytes) {
    this.head();
    this.#response.write(bytes);
    await sleep(8);
  }

  event(delta, more = {}) {
    const { finish_reason = null, ...rest } = more;
    return `data: ${JSON.stringify({ id: "c", object: "chat.completion.chunk", created: 1, model: "mock", choices: [{ index: 0, delta, finish_reason }], ...rest })}\n\n`;
  }

  /** A text, a token for each word. */
  async text(text, gap = 8) {
    this.head();
    for (const word of text.match(/\s*\S+|\s+$/g) ?? []) {
      if (this.gone) return;
      this.tokens++;
      this.#response.write(this.event({ content: word }));
      await sleep(gap);
    }
  }

  finish(finish_reason = "stop") {
    this.head();
    const usage = { prompt_tokens: 9, completion_tokens: this.tokens + 1, total_tokens: this.tokens + 10, prompt_tokens_details: { cached_tokens: 4 } };
    this.#response.write(this.event({}, { finish_reason }));
    this.#response.write(`data: ${JSON.stringify({ id: "c", object: "chat.completion.chunk", created: 1, model: "mock", choices: [], usage })}\n\n`);
    this.#response.end("data: [DONE]\n\n");
  }

  /** Ends the connection in the middle, after what was written has gone out. */
  break() {
    this.#response.socket.end();
  }

  end() {
    this.#response.end();
  }

  /** A refusal instead of an answer. */
  refuse(status, body, headers = {}) {
    this.#response.writeHead(status, { "Content-Type": "application/json", ...headers });
    this.#response.end(typeof body === "string" ? body : JSON.stringify(body));
  }
}

export const failure = (message, code = "invalid_value") => ({ error: { message, type: "invalid_request_error", param: null, code } });

const usual = async (stream) => {
  await stream.raw(stream.event({ role: "assistant", content: "" }));
  await stream.text(`You said: ${stream.request.messages.at(-1).content} And so the first of many words was spoken, and a second followed, and a third.`, 12);
  stream.finish();
};

/** Starts on a free port: `url`, `requests` (bodies, in order), and what a test may change: `answer`, `key`, `model`. */
export async function startMock() {
  const mock = { requests: [], answer: usual, usual, key: "", model: "mock-1.58b", loading: false };
  const server = createServer(async (request, response) => {
    const path = request.url.split("?")[0];
    if (request.method === "GET" && (path === "/" || path.startsWith("/page/"))) {
      const file = path === "/" ? "index.html" : path.slice("/page/".length);
      if (!/^[a-z]+\.(html|css|js)$/.test(file)) return response.writeHead(404).end();
      response.writeHead(200, { ...HEADERS, "Content-Type": `${TYPES[file.split(".")[1]]}; charset=utf-8` });
      return response.end(readFileSync(new URL(file, PAGE)));
    }
    const stream = new Stream(response, null);
    if (mock.loading) return stream.refuse(503, failure("the model is still loading"));
    if (mock.key && request.headers.authorization !== `Bearer ${mock.key}`) return stream.refuse(401, failure("the key is missing or wrong", "invalid_api_key"));
    if (path === "/v1/models") return stream.refuse(200, { object: "list", data: [{ id: mock.model, object: "model" }] });
    if (path !== "/v1/chat/completions") return stream.refuse(404, failure("there is nothing here"));
    let body = "";
    for await (const piece of request.setEncoding("utf8")) body += piece;
    stream.request = JSON.parse(body);
    mock.requests.push(stream.request);
    if (stream.request.model !== mock.model) return stream.refuse(404, failure(`there is no model ${stream.request.model}`, "model_not_found"));
    await mock.answer(stream);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  mock.url = `http://127.0.0.1:${server.address().port}/`;
  mock.reset = () => Object.assign(mock, { requests: [], answer: usual, key: "", model: "mock-1.58b", loading: false });
  mock.stop = () => {
    server.closeAllConnections();
    server.close();
  };
  return mock;
}
