// Verdicts on their way to the server. They wait in the browser's storage until the server has
// said that they are on its disk, so that neither a failing network nor a closed page loses one.

const WAITS = [1, 2, 5, 10, 30]; // seconds until the next try

export class Refused extends Error {} // the server will never take it

export class Saving {
  // key: of the storage, one for each folder and reviewer; all tabs share it
  // send: takes a clip and a verdict; rejects with Refused, or with anything else to be tried again
  // changed: called with an error or null whenever something was kept, saved or failed
  constructor(key, send, changed) {
    Object.assign(this, { key, send, changed, memory: [], isBusy: false, failures: 0 });
  }

  // [clip, verdict] of those that are not saved yet, oldest first.
  waiting() {
    try {
      const kept = JSON.parse(localStorage.getItem(this.key) ?? '[]');
      return Array.isArray(kept) ? kept.filter((one) => Array.isArray(one) && one.length === 2) : [];
    } catch {
      return this.memory;
    }
  }

  put(clip, verdict) {
    this.keep([...this.waiting().filter(([other]) => other !== clip), [clip, verdict]]);
    this.run();
  }

  // Try at once, however long it would be until the next time.
  run() {
    clearTimeout(this.timer);
    if (!this.isBusy) this.work();
  }

  keep(waiting) {
    this.memory = waiting;
    try {
      if (waiting.length) localStorage.setItem(this.key, JSON.stringify(waiting));
      else localStorage.removeItem(this.key);
    } catch {
      // Private windows may have no storage; the page says that it must not be closed.
    }
  }

  async work() {
    this.isBusy = true;
    let problem = null;
    // Read anew each time: another tab may have saved it, or the verdict may be another by now.
    for (let next = this.waiting()[0]; next && !problem; next = this.waiting()[0]) {
      try {
        await this.send(...next);
        this.forget(next);
        this.failures = 0;
        this.changed(null);
      } catch (error) {
        if (error instanceof Refused) this.forget(next);
        problem = error;
      }
    }
    this.isBusy = false;
    if (!problem) return;
    this.changed(problem);
    if (this.waiting().length) {
      const seconds = WAITS[Math.min(this.failures++, WAITS.length - 1)];
      this.timer = setTimeout(() => this.run(), 1000 * seconds);
    }
  }

  forget([clip, verdict]) {
    this.keep(this.waiting().filter((one) => one[0] !== clip || one[1] !== verdict));
  }
}
