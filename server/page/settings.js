// The settings of sampling, and the fields that show them. A value that is not allowed is explained and not used.

import * as key from "./key.js";
import { FIELDS, presets, read, settings as left } from "./store.js";

const $ = (id) => document.getElementById(id);

/** What is in force, by the names of the requests; and `system`, the prompt that new conversations begin with. */
export const settings = left();

let changed = () => {};

/** Calls `action` after each change. */
export const onChange = (action) => (changed = action);

const range = ({ min, max, whole, preset }) =>
  `${whole ? "A whole number" : "A number"} ${max < 1e6 ? `from ${min} to ${max}` : `of at least ${min}`}${preset === null ? ", or nothing" : ""}, please.`;

const fill = FIELDS.map((field) => {
  const node = $("field").content.firstElementChild.cloneNode(true);
  const input = node.querySelector("input");
  const hint = node.querySelector(".hint");
  input.id = `set-${field.name}`;
  hint.id = `hint-${field.name}`;
  input.setAttribute("aria-describedby", hint.id);
  if (field.whole) input.inputMode = "numeric";
  Object.assign(node.querySelector("label"), { htmlFor: input.id, textContent: field.label });
  const check = () => {
    const value = read(field, input.value);
    node.classList.toggle("wrong", value === undefined);
    input.ariaInvalid = String(value === undefined);
    hint.textContent = value === undefined ? `${range(field)} ${settings[field.name] ?? "Nothing"} stays in force.` : field.hint;
    if (value === undefined || value === settings[field.name]) return;
    settings[field.name] = value;
    changed();
  };
  input.addEventListener("input", check);
  $("fields").append(node);
  return () => {
    input.value = settings[field.name] ?? "";
    check();
  };
});

export function open() {
  for (const one of fill) one();
  $("forget").hidden = !key.has();
  $("settings").showModal();
}

$("settings-open").addEventListener("click", open);
$("summary").addEventListener("click", open);
$("settings").addEventListener("click", ({ target }) => {
  if (target === $("settings")) $("settings").close();
});
$("reset").addEventListener("click", () => {
  Object.assign(settings, presets());
  changed();
  for (const one of fill) one();
});
$("forget").addEventListener("click", () => {
  key.set("");
  $("forget").hidden = true;
});

/** The settings in a few words: the temperature, and what is not as by default. */
export function summary() {
  const told = FIELDS.filter((field) => field.name === "temperature" || settings[field.name] !== field.preset);
  return told.map((field) => `${field.label.toLowerCase()} ${settings[field.name]}`).join(", ");
}
