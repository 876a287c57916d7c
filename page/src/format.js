// Numbers for people: three digits and a unit.

export function digits(value) {
  if (value >= 100) return String(Math.round(value));
  return value.toPrecision(3);
}

function scaled(value, base, units) {
  let step = 0;
  // 999.7 would be written as 1000.
  while (step < units.length - 1 && value >= base * 0.9995) {
    value /= base;
    step += 1;
  }
  return [digits(value), units[step]];
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return '–';
  if (seconds < 0.9995e-3) return `${digits(seconds * 1e6)} µs`;
  if (seconds < 0.9995) return `${digits(seconds * 1e3)} ms`;
  return `${digits(seconds)} s`;
}

/** How much by the second, without the unit of time. */
export function rate(value) {
  if (!value) return '0';
  if (value < 0.01) return '<0.01';
  if (value < 10) return value.toFixed(2);
  if (value < 100) return value.toFixed(1);
  const [number, unit] = scaled(value, 1000, ['', 'k', 'M', 'G']);
  return number + unit;
}

export function bytes(value) {
  if (!value) return '0 B';
  return scaled(value, 1000, ['B', 'kB', 'MB', 'GB', 'TB']).join(' ');
}

export function share(value) {
  if (value === null || value === undefined) return '–';
  const percent = value * 100;
  if (percent === 0) return '0 %';
  if (percent < 0.1) return `${percent.toFixed(3)} %`;
  if (percent < 10) return `${percent.toFixed(1)} %`;
  return `${Math.round(percent)} %`;
}

export function count(value) {
  return Math.round(value).toLocaleString('en');
}

export function clock(ms) {
  return new Date(ms).toLocaleTimeString('en-GB');
}

export function ago(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 90) return `${seconds} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

/** What happened in a slow event, who did it, and to whom or where. */
export function inWords({ of, exemplar }) {
  const what = of.role === 'client' ? 'connect' : of.role === 'server' ? 'accept' : `${of.operation} on ${of.device}`;
  const who = exemplar.pid ? `${exemplar.comm} (${exemplar.pid})` : '–';
  const whom = exemplar.peer ?? (exemplar.sectors ? `sectors ${exemplar.sectors}` : '–');
  return { what, who, whom };
}

/** What a workload is called, and where it is. */
export function names(labels) {
  const path = labels.cgroup ?? '';
  const parts = path.split('/').filter((part) => part !== '');
  let name = labels.container || labels.pod || labels.workload || parts.at(-1) || path || 'node';
  let where = [];
  if (labels.pod) {
    where = [labels.namespace, labels.pod].filter(Boolean);
    if (!labels.container) where = [labels.namespace].filter(Boolean);
  } else if (labels.workload) {
    where = [labels.namespace, labels.workload_kind].filter(Boolean);
  } else if (labels.container || parts.length > 1) {
    where = [path];
  }
  if (labels.process) {
    where = [...where, name];
    if (labels.pod || labels.workload || where[0] === path) where = labels.pod ? [labels.namespace, labels.pod, labels.container].filter(Boolean) : [path || name];
    name = labels.process;
  }
  const extra = Object.entries(labels).filter(([label]) => label.startsWith('label_'));
  return {
    name,
    where: [...where, ...extra.map(([label, value]) => `${label.slice(6)}=${value}`)].join(' / '),
    whole: Object.entries(labels).map(([label, value]) => `${label}="${value}"`).join(' '),
  };
}
