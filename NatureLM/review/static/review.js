// The review page: one clip after the other, a verdict for each, by keyboard.

import { Clips, ask } from './clips.js';
import { Refused, Saving } from './saving.js';

const AHEAD = 2; // clips that are loaded before they are shown
const WORDS = { yes: 'Yes', no: 'No', unsure: 'Unsure' };
const KEYS = { y: 'yes', n: 'no', u: 'unsure', 1: 'yes', 2: 'no', 3: 'unsure' };
const element = (id) => document.getElementById(id);
const media = new Clips();
const sound = element('sound');

let folder; // what the server says of it: id, folder, clips
let reviewer = '';
let verdicts = new Map(); // number of a clip → what this reviewer said
let others = null; // reviewer → number → verdict, once this one is through
let reviewed = []; // { number, before }, to be taken back from the end
let current = null; // number of the clip that is shown; null when all are reviewed
const chosen = {}; // speed and height of the picture, once somebody has chosen them
let saving, tabs;

// settings, which the browser keeps

const SETTINGS = ['autoplay', 'open-only', 'blind', 'keys'];
const DEFAULTS = { autoplay: true, 'open-only': true, blind: false, keys: true };

function kept(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(`naturelm-review-${name}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function keep(name, value) {
  try {
    localStorage.setItem(`naturelm-review-${name}`, JSON.stringify(value));
  } catch {
    // without storage a setting lasts as long as the page
  }
}

const of = (name) => {
  const field = element(name);
  return field.type === 'checkbox' ? field.checked : field.value;
};

// what belongs to the clips

const nameOf = (clip) => clip.label || 'no answer';
const bySpecies = (number) => !of('species') || nameOf(folder.clips[number]) === of('species');

// A number that looks drawn by lot and is the same for a reviewer and a clip each time.
function lot(text) {
  let hash = 2166136261;
  for (const letter of text) hash = Math.imul(hash ^ letter.codePointAt(0), 16777619);
  hash = Math.imul(hash ^ (hash >>> 15), 2246822507);
  return (hash ^ (hash >>> 13)) >>> 0;
}

// Numbers of the clips of the chosen species, in the order in which they are gone through.
function order() {
  const numbers = folder.clips.map((_, number) => number).filter(bySpecies);
  if (!of('blind')) return numbers;
  const drawn = new Map(numbers.map((number) => [number, lot(reviewer + folder.clips[number].clip)]));
  return numbers.sort((a, b) => drawn.get(a) - drawn.get(b));
}

// The clips before the one that is shown, nearest first, reviewed or not.
function before() {
  const numbers = order();
  const here = numbers.indexOf(current);
  return (here < 0 ? numbers : numbers.slice(0, here)).reverse();
}

// The clips after the one that is shown, nearest first; once around the list.
function coming(isOpenOnly = of('open-only')) {
  const numbers = order();
  const here = numbers.indexOf(current);
  const around = [...numbers.slice(here + 1), ...numbers.slice(0, Math.max(here, 0))];
  return isOpenOnly ? around.filter((number) => !verdicts.has(number)) : around;
}

const clock = (seconds) => {
  const whole = Math.floor(seconds);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const shown = (parts[0] ? parts : parts.slice(1)).map((n, i) => (i ? String(n).padStart(2, '0') : n));
  const rest = Math.round((seconds - whole) * 10) % 10;
  return shown.join(':') + (rest ? `.${rest}` : '');
};

// what is shown

function made(tag, text, parts = {}) {
  const node = Object.assign(document.createElement(tag), parts);
  if (text !== undefined) node.textContent = text;
  return node;
}

function complain(text) {
  element('problem').textContent = text;
  element('problem').hidden = !text;
}

function showFacts(clip) {
  const isBlind = of('blind');
  const facts = [
    ['Confidence', clip.confidence === null ? 'not known' : isBlind ? 'hidden' : clip.confidence.toFixed(2)],
    ['Recording', clip.recording],
    ['Position', `${clock(clip.start)} to ${clock(clip.end)}`],
    ['Recorded', clip.time.replace(/^(\S{10})T([\d:.]+)/, '$1 $2 ').trim()],
    ['Site', clip.site],
  ];
  element('facts').replaceChildren(
    ...facts.filter(([, value]) => value).map(([name, value]) => {
      const fact = made('div');
      fact.append(made('dt', name), made('dd', value));
      return fact;
    }),
  );
}

// What a clip is drawn and heard with, where nobody has chosen anything: bats slower and whole.
function view(clip) {
  const isBat = clip.slowed > 1;
  const offered = [...element('slowed').options].map((option) => Number(option.value));
  const away = (times) => Math.abs(Math.log(times / clip.slowed));
  const nearest = offered.reduce((best, times) => (away(times) < away(best) ? times : best));
  return [chosen.slowed ?? String(nearest), chosen.tops ?? (isBat ? '0' : '12000')];
}

function load(number) {
  return media.get(number, ...view(folder.clips[number]));
}

async function showClip(number, { isAsked = true } = {}) {
  current = number;
  const clip = folder.clips[number];
  element('clip').hidden = false;
  element('done').hidden = true;
  sound.pause();
  sound.removeAttribute('src');
  element('label').replaceChildren(nameOf(clip));
  const science = clip.names.find((name) => name !== clip.label);
  if (science) element('label').append(' ', made('small', science));
  element('question').textContent = clip.question;
  showFacts(clip);
  showProgress();
  element('figure').classList.add('waits');
  element('loading').textContent = '';
  const late = setTimeout(() => (element('loading').textContent = 'Loading …'), 400);
  if (isAsked) element('label').focus({ preventScroll: true });
  try {
    const shown = await load(number);
    if (current !== number) return;
    showMedia(clip, shown);
    if (of('autoplay') && isAsked) play(true);
    coming().slice(0, AHEAD).forEach((next) => load(next).catch(() => {}));
  } catch (error) {
    if (current === number) element('loading').textContent = `This clip cannot be shown: ${error.message}`;
  } finally {
    clearTimeout(late);
  }
}

function showMedia(clip, shown) {
  const percent = (seconds) => `${Math.min(100, (100 * seconds) / shown.seconds)}%`;
  element('figure').classList.remove('waits');
  element('loading').textContent = '';
  element('picture').src = shown.picture;
  element('picture').alt = `Spectrogram, ${shown.seconds.toFixed(1)} seconds, 0 to ${shown.hertz / 1000} kHz`;
  const isPart = clip.to - clip.from < shown.seconds - 0.2;
  element('stretch').hidden = !isPart;
  element('stretch').style.left = percent(clip.from);
  element('stretch').style.width = percent(clip.to - clip.from);
  element('top').textContent = `${+(shown.hertz / 1000).toFixed(1)} kHz`;
  element('middle').textContent = `${+(shown.hertz / 2000).toFixed(1)}`;
  element('half').textContent = +(shown.seconds / 2).toFixed(1);
  element('length').textContent = `${+shown.seconds.toFixed(1)} s`;
  [element('slowed').value, element('tops').value] = view(clip);
  sound.src = shown.sound;
}

function showProgress() {
  const numbers = order();
  const open = numbers.filter((number) => !verdicts.has(number)).length;
  const place = numbers.indexOf(current) + 1;
  element('place').textContent = current === null ? '' : `Clip ${place} of ${numbers.length}`;
  element('count').textContent = `${numbers.length - open} of ${numbers.length} reviewed, ${open} to go`;
  element('bar').value = numbers.length ? (numbers.length - open) / numbers.length : 0;
  for (const button of document.querySelectorAll('[data-verdict]')) {
    const isGiven = verdicts.get(current) === button.dataset.verdict;
    button.setAttribute('aria-pressed', String(isGiven));
  }
  for (const id of ['undo', 'done-undo']) element(id).disabled = !reviewed.length;
  showSpecies();
}

// Clips, verdicts and kinds of verdicts of each species, in the order of their names.
function counted() {
  const counts = new Map();
  folder.clips.forEach((clip, number) => {
    const name = nameOf(clip);
    const count = counts.get(name) ?? { clips: 0, reviewed: 0, yes: 0, no: 0, unsure: 0 };
    counts.set(name, count);
    count.clips += 1;
    if (verdicts.has(number)) {
      count.reviewed += 1;
      count[verdicts.get(number)] += 1;
    }
  });
  return [...counts].sort(([a], [b]) => a.localeCompare(b));
}

function showSpecies() {
  const counts = counted();
  const select = element('species');
  if (select.options.length !== counts.length + 1) {
    select.replaceChildren(made('option', '', { value: '' }), ...counts.map(([name]) => made('option', '', { value: name })));
  }
  select.options[0].textContent = `all (${verdicts.size} of ${folder.clips.length})`;
  counts.forEach(([name, count], place) => {
    select.options[place + 1].textContent = `${name} (${count.reviewed} of ${count.clips})`;
  });
  element('species-rows').replaceChildren(...counts.map(([name, count]) => speciesRow(name, count)));
}

function speciesRow(name, count) {
  const row = made('tr');
  row.append(
    made('th', name, { scope: 'row' }),
    made('td', `${count.reviewed} of ${count.clips}`),
    made('td', count.yes),
    made('td', count.no),
  );
  return row;
}

async function showDone() {
  current = null;
  sound.pause();
  const isAll = verdicts.size === folder.clips.length;
  element('clip').hidden = true;
  element('done').hidden = false;
  element('all').hidden = isAll;
  element('done-title').textContent = isAll
    ? `All ${folder.clips.length} clips are reviewed`
    : `All clips of ${of('species')} are reviewed`;
  element('done-text').replaceChildren(...(isAll ? whatNext() : []));
  showProgress();
  element('done-title').focus({ preventScroll: true });
  if (isAll) await compare();
}

// What others said is told once the last verdict is on the server's disk.
async function compare() {
  if (saving.waiting().length) return;
  await refresh().catch(() => {});
  if (current === null) element('done-text').replaceChildren(...whatNext(), ...agreements());
}

function whatNext() {
  const command = made('p');
  command.append(made('code', `naturelm calibrate ${folder.folder}`));
  const total = (verdict) => [...verdicts.values()].filter((one) => one === verdict).length;
  return [
    made('p', `${total('yes')} yes, ${total('no')} no, ${total('unsure')} unsure.`),
    made('p', 'Your verdicts are kept in review.csv, beside the clips. What comes next:'),
    command,
    made('p', 'It says from which confidence on answers are right as often as you need, for each species. More clips of a species make that surer.', { className: 'quiet' }),
  ];
}

// How often others said the same, and where not, which is worth hearing together.
function agreements() {
  return Object.entries(others ?? {}).flatMap(([name, said]) => {
    const both = Object.keys(said).map(Number).filter((number) => verdicts.has(number));
    const apart = both.filter((number) => verdicts.get(number) !== said[number]);
    const list = made('ul');
    list.append(...apart.slice(0, 30).map((number) => {
      const item = made('li');
      const button = made('button', nameOf(folder.clips[number]), { type: 'button', className: 'plain' });
      button.addEventListener('click', () => showClip(number));
      item.append(button, ` you: ${WORDS[verdicts.get(number)]}, ${name}: ${WORDS[said[number]]}`);
      return item;
    }));
    return [made('p', `${name} said the same about ${both.length - apart.length} of ${both.length} clips.`), list];
  });
}

// what is done

function settle(number, verdict) {
  if (verdict) verdicts.set(number, verdict);
  else verdicts.delete(number);
}

function save(number, verdict) {
  const { clip } = folder.clips[number];
  settle(number, verdict);
  saving.put(clip, verdict);
  tabs?.postMessage({ reviewer, number, clip, verdict });
}

function judge(verdict) {
  if (current === null) return;
  complain('');
  reviewed.push({ number: current, before: verdicts.get(current) ?? '' });
  save(current, verdict);
  moveOn();
}

function moveOn() {
  const [next] = coming();
  // Whoever goes through all of them again comes to an end, too.
  const isEnd = !of('open-only') && order().at(-1) === current && !coming(true).length;
  if (next !== undefined && !isEnd) showClip(next);
  else if (current === null || verdicts.has(current)) showDone();
}

function moveBack() {
  const [last] = before();
  if (last !== undefined) showClip(last);
}

function undo() {
  const last = reviewed.pop();
  if (!last) return;
  save(last.number, last.before);
  if (!bySpecies(last.number)) element('species').value = '';
  showClip(last.number);
}

function play(isFromStart = false) {
  if (!sound.src) return;
  if (isFromStart) sound.currentTime = 0;
  else if (!sound.paused) {
    sound.pause();
    return;
  }
  sound.play().catch((error) => {
    if (error.name === 'NotAllowedError') complain('The browser lets sound begin only after a key or a click: press Space.');
  });
}

function followPlayhead() {
  if (sound.duration) element('playhead').style.left = `${(100 * sound.currentTime) / sound.duration}%`;
  if (!sound.paused) requestAnimationFrame(followPlayhead);
}

// Read what this reviewer has said so far; verdicts that are on their way count, too.
async function refresh() {
  const said = await (await ask(`api/verdicts?reviewer=${encodeURIComponent(reviewer)}`)).json();
  const isFirst = !verdicts.size;
  verdicts = new Map(said.verdicts);
  const numbers = new Map(folder.clips.map(({ clip }, number) => [clip, number]));
  for (const [clip, verdict] of saving.waiting()) {
    if (numbers.has(clip)) settle(numbers.get(clip), verdict);
  }
  others = said.others;
  if (isFirst) reviewed = said.verdicts.map(([number]) => ({ number, before: '' }));
}

async function send(clip, verdict) {
  try {
    await ask('api/verdicts', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ clip, verdict, reviewer }),
    });
  } catch (error) {
    if (error.status === 400 || error.status === 409) throw new Refused(error.message);
    throw error;
  }
}

function showSaving(problem) {
  const count = saving.waiting().length;
  element('unsaved').hidden = !problem || !count;
  if (problem instanceof Refused) complain(`A verdict was not taken: ${problem.message}`);
  if (!problem) {
    if (!count && current === null && verdicts.size === folder.clips.length) compare();
    return;
  }
  const them = count === 1 ? '1 verdict is' : `${count} verdicts are`;
  const advice = problem.status === 401 ? 'Open the address that was printed when the review began.' : 'It is tried again by itself.';
  element('unsaved-text').textContent = `${them} not saved yet, but kept in this browser: ${problem.message}. ${advice}`;
}

async function begin(name) {
  reviewer = name.normalize('NFC').trim().replace(/\s+/g, ' ');
  keep('reviewer', reviewer);
  history.replaceState(null, '', location.pathname); // loaded anew it knows the name that was chosen last
  verdicts = new Map();
  reviewed = [];
  tabs?.close();
  tabs = 'BroadcastChannel' in window ? new BroadcastChannel(`naturelm-review-${folder.id}`) : null;
  tabs?.addEventListener('message', ({ data }) => {
    if (data.reviewer !== reviewer || folder.clips[data.number]?.clip !== data.clip) return;
    settle(data.number, data.verdict);
    showProgress();
  });
  saving = new Saving(`naturelm-review-${folder.id}-${reviewer}`, send, showSaving);
  await refresh();
  element('ask-name').hidden = true;
  element('work').hidden = false;
  element('who').hidden = false;
  element('name').textContent = `You are ${reviewer}`;
  saving.run();
  current = null;
  const first = coming()[0] ?? (of('open-only') ? undefined : order()[0]);
  if (first === undefined) showDone();
  else showClip(first);
}

function askName() {
  sound.pause();
  element('work').hidden = true;
  element('who').hidden = true;
  element('ask-name').hidden = false;
  element('reviewer').value = reviewer;
  element('reviewer').focus();
}

// what listens

function onKey(event) {
  const field = event.target;
  const isTyping = field.matches?.('select, input:not([type=checkbox])') || !element('ask-name').hidden;
  if (isTyping || event.altKey || event.repeat) return;
  const key = event.key.toLowerCase();
  const isUndo = key === 'z' && (event.ctrlKey || event.metaKey);
  if (!isUndo && (event.ctrlKey || event.metaKey || !of('keys'))) return;
  const act = isUndo || key === 'z' ? undo
    : KEYS[key] ? () => judge(KEYS[key])
    : key === 'arrowright' ? moveOn
    : key === 'arrowleft' ? moveBack
    : key === 'r' ? () => play(true)
    : key === ' ' && !field.matches?.('button, input, summary, .table') ? () => play()
    : null;
  if (!act) return;
  event.preventDefault();
  act();
}

function onSetting(event) {
  const { id } = event.target;
  if (SETTINGS.includes(id)) keep(id, of(id));
  if (id === 'autoplay' || id === 'keys') return;
  const isView = id === 'slowed' || id === 'tops';
  if (isView) chosen[id] = of(id);
  if (isView && current !== null) showClip(current, { isAsked: false });
  else if (current !== null && bySpecies(current) && !(of('open-only') && verdicts.has(current))) showClip(current, { isAsked: false });
  else {
    current = null;
    moveOn();
  }
  // Else the next letter would choose another entry of the list.
  if (event.target.matches('select') && isPointer) element('label').focus({ preventScroll: true });
}

let isPointer = false;

function listen() {
  document.addEventListener('pointerdown', () => (isPointer = true), true);
  document.addEventListener('keydown', (event) => {
    isPointer = false;
    onKey(event);
  });
  document.addEventListener('change', onSetting);
  for (const button of document.querySelectorAll('[data-verdict]')) {
    button.addEventListener('click', () => judge(button.dataset.verdict));
  }
  const clicks = { play: () => play(), undo, 'done-undo': undo, back: moveBack, on: moveOn, rename: askName };
  for (const [id, act] of Object.entries(clicks)) element(id).addEventListener('click', act);
  element('retry').addEventListener('click', () => saving.run());
  element('all').addEventListener('click', () => {
    element('species').value = '';
    moveOn();
  });
  element('again').addEventListener('click', () => {
    element('open-only').checked = false;
    showClip(order()[0]);
  });
  element('ask-name').addEventListener('submit', (event) => {
    event.preventDefault();
    begin(element('reviewer').value).then(() => complain(''), (error) => complain(error.message));
  });
  element('spectrogram').addEventListener('click', (event) => {
    const box = element('spectrogram').getBoundingClientRect();
    if (!sound.duration) return;
    sound.currentTime = (sound.duration * (event.clientX - box.left)) / box.width;
    followPlayhead();
    if (sound.paused) play();
  });
  sound.addEventListener('play', followPlayhead);
  for (const name of ['play', 'pause', 'ended', 'emptied']) {
    sound.addEventListener(name, () => (element('play-word').textContent = sound.paused ? 'Play' : 'Pause'));
  }
  window.addEventListener('online', () => saving?.run());
  window.addEventListener('beforeunload', (event) => {
    if (saving?.waiting().length) event.preventDefault();
  });
  document.addEventListener('visibilitychange', () => {
    if (document.visibilityState === 'visible' && saving) refresh().then(showProgress, () => {});
  });
}

async function start() {
  for (const name of SETTINGS) element(name).checked = kept(name, DEFAULTS[name]) === true;
  listen();
  folder = await (await ask('api/clips')).json();
  element('folder').textContent = folder.title;
  document.title = `Review of ${folder.title}`;
  showSpecies();
  const named = new URLSearchParams(location.search).get('reviewer') ?? kept('reviewer', '');
  if (named) await begin(named);
  else askName();
}

start().catch((error) => complain(`The clips cannot be shown: ${error.message}`));
