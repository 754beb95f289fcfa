// @ts-check
/** Who else looks after this class: here, on the way to somebody, or away. */
import { html } from "../preact.js";
import { t } from "../i18n.js";
import { classroom, labelOf, rows } from "../store.js";

export function Staff() {
  const { staff } = /** @type {import("../state.js").State} */ (classroom.value);
  if (staff.length === 0) return null;
  return html`<span class="staff" role="group" aria-label=${t("staff.title")}>${staff.map(({ id, name, here, with: i }) => {
    const student = i === null ? undefined : rows.value[i];
    const doing = student ? t("staff.with", { student: labelOf(student) }) : here ? "" : t("staff.away");
    return html`<span key=${id} data-staff=${id} data-here=${here}><bdi>${name}</bdi>${doing && html` <bdi class="muted">${doing}</bdi>`}</span>`;
  })}</span>`;
}
