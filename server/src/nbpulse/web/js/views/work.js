// @ts-check
/** What the pages of one student, one cell and one error share: their frame, and texts of students as they are. */
import { html, useEffect } from "../preact.js";
import { formatClock, formatDay, formatNumber, language, t } from "../i18n.js";
import { hasShortcuts, isNamed, labelOf, talk, toggleNames } from "../store.js";
import { Notes } from "./acts.js";
import { CoursePage } from "./pages.js";
import { boardPath, studentPath } from "./paths.js";
import { Talk } from "./talk.js";

/** @typedef {{user_id: string, name: string, num: string, seat: ?string, team: ?string}} Student as the API tells them */
/** @typedef {{level: string, source: boolean, output: boolean, error_message: boolean, traceback: boolean}} Collects */

/** A page that one comes to from the board, with the way back. @param {any} props as CoursePage's; `tools` beside that way */
export function WorkPage({ courseId, tools, children, ...page }) {
  useEffect(() => listenToKeys(courseId), [courseId]);
  return html`<${CoursePage} courseId=${courseId} ...${page}>
    <p class="ends"><a href=${boardPath(courseId)} data-action="back">${t("work.back")}</a>
      <button class="toggle" data-action="names" aria-pressed=${isNamed.value} title=${t("names.key")} onClick=${toggleNames}>${t(isNamed.value ? "names.hide" : "names.show")}</button>${tools}</p>
    ${children}
    <${Notes} /><${Talk} />
  <//>`;
}

/** `a` shows names, Escape and Backspace go back. @param {string} courseId */
function listenToKeys(courseId) {
  /** @param {KeyboardEvent} event */
  const press = (event) => {
    const target = /** @type {HTMLElement} */ (event.target);
    const isTaken = event.ctrlKey || event.metaKey || event.altKey || talk.value || target.closest("input, select, textarea, dialog");
    if (isTaken || event.defaultPrevented) return;
    if (event.key === "Escape" || event.key === "Backspace") {
      event.preventDefault();
      if (document.referrer.startsWith(`${location.origin}/`) && history.length > 1) history.back();
      else location.assign(boardPath(courseId));
    } else if (event.key === "a" && hasShortcuts.value) toggleNames();
  };
  addEventListener("keydown", press);
  return () => removeEventListener("keydown", press);
}

/** A student's label, on the way to their page. @param {{courseId: string, student: Student}} props */
export function StudentLink({ courseId, student }) {
  return html`<a href=${studentPath(courseId, student.user_id)} data-student-link=${student.user_id}><bdi>${labelOf(/** @type {any} */ (student))}</bdi></a>`;
}

/** @param {number|undefined|null} index of the cell in its notebook, from 0 */
export const cellName = (index) => (index === null || index === undefined ? t("work.cell_unknown") : t("attention.at_cell", { cell: index + 1 }));

/** When, in the shortest honest words: today by the clock, else with the day. @param {number|string} at */
export function formatMoment(at) {
  const moment = new Date(at);
  const clock = formatClock(moment.getTime()).slice(0, 5);
  return moment.toDateString() === new Date().toDateString() ? clock : `${formatDay(moment)} ${clock}`;
}

/** @param {?number} ms */
export function formatDuration(ms) {
  if (ms === null || ms === undefined) return "";
  return ms < 1000 ? t("work.ms", { n: Math.round(ms) }) : t("work.s", { n: formatNumber(Math.round(ms / 100) / 10) });
}

const STATUSES = ["ok", "error", "interrupted", "kernel_died", "aborted", "running", "none"];

/** How a run ended, in a word with a sign. @param {{status: ?string}} props */
export function Ending({ status }) {
  const known = STATUSES.includes(status ?? "") ? status : "unknown";
  const digit = { ok: 1, running: 2, none: 0 }[known ?? ""] ?? 3;
  return html`<span class="ending" data-ending=${known}><i data-state=${digit}></i>${t(`run.${known}`)}</span>`;
}

/** A text as it is, in full. @param {{text: ?string, label: string}} props */
export function Text({ text, label }) {
  if (!text) return null;
  return html`<figure class="text"><figcaption>${label}</figcaption><pre tabindex="0" aria-label=${label}><code>${text}</code></pre></figure>`;
}

/** The code of one run, what it showed and how it failed. @param {{run: any}} props */
export function Texts({ run }) {
  const message = run.error_name && `${run.error_name}: ${run.error_message ?? ""}`;
  return html`<${Text} text=${run.source} label=${t("work.source")} />
    <${Text} text=${run.output} label=${t("work.output")} />
    <${Text} text=${message} label=${t("work.error")} />
    <${Text} text=${run.traceback} label=${t("work.traceback")} />`;
}

/** What a page cannot show, and what would show it. @param {{collects: Collects}} props */
export function NotCollected({ collects }) {
  const missing = /** @type {const} */ (["source", "output", "error_message", "traceback"]).filter((name) => !collects[name]);
  if (missing.length === 0) return null;
  const what = new Intl.ListFormat(language.value, { type: "unit" }).format(missing.map((name) => t(`collects.${name}`)));
  return html`<p class="muted" data-missing=${missing.join(" ")}>${t("collects.missing", { what })} ${t("collects.todo")}</p>`;
}
