// The timeline of a recording: a spectrogram that can be zoomed, under it the windows in colours.
// It is the body of a function that Gradio calls with element, props, server and watch. All texts
// of models and users become text nodes; nothing is ever parsed as HTML.
const frame = element.querySelector('.tl');
const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400];
const SHORTEST = 0.5;
const state = { key: null, data: null, view: [0, 1], selected: -1, drawn: null, asked: 0 };
const parts = {};

const make = (tag, names, parent, text) => {
  const made = document.createElement(tag);
  if (names) made.className = names;
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
};

const say = (seconds) => {
  const tenths = Math.round(seconds * 10);
  const [hours, minutes] = [Math.floor(tenths / 36000), Math.floor(tenths / 600) % 60];
  const rest = tenths % 600;
  const shown = String(Math.floor(rest / 10)).padStart(2, '0') + (rest % 10 ? `.${rest % 10}` : '');
  return hours ? `${hours}:${String(minutes).padStart(2, '0')}:${shown}` : `${minutes}:${shown}`;
};

const percent = (share) => (share === null ? '' : `${Math.round(100 * share)} %`);

const build = () => {
  frame.replaceChildren();
  const tools = make('div', 'tl-tools', frame);
  const button = (label, action) => {
    const made = make('button', 'tl-button', tools, label);
    made.type = 'button';
    made.addEventListener('click', action);
  };
  button('Earlier', () => pan(-0.5));
  button('Later', () => pan(0.5));
  button('Zoom in', () => zoom(0.5));
  button('Zoom out', () => zoom(2));
  button('Whole recording', () => show(0, state.data.seconds));
  parts.range = make('span', 'tl-range', tools);
  parts.range.setAttribute('aria-live', 'polite');

  parts.picture = make('div', 'tl-picture', frame);
  parts.image = make('img', 'tl-image', parts.picture);
  parts.image.alt = '';
  parts.image.draggable = false;
  parts.chosen = make('div', 'tl-chosen', parts.picture);
  parts.note = make('div', 'tl-note', parts.picture);
  parts.note.setAttribute('role', 'status');
  parts.kilohertz = make('div', 'tl-kilohertz', parts.picture);
  parts.kilohertz.setAttribute('aria-hidden', 'true');
  parts.lane = make('div', 'tl-lane', frame);
  parts.lane.tabIndex = 0;
  parts.lane.setAttribute('role', 'listbox');
  parts.axis = make('div', 'tl-axis', frame);
  parts.axis.setAttribute('aria-hidden', 'true');
  parts.legend = make('ul', 'tl-legend', frame);
  parts.legend.setAttribute('aria-label', 'Colours');
  parts.detail = make('div', 'tl-detail clip', frame);
  parts.detail.hidden = true;
  listenToPointer();
  parts.lane.addEventListener('keydown', onKey);
};

const onKey = (event) => {
  const last = state.data.windows.length - 1;
  const to = {
    ArrowLeft: state.selected - 1,
    ArrowRight: state.selected + 1,
    PageUp: state.selected - 10,
    PageDown: state.selected + 10,
    Home: 0,
    End: last,
  }[event.key];
  if (to !== undefined && last >= 0) {
    select(Math.min(last, Math.max(0, to)));
  } else if (event.key === 'Enter' || event.key === ' ') {
    const audio = parts.detail.querySelector('audio');
    if (audio) (audio.paused ? audio.play() : audio.pause());
  } else if (event.key === '+' || event.key === '=') {
    zoom(0.5);
  } else if (event.key === '-') {
    zoom(2);
  } else if (event.key === '0') {
    show(0, state.data.seconds);
  } else {
    return;
  }
  event.preventDefault();
};

const timeAt = (event) => {
  const box = parts.picture.getBoundingClientRect();
  const [from, to] = state.view;
  return from + ((event.clientX - box.left) / box.width) * (to - from);
};

const listenToPointer = () => {
  let down = null;
  parts.picture.addEventListener('pointerdown', (event) => {
    down = { x: event.clientX, view: state.view.slice(), moved: false };
    parts.picture.setPointerCapture(event.pointerId);
  });
  parts.picture.addEventListener('pointermove', (event) => {
    if (!down) return;
    const width = parts.picture.getBoundingClientRect().width;
    const shift = ((down.x - event.clientX) / width) * (down.view[1] - down.view[0]);
    if (Math.abs(event.clientX - down.x) > 4) down.moved = true;
    if (down.moved) show(down.view[0] + shift, down.view[1] + shift);
  });
  parts.picture.addEventListener('pointerup', (event) => {
    const clicked = down && !down.moved;
    down = null;
    if (clicked) selectAt(timeAt(event));
  });
  parts.picture.addEventListener('pointercancel', () => { down = null; });
  parts.picture.addEventListener('dblclick', (event) => zoom(0.25, timeAt(event)));
  parts.picture.addEventListener('wheel', (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    zoom(event.deltaY < 0 ? 0.7 : 1 / 0.7, timeAt(event));
  }, { passive: false });
  parts.lane.addEventListener('click', (event) => {
    const option = event.target.closest('[data-index]');
    if (option) select(Number(option.dataset.index));
  });
};

const selectAt = (time) => {
  const found = state.data.windows.findIndex((one) => one.start <= time && time < one.end);
  if (found >= 0) select(found);
};

const show = (from, to) => {
  const whole = state.data.seconds;
  const length = Math.min(whole, Math.max(Math.min(SHORTEST, whole), to - from));
  const start = Math.min(Math.max(0, from), whole - length);
  state.view = [start, start + length];
  place();
  askPicture();
};

const pan = (share) => {
  const [from, to] = state.view;
  show(from + share * (to - from), to + share * (to - from));
};

const zoom = (factor, around) => {
  const [from, to] = state.view;
  const chosen = state.data.windows[state.selected];
  let middle = around;
  if (middle === undefined) middle = (from + to) / 2;
  if (around === undefined && chosen && chosen.end > from && chosen.start < to) {
    middle = (chosen.start + chosen.end) / 2;
  }
  show(middle - (middle - from) * factor, middle + (to - middle) * factor);
};

const place = () => {
  const [from, to] = state.view;
  const left = (time) => (100 * (time - from)) / (to - from);
  const put = (thing, start, end) => {
    thing.style.left = `${left(start)}%`;
    thing.style.width = `${(100 * (end - start)) / (to - from)}%`;
  };
  for (const option of parts.lane.children) {
    const one = state.data.windows[Number(option.dataset.index)];
    put(option, one.start, one.end);
  }
  const shortest = state.data.windows.reduce((least, one) => Math.min(least, one.end - one.start), to);
  parts.lane.classList.toggle('dense', (shortest / (to - from)) * parts.lane.clientWidth < 6);
  if (state.drawn) put(parts.image, state.drawn[0], state.drawn[1]);
  const chosen = state.data.windows[state.selected];
  parts.chosen.hidden = !chosen;
  if (chosen) put(parts.chosen, chosen.start, chosen.end);
  parts.range.textContent = `${say(from)} to ${say(to)}`;
  parts.picture.dataset.from = from;
  parts.picture.dataset.to = to;
  placeTicks(from, to, left);
};

const placeTicks = (from, to, left) => {
  parts.axis.replaceChildren();
  const most = Math.max(2, Math.floor(parts.axis.clientWidth / 90));
  const step = STEPS.find((one) => (to - from) / one <= most) || STEPS[STEPS.length - 1];
  for (let n = Math.ceil(from / step - 1e-9); n * step <= to + 1e-9; n += 1) {
    const tick = make('span', 'tl-tick', parts.axis, say(n * step));
    const at = left(n * step);
    tick.style.left = `${at}%`;
    if (at < 4) tick.classList.add('first');
    if (at > 96) tick.classList.add('last');
  }
};

const askPicture = () => {
  clearTimeout(state.timer);
  state.timer = setTimeout(drawPicture, state.drawn ? 200 : 0);
};

const drawPicture = async () => {
  const [from, to] = state.view;
  const asked = (state.asked += 1);
  parts.note.textContent = 'Drawing the spectrogram …';
  const { job, recording } = state.data;
  const columns = Math.round(parts.picture.clientWidth * Math.min(2, window.devicePixelRatio || 1));
  const found = await ask('stretch', { job, recording, start: from, end: to, columns });
  if (asked !== state.asked) return;
  parts.note.textContent = found.error || '';
  if (!found.picture) return;
  parts.image.src = `data:image/png;base64,${found.picture}`;
  parts.kilohertz.textContent = `${found.kilohertz} kHz`;
  state.drawn = [from, to];
  place();
};

const ask = async (name, wanted) => {
  try {
    return await server[name](wanted);
  } catch {
    return { error: 'The app does not answer. Is it still running?' };
  }
};

const select = (index) => {
  state.selected = index;
  const one = state.data.windows[index];
  for (const option of parts.lane.children) {
    option.setAttribute('aria-selected', String(Number(option.dataset.index) === index));
  }
  parts.lane.setAttribute('aria-activedescendant', `${parts.lane.id}-${index}`);
  const [from, to] = state.view;
  if (one.start < from || one.end > to) {
    const middle = (one.start + one.end) / 2;
    show(middle - (to - from) / 2, middle + (to - from) / 2);
  } else {
    place();
  }
  detail(index);
};

const detail = async (index) => {
  const { job, recording, windows } = state.data;
  const one = windows[index];
  parts.detail.hidden = false;
  parts.detail.replaceChildren();
  parts.detail.dataset.index = index;
  const head = make('p', 'tl-answer', parts.detail);
  make('strong', '', head, `${say(one.start)} to ${say(one.end)}`);
  make('span', '', head, ` ${one.text}`);
  if (one.confidence !== null) make('span', 'tl-confidence', head, ` ${percent(one.confidence)}`);
  const note = make('p', 'tl-detail-note', parts.detail, 'Fetching the sound …');
  note.setAttribute('role', 'status');
  const found = await ask('listen', { job, recording, start: one.start, end: one.end });
  if (state.selected !== index || state.data.recording !== recording) return;
  note.textContent = found.error || '';
  if (!found.sound) return;
  note.remove();
  const seek = make('div', 'spectrogram', parts.detail);
  seek.dataset.seek = '';
  const image = make('img', '', seek);
  image.alt = 'Spectrogram of the chosen window';
  image.src = `data:image/png;base64,${found.picture}`;
  make('div', 'playhead', seek);
  const audio = make('audio', '', parts.detail);
  audio.controls = true;
  audio.setAttribute('aria-label', `Sound from ${say(one.start)} to ${say(one.end)}`);
  audio.src = `data:audio/wav;base64,${found.sound}`;
};

const fill = () => {
  const { windows, legend, name } = state.data;
  parts.lane.id = `${element.id}-lane`;
  parts.lane.setAttribute('aria-label', `Windows of ${name}: arrow keys move, Enter plays`);
  parts.lane.replaceChildren(...windows.map((one, index) => {
    const style = legend[one.colour].style;
    const option = make('div', `tl-window tl-${style}`);
    option.id = `${parts.lane.id}-${index}`;
    option.setAttribute('role', 'option');
    option.setAttribute('aria-selected', String(index === state.selected));
    option.setAttribute('aria-label', `${say(one.start)} to ${say(one.end)}: ${one.text}`);
    Object.assign(option.dataset, { index, start: one.start, end: one.end, text: one.text });
    option.dataset.confidence = one.confidence === null ? '' : one.confidence;
    option.dataset.style = style;
    option.title = `${say(one.start)} to ${say(one.end)}: ${one.text} ${percent(one.confidence)}`;
    return option;
  }));
  parts.legend.replaceChildren(...legend.map((one) => {
    const item = make('li', '');
    make('span', `tl-key tl-${one.style}`, item).setAttribute('aria-hidden', 'true');
    make('span', 'tl-label', item, one.label);
    make('span', 'tl-count', item, String(one.count));
    return item;
  }));
};

const update = () => {
  let data = null;
  try { data = JSON.parse(props.value || 'null'); } catch { data = null; }
  frame.hidden = !data || !data.seconds;
  if (frame.hidden) {
    state.key = null;
    return;
  }
  const key = `${data.job}/${data.recording}`;
  const isNew = key !== state.key;
  const before = isNew ? undefined : state.data.windows[state.selected];
  Object.assign(state, { key, data });
  if (isNew) {
    Object.assign(state, { selected: -1, drawn: null, view: [0, data.seconds] });
    build();
  } else if (before) {
    state.selected = data.windows.findIndex((one) => one.start === before.start);
  }
  fill();
  place();
  if (isNew) askPicture();
};

const focus = () => {
  const start = Number(props.focus);
  if (!state.data || !(start >= 0)) return;
  const { windows } = state.data;
  let found = windows.findIndex((one) => one.start === start);
  if (found < 0) found = windows.findIndex((one) => one.start <= start && start < one.end);
  if (found >= 0) select(found);
};

watch('value', update);
watch('focus', focus);
new ResizeObserver(() => { if (!frame.hidden && parts.axis) place(); }).observe(frame);
update();
