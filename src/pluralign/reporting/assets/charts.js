// One way to make a chart: its looks from the style sheet, drawn when it comes into view, again when something changes.

// Marks of runs on charts, and the same as text.
const MARKS = [
  'circle',
  'triangle',
  'diamond',
  'rect',
  'path://M0 0h12l-6 11z',
  'path://M4 0h4v4h4v4h-4v4h-4v-4h-4v-4h4z',
  'path://M6 0l1.8 4.2 4.2.4-3.2 2.9 1 4.5-3.8-2.4-3.8 2.4 1-4.5L0 4.6l4.2-.4z',
  'emptyCircle',
];
const GLYPHS = ['●', '▲', '◆', '■', '▼', '✚', '★', '○'];
const NARROWEST = 5;
const PRINT_WIDTH = 660;
const root = document.documentElement;
const style = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
const runColour = (run) => style(`run-${run % 8}`);
const charts = [];

const isNarrow = () => window.innerWidth < 700;

// A chart in an element: `options()` says what is drawn, `events` what happens on a click or under the pointer, `after`
// what is done when it has been drawn.
function chart(container, options, events = {}, after = () => {}) {
  const made = { container, instance: null, inView: false, stale: false, draw, paint };
  function paint() {
    if (!made.instance) return;
    made.stale = false;
    if (made.instance.getHeight() !== container.clientHeight) made.instance.resize();
    made.instance.setOption({ ...frame(), ...options() }, { notMerge: true });
    after(made);
  }
  // A chart that nobody sees waits until it is scrolled to, so that a click is answered at once.
  function draw() {
    if (made.inView) paint();
    else made.stale = true;
  }
  made.begin = () => {
    if (made.instance || !container.isConnected || !container.clientWidth) return;
    made.instance = echarts.init(container, null, { renderer: 'canvas' });
    for (const [name, handler] of Object.entries(events)) made.instance.on(name, handler);
    container.dataset.drawn = 'yes';
    paint();
  };
  charts.push(made);
  watcher.observe(container);
  return made;
}

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const made = charts.find((one) => one.container === entry.target);
    if (!made) continue;
    made.inView = entry.isIntersecting;
    if (made.inView) made.begin();
    if (made.inView && made.stale) made.paint();
  }
}, { rootMargin: '300px' });

function drop(made) {
  watcher.unobserve(made.container);
  made.instance?.dispose();
  charts.splice(charts.indexOf(made), 1);
}

const widthOf = (made) => made.instance.getWidth();

// Whoever sets a height draws the chart next.
function setHeight(made, pixels) {
  made.container.style.height = `${pixels}px`;
}

function frame() {
  return {
    animation: false,
    textStyle: { fontFamily: getComputedStyle(document.body).fontFamily, color: style('ink') },
    tooltip: tooltip(),
  };
}

function tooltip(more = {}) {
  return {
    trigger: 'item',
    confine: true,
    transitionDuration: 0,
    backgroundColor: style('paper'),
    borderColor: style('rule'),
    padding: [6, 10],
    ...more,
  };
}

// What stands under the pointer, as elements: a name, then lines of [what, figure].
function tip(title, lines) {
  const box = element('div', { class: 'tip' }, element('b', {}, named(title)));
  for (const [what, figure] of lines) box.append(element('span', {}, element('span', {}, what), element('span', {}, figure)));
  return box;
}

function axis(more = {}) {
  const { axisLabel, ...others } = more;
  return {
    type: 'value',
    nameTextStyle: { color: style('muted') },
    axisLine: { show: false },
    axisTick: { show: false },
    splitLine: { lineStyle: { color: style('rule') } },
    axisLabel: { color: style('muted'), fontSize: 12, hideOverlap: true, ...axisLabel },
    ...others,
  };
}

// The ends of an axis of a measure that leave room around the figures, with at most so many even steps between them.
function ends(key, values, most = 8) {
  const lowest = Math.min(...values);
  const highest = Math.max(...values);
  if (MEASURES.get(key).unit !== 'share') return { scale: true };
  for (const step of [1, 2, 5, 10, 20, 25, 50]) {
    const max = Math.max(Math.min(100, step * Math.ceil(highest / step + 0.15)), step * Math.ceil(NARROWEST / step));
    // A few probes are no landscape: a narrow range is not blown up to the whole chart.
    const min = Math.max(0, step * Math.floor(Math.min(lowest / step - 0.15, (max - NARROWEST) / step)));
    if ((max - min) / step <= most) return { min, max, interval: step };
  }
  return { min: 0, max: 100, interval: 100 };
}

// Where an axis ends, or where the figures do if the library chooses the axis.
function extentOf(key, values) {
  const { min = Math.min(...values), max = Math.max(...values) } = ends(key, values);
  return { min, max };
}

function redrawAll() {
  for (const one of charts) one.draw();
}

window.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redrawAll);
let resizing = 0;
window.addEventListener('resize', () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => {
    if (root.classList.contains('print')) return;
    for (const one of charts) one.instance?.resize();
    redrawAll();
  }, 150);
});

// A browser prints one canvas of several that lie on each other: paper gets a copy of the whole chart.
function onPaper(made) {
  // Finer than the screen, so that the copy is painted anew and whole.
  const copy = made.instance.renderToCanvas({ pixelRatio: 2 * Math.ceil(window.devicePixelRatio) });
  copy.className = 'paper';
  Object.assign(copy.style, { position: 'static', width: `${made.instance.getWidth()}px`, height: `${made.instance.getHeight()}px` });
  made.container.after(copy);
}

// Paper: everything is drawn, in the colours of the day, as wide as a page.
window.addEventListener('beforeprint', () => {
  root.classList.add('print');
  for (const one of charts) {
    one.begin();
    const inPanel = one.container.closest('.panels');
    one.instance?.resize({ width: inPanel ? 320 : PRINT_WIDTH });
    one.paint();
    if (one.instance) onPaper(one);
  }
});
window.addEventListener('afterprint', () => {
  root.classList.remove('print');
  document.querySelectorAll('.paper').forEach((copy) => copy.remove());
  for (const one of charts) {
    one.instance?.resize({ width: 'auto' });
    one.draw();
  }
});
