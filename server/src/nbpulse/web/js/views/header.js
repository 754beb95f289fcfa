// @ts-check
/** The top line: which class, how fresh, and the few things one can switch. */
import { html, useEffect, useRef, useState } from "../preact.js";
import { say } from "../actions.js";
import { endMeeting, reopenMeeting, startMeeting } from "../api.js";
import { chooseLanguage, formatClock, language, LANGUAGES, t } from "../i18n.js";
import { classroom, course, isHelpOpen, isNamed, layout, link, searchText, setTheme, theme, toggleNames } from "../store.js";
import { AccountButton } from "./account.js";
import { Glyph } from "./glyph.js";
import { CourseNav } from "./nav.js";

/** @param {{showNotebook: (id: string) => void}} props */
export function Header({ showNotebook }) {
  const { title, is_demo: isDemo } = course.value;
  const isWide = layout.value === "wide";
  const settings = html`<${Preferences} /><${HelpButton} />`;
  return html`<header class="top live-top">
    <div class="what">
      <h1 title=${title}><bdi>${title}</bdi>${isDemo && html` <span class="demo" data-demo title=${t("demo.explain")}>${t("demo.badge")}</span>`}</h1>
      <p><${NotebookPicker} show=${showNotebook} /><${MeetingTime} /></p>
    </div>
    <details class="menu" data-menu="pages" onKeyDown=${closeOnEscape}><summary>${t(isWide ? "nav.title" : "nav.menu")}</summary>
      <div class="menu-body"><${CourseNav} courseId=${course.value.id} current="" />${!isWide && html`<p>${settings}</p>`}</div></details>
    <${Meeting} />
    <${LinkState} />
    <span class="spread"></span>
    ${isWide && html`<${Search} />`}
    <button class="toggle" data-action="names" aria-pressed=${isNamed.value} title=${t("names.key")} onClick=${toggleNames}>
      ${isNamed.value ? t("names.hide") : t("names.show")}
    </button>
    ${isWide && settings}
  </header>`;
}

/** @param {KeyboardEvent & {currentTarget: HTMLDetailsElement}} event */
function closeOnEscape(event) {
  if (event.key !== "Escape" || !event.currentTarget.open) return;
  event.stopPropagation();
  event.currentTarget.open = false;
  event.currentTarget.querySelector("summary")?.focus();
}

/** @type {Record<string, string>} how much of the disc is dark */
const THEMES = { auto: "M12 5a7 7 0 0 1 0 14z", light: "", dark: "M12 5a7 7 0 0 1 0 14a7 7 0 0 1 0-14z" };

/** Language, theme and who is signed in; on every page. */
export function Preferences() {
  const themes = Object.keys(THEMES);
  const next = themes[(themes.indexOf(theme.value) + 1) % themes.length];
  return html`<span class="segments" role="group" aria-label=${t("language.title")}>
      ${LANGUAGES.map((lang) => html`<button key=${lang} lang=${lang} data-lang=${lang} aria-label=${t(`language.${lang}`)}
        aria-pressed=${language.value === lang} onClick=${() => chooseLanguage(lang)}>${lang}</button>`)}
    </span>
    <button class="icon" data-action="theme" aria-label=${t(`theme.${theme.value}`)} title=${t(`theme.${theme.value}`)} onClick=${() => setTheme(next)}>
      <svg class="glyph" viewBox="0 0 24 24" aria-hidden="true"><circle cx="12" cy="12" r="7" /><path class="solid" d=${THEMES[theme.value]} /></svg>
    </button>
    <${AccountButton} />`;
}

function MeetingTime() {
  const { meeting } = /** @type {import("../state.js").State} */ (classroom.value);
  if (!meeting) return null;
  const time = formatClock(meeting.ended_at ?? meeting.started_at).slice(0, 5);
  return html`<span class="since">${t(meeting.ended_at ? "meeting.ended" : "meeting.since", { time })}</span>`;
}

/** The class meeting's button. An end can be taken back for ten seconds; then there is its report. */
function Meeting() {
  const [failure, setFailure] = useState("");
  const { meeting } = /** @type {import("../state.js").State} */ (classroom.value);
  const isOn = Boolean(meeting && !meeting.ended_at);
  const run = async (/** @type {() => Promise<any>} */ work) => {
    setFailure("");
    try {
      await work();
    } catch (error) {
      setFailure(/** @type {any} */ (error).title || /** @type {Error} */ (error).message);
    }
  };
  const courseId = course.value.id;
  const end = async () => {
    const { id } = await endMeeting(courseId);
    say(t("meeting.ended_note"), () => run(() => reopenMeeting(courseId, id)));
  };
  return html`<span class="meeting" data-meeting=${isOn ? "on" : "off"} title=${failure}>
    ${isOn
      ? html`<button data-action="end-meeting" title=${t("meeting.end_explain")} onClick=${() => run(end)}>${t("meeting.end")}</button>`
      : html`${meeting && html`<a data-action="report" href=${`/courses/${encodeURIComponent(courseId)}/report/${meeting.id}`}>${t("meeting.report")}</a>`}
        <button data-action="start-meeting" onClick=${() => run(() => startMeeting(courseId))}>${t("meeting.start")}</button>`}
    ${failure && html`<span role="alert">${failure}</span>`}
  </span>`;
}

function LinkState() {
  const { phase, lagMs, asOf } = link.value;
  const seconds = lagMs === null ? "" : (lagMs / 1000).toFixed(1);
  const words = {
    connecting: () => t("link.connecting"),
    live: () => (seconds ? t("link.live_lag", { seconds }) : t("link.live")),
    stale: () => t("link.stale", { time: formatClock(asOf ?? 0) }),
    reconnecting: () => t("link.reconnecting", { time: formatClock(asOf ?? 0) }),
  }[phase];
  return html`<span class="link" data-link=${phase} data-lag-ms=${lagMs === null ? "" : Math.round(lagMs)}><i></i>${words()}</span>`;
}

/** @param {{show: (id: string) => void}} props */
function NotebookPicker({ show }) {
  const { notebook, notebooks } = /** @type {import("../state.js").State} */ (classroom.value);
  const name = (/** @type {any} */ of) => of.title || of.path;
  if (notebooks.length < 2) return notebook && html`<bdi class="notebook">${name(notebook)}</bdi>`;
  return html`<select class="notebook" aria-label=${t("notebook.choose")} value=${notebook?.id} onChange=${(/** @type {any} */ e) => show(e.target.value)}>
    ${notebooks.map((one) => html`<option key=${one.id} value=${one.id} selected=${one.id === notebook?.id}>${t("notebook.option", { name: name(one), n: one.active ?? 0 })}</option>`)}
  </select>`;
}

export function Search() {
  return html`<input
    type="search" class="search" id="search" autocomplete="off" spellcheck=${false}
    aria-label=${t("search.title")} placeholder=${t("search.placeholder")} value=${searchText.value}
    onInput=${(/** @type {any} */ e) => (searchText.value = e.target.value)}
    onKeyDown=${(/** @type {any} */ e) => e.key === "Escape" && ((searchText.value = ""), e.target.blur())}
  />`;
}

export function HelpButton() {
  return html`<button class="icon" data-action="help" aria-label=${t("help.title")} title=${t("help.title")} onClick=${() => (isHelpOpen.value = true)}>?</button>`;
}

/** What each sign and key means. @param {{hasShortcuts: boolean, setShortcuts: (is: boolean) => void}} props */
export function Help({ hasShortcuts, setShortcuts }) {
  const dialog = useRef(/** @type {any} */ (null));
  useEffect(() => {
    if (isHelpOpen.value) dialog.current.showModal();
    else dialog.current.close();
  }, [isHelpOpen.value]);
  const keys = [["/", "help.search"], ["a", "help.names"], ["c", "help.claim"], ["h", "help.helped"], ["m", "help.message"], ["t", "help.lesson"], ["[", "help.lesson_back"], ["]", "help.lesson_on"], ["p", "help.projector"], ["?", "help.this"], ["Esc", "help.escape"], ["↑ ↓ ← →", "help.arrows"], ["Enter", "help.enter"], ["⇧ Enter", "help.shift_enter"], ["Space", "help.replay"], ["f", "help.full_screen"], ["Shift ↑ ↓ ← →", "help.map_far"], ["Delete", "help.map_off"], ["Ctrl Z / Y", "help.map_undo"]];
  const rules = ["help", "stuck", "idle", "behind", "ok", "paused", "offline"];
  const doings = ["thinking", "running", "kernel_dead", "away"];
  return html`<dialog ref=${dialog} class="help" aria-labelledby="help-title" onClose=${() => (isHelpOpen.value = false)}>
    <h2 id="help-title">${t("help.title")}</h2>
    <dl>${keys.map(([key, words]) => html`<div key=${key}><dt><kbd>${key}</kbd></dt><dd>${t(words)}</dd></div>`)}</dl>
    <dl>${rules.map((kind) => html`<div key=${kind}><dt><${Glyph} kind=${kind} /> ${t(`status.${kind}`)}</dt><dd>${t(`rule.${kind}`)}</dd></div>`)}</dl>
    <dl>${doings.map((doing) => html`<div key=${doing}><dt><${Glyph} kind=${doing} /></dt><dd>${t(`doing.${doing}`)}</dd></div>`)}</dl>
    <label><input type="checkbox" checked=${hasShortcuts} onChange=${(/** @type {any} */ e) => setShortcuts(e.target.checked)} /> ${t("help.shortcuts")}</label>
    <form method="dialog"><button class="primary">${t("help.close")}</button></form>
  </dialog>`;
}
