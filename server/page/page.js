// The page: what is seen and what happens when it is touched.
//
// The truth is `found`, all conversations, and `current`, the one that is shown; drawing follows from them. A conversation
// has at most one answer under way (`runs`), which goes on while another conversation is looked at.

import { withKey } from "./key.js";
import * as list from "./list.js";
import { render } from "./markdown.js";
import { onChange, settings, summary } from "./settings.js";
import * as store from "./store.js";
import { answer, model as askModel, ServerError } from "./stream.js";

const $ = (id) => document.getElementById(id);
const copyOf = (id) => $(id).content.firstElementChild.cloneNode(true);

const { found, broken } = store.load();
const runs = new Map();
let current = store.fresh(settings.system);
let model = "";

// ---- Notices: sentences above the message field that stay until they are dealt with

const notices = new Map();

/** Shows a sentence with buttons `{ name: action }`; one for each `topic`, nothing where `text` is empty. */
function notice(topic, text, actions = {}) {
  notices.get(topic)?.remove();
  notices.delete(topic);
  if (!text) return;
  const box = document.createElement("p");
  box.append(text);
  for (const [name, action] of Object.entries({ ...actions, Dismiss: () => {} })) {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "quiet", textContent: name });
    button.addEventListener("click", () => {
      notice(topic, "");
      action();
      $("ask").focus();
    });
    box.append(" ", button);
  }
  notices.set(topic, box);
  $("notices").append(box);
}

// ---- Keeping

let trouble = "";

/** Says it once when the storage fails, and when it does no longer. */
function report(now) {
  if (now !== trouble) notice("storage", now);
  trouble = now;
}

function keep(conversation) {
  if (conversation.messages.length === 0) return;
  found.set(conversation.id, conversation);
  report(store.save(conversation));
}

function discard(conversations) {
  for (const conversation of conversations) {
    runs.get(conversation.id)?.controller.abort();
    found.delete(conversation.id);
    store.remove(conversation.id);
  }
  const gone = conversations.includes(current);
  list.close();
  if (gone) go(null);
  else drawList();
  const what = conversations.length === 1 ? `“${conversations[0].title}” is deleted.` : `${conversations.length} conversations are deleted.`;
  notice("undo", what, {
    Undo: () => {
      for (const conversation of conversations) keep(conversation);
      if (gone) go(conversations[0]);
      else drawList();
    },
  });
}

// Another tab has written.
addEventListener("storage", (event) => {
  const id = store.idOf(event.key);
  if (id === null || runs.has(id)) return;
  const other = store.conversation(event.key, event.newValue);
  if (other) found.set(id, other);
  else found.delete(id);
  if (id === current.id) show(other ?? store.fresh(settings.system));
  else drawList();
});

// The page may be gone at once, without another word. That its requests end then is no failure of theirs.
addEventListener("pagehide", () => {
  for (const { conversation, controller } of runs.values()) {
    controller.abort();
    keep(conversation);
  }
});

// ---- Which conversation is shown

/** Makes it the one in the address, and so shows it; `null`: a new one. */
function go(conversation) {
  const hash = conversation ? `#${encodeURIComponent(conversation.id)}` : "";
  if (location.hash !== hash) history.pushState(null, "", hash || location.pathname + location.search);
  show(conversation ?? store.fresh(settings.system));
}

function show(conversation) {
  current = conversation;
  sticky = true;
  draw();
}

function fromAddress() {
  let id = location.hash.slice(1);
  try {
    id = decodeURIComponent(id);
  } catch { /* Typed by hand: there is no such conversation. */ }
  show(found.get(id) ?? store.fresh(settings.system));
}
addEventListener("popstate", fromAddress);

// ---- Drawing

let sticky = true;

function draw() {
  $("turns").replaceChildren(...current.messages.map(turn));
  $("system").value = current.system;
  drawState();
  follow();
}

/** What depends on the conversation as a whole. */
function drawState() {
  const title = current.title || "New conversation";
  $("title").textContent = title;
  document.title = current.title ? `${current.title} — Tritone` : "Tritone";
  $("welcome").hidden = current.messages.length > 0;
  const running = runs.has(current.id);
  $("turns").classList.toggle("running", running);
  $("send").hidden = running;
  $("stop").hidden = !running;
  drawList();
  drawSummary();
}

function drawList() {
  const order = [...found.values()].sort((a, b) => b.updated - a.updated);
  list.draw(order.map(({ id, title }) => ({ id, title, shown: id === current.id, running: runs.has(id) })));
}

function drawSummary() {
  $("summary").textContent = summary() + (current.system.trim() ? ", system prompt" : "");
}

function turn(message) {
  const node = copyOf(`turn-${message.role}`);
  drawTurn(node, message);
  return node;
}

function drawTurn(node, message) {
  const text = node.querySelector(".text");
  if (message.role === "user") {
    text.textContent = message.content;
    return [];
  }
  for (const state of ["streaming", "failed", "stopped"]) node.classList.toggle(state, message.state === state);
  node.ariaBusy = String(message.state === "streaming");
  const pieces = render(text, message.content);
  node.querySelector(".stats").textContent = stats(message);
  const trouble = node.querySelector(".trouble");
  trouble.hidden = message.state !== "failed";
  trouble.firstElementChild.textContent = message.error ?? "";
  return pieces;
}

const short = (value) => value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 2 : value < 100 ? 1 : 0 });

function stats({ state, content, stats: { first, rate, tokens, exact, limit } = {} }) {
  const parts = [];
  if (state === "stopped") parts.push(content ? "stopped" : "stopped before the first word");
  if (state === "cut") parts.push(limit && tokens >= limit ? `ended at the limit of ${limit} tokens` : "ended because the context is full");
  if (state === "done" && !content) parts.push("the model said nothing");
  if (tokens) parts.push(`${exact ? "" : "about "}${tokens} token${tokens === 1 ? "" : "s"}`);
  if (rate) parts.push(`${short(rate)} tokens/s`);
  if (first) parts.push(`first after ${short(first / 1000)} s`);
  return parts.join(" · ");
}

// ---- Scrolling: the end stays in view while the reader is there

function follow() {
  const scroll = $("scroll");
  if (sticky) scroll.scrollTop = scroll.scrollHeight;
  $("latest").hidden = sticky || current.messages.length === 0;
}

$("scroll").addEventListener("scroll", () => {
  const { scrollHeight, scrollTop, clientHeight } = $("scroll");
  sticky = scrollHeight - scrollTop - clientHeight < 40;
  $("latest").hidden = sticky;
}, { passive: true });

$("latest").addEventListener("click", () => {
  sticky = true;
  follow();
  $("ask").focus();
});

// ---- Answers

async function learnModel(signal) {
  model = await withKey((key) => askModel(key, signal));
  $("model").textContent = model;
  $("model").title = "";
}

function request(conversation) {
  const messages = [];
  if (conversation.system.trim()) messages.push({ role: "system", content: conversation.system });
  for (const { role, content } of conversation.messages) {
    const last = messages.at(-1);
    // Answers that never came leave two messages of the same side; many templates allow no such thing.
    if (role === "user" && last?.role === "user") last.content += `\n\n${content}`;
    else if (content !== "") messages.push({ role, content });
  }
  const result = { model, messages };
  for (const { name } of store.FIELDS) if (settings[name] !== null) result[name] = settings[name];
  return result;
}

/** Gets an answer to a conversation that ends with a message of the user. */
async function start(conversation) {
  const message = { role: "assistant", content: "", state: "streaming", model };
  const run = { conversation, message, controller: new AbortController(), spoken: 0, frame: 0, kept: performance.now() };
  conversation.messages.push(message);
  runs.set(conversation.id, run);
  keep(conversation);
  if (conversation === current) {
    $("turns").append(turn(message));
    drawState();
    sticky = true;
    follow();
  }
  $("alert").textContent = "";
  $("spoken").textContent = "";

  try {
    if (!model) await learnModel(run.controller.signal);
    try {
      await withKey((key) => read(run, key));
    } catch (error) {
      // The server may have another model by now.
      const old = model;
      if (error.status !== 404) throw error;
      await learnModel(run.controller.signal);
      if (model === old) throw error;
      await withKey((key) => read(run, key));
    }
  } catch (error) {
    message.state = run.controller.signal.aborted ? "stopped" : "failed";
    if (message.state === "failed") message.error = error instanceof ServerError ? error.message : `This page failed: ${error.message}`;
  }
  runs.delete(conversation.id);
  cancelAnimationFrame(run.frame);
  if (found.has(conversation.id)) keep(conversation);
  progress(run);
  // What was said need not be found a second time by those who read on.
  setTimeout(() => ($("spoken").textContent = ""), 10_000);
  if (conversation === current) drawState();
  else drawList();
}

async function read(run, key) {
  const { message } = run;
  const began = performance.now();
  const asked = request(run.conversation);
  message.model = model;
  message.stats = { first: 0, rate: 0, tokens: 0, exact: 0, limit: asked.max_tokens ?? 0 };
  const times = message.stats;
  let reason = "";
  for await (const chunk of answer(asked, key, run.controller.signal)) {
    const choice = chunk.choices?.[0];
    const piece = choice?.delta?.content;
    const now = performance.now() - began;
    if (typeof piece === "string" && piece !== "") {
      times.first ||= now;
      message.content += piece;
    }
    // Until the server counts, a chunk counts as a token.
    if (choice?.delta && times.first) times.tokens += piece ? 1 : 0;
    if (Number.isSafeInteger(chunk.usage?.completion_tokens)) {
      times.tokens = chunk.usage.completion_tokens;
      times.exact = 1;
      times.prompt = chunk.usage.prompt_tokens;
      times.cached = chunk.usage.prompt_tokens_details?.cached_tokens ?? 0;
    }
    if (choice) times.last = now;
    if (times.tokens > 1 && times.last > times.first) times.rate = (1000 * (times.tokens - 1)) / (times.last - times.first);
    reason = choice?.finish_reason ?? reason;
    run.frame ||= requestAnimationFrame(() => {
      run.frame = 0;
      progress(run);
    });
  }
  message.state = reason === "length" ? "cut" : "done";
}

/** Shows, says and keeps what there is of an answer. */
function progress(run) {
  const { conversation, message } = run;
  const ended = message.state !== "streaming";
  const now = performance.now();
  if (!ended && now - run.kept > 1000) {
    run.kept = now;
    keep(conversation);
  }
  const at = conversation.messages.indexOf(message);
  const node = $("turns").children[at];
  if (conversation !== current || !node) return;
  const pieces = drawTurn(node, message);
  follow();
  // A screen reader gets whole blocks: word by word it would never keep up.
  for (const last = ended ? pieces.length : pieces.length - 1; run.spoken < last; run.spoken++) {
    const spoken = document.createElement("p");
    spoken.textContent = pieces[run.spoken].textContent;
    $("spoken").append(spoken);
  }
  if (message.state === "failed") $("alert").textContent = message.error;
}

// ---- What people do

function send(text) {
  if (runs.has(current.id) || text.trim() === "") return false;
  notice("undo", "");
  const isNew = current.messages.length === 0;
  if (!current.title) current.title = titleOf(text);
  current.updated = Date.now();
  const message = { role: "user", content: text.trim() };
  current.messages.push(message);
  if (isNew) history.replaceState(null, "", `#${encodeURIComponent(current.id)}`);
  $("turns").append(turn(message));
  start(current);
  return true;
}

function titleOf(text) {
  const line = text.trim().split("\n", 1)[0];
  return line.length > 60 ? `${line.slice(0, 60).replace(/\s+\S*$/, "")}…` : line;
}

/** Keeps the first `count` messages and goes on from there; what is dropped can be had back. */
function goOn(count, what, text) {
  if (runs.has(current.id)) return;
  const conversation = current;
  const before = conversation.messages;
  const worth = before.slice(count).some((message) => message.content !== "");
  conversation.messages = before.slice(0, count);
  if (text !== undefined) conversation.messages.push({ role: "user", content: text.trim() });
  draw();
  start(conversation);
  if (!worth) return;
  notice("undo", what, {
    Undo: () => {
      runs.get(conversation.id)?.controller.abort();
      conversation.messages = before;
      keep(conversation);
      go(conversation);
    },
  });
}

const again = () => goOn(current.messages.length - 1, "A new answer replaces the last.");

function edit(node, at) {
  if (node.classList.contains("editing")) return node.querySelector("textarea").focus();
  const editor = copyOf("editor");
  const field = editor.querySelector("textarea");
  field.value = current.messages[at].content;
  const close = () => {
    editor.remove();
    node.classList.remove("editing");
  };
  editor.addEventListener("submit", (event) => {
    event.preventDefault();
    if (runs.has(current.id) || field.value.trim() === "") return;
    goOn(at, "What came after the old message is gone.", field.value);
    $("ask").focus();
  });
  editor.addEventListener("click", ({ target }) => {
    if (target.dataset.do !== "cancel") return;
    close();
    node.querySelector("[data-do=edit]").focus();
  });
  editor.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    editor.querySelector("[data-do=cancel]").click();
  });
  submitsOnEnter(field);
  grows(field);
  node.classList.add("editing");
  node.querySelector(".text").after(editor);
  field.focus();
  field.dispatchEvent(new Event("input"));
}

$("turns").addEventListener("click", ({ target }) => {
  const button = target.closest("button[data-do]");
  const node = button?.closest(".turn");
  if (!node) return;
  const at = [...$("turns").children].indexOf(node);
  switch (button.dataset.do) {
    case "copy":
      return copy(button, current.messages[at].content);
    case "copy-code":
      return copy(button, button.closest("figure").querySelector("code").textContent);
    case "edit":
      return edit(node, at);
    case "again":
      again();
      return $("ask").focus();
  }
});

async function copy(button, text) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Pages from another machine without TLS have no clipboard but this one.
    const field = Object.assign(document.createElement("textarea"), { value: text, className: "hidden" });
    document.body.append(field);
    field.select();
    done = document.execCommand("copy");
    field.remove();
    button.focus();
  }
  const name = button.dataset.name ??= button.textContent;
  button.textContent = done ? "Copied" : "Not copied";
  setTimeout(() => (button.textContent = name), 1500);
}

function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

const fileName = (title, end) => `${title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40) || "conversation"}.${end}`;

// ---- The message field

/** Enter sends the form; not while letters are being composed. */
function submitsOnEnter(field) {
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    field.form.requestSubmit();
  });
}

function grows(field) {
  field.addEventListener("input", () => {
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight + field.offsetHeight - field.clientHeight}px`;
  });
}

const field = $("ask");
submitsOnEnter(field);
grows(field);

function setField(text) {
  field.value = text;
  field.dispatchEvent(new Event("input"));
  field.focus();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (send(field.value)) setField("");
});

field.addEventListener("keydown", (event) => {
  if (event.key !== "ArrowUp" || field.value !== "" || runs.has(current.id)) return;
  const at = current.messages.findLastIndex(({ role }) => role === "user");
  if (at < 0) return;
  event.preventDefault();
  edit($("turns").children[at], at);
});

const stop = () => runs.get(current.id)?.controller.abort();
$("stop").addEventListener("click", () => {
  stop();
  field.focus();
});

$("starters").addEventListener("click", ({ target }) => {
  if (target.closest("button")) setField(target.textContent);
});

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open], [popover]:popover-open")) return;
  if (event.key === "Escape") {
    if (!list.close()) stop();
  } else if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.altKey && !event.target.closest("input, textarea")) {
    event.preventDefault();
    field.focus();
  }
});

$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  field.focus();
});

// ---- The list of conversations

list.connect({
  open: (id) => go(id === null ? null : found.get(id)),
  rename(id, title) {
    const conversation = found.get(id);
    // Another tab may have deleted it meanwhile.
    if (!conversation) return drawList();
    conversation.title = title;
    keep(conversation);
    drawState();
  },
  markdown(id) {
    const conversation = found.get(id);
    save(fileName(conversation.title, "md"), "text/markdown", store.markdown(conversation));
  },
  json(id) {
    const conversation = found.get(id);
    save(fileName(conversation.title, "json"), "application/json", `${JSON.stringify(conversation, null, 2)}\n`);
  },
  delete: (id) => discard([found.get(id)]),
});

// ---- Settings

const keepSettings = () => {
  report(store.keepSettings(settings));
  drawSummary();
};
onChange(keepSettings);

$("system").addEventListener("input", () => {
  current.system = $("system").value;
  settings.system = current.system;
  keepSettings();
});
$("settings").addEventListener("close", () => {
  if (found.has(current.id)) keep(current);
});

$("erase").addEventListener("click", () => {
  $("settings").close();
  if (found.size > 0) discard([...found.values()]);
});

// ---- The beginning

// A keyboard on the screen covers the page on some systems; at a scale of 1 the visible height is the page's.
visualViewport?.addEventListener("resize", () => {
  if (visualViewport.scale === 1) document.documentElement.style.setProperty("--height", `${visualViewport.height}px`);
});

if (broken.length > 0) {
  notice("broken", `${broken.length === 1 ? "A conversation" : `${broken.length} conversations`} in this browser cannot be read.`, {
    "Save as a file": () => save("unreadable-conversations.json", "application/json", JSON.stringify(broken, null, 2)),
    Delete: () => broken.forEach(({ id }) => store.remove(id)),
  });
}

fromAddress();
if (matchMedia("(pointer: fine)").matches) field.focus();

async function greet() {
  try {
    await learnModel();
  } catch (error) {
    const loading = error.status === 503;
    $("model").textContent = loading ? "loading" : "no model";
    $("model").title = error.message;
    if (loading) setTimeout(greet, 2000);
  }
}
greet();
