// Dots with their intervals: a line a person or group, a mark a run, a panel a measure.

// Runs whose intervals are drawn, too: more of them would lie on each other.
const MOST_INTERVALS = 2;

// The run that is looked at is drawn last, and so on top of the others.
const inFront = () => [...RUNS.keys()].sort((a, b) => (a === state.run) - (b === state.run));

const withIntervals = (run) => RUNS.length <= MOST_INTERVALS || run === state.run;

// What a caption says of whose intervals and marks there are.
function intervalsOf() {
  if (!SEVERAL) return [];
  return [RUNS.length > MOST_INTERVALS ? ` of ${RUNS[state.run].name}` : '', '; marks: ', ...runKeys()];
}

// Every run's name in its colour, with its mark.
function runKeys(runs = [...RUNS.keys()]) {
  return runs.flatMap((run, number) => {
    const key = element('span', { class: `run-key run-${run % 8}` }, `${GLYPHS[run]} `, named(RUNS[run].name));
    return number ? [', ', key] : [key];
  });
}

const dotsHeight = (lines) => 68 + (SEVERAL ? 26 : 22) * lines;

// How far a run's mark stands from the middle of its line, in pixels, so that intervals of two runs can be told apart.
const aside = (run) => (RUNS.length === 2 ? (run === 0 ? -4 : 4) : 0);

// A name with as many signs as there is room for: where it is too long, its middle is left out, for ends tell more.
function fitted(name, most) {
  if (name.length <= most) return name;
  const start = Math.ceil((most - 1) / 2);
  return `${name.slice(0, start)}…${name.slice(name.length - (most - 1 - start))}`;
}

function dotsOptions(lines, keys, across) {
  const names = Math.min(isNarrow() ? 96 : 180, 12 + 7 * Math.max(4, ...lines.map((line) => line.name.length)));
  const gap = isNarrow() ? 32 : 64;
  const width = (across - names - 8 - 22 - gap * (keys.length - 1)) / keys.length;
  const grids = keys.map((_, panel) => ({ top: 36, bottom: 26, left: names + 8 + panel * (width + gap), width }));
  return {
    grid: grids,
    title: keys.map((key, panel) => ({
      text: titled(key),
      top: 4,
      left: grids[panel].left,
      padding: 0,
      textStyle: { fontSize: 13, lineHeight: 18, fontWeight: 600, color: style('ink') },
    })),
    xAxis: keys.map((key, panel) => axis({ gridIndex: panel, splitNumber: isNarrow() ? 2 : 5, ...endsOfDots(key, lines) })),
    yAxis: keys.map((_, panel) => axis({
      gridIndex: panel,
      type: 'category',
      inverse: true,
      data: lines.map((line) => line.name),
      axisLabel: { show: panel === 0, interval: 0, hideOverlap: false, formatter: (name) => fitted(name, Math.floor(names / 7)), width: names, overflow: 'truncate', color: style('ink') },
      splitLine: { show: false },
    })),
    series: keys.flatMap((key, panel) => inFront().flatMap((run) => dotsOfRun(key, panel, lines, run))),
  };
}

function endsOfDots(key, lines) {
  const values = lines.flatMap((line) => line.dots.flatMap((dot) => [dot.figure(key), ...((withIntervals(dot.run) && dot.bounds(key)) || [])]));
  const there = values.filter((value) => value !== null).map((value) => real(key, value));
  return there.length ? ends(key, there, isNarrow() ? 3 : 6) : {};
}

// A run's intervals and dots in one panel; a dot is [value, line, number of the line, id].
function dotsOfRun(key, panel, lines, run) {
  const dots = lines.map((line, at) => [line.dots.find((dot) => dot.run === run), at]).filter(([dot]) => dot && dot.figure(key) !== null);
  const common = { xAxisIndex: panel, yAxisIndex: panel };
  const intervals = withIntervals(run) ? dots.filter(([dot]) => dot.bounds(key)) : [];
  return [
    {
      ...common,
      type: 'custom',
      silent: true,
      clip: true,
      data: intervals.map(([dot, at]) => [...dot.bounds(key).map((bound) => real(key, bound)), at]),
      encode: { x: [0, 1], y: 2 },
      renderItem: (_, api) => {
        const [[x1, y], [x2]] = [0, 1].map((side) => api.coord([api.value(side), api.value(2)]));
        return { type: 'line', shape: { x1, y1: y + aside(run), x2, y2: y + aside(run) }, style: { stroke: runColour(run), lineWidth: 2, opacity: 0.45 } };
      },
    },
    {
      ...common,
      type: 'scatter',
      clip: false,
      data: dots.map(([dot, at]) => [real(key, dot.figure(key)), at, at, lines[at].id]),
      encode: { x: 0, y: 1 },
      symbol: MARKS[run],
      symbolSize: 9,
      symbolOffset: [0, aside(run)],
      itemStyle: { color: runColour(run), opacity: run === state.run || RUNS.length <= MOST_INTERVALS ? 1 : 0.7 },
      tooltip: { formatter: (event) => dotTip(lines[event.data[2]], run, key) },
      markLine: key === ACCURACY && run === state.run ? chanceLine() : undefined,
    },
  ];
}

function dotTip(line, run, key) {
  const dot = line.dots.find((one) => one.run === run);
  const range = shownRange(key, dot.bounds(key));
  const figures = [[MEASURES.get(key).title, shown(key, dot.figure(key))]];
  if (range) figures.push(['95% interval', range]);
  if (SEVERAL) figures.push(['run', RUNS[run].name]);
  return tip(line.name, figures);
}

function chanceLine() {
  return {
    silent: true,
    symbol: 'none',
    data: [{ xAxis: 50 }],
    label: { position: 'start', distance: 2, formatter: 'chance', color: style('muted'), fontSize: 11 },
    lineStyle: { color: style('muted'), type: 'dotted', width: 1.5 },
  };
}
