// Whose adapter on whose pairs, as a heat map, and as a table.

function startCross() {
  if (!RUNS.some((run) => run.cross.length)) return;
  reveal('cross');
  runSelect('cross-run');
  const select = byId('cross-map');
  const mapOf = () => RUNS[state.run].cross[Math.min(Number(select.value), RUNS[state.run].cross.length - 1)];
  const made = chart(byId('cross-chart'), () => (mapOf() ? heatOptions(mapOf()) : { series: [] }));
  let shownRun = -1;
  function show() {
    if (shownRun === state.run) return;
    shownRun = state.run;
    fill(select, RUNS[state.run].cross.map((map, number) => [number, map.title]));
    byId('cross-of').hidden = RUNS[state.run].cross.length < 2;
    showMap();
  }
  function showMap() {
    const map = mapOf();
    byId('cross-chart').hidden = !map;
    byId('cross-caption').textContent = map ? `${map.note}${hasNoRoom(map) ? ' Columns stand in the order of the rows.' : ''}` : 'This run has no cross table.';
    byId('cross-table').replaceChildren();
    if (!map) return;
    byId('cross-chart').setAttribute('aria-label', `Accuracy of ${map.rows.length} adapters on the pairs of ${map.columns.length} others. The table below has the figures.`);
    setHeight(made, 60 + namesBelow(map) + Math.max(map.rows.length <= 12 ? 34 : 18, 0) * map.rows.length);
    made.draw();
    if (byId('cross-table').closest('details').open) showCrossTable(map);
  }
  select.addEventListener('change', showMap);
  byId('cross-table').closest('details').addEventListener('toggle', () => mapOf() && showCrossTable(mapOf()));
  listeners.push(show);
  show();
}

const namesBeside = (map) => Math.min(isNarrow() ? 84 : 170, 10 + 7 * Math.max(3, ...map.rows.map((name) => name.length)));

const wideness = () => (root.classList.contains('print') ? PRINT_WIDTH : byId('cross-chart').clientWidth);

const longestBelow = (map) => 7 * Math.max(...map.columns.map((name) => name.length));

// Names under the columns stand upright where they would not fit beside each other.
function isUpright(map) {
  return longestBelow(map) > (wideness() - namesBeside(map)) / map.columns.length;
}

// Columns narrower than a line of text have no names: they are those of the rows, in the same order.
const NARROWEST_NAMED = 11;
const hasNoRoom = (map) => map.columns.length === map.rows.length && (wideness() - namesBeside(map)) / map.columns.length < NARROWEST_NAMED;

const namesBelow = (map) => (hasNoRoom(map) ? 0 : isUpright(map) ? Math.min(110, 10 + longestBelow(map)) : 24);

function heatOptions(map) {
  const few = map.rows.length <= 12 && map.columns.length <= 12 && !(isNarrow() && map.columns.length > 7);
  const names = namesBeside(map);
  const value = (cell) => cell[2] / 10;
  return {
    grid: { left: names + 8, right: 8, top: 46, bottom: namesBelow(map) + 8 },
    tooltip: tooltip({ formatter: (event) => heatTip(map, event.data.cell) }),
    xAxis: heatAxis({ data: map.columns, axisLabel: { show: !hasNoRoom(map), interval: 0, rotate: isUpright(map) ? 90 : 0, fontSize: map.columns.length > 30 ? 10 : 12, width: isUpright(map) ? 100 : undefined, overflow: 'truncate', color: style('ink') } }),
    yAxis: heatAxis({ data: map.rows, inverse: true, axisLabel: { interval: 0, formatter: (name) => fitted(name, Math.floor(names / 7)), width: names, overflow: 'truncate', color: style('ink'), fontSize: map.rows.length > 30 ? 10 : 12 } }),
    visualMap: {
      type: 'continuous',
      min: 0,
      max: 100,
      calculable: false,
      orient: 'horizontal',
      right: 0,
      top: 0,
      itemWidth: 12,
      itemHeight: 120,
      text: ['100%', '0%'],
      textStyle: { color: style('muted') },
      inRange: { color: [style('low'), style('middle'), style('high')] },
    },
    series: [{
      type: 'heatmap',
      progressive: 0,
      data: map.cells.map((cell) => ({
        value: [cell[1], cell[0], value(cell)],
        cell,
        label: { color: Math.abs(value(cell) - 50) > 32 ? style('paper') : style('ink') },
      })),
      label: { show: few, formatter: (event) => event.value[2].toFixed(0), fontSize: 11 },
      itemStyle: { borderColor: style('paper'), borderWidth: few ? 2 : 1 },
      emphasis: { itemStyle: { borderColor: style('ink'), borderWidth: 1.5 } },
    }],
  };
}

function heatAxis({ axisLabel, ...others }) {
  return axis({ type: 'category', splitLine: { show: false }, axisLabel: { hideOverlap: false, ...axisLabel }, ...others });
}

function heatTip(map, [row, column, accuracy, count, person]) {
  const whose = person >= 0 ? DATA.people[person] : map.columns[column];
  return tip(map.rows[row], [
    ['on the pairs of', whose],
    ['accuracy', `${(accuracy / 10).toFixed(1)}%`],
    [person >= 0 ? 'pairs' : 'adapters and people', count.toLocaleString('en')],
  ]);
}

function showCrossTable(map) {
  const cells = new Map(map.cells.map((cell) => [`${cell[0]} ${cell[1]}`, cell]));
  const head = element('tr', {}, element('th', { scope: 'col' }, 'adapter of'), ...map.columns.map((name) => element('th', { scope: 'col', class: 'number' }, named(name))));
  const rows = map.rows.map((name, row) => element('tr', {}, element('th', { scope: 'row' }, named(name)),
    ...map.columns.map((_, column) => {
      const cell = cells.get(`${row} ${column}`);
      return element('td', { class: 'number' }, cell ? `${(cell[2] / 10).toFixed(0)}%` : '–');
    })));
  byId('cross-table').replaceChildren(element('thead', {}, head), element('tbody', {}, ...rows));
}
