// Sets the colours before anything is painted, and keeps the choice. Its own file, since modules run too late for that.
"use strict";
(() => {
  const root = document.documentElement;
  const paper = { light: "#fafbf9", dark: "#14191b" };
  const metas = document.querySelectorAll("meta[name=theme-color]");
  let choice = "auto";
  try {
    choice = localStorage.getItem("tritone.theme") ?? "auto";
  } catch { /* Storage is forbidden: the system's colours then. */ }

  const apply = () => {
    if (choice !== "light" && choice !== "dark") choice = "auto";
    root.dataset.theme = choice;
    for (const meta of metas) {
      meta.content = paper[choice] ?? (meta.media.includes("dark") ? paper.dark : paper.light);
    }
  };
  apply();

  document.addEventListener("DOMContentLoaded", () => {
    const radios = document.querySelectorAll("input[name=theme]");
    for (const radio of radios) radio.checked = radio.value === choice;
    document.addEventListener("change", ({ target }) => {
      if (target.name !== "theme") return;
      choice = target.value;
      apply();
      try {
        localStorage.setItem("tritone.theme", choice);
      } catch { /* Not kept, but in force until the page is left. */ }
    });
    addEventListener("storage", (event) => {
      if (event.key !== "tritone.theme") return;
      choice = event.newValue ?? "auto";
      apply();
      for (const radio of radios) radio.checked = radio.value === choice;
    });
  });
})();
