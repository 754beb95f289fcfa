// @ts-check
/** A student's own page: how far they are, their place in the queue, what is recorded of them and who looked. */
import { ApiError, fetchOwnAudit, fetchOwnCollection, fetchOwnInbox, fetchOwnProgress, withdraw } from "../api.js";
import { html, useEffect, useState } from "../preact.js";
import { formatWait, language, t } from "../i18n.js";
import { useReread } from "../reread.js";
import { now } from "../store.js";
import { Command, Page, Problem } from "./pages.js";
import { cellName, formatMoment } from "./work.js";

const LOOK_EVERY_MS = 10_000;
const DIGITS = { none: 0, ok: 1, running: 2, error: 3 };

/** @param {{courses: {id: string, title: string, role: string}[]}} props those in which one is a student */
export function Me({ courses }) {
  const asked = new URLSearchParams(location.search).get("course");
  const course = courses.find((one) => one.id === asked) ?? courses[0];
  if (!course) return html`<${Page} name="me" title=${t("me.title")}><p>${t("me.no_course")}</p><${Looks} /><//>`;
  return html`<${Page} name="me" title=${t("me.title")}>
    ${courses.length > 1 && html`<nav class="ends" aria-label=${t("me.courses")}>${courses.map((one) => html`<a key=${one.id} href=${`/me?course=${one.id}`} aria-current=${one.id === course.id ? "page" : "false"}><bdi>${one.title}</bdi></a>`)}</nav>`}
    <p class="muted"><bdi>${course.title}</bdi></p>
    <${Own} key=${course.id} courseId=${course.id} />
    <${Looks} />
  <//>`;
}

/** @param {{courseId: string}} props */
function Own({ courseId }) {
  const [told, setTold] = useState(/** @type {any} */ (null));
  const read = async () => {
    const [{ notebooks }, { help }, collection] = await Promise.all([fetchOwnProgress(courseId), fetchOwnInbox(courseId), fetchOwnCollection(courseId)]);
    setTold({ notebooks, help, collection });
  };
  const { problem, reread } = useReread(read, LOOK_EVERY_MS, [courseId]);
  return html`${problem && html`<${Problem} error=${problem} />`}
    ${told && html`${told.help?.open && html`<${Hand} help=${told.help} />`}<${Progress} notebooks=${told.notebooks} />
      <${Recorded} courseId=${courseId} collection=${told.collection} done=${reread} />`}`;
}

/** @param {{help: any}} props */
function Hand({ help }) {
  const words = help.coming ? t("me.coming", { name: help.coming.name }) : t("me.place", { place: help.place ?? 1 });
  return html`<section class="card" data-part="hand" role="status"><h2>${t("me.hand")}</h2><p>${words} ${t("me.since", { wait: formatWait(now.value - help.since) })}</p></section>`;
}

/** @param {{notebooks: any[]}} props */
function Progress({ notebooks }) {
  return html`<section class="card" data-part="progress" aria-labelledby="progress-title"><h2 id="progress-title">${t("me.progress")}</h2>
    ${notebooks.length === 0 && html`<p class="muted">${t("me.no_progress")}</p>`}
    ${notebooks.map(({ id, title, path, cells }) => {
      const done = cells.filter((/** @type {any} */ cell) => cell.state === "ok").length;
      return html`<div key=${id} class="own-notebook" data-notebook=${id}><h3><bdi>${title || path}</bdi></h3><p data-done=${done}>${t("me.done", { done, total: cells.length })}</p>
        <ol class="own-cells">${cells.map((/** @type {any} */ cell) => html`<li key=${cell.cell_id}><i data-state=${DIGITS[/** @type {keyof DIGITS} */ (cell.state)]} title=${`${cellName(cell.cell_index)}: ${t(`run.${cell.state}`)}`}></i>
          <span class="unseen">${cellName(cell.cell_index)}: ${t(`run.${cell.state}`)}</span></li>`)}</ol></div>`;
    })}
    <p class="muted">${t("me.meaning")}</p></section>`;
}

/** What is recorded, what was said to it, and the ways out. @param {{courseId: string, collection: any, done: () => void}} props */
function Recorded({ courseId, collection, done }) {
  const [isAsking, setAsking] = useState(false);
  const [problem, setProblem] = useState(/** @type {?ApiError} */ (null));
  const { current, history } = collection;
  const hasWithdrawn = history[0]?.action === "withdraw";
  const end = async () => {
    try {
      await withdraw(courseId, history.find((/** @type {any} */ one) => one.version)?.version ?? current.version);
      setAsking(false);
      done();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setProblem(error);
    }
  };
  return html`<section class="card" data-part="recorded" aria-labelledby="recorded-title"><h2 id="recorded-title">${t("me.recorded")}</h2>
    <p class="notice">${current.notice[language.value]}</p>
    <details><summary>${t("me.history")}</summary><ul>${history.map((/** @type {any} */ one) => html`<li>${formatMoment(one.at)} · ${t(`consent.${one.action}`)} · ${one.version ? t("me.version", { version: one.version }) : t("me.no_version")}</li>`)}</ul></details>
    <h3>${t("me.pause")}</h3><p>${t("me.pause_how")}</p><${Command} text="nbpulse-capture pause" />
    <h3>${t("me.take")}</h3><p><a href="/api/v1/me/export" download data-action="export">${t("me.export")}</a> <span class="muted">${t("me.export_explain")}</span></p>
    <h3>${t("me.withdraw")}</h3>
    ${problem && html`<${Problem} error=${problem} />`}
    ${hasWithdrawn ? html`<p data-withdrawn>${t("me.withdrawn")}</p>` : html`<p>${t("me.withdraw_explain")}</p><p class="ends">
      ${isAsking
        ? html`<button class="primary" data-action="withdraw-now" onClick=${end}>${t("me.withdraw_now")}</button><button data-action="stay" onClick=${() => setAsking(false)}>${t("me.stay")}</button>`
        : html`<button data-action="withdraw" onClick=${() => setAsking(true)}>${t("me.withdraw")}</button>`}</p>`}
  </section>`;
}

/** Who looked at one's work, from the audit log. */
function Looks() {
  const [told, setTold] = useState(/** @type {{entries: any[], next: ?number}} */ ({ entries: [], next: null }));
  const [problem, setProblem] = useState(/** @type {?ApiError} */ (null));
  const read = async () => {
    try {
      const page = await fetchOwnAudit(told.next);
      setTold({ entries: [...told.entries, ...page.entries], next: page.next });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setProblem(error);
    }
  };
  useEffect(() => void read(), []);
  return html`<section class="card" data-part="looks" aria-labelledby="looks-title"><h2 id="looks-title">${t("me.looks")}</h2>
    ${problem && html`<${Problem} error=${problem} />`}
    <ul class="people">${told.entries.map((one) => html`<li key=${one.id}><span><bdi>${one.is_mine ? t("me.you") : (one.by ?? t("me.nobody"))}</bdi> ${one.text[language.value]}</span>
      <span class="muted"><time>${formatMoment(one.at)}</time>${one.course_title && html` · <bdi>${one.course_title}</bdi>`}</span></li>`)}</ul>
    ${told.next && html`<button data-action="more" onClick=${read}>${t("work.more")}</button>`}
  </section>`;
}
