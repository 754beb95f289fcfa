// @ts-check
/** Of a class report what is about people, for the staff alone: who was in trouble, who helped, who never came. */
import { html } from "../preact.js";
import { formatClock, formatMinutes, language, t } from "../i18n.js";
import { nameCell } from "../report.js";
import { isNamed } from "../store.js";
import { Glyph } from "./glyph.js";

/** @typedef {import("../report.js").Report} Report */
const OPEN_MOST = 12;

/** @param {Report} report @param {string} userId */
function labelPerson({ people = [] }, userId) {
  const one = people.find((person) => person.user_id === userId);
  return one ? (isNamed.value ? one.name : one.number) : "–";
}

/** @param {Report} report @param {string} notebookId @param {string} cellId */
function nameCellOf(report, notebookId, cellId) {
  const cell = report.cells.find((one) => one.notebook_id === notebookId && one.cell_id === cellId);
  return cell ? nameCell(report, cell) : t("report.own_cell");
}

/** Whom nobody reached first, those who did not get past it before the others. @param {{report: Report}} props */
export function Troubles({ report }) {
  const { troubles = [] } = report;
  const reached = new Set(troubles.filter((one) => one.reached_at).map((one) => one.user_id));
  const [alone, helped] = [troubles.filter((one) => !reached.has(one.user_id)), troubles.filter((one) => reached.has(one.user_id))];
  const urgent = (/** @type {import("../report.js").Trouble} */ one) => Number(one.passed === true) * 1e12 - (one.until - one.since);
  if (troubles.length === 0) return null;
  return html`<section class="card" data-part="troubles" aria-labelledby="troubles-title">
    <h2 id="troubles-title">${t("report.troubles")}</h2>
    <${Group} name="alone" title=${t("report.alone", { n: new Set(alone.map((one) => one.user_id)).size })} report=${report} troubles=${alone.sort((a, b) => urgent(a) - urgent(b))} />
    <${Group} name="helped" title=${t("report.helped", { n: reached.size })} report=${report} troubles=${helped} />
  </section>`;
}

/** @param {{name: string, title: string, report: Report, troubles: import("../report.js").Trouble[]}} props */
function Group({ name, title, report, troubles }) {
  if (troubles.length === 0) return null;
  return html`<details open=${name === "alone" && troubles.length <= OPEN_MOST} data-group=${name}><summary>${title}</summary>
    <ul class="people">${troubles.map((one) => html`<li key=${`${one.user_id}${one.since}${one.kind}`} data-kind=${one.kind}>
      <span class="person"><span class="pill"><${Glyph} kind=${one.kind} />${t(`status.${one.kind}`)}</span> <b><bdi>${labelPerson(report, one.user_id)}</bdi></b></span>
      <span>${one.place && nameCellOf(report, ...one.place)}</span>
      <span class="muted">${t("report.trouble_time", { at: formatClock(one.since).slice(0, 5), lasted: formatMinutes(one.until - one.since) })}</span>
      <span class="muted">${one.reached_at ? t("report.reached_after", { wait: formatMinutes(one.reached_at - one.since) }) : ""} ${one.passed === null ? "" : t(one.passed ? "report.passed" : "report.not_passed")}</span>
    </li>`)}</ul>
  </details>`;
}

/** What staff did about alerts, and what came of it. @param {{report: Report}} props */
export function Work({ report: { interventions = [] } }) {
  const done = interventions.filter((one) => !one.is_undone && one.action !== "undo" && one.action !== "release");
  const helped = done.filter((one) => one.action === "helped");
  const about = helped.filter((one) => one.got_past !== null);
  return html`<section class="card" data-part="work" aria-labelledby="work-title">
    <h2 id="work-title">${t("report.work")}</h2>
    ${done.length === 0 ? html`<p class="muted">${t("report.no_work")}</p>` : html`<ul>
      ${["claim", "helped", "snooze", "note"].map((action) => html`<li key=${action} data-action-count=${action}>${t(`work.${action}`, { n: done.filter((one) => one.action === action).length })}</li>`)}
      ${about.length > 0 && html`<li data-got-past>${t("report.got_past", { passed: about.filter((one) => one.got_past).length, n: about.length })}</li>`}
    </ul>`}
  </section>`;
}

/** What was written to whom. @param {{report: Report}} props */
export function Letters({ report: { messages = [] } }) {
  if (messages.length === 0) return null;
  const read = (/** @type {any} */ text) => (typeof text === "string" ? text : text[language.value]);
  return html`<section class="card" data-part="letters" aria-labelledby="letters-title">
    <h2 id="letters-title">${t("report.letters")}</h2>
    <ul class="people">${messages.map((one) => html`<li key=${one.batch_id} data-kind=${one.kind}>
      <span class="person"><bdi>${read(one.text)}</bdi></span>
      <span class="muted">${formatClock(Date.parse(one.at)).slice(0, 5)} · ${t(`letter.${one.kind}`, { n: one.recipients })}${one.passed === null ? "" : ` · ${t("report.passed_of", { passed: one.passed, n: one.recipients })}`}</span>
    </li>`)}</ul>
  </section>`;
}

/** @param {{report: Report}} props */
export function NeverCame({ report }) {
  const { never_came: never = [] } = report;
  if (never.length === 0) return null;
  return html`<section class="card" data-part="never" aria-labelledby="never-title">
    <h2 id="never-title">${t("report.never", { n: never.length })}</h2>
    <details open=${never.length <= OPEN_MOST}><summary>${t("report.who")}</summary>
      <ul class="names">${never.map((id) => html`<li key=${id}><bdi>${labelPerson(report, id)}</bdi></li>`)}</ul>
    </details>
  </section>`;
}
