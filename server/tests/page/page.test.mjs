// What the page promises with any server.

import assert from "node:assert/strict";
import { test } from "node:test";
import { readFile } from "node:fs/promises";
import { answerShortly, answers, ask, askAndWait, base, idle, lastAnswer, listed, mock, questions, real, says, tabTo, visit } from "./visit.mjs";

test("loads, names the model, and is ready to be typed into", async (t) => {
  const page = await visit(t);
  await page.waitForFunction(() => document.querySelector("#model").textContent.length > 0);
  if (mock) assert.equal(await page.textContent("#model"), "mock-1.58b");
  assert.equal(await page.title(), "Tritone");
  assert.equal(await page.evaluate(() => document.activeElement.id), "ask");
  const headers = (await page.request.get(base)).headers();
  const policy = (await readFile(new URL("../../page/policy.txt", import.meta.url), "utf8")).trim();
  assert.equal(headers["content-security-policy"], policy);
  assert.equal(headers["x-content-type-options"], "nosniff");
});

test("an answer grows while it comes, and tells its speed", async (t) => {
  const page = await visit(t);
  await page.evaluate(() => {
    window.seen = new Set();
    new MutationObserver(() => seen.add(document.querySelector(".assistant > .text")?.innerText)).observe(document.querySelector("#turns"), { childList: true, subtree: true, characterData: true });
  });
  await askAndWait(page, "Once there was a little bear");
  const seen = await page.evaluate(() => [...seen].filter(Boolean));
  assert.ok(seen.length >= 3, `${seen.length} partial texts`);
  const [whole] = await answers(page);
  assert.ok(whole.length > 0);
  assert.match(await lastAnswer(page).locator(".stats").innerText(), /^(ended .* · )?\d+ tokens · [\d,.]+ tokens\/s · first after [\d.]+ s$/);
  if (mock) assert.match(whole, /^You said: Once there was a little bear And so the first .* a third\.$/);
  assert.deepEqual(await listed(page), ["Once there was a little bear"]);
});

test("Stop and Esc end an answer and keep what there is", async (t) => {
  const page = await visit(t);
  if (mock) mock.answer = says("word ".repeat(500), 15);
  for (const how of ["click", "Escape"]) {
    // A fast model may have ended by itself; after such an answer there may be no room for another.
    for (let tries = 0; ; tries++) {
      await page.click("#new");
      await ask(page, "Tell me a very long story about the sea, the ships and the wind.");
      await page.waitForFunction(() => document.querySelector(".turn:last-child > .text").innerText.length > 3);
      if (how === "click") await page.click("#stop", { timeout: 1000 }).catch(() => {});
      else await page.keyboard.press("Escape");
      await idle(page);
      if (await lastAnswer(page).evaluate((node) => node.classList.contains("stopped"))) break;
      assert.ok(real && tries < 8, "the answer was not stopped");
    }
    assert.match(await lastAnswer(page).locator(".stats").innerText(), /^stopped · about \d+ tokens?/);
    const kept = (await answers(page)).at(-1);
    assert.ok(kept.length > 3);
    await page.reload();
    assert.equal((await answers(page)).at(-1), kept);
  }
});

test("a conversation survives a reload, with its speed and in its place", async (t) => {
  const page = await visit(t);
  await answerShortly(page);
  await askAndWait(page, "The first question");
  await askAndWait(page, "The second question");
  const before = [await answers(page), await page.locator(".stats").allInnerTexts()];
  await page.reload();
  assert.deepEqual([await answers(page), await page.locator(".stats").allInnerTexts()], before);
  assert.deepEqual(await questions(page), ["The first question", "The second question"]);
  assert.equal(await page.textContent("#title"), "The first question");
  await askAndWait(page, "A third");
  assert.deepEqual(page.asked.at(-1).messages.map(({ role }) => role), ["user", "assistant", "user", "assistant", "user"]);
});

test("Again asks anew and can be undone", async (t) => {
  const page = await visit(t);
  await answerShortly(page);
  await askAndWait(page, "Say something");
  const [first] = await answers(page);
  if (mock) mock.answer = says("Something else.");
  await lastAnswer(page).getByRole("button", { name: "Again" }).click();
  await idle(page);
  assert.equal(page.asked.length, 2);
  assert.deepEqual(page.asked[1].messages, page.asked[0].messages);
  assert.equal((await answers(page)).length, 1);
  if (mock) assert.deepEqual(await answers(page), ["Something else."]);
  await page.getByRole("button", { name: "Undo" }).click();
  assert.deepEqual(await answers(page), [first]);
  await page.reload();
  assert.deepEqual(await answers(page), [first]);
});

test("a message can be edited and sent again from there", async (t) => {
  const page = await visit(t);
  await answerShortly(page);
  await askAndWait(page, "One");
  await askAndWait(page, "Two");
  await page.hover(".user >> nth=0");
  await page.locator(".user").first().getByRole("button", { name: "Edit" }).click();
  assert.equal(await page.inputValue(".editor textarea"), "One");
  await page.keyboard.press("Escape");
  assert.equal(await page.locator(".editor").count(), 0);
  await page.locator(".user").first().getByRole("button", { name: "Edit" }).click();
  await page.fill(".editor textarea", "Uno");
  await page.getByRole("button", { name: "Send from here" }).click();
  await idle(page);
  assert.deepEqual(await questions(page), ["Uno"]);
  assert.deepEqual(page.asked.at(-1).messages, [{ role: "user", content: "Uno" }]);
  await page.getByRole("button", { name: "Undo" }).click();
  assert.deepEqual(await questions(page), ["One", "Two"]);
});

test("settings are checked, kept, and sent with the request", async (t) => {
  const page = await visit(t);
  await askAndWait(page, "With defaults");
  const { model, messages, ...rest } = page.asked[0];
  assert.deepEqual(rest, { temperature: 0.8, top_p: 0.95, top_k: 40, min_p: 0, stream: true, stream_options: { include_usage: true } });
  assert.equal(model, await page.textContent("#model"));
  // That answer may have filled the context.
  await page.click("#new");
  await page.getByRole("button", { name: "Settings", exact: true }).click();
  await page.fill("#system", "You are a pirate.");
  const bad = { temperature: ["-1", "3", "warm", "", "1e9", "NaN"], top_p: ["0", "1.1"], top_k: ["1.5", "-2"], min_p: ["2"], max_tokens: ["0", "2.5"], seed: ["-1", "99999999999999999999", "0x10"] };
  for (const [name, values] of Object.entries(bad)) {
    for (const value of values) {
      await page.fill(`#set-${name}`, value);
      assert.equal(await page.getAttribute(`#set-${name}`, "aria-invalid"), "true", `${name} ${value}`);
      assert.match(await page.textContent(`#hint-${name}`), /, please\. .* stays in force\./);
    }
  }
  const good = { temperature: "0,25", top_p: "0.5", top_k: "0", min_p: "0.05", max_tokens: "12", seed: "7" };
  for (const [name, value] of Object.entries(good)) {
    await page.fill(`#set-${name}`, value);
    assert.equal(await page.getAttribute(`#set-${name}`, "aria-invalid"), "false", `${name} ${value}`);
  }
  await page.getByRole("button", { name: "Done" }).click();
  assert.equal(await page.textContent("#summary"), "temperature 0.25, top p 0.5, top k 0, min p 0.05, longest answer 12, seed 7, system prompt");
  const sent = async () => {
    await page.waitForFunction(() => document.querySelector("#model").textContent);
    await askAndWait(page, "With mine");
    const { model: _, messages, stream, stream_options, ...settings } = page.asked.at(-1);
    assert.deepEqual(settings, { temperature: 0.25, top_p: 0.5, top_k: 0, min_p: 0.05, max_tokens: 12, seed: 7 });
    assert.deepEqual(messages[0], { role: "system", content: "You are a pirate." });
  };
  await sent();
  if (real) assert.match(await lastAnswer(page).locator(".stats").innerText(), /ended at the limit of 12 tokens|^\d/);
  await page.reload();
  await sent();
  await page.click("#new");
  await sent();
  await page.click("#summary");
  await page.getByRole("button", { name: "Back to the defaults" }).click();
  assert.equal(await page.inputValue("#set-temperature"), "0.8");
  assert.equal(await page.inputValue("#set-seed"), "");
});

test("everything can be done with the keyboard alone", async (t) => {
  const page = await visit(t);
  await page.waitForFunction(() => document.querySelector("#model").textContent);
  await page.keyboard.type("line one");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("line two");
  assert.equal(await page.inputValue("#ask"), "line one\nline two");
  await page.keyboard.press("Enter");
  await page.locator(".assistant").waitFor();
  await idle(page);
  assert.deepEqual(await questions(page), ["line one\nline two"]);
  assert.equal(await page.inputValue("#ask"), "");

  // The message can be edited from the empty field.
  await page.keyboard.press("ArrowUp");
  assert.ok(await page.evaluate(() => document.activeElement.matches(".editor textarea")));
  await page.keyboard.press("Escape");
  await page.keyboard.press("/");
  assert.equal(await page.evaluate(() => document.activeElement.id), "ask");
  await page.keyboard.type("/");
  assert.equal(await page.inputValue("#ask"), "/");
  await page.fill("#ask", "");

  // Settings.
  await tabTo(page, "#summary");
  await page.keyboard.press("Enter");
  await tabTo(page, "#set-temperature");
  await page.keyboard.press("ControlOrMeta+a");
  await page.keyboard.type("0.1");
  await page.keyboard.press("Escape");
  assert.equal(await page.evaluate(() => document.activeElement.id), "summary");
  assert.equal(await page.textContent("#summary"), "temperature 0.1");

  // Rename, then delete, by the menu.
  await page.reload();
  await tabTo(page, "#skip", "Shift+Tab");
  assert.ok((await page.locator("#skip").boundingBox()).x > 0, "the skip link is seen");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement.id), "ask");
  await tabTo(page, ".more", "Shift+Tab");
  await page.keyboard.press("Enter");
  await page.keyboard.press("Enter");
  await page.keyboard.type("A better name");
  await page.keyboard.press("Enter");
  assert.deepEqual(await listed(page), ["A better name"]);
  assert.equal(await page.textContent("#title"), "A better name");
  await tabTo(page, ".more");
  await page.keyboard.press("Enter");
  await tabTo(page, "#menu [data-do=delete]");
  await page.keyboard.press("Enter");
  assert.deepEqual(await listed(page), []);

  // Where the focus is can be seen: each thing Tab comes to has an outline or a ring.
  await page.reload();
  for (let i = 0; i < 15; i++) {
    await page.keyboard.press("Tab");
    const seen = await page.evaluate(() => {
      const marked = (node) => node && (getComputedStyle(node).outlineStyle !== "none" || getComputedStyle(node).boxShadow !== "none");
      const node = document.activeElement;
      return node === document.body || marked(node) || marked(node.nextElementSibling) || marked(node.form) ? "" : node.outerHTML;
    });
    assert.equal(seen, "");
  }
});

test("colours follow the system, and the switch", async (t) => {
  const dark = (page) => page.evaluate(() => {
    const [r, g, b] = getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number);
    return r + g + b < 200;
  });
  const page = await visit(t, { colorScheme: "dark" });
  assert.equal(await dark(page), true);
  await page.emulateMedia({ colorScheme: "light" });
  assert.equal(await dark(page), false);
  await page.getByText("Dark", { exact: true }).click();
  assert.equal(await dark(page), true);
  await page.reload();
  assert.equal(await dark(page), true);
  assert.ok(await page.isChecked("[name=theme][value=dark]"));
  await page.getByText("Light", { exact: true }).click();
  await page.emulateMedia({ colorScheme: "dark" });
  assert.equal(await dark(page), false);
  await page.getByText("Auto", { exact: true }).click();
  assert.equal(await dark(page), true);
});

test("fits a phone", async (t) => {
  const page = await visit(t, { viewport: { width: 360, height: 740 }, isMobile: true, hasTouch: true });
  const fits = async (what) => {
    const wide = await page.evaluate(() => {
      const found = [document.scrollingElement, document.querySelector("#scroll")].filter((node) => node.scrollWidth > node.clientWidth);
      return found.map((node) => `${node.id || node.tagName} ${node.scrollWidth}`);
    });
    assert.deepEqual(wide, [], what);
    assert.equal(await page.evaluate(() => innerWidth), 360, what);
  };
  await fits("empty");
  if (mock) mock.answer = says(`${"wide".repeat(100)}\n\n\`\`\`\n${"code ".repeat(60)}\n\`\`\`\n\n| a | b |\n|---|---|\n| ${"cell".repeat(40)} | b |\n\nhttps://example.org/${"path/".repeat(40)}`, 1);
  await askAndWait(page, `A${"a".repeat(300)} long word`);
  await fits("with wide things");
  const box = await page.locator("#form").boundingBox();
  assert.ok(box.y + box.height <= 740 && box.x >= 0 && box.x + box.width <= 360, "the field is in view");
  await page.tap("#side-open");
  assert.equal(await page.evaluate(() => document.querySelector("#page").inert), true);
  await page.tap("#side-close");
  await page.tap("#side-open");
  await page.tap("#new");
  assert.equal(await page.evaluate(() => document.querySelector("#page").inert), false);
  assert.equal(await page.textContent("#title"), "New conversation");
  await page.tap("#settings-open");
  await fits("settings");
  const small = await page.evaluate(() => [...document.querySelectorAll("textarea, input:not([type=radio])")].filter((field) => Number.parseFloat(getComputedStyle(field).fontSize) < 16).map(({ id }) => id));
  assert.deepEqual(small, [], "a phone would zoom in");
  const low = await page.evaluate(() => [...document.querySelectorAll("#settings button, header button, #form button")].filter((node) => node.offsetHeight > 0 && node.offsetHeight < 34).map((node) => `${node.id} ${node.offsetHeight}`));
  assert.deepEqual(low, [], "too small for a finger");
});
