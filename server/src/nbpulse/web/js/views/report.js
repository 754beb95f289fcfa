// @ts-check
/** The reports of one course: its meetings, newest first, and what each of them came to. */
import { ApiError, fetchMeetings, fetchReport, reportTable } from "../api.js";
import { html, useEffect, useState } from "../preact.js";
import { formatClock, formatDay, t } from "../i18n.js";
import { isNamed, toggleNames } from "../store.js";
import { CoursePage, Problem } from "./pages.js";
import { Cells, Comparison, Sentences } from "./report_parts.js";
import { Letters, NeverCame, Troubles, Work } from "./report_people.js";
import { Sharing } from "./report_sharing.js";

/** Day and time of a meeting in the reader's words. @param {import("../report.js").Meeting} meeting */
export function describeTime({ started_at: start, ended_at: end }) {
  const [from, to] = [start, end].map((one) => one && formatClock(Date.parse(one)).slice(0, 5));
  return to ? t("report.from_to", { day: formatDay(new Date(start)), from: from ?? "", to }) : t("report.since", { day: formatDay(new Date(start)), from: from ?? "" });
}

/** @param {{courseId: string, title: string, role: string, item: string}} props */
export function Reports({ courseId, title, role, item }) {
  return item ? html`<${Report} courseId=${courseId} title=${title} role=${role} meetingId=${item} />` : html`<${Meetings} courseId=${courseId} title=${title} />`;
}

/** What `read` answers, once it has; or why not. @param {() => Promise<any>} read @param {any[]} about @returns {[any, ?ApiError]} */
function useAnswer(read, about) {
  const [answer, setAnswer] = useState(null);
  const [problem, setProblem] = useState(/** @type {?ApiError} */ (null));
  useEffect(() => {
    let isOld = false;
    setProblem(null);
    read().then((found) => isOld || setAnswer(found), (error) => {
      if (!(error instanceof ApiError)) throw error;
      if (!isOld) setProblem(error);
    });
    return () => void (isOld = true);
  }, about);
  return [answer, problem];
}

/** @param {{courseId: string, title: string}} props */
function Meetings({ courseId, title }) {
  const [meetings, problem] = useAnswer(() => fetchMeetings(courseId), [courseId]);
  return html`<${CoursePage} name="report" title=${t("report.list")} courseId=${courseId} course=${title}>
    ${problem && html`<${Problem} error=${problem} />`}
    ${!meetings && !problem && html`<p class="muted">${t("connecting.patience")}</p>`}
    ${meetings?.length === 0 && html`<p data-empty>${t("report.no_meetings")}</p>`}
    ${meetings && html`<ul class="courses">${meetings.map((/** @type {any} */ one) => html`<li key=${one.id}>
      <a data-meeting-link=${one.id} href=${`/courses/${encodeURIComponent(courseId)}/report/${one.id}`}><span>${describeTime(one)}</span>${one.title && html`<bdi class="muted">${one.title}</bdi>`}</a>
    </li>`)}</ul>`}
  <//>`;
}

/** @param {{courseId: string, title: string, role: string, meetingId: string}} props */
function Report({ courseId, title, role, meetingId }) {
  const [report, problem] = useAnswer(() => fetchReport(courseId, meetingId), [courseId, meetingId]);
  useEffect(openForPrint, []);
  const heading = report ? report.meeting.title || t("report.title") : t("report.title");
  return html`<${CoursePage} name="report" title=${html`<bdi>${heading}</bdi>`} courseId=${courseId} course=${title}>
    <p class="screen"><a href=${`/courses/${encodeURIComponent(courseId)}/report`}>${t("report.all")}</a></p>
    ${problem && html`<${Problem} error=${problem} />`}
    ${!report && !problem && html`<p class="muted">${t("connecting.patience")}</p>`}
    ${report && html`<p class="lead" data-report=${meetingId}><bdi class="paper">${title}</bdi> ${describeTime(report.meeting)}</p>
      ${!report.is_whole && html`<p class="muted" data-partial>${t("report.partial")}</p>`}
      ${report.meeting.ended_at === null && html`<p class="muted">${t("report.goes_on")}</p>`}
      <p class="ends screen">
        <button class="toggle" data-action="names" aria-pressed=${isNamed.value} onClick=${toggleNames}>${isNamed.value ? t("names.hide") : t("names.show")}</button>
        <button data-action="print" onClick=${() => print()}>${t("report.print")}</button>
        ${report.figures.runs > 0 && html`<a data-action="replay" href=${`/courses/${encodeURIComponent(courseId)}/replay/${encodeURIComponent(meetingId)}`}>${t("report.replay")}</a>`}
        <a data-action="csv" href=${reportTable(courseId, meetingId)} download>${t("report.csv")}</a>
      </p>
      ${report.figures.runs === 0 ? html`<p data-empty>${t("report.empty")}</p>` : html`<${Sentences} report=${report} />`}
      <${Comparison} report=${report} />
      ${report.cells.length > 0 && html`<${Cells} report=${report} />`}
      <${Troubles} report=${report} /><${Work} report=${report} /><${Letters} report=${report} /><${NeverCame} report=${report} />
      ${role === "instructor" && html`<${Sharing} courseId=${courseId} meetingId=${meetingId} />`}`}
  <//>`;
}

/** Paper has no button that opens what is folded. */
function openForPrint() {
  const open = () => document.querySelectorAll("main details").forEach((one) => one.setAttribute("open", ""));
  addEventListener("beforeprint", open);
  return () => removeEventListener("beforeprint", open);
}
