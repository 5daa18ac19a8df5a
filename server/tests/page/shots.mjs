// Pictures of the page in its states, to look at: node shots.mjs [FOLDER]

import { mkdirSync } from "node:fs";
import { launch } from "./browser.mjs";
import { failure, startMock } from "./mock.mjs";

const folder = process.argv[2] ?? "shots";
mkdirSync(folder, { recursive: true });

const RICH = `A ternary weight is one of three numbers: **−1**, **0** or **+1**. A product with it is no product at all, only a sign or a skip, so a layer comes down to *additions and subtractions*.

1. Pack five weights into a byte, since 3⁵ = 243 fits into 256.
2. Quantise the activations to eight bits:
   - find the largest magnitude,
   - divide by it, and round.
3. Add, subtract, and multiply by one scale at the end.

\`\`\`rust
/// The sum of \`x\` over rows where \`w\` is +1, less that where it is -1.
fn dot(w: &[i8], x: &[i8]) -> i32 {
    w.iter().zip(x).map(|(&w, &x)| i32::from(w) * i32::from(x)).sum()
}
\`\`\`

| Layout | Bits a weight | In place |
|---|---|---|
| I2_S | 2 | yes |
| T5 | 1.6 | yes |

> The same bits on every machine, however many threads.

In Rust the call is \`dot(&w, &x)\`; the bound on the sum is 127 times the length of the row.`;
const STORY = `Once there was a little bear who had two children and a brother who came to the little boy who had been playing with him.

“Where are you going, and where are you going?” asked the old man, as he ran off over the fields and through the woods.

“Oh, I have been off so far,” said the little boy.`;

const mock = await startMock();
const browser = await launch();
const sizes = { desk: { width: 1280, height: 860 }, phone: { width: 360, height: 740 } };

const say = (text, gap) => async (stream) => {
  await stream.text(text, gap);
  stream.finish();
};
async function ask(page, text) {
  await page.fill("#ask", text);
  await page.press("#ask", "Enter");
}
const idle = (page) => page.locator("#stop").waitFor({ state: "hidden" });

for (const colorScheme of ["light", "dark"]) {
  for (const [size, viewport] of Object.entries(sizes)) {
    const phone = size === "phone";
    const context = await browser.newContext({ viewport, colorScheme, hasTouch: phone, isMobile: phone, deviceScaleFactor: phone ? 2 : 1 });
    const page = await context.newPage();
    const shot = (name) => page.screenshot({ path: `${folder}/${size}-${colorScheme}-${name}.png` });
    mock.reset();
    await page.goto(mock.url);
    await page.getByText("mock-1.58b").waitFor();
    await shot("welcome");
    mock.answer = say(STORY, 3);
    await ask(page, "Once there was a little bear");
    await idle(page);
    mock.answer = say(RICH, 3);
    await page.evaluate(() => document.querySelector("#new").click());
    await ask(page, "How can a layer of ternary weights be computed without multiplying? Show me a few lines of Rust, and what it costs in memory.");
    await idle(page);
    await page.evaluate(() => (document.querySelector("#scroll").scrollTop = 0));
    await shot("answer");
    mock.answer = say(STORY, 60);
    await ask(page, "And now a story.");
    await page.waitForTimeout(1600);
    await shot("streaming");
    await page.press("#ask", "Escape");
    await idle(page);
    mock.answer = (stream) => stream.refuse(429, failure("17 requests are waiting already"), { "Retry-After": "5" });
    await ask(page, "Are you still there?");
    await idle(page);
    await shot("error");
    await page.keyboard.press("ArrowUp");
    await shot("edit");
    await page.keyboard.press("Escape");
    await page.click("#settings-open");
    await page.fill("#system", "You answer in one sentence.");
    await page.fill("#set-temperature", "9");
    await shot("settings");
    await page.fill("#set-temperature", "0.5");
    await page.click("#settings .head button");
    mock.key = "secret";
    await ask(page, "What about now?");
    await page.locator("#key").waitFor();
    await shot("key");
    await page.keyboard.press("Escape");
    if (phone) await page.click("#side-open");
    if (!phone) await page.hover("#list li:nth-child(2)");
    await page.click("#list li:nth-child(1) .more");
    await page.waitForTimeout(300);
    await shot("list");
    await page.click("[data-do=delete]");
    if (phone) await page.evaluate(() => document.querySelector("#side-close").click());
    await page.waitForTimeout(300);
    await shot("deleted");
    await context.close();
  }
}
await browser.close();
mock.stop();
