// The list of data sets, newest first, a page at a time.

import { json } from "./client.js";
import { byId, count, element, lastPart, outcome, say } from "./elements.js";

let cursor = null;

function line({ id, status, paused, request, progress, created_at: created }) {
  const over = progress.planned && progress.left === 0;
  const shown = paused && !over ? "paused" : status;
  return element(
    "li",
    {},
    element(
      "a",
      { href: `/datasets/${encodeURIComponent(id)}` },
      element("strong", { dir: "auto", title: request.source }, lastPart(request.source)),
      element("span", { class: `badge ${shown}` }, request.dry_run ? `dry run ${shown}` : shown),
      element("span", { class: "figures" }, `${outcome(progress)} of ${count(progress.images)}`),
      element("time", { datetime: created, class: "figures" }, new Date(created).toLocaleString("en-GB")),
      element("progress", { max: Math.max(1, progress.images), value: progress.done + progress.failed, "aria-label": "done" }),
    ),
  );
}

async function more() {
  try {
    const page = await json("GET", `/v1/datasets${cursor ? `?cursor=${encodeURIComponent(cursor)}` : ""}`);
    byId("datasets").append(...page.datasets.map(line));
    cursor = page.next;
    byId("more").hidden = cursor === null;
    byId("nothing").hidden = byId("datasets").childElementCount > 0;
  } catch (error) {
    say(error.message, { bad: true });
  }
}

byId("more").onclick = more;
await more();
