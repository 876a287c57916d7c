// The table of workloads: sorted, searched, a row chosen. Rows stay while what they show changes.

import { element } from './charts.js';
import { bytes, duration, names, rate, share } from './format.js';

const FEW = 12;

/** Columns: how to get a number from a row, how to write it, and when it is bad. */
const COLUMNS = [
  { key: 'name', title: 'Workload', ascending: true },
  { key: 'connects', title: 'Connects/s', help: 'Connections that it opened, by the second', of: (row) => row.tcp?.client.per_second, write: rate },
  { key: 'connect99', title: 'p99 connect', help: 'Handshake, 99 % of its connects take no longer', of: (row) => row.tcp?.client.p99_seconds, write: duration },
  { key: 'failures', title: 'Failed/s', help: 'Connects that failed, by the second', of: (row) => row.tcp?.failures.per_second, write: rate, isBad: (value) => value > 0 },
  { key: 'accepts', title: 'Accepts/s', help: 'Connections that it accepted, by the second', of: (row) => row.tcp?.server.per_second, write: rate },
  { key: 'io', title: 'IO/s', help: 'Block requests completed, by the second', of: (row) => row.disk?.io.per_second, write: rate },
  { key: 'bytes', title: 'Bytes/s', help: 'Bytes read and written, by the second', of: (row) => row.disk?.bytes.per_second, write: bytes },
  { key: 'io99', title: 'p99 I/O', help: '99 % of its block requests take no longer', of: (row) => row.disk?.io.p99_seconds, write: duration },
  { key: 'starved', title: 'GPU starved', help: 'Share of the time in which its GPU had nothing to do', of: (row) => row.gpu?.starved_share, write: share, isBad: (value) => value > 0.2 },
];

export class Table {
  /** `changed` is told of another order or choice. */
  constructor(table, more, note, state, changed) {
    Object.assign(this, { table, more, note, state, changed });
    this.rows = [];
    this.shown = new Map();
    this.all = false;
    const heads = COLUMNS.map((column) => {
      const button = element('button', { type: 'button', title: column.help }, column.title);
      button.addEventListener('click', () => this.sortBy(column));
      return element('th', { scope: 'col' }, button);
    });
    table.tHead.append(element('tr', {}, ...heads));
    more.addEventListener('click', () => {
      this.all = !this.all;
      this.draw();
    });
  }

  sortBy(column) {
    const { state } = this;
    const first = column.ascending ? 'ascending' : 'descending';
    const other = first === 'ascending' ? 'descending' : 'ascending';
    state.order = state.sort === column.key && state.order === first ? other : first;
    state.sort = column.key;
    this.changed();
    this.draw();
  }

  update(answer) {
    this.rows = answer.workloads.map((row) => ({ ...row, ...names(row.labels) }));
    this.leftOut = answer.left_out;
    this.windowMs = answer.window_ms;
    this.draw();
  }

  find(id) {
    return this.rows.find((row) => row.id === id);
  }

  wanted() {
    const { state } = this;
    const column = COLUMNS.find(({ key }) => key === state.sort) ?? COLUMNS[1];
    const sign = state.order === 'ascending' ? 1 : -1;
    const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = this.rows.filter((row) => {
      const text = row.whole.toLowerCase();
      return words.every((word) => text.includes(word));
    });
    const busy = (row) => (row.tcp?.client.per_second ?? 0) + (row.tcp?.server.per_second ?? 0) + (row.disk?.io.per_second ?? 0);
    const compare = (one, other) => {
      if (column.key === 'name') return sign * one.name.localeCompare(other.name);
      // Those without a value are last either way.
      const [a, b] = [column.of(one) ?? null, column.of(other) ?? null];
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (a - b);
    };
    return rows.sort((one, other) => compare(one, other) || other.lives - one.lives || busy(other) - busy(one) || one.whole.localeCompare(other.whole));
  }

  draw() {
    const { state, table } = this;
    COLUMNS.forEach(({ key }, at) => {
      const head = table.tHead.rows[0].cells[at];
      if (key === state.sort) head.setAttribute('aria-sort', state.order);
      else head.removeAttribute('aria-sort');
    });
    const wanted = this.wanted();
    const few = this.all ? wanted : wanted.slice(0, FEW);
    const chosen = wanted.find((row) => row.id === state.workload);
    if (chosen && !few.includes(chosen)) few.unshift(chosen);
    const body = table.tBodies[0];
    const kept = new Map();
    let place = body.firstElementChild;
    for (const row of few) {
      const made = this.shown.get(row.id) ?? this.make(row.id);
      this.fill(made, row);
      kept.set(row.id, made);
      // Moved only where the order differs: the focus stays.
      if (made.line === place) place = place.nextElementSibling;
      else body.insertBefore(made.line, place);
    }
    for (const [id, { line }] of this.shown) if (!kept.has(id)) line.remove();
    this.shown = kept;
    this.more.hidden = wanted.length <= FEW;
    this.more.textContent = this.all ? `Show ${FEW}` : `Show all ${wanted.length}`;
    this.more.setAttribute('aria-expanded', this.all);
    const seconds = Math.round(this.windowMs / 1000);
    const some = wanted.length === this.rows.length ? `${this.rows.length}` : `${wanted.length} of ${this.rows.length}`;
    const out = this.leftOut > 0 ? `, ${this.leftOut} quieter ones left out` : '';
    this.note.textContent = `${some}${out}, over the last ${seconds} s`;
  }

  make(id) {
    const name = element('button', { type: 'button' });
    const where = element('span', { class: 'where' });
    const cells = COLUMNS.slice(1).map(() => element('td'));
    const line = element('tr', {}, element('th', { scope: 'row' }, name, where), ...cells);
    line.addEventListener('click', () => {
      // A selection of text is no click.
      if (String(getSelection()) !== '') return;
      this.changed(this.state.workload === id ? null : id);
    });
    return { line, name, where, cells };
  }

  fill({ line, name, where, cells }, row) {
    const write = (place, text) => {
      if (place.textContent !== text) place.textContent = text;
    };
    const isChosen = row.id === this.state.workload;
    write(name, row.name);
    write(where, row.lives ? row.where : [row.where, 'gone'].filter(Boolean).join(' · '));
    line.title = row.whole;
    line.classList.toggle('chosen', isChosen);
    line.classList.toggle('gone', !row.lives);
    name.setAttribute('aria-pressed', isChosen);
    COLUMNS.slice(1).forEach((column, at) => {
      const value = column.of(row) ?? null;
      write(cells[at], value === null ? '–' : column.write(value));
      cells[at].classList.toggle('zero', !value);
      cells[at].classList.toggle('hot', Boolean(column.isBad?.(value ?? 0)));
    });
  }
}

export const ORDERS = COLUMNS.map(({ key }) => key);
