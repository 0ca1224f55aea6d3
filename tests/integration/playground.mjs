// Drives the playground as a person would: adds a picture, two texts and a video, compares, reads the matrix, turns the knobs, in light and in dark.
//
// node playground.mjs URL PICTURE VIDEO CHROMIUM SCREENSHOTS; playwright-core and axe-core are found by NODE_PATH. Prints what it saw as JSON.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { basename } from "node:path";

const [url, picture, video, chromium, screenshots] = process.argv.slice(2);
const found = createRequire(`${process.env.NODE_PATH}/`);
const { chromium: browser } = found("playwright-core");
const axe = readFileSync(found.resolve("axe-core/axe.min.js"), "utf8");

const open = await browser.launch({ executablePath: chromium, args: ["--no-sandbox"] });
const seen = { faults: [], violations: [], requests: [] };
try {
  // The page's own policy forbids foreign scripts; only the one that checks for barriers is let past it, in runs of its own.
  for (const [run, scheme] of [["light", "light"], ["dark", "dark"], ["audit-light", "light"], ["audit-dark", "dark"]]) {
    const audits = run.startsWith("audit");
    const context = await open.newContext({ colorScheme: scheme, viewport: { width: 1280, height: 1000 }, bypassCSP: audits });
    const page = await context.newPage();
    // Decoders of videos give way to all other work: where there is much of it, they take their time.
    page.setDefaultTimeout(120_000);
    page.on("pageerror", fault => seen.faults.push(String(fault)));
    page.on("console", message => message.type() === "error" && seen.faults.push(message.text()));
    page.on("request", request => seen.requests.push(request.url()));
    if (process.env.PAGE) await page.route(url, route => route.fulfill({ path: process.env.PAGE, contentType: "text/html" }));
    await page.goto(url);
    const data = readFileSync(picture).toString("base64");
    const drop = await page.evaluateHandle(([data, name]) => {
      const bytes = Uint8Array.from(atob(data), byte => byte.charCodeAt(0));
      const transfer = new DataTransfer();
      transfer.items.add(new File([bytes], name, { type: "image/png" }));
      return transfer;
    }, [data, basename(picture)]);
    await page.dispatchEvent("#drop", "drop", { dataTransfer: drop });
    await page.waitForSelector("#items img");
    // By keyboard alone.
    await page.focus("#text");
    await page.keyboard.type("a photo of a cat");
    await page.keyboard.press("Enter");
    // A text that is spelt like a file of the call.
    await page.keyboard.type("@photo_cat.png");
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    await page.setInputFiles("#files", video);
    await page.waitForSelector("#items li:nth-of-type(4)");
    await page.focus("#run");
    await page.keyboard.press("Enter");
    await page.waitForSelector("#matrix td button");
    const cells = () => page.$$eval("#matrix tr", rows => rows.slice(1).map(row => [...row.querySelectorAll("button")].map(cell => Number(cell.textContent))));
    const matrix = await cells();
    const effect = await page.textContent("#effect");
    await page.fill("#dimensions", "64");
    await page.selectOption("#quantization", "binary");
    const bits = await cells();
    await page.selectOption("#quantization", "float");
    const short = await cells();
    await page.click("#matrix tr:nth-of-type(3) td:nth-of-type(1) button");
    // What the page's own script makes of the vectors, for the server's to be held against.
    const stores = await page.evaluate(() => Object.fromEntries(["int8", "binary"].map(kind => [kind, shown.vectors.map(vector => stored(vector, 64, kind))])));
    seen[run] = {
      stores,
      matrix,
      bits,
      short,
      effect,
      near: await page.$$eval("#near li", entries => entries.map(entry => entry.textContent)),
      of: await page.textContent("#near p"),
      explained: await page.$$eval("#explain details", entries => entries.map(entry => entry.textContent)),
      curl: await page.textContent("#curl"),
      python: await page.textContent("#python"),
      status: await page.textContent("#status"),
    };
    if (audits) {
      await page.addScriptTag({ content: axe });
      const { violations } = await page.evaluate(() => axe.run());
      seen.violations.push(...violations.map(({ id, impact, nodes }) => ({ scheme, id, impact, nodes: nodes.map(node => node.html.slice(0, 120)) })));
    }
    if (screenshots) await page.screenshot({ path: `${screenshots}/playground-${run}.png`, fullPage: true });
    await context.close();
  }
} finally {
  await open.close();
}
console.log(JSON.stringify(seen));
