// The API as the pages use it. If it needs a key, the person is asked once; the key stays in this tab.

import { ask } from "./elements.js";

const KEY = "tuwen-key";

/** An error of the API, from its problem details. */
export class Problem extends Error {
  constructor(status, detail, retryAfter) {
    super(detail);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** Whether requests carry a key: the key's name is then the author of reviews. */
export const hasKey = () => sessionStorage.getItem(KEY) !== null;

let asking = null;

async function askForKey() {
  asking ??= ask({
    title: "API key",
    why: "This installation asks for a key. It is kept in this tab only, until you close it.",
    label: "Key (tw_…)",
    yes: "Use it",
    secret: true,
  }).finally(() => { asking = null; });
  const key = await asking;
  if (key) sessionStorage.setItem(KEY, key);
  return Boolean(key);
}

/** Send a request, with the key if there is one, and return a successful response. Throws Problem. */
export async function send(method, path, { body, signal } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { Accept: "*/*" };
    if (key) headers.Authorization = `Bearer ${key}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(path, {
        method, headers, signal, credentials: "omit", body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem(0, "The API does not answer.");
    }
    if (response.ok) return response;
    if (response.status === 401) {
      if (sessionStorage.getItem(KEY) === key) sessionStorage.removeItem(KEY);
      if (hasKey() || (await askForKey())) continue;
    }
    const problem = await response.json().catch(() => ({}));
    const retryAfter = Number(response.headers.get("Retry-After")) || null;
    throw new Problem(response.status, problem.detail ?? response.statusText, retryAfter);
  }
}

export const json = async (method, path, options) => (await send(method, path, options)).json();

/**
 * The states of a server-sent event stream, until it ends. `EventSource` would suffice if it could send a key.
 * Throws Problem when the API ends the stream for a reason, such as a key that was revoked.
 * @yields {Object} the data of each event
 */
export async function* events(path, signal) {
  const response = await send("GET", path, { signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (text + value).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6));
      if (!data.length) continue;
      const event = JSON.parse(data.join("\n"));
      if (block.startsWith("event: error")) throw new Problem(event.status, event.detail);
      yield event;
    }
  }
}
