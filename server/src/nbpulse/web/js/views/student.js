// @ts-check
/** One student: how they stand now, what they did in this class, their runs, and what staff did for them. */
import { ApiError, fetchIntegrity, fetchInterventions, fetchRuns, fetchSessions, fetchStudent } from "../api.js";
import { effect, html, useEffect, useRef, useState } from "../preact.js";
import { formatWait, t } from "../i18n.js";
import { cellNumberAt, rankAlerts } from "../state.js";
import { alerts, cells, classroom, hasShortcuts, labelOf, minute, now, rows, talk } from "../store.js";
import { Acts, OnIt } from "./acts.js";
import { explain } from "./attention.js";
import { Glyph } from "./glyph.js";
import { describeGap } from "./grid.js";
import { useClass } from "./live.js";
import { Problem, Refused } from "./pages.js";
import { Timeline } from "./timeline.js";
import { cellPath, errorPath } from "./paths.js";
import { cellName, Ending, formatDuration, formatMoment, NotCollected, Texts, WorkPage } from "./work.js";

const REFRESH_LEAST_MS = 5_000;
const REFRESH_MOST_MS = 30_000;
const GAPS_WITHIN_MS = 12 * 3_600_000;

/** @param {{courseId: string, title: string, item: string}} props `item`: the student's id */
export function StudentPage({ courseId, title, item: userId }) {
  const [told, setTold] = useState(/** @type {any} */ (null));
  const [problem, setProblem] = useState(/** @type {?ApiError} */ (null));
  const read = async () => {
    try {
      const [about, { runs, next }, { sessions }, { interventions }, { integrity }] = await Promise.all([
        fetchStudent(courseId, userId), fetchRuns(courseId, userId), fetchSessions(courseId, userId),
        fetchInterventions(courseId, userId), fetchIntegrity(courseId, Date.now() - GAPS_WITHIN_MS, userId),
      ]);
      setTold({ ...about, runs, next, sessions, interventions, integrity });
      setProblem(null);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setProblem(error);
    }
  };
  useEffect(() => void read(), [courseId, userId]);
  if (problem && !told) return html`<${Refused} error=${problem} />`;
  const page = { name: "student", title: html`<bdi>${told && labelOf(told.student)}</bdi>`, courseId, course: title };
  const tools = html`<button data-act="message" title=${t("act.message_key")} onClick=${() => (talk.value = { student: userId })}>${t("student.message")}</button>`;
  return html`<${WorkPage} ...${page} tools=${tools}>
    ${problem && html`<${Problem} error=${problem} />`}
    ${told && html`<${About} courseId=${courseId} told=${told} read=${read} />`}
  <//>`;
}

/** @param {{courseId: string, told: any, read: () => void}} props */
function About({ courseId, told, read }) {
  const { student, span, collects, trace } = told;
  const userId = student.user_id;
  const { refusal } = useClass(courseId, trace.notebook_id);
  useNews(userId, read);
  useEffect(() => listenToKeys(userId), [userId]);
  return html`${refusal && html`<${Problem} error=${refusal} />`}
    <p class="ends chips">${[student.seat, student.team].filter(Boolean).map((/** @type {string} */ one) => html`<bdi class="note-chip">${one}</bdi>`)}
      ${told.has_withdrawn && html`<span class="note-chip">${t("student.withdrawn")}</span>`}
    </p>
    <${Standing} userId=${userId} />
    <section class="card" data-part="timeline" aria-labelledby="timeline-title"><h2 id="timeline-title">${t("timeline.title")}</h2>
      <${Timeline} span=${span} trace=${trace} /></section>
    <${Runs} courseId=${courseId} userId=${userId} first=${told.runs} next=${told.next} collects=${collects} />
    <${Hands} hands=${trace.hands} />
    <${Care} log=${told.interventions} />
    <${Gaps} signs=${told.integrity} />
    <${Sessions} sessions=${told.sessions} />`;
}

/** Asks again when the class says that this student moved, not more often than each 5 s. @param {string} userId @param {() => void} read */
function useNews(userId, read) {
  const newest = useRef(read);
  newest.current = read;
  useEffect(() => {
    let [seen, readAt] = ["", Date.now()];
    /** @type {ReturnType<typeof setTimeout>|undefined} */
    let timer;
    const again = () => {
      timer = undefined;
      readAt = Date.now();
      newest.current();
    };
    const stop = effect(() => {
      const row = classroom.value && rows.value.find((one) => one?.id === userId);
      const { s, pos, st, since, quiet, mail } = row ?? {};
      const state = JSON.stringify([s, pos, st, since, quiet, mail]);
      if (seen && state !== seen) timer ??= setTimeout(again, Math.max(0, readAt + REFRESH_LEAST_MS - Date.now()));
      if (row) seen = state;
    });
    // Work in another notebook than the one that is watched moves no square here.
    const slow = setInterval(() => !document.hidden && Date.now() - readAt > REFRESH_LEAST_MS && again(), REFRESH_MOST_MS);
    return () => {
      stop();
      clearTimeout(timer);
      clearInterval(slow);
    };
  }, [userId]);
}

/** @param {string} userId */
function listenToKeys(userId) {
  /** @param {KeyboardEvent} event */
  const press = (event) => {
    const target = /** @type {HTMLElement} */ (event.target);
    if (event.key !== "m" || !hasShortcuts.value || event.ctrlKey || event.metaKey || event.altKey || talk.value || target.closest("input, select, textarea, dialog")) return;
    event.preventDefault();
    talk.value = { student: userId };
  };
  addEventListener("keydown", press);
  return () => removeEventListener("keydown", press);
}

/** As the board's row and entries, live. @param {{userId: string}} props */
function Standing({ userId }) {
  const row = classroom.value && rows.value.find((one) => one?.id === userId);
  if (!row) return html`<section class="card" data-part="standing"><h2>${t("student.now")}</h2><p class="muted">${t("link.connecting")}</p></section>`;
  const mine = rankAlerts(alerts.value, minute.value).filter((alert) => alert.i === row.i);
  const [pos, total] = [row.pos, cells.value.length].map((column) => cellNumberAt(cells.value, column));
  return html`<section class="card" data-part="standing" data-st=${row.st} aria-labelledby="standing-title">
    <h2 id="standing-title">${t("student.now")}</h2>
    <p class="ends" data-kind=${row.st}><span class="pill"><${Glyph} kind=${row.st} />${t(`status.${row.st}`)}</span>
      ${row.since > 0 && row.st !== "ok" && html`<span>${formatWait(Math.max(0, now.value - row.since))}</span>`}
      <span class="muted">${t("student.reached", { pos, total })}</span></p>
    ${mine.map((alert) => html`<div key=${alert.id} class="reasons" data-alert=${alert.id} data-kind=${alert.kind}>
      <p>${explain(alert, row)}${alert.label && html` <code>${alert.label}${Number(alert.n) > 1 ? ` ×${alert.n}` : ""}</code>`} <${OnIt} alert=${alert} /></p>
      ${alert.text && html`<q><bdi>${alert.text}</bdi></q>`}
      <${Acts} alert=${alert} isDone=${false} />
    </div>`)}
  </section>`;
}

/** @param {{courseId: string, userId: string, first: any[], next: ?string, collects: any}} props */
function Runs({ courseId, userId, first, next, collects }) {
  const [older, setOlder] = useState(/** @type {{runs: any[], next: ?string}|null} */ (null));
  const [problem, setProblem] = useState(/** @type {?ApiError} */ (null));
  const known = new Set(first.map((run) => run.event_id));
  const runs = [...first, ...(older?.runs ?? []).filter((run) => !known.has(run.event_id))];
  const cursor = older ? older.next : next;
  const more = async () => {
    try {
      const page = await fetchRuns(courseId, userId, { cursor: /** @type {string} */ (cursor) });
      setOlder({ runs: [...(older?.runs ?? []), ...page.runs], next: page.next });
      setProblem(null);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setProblem(error);
    }
  };
  return html`<section class="card" data-part="runs" aria-labelledby="runs-title">
    <h2 id="runs-title">${t("student.runs")}</h2>
    <${NotCollected} collects=${collects} />
    ${runs.length === 0 && html`<p class="muted">${t("student.no_runs")}</p>`}
    <ol class="runs">${runs.map((run) => html`<${Run} key=${run.event_id} courseId=${courseId} run=${run} />`)}</ol>
    ${problem && html`<${Problem} error=${problem} />`}
    ${cursor && html`<button data-action="more" onClick=${more}>${t("work.more")}</button>`}
  </section>`;
}

/** @param {{courseId: string, run: any}} props */
function Run({ courseId, run }) {
  const hasTexts = run.source || run.output || run.error_message || run.traceback;
  const line = html`<time>${formatMoment(run.at)}</time><${Ending} status=${run.status} /><span>${cellName(run.cell_index)}</span>
    ${run.error_label && html`<code>${run.error_label}</code>`}<span class="muted">${formatDuration(run.duration_ms)}</span>`;
  return html`<li data-run=${run.event_id} data-run-status=${run.status}>
    ${hasTexts ? html`<details><summary><span class="run-line">${line}</span></summary><${Texts} run=${run} /><${Ways} courseId=${courseId} run=${run} /></details>` : html`<p class="run-line">${line}</p>`}
  </li>`;
}

/** From a run to its cell and its error. @param {{courseId: string, run: any}} props */
function Ways({ courseId, run }) {
  return html`<p class="ends">
    ${run.notebook_id && run.cell_id && html`<a href=${cellPath(courseId, run.notebook_id, run.cell_id)} data-way="cell">${t("work.to_cell")}</a>`}
    ${run.error_fingerprint && html`<a href=${errorPath(courseId, run.error_fingerprint)} data-way="error">${t("work.to_error")}</a>`}
  </p>`;
}

/** @param {{hands: any[]}} props */
function Hands({ hands }) {
  if (hands.length === 0) return null;
  return html`<section class="card" data-part="hands"><h2>${t("student.hands")}</h2><ul class="people">${hands.map((hand) => html`<li>
    <span><time>${formatMoment(hand.opened_at)}</time> ${hand.text && html`<q><bdi>${hand.text}</bdi></q>`}</span>
    <span class="muted">${hand.closed_at ? t("student.hand_down", { wait: formatWait(Date.parse(hand.closed_at) - Date.parse(hand.opened_at)) }) : t("student.hand_up")}</span>
  </li>`)}</ul></section>`;
}

/** What staff did for them. @param {{log: any[]}} props */
function Care({ log }) {
  return html`<section class="card" data-part="care"><h2>${t("student.care")}</h2>
    ${log.length === 0 && html`<p class="muted">${t("student.no_care")}</p>`}
    ${log.length > 0 && html`<ul class="people">${log.map((one) => html`<li key=${one.id} data-undone=${one.is_undone}>
      <span><time>${formatMoment(one.at)}</time> <bdi>${one.name}</bdi> · ${t(`care.${one.action}`)}${one.rule && ` · ${t(`status.${one.rule}`)}`}${one.is_undone && ` · ${t("care.undone")}`}
        ${one.note && html`<br /><bdi>${one.note}</bdi>`}</span>
      ${one.got_past !== null && html`<span class="muted">${t(one.got_past ? "care.got_past" : "care.not_past")}</span>`}
    </li>`)}</ul>`}</section>`;
}

/** @param {{signs: import("../api.js").Sign[]}} props */
function Gaps({ signs }) {
  return html`<section class="card" data-part="gaps"><h2>${t("student.gaps")}</h2>
    <p class=${signs.length ? "" : "muted"}>${signs.length ? describeGap(signs) : t("student.no_gaps")}</p></section>`;
}

/** @param {{sessions: any[]}} props */
function Sessions({ sessions }) {
  return html`<section class="card" data-part="sessions"><h2>${t("student.sessions")}</h2>
    ${sessions.length === 0 ? html`<p class="muted">${t("student.no_sessions")}</p>` : html`<div class="scrolls" tabindex="0" role="group" aria-label=${t("student.sessions")}><table class="rows">
      <thead><tr>${["at", "notebook", "length", "runs", "errors"].map((name) => html`<th>${t(`sessions.${name}`)}</th>`)}</tr></thead>
      <tbody>${sessions.map((one) => html`<tr key=${one.id}><td>${formatMoment(one.started_at)}</td><td><bdi>${one.notebook_path}</bdi></td>
        <td>${one.total_duration_ms === null ? t("sessions.goes_on") : formatWait(one.total_duration_ms)}</td><td>${one.cell_executions}</td><td>${one.error_count}</td></tr>`)}</tbody>
    </table></div>`}</section>`;
}
