// The agent's history, as far as this page has read it, and what is computed from it.

export const WINDOW_MS = 15 * 60 * 1000;

/** Nothing shorter is shown: a chart of three steps would look like one of nothing else. */
const SHORTEST_MS = 3 * 60 * 1000;
export const BUCKETS = 90;

/** The upper edge of a bucket in seconds: four to the octave, from 2^-18 s to 2^4 s, and one above. */
export function edge(bucket) {
  return bucket >= BUCKETS - 1 ? Infinity : 2 ** (bucket / 4 - 18);
}

export function total(buckets) {
  let sum = 0;
  for (const events of buckets) sum += events;
  return sum;
}

/** Below what a share of the events lies, taken to lie evenly on a logarithmic scale within a bucket. */
export function quantile(buckets, wanted) {
  const events = total(buckets);
  if (events === 0) return null;
  const rank = wanted * events;
  let below = 0;
  for (let bucket = 0; bucket < BUCKETS; bucket += 1) {
    const here = buckets[bucket];
    if (here > 0 && below + here >= rank) {
      const upper = edge(Math.min(bucket, BUCKETS - 2));
      if (bucket === 0 || bucket === BUCKETS - 1) return upper;
      const lower = edge(bucket - 1);
      return lower * (upper / lower) ** Math.min(Math.max((rank - below) / here, 0), 1);
    }
    below += here;
  }
  return null;
}

export class Store {
  constructor() {
    this.lanes = new Map();
    this.processes = new Map();
    this.steps = [];
    this.latest = 0;
    this.stepMs = 10000;
    this.known = true;
  }

  merge(answer) {
    if (answer.latest < this.latest) {
      this.steps = [];
      this.processes.clear();
    }
    this.latest = answer.latest;
    this.stepMs = answer.step_ms;
    this.known = answer.known;
    this.lanes = new Map(answer.lanes.map((lane) => [lane.lane, lane]));
    for (const process of answer.processes) this.processes.set(process.number, process);
    this.steps.push(...answer.steps);
    while (this.steps.length > answer.steps_max) this.steps.shift();
  }

  /** The lanes of a metric with these labels. */
  lanesOf(metric, labels = {}) {
    const wanted = Object.entries(labels);
    return [...this.lanes.values()].filter((lane) =>
      lane.metric === metric && wanted.every(([name, value]) => lane.labels[name] === value));
  }

  /** Values of a label of a metric, the one with most events first; only those that had any. */
  valuesOf(metric, label) {
    const sums = new Map();
    for (const lane of this.lanesOf(metric)) {
      const value = lane.labels[label];
      const events = this.histogram(metric, { ...lane.labels }).reduce((sum, step) => sum + (step ? total(step) : 0), 0);
      if (events > 0) sums.set(value, (sums.get(value) ?? 0) + events);
    }
    return [...sums].sort((one, other) => other[1] - one[1]).map(([value]) => value);
  }

  /** For each step the events by bucket, or null where there were none. */
  histogram(metric, labels) {
    const lanes = new Set(this.lanesOf(metric, labels).map((lane) => lane.lane));
    return this.steps.map((step) => {
      let sum = null;
      for (const [lane, pairs] of step.values) {
        if (!lanes.has(lane)) continue;
        sum ??= new Float64Array(BUCKETS);
        for (let at = 0; at < pairs.length; at += 2) sum[pairs[at]] += pairs[at + 1];
      }
      return sum;
    });
  }

  /** For each step what counters have gained together. */
  counter(metric, labels) {
    const lanes = new Set(this.lanesOf(metric, labels).map((lane) => lane.lane));
    return this.steps.map((step) => {
      let sum = 0;
      for (const [lane, gained] of step.values) if (lanes.has(lane)) sum += gained;
      return sum;
    });
  }

  /** Processes with GPUs, each device a row: for each step its starved, idle and busy shares, or null. */
  timelines(accepts = () => true) {
    const rows = new Map();
    this.steps.forEach((step, at) => {
      for (const [number, values] of step.processes ?? []) {
        const process = this.processes.get(number);
        if (!process || !accepts(process.labels)) continue;
        const times = new Map();
        for (const [lane, ns] of values) {
          const known = this.lanes.get(lane);
          if (!known) continue;
          const device = known.labels.device ?? '';
          if (!times.has(device)) times.set(device, {});
          times.get(device)[known.metric] = ns;
        }
        for (const [device, found] of times) {
          const present = found.gpu_present_seconds ?? 0;
          if (present === 0) continue;
          const key = `${process.id} ${device}`;
          if (!rows.has(key)) rows.set(key, { id: process.id, key, labels: process.labels, device, steps: [] });
          const starved = Math.min((found.sentry_gpu_starved_seconds_total ?? 0) / present, 1);
          const idle = Math.min((found.sentry_gpu_idle_seconds_total ?? 0) / present, 1 - starved);
          rows.get(key).steps[at] = { starved, idle, busy: 1 - starved - idle, present };
        }
      }
    });
    return [...rows.values()];
  }

  /** From when to when it is shown: the last quarter of an hour, or what there is of it, in milliseconds. */
  span() {
    const last = this.steps.at(-1)?.end_ms ?? Date.now();
    const first = this.steps.length > 0 ? this.steps[0].end_ms - this.steps[0].length_ms : last;
    return [Math.max(last - WINDOW_MS, Math.min(first, last - SHORTEST_MS)), last];
  }

  /** The steps of the last so many milliseconds, by their places. */
  lately(ms) {
    const last = this.steps.at(-1)?.end_ms ?? 0;
    const from = this.steps.findIndex((step) => step.end_ms > last - ms + 1);
    return from < 0 ? [] : this.steps.slice(from).map((_, at) => from + at);
  }
}

/** The sum of some steps of a histogram. */
export function sum(histogram, places) {
  const whole = new Float64Array(BUCKETS);
  for (const place of places) histogram[place]?.forEach((events, bucket) => { whole[bucket] += events; });
  return whole;
}
