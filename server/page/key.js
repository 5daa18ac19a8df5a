// The key that a server may ask for. It is kept in this tab's storage only, and goes nowhere but into the requests.

const dialog = document.getElementById("key");
const field = document.getElementById("key-value");
const why = document.getElementById("key-why");

let key = "";
try {
  key = sessionStorage.getItem("tritone.key") ?? "";
} catch { /* Storage is forbidden: the key lives as long as the page. */ }

export const has = () => key !== "";

export function set(value) {
  key = value;
  try {
    if (value) sessionStorage.setItem("tritone.key", value);
    else sessionStorage.removeItem("tritone.key");
  } catch { /* As above. */ }
}

let asking = null;

/** Asks for the key; false where none is given. Whoever else needs it waits for the same answer. */
function ask() {
  asking ??= new Promise((resolve) => {
    why.textContent = key ? "It does not accept the last one." : "";
    field.value = "";
    let given = false;
    dialog.querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      const value = field.value.trim();
      if (!/^[!-~]+$/.test(value)) {
        why.textContent = "A key consists of letters, digits and signs, without spaces.";
        return;
      }
      set(value);
      given = true;
      dialog.close();
    };
    document.getElementById("key-cancel").onclick = () => dialog.close();
    dialog.onclose = () => {
      asking = null;
      field.value = "";
      resolve(given);
    };
    for (const other of document.querySelectorAll("dialog[open]")) other.close();
    dialog.showModal();
  });
  return asking;
}

/** Does `work(key)`, and again with a new key as long as the server wants one. */
export async function withKey(work) {
  for (;;) {
    const used = key;
    try {
      return await work(used);
    } catch (error) {
      // Another request may have asked meanwhile.
      if (error.status !== 401 || (used === key && !(await ask()))) throw error;
    }
  }
}
