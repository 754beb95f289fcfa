// @ts-check
/**
 * Twenty seconds: whom first, and why. While the pointer or the keyboard's focus is inside, the list stands still:
 * who comes new waits behind the "n new" button, who is done stays in place, dimmed.
 */
import { html, useState } from "../preact.js";
import { formatClock, formatNumber, formatWait, t } from "../i18n.js";
import { cellNumberAt, STATUS_OF } from "../state.js";
import { alerts, cellNumbers, cells, classroom, labelOf, layout, now, rankedAlerts, rows, selected, tab, talk } from "../store.js";
import { Acts, OnIt } from "./acts.js";
import { Glyph } from "./glyph.js";
import { useHold } from "./hold.js";
import { Command } from "./pages.js";

/** @typedef {import("../state.js").Alert} Alert */

const MAIL_SHOWN = 5;

export function Attention() {
  const [isHeld, hand] = useHold();
  const [held, setHeld] = useState(/** @type {?Alert[]} */ (null));
  if (isHeld !== (held !== null)) setHeld(isHeld ? rankedAlerts.peek() : null);
  /** @type {Alert[]} */
  const list = held ?? rankedAlerts.value;
  const shownIds = new Set(list.map((alert) => alert.id));
  const fresh = held ? rankedAlerts.value.filter((/** @type {Alert} */ alert) => !shownIds.has(alert.id)) : [];
  return html`<section
    class="attention panel" aria-labelledby="attention-title" data-held=${held !== null}
    ...${hand}
  >
    <header class="panel-head">
      <h2 id="attention-title">${t("attention.title")}</h2>
      <span class="count" data-alert-count=${rankedAlerts.value.length}>${formatNumber(rankedAlerts.value.length)}</span>
      ${held && html`<${Held} fresh=${fresh} show=${() => setHeld(rankedAlerts.peek())} />`}
    </header>
    <${SamePerson} />
    <${Mail} />
    ${list.length === 0 ? html`<${Nobody} />` : html`<ol class="entries">
      ${list.map((alert) => html`<${Entry} key=${alert.id} alert=${alerts.value[alert.id] ?? alert} isDone=${!alerts.value[alert.id]} />`)}
    </ol>`}
  </section>`;
}

/** @param {{fresh: Alert[], show: () => void}} props */
function Held({ fresh, show }) {
  if (fresh.length === 0) return html`<span class="chip">${t("attention.held")}</span>`;
  const hasHelp = fresh.some((alert) => alert.kind === "help");
  return html`<button class="chip" data-new=${fresh.length} data-help=${hasHelp} onClick=${show}>
    ${t("attention.new", { n: fresh.length })}
  </button>`;
}

/** Joined twice with one number and without the resume code: only a person can say whether it is one person. */
function SamePerson() {
  const all = rows.value.filter(Boolean);
  const again = all.find((row) => row.same && all.some((one) => one.id === row.same));
  if (!again) return null;
  const first = all.find((one) => one.id === again.same);
  return html`<div class="question" data-same-person=${again.id}>
    <p>${t("same.question", { first: first.num, second: again.num })}</p>
    <p class="muted">${t("same.todo")}</p><${Command} text=${`nbpulse merge-users ${first.num} ${again.num}`} />
  </div>`;
}

function Nobody() {
  return html`<p class="calm"><${Glyph} kind="ok" /> ${t("attention.nobody")}</p>`;
}

/** @param {{alert: Alert, isDone: boolean}} props */
function Entry({ alert, isDone }) {
  const row = rows.value[alert.i];
  if (!row) return null;
  const point = () => {
    selected.value = selected.value === alert.i ? null : alert.i;
    if (layout.value === "tabs") tab.value = "grid";
  };
  const seat = [row.seat, row.team].filter(Boolean).join(" · ");
  return html`<li data-alert=${alert.id} data-kind=${alert.kind} data-status=${STATUS_OF[alert.kind]} data-alert-student=${row.id} data-done=${isDone}>
    <button class="entry" aria-pressed=${selected.value === alert.i} onClick=${point}>
      <span class="pill"><${Glyph} kind=${alert.kind} />${t(`kind.${alert.kind}`)}</span>
      <bdi class="name">${labelOf(row)}</bdi>
      <span class="between"><${OnIt} alert=${alert} />${seat && html`<bdi class="seat">${seat}</bdi>`}</span>
      <time title=${isDone ? "" : formatClock(alert.since)}>${isDone ? t("attention.done") : formatWait(now.value - alert.since)}</time>
      <span class="reason">${explain(alert, row)}
        ${alert.label && html` <code>${alert.label}${Number(alert.n) > 1 ? ` ×${alert.n}` : ""}</code>`}
      </span>
      ${alert.text && html`<q><bdi>${alert.text}</bdi></q>`}
    </button>
    <${Acts} alert=${alert} isDone=${isDone} />
  </li>`;
}

/** Students who wrote and were not answered: one press opens the thread. */
function Mail() {
  const waiting = rows.value.filter((row) => row?.mail);
  if (waiting.length === 0) return null;
  return html`<div class="question mail" data-mail=${waiting.length}>
    <span>${t("attention.mail")}</span>
    ${waiting.slice(0, MAIL_SHOWN).map((row) => html`<button key=${row.id} data-mail-of=${row.id} onClick=${() => (talk.value = { student: row.id })}>
      <bdi>${labelOf(row)}</bdi> ${formatNumber(row.mail ?? 0)}
    </button>`)}
    ${waiting.length > MAIL_SHOWN && html`<span>${t("attention.more", { n: waiting.length - MAIL_SHOWN })}</span>`}
  </div>`;
}

/** The reason in words. @param {Alert} alert @param {import("../state.js").Row} row */
export function explain(alert, row) {
  const cell = cellNumbers.value.get(alert.cell) ?? (alert.idx === null || alert.idx === undefined ? null : alert.idx + 1);
  const place = cell === null ? "" : t("attention.at_cell", { cell });
  const [pos, median] = [row.pos, classroom.value?.median ?? 0].map((column) => cellNumberAt(cells.value, column));
  const wait = formatWait(now.value - alert.since);
  const reason = t(`reason.${nameReason(alert, row)}`, { pos, median, wait, n: Number(alert.n), typical: formatWait(alert.typical ?? 0) });
  return [place, reason].filter(Boolean).join(" · ");
}

/** @param {Alert} alert @param {import("../state.js").Row} row */
function nameReason(alert, row) {
  if (alert.kind === "stuck") return alert.n && !alert.label ? "stuck_times" : "stuck"; // a label says "×n" itself
  if (alert.kind === "idle") return row.do === "away" ? "idle_away" : "idle";
  return Number(alert.typical) >= 1000 ? `${alert.kind}_typical` : alert.kind;
}
