// @ts-check
/** What a class report shows, to the staff and by a link alike: sentences, figures beside the meeting before, cells. */
import { html, useState } from "../preact.js";
import { formatNumber, formatMinutes, t } from "../i18n.js";
import { composeSentences, findProgress } from "../report.js";

/** @typedef {import("../report.js").Report} Report */
/** @typedef {import("../report.js").Figures} Figures */

const withheld = () => html`<span class="muted" title=${t("report.withheld")}>${t("report.few")}</span>`;
/** @param {?number} count */
const count = (count) => (count === null ? withheld() : formatNumber(count));

/** For next year's notebook. @param {{report: Report}} props */
export function Sentences({ report }) {
  const [isCopied, setCopied] = useState(false);
  const sentences = composeSentences(report);
  const copy = () => navigator.clipboard.writeText(sentences.map((one) => `- ${one}\n`).join("")).then(() => setCopied(true));
  return html`<section class="card" data-part="sentences" aria-labelledby="sentences-title">
    <h2 id="sentences-title">${t("report.sentences")}</h2>
    <ul class="sentences">${sentences.map((one) => html`<li key=${one}><bdi>${one}</bdi></li>`)}</ul>
    ${navigator.clipboard && html`<button class="screen" data-action="copy-sentences" onClick=${copy}>${isCopied ? t("command.copied") : t("report.copy")}</button>`}
  </section>`;
}

/** A figure's key, how it is told, and how its difference is. @type {[string, (of: Figures) => any, ((of: Figures) => ?number)?, ((value: number) => string)?][]} */
const FIGURES = [
  ["came", ({ came, students }) => (came === null || students === null ? count(came) : t("report.of", { n: came, all: students })), ({ came }) => came],
  ["runs", ({ runs }) => formatNumber(runs), ({ runs }) => runs],
  ["errors", ({ errors, runs }) => (runs ? t("report.share", { n: errors, percent: Math.round((100 * errors) / runs) }) : formatNumber(errors)), ({ errors }) => errors],
  ["stuck", ({ stuck }) => count(stuck), ({ stuck }) => stuck],
  ["hands", ({ hands }) => count(hands), ({ hands }) => hands],
  ["nobody", ({ unreached }) => count(unreached), ({ unreached }) => unreached],
  ["wait_median", ({ wait_median_ms: ms }) => tellWait(ms), ({ wait_median_ms: ms }) => ms, formatMinutes],
  ["wait_worst", ({ wait_worst_ms: ms }) => tellWait(ms), ({ wait_worst_ms: ms }) => ms, formatMinutes],
];

/** @param {?number} ms */
const tellWait = (ms) => (ms === null ? "–" : formatMinutes(ms));

/** @param {?number} now @param {?number} before @param {(value: number) => any} tell */
function tellDifference(now, before, tell) {
  if (now === null || before === null) return "";
  if (now === before) return "±0";
  return `${now > before ? "+" : "−"}${tell(Math.abs(now - before))}`;
}

/** The meeting in figures, beside the one before it. @param {{report: Report}} props */
export function Comparison({ report: { figures, previous: told } }) {
  // One to which few came is not told of by a link.
  const previous = told && told.figures.came !== null ? told : null;
  const head = previous && [t("report.before"), t("report.difference")];
  return html`<section class="card" data-part="figures" aria-labelledby="figures-title">
    <h2 id="figures-title">${t("report.figures")}</h2>
    <table class="figures">
      <thead><tr><td></td><th scope="col">${t("report.this")}</th>${head && head.map((one) => html`<th key=${one} scope="col">${one}</th>`)}</tr></thead>
      <tbody>${FIGURES.map(([name, tell, value, describe = formatNumber]) => html`<tr key=${name} data-figure=${name}>
        <th scope="row">${t(`figure.${name}`)}</th><td>${tell(figures)}</td>
        ${previous && value && html`<td class="muted">${tell(previous.figures)}</td><td class="muted">${tellDifference(value(figures), value(previous.figures), describe)}</td>`}
      </tr>`)}</tbody>
    </table>
    ${!told && html`<p class="muted">${t("report.no_previous")}</p>`}
    <p class="muted">${t("report.figures_explain")}</p>
  </section>`;
}

/** How far the class came, and each cell. @param {{report: Report, children?: any}} props */
export function Cells({ report, children }) {
  const quartiles = findProgress(report);
  return html`<section class="card" data-part="cells" aria-labelledby="cells-title">
    <h2 id="cells-title">${t("report.cells")}</h2>
    ${quartiles && html`<p data-progress>${t(quartiles[0] === null ? "report.progress_shared" : "report.progress", {
      least: quartiles[0] ?? 0, lower: quartiles[1] ?? 0, median: quartiles[2] ?? 0, upper: quartiles[3] ?? 0, most: quartiles[4] ?? 0,
    })}</p>`}
    ${report.notebooks.map((notebook) => html`<${NotebookCells} key=${notebook.id} report=${report} notebook=${notebook} />`)}
    ${children}
  </section>`;
}

/** @param {{report: Report, notebook: {id: string, path: string, title: ?string}}} props */
function NotebookCells({ report, notebook }) {
  const cells = report.cells.filter((cell) => cell.notebook_id === notebook.id);
  const name = notebook.title || notebook.path;
  return html`<div class="wide-table" tabindex="0" role="group" aria-label=${name}><table class="cells">
    <caption><bdi>${name}</bdi></caption>
    <thead><tr>${["cell", "reached", "ok", "failed", "median", "p90", "error"].map((column) => html`<th key=${column} scope="col">${t(`column.${column}`)}</th>`)}</tr></thead>
    <tbody>${cells.map((cell) => html`<tr key=${cell.cell_id} data-cell=${cell.cell_id}>
      <th scope="row"><b>${cell.cell_index === null ? "" : cell.cell_index + 1}</b> ${cell.title && html`<bdi>${cell.title}</bdi>`}</th>
      <td>${count(cell.reached)}</td><td>${cell.reached === 0 ? "" : count(cell.ok)}</td><td>${cell.reached === 0 ? "" : count(cell.failed)}</td>
      <td>${tellWait(cell.median_ms)}</td><td>${tellWait(cell.p90_ms)}</td>
      <td>${cell.error && html`${cell.error.title ? html`<bdi title=${cell.error.label}>${cell.error.title}</bdi>` : html`<code>${cell.error.label}</code>`} <span class="muted">${t("shared.students", { n: cell.error.students })}</span>`}</td>
    </tr>`)}</tbody>
  </table></div>`;
}
