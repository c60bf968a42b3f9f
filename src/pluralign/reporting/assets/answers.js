// Answers of base and person side by side, with what only one of them says marked.

const MARKED = { '-': 'del', '+': 'ins' };
const answersOf = RUNS.map((run) => new Map(run.answers));

function startAnswers() {
  if (!RUNS.some((run) => run.answers.length)) return;
  reveal('answers');
  runSelect('answers-run');
  const select = byId('answers-person');
  select.addEventListener('change', () => showAnswers(Number(select.value)));
  let shownRun = -1;
  function show() {
    const own = answersOf[state.run];
    if (shownRun !== state.run) fill(select, RUNS[state.run].answers.map(([person]) => [person, DATA.people[person]]));
    shownRun = state.run;
    if (state.person >= 0 && own.has(state.person)) select.value = String(state.person);
    if (state.person >= 0 && !own.has(state.person)) showAnswers(-1);
    else showAnswers(own.size ? Number(select.value) : -1);
  }
  listeners.push(show);
  show();
}

function showAnswers(person) {
  const own = answersOf[state.run].get(person);
  const kept = answersOf[state.run].size;
  byId('answers-note').textContent = own
    ? `${DATA.people[person]}: ${counted(own.length, 'answer', 'answers')}.${kept < RUNS[state.run].measured ? ` The page has answers of ${counted(kept, 'person', 'people')}, the worst served and a sample.` : ''}`
    : 'The page has no answers of this person; evaluation.json may have.';
  byId('answers-list').replaceChildren(...(own || []).map((answer) => answerOf(person, answer)));
}

function answerOf(person, answer) {
  const side = (title, kinds, extra) => element('div', {}, element('h3', {}, title, ...extra), said(answer.pieces.filter(([kind]) => kinds.includes(kind))));
  const wanted = answer.chosen ? [element('p', { class: 'wanted said' }, 'Preferred in the data: ', named(answer.chosen))] : [];
  return element('article', { class: 'answer' },
    element('p', { class: 'prompt', dir: 'auto' }, answer.prompt),
    element('div', { class: 'sides' }, side('base', '=-', []), side(named(DATA.people[person]), '=+', verdictOf(answer)), ...wanted));
}

function said(pieces) {
  const text = element('p', { class: 'said', dir: 'auto' });
  for (const [kind, piece] of pieces) text.append(kind in MARKED ? element(MARKED[kind], {}, piece) : piece);
  if (!pieces.length) text.append(element('span', { class: 'verdict' }, '(nothing)'));
  return text;
}

function verdictOf({ style: inStyle, right, degenerate }) {
  const found = [];
  const verdict = (text, isBad) => found.push(' · ', element('span', { class: isBad ? 'verdict bad' : 'verdict' }, text));
  if (inStyle !== null && inStyle !== undefined) verdict(inStyle ? 'wanted style' : 'not the wanted style', !inStyle);
  if (right !== null && right !== undefined) verdict(right ? 'right fact' : 'wrong fact', !right);
  if (degenerate) verdict('degenerate', true);
  return found;
}
