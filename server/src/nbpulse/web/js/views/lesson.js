// @ts-check
/** Where the class is being taught: said by staff, seen on every board, in the grid and in the progress curve. */
import { html } from "../preact.js";
import { say } from "../actions.js";
import { ApiError, markPosition } from "../api.js";
import { t } from "../i18n.js";
import { cells, charts, classroom, course, guessedCell, lessonColumn } from "../store.js";

// The server's word comes with the next frame; by then what was supposed is no longer needed.
const GUESS_KEPT_MS = 1_500;
let isSaying = false;

/** The class is at this cell (null: at none) of the notebook shown. @param {?string} cell */
export async function markCell(cell) {
  const notebookId = classroom.peek()?.notebook?.id;
  if (!notebookId) return;
  guessedCell.value = { notebookId, cell };
  if (isSaying) return; // what is on its way comes first; of what is chosen meanwhile the last is said after it
  isSaying = true;
  try {
    let said;
    do {
      said = guessedCell.peek();
      await markPosition(course.peek().id, said.notebookId, said.cell);
    } while (guessedCell.peek() !== said);
    setTimeout(() => guessedCell.peek() === said && (guessedCell.value = null), GUESS_KEPT_MS);
  } catch (error) {
    guessedCell.value = null;
    if (!(error instanceof ApiError)) throw error;
    say(error.title || t("problem.unreachable"));
  } finally {
    isSaying = false;
  }
}

/** The cell under the pointer or with the focus, if there is one. */
export function markPointed() {
  const place = document.querySelector("[role=grid] :is([data-cell], [data-head]):hover") ?? document.activeElement?.closest("[role=grid] [data-cell]");
  const { cell, head } = /** @type {?HTMLElement} */ (place)?.dataset ?? {};
  if (cell || head) markCell(/** @type {string} */ (cell ?? head));
}

/** So many cells on, or back. @param {number} by */
export function stepLesson(by) {
  const column = Math.min(Math.max(lessonColumn.peek() + by, 0), cells.peek().length - 1);
  const cell = cells.peek()[column];
  if (cell && column !== lessonColumn.peek()) markCell(cell.id);
}

/** Where the class is, in the head of the grid. */
export function Lesson() {
  const columns = cells.value;
  if (columns.length === 0) return null;
  const at = lessonColumn.value;
  const reached = charts.value.funnel[at]?.[1];
  const step = (/** @type {string} */ name, /** @type {number} */ by, /** @type {string} */ sign) => html`<button data-lesson=${name}
    aria-label=${t(`lesson.${name}`)} title=${t(`lesson.${name}`)} disabled=${at + by < 0 || at + by >= columns.length} onClick=${() => stepLesson(by)}>${sign}</button>`;
  return html`<span class="lesson" role="group" aria-label=${t("lesson.title")} title=${t("lesson.explain")}>
    <label>${t("lesson.title")} <select data-lesson="cell" value=${columns[at]?.id ?? ""} onChange=${(/** @type {any} */ e) => markCell(e.target.value || null)}>
      <option value="" selected=${at < 0}>${t("lesson.none")}</option>
      ${columns.map((cell, column) => html`<option key=${cell.id} value=${cell.id} selected=${column === at}>${cell.idx + 1}${cell.title ? ` ${cell.title}` : ""}</option>`)}
    </select></label>
    <span class="segments">${step("back", -1, "‹")}${step("next", 1, "›")}</span>
    ${reached !== undefined && html`<span class="muted" data-lesson-reached=${reached}>${t("lesson.reached", { n: reached })}</span>`}
  </span>`;
}
