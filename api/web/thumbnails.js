// Previews, fetched when they scroll into view, a few at a time, and released with the page that showed them.

import { send } from "./client.js";

const AT_ONCE = 3; // browsers hold six connections to a host, and reviews must not wait behind pictures
const TRIES = 4;

export class Thumbnails {
  #stop = new AbortController();
  #urls = [];
  #waiting = [];
  #running = 0;
  #seen = new IntersectionObserver((entries) => this.#look(entries), { rootMargin: "400px" });
  #paths = new Map();

  /** Fill `image` from `path` once it is about to be seen. */
  add(image, path) {
    this.#paths.set(image, path);
    this.#seen.observe(image);
  }

  /** Stop pending requests, and release the memory. */
  clear() {
    this.#stop.abort();
    this.#seen.disconnect();
    this.#urls.forEach((url) => URL.revokeObjectURL(url));
  }

  #look(entries) {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      this.#seen.unobserve(target);
      this.#waiting.push(target);
    }
    this.#next();
  }

  #next() {
    while (this.#running < AT_ONCE && this.#waiting.length) {
      this.#running += 1;
      this.#fill(this.#waiting.shift()).finally(() => {
        this.#running -= 1;
        this.#next();
      });
    }
  }

  async #fill(image) {
    try {
      const blob = await this.#fetch(this.#paths.get(image));
      if (this.#stop.signal.aborted) return;
      const url = URL.createObjectURL(blob);
      this.#urls.push(url);
      image.src = url;
      await image.decode();
      image.parentElement.dataset.picture = "shown";
    } catch (error) {
      if (this.#stop.signal.aborted) return;
      image.parentElement.dataset.picture = error.status === 404 ? "unreadable" : "missing";
    }
  }

  async #fetch(path) {
    for (let tries = 1; ; tries += 1) {
      try {
        const response = await send("GET", path, { signal: this.#stop.signal });
        return await response.blob();
      } catch (error) {
        if (error.status !== 503 || tries === TRIES) throw error;
        await new Promise((resolve) => setTimeout(resolve, 1000 * (error.retryAfter ?? 1)));
        this.#stop.signal.throwIfAborted();
      }
    }
  }
}
