// One clip is heard at a time.
(() => {
  const sounds = [...document.querySelectorAll("audio")];
  for (const sound of sounds) {
    sound.addEventListener("play", () => {
      sounds.filter((other) => other !== sound).forEach((other) => other.pause());
    });
  }
})();
