// The page: what it is asked to show, what it reads from the agent, and where it puts it.

import { Heatmap, Lines, Timeline, element, hasCharts, hideTip } from './charts.js';
import { ago, bytes, clock, count, duration, inWords, names, rate, share } from './format.js';
import { Store, quantile, sum, total } from './store.js';
import { ORDERS, Table } from './table.js';

const POLL_MS = 5000;
const PATIENCE_MS = 8000;
const MINUTE = 60000;
const DISKS_FEW = 6;
const TIMELINES_MAX = 24;

const HANDSHAKE = 'sentry_tcp_handshake_duration_seconds';
const FAILURES = 'sentry_tcp_connect_failures_total';
const DISK = 'sentry_disk_io_duration_seconds';
const DISK_BYTES = 'sentry_disk_bytes_total';
const GAPS = 'sentry_gpu_starvation_gap_seconds';
const OPERATIONS = ['all', 'read', 'write', 'flush', 'discard'];
const REASONS = ['refused', 'timeout', 'unreachable', 'aborted', 'local', 'other'];

const COUNTING = 'The first ten seconds are being counted.';

const $ = (id) => document.getElementById(id);

// ---- What the address says

const state = { workload: null, sort: 'connects', order: 'descending', search: '', operation: 'all' };

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const of = (name, allowed, otherwise) => (allowed.includes(given.get(name)) ? given.get(name) : otherwise);
  const workload = given.get('workload') ?? '';
  state.workload = /^[0-9a-f]{16}$/.test(workload) ? workload : null;
  state.sort = of('sort', ORDERS, 'connects');
  state.order = of('order', ['ascending', 'descending'], 'descending');
  state.search = given.get('search') ?? '';
  state.operation = of('operation', OPERATIONS, 'all');
}

function writeAddress(isStep) {
  const said = new URLSearchParams();
  const usual = { workload: null, sort: 'connects', order: 'descending', search: '', operation: 'all' };
  for (const [name, value] of Object.entries(state)) if (value !== usual[name]) said.set(name, value);
  const text = said.toString();
  const whole = location.pathname + location.search + (text === '' ? '' : `#${text}`);
  if (isStep) history.pushState(null, '', whole);
  else history.replaceState(null, '', whole);
}

// ---- What the agent says

const node = new Store();
let chosen = null;
let status = null;
let answeredAt = null;
let events = [];
let failing = null;
let startedMs = null;

async function read(path) {
  const answer = await fetch(`api/v1/${path}`, { signal: AbortSignal.timeout(PATIENCE_MS), credentials: 'same-origin' });
  if (!answer.ok) throw new Error(answer.status === 401 ? 'It asks for a password: load the page again' : `It answers ${answer.status}`);
  return answer.json();
}

async function readSteps(store, workload) {
  const of = workload ? `&workload=${workload}` : '';
  store.merge(await read(`history?since=${store.latest}${of}`));
}

let reading = false;
let again = false;

async function poll() {
  if (reading) { again = true; return; }
  reading = true;
  try {
    status = await read('status');
    if (startedMs !== null && startedMs !== status.started_ms) {
      // Another run: its steps count from one again.
      Object.assign(node, new Store());
      chosen = null;
    }
    startedMs = status.started_ms;
    const isDue = (store) => status.history.steps > 0
      && (store.steps.length === 0 || status.now_ms - store.steps.at(-1).end_ms >= store.stepMs);
    const wanted = state.workload;
    if (wanted && chosen?.workload !== wanted) chosen = Object.assign(new Store(), { workload: wanted });
    if (!wanted) chosen = null;
    const asked = [read('workloads'), read('events')];
    if (isDue(node)) asked.push(readSteps(node, null));
    if (chosen && isDue(chosen)) asked.push(readSteps(chosen, wanted));
    const [workloads, slow] = await Promise.all(asked);
    events = slow.events;
    answeredAt = Date.now();
    failing = null;
    table.update(workloads);
    show();
  } catch (error) {
    failing = error.name === 'TimeoutError' ? `No answer within ${PATIENCE_MS / 1000} s` : error.name === 'TypeError' ? 'It cannot be reached' : error.message;
  }
  reading = false;
  showLife();
  if (again) {
    again = false;
    poll();
  }
}

let timer = null;

function run() {
  clearInterval(timer);
  timer = null;
  // Nobody looks: nothing is asked.
  if (document.hidden) return;
  poll();
  timer = setInterval(poll, POLL_MS);
}

// ---- Life

function showLife() {
  const silent = answeredAt === null ? null : Date.now() - answeredAt;
  const isStale = failing !== null || (silent !== null && silent > 3 * POLL_MS && !document.hidden);
  document.body.classList.toggle('stale', isStale);
  document.body.classList.toggle('live', !isStale && silent !== null);
  const text = silent === null ? (isStale ? 'no answer' : 'connecting') : isStale ? 'no answer' : 'live';
  if ($('state-text').textContent !== text) $('state-text').textContent = text;
  $('alert').hidden = !isStale;
  if (isStale) {
    const said = [
      silent === null ? 'The agent does not answer' : `The agent does not answer; what you see is of ${clock(answeredAt)}`,
      ...(failing ? [failing] : []),
      `It is asked again every ${POLL_MS / 1000} s`,
    ].join('. ');
    // Said once, and not each second.
    if ($('alert-text').textContent !== `${said}.`) $('alert-text').textContent = `${said}.`;
    $('alert-since').textContent = silent === null ? '' : `Last answer ${ago(silent)} ago.`;
  }
  document.title = isStale ? 'Sentry (no answer)' : status?.node ? `${status.node} · Sentry` : 'Sentry';
}

// ---- Sections

const panels = new Map();

/** The panel of this name, made when it is first wanted. */
function panel(place, name, make) {
  if (!panels.has(name)) {
    const made = make();
    made.parent = place;
    panels.set(name, made);
    place.append(made.whole);
  }
  const made = panels.get(name);
  made.used = true;
  return made;
}

/** Takes away what was not wanted this time. */
function sweep(place) {
  for (const [name, made] of panels) {
    if (made.parent !== place) continue;
    if (!made.used) {
      made.charts.forEach((chart) => chart.remove());
      made.whole.remove();
      panels.delete(name);
    }
    made.used = false;
  }
}

function key(colorName, isBlock = false) {
  const mark = element('i', { class: isBlock ? 'block' : null });
  mark.style[isBlock ? 'background' : 'borderColor'] = `var(${colorName})`;
  const value = element('span');
  return { place: element('span', { class: 'key' }, mark, value), value };
}

function heatmapPanel(title, what, rateName) {
  const keys = { p50: key('--p50'), p99: key('--p99'), rate: key('--rate') };
  const heat = element('div', { class: 'chart' });
  const lines = element('div', { class: 'chart' });
  const none = element('p', { class: 'none' });
  const whole = element('article', { class: 'panel' },
    element('header', {}, element('h3', {}, title), ...Object.values(keys).map(({ place }) => place)), none, heat, lines);
  // uPlot measures the place where it draws.
  const made = { whole, charts: [], keys };
  made.update = (store, buckets, slow, more = '') => {
    if (made.charts.length === 0 && hasCharts) {
      made.charts = [
        new Heatmap(heat, `${title}: ${what}, over the last 15 minutes`),
        new Lines(lines, `${title}: ${rateName} by the second`, { names: [rateName], colors: ['--rate'] }),
      ];
    }
    const minute = store.lately(MINUTE);
    const recent = sum(buckets, minute);
    const seconds = minute.reduce((all, at) => all + store.steps[at].length_ms, 0) / 1000;
    keys.p50.value.textContent = `p50 ${duration(quantile(recent, 0.5))}`;
    keys.p99.value.textContent = `p99 ${duration(quantile(recent, 0.99))}`;
    keys.rate.value.textContent = `${rate(seconds ? total(recent) / seconds : 0)} ${rateName}/s${more}`;
    const isEmpty = buckets.every((events) => events === null);
    none.hidden = !isEmpty;
    heat.hidden = isEmpty;
    lines.hidden = isEmpty;
    none.textContent = store.steps.length === 0 ? COUNTING : 'None in the last 15 minutes.';
    if (isEmpty || !hasCharts) return;
    made.charts[0].update(store, buckets, slow);
    const perSecond = buckets.map((events, at) => (events ? total(events) : 0) / (store.steps[at].length_ms / 1000));
    made.charts[1].update(store, [perSecond]);
  };
  return made;
}

function linesPanel(title, label, options, text) {
  const keys = options.names.map((_, at) => key(options.colors[at]));
  const place = element('div', { class: 'chart' });
  const none = element('p', { class: 'none' });
  const whole = element('article', { class: 'panel' },
    element('header', {}, element('h3', {}, title), ...keys.map((one) => one.place)), none, place);
  const made = { whole, charts: [] };
  made.update = (store, values, said) => {
    if (made.charts.length === 0 && hasCharts) made.charts = [new Lines(place, label, options)];
    const isEmpty = store.steps.length === 0 || (text !== '' && values.every((steps) => steps.every((value) => value === 0)));
    none.hidden = !isEmpty;
    none.textContent = store.steps.length === 0 ? COUNTING : text;
    place.hidden = isEmpty;
    keys.forEach((one, at) => {
      one.value.textContent = said[at];
      one.place.hidden = isEmpty;
    });
    if (!isEmpty && hasCharts) made.charts[0].update(store, values);
  };
  return made;
}

function perSecond(store, counts) {
  return counts.map((gained, at) => gained / (store.steps[at].length_ms / 1000));
}

/** Of the last minute, by the second. */
function recentRate(store, counts) {
  const minute = store.lately(MINUTE);
  const seconds = minute.reduce((all, at) => all + store.steps[at].length_ms, 0) / 1000;
  return seconds ? minute.reduce((all, at) => all + counts[at], 0) / seconds : 0;
}

/** Whether a probe was asked for, and has not been turned off. */
function isOn(name) {
  const probe = status.probes.find((one) => one.probe === name);
  return probe !== undefined && probe.verdict !== 'off';
}

function isOff(name) {
  return `The probe ${name} is not among those that were asked for.`;
}

function showTcp(store) {
  const place = $('tcp-panels');
  if (!isOn('tcp') && store.lanesOf(HANDSHAKE).length === 0) {
    sweep(place);
    $('tcp-note').textContent = isOff('tcp');
    return;
  }
  const isShort = state.workload && store.steps.some((step) => step.left_out > 0);
  $('tcp-note').textContent = isShort ? 'in busy steps quieter workloads have no history' : '';
  for (const [role, title] of [['client', 'Opened here (client)'], ['server', 'Accepted here (server)']]) {
    panel(place, `tcp ${role}`, () => heatmapPanel(title, 'durations of handshakes', role === 'client' ? 'connects' : 'accepts'))
      .update(store, store.histogram(HANDSHAKE, { role }), slowOf(HANDSHAKE, { role }));
  }
  const found = REASONS.filter((reason) => store.counter(FAILURES, { reason }).some((n) => n > 0));
  const reasons = found.length > 0 ? found : ['refused'];
  const colors = ['--bad', '--p99', '--rate', '--good', '--warn', '--soft'];
  const values = reasons.map((reason) => perSecond(store, store.counter(FAILURES, { reason })));
  const said = reasons.map((reason) => `${reason} ${rate(recentRate(store, store.counter(FAILURES, { reason })))}/s`);
  panel(place, `failures ${reasons}`, () => linesPanel('Failed connects', 'Failed connects by the second, by reason', {
    height: 274, names: reasons, colors: reasons.map((reason) => colors[REASONS.indexOf(reason)]),
  }, 'No connect has failed in the last 15 minutes.')).update(store, values, said);
  sweep(place);
}

// ---- Single events that were slow

const EVENTS_FEW = 8;
let allEvents = false;

/** Those of a histogram, and of the workload that was chosen. */
function slowOf(metric, labels) {
  const wanted = Object.entries(labels);
  return events.filter((event) => event.metric === metric && wanted.every(([name, value]) => event.of[name] === value)
    && (!state.workload || event.id === state.workload));
}

function showEvents() {
  const found = [...slowOf(HANDSHAKE, {}), ...slowOf(DISK, {})].sort((one, other) => other.seconds - one.seconds);
  const shown = allEvents ? found : found.slice(0, EVENTS_FEW);
  $('events').hidden = false;
  const flags = ['tcp', 'disk'].filter(isOn).map((probe) => `--${probe}.exemplars auto`).join(' ');
  const isAsked = status.probes.some((probe) => probe.exemplars_above_seconds !== undefined);
  $('events-note').textContent = found.length > 0 ? 'the slowest of the last 15 minutes'
    : isAsked ? 'none in the last 15 minutes' : flags ? `off: with ${flags} the agent says who was behind them` : '';
  $('events-whole').hidden = found.length === 0;
  $('more-events').hidden = found.length <= EVENTS_FEW;
  $('more-events').textContent = allEvents ? `Show ${EVENTS_FEW}` : `Show all ${found.length} events`;
  $('events-table').tBodies[0].replaceChildren(...shown.map((event) => {
    const { what, who, whom } = inWords(event);
    const called = names(event.labels);
    const choice = element('button', { type: 'button', title: called.whole }, called.name);
    choice.addEventListener('click', () => choose(event.id));
    return element('tr', {},
      element('td', {}, clock(event.at_ms)),
      element('td', { class: 'number' }, duration(event.seconds)),
      element('td', {}, what),
      element('td', {}, who),
      element('td', {}, whom),
      element('td', {}, choice));
  }));
}

let allDisks = false;

function showDisk(store) {
  const place = $('disk-panels');
  const devices = store.valuesOf(DISK, 'device');
  const shown = allDisks ? devices : devices.slice(0, DISKS_FEW);
  const by = state.operation === 'all' ? {} : { operation: state.operation };
  for (const device of shown) {
    const moved = recentRate(store, store.counter(DISK_BYTES, { device, ...by }));
    panel(place, `disk ${device}`, () => heatmapPanel(device, 'durations of block requests', 'IO'))
      .update(store, store.histogram(DISK, { device, ...by }), slowOf(DISK, { device, ...by }), ` · ${bytes(moved)}/s`);
  }
  sweep(place);
  const none = store.steps.length === 0 ? COUNTING : 'No disk I/O in the last 15 minutes.';
  $('disk-note').textContent = devices.length > 0 ? '' : isOn('disk') ? none : isOff('disk');
  $('operations').hidden = devices.length === 0;
  $('more-disks').hidden = devices.length <= DISKS_FEW;
  $('more-disks').textContent = allDisks ? `Show ${DISKS_FEW}` : `Show all ${devices.length} devices`;
  for (const button of $('operations').children) button.setAttribute('aria-pressed', button.value === state.operation);
}

/** Whether a process belongs to the workload that was chosen, or is it. */
function belongs(labels) {
  if (!state.workload) return true;
  const row = table.find(state.workload);
  if (!row) return false;
  const wanted = Object.entries(row.labels);
  const same = wanted.every(([name, value]) => labels[name] === value);
  return same && Object.keys(labels).every((name) => name === 'process' || name in row.labels);
}

function timelinesPanel() {
  const keys = ['busy', 'starved', 'idle'].map((name) => {
    const made = key(`--${name}`, true);
    made.value.textContent = name;
    return made.place;
  });
  const list = element('div');
  const times = element('div', { class: 'times' }, element('span'), element('span', {}, 'now'));
  const whole = element('article', { class: 'panel wider' }, element('header', {}, element('h3', {}, 'Processes'), ...keys), list, times);
  const rows = new Map();
  const made = { whole, charts: [{ remove: () => rows.forEach(({ chart }) => chart.remove()) }] };
  made.update = (store, timelines) => {
    const wanted = new Set(timelines.map((row) => row.key));
    const [from, to] = store.span();
    times.firstChild.textContent = `${ago(to - from)} ago`;
    for (const [name, { line, chart }] of rows) {
      if (!wanted.has(name)) {
        chart.remove();
        line.remove();
        rows.delete(name);
      }
    }
    for (const row of timelines) {
      const called = names(row.labels);
      if (!rows.has(row.key)) {
        const place = element('div', { class: 'chart' });
        const [name, where, share1, share2] = [element('strong'), element('span'), element('strong'), element('span')];
        const line = element('div', { class: 'process' },
          element('div', { class: 'name' }, name, where), place, element('div', { class: 'share' }, share1, element('br'), share2));
        list.append(line);
        const label = `${called.name}, GPU ${row.device}: busy, starved and idle over the last 15 minutes`;
        rows.set(row.key, { line, name, where, share1, share2, chart: new Timeline(place, label) });
      }
      const { line, name, where, share1, share2, chart } = rows.get(row.key);
      name.textContent = `${called.name} · GPU ${row.device}`;
      where.textContent = called.where;
      line.title = called.whole;
      share1.textContent = `${share(row.starved)} starved`;
      share2.textContent = `${share(row.idle)} idle`;
      chart.update(store, row.steps);
    }
  };
  return made;
}

/** Shares of the time in which a process was there, of the whole of it. */
function overall(row) {
  let [present, starved, idle] = [0, 0, 0];
  row.steps.forEach((step) => {
    present += step.present;
    starved += step.starved * step.present;
    idle += step.idle * step.present;
  });
  return { ...row, starved: present ? starved / present : 0, idle: present ? idle / present : 0 };
}

function showGpu(store) {
  const place = $('gpu-panels');
  const rows = node.timelines(belongs).map(overall);
  rows.sort((one, other) => other.starved - one.starved || one.key.localeCompare(other.key));
  if (rows.length > 0) {
    panel(place, 'timelines', timelinesPanel).update(node, rows.slice(0, TIMELINES_MAX));
    const gaps = store.histogram(GAPS, {});
    panel(place, 'gaps', () => heatmapPanel('Starvation gaps', 'lengths of gaps that ended', 'gaps')).update(store, gaps, []);
  }
  sweep(place);
  const none = state.workload ? 'It has not used CUDA in the last 15 minutes.' : 'No program has used CUDA in the last 15 minutes; programs are found as they start.';
  $('gpu-note').textContent = rows.length > TIMELINES_MAX
    ? `the ${TIMELINES_MAX} most starved of ${rows.length}`
    : rows.length > 0 ? '' : isOn('gpu') ? none : isOff('gpu');
}

// ---- The last minute

const tiles = new Map();

function tile(name, title, value, under = '', mood = '') {
  if (!tiles.has(name)) {
    const [big, small] = [element('dd', { class: 'big' }), element('dd', { class: 'under' })];
    const dt = element('dt');
    const whole = element('div', { class: 'tile' }, dt, big, small);
    $('tiles').append(whole);
    tiles.set(name, { dt, big, small, whole });
  }
  const { dt, big, small, whole } = tiles.get(name);
  const [number, ...unit] = value.split(' ');
  dt.textContent = title;
  big.replaceChildren(number, ...(unit.length > 0 ? [' ', element('small', {}, unit.join(' '))] : []));
  small.textContent = under;
  whole.className = `tile ${mood}`;
}

function showTiles(store) {
  const minute = store.lately(MINUTE);
  const recent = (metric, labels) => {
    const histogram = store.histogram(metric, labels);
    const whole = sum(histogram, minute);
    const seconds = minute.reduce((all, at) => all + store.steps[at].length_ms, 0) / 1000;
    return { perSecond: seconds ? total(whole) / seconds : 0, p99: quantile(whole, 0.99) };
  };
  const nothing = store.steps.length === 0;
  const number = (probe, value) => (nothing || !isOn(probe) ? '–' : value);
  const under = (probe, text) => (!isOn(probe) ? 'not asked for' : nothing ? 'counting' : text);
  const [client, server, disk] = [recent(HANDSHAKE, { role: 'client' }), recent(HANDSHAKE, { role: 'server' }), recent(DISK, {})];
  tile('client', 'Connects', number('tcp', `${rate(client.perSecond)} /s`), under('tcp', `p99 ${duration(client.p99)}`));
  const failed = recentRate(store, store.counter(FAILURES, {}));
  const all = failed + client.perSecond;
  tile('failed', 'Failed connects', number('tcp', `${rate(failed)} /s`), under('tcp', failed > 0 ? `${share(failed / all)} of all` : 'none'), failed > 0 ? 'bad' : '');
  tile('server', 'Accepts', number('tcp', `${rate(server.perSecond)} /s`), under('tcp', `p99 ${duration(server.p99)}`));
  tile('disk', 'Disk I/O', number('disk', `${rate(disk.perSecond)} /s`), under('disk', `p99 ${duration(disk.p99)}`));
  const moved = (labels) => `${bytes(recentRate(store, store.counter(DISK_BYTES, labels)))}/s`;
  tile('bytes', 'Disk throughput', number('disk', moved({})), under('disk', `read ${moved({ operation: 'read' })}`));
  const places = node.lately(MINUTE);
  let [present, starved] = [0, 0];
  for (const row of node.timelines(belongs)) {
    for (const at of places) {
      if (row.steps[at]) {
        present += row.steps[at].present;
        starved += row.steps[at].starved * row.steps[at].present;
      }
    }
  }
  const starving = present ? starved / present : null;
  tile('gpu', 'GPU starved', share(starving), present ? 'of process time' : under('gpu', 'no GPU in use'), starving > 0.2 ? 'warn' : '');
  const cpu = places.reduce((sum1, at) => sum1 + node.steps[at].agent.cpu_ns, 0)
    / Math.max(1, places.reduce((sum1, at) => sum1 + node.steps[at].length_ms * 1e6, 0));
  tile('cost', 'Sentry\u2019s cost', places.length ? share(cpu) : '–', `of a core, ${bytes(status.agent.resident_bytes)}`);
}

// ---- Sentry itself

function showAgent() {
  const body = $('probes').tBodies[0];
  const head = $('probes').tHead.rows[0];
  if (head.cells.length === 4) {
    head.cells[2].after(element('th', { scope: 'col' }, 'Lost'), element('th', { scope: 'col' }, 'Series'));
  }
  body.replaceChildren(...status.probes.map((probe) => element('tr', {},
    element('th', { scope: 'row' }, probe.probe),
    element('td', {}, element('span', { class: `verdict ${/^[a-z]+$/.test(probe.verdict) ? probe.verdict : ''}` }, probe.verdict)),
    element('td', {}, probe.hook || '–'),
    element('td', { class: probe.events_lost > 0 ? 'hot' : 'zero' }, count(probe.events_lost ?? 0)),
    element('td', {}, probe.series === undefined ? '–' : `${count(probe.series)} of ${count(probe.series_limit)}`),
    element('td', {}, probe.detail || (probe.overflow > 0 ? `${count(probe.overflow)} events found no series` : '')))));
  $('agent-note').textContent = `Sentry ${status.agent_version} on Linux ${status.kernel}, up ${ago(status.now_ms - status.started_ms)}`;
  const place = $('agent-panels');
  const cpu = node.steps.map((step) => step.agent.cpu_ns / (step.length_ms * 1e6));
  panel(place, 'cpu', () => linesPanel('CPU', 'Sentry\u2019s share of a core', {
    height: 110, names: ['of a core'], colors: ['--rate'], format: share, axis: share,
  }, '')).update(node, [cpu], [`${share(cpu.at(-1) ?? null)} of a core`]);
  const memory = node.steps.map((step) => step.agent.resident_bytes);
  panel(place, 'memory', () => linesPanel('Memory', 'Sentry\u2019s resident memory', {
    height: 110, names: ['resident'], colors: ['--good'], format: bytes, axis: bytes,
  }, '')).update(node, [memory], [`${bytes(status.agent.resident_bytes)} resident`]);
  panel(place, 'facts', () => {
    const list = element('dl', { class: 'facts' });
    const made = { whole: element('article', { class: 'panel' }, element('header', {}, element('h3', {}, 'State')), list), charts: [] };
    made.update = (facts) => list.replaceChildren(...facts.flatMap(([name, value]) => [element('dt', {}, name), element('dd', {}, value)]));
    return made;
  }).update([
    ['Events lost', count(status.agent.events_lost ?? 0)],
    ['CPU time in all', duration(status.agent.cpu_seconds)],
    ['History', `${bytes(status.history.bytes)}, ${status.history.steps}/${status.history.steps_max} steps`],
    ['Left out of the last step', count(node.steps.at(-1)?.left_out ?? 0)],
    ['Open files', count(status.agent.open_files ?? 0)],
  ]);
  sweep(place);
}

// ---- Nothing to show

function showEmpty() {
  const isUp = status.probes.some((probe) => ['attached', 'degraded'].includes(probe.verdict));
  const isEmpty = table.rows.length === 0;
  const place = $('empty');
  place.hidden = isUp && !isEmpty;
  place.classList.toggle('bad', !isUp);
  if (!place.hidden && place.dataset.of !== String(isUp)) {
    place.dataset.of = isUp;
    const code = (text) => element('code', {}, text);
    if (isUp) {
      place.replaceChildren(
        element('h3', {}, 'Nothing has happened yet'),
        element('p', {}, 'The probes are attached and wait. To see something:'),
        element('ul', {}, ...[
          isOn('tcp') && element('li', {}, 'open a connection, as with ', code(`curl ${location.origin}/healthz`), ' on that host'),
          isOn('disk') && element('li', {}, 'read from a disk, as with ', code('dd if=/dev/sda of=/dev/null bs=1M count=100 iflag=direct')),
          isOn('gpu') && element('li', {}, 'start a CUDA program: it is found as it starts'),
        ].filter(Boolean)));
    } else {
      place.replaceChildren(
        element('h3', {}, 'No probe is attached'),
        element('p', {}, 'So nothing is measured. The reasons are ', element('a', { href: '#agent' }, 'below'), '; ', code('sentry check'), ' says more, with what to do.'));
    }
  }
  const missing = $('no-charts');
  missing.hidden = hasCharts;
  if (!hasCharts && !missing.hasChildNodes()) {
    missing.replaceChildren(
      element('h3', {}, 'Charts are missing'),
      element('p', {}, 'This program was built without Node.js, which brings the library that draws them. Tables are complete. ',
        element('code', {}, 'make release'), ' on a machine with npm builds it with charts.'));
  }
}

// ---- All of it

function show() {
  const store = chosen ?? node;
  const row = state.workload ? table.find(state.workload) : null;
  $('node').textContent = status.node;
  $('filter').hidden = !state.workload;
  if (state.workload) {
    const known = row ?? (chosen?.known ? { name: 'a workload that is gone', where: '' } : null);
    $('filter-name').textContent = known ? [known.name, known.where].filter(Boolean).join(' · ') : 'a workload that is not known here';
  }
  for (const id of ['overview', 'workloads', 'tcp', 'disk', 'events', 'gpu']) $(id).hidden = false;
  showEmpty();
  showTiles(store);
  showTcp(store);
  showDisk(store);
  showEvents();
  showGpu(store);
  showAgent();
}

function choose(workload) {
  state.workload = workload;
  writeAddress(true);
  follow();
}

function follow() {
  hideTip();
  $('search').value = state.search;
  table.draw();
  poll();
}

const table = new Table($('table'), $('more'), $('workloads-note'), state, (workload) => {
  if (workload === undefined) writeAddress(false);
  else choose(workload);
});

for (const operation of OPERATIONS) {
  const button = element('button', { type: 'button', value: operation }, operation);
  button.addEventListener('click', () => {
    state.operation = operation;
    writeAddress(false);
    show();
  });
  $('operations').append(button);
}
$('search').addEventListener('input', () => {
  state.search = $('search').value;
  writeAddress(false);
  table.draw();
});
$('filter-clear').addEventListener('click', () => choose(null));
$('more-disks').addEventListener('click', () => {
  allDisks = !allDisks;
  show();
});
$('more-events').addEventListener('click', () => {
  allEvents = !allEvents;
  show();
});
addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && state.workload && document.activeElement !== $('search')) choose(null);
  if (event.key === '/' && !event.ctrlKey && !event.metaKey && document.activeElement !== $('search')) {
    event.preventDefault();
    $('search').focus();
  }
});
addEventListener('popstate', () => { readAddress(); follow(); });
addEventListener('hashchange', () => { readAddress(); follow(); });
document.addEventListener('visibilitychange', run);
setInterval(showLife, 1000);

readAddress();
$('search').value = state.search;
$('state-text').textContent = 'connecting';
run();
