// @ts-check
/**
 * A class report's numbers as sentences: pure, in the reader's language. Null is what is withheld from who reads.
 *
 * @typedef {{fingerprint: string, name: string, label: string, title: ?string, students: number}} CommonError
 * @typedef {{notebook_id: string, cell_id: string, cell_index: ?number, title: ?string, reached: ?number, ok: ?number,
 *   failed: ?number, runs: ?number, errors: ?number, timed: number, median_ms: ?number, p90_ms: ?number, error: ?CommonError}} CellFigures
 * @typedef {{students: ?number, came: ?number, runs: number, errors: number, stuck: ?number, hands: ?number, troubled: ?number,
 *   unreached: ?number, unpassed: ?number, waits: number, wait_median_ms: ?number, wait_worst_ms: ?number}} Figures
 * @typedef {{user_id: string, kind: "stuck"|"help", since: number, until: number, place: ?[string, string], passed: ?boolean, reached_at: ?number}} Trouble
 * @typedef {{id: string, title: ?string, started_at: string, ended_at: ?string}} Meeting
 * @typedef {{course: any, meeting: Meeting, is_whole?: boolean, figures: Figures, previous: ?{meeting: Meeting, figures: Figures},
 *   progress: ?{notebook_id: string, columns: number, students: number, quartiles: (?number)[]},
 *   notebooks: {id: string, path: string, title: ?string}[], cells: CellFigures[], never_came?: string[], troubles?: Trouble[],
 *   people?: {user_id: string, name: string, number: string, team: ?string}[], interventions?: any[], messages?: any[]}} Report
 */
import { formatMinutes, t } from "./i18n.js";
import { cellNumberAt } from "./state.js";

/** Of fewer than this part of those who came, a time says more of them than of the cell. */
const PART_LEAST = 0.25;

/** The cell with its number, its title where it has one, and its notebook where there are several. @param {Report} report @param {{notebook_id: string, cell_id: string, cell_index: ?number, title: ?string}} cell */
export function nameCell({ notebooks }, cell) {
  const number = cell.cell_index === null ? cell.cell_id : String(cell.cell_index + 1);
  const notebook = notebooks.length > 1 ? notebooks.find((one) => one.id === cell.notebook_id) : null;
  const words = cell.title ? t("report.cell_titled", { cell: number, title: cell.title }) : t("report.cell", { cell: number });
  return [words, notebook?.title || notebook?.path].filter(Boolean).join(" · ");
}

/** The cell on which the students were longest, of those that enough were on. @param {Report} report */
export function findLongest({ cells, figures }) {
  const enough = Math.max(1, (figures.came ?? 0) * PART_LEAST);
  return longest(cells.filter((cell) => cell.median_ms !== null && cell.timed >= enough), (cell) => cell.median_ms ?? 0);
}

/** The cell on which most students failed. @param {Report} report */
export const findHardest = ({ cells }) => longest(cells.filter((cell) => cell.failed), (cell) => (cell.failed ?? 0) + (cell.errors ?? 0) / 1e6);

/** @template T @param {T[]} of @param {(one: T) => number} by @returns {?T} */
const longest = (of, by) => of.reduce((/** @type {?T} */ best, one) => (best === null || by(one) > by(best) ? one : best), null);

/** What next year's notebook should know, one line each. @param {Report} report @returns {string[]} */
export function composeSentences(report) {
  const { figures } = report;
  const [long, hard] = [findLongest(report), findHardest(report)];
  return [
    long && t("report.waited", { cell: nameCell(report, long), median: formatMinutes(long.median_ms ?? 0), p90: formatMinutes(long.p90_ms ?? 0) }),
    hard
      ? t(hard.error ? "report.hardest" : "report.hardest_mixed", { cell: nameCell(report, hard), n: hard.failed ?? 0, reached: hard.reached ?? 0, error: hard.error?.title ?? hard.error?.label ?? "", sharers: hard.error?.students ?? 0 })
      : figures.runs > 0 && figures.errors === 0 && t("report.no_errors"),
    describeUnreached(figures),
    describeWaits(figures),
  ].filter((one) => typeof one === "string" && one !== "");
}

/** @param {Figures} figures */
function describeUnreached({ troubled, unreached, unpassed, runs }) {
  if (troubled === 0) return runs > 0 && t("report.no_trouble");
  if (troubled === null || unreached === null) return false;
  if (unreached === 0) return t("report.all_reached", { n: troubled });
  return unpassed ? t("report.unreached_unpassed", { n: unreached, troubled, unpassed }) : t("report.unreached", { n: unreached, troubled });
}

/** @param {Figures} figures */
function describeWaits({ waits, wait_median_ms: median, wait_worst_ms: worst }) {
  if (!waits || median === null) return false;
  if (worst === null) return t("report.help_median", { n: waits, median: formatMinutes(median) });
  return t("report.help_took", { n: waits, median: formatMinutes(median), worst: formatMinutes(worst) });
}

/** How far the students came: the numbers of the cells at the quartiles. @param {Report} report @returns {?(?number)[]} */
export function findProgress({ progress, cells }) {
  if (!progress || progress.students === 0) return null;
  const columns = cells.filter((cell) => cell.notebook_id === progress.notebook_id).map((cell, place) => ({ id: cell.cell_id, idx: cell.cell_index ?? place, title: null }));
  return progress.quartiles.map((position) => (position === null ? null : cellNumberAt(columns, position)));
}
