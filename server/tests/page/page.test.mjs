// What the page promises, in a browser. Against the mock; what any server must do as well runs against a real one too
// when BASE names it (`run` sets it).

import assert from "node:assert/strict";
import { after, before, beforeEach, test } from "node:test";
import { readFile } from "node:fs/promises";
import { launch } from "./browser.mjs";
import { failure, startMock } from "./mock.mjs";

const real = process.env.BASE;
const mockOnly = real ? { skip: "the mock's part" } : {};
let mock;
let browser;
let base;

before(async () => {
  browser = await launch();
  mock = real ? null : await startMock();
  base = real ? new URL(real).href : mock.url;
});
beforeEach(() => mock?.reset());
after(async () => {
  await browser?.close();
  mock?.stop();
});

/** A browser of one's own with the page open. Fails at the end where the page complained or broke its policy. */
async function visit(t, { statuses = [], expected = [], prepare, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  const complaints = [];
  await context.exposeBinding("__violation", (_, what) => complaints.push(`policy: ${what}`));
  await context.addInitScript(() => {
    addEventListener("securitypolicyviolation", (event) => window.__violation(`${event.violatedDirective} ${event.blockedURI}`));
  });
  if (prepare) await context.addInitScript(prepare);
  const open = async () => {
    const page = await context.newPage();
    page.on("pageerror", (error) => complaints.push(`uncaught: ${error}`));
    page.on("console", (message) => {
      const wanted = statuses.some((status) => message.text().startsWith("Failed to load resource") && message.text().includes(status));
      if (["error", "warning"].includes(message.type()) && !wanted) complaints.push(`console: ${message.text()}`);
    });
    page.asked = [];
    page.on("request", (request) => {
      if (request.url().endsWith("/v1/chat/completions")) page.asked.push(request.postDataJSON());
      if (!request.url().startsWith(base) && !request.url().startsWith("data:") && !request.url().startsWith("blob:")) complaints.push(`foreign: ${request.url()}`);
    });
    page.setDefaultTimeout(60_000);
    await page.goto(base);
    return page;
  };
  t.after(async () => {
    await context.close();
    assert.deepEqual(complaints.filter((text) => !expected.some((form) => form.test(text))), []);
  });
  const page = await open();
  page.another = open;
  return page;
}

async function ask(page, text) {
  await page.fill("#ask", text);
  await page.press("#ask", "Enter");
}
// An answer begins at once with what asks for it, so this waits for its end.
const idle = (page) => page.locator("#send").waitFor();
const shown = (page, text) => page.locator("#turns").getByText(text).waitFor();
async function askAndWait(page, text) {
  await ask(page, text);
  await idle(page);
}
/** Sets the longest answer: a model may fill its context with the first one, and the next turn would be refused. */
async function answerShortly(page) {
  await page.getByRole("button", { name: "Settings", exact: true }).click();
  await page.fill("#set-max_tokens", "40");
  await page.getByRole("button", { name: "Done" }).click();
}
const answers = (page) => page.locator(".assistant > .text").allInnerTexts();
const questions = (page) => page.locator(".user > .text").allInnerTexts();
const lastAnswer = (page) => page.locator(".assistant").last();
const listed = (page) => page.locator("#list li a").allInnerTexts();
const says = (text, gap) => async (stream) => {
  await stream.text(text, gap);
  stream.finish();
};

/** Presses Tab until the element has the focus. */
async function tabTo(page, selector, key = "Tab") {
  for (let i = 0; i < 60; i++) {
    if (await page.evaluate((selector) => document.activeElement.matches(selector), selector)) return;
    await page.keyboard.press(key);
  }
  assert.fail(`${key} never comes to ${selector}`);
}

// ---- With any server

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

// ---- With the mock: what needs a server that misbehaves

test("a half-written answer survives a reload", mockOnly, async (t) => {
  const page = await visit(t);
  mock.answer = says("word ".repeat(500), 20);
  await ask(page, "Go");
  await page.waitForFunction(() => document.querySelector(".assistant > .text")?.innerText.length > 60);
  const shown = (await answers(page))[0];
  await page.reload();
  const [kept] = await answers(page);
  assert.ok(kept.length >= shown.length && kept.startsWith(shown));
  assert.match(await lastAnswer(page).locator(".stats").innerText(), /^stopped/);
  await idle(page);
});

test("events are read whole however the bytes are cut", mockOnly, async (t) => {
  const page = await visit(t);
  const wrong = await page.evaluate(async () => {
    const { EventReader } = await import("/page/stream.js");
    const text = ": hello\r\n\r\ndata: {\"a\":\"grüße 🐻\"}\n\nevent: x\rdata:one\rdata: two\r\rdata: \r\n\r\nid: 3\n\ndata:  🎼\r\n\ndata: lost";
    const bytes = new TextEncoder().encode(text);
    const expected = JSON.stringify(["{\"a\":\"grüße 🐻\"}", "one\ntwo", "", " 🎼"]);
    const read = (cuts) => {
      const reader = new EventReader();
      const found = [];
      let from = 0;
      for (const cut of [...cuts, bytes.length]) {
        found.push(...reader.read(bytes.subarray(from, cut)));
        from = cut;
      }
      return JSON.stringify(found);
    };
    const wrong = [];
    for (let a = 0; a <= bytes.length; a++) {
      for (let b = a; b <= bytes.length; b++) if (read([a, b]) !== expected) wrong.push([a, b, read([a, b])]);
    }
    const each = read([...bytes.keys()]);
    if (each !== expected) wrong.push(each);
    return wrong.slice(0, 3);
  });
  assert.deepEqual(wrong, []);

  mock.answer = async (stream) => {
    const bytes = Buffer.from(": ping\n\n" + ["Grü", "ße, ", "🐻", "!"].map((content) => stream.event({ content })).join(""));
    for (let i = 0; i < bytes.length; i += 7) await stream.raw(bytes.subarray(i, i + 7));
    stream.tokens = 4;
    stream.finish();
  };
  await askAndWait(page, "Byte by byte");
  assert.deepEqual(await answers(page), ["Grüße, 🐻!"]);
});

test("what goes wrong is said in words, and can be tried again", mockOnly, async (t) => {
  const page = await visit(t, { statuses: [400, 429, 500, 502, "ERR_"] });
  const cases = [
    [(s) => s.refuse(429, failure("17 requests are waiting already"), { "Retry-After": "3" }), "", "17 requests are waiting already. Please wait 3 s."],
    [(s) => s.refuse(400, failure("the prompt has 5000 tokens, the context 4096")), "", "The prompt has 5000 tokens, the context 4096."],
    [(s) => s.refuse(502, "<h1>Bad gateway</h1>", { "Content-Type": "text/html" }), "", "The model behind this address does not answer."],
    [(s) => s.refuse(500, { error: "odd" }), "", "The server failed."],
    [(s) => s.refuse(200, { choices: [] }), "", "The server did not answer with a stream."],
    // What has come is lost where the connection breaks before it is read.
    [async (s) => { await s.text("Half an"); await shown(page, "Half an"); s.break(); }, "Half an", "The connection broke before the answer was complete."],
    [async (s) => { await s.text("Half an"); s.end(); }, "Half an", "The connection broke before the answer was complete."],
    [async (s) => { await s.text("Half an"); await s.raw(`data: ${JSON.stringify(failure("the request took longer than the time limit of this server"))}\n\n`); s.end(); }, "Half an", "The request took longer than the time limit of this server."],
    [async (s) => { await s.raw("data: {oops\n\n"); s.end(); }, "", "The server sent something that is no part of an answer."],
    [async (s) => { await s.raw("data: null\n\n"); s.end(); }, "", "The server sent something that is no part of an answer."],
    [(s) => s.break(), "", "The server does not answer. Is it still running?"],
  ];
  for (const [answer, text, said] of cases) {
    mock.answer = answer;
    await page.click("#new");
    await askAndWait(page, "Hello");
    await page.locator(".failed").waitFor();
    assert.equal(await page.locator(".trouble span").innerText(), said);
    assert.equal(await page.locator("#alert").textContent(), said);
    assert.equal(await page.locator(".assistant > .text").textContent(), text);
    await page.reload();
    assert.equal(await page.locator(".trouble span").innerText(), said, "after a reload");
    mock.answer = says("All is well.");
    await page.getByRole("button", { name: "Try again" }).click();
    await shown(page, "All is well.");
    await idle(page);
    assert.deepEqual(await answers(page), ["All is well."]);
    assert.equal(await page.locator(".failed").count(), 0);
  }
  // Sides alternate in what is sent even where an answer never came.
  mock.answer = (stream) => stream.refuse(500, failure("no"));
  await askAndWait(page, "Lost");
  mock.answer = mock.usual;
  await askAndWait(page, "Found");
  assert.deepEqual(page.asked.at(-1).messages.slice(-2), [{ role: "assistant", content: "All is well." }, { role: "user", content: "Lost\n\nFound" }]);
});

test("an answer that was cut, or is empty, says so", mockOnly, async (t) => {
  const page = await visit(t);
  mock.answer = async (stream) => { await stream.text("Up to here"); stream.finish("length"); };
  await askAndWait(page, "Cut");
  assert.match(await lastAnswer(page).locator(".stats").innerText(), /^ended because the context is full · 4 tokens/);
  await page.click("#settings-open");
  await page.fill("#set-max_tokens", "4");
  await page.keyboard.press("Escape");
  await askAndWait(page, "Cut");
  assert.match(await lastAnswer(page).locator(".stats").innerText(), /^ended at the limit of 4 tokens · 4 tokens/);
  mock.answer = (stream) => stream.finish();
  await askAndWait(page, "Nothing");
  assert.match(await lastAnswer(page).locator(".stats").innerText(), /^the model said nothing/);
});

test("asks for a key, and keeps it in this tab only", mockOnly, async (t) => {
  mock.key = "right-key";
  const page = await visit(t, { statuses: [401] });
  await page.locator("#key").waitFor();
  await page.keyboard.press("Escape");
  // A dialog tells of its end a moment after it has gone.
  await page.waitForFunction(() => document.querySelector("#model").textContent === "no model");
  await ask(page, "Hello");
  await page.fill("#key-value", "not a key");
  await page.keyboard.press("Enter");
  assert.match(await page.textContent("#key-why"), /letters, digits and signs/);
  await page.fill("#key-value", "wrong-key");
  await page.keyboard.press("Enter");
  await page.getByText("It does not accept the last one.").waitFor();
  await page.fill("#key-value", "right-key");
  await page.keyboard.press("Enter");
  await shown(page, "You said: Hello");
  await idle(page);
  assert.equal(await page.textContent("#model"), "mock-1.58b");
  const kept = await page.evaluate(() => [JSON.stringify(localStorage), JSON.stringify(sessionStorage), document.body.innerText, document.querySelector("#key-value").value]);
  assert.ok(!kept[0].includes("right-key") && kept[1].includes("right-key") && !kept[2].includes("right-key") && kept[3] === "");
  await page.reload();
  await page.waitForFunction(() => document.querySelector("#model").textContent === "mock-1.58b");
  await page.click("#settings-open");
  await page.getByRole("button", { name: "Forget the key" }).click();
  await page.keyboard.press("Escape");
  await ask(page, "And now?");
  await page.locator("#key").waitFor();
  await page.getByRole("button", { name: "Not now" }).click();
  await shown(page, "The key is missing or wrong.");
});

test("waits for a model that loads, and follows one that changes", mockOnly, async (t) => {
  mock.loading = true;
  const page = await visit(t, { statuses: [503, 404] });
  await page.getByText("loading", { exact: true }).waitFor();
  mock.loading = false;
  await page.getByText("mock-1.58b").waitFor();
  mock.model = "another";
  await askAndWait(page, "Hello");
  assert.match((await answers(page))[0], /^You said: Hello/);
  assert.equal(await page.textContent("#model"), "another");
});

test("what a model writes stays text", mockOnly, async (t) => {
  const page = await visit(t, { expected: [/TrustedHTML/, /trusted-types-sink/] });
  const attacks = [
    "<img src=x onerror=\"window.pwned=1\">", "<script>window.pwned=1</script>", "<svg/onload=window.pwned=1>", "[click](javascript:window.pwned=1)",
    "[x](data:text/html,<script>window.pwned=1</script>)", "![x](https://evil.example/leak.png)", "```\"><img src=x onerror=window.pwned=1>\n</code></pre><script>window.pwned=1</script>\n```",
    "`</code><img src=x onerror=window.pwned=1>`", "**<b onclick=window.pwned=1>**", "| <img src=x onerror=window.pwned=1> | b |\n|---|---|\n| </td><script>window.pwned=1</script> | c |",
    "[a](https://ok.example/\"onmouseover=\"window.pwned=1)", "<style>*{display:none}</style>", "<a href=javascript:window.pwned=1>x</a>", "[x](JaVaScRiPt:window.pwned=1)", "[x]( vbscript:x)", "&lt;img src=x&gt;",
  ];
  mock.answer = says(attacks.join("\n\n"), 0);
  await askAndWait(page, "<img src=x onerror=\"window.pwned=1\">");
  for (const round of ["fresh", "reloaded"]) {
    assert.equal(await page.evaluate(() => window.pwned), undefined, round);
    const odd = await page.evaluate(() => {
      const allowed = new Set("ARTICLE H2 H3 H4 H5 H6 DIV P SPAN BUTTON BR CODE PRE FIGURE FIGCAPTION STRONG EM A UL OL LI TABLE THEAD TBODY TR TH TD BLOCKQUOTE HR".split(" "));
      return [...document.querySelectorAll("#turns *")].filter((node) => !allowed.has(node.tagName) || [...node.attributes].some(({ name }) => name.startsWith("on")) || (node.tagName === "A" && !/^https?:$/.test(node.protocol))).map((node) => node.outerHTML);
    });
    assert.deepEqual(odd, [], round);
    const [text] = await answers(page);
    for (const part of ["<img src=x onerror=\"window.pwned=1\">", "javascript:window.pwned=1", "<style>", "&lt;img src=x&gt;"]) assert.ok(text.includes(part), part);
    assert.equal((await questions(page))[0], "<img src=x onerror=\"window.pwned=1\">");
    await page.reload();
  }
  // Even code that is already on the page cannot make nodes of text.
  assert.equal(await page.evaluate(() => {
    try {
      document.body.innerHTML = "<i>x</i>";
      return "made";
    } catch (error) {
      return error.name;
    }
  }), "TypeError");
});

test("Markdown is set", mockOnly, async (t) => {
  const page = await visit(t);
  const cases = [
    ["One\ntwo\n\nthree", "<p>One<br>two</p><p>three</p>"],
    ["**bold** and *it* and _it_ and __bold__", "<p><strong>bold</strong> and <em>it</em> and <em>it</em> and <strong>bold</strong></p>"],
    ["***both***, **a *b* c**, *a **b***", "<p><strong><em>both</em></strong>, <strong>a <em>b</em> c</strong>, <em>a <strong>b</strong></em></p>"],
    ["2 * 3 * 4, snake_case_name, **open, * x*", "<p>2 * 3 * 4, snake_case_name, **open, * x*</p>"],
    ["`a*b*` and ``x ` y`` and `open", "<p><code>a*b*</code> and <code>x ` y</code> and `open</p>"],
    ["\\*no\\* \\(x\\)", "<p>*no* \\(x\\)</p>"],
    ["# A #\n## B\ntext", "<h3>A</h3><h4>B</h4><p>text</p>"],
    ["- a\n- b\n  - c\n    more\n- d", "<ul><li><span>a</span></li><li><span>b</span><ul><li><span>c<br>more</span></li></ul></li><li><span>d</span></li></ul>"],
    ["1. a\n\n2. b\n   - x\n\n3. c", "<ol><li><span>a</span></li><li><span>b</span><ul><li><span>x</span></li></ul></li><li><span>c</span></li></ol>"],
    ["3) c\n4) d", "<ol start=\"3\"><li><span>c</span></li><li><span>d</span></li></ol>"],
    ["Text:\n- a\n\nAfter", "<p>Text:</p><ul><li><span>a</span></li></ul><p>After</p>"],
    ["> q\n> r\n\nx", "<blockquote><p>q<br>r</p></blockquote><p>x</p>"],
    ["a\n\n---\n\nb", "<p>a</p><hr><p>b</p>"],
    ["[t](https://a.example/x) https://b.example/y.", "<p><a href=\"https://a.example/x\" title=\"https://a.example/x\" target=\"_blank\" rel=\"noopener noreferrer\">t</a> <a href=\"https://b.example/y\" title=\"https://b.example/y\" target=\"_blank\" rel=\"noopener noreferrer\">https://b.example/y</a>.</p>"],
    ["| a | b |\n|:--|--:|\n| 1 | **2** |", "<div class=\"table\" tabindex=\"0\"><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td><strong>2</strong></td></tr></tbody></table></div>"],
    ["a | b, no table", "<p>a | b, no table</p>"],
    ["```py\n# x\n\n- y\n```\nz", "<figure class=\"code\"><figcaption><span>py</span><button type=\"button\" class=\"quiet\" data-do=\"copy-code\">Copy</button></figcaption><pre tabindex=\"0\"><code># x\n\n- y</code></pre></figure><p>z</p>"],
    ["~~~~\n```\n~~~\n~~~~", "<figure class=\"code\"><figcaption><span>code</span><button type=\"button\" class=\"quiet\" data-do=\"copy-code\">Copy</button></figcaption><pre tabindex=\"0\"><code>```\n~~~</code></pre></figure>"],
    ["a\r\n\r\nb", "<p>a</p><p>b</p>"],
    ["", ""],
  ];
  for (const [text, html] of cases) {
    const set = await page.evaluate(async (text) => {
      const { render } = await import("/page/markdown.js");
      const whole = document.createElement("div");
      render(whole, text);
      // Letter by letter it must come to the same.
      const grown = document.createElement("div");
      for (let end = 0; end <= text.length; end++) render(grown, text.slice(0, end));
      return [whole.innerHTML, grown.innerHTML];
    }, text);
    assert.deepEqual(set, [html, html], text);
  }
});

test("odd Markdown takes no time", mockOnly, async (t) => {
  const page = await visit(t);
  // The processor's time, not the clock's: whoever else is at work does not count.
  const chromium = await page.context().newCDPSession(page);
  await chromium.send("Performance.enable");
  const spent = async () => (await chromium.send("Performance.getMetrics")).metrics.find(({ name }) => name === "ThreadTime").value;
  const pieces = ["*a ", "**a ", "_a ", "`a ", "``` ", "[a](", "[", "> ", "- ", " - ", "#", "# ", "|", "| - ", "-|", "~~~\n", "* ", "  ", "\\", "a*", "***a ", "http", "http://", "1. ", "\n> - 1. ", "`".repeat(50) + " ", "_a_b", "*a*", "- a\n\n", "\t"];
  const slow = [];
  for (const piece of pieces) {
    const many = piece.repeat(100_000 / piece.length);
    for (const text of [`x ${many} y`, many]) {
      const before = await spent();
      await page.evaluate(async (text) => {
        const { render } = await import("/page/markdown.js");
        render(document.createElement("div"), text);
      }, text);
      const took = (await spent()) - before;
      assert.ok(took > 0, "the processor's time is told");
      if (took > 0.7) slow.push([piece, took]);
    }
  }
  assert.deepEqual(slow, []);
});

test("conversations are listed, renamed, exported, deleted and had back", mockOnly, async (t) => {
  const page = await visit(t, { acceptDownloads: true });
  await askAndWait(page, "First");
  await page.click("#new");
  await askAndWait(page, "Second: with/odd\\signs");
  assert.deepEqual(await listed(page), ["Second: with/odd\\signs", "First"]);
  const choose = async (title, action) => {
    const item = page.locator("#list li", { has: page.getByRole("link", { name: title, exact: true }) });
    await item.hover();
    await item.locator(".more").click();
    await page.locator("#menu").getByRole("button", { name: action }).click();
  };
  const exported = async (action) => {
    const [download] = await Promise.all([page.waitForEvent("download"), choose("Second: with/odd\\signs", action)]);
    return [download.suggestedFilename(), await readFile(await download.path(), "utf8")];
  };
  const [mdName, md] = await exported("Export as Markdown");
  assert.equal(mdName, "Second-with-odd-signs.md");
  assert.match(md, /^# Second: with\/odd\\signs\n\n## You\n\nSecond: with\/odd\\signs\n\n## Answer\n\nYou said: .*third\.\n$/);
  const [jsonName, json] = await exported("Export as JSON");
  assert.equal(jsonName, "Second-with-odd-signs.json");
  const { messages } = JSON.parse(json);
  assert.deepEqual(messages.map(({ role }) => role), ["user", "assistant"]);
  assert.equal(messages[1].stats.prompt, 9);
  assert.equal(messages[1].stats.cached, 4);
  assert.equal(messages[1].model, "mock-1.58b");

  await choose("First", "Rename");
  await page.keyboard.type("Premier");
  await page.keyboard.press("Escape");
  assert.deepEqual(await listed(page), ["Second: with/odd\\signs", "First"]);
  await choose("First", "Rename");
  await page.keyboard.type("Premier");
  await page.keyboard.press("Enter");
  assert.deepEqual(await listed(page), ["Second: with/odd\\signs", "Premier"]);
  await page.reload();
  assert.deepEqual(await listed(page), ["Second: with/odd\\signs", "Premier"]);

  await page.getByRole("link", { name: "Premier" }).click();
  assert.deepEqual(await questions(page), ["First"]);
  await page.goBack();
  assert.deepEqual(await questions(page), ["Second: with/odd\\signs"]);
  await choose("Second: with/odd\\signs", "Delete");
  assert.deepEqual(await listed(page), ["Premier"]);
  assert.deepEqual(await questions(page), []);
  await page.getByRole("button", { name: "Undo" }).click();
  assert.deepEqual(await listed(page), ["Second: with/odd\\signs", "Premier"]);
  assert.deepEqual(await questions(page), ["Second: with/odd\\signs"]);
  await page.click("#settings-open");
  await page.getByRole("button", { name: "Delete all conversations" }).click();
  assert.deepEqual(await listed(page), []);
  await page.reload();
  assert.deepEqual(await listed(page), []);
});

test("an answer goes on while another conversation is looked at", mockOnly, async (t) => {
  const page = await visit(t);
  mock.answer = says("slow ".repeat(60), 20);
  await ask(page, "Slow");
  await page.locator(".streaming").waitFor();
  await page.click("#new");
  await idle(page);
  assert.equal(await page.locator("#list li.running").count(), 1);
  mock.answer = says("Quick.");
  await askAndWait(page, "Quick");
  assert.deepEqual(await answers(page), ["Quick."]);
  await page.locator("#list li.running").waitFor({ state: "detached" });
  await page.getByRole("link", { name: "Slow" }).click();
  assert.equal((await answers(page))[0].trim(), "slow ".repeat(60).trim());
});

test("deleting a conversation ends its answer", mockOnly, async (t) => {
  const page = await visit(t);
  let gone;
  const ended = new Promise((resolve) => (gone = resolve));
  mock.answer = async (stream) => {
    await stream.text("slow ".repeat(2000), 10);
    gone(stream.gone);
  };
  await ask(page, "Slow");
  await page.waitForFunction(() => document.querySelector(".assistant > .text")?.innerText.length > 10);
  await page.click("#settings-open");
  await page.getByRole("button", { name: "Delete all conversations" }).click();
  assert.equal(await ended, true);
  await page.reload();
  assert.deepEqual(await listed(page), []);
});

test("tabs see each other's conversations", mockOnly, async (t) => {
  const one = await visit(t);
  const two = await one.another();
  await askAndWait(one, "From the first");
  await two.getByRole("link", { name: "From the first" }).click();
  await two.waitForFunction(() => /third\.$/.test(document.querySelector(".assistant > .text")?.innerText));
  await askAndWait(two, "From the second");
  await shown(one, "You said: From the second");
  assert.deepEqual(await answers(one), await answers(two));
});

test("damaged storage harms nothing else", mockOnly, async (t) => {
  const page = await visit(t);
  await askAndWait(page, "Healthy");
  await page.evaluate(() => {
    const set = (id, value) => localStorage.setItem(`tritone.chat.${id}`, value);
    for (const [i, value] of ["", "{", "null", "[]", "7", "{\"messages\":7}", "{\"messages\":[null]}", "{\"messages\":[{\"role\":\"system\",\"content\":\"x\"}]}", "{\"messages\":[{\"role\":\"user\"}]}"].entries()) set(`bad${i}`, value);
    set("odd", JSON.stringify({ title: 7, created: "x", updated: null, messages: [{ role: "user", content: "Odd but readable" }, { role: "assistant", content: "Yes", state: "weird", stats: { rate: "fast", tokens: {} }, extra: 1 }] }));
    localStorage.setItem("tritone.settings", "{\"temperature\":\"hot\",\"top_k\":-5,\"seed\":1.5,\"system\":[1]}");
    localStorage.setItem("tritone.theme", "mauve");
  });
  await page.reload();
  await page.getByText("9 conversations in this browser cannot be read.").waitFor();
  assert.equal((await listed(page)).length, 2);
  assert.equal(await page.textContent("#summary"), "temperature 0.8");
  assert.equal(await page.locator("html").getAttribute("data-theme"), "auto");
  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Save as a file" }).click()]);
  assert.equal(JSON.parse(await readFile(await download.path(), "utf8")).length, 9);
  await page.goto(`${base}#odd`);
  await page.reload();
  assert.deepEqual(await questions(page), ["Odd but readable"]);
  await page.locator("#notices").getByRole("button", { name: "Delete" }).click();
  await page.goto(`${base}#%E0%A4%A`);
  await page.reload();
  assert.equal(await page.locator("#notices p").count(), 0);
  assert.equal((await listed(page)).length, 2);
});

test("a full or forbidden storage is said once, and the conversation goes on", mockOnly, async (t) => {
  const full = await visit(t, {
    prepare: () => {
      Storage.prototype.setItem = function () {
        throw new DOMException("full", "QuotaExceededError");
      };
    },
  });
  mock.answer = says("word ".repeat(150), 10);
  await askAndWait(full, "Hello");
  await askAndWait(full, "Still there?");
  assert.equal(await full.getByText("The browser’s storage is full").count(), 1);
  assert.equal((await answers(full)).length, 2);
  await full.getByRole("button", { name: "Dismiss" }).click();
  mock.answer = mock.usual;
  await askAndWait(full, "And now?");
  assert.equal(await full.locator("#notices p").count(), 0);

  const forbidden = await visit(t, {
    prepare: () => {
      for (const name of ["localStorage", "sessionStorage"]) {
        Object.defineProperty(window, name, { get() { throw new DOMException("no", "SecurityError"); } });
      }
    },
  });
  await askAndWait(forbidden, "Hello");
  assert.match((await answers(forbidden))[0], /^You said: Hello/);
  await forbidden.getByText("The browser does not let this page keep anything").waitFor();
});

test("the text and the code of an answer can be copied", mockOnly, async (t) => {
  const page = await visit(t, { permissions: ["clipboard-read", "clipboard-write"] });
  const text = "Some **code**:\n\n```js\nlet a = 1;\n```";
  mock.answer = async (stream) => { await stream.raw(stream.event({ content: text })); stream.tokens = 9; stream.finish(); };
  await askAndWait(page, "Code");
  const clipboard = () => page.evaluate(() => navigator.clipboard.readText());
  await lastAnswer(page).locator("figure button").click();
  assert.equal(await clipboard(), "let a = 1;");
  await lastAnswer(page).locator(".actions [data-do=copy]").click();
  assert.equal(await clipboard(), text);
  // Without the clipboard's interface, as on pages without TLS.
  await page.evaluate(() => Object.defineProperty(navigator, "clipboard", { value: undefined, configurable: true }));
  await lastAnswer(page).locator("figure button").click();
  assert.equal(await lastAnswer(page).locator("figure button").innerText(), "Copied");
  await page.evaluate(() => delete navigator.clipboard);
  assert.equal(await clipboard(), "let a = 1;");
});

test("the view follows the answer unless the reader looks elsewhere", mockOnly, async (t) => {
  const page = await visit(t);
  mock.answer = says("line\n\n".repeat(120), 12);
  await ask(page, "Long");
  const bottom = () => page.evaluate(() => {
    const { scrollHeight, scrollTop, clientHeight } = document.querySelector("#scroll");
    return scrollHeight - scrollTop - clientHeight;
  });
  await page.waitForFunction(() => document.querySelectorAll(".text p").length > 40);
  assert.ok((await bottom()) < 40);
  await page.hover("#scroll");
  await page.mouse.wheel(0, -600);
  await page.locator("#latest").waitFor();
  const top = await page.evaluate(() => document.querySelector("#scroll").scrollTop);
  await page.waitForTimeout(200);
  assert.equal(await page.evaluate(() => document.querySelector("#scroll").scrollTop), top);
  await page.click("#latest");
  assert.ok((await bottom()) < 40);
  await idle(page);
  assert.ok((await bottom()) < 40);
});

test("a screen reader is told the answer block by block, and every control has a name", mockOnly, async (t) => {
  const page = await visit(t);
  let goOn;
  const heard = new Promise((resolve) => (goOn = resolve));
  mock.answer = async (stream) => {
    await stream.text("First block.\n\nSecond block ");
    await heard;
    await stream.text("ends.");
    stream.finish();
  };
  await page.evaluate(() => {
    window.spoken = [];
    new MutationObserver(() => spoken.push(document.querySelector("#spoken").innerText)).observe(document.querySelector("#spoken"), { childList: true });
  });
  await ask(page, "Speak");
  await page.waitForFunction(() => document.querySelector("#spoken").innerText.trim() === "First block.");
  goOn();
  await idle(page);
  const spoken = (await page.evaluate(() => window.spoken)).filter(Boolean).map((text) => text.replace(/\s+/g, " "));
  assert.deepEqual(spoken, ["First block.", "First block. Second block ends."]);

  const names = async () => {
    const session = await page.context().newCDPSession(page);
    const { nodes } = await session.send("Accessibility.getFullAXTree");
    const controls = nodes.filter(({ ignored, role }) => !ignored && ["button", "textbox", "link", "radio", "dialog", "navigation"].includes(role?.value));
    assert.ok(controls.length > 5);
    return controls.filter(({ name }) => !name?.value?.trim()).map(({ role }) => role.value);
  };
  assert.deepEqual(await names(), []);
  await page.click("#settings-open");
  assert.deepEqual(await names(), []);
});

test("text can be told from paper", mockOnly, async (t) => {
  const page = await visit(t);
  await askAndWait(page, "Hello");
  mock.answer = (stream) => stream.finish();
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    const poor = await page.evaluate(() => {
      const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
      const parts = (colour) => colour.match(/[\d.]+/g).map(Number);
      const behind = (node) => {
        for (; node; node = node.parentElement) {
          const colour = parts(getComputedStyle(node).backgroundColor);
          if (colour.length === 3 || colour[3] === 1) return colour;
        }
      };
      const poor = [];
      for (const selector of ["#title", "#model", ".user > .text", ".assistant > .text", ".stats", ".actions button", "#send", "#summary", "#list a", ".new", ".theme span", "#hints kbd", ".theme :checked + span"]) {
        const node = document.querySelector(selector);
        const [a, b] = [light(parts(getComputedStyle(node).color)), light(behind(node))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (!(ratio >= 4.5)) poor.push(`${selector} ${ratio.toFixed(2)}`);
      }
      return poor;
    });
    assert.deepEqual(poor, [], colorScheme);
  }
});
