// @ts-check
/** Before class: can it begin? Who has come and sends, which notebooks are prepared, whether everything runs. */
import { ApiError, fetchHealth, fetchReadiness, prepareNotebook } from "../api.js";
import { html, useState } from "../preact.js";
import { formatClock, formatDay, language, t } from "../i18n.js";
import { useReread } from "../reread.js";
import { isNamed, toggleNames } from "../store.js";
import { useCourses } from "./courses.js";
import { CoursePage, Problem, Refused } from "./pages.js";

const REREAD_MS = 10_000;
/** Those somebody has to look after first. */
const STATES = ["absent", "silent", "waiting", "away", "connected", "withdrawn"];

/** @typedef {{user_id: string, name: string, number: string, team: ?string, seat: ?string, state: string, last_at: ?string}} Attendant */
/** @typedef {{id: string, path: string, title: ?string, is_prepared: boolean, student_count: number}} Notebook */

/** @param {{courseId: string, title: string, role: string}} props */
export function Before({ courseId, title, role }) {
  const [ready, setReady] = useState(/** @type {any} */ (null));
  const [health, setHealth] = useState(/** @type {any} */ (null));
  const { told } = useCourses();
  const read = async () => {
    setReady(await fetchReadiness(courseId));
    setHealth(await fetchHealth());
  };
  const { problem, reread } = useReread(read, REREAD_MS, [courseId]);
  const page = { name: "before", title: t("before.title"), courseId, course: title };
  if (!ready) return problem ? html`<${Refused} error=${problem} />` : html`<${CoursePage} ...${page} />`;
  const course = told?.courses.find((one) => one.id === courseId);
  return html`<${CoursePage} ...${page}>
    ${problem && html`<${Problem} error=${problem} />`}
    ${told && course && html`<${Checks} ready=${ready} health=${health} told=${told} course=${course} courseId=${courseId} />`}
    <${Students} students=${ready.students} isKnown=${ready.is_presence_known} courseId=${courseId} />
    <${Notebooks} notebooks=${ready.notebooks} courseId=${courseId} mayPrepare=${role === "instructor"} done=${reread} />
    <section class="card" data-part="collection" aria-labelledby="collection-title">
      <h2 id="collection-title">${t("before.collection")}</h2>
      <p><b>${t(`level.${ready.collection.level}`)}</b> <span class="muted">${t("before.version", { n: ready.collection.version })}</span></p>
      <details><summary>${t("before.notice")}</summary><p class="prose">${ready.collection.notice[language.value]}</p></details>
    </section>
  <//>`;
}

/** What hinders a class, each with what to do; what is well is said in a word. @param {{ready: any, health: any, told: any, course: any, courseId: string}} props */
function Checks({ ready, health, told, course, courseId }) {
  const base = `/courses/${encodeURIComponent(courseId)}`;
  const unprepared = ready.notebooks.filter((/** @type {Notebook} */ one) => !one.is_prepared && one.student_count > 0).length;
  const parts = ["postgresql", "redis", "worker", "influxdb"].filter((name) => health?.[name]?.status === "unhealthy");
  const come = ready.students.filter((/** @type {Attendant} */ one) => one.state === "connected").length;
  /** @type {[string, boolean, any][]} */
  const checks = [
    ["students", ready.students.length > 0, ready.students.length > 0 ? t("before.come", { n: come, all: ready.students.length }) : t("before.nobody")],
    ["code", course.is_join_open, course.is_join_open ? html`${t("course.join_code")} <b data-join-code>${course.join_code}</b>` : html`${t("join.closed")} <a href=${`${base}/people`}>${t("nav.people")}</a>`],
    ["address", !told.is_local, told.is_local ? t("join.only_here") : html`${t("before.address")} <code>${told.address}</code>`],
    ["notebooks", unprepared === 0, unprepared > 0 ? t("before.unprepared", { n: unprepared }) : t("before.prepared")],
    ...(health ? [/** @type {[string, boolean, any]} */ (["stores", parts.length === 0, parts.length === 0 ? t("before.stores_well") : html`${parts.map((name) => html`<span key=${name}>${t(`health.${name}`)} </span>`)}${t("health.todo")}`])] : []),
  ];
  return html`<section class="card" data-part="checks" aria-labelledby="checks-title">
    <h2 id="checks-title">${t("before.checks")}</h2>
    <ul class="checks">${checks.map(([name, isWell, words]) => html`<li key=${name} data-check=${name} data-well=${isWell}>
      <span class="sign" aria-hidden="true">${isWell ? "✓" : "!"}</span><span><span class="unseen">${t(isWell ? "before.well" : "before.not_well")} </span>${words}</span></li>`)}</ul>
    <p class="ends"><a href=${`${base}/join`}>${t("join.large")}</a><a href=${`${base}/handout`}>${t("handout.title")}</a></p>
  </section>`;
}

/** @param {{students: Attendant[], isKnown: boolean, courseId: string}} props */
function Students({ students, isKnown, courseId }) {
  const of = (/** @type {string} */ state) => students.filter((one) => one.state === state);
  const label = (/** @type {Attendant} */ one) => (isNamed.value ? one.name : one.number);
  const when = (/** @type {Attendant} */ one) => one.state === "away" && one.last_at && t("before.last", { time: tellTime(one.last_at) });
  return html`<section class="card" data-part="attendance" aria-labelledby="attendance-title">
    <h2 id="attendance-title">${t("people.students", { n: students.length })}</h2>
    ${!isKnown && html`<p class="problem">${t("before.presence_unknown")}</p>`}
    ${students.length === 0
      ? html`<p class="muted">${t("before.nobody_explain")} <a href=${`/courses/${encodeURIComponent(courseId)}/people`}>${t("nav.people")}</a></p>`
      : html`<p class="ends"><button class="toggle" data-action="names" aria-pressed=${isNamed.value} onClick=${toggleNames}>${isNamed.value ? t("names.hide") : t("names.show")}</button></p>`}
    ${STATES.filter((state) => of(state).length > 0).map((state) => html`<details key=${state} data-state=${state} open=${["absent", "silent", "waiting"].includes(state)}>
      <summary><b>${t(`before.${state}`)}</b> ${of(state).length}</summary>
      <p class="muted">${t(`before.${state}_explain`)}</p>
      <ul class="names">${of(state).map((one) => html`<li key=${one.user_id}><bdi>${label(one)}</bdi> <span class="muted">${[one.team, one.seat, when(one)].filter(Boolean).join(" · ")}</span></li>`)}</ul>
    </details>`)}
  </section>`;
}

/** The time of today, the day of earlier. @param {string} text */
function tellTime(text) {
  const at = new Date(text);
  return at.toDateString() === new Date().toDateString() ? formatClock(at.getTime()).slice(0, 5) : formatDay(at);
}

/** @param {{notebooks: Notebook[], courseId: string, mayPrepare: boolean, done: () => Promise<void>}} props */
function Notebooks({ notebooks, courseId, mayPrepare, done }) {
  return html`<section class="card" data-part="notebooks" id="notebooks" aria-labelledby="notebooks-title">
    <h2 id="notebooks-title">${t("before.notebooks")}</h2>
    ${notebooks.length === 0 && html`<p class="muted">${t("before.no_notebooks")}</p>`}
    <ul class="people">${notebooks.map((one) => html`<li key=${one.id} data-prepared=${one.is_prepared}><span class="person"><bdi>${one.title || one.path}</bdi> <span class="muted"><bdi>${one.path}</bdi></span></span>
      <span><span class="note-chip">${t(one.is_prepared ? "before.is_prepared" : "before.not_prepared")}</span> ${t("courses.students", { n: one.student_count })}</span></li>`)}</ul>
    ${mayPrepare && html`<${Preparation} courseId=${courseId} done=${done} />`}
  </section>`;
}

/** A file in, the prepared one out. @param {{courseId: string, done: () => Promise<void>}} props */
function Preparation({ courseId, done }) {
  const [told, setTold] = useState(/** @type {any} */ (null));
  const [problem, setProblem] = useState(/** @type {?ApiError} */ (null));
  const [isBusy, setBusy] = useState(false);
  const send = async (/** @type {any} */ event) => {
    const input = event.currentTarget;
    const [file] = input.files;
    if (!file) return;
    setTold(null);
    setProblem(null);
    setBusy(true);
    try {
      setTold(await prepareNotebook(courseId, file));
      await done();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setProblem(error);
    } finally {
      setBusy(false);
      input.value = ""; // the same file, mended, can be chosen again
    }
  };
  return html`<h3>${t("prepare.title")}</h3><p class="muted">${t("prepare.explain")}</p>
    <label>${t("prepare.file")} <input type="file" accept=".ipynb,application/x-ipynb+json" disabled=${isBusy} onChange=${send} /></label>
    <div role="status">${isBusy && t("prepare.busy")}
      ${told && html`<p data-told>${t(told.has_changed ? "prepare.done" : "prepare.already", { name: told.file_name, cells: told.cells, sections: told.sections, exercises: told.exercises })}</p>
        <p><button class="primary" data-action="download" onClick=${() => save(told.file_name, told.text)}>${t("prepare.download", { name: told.file_name })}</button></p>`}</div>
    ${problem && html`<${Problem} error=${problem} />`}`;
}

/** @param {string} name @param {string} text */
function save(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/x-ipynb+json" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // the browser reads it after the click
}
