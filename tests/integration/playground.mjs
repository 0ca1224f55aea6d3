// Drives the playground as a person would: adds a picture and two texts, compares, reads the matrix, turns the knobs, in light and in dark.
//
// node playground.mjs URL PICTURE CHROMIUM SCREENSHOTS; playwright-core and axe-core are found by NODE_PATH. Prints what it saw as JSON.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { basename } from "node:path";

const [url, picture, chromium, screenshots] = process.argv.slice(2);
const found = createRequire(`${process.env.NODE_PATH}/`);
const { chromium: browser } = found("playwright-core");
const axe = readFileSync(found.resolve("axe-core/axe.min.js"), "utf8");

const open = await browser.launch({ executablePath: chromium, args: ["--no-sandbox"] });
const seen = { faults: [], violations: [], requests: [] };
try {
  for (const scheme of ["light", "dark"]) {
    // The page's own policy forbids foreign scripts; only the one that checks it is let past.
    const context = await open.newContext({ colorScheme: scheme, viewport: { width: 1280, height: 1000 }, bypassCSP: scheme === "dark" });
    const page = await context.newPage();
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
    await page.keyboard.type("the rocket starts");
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
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
    seen[scheme] = {
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
    if (scheme === "dark") {
      await page.addScriptTag({ content: axe });
      const { violations } = await page.evaluate(() => axe.run());
      seen.violations.push(...violations.map(({ id, impact, nodes }) => ({ id, impact, nodes: nodes.map(node => node.html.slice(0, 120)) })));
      await context.newPage().then(narrow => narrow.close());
    }
    if (screenshots) await page.screenshot({ path: `${screenshots}/playground-${scheme}.png`, fullPage: true });
    await context.close();
  }
} finally {
  await open.close();
}
console.log(JSON.stringify(seen));
