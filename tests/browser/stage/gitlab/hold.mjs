// What an instance does not answer yet, so that a test can look at what passes for as long as it takes.

export class Hold {
  #path;
  #free;
  #released;
  #release;

  // path: a regular expression on what comes after the root. after: so many are answered at once.
  constructor(path, after) {
    this.#path = path;
    this.#free = after;
    this.#released = new Promise((resolve) => (this.#release = resolve));
  }

  // Comes back when the request may be answered.
  async pass(path) {
    if (!this.#path.test(path)) return;
    this.#free -= 1;
    if (this.#free < 0) await this.#released;
  }

  // All are answered, whether they wait already or come later.
  release() {
    this.#release();
  }
}
