// @ts-check
/** Pages around the board: sign-in needed, courses, waiting for students, refusals. None is ever blank. */
import { asOf, forgetAsOf, gap } from "../as_of.js";
import { html, useEffect, useState } from "../preact.js";
import { formatClock, t } from "../i18n.js";
import { course, hasShortcuts, isHelpOpen, link, setShortcuts } from "../store.js";
import { Help, HelpButton, Preferences } from "./header.js";
import { CourseNav } from "./nav.js";
import { SignIn } from "./sign_in.js";

/** @param {{name: string, title: string, children?: any}} props */
export function Page({ name, title, children }) {
  return html`<div class="page" data-page=${name}>
    <header class="top"><a class="brand" href="/courses" title=${t("nav.courses")}>nbpulse</a><span class="spread"></span><${Preferences} /></header>
    <main class="sheet"><h1>${title}</h1>${children}</main>
  </div>`;
}

/** A page of one course: with the way to its others. @param {{name: string, title: string, courseId: string, course: string, role?: string, children?: any}} props */
export function CoursePage({ name, title, courseId, course: courseTitle, role, children }) {
  useEffect(listenForHelp, []);
  useEffect(forgetAsOf, [location.pathname]);
  return html`<div class="page" data-page=${name}>
    <header class="top"><a class="brand" href="/courses" title=${t("nav.courses")}>nbpulse</a><bdi class="muted">${courseTitle}</bdi><span class="spread"></span><${Preferences} /><${HelpButton} /></header>
    <${CourseNav} courseId=${courseId} current=${name} role=${role} />
    <main class="sheet"><h1>${title}</h1><${AsOf} />${children}</main>
    <${Help} hasShortcuts=${hasShortcuts.value} setShortcuts=${setShortcuts} />
  </div>`;
}

/** The place is always there, so that a reader hears what comes into it. */
export function AsOf() {
  const away = gap.value && JSON.parse(gap.value);
  return html`<div role="status">
    ${asOf.value < Infinity && html`<p class="as-of" data-as-of=${asOf.value}>${t("page.as_of", { at: formatClock(asOf.value) })}</p>`}
    ${away && html`<p class="as-of" data-missing=${away.missing_shards}>${t("page.gap", away)}</p>`}
  </div>`;
}

/** `?` opens the list of keys. */
export function listenForHelp() {
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
    <p><a href="/courses">${t("refused.my_courses")}</a></p>
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
    <${JoinSteps} address=${url ?? location.origin} code=${code} />
  </main>`;
}

export const INSTALL = "pip install nbpulse-capture";

/** Address and code in one line, as Jupyter's own form takes them. @param {string} address @param {string} code */
export const oneLine = (address, code) => `${code}@${address.replace(/^http:\/\//, "")}`;

/** What a student types. @param {{address: string, code: string}} props */
export function JoinSteps({ address, code }) {
  return html`<ol class="steps">
    <li>${t("join.install")}<${Command} text=${INSTALL} /></li>
    <li>${t("join.type")}<${Command} text=${`nbpulse-capture join ${address} ${code}`} />
      <p class="muted">${t("join.or_toolbar")}</p><${Command} text=${oneLine(address, code)} /></li>
    <li>${t("join.then")}</li>
  </ol>`;
}

/** @param {{text: string}} props */
export function Command({ text }) {
  const [isCopied, setCopied] = useState(false);
  const copy = () => navigator.clipboard.writeText(text).then(() => setCopied(true));
  return html`<div class="command"><code>${text}</code>
    ${navigator.clipboard && html`<button onClick=${copy}>${isCopied ? t("command.copied") : t("command.copy")}</button>`}
  </div>`;
}
