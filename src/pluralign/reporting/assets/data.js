// The data, what is chosen on the page, and how figures and elements are made of them.

const DATA = JSON.parse(document.getElementById('data').textContent);
const MEASURES = new Map(DATA.measures.map((measure) => [measure.key, measure]));
const ACCURACY = 'pairs.accuracy';
const KEPT = 'retention.kept';
const RUNS = DATA.runs;
const SEVERAL = RUNS.length > 1;

// Person -> row of a run, for every run.
const ROW_OF = RUNS.map((run) => new Map(run.results.person.map((person, row) => [person, row])));

const byId = (id) => document.getElementById(id);

// An element with attributes and children; text is always text, whatever signs are in it.
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === 'onclick') made.addEventListener('click', value);
    else if (value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== ''));
  return made;
}

// A name in whatever direction its script runs, without a hold on the text around it.
const named = (text) => element('bdi', {}, text);

function option(value, text) {
  return element('option', { value: String(value) }, text);
}

function fill(select, options) {
  select.replaceChildren(...options.map(([value, text]) => option(value, text)));
}

const figureOf = (run, row, key) => RUNS[run].results.values[key]?.[row] ?? null;
const boundsOf = (run, row, key) => {
  const low = RUNS[run].results.low[key]?.[row] ?? null;
  return low === null ? null : [low, RUNS[run].results.high[key][row]];
};

// The number that a whole number of the data stands for; shares as percent.
function real(key, figure) {
  const measure = MEASURES.get(key);
  const value = figure / 10 ** measure.digits;
  return measure.unit === 'share' ? 100 * value : value;
}

// A minus, and not a hyphen, at which a line could break.
const withMinus = (text) => text.replace('-', '−');

function shown(key, figure) {
  if (figure === null || figure === undefined) return '–';
  const measure = MEASURES.get(key);
  return measure.unit === 'share' ? `${real(key, figure).toFixed(1)}%` : withMinus(real(key, figure).toFixed(measure.digits));
}

function shownRange(key, bounds) {
  if (!bounds) return '';
  const digits = MEASURES.get(key).unit === 'share' ? 0 : Math.min(MEASURES.get(key).digits, 1);
  return bounds.map((bound) => withMinus(real(key, bound).toFixed(digits))).join(' to ');
}

function titled(key) {
  const measure = MEASURES.get(key);
  return measure.unit === 'share' ? `${measure.title}, %` : `${measure.title}, ${measure.unit}`;
}

const counted = (count, one, many) => `${count.toLocaleString('en')} ${count === 1 ? one : many}`;

// What is chosen: a person (-1: everybody), a group (-1: all), the run whose rows are looked at.
const state = { person: -1, group: -1, run: 0 };
const listeners = [];

function choose(changes) {
  Object.assign(state, changes);
  for (const listener of listeners) listener(state);
}

// A run for every select of runs; they all say the same run.
function runSelect(id) {
  const select = byId(id);
  fill(select, RUNS.map((run, number) => [number, run.name]));
  select.parentElement.hidden = !SEVERAL;
  select.addEventListener('change', () => choose({ run: Number(select.value) }));
  listeners.push(() => { select.value = String(state.run); });
}

function reveal(id) {
  byId(id).hidden = false;
  document.querySelector(`nav a[href="#${id}"]`)?.removeAttribute('hidden');
}

// The rows of a table: cells are [text or node, label, class].
function tableRow(heading, cells, chosen) {
  const row = element('tr', { role: 'row', class: chosen ? 'chosen' : undefined });
  row.append(element('th', { role: 'rowheader', scope: 'row' }, heading));
  for (const [content, label, kind] of cells) {
    const empty = content === '–' ? ' empty' : '';
    row.append(element('td', { role: 'cell', 'data-label': label, class: `${kind || ''}${empty}` }, content));
  }
  return row;
}

function withRange(key, figure, bounds) {
  const range = shownRange(key, bounds);
  if (!range) return shown(key, figure);
  return element('span', {}, shown(key, figure), ' ', element('span', { class: 'range' }, range));
}
