// The review page: a page of images at a time, moved through and judged with the keyboard.

import { card, editor, isWaiting, objectionToVerdict, objectionToWords } from "./card.js";
import { hasKey, json } from "./client.js";
import { ask, byId, count, element, say } from "./elements.js";
import { Progress } from "./progress.js";
import { Thumbnails } from "./thumbnails.js";

const PAGE = 48;
const FRESH = 3000; // milliseconds between two refreshes of a page whose images are still being annotated
const AUTHOR = "tuwen-author";
const API = `/v1/datasets/${encodeURIComponent(location.pathname.split("/").pop())}`;

const grid = byId("images");
const items = new Map(); // number → item, of the images on the page, in their order
let view = viewOfAddress(); // which list, and the cursors of the pages up to this one
let next = null;
let current = null; // number of the image that has the focus
let thumbnails = new Thumbnails();
let editing = null;
let busy = false;
let looked = 0;
const done = []; // reviews by this person on this page, for undo: {number, review}
let last = Promise.resolve(); // reviews are sent one after the other, so that undo knows the last one

let lookingAgain = null; // timer

const progress = new Progress(API, () => {
  const unfinished = items.size < PAGE || [...items.values()].some(isWaiting);
  if (unfinished) lookAgain();
});

/** Fetch the page again, soon but not too often. The fetch is never skipped, since no event follows the last one. */
function lookAgain() {
  const occupied = () => busy || editing !== null;
  lookingAgain ??= setTimeout(() => {
    lookingAgain = null;
    if (occupied()) lookAgain();
    else load({ quiet: true });
  }, occupied() ? FRESH : Math.max(0, looked + FRESH - Date.now()));
}

// ── lists ─────────────────────────────────────────────────────────────────────────────────────────────

function viewOfAddress() {
  const asked = new URLSearchParams(location.search);
  const known = (id, value) => ([...byId(id).options].some((option) => option.value === value) ? value : byId(id).options[0].value);
  const trail = history.state?.trail ?? (asked.get("after") ? ["", asked.get("after")] : [""]);
  return { sort: known("sort", asked.get("sort")), only: known("only", asked.get("only")), trail };
}

function show(changed, { replace = false } = {}) {
  view = { ...view, ...changed };
  const address = new URLSearchParams();
  if (view.sort !== "number") address.set("sort", view.sort);
  if (view.only) address.set("only", view.only);
  if (view.trail.length > 1) address.set("after", view.trail.at(-1));
  const url = `${location.pathname}${address.size ? `?${address}` : ""}`;
  history[replace ? "replaceState" : "pushState"]({ trail: view.trail }, "", url);
}

/** Fetch the page and show it. `focus` says which image gets it: "first", "last", or none, when it is elsewhere. */
async function load({ focus = null, quiet = false } = {}) {
  busy = true;
  looked = Date.now();
  if (!quiet) grid.setAttribute("aria-busy", "true");
  byId("only").value = view.only;
  byId("sort").value = view.sort;
  const address = new URLSearchParams({ sort: view.sort, limit: PAGE });
  if (view.only) address.set("only", view.only);
  if (view.trail.at(-1)) address.set("cursor", view.trail.at(-1));
  const asked = view;
  try {
    const page = await json("GET", `${API}/items?${address}`);
    if (asked !== view || editing !== null) return;
    paint(page, focus, quiet);
  } catch (error) {
    say(error.message, { bad: true });
    if (error.status === 422 && (view.sort !== "number" || view.trail.length > 1)) {
      show({ sort: "number", trail: [""] }, { replace: true }); // too many images to sort, or an outdated address
      await load({ focus });
    }
  } finally {
    busy = false;
    looked = Date.now();
    grid.removeAttribute("aria-busy");
  }
}

function paint(page, focus, quiet) {
  const before = new Map(items);
  items.clear();
  page.items.forEach((item) => items.set(item.number, item));
  next = page.next;
  let held = false; // the focus was on a card that is replaced
  const kept = quiet && page.items.every(({ number }) => before.has(number));
  if (kept) {
    page.items.filter((item) => JSON.stringify(item) !== JSON.stringify(before.get(item.number))).forEach(repaint);
  } else {
    thumbnails.clear();
    thumbnails = new Thumbnails();
    held = grid.contains(document.activeElement);
    grid.replaceChildren(...page.items.map(withPicture));
    if (!quiet) window.scrollTo(0, 0);
  }
  describe(page);
  const numbers = [...items.keys()];
  if (!items.has(current)) current = numbers[0] ?? null;
  if (focus === "last") current = numbers.at(-1) ?? null;
  else if (!quiet) current = numbers[0] ?? null;
  point(current, { grab: focus !== null || held });
  byId("author").textContent = hasKey() ? "" : localStorage.getItem(AUTHOR) ?? "";
}

const ACTS = { accept: (number) => judge("accepted", number), reject: (number) => judge("rejected", number), edit };

function withPicture(item) {
  const made = card(item, ACTS, progress);
  thumbnails.add(made.querySelector("img"), `${API}/items/${item.number}/preview`);
  return made;
}

/** Show an image again; its picture stays. */
function repaint(item) {
  items.set(item.number, item);
  const [before, after] = [cardOf(item.number), card(item, ACTS, progress)];
  after.querySelector(".picture").replaceWith(before.querySelector(".picture"));
  const focused = before.contains(document.activeElement);
  before.replaceWith(after);
  if (item.number === current) point(current, { grab: focused });
}

function describe(page) {
  const { before, items: { length } } = page;
  const range = length ? `${count(before + 1)}–${count(before + length)}` : "0";
  byId("position").textContent = page.total === null ? `page ${count(view.trail.length)}` : `${range} of ${count(page.total)}`;
  byId("previous").disabled = view.trail.length === 1;
  byId("next").disabled = next === null;
  byId("nothing").hidden = length > 0;
  byId("nothing").textContent = next === null ? "No image to show here." : "None among these; there are more pages.";
}

// ── moving about ──────────────────────────────────────────────────────────────────────────────────────

const cardOf = (number) => grid.querySelector(`[data-number="${number}"]`);

function point(number, { grab = true } = {}) {
  for (const each of grid.children) each.tabIndex = -1;
  current = number;
  const chosen = number === null ? null : cardOf(number);
  if (!chosen) return;
  chosen.tabIndex = 0;
  if (grab) {
    chosen.focus({ preventScroll: true });
    chosen.scrollIntoView({ block: "nearest" });
  }
}

async function move(steps) {
  const numbers = [...items.keys()];
  const place = numbers.indexOf(current) + steps;
  if (place in numbers) point(numbers[place]);
  else if (steps === 1) await turn(1);
  else if (steps === -1) await turn(-1);
}

/** Go to the next page or the one before. */
async function turn(way) {
  if (busy || (way > 0 ? next === null : view.trail.length === 1)) return;
  show({ trail: way > 0 ? [...view.trail, next] : view.trail.slice(0, -1) });
  await load({ focus: way > 0 ? "first" : "last" });
}

function columns() {
  const tops = [...grid.children].map((each) => each.offsetTop);
  return Math.max(1, tops.filter((top) => top === tops[0]).length);
}

// ── reviews ───────────────────────────────────────────────────────────────────────────────────────────

/** The author of a review: with keys it is the name of the key; without keys the person is asked once. */
async function author() {
  if (hasKey()) return {};
  let name = localStorage.getItem(AUTHOR);
  if (!name) {
    name = await ask({
      title: "Who are you?", why: "Your reviews are stored and exported under your name.",
      label: "Your name", yes: "That is me",
    });
    if (!name) return null;
    localStorage.setItem(AUTHOR, name.slice(0, 200));
    byId("author").textContent = name;
  }
  return { author: name };
}

function review(number, who, said) {
  last = last.then(() => send(number, who, said));
  return last;
}

/** Send a review; returns whether it was stored. */
async function send(number, who, said) {
  try {
    let item;
    for (const what of said) {
      item = await json("POST", `${API}/items/${number}/reviews`, { body: { ...who, ...what } });
      done.push({ number, review: item.reviews[0].id });
    }
    // Closed only when all texts are stored: a form whose second text is refused stays open.
    if (items.has(number)) repaint(item);
    return true;
  } catch (error) {
    say(error.message, { bad: true });
    return false;
  }
}

async function judge(verdict, number = current) {
  if (!open(number, objectionToVerdict)) return;
  const who = await author();
  if (who === null) return;
  const { name } = items.get(number).annotation;
  const kept = review(number, who, [{ verdict }]);
  move(1); // the page does not wait for the answer; an error is shown when it comes
  if (await kept) say(`${name}: ${verdict}.`);
}

/** Go to an image; returns whether it can be reviewed. */
function open(number, objection) {
  if (number === null || editing !== null) return false;
  point(number);
  const why = objection(items.get(number));
  if (why !== null) say(why);
  return why === null;
}

function edit(number = current) {
  if (!open(number, objectionToWords)) return;
  editing = number;
  const chosen = cardOf(number);
  const leave = () => {
    editing = null;
    form.remove();
    chosen.classList.remove("open");
    point(number);
  };
  const form = editor(items.get(number), async (texts) => {
    if (texts.length) {
      const who = await author();
      if (who === null || !(await review(number, who, texts))) return;
      say(items.get(number).annotation.captions.length ? "Saved beside the model's caption." : "Saved.");
    }
    leave();
  }, leave);
  chosen.classList.add("open");
  chosen.append(form);
  const area = form.querySelector("textarea");
  area.focus();
  area.setSelectionRange(area.value.length, area.value.length);
  form.scrollIntoView({ block: "nearest" });
}

function undo() {
  last = last.then(takeBack);
}

async function takeBack() {
  const said = done.pop();
  if (!said) return say("There is nothing to undo.");
  try {
    const item = await json("DELETE", `${API}/items/${said.number}/reviews/${said.review}`);
    if (items.has(item.number)) {
      repaint(item);
      point(item.number);
    }
    say(`${item.annotation.name}: review withdrawn.`);
  } catch (error) {
    say(error.message, { bad: true });
  }
}

// ── keys and buttons ──────────────────────────────────────────────────────────────────────────────────

const KEYS = {
  j: () => move(1),
  k: () => move(-1),
  ArrowRight: () => move(1),
  ArrowLeft: () => move(-1),
  ArrowDown: () => move(columns()),
  ArrowUp: () => move(-columns()),
  a: () => judge("accepted"),
  r: () => judge("rejected"),
  e: () => edit(),
  u: undo,
  "/": () => byId("only").focus(),
  "?": () => byId("keys").showModal(),
};

document.addEventListener("keydown", (event) => {
  const elsewhere = event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]");
  if (elsewhere || event.target.closest("select, input, textarea")) {
    if (event.key === "Escape" && event.target.closest("select")) point(current);
    return;
  }
  const act = KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

grid.addEventListener("focusin", (event) => {
  const chosen = event.target.closest(".card");
  if (chosen) point(Number(chosen.dataset.number), { grab: false });
});
grid.addEventListener("pointerdown", (event) => {
  const chosen = event.target.closest(".card");
  if (chosen && !event.target.closest("button, textarea")) point(Number(chosen.dataset.number));
});

for (const id of ["only", "sort"]) {
  byId(id).addEventListener("change", async () => {
    show({ [id]: byId(id).value, trail: [""] });
    await load();
  });
}
byId("previous").onclick = () => turn(-1);
byId("next").onclick = () => turn(1);
byId("help").onclick = () => byId("keys").showModal();
window.addEventListener("popstate", () => {
  view = viewOfAddress();
  load({ focus: "first" });
});

show({}, { replace: true });
await load({ focus: "first" });
progress.watch();
