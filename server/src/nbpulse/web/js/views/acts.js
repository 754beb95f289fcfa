// @ts-check
/** What one can do about an alert, under its entry; and the notes of what was done, with their undo. */
import { html } from "../preact.js";
import { claim, dismiss, help, snooze } from "../actions.js";
import { t } from "../i18n.js";
import { labelOf, me, notes, rows, talk } from "../store.js";

/** @param {{alert: import("../state.js").Alert, isDone: boolean}} props */
export function Acts({ alert, isDone }) {
  const row = rows.value[alert.i];
  const isMine = alert.claim?.by === me.value.user_id;
  const isOthers = Boolean(alert.claim) && !isMine;
  const label = labelOf(row);
  const words = (/** @type {string} */ key) => `${t(key)}: ${label}`;
  return html`<div class="acts" inert=${isDone}>
    ${isOthers
      ? html`<span class="claim" data-claim=${alert.claim?.by}>${t("act.claimed_by", { name: alert.claim?.name ?? "" })}</span>`
      : html`<button data-act="claim" data-claim=${isMine ? alert.claim?.by : null} aria-pressed=${isMine} title=${t("act.claim_key")}
          aria-label=${words(isMine ? "act.claimed" : "act.claim")} onClick=${() => claim(alert)}>${t(isMine ? "act.claimed" : "act.claim")}</button>`}
    <button data-act="helped" title=${t("act.helped_key")} aria-label=${words("act.helped")} onClick=${() => help(alert)}>${t("act.helped")}</button>
    <button data-act="snooze" aria-label=${words("act.snooze")} onClick=${() => snooze(alert)}>${t("act.snooze")}</button>
    <button data-act="message" title=${t("act.message_key")} aria-label=${words("act.message")} onClick=${() => (talk.value = { student: row.id })}>
      ${row.mail ? t("act.mail", { n: row.mail }) : t("act.message")}
    </button>
  </div>`;
}

export function Notes() {
  return html`<div class="notes" role="status">
    ${notes.value.map((/** @type {any} */ one) => html`<p key=${one.id} class="note">
      <span>${one.text}</span>
      ${one.undo && html`<button data-act="undo" onClick=${() => (dismiss(one.id), one.undo())}>${t("act.undo")}</button>`}
    </p>`)}
  </div>`;
}
