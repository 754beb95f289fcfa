// @ts-check
/** One student's class: each run at its time and cell, stretches of work and raised hands; the same as a table. */
import { html } from "../preact.js";
import { formatClock, t } from "../i18n.js";
import { cellName, Ending } from "./work.js";

const LANE_PX = 18;
const TICKS = 4;

/** @param {{span: {start: string, end: string}, trace: any}} props */
export function Timeline({ span, trace }) {
  const [start, end] = [span.start, span.end].map((at) => Date.parse(at));
  /** @param {string} at @returns {string} */
  const x = (at) => `${((100 * (Math.min(Math.max(Date.parse(at), start), end) - start)) / (end - start)).toFixed(2)}%`;
  const indexes = [...new Set(trace.runs.map((/** @type {any} */ run) => run.cell_index))].sort((a, b) => (a ?? 1e9) - (b ?? 1e9));
  const lanes = [...indexes.map((index) => (index === null ? "–" : String(index + 1))), t("timeline.hands"), t("timeline.work")];
  const [handY, workY] = [indexes.length, indexes.length + 1].map((lane) => (lane + 0.5) * LANE_PX);
  const hands = trace.hands.filter((/** @type {any} */ hand) => Date.parse(hand.opened_at) >= start && Date.parse(hand.opened_at) < end);
  const failed = trace.runs.filter((/** @type {any} */ run) => run.status !== "ok").length;
  const summary = t("timeline.summary", { runs: trace.runs.length, failed, hands: hands.length });
  const ticks = Array.from({ length: TICKS + 1 }, (_, place) => start + ((end - start) * place) / TICKS);
  return html`<p data-timeline-summary>${summary}</p>
    ${trace.runs.length > 0 && html`<div class="timeline" tabindex="0" role="group" aria-label=${t("timeline.title")}>
      <ol aria-hidden="true">${lanes.map((lane) => html`<li>${lane}</li>`)}</ol>
      <svg width="100%" height=${lanes.length * LANE_PX + 20} role="img" aria-label=${summary}>
        ${lanes.map((_, lane) => html`<line class="rule" x1="0" x2="100%" y1=${(lane + 0.5) * LANE_PX} y2=${(lane + 0.5) * LANE_PX} />`)}
        ${trace.sittings.map((/** @type {any} */ one) => html`<line class="sitting" x1=${x(one.started_at)} x2=${x(one.until)} y1=${workY} y2=${workY} />`)}
        ${hands.map((/** @type {any} */ hand) => html`<circle class="hand" cx=${x(hand.opened_at)} cy=${handY} r="5"><title>${hand.text ?? ""}</title></circle>`)}
        ${trace.runs.map((/** @type {any} */ run) => html`<${Mark} run=${run} x=${x(run.at)} y=${(indexes.indexOf(run.cell_index) + 0.5) * LANE_PX} />`)}
        ${ticks.map((at, place) => html`<text x=${`${(100 * place) / TICKS}%`} y=${lanes.length * LANE_PX + 15}
          text-anchor=${place === 0 ? "start" : place === TICKS ? "end" : "middle"}>${formatClock(at).slice(0, 5)}</text>`)}
      </svg>
    </div>
    <p class="marks">${["ok", "error"].map((status) => html`<span><svg viewBox="-7 -7 14 14" aria-hidden="true"><${Shape} status=${status} /></svg> ${t(`run.${status}`)}</span>`)}</p>
    <details><summary>${t("timeline.as_table")}</summary><div class="scrolls" tabindex="0" role="group" aria-label=${t("timeline.as_table")}><table class="rows">
      <thead><tr><th>${t("timeline.at")}</th><th>${t("timeline.cell")}</th><th>${t("timeline.ending")}</th></tr></thead>
      <tbody>${trace.runs.map((/** @type {any} */ run) => html`<tr><td>${formatClock(Date.parse(run.at))}</td><td>${cellName(run.cell_index)}</td><td><${Ending} status=${run.status} /></td></tr>`)}</tbody>
    </table></div></details>`}`;
}

/** A dot for a run that ended well, a cross for one that did not. @param {{run: any, x: string, y: number}} props */
function Mark({ run, x, y }) {
  return html`<svg x=${x} y=${y} overflow="visible"><title>${formatClock(Date.parse(run.at))} ${cellName(run.cell_index)}</title><${Shape} status=${run.status} /></svg>`;
}

/** @param {{status: ?string}} props */
function Shape({ status }) {
  return status === "ok" ? html`<circle class="mark-ok" r="4" />` : html`<path class="mark-error" d="M-4 -4L4 4M4 -4L-4 4" />`;
}
