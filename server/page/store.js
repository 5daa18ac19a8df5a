// Conversations and settings in the browser's storage. Each conversation has an entry of its own, so that one that
// cannot be read harms no other, and saving one does not write all.

const PREFIX = "tritone.chat.";
const SETTINGS = "tritone.settings";

/** What may be set: the request's name, what people read, the default (`null`: not sent), and what is allowed. */
export const FIELDS = [
  { name: "temperature", label: "Temperature", preset: 0.8, min: 0, max: 2, hint: "0 always takes the likeliest word; more is bolder." },
  { name: "top_p", label: "Top p", preset: 0.95, min: 0.01, max: 1, hint: "Only the likeliest words that make up this share. 1: all." },
  { name: "top_k", label: "Top k", preset: 40, min: 0, max: 1e6, whole: true, hint: "Only so many of the likeliest words. 0: all." },
  { name: "min_p", label: "Min p", preset: 0, min: 0, max: 1, hint: "Only words at least this likely, beside the likeliest." },
  { name: "max_tokens", label: "Longest answer", preset: null, min: 1, max: 1e6, whole: true, hint: "In tokens. Empty: until the model ends." },
  { name: "seed", label: "Seed", preset: null, min: 0, max: Number.MAX_SAFE_INTEGER, whole: true, hint: "The same seed gives the same answer. Empty: another each time." },
];

/** Reads what was typed for a field: a number, `null` where empty is allowed and it is, `undefined` where it is wrong. */
export function read(field, typed) {
  const text = typed.trim().replace(",", ".");
  if (text === "") return field.preset === null ? null : undefined;
  return /^\d*\.?\d+$/.test(text) ? allowed(field, Number(text)) : undefined;
}

function allowed(field, value) {
  if (value === null && field.preset === null) return null;
  if (typeof value !== "number" || !(value >= field.min && value <= field.max)) return undefined;
  return field.whole && !Number.isSafeInteger(value) ? undefined : value;
}

export const presets = () => Object.fromEntries(FIELDS.map((field) => [field.name, field.preset]));

/** The settings as they were left; what is missing or makes no sense is as by default. */
export function settings() {
  let kept = {};
  try {
    kept = JSON.parse(localStorage.getItem(SETTINGS)) ?? {};
  } catch { /* Forbidden or damaged: the defaults. */ }
  const result = { ...presets(), system: typeof kept.system === "string" ? kept.system : "" };
  for (const field of FIELDS) result[field.name] = allowed(field, kept[field.name]) ?? field.preset;
  return result;
}

export const keepSettings = (values) => write(SETTINGS, JSON.stringify(values));

// Gives a sentence where it fails.
function write(key, text) {
  try {
    localStorage.setItem(key, text);
    return "";
  } catch (error) {
    return error.name === "QuotaExceededError"
      ? "The browser’s storage is full: what is new will be gone after a reload. Export this conversation, or delete others."
      : "The browser does not let this page keep anything: conversations will be gone after a reload.";
  }
}

/** A conversation without messages. */
export const fresh = (system) => ({ id: name(), title: "", system, created: Date.now(), updated: Date.now(), messages: [] });

const name = () => Date.now().toString(36) + Math.random().toString(36).slice(2, 8);

const text = (value) => (typeof value === "string" ? value : "");
const number = (value) => (Number.isFinite(value) ? value : 0);

// Storage may hold anything: an older format, half a write, what another program left. Throws at what is no conversation.
function parse(id, entry) {
  const found = JSON.parse(entry);
  if (!Array.isArray(found.messages)) throw new TypeError("no messages");
  const messages = found.messages.map((message) => {
    if (message.role !== "user" && message.role !== "assistant") throw new TypeError("no role");
    if (typeof message.content !== "string") throw new TypeError("no content");
    const result = { role: message.role, content: message.content };
    if (message.role === "assistant") {
      // An answer that was being written when the page went away has ended there.
      result.state = ["done", "cut", "failed"].includes(message.state) ? message.state : "stopped";
      result.model = text(message.model);
      if (result.state === "failed") result.error = text(message.error);
      if (message.stats !== null && typeof message.stats === "object") {
        result.stats = Object.fromEntries(Object.entries(message.stats).filter(([, value]) => Number.isFinite(value)));
      }
    }
    return result;
  });
  return { id, title: text(found.title), system: text(found.system), created: number(found.created), updated: number(found.updated), messages };
}

/** The conversation of an entry of the storage, or `null` where the key is none's or the entry is unreadable or gone. */
export function conversation(key, entry) {
  if (!key?.startsWith(PREFIX) || entry === null) return null;
  try {
    return parse(key.slice(PREFIX.length), entry);
  } catch {
    return null;
  }
}

/** The conversation's name in a storage key, or `null`. */
export const idOf = (key) => (key?.startsWith(PREFIX) ? key.slice(PREFIX.length) : null);

/** All conversations by name, and the entries that could not be read. */
export function load() {
  const found = new Map();
  const broken = [];
  try {
    for (const key of Object.keys(localStorage)) {
      if (!key.startsWith(PREFIX)) continue;
      const entry = localStorage.getItem(key);
      const read = conversation(key, entry);
      if (read) found.set(read.id, read);
      else broken.push({ id: idOf(key), entry });
    }
  } catch { /* Storage is forbidden; the first save says so. */ }
  return { found, broken };
}

/** Keeps a conversation; gives a sentence where that fails. */
export const save = (conversation) => write(PREFIX + conversation.id, JSON.stringify(conversation));

export function remove(id) {
  try {
    localStorage.removeItem(PREFIX + id);
  } catch { /* Nothing was kept either. */ }
}

/** A conversation as a text to read. */
export function markdown(conversation) {
  const parts = [`# ${conversation.title}`];
  if (conversation.system) parts.push("## System", conversation.system);
  for (const message of conversation.messages) {
    parts.push(message.role === "user" ? "## You" : "## Answer", message.content || "(no text)");
  }
  return `${parts.join("\n\n")}\n`;
}
