// A real browser on the page: Debian's Chromium, without a window.

import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';

import { chromium } from 'playwright-core';

const axe = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

export const DESKTOP = { width: 1360, height: 900 };
export const PHONE = { width: 390, height: 844 };

/** Runs `work` in a browser, and takes it away whatever happens. */
export async function inBrowser(work) {
  const browser = await chromium.launch({
    executablePath: process.env.SENTRY_CHROMIUM ?? '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-dev-shm-usage'],
  });
  try {
    return await work(browser);
  } finally {
    await browser.close();
  }
}

/** The page as it comes up, with all that went wrong in it and all that it asked for. */
export async function open(browser, url, { viewport = DESKTOP, colorScheme = 'light', javaScriptEnabled = true } = {}) {
  const context = await browser.newContext({ viewport, colorScheme, javaScriptEnabled, locale: 'en-GB', deviceScaleFactor: 1 });
  const page = await context.newPage();
  const wrong = [];
  const asked = [];
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) wrong.push(message.text());
  });
  page.on('pageerror', (error) => wrong.push(String(error)));
  page.on('request', (request) => asked.push(request.url()));
  await page.goto(url, { waitUntil: 'load' });
  return { page, wrong, asked, close: () => context.close() };
}

/** What axe finds. */
export async function violations(page) {
  await page.evaluate(axe);
  const found = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ['violations'] }));
  return found.violations.map(({ id, nodes }) => `${id}: ${nodes.slice(0, 4).map((node) => `${node.target} (${node.failureSummary})`).join('; ')}`);
}

/** How far the page reaches beyond its width. */
export function beyond(page) {
  return page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
}

/** When something was first painted, in milliseconds after the page was asked for. */
export function firstPaint(page) {
  return page.evaluate(() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null);
}
