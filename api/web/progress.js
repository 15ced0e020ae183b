// The run itself: its live progress, and the buttons that steer it.

import { events, json } from "./client.js";
import { ask, byId, count, duration, lastPart, outcome, say } from "./elements.js";

const OVER = new Set(["succeeded", "failed", "cancelled"]);
const AGAIN = 2000; // milliseconds until a stream that broke is opened again

export const isOver = (dataset) => OVER.has(dataset.status);

export class Progress {
  #path;
  #dataset = null;
  #told;
  #watching = false;

  /** @param {(dataset: Object) => void} told called with each new state of the run */
  constructor(path, told) {
    this.#path = path;
    this.#told = told;
    byId("pause").onclick = () => this.#steer("pause", "Paused.");
    byId("resume").onclick = () => this.#steer("resume", "The run continues.");
    byId("retry").onclick = () => this.#steer("retry?failed_only=true", "The failed images run again.");
    byId("export").onclick = () => this.#export();
    byId("cancel").onclick = () => this.#cancel();
  }

  get live() {
    return this.#dataset !== null && !isOver(this.#dataset);
  }

  /** Follow the run until it is over. */
  async watch() {
    if (this.#watching) return;
    this.#watching = true;
    try {
      do {
        try {
          for await (const dataset of events(`${this.#path}/events`)) this.#show(dataset);
        } catch (error) {
          if (error.status >= 400 && error.status < 500) throw error;
          await new Promise((resolve) => setTimeout(resolve, AGAIN));
        }
      } while (this.#dataset === null || this.live);
    } catch (error) {
      say(error.message, { bad: true });
    } finally {
      this.#watching = false;
    }
  }

  #show(dataset) {
    this.#dataset = dataset;
    const { progress, request, status, paused } = dataset;
    const shown = paused && !isOver(dataset) ? "paused" : status;
    byId("source").textContent = lastPart(request.source);
    byId("places").textContent = `${request.source}${request.destination ? ` → ${request.destination}` : ""}`;
    document.title = `${lastPart(request.source)} · Tuwen 图文`;
    byId("run-status").textContent = request.dry_run ? `dry run ${shown}` : shown;
    byId("run-status").className = `badge ${shown}`;
    byId("bar").max = Math.max(1, progress.images);
    byId("bar").value = progress.done + progress.failed;
    byId("figures").textContent = figures(dataset).join(" · ");
    byId("run-error").hidden = !dataset.error;
    byId("run-error").textContent = dataset.error ? `${dataset.error.code}: ${dataset.error.detail}` : "";
    byId("pause").hidden = paused || isOver(dataset);
    byId("resume").hidden = !paused || isOver(dataset);
    byId("cancel").hidden = isOver(dataset);
    byId("retry").hidden = !isOver(dataset) || !progress.failed;
    byId("retry").title = progress.failed === progress.final ? "Mend the source first" : "";
    byId("export").hidden = !isOver(dataset) || request.dry_run || !progress.images;
    byId("export").title = request.destination ? `to ${request.destination}` : "";
    this.#told(dataset);
  }

  async #steer(how, done, body) {
    try {
      this.#show(await json("POST", `${this.#path}/${how}`, { body }));
      say(done);
      this.watch();
    } catch (error) {
      say(error.message, { bad: true });
    }
  }

  async #cancel() {
    const yes = await ask({
      title: "Cancel this run?", why: "Finished annotations stay and can be exported.", yes: "Cancel the run",
    });
    if (yes) await this.#steer("cancel", "Cancelled.");
  }

  async #export() {
    const { destination, destination_format, overwrite } = this.#dataset.request;
    await this.#steer("export", `Exporting to ${destination}, with all reviews.`, {
      destination, destination_format, overwrite,
    });
  }
}

function figures(dataset) {
  const { progress } = dataset;
  const parts = [`${outcome(progress)} of ${count(progress.images)}${progress.planned ? "" : "+"} images`];
  if (progress.final) parts.push(`${count(progress.final)} fail again as long as the source is as it is`);
  if (isOver(dataset)) return parts;
  parts.push(`${count(progress.left)} left`);
  if (progress.images_per_second > 0) parts.push(`${progress.images_per_second.toFixed(1)} images/s`);
  if (progress.tokens_per_second > 0) parts.push(`${Math.round(progress.tokens_per_second)} tokens/s`);
  if (progress.eta !== null) parts.push(`about ${duration(progress.eta)} to go`);
  if (progress.workers.length) {
    parts.push(progress.workers.map(({ worker, images_per_second: rate }) => `${worker} ${rate.toFixed(1)}/s`).join(", "));
  }
  return parts;
}
