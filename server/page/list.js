// The list of conversations at the side, which on narrow screens slides in over the page, and the menu of each.

const $ = (id) => document.getElementById(id);
const side = $("side");
const menu = $("menu");
const items = new Map();
let drawn = "";
let chosen = "";
let actions;

/**
 * What is done: `open(id)`, with `null` for a new conversation, `rename(id, title)`, and `markdown(id)`, `json(id)`,
 * `delete(id)` for the entries of the menu.
 */
export const connect = (what) => (actions = what);

/** Shows `{ id, title, shown, running }`, first to last. */
export function draw(entries) {
  const wanted = JSON.stringify(entries);
  // While a name is being typed the list stands still; it is drawn when that is over.
  if (wanted === drawn || $("list").querySelector("input")) return;
  drawn = wanted;
  const focused = document.activeElement;
  const ids = new Set(entries.map(({ id }) => id));
  for (const id of items.keys()) if (!ids.has(id)) items.delete(id);
  $("list").replaceChildren(...entries.map(({ id, title, shown, running }) => {
    const item = items.get(id) ?? $("item").content.firstElementChild.cloneNode(true);
    items.set(id, item);
    item.dataset.id = id;
    item.classList.toggle("running", running);
    const link = item.querySelector("a");
    link.textContent = title;
    link.href = `#${encodeURIComponent(id)}`;
    if (shown) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    item.querySelector(".more").ariaLabel = `More for ${title}`;
    return item;
  }));
  if ($("list").contains(focused)) focused.focus();
  $("list-empty").hidden = entries.length > 0;
}

$("side-open").addEventListener("click", () => {
  side.classList.add("open");
  $("side-open").ariaExpanded = "true";
  $("page").inert = true;
  $("side-close").focus();
});

/** Slides the list out; false where it was not in. */
export function close() {
  if (!side.classList.contains("open")) return false;
  side.classList.remove("open");
  $("side-open").ariaExpanded = "false";
  $("page").inert = false;
  $("side-open").focus();
  return true;
}

$("side-close").addEventListener("click", close);
$("scrim").addEventListener("click", close);

$("new").addEventListener("click", () => {
  close();
  actions.open(null);
  $("ask").focus();
});

$("list").addEventListener("click", (event) => {
  const id = event.target.closest("li")?.dataset.id;
  if (event.target.closest("a")) {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    actions.open(id);
    close();
  } else if (event.target.closest(".more")) {
    chosen = id;
    const { right, bottom } = event.target.getBoundingClientRect();
    menu.showPopover();
    menu.style.left = `${Math.max(8, Math.min(right, innerWidth - 8) - menu.offsetWidth)}px`;
    menu.style.top = `${Math.min(bottom + 4, innerHeight - menu.offsetHeight - 8)}px`;
    menu.querySelector("button").focus();
  }
});

menu.addEventListener("click", ({ target }) => {
  const what = target.dataset.do;
  if (!what) return;
  menu.hidePopover();
  // Another tab may have deleted it.
  if (!items.has(chosen)) return;
  if (what === "rename") rename(chosen);
  else actions[what](chosen);
});

function rename(id) {
  const link = items.get(id).querySelector("a");
  const old = link.textContent;
  const input = Object.assign(document.createElement("input"), { value: old, maxLength: 200, ariaLabel: "Name of the conversation" });
  let over = false;
  const end = (use) => {
    if (over) return;
    over = true;
    const title = input.value.trim();
    const back = document.activeElement === input;
    input.replaceWith(link);
    if (back) link.focus();
    actions.rename(id, (use && title) || old);
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
