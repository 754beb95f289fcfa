// @ts-check
/** Pages around the board: sign-in needed, courses, waiting for students, refusals. None is ever blank. */
import { html, useEffect, useState } from "../preact.js";
import { t } from "../i18n.js";
import { course, hasShortcuts, isHelpOpen, link, setShortcuts } from "../store.js";
import { Help, HelpButton, Preferences } from "./header.js";
import { CourseNav } from "./nav.js";
import { SignIn } from "./sign_in.js";

/** @param {{name: string, title: string, children?: any}} props */
export function Page({ name, title, children }) {
  return html`<div class="page" data-page=${name}>
    <header class="top"><b class="brand">nbpulse</b><span class="spread"></span><${Preferences} /></header>
    <main class="sheet"><h1>${title}</h1>${children}</main>
  </div>`;
}

/** A page of one course: with the way to its others. @param {{name: string, title: string, courseId: string, course: string, role?: string, children?: any}} props */
export function CoursePage({ name, title, courseId, course: courseTitle, role, children }) {
  useEffect(listenForHelp, []);
  return html`<div class="page" data-page=${name}>
    <header class="top"><b class="brand">nbpulse</b><bdi class="muted">${courseTitle}</bdi><span class="spread"></span><${Preferences} /><${HelpButton} /></header>
    <${CourseNav} courseId=${courseId} current=${name} role=${role} />
    <main class="sheet"><h1>${title}</h1>${children}</main>
    <${Help} hasShortcuts=${hasShortcuts.value} setShortcuts=${setShortcuts} />
  </div>`;
}

function listenForHelp() {
  const press = (/** @type {KeyboardEvent} */ event) => {
    const isTyping = /** @type {HTMLElement} */ (event.target).matches("input, select, textarea");
    if (event.key === "?" && hasShortcuts.value && !isTyping) isHelpOpen.value = true;
  };
  addEventListener("keydown", press);
  return () => removeEventListener("keydown", press);
}

/** What went wrong, with its code and what to do. @param {{error: import("../api.js").ApiError}} props */
export function Problem({ error }) {
  if (error.status === 0) return html`<p class="problem" role="alert">${t("problem.unreachable")}</p>`;
  return html`<div class="problem" role="alert" data-code=${error.code}>
    <p><b>${error.title || t("problem.unexpected")}</b> <code>${error.code}</code></p>
    ${error.detail && error.detail !== error.title && html`<p>${error.detail}</p>`}
    ${error.hint && html`<p>${error.hint}</p>`}
  </div>`;
}

/** @param {{courses: {id: string, title: string, role: string, is_demo: boolean}[]}} props */
export function Courses({ courses }) {
  const staffed = courses.filter((one) => one.role === "instructor" || one.role === "assistant");
  if (staffed.length === 0) {
    return html`<${Page} name="no-course" title=${t("courses.none")}>
      <p>${t("courses.none_invited")}</p>
      <details>
        <summary>${t("courses.none_operator")}</summary>
        <p>${t("courses.none_demo")}</p><${Command} text="nbpulse demo" />
        <p>${t("courses.none_start")}</p><${Command} text="nbpulse up" />
      </details>
    <//>`;
  }
  return html`<${Page} name="courses" title=${t("courses.title")}>
    <ul class="courses">${staffed.map((one) => html`<li key=${one.id}><a href=${`/courses/${one.id}`}>
      <bdi>${one.title}</bdi>${one.is_demo && html` <span class="demo">${t("demo.badge")}</span>`}
    </a></li>`)}</ul>
  <//>`;
}

export function Connecting() {
  return html`<${Page} name="connecting" title=${t("link.connecting")}>
    ${link.value.problem && html`<${Problem} error=${link.value.problem} />`}
    <p class="muted">${t("connecting.patience")}</p>
  <//>`;
}

/** The server said no. @param {{error: import("../api.js").ApiError}} props */
export function Refused({ error }) {
  if (error.status === 401) return html`<${SignIn} error=${error.title ? error : null} />`;
  return html`<${Page} name="refused" title=${t(error.status === 404 ? "refused.not_found" : "refused.not_staff")}>
    ${error.title && html`<${Problem} error=${error} />`}
    <p>${t("refused.whom_to_ask")}</p>
    <p><a href="/">${t("refused.my_courses")}</a></p>
  <//>`;
}

/** An address that names none of a course's pages. @param {{courseId: string}} props */
export function NoSuchPage({ courseId }) {
  return html`<${CoursePage} name="no-page" title=${t("refused.not_found")} courseId=${courseId} course="">
    <p>${t("refused.no_page")}</p>
  <//>`;
}

/** Something failed before there was a class to show. @param {{error: import("../api.js").ApiError, again: () => void}} props */
export function Failed({ error, again }) {
  return html`<${Page} name="failed" title=${t("problem.unexpected")}>
    <${Problem} error=${error} /><button class="primary" onClick=${again}>${t("problem.again")}</button>
  <//>`;
}

/** A class without students yet: the code, large enough for the last row. */
export function Waiting() {
  const { join_code: code, join_url: url } = course.value;
  return html`<main class="waiting" data-page="waiting">
    <h2>${t("waiting.title")}</h2>
    <p class="muted">${t("waiting.code")}</p>
    <p class="join-code" data-join-code>${code}</p>
    <p>${t("waiting.type")}</p>
    <${Command} text=${`nbpulse-capture join ${url ?? location.origin} ${code}`} />
  </main>`;
}

/** @param {{text: string}} props */
export function Command({ text }) {
  const [isCopied, setCopied] = useState(false);
  const copy = () => navigator.clipboard.writeText(text).then(() => setCopied(true));
  return html`<div class="command"><code>${text}</code>
    ${navigator.clipboard && html`<button onClick=${copy}>${isCopied ? t("command.copied") : t("command.copy")}</button>`}
  </div>`;
}
