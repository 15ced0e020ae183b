// Elements of the page. Untrusted text only becomes text nodes and attributes that hold text, never markup.

/** The element of this page with this id. */
export const byId = (id) => document.getElementById(id);

/**
 * A new element. Attributes that are false, null or undefined are left out, functions become listeners.
 * @param {string} tag
 * @param {Object<string, *>} attributes
 * @param {...(Node|string|null)} children
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (typeof value === "function") made.addEventListener(name, value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== ""));
  return made;
}

const SEEN = 6000; // milliseconds after which a message disappears; error messages stay
let fading = 0;

/** Show a message below the page, and announce it to screen readers. */
export function say(text, { bad = false } = {}) {
  const message = byId("message");
  clearTimeout(fading);
  if (!bad) fading = setTimeout(() => say("", { bad: true }), SEEN);
  message.textContent = text;
  message.classList.toggle("bad", bad);
}

/**
 * Ask for a line of text or, without a label, for confirmation.
 * @returns {Promise<string|null>} null when the person cancels
 */
export function ask({ title, why, label = null, yes, secret = false }) {
  const [dialog, input] = [byId("ask"), byId("ask-value")];
  byId("ask-title").textContent = title;
  byId("ask-why").textContent = why;
  byId("ask-yes").textContent = yes;
  byId("ask-label").textContent = label ?? "";
  input.hidden = label === null;
  input.required = label !== null;
  input.type = secret ? "password" : "text";
  input.value = "";
  return new Promise((resolve) => {
    let answer = null;
    dialog.onclose = () => resolve(answer);
    byId("ask-no").onclick = () => dialog.close();
    dialog.querySelector("form").onsubmit = () => {
      answer = label === null ? "yes" : input.value.trim();
    };
    dialog.showModal();
  });
}

const NUMBER = new Intl.NumberFormat("en");

export const count = (number) => NUMBER.format(number);

/** What has become of the images of a data set, in numbers that add up. */
export const outcome = ({ done, dropped, failed }) =>
  `${count(done - dropped)} kept, ${count(dropped)} dropped, ${count(failed)} failed`;

/** A path as people read it: the end of it matters most. */
export const lastPart = (path) => path.replace(/\/+$/, "").split("/").pop() || path;

export function duration(seconds) {
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}
