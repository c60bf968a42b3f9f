// Training curves: quantile bands over all people, and single curves of the worst and of a fixed sample.

const PANELS = [
  ['loss', 'loss', 'nats'],
  ['rewards/margins', 'reward margin', 'beta times nats'],
  ['rewards/accuracies', 'accuracy in training', 'share'],
  ['logps/chosen', 'log-prob, preferred', 'nats'],
  ['logps/rejected', 'log-prob, rejected', 'nats'],
  ['logps/base', "log-prob, base's answers", 'nats'],
  ['anchor/loss', 'anchor loss', 'nats'],
];
const FEWEST_FOR_BANDS = 8;
let panels = [];

function startTraining() {
  if (!RUNS.some((run) => run.curves)) return;
  reveal('training');
  runSelect('training-run');
  fill(byId('training-singles'), [['all', 'bands and single people'], ['bands', 'bands only'], ['singles', 'single people only']]);
  byId('training-singles').addEventListener('change', () => panels.forEach((one) => one.draw()));
  byId('training-table').closest('details').addEventListener('toggle', showTrainingTable);
  let shownRun = -1;
  function show() {
    if (shownRun !== state.run) {
      shownRun = state.run;
      makePanels();
      showTrainingTable();
    } else panels.forEach((one) => one.draw());
  }
  listeners.push(show);
  show();
}

function makePanels() {
  panels.forEach(drop);
  panels = [];
  const box = byId('training-panels');
  box.replaceChildren();
  const { curves } = RUNS[state.run];
  byId('training-about').replaceChildren(...(curves ? [`${aboutCurves(curves)} Steps run to the right.`, ...othersKeys()] : ['This run logged nothing.']));
  byId('training-singles').parentElement.hidden = !curves || !hasBands(curves);
  if (!curves) return;
  for (const [metric, title, unit] of PANELS) {
    const curve = curves.metrics[metric];
    if (curve) panels.push(panel(box, title, unit, () => curveOptions(curves, curve)));
  }
  if (curves.groups.length) {
    const left = curves.groups_left_out ? `, ${counted(curves.groups_left_out, 'lighter group', 'lighter groups')} left out` : '';
    panels.push(panel(box, 'weight of groups in the loss', `share${left}`, () => weightOptions(curves)));
  }
}

const hasBands = (curves) => curves.people >= FEWEST_FOR_BANDS;

function aboutCurves(curves) {
  if (curves.shared) return 'One policy for everybody. Values are means over the rows between two points; dashes are held-out rows.';
  const dashes = 'Dashes: the median on held-out rows.';
  if (!hasBands(curves)) return `A line a person, the median of all thick. ${dashes}`;
  return `Of ${counted(curves.people, 'person', 'people')}: the median as a line, half of them in the darker band, nine of ten in the lighter one. Thin lines are people, ` +
    `the worst served and a fixed sample; point at one for the name; of who is far out, choose the person to see the whole line. ${dashes}`;
}

function panel(box, title, unit, options) {
  const container = element('div', { class: 'chart', role: 'img', 'aria-label': `${title} by training step. Medians are in the table below.` });
  box.append(element('figure', {}, element('h3', {}, title, ' ', element('small', {}, unit)), container));
  return chart(container, options, {
    click: (event) => event.seriesType === 'lines' && event.data.person >= 0 && choose({ person: event.data.person }),
  });
}

function curveOptions(curves, curve) {
  const wanted = byId('training-singles').value;
  const bands = hasBands(curves) && wanted !== 'singles';
  const singles = !hasBands(curves) || wanted !== 'bands';
  const colour = runColour(state.run);
  return {
    grid: { left: 4, right: 18, top: 10, bottom: 4, containLabel: true },
    xAxis: axis({ min: 0, max: curves.steps[curves.steps.length - 1], splitLine: { show: false }, axisLabel: { hideOverlap: true } }),
    yAxis: axis({ scale: true, splitNumber: 4 }),
    tooltip: tooltip({ trigger: 'axis', axisPointer: { type: 'line', lineStyle: { color: style('muted') } }, formatter: (events) => stepTip(curves, curve, events) }),
    series: [
      ...(bands ? band(curves, curve, 0, 4, 0.16, colour) : []),
      ...(bands ? band(curves, curve, 1, 3, 0.26, colour) : []),
      ...(singles ? singleLines(curves, curve, colour) : []),
      ...othersMedians(curve),
      line(curves, curve.bands[2], colour, { width: 2.5 }),
      ...(curve.validation.length ? [line(curves, curve.validation, style('ink'), { width: 1.5, type: 'dashed' })] : []),
    ],
  };
}

const along = (curves, values) => values.map((value, at) => [curves.steps[at], value]).filter((point) => point[1] !== null);

function line(curves, values, colour, lineStyle) {
  return { type: 'line', data: along(curves, values), symbol: values.length > 1 ? 'none' : 'circle', silent: true, lineStyle: { color: colour, ...lineStyle }, itemStyle: { color: colour }, z: 4 };
}

// A band is the lower line, unseen, and the distance to the upper one stacked on it.
function band(curves, curve, low, high, opacity, colour) {
  const there = curves.steps.map((_, at) => at).filter((at) => curve.bands[low][at] !== null);
  const common = { type: 'line', stack: `band ${low}`, stackStrategy: 'all', symbol: 'none', silent: true, lineStyle: { opacity: 0 }, z: 1 };
  return [
    { ...common, data: there.map((at) => [curves.steps[at], curve.bands[low][at]]) },
    { ...common, data: there.map((at) => [curves.steps[at], curve.bands[high][at] - curve.bands[low][at]]), areaStyle: { color: colour, opacity } },
  ];
}

function singleLines(curves, curve, colour) {
  const make = ([person, values]) => ({ coords: along(curves, values), person });
  const lines = curve.singles.map(make).filter((one) => one.coords.length > 1);
  const chosen = curve.singles.filter(([person]) => person === state.person && person >= 0);
  const few = !hasBands(curves);
  const common = {
    type: 'lines',
    coordinateSystem: 'cartesian2d',
    polyline: true,
    progressive: 0,
    tooltip: { trigger: 'item', formatter: (event) => tip(event.data.person < 0 ? 'everybody' : DATA.people[event.data.person], []) },
    emphasis: { lineStyle: { width: 2.5, opacity: 1 } },
  };
  return [
    { ...common, data: lines.filter((one) => one.person !== state.person), lineStyle: { color: few ? colour : style('muted'), width: few ? 1.25 : 1, opacity: few ? 0.7 : 0.28 }, z: 2 },
    // As a line of its own it has a say in where the axis ends.
    ...chosen.map(([, values]) => ({ ...line(curves, values, style('low'), { width: 3 }), z: 5 })),
  ];
}

function othersKeys() {
  const others = [...RUNS.keys()].filter((run) => run !== state.run && RUNS[run].curves);
  return others.length ? [' Thin coloured lines are medians of other runs: ', ...runKeys(others), '.'] : [];
}

// Medians of the other runs, thin, in their colours.
function othersMedians(curve) {
  const metric = Object.keys(RUNS[state.run].curves.metrics).find((name) => RUNS[state.run].curves.metrics[name] === curve);
  return RUNS.map((run, number) => [run.curves, number])
    .filter(([curves, number]) => number !== state.run && curves?.metrics[metric])
    .map(([curves, number]) => line(curves, curves.metrics[metric].bands[2], runColour(number), { width: 1.5, opacity: 0.9 }));
}

function stepTip(curves, curve, events) {
  const step = events[0]?.axisValue;
  const at = curves.steps.reduce((best, one, number) => (Math.abs(one - step) < Math.abs(curves.steps[best] - step) ? number : best), 0);
  const of = (quantile) => (curve.bands[quantile][at] === null ? '–' : String(curve.bands[quantile][at]));
  const lines = [['median', of(2)]];
  if (hasBands(curves)) lines.push(['half within', `${of(1)} to ${of(3)}`], ['nine of ten', `${of(0)} to ${of(4)}`]);
  if (curve.validation[at] !== undefined && curve.validation[at] !== null) lines.push(['held-out rows', String(curve.validation[at])]);
  if (!curves.shared) lines.push(['people', curve.count[at].toLocaleString('en')]);
  return tip(`step ${curves.steps[at]}`, lines);
}

function weightOptions(curves) {
  return {
    grid: { left: 4, right: 104, top: 10, bottom: 4, containLabel: true },
    xAxis: axis({ min: 0, max: curves.steps[curves.steps.length - 1], splitLine: { show: false } }),
    yAxis: axis({ min: 0, splitNumber: 4 }),
    tooltip: tooltip({ trigger: 'axis', formatter: (events) => tip(`step ${events[0].axisValue}`, events.map((event) => [curves.groups[Number(event.seriesName)][0], event.value[1].toFixed(3)])) }),
    series: curves.groups.map(([, values], number) => ({
      ...line(curves, values, runColour(number), { width: 2, type: number < 8 ? 'solid' : 'dashed' }),
      name: String(number),
      silent: false,
      // Names stand where the lines end, and move apart where these are near each other.
      endLabel: { show: true, formatter: () => shortened(curves.groups[number][0], 14), color: runColour(number), fontSize: 11, distance: 4 },
      labelLayout: { moveOverlap: 'shiftY' },
    })),
  };
}

function showTrainingTable() {
  const { curves } = RUNS[state.run];
  const table = byId('training-table');
  table.replaceChildren();
  if (!curves || !table.closest('details').open) return;
  const shownPanels = PANELS.filter(([metric]) => curves.metrics[metric]);
  const head = element('tr', {}, element('th', { scope: 'col' }, 'step'), ...shownPanels.map(([, title]) => element('th', { scope: 'col', class: 'number' }, title)));
  const rows = curves.steps.map((step, at) => element('tr', {}, element('th', { scope: 'row' }, String(step)),
    ...shownPanels.map(([metric]) => element('td', { class: 'number' }, String(curves.metrics[metric].bands[2][at] ?? '–')))));
  table.append(element('thead', {}, head), element('tbody', {}, ...rows));
}
