// @ts-check
/** What one can do about an alert, under its entry; and the notes of what was done, with their undo. */
import { html } from "../preact.js";
import { claim, dismiss, help, snooze } from "../actions.js";
import { t } from "../i18n.js";
import { Glyph } from "./glyph.js";
import { course, labelOf, me, notes, rows, talk } from "../store.js";
import { studentPath } from "./paths.js";

/** @param {{alert: import("../state.js").Alert, isDone: boolean}} props */
export function Acts({ alert, isDone }) {
  const row = rows.value[alert.i];
  const isMine = Boolean(alert.claim) && alert.claim?.by === me.value.user_id;
  const label = labelOf(row);
  const words = (/** @type {string} */ key) => `${t(key)}: ${label}`;
  return html`<div class="acts" inert=${isDone}>
    ${(isMine || !alert.claim) && html`<button data-act="claim" aria-pressed=${isMine} title=${t("act.claim_key")}
      aria-label=${words(isMine ? "act.claimed" : "act.claim")} onClick=${() => claim(alert)}>${t(isMine ? "act.claimed" : "act.claim")}</button>`}
    <button data-act="helped" title=${t("act.helped_key")} aria-label=${words("act.helped")} onClick=${() => help(alert)}><${Glyph} kind="ok" /><span class="word">${t("act.helped")}</span></button>
    <button data-act="snooze" title=${t("act.snooze_key")} aria-label=${words("act.snooze")} onClick=${() => snooze(alert)}><${Glyph} kind="later" /><span class="word">${t("act.snooze")}</span></button>
    <button data-act="message" title=${t("act.message_key")} aria-label=${words("act.message")} onClick=${() => (talk.value = { student: row.id })}>
      <${Glyph} kind="letter" /><span class="word">${row.mail ? t("act.mail", { n: row.mail }) : t("act.message")}</span>
    </button>
    <a class="act" data-act="open" href=${studentPath(course.value.id, row.id)} title=${words("act.open")} aria-label=${words("act.open")}><${Glyph} kind="open" /></a>
  </div>`;
}

/** Who is on it; always in sight. @param {{alert: import("../state.js").Alert}} props */
export function OnIt({ alert }) {
  if (!alert.claim) return null;
  const isMine = alert.claim.by === me.value.user_id;
  const words = isMine ? t("act.claimed_by_me") : t("act.claimed_by", { name: alert.claim.name });
  return html`<span class="claim" data-claim=${alert.claim.by} title=${words}>
    <span aria-hidden="true">→ <bdi>${isMine ? t("act.me") : alert.claim.name}</bdi></span><span class="unseen">${words}</span>
  </span>`;
}

export function Notes() {
  return html`<div class="notes" role="status">
    ${notes.value.map((/** @type {any} */ one) => html`<p key=${one.id} class="note">
      <span>${one.text}</span>
      ${one.undo && html`<button data-act="undo" onClick=${() => (dismiss(one.id), one.undo())}>${t("act.undo")}</button>`}
    </p>`)}
  </div>`;
}
