// @ts-check
/** The line above the grid: of each cell, how many have come to it, and how it stands with them. */
import { html, memo } from "../preact.js";
import { formatNumber, formatSpan, t } from "../i18n.js";

/** @typedef {import("../state.js").Funnel} Entry */

/** @param {{funnel: Entry[], columns: import("../state.js").Cell[], size: number}} props `size`: students in all */
export const Funnel = memo(({ funnel, columns, size }) => html`<div class="row funnel" role="row">
  <div class="who" role="rowheader" tabindex="-1">${t("funnel.title")}</div>
  <div class="squares" role="none">
    ${columns.map((cell, column) => html`<${Bar} key=${cell.id} id=${cell.id} entry=${funnel[column]} size=${size} />`)}
  </div>
</div>`);

const HIGH = 28;

/** One cell's bar: from below ok, error, not (or not yet) run. */
const Bar = memo(({ id, entry, size }) => {
  const [, reached = 0, ok = 0, error = 0] = entry ?? [];
  const scale = HIGH / Math.max(size, 1);
  const part = (/** @type {string} */ kind, /** @type {number} */ below, /** @type {number} */ n) =>
    html`<rect data-kind=${kind} x="0" width="10" y=${HIGH - (below + n) * scale} height=${n * scale} />`;
  return html`<span role="gridcell" tabindex="-1" data-cell=${id} data-reached=${reached} data-ok=${ok} data-error=${error} aria-label=${describeEntry(entry)}>
    <svg viewBox=${`0 0 10 ${HIGH}`} preserveAspectRatio="none" aria-hidden="true">
      ${part("reached", ok + error, Math.max(0, reached - ok - error))}${part("error", ok, error)}${part("ok", 0, ok)}
    </svg>
  </span>`;
});

/** @param {Entry | undefined} entry */
export function describeEntry(entry) {
  if (!entry) return "";
  const [, reached, ok, error, , half, , most] = entry;
  const counted = t("funnel.counts", { reached, ok, error });
  return half === null || most === null ? counted : `${counted} · ${t("funnel.times", { half: formatSpan(half), most: formatSpan(most) })}`;
}

/** The funnel and the times as a table. @param {{funnel: Entry[], columns: import("../state.js").Cell[]}} props */
export function CellTable({ funnel, columns }) {
  const names = ["cell", "reached", "ok", "error", "quarter", "half", "three_quarters", "most"];
  return html`<table>
    <thead><tr>${names.map((name) => html`<th key=${name} scope="col">${t(`cells.${name}`)}</th>`)}</tr></thead>
    <tbody>${columns.map((cell, column) => {
      const [, reached = 0, ok = 0, error = 0, ...spans] = funnel[column] ?? [];
      return html`<tr key=${cell.id}><th scope="row">${formatNumber(cell.idx + 1)}</th>
        ${[reached, ok, error].map((n, place) => html`<td key=${place}>${formatNumber(n)}</td>`)}
        ${spans.map((span, place) => html`<td key=${place}>${span === null || span === undefined ? "–" : formatSpan(span)}</td>`)}</tr>`;
    })}</tbody>
  </table>`;
}
