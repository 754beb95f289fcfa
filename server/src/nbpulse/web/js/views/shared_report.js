// @ts-check
/** A class report as a link shows it: to anybody who has the link, without people, until it ends. */
import { ApiError, fetchSharedReport } from "../api.js";
import { html, useEffect, useState } from "../preact.js";
import { formatDay, t } from "../i18n.js";
import { AsOf, Page, Problem } from "./pages.js";
import { describeTime } from "./report.js";
import { Cells, Comparison, Sentences } from "./report_parts.js";

/** @param {{code: string}} props what follows the # in the address */
export function SharedReport({ code }) {
  const [report, setReport] = useState(/** @type {any} */ (null));
  const [problem, setProblem] = useState(/** @type {?ApiError} */ (null));
  useEffect(() => {
    fetchSharedReport(code).then(setReport, (error) => {
      if (!(error instanceof ApiError)) throw error;
      setProblem(error);
    });
  }, [code]);
  const heading = report ? html`<bdi>${report.course.title}</bdi>` : t("report.title");
  return html`<${Page} name="shared-report" title=${heading}>
    ${problem && html`<${Problem} error=${problem} />`}
    ${!report && !problem && html`<p class="muted">${t("connecting.patience")}</p>`}
    <${AsOf} />
    ${report && html`<p class="lead">${[report.meeting.title, describeTime(report.meeting)].filter(Boolean).map((one) => html`<bdi key=${one}>${one}</bdi> `)}</p>
      <p class="problem" data-shared-until>${t("sharing.notice", { day: formatDay(new Date(report.expires_at)) })}</p>
      ${report.figures.came === null || report.figures.runs === 0 ? html`<p data-empty>${t(report.figures.came === null ? "sharing.few" : "report.empty")}</p>` : html`
        <${Sentences} report=${report} /><${Comparison} report=${report} />
        ${report.cells.length > 0 && html`<${Cells} report=${report}><p class="muted">${t("report.withheld")}</p><//>`}`}`}
  <//>`;
}
