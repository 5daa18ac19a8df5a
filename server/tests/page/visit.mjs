// A browser with the page open, and what is done with it. The server is the one that BASE names, or the mock.

import assert from "node:assert/strict";
import { after, before, beforeEach } from "node:test";
import { launch } from "./browser.mjs";
import { startMock } from "./mock.mjs";

export const real = process.env.BASE;
/** The server that plays the model, where it does. */
export let mock;
export let browser;
export let base;

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
export async function visit(t, { statuses = [], expected = [], prepare, ...options } = {}) {
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

export async function ask(page, text) {
  await page.fill("#ask", text);
  await page.press("#ask", "Enter");
}
// An answer begins at once with what asks for it, so this waits for its end.
export const idle = (page) => page.locator("#send").waitFor();
export const shown = (page, text) => page.locator("#turns").getByText(text).waitFor();
export async function askAndWait(page, text) {
  await ask(page, text);
  await idle(page);
}
/** Sets the longest answer: a model may fill its context with the first one, and the next turn would be refused. */
export async function answerShortly(page) {
  await page.getByRole("button", { name: "Settings", exact: true }).click();
  await page.fill("#set-max_tokens", "40");
  await page.getByRole("button", { name: "Done" }).click();
}
export const answers = (page) => page.locator(".assistant > .text").allInnerTexts();
export const questions = (page) => page.locator(".user > .text").allInnerTexts();
export const lastAnswer = (page) => page.locator(".assistant").last();
export const listed = (page) => page.locator("#list li a").allInnerTexts();
export const says = (text, gap) => async (stream) => {
  await stream.text(text, gap);
  stream.finish();
};

/** Presses Tab until the element has the focus. */
export async function tabTo(page, selector, key = "Tab") {
  for (let i = 0; i < 60; i++) {
    if (await page.evaluate((selector) => document.activeElement.matches(selector), selector)) return;
    await page.keyboard.press(key);
  }
  assert.fail(`${key} never comes to ${selector}`);
}
