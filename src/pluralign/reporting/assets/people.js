// People and groups, worst first: their figures with intervals, as a chart and as a table.

const PAGE_ROWS = isNarrow() ? 8 : 20;
// What a narrow screen shows of everybody, and what a wide one does; of a chosen person both show all.
const MAJOR = [ACCURACY, WIN_RATE, KEPT, 'behaviour.person.style', 'behaviour.person.right'];
const COMMON = [...MAJOR, 'retention.kept_own', 'behaviour.person.degenerate', 'pairs.margin', 'cross.others_accuracy', 'base_responses.kl_per_token'];
const kindOf = (key) => (MAJOR.includes(key) || key === people.sort ? 'number' : 'number minor');
const CHART_ROWS = 20;
const people = { sort: ACCURACY, worstFirst: true, find: '', rows: PAGE_ROWS };

const columnsOf = (run, ofOne = false) => DATA.measures.map((measure) => measure.key)
  .filter((key) => RUNS[run].results.values[key] && (ofOne || COMMON.includes(key) || key === people.sort));

// Rows of a run in the order of a measure; who has no value stands last, whichever end is first.
function sorted(run) {
  const { key, rows } = { key: people.sort, rows: RUNS[run].results.person.map((_, row) => row) };
  const sign = (MEASURES.get(key).higher ? 1 : -1) * (people.worstFirst ? 1 : -1);
  return rows.sort((a, b) => {
    const [x, y] = [figureOf(run, a, key), figureOf(run, b, key)];
    if (x === null || y === null) return (x === null) - (y === null) || a - b;
    return sign * (x - y) || a - b;
  });
}

// [run, row] of everybody who is asked for: the chosen person in every run, or the people of the run that fit.
function askedFor() {
  if (state.person >= 0) {
    return RUNS.map((_, run) => [run, ROW_OF[run].get(state.person)]).filter(([, row]) => row !== undefined);
  }
  const { results } = RUNS[state.run];
  const wanted = people.find.trim().toLowerCase();
  return sorted(state.run)
    .filter((row) => state.group < 0 || results.group[row] === state.group)
    .filter((row) => !wanted || DATA.people[results.person[row]].toLowerCase().includes(wanted))
    .map((row) => [state.run, row]);
}

function startPeople() {
  if (!RUNS.some((run) => run.results.person.length)) return;
  reveal('people');
  runSelect('people-run');
  fill(byId('people-sort'), [...MEASURES.keys()].filter(isMeasured).map((key) => [key, MEASURES.get(key).title]));
  if (!isMeasured(people.sort)) people.sort = byId('people-sort').value;
  byId('people-sort').addEventListener('change', (event) => sortBy(event.target.value, true));
  const groups = new Set(RUNS.flatMap((run) => run.results.group).filter((group) => group >= 0));
  fill(byId('people-group'), [[-1, 'all'], ...[...groups].map((group) => [group, DATA.groups[group]])]);
  byId('people-group').parentElement.hidden = groups.size < 2;
  byId('people-group').addEventListener('change', (event) => choose({ group: Number(event.target.value), person: -1 }));
  byId('people-find').addEventListener('input', (event) => {
    people.find = event.target.value;
    people.rows = PAGE_ROWS;
    if (state.person >= 0) choose({ person: -1 });
    else showPeople(made);
  });
  byId('people-more').addEventListener('click', () => {
    people.rows += 5 * PAGE_ROWS;
    showPeople(made);
  });
  const made = chart(byId('people-chart'), () => {
    const lines = peopleOf(askedFor()).slice(0, CHART_ROWS).map(personLine);
    return dotsOptions(lines, panelKeys(people.sort), widthOf(made));
  }, { click: (event) => event.data?.[3] >= 0 && choose({ person: event.data[3] }) });
  function sortBy(key, worstFirst) {
    Object.assign(people, { sort: key, worstFirst, rows: PAGE_ROWS });
    byId('people-sort').value = key;
    showPeople(made);
  }
  startPeople.sortBy = sortBy;
  listeners.push(() => {
    byId('people-group').value = String(state.group);
    people.rows = PAGE_ROWS;
    showPeople(made);
  });
  showPeople(made);
}

// The measure that is sorted by, and beside it what it is paid with.
function panelKeys(key) {
  const other = key === ACCURACY ? [KEPT, 'base_responses.kl_per_token'] : [ACCURACY];
  return [key, ...other.filter((one) => one !== key && isMeasured(one)).slice(0, 1)];
}

function showPeople(made) {
  const rows = askedFor();
  const several = state.person >= 0 && SEVERAL;
  const keys = columnsOf(state.run, state.person >= 0);
  const heads = [['person'], ...(several ? [['run']] : []), ...(hasGroups() ? [['group']] : []), ['pairs', 'number count'],
    ...keys.map((key) => [sortButton(key), kindOf(key), people.sort === key])];
  const body = element('tbody', { role: 'rowgroup' });
  for (const [run, row] of rows.slice(0, people.rows)) body.append(personRow(run, row, keys, several));
  byId('people-table').replaceChildren(tableHead(heads), body);
  byId('people-table').classList.toggle('one', state.person >= 0);
  byId('people-more').hidden = rows.length <= people.rows;
  const inChart = Math.min(peopleOf(rows).length, CHART_ROWS);
  const first = rows.length > inChart && state.person < 0 ? `The first ${inChart} of ${rows.length.toLocaleString('en')}. ` : '';
  byId('people-caption').replaceChildren(...(rows.length ? [first, 'Lines are 95% intervals', ...intervalsOf(), '.'] : ['Nobody of that name.']));
  byId('people-chart').hidden = !rows.length;
  byId('people-chart').setAttribute('aria-label', `${panelKeys(people.sort).map(titled).join(' and ')} of ${inChart} people, with intervals. The table below has the figures.`);
  setHeight(made, dotsHeight(inChart));
  made.draw();
}

const peopleOf = (rows) => [...new Set(rows.map(([run, row]) => RUNS[run].results.person[row]))];

const hasGroups = () => RUNS[state.run].results.group.some((group) => group >= 0);

function sortButton(key) {
  const again = people.sort === key ? !people.worstFirst : true;
  return element('button', { type: 'button', class: 'link', title: MEASURES.get(key).help, onclick: () => startPeople.sortBy(key, again) }, MEASURES.get(key).title);
}

function tableHead(heads) {
  const row = element('tr', { role: 'row' });
  for (const [content, kind, isSorted] of heads) {
    const order = isSorted ? ((MEASURES.get(people.sort).higher === true) === people.worstFirst ? 'ascending' : 'descending') : undefined;
    row.append(element('th', { role: 'columnheader', scope: 'col', class: kind || '', 'aria-sort': order }, content));
  }
  return element('thead', { role: 'rowgroup' }, row);
}

function personRow(run, row, keys, several) {
  const { results } = RUNS[run];
  const person = results.person[row];
  const name = element('button', { type: 'button', class: 'link', onclick: () => choose({ person: state.person === person ? -1 : person }) }, named(DATA.people[person]));
  const group = results.group[row];
  const cells = [
    ...(several ? [[named(RUNS[run].name), 'run', 'whole']] : []),
    ...(hasGroups() ? [[group < 0 ? '–' : named(DATA.groups[group]), 'group', 'group']] : []),
    [String(results.pairs[row]), 'pairs', 'number count'],
    ...keys.map((key) => [withRange(key, figureOf(run, row, key), boundsOf(run, row, key)), MEASURES.get(key).title, kindOf(key)]),
  ];
  return tableRow(name, cells, state.person === person);
}

// A person's line in the chart: a dot a run.
function personLine(person) {
  const dots = inFront().filter((run) => ROW_OF[run].has(person)).map((run) => ({
    run,
    figure: (key) => figureOf(run, ROW_OF[run].get(person), key),
    bounds: (key) => boundsOf(run, ROW_OF[run].get(person), key),
  }));
  return { name: DATA.people[person], id: person, dots };
}

// The groups of the run that is looked at; of a chosen person, the one they are in.
function groupsAskedFor() {
  const { groups, results } = RUNS[state.run];
  const own = groups.filter((row) => row.group === results.group[ROW_OF[state.run].get(state.person)]);
  return own.length ? own : groups;
}

function startGroups() {
  if (!RUNS.some((run) => run.groups.length)) return;
  reveal('groups');
  const linesOf = () => groupsAskedFor().slice(0, CHART_ROWS).map((row) => groupLine(row.group));
  const made = chart(byId('groups-chart'), () => dotsOptions(linesOf(), panelKeys(isMeasured(ACCURACY) ? ACCURACY : people.sort), widthOf(made)), {
    click: (event) => event.data?.[3] >= 0 && choose({ group: event.data[3], person: -1 }),
  });
  function show() {
    const groups = groupsAskedFor();
    const keys = columnsOf(state.run);
    const heads = [['group'], ['people', 'number'], ...keys.map((key) => [MEASURES.get(key).title, kindOf(key)]), ['worst off, by accuracy']];
    const body = element('tbody', { role: 'rowgroup' });
    for (const row of groups) body.append(groupRow(row, keys));
    byId('groups-table').replaceChildren(tableHead(heads), body);
    byId('groups-chart').hidden = !groups.length;
    byId('groups-chart').setAttribute('aria-label', 'Means of groups with intervals. The table below has the figures.');
    setHeight(made, dotsHeight(linesOf().length));
    made.draw();
  }
  listeners.push(show);
  show();
}

function groupRow(row, keys) {
  const name = element('button', { type: 'button', class: 'link', onclick: () => choose({ group: state.group === row.group ? -1 : row.group, person: -1 }) }, named(DATA.groups[row.group]));
  const cells = keys.map((key) => {
    const [mean, low, high] = row.values[key] || [null, null, null];
    return [withRange(key, mean, low === null ? null : [low, high]), MEASURES.get(key).title, kindOf(key)];
  });
  const [, , , worst, who] = row.values[ACCURACY] || [null, null, null, null, -1];
  const last = who < 0 ? '–' : element('span', {}, named(DATA.people[who]), ` ${shown(ACCURACY, worst)}`);
  return tableRow(name, [[row.people.toLocaleString('en'), 'people', 'number'], ...cells, [last, 'worst off', 'whole']], state.group === row.group);
}

const GROUP_OF = RUNS.map((run) => new Map(run.groups.map((row) => [row.group, row])));

function groupLine(group) {
  const dots = inFront().filter((run) => GROUP_OF[run].has(group)).map((run) => {
    const { values } = GROUP_OF[run].get(group);
    return {
      run,
      figure: (key) => values[key]?.[0] ?? null,
      bounds: (key) => (values[key] && values[key][1] !== null ? values[key].slice(1, 3) : null),
    };
  });
  return { name: DATA.groups[group], id: group, dots };
}
