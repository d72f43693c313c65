// Python in a Web Worker, the playground's: it is started, asked, and started again if an answer never ends.

export class Python {
  /** sources: files to load, from the playground's folder; module: whose functions are asked for; state: told "starting", "ready", "failed". */
  constructor({ sources, module }, state) {
    this.options = { sources, module };
    this.state = state;
    this.start();
  }

  start() {
    this.worker?.terminate();
    this.ready = false;
    this.waiting = new Map();
    this.next = 0;
    this.worker = new Worker(new URL("../playground/worker.js", import.meta.url));
    this.worker.addEventListener("message", ({ data }) => {
      if (data.failed) return this.state("failed", data.failed);
      if (data.ready) {
        this.ready = true;
        return this.state("ready");
      }
      this.waiting.get(data.id)?.(data.result);
      this.waiting.delete(data.id);
    });
    this.worker.addEventListener("error", ({ message }) => this.state("failed", message));
    this.state("starting");
    this.worker.postMessage(this.options);
  }

  /** What a function of the module returns; null if that takes longer than `seconds`, after which Python starts again. */
  ask(name, parameters, seconds) {
    return new Promise((resolve) => {
      const id = this.next++;
      const timer = setTimeout(() => {
        this.start();
        resolve(null);
      }, 1000 * seconds);
      this.waiting.set(id, (result) => {
        clearTimeout(timer);
        resolve(result);
      });
      this.worker.postMessage({ id, request: { function: name, arguments: parameters } });
    });
  }
}
