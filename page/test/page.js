// What the page must be, asked of a real agent: `node page.js SCENARIO URL [JSON]`. The agent, and what goes on on the
// machine, are the business of agent/tests/kernel/page.rs. With SENTRY_PAGE_SHOTS, a folder, it leaves pictures there.

import assert from 'node:assert/strict';
import { once } from 'node:events';

import { DESKTOP, PHONE, beyond, firstPaint, inBrowser, open, violations } from './browser.js';

const [scenario, url, given] = process.argv.slice(2);
const told = given ? JSON.parse(given) : {};

/** No answer takes as long as this, on a busy machine and with a step of the history to wait for. */
const PATIENCE = { timeout: 30000 };

async function picture(page, name) {
  const folder = process.env.SENTRY_PAGE_SHOTS;
  if (folder) await page.screenshot({ path: `${folder}/${name}.png`, fullPage: true });
}

/** Nothing is wrong with the page as it is. */
async function sound({ page, wrong, asked }) {
  assert.deepEqual(await violations(page), []);
  assert.ok(await beyond(page) <= 0, 'it scrolls sideways');
  assert.deepEqual(wrong, []);
  const elsewhere = asked.filter((address) => !address.startsWith(url) && !address.startsWith('data:'));
  assert.deepEqual(elsewhere, []);
}

const live = (page) => page.waitForSelector('body.live', PATIENCE);

/** The texts of the cells of the row with this name, by the columns' titles. */
async function row(page, name) {
  // All at once, for the next answer may come and change the order.
  const { titles, names, rows } = await page.$eval('#table', (table) => ({
    titles: [...table.tHead.rows[0].cells].map((head) => head.textContent),
    names: [...table.querySelectorAll('tbody th button')].map((button) => button.textContent),
    rows: [...table.tBodies[0].rows].map((line) => [...line.cells].map((cell) => cell.textContent)),
  }));
  const at = names.indexOf(name);
  assert.ok(at >= 0, `${name} is not among ${names}`);
  return Object.fromEntries(titles.map((title, column) => [title, rows[at][column]]));
}

const scenarios = {
  async load(browser) {
    for (const [size, viewport] of [['desktop', DESKTOP], ['phone', PHONE]]) {
      for (const colorScheme of ['light', 'dark']) {
        const opened = await open(browser, url, { viewport, colorScheme });
        await live(opened.page);
        await opened.page.waitForSelector('#tcp-panels canvas >> visible=true', PATIENCE);
        await opened.page.waitForSelector('#disk-panels canvas >> visible=true', PATIENCE);
        await opened.page.waitForSelector('#gpu-panels .process canvas >> visible=true', PATIENCE);
        await sound(opened);
        await picture(opened.page, `load-${size}-${colorScheme}`);
        await opened.close();
      }
    }

    const opened = await open(browser, url);
    const { page } = opened;
    await live(page);
    await page.waitForSelector('#tcp-panels canvas >> visible=true', PATIENCE);
    const paint = await firstPaint(page);
    // Names are text, whatever they look like.
    for (const name of told.workloads) await row(page, name);
    const busy = await row(page, told.workloads[0]);
    assert.notEqual(busy['Connects/s'], '0', JSON.stringify(busy));

    // Exact values under the pointer, and for those who have none.
    const heatmap = page.locator('#tcp-panels .chart').first();
    await heatmap.scrollIntoViewIfNeeded();
    const over = await heatmap.locator('.u-over').boundingBox();
    await page.mouse.move(over.x + over.width - 4, over.y + over.height / 2);
    const tip = page.locator('#tip');
    await tip.waitFor({ state: 'visible', timeout: 5000 });
    assert.match(await tip.textContent(), /\d\d:\d\d:\d\d – \d\d:\d\d:\d\d.*(p50 \d|nothing)/);
    // A second step comes ten seconds after the first.
    await page.waitForFunction(() => Number(document.querySelector('#tcp-panels .chart').getAttribute('aria-valuemax')) > 0, undefined, PATIENCE);
    await heatmap.focus();
    await page.keyboard.press('End');
    const last = await heatmap.getAttribute('aria-valuetext');
    assert.match(last, /in all, p50 [\d.]+ (µs|ms|s), p99|nothing/);
    await page.keyboard.press('Home');
    assert.notEqual(await heatmap.getAttribute('aria-valuenow'), await heatmap.getAttribute('aria-valuemax'));
    const timeline = page.locator('#gpu-panels .process .chart').first();
    await timeline.focus();
    await page.keyboard.press('End');
    assert.match(await timeline.getAttribute('aria-valuetext'), /busy [\d.]+ %, starved [\d.]+ %, idle [\d.]+ %/);

    // Who is behind what is slow: in the table, and in what a heatmap says of a step.
    await page.locator('#events-table tbody tr').first().waitFor(PATIENCE);
    await page.locator('#more-events').click();
    const slow = await page.$$eval('#events-table tbody tr', (rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent)));
    const isConnect = ([, , what, who, whom]) => what === 'connect' && /^load \(\d+\)$/.test(who) && /^127\.0\.0\.1:\d+$/.test(whom);
    const isRead = ([, , what, who, whom]) => what === `read on ${told.devices[0]}` && /^load \(\d+\)$/.test(who) && /^sectors \d+-\d+$/.test(whom);
    assert.ok(slow.some(isConnect) && slow.some(isRead), JSON.stringify(slow));
    const took = slow.map(([, seconds]) => Number.parseFloat(seconds) * { s: 1e6, ms: 1e3, µs: 1 }[seconds.split(' ')[1]]);
    assert.deepEqual(took, [...took].sort((one, other) => other - one));
    await heatmap.focus();
    await page.keyboard.press('End');
    const said = [];
    while (!/(µs|ms|s): load \(\d+\), 127\.0\.0\.1:\d+/.test(said.at(-1)) && said.length < 90) {
      said.push(await heatmap.getAttribute('aria-valuetext'));
      await page.keyboard.press('ArrowLeft');
    }
    assert.ok(said.length < 90, said.join('; '));

    // Sorted by a click, and the address says so.
    await page.getByRole('button', { name: 'Failed/s' }).click();
    assert.equal(await page.locator('th[aria-sort]').textContent(), 'Failed/s');
    assert.equal(await page.locator('#table tbody th button').first().textContent(), told.refused);
    assert.match(page.url(), /#sort=failures$/);

    // A workload alone, now and after a reload; Back shows all again.
    const areAll = () => page.waitForFunction((devices) => {
      const heads = [...document.querySelectorAll('#disk-panels h3')].map((head) => head.textContent);
      return devices.every((device) => heads.includes(device));
    }, told.devices, PATIENCE);
    // Its program may have been read from a third device: the agent knows.
    const isAlone = () => page.waitForFunction(async ([own, others]) => {
      const heads = [...document.querySelectorAll('#disk-panels h3')].map((head) => head.textContent);
      const id = new URLSearchParams(location.hash.slice(1)).get('workload');
      const { lanes, steps } = await (await fetch(`api/v1/history?workload=${id}`)).json();
      const had = new Set(steps.flatMap(({ values }) => values.map(([lane]) => lane)));
      const durations = lanes.filter(({ lane, metric }) => had.has(lane) && metric === 'sentry_disk_io_duration_seconds');
      const devices = new Set(durations.map(({ labels }) => labels.device));
      return devices.has(own) && !devices.has(others) && heads.sort().join() === [...devices].sort().join();
    }, told.devices, { ...PATIENCE, polling: 500 });
    await areAll();
    await page.locator('#table tbody th button', { hasText: told.reader }).click();
    await page.locator('#filter').waitFor({ state: 'visible' });
    await isAlone();
    assert.ok(await page.locator('#filter').isVisible());
    assert.match(await page.locator('#filter-name').textContent(), new RegExp(told.reader));
    const address = page.url();
    assert.match(address, /workload=[0-9a-f]{16}/);
    await page.reload();
    await page.locator('#filter').waitFor({ state: 'visible' });
    await isAlone();
    assert.equal(page.url(), address);
    assert.equal(await page.locator('#table tbody tr.chosen').count(), 1);
    await picture(page, 'load-desktop-light-filtered');
    await page.goBack();
    await page.locator('#filter').waitFor({ state: 'hidden' });
    await page.goForward();
    await page.locator('#filter').waitFor({ state: 'visible' });
    await page.keyboard.press('Escape');
    await page.locator('#filter').waitFor({ state: 'hidden' });
    await areAll();
    assert.match(page.url(), /#sort=failures$/);

    await sound(opened);
    return { paint };
  },

  async empty(browser) {
    const opened = await open(browser, url);
    await live(opened.page);
    const note = opened.page.locator('#empty h3');
    await note.waitFor({ state: 'visible' });
    assert.equal(await note.textContent(), told.says);
    await sound(opened);
    await picture(opened.page, `empty-${told.says.length}`);
    return {};
  },

  async many(browser) {
    const took = {};
    for (const colorScheme of ['light', 'dark']) {
      const opened = await open(browser, url, { colorScheme });
      const { page } = opened;
      await live(page);
      const note = await page.locator('#workloads-note').textContent();
      assert.ok(Number(note.split(',')[0]) >= told.count, note);
      assert.equal(await page.locator('#table tbody tr').count(), 12);
      const start = Date.now();
      await page.locator('#more').click();
      took.all_ms = Date.now() - start;
      assert.ok(await page.locator('#table tbody tr').count() >= told.count);
      if (colorScheme === 'light') await sound(opened);
      await page.locator('#search').fill(`${told.prefix}-77`);
      // 77 and 770 to 779.
      await page.waitForFunction(() => document.querySelectorAll('#table tbody tr').length === 11);
      await sound(opened);
      await picture(page, `many-${colorScheme}`);
      took.paint = await firstPaint(page);
      await opened.close();
    }
    return took;
  },

  async dead(browser) {
    const opened = await open(browser, url);
    const { page, wrong } = opened;
    await live(page);
    await sound(opened);
    process.stdout.write('ready\n');
    await once(process.stdin, 'data');
    const alert = page.locator('#alert');
    await alert.waitFor({ state: 'visible', ...PATIENCE });
    assert.match(await alert.textContent(), /^The agent does not answer; what you see is of \d\d:\d\d:\d\d\. It cannot be reached\. It is asked again every 5 s\. Last answer \d+ s ago\.$/);
    assert.ok(await page.locator('body.stale').count() === 1);
    assert.match(await page.title(), /no answer/);
    // The browser's own complaint that nobody answers is right.
    assert.deepEqual(wrong.filter((text) => !text.includes('ERR_CONNECTION')), []);
    await picture(page, 'dead');
    process.stdin.destroy();
    return {};
  },

  async scriptless(browser) {
    const { page, wrong } = await open(browser, url, { javaScriptEnabled: false });
    const text = await page.locator('main').innerText();
    assert.match(text, /needs scripts/);
    assert.match(text, /tcp\s+attached/);
    for (const link of ['metrics', 'healthz', 'readyz']) assert.ok(await page.locator(`footer a[href="${link}"]`).isVisible());
    assert.deepEqual(wrong, []);
    return {};
  },
};

const measured = await inBrowser(scenarios[scenario]);
process.stdout.write(`${JSON.stringify(measured)}\n`);
