// Everything in its place, what is chosen said at the foot of the page, and what is left.

function startIdentities() {
  if (!RUNS.some((run) => run.identities.length)) return;
  reveal('identities');
  runSelect('identities-run');
  const share = (figure) => (figure === null ? '–' : `${(figure / 10).toFixed(1)}%`);
  const points = (figure) => `${figure > 0 ? '+' : ''}${withMinus((figure / 10).toFixed(1))}`;
  function show() {
    const heads = [['group'], ...['pairs', 'right identity', 'another', 'none', 'right less another, points'].map((title) => [title, 'number'])];
    const rows = RUNS[state.run].identities.map(([name, pairs, right, random, missing, apart, low, high]) => tableRow(named(name), [
      [String(pairs), 'pairs', 'number'],
      [share(right), 'right identity', 'number'],
      [share(random), 'another', 'number'],
      [share(missing), 'none', 'number'],
      [apart === null ? '–' : `${points(apart)}${low === null ? '' : ` (${points(low)} to ${points(high)})`}`, 'right less another', 'number'],
    ]));
    byId('identities-table').replaceChildren(tableHead(heads), element('tbody', { role: 'rowgroup' }, ...rows));
  }
  listeners.push(show);
  show();
}

function startSkipped() {
  const skipped = RUNS.flatMap((run) => run.skipped.map(([person, reason]) => [run, person, reason]));
  if (!skipped.length) return;
  reveal('skipped');
  byId('skipped-list').append(...skipped.map(([run, person, reason]) => element('li', {}, named(DATA.people[person]), SEVERAL ? ` (${run.name})` : '', reason ? `: ${reason}` : '')));
}

function startSelection() {
  byId('selection-clear').addEventListener('click', () => choose({ person: -1, group: -1 }));
  listeners.push(() => {
    byId('selection').hidden = state.person < 0 && state.group < 0;
    const who = state.person >= 0 ? DATA.people[state.person] : state.group >= 0 ? `the group ${DATA.groups[state.group]}` : '';
    byId('selection-text').replaceChildren('Showing only ', element('strong', {}, named(who)));
  });
}

startSelection();
startTradeoff();
startPeople();
startGroups();
startCross();
startAnswers();
startIdentities();
startTraining();
startSkipped();
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && (state.person >= 0 || state.group >= 0)) choose({ person: -1, group: -1 });
});
