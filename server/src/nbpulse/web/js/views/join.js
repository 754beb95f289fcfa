// @ts-check
/** How one joins: the steps, the code on the wall, the page behind its QR code, and the sheet to hand out. */
import { ApiError, fetchCollection, fetchNotice } from "../api.js";
import { html, useEffect, useState } from "../preact.js";
import { language, LANGUAGES, loadWords, t } from "../i18n.js";
import { useCourses } from "./courses.js";
import { Preferences } from "./header.js";
import { CoursePage, JoinSteps, INSTALL, oneLine, Page, Problem, Refused } from "./pages.js";

/** The course among one's own. @param {string} courseId */
function useCourse(courseId) {
  const { told, problem } = useCourses();
  return { told, problem, course: told?.courses.find((one) => one.id === courseId) };
}

/** @param {{courseId: string, code: string}} props */
const QrCode = ({ courseId, code }) => html`<img class="qr" key=${code} src=${`/api/v1/courses/${encodeURIComponent(courseId)}/join-code.svg?${code}`} alt=${t("join.qr")} width="320" height="320" />`;

/** For the projector: nobody's name, the code for the last row. @param {{courseId: string, title: string}} props */
export function JoinLarge({ courseId, title }) {
  const { told, problem, course } = useCourse(courseId);
  if (problem && !told) return html`<${Refused} error=${problem} />`;
  if (told && !course) return html`<${Refused} error=${new ApiError(404, {})} />`;
  return html`<div class="page" data-page="join">
    <header class="top"><a href=${`/courses/${encodeURIComponent(courseId)}/before`}>${t("join.back")}</a><span class="spread"></span><${Preferences} /></header>
    <main class="waiting"><h1><bdi>${title}</bdi></h1>
      ${course && (course.is_join_open
        ? html`<div class="on-wall">
          <div><p class="muted">${t("waiting.code")}</p><p class="join-code" data-join-code>${course.join_code}</p>
            <p class="join-address">${told?.address}/join</p></div>
          <${QrCode} courseId=${courseId} code=${course.join_code} /></div>
          ${told?.is_local && html`<p class="problem">${t("join.only_here")}</p>`}`
        : html`<p class="problem" role="status">${t("join.closed")}</p>`)}
    </main>
  </div>`;
}

/** What stands behind the QR code, for whoever has it. @param {{code: string}} props */
export function Join({ code }) {
  const [told, setTold] = useState(/** @type {any} */ (null));
  const [problem, setProblem] = useState(/** @type {?ApiError} */ (null));
  const [typed, setTyped] = useState("");
  useEffect(() => {
    if (code) fetchNotice(code).then(setTold, setProblem);
  }, [code]);
  if (!code) {
    const go = (/** @type {any} */ event) => (event.preventDefault(), location.assign(`/join/${encodeURIComponent(typed.trim())}`));
    return html`<${Page} name="join-code" title=${t("join.title_plain")}><form class="write" onSubmit=${go}>
      <label>${t("waiting.code")} <input name="code" required maxlength="40" autocomplete="off" autocapitalize="characters" value=${typed} onInput=${(/** @type {any} */ e) => setTyped(e.target.value)} /></label>
      <p><button class="primary">${t("join.go")}</button></p></form><//>`;
  }
  const title = told ? t("join.title", { course: told.course_title }) : t("join.title_plain");
  return html`<${Page} name="join-student" title=${title}>
    ${problem && html`<${Problem} error=${problem} />`}
    ${told && html`<${JoinSteps} address=${location.origin} code=${code.toUpperCase()} />
      <section class="card"><h2>${t("join.recorded")}</h2><p class="prose" lang=${language.value}>${told.notice[language.value]}</p></section>`}
  <//>`;
}

/** One page each in Japanese and English, to print. @param {{courseId: string, title: string}} props */
export function Handout({ courseId, title }) {
  const { told, problem, course } = useCourse(courseId);
  const [sheets, setSheets] = useState(/** @type {?{lang: string, words: any}[]} */ (null));
  const [notice, setNotice] = useState(/** @type {any} */ (null));
  const [refusal, setRefusal] = useState(/** @type {?ApiError} */ (null));
  useEffect(() => {
    Promise.all(LANGUAGES.map(async (lang) => ({ lang, words: await loadWords(lang) }))).then(setSheets);
    fetchCollection(courseId).then(setNotice, setRefusal);
  }, [courseId]);
  const page = { name: "handout", title: t("handout.title"), courseId, course: title };
  const failure = refusal ?? problem;
  if (failure && !(told && notice)) return html`<${Refused} error=${failure} />`;
  if (!told || !course || !notice || !sheets) return html`<${CoursePage} ...${page} />`;
  return html`<${CoursePage} ...${page}>
    <p class="ends no-print"><button class="primary" data-action="print" onClick=${() => print()}>${t("handout.print")}</button><span class="muted">${t("handout.explain")}</span></p>
    ${!course.is_join_open && html`<p class="problem no-print" role="status">${t("join.closed")}</p>`}
    ${told.is_local && html`<p class="problem no-print">${t("join.only_here")}</p>`}
    ${sheets.map(({ lang, words }) => html`<article class="handout" key=${lang} lang=${lang} data-sheet=${lang}>
      <h2><bdi>${course.title}</bdi></h2>
      <div class="on-sheet"><div><p>${words("handout.why")}</p>
        <ol class="steps"><li>${words("join.install")}<code>${INSTALL}</code></li>
          <li>${words("join.type")}<code>nbpulse-capture join ${told.address} ${course.join_code}</code>
            ${words("join.or_toolbar")}<code>${oneLine(told.address, course.join_code)}</code></li>
          <li>${words("join.then")}</li></ol></div>
        <figure><${QrCode} courseId=${courseId} code=${course.join_code} /><figcaption>${told.address}/join/${course.join_code}</figcaption></figure></div>
      <h3>${words("join.recorded")}</h3><p class="prose">${notice.notice[lang]}</p>
    </article>`)}
  <//>`;
}
