// One image of the data set: its picture, its captions, its reviews, and the form to edit captions.

import { element } from "./elements.js";

const LANGUAGES = { zh: "中文", en: "English" };
export const NOT_DONE = "not_annotated";

/** The reviews that still count: the newest verdict, and the newest caption in each language. */
export function standing(item) {
  const words = new Map();
  for (const review of item.reviews) {
    const language = review.language ?? "";
    if (review.text !== null && !words.has(language)) words.set(language, review);
  }
  return { verdict: item.reviews.find((review) => review.verdict !== null) ?? null, words };
}

/** Whether the models have not annotated the image yet. */
export const isWaiting = (item) => item.annotation.error?.code === NOT_DONE;

/** Why this image cannot be given a caption; null when it can. */
export function objectionToWords({ annotation }) {
  if (annotation.error?.code === NOT_DONE) return "This image has not been annotated yet.";
  if (annotation.error && annotation.width === null) return "This file could not be read as an image; repair it, then retry the failed images.";
  return annotation.drop ? "A filter dropped this image, and a review cannot bring it back." : null;
}

/** Why this image cannot be accepted or rejected; null when it can. */
export function objectionToVerdict(item) {
  const wordless = item.annotation.error && standing(item).words.size === 0;
  return objectionToWords(item) ?? (wordless ? "The models failed on this image; write its caption first, or retry the failed images." : null);
}

/**
 * The card of an image.
 * @param {Object} item as the API shows it
 * @param {{accept: Function, reject: Function, edit: Function}} act
 */
export function card(item, act, { live }) {
  const { annotation } = item;
  const { verdict, words } = standing(item);
  const picture = element("div", { class: "picture" }, element("img", { alt: "", width: 320, height: 240 }));
  const made = element(
    "li",
    {
      class: `card ${verdict?.verdict ?? ""}`,
      "data-number": item.number,
      tabindex: -1,
      "aria-label": label(item, verdict),
    },
    picture,
    element("p", { class: "name", dir: "auto", title: annotation.name }, annotation.name),
    element("div", { class: "badges" }, ...badges(item, verdict, words, live)),
    element("div", { class: "captions" }, ...captions(annotation, words)),
    ...reasons(annotation, live),
    measures(annotation),
    ...actions(item, act, verdict),
  );
  return made;
}

function actions(item, act, verdict) {
  const { number, annotation } = item;
  const buttons = [];
  if (objectionToVerdict(item) === null) {
    buttons.push(
      button("Accept", "a", () => act.accept(number), verdict?.verdict === "accepted"),
      button("Reject", "r", () => act.reject(number), verdict?.verdict === "rejected"),
    );
  }
  if (objectionToWords(item) === null) {
    buttons.push(button(annotation.error && !buttons.length ? "Write caption" : "Edit", "e", () => act.edit(number)));
  }
  return buttons.length ? [element("div", { class: "actions" }, ...buttons)] : [];
}

function label({ number, annotation }, verdict) {
  return [`Image ${number + 1}`, annotation.name, verdict?.verdict].filter(Boolean).join(", ");
}

function button(text, key, click, pressed) {
  // The button is reached by its key, or with Tab from the card that has the focus.
  return element(
    "button", { type: "button", click, "aria-keyshortcuts": key, "aria-pressed": pressed === undefined ? null : `${pressed}` },
    text,
  );
}

function badges({ annotation }, verdict, words, live) {
  const badge = (kind, text, title) => element("span", { class: `badge ${kind}`, title }, text);
  const foreign = [...annotation.captions, annotation.recognition].some((said) => said?.out_of_domain);
  const waiting = annotation.error?.code === NOT_DONE;
  return [
    verdict && badge(verdict.verdict, verdict.verdict, `by ${verdict.author}`),
    words.size ? badge("edited", "edited") : null,
    foreign ? badge("warning", "out of domain", "unlike what the model learnt from") : null,
    annotation.drop && badge("dropped", "dropped"),
    annotation.error && (waiting && live ? badge("waiting", "waiting") : badge("failed", "error")),
  ].filter(Boolean);
}

function captions(annotation, words) {
  const shown = [];
  const rest = new Map(words);
  const person = (language) => {
    const review = rest.get(language);
    if (!rest.delete(language)) return;
    shown.push(element(
      "p", { class: "caption person", lang: language || null, dir: "auto" },
      review.text, " ", element("span", { class: "author" }, `— ${review.author}`),
    ));
  };
  person("");
  for (const caption of annotation.captions) {
    person(caption.language);
    const replaced = words.has(caption.language) || words.has("");
    shown.push(element(
      "p",
      { class: replaced ? "caption replaced" : "caption", lang: caption.language, dir: "auto", title: provenance(caption) },
      replaced ? element("span", { class: "author" }, "model: ") : null, caption.text,
    ));
  }
  [...rest.keys()].forEach(person);
  for (const text of annotation.existing) {
    shown.push(element("p", { class: "caption source", dir: "auto" }, element("span", { class: "author" }, "came with it: "), text));
  }
  if (annotation.recognition) shown.push(element("p", { class: "caption source" }, objects(annotation.recognition)));
  return shown;
}

const provenance = ({ style, provenance: { model, revision } }) => `${style} · ${model} ${revision}`.trim();

function objects({ objects: found, scene }) {
  const things = found.map(({ name, count, attributes, action }) =>
    [count > 1 ? `${count} ×` : "", ...Object.values(attributes), name, action ?? ""].filter(Boolean).join(" "));
  return [...things, ...(scene ? [scene] : [])].join(", ") || "nothing recognised";
}

function reasons({ error, drop }, live) {
  if (drop) return [element("p", { class: "reason" }, `${drop.reason.replaceAll("_", " ")}: ${drop.detail}`)];
  if (error && !(live && error.code === NOT_DONE)) {
    return [element("p", { class: "reason bad", dir: "auto" }, element("code", {}, error.code), ` ${error.detail}`)];
  }
  return [];
}

function measures(annotation) {
  const scores = annotation.captions.map(({ score }) => score).filter((score) => score !== null);
  if (annotation.existing_score !== null) scores.push(annotation.existing_score);
  const sure = annotation.captions.map(({ confidence }) => confidence);
  if (annotation.recognition) sure.push(annotation.recognition.confidence);
  return element("div", { class: "measures" }, ...measure("score", scores), ...measure("confidence", sure));
}

function measure(name, values) {
  if (!values.length) return [];
  const value = Math.min(...values);
  const meter = element("meter", { min: 0, max: 1, low: 0.35, high: 0.65, optimum: 1, value, "aria-label": name });
  return [element("span", { class: "measure" }, `${name} ${value.toFixed(2)}`, meter)];
}

/**
 * The form that edits the captions of an image, a field for each language.
 * @param {(texts: Array<{text: string, language: string}>) => void} save called with the texts that were changed
 */
export function editor(item, save, leave) {
  const { words } = standing(item);
  const { captions: said, existing } = item.annotation;
  const languages = [...new Set([...said.map(({ language }) => language), ...words.keys()])].filter(Boolean);
  const fields = (languages.length ? languages : ["en", "zh"]).map((language) => {
    const model = said.find((caption) => caption.language === language)?.text;
    const before = words.get(language)?.text ?? model ?? (languages.length ? "" : language === "en" ? existing[0] ?? "" : "");
    const area = element("textarea", { lang: language, dir: "auto", rows: 3, maxlength: 4000 });
    area.value = before;
    return { language, before, area };
  });
  const submit = () => save(
    fields.map(({ language, before, area }) => ({ language, text: area.value.trim(), before }))
      .filter(({ text, before }) => text && text !== before)
      .map(({ language, text }) => ({ language, text })),
  );
  return element(
    "form",
    {
      class: "editor",
      submit: (event) => { event.preventDefault(); submit(); },
      keydown: (event) => {
        event.stopPropagation();
        if (event.isComposing) return; // Enter chooses a character of the input method
        if (event.key === "Escape") leave();
        if (event.key === "Enter" && !event.shiftKey && event.target.matches("textarea")) {
          event.preventDefault();
          submit();
        }
      },
    },
    ...fields.map(({ language, area }) => element("label", {}, LANGUAGES[language], area)),
    element(
      "p", { class: "buttons" },
      element("button", { class: "primary" }, "Save"),
      element("button", { type: "button", click: leave }, "Leave"),
    ),
  );
}
