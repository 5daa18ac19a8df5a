// What the page promises where a server misbehaves, or does as it is told: with the mock only.

import assert from "node:assert/strict";
import { test } from "node:test";
import { readFile } from "node:fs/promises";
import { failure } from "./mock.mjs";
import { answers, ask, askAndWait, base, browser, idle, lastAnswer, listed, mock, questions, says, shown, visit } from "./visit.mjs";

test("a half-written answer survives a reload", async (t) => {
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

test("events are read whole however the bytes are cut", async (t) => {
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

test("what goes wrong is said in words, and can be tried again", async (t) => {
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

test("an answer that was cut, or is empty, says so", async (t) => {
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

test("asks for a key, and keeps it in this tab only", async (t) => {
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

test("waits for a model that loads, and follows one that changes", async (t) => {
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

test("what a model writes stays text", async (t) => {
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

test("Markdown is set", async (t) => {
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

test("odd Markdown takes no time", async (t) => {
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

test("conversations are listed, renamed, exported, deleted and had back", async (t) => {
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

test("an answer goes on while another conversation is looked at", async (t) => {
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

test("deleting a conversation ends its answer", async (t) => {
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

test("tabs see each other's conversations", async (t) => {
  const one = await visit(t);
  const two = await one.another();
  await askAndWait(one, "From the first");
  await two.getByRole("link", { name: "From the first" }).click();
  await two.waitForFunction(() => /third\.$/.test(document.querySelector(".assistant > .text")?.innerText));
  await askAndWait(two, "From the second");
  await shown(one, "You said: From the second");
  assert.deepEqual(await answers(one), await answers(two));
});

test("damaged storage harms nothing else", async (t) => {
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

test("a full or forbidden storage is said once, and the conversation goes on", async (t) => {
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

test("the text and the code of an answer can be copied", async (t) => {
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

test("the view follows the answer unless the reader looks elsewhere", async (t) => {
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

test("a screen reader is told the answer block by block, and every control has a name", async (t) => {
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

test("text can be told from paper", async (t) => {
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
