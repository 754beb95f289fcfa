// @ts-check
/** The course's history as files, for whoever works on with it: what there is, of which days, in which form. */
import { html, useState } from "../preact.js";
import { t } from "../i18n.js";
import { CoursePage } from "./pages.js";

/** Which questions there are, and whether a window of days belongs to them. */
const QUESTIONS = [
  { name: "sessions", hasDays: true }, { name: "progress", hasDays: false }, { name: "failing-cells", hasDays: false },
  { name: "common-errors", hasDays: true }, { name: "slow-cells", hasDays: true }, { name: "recovery-times", hasDays: true },
  { name: "activity", hasDays: true, isStaffs: true }, { name: "error-rate", hasDays: true, isStaffs: true },
];
const FORMS = ["csv", "ndjson", "manifest"]; // Parquet is an extra that a server may lack: docs/queries.md
const DAY_MS = 86_400_000;

/** The day on which that is in the course's time zone, as a date field has it. @param {number} at @param {string} zone */
const findDay = (at, zone) => new Intl.DateTimeFormat("sv-SE", { timeZone: zone, dateStyle: "short" }).format(at);
/** @param {string} day */
const findNext = (day) => new Date(Date.parse(day) + DAY_MS).toISOString().slice(0, 10);

/** @param {{courseId: string, title: string, role: string, zone: string}} props */
export function Data({ courseId, title, role, zone }) {
  const [days, setDays] = useState({ first: findDay(Date.now() - 6 * DAY_MS, zone), last: findDay(Date.now(), zone) });
  const [isIdentified, setIdentified] = useState(false);
  const isStaff = role !== "analyst";
  const isWindow = days.first && days.last && days.first <= days.last;
  /** @param {typeof QUESTIONS[0]} question @param {string} form */
  const place = ({ name, hasDays, isStaffs }, form) => {
    const query = new URLSearchParams(isStaffs ? { format: form } : { format: form, limit: "5000" });
    if (hasDays) {
      // Without an offset: days of the course's own time zone; the last one whole.
      query.set("start", `${days.first}T00:00:00`);
      query.set("end", `${findNext(days.last)}T00:00:00`);
    }
    if (isIdentified) query.set("identified", "1");
    return `/api/v1/courses/${encodeURIComponent(courseId)}/${name}?${query}`;
  };
  /** @param {"first"|"last"} end */
  const day = (end) => html`<label>${t(`data.${end}`)} <input type="date" name=${end} value=${days[end]} max="2261-12-31"
    onInput=${(/** @type {any} */ e) => setDays({ ...days, [end]: e.target.value })} /></label>`;
  return html`<${CoursePage} name="data" title=${t("data.title")} courseId=${courseId} course=${title} role=${role}>
    <p>${t(isStaff ? "data.explain" : "data.explain_analyst")}</p>
    <form class="fields" onSubmit=${(/** @type {any} */ e) => e.preventDefault()}>${day("first")}${day("last")}
      ${isStaff && html`<label class="check"><input type="checkbox" name="identified" checked=${isIdentified}
        onChange=${(/** @type {any} */ e) => setIdentified(e.target.checked)} /> ${t("data.identified")}</label>`}</form>
    ${!isWindow && html`<p class="problem" role="alert">${t("data.no_window")}</p>`}
    <section class="card"><ul class="people">${QUESTIONS.filter((one) => isStaff || !one.isStaffs).map((one) => ({ ...one, key: one.name.replace("-", "_") })).map((one) => html`<li key=${one.name} data-question=${one.name}>
      <span class="person"><b>${t(`data.${one.key}`)}</b> <span class="muted">${t(`data.${one.key}_explain`)}</span></span>
      ${isWindow && html`<span class="ends">${FORMS.map((form) => html`<a key=${form} href=${place(one, form)} download>${form === "manifest" ? t("data.columns") : form.toUpperCase()}<span class="unseen"> ${t(`data.${one.key}`)}</span></a>`)}</span>`}
    </li>`)}</ul></section>
    <p class="muted">${t("data.more")}</p>
  <//>`;
}
