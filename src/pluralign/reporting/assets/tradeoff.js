// What people won against what was kept: a point a person, a mark a run, and the front that nobody is beyond.

const WIN_RATE = 'win_rate.raw';
const UPS = [ACCURACY, WIN_RATE, 'win_rate.length_controlled', 'behaviour.person.style', 'behaviour.person.right', 'distribution.alignment', 'pairs.ranking_accuracy', 'pairs.margin'];
const ACROSS = [KEPT, 'retention.kept_own', 'knowledge.score', 'base_responses.kl_per_token'];
const DASHES = 'path://M0 4h4v2h-4z M6 4h4v2h-4z M12 4h4v2h-4z';
const POINTS_LAYER = 1;
const SPREAD = Math.PI * (3 - Math.sqrt(5));

// Where nobody differs in the usual measure, these tell people apart.
const FINER = [WIN_RATE, 'pairs.margin'];

const isVaried = (key) => new Set(RUNS.flatMap((run) => run.results.values[key] || []).filter((figure) => figure !== null)).size > 1;

function firstShown(keys) {
  if (isVaried(keys[0])) return keys[0];
  return [...FINER, ...keys].find((key) => keys.includes(key) && isVaried(key)) || keys[0];
}

// Says which measures are not shown at first because everybody has the same.
function levelled(keys) {
  const level = keys.filter(([all, key]) => key !== all[0] && key === firstShown(all)).map(([all]) => all[0]);
  const said = level.map((key) => `${MEASURES.get(key).title} is ${shown(key, RUNS.flatMap((run) => run.results.values[key] || []).find((figure) => figure !== null))}`);
  return said.length ? ` Everybody's ${said.join(' and everybody\'s ')}, so another measure is shown.` : '';
}

const isMeasured = (key) => RUNS.some((run) => run.results.values[key]);

// Points of all runs: [across, up, person, offset, offset], and how many people of each run lack one of the two.
function pointsOf(across, up) {
  const points = RUNS.map(() => []);
  const places = new Map();
  const missing = RUNS.map(() => 0);
  RUNS.forEach((run, number) => {
    run.results.person.forEach((person, row) => {
      const x = figureOf(number, row, across);
      const y = figureOf(number, row, up);
      if (x === null || y === null) {
        missing[number] += 1;
        return;
      }
      const point = [real(across, x), real(up, y), person, 0, 0];
      points[number].push(point);
      const place = `${x} ${y}`;
      if (!places.has(place)) places.set(place, []);
      places.get(place).push(point);
    });
  });
  for (const together of places.values()) spread(together);
  return { points, missing };
}

// People at the same place stand around it like the seeds of a sunflower, so that each can be pointed at.
function spread(together) {
  if (together.length < 2) return;
  const radius = Math.min(18, 4 * Math.sqrt(together.length));
  together.forEach((point, number) => {
    const away = radius * Math.sqrt((number + 0.5) / together.length);
    point[3] = away * Math.cos(number * SPREAD);
    point[4] = away * Math.sin(number * SPREAD);
  });
}

// The points that none is beyond in both measures, from left to right.
function frontOf(points, acrossIsHigher) {
  const sign = acrossIsHigher ? 1 : -1;
  const found = [];
  let highest = -Infinity;
  for (const point of [...points].sort((a, b) => sign * (b[0] - a[0]) || b[1] - a[1])) {
    if (point[1] > highest) {
      found.push(point);
      highest = point[1];
    }
  }
  return found.reverse();
}

// The front as a line: it goes on to the ends of the axes, for nobody is beyond it there either.
function lineOfFront(front, [x, y], acrossIsHigher) {
  if (!front.length) return [];
  const left = acrossIsHigher ? x.min : x.max;
  return [[left, front[0][1]], ...front.map((point) => point.slice(0, 2)), [front[front.length - 1][0], y.min]];
}

function meanOf(points) {
  const sum = (at) => points.reduce((total, point) => total + point[at], 0);
  return [sum(0) / points.length, sum(1) / points.length];
}

function startTradeoff() {
  const ups = UPS.filter(isMeasured);
  const across = ACROSS.filter(isMeasured);
  if (!ups.length || !across.length) return;
  reveal('tradeoff');
  for (const [id, keys] of [['tradeoff-up', ups], ['tradeoff-across', across]]) {
    fill(byId(id), keys.map((key) => [key, titled(key)]));
    byId(id).value = firstShown(keys);
    byId(id).parentElement.hidden = keys.length < 2;
    byId(id).addEventListener('change', () => made.draw());
    byId(id).addEventListener('change', caption);
  }
  const keys = () => [byId('tradeoff-across').value, byId('tradeoff-up').value];
  const made = chart(byId('tradeoff-chart'), () => tradeoffOptions(...keys()), {
    click: (event) => {
      const person = event.data?.[2];
      if (person >= 0) choose({ person: person === state.person ? -1 : person });
    },
  }, showChosen);
  function caption() {
    const { points, missing } = pointsOf(...keys());
    const onFront = new Set(frontOf(points.flat(), MEASURES.get(keys()[0]).higher).map((point) => `${point[0]} ${point[1]}`));
    const people = points.map((own) => own.filter((point) => onFront.has(`${point[0]} ${point[1]}`)).length);
    const total = people.reduce((sum, one) => sum + one, 0);
    const each = SEVERAL ? ` (${RUNS.map((run, number) => people[number] && `${people[number]} of ${run.name}`).filter(Boolean).join(', ')})` : '';
    const left = missing.reduce((sum, one) => sum + one, 0);
    const missed = left ? ` ${counted(left, 'point is', 'points are')} missing: one of the two was not measured.` : '';
    byId('tradeoff-caption').textContent = `${counted(total, 'point is', 'points are')} on the Pareto front${each}: nobody has more of one without less of the other.${missed}${levelled([[ups, keys()[1]], [across, keys()[0]]])}`;
    byId('tradeoff-chart').setAttribute('aria-label', `${titled(keys()[1])} against ${titled(keys()[0])}, a point a person. The table of people has the same figures.`);
  }
  caption();
  listeners.push(() => showChosen(made));
}

let drawnPoints = RUNS.map(() => []);
let chosenMarks = [];

// Who is chosen stands out in every run: their marks, larger and ringed, before the faded others. Thousands of points
// are not drawn anew for it: their layer fades, and the marks are added to the one above.
function showChosen(made) {
  if (!made.instance) return;
  const zr = made.instance.getZr();
  chosenMarks.forEach((mark) => zr.remove(mark));
  chosenMarks = drawnPoints.flatMap((points, run) => points.filter((point) => point[2] === state.person).flatMap((point) => marksOf(made, run, point)));
  chosenMarks.forEach((mark) => zr.add(mark));
  const layer = made.container.querySelector(`canvas[data-zr-dom-id^="zr_${POINTS_LAYER}."]`);
  if (layer) layer.style.opacity = chosenMarks.length ? 0.25 : 1;
}

function marksOf(made, run, point) {
  const [left, top] = made.instance.convertToPixel({ xAxisIndex: 0, yAxisIndex: 0 }, point.slice(0, 2));
  const [x, y] = [left + point[3], top + point[4]];
  const mark = echarts.helper.createSymbol(MARKS[run], x - 5, y - 5, 10, 10, runColour(run));
  const ring = new echarts.graphic.Circle({ shape: { cx: x, cy: y, r: 10 }, style: { fill: 'none', stroke: style('low'), lineWidth: 2.5 } });
  for (const one of [mark, ring]) one.attr({ silent: true, zlevel: POINTS_LAYER + 1, z: 6 });
  return [mark, ring];
}

function tradeoffOptions(across, up) {
  const { points } = pointsOf(across, up);
  drawnPoints = points;
  const all = points.flat();
  const acrossIsHigher = MEASURES.get(across).higher;
  const size = all.length > 3000 ? 4 : all.length > 400 ? 6 : 9;
  const extents = [[across, 0], [up, 1]].map(([key, at]) => extentOf(key, all.map((point) => point[at])));
  const front = lineOfFront(frontOf(all, acrossIsHigher), extents, acrossIsHigher);
  const runs = RUNS.map((run, number) => ({
    type: 'scatter',
    name: `run ${number}`,
    data: points[number],
    zlevel: POINTS_LAYER,
    // In one go: ten thousand points take no longer than a blink, and paper does not wait for a second part.
    progressive: 0,
    symbol: MARKS[number],
    symbolSize: size,
    symbolOffset: (value) => [value[3], value[4]],
    itemStyle: { color: runColour(number), opacity: all.length > 3000 ? 0.45 : 0.75 },
    emphasis: { itemStyle: { opacity: 1, borderColor: style('ink'), borderWidth: 1.5 } },
    clip: false,
    tooltip: { formatter: (event) => pointTip(number, event.data, across, up) },
  }));
  const means = RUNS.map((run, number) => ({
    type: 'scatter',
    name: 'mean',
    data: points[number].length > 1 ? [[...meanOf(points[number]), -1]] : [],
    symbol: MARKS[number],
    symbolSize: 17,
    zlevel: POINTS_LAYER + 1,
    itemStyle: { color: 'transparent', borderColor: style('ink'), borderWidth: 2 },
    tooltip: { formatter: (event) => tip(SEVERAL ? `mean of ${run.name}` : 'mean', [[titled(up), event.data[1].toFixed(1)], [titled(across), event.data[0].toFixed(2)]]) },
  }));
  return {
    grid: { left: 8, right: 22, top: 48, bottom: 30, containLabel: true },
    legend: legend(),
    xAxis: axis({ ...ends(across, all.map((point) => point[0])), name: titled(across), nameLocation: 'middle', nameGap: 30, inverse: !acrossIsHigher }),
    yAxis: axis({ ...ends(up, all.map((point) => point[1])), name: titled(up), nameLocation: 'end', nameTextStyle: { color: style('muted'), align: 'left' } }),
    series: [
      {
        type: 'line',
        name: 'Pareto front',
        data: front,
        step: 'start',
        symbol: 'none',
        silent: true,
        lineStyle: { color: style('muted'), width: 1.5, type: 'dashed' },
        itemStyle: { color: style('muted') },
        z: 1,
      },
      ...runs,
      ...means,
    ],
  };
}

function legend() {
  const names = SEVERAL ? RUNS.map((run, number) => `run ${number}`) : [];
  return {
    top: 0,
    right: 0,
    type: 'scroll',
    itemWidth: 16,
    textStyle: { color: style('ink') },
    data: [...names, 'mean', { name: 'Pareto front', icon: DASHES }],
    formatter: (name) => shortened(name.startsWith('run ') ? RUNS[Number(name.slice(4))].name : name, 28),
  };
}

const shortened = (text, longest) => (text.length > longest ? `${text.slice(0, longest - 1)}…` : text);

function pointTip(run, point, across, up) {
  const row = ROW_OF[run].get(point[2]);
  const lines = [up, across].map((key) => [MEASURES.get(key).title, figureWithRange(run, row, key)]);
  const group = RUNS[run].results.group[row];
  if (group >= 0) lines.push(['group', DATA.groups[group]]);
  lines.push(['held-out pairs', String(RUNS[run].results.pairs[row])]);
  if (SEVERAL) lines.push(['run', RUNS[run].name]);
  return tip(DATA.people[point[2]], lines);
}

function figureWithRange(run, row, key) {
  const range = shownRange(key, boundsOf(run, row, key));
  return `${shown(key, figureOf(run, row, key))}${range ? ` (${range})` : ''}`;
}
