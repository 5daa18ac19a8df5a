// The page: what is seen and what happens when it is touched.
//
// The truth is `found`, all conversations, and `current`, the one that is shown; drawing follows from them. A conversation
// has at most one answer under way (`runs`), which goes on while another conversation is looked at.

import { render } from "./markdown.js";
import * as store from "./store.js";
import { answer, model as askModel, ServerError } from "./stream.js";

const $ = (id) => document.getElementById(id);
const copyOf = (id) => $(id).content.firstElementChild.cloneNode(true);

const { found, broken } = store.load();
const settings = store.settings();
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

// The page may be gone at once, without another word.
addEventListener("pagehide", () => {
  for (const { conversation } of runs.values()) keep(conversation);
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

let listed = "";
const items = new Map();

function drawList() {
  const order = [...found.values()].sort((a, b) => b.updated - a.updated);
  const wanted = JSON.stringify(order.map(({ id, title }) => [id, title, id === current.id, runs.has(id)]));
  if (wanted === listed) return;
  listed = wanted;
  const focused = document.activeElement;
  for (const id of items.keys()) if (!found.has(id)) items.delete(id);
  $("list").replaceChildren(...order.map(({ id, title }) => {
    const item = items.get(id) ?? copyOf("item");
    items.set(id, item);
    item.dataset.id = id;
    item.classList.toggle("running", runs.has(id));
    const link = item.querySelector("a");
    link.textContent = title;
    link.href = `#${encodeURIComponent(id)}`;
    if (id === current.id) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    item.querySelector(".more").ariaLabel = `More for ${title}`;
    return item;
  }));
  if ($("list").contains(focused)) focused.focus();
  $("list-empty").hidden = order.length > 0;
}

function drawSummary() {
  const parts = [`temperature ${settings.temperature}`];
  for (const field of store.FIELDS.slice(1)) {
    if (settings[field.name] !== field.preset) parts.push(`${field.label.toLowerCase()} ${settings[field.name]}`);
  }
  if (current.system.trim()) parts.push("system prompt");
  $("summary").textContent = parts.join(", ");
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

const short = (value) => value.toLocaleString("en", value < 10 ? { maximumSignificantDigits: 2 } : { maximumFractionDigits: value < 100 ? 1 : 0 });

function stats({ state, content, stats: { first, rate, tokens, exact, limit } = {} }) {
  const parts = [];
  if (state === "stopped") parts.push(content ? "stopped" : "stopped before the first word");
  if (state === "cut") parts.push(limit ? `ended at the limit of ${limit} tokens` : "ended because the context is full");
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

// ---- The key

let key = "";
try {
  key = sessionStorage.getItem("tritone.key") ?? "";
} catch { /* Storage is forbidden: the key lives as long as the page. */ }

function setKey(value) {
  key = value;
  try {
    if (value) sessionStorage.setItem("tritone.key", value);
    else sessionStorage.removeItem("tritone.key");
  } catch { /* As above. */ }
}

let asking = null;

/** Asks for the key; false where none is given. Whoever else needs it waits for the same answer. */
function askKey() {
  asking ??= new Promise((resolve) => {
    const dialog = $("key");
    const field = $("key-value");
    $("key-why").textContent = key ? "It does not accept the last one." : "";
    field.value = "";
    let given = false;
    dialog.querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      const value = field.value.trim();
      if (!/^[!-~]+$/.test(value)) {
        $("key-why").textContent = "A key consists of letters, digits and signs, without spaces.";
        return;
      }
      setKey(value);
      given = true;
      dialog.close();
    };
    $("key-cancel").onclick = () => dialog.close();
    dialog.onclose = () => {
      asking = null;
      resolve(given);
    };
    dialog.showModal();
  });
  return asking;
}

/** Does `work`, and again with a new key as long as the server wants one. */
async function withKey(work) {
  for (;;) {
    const used = key;
    try {
      return await work();
    } catch (error) {
      // Another request may have asked meanwhile.
      if (error.status !== 401 || (used === key && !(await askKey()))) throw error;
    }
  }
}

// ---- Answers

async function learnModel(signal) {
  model = await withKey(() => askModel(key, signal));
  $("model").textContent = model;
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
      await withKey(() => read(run));
    } catch (error) {
      // The server may have another model by now.
      const old = model;
      if (error.status !== 404) throw error;
      await learnModel(run.controller.signal);
      if (model === old) throw error;
      await withKey(() => read(run));
    }
  } catch (error) {
    message.state = run.controller.signal.aborted ? "stopped" : "failed";
    if (message.state === "failed") message.error = error instanceof ServerError ? error.message : `This page failed: ${error.message}`;
  }
  runs.delete(conversation.id);
  cancelAnimationFrame(run.frame);
  if (found.has(conversation.id)) keep(conversation);
  progress(run);
  if (conversation === current) drawState();
  else drawList();
}

async function read(run) {
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

$("turns").addEventListener("click", async ({ target }) => {
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
    if ($("side").classList.contains("open")) closeSide();
    else stop();
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

function openSide() {
  $("side").classList.add("open");
  $("side-open").ariaExpanded = "true";
  $("page").inert = true;
  $("side-close").focus();
}

function closeSide() {
  if (!$("side").classList.contains("open")) return;
  $("side").classList.remove("open");
  $("side-open").ariaExpanded = "false";
  $("page").inert = false;
  $("side-open").focus();
}

$("side-open").addEventListener("click", openSide);
$("side-close").addEventListener("click", closeSide);
$("scrim").addEventListener("click", closeSide);

$("new").addEventListener("click", () => {
  closeSide();
  go(null);
  field.focus();
});

let chosen = null;
const menu = $("menu");

$("list").addEventListener("click", (event) => {
  const item = event.target.closest("li");
  if (event.target.closest("a")) {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go(found.get(item.dataset.id));
    closeSide();
  } else if (event.target.closest(".more")) {
    chosen = found.get(item.dataset.id);
    const { right, bottom } = event.target.getBoundingClientRect();
    menu.showPopover();
    menu.style.left = `${Math.max(8, Math.min(right, innerWidth - 8) - menu.offsetWidth)}px`;
    menu.style.top = `${Math.min(bottom + 4, innerHeight - menu.offsetHeight - 8)}px`;
    menu.querySelector("button").focus();
  }
});

menu.addEventListener("click", ({ target }) => {
  if (!target.dataset.do) return;
  menu.hidePopover();
  switch (target.dataset.do) {
    case "rename":
      return rename(chosen);
    case "markdown":
      return save(fileName(chosen.title, "md"), "text/markdown", store.markdown(chosen));
    case "json":
      return save(fileName(chosen.title, "json"), "application/json", `${JSON.stringify(chosen, null, 2)}\n`);
    case "delete":
      return discard([chosen]);
  }
});

function rename(conversation) {
  const item = items.get(conversation.id);
  const link = item.querySelector("a");
  const input = Object.assign(document.createElement("input"), { value: conversation.title, maxLength: 200, ariaLabel: "Name of the conversation" });
  let over = false;
  const end = (use) => {
    if (over) return;
    over = true;
    const title = input.value.trim();
    input.replaceWith(link);
    link.focus();
    if (!use || title === "" || title === conversation.title) return;
    conversation.title = title;
    keep(conversation);
    drawState();
  };
  input.addEventListener("blur", () => end(true));
  input.addEventListener("keydown", (event) => {
    if (event.isComposing || (event.key !== "Enter" && event.key !== "Escape")) return;
    event.stopPropagation();
    end(event.key === "Enter");
  });
  link.replaceWith(input);
  input.select();
}

// ---- Settings

function keepSettings() {
  report(store.keepSettings(settings));
  drawSummary();
}

const range = ({ min, max, whole, preset }) =>
  `${whole ? "A whole number" : "A number"} ${max < 1e6 ? `from ${min} to ${max}` : `of at least ${min}`}${preset === null ? ", or nothing" : ""}, please.`;

const inputs = store.FIELDS.map((field) => {
  const node = copyOf("field");
  const input = node.querySelector("input");
  const hint = node.querySelector(".hint");
  input.id = `set-${field.name}`;
  hint.id = `hint-${field.name}`;
  input.setAttribute("aria-describedby", hint.id);
  if (field.whole) input.inputMode = "numeric";
  Object.assign(node.querySelector("label"), { htmlFor: input.id, textContent: field.label });
  const check = () => {
    const value = store.read(field, input.value);
    node.classList.toggle("wrong", value === undefined);
    input.ariaInvalid = String(value === undefined);
    hint.textContent = value === undefined ? `${range(field)} ${settings[field.name] ?? "Nothing"} stays in force.` : field.hint;
    if (value === undefined || value === settings[field.name]) return;
    settings[field.name] = value;
    keepSettings();
  };
  const set = () => {
    input.value = settings[field.name] ?? "";
    check();
  };
  input.addEventListener("input", check);
  $("fields").append(node);
  return set;
});

function openSettings() {
  for (const set of inputs) set();
  $("forget").hidden = !key;
  $("erase").hidden = found.size === 0;
  $("settings").showModal();
}

$("settings-open").addEventListener("click", openSettings);
$("summary").addEventListener("click", openSettings);
$("settings").addEventListener("click", ({ target }) => {
  if (target === $("settings")) $("settings").close();
});

$("system").addEventListener("input", () => {
  current.system = $("system").value;
  settings.system = current.system;
  keepSettings();
});
$("settings").addEventListener("close", () => {
  if (found.has(current.id)) keep(current);
});

$("reset").addEventListener("click", () => {
  Object.assign(settings, store.presets());
  keepSettings();
  for (const set of inputs) set();
});
$("forget").addEventListener("click", () => {
  setKey("");
  $("forget").hidden = true;
});
$("erase").addEventListener("click", () => {
  $("settings").close();
  discard([...found.values()]);
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
