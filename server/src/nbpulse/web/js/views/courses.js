// @ts-check
/** The viewer's classes: those that are on now, the others, archived ones folded away; making, naming, copying, archiving. */
import { ApiError, archiveCourse, copyCourse, createCourse, fetchCourses, renameCourse } from "../api.js";
import { html, useEffect, useState } from "../preact.js";
import { formatClock, formatDay, t } from "../i18n.js";
import { Command, JoinSteps, Page, Problem } from "./pages.js";

const REREAD_MS = 15_000;

/** @typedef {{id: string, title: string, short_name: string, time_zone: string, is_demo: boolean, created_at: string, archived_at: ?string, role: string, join_code: string, is_join_open: boolean, meeting_since: ?string, student_count: number, connected_count: ?number}} Course */
/** @typedef {(work: () => Promise<any>) => Promise<void>} Run does it, shows what went wrong, and reads all anew */

/** What the page shows, read anew now and then. */
export function useCourses() {
  const [told, setTold] = useState(/** @type {?{courses: Course[], may_create: boolean, address: string, is_local: boolean}} */ (null));
  const [problem, setProblem] = useState(/** @type {?ApiError} */ (null));
  const read = async () => setTold(await fetchCourses());
  /** @type {Run} */
  const run = async (work) => {
    try {
      setProblem(null);
      await work();
      await read();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setProblem(error);
    }
  };
  useEffect(() => {
    void run(async () => {});
    const timer = setInterval(() => document.hidden || read().catch(() => {}), REREAD_MS); // what is shown stays shown
    return () => clearInterval(timer);
  }, []);
  return { told, problem, run };
}

export function Courses() {
  const { told, problem, run } = useCourses();
  if (!told) return html`<${Page} name="courses" title=${t("courses.title")}>${problem && html`<${Problem} error=${problem} />`}<//>`;
  const { courses, may_create: mayCreate, address } = told;
  const archived = courses.filter((one) => one.archived_at);
  const live = courses.filter((one) => one.meeting_since && !one.archived_at);
  const others = courses.filter((one) => !one.meeting_since && !one.archived_at);
  const parts = { run, mayCreate };
  const isEmpty = live.length + others.length === 0;
  return html`<${Page} name=${isEmpty ? "no-course" : "courses"} title=${t(isEmpty ? "courses.none" : "courses.title")}>
    ${problem && html`<${Problem} error=${problem} />`}
    ${isEmpty && html`<p>${t(mayCreate ? "courses.none_yours" : "courses.none_invited")}</p>`}
    ${isEmpty && mayCreate && html`<${Creation} isOpen run=${run} />`}
    ${isEmpty && html`<${Empty} address=${address} />`}
    ${live.length > 0 && html`<section data-part="live"><h2>${t("courses.live")}</h2><${List} ...${parts} courses=${live} /></section>`}
    ${others.length > 0 && html`<section data-part="others">${live.length > 0 && html`<h2>${t("courses.others")}</h2>`}<${List} ...${parts} courses=${others} /></section>`}
    ${mayCreate && !isEmpty && html`<${Creation} run=${run} />`}
    ${archived.length > 0 && html`<details data-part="archived"><summary>${t("courses.archived", { n: archived.length })}</summary>
      <p class="muted">${t("courses.archived_explain")}</p><${List} ...${parts} courses=${archived} /></details>`}
  <//>`;
}

/** @param {{address: string}} props */
function Empty({ address }) {
  return html`<details><summary>${t("courses.none_connect")}</summary><${JoinSteps} address=${address} code="CODE" /></details>
    <details>
      <summary>${t("courses.none_operator")}</summary>
      <p>${t("courses.none_demo")}</p><${Command} text="nbpulse demo" />
      <p>${t("courses.none_start")}</p><${Command} text="nbpulse up" />
    </details>`;
}

/** @param {{courses: Course[], run: Run, mayCreate: boolean}} props */
function List({ courses, ...parts }) {
  return html`<ul class="courses">${courses.map((one) => html`<${Card} key=${one.id} course=${one} ...${parts} />`)}</ul>`;
}

/** @param {{course: Course, run: Run, mayCreate: boolean}} props */
function Card({ course, run, mayCreate }) {
  const [asked, ask] = useState(/** @type {""|"copy"|"rename"} */ (""));
  const base = `/courses/${encodeURIComponent(course.id)}`;
  const leads = course.role === "instructor";
  const reads = course.role === "analyst"; // the history, and no class
  const facts = [
    t(`role.${course.role}`),
    !reads && t("courses.students", { n: course.student_count }),
    course.meeting_since && t("courses.since", { time: formatClock(Date.parse(course.meeting_since)).slice(0, 5) }),
    !reads && course.connected_count !== null && t("counters.connected", { n: course.connected_count }),
    course.archived_at && t("courses.archived_on", { day: formatDay(new Date(course.archived_at)) }),
  ].filter(Boolean);
  const named = html`<span class="unseen"> ${course.title}</span>`;
  return html`<li class="card" data-course=${course.id}>
    <p class="course-head"><a href=${reads ? `${base}/data` : base}><bdi>${course.title}</bdi></a>
      ${course.meeting_since && html`<span class="on-air">${t("courses.on")}</span>`}
      ${course.is_demo && html`<span class="demo">${t("demo.badge")}</span>`}</p>
    <p class="muted">${facts.join(" · ")} · <code title=${t("courses.short_name")}>${course.short_name}</code></p>
    ${!course.archived_at && !reads && html`<p class="ends">
      <span>${t("course.join_code")} <b data-join-code>${course.join_code}</b>${!course.is_join_open && html` <span class="note-chip">${t("courses.join_closed")}</span>`}</span>
      <a href=${`${base}/before`}>${t("nav.before")}${named}</a>
      <a href=${`${base}/join`}>${t("join.large")}${named}</a>
      <a href=${`${base}/people`}>${t("nav.people")}${named}</a>
    </p>`}
    ${leads && html`<p class="ends">
      ${!asked && html`<button data-action="rename" onClick=${() => ask("rename")}>${t("courses.rename")}${named}</button>`}
      ${mayCreate && !asked && html`<button data-action="copy" onClick=${() => ask("copy")}>${t("courses.copy")}${named}</button>`}
      ${!course.is_demo && (course.archived_at
        ? html`<button data-action="restore" onClick=${() => run(() => archiveCourse(course.id, false))}>${t("courses.restore")}${named}</button>`
        : html`<button data-action="archive" title=${t("courses.archived_explain")} onClick=${() => run(() => archiveCourse(course.id, true))}>${t("courses.archive")}${named}</button>`)}
    </p>`}
    ${asked && html`<${Naming} key=${asked} course=${course} what=${asked} run=${run} done=${() => ask("")} />`}
  </li>`;
}

/** Where a new course is made ready. @param {{id: string}} course */
const goOn = ({ id }) => location.assign(`/courses/${encodeURIComponent(id)}/before`);

/** A title for the course, or for its copy. @param {{course: Course, what: "copy"|"rename", run: Run, done: () => void}} props */
function Naming({ course, what, run, done }) {
  const submit = (/** @type {any} */ event) => {
    event.preventDefault();
    const title = event.currentTarget.elements.title.value;
    void run(what === "copy" ? async () => goOn(await copyCourse(course.id, { title })) : async () => (await renameCourse(course.id, title), done()));
  };
  return html`<form class="write" onSubmit=${submit}>
    <p class="muted">${t(`courses.${what}_explain`)}</p>
    <label>${t("courses.new_title")} <input name="title" required maxlength="200" value=${course.title} ref=${(/** @type {any} */ one) => one && !one.dataset.met && ((one.dataset.met = "1"), one.select())} /></label>
    <p class="ends"><button class="primary" data-action=${`${what}-now`}>${t(`courses.${what}_now`)}</button>
      <button type="button" data-action="cancel" onClick=${done}>${t("courses.cancel")}</button></p>
  </form>`;
}

/** @param {{isOpen?: boolean, run: Run}} props */
function Creation({ isOpen = false, run }) {
  const zones = /** @type {any} */ (Intl).supportedValuesOf?.("timeZone") ?? [];
  const submit = (/** @type {any} */ event) => {
    event.preventDefault();
    const { title, short_name: short, time_zone: zone } = event.currentTarget.elements;
    const wanted = { title: title.value, short_name: short.value.trim() || null, time_zone: zone.value.trim() };
    void run(async () => goOn(await createCourse(wanted)));
  };
  return html`<details class="card" data-part="create" open=${isOpen}><summary>${t("courses.create")}</summary>
    <form class="write" onSubmit=${submit}>
      <label>${t("courses.new_title")} <input name="title" required maxlength="200" placeholder=${t("courses.title_example")} /></label>
      <label>${t("courses.short_name")} <input name="short_name" maxlength="40" pattern="[a-z0-9]+(-[a-z0-9]+)*" autocomplete="off" aria-describedby="short-name-rule" /></label>
      <p class="muted" id="short-name-rule">${t("courses.short_rule")}</p>
      <label>${t("courses.time_zone")} <input name="time_zone" required list="time-zones" value=${Intl.DateTimeFormat().resolvedOptions().timeZone} /></label>
      <datalist id="time-zones">${zones.map((/** @type {string} */ zone) => html`<option key=${zone} value=${zone} />`)}</datalist>
      <p><button class="primary" data-action="create">${t("courses.create_now")}</button></p>
    </form>
  </details>`;
}
