// Sounds and pictures of clips, loaded ahead. A clip that is shown is in memory as a whole, so it
// can be played from anywhere at once.

const MOST = 8; // clips that are kept

export class Clips {
  constructor() {
    this.loading = new Map();
  }

  // What is shown of a clip: { sound, picture, seconds, hertz }, the first two as addresses.
  get(number, slowed, top) {
    const key = `${number} ${slowed} ${top}`;
    const found = this.loading.get(key) ?? load(number, slowed, top);
    this.loading.delete(key);
    this.loading.set(key, found); // the one that was asked for last goes last
    found.catch(() => this.loading.delete(key));
    while (this.loading.size > MOST) {
      const [oldest, made] = this.loading.entries().next().value;
      this.loading.delete(oldest);
      made.then(({ sound, picture }) => [sound, picture].forEach((one) => URL.revokeObjectURL(one)), () => {});
    }
    return found;
  }
}

async function load(number, slowed, top) {
  const [sound, picture] = await Promise.all([
    ask(`api/clips/${number}/sound?slowed=${slowed}`),
    ask(`api/clips/${number}/picture?top=${top}`),
  ]);
  return {
    seconds: Number(picture.headers.get('x-seconds')),
    hertz: Number(picture.headers.get('x-hertz')),
    sound: URL.createObjectURL(await sound.blob()),
    picture: URL.createObjectURL(await picture.blob()),
  };
}

// A response that is one of success; else an error with the server's sentence and its status.
export async function ask(address, options = {}) {
  let response;
  try {
    response = await fetch(address, options);
  } catch {
    throw new Error('the computer that shows this page does not answer');
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  const error = new Error(said.detail ?? `the server answers ${response.status}`);
  error.status = response.status;
  throw error;
}
