// Players: the playhead follows the sound, a click into the picture goes there, and the button of
// a window shows which one is chosen. All of it by listening at the document, because Gradio
// replaces the elements whenever something changes.
(() => {
  const figureOf = (element) => element.closest('.clip, .timeline');

  const draw = (audio) => {
    const figure = figureOf(audio);
    const head = figure && figure.querySelector('.playhead');
    if (!head || !audio.duration) return;
    head.style.left = `${(100 * audio.currentTime) / audio.duration}%`;
    head.classList.toggle('moving', audio.currentTime > 0);
  };

  const follow = (audio) => {
    draw(audio);
    if (audio.isConnected && !audio.paused && !audio.ended) {
      requestAnimationFrame(() => follow(audio));
    }
  };

  document.addEventListener('play', (event) => {
    for (const other of document.querySelectorAll('audio')) {
      if (other !== event.target) other.pause();
    }
    follow(event.target);
  }, true);
  for (const kind of ['timeupdate', 'seeked', 'ended']) {
    document.addEventListener(kind, (event) => draw(event.target), true);
  }

  document.addEventListener('click', (event) => {
    const place = event.target.closest('[data-seek]');
    const choice = event.target.closest('[data-action="choose"]');
    const figure = figureOf(event.target);
    const audio = figure && figure.querySelector('audio');
    if (place && audio && audio.duration) {
      const box = place.getBoundingClientRect();
      audio.currentTime = ((event.clientX - box.left) / box.width) * audio.duration;
    }
    if (choice) {
      for (const one of figure.querySelectorAll('[data-action="choose"]')) {
        one.setAttribute('aria-pressed', String(one === choice));
      }
      const seconds = Number(figure.dataset.seconds);
      const [start, end] = [Number(choice.dataset.start), Number(choice.dataset.end)];
      const here = figure.querySelector('.here');
      here.style.left = `${(100 * start) / seconds}%`;
      here.style.width = `${(100 * (end - start)) / seconds}%`;
      if (audio && audio.duration) audio.currentTime = (start / seconds) * audio.duration;
    }
  });
})();
