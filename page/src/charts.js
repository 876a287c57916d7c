// Heatmaps, lines and timelines. Lines and axes are uPlot's; without it there are timelines alone.

import { BUCKETS, edge, quantile, total } from './store.js';
import { clock, count, duration, inWords, rate } from './format.js';

export const hasCharts = typeof globalThis.uPlot === 'function';

const dark = matchMedia('(prefers-color-scheme: dark)');
const RAMPS = {
  light: [[226, 236, 250], [130, 174, 230], [44, 108, 196], [12, 48, 110]],
  dark: [[24, 42, 70], [34, 76, 136], [66, 134, 216], [150, 200, 255]],
};

export function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function ramp(share) {
  const stops = dark.matches ? RAMPS.dark : RAMPS.light;
  const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const at = Math.min(Math.floor(place), stops.length - 2);
  const mixed = stops[at].map((from, part) => Math.round(from + (stops[at + 1][part] - from) * (place - at)));
  return `rgb(${mixed.join(' ')})`;
}

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(key, '');
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// ---- What the pointer or the keyboard points at

const tip = document.getElementById('tip');

export function showTip(lines, x, y) {
  tip.replaceChildren(...lines.map((line) => element('p', {}, line)));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = x + 14 + width > innerWidth ? x - width - 14 : x + 14;
  const top = y + 14 + height > innerHeight ? y - height - 14 : y + 14;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
}

export function hideTip() {
  tip.hidden = true;
}

/** Arrow keys go through the steps of a chart, and each is said. */
function steppable(place, label, chart) {
  place.tabIndex = 0;
  place.setAttribute('role', 'slider');
  place.setAttribute('aria-label', label);
  place.setAttribute('aria-orientation', 'horizontal');
  let at = null;
  const say = () => {
    const most = Math.max(chart.steps() - 1, 0);
    const now = at === null ? most : Math.min(at, most);
    place.setAttribute('aria-valuemin', 0);
    place.setAttribute('aria-valuemax', most);
    place.setAttribute('aria-valuenow', now);
    place.setAttribute('aria-valuetext', chart.steps() === 0 ? 'nothing yet' : chart.tell(now).join(', '));
    return now;
  };
  place.addEventListener('keydown', (event) => {
    const most = chart.steps() - 1;
    if (most < 0) return;
    const now = at ?? most;
    const next = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: most, PageUp: now - 6, PageDown: now + 6 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    at = Math.min(Math.max(next, 0), most);
    say();
    const { x, y } = chart.point(at);
    showTip(chart.tell(at), x, y);
  });
  place.addEventListener('blur', () => { at = null; hideTip(); chart.leave?.(); });
  return say;
}

// ---- uPlot

/** Lines that would not be seen: of a single step. */
const POINTS = { show: (plot) => plot.data[0].length === 1, size: 5 };

const AXIS_FONT = '11px system-ui, sans-serif';
const AXIS_WIDTH = 52;
const charts = new Set();

function axes(values, space, hasTimes = true) {
  const common = {
    stroke: () => color('--soft'),
    font: AXIS_FONT,
    grid: { stroke: () => color('--grid'), width: 1 },
    ticks: { show: false },
  };
  return [
    {
      ...common,
      size: hasTimes ? 22 : 4,
      gap: 4,
      space: 70,
      values: (_, times) => times.map((time) => (hasTimes ? clock(time * 1000).slice(0, 5) : '')),
      incrs: [60, 120, 300, 600],
    },
    { ...common, size: AXIS_WIDTH, gap: 6, space, ...values },
  ];
}

function span(store) {
  return store ? store.span().map((ms) => ms / 1000) : [0, 1];
}

class Chart {
  constructor(place, height, label) {
    this.place = place;
    this.height = height;
    this.store = null;
    this.say = steppable(place, label, this);
    this.observer = new ResizeObserver(() => this.fit());
    this.observer.observe(place);
    charts.add(this);
  }

  steps() {
    return this.store?.steps.length ?? 0;
  }

  make(options, data) {
    const width = Math.max(this.place.clientWidth, 120);
    this.plot = new globalThis.uPlot({
      width,
      height: this.height,
      legend: { show: false },
      padding: [6, 16, 0, 0],
      cursor: {
        drag: { x: false, y: false },
        points: { show: false },
        sync: { key: 'time' },
        ...options.cursor,
      },
      ...options,
      hooks: {
        ...options.hooks,
        setCursor: [(plot) => this.pointed(plot)],
      },
    }, data, this.place);
    this.plot.over.addEventListener('mouseleave', hideTip);
  }

  fit() {
    const width = this.place.clientWidth;
    if (this.plot && width > 0 && Math.abs(width - this.plot.width) > 1) {
      this.plot.setSize({ width, height: this.height });
    }
  }

  pointed(plot) {
    // Others follow the pointer, and say nothing.
    if (!plot.over.matches(':hover')) return;
    const { left, top } = plot.cursor;
    const at = left < 0 ? -1 : this.stepAt(plot.posToVal(left, 'x') * 1000);
    if (at < 0) { hideTip(); return; }
    const box = plot.over.getBoundingClientRect();
    showTip(this.tell(at, plot.posToVal(top, 'y')), box.left + left, box.top + top);
  }

  stepAt(ms) {
    return this.store.steps.findIndex((step) => ms > step.end_ms - step.length_ms - 50 && ms <= step.end_ms);
  }

  point(at) {
    const step = this.store.steps[at];
    const left = this.plot.valToPos((step.end_ms - step.length_ms / 2) / 1000, 'x');
    const box = this.plot.over.getBoundingClientRect();
    this.plot.setCursor({ left, top: box.height / 2 }, false);
    return { x: box.left + left, y: box.top + box.height / 3 };
  }

  leave() {
    this.plot?.setCursor({ left: -10, top: -10 }, false);
  }

  time(at) {
    const step = this.store.steps[at];
    return `${clock(step.end_ms - step.length_ms)} – ${clock(step.end_ms)}`;
  }

  remove() {
    charts.delete(this);
    this.observer.disconnect();
    this.plot?.destroy();
    this.place.remove();
  }
}

dark.addEventListener('change', () => charts.forEach((chart) => chart.plot?.redraw(false)));

const DECADES = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10];

/** The edges of a bucket as they are drawn: the outermost have one only. */
function edges(bucket) {
  const lower = bucket === 0 ? 2 ** -18.25 : edge(bucket - 1);
  return [lower, bucket === BUCKETS - 1 ? 2 ** 4.25 : edge(bucket)];
}

function range(bucket) {
  if (bucket === 0) return `up to ${duration(edge(0))}`;
  if (bucket === BUCKETS - 1) return `more than ${duration(edge(bucket - 1))}`;
  return `${duration(edge(bucket - 1))} – ${duration(edge(bucket))}`;
}

function bucketOf(seconds) {
  let bucket = 0;
  while (bucket < BUCKETS - 1 && seconds > edge(bucket)) bucket += 1;
  return bucket;
}

/** Slow events that a tip names at most. */
const BEHIND_FEW = 4;

/** Durations over time: how many in each bucket, with p50 and p99. */
export class Heatmap extends Chart {
  constructor(place, label) {
    super(place, 176, label);
    this.buckets = [];
    this.slow = [];
    this.make({
      scales: {
        x: { time: true, range: () => span(this.store) },
        y: { distr: 3, range: () => this.limits() },
      },
      axes: axes({
        splits: () => DECADES.filter((value) => value >= this.limits()[0] && value <= this.limits()[1]),
        values: (_, values) => values.map((value) => duration(value).replace(/\.0+ /, ' ')),
      }, 20, false),
      series: [
        {},
        { stroke: () => color('--p50'), width: 1.25, points: POINTS, spanGaps: false },
        { stroke: () => color('--p99'), width: 1.75, points: POINTS, spanGaps: false },
      ],
      hooks: { drawAxes: [(plot) => this.cells(plot)] },
    }, [[], [], []]);
  }

  /** `slow`: events of which is known who was behind them, the slowest first. */
  update(store, buckets, slow) {
    this.store = store;
    this.buckets = buckets;
    this.slow = slow;
    const times = store.steps.map((step) => (step.end_ms - step.length_ms / 2) / 1000);
    const of = (wanted) => buckets.map((events) => events && quantile(events, wanted));
    this.plot.setData([times, of(0.5), of(0.99)]);
    this.fit();
    this.say();
  }

  during(at) {
    const step = this.store.steps[at];
    return this.slow.filter((event) => event.at_ms > step.end_ms - step.length_ms && event.at_ms <= step.end_ms);
  }

  limits() {
    let [first, last] = [BUCKETS, -1];
    for (const events of this.buckets) {
      if (!events) continue;
      for (let bucket = 0; bucket < BUCKETS; bucket += 1) {
        if (events[bucket] > 0) {
          first = Math.min(first, bucket);
          last = Math.max(last, bucket);
        }
      }
    }
    if (last < 0) [first, last] = [20, 60];
    // Two decades at least, so that noise does not fill the height.
    const lack = Math.max(0, 27 - (last - first));
    first = Math.max(0, first - 2 - Math.floor(lack / 2));
    last = Math.min(BUCKETS - 1, last + 2 + Math.ceil(lack / 2));
    return [edges(first)[0], edges(last)[1]];
  }

  cells(plot) {
    if (!this.store) return;
    let most = 1;
    for (const events of this.buckets) if (events) for (const n of events) if (n > most) most = n;
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    const scale = Math.log1p(most);
    this.store.steps.forEach((step, at) => {
      const events = this.buckets[at];
      if (!events) return;
      const left = Math.floor(plot.valToPos((step.end_ms - step.length_ms) / 1000, 'x', true));
      const right = Math.ceil(plot.valToPos(step.end_ms / 1000, 'x', true));
      for (let bucket = 0; bucket < BUCKETS; bucket += 1) {
        if (events[bucket] === 0) continue;
        const [lower, upper] = edges(bucket);
        const top = Math.floor(plot.valToPos(upper, 'y', true));
        const bottom = Math.ceil(plot.valToPos(lower, 'y', true));
        ctx.fillStyle = ramp(most === 1 ? 0.5 : Math.log1p(events[bucket]) / scale);
        ctx.fillRect(left, top, Math.max(right - left, 1), Math.max(bottom - top, 1));
      }
    });
    ctx.restore();
  }

  tell(at, seconds) {
    const events = this.buckets[at];
    if (!events) return [this.time(at), 'nothing'];
    const lines = [this.time(at)];
    let slow = this.during(at);
    if (seconds !== undefined) {
      const bucket = bucketOf(seconds);
      lines.push(`${range(bucket)}: ${count(events[bucket])} of ${count(total(events))}`);
      slow = slow.filter((event) => bucketOf(event.seconds) === bucket);
    } else {
      lines.push(`${count(total(events))} in all`);
    }
    lines.push(`p50 ${duration(quantile(events, 0.5))}, p99 ${duration(quantile(events, 0.99))}`);
    lines.push(...slow.slice(0, BEHIND_FEW).map((event) => {
      const { who, whom } = inWords(event);
      return `${duration(event.seconds)}: ${[who, whom].filter((text) => text !== '–').join(', ')}`;
    }));
    return lines;
  }
}

/** Lines by the second over time, from zero. `lines`: of a name, a color's name and a value for each step. */
export class Lines extends Chart {
  constructor(place, label, { height = 92, format = (value) => `${rate(value)}/s`, axis = rate, names, colors }) {
    super(place, height, label);
    this.format = format;
    this.names = names;
    this.values = [];
    this.make({
      scales: {
        x: { time: true, range: () => span(this.store) },
        y: { range: (_, low, high) => [0, high > 0 ? high * 1.12 : 1] },
      },
      axes: axes({ values: (_, values) => values.map((value) => axis(value).replace(/\.0+(?=\D|$)/, '')) }, 26),
      series: [
        {},
        ...names.map((_, at) => ({
          stroke: () => color(colors[at]),
          width: 1.5,
          points: POINTS,
          fill: names.length === 1 ? () => `${color(colors[at])}1f` : undefined,
        })),
      ],
    }, [[], ...names.map(() => [])]);
  }

  /** `values`: for each name a value a step. */
  update(store, values) {
    this.store = store;
    this.values = values;
    const times = store.steps.map((step) => (step.end_ms - step.length_ms / 2) / 1000);
    this.plot.setData([times, ...values]);
    this.fit();
    this.say();
  }

  tell(at) {
    const lines = this.names.map((name, number) => `${name} ${this.format(this.values[number][at])}`);
    return [this.time(at), ...lines];
  }
}

// ---- Timelines of processes, on a canvas of their own

export class Timeline {
  constructor(place, label) {
    this.place = place;
    this.canvas = place.appendChild(element('canvas'));
    this.row = [];
    this.store = null;
    this.say = steppable(place, label, this);
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(place);
    place.addEventListener('pointermove', (event) => {
      const at = this.stepAt(event.clientX);
      if (at < 0) hideTip();
      else showTip(this.tell(at), event.clientX, event.clientY);
    });
    place.addEventListener('pointerleave', hideTip);
    this.redraw = () => this.draw();
    dark.addEventListener('change', this.redraw);
  }

  steps() {
    return this.store?.steps.length ?? 0;
  }

  update(store, row) {
    this.store = store;
    this.row = row;
    this.draw();
    this.say();
  }

  x(ms, width) {
    const [from, to] = span(this.store);
    return ((ms / 1000 - from) / (to - from)) * width;
  }

  draw() {
    const { canvas } = this;
    const density = devicePixelRatio || 1;
    const width = Math.round(canvas.clientWidth * density);
    const height = Math.round(canvas.clientHeight * density);
    if (!this.store || width === 0) return;
    canvas.width = width;
    canvas.height = height;
    const ctx = canvas.getContext('2d');
    ctx.fillStyle = color('--grid');
    ctx.fillRect(0, 0, width, height);
    const colors = ['busy', 'starved', 'idle'].map((name) => [name, color(`--${name}`)]);
    this.store.steps.forEach((step, at) => {
      const shares = this.row[at];
      if (!shares) return;
      const left = Math.floor(this.x(step.end_ms - step.length_ms, width));
      const right = Math.ceil(this.x(step.end_ms, width));
      let bottom = height;
      for (const [name, fill] of colors) {
        const part = shares[name] * height;
        ctx.fillStyle = fill;
        ctx.fillRect(left, bottom - part, right - left, part);
        bottom -= part;
      }
    });
  }

  stepAt(clientX) {
    if (!this.store) return -1;
    const box = this.canvas.getBoundingClientRect();
    const [from, to] = span(this.store);
    const ms = (from + ((clientX - box.left) / box.width) * (to - from)) * 1000;
    return this.store.steps.findIndex((step) => ms > step.end_ms - step.length_ms - 50 && ms <= step.end_ms);
  }

  point(at) {
    const box = this.canvas.getBoundingClientRect();
    return { x: box.left + this.x(this.store.steps[at].end_ms, box.width), y: box.top + box.height };
  }

  tell(at) {
    const step = this.store.steps[at];
    const shares = this.row[at];
    const time = `${clock(step.end_ms - step.length_ms)} – ${clock(step.end_ms)}`;
    if (!shares) return [time, 'not there'];
    const percent = (value) => `${(value * 100).toFixed(1)} %`;
    return [time, `busy ${percent(shares.busy)}`, `starved ${percent(shares.starved)}`, `idle ${percent(shares.idle)}`];
  }

  remove() {
    this.observer.disconnect();
    dark.removeEventListener('change', this.redraw);
    this.place.remove();
  }
}
